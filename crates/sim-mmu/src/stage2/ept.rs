//! Intel extended page tables with KVM's software bits (`kvm_mmu_set_ept_masks` of `arch/x86/kvm/mmu/spte.c`).

use super::{PT_WRITABLE_MASK, SHADOW_NONPRESENT_VALUE, SPTE_MMU_PRESENT_MASK, SpteMasks, Stage2Kind};

const READ: u64 = 1 << 0;
const EXEC: u64 = 1 << 2;
/// Execution by user-mode linear addresses; mirrors `EXEC`.
const USER_EXEC: u64 = 1 << 10;
/// Write-back, and the guest's PAT is ignored.
const WB_IPAT: u64 = 6 << 3 | 1 << 6;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// Suppress #VE: set in everything but MMIO entries.
const SUPPRESS_VE: u64 = SHADOW_NONPRESENT_VALUE;

pub(super) const fn masks(reserved: u64) -> SpteMasks {
    SpteMasks {
        kind: Stage2Kind::Ept,
        leaf: SPTE_MMU_PRESENT_MASK | SUPPRESS_VE | READ | EXEC | USER_EXEC | WB_IPAT,
        nonleaf: SPTE_MMU_PRESENT_MASK | SUPPRESS_VE | READ | PT_WRITABLE_MASK | EXEC | USER_EXEC | ACCESSED,
        hw_present: READ | PT_WRITABLE_MASK | EXEC,
        accessed: ACCESSED,
        dirty: DIRTY,
        host_writable: 1 << 53,
        mmu_writable: 1 << 55,
        read: READ,
        exec: EXEC,
        user_exec: USER_EXEC,
        nx: 0,
        ad_disabled: 0,
        acc_track: 0,
        acc_saved: 0,
        reserved,
        mmio_value: PT_WRITABLE_MASK | EXEC,
        mmio_mask: SUPPRESS_VE | READ | PT_WRITABLE_MASK | EXEC,
        mmio_access: 0,
    }
}

/// The same on a processor without A and D bits, or with `ept_ad_bits` off: bit 8 is KVM's own, and an entry that was not accessed has its
/// rights put away in ignored bits.
pub(super) const fn without_accessed_dirty(masks: SpteMasks) -> SpteMasks {
    /// `SPTE_TDP_AD_DISABLED`, in bits 61:60.
    const AD_DISABLED: u64 = 1 << 60;
    SpteMasks {
        leaf: masks.leaf | AD_DISABLED,
        nonleaf: masks.nonleaf & !ACCESSED | AD_DISABLED,
        ad_disabled: AD_DISABLED,
        acc_track: READ | PT_WRITABLE_MASK | EXEC | USER_EXEC,
        acc_saved: READ | EXEC | USER_EXEC,
        ..masks
    }
}
