//! The native runner: tasks are OS threads, scheduling points are nothing, locks are parking_lot's.
//!
//! For wall-clock benchmarks of the same kernel code. Nothing here is deterministic, and nothing is logged.

use super::engine::TaskBody;
use super::op::{MAX_TASKS, TaskId, TaskSet};
use crate::Cx;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// What the threads of one native run share.
pub(crate) struct NativeShared {
    threads: Mutex<Vec<JoinHandle<()>>>,
    tasks: AtomicUsize,
    signals: AtomicU64,
}

impl NativeShared {
    #[allow(clippy::disallowed_methods, reason = "the native runner is the one place that starts threads")]
    pub(crate) fn spawn(self: &Arc<Self>, name: &str, body: TaskBody) -> TaskId {
        let number = self.tasks.fetch_add(1, Ordering::Relaxed);
        assert!(number < MAX_TASKS, "more than {} tasks", MAX_TASKS - 1);
        let task = TaskId(number as u8);
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name(name.to_string())
            .spawn(move || {
                let cx = Cx::native(&shared, task);
                body(&cx);
                cx.task_work_run();
            })
            .expect("the host can start a thread");
        self.threads.lock().push(thread);
        task
    }

    pub(crate) fn send_signal(&self, task: TaskId) {
        self.signals.fetch_or(1 << task.0, Ordering::SeqCst);
    }

    pub(crate) fn clear_signals(&self, task: TaskId) {
        self.signals.fetch_and(!(1 << task.0), Ordering::SeqCst);
    }

    pub(crate) fn signals(&self) -> TaskSet {
        TaskSet(self.signals.load(Ordering::SeqCst))
    }
}

impl fmt::Debug for NativeShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NativeShared").field("tasks", &self.tasks).finish_non_exhaustive()
    }
}

/// Runs `main` on this thread and every task that it spawns on a thread of its own; returns when all have ended.
///
/// ```
/// use sim_kernel::sync::Mutex;
/// use std::sync::Arc;
///
/// let counter = sim_kernel::sched::run_native(|cx| {
///     let counter = Arc::new(Mutex::new(cx, "counter", 0));
///     for name in ["a", "b"] {
///         let counter = Arc::clone(&counter);
///         cx.spawn(name, move |cx| *counter.lock(cx) += 1);
///     }
///     counter
/// });
/// sim_kernel::sched::run_native(|cx| assert_eq!(*counter.lock(cx), 2));
/// ```
///
/// # Panics
/// If a task panicked.
pub fn run_native<R>(main: impl FnOnce(&Cx<'_>) -> R) -> R {
    let shared =
        Arc::new(NativeShared { threads: Mutex::default(), tasks: AtomicUsize::new(1), signals: AtomicU64::new(0) });
    let cx = Cx::native(&shared, TaskId::BOOT);
    let value = main(&cx);
    cx.task_work_run();
    loop {
        let thread = shared.threads.lock().pop();
        match thread {
            Some(thread) => {
                if let Err(payload) = thread.join() {
                    std::panic::resume_unwind(payload);
                }
            }
            None => return value,
        }
    }
}
