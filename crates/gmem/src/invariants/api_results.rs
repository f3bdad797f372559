//! INV-601 to INV-605: what calls answer.

use super::{Check, Holds, Invariant, Section, When, holds};
use crate::kvm::uapi::{KVM_MEMORY_EXIT_FLAG_PRIVATE, kvm_pre_fault_memory};
use crate::kvm::vcpu::ExitInfo;
use sim_kernel::{Errno, PAGE_SIZE};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-601",
        section: Section::ApiResults,
        text: "A call that fails answers its first failing check and changes nothing, except reserved attribute entries, pages of an \
               interrupted allocation, and what a pre-fault did before its error.",
        window: "",
        when: &[When::Operation],
        check: Check::AtStep,
        note: "By the recordings of a real kernel and its selftests, call by call; of the state, that a failed change leaves the number of slots and of their pages, or the attributes at the start of the range, as they were.",
    },
    Invariant {
        id: "INV-602",
        section: Section::ApiResults,
        text: "A memory-fault exit comes only with an error, names one page-aligned page, and has no flag but PRIVATE.",
        window: "",
        when: &[When::Operation],
        check: Check::AtStep,
        note: "",
    },
    Invariant {
        id: "INV-603",
        section: Section::ApiResults,
        text: "A look-up in guest_memfd never answers EIO: file and slot always agree.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "Not on releases that ignore a failed binding.",
    },
    Invariant {
        id: "INV-604",
        section: Section::ApiResults,
        text: "An access becomes an MMIO exit only if at some moment while it was handled no slot covered its address, or it is a write to a \
               read-only slot.",
        window: "",
        when: &[When::Step],
        check: Check::AtStep,
        note: "When a fault is about to become MMIO although it found a slot; entries that are remembered are INV-207.",
    },
    Invariant {
        id: "INV-605",
        section: Section::ApiResults,
        text: "A pre-fault either makes progress or answers an error, not both; address plus size stay what they were.",
        window: "",
        when: &[When::Operation],
        check: Check::AtStep,
        note: "",
    },
];

/// The answer of a run and the exit that comes with it fit.
pub fn inv_602(result: Result<(), Errno>, exit: ExitInfo) -> Holds {
    let ExitInfo::MemoryFault { flags, gpa, size } = exit else { return Ok(()) };
    let fields = flags & !KVM_MEMORY_EXIT_FLAG_PRIVATE == 0 && gpa.0.is_multiple_of(PAGE_SIZE) && size == PAGE_SIZE;
    holds!(result.is_err() && fields, "KVM_RUN answers {result:?} with {exit:?}");
    Ok(())
}

/// What a pre-fault of a valid range leaves fits its answer.
pub fn inv_605(before: &kvm_pre_fault_memory, after: &kvm_pre_fault_memory, result: Result<(), Errno>) -> Holds {
    let end = |range: &kvm_pre_fault_memory| range.gpa.wrapping_add(range.size);
    let progress = after.size < before.size;
    let right = end(before) == end(after) && progress != result.is_err();
    holds!(right, "KVM_PRE_FAULT_MEMORY answers {result:?}; of {before:?} is left {after:?}");
    Ok(())
}
