//! A *real* `/dev/kvm`, asked the same operations as the simulator: behind `gmem record` and `gmem fuzz-compare`.
//!
//! Every program runs in a process of its own, the worker ([`worker`]): it dies with its program, cannot take more than it was
//! given, and is called back if it does not answer. [`Session`] is the other end of its pipes. [`machine`] asks what the
//! machine at hand is, so that the simulator can be one like it; [`tracefs`] reads what changed in stage 2; [`program`] and
//! [`record()`] make traces of it all; [`bench`](mod@bench) measures. The system calls themselves, and all unsafe code, are in the crate `live-kvm`.
//!
//! Simplified: x86-64 Linux. Elsewhere everything here answers that there is no `/dev/kvm`.

pub mod bench;
pub mod machine;
pub mod program;
mod record;
mod session;
pub mod tracefs;
pub mod worker;

pub use machine::LiveMachine;
pub use program::{Program, ProgramError};
pub use record::{Recording, record};
pub(crate) use session::complaint;
pub use session::{Limits, LiveError, Session, Starter};

use serde::{Deserialize, Serialize};

use crate::ops::Answer;

/// What a real kernel made of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveOutcome {
    /// What it returned; `None` if the operation was not performed.
    pub answer: Option<Answer>,
    /// Why it was not, or what else there is to say.
    pub note: Option<String>,
}

/// A worker's line about an operation.
#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ret: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_slot_of_guest_paging_is_the_same_here_and_there() {
        assert_eq!(crate::interp::paged::LAYOUT, live_kvm::PAGED_LAYOUT);
    }
}
