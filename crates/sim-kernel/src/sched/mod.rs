//! Tasks and scheduling: the deterministic engine and the native runner.
//!
//! One set of kernel code runs in two ways. *Simulated*, tasks are stackful coroutines on one OS thread and a [`Strategy`] picks
//! who runs at every scheduling point ([`Sim`]). *Native*, tasks are OS threads ([`run_native`]). Kernel code sees neither: it
//! takes a [`Cx`](crate::Cx) and uses the primitives of [`crate::sync`].
//!
//! What is simplified: memory is sequentially consistent in simulated executions; interrupts and CPUs are not modelled as such, a
//! task is its own CPU.

mod deadlock;
mod effect;
pub(crate) mod engine;
pub(crate) mod event;
mod livelock;
pub(crate) mod lock_order;
pub(crate) mod native;
pub(crate) mod observe;
pub(crate) mod op;
mod schedule;
mod sim;
mod site;
pub(crate) mod store_buffer;
mod strategy;
mod trail;

pub use deadlock::{Deadlock, Waiter};
pub use effect::{Effect, EffectKind, Relation};
pub use event::{Event, EventLog, LogLevel, MAX_ARGS, Names, TraceRecord, Tracepoint, render_json};
pub use livelock::{Continued, Livelock, continue_fairly, fair_tail};
pub use lock_order::{LockEdge, LockOrder};
pub use native::run_native;
pub use observe::{HeldLock, Observation, Observer};
pub use op::{Access, MAX_TASKS, ObjId, Op, TaskId, TaskSet};
pub use schedule::{Schedule, ScheduleError};
pub use sim::{Config, Sim, Verdict, invariant_of};
pub use site::Site;
pub use store_buffer::{BUFFERS_FROM, MemoryModel};
pub(crate) use strategy::Place;
pub use strategy::{
    Branch, Chooser, Dfs, Divergence, Ended, Pct, Pos, Preempt, PreemptState, Random, Ready, Reduced, ReducedBranch,
    Replay, RoundRobin, RunToCompletion, Strategy, Urw,
};
pub use trail::{Trail, TrailStep};
