//! One thread, one operation after the other, and what each changed in stage 2: how traces are replayed.

use sim_kernel::sched::Sim;
use sim_mmu::{KVM_TDP_MMU_SPTE_CHANGED, Level, SpteState};

use super::world::World;
use crate::kvm::config::MachineConfig;
use crate::ops::{self, Op, SpteChange};
use crate::replay::{Executor, Outcome};
use sim_mmu::Stage2Kind;

/// First and last frame of the code page, whose own entries a recording leaves out.
const CODE_GFN: u64 = 0xf_0000;

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
    masks: sim_mmu::SpteMasks,
}

impl Sequential {
    /// A machine of this configuration in which nothing has happened.
    pub fn new(config: MachineConfig) -> Sequential {
        let masks = masks_of(&config);
        let mut sim = Sim::sequential();
        let world = sim.solo(|cx| {
            cx.capture_trace(true);
            World::new(cx, config)
        });
        Sequential { sim, world, masks }
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

/// The entry format of a machine's stage 2, to tell what an entry of a recorded event is.
fn masks_of(config: &MachineConfig) -> sim_mmu::SpteMasks {
    let kind: Stage2Kind = config.stage2;
    sim_mmu::SpteMasks::new(kind, config.stage2_end(), true)
}

impl Executor for Sequential {
    fn execute(&mut self, op: &Op) -> Outcome {
        let world = &self.world;
        let (answer, records) = self.sim.solo(|cx| {
            let answer = world.execute(cx, op);
            (answer, cx.take_trace())
        });
        let changes = records.iter().filter(|r| *r.tracepoint == KVM_TDP_MMU_SPTE_CHANGED).filter_map(|record| {
            let [_, gfn, level, old, new] = record.args[..] else { unreachable!("the tracepoint has five fields") };
            change(&self.masks, gfn, level as u8, old, new)
        });
        Outcome { answer, spte: ops::fold(changes) }
    }
}

/// One event as a recording has it; `None` for the entry of the code page.
fn change(masks: &sim_mmu::SpteMasks, gfn: u64, level: u8, old: u64, new: u64) -> Option<SpteChange> {
    if level == 1 && gfn == CODE_GFN {
        return None;
    }
    let state = |spte: u64| {
        let level = Level::from_number(level).expect("an event names a level that exists");
        match masks.classify(sim_mmu::Spte(spte), level) {
            SpteState::None => (ops::SpteState::None, false),
            SpteState::Leaf { writable } => (ops::SpteState::Leaf, writable),
            SpteState::Table => (ops::SpteState::Table, false),
            SpteState::Frozen => (ops::SpteState::Frozen, false),
            SpteState::Mmio => (ops::SpteState::Mmio, false),
        }
    };
    let ((from, _), (to, writable)) = (state(old), state(new));
    Some(SpteChange { gfn, level, from, to, writable })
}
