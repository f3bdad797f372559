//! What is tried in which order: the units of work of an exploration.
//!
//! An exploration is a list of units that depends on the plan alone, never on how many workers there are or how fast they are. First come
//! the pieces of an exhaustive search, in rounds: one piece, then, if that was not all, a piece of each part into which the rest is cut, and again, each
//! going on where its part stopped. Then come samples, each so many executions of one strategy, that need nothing of each other. By default, dynamic partial-order reduction has the first part of the budget: most
//! scenarios are small enough to be done by then. What is left goes to sampling in turns: POS has no parameter to get wrong, PCT is good at long windows if
//! its depth is right, random and URW at narrow ones.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sim_kernel::explore::{StrategyKind, StrategyKindError};
use sim_kernel::sched::MemoryModel;

/// Executions of one piece of an exhaustive search.
pub const PIECE: u64 = 500;
/// Parts into which an exhaustive search is cut that does not end in its first piece.
pub const PARTS: usize = 16;
/// Executions of one sample.
pub const SAMPLE: u64 = 200;

/// Which strategies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// Several in turns.
    #[default]
    Portfolio,
    /// Only this.
    One(StrategyKind),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Portfolio => f.write_str("portfolio"),
            Choice::One(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for Choice {
    type Err = StrategyKindError;

    fn from_str(s: &str) -> Result<Choice, StrategyKindError> {
        if s == "portfolio" { Ok(Choice::Portfolio) } else { s.parse().map(Choice::One) }
    }
}

/// What an exploration does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Which strategies.
    pub choice: Choice,
    /// From which everything is drawn.
    pub seed: u64,
    /// Executions, in all.
    pub executions: u64,
    /// How many of them an exhaustive search may take before samples are taken, if both are to be done.
    pub search: u64,
    /// Whether to go on after a finding, for other kinds of failures.
    pub keep_going: bool,
    /// Which reorderings of loads and stores are explored.
    pub memory: Memory,
}

/// Which reorderings of loads and stores are explored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// none: every load sees the last store
    #[default]
    Sc,
    /// those of x86: a store waits in its task's buffer while later loads go ahead
    Tso,
}

impl Memory {
    /// As the engine has it.
    pub fn model(self) -> MemoryModel {
        match self {
            Memory::Sc => MemoryModel::Sc,
            Memory::Tso => MemoryModel::Tso,
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Memory::Sc => "sc",
            Memory::Tso => "tso",
        })
    }
}

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The strategy.
    pub kind: StrategyKind,
    /// Number of the first execution.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Plan {
    /// The exhaustive search that comes first, and how many executions it may take.
    pub fn exhaustive(&self) -> Option<(StrategyKind, u64)> {
        match self.choice {
            Choice::Portfolio => Some((StrategyKind::Dpor, self.search.min(self.executions))),
            Choice::One(kind) if kind.is_exhaustive() => Some((kind, self.executions)),
            Choice::One(_) => None,
        }
    }

    /// The sample with this number; `None` if the budget ends before it.
    pub fn sample(&self, number: u64) -> Option<Sample> {
        let budget = match self.choice {
            Choice::Portfolio => self.executions.saturating_sub(self.search),
            Choice::One(kind) if kind.is_exhaustive() => 0,
            Choice::One(_) => self.executions,
        };
        let first = number.checked_mul(SAMPLE).filter(|first| *first < budget)?;
        let kind = match self.choice {
            Choice::One(kind) => kind,
            Choice::Portfolio => turn(number),
        };
        Some(Sample { kind, first, count: SAMPLE.min(budget - first) })
    }
}

/// Whose turn it is: of ten samples four are POS, three PCT, two random, one URW.
fn turn(number: u64) -> StrategyKind {
    let pct = |nth: u64| StrategyKind::Pct { depth: 2 + ((number / 10 * 3 + nth) % 4) as u32 };
    match number % 10 {
        1 => pct(1),
        4 => pct(0),
        7 => pct(2),
        2 | 8 => StrategyKind::Random,
        6 => StrategyKind::Urw,
        _ => StrategyKind::Pos,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_what_is_done() {
        for choice in [Choice::Portfolio, Choice::One(StrategyKind::Pos), Choice::One(StrategyKind::Dfs)] {
            for executions in [1, 199, 200, 201, 10_000] {
                let plan =
                    Plan { choice, seed: 0, executions, search: executions / 2, keep_going: false, memory: Memory::Sc };
                let samples = (0..).map_while(|n| plan.sample(n)).map(|sample| sample.count).sum::<u64>();
                let exhaustive = plan.exhaustive().map_or(0, |(_, most)| most);
                assert_eq!(samples + exhaustive, executions, "{choice} {executions}");
            }
        }
    }

    #[test]
    fn the_shares_are_those_of_the_description() {
        let count = |is: &dyn Fn(StrategyKind) -> bool| (0..40).filter(|n| is(turn(*n))).count();
        assert_eq!(count(&|kind| kind == StrategyKind::Pos), 16);
        assert_eq!(count(&|kind| kind == StrategyKind::Random), 8);
        assert_eq!(count(&|kind| kind == StrategyKind::Urw), 4);
        for depth in 2..=5 {
            assert_eq!(count(&|kind| kind == StrategyKind::Pct { depth }), 3, "pct:{depth}");
        }
    }
}
