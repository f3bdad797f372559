//! Conversions by an SNP guest, with the RMP on (P14): the guest rescinds, asks by its GHCB, the VMM changes attributes and punches, and back again: private, a page
//! from guest_memfd, RMPUPDATE, PVALIDATE.

use super::{Case, Meter, Size};
use crate::workload::Conversions;
use crate::{Machine, MachineConfig};
use sim_kernel::PAGES_PER_PMD;

/// P14: 2 MiB there and back, in a list of small entries or as one large one: over the pages of 4 KiB that guest_memfd has, where a large entry is validated in
/// small ones, and over one page of 2 MiB.
pub(super) fn p14(meter: &mut dyn Meter, _size: &Size) {
    let cases =
        [("4 KiB entries", false, false), ("2 MiB entries", true, false), ("2 MiB entries and pages", true, true)];
    for (name, large, gmem_2m_enabled) in cases {
        let config = MachineConfig { snp: true, memory: 1 << 30, gmem_2m_enabled, ..MachineConfig::default() };
        Machine::run_native(config, |cx, process| {
            let guest = Conversions::new(cx, process);
            let case = Case::new("P14", name, PAGES_PER_PMD, "page", 2 * PAGES_PER_PMD);
            meter.measure(case, &mut |timer| timer.time(|| guest.there_and_back(cx, large)));
        });
    }
}
