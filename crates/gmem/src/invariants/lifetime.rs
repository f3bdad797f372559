//! INV-401 to INV-407: what may not be used any more.

use super::{Invariant, Section, When};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-401",
        section: Section::Lifetime,
        text: "Nobody uses a slot that was freed.",
        window: "",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-402",
        section: Section::Lifetime,
        text: "Nobody uses a VM's view of a guest_memfd that was freed.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-403",
        section: Section::Lifetime,
        text: "A file and its view live while a descriptor or a mapping refers to them.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-404",
        section: Section::Lifetime,
        text: "Nobody walks a node of an index tree that was freed.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-405",
        section: Section::Lifetime,
        text: "A VM lives while a guest_memfd, a vCPU or a VM descriptor refers to it.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-406",
        section: Section::Lifetime,
        text: "A file that a slot names has not been freed; it may wait for its release.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-407",
        section: Section::Lifetime,
        text: "When a VM is destroyed, no slot names a file, no invalidation is open, and its files have no bindings.",
        window: "a notifier pair that was cut off when KVM stopped listening",
        when: &[When::Step],
        note: "",
    },
];
