//! TDX-INV-001 to TDX-INV-024: TDX and KVM's use of it. The ids are the specification's; those that are missing are about what is not modelled, or follow from others.
//!
//! All are assertions: in `sim_coco::tdx` and in `kvm/tdx/check.rs`, at the step and over everything.

use super::{Check, Invariant, Section, When};

const fn row(id: &'static str, text: &'static str, when: &'static [When], note: &'static str) -> Invariant {
    Invariant { id, section: Section::Tdx, text, window: "", when, check: Check::AtStep, note }
}

/// Of the module, looked at by [`Tdx::check_invariants`](sim_coco::tdx::Tdx::check_invariants).
const MODULE: &str = "By `Tdx::check_invariants`.";

pub(super) static ROWS: &[Invariant] = &[
    row(
        "TDX-INV-001",
        "A frame belongs to the host, or is one page of one TD: memory, a table, or a part of the TD or a vCPU.",
        &[When::Quiescence],
        MODULE,
    ),
    row(
        "TDX-INV-002",
        "A page of memory of a TD is mapped once, by a leaf of its size, in that TD's Secure EPT; and what a leaf maps is such a page.",
        &[When::Quiescence],
        MODULE,
    ),
    row("TDX-INV-003", "A page that is a table is linked once.", &[When::Quiescence], MODULE),
    row("TDX-INV-004", "A TD counts the pages that it owns.", &[When::Quiescence], MODULE),
    row("TDX-INV-005", "Parts of a large page have no owner of their own.", &[When::Quiescence], MODULE),
    row("TDX-INV-006", "No translation that a vCPU can use leads to a free page.", &[When::Quiescence], MODULE),
    row("TDX-INV-007", "What a guest may read was written by the module or by the guest.", &[When::Quiescence], MODULE),
    row(
        "TDX-INV-008",
        "There is no permission for a page that is not accepted, and no translation that a vCPU can use.",
        &[When::Quiescence],
        MODULE,
    ),
    row(
        "TDX-INV-009",
        "vCPUs that are in their TD are counted in the epoch in which they entered, which is this one or the one before.",
        &[When::Step, When::Quiescence],
        MODULE,
    ),
    row("TDX-INV-011", "No lock of the module is held while no leaf runs.", &[When::Quiescence], MODULE),
    row(
        "TDX-INV-012",
        "A TD's life goes forward only; a KeyID is one TD's, and comes back when the TD has ended.",
        &[When::Step, When::Quiescence],
        "At every change, when vCPUs were flushed, over all TDs, and after the last process has ended.",
    ),
    row(
        "TDX-INV-013",
        "MRTD is that of the pages that were added and the contents that were measured, in their order, and final when the launch is.",
        &[When::Step, When::Quiescence],
        MODULE,
    ),
    row(
        "TDX-INV-015",
        "What is in the mirror is in the Secure EPT, with the same frame, and nothing else is.",
        &[When::Quiescence],
        "Over all leaves and tables of all TDs.",
    ),
    row(
        "TDX-INV-016",
        "No entry of a mirror is frozen while nobody holds mmu_lock.",
        &[When::Step, When::Quiescence],
        "On the way to the page, when a fault or a populated page is through and nobody has the lock; over all entries it is a part of MMU-INV-003.",
    ),
    row(
        "TDX-INV-017",
        "Private memory is mapped by the mirror alone, shared memory by the direct root alone.",
        &[When::Quiescence],
        "As TDX-INV-015.",
    ),
    row(
        "TDX-INV-018",
        "A frame that the host has back is no TD's, no cache has anything of it under a private KeyID, and where that matters its lines are the host's; no page of a TD is lost.",
        &[When::Step, When::Quiescence],
        "When a page was removed, over all frames, and after the last process has ended.",
    ),
    row(
        "TDX-INV-019",
        "While vCPUs are kept out for the second try of a removal, none is in its TD.",
        &[When::Step, When::Quiescence],
        "After the second try.",
    ),
    row(
        "TDX-INV-020",
        "A page is taken from a TD while that has its KeyID, a table after the KeyID was freed or lost. With `tdx_terminate_vm` pages, too, may follow it.",
        &[When::Step],
        "When a page or a table goes.",
    ),
    row(
        "TDX-INV-021",
        "KVM and the module agree about whether a TD may run; pages are added with slots_lock held.",
        &[When::Step, When::Quiescence],
        "",
    ),
    row("TDX-INV-022", "No vCPU of a dead VM enters its TD.", &[When::Step], "Once every vCPU has been told."),
    row(
        "TDX-INV-024",
        "A page that is given to the module has no lines of the host in a cache.",
        &[When::Quiescence],
        "By `Tdx::check_invariants`; only with `tdx_caches`.",
    ),
];
