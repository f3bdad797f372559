//! Addresses and page numbers of the host as types of their own.
//!
//! No raw `u64` crosses a function boundary: a host virtual address ([`Hva`]), a host frame number ([`Pfn`]) and a page
//! offset in a file ([`Pgoff`]) cannot be mistaken for each other. Pages are 4 KiB.

use std::fmt;

/// log2 of the base page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a base page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Bytes in a huge page that one page-middle-directory entry maps (2 MiB).
pub const PMD_SIZE: u64 = 1 << 21;
/// Base pages in a 2 MiB huge page.
pub const PAGES_PER_PMD: u64 = 512;
/// Bytes that one page-upper-directory entry covers (1 GiB).
pub const PUD_SIZE: u64 = 1 << 30;
/// First byte that no user mapping can contain (`TASK_SIZE_MAX` with 4-level paging).
pub const TASK_SIZE: u64 = (1 << 47) - PAGE_SIZE;
/// Below this address, mappings are placed, from the top downwards (`mm->mmap_base`). Above it lie the stack and the gap that randomisation
/// leaves, up to a terabyte; here it is half of that.
pub const MMAP_BASE: u64 = TASK_SIZE + PAGE_SIZE - (1 << 39);

/// Declares an address or index newtype over `u64`.
///
/// ```
/// sim_kernel::address_type! {
///     /// A bus address.
///     pub struct BusAddr;
/// }
/// assert_eq!(format!("{:?}", BusAddr(16)), "BusAddr(0x10)");
/// ```
#[macro_export]
macro_rules! address_type {
    ($(#[$meta:meta])* pub struct $name:ident;) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl ::std::ops::Add<u64> for $name {
            type Output = $name;
            #[inline]
            fn add(self, n: u64) -> $name {
                $name(self.0 + n)
            }
        }
        impl ::std::ops::Sub<$name> for $name {
            type Output = u64;
            #[inline]
            fn sub(self, other: $name) -> u64 {
                self.0 - other.0
            }
        }
    };
}

address_type! {
    /// Host virtual address, in bytes, in some process's address space.
    pub struct Hva;
}

address_type! {
    /// Host page frame number: host physical address / 4096.
    pub struct Pfn;
}

address_type! {
    /// Page index within a file (`pgoff_t`).
    pub struct Pgoff;
}

impl Hva {
    /// The address rounded down to its page.
    #[inline]
    pub const fn page_base(self) -> Hva {
        Hva(self.0 & !(PAGE_SIZE - 1))
    }

    /// The page number of the address.
    #[inline]
    pub const fn page(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }

    /// The address rounded down to its 2 MiB block.
    #[inline]
    pub const fn pmd_base(self) -> Hva {
        Hva(self.0 & !(PMD_SIZE - 1))
    }

    /// Whether the address is a multiple of the page size.
    #[inline]
    pub const fn is_page_aligned(self) -> bool {
        self.0 & (PAGE_SIZE - 1) == 0
    }
}

/// A half-open range of host virtual addresses, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HvaRange {
    /// First byte.
    pub start: Hva,
    /// First byte after the range.
    pub end: Hva,
}

impl HvaRange {
    /// The range `start..end`; empty if `end <= start`.
    #[inline]
    pub const fn new(start: Hva, end: Hva) -> HvaRange {
        HvaRange { start, end }
    }

    /// Bytes in the range.
    #[inline]
    pub const fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether the range contains no byte.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.end.0 <= self.start.0
    }

    /// Whether the two ranges share a byte.
    #[inline]
    pub const fn intersects(&self, other: &HvaRange) -> bool {
        self.start.0 < other.end.0 && other.start.0 < self.end.0
    }

    /// The bytes that both ranges contain.
    #[inline]
    pub fn clip(&self, other: &HvaRange) -> HvaRange {
        HvaRange::new(self.start.max(other.start), self.end.min(other.end))
    }
}

impl fmt::Debug for HvaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end.0)
    }
}
