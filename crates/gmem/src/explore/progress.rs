//! Where an exploration stands, and what it has found: plain data in whole units of work, for checkpoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sim_kernel::Faults;
use sim_kernel::explore::{Frontier, Statistics, StrategyKind};

use super::order::{Broken, Order, SeenEdge};
use super::portfolio::{PARTS, PIECE, Plan};
use super::unit::{Part, Share};

/// What shows that something is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Evidence {
    /// An execution that failed.
    #[default]
    Execution,
    /// What an execution does that reached the limit of steps and went on with turns for every task: it goes on for ever, or fails.
    Tail,
    /// Several, each of which is fine: together they take locks in an order that some other execution could be stuck in.
    Order(Vec<SeenEdge>),
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Id of the invariant that did not hold; `None` if an answer was not what the scenario expects.
    pub invariant: Option<String>,
    /// What was wrong.
    pub message: String,
    /// The strategy that found it.
    pub strategy: StrategyKind,
    /// The seed of that execution.
    pub seed: u64,
    /// How many executions it took in all, this one included.
    pub executions: u64,
    /// The decisions.
    pub schedule: String,
    /// What shows it.
    pub evidence: Evidence,
}

impl Finding {
    /// What tells failing executions apart.
    pub fn kind(&self) -> &str {
        self.invariant.as_deref().unwrap_or("expectation")
    }

    /// Whether both are of the same kind, so that one of them is enough.
    pub fn is_like(&self, other: &Finding) -> bool {
        let same = std::mem::discriminant(&self.evidence) == std::mem::discriminant(&other.evidence);
        same && self.kind() == other.kind()
    }
}

/// The exhaustive search: its parts, of which each gets so many executions in each round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// Whether it has begun.
    pub begun: bool,
    /// What is left to do, in the order of the search; the statistics of these are empty.
    pub parts: Vec<Frontier>,
    /// Parts of this round that were worked on.
    pub at: usize,
    /// Parts of this round.
    pub round: usize,
    /// Executions of each of them in this round.
    pub share: u64,
    /// Whether the parts were cut anew for the round that begins.
    pub is_cut: bool,
    /// Whether part of it could not be followed to its end.
    pub is_stuck: bool,
    /// Whether it has come to an end or used up its share of the budget.
    pub is_over: bool,
}

/// What is to be done next of a search.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The rest of the round.
    Round,
    /// Its parts are too few to keep several workers busy.
    Cut,
    /// Nothing.
    Nothing,
}

/// Where an exploration stands: whole units, in their order. Plain data, for checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The exhaustive search, if there is one.
    pub search: Search,
    /// Totals of the exhaustive search.
    pub searched: Statistics,
    /// Whether the exhaustive search has seen everything.
    pub exhausted: bool,
    /// Samples that were merged.
    pub samples: u64,
    /// Totals of the samples.
    pub sampled: Statistics,
    /// Executions by strategy.
    pub by_strategy: BTreeMap<String, u64>,
    /// Executions that failed.
    pub violations: u64,
    /// Executions that reached the limit of steps and moved on when every task got its turn.
    pub unfair: u64,
    /// In which order locks were taken.
    pub order: Order,
    /// The first finding of each kind.
    pub findings: Vec<Finding>,
    /// Whether nothing is left to do.
    pub finished: bool,
}

impl Progress {
    /// Totals of everything.
    pub fn totals(&self) -> Statistics {
        let mut totals = self.searched.clone();
        totals.merge(&self.sampled);
        totals
    }

    /// Executions so far, those included that were cut because they are like others.
    pub fn executions(&self) -> u64 {
        let Progress { searched, sampled, .. } = self;
        searched.executions + searched.pruned + sampled.executions + sampled.pruned
    }

    /// Whether every interleaving was seen to its end, and nothing was found.
    ///
    /// With faults that come at the n-th of something, whoever that is, no two steps commute, so that a search that relies on it does not see
    /// everything.
    pub fn is_verified(&self, plan: &Plan, faults: &Faults) -> bool {
        let sees_all = |kind: StrategyKind| kind == StrategyKind::Dfs || *faults == Faults::default();
        let is_complete = plan.exhaustive().is_some_and(|(kind, _)| kind.is_complete() && sees_all(kind));
        let is_fine = self.violations == 0 && self.findings.is_empty();
        self.exhausted && is_complete && self.searched.truncated == 0 && is_fine
    }

