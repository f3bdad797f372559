//! The machine: memory, processors with TLBs, and the hypervisor over them.

use super::config::PkvmConfig;
use super::el2::El2;
use super::host::HostMmu;
use super::hyp::HypMmu;
use super::mutants;
use super::pgtable::{PageTable, Root};
use super::tlb::Tlbs;
use super::trace::{Recorder, TraceEvent};
use super::types::{CpuId, Handle, Owner, Pa, PageState, Vmid};
use super::vm::{HypVcpu, VmTable};
use sim_kernel::mm::PhysMem;
use sim_kernel::sync::Mutex;
use sim_kernel::{Cx, Errno, Mutant, MutantSet, PAGES_PER_PMD, Pfn};
use sim_mmu::Gfn;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What EL2 has for each processor.
#[derive(Debug, Default)]
pub(super) struct PerCpu {
    /// HCR_EL2.VM: the host runs under its stage 2.
    pub(super) finalized: bool,
    /// The vCPU that is loaded (`loaded_hyp_vcpu`).
    pub(super) loaded: Option<Arc<HypVcpu>>,
}

/// What only checkers know.
#[derive(Debug, Default)]
pub(super) struct Ghost {
    /// Pages that the host got back with something of a guest in them.
    pub(super) leaked: BTreeSet<Pfn>,
    /// Pages of VMs that ended before the host took them.
    pub(super) lost: BTreeMap<Pfn, (Handle, Gfn)>,
    /// Of those that the host shared, mappings that went with their VMs and are counted still.
    pub(super) lost_shares: BTreeMap<Pfn, u32>,
    /// Descriptors that were valid and became others at once.
    pub(super) unbroken: BTreeSet<Pa>,
    /// Pages that were taken by force while their guests shared them.
    pub(super) taken_shared: BTreeSet<Pfn>,
}

/// A host with pKVM.
///
/// ```
/// use sim_coco::pkvm::{CpuId, HostCall, PageState, Pkvm, PkvmConfig};
/// use sim_kernel::{Errno, mm::PhysMem, sched::Sim};
/// use std::sync::Arc;
/// Sim::sequential().solo(|cx| {
///     let memory = Arc::new(PhysMem::new(cx, 64 << 20));
///     let pkvm = Pkvm::new(cx, Arc::clone(&memory), PkvmConfig::new(16 << 10)).unwrap();
///     pkvm.bring_up(cx).unwrap();
///     let pfn = memory.alloc_zeroed().unwrap();
///     assert_eq!(pkvm.host_call(cx, CpuId(0), HostCall::HostShareHyp { pfn }), Ok(0));
///     assert_eq!(pkvm.page(pfn).host.state, PageState::SharedOwned);
///     assert_eq!(pkvm.host_call(cx, CpuId(0), HostCall::HostShareHyp { pfn }), Err(Errno::EPERM.into()));
/// });
/// ```
pub struct Pkvm {
    pub(super) config: PkvmConfig,
    pub(super) phys: Arc<PhysMem>,
    /// Where the host's walks start.
    pub(super) host_root: Root,
    pub(super) host: Mutex<HostMmu>,
    pub(super) hyp: Mutex<HypMmu>,
    pub(super) vms: Mutex<VmTable>,
    pub(super) cpus: parking_lot::Mutex<Vec<PerCpu>>,
    pub(super) tlbs: Tlbs,
    pub(super) recorder: Recorder,
    pub(super) ghost: parking_lot::Mutex<Ghost>,
    /// A broken assumption of EL2, which is the end of the machine.
    pub(super) panicked: parking_lot::Mutex<Option<&'static str>>,
    /// Memory set aside at boot.
    pub(super) carve_out: Vec<Pfn>,
    /// `__pkvm_init` was called.
    pub(super) set_up: AtomicBool,
    /// `kvm_protected_mode_initialized`: the host has given up its privileges.
    initialized: AtomicBool,
    /// Rules that are off.
    mutants: MutantSet,
}

