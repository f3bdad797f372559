//! INV-201 to INV-213: what the guest reaches through stage 2, and the host through its own page tables.

use super::{Invariant, Section, When};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-201",
        section: Section::Translations,
        text: "A stage-2 leaf of guest_memfd names the page that the file has at that index now. A page leaves the cache only after it was \
               zapped, while an invalidation keeps faults away.",
        window: "",
        when: &[When::Step, When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-202",
        section: Section::Translations,
        text: "What a vCPU's TLB holds is also in stage 2, or a flush is on its way to that vCPU and whoever zapped still holds mmu_lock.",
        window: "zapped and not yet flushed, with mmu_lock held for writing",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-203",
        section: Section::Translations,
        text: "No stage-2 entry, TLB entry or process page-table entry ever names a free frame.",
        window: "",
        when: &[When::Step, When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-204",
        section: Section::Translations,
        text: "Nothing is mapped where there is no slot, nor where a slot is on its way out once its zap has ended.",
        window: "from the deletion's publication of the stand-in to the end of its zap",
        when: &[When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-205",
        section: Section::Translations,
        text: "Nothing is mapped into a root that was declared invalid.",
        window: "",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-206",
        section: Section::Translations,
        text: "Where a fault finds a leaf that already permits its access, that leaf names the frame that the fault found.",
        window: "",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-207",
        section: Section::Translations,
        text: "An MMIO entry of the current generation lies outside all slots.",
        window: "while slots are being swapped, when no entry is of the current generation",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-208",
        section: Section::Translations,
        text: "In a VM with private memory, a leaf is backed by guest_memfd exactly where the attribute says private; a private frame of a \
               slot without guest_memfd has no leaf at all.",
        window: "slots that use guest_memfd for everything; between the stores of a conversion its frames have no leaf and either attribute",
        when: &[When::Step, When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-209",
        section: Section::Translations,
        text: "A block that lies entirely in a slot is marked MIXED exactly if its attributes differ. No huge leaf covers a block with a \
               reason against it, nor frames of different attributes.",
        window: "from the opening of a conversion's invalidation to the release of mmu_lock after its end",
        when: &[When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-210",
        section: Section::Translations,
        text: "A leaf that is backed by the VMM's memory names the frame that the VMM's page table names.",
        window: "between start and end of a notifier whose range covers it",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-211",
        section: Section::Translations,
        text: "Once a memory failure has been handled, nothing maps the broken page, and nothing maps it again.",
        window: "",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-212",
        section: Section::Translations,
        text: "No process page table names a page that has left the page cache of its file.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-213",
        section: Section::Translations,
        text: "Leafs of guest_memfd are small pages; in a huge leaf, guest and host frame are congruent.",
        window: "",
        when: &[When::Step, When::Quiescence],
        note: "",
    },
];
