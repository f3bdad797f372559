//! The registry of invariants: what must hold in every state of a guest_memfd system, in words, and how it is checked.
//!
//! The ids are those of the specifications (`INV-201`, `MMU-INV-006`); an assertion that fails begins its message with the id, wherever it stands. One file
//! for each section of the list: [`page_cache`], [`translations`], [`counters`], [`lifetime`], [`progress`], [`api_results`], [`xarray`], [`tables`].
//!
//! Most are looked at in two ways. At the step that could break it, an assertion that costs next to nothing and is always on. And over everything
//! that there is: a function `inv_NNN` over a [`Snapshot`], which is plain data. [`check`] runs all of those; [`watch`] does it after every step
//! of every task, which is slow, and is how tests hold the one way against the other. What locks say about each other is judged by functions over a
//! [`LockOrder`].
//!
//! Nothing of the kernel is modelled here; some of the rules are WARNs there, most are only believed.

pub mod api_results;
pub mod contents;
pub mod counters;
pub(crate) mod guest_stores;
mod layout;
pub mod lifetime;
pub mod page_cache;
mod pkvm;
pub mod progress;
pub mod snapshot;
mod snp;
pub mod tables;
mod tdx;
pub mod translations;
pub mod xarray;

mod watch;

pub use snapshot::Snapshot;
pub use watch::{check, check_locks, watch};

use crate::ops::suggest::did_you_mean;
use sim_kernel::sched::LockOrder;
use std::fmt;

/// What a check answers: nothing, or what is wrong, without the id.
pub type Holds = Result<(), String>;

/// Returns what is wrong unless a condition holds.
macro_rules! holds {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(format!($($text)*));
        }
    };
}
use holds;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{id}: {message}")]
pub struct Violation {
    /// Which.
    pub id: &'static str,
    /// What is wrong.
    pub message: String,
}

/// The function of an invariant.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// Over a picture of the whole host.
    State(fn(&Snapshot) -> Holds),
    /// Over the order in which locks were taken.
    Locks(fn(&LockOrder) -> Holds),
    /// None: it is a matter of one step or one answer, and is asserted there.
    AtStep,
}

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
    /// The tables of stage 2: their shape, what their entries say, what logging relies on.
    Tables,
    /// SEV-SNP: the RMP, the firmware, and KVM's use of them.
    Snp,
    /// pKVM: who owns a page, the tables that say so, and KVM's records.
    Pkvm,
    /// TDX: the module, and KVM's use of it.
    Tdx,
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
            Section::Tables => "stage-2 tables",
            Section::Snp => "SEV-SNP",
            Section::Pkvm => "pKVM",
            Section::Tdx => "TDX",
        })
    }
}

/// When an invariant is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// At the step that could break it, by an assertion that is always on.
    Step,
    /// After every step of every task, by [`watch`], where that is on.
    Point,
    /// When a system call or a run of a vCPU ends.
    Operation,
    /// In the order of locks, when an execution has ended.
    Locks,
    /// While no operation is under way: after the tasks of a scenario have ended.
    Quiescence,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            When::Step => "step",
            When::Point => "point",
            When::Operation => "operation",
            When::Locks => "locks",
            When::Quiescence => "quiescence",
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
    /// Its function.
    pub check: Check,
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
    tables::ROWS,
    pkvm::ROWS,
    snp::ROWS,
    tdx::ROWS,
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
