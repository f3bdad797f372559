//! Rows of the specifications that have no mutant, and why.

/// A row that is not there.
#[derive(Clone, Copy, Debug)]
pub struct Absent {
    /// The id.
    pub id: &'static str,
    /// Why.
    pub reason: &'static str,
}

const fn absent(id: &'static str, reason: &'static str) -> Absent {
    Absent { id, reason }
}

/// Every row of the two specifications that concerns what is modelled, as far as it has no mutant.
pub static ABSENT: &[Absent] = &[
    absent("RC-16", "files are not recycled here: the pointer of a slot never comes to name another file"),
    absent(
        "RC-48",
        "a range that cannot be stored fails before any of it is: its nodes are all on the way to its first and last index",
    ),
    absent("RC-63", "populating is of SNP and TDX launches"),
    absent("BUG-04", "as RC-16; the wait that guards it is RC-20"),
    absent("BUG-08", "with one tree of tables there is no filter by kind"),
    absent("BUG-09", "guest_memfd has small pages only, and nothing collapses them"),
    absent("BUG-11", "preparing pages is of SNP"),
    absent("BUG-12", "preparing pages is of SNP"),
    absent("BUG-13", "populating is of SNP and TDX launches"),
    absent("BUG-14", "populating is of SNP and TDX launches"),
    absent("BUG-15", "populating is of SNP and TDX launches"),
    absent("BUG-16", "populating is of SNP and TDX launches, and pins none of the VMM's pages here"),
    absent("BUG-19", "an array that fails to reserve leaves no reserved entries here"),
    absent("BUG-23", "a VMM and a guest that convert against each other: no rule of the kernel"),
    absent("BUG-24", "the answers of a VMM to a guest's conversions are TDX's to translate"),
    absent("BUG-26", "the retries of TDX's exit handler; those of a pre-fault are RC-23"),
    absent("BUG-28", "launches are of SNP; a software-protected VM may pre-fault from the beginning"),
    absent("BUG-29", "conversion in place, which asks for the references of a page, is of Linux 7.4"),
    absent("BUG-30", "as BUG-29"),
    absent("BUG-31", "as BUG-29"),
    absent("BUG-32", "of Linux 7.4: until then a file is shared or private for good"),
    absent("BUG-33", "as BUG-29; and the software-protected machine has no table of its own to be wrong"),
    absent("BUG-34", "as BUG-29: nothing is made shared until then"),
    absent("BUG-35", "guest_memfd has small pages only"),
    absent("BUG-36", "as BUG-34"),
    absent("BUG-37", "of Linux 7.4: until then the attributes of a file are not in an array"),
    absent("BUG-38", "as BUG-08"),
    absent("BUG-39", "guest_memfd has small pages only"),
    absent("BUG-64", "every flush is of everything: there is no range to get wrong"),
    absent("BUG-66", "pages are not kept small because of what they execute"),
    absent(
        "BUG-67",
        "no fault meets a frozen entry: whoever takes a table out under mmu_lock held for reading works in an invalid root, maps at the same level, \
         or comes after every fault that did not",
    ),
    absent("BUG-68", "nothing reads accessed and dirty bits of an entry that was replaced"),
    absent("BUG-69", "no nested guests"),
    absent("BUG-70", "no write tracking"),
    absent("BUG-71", "no shadow paging"),
    absent("BUG-72", "nothing zaps a range of frames by its slots"),
    absent("BUG-73", "tables are taken when they are needed, not from caches"),
    absent("BUG-74", "the order of Arm and RISC-V; x86 looks at the host's mapping after the test"),
    absent("BUG-75", "fairness, which no invariant of safety shows"),
    absent("BUG-76", "no caches of guest pages"),
    absent("BUG-77", "no asynchronous page faults"),
    absent(
        "CLEAR_AFTER_ACT",
        "what a flush request that is lost would have dropped was dropped by the flush before it: nothing is cached between that and the guest",
    ),
    absent("FLUSH_MIDWALK", "a vCPU flushes between two visits to the guest, never in one"),
    absent("MIGRATE_NO_FLUSH", "each vCPU has a processor of its own"),
    absent("ASID_REUSE", "each vCPU has a processor of its own"),
    absent("TRACK_NO_FLUSH", "no write tracking"),
];
