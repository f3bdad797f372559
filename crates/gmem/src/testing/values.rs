//! What generated programs are made of: numbers at which something changes, machines that are short of memory, objects to work on,
//! and what must hold at the end.

use crate::interp::World;
use crate::ops::{FdRef, HvaRef, Name, Op, Prot};
use crate::{MachineConfig, Stage2Kind};
use sim_kernel::Cx;

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

/// Numbers at which something changes, give or take one of [`NEAR`].
pub const EDGES: [u64; 18] = [
    0,
    1,
    4 * K,
    8 * K,
    2 * M,
    1 << 30,
    1 << 31,
    1 << 32,
    0xf000_0000,
    1 << 38,
    1 << 40,
    1 << 44,
    (1 << 47) - 4096,
    1 << 47,
    1 << 52,
    1 << 53,
    1 << 63,
    0,
];

/// What is added to an edge.
pub const NEAR: [u64; 5] = [0, 1, 0u64.wrapping_sub(1), 4096, 0u64.wrapping_sub(4096)];

/// Bytes of memory of the machines: all of them run out of it.
pub const MEMORY: [u64; 6] = [64 * K, 512 * K, 2 * M, 5 * M, 16 * M, 48 * M];

/// Descriptors that a process may have.
pub const FILES_MAX: [usize; 3] = [6, 12, 1 << 20];

/// A machine of either format.
pub fn machine(npt: bool, eager_page_split: bool, memory: u64, files_max: usize) -> MachineConfig {
    MachineConfig {
        stage2: if npt { Stage2Kind::Npt } else { Stage2Kind::Ept },
        memory,
        eager_page_split,
        files_max,
        ..MachineConfig::default()
    }
}

/// How the objects of [`SetUp::ops`] are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetUp {
    /// Type of the VM: 0 or 1.
    pub r#type: u64,
    /// Flags of the guest_memfd: mapping and being shared at first, as far as the type has them.
    pub flags: u64,
    /// Whether `m0` maps a file.
    pub has_file: bool,
    /// Pages by which guest and host addresses of two slots are not congruent.
    pub skew: u64,
    /// Alignment of `m0`.
    pub align: u64,
    /// Flags of slot 2.
    pub slot_flags: u64,
}

impl SetUp {
    /// Makes the objects that the other operations name: a VM with two vCPUs, a guest_memfd, a file, three mappings, three slots.
    pub fn ops(&self) -> Vec<Op> {
        let n = |text: &str| Name::from(text);
        let map = |map: &str, fd: Option<&str>, shared, align| Op::Mmap {
            map: n(map),
            fd: fd.map(n),
            len: 8 * M,
            prot: Prot::READ | Prot::WRITE,
            shared,
            offset: 0,
            align,
        };
        let region2 = |slot, gpa, size, map: &str, guest_memfd_offset| Op::SetUserMemoryRegion2 {
            vm: n("vm0"),
            slot,
            flags: 4,
            gpa,
            size,
            hva: HvaRef::Map { map: n(map), offset: 0 },
            guest_memfd: FdRef::Name(n("g0")),
            guest_memfd_offset,
        };
        vec![
            Op::CreateVm { vm: n("vm0"), r#type: self.r#type },
            Op::CreateVcpu { vm: n("vm0"), vcpu: n("c0"), index: 0, paging: false },
            Op::CreateVcpu { vm: n("vm0"), vcpu: n("c1"), index: 1, paging: false },
            Op::CreateGuestMemfd {
                vm: n("vm0"),
                fd: n("g0"),
                size: 8 * M,
                flags: self.flags & if self.r#type == 1 { 1 } else { 3 },
            },
            Op::MemfdCreate { fd: n("f0"), size: 4 * M, flags: 0 },
            map("m0", self.has_file.then_some("f0"), self.has_file, self.align),
            map("m1", None, false, 2 * M),
            map("m2", Some("g0"), true, 4096),
            region2(0, 0, 4 * M, "m0", 0),
            region2(1, 6 * M + self.skew * 4096, M, "m1", 5 * M),
            Op::SetUserMemoryRegion {
                vm: n("vm0"),
                slot: 2,
                flags: self.slot_flags,
                gpa: 8 * M,
                size: 6 * M + self.skew * 4096,
                hva: HvaRef::Map { map: n("m1"), offset: self.skew * 4096 },
            },
        ]
    }
}

/// The invariants of every VM; then the process ends, and nothing is left.
///
/// # Panics
/// If an invariant does not hold, or something is left.
pub fn check_and_end(cx: &Cx<'_>, world: &World) {
    for (_, vm) in world.vms(cx) {
        vm.check_invariants();
    }
    world.process().exit(cx);
    if let Some(sev) = world.process().host().sev() {
        sev.check_end();
    }
    if let Some(tdx) = world.process().host().tdx() {
        tdx.check_end();
    }
    if let Some(pkvm) = world.process().host().pkvm() {
        pkvm.check_end();
    }
    let phys = world.process().host().phys();
    assert_eq!(phys.used_frames(), phys.reserved_frames(), "frames are left after the process has ended");
    assert_eq!(phys.tables(), 0, "tables are left after the process has ended");
}
