//! SNP_INIT_EX, SNP_SHUTDOWN_EX, SNP_PLATFORM_STATUS, SNP_PAGE_SET_STATE: the platform as a whole.

use super::super::entry::RmpEntry;
use super::super::machine::Snp;
use super::super::memory::KeyPath;
use super::super::state::PageState;
use super::super::types::Spa;
use super::NamedPage;
use super::asid::AsidUse;
use super::status::{Command, FwStatus, PspFail};
use sim_kernel::{Cx, PAGES_PER_PMD, Pfn};
use std::ops::Range;

/// Options of SNP_SHUTDOWN_EX.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shutdown {
    /// `x86_snp_shutdown`: SYSCFG.SNP_EN is cleared on all processors.
    pub x86_snp_shutdown: bool,
}

/// A page of the host's for ever.
const HV_FIXED: RmpEntry = RmpEntry { immutable: true, ..RmpEntry::HYPERVISOR };

impl Snp {
    /// SNP_INIT_EX: the RMP's own pages become the firmware's, the listed frames the host's for ever, all others are the host's.
    ///
    /// # Errors
    /// `InvalidPlatformState` if it is initialised; `InvalidConfig` without SNP_EN or with a host save area; `WbinvdRequired`;
    /// `RmpInitRequired` if the RMP was not zeroed; `InvalidAddress` for frames without an entry.
    #[track_caller]
    pub fn snp_init(&self, cx: &Cx<'_>, hv_fixed: &[Range<Pfn>]) -> Result<(), PspFail> {
        self.command(cx, Command::Init, &[], |psp| {
            let cpus = self.cpus.lock();
            if !self.is_enabled() || cpus.hsave_pa.values().any(|page| *page != Spa(0)) {
                return Err(FwStatus::InvalidConfig);
            }
            if !cpus.wbinvd_owed.is_empty() {
                return Err(FwStatus::WbinvdRequired);
            }
            drop(cpus);
            if !self.rmp.is_own_protected() && !self.is_rmp_zero() {
                return Err(FwStatus::RmpInitRequired);
            }
            self.check_ranges(hv_fixed)?;
            for pfn in frames(hv_fixed) {
                self.rmp.store(pfn, &HV_FIXED);
            }
            self.rmp.protect_itself(true);
            psp.initialized = true;
            self.owe_wbinvd();
            Ok(())
        })
    }

    fn is_rmp_zero(&self) -> bool {
        let mut entries =
            self.rmp.written_regions().into_iter().flat_map(|head| (0..PAGES_PER_PMD).map(move |i| head + i));
        entries.all(|pfn| self.rmp.entry(pfn) == RmpEntry::HYPERVISOR)
    }

    fn check_ranges(&self, ranges: &[Range<Pfn>]) -> Result<(), FwStatus> {
        let is_valid = |range: &Range<Pfn>| {
            range.start < range.end && self.rmp.covers(range.start) && self.rmp.covers(Pfn(range.end.0 - 1))
        };
        if ranges.iter().all(is_valid) { Ok(()) } else { Err(FwStatus::InvalidAddress) }
    }

    /// SNP_PAGE_SET_STATE: ranges of the host's pages become its own for ever.
    ///
    /// # Errors
    /// `InvalidAddress`; `InvalidPageState` if any page is not the hypervisor's.
    #[track_caller]
    pub fn snp_page_set_state(&self, cx: &Cx<'_>, hv_fixed: &[Range<Pfn>]) -> Result<(), PspFail> {
        let mut pages: Vec<_> = hv_fixed
            .iter()
            .filter(|range| range.start < range.end)
            .flat_map(|range| [range.start, Pfn(range.end.0 - 1)])
            .map(|pfn| NamedPage::small(Spa::of(pfn)))
            .collect();
        pages.dedup();
        // Marked are the first and the last page; the announced range has all of them.
        self.command(cx, Command::PageSetState, &pages, |_| {
            self.check_ranges(hv_fixed)?;
            if frames(hv_fixed).any(|pfn| self.rmp.state(pfn) != Some(PageState::Hypervisor)) {
                return Err(FwStatus::InvalidPageState);
            }
            for pfn in frames(hv_fixed) {
                self.rmp.store(pfn, &HV_FIXED);
            }
            Ok(())
        })
    }

    /// SNP_PLATFORM_STATUS into this page, which is then in the Reclaim state; if the command fails, it stays the firmware's. Before the firmware
    /// is initialised any page will do.
    ///
    /// # Errors
    /// `InvalidAddress`, `InvalidPageSize`, `InvalidPageState`.
    #[track_caller]
    pub fn snp_platform_status(&self, cx: &Cx<'_>, status: Spa) -> Result<(), PspFail> {
        let page = NamedPage::small(status);
        self.command(cx, Command::PlatformStatus, &[page], |psp| {
            self.check_address(&page)?;
            if psp.initialized {
                self.check_firmware_page(&page)?;
            }
            let (major, minor) = self.config.abi_version;
            let mut bytes = [0; 32];
            bytes[..3].copy_from_slice(&[major, minor, u8::from(psp.initialized)]);
            bytes[8..12].copy_from_slice(&u32::from(psp.initialized).to_le_bytes());
            bytes[16..20].copy_from_slice(&(psp.guests.len() as u32).to_le_bytes());
            self.memory.write(KeyPath::Raw, status.pfn(), 0, &bytes);
            if psp.initialized {
                self.rmp.change_page(status.pfn(), |entry| entry.immutable = false);
            }
            Ok(())
        })
    }

    /// SNP_SHUTDOWN_EX: contexts are forgotten, and their pages the firmware's. Simplified: no pages of the IOMMU.
    ///
    /// # Errors
    /// `InvalidPlatformState` while a guest is active; `WbinvdRequired` or `DfflushRequired` while an ASID may still have lines in caches.
    #[track_caller]
    pub fn snp_shutdown(&self, cx: &Cx<'_>, options: Shutdown) -> Result<(), PspFail> {
        self.command(cx, Command::Shutdown, &[], |psp| {
            if psp.asids.values().any(|usage| matches!(usage, AsidUse::Bound { .. })) {
                return Err(FwStatus::InvalidPlatformState);
            }
            if !psp.asids.is_empty() {
                let owed = !self.cpus.lock().wbinvd_owed.is_empty();
                return Err(if owed { FwStatus::WbinvdRequired } else { FwStatus::DfflushRequired });
            }
            for gctx in std::mem::take(&mut psp.guests).into_keys() {
                self.rmp.store(gctx, &RmpEntry::FIRMWARE);
            }
            psp.initialized = false;
            if options.x86_snp_shutdown {
                self.clear_snp_en();
                self.rmp.protect_itself(false);
            }
            Ok(())
        })
    }
}

fn frames(ranges: &[Range<Pfn>]) -> impl Iterator<Item = Pfn> {
    ranges.iter().flat_map(|range| (range.start.0..range.end.0).map(Pfn))
}
