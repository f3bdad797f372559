//! Pages that the host keeps ready for tables, as a list through the pages themselves (`struct kvm_hyp_memcache`), and how the hypervisor takes some
//! (`refill_memcache`).
//!
//! The list is the host's memory, so nothing in it can be trusted: the hypervisor copies the head, makes the page its own as any page that the host gives, and only then reads
//! where the next one is.

use super::el2::El2;
use super::mutants;
use super::types::Pa;
use super::vm::HypVcpu;
use sim_kernel::mm::PhysMem;
use sim_kernel::mm::phys::WORDS_PER_PAGE;
use sim_kernel::sched::Access;
use sim_kernel::{Cx, Errno, Pfn};

/// A list of pages: the first word of each is the address of the next.
///
/// ```
/// use sim_coco::pkvm::Memcache;
/// use sim_kernel::{mm::PhysMem, sched::Sim};
/// Sim::sequential().solo(|cx| {
///     let memory = PhysMem::new(cx, 1 << 20);
///     let (a, b) = (memory.alloc_zeroed().unwrap(), memory.alloc_zeroed().unwrap());
///     let mut list = Memcache::default();
///     list.push(cx, &memory, a);
///     list.push(cx, &memory, b);
///     assert_eq!([list.pop(cx, &memory), list.pop(cx, &memory), list.pop(cx, &memory)], [Some(b), Some(a), None]);
/// });
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memcache {
    /// Address of the first page.
    pub head: Pa,
    /// Pages.
    pub nr_pages: u64,
}

impl Memcache {
    /// Puts a page in front (`push_hyp_memcache`).
    pub fn push(&mut self, cx: &Cx<'_>, phys: &PhysMem, pfn: Pfn) {
        cx.point(Access::Store, phys.object(), pfn.0 * WORDS_PER_PAGE as u64);
        phys.poke_u64(pfn, 0, self.head.0);
        self.head = Pa::of(pfn);
        self.nr_pages += 1;
    }

    /// Takes the first page (`pop_hyp_memcache`).
    pub fn pop(&mut self, cx: &Cx<'_>, phys: &PhysMem) -> Option<Pfn> {
        self.nr_pages = self.nr_pages.checked_sub(1)?;
        let pfn = self.head.pfn();
        cx.point(Access::Load, phys.object(), pfn.0.saturating_mul(WORDS_PER_PAGE as u64));
        self.head = Pa(if phys.has_frame(pfn) { phys.peek_u64(pfn, 0) } else { 0 });
        Some(pfn)
    }
}

impl El2<'_> {
    /// Fills a vCPU's memcache from the host's list, up to what any mapping can take (`pkvm_refill_memcache`).
    ///
    /// # Errors
    /// `ENOMEM` if the list ends before, or has a page that the host cannot give. What was taken by then stays taken.
    pub(super) fn refill_memcache(&self, vcpu: &HypVcpu) -> Result<(), Errno> {
        let mut list = *vcpu.host().memcache.lock();
        let mut refilled = Ok(());
        while refilled.is_ok() && vcpu.memcache.lock().len() < vcpu.vm.min_memcache_pages() {
            let pfn = list.head.pfn();
            refilled = match list.nr_pages {
                0 => Err(Errno::ENOMEM),
                // K9: the host may change the page, and the list, until the page is not its own any more.
                _ if self.hv.is_off(mutants::K09) => Ok(()),
                _ => self.host_donate_hyp(pfn, 1).map_err(|_| Errno::ENOMEM),
            };
            if refilled.is_ok() {
                list.pop(self.cx, &self.hv.phys);
                vcpu.memcache.lock().push(pfn);
            }
        }
        *vcpu.host().memcache.lock() = list;
        refilled
    }
}
