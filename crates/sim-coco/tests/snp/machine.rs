//! A small machine, brought up, and pages in the states that the tests need.

use sim_coco::snp::firmware::{GuestPolicy, LaunchStart};
use sim_coco::snp::{
    Asid, CpuId, GuestCpu, GuestKind, InGuest, KeyPath, PageOperand, PageState, Pvalidated, RmpAdjust, RmpEntry,
    RmpLayout, RmpSize, RmpUpdate, SevFeatures, Snp, SnpConfig, Spa, Vmpl, VmplPerms, Vmrun, vmsa,
};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Pfn};
use sim_mmu::Gpa;
use std::sync::Arc;

/// Guests of the tests.
pub(crate) const G: Asid = Asid(1);
pub(crate) const H: Asid = Asid(2);
/// Where a page is in its guest; 2 MiB aligned.
pub(crate) const GPA: Gpa = Gpa(0x4020_0000);

const RAM: u64 = 64 << 20;

pub(crate) struct Machine {
    pub(crate) snp: Snp,
    pub(crate) phys: Arc<PhysMem>,
}

pub(crate) fn config() -> SnpConfig {
    SnpConfig::new(RmpLayout::above(RAM >> 12))
}

impl Machine {
    pub(crate) fn new(cx: &Cx<'_>, config: SnpConfig) -> Machine {
        let phys = Arc::new(PhysMem::new(cx, RAM));
        let snp = Snp::new(cx, Arc::clone(&phys), config);
        snp.bring_up(cx).unwrap();
        Machine { snp, phys }
    }

    /// A page of the host, zeroed.
    pub(crate) fn page(&self) -> Pfn {
        self.phys.alloc_zeroed().unwrap()
    }

    /// 512 of them.
    pub(crate) fn huge(&self) -> Pfn {
        self.phys.alloc_huge_zeroed().unwrap()
    }

    pub(crate) fn of_size(&self, size: RmpSize) -> Pfn {
        if size == RmpSize::Size2M { self.huge() } else { self.page() }
    }

    pub(crate) fn assign(&self, cx: &Cx<'_>, pfn: Pfn, new: RmpUpdate) {
        self.snp.rmpupdate(cx, pfn, new).unwrap();
    }

    /// A page of 4 KiB in a state, of guest `G` at `GPA` where it is a guest's.
    pub(crate) fn in_state(&self, cx: &Cx<'_>, state: PageState) -> Pfn {
        self.sized_in_state(cx, state, RmpSize::Size4K)
    }

    /// A page in a state that RMPUPDATE and PVALIDATE alone can make, or a fixed, context or reclaimed one.
    pub(crate) fn sized_in_state(&self, cx: &Cx<'_>, state: PageState, size: RmpSize) -> Pfn {
        let pfn = self.of_size(size);
        let guest = RmpUpdate::guest(G, GPA).sized(size);
        let firmware = RmpUpdate::FIRMWARE.sized(size);
        match state {
            PageState::Hypervisor => {}
            PageState::HvFixed => self.snp.snp_page_set_state(cx, &[pfn..pfn + size.pages()]).unwrap(),
            PageState::Reclaim => self.assign(cx, pfn, RmpUpdate { immutable: false, ..firmware }),
            PageState::Firmware => self.assign(cx, pfn, firmware),
            PageState::Context => {
                self.assign(cx, pfn, firmware);
                self.snp.snp_gctx_create(cx, Spa::of(pfn)).unwrap();
            }
            PageState::Metadata => self.assign(cx, pfn, RmpUpdate { gpa: GPA, ..firmware }),
            PageState::PreGuest => self.assign(cx, pfn, guest.immutable()),
            PageState::GuestInvalid => self.assign(cx, pfn, guest),
            PageState::GuestValid => self.validated(cx, pfn, guest),
            PageState::PreSwap => {
                self.validated(cx, pfn, guest);
                self.assign(cx, pfn, guest.immutable());
            }
        }
        assert_eq!(self.snp.rmp().state(pfn), Some(state));
        pfn
    }

    /// Assigns and accepts.
    pub(crate) fn validated(&self, cx: &Cx<'_>, pfn: Pfn, new: RmpUpdate) {
        self.assign(cx, pfn, new);
        let mut operand = PageOperand::page(new.gpa, pfn);
        operand.size = u64::from(new.page_size == RmpSize::Size2M);
        let cpu = GuestCpu::snp(0, new.asid);
        assert_eq!(self.snp.pvalidate(cx, &cpu, &operand, 1), Ok(DONE));
    }

