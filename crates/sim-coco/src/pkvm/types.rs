//! Names of the hypervisor's world: processors, handles, VMIDs, physical addresses, permissions, page states and owners (`nvhe/memory.h`,
//! `nvhe/pkvm.h`, `kvm_pgtable.h`).

use sim_kernel::{Errno, PAGE_SHIFT, Pfn};
use std::ops::Range;

sim_kernel::address_type! {
    /// Physical address, in bytes. Under the host it is also the intermediate physical address, because its stage 2 is an identity.
    pub struct Pa;
}

impl Pa {
    /// The frame that contains the address.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }

    /// The first byte of a frame.
    #[inline]
    pub const fn of(pfn: Pfn) -> Pa {
        Pa(pfn.0 << PAGE_SHIFT)
    }

    /// Number of the 64-bit word that contains the address, within its page.
    #[inline]
    pub const fn word(self) -> usize {
        (self.0 >> 3) as usize & 511
    }
}

/// A physical processor, by number. EL2 has state for each: which vCPU is loaded, and a TLB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CpuId(pub u32);

/// Names a VM to the host (`pkvm_handle_t`): index in the table of VMs plus [`Handle::BASE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Handle(pub u16);

impl Handle {
    /// The first handle (`HANDLE_OFFSET`).
    pub const BASE: u16 = 0x1000;
    /// VMs that there can be at once (`KVM_MAX_PVMS`).
    pub const MAX_VMS: usize = 255;

    /// The handle of a place in the table.
    #[inline]
    pub(super) const fn of(index: usize) -> Handle {
        Handle(Handle::BASE + index as u16)
    }

    /// The place in the table, if the handle can name one.
    #[inline]
    pub(super) fn index(self) -> Option<usize> {
        let index = usize::from(self.0.checked_sub(Handle::BASE)?);
        (index < Handle::MAX_VMS).then_some(index)
    }
}

/// Tags translations in TLBs. The host has 0; a VM has its place in the table plus one, so that a VMID is used again together with its handle.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vmid(pub u16);

impl Vmid {
    /// The host.
    pub const HOST: Vmid = Vmid(0);
}

bitflags::bitflags! {
    /// Permissions of a stage-2 mapping (`enum kvm_pgtable_prot`). Operands of hypercalls may have other bits: those are kept, and refused.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct Prot: u64 {
        /// Execute.
        const X = 1 << 0;
        /// Write.
        const W = 1 << 1;
        /// Read.
        const R = 1 << 2;
        /// Unknown bits.
        const _ = !0;
    }
}

impl Prot {
    /// Everything.
    pub const RWX: Prot = Prot::R.union(Prot::W).union(Prot::X);
    /// What the host gets of devices.
    pub const RW: Prot = Prot::R.union(Prot::W);

    /// Whether there are no other bits than permissions.
    pub(super) const fn is_permission(self) -> bool {
        self.bits() & !Prot::RWX.bits() == 0
    }
}

/// What a page is for one component (`enum pkvm_page_state`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum PageState {
    /// Its own, and nobody else's.
    #[default]
    Owned = 0,
    /// Its own, and another component may access it.
    SharedOwned = 1,
    /// Another's that it may access.
    SharedBorrowed = 2,
    /// Neither.
    NoPage = 3,
    /// Of a guest only: it was taken away by force. Never in the bits of a state: the type of an invalid descriptor says so.
    Poison = 4,
}

impl PageState {
    /// The state with this number, as two software bits of a descriptor hold it.
    pub(super) const fn from_bits(bits: u64) -> PageState {
        match bits & 3 {
            0 => PageState::Owned,
            1 => PageState::SharedOwned,
            2 => PageState::SharedBorrowed,
            _ => PageState::NoPage,
        }
    }

    /// The name in the kernel, without its prefix.
    pub const fn name(self) -> &'static str {
        match self {
            PageState::Owned => "OWNED",
            PageState::SharedOwned => "SHARED_OWNED",
            PageState::SharedBorrowed => "SHARED_BORROWED",
            PageState::NoPage => "NOPAGE",
            PageState::Poison => "POISON",
        }
    }
}

/// Who keeps the host from a page: what an annotation in the host's stage 2 says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Owner {
    /// The hypervisor: memory of its own, VMs, vCPUs, tables.
    Hyp,
    /// A protected VM, and where the page is in it.
    Guest(Handle, sim_mmu::Gfn),
}

impl Owner {
    /// Number of the component (`PKVM_ID_...`); the host is 0.
    pub const fn id(self) -> u64 {
        match self {
            Owner::Hyp => 1,
            Owner::Guest(..) => 2,
        }
    }
}

/// The frames from `pfn` on, if there are so many numbers: the kernel's shift to an address cuts what is beyond 52 bits, here that is no page.
pub(super) fn frames(pfn: Pfn, pages: u64) -> Result<Range<Pfn>, Errno> {
    let end = pfn.0.checked_add(pages).filter(|end| *end <= 1 << 52 && pages > 0).ok_or(Errno::EINVAL)?;
    Ok(pfn..Pfn(end))
}

/// Frames of a range, one by one.
pub(super) fn each(range: Range<Pfn>) -> impl Iterator<Item = Pfn> {
    (range.start.0..range.end.0).map(Pfn)
}
