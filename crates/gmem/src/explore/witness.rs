//! One execution looked at closely: every operation with its place in the model, the locks that its task held, who was preempted for it,
//! and what it changed.
//!
//! The engine's log has the operations in order, with releases of locks, and no places; the strategy is told every operation with its
//! place, and no releases. Put side by side they are the whole. State is looked at before each operation, without scheduling points, so
//! the execution is the one that was found.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;
use sim_kernel::sched::{
    Access, BUFFERS_FROM, Chooser, Config, Divergence, Event, LogLevel, ObjId, Op, Ready, Schedule, Sim, Strategy,
    TaskId, TraceRecord, Verdict,
};

use super::program::{Failure, Part, Running, ScenarioProgram};
use super::state::{Change, Watch};

/// Steps after which an execution is taken for endless.
pub const STEPS_MAX: u64 = 20_000;

/// A lock that a task holds, or a section that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The lock's name, as in `mmu_lock#0`.
    pub name: String,
    /// How it was taken.
    pub access: Access,
    /// File and line of the model where it was taken.
    pub site: Site,
    object: ObjId,
    index: u64,
}

/// A place in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Path of the file, from the root of the repository.
    pub file: &'static str,
    /// The line, from 1.
    pub line: u32,
}

impl Site {
    pub(crate) fn of(op: &Op) -> Site {
        let file = op.site.file();
        // As a dependency of something else, the path begins elsewhere.
        let from = file.rfind("crates/").unwrap_or(0);
        Site { file: &file[from..], line: op.site.line() }
    }
}

/// One operation of the execution.
#[derive(Clone, Debug)]
pub struct Step {
    /// Who.
    pub task: TaskId,
    /// What.
    pub op: Op,
    /// The object's name, with its index in the words of its class: `i_pages[pgoff 0x0]`.
    pub object: String,
    /// Where in the model.
    pub site: Site,
    /// In which line of the scenario: the part and the step's index.
    pub line: (Part, usize),
    /// The task that ran before and could have gone on.
    pub preempted: Option<TaskId>,
    /// What the task held when it performed the operation.
    pub held: Vec<Holding>,
    /// What the operation, and whatever its task did until its next one, changed.
    pub changes: Vec<Change>,
    /// The tracepoints that it emitted.
    pub traces: Vec<TraceRecord>,
}

/// One execution, whole.
#[derive(Debug)]
pub struct Witness {
    /// Names of the tasks, by number; the first is the boot task.
    pub tasks: Vec<String>,
    /// What the tasks did.
    pub steps: Vec<Step>,
    /// What of the state was watched, as it was before the first step.
    pub initial: Vec<(String, String)>,
    /// How the tasks ended.
    pub verdict: Verdict,
    /// What was wrong.
    pub failure: Option<Failure>,
    /// The decisions, for a replay.
    pub schedule: Schedule,
}

impl Witness {
    /// Runs the program once more under `strategy` and looks at everything.
    pub fn of(program: &ScenarioProgram, strategy: Box<dyn Strategy>) -> Witness {
        let seen: Rc<RefCell<Seen>> = Rc::default();
        let watch: Arc<Mutex<Option<(Running, Watch)>>> = Arc::default();
        let recorder = Recorder { inner: strategy, seen: Rc::clone(&seen), watch: Arc::clone(&watch), preempted: None };
        let mut sim = Sim::new(Chooser::Custom(Box::new(recorder)));
        let config = Config {
            seed: 0,
            steps_max: STEPS_MAX,
            log: LogLevel::Full,
            memory: program.memory(),
            ..Config::default()
        };
        let (running, verdict) = sim.execute(&config, |cx| {
            let running = program.begin(cx);
            *watch.lock() = Some((running.clone(), Watch::new(cx, program.scenario(), &running.world)));
            running
        });
        let log = sim.log();
        let schedule = sim.schedule();
        let last = verdict.is_completed().then(|| watch.lock().as_ref().map(|(_, watch)| watch.look())).flatten();
        // What comes afterwards runs alone; it is not looked at.
        seen.borrow_mut().is_over = true;
        let ending = program.end(&mut sim, &running, &verdict);
        let failure = program.failure(&running, &verdict, &ending);
        let seen = std::mem::take(&mut *seen.borrow_mut());
        let mut tasks = vec!["boot".to_string()];
        tasks.extend(log.events().iter().filter_map(|event| match event {
            Event::Spawn { name, .. } => Some(name.to_string()),
            _ => None,
        }));
        let initial = seen.steps.first().map(|first| first.state.clone()).unwrap_or_default();
        let steps = assemble(seen, last, log.events(), &sim);
        Witness { tasks, steps, initial, verdict, failure, schedule }
    }

