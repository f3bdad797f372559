//! AMD nested page tables: the long-mode format with KVM's software bits (`kvm_mmu_reset_all_pte_masks` of
//! `arch/x86/kvm/mmu/spte.c`).

use super::{PT_WRITABLE_MASK, SPTE_MMU_PRESENT_MASK, SpteMasks, Stage2Kind};

const PRESENT: u64 = 1 << 0;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NX: u64 = 1 << 63;
/// The reserved address bit that MMIO entries set.
const MMIO: u64 = 1 << 51;

pub(super) const fn masks(reserved: u64) -> SpteMasks {
    SpteMasks {
        kind: Stage2Kind::Npt,
        leaf: SPTE_MMU_PRESENT_MASK | PRESENT | USER,
        nonleaf: SPTE_MMU_PRESENT_MASK | PRESENT | PT_WRITABLE_MASK | USER | ACCESSED,
        hw_present: PRESENT,
        accessed: ACCESSED,
        dirty: DIRTY,
        host_writable: 1 << 9,
        mmu_writable: 1 << 10,
        read: PRESENT,
        exec: 0,
        user_exec: 0,
        nx: NX,
        ad_disabled: 0,
        acc_track: 0,
        acc_saved: 0,
        reserved,
        mmio_value: MMIO | PRESENT,
        mmio_mask: MMIO | PRESENT,
        mmio_access: PT_WRITABLE_MASK | USER,
    }
}
