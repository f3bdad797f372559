//! One row for each mutant: its constant, what it takes away, what catches it, and which scenario shows it.

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
}

/// The parts of the registry, one for each part of the specifications.
static PARTS: &[&[MutantInfo]] = &[];

/// Every mutant, in the order of the specifications.
pub fn all() -> impl Iterator<Item = &'static MutantInfo> {
    PARTS.iter().copied().flatten()
}

/// The mutant with this id, whatever the case of its letters.
pub fn find(id: &str) -> Option<&'static MutantInfo> {
    all().find(|info| info.id().eq_ignore_ascii_case(id))
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
