//! Invariants of KVM's use of TDX, at the step and while no operation is under way: TDX-INV-015 to TDX-INV-022. What the module must keep is its own to check
//! ([`sim_coco::tdx::invariants`]), and is looked at with them.

use super::host::TdxHost;
use super::sept::MirrorHooks;
use super::vm::{KvmTdx, TdState};
use crate::kvm::host::Existing;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;
use sim_coco::tdx::{LineOwner, OpState, PageType, SeptState, VcpuState};
use sim_kernel::{Cx, Pfn};
use sim_mmu::{ExternalTable, Gfn, Root};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

impl MirrorHooks {
    /// TDX-INV-018: a frame that leaves the TD is the host's again.
    ///
    /// # Panics
    /// If it is not.
    pub(super) fn check_returned(&self, pfn: Pfn) {
        self.host().assert_returned(pfn);
    }
}

impl MirrorHooks {
    /// TDX-INV-020: tables of the Secure EPT are taken back when the TD has no KeyID any more, or has lost it.
    ///
    /// # Panics
    /// If nobody has tried to free it.
    pub(super) fn check_released(&self, table: &ExternalTable) {
        let tried = self.tdx.release_tried.load(Ordering::Relaxed);
        assert!(tried, "TDX-INV-020: the table for {:?} is taken back while its TD has a KeyID", table.gfn);
    }
}

impl Vcpu {
    /// TDX-INV-016: nobody is about to change an entry while nobody holds mmu_lock.
    ///
    /// # Panics
    /// If an entry on the way to the frame is frozen.
    pub(crate) fn tdx_check_thawed(&self, cx: &Cx<'_>, mirror: &Root, gfn: Gfn) {
        let mmu = &self.vm.mmu;
        // Natively others go on while this looks.
        if cx.is_native() || mmu.mmu_lock.is_locked() {
            return;
        }
        let frozen = mmu.peek_frozen(mirror, gfn);
        assert!(frozen.is_none(), "TDX-INV-016: {gfn:?} is frozen at {frozen:?}, and nobody holds mmu_lock");
    }
}

impl MirrorHooks {
    /// TDX-INV-019: after the second try of a removal, no vCPU is in its TD.
    ///
    /// # Panics
    /// If one is.
    pub(super) fn check_kept_out(&self, vm: &Vm) {
        let module = self.host().tdx();
        for vcpu in vm.all_vcpus() {
            let state =
                vcpu.tdx().and_then(|vcpu| vcpu.tdvpr()).and_then(|tdvpr| module.peek_vp(tdvpr)).map(|vp| vp.state);
            let id = vcpu.id();
            assert!(
                state != Some(VcpuState::Active),
                "TDX-INV-019: vCPU {id} is in its TD while a removal keeps it out"
            );
        }
    }
}

impl TdxHost {
    fn assert_returned(&self, pfn: Pfn) {
        let tdx = self.tdx();
        let (_, entry) = tdx.peek_pamt(pfn);
        assert_eq!(entry.page_type, PageType::Nda, "TDX-INV-018: {pfn:?} goes back to the host as {entry:?}");
        let dirty =
            tdx.peek_dirty_lines().into_iter().find(|(at, _, keyid)| *at == pfn && tdx.config().is_private(*keyid));
        assert!(dirty.is_none(), "TDX-INV-018: {pfn:?} goes back to the host, and a cache has {dirty:?}");
        if tdx.config().partial_write_erratum {
            let foreign = (0..64).find(|line| tdx.peek_line(pfn, *line).owner != LineOwner::Host);
            assert!(foreign.is_none(), "TDX-INV-018: line {foreign:?} of {pfn:?} goes back to the host as a TD's");
        }
    }

    /// After the last process has ended: no TD has a KeyID or a page, unless it was lost.
    pub(crate) fn check_end(&self) {
        let nothing = Existing { vms: Vec::new(), inodes: Vec::new(), mms: Vec::new() };
        self.check_quiescent(&nothing);
        assert!(self.peek_keyids().is_empty(), "TDX-INV-012: a KeyID is left: {:?}", self.peek_keyids());
        assert!(self.leaked().is_empty(), "TDX-INV-018: pages are lost: {:?}", self.leaked());
        self.check_pamt_end();
    }

