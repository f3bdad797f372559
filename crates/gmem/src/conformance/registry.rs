//! The list of checks: how one is described, found by its id, and run.

use super::Outcome;
use crate::ops::suggest::did_you_mean;
use std::fmt;
use std::panic::catch_unwind;

/// One row of the checklist.
///
/// ```
/// use gmem::conformance::{Check, Failure, Status};
///
/// let right = Check::test("XX-001", "arithmetic", "one and one", || Ok("two".to_string()));
/// assert_eq!(right.run().status, Status::Pass);
/// let wrong = Check::test("XX-002", "arithmetic", "one and two", || Err(Failure::new("expected 3, found 2")));
/// let result = wrong.run();
/// assert_eq!((result.status, result.reason.as_str()), (Status::Fail, "expected 3, found 2"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Its id, such as `GM-016`: never given to anything else.
    pub id: &'static str,
    /// The selftest, or another place, that it is from.
    pub suite: &'static str,
    /// What is done and what must come of it.
    pub title: &'static str,
    kind: Kind,
}

/// What there is to run.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Test(fn() -> Outcome),
    Absent(&'static str),
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// The row holds.
    Pass,
    /// The row does not hold.
    Fail,
    /// The row is about something that the simulator does not have.
    Absent,
}

impl Status {
    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Status::Pass => "pass",
            Status::Fail => "fail",
            Status::Absent => "absent",
        }
    }
}

/// A check that was run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// [`Check::id`].
    pub id: &'static str,
    /// [`Check::suite`].
    pub suite: &'static str,
    /// [`Check::title`].
    pub title: &'static str,
    /// What came of it.
    pub status: Status,
    /// What was looked at if it passed; what was expected and found if it failed; why there is nothing to run.
    pub reason: String,
}

impl Check {
    /// A check that runs `test`, which says what it looked at, or what is wrong.
    pub const fn test(id: &'static str, suite: &'static str, title: &'static str, test: fn() -> Outcome) -> Check {
        Check { id, suite, title, kind: Kind::Test(test) }
    }

    /// A row that cannot exist here, and why.
    pub const fn absent(id: &'static str, suite: &'static str, title: &'static str, reason: &'static str) -> Check {
        Check { id, suite, title, kind: Kind::Absent(reason) }
    }

    /// Whether the row cannot exist here, so that there is nothing to run.
    pub fn is_absent(&self) -> bool {
        matches!(self.kind, Kind::Absent(_))
    }

    /// Runs the check on machines of its own. A panic is a failure of the check.
    pub fn run(&self) -> CheckResult {
        let (status, reason) = match self.kind {
            Kind::Absent(reason) => (Status::Absent, reason.to_string()),
            Kind::Test(test) => match catch_unwind(test) {
                Ok(Ok(evidence)) => (Status::Pass, evidence),
                Ok(Err(failure)) => (Status::Fail, failure.to_string()),
                Err(payload) => {
                    let message = payload.downcast_ref::<String>().map(String::as_str);
                    let message = message.or_else(|| payload.downcast_ref::<&str>().copied());
                    (Status::Fail, format!("panicked: {}", message.unwrap_or("without a message")))
                }
            },
        };
        CheckResult { id: self.id, suite: self.suite, title: self.title, status, reason }
    }
}

/// Every check, by suite, and within one in the order of the ids.
pub fn registry() -> impl Iterator<Item = &'static Check> {
    let suites: [&'static [Check]; 9] = [
        super::guest_memfd_test::CHECKS,
        super::set_memory_region_test::CHECKS,
        super::pre_fault_memory_test::CHECKS,
        super::private_mem_conversions_test::CHECKS,
        super::private_mem_kvm_exits_test::CHECKS,
        super::memslot_modification_stress_test::CHECKS,
        super::memslot_perf_test::CHECKS,
        super::vm_types::CHECKS,
        super::extras::CHECKS,
    ];
    suites.into_iter().flatten()
}

/// A pattern that no check's id matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownId {
    pattern: String,
}

impl fmt::Display for UnknownId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let near = did_you_mean(&self.pattern.to_ascii_uppercase(), registry().map(|check| check.id));
        write!(f, "no check has the id `{}`{near}", self.pattern)
    }
}

impl std::error::Error for UnknownId {}

/// The checks that one of the patterns names, in the order of the registry; all of them if there is no pattern. A pattern is an id,
/// or the beginning of one and `*`; case does not matter.
///
/// ```
/// use gmem::conformance::select;
/// assert_eq!(select(&["gm-016"]).unwrap().len(), 1);
/// assert!(select(&["GM-*"]).unwrap().len() > 100);
/// assert_eq!(select(&["GM-O16"]).unwrap_err().to_string(), "no check has the id `GM-O16`; did you mean `GM-016`?");
/// ```
///
/// # Errors
/// [`UnknownId`] for a pattern that names none.
pub fn select(patterns: &[impl AsRef<str>]) -> Result<Vec<&'static Check>, UnknownId> {
    let matches = |pattern: &str, id: &str| match pattern.strip_suffix('*') {
        Some(start) => id.get(..start.len()).is_some_and(|of_id| of_id.eq_ignore_ascii_case(start)),
        None => id.eq_ignore_ascii_case(pattern),
    };
    for pattern in patterns {
        if !registry().any(|check| matches(pattern.as_ref(), check.id)) {
            return Err(UnknownId { pattern: pattern.as_ref().to_string() });
        }
    }
    let wanted = |id: &str| patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern.as_ref(), id));
    Ok(registry().filter(|check| wanted(check.id)).collect())
}
