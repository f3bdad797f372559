//! INV-601 to INV-605: what calls answer.

use super::{Invariant, Section};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-601",
        section: Section::ApiResults,
        text: "A call that fails answers its first failing check and changes nothing, except reserved attribute entries, pages of an \
               interrupted allocation, and what a pre-fault did before its error.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-602",
        section: Section::ApiResults,
        text: "A memory-fault exit comes only with an error, names one page-aligned page, and has no flag but PRIVATE.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-603",
        section: Section::ApiResults,
        text: "A look-up in guest_memfd never answers EIO: file and slot always agree.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-604",
        section: Section::ApiResults,
        text: "An access becomes an MMIO exit only if at some moment while it was handled no slot covered its address, or it is a write to a \
               read-only slot.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-605",
        section: Section::ApiResults,
        text: "A pre-fault either makes progress or answers an error, not both; address plus size stay what they were.",
        window: "",
        when: &[],
        note: "",
    },
];
