//! What is true of pages, VMs and translations, for checkers and reports: nothing here is a step.

use super::machine::Pkvm;
use super::pte::{Pte, S2Level};
use super::tlb::TlbEntry;
use super::types::{CpuId, Handle, PageState, Vmid};
use super::vm::{HypVm, VmTable};
use sim_kernel::Pfn;
use sim_mmu::Gfn;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A page for the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostView {
    /// Its state.
    pub state: PageState,
    /// Mappings in VMs that are not protected.
    pub share_guest_count: u32,
    /// The host's descriptor: of the page, or of the block that it is in.
    pub pte: Pte,
}

/// A page for the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HypView {
    /// Its state.
    pub state: PageState,
    /// Pins.
    pub refcount: u16,
    /// Whether EL2 maps it.
    pub mapped: bool,
}

/// A page for a VM that maps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct GuestView {
    /// The VM.
    pub handle: Handle,
    /// Where.
    pub gfn: Gfn,
    /// The descriptor: of the page, or of the block that it is in.
    pub pte: Pte,
    /// Its level.
    pub level: S2Level,
}

impl GuestView {
    /// State of the page for the VM.
    pub fn state(&self) -> PageState {
        self.pte.state()
    }
}

/// A page for everybody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageView {
    /// For the host.
    pub host: HostView,
    /// For the hypervisor.
    pub hyp: HypView,
    /// For the VMs that map it, by handle and address.
    pub guests: Vec<GuestView>,
}

/// All that there is, at a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ownership {
    /// Pages that are, or were, not simply the host's, and those that a VM maps.
    pub pages: BTreeMap<Pfn, PageView>,
    /// Where pages were taken by force.
    pub poisoned: BTreeSet<(Handle, Gfn)>,
}

impl Pkvm {
    /// The VM with this handle.
    ///
    /// # Panics
    /// If somebody holds the table of VMs.
    pub fn vm(&self, handle: Handle) -> Option<Arc<HypVm>> {
        self.vms.peek(|vms| vms.vm(handle))
    }

    /// All VMs, by handle.
    ///
    /// # Panics
    /// If somebody holds the table of VMs.
    pub fn vms(&self) -> Vec<Arc<HypVm>> {
        self.vms.peek(|vms| vms.vms().cloned().collect())
    }

    /// The descriptor that a walk of a VM's stage 2 ends with; `None` beyond its addresses.
    pub fn guest_pte(&self, vm: &HypVm, gfn: Gfn) -> Option<(Pte, S2Level)> {
        vm.root.leaf(&self.phys, Pfn(gfn.0)).ok().map(|(slot, pte)| (pte, slot.level))
    }

    /// The same for the host.
    pub fn host_pte(&self, pfn: Pfn) -> Option<(Pte, S2Level)> {
        self.host_root.leaf(&self.phys, pfn).ok().map(|(slot, pte)| (pte, slot.level))
    }

    /// What processors remember: by processor, VMID and page.
    pub fn tlb_entries(&self) -> BTreeMap<(CpuId, Vmid, Pfn), TlbEntry> {
        self.tlbs.all()
    }

    /// Pages that were lost with VMs that ended too early, and where they were.
    pub fn lost_pages(&self) -> BTreeMap<Pfn, (Handle, Gfn)> {
        self.ghost.lock().lost.clone()
    }

    /// Every valid leaf of every VM, page by page.
    pub(super) fn guest_leaves(&self) -> BTreeMap<Pfn, Vec<GuestView>> {
        self.leaves_of(self.vms().iter())
    }

    /// Where a VM maps a frame, whatever its state.
    pub(super) fn first_leaf(&self, vms: &VmTable, pfn: Pfn) -> Option<(Handle, Gfn)> {
        let leaves = self.leaves_of(vms.vms());
        leaves.get(&pfn)?.first().map(|view| (view.handle, view.gfn))
    }

    fn leaves_of<'a>(&self, vms: impl Iterator<Item = &'a Arc<HypVm>>) -> BTreeMap<Pfn, Vec<GuestView>> {
        let mut leaves: BTreeMap<Pfn, Vec<GuestView>> = BTreeMap::new();
        for vm in vms {
            vm.root.for_each(&self.phys, |slot, pte| {
                for i in (0..slot.level.pages()).take_while(|_| pte.is_leaf(slot.level)) {
                    let gfn = Gfn(slot.first.0 + i);
                    let view = GuestView { handle: vm.handle(), gfn, pte, level: slot.level };
                    leaves.entry(pte.pfn() + i).or_default().push(view);
                }
            });
        }
        leaves.values_mut().for_each(|views| views.sort());
        leaves
    }

    fn page_with(&self, pfn: Pfn, guests: Vec<GuestView>) -> PageView {
        let host = self.host.peek(|host| host.page(pfn));
        let (hyp, mapped) = self.hyp.peek(|hyp| (hyp.page(pfn), hyp.mapped.contains(&pfn)));
        let pte = self.host_pte(pfn).map_or(Pte::NONE, |(pte, _)| pte);
        PageView {
            host: HostView { state: host.state, share_guest_count: host.share_guest_count, pte },
            hyp: HypView { state: hyp.state, refcount: hyp.refcount, mapped },
            guests,
        }
    }

    /// A page for everybody, while nobody is in the middle of a transition.
    ///
    /// # Panics
    /// If somebody is.
    pub fn page(&self, pfn: Pfn) -> PageView {
        self.page_with(pfn, self.guest_leaves().remove(&pfn).unwrap_or_default())
    }

    /// The same as [`Pkvm::ownership`], or `None` while somebody holds one of the locks of the host, the hypervisor and the table of VMs.
    pub fn try_ownership(&self) -> Option<Ownership> {
        self.vms.try_peek(|_| ())?;
        self.host.try_peek(|_| ())?;
        self.hyp.try_peek(|_| ())?;
        Some(self.ownership())
    }

    /// Everything, while nobody is in the middle of a transition.
    ///
    /// # Panics
    /// If somebody is.
    pub fn ownership(&self) -> Ownership {
        let mut guests = self.guest_leaves();
        let mut pfns: BTreeSet<Pfn> = guests.keys().copied().collect();
        self.host.peek(|host| pfns.extend(host.pages.keys()));
        self.hyp.peek(|hyp| pfns.extend(hyp.pages.keys()));
        let view = |pfn| (pfn, self.page_with(pfn, guests.remove(&pfn).unwrap_or_default()));
        let pages = pfns.into_iter().map(view).collect();
        let mut poisoned = BTreeSet::new();
        for vm in self.vms() {
            vm.root.for_each(&self.phys, |slot, pte| {
                if pte.state() == PageState::Poison {
                    poisoned.insert((vm.handle(), Gfn(slot.first.0)));
                }
            });
        }
        Ownership { pages, poisoned }
    }
}
