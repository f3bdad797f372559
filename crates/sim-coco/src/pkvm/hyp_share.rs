//! Pages between the host and the hypervisor, or TrustZone: sharing, pinning, donating (`__pkvm_host_share_hyp` and its like in `mem_protect.c`).

use super::el2::El2;
use super::mutants;
use super::types::{Owner, PageState, each, frames};
use sim_kernel::{Errno, Pfn};

impl El2<'_> {
    /// The host shares a page with the hypervisor, which maps it when it pins it.
    ///
    /// # Errors
    /// `EINVAL` or `EPERM` as every check of host memory; `EPERM` unless the page is the host's alone.
    pub fn host_share_hyp(&self, pfn: Pfn) -> Result<(), Errno> {
        let page = frames(pfn, 1)?;
        let mut host = self.lock_host();
        let mut hyp = self.lock_hyp();
        self.check_host(&host, &page, PageState::Owned)?;
        if hyp.page(pfn).state != PageState::NoPage {
            return Err(Errno::EPERM);
        }
        self.set_hyp_state(&mut hyp, pfn, PageState::SharedBorrowed);
        self.set_host_state(&mut host, page, PageState::SharedOwned);
        Ok(())
    }

    /// The host takes back what it shared with the hypervisor.
    ///
    /// # Errors
    /// As [`El2::host_share_hyp`] for a page that is not so shared; `EBUSY` while it is pinned.
    pub fn host_unshare_hyp(&self, pfn: Pfn) -> Result<(), Errno> {
        let page = frames(pfn, 1)?;
        let mut host = self.lock_host();
        let mut hyp = self.lock_hyp();
        self.check_host(&host, &page, PageState::SharedOwned)?;
        if hyp.page(pfn).state != PageState::SharedBorrowed {
            return Err(Errno::EPERM);
        }
        // K8: without it, EL2 would fault at its next access.
        if hyp.page(pfn).refcount > 0 && !self.hv.is_off(mutants::K08) {
            return Err(Errno::EBUSY);
        }
        self.set_hyp_state(&mut hyp, pfn, PageState::NoPage);
        self.set_host_state(&mut host, page, PageState::Owned);
        Ok(())
    }

    /// The hypervisor is about to use pages that the host shares with it, and keeps the host from taking them back (`hyp_pin_shared_mem`).
    ///
    /// # Errors
    /// `EPERM` unless all are shared with it; `EINVAL` for a range that leaves its region.
    pub fn pin_shared_mem(&self, pfn: Pfn, pages: u64) -> Result<(), Errno> {
        let range = frames(pfn, pages)?;
        let host = self.lock_host();
        let mut hyp = self.lock_hyp();
        self.check_host(&host, &range, PageState::SharedOwned)?;
        if each(range.clone()).any(|pfn| hyp.page(pfn).state != PageState::SharedBorrowed) {
            return Err(Errno::EPERM);
        }
        for pfn in each(range) {
            let count = &mut hyp.pages.entry(pfn).or_default().refcount;
            match count.checked_add(1) {
                Some(more) => *count = more,
                None => self.warn("too many pins of a page"),
            }
            self.map_el2(&mut hyp, pfn);
        }
        Ok(())
    }

    /// The end of a [`El2::pin_shared_mem`].
    pub fn unpin_shared_mem(&self, pfn: Pfn, pages: u64) {
        let Ok(range) = frames(pfn, pages) else { return };
        let _host = self.lock_host();
        let mut hyp = self.lock_hyp();
        for pfn in each(range) {
            match hyp.page(pfn).refcount {
                0 => return self.warn("a page was unpinned that was not pinned"),
                1 => self.unmap_el2(&mut hyp, pfn),
                _ => {}
            }
            hyp.pages.entry(pfn).or_default().refcount -= 1;
        }
    }

    /// The host gives pages to the hypervisor.
    ///
    /// # Errors
    /// `EINVAL` for a range that is none, or leaves its region; `EPERM` for what is no memory, and unless all are the host's alone.
    pub fn host_donate_hyp(&self, pfn: Pfn, pages: u64) -> Result<(), Errno> {
        let range = self.valid_frames(pfn, pages)?;
        let mut host = self.lock_host();
        let mut hyp = self.lock_hyp();
        self.check_host(&host, &range, PageState::Owned)?;
        if each(range.clone()).any(|pfn| hyp.page(pfn).state != PageState::NoPage) {
            return Err(Errno::EPERM);
        }
        for pfn in each(range.clone()) {
            self.set_hyp_state(&mut hyp, pfn, PageState::Owned);
            self.map_el2(&mut hyp, pfn);
        }
        self.set_host_owner(&mut host, range, Owner::Hyp);
        Ok(())
    }

    /// The hypervisor gives pages to the host. It has cleared them, if it wanted to.
    ///
    /// # Errors
    /// `EINVAL` for a range that is none; `EPERM` unless all are the hypervisor's alone; `EBUSY` if one is in use.
    pub fn hyp_donate_host(&self, pfn: Pfn, pages: u64) -> Result<(), Errno> {
        let range = self.valid_frames(pfn, pages)?;
        let mut host = self.lock_host();
        let mut hyp = self.lock_hyp();
        if each(range.clone()).any(|pfn| hyp.page(pfn).state != PageState::Owned) {
            return Err(Errno::EPERM);
        }
        self.check_host(&host, &range, PageState::NoPage)?;
        if each(range.clone()).any(|pfn| hyp.page(pfn).refcount > 0) {
            return Err(Errno::EBUSY);
        }
        for pfn in each(range.clone()) {
            self.set_hyp_state(&mut hyp, pfn, PageState::NoPage);
            self.unmap_el2(&mut hyp, pfn);
        }
        self.set_host_state(&mut host, range, PageState::Owned);
        Ok(())
    }

    /// The host shares pages with TrustZone. Its FF-A calls pass through the hypervisor, which marks the pages.
    ///
    /// # Errors
    /// As [`El2::host_donate_hyp`].
    pub fn host_share_ffa(&self, pfn: Pfn, pages: u64) -> Result<(), Errno> {
        let range = self.valid_frames(pfn, pages)?;
        let mut host = self.lock_host();
        self.check_host(&host, &range, PageState::Owned)?;
        self.set_host_state(&mut host, range, PageState::SharedOwned);
        Ok(())
    }

    /// TrustZone gave pages back. Only the host's state is tested, which does not tell whom the host shares a page with: the proxy above calls this for
    /// what the secure side reports, and for nothing else.
    ///
    /// # Errors
    /// As [`El2::host_share_ffa`], `EPERM` unless all are shared by the host.
    pub fn host_unshare_ffa(&self, pfn: Pfn, pages: u64) -> Result<(), Errno> {
        let range = self.valid_frames(pfn, pages)?;
        let mut host = self.lock_host();
        self.check_host(&host, &range, PageState::SharedOwned)?;
        self.set_host_state(&mut host, range, PageState::Owned);
        Ok(())
    }
}
