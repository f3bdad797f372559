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
    absent(
        "RC-63",
        "populating holds invalidate_lock as every change of a file; SEV_LAUNCH_NO_ASSIGNED_CHECK is what is left of the race",
    ),
    absent("BUG-04", "as RC-16; the wait that guards it is RC-20"),
    absent(
        "BUG-08",
        "a file that starts shared is zapped as such; TDs have none, and elsewhere one tree has both kinds",
    ),
    absent("BUG-09", "guest_memfd has small pages only, and nothing collapses them"),
    absent(
        "BUG-11",
        "every look-up asks the RMP whether the page is prepared, whatever its flags say; SEV_NO_MAKE_PRIVATE leaves that out",
    ),
    absent("BUG-12", "as BUG-11: no flag means that a page is prepared"),
    absent("BUG-13", "it is SEV_POPULATE_SHARED, in launches of SNP"),
    absent(
        "BUG-14",
        "user faults take invalidate_lock with conversion in place, of Linux 7.4: until then there is no other half",
    ),
    absent(
        "BUG-15",
        "the launch of a TD maps the page that it has populated, by a function of its own; there is no other way",
    ),
    absent(
        "BUG-16",
        "the page of the VMM is pinned as its launch needs it, for writing if it is a CPUID page; there is no mutant that does not",
    ),
    absent("BUG-19", "an array that fails to reserve leaves no reserved entries here"),
    absent("BUG-23", "a VMM and a guest that convert against each other: no rule of the kernel"),
    absent(
        "BUG-24",
        "an answer of a VMM that is passed on wrongly breaks no invariant; `gmem/tests/kvm/tdx/runtime.rs::td_070_map_gpa_checks`",
    ),
    absent("BUG-29", "conversion in place, which asks for the references of a page, is of Linux 7.4"),
    absent("BUG-30", "as BUG-29"),
    absent("BUG-31", "as BUG-29"),
    absent("BUG-32", "of Linux 7.4: until then a file is shared or private for good"),
    absent("BUG-33", "as BUG-29; and the software-protected machine has no table of its own to be wrong"),
    absent("BUG-34", "as BUG-29: nothing is made shared until then"),
    absent("BUG-35", "guest_memfd has small pages only"),
    absent(
        "BUG-36",
        "no hook is shared: with pkvm_gmem a conversion keeps contents, and PKVM-DYING-NO-ZERO is the end without clearing",
    ),
    absent("BUG-37", "of Linux 7.4: until then the attributes of a file are not in an array"),
    absent("BUG-39", "guest_memfd has small pages only"),
    absent("BUG-64", "every flush is of everything: there is no range to get wrong"),
    absent("BUG-69", "no nested guests"),
    absent("BUG-70", "no write tracking"),
    absent("BUG-71", "no shadow paging"),
    absent("BUG-72", "nothing zaps a range of frames by its slots"),
    absent("BUG-73", "tables are taken when they are needed, not from caches"),
    absent("BUG-75", "fairness, which no invariant of safety shows"),
    absent("BUG-76", "no caches of guest pages"),
    absent("BUG-77", "no asynchronous page faults"),
    absent("BUG-53", "what it costs is contention; `tdx/zero-step.toml` shows what then happens"),
    absent("BUG-54", "a page is added by the hook that maps it; the mirror has none that the module has not"),
    absent("BUG-82", "a TLBI of pKVM waits for all processors; without it, it is PKVM-NO-TLBI"),
    absent("BUG-83", "pages that are not taken back before the VM ends are PKVM_RECLAIM_SKIPS, of protected VMs"),
    absent("BUG-84", "KVM loads a vCPU under its mutex; two processors that try are in sim-coco's tests of pKVM"),
    absent(
        "BUG-56",
        "commands hold all locks; without them one is told EBUSY, or the VM is broken, and no invariant with it",
    ),
    absent("BUG-60", "a range, not a race; `gmem/tests/kvm/tdx/build.rs::td_061_what_a_region_must_be`"),
    absent("BUG-55", "no fault loops with what it read of a mirror's entry: it starts over"),
    absent("DOUBLE_RECURSE", "R15: the compare-exchange above a subtree is RC-12's"),
    absent("FREEZE_NO_LOOP", "R16: tables of mirrors are never taken out under mmu_lock held for reading"),
    absent("MMIO_WRAP", "R66: it takes 131072 changes of slots; `gmem/tests/kvm/mmio_wrap.rs`"),
    absent("RANGE_LATE", "R07: RC-06 adds the range after the zap, under the same lock"),
    absent(
        "PML_NO_FULL",
        "R31: a visit to the guest is one instruction, which logs a dozen pages at most, and every exit empties the log; `sim-mmu/tests/mmu/stage2.rs` has that nothing is written beyond its end",
    ),
    absent("REMOVED_CHILD_STORE", "R19: as VOLATILE_IGNORED"),
    absent("REMAP_NO_ZAP", "R69: as RC-07 and RC-08, of which it is the consequence"),
    absent("SPLIT_PLAIN", "R33: the compare-exchange of a split is RC-12's"),
    absent("VOLATILE_IGNORED", "R20: nothing reads accessed and dirty bits of an entry that was replaced"),
    absent(
        "YIELD_LIVELOCK",
        "R11: whoever waits for the lock gets it and is gone; a zap that yields without progress yields as often as others want the lock",
    ),
    absent("FLUSH_MIDWALK", "R55: a vCPU flushes between two visits to the guest, never in one"),
    absent("MIGRATE_NO_FLUSH", "R52: each vCPU has a processor of its own"),
    absent("ASID_REUSE", "R53: each vCPU has a processor of its own"),
    absent("TRACK_NO_FLUSH", "R56: no write tracking"),
    absent(
        "SNP-OWNER",
        "KVM gives no guest the pages of another: the check is a second line, and crates/sim-coco/tests/snp/mutants.rs shows what it stops",
    ),
    absent("SNP-MUTABLE", "pages are closed only before their guest runs; as SNP-OWNER"),
    absent("SNP-VMPL", "guests here run at VMPL0; as SNP-OWNER"),
    absent("SNP-KEEPS-VALIDATED", "KVM gives no page from one guest to another without taking it back; as SNP-OWNER"),
    absent("SNP-NO-CF", "what a guest does about it is in its programs; as SNP-OWNER"),
    absent(
        "SNP-HV-OWNED",
        "a process has no mapping of a guest's page, and of the kernel's writes SNP-INV-002 is one; as SNP-OWNER",
    ),
    absent("SNP-HV-OWNED-WALK", "the host's tables are in its own pages; as SNP-OWNER"),
    absent("SNP-HV-OWNED-GUEST", "VMs without SNP have no page of one that has; as SNP-OWNER"),
    absent("SNP-HV-OWNED-DMA", "no devices; scenarios/attacks/snp/device-write.toml shows it"),
    absent("SNP-R06", "an RMPUPDATE that meets another one on one page is never KVM's; as SNP-OWNER"),
    absent("SNP-R08", "KVM gets a vCPU out of the guest first (SEV_NO_VMSA_RELOAD); as SNP-OWNER"),
    absent("SNP-R14", "KVM flushes first (SEV_ASID_NO_FLUSH); as SNP-OWNER"),
    absent("SNP-R18", "KVM asks for no closed page; as SNP-OWNER"),
    absent("SNP-R23", "every access is checked against the entry of the moment; as SNP-OWNER"),
    absent("SNP-R25", "KVM writes back first; as SNP-OWNER"),
    absent("SNP-R01", "it is RC-01, with the pages of an SNP guest too"),
    absent("SNP-R02", "it is RC-13: the page is looked up, cleared and assigned under one hold of its lock"),
    absent(
        "SNP-R11",
        "the registers of a vCPU are behind its mutex here, so nothing reads them without; BUG-42 and BUG-43 are the same",
    ),
    absent(
        "SNP-R13",
        "what KVM copied of a GHCB is a value here, and nothing looks at the page again; of lists it is SEV_PSC_DOUBLE_FETCH",
    ),
    absent("SNP-R15", "caches are coherent here (OP-13)"),
    absent(
        "SNP-R17",
        "Linux has no mechanism: it frees what it could not take back. SEV_NO_OVERLAP_RETRY shows what comes of that",
    ),
    absent("SNP-R19", "the pages of a guest request are behind guest_req_mutex here, so nothing reaches them without"),
    absent("SNP-R21", "a rule of the guest's kernel, not of KVM: `linux_guest/accept.rs`, and its tests"),
    absent(
        "SNP-R22",
        "KVM has no mechanism: attributes are set one request at a time, and a guest that accepts twice is told so",
    ),
    absent("SNP-R24", "either order works: a page is taken back whoever had it"),
    absent(
        "SNP-R27",
        "what is measured is read from the page that was copied to: there is no second look at the source",
    ),
    absent(
        "BUG-41",
        "an AP whose VMSA cannot be used fails KVM_RUN: no rule, but what is not written; snp/vmsa-slot.toml has the case",
    ),
    absent("BUG-42", "as SNP-R11"),
    absent(
        "BUG-43",
        "as SNP-R11; a vCPU that is being made is counted, and gmem/tests/kvm/snp/launch.rs has the answer",
    ),
    absent("BUG-44", "a false warning, where the guest tries again either way; nothing is warned of here"),
    absent("BUG-49", "a rule of the guest; scenarios/attacks/snp/double-validation.toml shows what it is for"),
    absent("BUG-50", "guests here have no neighbouring loads by chance"),
    absent("TDX-R03", "it is TDX-PREVIOUS-EPOCH"),
    absent("TDX-R04", "the hook of a removal has mmu_lock held for writing from BLOCK to REMOVE: MMU-INV-060"),
    absent("TDX-R11", "as BUG-53"),
    absent("TDX-R13", "it is RC-23, of private memory too"),
    absent("TDX-R14", "it is SEQ_LATE, of private memory too"),
    absent("TDX-R15", "it is RC-01 and RC-06, with the pages of a TD too"),
    absent(
        "TDX-R17",
        "KVM_RUN and pre-faults are refused before the end of the launch, and behind that the hook finds no source: `gmem/tests/kvm/tdx/build.rs::td_063_nothing_runs_before_the_end_of_the_launch`",
    ),
    absent("TDX-R18", "as BUG-56"),
    absent(
        "TDX-R21",
        "the host loses its priority once, and tries again; crates/sim-coco/tests/tdx/races.rs has both modules",
    ),
    absent("TDX-R22", "KVM takes no table of a TD that has its KeyID; scenarios/attacks/tdx/table.toml"),
    absent("TDX-R25", "who reads a mirror without its lock looks at no page of the Secure EPT"),
    absent("TDX-R28", "Linux has no mechanism; scenarios/tdx/known/extend-punch.toml shows what comes of that"),
    absent("TDX-R29", "of 2 MiB pages of TDs, which no release of Linux has; each status is looked at here"),
    absent("TDX-R30", "a visit that did not happen has no exit reason here: `TdVisit::KeptOut`"),
    absent(
        "TDX-R31",
        "neither the module nor KVM has a mechanism; in scenarios/tdx/same-page.toml it is one of the answers",
    ),
    absent(
        "BUG-51",
        "a rule of the guest's kernel, not of KVM: `linux_guest/accept.rs`, and its tests; the module answers who comes second",
    ),
    absent(
        "BUG-59",
        "of Linux 7.4: until then the run loop takes the request, KVM_RUN fails, and no other call of a dead VM gets that far",
    ),
    absent(
        "TDX-BLOCKED",
        "KVM blocks each page (TDX_NO_BLOCK): the check is a second line; scenarios/attacks/tdx/remove-under-guest.toml shows what it stops",
    ),
    absent("TDX-TRACKED", "KVM tracks each page (TRACK_SKIPPED); as TDX-BLOCKED, scenarios/attacks/tdx/no-track.toml"),
    absent("TDX-UNBLOCK-TRACKED", "KVM unblocks nothing; scenarios/attacks/tdx/unblock.toml"),
    absent(
        "TDX-LP-FLUSH",
        "each vCPU has a processor of its own, and leaves one before it comes to another; scenarios/attacks/tdx/stale-sibling.toml",
    ),
    absent("TDX-PREVIOUS-EPOCH", "KVM kicks after each TRACK; scenarios/attacks/tdx/track-twice.toml"),
    absent(
        "TDX-ACCEPTED-ONCE",
        "what a guest does about it is in its programs; scenarios/attacks/tdx/accept-again.toml",
    ),
    absent("TDX-NDA", "KVM gives no page twice; scenarios/attacks/tdx/alias.toml, scenarios/attacks/tdx/two-tds.toml"),
    absent("TDX-RANGE-FREE", "a large page of a TD is a folio of its own; scenarios/attacks/tdx/large-over-small.toml"),
    absent("TDX-SEPT-EMPTY", "KVM takes no table of a TD that has its KeyID; scenarios/attacks/tdx/table.toml"),
    absent("TDX-PROMOTE-CONDITIONS", "as TDX-RANGE-FREE; scenarios/attacks/tdx/promote.toml"),
    absent("TDX-SOURCE-KEYID", "KVM names no source by a KeyID; scenarios/attacks/tdx/source-of-another.toml"),
    absent("TDX-INTEGRITY", "KVM writes into no page of a TD; scenarios/attacks/tdx/host-write.toml"),
    absent("TDX-TEARDOWN", "KVM reclaims when the KeyID is free; scenarios/attacks/tdx/reclaim.toml"),
    absent("TDX-CHILDREN", "KVM reclaims the TDR last; crates/sim-coco/tests/tdx/mutants.rs"),
    absent("TDX-WBCACHE", "KVM writes back first (TDX_FREEID_BEFORE_CACHE_WB); scenarios/attacks/tdx/key-reuse.toml"),
    absent("TDX-VPFLUSH", "KVM flushes every vCPU first; scenarios/attacks/tdx/no-flush.toml"),
    absent("TDX-ASSOCIATED", "as TDX-VPFLUSH (TDX_VP_NO_FLUSH); scenarios/attacks/tdx/two-processors.toml"),
    absent(
        "TDX-ZERO-STEP",
        "it protects the guest from its host, and costs KVM a lock; scenarios/attacks/tdx/zero-step.toml",
    ),
    absent(
        "PKVM-K02",
        "an access is one step, and EL2 always learns where the host faulted; of the host's lock around the donation it is PKVM-K06",
    ),
    absent("PKVM-K08", "KVM takes nothing back before its VM is gone; scenarios/attacks/pkvm/unshare-vm.toml"),
    absent(
        "PKVM-K10",
        "KVM tops the memcache up before each mapping; crates/sim-coco/tests/pkvm/mutants.rs shows who loses the page otherwise",
    ),
    absent("PKVM-K12", "KVM ends a VM when nobody has it any more; scenarios/attacks/pkvm/end-running.toml"),
    absent(
        "PKVM-K13",
        "KVM takes back page after page, each with its own TLBI; scenarios/attacks/pkvm/stale-vmid.toml shows what it is for, a page that was left",
    ),
    absent("PKVM-K14", "as PKVM-K12; scenarios/attacks/pkvm/run-dying.toml"),
    absent(
        "PKVM-DONATES-MMIO",
        "no devices are mapped by a VMM, whose pages KVM pins; scenarios/attacks/pkvm/donate-device.toml",
    ),
    absent(
        "PKVM-SHARES-SHARED",
        "what KVM shares with the hypervisor no VMM has a mapping of; scenarios/attacks/pkvm/lend-shared.toml",
    ),
    absent(
        "PKVM-ORACLE",
        "KVM asks after an abort of a protected guest, which has all permissions; scenarios/attacks/pkvm/oracle.toml",
    ),
    absent("BUG-86", "no answer of the hypervisor is `busy`: what KVM does not take back is PKVM_RECLAIM_SKIPS"),
    absent("TDX-ACCEPT-SIZE", "as TDX-RANGE-FREE; scenarios/attacks/tdx/accept-part.toml"),
];
