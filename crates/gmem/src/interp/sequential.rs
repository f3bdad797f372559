//! One thread, one operation after the other, and what each changed in stage 2: how traces are replayed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sim_kernel::sched::Sim;
use sim_mmu::KVM_TDP_MMU_SPTE_CHANGED;

use super::stage2::Stage2Reader;
use super::world::World;
use crate::kvm::config::MachineConfig;
use crate::ops::{self, Op};
use crate::replay::{Executor, Outcome};

/// A sequential machine, the replayer's [`Executor`].
///
/// ```
/// use gmem::interp::Sequential;
/// use gmem::ops::Op;
/// use gmem::replay::Executor;
/// let mut machine = Sequential::new(gmem::MachineConfig::default());
/// let op: Op = serde_json::from_str(r#"{"op": "create_vm", "vm": "vm0", "type": 1}"#).unwrap();
/// assert_eq!(machine.execute(&op).answer.to_string(), r#"{"ok": 0}"#);
/// ```
#[derive(Debug)]
pub struct Sequential {
    sim: Sim,
    world: World,
    stage2: Stage2Reader,
    /// No operation was left by a panic.
    whole: bool,
}

impl Sequential {
    /// A machine of this configuration in which nothing has happened.
    pub fn new(config: MachineConfig) -> Sequential {
        let stage2 = Stage2Reader::new(&config);
        let mut sim = Sim::sequential();
        let world = sim.solo(|cx| {
            cx.capture_trace(true);
            World::new(cx, config)
        });
        Sequential { sim, world, stage2, whole: true }
    }

    /// The machine's process and names.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Runs something in the machine's context.
    pub fn with<R>(&mut self, body: impl FnOnce(&sim_kernel::Cx<'_>, &World) -> R) -> R {
        let world = &self.world;
        self.sim.solo(|cx| body(cx, world))
    }
}

impl Executor for Sequential {
    fn execute(&mut self, op: &Op) -> Outcome {
        self.whole = false;
        self.stage2.before(op);
        let world = &self.world;
        let (answer, records) = self.sim.solo(|cx| {
            let answer = world.execute(cx, op);
            (answer, cx.take_trace())
        });
        self.whole = true;
        let changes = records.iter().filter(|r| *r.tracepoint == KVM_TDP_MMU_SPTE_CHANGED).filter_map(|record| {
            let [_, gfn, level, old, new] = record.args[..] else { unreachable!("the tracepoint has five fields") };
            self.stage2.change(gfn, level as u8, old, new)
        });
        Outcome { answer, spte: ops::fold(changes) }
    }
}

/// The process ends with its machine. What it made holds each other (a VM its vCPUs and files, they the VM), and would stay for ever.
impl Drop for Sequential {
    fn drop(&mut self) {
        if self.whole && !std::thread::panicking() {
            let world = &self.world;
            // A mistake of an old release that only shows now is none that was asked about.
            let _ = catch_unwind(AssertUnwindSafe(|| self.sim.solo(|cx| world.process().exit(cx))));
        }
    }
}
