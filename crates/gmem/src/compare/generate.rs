//! Makes programs: mostly sensible operations on what exists, boundary values, and a little garbage.
//!
//! The generator remembers what a program has made (`Made`), so that later operations meet earlier ones. What it makes is fit for a
//! real machine: at most [`MEMORY_MAX`] bytes in all, no huge slot (KVM allocates for each page of one), no hardware poison.

mod paging;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::kvm::uapi::Cap;
use crate::ops::{Advice, FdRef, HvaRef, Name, Op, Prot};

/// Most bytes that a program maps or allocates.
pub const MEMORY_MAX: u64 = 64 << 20;

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;
/// Largest size that is computed with: a sparse file may have any.
const FILE_MAX: u64 = 1 << 50;
/// Where the recorder keeps its code and tables; programs stay away.
const CODE: std::ops::Range<u64> = 0xefe0_0000..0xf040_0000;
/// The longest program.
const OPS_MAX: usize = 60;
/// `KVM_MEM_GUEST_MEMFD`
const SLOT_GUEST_MEMFD: u64 = 4;

/// What the programs may use, beyond what every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Software-protected VMs, attributes and pre-faulting exist.
    pub private_memory: bool,
    /// KVM shadows the guest's tables. Its shadow MMU prefetches neighbours of a fault from the VMM's mapping also where a slot's memory is a
    /// guest_memfd's alone (`kvm_mmu_prefetch_sptes`, up to 7.3 at least): no slot has both, or the guest would see the wrong memory.
    pub shadow_paging: bool,
    /// Guests may make hypercalls.
    pub hypercalls: bool,
    /// Guests may have page tables of their own.
    pub guest_paging: bool,
    /// Width of guest physical addresses in bits.
    pub maxphyaddr: u32,
}

/// Program number `number` of `seed`.
///
/// ```
/// use gmem::compare::generate::{Abilities, program};
/// let abilities = Abilities { private_memory: false, shadow_paging: false, hypercalls: true, guest_paging: true, maxphyaddr: 40 };
/// assert_eq!(program(7, 3, abilities), program(7, 3, abilities));
/// assert_ne!(program(7, 3, abilities), program(7, 4, abilities));
/// ```
pub fn program(seed: u64, number: u64, abilities: Abilities) -> Vec<Op> {
    // Two words of state from two numbers, spread so that neighbours differ.
    let state = u128::from(seed) << 64 | u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut generator = Generator {
        rng: Pcg64Mcg::seed_from_u64((state ^ state >> 64) as u64),
        abilities,
        made: Made::default(),
        tables: None,
        ops: Vec::new(),
    };
    generator.begin();
    let length = generator.rng.random_range(6..=OPS_MAX);
    while generator.ops.len() < length {
        generator.step();
    }
    generator.ops
}

/// What a program has made so far. Names stay after a close: an operation on what is gone is worth trying.
#[derive(Debug, Default)]
struct Made {
    vms: Vec<Name>,
    vcpus: Vec<Name>,
    files: Vec<File>,
    maps: Vec<Map>,
    slots: Vec<Slot>,
    names: u32,
    memory: u64,
}

#[derive(Clone, Debug)]
struct File {
    name: Name,
    size: u64,
    gmem: bool,
    /// A guest_memfd that the host can map: all accesses to a slot with it are to the file.
    mappable: bool,
}

#[derive(Clone, Debug)]
struct Map {
    name: Name,
    len: u64,
    /// An ordinary memory file, or shared anonymous memory.
    shmem: bool,
}

#[derive(Clone, Debug)]
struct Slot {
    vm: Name,
    number: u64,
    flags: u64,
    gpa: u64,
    size: u64,
    hva: HvaRef,
    file: Option<(FdRef, u64)>,
}

struct Generator {
    rng: Pcg64Mcg,
    abilities: Abilities,
    made: Made,
    /// Where the guest's page tables are, if it has any.
    tables: Option<paging::GuestTables>,
    ops: Vec<Op>,
}

