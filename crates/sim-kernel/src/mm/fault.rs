//! Page faults (`mm/memory.c`): what an access that the page table does not let through installs.
//!
//! Every function makes one attempt and returns for the access to be tried again, as the processor would. What is installed is
//! decided again under the page-table lock, because other faults of the process run at the same time.
//!
//! Simplified: no fault-around, no dirty tracking, no per-area locks; a fault that waits keeps `mmap_lock`.

use super::mm::{GupError, Mm, Signal};
use super::pgtable::{Look, Pte, PteFlags};
use super::vma::{Prot, Vma, VmaTree};
use super::zap::page_of;
use crate::fs::{Fault, FaultError};
use crate::mutants::RC_39;
use crate::{Cx, Hva, Pfn};

/// Why a fault cannot be resolved (`vm_fault_t`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum VmFault {
    Sigbus,
    Oom,
    HwPoison,
}

impl From<FaultError> for VmFault {
    fn from(error: FaultError) -> VmFault {
        match error {
            FaultError::Sigbus => VmFault::Sigbus,
            FaultError::Oom => VmFault::Oom,
            FaultError::HwPoison => VmFault::HwPoison,
        }
    }
}

impl From<VmFault> for Signal {
    /// The out-of-memory killer is not modelled: the process gets `SIGBUS`.
    fn from(_: VmFault) -> Signal {
        Signal::Sigbus
    }
}

impl From<VmFault> for GupError {
    fn from(fault: VmFault) -> GupError {
        match fault {
            VmFault::Sigbus => GupError::Efault,
            VmFault::Oom => GupError::Oom,
            VmFault::HwPoison => GupError::HwPoison,
        }
    }
}

const OWN: PteFlags = PteFlags::READ.union(PteFlags::WRITE).union(PteFlags::ANON);

impl Mm {
    /// `handle_mm_fault`: the process may access `hva` in `vma` this way, but the page table does not let it. `tree` is held, and
    /// `vma` one of its areas.
    pub(super) fn handle_mm_fault(
        &self,
        cx: &Cx<'_>,
        tree: &VmaTree,
        vma: &Vma,
        hva: Hva,
        write: bool,
    ) -> Result<(), VmFault> {
        let look = {
            let mut tables = self.page_table_lock.lock(cx);
            let look = tables.look(hva);
            if look == Look::NoTable && !tables.has_room(&self.phys) {
                return Err(VmFault::Oom);
            }
            tables.reach(hva);
            look
        };
        let huge = look == Look::NoTable && self.is_huge_capable(vma, hva);
        if !vma.shared && (write || huge) {
            tree.prepare_anon_vma(vma);
        }
        match look {
            Look::NoTable if huge && self.do_huge_pmd_anonymous_page(cx, hva, write) => {}
            Look::NoTable | Look::Small(Pte::NONE) if vma.backing.is_none() => {
                self.do_anonymous_page(cx, hva, write)?
            }
            Look::NoTable | Look::Small(Pte::NONE) => self.do_fault(cx, vma, hva, write)?,
            Look::Huge(pte) if write && !pte.has(PteFlags::WRITE) => self.do_huge_pmd_wp_page(cx, hva, pte),
            Look::Small(pte) if write && !pte.has(PteFlags::WRITE) => self.do_wp_page(cx, vma, hva, pte)?,
            // Somebody else resolved the same fault first.
            Look::Huge(pte) | Look::Small(pte) => assert!(pte.permits(write), "{hva:?}: {pte:?} in {vma:?}"),
        }
        Ok(())
    }

    /// `do_anonymous_page`: the zero page for a read, a new zeroed page for a write.
    fn do_anonymous_page(&self, cx: &Cx<'_>, hva: Hva, write: bool) -> Result<(), VmFault> {
        self.page_table_lock.lock(cx).make_table(&self.phys, hva)?;
        let new = if write {
            Pte::new(self.phys.alloc_zeroed()?, OWN)
        } else {
            Pte::new(self.zero, PteFlags::READ | PteFlags::ZERO)
        };
        if !self.install(cx, hva, new) && write {
            self.phys.put(cx, new.pfn());
        }
        Ok(())
    }

