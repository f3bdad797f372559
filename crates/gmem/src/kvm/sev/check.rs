//! What must hold of SEV-SNP and of KVM's use of it (`SNP-INV-...`): at the steps that could break it, and over everything while nothing happens.

use super::host::SevHost;
use super::info::SevInfo;
use super::vcpu::NO_VMSA;
use crate::kvm::host::Existing;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;
use sim_coco::AccessKind;
use sim_coco::snp::firmware::{AsidUse, GuestState};
use sim_coco::snp::{Asid, GuestCpu, KeyPath, PageState, RmpEntry, RmpSize, Snp, SnpAccess, VmplPerms};
use sim_kernel::mm::PhysMem;
use sim_kernel::{PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, Pfn};
use sim_mmu::{Gpa, Level};
use std::collections::{BTreeMap, BTreeSet};

/// SNP-INV-005, SNP-INV-007, SNP-INV-035: a guest's access that went through was to a page of its own, at this address, which it has accepted and may use,
/// through a nested leaf of its size.
///
/// # Panics
/// If it was not: a check of the hardware is missing.
pub(super) fn assert_access(snp: &Snp, cpu: &GuestCpu, access: &SnpAccess) {
    if !access.is_private(cpu) {
        let is_hosts = access.kind != AccessKind::Write || !snp.rmp().is_assigned(access.pfn);
        assert!(is_hosts, "SNP-INV-002: a shared write changes {:?}, which is assigned", access.pfn);
        return;
    }
    let page = snp.rmp().page(access.pfn);
    let is_own = page.assigned && page.asid == cpu.asid && !page.immutable;
    assert!(is_own, "SNP-INV-005: a guest with {:?} uses {:?}, which is not its own: {page:?}", cpu.asid, access.pfn);
    let is_there = page.gpa.gfn() == access.gpa.gfn();
    assert!(
        is_there,
        "SNP-INV-005: a guest uses {:?} at {:?}, and it belongs at {:?}",
        access.pfn, access.gpa, page.gpa
    );
    assert!(page.validated, "SNP-INV-005: a guest uses {:?}, which it has not accepted", access.gpa);
    let same_size = (access.level > Level::L4K) == (page.page_size == RmpSize::Size2M);
    assert!(
        same_size,
        "SNP-INV-007: a guest uses {:?} through a leaf of {:?}, and the RMP has {:?}",
        access.gpa, access.level, page.page_size
    );
    let needed = match access.kind {
        AccessKind::Read => VmplPerms::R,
        AccessKind::Write => VmplPerms::R | VmplPerms::W,
        AccessKind::Fetch if cpu.cpl == 3 => VmplPerms::XU,
        AccessKind::Fetch => VmplPerms::XS,
    };
    let perms = page.perms[cpu.vmpl.index()];
    assert!(perms.contains(needed), "SNP-INV-035: {:?} does to {:?} what it may not: {perms:?}", cpu.vmpl, access.gpa);
}

/// SNP-INV-017: what a guest has just written to its private memory does not lie there as the guest reads it.
///
/// # Panics
/// If it does.
pub(super) fn assert_sealed(snp: &Snp, cpu: &GuestCpu, access: &SnpAccess) {
    const BLOCK: u64 = 16;
    let Ok(path) = snp.check_guest(cpu, access) else { return };
    let offset = (access.gpa.0 % PAGE_SIZE / BLOCK * BLOCK) as usize;
    let [mut seen, mut raw] = [[0; BLOCK as usize]; 2];
    snp.memory().read(path, access.pfn, offset, &mut seen);
    snp.memory().read(KeyPath::Raw, access.pfn, offset, &mut raw);
    assert_ne!(seen, raw, "SNP-INV-017: what a guest has written at {:?} lies in memory as it is", access.gpa);
}

/// SNP-INV-016: the pages that are about to be given to a guest hold nothing of anybody's: they were cleared, or launched.
///
/// # Panics
/// If one was not.
pub(super) fn assert_cleared(phys: &PhysMem, first: Pfn, pages: u64) {
    let dirty = (0..pages).map(|i| first + i).find(|pfn| phys.is_undefined(*pfn));
    assert!(dirty.is_none(), "SNP-INV-016: {dirty:?} is given to a guest before it was cleared");
}

/// SNP-INV-010: a page that was just assigned to a guest is its own, at this address.
///
/// # Panics
/// If it is not.
pub(super) fn assert_assigned(snp: &Snp, pfn: Pfn, asid: Asid, gpa: Gpa) {
    let page: RmpEntry = snp.rmp().page(pfn);
    let is_right = page.assigned && page.asid == asid && page.gpa.gfn() == gpa.gfn();
    assert!(
        is_right,
        "SNP-INV-010: {pfn:?} is assigned to {:?} at {:?} instead of {asid:?} at {gpa:?}",
        page.asid, page.gpa
    );
}

impl Vcpu {
    /// SNP-INV-020, SNP-INV-029: while the vCPU is in the guest, its VMSA is one, is its own, and is where the guest has it.
    pub(super) fn assert_vmsa(&self, snp: &Snp, asid: Asid, vmsa: Pfn) {
        let page = snp.rmp().page(vmsa);
        let is_vmsa = page.assigned && page.asid == asid && page.vmsa;
        assert!(is_vmsa, "SNP-INV-020: vCPU {} runs with {vmsa:?}, which is no VMSA of its guest: {page:?}", self.id());
        let es = self.sev().expect("a vCPU of an SNP VM");
        let gpa = es.guest_vmsa_gpa.peek();
        let aligned = if gpa == NO_VMSA { vmsa.0.is_multiple_of(PAGES_PER_PMD) } else { gpa.is_multiple_of(PMD_SIZE) };
        assert!(!aligned, "SNP-INV-029: the VMSA of vCPU {} is at the head of a region of 2 MiB", self.id());
        let is_head = es.vmcb().0.is_multiple_of(PAGES_PER_PMD);
        assert!(!is_head, "SNP-INV-029: the VMCB of vCPU {} is at the head of a region of 2 MiB", self.id());
    }
}

