//! An exploration on several cores, with the same findings and the same totals on any number of them.
//!
//! Workers take units of work (see [`portfolio`](super::portfolio)) and send back what came of them; the results are merged in the order of
//! the units, whoever was first. A finding ends the exploration at its unit: what others did beyond that is thrown away. One worker
//! follows the exhaustive search, the others take samples meanwhile, which count only if that search does not end by itself.
//! Time never decides what is counted, only when it is enough.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sim_kernel::explore::{Execution, Exploration, Frontier, Options, Statistics, StrategyKind};

use super::portfolio::{PIECE, Plan, Sample};
use super::program::{ScenarioProgram, panic_message};
use super::witness::STEPS_MAX;

/// Beginning of the names of threads that execute schedules: assertions that fail there are what is looked for.
pub const THREAD_NAME: &str = "gmem-explorer";

/// How often whoever watches is asked, at least, whether to go on.
const TICK: Duration = Duration::from_millis(50);

/// An execution that failed.
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
}

impl Finding {
    /// What tells findings apart.
    pub fn kind(&self) -> &str {
        self.invariant.as_deref().unwrap_or("expectation")
    }
}

/// Where an exploration stands: whole units, in their order. Plain data, for checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The exhaustive search; `None` before it began, or if there is none.
    pub frontier: Option<Frontier>,
    /// Whether the exhaustive search has seen everything.
    pub exhausted: bool,
    /// Whether the exhaustive search has used up its share.
    pub searched: bool,
    /// Samples that were merged.
    pub samples: u64,
    /// Totals of the samples.
    pub sampled: Statistics,
    /// Executions by strategy.
    pub by_strategy: BTreeMap<String, u64>,
    /// Executions that failed.
    pub violations: u64,
    /// The first failing execution of each kind.
    pub findings: Vec<Finding>,
    /// Whether nothing is left to do.
    pub finished: bool,
}

impl Progress {
    /// Totals of everything.
    pub fn totals(&self) -> Statistics {
        let mut totals = self.frontier.as_ref().map(|frontier| frontier.statistics.clone()).unwrap_or_default();
        totals.merge(&self.sampled);
        totals
    }

    /// Executions so far, those included that were cut because they are like others.
    pub fn executions(&self) -> u64 {
        let searched =
            self.frontier.as_ref().map_or(0, |frontier| frontier.statistics.executions + frontier.statistics.pruned);
        searched + self.sampled.executions + self.sampled.pruned
    }

    /// Whether every interleaving was seen and none failed.
    pub fn is_verified(&self) -> bool {
        let complete = self
            .frontier
            .as_ref()
            .is_some_and(|frontier| frontier.kind.is_complete() && frontier.statistics.truncated == 0);
        self.exhausted && complete && self.violations == 0
    }
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Yes.
    Continue,
    /// What was merged so far is the result.
    Stop,
}

/// Explores `program` from where `progress` stands, with `jobs` workers.
///
/// `watch` is called after every unit that was merged, and every now and then, and says whether to go on.
///
/// # Errors
/// If the set-up of the scenario fails, or the simulator does.
pub fn explore(
    program: &ScenarioProgram,
    plan: &Plan,
    mut progress: Progress,
    jobs: usize,
    watch: &mut dyn FnMut(&Progress) -> Flow,
) -> Result<Progress, String> {
    if progress.finished {
        return Ok(progress);
    }
    let shared = Shared {
        program,
        plan,
        stop: AtomicBool::new(false),
        searching: AtomicBool::new(plan.exhaustive().is_some() && !progress.searched && !progress.exhausted),
        next: AtomicU64::new(progress.samples),
    };
    let pool = pool(jobs)?;
    let (sender, receiver) = channel();
    let mut early: BTreeMap<u64, Part> = BTreeMap::new();
    let frontier = progress.frontier.clone();
    pool.in_place_scope(|scope| {
        for _ in 0..jobs {
            let (sender, frontier, shared) = (sender.clone(), frontier.clone(), &shared);
            scope.spawn(move |_| shared.work(frontier, &sender));
        }
        drop(sender);
        let result = loop {
            match receiver.recv_timeout(TICK) {
                Ok(Message::Searched { part, frontier, ended }) => {
                    progress.exhausted = frontier.exhausted;
                    progress.searched = ended;
                    progress.merge_search(*frontier, part);
                }
                Ok(Message::Sampled { number, part }) => {
                    early.insert(number, part);
                }
                Ok(Message::Failed(message)) => break Err(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
            }
            let search_is_over = progress.searched || plan.exhaustive().is_none();
            if search_is_over && !progress.exhausted {
                while !progress.is_enough(plan)
                    && let Some(part) = early.remove(&progress.samples)
                {
                    progress.merge_sample(part);
                }
            }
            let samples_left = !progress.exhausted && plan.sample(progress.samples).is_some();
            progress.finished = progress.is_enough(plan) || (search_is_over && !samples_left);
            if progress.finished || watch(&progress) == Flow::Stop {
                break Ok(());
            }
        };
        shared.stop.store(true, Ordering::Relaxed);
        result
    })?;
    watch(&progress);
    Ok(progress)
}

/// A pool of threads on which schedules are executed.
///
/// # Errors
/// If the host gives no threads.
pub(crate) fn pool(jobs: usize) -> Result<rayon::ThreadPool, String> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(jobs)
        .thread_name(|n| format!("{THREAD_NAME}-{n}"))
        .build()
        .map_err(|error| format!("no threads: {error}"))
}

