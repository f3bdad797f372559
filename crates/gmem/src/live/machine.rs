//! What the machine at hand is: [`LiveMachine`], found by asking KVM and the kernel, so that the simulator can be one like it.

use std::fs;
use std::path::Path;

use live_kvm::{GuestAccess, GuestMode, Left, Region};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::worker;
use crate::facts::SHADOW;
use crate::trace::Header;

/// The machine, as far as answers depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveMachine {
    /// The kernel's release, such as `6.18.44`.
    pub kernel: String,
    /// `npt`, `ept`, or `shadow` where KVM has no two-dimensional paging.
    pub stage2: String,
    /// Whether KVM has the TDP MMU, whose tracepoint says what changes in stage 2.
    pub tdp_mmu: bool,
    /// The [facts](crate::facts::FACTS) in which a trace's header describes it.
    pub facts: Map<String, Value>,
    /// Whether vCPUs must run in long mode, because this KVM only emulates them otherwise.
    pub long_mode: bool,
    /// What a reader of a recording should know, in words.
    pub notes: Vec<String>,
}

impl LiveMachine {
    /// The header of a recording made here.
    pub fn header(&self, name: &str, family: &str) -> Header {
        Header {
            name: name.into(),
            family: family.into(),
            kernel: self.kernel.clone(),
            arch: "x86_64".into(),
            stage2: self.stage2.clone(),
            machine: self.facts.clone(),
            spte: self.tdp_mmu,
            notes: self.notes.clone(),
        }
    }
}

/// `KVM_CAP_VM_TYPES`
const CAP_VM_TYPES: u64 = 235;
/// `KVM_CAP_MEMORY_ATTRIBUTES`
const CAP_MEMORY_ATTRIBUTES: u64 = 233;
/// `KVM_CAP_MAX_VCPUS`
const CAP_MAX_VCPUS: u64 = 66;
/// `KVM_CAP_MULTI_ADDRESS_SPACE`
const CAP_MULTI_ADDRESS_SPACE: u64 = 118;
/// `KVM_X86_SW_PROTECTED_VM`
const SW_PROTECTED: u64 = 1;
/// `GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED`
const MMAP_INIT_SHARED: u64 = 3;
/// `KVM_MEM_GUEST_MEMFD`
const SLOT_GUEST_MEMFD: u32 = 4;

/// Asks this machine. The calling process is spent afterwards: descriptors stay open.
///
/// # Errors
/// If there is no such device.
pub(super) fn probe(device: &Path) -> anyhow::Result<LiveMachine> {
    let mut process = worker::open(device, GuestMode::Protected32, 1 << 20)?;
    let mut notes = Vec::new();
    let long_mode = emulates(&mut process);
    if long_mode {
        notes.push(
            "this KVM emulates 32-bit code without looking into a guest_memfd; accesses were made at privilege 3 in \
             long mode, over tables in memory slot 30 (63 pages at 0xf0008000), and hypercalls were not made"
                .to_string(),
        );
    }
    let stage2 = live_kvm::two_dimensional_paging().unwrap_or(SHADOW);
    let tdp_mmu = stage2 != SHADOW && live_kvm::module_parameter("kvm", "tdp_mmu") != Some(false);
    if !tdp_mmu {
        let why = if stage2 == SHADOW { "has no two-dimensional paging" } else { "does not use the TDP MMU" };
        notes.push(format!("this KVM {why}: changes of stage 2 were not recorded"));
    }
    if tdp_mmu && live_kvm::module_parameter("kvm", "nx_huge_pages") == Some(true) {
        notes.push("this KVM keeps code out of huge pages (nx_huge_pages), which the simulator does not".into());
    }
    let kvm = process.kvm();
    let mut ask = |cap| process.check_extension(kvm, cap).unwrap_or(0);
    let sw_protected = ask(CAP_VM_TYPES) >> SW_PROTECTED & 1 == 1;
    let attributes = ask(CAP_MEMORY_ATTRIBUTES) != 0 || sw_protected;
    let smm = ask(CAP_MULTI_ADDRESS_SPACE) > 1;
    let vcpus = ask(CAP_MAX_VCPUS);
    let mut facts = Map::new();
    let mut state = |name: &str, value: Value| drop(facts.insert(name.into(), value));
    if let Some(memory) = memory() {
        state("memory", memory.into());
    }
    if let Some(bits) = process.maxphyaddr() {
        state("maxphyaddr", bits.into());
    }
    if let Some(word) = chosen("/sys/kernel/mm/transparent_hugepage/enabled") {
        state("transparent_hugepage", word.into());
    }
    state("sw_protected_vm", sw_protected.into());
    state("memory_attributes", attributes.into());
    state("smm", smm.into());
    if vcpus != 0 {
        state("max_vcpus", vcpus.into());
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string();
    Ok(LiveMachine { kernel, stage2: stage2.into(), tdp_mmu, facts, long_mode, notes })
}

/// Whether an access of a vCPU in 32-bit mode misses a guest_memfd that is mapped and shared: hardware finds it, an emulator
/// goes through the slot's host address, where nothing is.
fn emulates(process: &mut live_kvm::Process) -> bool {
    const GPA: u64 = 1 << 20;
    let mut attempt = || {
        let vm = process.create_vm(0)?;
        let vcpu = process.create_vcpu(vm, 0, false)?;
        let file = process.create_guest_memfd(vm, 4096, MMAP_INIT_SHARED)?;
        let region = Region {
            flags: SLOT_GUEST_MEMFD,
            guest_phys_addr: GPA,
            memory_size: 4096,
            guest_memfd: file as u32,
            ..Region::default()
        };
        process.set_user_memory_region2(vm, &region)?;
        process.run_guest(vcpu, GuestAccess::Read { gpa: GPA })
    };
    // A kernel without such files has no answer; it is taken to have hardware.
    matches!(attempt(), Ok(run) if matches!(run.left, Left::Mmio { .. }))
}

fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// The word in brackets.
fn chosen(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_string())
}
