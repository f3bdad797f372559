//! The strategies of an exploration by name.

use std::fmt;
use std::str::FromStr;

/// How the interleavings of a program are searched.
///
/// Printed and parsed as on the command line: `random`, `urw`, `pct:3`, `pos`, `preempt:2`, `dfs`, `sleep`, `dpor`.
///
/// ```
/// use sim_kernel::explore::StrategyKind;
/// assert_eq!("pct:4".parse(), Ok(StrategyKind::Pct { depth: 4 }));
/// assert_eq!("pct".parse(), Ok(StrategyKind::Pct { depth: 3 }));
/// assert_eq!(StrategyKind::Preempt { bound: 1 }.to_string(), "preempt:1");
/// assert!("pct:0".parse::<StrategyKind>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum StrategyKind {
    /// Uniformly random among the runnable tasks at every decision.
    Random,
    /// Random, weighted by how many events each task has left: nearly uniform over interleavings.
    Urw,
    /// Random priorities with `depth - 1` random places where the running task falls below all others.
    Pct {
        /// How many ordering constraints make the bug that is looked for, at least 1.
        depth: u32,
    },
    /// Random priorities of pending operations, drawn again for those that race with what was just done.
    Pos,
    /// Every schedule with at most `bound` preemptions, fewest first.
    Preempt {
        /// Most preemptions.
        bound: u32,
    },
    /// Every schedule.
    Dfs,
    /// Every schedule but those that differ from an earlier one only in the order of independent operations, which are cut when noticed.
    Sleep,
    /// One schedule of each class of equivalent ones: dynamic partial-order reduction with source sets and sleep sets.
    Dpor,
}

impl StrategyKind {
    /// Whether the search ends by itself, with everything seen that it promises.
    pub const fn is_exhaustive(self) -> bool {
        matches!(self, StrategyKind::Preempt { .. } | StrategyKind::Dfs | StrategyKind::Sleep | StrategyKind::Dpor)
    }

    /// Whether an exhausted search has seen every outcome, and not only those with few preemptions.
    pub const fn is_complete(self) -> bool {
        matches!(self, StrategyKind::Dfs | StrategyKind::Sleep | StrategyKind::Dpor)
    }
}

impl fmt::Display for StrategyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StrategyKind::Random => f.write_str("random"),
            StrategyKind::Urw => f.write_str("urw"),
            StrategyKind::Pct { depth } => write!(f, "pct:{depth}"),
            StrategyKind::Pos => f.write_str("pos"),
            StrategyKind::Preempt { bound } => write!(f, "preempt:{bound}"),
            StrategyKind::Dfs => f.write_str("dfs"),
            StrategyKind::Sleep => f.write_str("sleep"),
            StrategyKind::Dpor => f.write_str("dpor"),
        }
    }
}

/// A string that names no strategy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StrategyKindError {
    /// Not one of the names.
    #[error("no strategy `{0}`; there are random, urw, pct:DEPTH, pos, preempt:BOUND, dfs, sleep and dpor")]
    Unknown(String),
    /// The number behind the colon is missing, not a number, too large, or there should be none.
    #[error("`{0}`: {1}")]
    Parameter(String, &'static str),
}

impl FromStr for StrategyKind {
    type Err = StrategyKindError;

    fn from_str(s: &str) -> Result<StrategyKind, StrategyKindError> {
        let (name, parameter) = match s.split_once(':') {
            Some((name, parameter)) => (name, Some(parameter)),
            None => (s, None),
        };
        let wrong = |why| StrategyKindError::Parameter(s.to_string(), why);
        let number = |default: u32, range: std::ops::RangeInclusive<u32>, why| match parameter {
            None => Ok(default),
            Some(text) => text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| wrong(why)),
        };
        let plain = |kind| if parameter.is_some() { Err(wrong("the strategy takes no number")) } else { Ok(kind) };
        match name {
            "random" => plain(StrategyKind::Random),
            "urw" => plain(StrategyKind::Urw),
            "pct" => number(3, 1..=64, "the depth is a number from 1 to 64").map(|depth| StrategyKind::Pct { depth }),
            "pos" => plain(StrategyKind::Pos),
            "preempt" => {
                number(2, 0..=64, "the bound is a number from 0 to 64").map(|bound| StrategyKind::Preempt { bound })
            }
            "dfs" => plain(StrategyKind::Dfs),
            "sleep" => plain(StrategyKind::Sleep),
            "dpor" => plain(StrategyKind::Dpor),
            _ => Err(StrategyKindError::Unknown(s.to_string())),
        }
    }
}
