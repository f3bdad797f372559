//! How a command ends: the exit codes that scripts rely on.

use std::process::ExitCode;

/// How a command ended. The worst thing that happened decides: the order is that of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// 0: nothing to report.
    Success = 0,
    /// 1: what was asked about does not hold: answers differ, an expectation failed.
    Found = 1,
    /// 2: the input cannot be used: usage, an unreadable path, a malformed file.
    BadInput = 2,
    /// 3: the simulator itself is at fault.
    Internal = 3,
}

impl Status {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status.code())
    }
}
