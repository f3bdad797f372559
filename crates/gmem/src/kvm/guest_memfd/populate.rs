//! `kvm_gmem_populate`: pages of a guest_memfd get their first contents from user space, and whoever asks makes them the guest's.

use super::GmemFile;
use crate::kvm::mutants::{POPULATE_NO_LOCK, SEV_POPULATE_SHARED};
use crate::kvm::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use crate::kvm::vm::Vm;
use sim_kernel::mm::{FrameFlags, GupError, GupFlags};
use sim_kernel::xarray::Handle;
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE, Pfn};
use sim_mmu::Gfn;
use std::sync::Arc;

/// Where contents come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PopulateSource {
    /// The first byte of the first page.
    pub(crate) uaddr: Hva,
    /// They may be changed.
    pub(crate) write: bool,
}

/// What is done with a page: its frame of the guest and of the host, and the frame of its contents.
pub(crate) type PostPopulate<'a> = &'a mut dyn FnMut(Gfn, Pfn, Option<Pfn>) -> Result<(), Errno>;

impl Vm {
    /// `kvm_gmem_populate`, under `slots_lock`: hands each page to `post`, in order, up to the end of the slot. Returns how many pages were done.
    ///
    /// # Errors
    /// If none was: `EINVAL` for a slot without guest_memfd or a page whose attribute is not private; `EFAULT`, `ENOMEM`, `EHWPOISON`, `EINTR`; what
    /// `post` says.
    pub(crate) fn gmem_populate(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        start: Gfn,
        npages: u64,
        source: Option<PopulateSource>,
        post: PostPopulate<'_>,
    ) -> Result<u64, Errno> {
        let slot = self.memslots.peek_active(0, |set| set.by_gfn(start).cloned());
        let slot = slot.filter(|slot| slot.has_gmem()).ok_or(Errno::EINVAL)?;
        let file = slot.gmem_get_file(cx).ok_or(Errno::EFAULT)?;
        let npages = npages.min(slot.npages - (start - slot.base_gfn));
        let view = self.gmem_of(&file);
        let mut done = 0;
        let mut result = Ok(());
        while done < npages && result.is_ok() {
            if cx.signal_pending() {
                result = Err(Errno::EINTR);
                break;
            }
            let gfn = start + done;
            let index = slot.gmem_index(gfn);
            if view.bindings.load(cx, index.0) != Some(Handle(slot.handle)) {
                result = Err(Errno::EIO);
                break;
            }
            result =
                self.populate_one(cx, view, gfn, index, source.map(|s| (s.uaddr + done * PAGE_SIZE, s.write)), post);
            done += u64::from(result.is_ok());
            cx.cond_resched();
        }
        file.put(cx);
        if done > 0 { Ok(done) } else { result.map(|()| 0) }
    }

    /// `__kvm_gmem_populate`, with the pin of the source page around it.
    fn populate_one(
        &self,
        cx: &Cx<'_>,
        view: &GmemFile,
        gfn: Gfn,
        index: sim_kernel::Pgoff,
        source: Option<(Hva, bool)>,
        post: PostPopulate<'_>,
    ) -> Result<(), Errno> {
        let phys = &self.host.phys;
        let pinned = match source {
            Some((uaddr, write)) => {
                let page = self.mm.get_user_page(cx, uaddr, GupFlags { write }).map_err(GupError::errno)?;
                Some(page.pfn)
            }
            None => None,
        };
        let result = {
            let _lock = (!cx.has_mutant(POPULATE_NO_LOCK)).then(|| view.inode.mapping.invalidate_lock.write(cx));
            self.populate_folio(cx, view, gfn, index, pinned, post)
        };
        if let Some(pinned) = pinned {
            phys.put(cx, pinned);
        }
        result
    }

    fn populate_folio(
        &self,
        cx: &Cx<'_>,
        view: &GmemFile,
        gfn: Gfn,
        index: sim_kernel::Pgoff,
        pinned: Option<Pfn>,
        post: PostPopulate<'_>,
    ) -> Result<(), Errno> {
        let phys = &self.host.phys;
        let pfn = view.inode.get_folio(cx, index)?;
        let poisoned = phys.is_poisoned(cx, pfn);
        phys.unlock(cx, pfn);
        let result = if poisoned {
            Err(Errno::EHWPOISON)
        } else if self.attributes.get(cx, gfn) & KVM_MEMORY_ATTRIBUTE_PRIVATE == 0
            && !cx.has_mutant(SEV_POPULATE_SHARED)
        {
            Err(Errno::EINVAL)
        } else {
            post(gfn, pfn, pinned)
        };
        if result.is_ok() {
            phys.set_flags(pfn, FrameFlags::UPTODATE);
        }
        phys.put(cx, pfn);
        result
    }
}
