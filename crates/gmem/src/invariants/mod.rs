//! The registry of invariants: what must hold in every state of a guest_memfd system, in words, and how it is checked.
//!
//! The ids are those of the specification (`INV-201`); an assertion that fails begins its message with the id, wherever it stands. One file
//! for each section of the list: [`page_cache`], [`translations`], [`counters`], [`lifetime`], [`progress`], [`api_results`], [`xarray`].
//!
//! Nothing of the kernel is modelled here; some of the rules are WARNs there, most are only believed.

pub mod api_results;
pub mod counters;
pub mod lifetime;
pub mod page_cache;
pub mod progress;
pub mod translations;
pub mod xarray;

use crate::ops::suggest::did_you_mean;
use std::fmt;

/// What an invariant is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Pages of a guest_memfd: identity, references, contents.
    PageCache,
    /// What guest and host can reach through their page tables.
    Translations,
    /// The counters of the invalidation protocol, and which slot owns which page of which file.
    Counters,
    /// What may not be used any more.
    Lifetime,
    /// Locks, waits, and that every operation ends.
    Progress,
    /// What calls answer.
    ApiResults,
    /// The shape of the kernel's index trees.
    Xarray,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Section::PageCache => "page cache",
            Section::Translations => "translations",
            Section::Counters => "counters and bindings",
            Section::Lifetime => "lifetime",
            Section::Progress => "progress and lock discipline",
            Section::ApiResults => "API results",
            Section::Xarray => "xarray structure",
        })
    }
}

/// When an invariant is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// At the step that could break it, by an assertion that is always on.
    Step,
    /// When a system call or a run of a vCPU ends.
    Operation,
    /// While no operation is under way: after the tasks of a scenario have ended.
    Quiescence,
    /// When the process has ended and everything must be gone.
    TearDown,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            When::Step => "step",
            When::Operation => "operation",
            When::Quiescence => "quiescence",
            When::TearDown => "tear-down",
        })
    }
}

/// One row of the registry.
#[derive(Clone, Copy, Debug)]
pub struct Invariant {
    /// `INV-201`.
    pub id: &'static str,
    /// What it is about.
    pub section: Section,
    /// What must hold.
    pub text: &'static str,
    /// When it need not hold; empty if it always must.
    pub window: &'static str,
    /// When it is looked at; empty if it is not, and then [`Invariant::note`] says why.
    pub when: &'static [When],
    /// How it is checked where that is not plain, and what of it is not.
    pub note: &'static str,
}

/// The sections of the registry.
static SECTIONS: &[&[Invariant]] = &[
    page_cache::ROWS,
    translations::ROWS,
    counters::ROWS,
    lifetime::ROWS,
    progress::ROWS,
    api_results::ROWS,
    xarray::ROWS,
];

/// Every invariant, in the order of the ids.
pub fn all() -> impl Iterator<Item = &'static Invariant> {
    SECTIONS.iter().copied().flatten()
}

/// The invariant with this id, whatever the case of its letters.
///
/// ```
/// let inv = gmem::invariants::find("inv-203").unwrap();
/// assert!(inv.text.contains("free"));
/// ```
pub fn find(id: &str) -> Option<&'static Invariant> {
    all().find(|inv| inv.id.eq_ignore_ascii_case(id))
}

/// The invariant with this id, or what to say of it.
///
/// # Errors
/// That there is none, with one that is spelled alike.
pub fn named(id: &str) -> Result<&'static Invariant, String> {
    find(id).ok_or_else(|| format!("there is no invariant `{id}`{}", did_you_mean(id, all().map(|inv| inv.id))))
}