    /// Fills an empty 4 KiB entry; false if it is not empty any more, or its page table is gone.
    fn install(&self, cx: &Cx<'_>, hva: Hva, new: Pte) -> bool {
        let mut tables = self.page_table_lock.lock(cx);
        let empty = tables.look(hva) == Look::Small(Pte::NONE) || cx.has_mutant(RC_39);
        if empty {
            tables.set(&self.phys, hva, new);
        }
        empty
    }

    /// `do_fault`: asks the file for the page.
    fn do_fault(&self, cx: &Cx<'_>, vma: &Vma, hva: Hva, write: bool) -> Result<(), VmFault> {
        let cow = match write && !vma.shared {
            true => Some(self.phys.alloc()?),
            false => None,
        };
        let result = self.do_file_fault(cx, vma, hva, cow);
        match result {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => {
                if let Some(copy) = cow {
                    self.phys.put(cx, copy);
                }
                result.map(|_| ())
            }
        }
    }

    /// Installs the file's page, or its copy in `cow`. True if that was done.
    fn do_file_fault(&self, cx: &Cx<'_>, vma: &Vma, hva: Hva, cow: Option<Pfn>) -> Result<bool, VmFault> {
        let backing = vma.backing.as_ref().expect("a file fault needs a file");
        let pgoff = vma.pgoff(hva).expect("a file fault needs a file");
        let Fault { pfn } = backing.file.operations().fault(cx, pgoff)?;
        if self.phys.mapping(pfn).is_none() {
            // Truncated before it was locked: the caller tries again.
            self.phys.unlock(cx, pfn);
            self.phys.put(cx, pfn);
            return Ok(false);
        }
        if self.phys.is_poisoned(cx, pfn) {
            if let Some(i_mmap) = backing.file.operations().i_mmap() {
                i_mmap.unmap_page(cx, pgoff);
            }
            self.phys.unlock(cx, pfn);
            self.phys.put(cx, pfn);
            return Err(VmFault::HwPoison);
        }
        let new = match cow {
            Some(copy) => {
                self.phys.copy(cx, pfn, copy);
                Pte::new(copy, OWN)
            }
            None => Pte::new(pfn, PteFlags::empty()).with_access(true, vma.shared && vma.prot.contains(Prot::WRITE)),
        };
        let table = self.page_table_lock.lock(cx).make_table(&self.phys, hva);
        if let Err(errno) = table {
            self.phys.unlock(cx, pfn);
            self.phys.put(cx, pfn);
            return Err(errno.into());
        }
        let installed = self.install(cx, hva, new);
        self.phys.unlock(cx, pfn);
        // The page's reference went into the entry, unless a copy did or nothing.
        if !installed || cow.is_some() {
            self.phys.put(cx, pfn);
        }
        Ok(installed)
    }

    /// `do_wp_page`: a write to a page that is mapped read-only. A shared page or an own one becomes writable in place; the zero
    /// page and a private mapping's file page are replaced by a copy.
    fn do_wp_page(&self, cx: &Cx<'_>, vma: &Vma, hva: Hva, old: Pte) -> Result<(), VmFault> {
        {
            let mut tables = self.page_table_lock.lock(cx);
            if tables.look(hva) != Look::Small(old) {
                return Ok(());
            }
            if vma.shared || old.has(PteFlags::ANON) {
                tables.set(&self.phys, hva, old.with_access(true, true));
                return Ok(());
            }
            self.phys.get(old.pfn());
        }
        let result = self.wp_page_copy(cx, hva, old);
        self.phys.put(cx, old.pfn());
        result
    }

    /// `wp_page_copy`: replaces a page by a copy, with a notifier over the page. The caller has a reference to the old page.
    fn wp_page_copy(&self, cx: &Cx<'_>, hva: Hva, old: Pte) -> Result<(), VmFault> {
        let copy = self.phys.alloc_zeroed()?;
        if !old.has(PteFlags::ZERO) {
            self.phys.copy(cx, old.pfn(), copy);
        }
        let invalidation = self.invalidate_start(cx, page_of(hva));
        let mut tables = self.page_table_lock.lock(cx);
        let unchanged = tables.look(hva) == Look::Small(old);
        if unchanged {
            tables.set(&self.phys, hva, Pte::new(copy, OWN));
        }
        drop(tables);
        self.invalidate_end(cx, invalidation);
        if !unchanged {
            self.phys.put(cx, copy);
        } else if !old.has(PteFlags::ZERO) {
            self.phys.put(cx, old.pfn());
        }
        Ok(())
    }
}
