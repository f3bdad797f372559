//! One RMP entry: its fields, the 16 bytes of Zen 3 and Zen 4, what RMPREAD writes, and what RMPUPDATE reads.

use super::types::{Asid, RmpSize, Vmpl, VmplPerms};
use sim_mmu::Gpa;

/// Bits of the low quadword.
pub(super) const ASSIGNED: u64 = 1 << 0;
pub(super) const PAGE_SIZE_2M: u64 = 1 << 1;
pub(super) const IMMUTABLE: u64 = 1 << 2;
const SUBPAGE_COUNT_SHIFT: u32 = 3;
const SUBPAGE_COUNT_MASK: u64 = 0x1ff;
/// GPA 50:12 lies where it is.
const GPA_MASK: u64 = ((1 << 51) - 1) & !0xfff;
const ASID_SHIFT: u32 = 51;
const ASID_MASK: u64 = 0x3ff;
const VMSA: u64 = 1 << 61;
const VALIDATED: u64 = 1 << 62;

/// The fields of an entry. The default is a hypervisor's page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RmpEntry {
    /// Owned by a guest (`asid` is not 0) or by the firmware (`asid` is 0).
    pub assigned: bool,
    /// Size of the page; 2 MiB only in a head.
    pub page_size: RmpSize,
    /// Instructions and guest accesses are refused.
    pub immutable: bool,
    /// The only address at which the owner may use the page: bits 50:12.
    pub gpa: Gpa,
    /// The owner, 10 bits.
    pub asid: Asid,
    /// The guest, or the firmware for it, has accepted the page.
    pub validated: bool,
    /// May be used as a VMSA by VMRUN; with `asid` 0, the page is a guest context.
    pub vmsa: bool,
    /// Per VMPL.
    pub perms: [VmplPerms; Vmpl::COUNT],
}

impl RmpEntry {
    /// A hypervisor's page.
    pub const HYPERVISOR: RmpEntry = RmpEntry {
        assigned: false,
        page_size: RmpSize::Size4K,
        immutable: false,
        gpa: Gpa(0),
        asid: Asid::HOST,
        validated: false,
        vmsa: false,
        perms: [VmplPerms::empty(); Vmpl::COUNT],
    };

    /// A page of the firmware: also what the pages of the RMP itself are.
    pub const FIRMWARE: RmpEntry = RmpEntry { assigned: true, immutable: true, ..RmpEntry::HYPERVISOR };

    /// The 16 bytes as two little-endian quadwords, with the count of other assigned entries that a head carries.
    ///
    /// ```
    /// use sim_coco::snp::RmpEntry;
    /// let (entry, count) = RmpEntry::from_raw([0x8000_0000_0000_07fd, 0]);
    /// assert_eq!((entry, count), (RmpEntry::FIRMWARE, 0xff));
    /// ```
    pub fn to_raw(&self, subpage_count: u16) -> [u64; 2] {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        let low = flag(self.assigned, ASSIGNED)
            | flag(self.page_size == RmpSize::Size2M, PAGE_SIZE_2M)
            | flag(self.immutable, IMMUTABLE)
            | ((u64::from(subpage_count) & SUBPAGE_COUNT_MASK) << SUBPAGE_COUNT_SHIFT)
            | (self.gpa.0 & GPA_MASK)
            | ((u64::from(self.asid.0) & ASID_MASK) << ASID_SHIFT)
            | flag(self.vmsa, VMSA)
            | flag(self.validated, VALIDATED);
        [low, self.perms_word()]
    }

    /// The fields of the 16 bytes, and the count. Bit 63 of the low quadword is opaque and not kept.
    pub fn from_raw([low, high]: [u64; 2]) -> (RmpEntry, u16) {
        let perms = high.to_le_bytes();
        let entry = RmpEntry {
            assigned: low & ASSIGNED != 0,
            page_size: if low & PAGE_SIZE_2M != 0 { RmpSize::Size2M } else { RmpSize::Size4K },
            immutable: low & IMMUTABLE != 0,
            gpa: Gpa(low & GPA_MASK),
            asid: Asid((low >> ASID_SHIFT & ASID_MASK) as u16),
            validated: low & VALIDATED != 0,
            vmsa: low & VMSA != 0,
            perms: std::array::from_fn(|vmpl| VmplPerms::from_bits_truncate(perms[vmpl])),
        };
        (entry, (low >> SUBPAGE_COUNT_SHIFT & SUBPAGE_COUNT_MASK) as u16)
    }

