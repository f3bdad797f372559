//! INV-301 to INV-311: the invalidation protocol's counters, the bindings of files to slots, and the sets of slots.

use super::{Invariant, Section, When};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-301",
        section: Section::Counters,
        text: "mmu_invalidate_in_progress is the number of invalidations that are open, never negative, 0 when nothing happens. Every start \
               has exactly one end. mn_active_invalidate_count is the number of notifier pairs that are open.",
        window: "",
        when: &[When::Step, When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-302",
        section: Section::Counters,
        text: "While an invalidation is open and mmu_lock is free, there is a range, and it is the hull of all ranges that were added since \
               none was open.",
        window: "mmu_lock held for writing",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-303",
        section: Section::Counters,
        text: "A file's binding of a page names a slot exactly if that slot names the file and covers the page. No page is bound twice, and no \
               binding names a slot that was freed.",
        window: "while invalidate_lock is held for writing, which is when bindings change; between release and the end of its slots' unbinding",
        when: &[When::Step, When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-304",
        section: Section::Counters,
        text: "A visible slot with guest_memfd has its file, unless that file was released.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-305",
        section: Section::Counters,
        text: "When setting attributes succeeds, every frame of the range has the value; when it fails, none has changed. The array holds \
               nothing but reserved entries and PRIVATE.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-306",
        section: Section::Counters,
        text: "A binding ends before its file does.",
        window: "",
        when: &[When::Step, When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-307",
        section: Section::Counters,
        text: "mmu_invalidate_seq grows by one at the end of an invalidation and at no other time.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-308",
        section: Section::Counters,
        text: "The two sets of an address space hold the same slots; slots of one address space do not overlap; numbers are unique; \
               nr_memslot_pages is the sum of their pages.",
        window: "while slots_lock is held",
        when: &[When::Step, When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-309",
        section: Section::Counters,
        text: "The generation of an address space only grows, is congruent to its number modulo the number of address spaces, and says \
               \"update in progress\" only while sets are being swapped.",
        window: "while slots_lock is held",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-310",
        section: Section::Counters,
        text: "A slot uses guest_memfd for shared memory too exactly if its file can be mapped. A slot with guest_memfd is neither \
               dirty-logged nor read-only.",
        window: "",
        when: &[When::Step, When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-311",
        section: Section::Counters,
        text: "A zap removes every leaf that overlaps the range asked for, and none that does not.",
        window: "",
        when: &[],
        note: "",
    },
];
