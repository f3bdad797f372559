//! Rows about TDX: KVM's use of it, and the module's own rules as far as a VMM can bring about what they stop. For the others see
//! `crates/sim-coco/tests/tdx/mutants.rs`.

use super::registry::{MutantInfo, row};
use crate::kvm::mutants::*;
use sim_coco::tdx::mutants as module;
use sim_mmu::mutants::{BUG_57, MIRROR_NO_FREEZE, MIRROR_STUCK_FROZEN};

/// The rows.
pub(super) static ROWS: &[MutantInfo] = &[
    row(
        TDX_NO_BLOCK,
        "F x P",
        "BLOCK before a page is removed",
        "the module refuses to remove it, and its frame is freed as the TD's",
        &["TDX-INV-015", "TDX-INV-018"],
        "tdx/fault-punch.toml",
    ),
    row(
        TRACK_SKIPPED,
        "F x P",
        "TRACK of a page that is blocked",
        "the module refuses to remove it, and its frame is freed as the TD's",
        &["TDX-INV-015", "TDX-INV-018"],
        "tdx/fault-punch.toml",
    )
    .also(&["R60"]),
    row(
        TRACK_NO_KICK,
        "F x P",
        "the kick after TRACK",
        "a vCPU of the old epoch is in the guest, and the module refuses to remove the page",
        &["TDX-INV-015", "TDX-INV-018"],
        "tdx/fault-punch.toml",
    )
    .also(&["R61", "TDX-R01"]),
    row(
        TDX_KICK_BEFORE_TRACK,
        "F x P",
        "the order of TRACK and kick",
        "a vCPU enters in the old epoch between the two, and the module refuses to remove the page",
        &["TDX-INV-015", "TDX-INV-018"],
        "tdx/fault-punch.toml",
    ),
    row(
        TDX_BUSY_NO_RETRY,
        "accept x P",
        "the second try of a removal that met a lock of the module",
        "the VM is broken, and the frame freed as the TD's",
        &["TDX-INV-015", "TDX-INV-018"],
        "tdx/accept-punch.toml",
    )
    .also(&["BUG-52", "TDX-R05"]),
    row(
        TDX_RETRY_NO_KICK,
        "accept x P",
        "the kick before the second try",
        "who holds the lock is still in the guest",
        &["TDX-INV-019", "TDX-INV-015", "TDX-INV-018"],
        "tdx/accept-punch.toml",
    )
    .also(&["TDX-R06"]),
    row(
        TDX_RETRY_NO_WAIT_FLAG,
        "VP.ENTER x P",
        "keeping vCPUs out during the second try",
        "one enters again, and may meet the second try",
        &["TDX-INV-019", "TDX-INV-015", "TDX-INV-018"],
        "tdx/track-enter.toml",
    ),
    row(
        TDX_ENTERS_WHILE_ZAPPING,
        "VP.ENTER x P",
        "the look of a vCPU at whether it is kept out",
        "it enters again, and may meet the second try",
        &["TDX-INV-019", "TDX-INV-015", "TDX-INV-018"],
        "tdx/track-enter.toml",
    ),
    row(
        TDX_NO_CLFLUSH,
        "F",
        "CLFLUSH of a page before a TD gets it",
        "a line of the host that is evicted later overwrites the guest's",
        &["TDX-INV-024"],
        "tdx/caches.toml",
    ),
    row(
        TDX_NO_WBINVD,
        "P",
        "PAGE.WBINVD of a page that was a TD's",
        "a line of the TD that is evicted later overwrites the host's",
        &["TDX-INV-018"],
        "tdx/caches.toml",
    ),
    row(
        TDX_NO_RESET,
        "P",
        "writing a page as a whole that was a TD's, on processors with the partial-write erratum",
        "the host's first partial write poisons it",
        &["TDX-INV-018"],
        "tdx/caches.toml",
    ),
    row(
        TDX_VP_INIT_UNLOCKED,
        "KVM_TDX_INIT_VCPU x P",
        "mmu_lock around VP.INIT",
        "a removal meets the TD's lock twice, with no vCPU to kick",
        &["TDX-INV-015", "TDX-INV-018"],
        "tdx/init-vcpu-punch.toml",
    )
    .also(&["TDX-R19"]),
    row(
        TDX_VP_NO_FLUSH,
        "KVM_RUN x KVM_RUN of one vCPU",
        "VP.FLUSH on the processor where the vCPU was",
        "the vCPU cannot run, and the KeyID is lost",
        &["TDX-INV-012"],
        "tdx/moving-vcpu.toml",
    )
    .also(&["TDX-R23"]),
    row(
        TDX_RETRIES_INVALID_SLOT,
        "F x D",
        "leaving the local retries when the slot is on its way out",
        "the deletion waits for the fault, and the fault for the deletion",
        &["INV-501"],
        "tdx/fault-delete.toml",
    )
    .also(&["BUG-26", "TDX-R12"]),
    row(
        TDX_FREEID_BEFORE_CACHE_WB,
        "end of a VM",
        "CACHE.WB before KEY.FREEID",
        "the KeyID and all pages of the TD are lost",
        &["TDX-INV-012", "TDX-INV-018"],
        "tdx/end.toml",
    ),
    row(
        EXT_FREE_EARLY,
        "end of a VM",
        "freeing the tables of the Secure EPT after the KeyID",
        "they cannot be reclaimed",
        &["TDX-INV-020"],
        "tdx/end.toml",
    )
    .also(&["R62"]),
    row(
        ATTR_FILTER_INVERTED,
        "F x C",
        "zapping what the memory was before a conversion",
        "the private page stays mapped in shared memory, or the other way round",
        &["INV-208", "TDX-INV-017"],
        "tdx/fault-convert.toml",
    )
    .also(&["R40", "BUG-38", "TDX-R27"]),
    row(
        POPULATE_NO_LOCK,
        "KVM_TDX_INIT_MEM_REGION x P",
        "invalidate_lock around a page that is populated",
        "the Secure EPT maps a page that is freed",
        &["TDX-INV-015", "INV-201"],
        "tdx/populate-punch.toml",
    )
    .also(&["R63", "TDX-R16"]),
    row(
        MIRROR_NO_FREEZE,
        "F x F",
        "freezing an entry of a mirror while the external tables are changed",
        "a table is added twice, or its first child before it: the VM is broken",
        &["TDX-INV-015", "TDX-INV-018"],
        "tdx/fault-fault.toml",
    )
    .also(&["R58", "TDX-R08", "TDX-R09"]),
    row(
        MIRROR_STUCK_FROZEN,
        "F x VP.ENTER",
        "giving an entry of a mirror its old value back when the external tables refuse",
        "the address can never be mapped",
        &["TDX-INV-016", "INV-501"],
        "tdx/zero-step.toml",
    )
    .also(&["R59", "TDX-R10"]),
    row(
        TDX_SPINS_IN_GUEST_MODE,
        "VP.ENTER x P",
        "leaving guest mode before VP.ENTER is tried again",
        "who keeps vCPUs out waits for this one, and it for him",
        &["INV-506"],
        "tdx/track-enter.toml",
    )
    .also(&["TDX-R07"]),
    row(
        TDX_KEYID_BEFORE_MEMORY,
        "end of a VM",
        "freeing the KeyID after all memory has left the TD",
        "pages that are left cannot be removed",
        &["TDX-INV-020"],
        "tdx/end-memory.toml",
    )
    .also(&["TDX-R24"]),
    row(
        TDX_RELEASE_UNLOCKED,
        "end of a VM x end of a VM",
        "tdx_lock around VPFLUSHDONE, CACHE.WB and KEY.FREEID",
        "one meets the other's lock, and its KeyID and all its pages are lost",
        &["TDX-INV-012", "TDX-INV-018"],
        "tdx/two-ends.toml",
    )
    .also(&["TDX-R26"]),
    row(
        module::EPOCH_FLUSH,
        "F x P",
        "VP.ENTER's flush in a new epoch",
        "the guest goes on with a page that is the host's",
        &["TDX-INV-006"],
        "tdx/read-punch.toml",
    )
    .also(&["TDX-R02"]),
    row(
        module::PENDING,
        "F x C",
        "the module's refusal of a page that its guest has not accepted",
        "the guest finds what it has not asked for, and does not hear of it",
        &["TDX-INV-008"],
        "tdx/convert-unaccepted.toml",
    ),
    row(
        module::ACCEPT_ZEROES,
        "F x C",
        "zeroing of a page that is accepted",
        "what was in it comes back with it",
        &["TDX-INV-007"],
        "tdx/convert-accepted.toml",
    ),
    row(
        module::MEASURES_ADD,
        "end of the launch",
        "measuring that a page was added",
        "a TD with that page is measured as one without",
        &["TDX-INV-013"],
        "tdx/launch.toml",
    ),
    row(
        module::ENTRY_LOCK,
        "accept x P",
        "the lock of the entry while a guest accepts its page",
        "a page that was blocked is mapped again, and cannot be removed",
        &["TDX-INV-015", "TDX-INV-018"],
        "tdx/accept-punch.toml",
    )
    .also(&["TDX-R20"]),
    row(
        module::TREE_LOCK,
        "VP.ENTER x P",
        "having the tree for itself while a page is blocked",
        "nothing here: KVM blocks under mmu_lock held for writing, and adds under it held for reading",
        &[],
        "tdx/track-enter.toml",
    ),
    row(
        BUG_57,
        "F x F, 2 MiB",
        "leaving a table of a mirror where it is when its pages could be one",
        "a large page takes the place of pages that others use",
        &["MMU-INV-060"],
        "tdx/large-accept.toml",
    ),
    row(
        BUG_58,
        "accept x accept, 2 MiB",
        "splitting a page of 2 MiB of which the guest accepts 4 KiB",
        "the guest accepts it for ever",
        &["INV-506"],
        "tdx/large-accept.toml",
    ),
    row(
        TDX_NO_SPLIT,
        "P x guest, 2 MiB",
        "splitting a page of 2 MiB before a part of it is taken away",
        "the guest loses the rest",
        &["MMU-INV-060"],
        "tdx/large-punch.toml",
    ),
    row(
        BUG_78,
        "F x P, dynamic PAMT",
        "counting a region's pages under the lock under which its metadata is given and taken back",
        "metadata is given that is there, or goes from under a page",
        &["TDX-INV-018"],
        "tdx/pamt.toml",
    ),
    row(
        TDX_PAMT_NO_PUT,
        "P, dynamic PAMT",
        "counting a page no more that goes",
        "the pages with its region's metadata never come back",
        &["TDX-INV-018"],
        "tdx/pamt.toml",
    ),
];