    fn perms_word(&self) -> u64 {
        self.perms.iter().rev().fold(0, |word, perms| word << 8 | u64::from(perms.bits()))
    }

    /// Whether the owner, the address and the size are the same: then RMPUPDATE keeps what the guest decided.
    pub(super) fn is_same_page(&self, other: &RmpEntry) -> bool {
        self.assigned
            && other.assigned
            && self.asid == other.asid
            && self.gpa == other.gpa
            && self.page_size == other.page_size
    }
}

/// The structure in memory that RMPUPDATE reads, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RmpUpdate {
    /// Guest physical address; bits 50:12 are used.
    pub gpa: Gpa,
    /// Whether the page is to be owned by somebody else than the hypervisor.
    pub assigned: bool,
    /// Size.
    pub page_size: RmpSize,
    /// Whether the page is to be closed to everybody but the firmware.
    pub immutable: bool,
    /// The owner.
    pub asid: Asid,
}

impl RmpUpdate {
    /// Takes a 4 KiB page back for the hypervisor.
    pub const HYPERVISOR: RmpUpdate =
        RmpUpdate { gpa: Gpa(0), assigned: false, page_size: RmpSize::Size4K, immutable: false, asid: Asid::HOST };

    /// Gives a 4 KiB page to the firmware.
    pub const FIRMWARE: RmpUpdate = RmpUpdate { assigned: true, immutable: true, ..RmpUpdate::HYPERVISOR };

    /// Gives a 4 KiB page to a guest.
    pub const fn guest(asid: Asid, gpa: Gpa) -> RmpUpdate {
        RmpUpdate { gpa, assigned: true, asid, ..RmpUpdate::HYPERVISOR }
    }

    /// The same for a page of another size.
    #[must_use]
    pub const fn sized(self, page_size: RmpSize) -> RmpUpdate {
        RmpUpdate { page_size, ..self }
    }

    /// The same, immutable: a page that the firmware is to launch, or to move away.
    #[must_use]
    pub const fn immutable(self) -> RmpUpdate {
        RmpUpdate { immutable: true, ..self }
    }

    /// The structure's bytes: `gpa`, `assigned`, `pagesize`, `immutable`, one reserved, `asid`.
    pub fn from_bytes(bytes: [u8; 16]) -> RmpUpdate {
        let [gpa @ .., b8, b9, b10, _, a0, a1, a2, a3] = bytes;
        let asid = u32::from_le_bytes([a0, a1, a2, a3]);
        RmpUpdate {
            gpa: Gpa(u64::from_le_bytes(gpa)),
            assigned: b8 & 1 != 0,
            page_size: if b9 & 1 != 0 { RmpSize::Size2M } else { RmpSize::Size4K },
            immutable: b10 & 1 != 0,
            // No machine has so many that the rest matters: what does not fit is refused as too large.
            asid: Asid(u16::try_from(asid).unwrap_or(u16::MAX)),
        }
    }
}

/// What RMPREAD writes, 16 bytes. It shows no validation, no permissions and no VMSA flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RmpReadout {
    /// Guest physical address.
    pub gpa: Gpa,
    /// Whether somebody else than the hypervisor owns the page.
    pub assigned: bool,
    /// Size, of this entry: a tail says 4 KiB.
    pub page_size: RmpSize,
    /// Whether the 2 MiB region around it is one page (`hpage_region_status`).
    pub hpage_region: bool,
    /// Whether the page is closed.
    pub immutable: bool,
    /// The owner.
    pub asid: Asid,
}

impl RmpReadout {
    /// The bytes as the instruction writes them.
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.gpa.0.to_le_bytes());
        bytes[8] = u8::from(self.assigned);
        bytes[9] = u8::from(self.page_size == RmpSize::Size2M) | u8::from(self.hpage_region) << 1;
        bytes[10] = u8::from(self.immutable);
        bytes[12..].copy_from_slice(&u32::from(self.asid.0).to_le_bytes());
        bytes
    }
}