    /// Whether what was found, or that there is nothing more to find, is the end.
    pub(super) fn is_enough(&self, plan: &Plan) -> bool {
        self.exhausted || (!plan.keep_going && !self.findings.is_empty())
    }

    /// Prepares the next round of the search, if the last one is over. It depends on nothing but what was done so far.
    pub(super) fn next_of_search(&mut self, plan: &Plan, begin: impl FnOnce(StrategyKind) -> Frontier) -> Next {
        let done = self.searched.executions + self.searched.pruned;
        let search = &mut self.search;
        let Some((kind, most)) = plan.exhaustive().filter(|_| !search.is_over) else {
            search.is_over = true;
            return Next::Nothing;
        };
        if search.at < search.round {
            return Next::Round;
        }
        if !search.begun {
            search.begun = true;
            search.parts = vec![begin(kind)];
            // A scenario that is done in one piece is not worth cutting.
            search.is_cut = true;
        }
        search.parts.retain(|part| !part.exhausted);
        let left = most.saturating_sub(done);
        if search.parts.is_empty() || left == 0 {
            self.exhausted = search.parts.is_empty() && !search.is_stuck;
            search.is_over = true;
            return Next::Nothing;
        }
        if !search.is_cut && search.parts.len() < PARTS / 2 && kind.is_complete() {
            return Next::Cut;
        }
        search.is_cut = false;
        search.at = 0;
        search.round = search.parts.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        search.share = (left / search.round as u64).clamp(1, PIECE);
        Next::Round
    }

    /// The units of the round that are left.
    pub(super) fn shares(&self) -> impl Iterator<Item = Share> {
        let Search { parts, at, round, share, .. } = &self.search;
        let parts = parts.iter().enumerate().take(*round).skip(*at);
        parts.map(|(index, frontier)| Share { index, executions: *share, frontier: frontier.clone() })
    }

    /// The parts of the search were cut.
    pub(super) fn merge_cut(&mut self, parts: Vec<Frontier>) {
        self.search.parts = parts;
        self.search.is_cut = true;
    }

    /// The next part of the round was worked on.
    pub(super) fn merge_search(&mut self, frontier: Frontier, is_stuck: bool, part: Part) {
        let before = self.executions();
        let search = &mut self.search;
        search.parts[search.at] = Frontier { exhausted: frontier.exhausted || is_stuck, ..frontier };
        search.is_stuck |= is_stuck;
        search.at += 1;
        self.searched.merge(&part.statistics);
        self.merge_part(before, part);
    }

    /// The next sample was taken.
    pub(super) fn merge_sample(&mut self, part: Part) {
        let before = self.executions();
        self.samples += 1;
        self.sampled.merge(&part.statistics);
        self.merge_part(before, part);
    }

    fn merge_part(&mut self, before: u64, part: Part) {
        *self.by_strategy.entry(part.strategy.to_string()).or_default() += part.executions;
        self.violations += part.violations;
        self.unfair += part.unfair;
        let mut findings = part.findings;
        for edge in part.order {
            let (schedule, executions) = (edge.schedule.clone(), edge.executions);
            let broken = self.order.add(SeenEdge { executions: before + executions, ..edge });
            findings.extend(broken.into_iter().map(|Broken { id, message, chain }| Finding {
                invariant: Some(id.to_string()),
                message,
                strategy: part.strategy,
                seed: 0,
                executions,
                schedule: schedule.clone(),
                evidence: Evidence::Order(chain),
            }));
        }
        // Stable: of one execution, what went wrong in it comes before what it shows together with others.
        findings.sort_by_key(|finding| finding.executions);
        for mut finding in findings {
            // Whoever is stuck in a circle shows it better than the order does.
            let is_met = |known: &Finding| {
                matches!(finding.evidence, Evidence::Order(_)) && known.invariant == finding.invariant
            };
            if self.findings.iter().all(|known| !known.is_like(&finding) && !is_met(known)) {
                finding.executions += before;
                self.findings.push(finding);
            }
        }
    }
}
