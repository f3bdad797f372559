//! Rules of the machine that can be switched off: the checks that stop an attack, and the places where the hardware and the firmware
//! decide a race (`R..` of the specification).
//!
//! They are looked up once, when the machine is made ([`Snp::new`](super::Snp::new)): whoever wants a machine without a rule says so with
//! [`Cx::set_mutants`](sim_kernel::Cx::set_mutants) before. Real hardware has all of them, except where an erratum says otherwise.

use sim_kernel::{Cx, Mutant, MutantSet};

/// The host may write pages that it does not own.
pub const HV_OWNED: Mutant = Mutant::new(320, "SNP-HV-OWNED");
/// The host's tables may be in pages that it does not own.
pub const HV_OWNED_WALK: Mutant = Mutant::new(400, "SNP-HV-OWNED-WALK");
/// A guest without SNP may write, and have its tables in, pages that the hypervisor does not own.
pub const HV_OWNED_GUEST: Mutant = Mutant::new(401, "SNP-HV-OWNED-GUEST");
/// Private accesses go without a key.
pub const PLAIN: Mutant = Mutant::new(404, "SNP-PLAIN");
/// An SNP guest may write such pages without its key.
pub const HV_OWNED_SHARED: Mutant = Mutant::new(402, "SNP-HV-OWNED-SHARED");
/// A device may.
pub const HV_OWNED_DMA: Mutant = Mutant::new(403, "SNP-HV-OWNED-DMA");
/// A guest may use pages of another.
pub const OWNER: Mutant = Mutant::new(321, "SNP-OWNER");
/// A guest may use a page at any address.
pub const REVMAP: Mutant = Mutant::new(322, "SNP-REVMAP");
/// A guest may use a page that is closed.
pub const MUTABLE: Mutant = Mutant::new(323, "SNP-MUTABLE");
/// Nested leaf and RMP page may differ in size.
pub const SIZE: Mutant = Mutant::new(324, "SNP-SIZE");
/// A guest may use a page that it has not accepted.
pub const VALID: Mutant = Mutant::new(325, "SNP-VALID");
/// A level may do what it has no permission for.
pub const VMPL: Mutant = Mutant::new(326, "SNP-VMPL");
/// A page that changes hands stays accepted.
pub const KEEPS_VALIDATED: Mutant = Mutant::new(327, "SNP-KEEPS-VALIDATED");
/// PVALIDATE does not say that there was nothing to do.
pub const NO_CF: Mutant = Mutant::new(328, "SNP-NO-CF");
/// RMPUPDATE of 2 MiB leaves the tails alone.
pub const NO_TAILS: Mutant = Mutant::new(329, "SNP-NO-TAILS");
/// RMPUPDATE does not look whether another processor is at work in the region.
pub const R06: Mutant = Mutant::new(330, "SNP-R06");
/// RMPUPDATE takes a page that a vCPU runs with.
pub const R08: Mutant = Mutant::new(331, "SNP-R08");
/// RMPADJUST changes the VMSA of a vCPU that runs.
pub const R10: Mutant = Mutant::new(332, "SNP-R10");
/// ACTIVATE takes an ASID that was not flushed.
pub const R14: Mutant = Mutant::new(333, "SNP-R14");
/// RMPUPDATE takes pages that are immutable.
pub const R18: Mutant = Mutant::new(334, "SNP-R18");
/// RMPUPDATE and PSMASH leave cached translations.
pub const R23: Mutant = Mutant::new(335, "SNP-R23");
/// DF_FLUSH does not ask for WBINVD.
pub const R25: Mutant = Mutant::new(336, "SNP-R25");

/// All of them.
pub const ALL: [Mutant; 22] = [
    PLAIN,
    HV_OWNED,
    HV_OWNED_WALK,
    HV_OWNED_GUEST,
    HV_OWNED_SHARED,
    HV_OWNED_DMA,
    OWNER,
    REVMAP,
    MUTABLE,
    SIZE,
    VALID,
    VMPL,
    KEEPS_VALIDATED,
    NO_CF,
    NO_TAILS,
    R06,
    R08,
    R10,
    R14,
    R18,
    R23,
    R25,
];

/// Those that are on in this simulation.
pub(super) fn chosen(cx: &Cx<'_>) -> MutantSet {
    ALL.into_iter().filter(|mutant| cx.has_mutant(*mutant)).collect()
}
