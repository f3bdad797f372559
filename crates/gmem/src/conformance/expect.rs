//! What a check says: what it looked at, or what was expected and what was found.

use sim_kernel::Errno;
use std::fmt::{self, Debug, Display};

/// What came of a check: what it looked at, in a few words, or what is wrong.
pub type Outcome = Result<String, Failure>;

/// What is wrong: what was done, what was expected, what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    message: String,
}

impl Failure {
    /// A failure with this message.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into() }
    }

    /// The same failure, with where it happened.
    pub(super) fn within(self, place: impl Display) -> Failure {
        Failure { message: format!("{place}: {}", self.message) }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// `what` must be `expected`.
pub(super) fn equal<T: PartialEq + Debug>(what: impl Display, found: T, expected: T) -> Result<(), Failure> {
    if found == expected {
        return Ok(());
    }
    Err(Failure::new(format!("{what}: expected {expected:?}, found {found:?}")))
}

/// As [`equal`], for values of memory.
pub(super) fn word(what: impl Display, found: u64, expected: u64) -> Result<(), Failure> {
    if found == expected {
        return Ok(());
    }
    Err(Failure::new(format!("{what}: expected {expected:#x}, found {found:#x}")))
}

/// The condition must hold; `message` says what was expected and found.
pub(super) fn ensure(condition: bool, message: impl Display) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::new(message.to_string())) }
}

/// The call must succeed; returns its value.
pub(super) fn ok<T, E: Debug>(what: impl Display, result: Result<T, E>) -> Result<T, Failure> {
    result.map_err(|error| Failure::new(format!("{what}: expected success, found {error:?}")))
}

/// The call must fail with this error number.
pub(super) fn errno<T: Debug>(what: impl Display, result: Result<T, Errno>, expected: Errno) -> Result<(), Failure> {
    match result {
        Err(found) if found == expected => Ok(()),
        Err(found) => Err(Failure::new(format!("{what}: expected {expected:?}, found {found:?}"))),
        Ok(value) => Err(Failure::new(format!("{what}: expected {expected:?}, found success ({value:?})"))),
    }
}

/// The call must fail somehow: the row leaves open how.
pub(super) fn fails<T: Debug, E: Debug>(what: impl Display, result: Result<T, E>) -> Result<(), Failure> {
    match result {
        Err(_) => Ok(()),
        Ok(value) => Err(Failure::new(format!("{what}: expected a failure, found success ({value:?})"))),
    }
}
