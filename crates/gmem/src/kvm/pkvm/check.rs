//! What must hold of KVM's records beside the hypervisor's tables, whenever nobody is in the middle of anything. Not the kernel's.

use super::mappings::Mapping;
use super::vm::KvmPkvm;
use crate::kvm::vm::Vm;
use sim_coco::pkvm::{PageState, Pkvm};
use sim_kernel::Pfn;
use sim_kernel::mm::PhysMem;
use sim_mmu::Gfn;
use std::collections::BTreeMap;

impl KvmPkvm {
    /// PKVM-INV-015: no page is left with a VM that the hypervisor is about to forget.
    pub(super) fn check_all_reclaimed(&self) {
        if let Some(mapping) = self.mappings.lock().all().first() {
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
    /// PKVM-INV-012 of accounting: what is locked for the process is what its protected VMs have pinned.
    ///
    /// # Errors
    /// Both numbers, if they differ.
    pub(crate) fn check_locked_vm(&self, others: u64) -> Result<(), String> {
        let locked = self.mm.locked_vm();
        if locked == others { Ok(()) } else { Err(format!("{locked} pages are accounted, {others} are pinned")) }
    }
}