    /// How often a task was stopped that could have gone on.
    pub fn preemptions(&self) -> usize {
        self.steps.iter().filter(|step| step.preempted.is_some()).count()
    }

    /// The task of each operation.
    pub fn order(&self) -> Vec<TaskId> {
        self.steps.iter().map(|step| step.task).collect()
    }

    /// Name of a task.
    pub fn task(&self, task: TaskId) -> String {
        let name = self.tasks.get(owner(task).index()).map_or("?", String::as_str);
        if task == owner(task) { name.to_string() } else { format!("the store buffer of {name}") }
    }
}

/// The task itself or, of a store buffer, the task whose stores wait there.
pub(crate) fn owner(task: TaskId) -> TaskId {
    if task.0 >= BUFFERS_FROM { TaskId(task.0 - BUFFERS_FROM) } else { task }
}

/// What the strategy was told.
#[derive(Default)]
struct Seen {
    steps: Vec<SeenStep>,
    is_over: bool,
}

struct SeenStep {
    task: TaskId,
    op: Op,
    /// The index in words.
    place: Option<String>,
    preempted: Option<TaskId>,
    line: (Part, usize),
    state: Vec<(String, String)>,
}

struct Recorder {
    inner: Box<dyn Strategy>,
    seen: Rc<RefCell<Seen>>,
    watch: Arc<Mutex<Option<(Running, Watch)>>>,
    preempted: Option<TaskId>,
}

impl Strategy for Recorder {
    fn begin(&mut self, seed: u64) {
        self.inner.begin(seed);
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let task = self.inner.pick(ready)?;
        let stopped = task != ready.current && ready.runnable.contains(ready.current);
        // A task that starts decides again before its first operation; it was let in by whoever was stopped before that.
        if stopped {
            self.preempted = Some(ready.current);
        }
        Ok(task)
    }

    fn executed(&mut self, task: TaskId, op: &Op) {
        self.inner.executed(task, op);
        let mut seen = self.seen.borrow_mut();
        // What a failed task's destructors do is no part of the race.
        if task == TaskId::BOOT || seen.is_over || std::thread::panicking() {
            return;
        }
        let watch = self.watch.lock();
        let Some((running, watch)) = &*watch else { return };
        let thread = Part::Thread(owner(task).index() - 1);
        let index = running.done.lock().iter().filter(|done| done.part == thread).count();
        seen.steps.push(SeenStep {
            task,
            op: *op,
            place: watch.place(op),
            preempted: self.preempted.take().filter(|stopped| *stopped != task),
            line: (thread, index),
            state: watch.look(),
        });
    }
}