impl SevHost {
    /// What must hold while no operation is under way, of the machine and of everything that exists.
    ///
    /// # Panics
    /// If something does not, naming the invariant.
    pub(crate) fn check_quiescent(&self, existing: &Existing) {
        let snp = self.snp();
        if let Err(violation) = snp.check_invariants() {
            panic!("{violation}");
        }
        let mut owned: BTreeSet<Pfn> = self.leaked().into_iter().collect();
        for inode in &existing.inodes {
            owned.extend(inode.mapping().peek_range(0..u64::MAX, usize::MAX).into_iter().map(|(_, pfn)| pfn));
        }
        let mut asids = BTreeSet::new();
        for vm in existing.vms.iter().filter(|vm| !vm.is_destroyed()) {
            vm.sev_check(&mut owned, &mut asids);
        }
        let (_, reclaim) = self.peek_asids();
        for asid in reclaim {
            let bound = matches!(snp.peek_asid(asid), Some(AsidUse::Bound { .. }));
            assert!(!bound, "SNP-INV-011: {asid:?} was given up, and a guest has it");
        }
        for head in snp.rmp().written_regions() {
            (0..PAGES_PER_PMD).map(|i| head + i).for_each(|pfn| self.check_page(pfn, &owned));
        }
    }

    fn check_page(&self, pfn: Pfn, owned: &BTreeSet<Pfn>) {
        let snp = self.snp();
        if !snp.rmp().is_assigned(pfn) || snp.rmp().layout().is_rmp_page(pfn) {
            return;
        }
        let state = snp.rmp().state(pfn);
        let is_owned = owned.contains(&pfn);
        if !self.phys().is_allocated(pfn) {
            let closed = !matches!(state, Some(PageState::GuestInvalid | PageState::GuestValid | PageState::Reclaim));
            let id = if closed || snp.rmp().page(pfn).vmsa { "SNP-INV-008" } else { "SNP-INV-009" };
            // What is closed must not be free even if it is on the list of pages that nobody uses again.
            assert!(is_owned && id == "SNP-INV-009", "{id}: {pfn:?} is free and assigned: {state:?}");
            return;
        }
        assert!(is_owned, "SNP-INV-024: {pfn:?} is assigned ({state:?}), and nobody has it");
        let is_guests = snp.rmp().page(pfn).asid != Asid::HOST;
        let head = Pfn(pfn.0 & !(PAGES_PER_PMD - 1));
        let is_one = || (0..PAGES_PER_PMD).all(|i| snp.rmp().is_assigned(head + i));
        assert!(
            !is_guests || self.is_split(pfn) || is_one(),
            "SNP-INV-030: the kernel maps {pfn:?}, a guest's, with its neighbours"
        );
    }

    /// After the last process has ended: nothing is assigned but what leaked.
    pub(crate) fn check_end(&self) {
        self.check_quiescent(&Existing { vms: Vec::new(), inodes: Vec::new(), mms: Vec::new() });
    }
}

impl Vm {
    /// SNP-INV-004: the guest has accepted one page at each address, if it never accepted a second one before it rescinded the first. VMSAs that KVM provides
    /// are all at one address, and are not accepted.
    fn sev_check_accepted(&self, sev: &SevInfo, asid: Asid) {
        let rmp = sev.host.snp().rmp();
        let mut at = BTreeMap::new();
        for pfn in rmp.written_regions().into_iter().flat_map(|head| (0..PAGES_PER_PMD).map(move |i| head + i)) {
            let page = rmp.page(pfn);
            let is_accepted = page.assigned && page.asid == asid && page.validated && !page.vmsa;
            if !is_accepted || !sev.contents.was_accepted_in_order(page.gpa.gfn()) {
                continue;
            }
            let other = at.insert(page.gpa.gfn(), pfn);
            assert!(other.is_none(), "SNP-INV-004: {pfn:?} and {other:?} are both accepted at {:?}", page.gpa);
        }
    }

    /// Adds the pages that the VM has beside its memory, and looks at its ASID and its digest.
    fn sev_check(&self, owned: &mut BTreeSet<Pfn>, asids: &mut BTreeSet<Asid>) {
        let Some(sev) = self.sev() else { return };
        owned.extend(self.all_vcpus().iter().filter_map(|vcpu| vcpu.sev()).filter_map(|es| es.vmsa()));
        owned.extend(sev.context());
        owned.extend(sev.guest_req_mutex.peek(|pages| pages.response));
        let Some(asid) = sev.asid() else { return };
        self.sev_check_accepted(sev, asid);
        assert!(asids.insert(asid), "SNP-INV-011: two VMs have {asid:?}");
        let Some(gctx) = sev.gctx() else { return };
        let known = sev.host.snp().peek_guest(gctx, |guest| (guest.digest, guest.state));
        let Some((digest, state)) = known else { panic!("SNP-INV-040: the firmware knows no guest of {gctx:?}") };
        assert_eq!(digest, *sev.launched.lock(), "SNP-INV-018: the launch digest is not that of what was launched");
        let finished = state == GuestState::Running;
        assert_eq!(
            finished,
            self.peek_pre_fault_allowed(),
            "SNP-INV-019: firmware and KVM disagree about the end of the launch"
        );
    }
}
