//! What a machine with TDX is made of, and the points on which modules and processors differ.

use super::td::SEPT_ROOT;
use super::types::Hkid;
use sim_kernel::Pfn;
use std::ops::Range;

/// A range of memory that TDs may get (`tdmr_info`): 1 GiB aligned and sized.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tdmr {
    /// The frames.
    pub frames: Range<Pfn>,
    /// Of these, what is never assigned: holes, and the metadata itself.
    pub reserved: Vec<Range<Pfn>>,
}

impl Tdmr {
    /// The first so many frames of the host, in blocks of 1 GiB of which the rest is reserved.
    pub fn below(frames: u64) -> Tdmr {
        let end = frames.next_multiple_of(1 << 18);
        let hole = Pfn(frames)..Pfn(end);
        Tdmr { frames: Pfn(0)..Pfn(end), reserved: if frames == end { Vec::new() } else { vec![hole] } }
    }
}

/// The machine and the module.
#[derive(Clone, Debug)]
pub struct TdxConfig {
    /// Memory that TDs may get.
    pub tdmrs: Vec<Tdmr>,
    /// Sockets: each has keys and caches of its own.
    pub packages: u32,
    /// Processors of a socket, numbered one socket after the other.
    pub lps_per_package: u32,
    /// First bit of a physical address that belongs to the KeyID.
    pub keyid_shift: u32,
    /// Private KeyIDs. The first is the global one.
    pub hkids: Range<u16>,
    /// Another task may run between the moment when a leaf has its locks and the moment when it changes something: then locks conflict.
    pub contention: bool,
    /// TDCALLs in a row that find a lock that the host wants, until the host is told: what stands here for HP_LOCK_TIMEOUT, because nothing reads a clock.
    pub hp_lock_timeout: u32,
    /// Pages of TDCS that a TD needs, and that it may have.
    pub tdcs_pages: (u32, u32),
    /// Pages of TDVPS beside TDVPR.
    pub tdvps_tdcx: u32,
    /// The lock of a Secure EPT knows the host's priority, and ACCEPT's last store keeps that of its entry (module 2.0; 1.5.01 does neither). Guests take
    /// the lock of no tree, so that what can be seen of it is the entry's.
    pub tree_host_priority: bool,
    /// Metadata of 4 KiB pages exists only where the host gave pages for it (PHYMEM.PAMT.ADD; module 2.0).
    pub dynamic_pamt: bool,
    /// Sapphire and Emerald Rapids: a partial write of the host to a private line poisons it.
    pub partial_write_erratum: bool,
    /// Caches are not coherent between KeyIDs: what was written stays in a cache until it is written back or evicted.
    pub caches: bool,
    /// Secure EPT of five levels is possible.
    pub five_levels: bool,
    /// TD attributes that may be set.
    pub attributes: u64,
    /// XFAM bits that may be set.
    pub xfam: u64,
}

impl TdxConfig {
    /// One socket of 64 processors, a module 1.5.01 and a processor without errata.
    pub fn new(tdmr: Tdmr) -> TdxConfig {
        TdxConfig {
            tdmrs: vec![tdmr],
            packages: 1,
            lps_per_package: 64,
            keyid_shift: 46,
            hkids: 32..64,
            contention: true,
            hp_lock_timeout: 1000,
            tdcs_pages: (6, 9),
            tdvps_tdcx: 5,
            tree_host_priority: false,
            dynamic_pamt: false,
            partial_write_erratum: false,
            caches: false,
            five_levels: true,
            attributes: 0x8000_0000_f000_0001,
            xfam: 0x6_02e7,
        }
    }

    /// Whether there can be such a machine.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// ```
    /// use sim_coco::tdx::{Tdmr, TdxConfig};
    /// let config = TdxConfig::new(Tdmr::below(256));
    /// assert_eq!(config.check(), Ok(()));
    /// assert!(TdxConfig { packages: 0, ..config }.check().is_err());
    /// ```
    pub fn check(&self) -> Result<(), &'static str> {
        let is_aligned = |pfn: Pfn| super::pamt::is_block_aligned(pfn);
        let mut tdmrs: Vec<_> = self.tdmrs.iter().map(|tdmr| tdmr.frames.clone()).collect();
        tdmrs.sort_by_key(|frames| frames.start);
        let rules = [
            (tdmrs.iter().all(|frames| frames.start < frames.end), "a TDMR has memory"),
            (tdmrs.iter().all(|frames| is_aligned(frames.start) && is_aligned(frames.end)), "TDMRs are of whole GiB"),
            (tdmrs.windows(2).all(|two| two[0].end <= two[1].start), "TDMRs do not overlap"),
            ((1..=64).contains(&self.packages), "there are 1 to 64 packages"),
            ((1..=1 << 16).contains(&self.lps_per_package), "a package has 1 to 65536 processors"),
            ((32..=51).contains(&self.keyid_shift), "KeyIDs begin at bit 32 to 51 of an address"),
            (self.hkids.start > 0, "KeyID 0 is the host's"),
            (self.hkids.len() > 1, "there is a global KeyID and one for TDs"),
            (
                u64::from(self.hkids.end) <= 1 << 64_u32.saturating_sub(self.keyid_shift).min(63),
                "KeyIDs fit into an operand",
            ),
            (self.tdcs_pages.0 as usize > SEPT_ROOT, "TDCS has a page for the root of the Secure EPT"),
            (self.tdcs_pages.0 <= self.tdcs_pages.1, "TDCS needs no more pages than it may have"),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(rule))
    }

    /// The KeyID of PAMT and TDRs.
    pub const fn global_hkid(&self) -> Hkid {
        Hkid(self.hkids.start)
    }

    /// Whether a KeyID is private.
    pub fn is_private(&self, hkid: Hkid) -> bool {
        self.hkids.contains(&hkid.0)
    }
}
