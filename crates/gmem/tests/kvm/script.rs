//! A machine on which scripts run: lines in the language of scenarios, each with what it must answer.

use gmem::MachineConfig;
use gmem::interp::{Sequential, World};
use gmem::kvm::vm::Vm;
use gmem::scenario::parse_line;
use sim_kernel::Cx;
use std::marker::PhantomData;
use std::sync::Arc;

/// The machine. `M` says what protects guests on it, and has what is asked of that alone.
pub(crate) struct Script<M> {
    machine: Sequential,
    of: PhantomData<M>,
}

impl<M> Script<M> {
    pub(crate) fn on(config: MachineConfig) -> Script<M> {
        Script { machine: Sequential::new(config), of: PhantomData }
    }

    /// Performs lines; each must answer what it says.
    #[track_caller]
    pub(crate) fn run(&mut self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let step = parse_line(line).unwrap_or_else(|error| panic!("{line}: {}", error.title));
            let answer = self.machine.with(|cx, world| world.execute(cx, &step.op));
            if let Some(expected) = step.expect {
                expected.check(&answer).unwrap_or_else(|problem| panic!("{line}: {problem}"));
            }
        }
    }

    pub(crate) fn with<R>(&mut self, look: impl FnOnce(&Cx<'_>, &World) -> R) -> R {
        self.machine.with(look)
    }

    pub(crate) fn of_vm<R>(&mut self, vm: &str, look: impl FnOnce(&Cx<'_>, &Arc<Vm>) -> R) -> R {
        self.with(|cx, world| look(cx, &world.vm(cx, &vm.into()).expect("the VM is open")))
    }

    /// The process ends; then nothing is left, neither of guests nor of what protects them, and what must hold does.
    pub(crate) fn end(mut self) {
        self.with(gmem::testing::values::check_and_end);
    }
}