    pub(crate) fn entry(&self, pfn: Pfn) -> RmpEntry {
        self.snp.rmp().entry(pfn)
    }

    pub(crate) fn state(&self, pfn: Pfn) -> PageState {
        self.snp.rmp().state(pfn).expect("SNP-INV-001")
    }

    /// A page of the firmware.
    pub(crate) fn firmware_page(&self, cx: &Cx<'_>) -> Spa {
        Spa::of(self.in_state(cx, PageState::Firmware))
    }

    /// A guest that is being launched and active.
    pub(crate) fn launching(&self, cx: &Cx<'_>, asid: Asid, policy: GuestPolicy) -> Spa {
        let gctx = self.firmware_page(cx);
        self.snp.snp_gctx_create(cx, gctx).unwrap();
        self.snp.snp_launch_start(cx, &start(gctx, policy)).unwrap();
        self.snp.snp_activate(cx, gctx, asid).unwrap();
        gctx
    }
}

/// PVALIDATE that did something.
pub(crate) const DONE: Pvalidated = Pvalidated { result: Ok(()), unchanged: false };
/// PVALIDATE that found nothing to do: CF.
pub(crate) const UNCHANGED: Pvalidated = Pvalidated { result: Ok(()), unchanged: true };

pub(crate) fn start(gctx: Spa, policy: GuestPolicy) -> LaunchStart {
    LaunchStart { gctx, policy: policy.bits(), gosvw: [0; 16], imi_en: false }
}

/// Runs a test on a machine that is up; afterwards all invariants must hold.
pub(crate) fn with(test: impl FnOnce(&Cx<'_>, &Machine)) {
    with_config(config(), test);
}

pub(crate) fn with_config(config: SnpConfig, test: impl FnOnce(&Cx<'_>, &Machine)) {
    Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, config);
        test(cx, &machine);
        machine.snp.check_invariants().unwrap();
    });
}

/// Every state.
pub(crate) const STATES: [PageState; 10] = [
    PageState::Hypervisor,
    PageState::HvFixed,
    PageState::Reclaim,
    PageState::Firmware,
    PageState::Context,
    PageState::Metadata,
    PageState::PreGuest,
    PageState::GuestInvalid,
    PageState::GuestValid,
    PageState::PreSwap,
];

/// A vCPU of the guest in guest mode, and its VMSA.
pub(crate) fn running(cx: &Cx<'_>, machine: &Machine) -> (InGuest, Pfn) {
    let snp = &machine.snp;
    snp.wrmsr_vm_hsave_pa(cx, CpuId(0), Spa::of(machine.page())).unwrap();
    let pfn = machine.in_state(cx, PageState::GuestValid);
    assert_eq!(snp.rmpadjust(cx, &GuestCpu::snp(0, G), &PageOperand::page(GPA, pfn), set_vmsa(true)), Ok(Ok(())));
    fill_vmsa(machine, pfn, SevFeatures::SNP_ACTIVE, 0);
    let vmrun = Vmrun {
        cpu: CpuId(0),
        vmcb: Spa::of(machine.page()),
        kind: GuestKind::Snp,
        asid: G,
        vmsa: Some(Spa::of(pfn)),
        avic_backing: None,
        allowed_sev_features: None,
    };
    (snp.vmrun(cx, &vmrun).unwrap(), pfn)
}

/// What guest `G` writes into its VMSA.
pub(crate) fn fill_vmsa(machine: &Machine, pfn: Pfn, features: SevFeatures, vmpl: u8) {
    let memory = machine.snp.memory();
    memory.write(KeyPath::Guest(G), pfn, vmsa::offset::SEV_FEATURES, &features.bits().to_le_bytes());
    memory.write(KeyPath::Guest(G), pfn, vmsa::offset::VMPL, &[vmpl]);
}

/// RMPADJUST to VMPL1 without a permission: the page becomes a VMSA, or is none any more.
pub(crate) fn set_vmsa(on: bool) -> RmpAdjust {
    RmpAdjust::new(Vmpl::new(1).unwrap(), VmplPerms::empty(), on)
}
