//! Rows with several threads: the same program under many random schedules, and what the schedules showed.

use super::expect::Failure;
use crate::kvm::process::Process;
use crate::{Kvm, Machine, MachineConfig, VmFd};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use sim_kernel::Cx;
use sim_kernel::sched::{Chooser, Divergence, MAX_TASKS, Ready, Strategy, TaskId};
use sim_kernel::sync::WaitQueue;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the threads of a schedule find, and which sides of the race came.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    shared: Arc<parking_lot::Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    failure: Option<Failure>,
    sides: BTreeMap<&'static str, u64>,
}

impl Findings {
    /// Keeps what a thread found if it is the first failure.
    pub(super) fn note(&self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.shared.lock().failure.get_or_insert(failure);
        }
    }

    /// One side of the race was seen, once more.
    pub(super) fn saw(&self, side: &'static str) {
        *self.shared.lock().sides.entry(side).or_default() += 1;
    }

    /// Starts a thread of the VMM, whose failure is one of the check.
    pub(super) fn spawn(
        &self,
        cx: &Cx<'_>,
        name: &str,
        body: impl FnOnce(&Cx<'_>) -> Result<(), Failure> + Send + 'static,
    ) -> TaskId {
        let findings = self.clone();
        let name_of_failure = name.to_string();
        cx.spawn(name, move |cx| {
            findings.note(body(cx).map_err(|failure| failure.within(format_args!("thread {name_of_failure}"))));
        })
    }
}

/// Random decisions among threads of different speed, both drawn with the seed: a thread may get far while another stands still,
/// which decisions that are equally likely hardly ever show.
#[derive(Debug)]
struct Uneven {
    rng: Pcg64Mcg,
    speeds: [u64; MAX_TASKS],
}

impl Default for Uneven {
    fn default() -> Uneven {
        Uneven { rng: Pcg64Mcg::seed_from_u64(0), speeds: [1; MAX_TASKS] }
    }
}

impl Strategy for Uneven {
    fn begin(&mut self, seed: u64) {
        self.rng = Pcg64Mcg::seed_from_u64(seed);
        self.speeds = std::array::from_fn(|_| 1 << (3 * (self.rng.next_u64() >> 62)));
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let tasks = || (0..ready.runnable.len()).map(|n| ready.runnable.nth(n));
        let all: u64 = tasks().map(|task| self.speeds[task.index()]).sum();
        let mut draw = ((self.rng.next_u64() >> 32) * all) >> 32;
        let picked = tasks().find(|task| match draw.checked_sub(self.speeds[task.index()]) {
            Some(left) => {
                draw = left;
                false
            }
            None => true,
        });
        Ok(picked.expect("the draw is below the sum"))
    }
}

/// A program for many schedules.
pub(super) struct Race {
    schedules: u64,
    findings: Findings,
    machine: Machine,
}

impl Race {
    /// So many schedules of each program, with the seeds from 0.
    pub(super) fn new(schedules: u64) -> Race {
        Race { schedules, findings: Findings::default(), machine: Machine::new(MachineConfig::default()) }
    }

    /// Runs a program under every schedule. `setup` makes a VM of the type and spawns threads; `after` looks at what is left.
    pub(super) fn explore<S>(
        &mut self,
        vm_type: u64,
        setup: impl Fn(&Cx<'_>, &Arc<Process>, VmFd, &Findings) -> Result<S, Failure>,
        after: impl Fn(&Cx<'_>, &Arc<Process>, S) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for seed in 0..self.schedules {
            let findings = self.findings.clone();
            let execution = self.machine.explore(
                Chooser::Custom(Box::new(Uneven::default())),
                seed,
                |cx, process| {
                    let created = Kvm::new(cx, process).and_then(|kvm| kvm.create_vm_with_type(cx, vm_type));
                    let vm = created.map_err(|errno| Failure::new(format!("KVM_CREATE_VM: {errno:?}")))?;
                    setup(cx, process, vm, &findings)
                },
                |cx, process, state| findings.note(state.and_then(|state| after(cx, process, state))),
            );
            // What a thread found says more than that others then waited for it in vain.
            let failure = self.findings.shared.lock().failure.take();
            if let Some(failure) = failure {
                let replay = format_args!("seed {seed}, schedule {}", execution.schedule()).to_string();
                return Err(failure.within(super::cases::type_name(vm_type)).within(replay));
            }
            if !execution.is_completed() {
                return Err(Failure::new(format!("{}: {execution}", super::cases::type_name(vm_type))));
            }
        }
        Ok(())
    }

    /// Every side must have been seen; says how often.
    pub(super) fn finish(self, sides: &[&'static str]) -> Result<String, Failure> {
        let seen = &self.findings.shared.lock().sides;
        let mut text = format!("{} schedules of each case", self.schedules);
        for side in sides {
            let count = seen.get(side).copied().unwrap_or(0);
            if count == 0 {
                return Err(Failure::new(format!("{text}: expected some with \"{side}\", found none")));
            }
            text.push_str(&format!("; {side}: {count}"));
        }
        Ok(text)
    }
}

/// A number that threads of the VMM wait for: a selftest's semaphore or barrier.
#[derive(Clone)]
pub(super) struct Progress {
    shared: Arc<(AtomicU64, WaitQueue)>,
}

impl Progress {
    /// Starts at 0.
    pub(super) fn new(cx: &Cx<'_>) -> Progress {
        Progress { shared: Arc::new((AtomicU64::new(0), WaitQueue::new(cx, "progress"))) }
    }

    /// How far it is.
    pub(super) fn get(&self) -> u64 {
        self.shared.0.load(Ordering::SeqCst)
    }

    /// One further; who waits for that goes on.
    pub(super) fn advance(&self, cx: &Cx<'_>) {
        self.shared.0.fetch_add(1, Ordering::SeqCst);
        self.shared.1.wake_up_all(cx);
    }

    /// Sleeps until it is this far.
    pub(super) fn wait_for(&self, cx: &Cx<'_>, value: u64) {
        self.shared.1.wait_event(cx, || self.get() >= value);
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Progress").field(&self.get()).finish()
    }
}
