//! INV-501 to INV-506: locks, waits, and that every operation ends.

use super::{Invariant, Section, When};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-501",
        section: Section::Progress,
        text: "Nobody waits in a circle: through locks, page locks, SRCU grace periods and the wait for open notifiers.",
        window: "",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-502",
        section: Section::Progress,
        text: "An operation ends with every lock released that it took, and outside every read section that it entered.",
        window: "",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-503",
        section: Section::Progress,
        text: "Locks are taken in the order of docs/locks.md.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-504",
        section: Section::Progress,
        text: "Nobody sleeps with mmu_lock, a spinlock or an RCU read section held.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-505",
        section: Section::Progress,
        text: "The last put of a file runs its release with no lock of KVM held and outside SRCU.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-506",
        section: Section::Progress,
        text: "A fault beside which nothing is invalidated ends, after one retry at most because its root was stale.",
        window: "",
        when: &[],
        note: "",
    },
];
