//! What must hold of KVM's records beside the hypervisor's tables, whenever nobody is in the middle of anything. Not the kernel's.

use super::host::PkvmHost;
use super::mappings::Mapping;
use super::vm::KvmPkvm;
use crate::kvm::host::Existing;
use crate::kvm::vm::Vm;
use sim_coco::pkvm::{PageState, Pkvm};
use sim_kernel::Pfn;
use sim_kernel::mm::PhysMem;
use sim_mmu::Gfn;
use std::collections::BTreeMap;
use std::sync::Arc;

impl KvmPkvm {
    /// PKVM-INV-015: no page is left with a VM that the hypervisor is about to forget.
    pub(super) fn check_all_reclaimed(&self) {
        if let Some(mapping) = self.mappings().first() {
            panic!("PKVM-INV-015: a VM is finalized that still has {:?} at {:?}", mapping.pfn, mapping.gfn);
        }
    }

    /// PKVM-INV-019: whoever asks the hypervisor for something about the VM knows its handle.
    #[track_caller]
    pub(super) fn check_handle(&self) {
        assert!(self.handle().0 != 0, "PKVM-INV-019: the hypervisor is asked about a VM that has no handle yet");
    }

    /// What the hypervisor has for the guest, frame by frame.
    fn leaves(&self, pkvm: &Pkvm) -> BTreeMap<Gfn, (Pfn, PageState)> {
        let handle = self.handle();
        let ownership = pkvm.ownership();
        let mut leaves = BTreeMap::new();
        for (pfn, page) in &ownership.pages {
            for guest in page.guests.iter().filter(|guest| guest.handle == handle) {
                leaves.insert(guest.gfn, (*pfn, guest.state()));
            }
        }
        leaves
    }

    /// PKVM-INV-012: records say what the hypervisor has mapped, and those of a protected VM hold the page.
    ///
    /// # Errors
    /// What is different.
    pub(crate) fn check_records(&self, phys: &PhysMem) -> Result<(), String> {
        if !self.is_created() || self.is_dying() {
            return Ok(());
        }
        let pkvm = self.host.pkvm();
        let mut leaves = self.leaves(pkvm);
        let poisoned = pkvm.ownership().poisoned;
        for mapping in self.mappings() {
            self.check_record(&mapping, phys)?;
            for i in 0..mapping.nr_pages {
                let (gfn, pfn) = (mapping.gfn + i, mapping.pfn + i);
                let is_poisoned = poisoned.contains(&(self.handle(), gfn));
                match leaves.remove(&gfn) {
                    Some((mapped, _)) if mapped == pfn && !is_poisoned => {}
                    None if is_poisoned => {}
                    other => return Err(format!("the record of {gfn:?} names {pfn:?}; the hypervisor has {other:?}")),
                }
            }
        }
        match leaves.first_key_value() {
            Some((gfn, (pfn, state))) => Err(format!("{pfn:?} is {state:?} at {gfn:?}, and there is no record of it")),
            None => Ok(()),
        }
    }

    fn check_record(&self, mapping: &Mapping, phys: &PhysMem) -> Result<(), String> {
        if !self.is_protected() || mapping.taken {
            return Ok(());
        }
        let Mapping { gfn, pfn, nr_pages, .. } = *mapping;
        if nr_pages != 1 {
            return Err(format!("the record of {gfn:?} is of {nr_pages} pages of a protected VM"));
        }
        let others = phys.mapcount(pfn) + u32::from(phys.mapping(pfn).is_some());
        if phys.refcount(pfn) <= others {
            return Err(format!(
                "{pfn:?} at {gfn:?} is not pinned: {} references, {others} of others",
                phys.refcount(pfn)
            ));
        }
        Ok(())
    }
}

impl Vm {
    /// Each record of a VM beside its slots: PKVM-INV-020 of protected ones, PKVM-INV-021 of others.
    fn check_slots(&self, pkvm: &KvmPkvm) -> Result<(), (&'static str, String)> {
        if !pkvm.is_created() || pkvm.is_dying() {
            return Ok(());
        }
        for mapping in pkvm.mappings() {
            for i in 0..mapping.nr_pages {
                let (gfn, pfn) = (mapping.gfn + i, mapping.pfn + i);
                let slot = self.memslots.peek_active(0, |set| set.by_gfn(gfn).cloned());
                let Some(slot) = slot else {
                    let id = if pkvm.is_protected() { "PKVM-INV-020" } else { "PKVM-INV-021" };
                    return Err((id, format!("{pfn:?} is mapped at {gfn:?}, where no slot is")));
                };
                if pkvm.is_protected() {
                    continue;
                }
                let there = match slot.gmem.peek_file().and_then(|file| file.upgrade()) {
                    Some(file) => self.gmem_of(&file).inode().mapping().peek(slot.gmem_index(gfn)),
                    None => self.mm.peek_pfn(slot.hva(gfn)).flatten(),
                };
                if there != Some(pfn) {
                    return Err((
                        "PKVM-INV-021",
                        format!("{pfn:?} is mapped at {gfn:?}, where its slot has {there:?}"),
                    ));
                }
            }
        }
        Ok(())
    }
}

impl PkvmHost {
    /// The same when all VMs are gone: none has left a page behind.
    ///
    /// # Panics
    /// If something does not hold.
    pub(crate) fn check_end(&self) {
        self.check_quiescent(&Existing { vms: Vec::new(), inodes: Vec::new(), mms: Vec::new() });
        if let Err(violation) = sim_coco::pkvm::invariants::pkvm_inv_015(self.pkvm()) {
            panic!("{violation}");
        }
    }

    /// Everything that can be said while nothing happens.
    ///
    /// # Panics
    /// If something does not hold.
    pub(crate) fn check_quiescent(&self, existing: &Existing) {
        if let Err(violation) = self.pkvm().check_invariants() {
            panic!("{violation}");
        }
        let mut pinned = BTreeMap::new();
        for vm in existing.vms.iter().filter(|vm| !vm.is_destroyed()) {
            let Some(pkvm) = vm.pkvm() else { continue };
            if let Err(what) = pkvm.check_records(self.phys()) {
                panic!("PKVM-INV-012: {what}");
            }
            if let Err((id, what)) = vm.check_slots(pkvm) {
                panic!("{id}: {what}");
            }
            let pages = pkvm.mappings().iter().filter(|mapping| pkvm.is_protected() && !mapping.gmem).count() as u64;
            *pinned.entry(Arc::as_ptr(&vm.mm)).or_insert(0) += pages;
        }
        for mm in &existing.mms {
            let (locked, pinned) = (mm.locked_vm(), pinned.get(&Arc::as_ptr(mm)).copied().unwrap_or(0));
            assert_eq!(locked, pinned, "PKVM-INV-012: pages that are accounted, and pages that are pinned");
        }
        for inode in &existing.inodes {
            let Some(sharing) = inode.sharing() else { continue };
            for (index, pfn) in inode.mapping().peek_range(0..u64::MAX, usize::MAX) {
                let private = !sharing.is_shared(index);
                let maps = self.phys().mapcount(pfn);
                assert!(!private || maps == 0, "PKVM-INV-022: {pfn:?}, private page {index}, is mapped by {maps}");
            }
        }
    }
}
