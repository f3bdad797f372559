//! Small programs whose spaces are known: for measuring engines and for holding strategies to what they promise.
//!
//! [`MutexCounter`], [`FlagRace`] and [`SeqRetry`] are what the benchmarks compare with other engines; [`SeededBug`] is a table of small mistakes, each
//! of the shape of one that kernels have, of known depth, with as much irrelevant work around it as one likes.

mod flag_race;
mod mutex_counter;
mod seeded_bug;
mod seq_retry;

pub use flag_race::FlagRace;
pub use mutex_counter::MutexCounter;
pub use seeded_bug::{Bug, SeededBug};
pub use seq_retry::SeqRetry;

use super::{Judgement, Problem};
use crate::sched::Verdict;

/// The judgement on an execution: what came out, unless it did not end well.
fn judgement(verdict: &Verdict, outcome: String, problem: Option<String>) -> Judgement {
    let problem = if verdict.is_completed() { problem } else { Some(verdict.to_string()) };
    let problem = problem.map(|message| Problem { id: verdict.invariant().map(str::to_string), message });
    Judgement { outcome, problem }
}
