//! Conversions by a guest that is protected (P14). Of SNP: the guest rescinds, asks by its GHCB, the VMM changes attributes and punches, and back again: private, a page
//! from guest_memfd, RMPUPDATE, PVALIDATE. Of a TD: MapGPA, and for each page BLOCK, TRACK, a kick, REMOVE, WBINVD; back again MapGPA, a fault, AUG and ACCEPT.

use super::{Case, Meter, Size};
use crate::workload::{Conversions, Platform};
use crate::{Machine, MachineConfig};
use sim_kernel::PAGES_PER_PMD;

/// P14: 2 MiB there and back, in a list of small entries or as one large one. Either way guest_memfd has small pages, so a large entry is validated in small ones,
/// and a TD accepts small ones after the module has refused 2 MiB.
pub(super) fn p14(meter: &mut dyn Meter, _size: &Size) {
    let cases = [
        ("4 KiB entries", Platform::Snp, false),
        ("2 MiB entries", Platform::Snp, true),
        ("a TD, 4 KiB at a time", Platform::Tdx, false),
        ("a TD, 2 MiB at a time", Platform::Tdx, true),
    ];
    for (name, platform, large) in cases {
        let config = MachineConfig { memory: 1 << 30, ..platform.machine() };
        Machine::run_native(config, |cx, process| {
            let guest = Conversions::new(cx, process, platform);
            let case = Case::new("P14", name, PAGES_PER_PMD, "page", 2 * PAGES_PER_PMD);
            meter.measure(case, &mut |timer| timer.time(|| guest.there_and_back(cx, large)));
        });
    }
}
