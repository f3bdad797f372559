//! Pages that the host keeps ready for tables, as a list through the pages themselves (`struct kvm_hyp_memcache`), and how the hypervisor takes some
//! (`refill_memcache`).
//!
//! The list is the host's memory, so nothing in it can be trusted: the hypervisor copies the head, makes the page its own as any page that the host gives, and only then reads
//! where the next one is.

use super::el2::El2;
use super::mutants;
use super::types::Pa;
use super::vm::{HostKvm, HostVcpu, HypVcpu};
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
        self.push_announced(phys, pfn);
    }

    /// The same as part of a step that the caller has announced.
    fn push_announced(&mut self, phys: &PhysMem, pfn: Pfn) {
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

/// A step on the words of a list, which lie at the beginning of the host's structure.
#[track_caller]
fn point_list(cx: &Cx<'_>, phys: &PhysMem, access: Access, frame: Pfn) {
    cx.point_range(access, phys.object(), frame.0 * WORDS_PER_PAGE as u64, 2);
}

impl HostVcpu {
    /// The host replaces its list by another, in one step, and has the old one.
    #[track_caller]
    pub fn replace_memcache(&self, cx: &Cx<'_>, phys: &PhysMem, list: Memcache) -> Memcache {
        point_list(cx, phys, Access::Store, self.frame);
        std::mem::replace(&mut *self.memcache.lock(), list)
    }
}

impl El2<'_> {
    /// Leaves a page of a VM that is gone for the host. The list is in memory that both may write.
    pub(super) fn push_teardown(&self, kvm: &HostKvm, pfn: Pfn) {
        self.cx.point(Access::Store, self.hv.phys.object(), pfn.0 * WORDS_PER_PAGE as u64);
        point_list(self.cx, &self.hv.phys, Access::Store, kvm.frame);
        kvm.teardown.lock().push_announced(&self.hv.phys, pfn);
    }

    /// Fills a vCPU's memcache from the host's list, up to as many pages as that says that it has (`pkvm_refill_memcache`). Whether those are enough is asked by who needs them.
    ///
    /// # Errors
    /// `ENOMEM` if the list ends before, or has a page that the host cannot give. What was taken by then stays taken.
    pub(super) fn refill_memcache(&self, vcpu: &HypVcpu) -> Result<(), Errno> {
        point_list(self.cx, &self.hv.phys, Access::Load, vcpu.host().frame());
        let mut list = *vcpu.host().memcache.lock();
        let wanted = list.nr_pages;
        let mut refilled = Ok(());
        while refilled.is_ok() && (vcpu.memcache.lock().len() as u64) < wanted {
            let pfn = list.head.pfn();
            refilled = match list.nr_pages {
                0 => Err(Errno::ENOMEM),
                // K9: the host may change the page, and the list, until the page is not its own any more. A page that is in it twice would be found without end.
                _ if self.hv.is_off(mutants::K09) => {
                    let usable = self.hv.phys.has_frame(pfn) && !vcpu.memcache.lock().contains(&pfn);
                    usable.then_some(()).ok_or(Errno::ENOMEM)
                }
                _ => self.host_donate_hyp(pfn, 1).map_err(|_| Errno::ENOMEM),
            };
            if refilled.is_ok() {
                list.pop(self.cx, &self.hv.phys);
                vcpu.memcache.lock().push(pfn);
            }
        }
        // Whatever the host made of it meanwhile.
        point_list(self.cx, &self.hv.phys, Access::Store, vcpu.host().frame());
        *vcpu.host().memcache.lock() = list;
        refilled
    }
}