/// Puts what the strategy was told beside the log.
fn assemble(seen: Seen, last: Option<Vec<(String, String)>>, events: &[Event], sim: &Sim) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::with_capacity(seen.steps.len());
    let mut states: Vec<Vec<(String, String)>> = seen.steps.iter().skip(1).map(|step| step.state.clone()).collect();
    // Of an execution that was abandoned nothing is known after its last operation began.
    states.push(last.or_else(|| seen.steps.last().map(|step| step.state.clone())).unwrap_or_default());
    let mut held: Vec<(TaskId, Holding)> = Vec::new();
    let names = ObjectNames::new(events, sim);
    let mut told = seen.steps.into_iter().zip(states);
    for event in events {
        match event {
            Event::Op { task: TaskId::BOOT, .. } => {}
            Event::Op { task, access: Access::Unlock, object, index } => {
                let is_it = |(who, h): &(TaskId, Holding)| who == task && h.object == *object && h.index == *index;
                match held.iter().rposition(is_it) {
                    Some(at) => drop(held.remove(at)),
                    // A lock that was tried for and had: it was held since.
                    None => hold_since_try(&mut steps, *task, *object, *index),
                }
            }
            Event::Op { task, access, object, index } => {
                // Only what a failed task's destructors did is logged and not told.
                let Some((told, after)) = told.next() else { break };
                assert_eq!((told.task, told.op.object), (*task, *object), "the strategy is told what is logged");
                let name = names.name(*object);
                let object_words = match &told.place {
                    Some(place) => format!("{name}[{place}]"),
                    None => name.clone(),
                };
                let site = Site::of(&told.op);
                let mine = held.iter().filter(|(who, _)| who == task).map(|(_, holding)| holding.clone()).collect();
                let changes = Change::between(&told.state, &after);
                steps.push(Step {
                    task: *task,
                    op: told.op,
                    object: object_words,
                    site,
                    line: told.line,
                    preempted: told.preempted,
                    held: mine,
                    changes,
                    traces: Vec::new(),
                });
                match access {
                    Access::LockShared | Access::LockExclusive | Access::SrcuEnter => {
                        let holding = Holding {
                            name: steps.last().expect("just pushed").object.clone(),
                            access: *access,
                            site,
                            object: *object,
                            index: *index,
                        };
                        held.push((*task, holding));
                    }
                    Access::SrcuExit => {
                        if let Some(at) = held.iter().rposition(|(who, h)| who == task && h.object == *object) {
                            held.remove(at);
                        }
                    }
                    _ => {}
                }
            }
            Event::Trace(record) if record.task != TaskId::BOOT => {
                if let Some(step) = steps.last_mut() {
                    step.traces.push(record.clone());
                }
            }
            _ => {}
        }
    }
    steps
}

/// Names of objects: with their number only if the execution touches several of one class.
struct ObjectNames {
    names: BTreeMap<ObjId, String>,
}

impl ObjectNames {
    fn new(events: &[Event], sim: &Sim) -> ObjectNames {
        let objects: BTreeSet<ObjId> = events
            .iter()
            .filter_map(|event| match event {
                Event::Op { task, object, .. } if *task != TaskId::BOOT => Some(*object),
                _ => None,
            })
            .collect();
        let full: BTreeMap<ObjId, String> = objects.into_iter().map(|o| (o, sim.object_name(o))).collect();
        let class = |name: &str| name.split('#').next().unwrap_or_default().to_string();
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for name in full.values() {
            *count.entry(class(name)).or_default() += 1;
        }
        let short = |name: String| if count[&class(&name)] == 1 { class(&name) } else { name };
        ObjectNames { names: full.into_iter().map(|(object, name)| (object, short(name))).collect() }
    }

    fn name(&self, object: ObjId) -> String {
        self.names.get(&object).cloned().unwrap_or_default()
    }
}

fn hold_since_try(steps: &mut [Step], task: TaskId, object: ObjId, index: u64) {
    let is_try = |step: &Step| {
        step.task == task && step.op.access == Access::TryLock && step.op.object == object && step.op.index == index
    };
    let Some(at) = steps.iter().rposition(is_try) else { return };
    let Step { object: name, site, .. } = &steps[at];
    let holding = Holding { name: name.clone(), access: Access::TryLock, site: *site, object, index };
    for step in steps[at + 1..].iter_mut().filter(|step| step.task == task) {
        step.held.push(holding.clone());
    }
}
