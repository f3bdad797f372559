//! A schedule: the decisions of one execution, as a value and as a short string that fits into an issue comment.
//!
//! Only real decisions are recorded: a step at which just one task could run is not one. The printed form is `gmem1:`, then
//! base32 (RFC 4648, lower case, no padding) of run-length pairs: a byte with the task number, then the length of the run as
//! LEB128.

use super::op::{MAX_TASKS, TaskId};
use std::fmt;
use std::str::FromStr;

/// Version tag of the printed form.
const PREFIX: &str = "gmem1:";
/// Longest schedule that the printed form accepts, so that a short malicious string cannot ask for much memory.
const MAX_DECISIONS: usize = 1 << 28;

/// The tasks that were picked, decision by decision.
///
/// ```
/// use sim_kernel::sched::{Schedule, TaskId};
/// let schedule = Schedule::new(vec![TaskId(1), TaskId(1), TaskId(2)]);
/// let text = schedule.to_string();
/// assert_eq!(text.parse::<Schedule>().unwrap(), schedule);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Schedule {
    decisions: Vec<TaskId>,
}

/// A string that is not a printed schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The version tag is missing.
    #[error("a schedule starts with `{PREFIX}`")]
    Prefix,
    /// Not base32.
    #[error("not base32 after `{PREFIX}`: {0}")]
    Base32(String),
    /// The bytes are not run-length pairs of valid tasks.
    #[error("byte {0}: not a run of a task between 0 and 63")]
    Run(usize),
    /// More decisions than the limit.
    #[error("more than {MAX_DECISIONS} decisions")]
    TooLong,
}

impl Schedule {
    /// A schedule with these decisions.
    pub fn new(decisions: Vec<TaskId>) -> Schedule {
        Schedule { decisions }
    }

    /// The decisions in order.
    pub fn decisions(&self) -> &[TaskId] {
        &self.decisions
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        for run in self.decisions.chunk_by(|a, b| a == b) {
            bytes.push(run[0].0);
            let mut n = run.len();
            loop {
                let low = (n & 0x7f) as u8;
                n >>= 7;
                bytes.push(if n == 0 { low } else { low | 0x80 });
                if n == 0 {
                    break;
                }
            }
        }
        let text = data_encoding::BASE32_NOPAD.encode(&bytes).to_ascii_lowercase();
        write!(f, "{PREFIX}{text}")
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(s: &str) -> Result<Schedule, ScheduleError> {
        let text = s.trim().strip_prefix(PREFIX).ok_or(ScheduleError::Prefix)?;
        let bytes = data_encoding::BASE32_NOPAD
            .decode(text.to_ascii_uppercase().as_bytes())
            .map_err(|e| ScheduleError::Base32(e.to_string()))?;
        let mut decisions = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let start = at;
            let task = bytes[at];
            at += 1;
            let mut n: usize = 0;
            let mut shift = 0;
            loop {
                let byte = *bytes.get(at).ok_or(ScheduleError::Run(start))?;
                at += 1;
                if shift > 28 {
                    return Err(ScheduleError::TooLong);
                }
                n |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            if usize::from(task) >= MAX_TASKS || n == 0 {
                return Err(ScheduleError::Run(start));
            }
            if decisions.len() + n > MAX_DECISIONS {
                return Err(ScheduleError::TooLong);
            }
            decisions.resize(decisions.len() + n, TaskId(task));
        }
        Ok(Schedule { decisions })
    }
}
