//! Pages of protected VMs: given by the host, taken by force, and taken when the VM dies (`__pkvm_host_donate_guest`,
//! `__pkvm_host_force_reclaim_page_guest`, `__pkvm_host_reclaim_page_guest`).

use super::el2::El2;
use super::host::HostMmu;
use super::mutants;
use super::pgtable::Tables;
use super::pte::{Pte, S2Level};
use super::types::{Owner, Pa, PageState, Prot, frames};
use super::vm::{GuestMmu, HypVcpu, HypVm};
use sim_kernel::mm::phys::WORDS_PER_PAGE;
use sim_kernel::{Errno, Pfn};
use sim_mmu::Gfn;

/// Why a page goes back to the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leaves {
    /// With nothing in it.
    Cleared,
    /// As it is: the host could read it anyway.
    Shared,
}

impl El2<'_> {
    /// The host gives a page to a protected VM, as it is: its contents become the guest's.
    ///
    /// # Errors
    /// In this order: those of host memory, `EPERM` if it is not the host's alone; `EPERM` if something is, or was poisoned, at the guest's address, `ERANGE` beyond its
    /// addresses; `ENOMEM` if the vCPU's memcache has fewer tables than a mapping can take.
    pub fn host_donate_guest(&self, vcpu: &HypVcpu, pfn: Pfn, gfn: Gfn) -> Result<(), Errno> {
        let page = frames(pfn, 1)?;
        let vm = &vcpu.vm;
        let check = |host: &_| match self.check_host(host, &page, PageState::Owned) {
            Err(Errno::EPERM) if self.hv.is_off(mutants::DONATES_MMIO) && self.hv.config.region(pfn).is_none() => {
                Ok(())
            }
            checked => checked,
        };
        if self.hv.is_off(mutants::K06) {
            // K6: two processors find the page free.
            check(&self.lock_host())?;
        }
        let mut host = self.lock_host();
        let mut guest = self.lock_vm(vm);
        if !self.hv.is_off(mutants::K06) {
            check(&host)?;
        }
        self.check_guest_free(&guest, gfn, 1)?;
        self.check_memcache(vcpu)?;
        self.set_host_owner(&mut host, page, Owner::Guest(vm.handle(), gfn));
        self.map_guest(&mut guest, vcpu, gfn, S2Level::LAST, Pte::leaf(pfn, S2Level::LAST, Prot::RWX, PageState::Owned))
    }

    /// The host takes a page from a protected VM that did nothing to deserve it: the page is cleared, and the VM finds a mark where it was.
    ///
    /// # Errors
    /// In this order: `EFAULT` for what is not memory; `EAGAIN` if the host can access the page by now; `EPERM` if it is not a guest's; `EAGAIN` if its VM is gone; `EHWPOISON`,
    /// `ENOENT`, `E2BIG` as the guest's descriptor is found; `EPERM` if the guest does not have it for itself.
    pub fn force_reclaim(&self, pa: Pa) -> Result<(), Errno> {
        let vms = self.lock_vms();
        let mut host = None;
        if !self.hv.is_off(mutants::K03) {
            host = Some(self.lock_host());
        }
        let pfn = pa.pfn();
        if self.hv.config.region(pfn).is_none() {
            return Err(Errno::EFAULT);
        }
        let owner = |host: &HostMmu| {
            if host.page(pfn).state != PageState::NoPage && !self.hv.is_off(mutants::K04) {
                return Err(Errno::EAGAIN);
            }
            match host.table.root.leaf(&self.hv.phys, pfn)?.1.owner() {
                Some(Owner::Guest(handle, gfn)) => Ok((handle, gfn)),
                None if self.hv.is_off(mutants::K04) => self.hv.first_leaf(&vms, pfn).ok_or(Errno::EAGAIN),
                _ => Err(Errno::EPERM),
            }
        };
        let (handle, gfn) = match &host {
            Some(host) => owner(host)?,
            None => owner(&self.lock_host())?,
        };
        let vm = vms.vm(handle).ok_or(Errno::EAGAIN)?;
        // K3: with the table locked, teardown waits.
        let _vms = (!self.hv.is_off(mutants::K03)).then_some(vms);
        let mut host = host.unwrap_or_else(|| self.lock_host());
        let mut guest = self.lock_vm(&vm);
        let (_, pte) = self.guest_page(&guest, gfn)?;
        if pte.pfn() != pfn {
            self.warn("a page is annotated with a guest's address where another page is");
            return Err(Errno::EPERM);
        }
        if pte.state() != PageState::Owned && !self.hv.is_off(mutants::K04) {
            return Err(Errno::EPERM);
        }
        let mark = if self.hv.is_off(mutants::NO_POISON) { Pte::NONE } else { Pte::POISONED };
        // K5: the guest writes until its mapping is gone.
        let zero_first = self.hv.is_off(mutants::K05);
        if zero_first {
            self.zero(pfn);
        }
        guest.poisoned.insert(gfn);
        let mut tables = Tables { pool: &mut Vec::new(), memcache: None };
        let marked = self.map(&mut guest.table, &mut tables, Pfn(gfn.0), S2Level::LAST, mark);
        assert_eq!(marked, Ok(()), "the page was mapped, so that there are tables");
        if !zero_first && !self.hv.is_off(mutants::NO_ZERO) {
            self.zero(pfn);
        }
        self.give_back(&mut host, pfn, Leaves::Cleared);
        Ok(())
    }

    /// The host takes a page from a protected VM that is being torn down. A page that was taken by force is none any more, which is no failure: the host has its
    /// record to drop.
    ///
    /// # Errors
    /// `EINVAL` unless the VM is dying; `ENOENT`, `E2BIG`, `ERANGE` as the descriptor is found; `EPERM` if the page is not the guest's.
    pub fn reclaim_dying_guest(&self, vm: &HypVm, gfn: Gfn) -> Result<(), Errno> {
        if !vm.is_dying() {
            return Err(Errno::EINVAL);
        }
        let mut host = self.lock_host();
        let mut guest = self.lock_vm(vm);
        let (_, pte) = match self.guest_page(&guest, gfn) {
            Err(Errno::EHWPOISON) => return Ok(()),
            found => found?,
        };
        let (leaves, of_host) = match pte.state() {
            PageState::Owned => (Leaves::Cleared, PageState::NoPage),
            PageState::SharedOwned => (Leaves::Shared, PageState::SharedBorrowed),
            _ => return Err(Errno::EPERM),
        };
        if host.page(pte.pfn()).state != of_host {
            self.warn("a page of a guest is of another state for the host");
            return Err(Errno::EPERM);
        }
        // No vCPU runs that could write it again.
        if leaves == Leaves::Cleared && !self.hv.is_off(mutants::DYING_NO_ZERO) {
            self.zero(pte.pfn());
        }
        let GuestMmu { table, pool, .. } = &mut *guest;
        let page = Pfn(gfn.0);
        self.unmap(table, &mut Tables { pool, memcache: None }, page..page + 1);
        self.give_back(&mut host, pte.pfn(), leaves);
        Ok(())
    }

    /// The page is the host's again.
    fn give_back(&self, host: &mut HostMmu, pfn: Pfn, leaves: Leaves) {
        // For PKVM-INV-008: what the host finds if it looks at once.
        let phys = &self.hv.phys;
        if leaves == Leaves::Cleared && (0..WORDS_PER_PAGE).any(|word| phys.peek_u64(pfn, word) != 0) {
            self.hv.ghost.lock().leaked.insert(pfn);
        }
        self.set_host_state(host, Pfn(pfn.0)..pfn + 1, PageState::Owned);
    }
}
