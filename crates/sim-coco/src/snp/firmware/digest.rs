//! The launch digest: a chain of SHA-384 over what was put into a guest's memory, in order.

use super::super::config::PermsOrder;
use super::super::types::VmplPerms;
use sha2::{Digest, Sha384};
use sim_mmu::Gpa;
use std::fmt;

/// Bytes of PAGE_INFO.
const PAGE_INFO_BYTES: usize = 0x70;

/// What a page is for, as LAUNCH_UPDATE numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageType {
    /// Measured contents.
    Normal = 1,
    /// Measured register state of a virtual processor.
    Vmsa = 2,
    /// Zeros.
    Zero = 3,
    /// Contents that are not measured.
    Unmeasured = 4,
    /// The firmware's secrets for the guest.
    Secrets = 5,
    /// CPUID values that the firmware has checked.
    Cpuid = 6,
}

impl PageType {
    /// The type with this number.
    pub const fn from_number(number: u8) -> Option<PageType> {
        match number {
            1 => Some(PageType::Normal),
            2 => Some(PageType::Vmsa),
            3 => Some(PageType::Zero),
            4 => Some(PageType::Unmeasured),
            5 => Some(PageType::Secrets),
            6 => Some(PageType::Cpuid),
            _ => None,
        }
    }

    /// Whether the contents are a part of the digest.
    pub const fn is_measured(self) -> bool {
        matches!(self, PageType::Normal | PageType::Vmsa)
    }
}

/// 48 bytes of SHA-384: of the launch so far, or of contents.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LaunchDigest(pub [u8; 48]);

impl LaunchDigest {
    /// Before the first page; and the contents of pages that are not measured.
    pub const ZERO: LaunchDigest = LaunchDigest([0; 48]);

    /// The digest after one more page of 4 KiB.
    ///
    /// ```
    /// use sim_coco::snp::firmware::{LaunchDigest, PageInfo, PageType};
    /// use sim_mmu::Gpa;
    /// let zero = LaunchDigest::ZERO.extend(&PageInfo::new(PageType::Zero, Gpa(0)));
    /// assert!(format!("{zero}").starts_with("70c0ecaab9608f14"));
    /// ```
    #[must_use]
    pub fn extend(&self, info: &PageInfo) -> LaunchDigest {
        LaunchDigest(Sha384::digest(info.to_bytes(self)).into())
    }
}

impl fmt::Display for LaunchDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LaunchDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaunchDigest({self})")
    }
}

/// What one page adds to the digest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageInfo {
    /// Digest of the page, or [`LaunchDigest::ZERO`] if it is not measured.
    pub contents: LaunchDigest,
    /// What it is for.
    pub page_type: PageType,
    /// Part of an initial migration image.
    pub imi_page: bool,
    /// Permissions of VMPL 1 to 3.
    pub perms: [VmplPerms; 3],
    /// How they are written down.
    pub perms_order: PermsOrder,
    /// Where it is in the guest.
    pub gpa: Gpa,
}

impl PageInfo {
    /// A page that is not measured and gives no permissions.
    pub const fn new(page_type: PageType, gpa: Gpa) -> PageInfo {
        PageInfo {
            contents: LaunchDigest::ZERO,
            page_type,
            imi_page: false,
            perms: [VmplPerms::empty(); 3],
            perms_order: PermsOrder::Ascending,
            gpa,
        }
    }

    /// The same with contents, if its type has them measured.
    #[must_use]
    pub fn with_contents(self, page: &[u8]) -> PageInfo {
        let contents = if self.page_type.is_measured() { contents_digest(page) } else { LaunchDigest::ZERO };
        PageInfo { contents, ..self }
    }

    /// The structure that is hashed.
    pub fn to_bytes(&self, current: &LaunchDigest) -> [u8; PAGE_INFO_BYTES] {
        let mut bytes = [0; PAGE_INFO_BYTES];
        bytes[..0x30].copy_from_slice(&current.0);
        bytes[0x30..0x60].copy_from_slice(&self.contents.0);
        bytes[0x60..0x62].copy_from_slice(&(PAGE_INFO_BYTES as u16).to_le_bytes());
        bytes[0x62] = self.page_type as u8;
        bytes[0x63] = u8::from(self.imi_page);
        let [vmpl1, vmpl2, vmpl3] = self.perms.map(|perms| perms.bits());
        bytes[0x64..0x68].copy_from_slice(&match self.perms_order {
            PermsOrder::Ascending => [0, vmpl1, vmpl2, vmpl3],
            PermsOrder::Descending => [vmpl3, vmpl2, vmpl1, 0],
        });
        bytes[0x68..].copy_from_slice(&self.gpa.0.to_le_bytes());
        bytes
    }
}

/// SHA-384 of a page.
pub fn contents_digest(page: &[u8]) -> LaunchDigest {
    LaunchDigest(Sha384::digest(page).into())
}
