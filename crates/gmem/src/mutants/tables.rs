//! Rows of the MMU's own table of races: stage 2, its roots, dirty logging. The ids are the names of that table.

use super::registry::{MutantInfo, row};
use crate::kvm::mutants::*;
use sim_mmu::mutants::*;

/// The rows.
pub(super) static ROWS: &[MutantInfo] = &[
    row(
        SEQ_ONLY,
        "F x P",
        "the test whether an invalidation of the page is open",
        "a fault that began after the invalidation sees no other sequence until it ends, and maps a page that is about to go",
        &["INV-201", "INV-203"],
        "races/fault-punch.toml",
    )
    .also(&["R02"]),
    row(
        INPROGRESS_ONLY,
        "F x P",
        "the test of the sequence, but not that of open invalidations",
        "an invalidation that began and ended while a fault was on its way goes unnoticed",
        &["INV-201", "INV-203"],
        "races/fault-punch.toml",
    )
    .also(&["R03"]),
    row(
        YIELD_STALE_ITER,
        "zap x N",
        "that nothing is done after a yield with what was read before",
        "an entry is written that may have changed, or lie in a table that is gone",
        &["MMU-INV-053"],
        "mmu/punch-yield.toml",
    )
    .also(&["R10"]),
    row(
        LOST_LINK,
        "F x F",
        "freeing the table that lost the race to be linked",
        "the table leaks",
        &["MMU-INV-007"],
        "mmu/first-roots.toml",
    )
    .also(&["R13"]),
    row(
        FREE_NO_RCU,
        "fast F x D (quirk on)",
        "the grace period before a table is freed",
        "a fault that looks without a lock walks a table that is somebody else's by now",
        &["MMU-INV-005"],
        "mmu/fast-fault-delete.toml",
    )
    .also(&["R17"]),
    row(
        MARK_BEFORE_W,
        "fast F x L",
        "the order of W and mark: the page is marked first",
        "the log takes the mark, then the page becomes writable, and its writes are lost",
        &["MMU-INV-040"],
        "mmu/write-collect.toml",
    )
    .also(&["R22"]),
    row(
        PROTECT_THEN_TAKE,
        "fast F x L",
        "the order of mark and W in collecting: the page is protected first",
        "a write in between makes it writable and marks it, and the mark is taken",
        &["MMU-INV-040"],
        "mmu/write-collect.toml",
    )
    .also(&["R26"]),
    row(
        COLLECT_READLOCK,
        "F x L",
        "mmu_lock held for writing while pages are collected: it is held for reading",
        "the log takes the mark of a fault that is about to map its page, and the page is writable then without one",
        &["MMU-INV-040"],
        "mmu/map-collect.toml",
    )
    .also(&["R23"]),
    row(
        COLLECT_NO_FLUSH,
        "L x T",
        "the flush after pages were collected",
        "the guest goes on writing through its TLB, and nobody learns of it",
        &["MMU-INV-040"],
        "mmu/write-collect.toml",
    )
    .also(&["R24"]),
    row(
        ENABLE_NO_SRCU,
        "F x L",
        "the wait for faults that know the slot without its log, when logging begins",
        "one of them makes an entry writable after W was taken everywhere, and marks nothing",
        &["MMU-INV-040", "INV-401"],
        "mmu/enable-fault.toml",
    )
    .also(&["R27"]),
    row(
        ENABLE_NO_FLUSH,
        "L x T",
        "the flush when logging begins",
        "the guest goes on writing through its TLB, and nobody learns of it",
        &["MMU-INV-040"],
        "mmu/enable-write.toml",
    )
    .also(&["R28"]),
    row(
        FLUSH_BY_SPTE,
        "L x ageing x T",
        "that the flush of collecting depends on the bits taken: it depends on what the entries said",
        "an entry that had no right left to lose stays writable in a TLB, and nobody learns of the writes",
        &["MMU-INV-040"],
        "mmu/age-collect.toml",
    )
    .also(&["R25"]),
    row(
        PML_CLEAR_ALL,
        "PML x L",
        "that collecting clears D of the pages whose bits were taken only: it does so of all pages of the word",
        "nothing: a record that a processor still has is reported later, whatever became of D",
        &[],
        "mmu/pml-collect.toml",
    )
    .also(&["R30"]),
    row(
        FAST_HUGE_LOG,
        "fast F, L",
        "that the fast path leaves huge leafs of a logged slot alone",
        "one page is marked and 511 more can be written",
        &["MMU-INV-017", "MMU-INV-040"],
        "mmu/log-huge.toml",
    )
    .also(&["R29"]),
    row(
        SPLIT_BAD_CHILD,
        "split",
        "that the small leafs of a split map what the huge one did",
        "two translations of one page can be used at once, and one is wrong",
        &["INV-208", "INV-210"],
        "mmu/split-read.toml",
    )
    .also(&["R32"]),
    row(
        LINK_BEFORE_INIT,
        "split x F",
        "that a table is filled before it is linked",
        "a fault finds nothing and maps a page, which the split writes over",
        &["MMU-INV-006"],
        "mmu/split-read.toml",
    )
    .also(&["R67"]),
    row(
        RCU_BEFORE_FLUSH,
        "recovery x T",
        "the order of flush and RCU when recovery has taken tables out: the section ends first",
        "tables are freed to which caches of processors still lead",
        &["MMU-INV-005"],
        "mmu/recover-walk.toml",
    )
    .also(&["R18"]),
    row(
        RECOVER_NO_FLUSH,
        "recovery x T",
        "the flush after recovery has taken tables out",
        "a processor walks a table that was freed, to which its caches still lead",
        &["MMU-INV-005"],
        "mmu/recover-walk.toml",
    )
    .also(&["R35"]),
    row(
        RECOVER_IGNORES_MIXED,
        "recovery, S",
        "that recovery looks at the attributes",
        "a huge leaf covers private pages",
        &["INV-209"],
        "mmu/recover-mixed.toml",
    )
    .also(&["R36"]),
    row(
        BUG_68,
        "ageing x N",
        "the compare-exchange by which ageing changes an entry",
        "a leaf that was zapped comes back, and its page is somebody else's",
        &["INV-203", "INV-201", "MMU-INV-006"],
        "mmu/age-drop.toml",
    )
    .also(&["R57", "AGE_PLAIN_STORE"]),
    row(
        BUG_66,
        "F x F (NX mitigation)",
        "the order of a table's link and the reason for it: the table is linked first",
        "a fault takes the table out that says nothing yet, and what waits for the recovery worker is a table that was freed",
        &["MMU-INV-006", "MMU-INV-005", "MMU-INV-007"],
        "mmu/nx-fetch-read.toml",
    ),
    row(
        NO_FREEZE_CHILDREN,
        "NX recovery x F",
        "freezing the entries of a table that was taken out",
        "a fault maps a page into a table that is about to be freed",
        &["MMU-INV-004", "MMU-INV-006", "MMU-INV-007"],
        "mmu/nx-recover.toml",
    )
    .also(&["R14"]),
    row(
        BUG_67,
        "NX recovery x F",
        "the look of a fault for frozen entries",
        "a fault maps a page into a table that was taken out, over the entry that says so",
        &["MMU-INV-003"],
        "mmu/nx-recover.toml",
    ),
    row(
        LAZY_ROOT_ZAP,
        "D x N (quirk on)",
        "taking roots apart before the call returns",
        "the memory of a slot that is gone is freed while an invalid root maps it",
        &["INV-203"],
        "mmu/delete-then-drop.toml",
    )
    .also(&["R43"]),
    row(
        ROOT_GET_PLAIN,
        "D x F (quirk on)",
        "that whoever walks the list of roots leaves those alone that are on their way out",
        "a root that is being freed is used again",
        &["MMU-INV-008"],
        "mmu/delete-twice.toml",
    )
    .also(&["R47"]),
    row(
        ROOT_NO_RESEARCH,
        "F x F",
        "the second look for a root under the lock",
        "two vCPUs make one each, and only one of them is ever declared invalid",
        &["MMU-INV-008"],
        "mmu/first-roots.toml",
    )
    .also(&["R48"]),
    row(
        SVE_DROPPED,
        "tables of EPT",
        "the bit that suppresses #VE in entries that point to tables",
        "a TD gets an exception where KVM should have got a fault",
        &["MMU-INV-016"],
        "mmu/ept-log.toml",
    )
    .also(&["R70"]),
];
