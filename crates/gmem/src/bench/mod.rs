//! What the model costs: the workloads behind `gmem bench` and behind the benchmarks of `benches/`, each with the goal that it is held against.
//!
//! A workload builds a machine, says what it is going to do, and hands a [`Meter`] a body that does it again and again. The meter decides
//! how often, and has clock and scales: nothing here reads either. Bodies time only the part that the goal is about, by [`Timer::time`].
//!
//! Goals are numbered as in the design of the MMU: P1 to P4 and P8 are the processor's, P6 and P7 KVM's stage 2, P5, P9 and P10 a whole VM, P11 one
//! with everything watched, P12 what a page costs in memory, P13 threads, P14 an SNP guest and a TD, and `pages` what a page costs in time, here and in a real kernel.

mod checked;
mod guest;
pub mod memory;
pub mod pages;
mod parallel;
mod resident;
mod snp;
mod stage2;
mod vm;
mod walks;
mod workloads;

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use guest::{Guest, Vendor};
pub use resident::{ResidentMemory, populate};
pub use vm::BenchVm;

/// A stopwatch over somebody else's clock.
#[derive(Debug)]
pub struct Timer {
    now: fn() -> Duration,
    spent: Duration,
}

impl Timer {
    /// A timer at zero. `now` gives a time since some fixed moment.
    pub fn new(now: fn() -> Duration) -> Timer {
        Timer { now, spent: Duration::ZERO }
    }

    /// Does something, and adds how long it took.
    pub fn time<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let begun = (self.now)();
        let result = work();
        self.spent += (self.now)().saturating_sub(begun);
        result
    }

    /// The time of all that was timed.
    pub fn spent(&self) -> Duration {
        self.spent
    }
}

/// What is measured, and against what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The goal, such as `P3`.
    pub goal: Cow<'static, str>,
    /// Which way of doing it, such as `npt` or `hash map`.
    pub name: Cow<'static, str>,
    /// Pages of the working set, 0 where there is none.
    pub pages: u64,
    /// What one element is, in the singular.
    pub element: Cow<'static, str>,
    /// How many elements a call of the body does.
    pub elements: u64,
    /// Most nanoseconds, or bytes, that an element should take.
    pub limit: Option<f64>,
    /// Whether this is another way of doing the same thing, to compare with.
    pub is_peer: bool,
    /// Whether several threads work at it, so that only the time that passes says something.
    pub is_parallel: bool,
    /// What else there is to say: references of an access, hit rates.
    pub note: String,
}

impl Case {
    /// A case without limit or note.
    pub fn new(goal: &'static str, name: &'static str, pages: u64, element: &'static str, elements: u64) -> Case {
        Case {
            goal: Cow::Borrowed(goal),
            name: Cow::Borrowed(name),
            pages,
            element: Cow::Borrowed(element),
            elements,
            limit: None,
            is_peer: false,
            is_parallel: false,
            note: String::new(),
        }
    }

    /// With a limit for each element.
    pub fn at_most(mut self, limit: f64) -> Case {
        self.limit = Some(limit);
        self
    }

    /// As something to compare with.
    pub fn peer(mut self) -> Case {
        self.is_peer = true;
        self
    }

    /// As the work of several threads.
    pub fn parallel(mut self) -> Case {
        self.is_parallel = true;
        self
    }

    /// With a remark.
    pub fn note(mut self, note: impl Into<String>) -> Case {
        self.note = note.into();
        self
    }

    /// Goal, name and set in one word, such as `P3/npt/4096`.
    pub fn id(&self) -> String {
        let name = self.name.replace(' ', "_");
        if self.pages == 0 { format!("{}/{name}", self.goal) } else { format!("{}/{name}/{}", self.goal, self.pages) }
    }
}

/// Builds something, calls the first before it and the second after, and takes it down.
pub type Weighing<'a> = dyn FnMut(&mut dyn FnMut(), &mut dyn FnMut()) + 'a;

/// Who measures.
pub trait Meter {
    /// Calls `body` as often as it takes to say what an element costs.
    fn measure(&mut self, case: Case, body: &mut dyn FnMut(&mut Timer));

    /// Says how many bytes of this process's memory an element takes: what `body` has more of when it calls the second of what it is given
    /// than when it called the first.
    fn weigh(&mut self, case: Case, body: &mut Weighing<'_>);
}

/// A goal, and the workload that it is measured by.
#[derive(Clone, Copy)]
pub struct Goal {
    /// Its name.
    pub id: &'static str,
    /// What it says.
    pub text: &'static str,
    /// Measures it, with the sizes of the goal or smaller ones.
    pub run: fn(&mut dyn Meter, &Size),
}

impl std::fmt::Debug for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Goal").field("id", &self.id).field("text", &self.text).finish()
    }
}

/// How large the workloads are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Small enough for a test, instead of what the goals say: up to 1 GiB of guest memory.
    pub small: bool,
    /// Bytes of the guest whose pages are weighed (P12), instead of several sizes.
    pub guest: Option<u64>,
}

impl Size {
    /// One of two sizes.
    pub fn of<T>(&self, full: T, small: T) -> T {
        if self.small { small } else { full }
    }
}

/// Every goal that is measured, in order.
pub const GOALS: &[Goal] = &[
    Goal { id: "P1", text: "an access that hits the TLB", run: walks::p1 },
    Goal { id: "P2", text: "a miss that paging-structure caches serve, with the fill", run: walks::p2 },
    Goal { id: "P3", text: "a cold walk of 24 references, with the fill", run: walks::p3 },
    Goal { id: "P4", text: "a cold walk of 35 references, with the fill", run: walks::p4 },
    Goal { id: "P5", text: "a private fault: exit, map, enter again", run: workloads::p5 },
    Goal { id: "P6", text: "an eager split of 1 GiB to 4 KiB, for each new entry", run: stage2::p6 },
    Goal { id: "P7", text: "leaves zapped in bulk, for each entry", run: stage2::p7 },
    Goal { id: "P8", text: "a flush of TLBs, however much they hold", run: walks::p8 },
    Goal { id: "P9", text: "2 MiB converted, everything mapped", run: workloads::p9 },
    Goal { id: "P10", text: "a round of dirty logging over 1 GiB, all of it dirty", run: workloads::p10 },
    Goal { id: "P11", text: "accesses and faults with everything watched", run: checked::p11 },
    Goal { id: "P12", text: "memory of a resident page of 4 KiB without contents", run: resident::p12 },
    Goal { id: "P13", text: "faults on one thread and on two, in a VM of each or in one VM", run: parallel::p13 },
    Goal {
        id: "P14",
        text: "a page converted by a protected guest, there or back, with all that belongs to it",
        run: snp::p14,
    },
    Goal {
        id: "pages",
        text: "a page allocated, punched, touched by the VMM, touched by a vCPU",
        run: pages::simulated,
    },
];

/// The goal of this name.
///
/// # Errors
/// That there is none.
pub fn goal(id: &str) -> Result<&'static Goal, String> {
    let found = GOALS.iter().find(|goal| goal.id.eq_ignore_ascii_case(id));
    found.ok_or_else(|| {
        let all: Vec<_> = GOALS.iter().map(|goal| goal.id).collect();
        format!("there is no goal `{id}`; there are {}", all.join(", "))
    })
}