impl Generator {
    fn chance(&mut self, one_in: u32) -> bool {
        self.rng.random_range(0..one_in) == 0
    }

    fn pick<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.rng.random_range(0..values.len())].clone()
    }

    fn new_name(&mut self, letter: &str) -> Name {
        self.made.names += 1;
        format!("{letter}{}", self.made.names).as_str().into()
    }

    fn name_of(&mut self, names: &[Name], letter: &str) -> Name {
        if names.is_empty() || self.chance(60) {
            return format!("{letter}none").as_str().into();
        }
        self.pick(names)
    }

    fn vm(&mut self) -> Name {
        // Mostly the first, so that what belongs together meets.
        if !self.chance(6) {
            return "vm0".into();
        }
        let vms = self.made.vms.clone();
        self.name_of(&vms, "vm")
    }

    fn vcpu(&mut self) -> Name {
        if !self.chance(4) {
            return "c0".into();
        }
        let vcpus = self.made.vcpus.clone();
        self.name_of(&vcpus, "c")
    }

    fn file(&mut self) -> File {
        if self.made.files.is_empty() || self.chance(60) {
            return File { name: "fnone".into(), size: BLOCK, gmem: false, mappable: false };
        }
        let files = self.made.files.clone();
        self.pick(&files)
    }

    fn map(&mut self) -> Map {
        if self.made.maps.is_empty() || self.chance(60) {
            return Map { name: "mnone".into(), len: BLOCK, shmem: false };
        }
        let maps = self.made.maps.clone();
        self.pick(&maps)
    }

    /// Any descriptor: a file mostly, sometimes a VM or a vCPU.
    fn any_fd(&mut self) -> Name {
        match self.rng.random_range(0..12) {
            0 => self.vm(),
            1 => self.vcpu(),
            _ => self.file().name,
        }
    }

    /// A number at which something changes, or any.
    fn edge(&mut self) -> u64 {
        const EDGES: [u64; 16] = [
            0,
            1,
            PAGE,
            BLOCK,
            1 << 30,
            1 << 31,
            1 << 32,
            1 << 40,
            1 << 46,
            1 << 47,
            1 << 52,
            1 << 62,
            1 << 63,
            u64::MAX,
            0u64.wrapping_sub(PAGE),
            i64::MAX as u64 & !0xfff,
        ];
        let near = [0, 0, 0, 1, u64::MAX, PAGE, 0u64.wrapping_sub(PAGE)];
        if self.chance(4) {
            return self.rng.random();
        }
        self.pick(&EDGES).wrapping_add(self.pick(&near))
    }

    /// A size of something that takes memory: pages or blocks.
    fn size(&mut self) -> u64 {
        match self.rng.random_range(0..10) {
            0..5 => self.rng.random_range(1..20) * PAGE,
            5..8 => self.rng.random_range(1..3) * BLOCK,
            8 => BLOCK + self.rng.random_range(1..20) * PAGE,
            _ => self.rng.random_range(1..2 * BLOCK),
        }
    }

    /// An offset into something of `len` bytes, mostly of a page.
    fn offset(&mut self, len: u64) -> u64 {
        let len = len.min(FILE_MAX);
        let pages = len.div_ceil(PAGE).max(1);
        match self.rng.random_range(0..24) {
            0..6 => 0,
            6..18 => self.rng.random_range(0..pages) * PAGE,
            18..20 => self.rng.random_range(0..len.div_ceil(BLOCK).max(1)) * BLOCK,
            20 => pages * PAGE,
            21 => (pages + self.rng.random_range(1..4)) * PAGE,
            22 => self.rng.random_range(0..pages * PAGE),
            _ => self.edge(),
        }
    }

    /// A length of a part of something of `len` bytes.
    fn part(&mut self, len: u64) -> u64 {
        let len = len.min(FILE_MAX);
        let pages = len.div_ceil(PAGE).max(1);
        match self.rng.random_range(0..24) {
            0..8 => self.rng.random_range(1..4) * PAGE,
            8..14 => len,
            14..18 => self.rng.random_range(1..=pages) * PAGE,
            18..20 => BLOCK,
            20 => len + PAGE,
            21 => 0,
            22 => self.rng.random_range(1..2 * PAGE),
            _ => self.edge(),
        }
    }

    /// Where a slot may lie.
    fn slot_gpa(&mut self) -> u64 {
        let gpa = match self.rng.random_range(0..16) {
            0..6 => self.rng.random_range(0..16) * BLOCK,
            6..11 => self.rng.random_range(0..64) * PAGE,
            11..13 => self.rng.random_range(0..4096) * PAGE,
            13 => (1 << 32) + self.rng.random_range(0..600) * PAGE,
            14 => (1u64 << self.abilities.maxphyaddr) - self.rng.random_range(0..600) * PAGE,
            _ => self.edge(),
        };
        if CODE.contains(&gpa) { gpa & 0xff_ffff } else { gpa }
    }

    /// Where a vCPU may look.
    fn gpa(&mut self) -> u64 {
        let reach = 1u64 << self.abilities.maxphyaddr.min(46);
        let gpa = if self.made.slots.is_empty() || self.chance(12) {
            self.slot_gpa()
        } else {
            let slots = self.made.slots.clone();
            let slot = self.pick(&slots);
            let within = self.offset(slot.size);
            let within = if within > slot.size { within & 0x3f_ffff } else { within };
            slot.gpa.wrapping_add(within)
        };
        let word = match self.rng.random_range(0..12) {
            0..7 => 0,
            7 => 4092,
            8 => 4094,
            _ => self.rng.random_range(0..1023) * 4,
        };
        let gpa = (gpa & !0xfff | word) & (reach - 1);
        if CODE.contains(&gpa) || gpa > reach - 8 { gpa & 0xff_ffff } else { gpa }
    }

    fn prot(&mut self) -> Prot {
        match self.rng.random_range(0..12) {
            0 => Prot::empty(),
            1..3 => Prot::READ,
            3 => Prot::READ | Prot::EXEC,
            4 => Prot::WRITE,
            _ => Prot::READ | Prot::WRITE,
        }
    }

    /// What every program has: a VM with a vCPU, mostly a file and a slot.
    fn begin(&mut self) {
        self.made.vms.push("vm0".into());
        let kind = u64::from(self.abilities.private_memory && self.chance(2));
        self.ops.push(Op::CreateVm { vm: "vm0".into(), r#type: kind });
        self.made.vcpus.push("c0".into());
        let paging = self.abilities.guest_paging && self.chance(4);
        self.ops.push(Op::CreateVcpu { vm: "vm0".into(), vcpu: "c0".into(), index: 0, paging });
        if paging {
            self.guest_tables();
        }
        if !self.chance(4) {
            self.create_guest_memfd();
        }
        if !self.chance(3) {
            self.mmap();
        }
        self.set_slot();
    }

    fn step(&mut self) {
        if self.tables.is_some() && self.chance(2) {
            return self.paged_step();
        }
        match self.rng.random_range(0..200) {
            0 => self.create_vm(),
            1..4 => self.create_vcpu(),
            4..6 => self.check_extension(),
            6..8 => self.enable_cap(),
            8..14 => self.create_guest_memfd(),
            14..17 => self.memfd_create(),
            17..40 => self.set_slot(),
            40..46 => self.change_slot(),
            46..50 => self.set_memory_attributes(),
            50..52 => self.pre_fault_memory(),
            52..56 => self.get_dirty_log(),
            56..58 => self.clear_dirty_log(),
            58..68 => self.fallocate(),
            68..76 => self.file_call(),
            76..80 => self.dup_or_close(),
            80..94 => self.mmap(),
            94..98 => self.range_call(0),
            98..104 => self.range_call(1),
            104..118 => self.range_call(2),
            118..124 => self.range_call(3),
            124..126 => self.range_call(4),
            126..150 => self.host_access(),
            150..198 => self.guest_access(),
            _ if self.abilities.hypercalls => self.guest_hypercall(),
            _ => self.guest_access(),
        }
    }

    fn create_vm(&mut self) {
        let vm = self.new_name("vm");
        let kind = match self.rng.random_range(0..20) {
            0 => self.edge(),
            1 => 1,
            2..10 if self.abilities.private_memory => 1,
            _ => 0,
        };
        self.made.vms.push(vm.clone());
        self.ops.push(Op::CreateVm { vm, r#type: kind });
    }

    fn create_vcpu(&mut self) {
        let (vm, vcpu) = (self.vm(), self.new_name("c"));
        let index = if self.chance(12) { self.edge() } else { self.rng.random_range(0..4) };
        self.made.vcpus.push(vcpu.clone());
        self.ops.push(Op::CreateVcpu { vm, vcpu, index, paging: false });
    }

    fn check_extension(&mut self) {
        // Capabilities and quirks of what is not modelled are answered with 0; those beyond all that exist are 0 everywhere.
        let cap = match self.pick(Cap::ALL) {
            _ if self.chance(20) => self.edge() | 1 << 12,
            Cap::DisableQuirks2 => Cap::GuestMemfd as u64,
            cap => cap as u64,
        };
        let vm = if self.chance(2) { Some(self.vm()) } else { None };
        self.ops.push(Op::CheckExtension { vm, cap });
    }

    fn enable_cap(&mut self) {
        const MANUAL_DIRTY_LOG_PROTECT2: u64 = 168;
        const EXIT_HYPERCALL: u64 = 201;
        const DISABLE_QUIRKS2: u64 = 213;
        const SLOT_ZAP_ALL: u64 = 1 << 7;
        let vm = self.vm();
        // Of the quirks only one is modelled, and no others are asked for that KVM knows.
        let (cap, mut arg) = match self.rng.random_range(0..12) {
            0..2 => (self.edge(), 0),
            2..5 => (MANUAL_DIRTY_LOG_PROTECT2, self.rng.random_range(0..5)),
            5..8 => (DISABLE_QUIRKS2, self.pick(&[0, SLOT_ZAP_ALL, SLOT_ZAP_ALL, SLOT_ZAP_ALL | 1 << 40, 1 << 63])),
            _ => (EXIT_HYPERCALL, 4096),
        };
        if cap != DISABLE_QUIRKS2 && self.chance(4) {
            arg = self.edge();
        }
        self.ops.push(Op::EnableCap { vm, cap, arg });
    }

    fn create_guest_memfd(&mut self) {
        let (vm, name) = (self.vm(), self.new_name("g"));
        let size = if self.chance(16) { self.edge() } else { self.size().next_multiple_of(PAGE) };
        let flags = match self.rng.random_range(0..24) {
            0..14 => 3,
            14..18 => 1,
            18..22 => 0,
            22 => 2,
            _ => self.edge(),
        };
        // What is larger is sparse: its pages count when they are allocated.
        if size <= MEMORY_MAX {
            if self.made.memory + size > MEMORY_MAX {
                return;
            }
            self.made.memory += size;
        }
        self.made.files.push(File { name: name.clone(), size, gmem: true, mappable: flags & 1 != 0 });
        self.ops.push(Op::CreateGuestMemfd { vm, fd: name, size, flags });
    }

    fn memfd_create(&mut self) {
        let (name, size) = (self.new_name("f"), self.size());
        if self.made.memory.saturating_add(size) > MEMORY_MAX {
            return;
        }
        self.made.memory += size;
        let flags = if self.chance(8) { self.pick(&[1, 2, 3, 8, 16, 0x8000_0000]) } else { 0 };
        self.made.files.push(File { name: name.clone(), size, gmem: false, mappable: false });
        self.ops.push(Op::MemfdCreate { fd: name, size, flags });
    }

    fn hva(&mut self, size: u64) -> HvaRef {
        if self.chance(10) {
            return HvaRef::Raw(self.pick(&[0, PAGE, 1 << 47, 1 << 63, 123]));
        }
        let map = self.map();
        // Behind the mapping there is a gap, and then maybe the vCPU's code, which the guest must not write to.
        if size > map.len + BLOCK / 2 && size < 1 << 40 {
            return HvaRef::Raw(0);
        }
        let slack = map.len.saturating_sub(size);
        let offset = if self.chance(3) { self.offset(slack.max(1)) } else { 0 };
        // A raw number far beyond the mapping could be anything; stay near it.
        HvaRef::Map {
            map: map.name,
            offset: if offset.saturating_add(size) > map.len + BLOCK / 2 { 0 } else { offset },
        }
    }

    /// A size that KVM refuses early, or one that is small: it allocates for every page of a slot.
    fn slot_size(&mut self, sensible: u64) -> u64 {
        match self.rng.random_range(0..30) {
            0 => 0,
            1 => sensible | 1,
            2 => 1 << 44,
            3 => 0u64.wrapping_sub(PAGE),
            _ => sensible,
        }
    }

    fn set_slot(&mut self) {
        let vm = self.vm();
        let number = match self.rng.random_range(0..24) {
            0 => self.pick(&[31, 32763, 32764, 65535, 65536, 65537, 1 << 31]),
            _ => self.rng.random_range(0..4),
        };
        let gpa = self.slot_gpa();
        let flags = match self.rng.random_range(0..16) {
            0..10 => 0,
            10..13 => 1,
            13..15 => 2,
            _ => self.edge() & 0xffff_ffff & !SLOT_GUEST_MEMFD,
        };
        let wants_gmem = self.rng.random_range(0..10) < 6;
        let files: Vec<File> = self.made.files.iter().filter(|file| file.gmem).cloned().collect();
        if wants_gmem && !files.is_empty() {
            let file = self.pick(&files);
            let offset = if self.chance(3) { self.offset(file.size.min(2 * BLOCK)) } else { 0 };
            let room = file.size.saturating_sub(offset).clamp(PAGE, 4 * BLOCK);
            let part = if self.chance(3) { room.div_ceil(2).next_multiple_of(PAGE) } else { room };
            let size = self.slot_size(part);
            let fd = match self.rng.random_range(0..30) {
                0 => FdRef::Raw(-1),
                1 => FdRef::Name(self.any_fd()),
                _ => FdRef::Name(file.name.clone()),
            };
            let flags = if self.chance(10) { flags | SLOT_GUEST_MEMFD } else { SLOT_GUEST_MEMFD };
            let hva = match self.abilities.shadow_paging && file.mappable {
                true => HvaRef::Raw(self.pick(&[0, 0, PAGE, 123])),
                false => self.hva(size),
            };
            let slot = Slot { vm, number, flags, gpa, size, hva, file: Some((fd, offset)) };
            self.push_slot(slot);
            return;
        }
        let sensible = match self.rng.random_range(0..3) {
            0 => self.rng.random_range(1..20) * PAGE,
            1 => self.rng.random_range(1..3) * BLOCK,
            _ => self.map().len.next_multiple_of(PAGE),
        };
        let size = self.slot_size(sensible);
        let hva = self.hva(size);
        self.push_slot(Slot { vm, number, flags, gpa, size, hva, file: None });
    }

    fn push_slot(&mut self, slot: Slot) {
        let Slot { vm, number, flags, gpa, size, hva, file } = slot.clone();
        if size != 0 {
            self.made.slots.push(slot);
        }
        let second = file.is_some() || self.chance(3);
        self.ops.push(if second {
            let (guest_memfd, guest_memfd_offset) = file.unwrap_or((FdRef::Raw(0), 0));
            Op::SetUserMemoryRegion2 { vm, slot: number, flags, gpa, size, hva, guest_memfd, guest_memfd_offset }
        } else {
            Op::SetUserMemoryRegion { vm, slot: number, flags, gpa, size, hva }
        });
    }

    /// The same slot again: deleted, moved, with other flags, or as it is.
    fn change_slot(&mut self) {
        if self.made.slots.is_empty() {
            return self.set_slot();
        }
        let slots = self.made.slots.clone();
        let mut slot = self.pick(&slots);
        match self.rng.random_range(0..8) {
            0..3 => slot.size = 0,
            3 => slot.gpa = self.slot_gpa(),
            // Dropping KVM_MEM_GUEST_MEMFD from a slot left a dangling binding in unfixed kernels: not on a real machine.
            4..6 => slot.flags ^= 1,
            6 => slot.flags ^= 2,
            _ => {}
        }
        self.push_slot(slot);
    }

    fn set_memory_attributes(&mut self) {
        let vm = self.vm();
        let (gpa, size) = (self.slot_gpa(), self.part(2 * BLOCK));
        let attributes = if self.chance(10) { self.edge() } else { self.pick(&[8, 8, 0]) };
        let flags = if self.chance(20) { self.edge() } else { 0 };
        self.ops.push(Op::SetMemoryAttributes { vm, gpa, size, attributes, flags });
    }

    fn pre_fault_memory(&mut self) {
        let vcpu = self.vcpu();
        let gpa = self.gpa() & !0xfff;
        let size = self.part(2 * BLOCK);
        if size > 8 * BLOCK && size.is_multiple_of(PAGE) {
            return;
        }
        let flags = if self.chance(20) { self.edge() } else { 0 };
        self.ops.push(Op::PreFaultMemory { vcpu, gpa, size, flags });
    }

    fn get_dirty_log(&mut self) {
        let logged: Vec<Slot> = self.made.slots.iter().filter(|slot| slot.flags & 1 == 1).cloned().collect();
        if logged.is_empty() || self.chance(10) {
            let (vm, slot) = (self.vm(), self.rng.random_range(0..5));
            return self.ops.push(Op::GetDirtyLog { vm, slot, npages: 64 });
        }
        let slot = self.pick(&logged);
        let npages = slot.size.min(4 * BLOCK) / PAGE;
        self.ops.push(Op::GetDirtyLog { vm: slot.vm, slot: slot.number, npages });
    }

    fn clear_dirty_log(&mut self) {
        let logged: Vec<Slot> = self.made.slots.iter().filter(|slot| slot.flags & 1 == 1).cloned().collect();
        let (vm, slot, pages) = match logged.is_empty() {
            true => (self.vm(), self.rng.random_range(0..5), 64),
            false => {
                let slot = self.pick(&logged);
                (slot.vm, slot.number, slot.size.min(4 * BLOCK) / PAGE)
            }
        };
        let first = self.rng.random_range(0..=pages / 64) * 64;
        let (first, mut npages) = (first, pages.saturating_sub(first));
        if self.chance(3) {
            npages = self.pick(&[0, 1, 63, 64, 65, 128, npages + 1]);
        }
        let first = if self.chance(12) { self.edge() } else { first };
        let dirty = match self.rng.random_range(0..3) {
            0 => (0..npages.min(512)).collect(),
            _ => (0..npages.min(512)).filter(|_| self.rng.random_range(0..8) == 0).collect(),
        };
        self.ops.push(Op::ClearDirtyLog { vm, slot, first, npages, dirty });
    }

    fn fallocate(&mut self) {
        let file = self.file();
        let mode = match self.rng.random_range(0..20) {
            0..11 => 3,
            11..16 => 1,
            16..18 => 0,
            18 => self.pick(&[2, 8, 16, 17, 32, 64, 0x80]),
            _ => self.edge(),
        };
        let (offset, len) = (self.offset(file.size), self.part(file.size));
        let punch = mode & 2 != 0;
        // What is allocated stays small.
        if !punch && (len as i64) > 8 * BLOCK as i64 {
            return;
        }
        // A guest_memfd's pages were counted with it, unless it is sparse; a memory file may grow.
        if !punch && (!file.gmem || file.size > MEMORY_MAX) {
            if self.made.memory.saturating_add(len) > MEMORY_MAX || (!file.gmem && offset > 8 * BLOCK) {
                return;
            }
            self.made.memory += len;
        }
        self.ops.push(Op::Fallocate { fd: file.name, mode, offset: offset as i64, len: len as i64 });
    }

    fn file_call(&mut self) {
        let size = self.file().size.min(4 * BLOCK);
        let fd = self.any_fd();
        let offset = self.offset(size) as i64;
        let len = self.part(size).min(8 * BLOCK) as i64;
        let op = match self.rng.random_range(0..10) {
            0..4 => Op::Fstat { fd },
            4 => Op::Ftruncate { fd, size: offset },
            5..7 => Op::Pread { fd, offset, len },
            7 => Op::Pwrite { fd, offset, len: len.min(BLOCK as i64) },
            _ => {
                let whence = if self.chance(10) { self.edge() } else { self.rng.random_range(0..5) };
                Op::Lseek { fd, offset, whence }
            }
        };
        self.ops.push(op);
    }

    fn dup_or_close(&mut self) {
        let fd = self.any_fd();
        if self.chance(3) {
            let as_ = self.new_name("d");
            if let Some(file) = self.made.files.iter().find(|file| file.name == fd).cloned() {
                self.made.files.push(File { name: as_.clone(), ..file });
            }
            return self.ops.push(Op::Dup { fd, r#as: as_ });
        }
        self.ops.push(Op::Close { fd });
    }

    fn mmap(&mut self) {
        let map = self.new_name("m");
        let file = if self.chance(2) { Some(self.file()) } else { None };
        let len = match &file {
            Some(file) if !self.chance(3) => file.size.min(4 * BLOCK),
            _ => self.size(),
        };
        let len = if self.chance(40) { self.pick(&[0, 1 << 47, 1 << 63, u64::MAX]) } else { len };
        if len < 1 << 40 && self.made.memory.saturating_add(len) > MEMORY_MAX {
            return;
        }
        let offset = match &file {
            Some(file) if self.chance(4) => self.offset(file.size.min(4 * BLOCK)),
            _ => 0,
        };
        let shared = if file.is_some() { !self.chance(6) } else { self.chance(6) };
        let align = if self.chance(2) { BLOCK } else { PAGE };
        let prot = self.prot();
        if len < 1 << 40 {
            self.made.memory += len;
            let shmem = file.as_ref().map_or(shared, |file| !file.gmem);
            self.made.maps.push(Map { name: map.clone(), len, shmem });
        }
        self.ops.push(Op::Mmap { map, fd: file.map(|file| file.name), len, prot, shared, offset, align });
    }

    /// A call on a part of a mapping: `munmap`, `mprotect`, `madvise`, `mincore`, `mlock`.
    fn range_call(&mut self, which: u32) {
        const ADVICE: [Advice; 14] = [
            Advice::Dontneed,
            Advice::Dontneed,
            Advice::Hugepage,
            Advice::Nohugepage,
            Advice::Remove,
            Advice::PopulateRead,
            Advice::PopulateWrite,
            Advice::Collapse,
            Advice::Cold,
            Advice::Willneed,
            Advice::Normal,
            Advice::Sequential,
            Advice::Random,
            Advice::Free,
        ];
        let Map { name: map, len, shmem } = self.map();
        let (mut offset, mut part) = (self.offset(len), self.part(len));
        // How far it is to the end of the address space depends on where the kernel placed the mapping, at random.
        let far = 1 << 28..1 << 47;
        if far.contains(&part) {
            part = 1 << 28;
        }
        if far.contains(&offset) {
            offset &= !0xfff & (BLOCK - 1);
        }
        // Behind the mapping there is a gap, and then maybe the vCPU's code.
        if offset.saturating_add(part) < 1 << 47 {
            part = part.min((len + BLOCK / 2).saturating_sub(offset));
        }
        let prot = self.prot();
        let op = match which {
            0 => Op::Munmap { map, offset, len: part },
            1 => Op::Mprotect { map, offset, len: part, prot },
            2 => {
                // Huge pages of memory files are not modelled.
                let advice = match self.pick(&ADVICE) {
                    Advice::Collapse if shmem => Advice::Cold,
                    advice => advice,
                };
                if matches!(advice, Advice::PopulateRead | Advice::PopulateWrite) {
                    part = part.min(MEMORY_MAX);
                }
                Op::Madvise { map, offset, len: part, advice }
            }
            3 => Op::Mincore { map, offset, len: part.min(1 << 30) },
            _ => Op::Mlock { map, offset, len: part.min(MEMORY_MAX) },
        };
        self.ops.push(op);
    }

    fn host_access(&mut self) {
        let Map { name: map, len, .. } = self.map();
        let offset = match self.offset(len) {
            offset if offset <= len + 4 * PAGE => offset,
            _ => 0,
        };
        let offset = offset & !0xfff | self.pick(&[0, 0, 4, 4092, 4094, 100]);
        let value = u64::from(self.rng.random::<u32>());
        let op = match self.rng.random_range(0..20) {
            0..9 => Op::HostRead { map, offset },
            9..18 => Op::HostWrite { map, offset, value },
            18 if self.chance(4) => Op::HostFill64 { map, offset: offset & !0xfff, len: len.min(BLOCK), value },
            18 => Op::HostRead64 { map, offset },
            _ => Op::HostWrite64 { map, offset, value: value << 32 | value },
        };
        self.ops.push(op);
    }

    fn guest_access(&mut self) {
        let (vcpu, gpa) = (self.vcpu(), self.gpa());
        let value = u64::from(self.rng.random::<u32>());
        let op = match self.rng.random_range(0..5) {
            0..2 => Op::GuestRead { vcpu, gpa },
            2..4 => Op::GuestWrite { vcpu, gpa, value },
            // A locked access across two lines of a cache is a fault of its own (#AC) on processors that detect it. A guest without hardware
            // virtualisation then does not come back.
            _ if self.abilities.shadow_paging => Op::GuestRmw { vcpu, gpa: gpa & !3, value },
            _ => Op::GuestRmw { vcpu, gpa, value },
        };
        self.ops.push(op);
    }

    fn guest_hypercall(&mut self) {
        let vcpu = self.vcpu();
        let nr = if self.chance(4) { self.pick(&[0, 1, 5, 9, 11, 99]) } else { 12 };
        let gpa = self.slot_gpa() & 0xffff_f000;
        let args = vec![gpa, self.rng.random_range(0..4), self.pick(&[0, 16, 32, 64])];
        let reply = if self.chance(4) { self.rng.random_range(1..100) } else { 0 };
        self.ops.push(Op::GuestHypercall { vcpu, nr, args, reply });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_stay_small_and_safe() {
        let abilities = Abilities {
            private_memory: true,
            shadow_paging: false,
            hypercalls: true,
            guest_paging: true,
            maxphyaddr: 40,
        };
        for number in 0..2_000 {
            let mut memory = 0u64;
            for op in program(1, number, abilities) {
                match op {
                    Op::Mmap { len, .. } if len < 1 << 40 => memory += len,
                    Op::MemfdCreate { size, .. } => memory += size,
                    Op::CreateGuestMemfd { size, .. } if size <= MEMORY_MAX => memory += size,
                    Op::Fallocate { mode, len, .. } if mode & 2 == 0 => assert!(len <= 8 * BLOCK as i64),
                    Op::Madvise { advice, .. } => {
                        assert!(!matches!(advice, Advice::Hwpoison | Advice::SoftOffline | Advice::Pageout));
                    }
                    Op::SetUserMemoryRegion { size, .. } | Op::SetUserMemoryRegion2 { size, .. } => {
                        assert!(size <= 8 * BLOCK || size >= 1 << 44 || size % PAGE != 0, "{size:#x}");
                    }
                    _ => {}
                }
            }
            assert!(memory <= MEMORY_MAX, "program {number} takes {memory} bytes");
        }
    }
}
