//! Addresses, owners and sizes as AMD's manuals name them.

use sim_kernel::{PAGE_SHIFT, PAGE_SIZE, PAGES_PER_PMD, Pfn};

sim_kernel::address_type! {
    /// System physical address, in bytes: what the instructions of the hypervisor and the commands of the firmware take.
    pub struct Spa;
}

sim_kernel::address_type! {
    /// Guest virtual address, in bytes: the operand of the guest's instructions, and what CR2 says of a fault.
    pub struct Gva;
}

impl Spa {
    /// The frame that contains the address.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }

    /// The first byte of a frame.
    #[inline]
    pub const fn of(pfn: Pfn) -> Spa {
        Spa(pfn.0 << PAGE_SHIFT)
    }

    /// Whether the address is a multiple of 4 KiB.
    #[inline]
    pub const fn is_page_aligned(self) -> bool {
        self.0 & (PAGE_SIZE - 1) == 0
    }
}

/// Address-space identifier: whose key and whose pages. 0 is the host; in an RMP entry it is the firmware's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Asid(pub u16);

impl Asid {
    /// The host, or in the RMP the firmware.
    pub const HOST: Asid = Asid(0);
}

/// Virtual machine privilege level, 0 (most) to 3.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vmpl(u8);

impl Vmpl {
    /// The most privileged level, and the only one that may validate pages.
    pub const ZERO: Vmpl = Vmpl(0);
    /// Levels that there are.
    pub const COUNT: usize = 4;

    /// The level with this number, if there is one.
    pub const fn new(number: u8) -> Option<Vmpl> {
        if (number as usize) < Vmpl::COUNT { Some(Vmpl(number)) } else { None }
    }

    /// The level's number as an index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

bitflags::bitflags! {
    /// What one VMPL may do with a page, as an RMP entry keeps it and RMPADJUST takes it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct VmplPerms: u8 {
        /// Read.
        const R = 1 << 0;
        /// Write; means nothing without `R`.
        const W = 1 << 1;
        /// Execute at CPL 3.
        const XU = 1 << 2;
        /// Execute at CPL 0 to 2.
        const XS = 1 << 3;
        /// Supervisor shadow stack.
        const SSS = 1 << 4;
    }
}

/// Size of the page that an RMP entry describes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum RmpSize {
    /// 4 KiB.
    #[default]
    Size4K,
    /// 2 MiB: the aligned entry, the *head*, speaks for all 512; the others are *tails*.
    Size2M,
}

impl RmpSize {
    /// 4 KiB pages in a page of this size.
    #[inline]
    pub const fn pages(self) -> u64 {
        match self {
            RmpSize::Size4K => 1,
            RmpSize::Size2M => PAGES_PER_PMD,
        }
    }

    /// Whether a page of this size can start at this frame.
    #[inline]
    pub const fn is_aligned(self, pfn: Pfn) -> bool {
        pfn.0 & (self.pages() - 1) == 0
    }
}

/// The frame at the head of the 2 MiB region that contains `pfn`.
#[inline]
pub(super) const fn head_of(pfn: Pfn) -> Pfn {
    Pfn(pfn.0 & !(PAGES_PER_PMD - 1))
}
