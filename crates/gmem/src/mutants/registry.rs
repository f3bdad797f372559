//! One row for each mutant: its constant, what it takes away, what catches it, and which scenario shows it.

use crate::explore::portfolio::Memory;
use crate::ops::suggest::did_you_mean;
use sim_kernel::Mutant;

/// What there is to say of a mutant.
#[derive(Clone, Copy, Debug)]
pub struct MutantInfo {
    /// The switch.
    pub mutant: Mutant,
    /// Who races with whom, in the letters of the specification: `F x P`.
    pub pair: &'static str,
    /// The mechanism that is taken away.
    pub removes: &'static str,
    /// What goes wrong without it.
    pub consequence: &'static str,
    /// Ids of the invariants that may catch it, the likeliest first. Empty for a negative control, which nothing may catch.
    pub caught_by: &'static [&'static str],
    /// The scenario that shows it, as a path below `scenarios/`.
    pub scenario: &'static str,
    /// Which reorderings of loads and stores it takes to go wrong.
    pub memory: Memory,
    /// Other ids under which the specifications have the same line.
    pub also: &'static [&'static str],
}

/// A row without other ids.
pub(super) const fn row(
    mutant: Mutant,
    pair: &'static str,
    removes: &'static str,
    consequence: &'static str,
    caught_by: &'static [&'static str],
    scenario: &'static str,
) -> MutantInfo {
    MutantInfo { mutant, pair, removes, consequence, caught_by, scenario, memory: Memory::Sc, also: &[] }
}

impl MutantInfo {
    /// The id, as in `RC-01`.
    pub fn id(&self) -> &'static str {
        self.mutant.id()
    }

    /// Whether the rule is known to be unnecessary on this machine, so that nothing may be found without it.
    pub fn is_negative_control(&self) -> bool {
        self.caught_by.is_empty()
    }

    /// The row, where nothing goes wrong unless stores wait in store buffers.
    pub(super) const fn under_tso(mut self) -> MutantInfo {
        self.memory = Memory::Tso;
        self
    }

    /// The row with other ids for it.
    pub(super) const fn also(mut self, also: &'static [&'static str]) -> MutantInfo {
        self.also = also;
        self
    }
}

/// The parts of the registry, one for each area.
static PARTS: &[&[MutantInfo]] = &[
    super::sequence::ROWS,
    super::tlbs::ROWS,
    super::page_cache::ROWS,
    super::slots::ROWS,
    super::attributes::ROWS,
    super::notifiers::ROWS,
    super::lifetime::ROWS,
    super::bugs::ROWS,
    super::tables::ROWS,
    super::sev::ROWS,
    super::tdx::ROWS,
    super::pkvm::ROWS,
];

/// Every mutant, area by area.
pub fn all() -> impl Iterator<Item = &'static MutantInfo> {
    PARTS.iter().copied().flatten()
}

/// The mutant with this id, or with it as another one, whatever the case of its letters.
pub fn find(id: &str) -> Option<&'static MutantInfo> {
    all()
        .find(|info| info.id().eq_ignore_ascii_case(id) || info.also.iter().any(|other| other.eq_ignore_ascii_case(id)))
}

/// The mutant with this id, or what to say of it.
///
/// # Errors
/// That there is none, with one that is spelled alike.
///
/// ```
/// assert!(gmem::mutants::named("XX-99").unwrap_err().starts_with("there is no mutant `XX-99`"));
/// ```
pub fn named(id: &str) -> Result<&'static MutantInfo, String> {
    find(id).ok_or_else(|| format!("there is no mutant `{id}`{}", did_you_mean(id, all().map(MutantInfo::id))))
}
