//! A recorded run as plain data: steps, what happened at them, and states.

use sim_kernel::sched::{Access, TaskId};

use super::names::Names;
use super::store::Store;
use crate::explore::Report;
use crate::explore::witness::Site;

/// A run, recorded.
#[derive(Debug)]
pub struct Recording {
    /// What was run.
    pub title: String,
    /// What it shows, in a sentence.
    pub teaches: Option<String>,
    /// Name and value of what the run depends on: kernel, strategy, mutants.
    pub facts: Vec<(String, String)>,
    /// Names of the tasks by number; the first performs what comes before and after the threads.
    pub tasks: Vec<String>,
    /// What the tasks were told to do: set-up, threads one after the other, finish.
    pub lines: Vec<Line>,
    /// What they did, in order.
    pub steps: Vec<Step>,
    /// How many of the steps are the set-up's. Step numbers count from the start of the threads, as those of the explorer do.
    pub setup_steps: usize,
    /// Names of objects, by number.
    pub objects: Vec<String>,
    /// Places in the model, with the function around each.
    pub sites: Vec<(Site, Option<&'static str>)>,
    /// Locks and read sections, from when they were taken to when they were released, in the order of the taking.
    pub locks: Vec<Lock>,
    /// What led to what.
    pub arrows: Vec<Arrow>,
    /// States: look 0 before the first step, look `n` after step `n` of [`Recording::steps`], counted from 1.
    pub store: Store,
    /// What things are called.
    pub names: Names,
    /// How the run ended, in a sentence.
    pub ending: String,
    /// Whether that is what should have come out.
    pub is_as_expected: bool,
    /// The failure, explained, if there is one that can be.
    pub report: Option<Report>,
    /// The two steps that collided, as indexes of [`Recording::steps`].
    pub pair: Option<(usize, usize)>,
    /// The decisions, printed.
    pub schedule: String,
    /// Hash of the events.
    pub digest: u64,
    /// The schedule did not fit: it names a task that cannot run where its turn is.
    pub misfit: Option<String>,
    /// If the run was left at a decision: who can go on, and who is blocked.
    pub choice: Vec<Pending>,
}

/// A line of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The task that performs it.
    pub task: usize,
    /// Its number in the file.
    pub number: u64,
    /// The operation.
    pub text: String,
    /// What it answered, if it was completed.
    pub answer: Option<String>,
    /// Why that is not what should have come out.
    pub problem: Option<String>,
}

/// A scheduling point and what its task did until the next one.
#[derive(Clone, Debug)]
pub struct Step {
    /// Who. The task itself also for its store buffer.
    pub task: TaskId,
    /// The store buffer did it.
    pub buffered: bool,
    /// How the object was touched.
    pub access: Access,
    /// The object, in [`Recording::objects`].
    pub object: u32,
    /// The part of it, in words; empty if it has none.
    pub place: String,
    /// Where in the model, in [`Recording::sites`].
    pub site: u32,
    /// In which line of the program, in [`Recording::lines`].
    pub line: Option<u32>,
    /// How many decisions of the schedule were made before it.
    pub decisions: u32,
    /// The task that was stopped for it.
    pub preempted: Option<TaskId>,
    /// Guest frames that it touched: first, end. Empty: none that is known.
    pub gfns: (u64, u64),
    /// What else happened in it, in order.
    pub notes: Vec<Note>,
    /// Somebody who wants to understand the run looks at this step.
    pub notable: bool,
}

/// Something that happened within a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A lock was released.
    Released(String),
    /// A tracepoint.
    Trace(String),
    /// A call to whom a confidential machine has below its kernel, and the answer.
    Call(Callee, String),
    /// A line of the program was completed.
    Completed(u32),
    /// A task was created.
    Spawned(usize),
    /// The task ended.
    Ended,
    /// The task failed an assertion.
    Failed(String),
}

/// Who is called, below the kernel or the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Callee {
    /// The TDX module, by the host (SEAMCALL).
    TdxModule,
    /// The hypervisor of pKVM at EL2, by the host.
    El2,
    /// The hypervisor of pKVM at EL2, or KVM in its place, by a guest (HVC).
    Hvc,
}

impl Callee {
    /// What the call is called.
    pub const fn name(self) -> &'static str {
        match self {
            Callee::TdxModule => "SEAMCALL",
            Callee::El2 => "EL2",
            Callee::Hvc => "HVC",
        }
    }
}

/// A lock, held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// By whom.
    pub task: TaskId,
    /// Its name.
    pub name: String,
    /// How.
    pub access: Access,
    /// The step that took it.
    pub from: usize,
    /// The step in which it was released; the last one if it never was.
    pub to: usize,
}

/// What an arrow means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArrowKind {
    /// Translations were taken away, and for that a flush was asked of a vCPU.
    Flush,
    /// The vCPU did what was asked.
    Acknowledge,
}

impl ArrowKind {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            ArrowKind::Flush => "zap to flush",
            ArrowKind::Acknowledge => "flush to acknowledgement",
        }
    }
}

/// One step led to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrow {
    /// In which way.
    pub kind: ArrowKind,
    /// The first step.
    pub from: usize,
    /// The second.
    pub to: usize,
}

/// What a task is about to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Who.
    pub task: TaskId,
    /// What, in words.
    pub op: String,
    /// In which function.
    pub function: String,
    /// Whether somebody may choose it.
    pub runnable: bool,
}

impl Recording {
    /// A step's number as people see it: from 1 at the start of the threads, 0 and below before.
    pub fn number(&self, step: usize) -> i64 {
        step as i64 + 1 - self.setup_steps as i64
    }

    /// What a step does, in words.
    pub fn words(&self, step: usize) -> String {
        let step = &self.steps[step];
        let object = &self.objects[step.object as usize];
        let verb = crate::explore::report::verb(step.access);
        match (object.as_str(), step.place.as_str()) {
            ("none", _) => verb.to_string(),
            (object, "") => format!("{verb} {object}"),
            (object, place) => format!("{verb} {object}[{place}]"),
        }
    }
}

/// How a lock is held, in words.
pub const fn how(access: Access) -> &'static str {
    match access {
        Access::LockShared => "for reading",
        Access::SrcuEnter => "as a reader",
        _ => "exclusively",
    }
}