    /// What must hold while no operation is under way, of the machine and of everything that exists.
    ///
    /// # Panics
    /// If something does not, naming the invariant.
    pub(crate) fn check_quiescent(&self, existing: &Existing) {
        if let Err(violation) = self.tdx().check_invariants() {
            panic!("{violation}");
        }
        let is_whole = self.leaked().is_empty() && !existing.vms.iter().any(|vm| vm.is_bugged());
        self.check_pamt(is_whole);
        let mut hkids = BTreeSet::new();
        let mut owned: BTreeSet<Pfn> = self.leaked().into_iter().collect();
        for vm in existing.vms.iter().filter(|vm| !vm.is_destroyed()) {
            let Some(tdx) = vm.tdx() else { continue };
            if let Some(hkid) = tdx.hkid() {
                assert!(hkids.insert(hkid), "TDX-INV-012: two TDs have {hkid:?}");
            }
            vm.tdx_check(tdx);
            let pages = tdx.pages.lock();
            owned.extend(pages.tdr.iter().chain(&pages.tdcs));
            drop(pages);
            vm.all_vcpus().iter().filter_map(|vcpu| vcpu.tdx()).for_each(|vcpu| owned.extend(vcpu.pages()));
        }
        for (pfn, _, entry) in self.tdx().peek_used_pages() {
            let is_control = matches!(entry.page_type, PageType::Tdr | PageType::Tdcx | PageType::Tdvpr);
            assert!(!is_control || owned.contains(&pfn), "TDX-INV-018: {pfn:?} is {entry:?}, and nobody has it");
            let is_allocated = self.phys().is_allocated(pfn);
            assert!(is_allocated, "TDX-INV-018: {pfn:?} is free, and the module has it as {entry:?}");
        }
    }
}

impl Vm {
    /// TDX-INV-015, TDX-INV-017, TDX-INV-021 for one TD.
    fn tdx_check(&self, tdx: &KvmTdx) {
        let Some(tdr) = tdx.tdr() else { return };
        let module = tdx.host.tdx();
        let info = module.peek_td(tdr).expect("a TDR is a TD");
        let is_runnable = tdx.peek_state() == TdState::Runnable;
        assert_eq!(
            is_runnable,
            info.op_state == OpState::Runnable,
            "TDX-INV-021: KVM and the module disagree about whether the TD may run"
        );
        let mut leafs = 0;
        self.mmu.for_each_leaf(|leaf| {
            let is_private = self.attributes.is_private(leaf.gfn);
            if !leaf.invalid_root {
                assert_eq!(leaf.is_mirror, is_private, "TDX-INV-017: {:?} is mapped in the wrong tree", leaf.gfn);
            }
            if !leaf.is_mirror {
                return;
            }
            leafs += 1;
            let entry = module.peek_sept(tdr, leaf.gfn, leaf.level);
            let entry = entry.unwrap_or_else(|| panic!("TDX-INV-015: {:?} is in the mirror only", leaf.gfn));
            let is_there = matches!(entry.state(), Some(SeptState::Mapped | SeptState::Pending));
            assert!(
                is_there && entry.is_leaf() && entry.pfn_at(leaf.level) == leaf.spte.pfn(),
                "TDX-INV-015: {:?} is {entry:?} in the Secure EPT",
                leaf.gfn
            );
        });
        let used = module.peek_used_pages();
        let of_td = used.iter().filter(|(_, _, entry)| entry.owner == Some(tdr) && entry.page_type == PageType::Reg);
        assert_eq!(of_td.count(), leafs, "TDX-INV-015: pages in the Secure EPT, and in the mirror");
        let tables = used.iter().filter(|(_, _, entry)| entry.owner == Some(tdr) && entry.page_type == PageType::Ept);
        assert_eq!(tables.count() as u64, self.mmu.external_pages(), "TDX-INV-015: tables of the Secure EPT");
        assert_eq!(tdx.wait_for_sept_zap.peek(), 0, "TDX-INV-019: vCPUs are kept out, and nothing is zapped");
    }
}
