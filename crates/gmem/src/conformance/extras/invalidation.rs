//! Requests that take nothing from a guest must not disturb its faults: the invalidation sequence stays.
//!
//! No system call shows the sequence; these rows look at it in the simulator.

use super::super::Outcome;
use super::super::cases::{Case, With, each_file, gmem_region, on_vm};
use super::super::expect::{Failure, ensure, equal, ok};
use crate::kvm::uapi::*;
use sim_kernel::PAGE_SIZE;

const SIZE: u64 = 4 * PAGE_SIZE;

fn sequence(case: &Case<'_, '_>) -> u64 {
    case.vm.vm().mmu().invalidate.peek_seq()
}

/// The sequence stays over `quiet` and moves on over `loud`, which shows that there is something to see.
fn quiet_then_loud(
    case: &Case<'_, '_>,
    quiet: impl FnOnce() -> Result<(), Failure>,
    loud: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let before = sequence(case);
    quiet()?;
    equal("the sequence", sequence(case), before)?;
    loud()?;
    ensure(sequence(case) != before, format_args!("expected a sequence other than {before}, found it unchanged"))
}

fn protected(row: impl Fn(&Case<'_, '_>) -> Result<(), Failure>) -> Outcome {
    on_vm(KVM_X86_SW_PROTECTED_VM, |case| {
        let memory = case.create(SIZE, 0)?;
        case.set_region2("slot", gmem_region(0, 0, SIZE, 0, &memory, 0))?;
        row(case)?;
        Ok("software-protected VM".to_string())
    })
}

pub(super) fn slotless() -> Outcome {
    protected(|case| {
        quiet_then_loud(case, || case.set_private(1 << 30, SIZE, true), || case.set_private(0, SIZE, true))
    })
}

pub(super) fn repeated() -> Outcome {
    protected(|case| {
        case.set_private(0, SIZE, true)?;
        quiet_then_loud(case, || case.set_private(0, SIZE, true), || case.set_private(0, SIZE, false))
    })
}

pub(super) fn unbound() -> Outcome {
    each_file(With::Any, 4, |case, memory| {
        ok("fallocate", memory.allocate(case.cx, 0, SIZE))?;
        quiet_then_loud(
            case,
            || ok("hole without a slot", memory.punch_hole(case.cx, 0, SIZE)),
            || {
                case.set_region2("slot", gmem_region(0, 0, SIZE, 0, memory, 0))?;
                ok("hole in the slot", memory.punch_hole(case.cx, 0, SIZE))
            },
        )
    })
}
