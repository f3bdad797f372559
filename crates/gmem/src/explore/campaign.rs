//! An exploration on several cores, with the same findings and the same totals on any number of them.
//!
//! Workers take units of work (see [`portfolio`](super::portfolio)) and send back what came of them; the results are merged in the order of
//! the units, whoever was first. A finding ends the exploration at its unit: what others did beyond that is thrown away. While too little of the
//! exhaustive search can be shared out, workers take samples, which count only if that search does not end by itself.
//! Time never decides what is counted, only when it is enough.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use sim_kernel::explore::{Exploration, Frontier, cut};

use super::portfolio::{PARTS, Plan, Sample};
use super::program::{ScenarioProgram, panic_message};
use super::progress::Next;
pub use super::progress::{Evidence, Finding, Progress};
use super::unit::{Part, Share, Worker};

/// Beginning of the names of threads that execute schedules: assertions that fail there are what is looked for.
pub const THREAD_NAME: &str = "gmem-explorer";

/// How often whoever watches is asked, at least, whether to go on.
const TICK: Duration = Duration::from_millis(50);

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
    let stop = AtomicBool::new(false);
    let shared = Shared {
        worker: Worker { program, plan, stop: &stop },
        queue: Mutex::new(Queue { search: VecDeque::new(), next: progress.samples, is_over: false }),
        more: Condvar::new(),
    };
    let pool = pool(jobs)?;
    let (sender, receiver) = channel();
    let mut merger = Merger::default();
    pool.in_place_scope(|scope| {
        for _ in 0..jobs {
            let (sender, shared) = (sender.clone(), &shared);
            scope.spawn(move |_| shared.work(&sender));
        }
        drop(sender);
        let result = loop {
            merger.merge(&mut progress, plan);
            if !progress.is_enough(plan) {
                shared.hand_out(&mut progress, &mut merger);
                // The end of the search lets samples count that were taken meanwhile.
                merger.merge(&mut progress, plan);
            }
            let samples_left = !progress.exhausted && plan.sample(progress.samples).is_some();
            progress.finished = progress.is_enough(plan) || (progress.search.is_over && !samples_left);
            if progress.finished || watch(&progress) == Flow::Stop {
                break Ok(());
            }
            match receiver.recv_timeout(TICK) {
                Ok(Message::Searched { index, part, frontier, is_stuck }) => {
                    merger.searched.insert(index, (part, *frontier, is_stuck));
                }
                Ok(Message::Cut(parts)) => {
                    progress.merge_cut(parts);
                    merger.is_handed_out = false;
                }
                Ok(Message::Sampled { number, part }) => {
                    merger.sampled.insert(number, part);
                }
                Ok(Message::Failed(message)) => break Err(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break Err("the workers ended early".to_string()),
            }
        };
        stop.store(true, Ordering::Relaxed);
        // Whoever is about to wait holds the queue.
        drop(shared.queue.lock());
        shared.more.notify_all();
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

/// Results that wait for those before them.
#[derive(Default)]
struct Merger {
    searched: BTreeMap<usize, (Part, Frontier, bool)>,
    sampled: BTreeMap<u64, Part>,
    /// Whether the round of the search was given to the workers.
    is_handed_out: bool,
}

impl Merger {
    /// Merges what has its turn.
    fn merge(&mut self, progress: &mut Progress, plan: &Plan) {
        while !progress.is_enough(plan)
            && let Some((part, frontier, is_stuck)) = self.searched.remove(&progress.search.at)
        {
            progress.merge_search(frontier, is_stuck, part);
            if progress.search.at == progress.search.round {
                self.is_handed_out = false;
            }
        }
        while progress.search.is_over
            && !progress.is_enough(plan)
            && let Some(part) = self.sampled.remove(&progress.samples)
        {
            progress.merge_sample(part);
        }
    }
}

enum Message {
    Searched { index: usize, part: Part, frontier: Box<Frontier>, is_stuck: bool },
    Cut(Vec<Frontier>),
    Sampled { number: u64, part: Part },
    Failed(String),
}

/// Something to do.
enum Work {
    Search(Box<Share>),
    Cut(Vec<Frontier>),
    Sample { number: u64, sample: Sample },
}

struct Queue {
    search: VecDeque<Work>,
    /// The next sample.
    next: u64,
    /// Whether there will be nothing more of the search.
    is_over: bool,
}

struct Shared<'p> {
    worker: Worker<'p>,
    queue: Mutex<Queue>,
    more: Condvar,
}

impl Shared<'_> {
    /// Gives the workers what comes next of the search.
    fn hand_out(&self, progress: &mut Progress, merger: &mut Merger) {
        if merger.is_handed_out {
            return;
        }
        let Worker { program, plan, .. } = self.worker;
        let begin = |kind| Exploration::new(program, kind, plan.seed, self.worker.options(0)).frontier();
        let next = progress.next_of_search(plan, begin);
        let mut queue = self.queue.lock();
        match next {
            Next::Round => queue.search.extend(progress.shares().map(|share| Work::Search(Box::new(share)))),
            Next::Cut => queue.search.push_back(Work::Cut(progress.search.parts.clone())),
            Next::Nothing => queue.is_over = true,
        }
        merger.is_handed_out = true;
        drop(queue);
        self.more.notify_all();
    }

    /// The next thing to do; waits for it if it must, and returns nothing when all is done.
    fn take(&self) -> Option<Work> {
        let mut queue = self.queue.lock();
        loop {
            if self.worker.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(work) = queue.search.pop_front() {
                return Some(work);
            }
            if let Some(sample) = self.worker.plan.sample(queue.next) {
                let number = queue.next;
                queue.next += 1;
                return Some(Work::Sample { number, sample });
            }
            if queue.is_over {
                return None;
            }
            self.more.wait(&mut queue);
        }
    }

    fn work(&self, sender: &Sender<Message>) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some(work) = self.take() {
                let message = match work {
                    Work::Search(share) => {
                        let index = share.index;
                        let done = self.worker.search(*share)?;
                        done.map(|(part, frontier, is_stuck)| Message::Searched {
                            index,
                            part,
                            frontier: Box::new(frontier),
                            is_stuck,
                        })
                    }
                    Work::Cut(frontiers) => {
                        let parts = cut(self.worker.program, frontiers, PARTS);
                        Some(Message::Cut(parts.map_err(|error| format!("the checkpoint: {error}"))?))
                    }
                    Work::Sample { number, sample } => {
                        self.worker.sample(sample).map(|part| Message::Sampled { number, part })
                    }
                };
                let Some(message) = message else { break };
                // Nobody listens any more if the exploration is over.
                let _ = sender.send(message);
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
}
