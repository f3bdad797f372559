//! The rules of this crate that can be switched off, by the ids of the specifications of racing pairs (`RC`) and of real defects
//! (`BUG`). What each takes away and what goes wrong then is told by [`crate::mutants`].

use sim_kernel::Mutant;

/// A fault tests its sequence under `mmu_lock`.
pub const RC_01: Mutant = Mutant::new(160, "RC-01");
/// It takes its sequence before it looks its page up.
pub const RC_02: Mutant = Mutant::new(161, "RC-02");
/// An invalidation is open until the pages are gone.
pub const RC_03: Mutant = Mutant::new(162, "RC-03");
/// A range is announced before it is zapped.
pub const RC_06: Mutant = Mutant::new(163, "RC-06");
/// Mappings go before pages do.
pub const RC_07: Mutant = Mutant::new(164, "RC-07");
/// TLBs are flushed before `mmu_lock` is released.
pub const RC_08: Mutant = Mutant::new(165, "RC-08");
/// A vCPU stores its mode before it looks for requests.
pub const RC_09: Mutant = Mutant::new(166, "RC-09");
/// A fault holds a reference to its page.
pub const RC_11: Mutant = Mutant::new(167, "RC-11");
/// A page is cleared under the folio lock.
pub const RC_13: Mutant = Mutant::new(168, "RC-13");
/// `fallocate` says nothing of a page's contents.
pub const RC_14: Mutant = Mutant::new(169, "RC-14");
/// A look-up takes a file only if it is not being released.
pub const RC_15: Mutant = Mutant::new(170, "RC-15");
/// A release zaps what the file backs.
pub const RC_17: Mutant = Mutant::new(172, "RC-17");
/// A slot is bound before it is published.
pub const RC_19: Mutant = Mutant::new(173, "RC-19");
/// A change of the slots waits for everybody who may use the old ones.
pub const RC_20: Mutant = Mutant::new(174, "RC-20");
/// A slot is marked INVALID, and that is waited for, before it is zapped.
pub const RC_21: Mutant = Mutant::new(175, "RC-21");
/// A fault that finds an INVALID slot tries again.
pub const RC_22: Mutant = Mutant::new(176, "RC-22");
/// A pre-fault that finds one gives up.
pub const RC_23: Mutant = Mutant::new(177, "RC-23");
/// A fault tests under `mmu_lock` that its root is still in use.
pub const RC_24: Mutant = Mutant::new(178, "RC-24");
/// A vCPU's cached slot is good for one generation.
pub const RC_25: Mutant = Mutant::new(179, "RC-25");
/// So is an MMIO entry.
pub const RC_26: Mutant = Mutant::new(180, "RC-26");
/// A fault looks at the attribute after it took its sequence.
pub const RC_27: Mutant = Mutant::new(181, "RC-27");
/// It looks at the attribute again at all.
pub const RC_28: Mutant = Mutant::new(182, "RC-28");
/// A conversion keeps huge mappings away from blocks that it converts in part.
pub const RC_29: Mutant = Mutant::new(183, "RC-29");
/// What is mixed is known before `mmu_lock` is released.
pub const RC_30: Mutant = Mutant::new(184, "RC-30");
/// An invalidation is open while attributes are stored.
pub const RC_31: Mutant = Mutant::new(185, "RC-31");
/// Pages of user memory are under the retry protocol too.
pub const RC_32: Mutant = Mutant::new(186, "RC-32");
/// Slots are not changed while a notifier is open.
pub const RC_33: Mutant = Mutant::new(187, "RC-33");
/// A look-up tests whether the page is broken.
pub const RC_36: Mutant = Mutant::new(188, "RC-36");
/// A hole is punched under `invalidate_lock`.
pub const RC_42: Mutant = Mutant::new(189, "RC-42");
/// So are pages allocated.
pub const RC_43: Mutant = Mutant::new(190, "RC-43");
/// A slot is unbound before it is freed.
pub const RC_44: Mutant = Mutant::new(191, "RC-44");
/// The failure of a page is handled under `invalidate_lock`.
pub const RC_45: Mutant = Mutant::new(192, "RC-45");
/// A page of a file is bound to one slot.
pub const RC_47: Mutant = Mutant::new(193, "RC-47");
/// Making a slot holds its file.
pub const RC_49: Mutant = Mutant::new(195, "RC-49");
/// A release holds `slots_lock`.
pub const RC_50: Mutant = Mutant::new(196, "RC-50");
/// A file that is on its way out is unbound too.
pub const RC_51: Mutant = Mutant::new(197, "RC-51");
/// A conversion holds `slots_lock`, against new slots.
pub const RC_52: Mutant = Mutant::new(198, "RC-52");
/// The same against another conversion.
pub const RC_53: Mutant = Mutant::new(199, "RC-53");
/// A conversion has its memory before it begins.
pub const RC_54: Mutant = Mutant::new(200, "RC-54");
/// Nodes of the attributes are freed after a grace period.
pub const RC_55: Mutant = Mutant::new(201, "RC-55");
/// Nodes of the bindings are freed after a grace period.
pub const RC_56: Mutant = Mutant::new(202, "RC-56");
/// A guest_memfd keeps its VM.
pub const RC_58: Mutant = Mutant::new(203, "RC-58");
/// `slots_arch_lock` is released before the wait for vCPUs.
pub const RC_60: Mutant = Mutant::new(204, "RC-60");
/// Eviction only drops the cache's own references.
pub const RC_61: Mutant = Mutant::new(205, "RC-61");
/// The failure of a page takes `invalidate_lock` before the folio lock: not in Linux, only where the machine repairs it.
pub const RC_62: Mutant = Mutant::new(206, "RC-62");
/// A look-up that finds a broken page unlocks it.
pub const RC_64: Mutant = Mutant::new(207, "RC-64");
/// A hole is clipped to the slot and moved to where the slot is.
pub const RC_65: Mutant = Mutant::new(208, "RC-65");
/// A binding ends within its file, whatever its offset.
pub const RC_66: Mutant = Mutant::new(209, "RC-66");
/// A slot keeps its guest_memfd until it is deleted.
pub const BUG_02: Mutant = Mutant::new(230, "BUG-02");
/// A file that is on its way out is unbound under `invalidate_lock`.
pub const BUG_03: Mutant = Mutant::new(231, "BUG-03");
/// A slot is bound only once nothing can fail any more.
pub const BUG_05: Mutant = Mutant::new(232, "BUG-05");
/// A binding that cannot be stored fails the request.
pub const BUG_06: Mutant = Mutant::new(233, "BUG-06");
/// A look-up that finds a broken page puts its reference.
pub const BUG_10: Mutant = Mutant::new(234, "BUG-10");
/// Only blocks that lie entirely in the slot are classified.
pub const BUG_18: Mutant = Mutant::new(235, "BUG-18");
/// The retry test compares guest frames.
pub const BUG_21: Mutant = Mutant::new(236, "BUG-21");
/// A pre-fault drops a root that is not used any more.
pub const BUG_27: Mutant = Mutant::new(237, "BUG-27");
/// Mappings of roots that are on their way out are zapped too.
pub const BUG_63: Mutant = Mutant::new(238, "BUG-63");
/// Whoever asks all vCPUs to leave waits for those that somebody else has kicked, too.
pub const WAIT_ONLY_IN_GUEST: Mutant = Mutant::new(260, "WAIT_ONLY_IN_GUEST");
/// A vCPU that loads a root flushes its TLB.
pub const ROOTLOAD_NO_FLUSH: Mutant = Mutant::new(261, "ROOTLOAD_NO_FLUSH");
/// A vCPU's mode is visible before it looks for requests.
pub const MODE_NO_FENCE: Mutant = Mutant::new(263, "MODE_NO_FENCE");
/// vCPUs are asked to drop their roots before anybody else can take `mmu_lock`.
pub const OBSOLETE_LATE: Mutant = Mutant::new(262, "OBSOLETE_LATE");
/// A vCPU takes a request before it does what is asked.
pub const CLEAR_AFTER_ACT: Mutant = Mutant::new(264, "CLEAR_AFTER_ACT");
/// Reading the dirty log takes a page's bit before it protects the page.
pub const PROTECT_THEN_TAKE: Mutant = Mutant::new(280, "PROTECT_THEN_TAKE");
/// Roots that were declared invalid are taken apart before the call returns.
pub const LAZY_ROOT_ZAP: Mutant = Mutant::new(281, "LAZY_ROOT_ZAP");
/// Once a slot that is logged has lost W everywhere, TLBs lose it too.
pub const ENABLE_NO_FLUSH: Mutant = Mutant::new(282, "ENABLE_NO_FLUSH");
/// So do they when pages were collected.
pub const COLLECT_NO_FLUSH: Mutant = Mutant::new(283, "COLLECT_NO_FLUSH");
/// That depends on the bits that were taken, not on what the entries said.
pub const FLUSH_BY_SPTE: Mutant = Mutant::new(284, "FLUSH_BY_SPTE");
/// vCPUs that know the slot without logging are waited for.
pub const ENABLE_NO_SRCU: Mutant = Mutant::new(285, "ENABLE_NO_SRCU");
/// Collecting starts over with the pages whose bits were taken, and with no others.
pub const PML_CLEAR_ALL: Mutant = Mutant::new(286, "PML_CLEAR_ALL");
/// A page is assigned to the guest before it is mapped as private.
pub const SEV_NO_MAKE_PRIVATE: Mutant = Mutant::new(287, "SEV_NO_MAKE_PRIVATE");
/// It is assigned at the address where it is mapped.
pub const SEV_WRONG_GPA: Mutant = Mutant::new(288, "SEV_WRONG_GPA");
/// It is assigned to the guest whose it is.
pub const SEV_WRONG_ASID: Mutant = Mutant::new(289, "SEV_WRONG_ASID");
/// A page that leaves its guest_memfd goes back to the hypervisor.
pub const SEV_NO_INVALIDATE: Mutant = Mutant::new(290, "SEV_NO_INVALIDATE");
/// RMPUPDATE is tried again while another processor is at work in the region.
pub const SEV_NO_OVERLAP_RETRY: Mutant = Mutant::new(291, "SEV_NO_OVERLAP_RETRY");
/// The direct map is split before a page gets another owner.
pub const SEV_NO_SPLIT: Mutant = Mutant::new(292, "SEV_NO_SPLIT");
/// An ASID is used again only after a flush.
pub const SEV_ASID_NO_FLUSH: Mutant = Mutant::new(293, "SEV_ASID_NO_FLUSH");
/// No guest is deactivated while ASIDs are flushed.
pub const SEV_DEACTIVATE_UNLOCKED: Mutant = Mutant::new(294, "SEV_DEACTIVATE_UNLOCKED");
/// An ASID is given up after its guest was decommissioned.
pub const SEV_ASID_FREED_FIRST: Mutant = Mutant::new(295, "SEV_ASID_FREED_FIRST");
/// LAUNCH_UPDATE refuses a page that is assigned.
pub const SEV_LAUNCH_NO_ASSIGNED_CHECK: Mutant = Mutant::new(296, "SEV_LAUNCH_NO_ASSIGNED_CHECK");
/// A page that could not be launched goes back to the hypervisor.
pub const SEV_LAUNCH_NO_RECLAIM: Mutant = Mutant::new(297, "SEV_LAUNCH_NO_RECLAIM");
/// A page is closed while it is launched.
pub const SEV_LAUNCH_OPEN: Mutant = Mutant::new(298, "SEV_LAUNCH_OPEN");
/// Only private frames are launched.
pub const SEV_POPULATE_SHARED: Mutant = Mutant::new(299, "SEV_POPULATE_SHARED");
/// Nothing is pre-faulted before the launch has ended.
pub const SEV_PRE_FAULT_EARLY: Mutant = Mutant::new(300, "SEV_PRE_FAULT_EARLY");
/// Who takes the page of a VMSA away tells its vCPU.
pub const SEV_NO_VMSA_RELOAD: Mutant = Mutant::new(301, "SEV_NO_VMSA_RELOAD");
/// And waits until it has left the guest.
pub const SEV_VMSA_RELOAD_NO_WAIT: Mutant = Mutant::new(302, "SEV_VMSA_RELOAD_NO_WAIT");
/// A VMSA is not used if it was taken away while it was looked up.
pub const SEV_VMSA_NO_RETRY: Mutant = Mutant::new(303, "SEV_VMSA_NO_RETRY");
/// Who takes a VMSA from another vCPU waits until it has left the guest.
pub const SEV_AP_NO_WAIT: Mutant = Mutant::new(304, "SEV_AP_NO_WAIT");
/// A VMSA at the head of a region of 2 MiB is refused.
pub const SEV_AP_ALIGNED_VMSA: Mutant = Mutant::new(305, "SEV_AP_ALIGNED_VMSA");
/// The end of a list of pages is read once.
pub const SEV_PSC_DOUBLE_FETCH: Mutant = Mutant::new(306, "SEV_PSC_DOUBLE_FETCH");
/// It must lie within the buffer.
pub const SEV_PSC_UNBOUNDED: Mutant = Mutant::new(307, "SEV_PSC_UNBOUNDED");
/// Around a hole, everything is zapped that a large folio may have there.
pub const GMEM_2M_NARROW: Mutant = Mutant::new(239, "GMEM_2M_NARROW");
/// A large folio is mapped as one only where guest frames and pages are congruent.
pub const GMEM_2M_INCONGRUENT: Mutant = Mutant::new(240, "GMEM_2M_INCONGRUENT");
/// A page of 2 MiB is split before a part of it goes back to the hypervisor.
pub const SEV_NO_PSMASH: Mutant = Mutant::new(241, "SEV_NO_PSMASH");
/// A guest that uses a part of a page of 2 MiB has it split.
pub const SEV_FAULT_NO_PSMASH: Mutant = Mutant::new(242, "SEV_FAULT_NO_PSMASH");
/// What was split is mapped anew.
pub const SEV_SMASH_NO_ZAP: Mutant = Mutant::new(243, "SEV_SMASH_NO_ZAP");
/// A mapping is no larger than the page in the RMP.
pub const SEV_LEVEL_UNLIMITED: Mutant = Mutant::new(244, "SEV_LEVEL_UNLIMITED");
/// A page of 2 MiB is assigned only where nothing of it is.
pub const SEV_2M_OVERLAPS: Mutant = Mutant::new(245, "SEV_2M_OVERLAPS");
/// A fault with the RMP bit is looked at only if the MMU has resumed the guest.
pub const SEV_RMP_FAULT_ANY: Mutant = Mutant::new(246, "SEV_RMP_FAULT_ANY");
/// PSMASH is tried again while another processor is at work in the region.
pub const SEV_PSMASH_NO_RETRY: Mutant = Mutant::new(247, "SEV_PSMASH_NO_RETRY");
/// The fast path is for faults that agree with the attribute.
pub const FAST_FAULT_DISAGREES: Mutant = Mutant::new(248, "FAST_FAULT_DISAGREES");
/// A page is cleared before it is assigned.
pub const SEV_ASSIGN_UNCLEARED: Mutant = Mutant::new(249, "SEV_ASSIGN_UNCLEARED");
/// A page that was cleared is marked so.
pub const GMEM_NOT_UPTODATE: Mutant = Mutant::new(250, "GMEM_NOT_UPTODATE");
/// A page is blocked before it is removed from a TD.
pub const TDX_NO_BLOCK: Mutant = Mutant::new(464, "TDX_NO_BLOCK");
/// A blocked page is tracked.
pub const TRACK_SKIPPED: Mutant = Mutant::new(465, "TRACK_SKIPPED");
/// After TRACK all vCPUs leave the guest.
pub const TRACK_NO_KICK: Mutant = Mutant::new(466, "TRACK_NO_KICK");
/// They leave after it, not before.
pub const TDX_KICK_BEFORE_TRACK: Mutant = Mutant::new(467, "TDX_KICK_BEFORE_TRACK");
/// A removal that meets a lock of the module is tried again.
pub const TDX_BUSY_NO_RETRY: Mutant = Mutant::new(468, "TDX_BUSY_NO_RETRY");
/// Before that all vCPUs leave the guest.
pub const TDX_RETRY_NO_KICK: Mutant = Mutant::new(469, "TDX_RETRY_NO_KICK");
/// And are kept out.
pub const TDX_RETRY_NO_WAIT_FLAG: Mutant = Mutant::new(470, "TDX_RETRY_NO_WAIT_FLAG");
/// A vCPU that is kept out does not enter.
pub const TDX_ENTERS_WHILE_ZAPPING: Mutant = Mutant::new(471, "TDX_ENTERS_WHILE_ZAPPING");
/// What the host wrote of a page is in memory before a TD gets it.
pub const TDX_NO_CLFLUSH: Mutant = Mutant::new(472, "TDX_NO_CLFLUSH");
/// What a TD wrote of a page is in memory before the host gets it.
pub const TDX_NO_WBINVD: Mutant = Mutant::new(473, "TDX_NO_WBINVD");
/// Where that matters, a page that was a TD's is written as a whole.
pub const TDX_NO_RESET: Mutant = Mutant::new(474, "TDX_NO_RESET");
/// Nothing is zapped while a vCPU is initialised.
pub const TDX_VP_INIT_UNLOCKED: Mutant = Mutant::new(475, "TDX_VP_INIT_UNLOCKED");
/// A vCPU that comes to another processor leaves the one before.
pub const TDX_VP_NO_FLUSH: Mutant = Mutant::new(476, "TDX_VP_NO_FLUSH");
/// A private fault is tried again where it is, but not in a slot that is on its way out.
pub const TDX_RETRIES_INVALID_SLOT: Mutant = Mutant::new(478, "TDX_RETRIES_INVALID_SLOT");
/// A vCPU that did not get into its TD goes out of guest mode before it tries again.
pub const TDX_SPINS_IN_GUEST_MODE: Mutant = Mutant::new(477, "TDX_SPINS_IN_GUEST_MODE");
/// A TD's memory goes before its KeyID.
pub const TDX_KEYID_BEFORE_MEMORY: Mutant = Mutant::new(479, "TDX_KEYID_BEFORE_MEMORY");
/// TDs give back their KeyIDs one after the other.
pub const TDX_RELEASE_UNLOCKED: Mutant = Mutant::new(480, "TDX_RELEASE_UNLOCKED");
/// Caches are written back before a KeyID is freed.
pub const TDX_FREEID_BEFORE_CACHE_WB: Mutant = Mutant::new(481, "TDX_FREEID_BEFORE_CACHE_WB");
/// A guest that accepts a page of 4 KiB where a TD has one of 2 MiB has it split.
pub const BUG_58: Mutant = Mutant::new(485, "BUG-58");
/// Of the page of a TD that is taken away in part, the rest stays.
pub const TDX_NO_SPLIT: Mutant = Mutant::new(487, "TDX_NO_SPLIT");
/// Pages of a region are counted under the lock under which its metadata goes.
pub const BUG_78: Mutant = Mutant::new(488, "BUG-78");
/// A page that goes counts no more.
pub const TDX_PAMT_NO_PUT: Mutant = Mutant::new(489, "TDX_PAMT_NO_PUT");
/// A TD's KeyID goes before its tables.
pub const EXT_FREE_EARLY: Mutant = Mutant::new(482, "EXT_FREE_EARLY");
/// A conversion zaps what the memory was.
pub const ATTR_FILTER_INVERTED: Mutant = Mutant::new(483, "ATTR_FILTER_INVERTED");
/// A page that is populated cannot be punched meanwhile.
pub const POPULATE_NO_LOCK: Mutant = Mutant::new(484, "POPULATE_NO_LOCK");
/// A fault of a protected guest looks whether there is a record before it donates a page.
pub const PKVM_NO_RECORD_CHECK: Mutant = Mutant::new(438, "PKVM_NO_RECORD_CHECK");
/// A page stays pinned as long as a protected guest has it.
pub const PKVM_NO_PIN: Mutant = Mutant::new(439, "PKVM_NO_PIN");
/// A fault of another guest shares nothing that may have been taken away meanwhile.
pub const PKVM_ABORT_NO_RETRY: Mutant = Mutant::new(440, "PKVM_ABORT_NO_RETRY");
/// It notes the sequence before it looks anything up.
pub const PKVM_SEQ_LATE: Mutant = Mutant::new(441, "PKVM_SEQ_LATE");
/// Unsharing a range takes back blocks that begin before it, too.
pub const PKVM_UNMAP_INSIDE_ONLY: Mutant = Mutant::new(442, "PKVM_UNMAP_INSIDE_ONLY");
/// Once pages are write-protected, the host asks the hypervisor to flush.
pub const PKVM_WP_NO_FLUSH: Mutant = Mutant::new(443, "PKVM_WP_NO_FLUSH");
/// The handle of a VM is reserved when the VM is created.
pub const PKVM_LATE_HANDLE: Mutant = Mutant::new(444, "PKVM_LATE_HANDLE");
/// Slots of a protected VM that has run do not go, and do not move.
pub const PKVM_SLOTS_CHANGE: Mutant = Mutant::new(445, "PKVM_SLOTS_CHANGE");
/// Every page of a protected VM is taken back before the hypervisor forgets the VM.
pub const PKVM_RECLAIM_SKIPS: Mutant = Mutant::new(446, "PKVM_RECLAIM_SKIPS");
/// A page that becomes private goes from the page tables of processes.
pub const PKVM_GMEM_KEEPS_MAPPING: Mutant = Mutant::new(447, "PKVM_GMEM_KEEPS_MAPPING");
/// The hypervisor's VM is made under `slots_lock`.
pub const PKVM_CREATE_NO_SLOTS_LOCK: Mutant = Mutant::new(448, "PKVM_CREATE_NO_SLOTS_LOCK");
/// The stage 2 of a VM goes under `mmu_lock`.
pub const PKVM_FREE_PGD_NO_LOCK: Mutant = Mutant::new(449, "PKVM_FREE_PGD_NO_LOCK");
