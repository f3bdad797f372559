//! From a guest frame to a host frame through the VMM's mapping (`hva_to_pfn`, `virt/kvm/kvm_main.c`).

use super::memslots::Memslot;
use super::vm::Vm;
use sim_kernel::mm::{GupError, GupFlags, GupPage};
use sim_kernel::{Cx, Errno};
use sim_mmu::Gfn;

/// What became of a look-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HvaPfn {
    /// A page, with a reference for the caller.
    Page(GupPage),
    /// `KVM_PFN_ERR_RO_FAULT`: a write to a read-only slot.
    ReadOnly,
    /// `KVM_PFN_ERR_HWPOISON`: the page is broken.
    HwPoison,
    /// An error that ends the run.
    Error(Errno),
}

/// Whether the access wants to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Intent {
    /// The access only reads, or it is a pre-fault.
    Read,
    /// The access writes.
    Write,
}

impl Vm {
    /// `kvm_follow_pfn`: resolves with the intent of the access; a page that turns out to be writable is taken as writable also for a
    /// read, unless the slot is read-only.
    pub(crate) fn follow_pfn(&self, cx: &Cx<'_>, slot: &Memslot, gfn: Gfn, intent: Intent) -> HvaPfn {
        if intent == Intent::Write && slot.is_readonly() {
            return HvaPfn::ReadOnly;
        }
        let hva = slot.hva(gfn);
        let may_write = !slot.is_readonly();
        // hva_to_pfn_fast: only for what may be mapped writable.
        if may_write && let Some(page) = self.mm.get_user_page_fast_only(cx, hva, true) {
            return HvaPfn::Page(GupPage { writable: true, ..page });
        }
        // hva_to_pfn_slow.
        let write = intent == Intent::Write;
        match self.mm.get_user_page(cx, hva, GupFlags { write }) {
            Ok(page) if write => HvaPfn::Page(GupPage { writable: true, ..page }),
            Ok(page) => {
                let writable = may_write.then(|| self.mm.get_user_page_fast_only(cx, hva, true)).flatten();
                match writable {
                    Some(writable) => {
                        self.host.phys.put(cx, page.pfn);
                        HvaPfn::Page(GupPage { writable: true, ..writable })
                    }
                    None => HvaPfn::Page(GupPage { writable: false, ..page }),
                }
            }
            Err(GupError::HwPoison) => HvaPfn::HwPoison,
            Err(GupError::SignalPending) => HvaPfn::Error(Errno::EINTR),
            Err(_) => HvaPfn::Error(Errno::EFAULT),
        }
    }
}
