//! INV-101 to INV-111: the pages of a guest_memfd (`mm/filemap.c`, `virt/kvm/guest_memfd.c`).

use super::{Invariant, Section, When};

pub(super) static ROWS: &[Invariant] = &[
    Invariant {
        id: "INV-101",
        section: Section::PageCache,
        text: "A file has at most one page at each index. A page names its file and index exactly while it is in that file's page cache at \
               that index.",
        window: "a page that is being inserted names the file before it is found there; its inserter holds the folio lock",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-102",
        section: Section::PageCache,
        text: "Where guest and host both map the same page of a file, they map the same frame.",
        window: "",
        when: &[When::Quiescence],
        note: "",
    },
    Invariant {
        id: "INV-103",
        section: Section::PageCache,
        text: "Every cached page lies below the end of its file. When a hole has been punched, none of the pages that were in it before is \
               still cached.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-104",
        section: Section::PageCache,
        text: "A look-up returns a page that is locked, still belongs to the file, and has at least two references: the cache's and the \
               caller's.",
        window: "",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-105",
        section: Section::PageCache,
        text: "The reference count of a page is the sum of its holders: the page cache, each process page-table entry, each fault on its \
               way, each pin, each memory failure. It is free exactly at 0, and a free frame is neither locked nor mapped.",
        window: "",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-106",
        section: Section::PageCache,
        text: "A page that guest or host can reach has defined contents. A page that is read for the first time reads zero, unless somebody \
               wrote it.",
        window: "",
        when: &[When::Step],
        note: "",
    },
    Invariant {
        id: "INV-107",
        section: Section::PageCache,
        text: "A page is zeroed exactly once while it is cached, under its lock, before anybody can reach it; \"up to date\" never goes away \
               again.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-108",
        section: Section::PageCache,
        text: "Punching a hole removes the pages of its range and no others; the others keep frame and contents.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-109",
        section: Section::PageCache,
        text: "Allocating changes the contents of no page that exists, and never says that contents are defined.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-110",
        section: Section::PageCache,
        text: "Nobody gets a reference to a file whose count has been 0.",
        window: "",
        when: &[],
        note: "",
    },
    Invariant {
        id: "INV-111",
        section: Section::PageCache,
        text: "A look-up through a slot only uses the file to which that slot was bound.",
        window: "",
        when: &[],
        note: "",
    },
];
