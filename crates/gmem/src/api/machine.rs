//! The way in: a host, and an execution of your code on it, alone or as several tasks under a scheduler.
//!
//! Each execution boots a new host with one process, so that nothing is carried over and the same seed gives the same execution.

use crate::kvm::config::MachineConfig;
use crate::kvm::host::Host;
use crate::kvm::process::Process;
use sim_kernel::Cx;
use sim_kernel::sched::{Chooser, Config, Random, Replay, Schedule, Sim, Verdict, run_native};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A machine to run executions on, one after the other.
///
/// ```
/// use gmem::{Kvm, Machine, MachineConfig};
///
/// let mut machine = Machine::new(MachineConfig::default());
/// for seed in 0..20 {
///     let execution = machine.explore_random(
///         seed,
///         |cx, process| {
///             let vm = Kvm::new(cx, process).unwrap().create_vm(cx).unwrap();
///             let inspected = vm.vm();
///             let vm = std::sync::Arc::new(vm);
///             for id in 0..2 {
///                 let vm = std::sync::Arc::clone(&vm);
///                 cx.spawn("creator", move |cx| drop(vm.create_vcpu(cx, id).unwrap()));
///             }
///             inspected
///         },
///         |_cx, _process, vm| {
///             assert_eq!(vm.vcpu_count(), 2);
///             vm.check_invariants();
///         },
///     );
///     execution.assert_completed();
/// }
/// ```
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    sim: Sim,
}

/// How an execution of several tasks went, and what it takes to have the same one again.
///
/// ```
/// use gmem::{Machine, MachineConfig};
/// let mut machine = Machine::new(MachineConfig::default());
/// let execution = machine.explore_random(3, |cx, _| { cx.spawn("buggy", |_| panic!("oops")); }, |_, _, ()| {});
/// assert!(!execution.is_completed());
/// assert!(execution.to_string().starts_with("seed 3, schedule gmem1:"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    seed: Option<u64>,
    schedule: Schedule,
    steps: u64,
    verdict: Verdict,
}

impl Machine {
    /// A machine of this configuration. Nothing runs yet.
    pub fn new(config: MachineConfig) -> Machine {
        Machine { config, sim: Sim::sequential() }
    }

