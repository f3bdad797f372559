//! The CPUID page: what a guest will believe of its processor, checked against what the platform has.

use super::super::memory::PageBytes;
use super::status::FwStatus;
use std::collections::BTreeMap;

/// What a platform offers of each CPUID function and index: EAX, EBX, ECX, EDX as masks. Functions that are not here are not checked.
pub type CpuidMasks = BTreeMap<(u32, u32), [u32; 4]>;

/// What the firmware of EPYC processors is known to refuse; VMMs leave these out of the page (QEMU's `sev_snp_mask_cpuid_features`):
/// TSC_DEADLINE; TSC_ADJUST, and of the controls of speculation those of function 7 (SPEC_CTRL, STIBP, FLUSH_L1D, ARCH_CAPABILITIES, CORE_CAPABILITIES,
/// SSBD); VIRT_SSBD.
pub fn epyc_cpuid_masks() -> CpuidMasks {
    const ALL: u32 = u32::MAX;
    BTreeMap::from([
        ((0x1, 0), [ALL, ALL, !(1 << 24), ALL]),
        ((0x7, 0), [ALL, !(1 << 1), ALL, !(0b11_1111 << 26)]),
        ((0x8000_0008, 0), [ALL, !(1 << 25), ALL, ALL]),
    ])
}

/// Most entries of a page.
pub const CPUID_ENTRIES_MAX: usize = 64;
/// Bytes in front of the entries.
const HEADER_BYTES: usize = 16;
/// Bytes of an entry.
const ENTRY_BYTES: usize = 48;

/// One function of a CPUID page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuidEntry {
    /// Function.
    pub eax_in: u32,
    /// Index.
    pub ecx_in: u32,
    /// XCR0 that the values are for.
    pub xcr0_in: u64,
    /// IA32_XSS that the values are for.
    pub xss_in: u64,
    /// EAX, EBX, ECX, EDX.
    pub out: [u32; 4],
}

impl CpuidEntry {
    fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..4].copy_from_slice(&self.eax_in.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.ecx_in.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.xcr0_in.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.xss_in.to_le_bytes());
        for (i, value) in self.out.iter().enumerate() {
            bytes[24 + i * 4..28 + i * 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

/// The page as the firmware reads it.
#[derive(Clone, Copy, Debug)]
pub struct CpuidPage;

impl CpuidPage {
    /// A page with these functions.
    ///
    /// # Panics
    /// With more than [`CPUID_ENTRIES_MAX`].
    pub fn build(entries: &[CpuidEntry]) -> Box<PageBytes> {
        assert!(entries.len() <= CPUID_ENTRIES_MAX, "{} CPUID functions", entries.len());
        let mut page: Box<PageBytes> = Box::new([0; 4096]);
        page[..4].copy_from_slice(&(entries.len() as u32).to_le_bytes());
        for (i, entry) in entries.iter().enumerate() {
            page[HEADER_BYTES + i * ENTRY_BYTES..][..ENTRY_BYTES].copy_from_slice(&entry.to_bytes());
        }
        page
    }

    /// The page as the platform accepts it: the same, or with the bits cleared that the platform does not have.
    ///
    /// The firmware's real policy differs by field; the model has one mask for each value.
    ///
    /// # Errors
    /// `InvalidParam` if the page says that it has more functions than fit.
    pub fn check(page: &PageBytes, platform: &CpuidMasks) -> Result<Box<PageBytes>, FwStatus> {
        let word = |at: usize| u32::from_le_bytes(*page[at..].first_chunk().expect("within the page"));
        let count = word(0) as usize;
        if count > CPUID_ENTRIES_MAX {
            return Err(FwStatus::InvalidParam);
        }
        let mut accepted = Box::new(*page);
        for entry in (0..count).map(|i| HEADER_BYTES + i * ENTRY_BYTES) {
            let Some(mask) = platform.get(&(word(entry), word(entry + 4))) else { continue };
            for (i, mask) in mask.iter().enumerate() {
                let at = entry + 24 + i * 4;
                accepted[at..at + 4].copy_from_slice(&(word(at) & mask).to_le_bytes());
            }
        }
        Ok(accepted)
    }
}
