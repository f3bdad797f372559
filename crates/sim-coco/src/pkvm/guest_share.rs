//! A protected VM shares its pages with the host, and takes them back (`__pkvm_guest_share_host`, `__pkvm_guest_unshare_host`).

use super::el2::El2;
use super::mutants;
use super::pte::S2Level;
use super::types::{Owner, PageState};
use super::vm::HypVcpu;
use sim_kernel::Errno;
use sim_mmu::Gfn;

impl El2<'_> {
    /// The guest shares a page: the host may access it, the guest keeps owning it. Its contents stay.
    ///
    /// # Errors
    /// `EHWPOISON`, `ENOENT`, `E2BIG`, `ERANGE` as the guest's descriptor is found; `EPERM` if it is shared already.
    pub fn guest_share_host(&self, vcpu: &HypVcpu, gfn: Gfn) -> Result<(), Errno> {
        let mut host = self.lock_host();
        let mut guest = self.lock_vm(&vcpu.vm);
        let (_, pte) = self.guest_page(&guest, gfn)?;
        let pfn = pte.pfn();
        if pte.state() != PageState::Owned {
            return Err(Errno::EPERM);
        }
        self.check_host(&host, &(pfn..pfn + 1), PageState::NoPage)?;
        let shared = pte.with_state(PageState::SharedOwned);
        let mapped = self.map_guest(&mut guest, vcpu, gfn, S2Level::LAST, shared);
        assert_eq!(mapped, Ok(()), "the page was mapped, so that there are tables");
        self.set_host_state(&mut host, pfn..pfn + 1, PageState::SharedBorrowed);
        Ok(())
    }

    /// The guest takes back what it shared. What the host wrote stays.
    ///
    /// # Errors
    /// As [`El2::guest_share_host`]; `EPERM` if it is not shared.
    pub fn guest_unshare_host(&self, vcpu: &HypVcpu, gfn: Gfn) -> Result<(), Errno> {
        let mut host = self.lock_host();
        let mut guest = self.lock_vm(&vcpu.vm);
        let (_, pte) = self.guest_page(&guest, gfn)?;
        let pfn = pte.pfn();
        if pte.state() != PageState::SharedOwned {
            return Err(Errno::EPERM);
        }
        self.check_host(&host, &(pfn..pfn + 1), PageState::SharedBorrowed)?;
        if self.hv.is_off(mutants::UNSHARE_KEEPS_HOST) {
            self.mark_host(&mut host, pfn, PageState::NoPage);
        } else {
            self.set_host_owner(&mut host, pfn..pfn + 1, Owner::Guest(vcpu.vm.handle(), gfn));
        }
        let owned = pte.with_state(PageState::Owned);
        let mapped = self.map_guest(&mut guest, vcpu, gfn, S2Level::LAST, owned);
        assert_eq!(mapped, Ok(()), "the page was mapped, so that there are tables");
        Ok(())
    }
}
