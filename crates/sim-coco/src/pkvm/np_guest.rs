//! Pages of VMs that are not protected: the host shares them, keeps owning them, and asks for every change of their mappings
//! (`__pkvm_host_share_guest` and its like).

use super::el2::El2;
use super::host::HostMmu;
use super::mutants;
use super::pgtable::{Slot, Tables};
use super::pte::{Pte, S2Level};
use super::trace::Tlbi;
use super::types::{Pa, PageState, Prot, each};
use super::vm::{GuestMmu, HypVcpu, HypVm};
use sim_kernel::sched::Access;
use sim_kernel::{Errno, Pfn};
use sim_mmu::Gfn;

/// A page, or exactly a block, aligned in both address spaces (`__guest_check_transition_size`).
fn transition_level(pfn: Pfn, gfn: Gfn, pages: u64) -> Result<S2Level, Errno> {
    let level = [S2Level::LAST, S2Level::BLOCK].into_iter().find(|level| level.pages() == pages);
    let aligned = |level: &S2Level| (pfn.0 | gfn.0) & (level.pages() - 1) == 0;
    level.filter(aligned).ok_or(Errno::EINVAL)
}

impl El2<'_> {
    /// The host shares a page, or a block of 2 MiB, with a VM that is not protected.
    ///
    /// # Errors
    /// In this order: `EINVAL` for other bits than permissions, a range that is none, another size, or a block that is not aligned; those of host memory; `EPERM` if the
    /// guest has something there; `EBUSY` if a page is mapped 2³²−1 times, `EPERM` if it is not the host's, or shared with somebody else than VMs; `ENOMEM` as for
    /// [`El2::host_donate_guest`].
    pub fn host_share_guest(&self, vcpu: &HypVcpu, pfn: Pfn, gfn: Gfn, pages: u64, prot: Prot) -> Result<(), Errno> {
        if !prot.is_permission() {
            return Err(Errno::EINVAL);
        }
        let range = self.valid_frames(pfn, pages)?;
        let level = transition_level(pfn, gfn, pages)?;
        self.check_memory(&range)?;
        let mut host = self.lock_host();
        let mut guest = self.lock_vm(&vcpu.vm);
        self.check_guest_free(&guest, gfn, pages)?;
        if !self.hv.is_off(mutants::PARTIAL_SHARE) {
            each(range.clone()).try_for_each(|pfn| self.check_shareable(&host, pfn))?;
        }
        self.check_memcache(vcpu)?;
        for pfn in each(range) {
            if self.hv.is_off(mutants::PARTIAL_SHARE) {
                self.check_shareable(&host, pfn)?;
            }
            self.mark_host(&mut host, pfn, PageState::SharedOwned);
            host.pages.entry(pfn).or_default().share_guest_count += 1;
        }
        let pte = Pte::leaf(pfn, level, Prot::empty(), PageState::SharedBorrowed).with_prot(prot);
        self.map_guest(&mut guest, vcpu, gfn, level, pte)
    }

    /// Whether one more VM may have the page.
    fn check_shareable(&self, host: &HostMmu, pfn: Pfn) -> Result<(), Errno> {
        let page = host.page(pfn);
        match (page.state, page.share_guest_count) {
            (PageState::Owned, _) => Ok(()),
            (PageState::SharedOwned, u32::MAX) => Err(Errno::EBUSY),
            (PageState::SharedOwned, 1..) => Ok(()),
            (PageState::SharedOwned, 0) if self.hv.is_off(mutants::SHARES_SHARED) => Ok(()),
            _ => Err(Errno::EPERM),
        }
    }

    /// The host takes a mapping back.
    ///
    /// # Errors
    /// In this order: `EINVAL` for another size, or a block that is not aligned; `ENOENT` if nothing is mapped, `E2BIG` if it is not mapped in this size, `EPERM` if it is
    /// not borrowed, or not shared by the host; `ERANGE` beyond all addresses.
    pub fn host_unshare_guest(&self, vm: &HypVm, gfn: Gfn, pages: u64) -> Result<(), Errno> {
        transition_level(Pfn(0), gfn, pages)?;
        let mut host = self.lock_host();
        let mut guest = self.lock_vm(vm);
        let (slot, pte) = guest.table.root.leaf(&self.hv.phys, Pfn(gfn.0))?;
        if !pte.is_valid() {
            return Err(Errno::ENOENT);
        }
        if slot.level.pages() != pages {
            return Err(Errno::E2BIG);
        }
        let range = pte.pfn()..pte.pfn() + pages;
        let shared = |pfn| host.page(pfn).state == PageState::SharedOwned;
        if pte.state() != PageState::SharedBorrowed || !each(range.clone()).all(shared) {
            return Err(Errno::EPERM);
        }
        if each(range.clone()).any(|pfn| host.page(pfn).share_guest_count == 0) {
            self.warn("a VM borrows a page that is shared with no VM");
            return Err(Errno::EINVAL);
        }
        let GuestMmu { table, pool, .. } = &mut *guest;
        let first = Pfn(gfn.0);
        self.unmap(table, &mut Tables { pool, memcache: None }, first..first + pages);
        for pfn in each(range) {
            let count = &mut host.pages.entry(pfn).or_default().share_guest_count;
            *count -= 1;
            // K7: others may have it still.
            if *count == 0 || self.hv.is_off(mutants::K07) {
                self.mark_host(&mut host, pfn, PageState::Owned);
            }
        }
        Ok(())
    }

    /// More permissions for what is mapped at an address; this processor's translation is dropped, others fault and find it changed.
    ///
    /// # Errors
    /// `EPERM` for a protected VM, `EINVAL` for other bits than permissions, `EAGAIN` if nothing is mapped, `ERANGE` beyond all addresses.
    pub fn host_relax_perms_guest(&self, vcpu: &HypVcpu, gfn: Gfn, prot: Prot) -> Result<(), Errno> {
        self.check_np(&vcpu.vm)?;
        if !prot.is_permission() {
            return Err(Errno::EINVAL);
        }
        let mut guest = self.lock_vm(&vcpu.vm);
        let (slot, pte) = guest.table.root.leaf(&self.hv.phys, Pfn(gfn.0))?;
        let (vmid, ipa) = (guest.table.root.vmid, Pa(gfn.gpa().0));
        if !pte.is_valid() {
            // What this processor remembers goes all the same.
            self.cx.point_range(Access::Store, vcpu.vm.object, gfn.0, 1);
            self.tlbi_announced(vmid, Tlbi::IpaLocal { ipa, level: None });
            return Err(Errno::EAGAIN);
        }
        self.update_pte(&mut guest.table, slot, pte, pte.with_prot(prot));
        let op = Tlbi::IpaLocal { ipa, level: Some(slot.level) };
        self.tlbi(vmid, op, pte.pfn(), slot.level.pages());
        Ok(())
    }

    /// Takes write permission from what is mapped in a range. Translations stay until the host asks for a flush.
    ///
    /// # Errors
    /// `EPERM` for a protected VM, `EINVAL` for another size than a page or a block, `ERANGE` beyond all addresses.
    pub fn host_wrprotect_guest(&self, vm: &HypVm, gfn: Gfn, pages: u64) -> Result<(), Errno> {
        self.check_np(vm)?;
        transition_level(Pfn(0), gfn, pages)?;
        let mut guest = self.lock_vm(vm);
        self.each_leaf(&mut guest, gfn, pages, |guest, slot, pte| {
            self.update_pte(&mut guest.table, slot, pte, pte.write_protected());
        })
    }

    /// Whether something mapped in a range was accessed since its access flag was last cleared; clears it, if `mkold`. Translations stay. Beyond the guest's addresses it is the end of
    /// the machine: nobody has looked at the address, and the walk must not fail.
    ///
    /// # Errors
    /// As [`El2::host_wrprotect_guest`].
    pub fn host_test_clear_young_guest(&self, vm: &HypVm, gfn: Gfn, pages: u64, mkold: bool) -> Result<bool, Errno> {
        self.check_np(vm)?;
        transition_level(Pfn(0), gfn, pages)?;
        let mut young = false;
        let mut guest = self.lock_vm(vm);
        let walked = self.each_leaf(&mut guest, gfn, pages, |guest, slot, pte| {
            young |= pte.is_young();
            if mkold {
                self.update_pte(&mut guest.table, slot, pte, pte.with_young(false));
            }
        });
        walked.inspect_err(|_| self.warn("pages beyond a guest's addresses are asked for their age"))?;
        Ok(young)
    }

    /// Sets the access flag of what is mapped at an address, if something is.
    ///
    /// # Errors
    /// `EPERM` for a protected VM.
    pub fn host_mkyoung_guest(&self, vcpu: &HypVcpu, gfn: Gfn) -> Result<(), Errno> {
        self.check_np(&vcpu.vm)?;
        let mut guest = self.lock_vm(&vcpu.vm);
        if let Ok((slot, pte)) = guest.table.root.leaf(&self.hv.phys, Pfn(gfn.0))
            && pte.is_valid()
        {
            self.update_pte(&mut guest.table, slot, pte, pte.with_young(true));
        }
        Ok(())
    }

    fn check_np(&self, vm: &HypVm) -> Result<(), Errno> {
        if vm.is_protected() { Err(Errno::EPERM) } else { Ok(()) }
    }

    fn each_leaf(
        &self,
        guest: &mut GuestMmu,
        gfn: Gfn,
        pages: u64,
        mut change: impl FnMut(&mut GuestMmu, Slot, Pte),
    ) -> Result<(), Errno> {
        let mut page = Pfn(gfn.0);
        let end = Pfn(gfn.0.saturating_add(pages));
        while page < end {
            let (slot, pte) = guest.table.root.leaf(&self.hv.phys, page)?;
            if pte.is_valid() {
                change(guest, slot, pte);
            }
            page = slot.first + slot.level.pages();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::HostPage;
    use super::super::{CpuId, PageState, Pkvm, PkvmConfig};
    use sim_kernel::mm::PhysMem;
    use sim_kernel::{Errno, sched::Sim};
    use std::sync::Arc;

    /// Nobody makes 2³²−1 mappings: the count is set.
    #[test]
    fn pk_011_a_count_that_is_full() {
        Sim::sequential().solo(|cx| {
            let phys = Arc::new(PhysMem::new(cx, 64 << 20));
            let pkvm = Pkvm::new(cx, Arc::clone(&phys), PkvmConfig::new(16 << 10)).unwrap();
            let (pfn, el2) = (phys.alloc_zeroed().unwrap(), pkvm.el2(cx, CpuId(0)));
            let mut host = el2.lock_host();
            let answers = [(0, Err(Errno::EPERM)), (1, Ok(())), (u32::MAX - 1, Ok(())), (u32::MAX, Err(Errno::EBUSY))];
            for (share_guest_count, answer) in answers {
                host.pages.insert(pfn, HostPage { state: PageState::SharedOwned, share_guest_count });
                assert_eq!(el2.check_shareable(&host, pfn), answer, "{share_guest_count}");
            }
        });
    }
}