impl Pkvm {
    /// A machine that was just booted: EL2 has its code and memory, and the host still has everything.
    ///
    /// # Errors
    /// `ENOMEM` if there is no memory to set aside.
    ///
    /// # Panics
    /// If the configuration contradicts itself, or its regions are not where the frames are.
    pub fn new(cx: &Cx<'_>, phys: Arc<PhysMem>, config: PkvmConfig) -> Result<Pkvm, Errno> {
        config.check();
        let root_pages = Root::pages(config.host_bits);
        let wanted = (root_pages + config.host_tables()) as usize;
        let mut carve_out = Vec::with_capacity(wanted);
        while carve_out.len() < wanted {
            let head = phys.alloc_huge_zeroed()?;
            for pfn in (0..PAGES_PER_PMD).map(|i| head + i) {
                if carve_out.len() < wanted {
                    assert!(config.region(pfn).is_some_and(|region| !region.nomap), "{pfn:?} is not usable memory");
                    carve_out.push(pfn);
                } else {
                    phys.put_unscheduled(pfn);
                }
            }
        }
        let root = Root::new(carve_out[0], config.host_bits, Vmid::HOST);
        // From the end, as a stack: the pool hands out ascending frames.
        let pool = carve_out[root_pages as usize..].iter().rev().copied().collect();
        let recorder = Recorder::new(config.trace);
        let (pfn, level) = (root.pfn, root.start);
        recorder.record(CpuId(0), TraceEvent::Root { vmid: Vmid::HOST, pfn, pages: root_pages, level });
        let host = HostMmu { table: PageTable::new(root, None), pool, pages: BTreeMap::new() };
        Ok(Pkvm {
            host_root: root,
            host: Mutex::new(cx, "host_mmu.lock", host),
            hyp: Mutex::new(cx, "pkvm_pgd_lock", HypMmu::default()),
            vms: Mutex::new(cx, "vm_table_lock", VmTable::default()),
            cpus: parking_lot::Mutex::new((0..config.cpus).map(|_| PerCpu::default()).collect()),
            tlbs: Tlbs::default(),
            recorder,
            ghost: Default::default(),
            panicked: Default::default(),
            carve_out,
            set_up: AtomicBool::new(false),
            initialized: AtomicBool::new(false),
            mutants: mutants::chosen(cx),
            phys,
            config,
        })
    }

    /// What the machine is made of.
    pub fn config(&self) -> &PkvmConfig {
        &self.config
    }

    /// Memory, without any check: what a device sees, which no stage 2 keeps from anything.
    pub fn phys(&self) -> &Arc<PhysMem> {
        &self.phys
    }

    /// Memory that was set aside at boot, and never becomes the host's again.
    pub fn carve_out(&self) -> &[Pfn] {
        &self.carve_out
    }

    /// Pages of the root of a guest's stage 2, which the host gives with [`HostCall::InitVm`](super::HostCall::InitVm).
    pub fn pgd_pages(&self) -> u64 {
        Root::pages(self.config.guest_bits)
    }

    /// Pages that the host should have in a vCPU's memcache before it asks for a mapping (`kvm_mmu_cache_min_pages`).
    pub fn min_memcache_pages(&self) -> u64 {
        Root::new(Pfn(0), self.config.guest_bits, Vmid::HOST).tables_below() as u64
    }

    /// EL2 at work on a processor, for its own functions without the checks of a hypercall: what its self-test does, and the proxy of FF-A calls.
    ///
    /// # Panics
    /// If there is no such processor.
    pub fn el2<'a>(&'a self, cx: &'a Cx<'_>, cpu: CpuId) -> El2<'a> {
        assert!(cpu.0 < self.config.cpus, "{cpu:?}; there are {}", self.config.cpus);
        El2 { hv: self, cx, cpu }
    }

    /// Takes the carve-out from the host (`__pkvm_init`, `fix_host_ownership`).
    pub(super) fn init(&self, el2: &El2<'_>) -> Result<(), Errno> {
        if self.set_up.swap(true, Ordering::AcqRel) {
            return Err(Errno::EINVAL);
        }
        let mut host = el2.lock_host();
        let mut hyp = el2.lock_hyp();
        for pfn in &self.carve_out {
            el2.set_hyp_state(&mut hyp, *pfn, PageState::Owned);
            el2.map_el2(&mut hyp, *pfn);
            el2.set_host_owner(&mut host, *pfn..*pfn + 1, Owner::Hyp);
        }
        Ok(())
    }

    /// The host gives up its privileges (the static key that it flips): from now on calls are those of a running hypervisor.
    pub fn drop_host_privileges(&self) {
        self.initialized.store(true, Ordering::Release);
    }

    /// Whether it has.
    pub fn is_initialized(&self) -> bool {
        self.initialized.load(Ordering::Acquire)
    }

    /// What the host does at boot: sets the hypervisor up, gives up its privileges, and puts every processor under its stage 2.
    ///
    /// # Errors
    /// If it was done before.
    pub fn bring_up(&self, cx: &Cx<'_>) -> Result<(), super::CallFail> {
        self.host_call(cx, CpuId(0), super::HostCall::Init)?;
        self.drop_host_privileges();
        (0..self.config.cpus)
            .try_for_each(|cpu| self.host_call(cx, CpuId(cpu), super::HostCall::ProtFinalize).map(|_| ()))
    }

    /// What EL2 panicked for, if it did.
    pub fn panicked(&self) -> Option<&'static str> {
        *self.panicked.lock()
    }

    /// The vCPU that is loaded on a processor.
    pub fn loaded(&self, cpu: CpuId) -> Option<Arc<HypVcpu>> {
        self.cpus.lock().get(cpu.0 as usize)?.loaded.clone()
    }

    /// Whether this rule is switched off.
    #[inline]
    pub(super) fn is_off(&self, mutant: Mutant) -> bool {
        self.mutants.contains(mutant)
    }
}

impl Drop for Pkvm {
    fn drop(&mut self) {
        // VMs and their vCPUs name each other.
        for vm in self.vms.get_mut().vms() {
            vm.vcpus.lock().clear();
        }
    }
}

impl fmt::Debug for Pkvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pkvm").field("initialized", &self.is_initialized()).finish_non_exhaustive()
    }
}