    /// The configuration.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Boots a host and runs `body` as the only task of its process, which then exits.
    ///
    /// # Panics
    /// If `body` panics, or waits for something that only another task could do. Tasks that `body` spawns never run: use
    /// [`Machine::explore_random`].
    pub fn run<R>(&mut self, body: impl FnOnce(&Cx<'_>, &Arc<Process>) -> R) -> R {
        self.sim.set_chooser(Chooser::RunToCompletion(Default::default()));
        let config = &self.config;
        let (value, verdict) = self.sim.execute(&Config::default(), |cx| {
            let process = Host::new(cx, config.clone()).process(cx);
            let value = body(cx, &process);
            process.exit(cx);
            value
        });
        assert!(verdict.is_completed(), "Machine::run is for one task, but others were spawned: {verdict}");
        value
    }

    /// [`Machine::explore`] with random decisions drawn from `seed`.
    ///
    /// # Panics
    /// If `setup` panics.
    pub fn explore_random<S>(
        &mut self,
        seed: u64,
        setup: impl FnOnce(&Cx<'_>, &Arc<Process>) -> S,
        check: impl FnOnce(&Cx<'_>, &Arc<Process>, S),
    ) -> Execution {
        self.explore(Chooser::Random(Random::new()), seed, setup, check)
    }

    /// Boots a host; runs `setup` alone, which spawns tasks with [`Cx::spawn`]; interleaves the tasks as the strategy decides; if all
    /// came to their end, runs `check` alone with what `setup` returned; then the process exits.
    ///
    /// A panic of a task or of `check` is a [`Verdict::Panicked`], so that seed and schedule are at hand. After any failure the
    /// process is abandoned as it is: it does not exit.
    ///
    /// # Panics
    /// If `setup` panics.
    pub fn explore<S>(
        &mut self,
        strategy: Chooser,
        seed: u64,
        setup: impl FnOnce(&Cx<'_>, &Arc<Process>) -> S,
        check: impl FnOnce(&Cx<'_>, &Arc<Process>, S),
    ) -> Execution {
        let execution = self.execute(strategy, seed, setup, check);
        Execution { seed: Some(seed), ..execution }
    }

    /// [`Machine::explore`] with the decisions of an earlier execution. If `setup` or the tasks do something else now, the verdict is
    /// [`Verdict::Diverged`].
    ///
    /// # Panics
    /// If `setup` panics.
    pub fn replay<S>(
        &mut self,
        schedule: &Schedule,
        setup: impl FnOnce(&Cx<'_>, &Arc<Process>) -> S,
        check: impl FnOnce(&Cx<'_>, &Arc<Process>, S),
    ) -> Execution {
        self.execute(Chooser::Replay(Replay::new(schedule.clone())), 0, setup, check)
    }

    fn execute<S>(
        &mut self,
        strategy: Chooser,
        seed: u64,
        setup: impl FnOnce(&Cx<'_>, &Arc<Process>) -> S,
        check: impl FnOnce(&Cx<'_>, &Arc<Process>, S),
    ) -> Execution {
        self.sim.set_chooser(strategy);
        let config = &self.config;
        let ((process, state), mut verdict) = self.sim.execute(&Config { seed, ..Config::default() }, |cx| {
            let process = Host::new(cx, config.clone()).process(cx);
            let state = setup(cx, &process);
            (process, state)
        });
        let (schedule, steps) = (self.sim.schedule(), self.sim.steps());
        if verdict.is_completed() {
            let sim = &mut self.sim;
            let checked = catch_unwind(AssertUnwindSafe(|| {
                sim.solo(|cx| {
                    check(cx, &process, state);
                    process.exit(cx);
                });
            }));
            if let Err(payload) = checked {
                let message = payload.downcast_ref::<String>().cloned();
                let message = message.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_string()));
                let message = message.unwrap_or_else(|| "a panic without a message".to_string());
                verdict = Verdict::Panicked { task: "check".to_string(), message };
            }
        }
        Execution { seed: None, schedule, steps, verdict }
    }

    /// Boots a host and runs `body` on this thread and every task that it spawns on a thread of its own, for measuring in wall-clock
    /// time. When all have ended the process exits. Nothing here can be replayed.
    ///
    /// # Panics
    /// If `body` or a task panics.
    ///
    /// ```
    /// use gmem::{Kvm, Machine, MachineConfig};
    /// let version = Machine::run_native(MachineConfig::default(), |cx, process| {
    ///     assert!(cx.is_native());
    ///     Kvm::new(cx, process).unwrap().get_api_version()
    /// });
    /// assert_eq!(version, 12);
    /// ```
    pub fn run_native<R>(config: MachineConfig, body: impl FnOnce(&Cx<'_>, &Arc<Process>) -> R) -> R {
        let (process, value) = run_native(|cx| {
            let process = Host::new(cx, config).process(cx);
            let value = body(cx, &process);
            (process, value)
        });
        run_native(|cx| process.exit(cx));
        value
    }
}

impl Execution {
    /// The seed; `None` for a replay, which has none.
    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// The decisions, for [`Machine::replay`]. Prints as a string that fits into an issue and parses back.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Scheduling points that the tasks passed.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// How the execution ended.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Whether every task and the check ran to their end.
    pub fn is_completed(&self) -> bool {
        self.verdict.is_completed()
    }

    /// Fails the calling test if the execution failed.
    ///
    /// # Panics
    /// If not everything ran to its end, with what it takes to replay.
    #[track_caller]
    pub fn assert_completed(&self) {
        assert!(
            self.is_completed(),
            "{self}\nto replay: Machine::replay(&\"{}\".parse().unwrap(), ...)",
            self.schedule
        );
    }
}

impl fmt::Display for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(seed) = self.seed {
            write!(f, "seed {seed}, ")?;
        }
        write!(f, "schedule {}: {}", self.schedule, self.verdict)
    }
}