impl Progress {
    fn is_enough(&self, plan: &Plan) -> bool {
        self.exhausted || (!plan.keep_going && !self.findings.is_empty())
    }

    fn merge_search(&mut self, frontier: Frontier, part: Part) {
        let before = self.executions();
        *self.by_strategy.entry(frontier.kind.to_string()).or_default() += part.executions;
        self.frontier = Some(frontier);
        self.merge_findings(before, part);
    }

    fn merge_sample(&mut self, part: Part) {
        let before = self.executions();
        self.samples += 1;
        self.sampled.merge(&part.statistics);
        *self.by_strategy.entry(part.strategy.to_string()).or_default() += part.executions;
        self.merge_findings(before, part);
    }

    fn merge_findings(&mut self, before: u64, part: Part) {
        self.violations += part.violations;
        for mut finding in part.findings {
            if self.findings.iter().all(|known| known.kind() != finding.kind()) {
                finding.executions += before;
                self.findings.push(finding);
            }
        }
    }
}

/// What came of a unit.
struct Part {
    strategy: StrategyKind,
    executions: u64,
    /// Totals of a sample; those of a search are in its frontier.
    statistics: Statistics,
    violations: u64,
    /// The first of each kind; `executions` counts within the unit.
    findings: Vec<Finding>,
}

impl Part {
    fn new(strategy: StrategyKind) -> Part {
        Part { strategy, executions: 0, statistics: Statistics::default(), violations: 0, findings: Vec::new() }
    }

    fn add(&mut self, execution: Execution) {
        self.executions += 1;
        let Some(problem) = execution.judgement.problem else { return };
        self.violations += 1;
        let finding = Finding {
            invariant: problem.id,
            message: problem.message,
            strategy: self.strategy,
            seed: execution.seed,
            executions: self.executions,
            schedule: execution.schedule.to_string(),
        };
        if self.findings.iter().all(|known| known.kind() != finding.kind()) {
            self.findings.push(finding);
        }
    }
}

enum Message {
    Searched { part: Part, frontier: Box<Frontier>, ended: bool },
    Sampled { number: u64, part: Part },
    Failed(String),
}

struct Shared<'p> {
    program: &'p ScenarioProgram,
    plan: &'p Plan,
    stop: AtomicBool,
    /// Whether the exhaustive search waits for a worker.
    searching: AtomicBool,
    /// The next sample.
    next: AtomicU64,
}

impl Shared<'_> {
    fn work(&self, frontier: Option<Frontier>, sender: &Sender<Message>) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            if self.searching.swap(false, Ordering::Relaxed) {
                self.search(frontier, sender)?;
            }
            while !self.stop.load(Ordering::Relaxed) {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                let Some(sample) = self.plan.sample(number) else { break };
                let Some(part) = self.sample(sample) else { break };
                // Nobody listens any more if the exploration is over.
                let _ = sender.send(Message::Sampled { number, part });
            }
            Ok(())
        }));
        let failure = match result {
            Ok(Ok(())) => return,
            Ok(Err(message)) => message,
            Err(payload) => format!("the set-up or the explorer failed: {}", panic_message(&*payload)),
        };
        let _ = sender.send(Message::Failed(failure));
    }

    fn options(&self, first: u64) -> Options {
        Options { first, steps_max: STEPS_MAX, memory: self.program.memory(), coverage: true, ..Options::default() }
    }

    /// The exhaustive search, a message for each piece.
    fn search(&self, frontier: Option<Frontier>, sender: &Sender<Message>) -> Result<(), String> {
        let Some((kind, most)) = self.plan.exhaustive() else { return Ok(()) };
        let mut exploration = match frontier {
            Some(frontier) => Exploration::from_frontier(self.program, frontier)
                .map_err(|error| format!("the checkpoint: {error}"))?,
            None => Exploration::new(self.program, kind, self.plan.seed, self.options(0)),
        };
        let done = exploration.statistics();
        let mut left = most.saturating_sub(done.executions + done.pruned);
        loop {
            let mut part = Part::new(kind);
            let mut found = false;
            while part.executions < PIECE.min(left) && !found {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let Some(execution) = exploration.step() else { break };
                part.add(execution);
                found = !self.plan.keep_going && part.violations > 0;
            }
            left -= part.executions;
            let ended = left == 0 || exploration.is_exhausted();
            // Who waits for the result of a finding or of the end need not wait for the next piece.
            let _ = sender.send(Message::Searched { part, frontier: Box::new(exploration.frontier()), ended });
            if ended || found {
                return Ok(());
            }
        }
    }

    /// One sample; `None` if the exploration was over before.
    fn sample(&self, sample: Sample) -> Option<Part> {
        let options = self.options(sample.first);
        let mut exploration = Exploration::new(self.program, sample.kind, self.plan.seed, options);
        let mut part = Part::new(sample.kind);
        while part.executions < sample.count && (self.plan.keep_going || part.violations == 0) {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            part.add(exploration.step()?);
        }
        part.statistics = exploration.statistics().clone();
        Some(part)
    }
}
