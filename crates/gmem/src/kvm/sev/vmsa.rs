//! The VMSA that KVM makes for a vCPU: a page in the format of AMD's manual, with the state after reset and what user space has set of it
//! (`sev_es_sync_vmsa`).
//!
//! Simplified: general registers of a program are not in it.

use crate::kvm::vcpu::SpecialRegisters;
use sim_coco::snp::SevFeatures;
use sim_coco::snp::vmsa::offset::*;
use sim_kernel::PAGE_SIZE;

/// State after reset, as 64-bit words by offset: segments, control registers, RIP, RDX with the processor's signature, XCR0, MXCSR, FCW.
const RESET: [(usize, u64); 24] = [
    (0x000, 0x0000_ffff_0093_0000),
    (0x010, 0x0000_ffff_009b_f000),
    (0x018, 0x0000_0000_ffff_0000),
    (0x020, 0x0000_ffff_0093_0000),
    (0x030, 0x0000_ffff_0093_0000),
    (0x040, 0x0000_ffff_0093_0000),
    (0x050, 0x0000_ffff_0093_0000),
    (0x060, 0x0000_ffff_0000_0000),
    (0x070, 0x0000_ffff_0082_0000),
    (0x080, 0x0000_ffff_0000_0000),
    (0x090, 0x0000_ffff_008b_0000),
    (EFER, 0x1000),
    (CR4, 0x40),
    (CR3, 0),
    (CR0, 0x10),
    (DR7, 0x400),
    (DR6, 0xffff_0ff0),
    (RFLAGS, 2),
    (RIP, 0xfff0),
    (G_PAT, 0x0007_0406_0007_0406),
    (RDX, 0x0080_0f12),
    (XCR0, 1),
    (MXCSR, 0x1f80),
    (X87_FCW, 0x37f),
];
/// The page for a vCPU with these features and these special registers; registers that user space never set are those after reset.
pub(super) fn reset_vmsa(features: SevFeatures, sregs: &SpecialRegisters) -> Box<[u8; PAGE_SIZE as usize]> {
    let mut page = Box::new([0; PAGE_SIZE as usize]);
    let mut put = |offset: usize, word: u64| page[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
    for (offset, word) in RESET {
        put(offset, word);
    }
    put(SEV_FEATURES, features.bits());
    let paging = sregs.paging;
    if paging != Default::default() {
        put(CR0, paging.cr0.bits());
        put(CR3, paging.cr3.0);
        put(CR4, paging.cr4.bits() | 0x40);
        put(EFER, paging.efer.bits() | 0x1000);
    }
    page
}

/// The page of a vCPU whose registers nobody set, as it is measured: for whoever computes the digest that a launch should have.
pub fn initial_vmsa(features: SevFeatures) -> Box<[u8; PAGE_SIZE as usize]> {
    reset_vmsa(features, &SpecialRegisters::default())
}

#[cfg(test)]
mod tests {
    use super::reset_vmsa;
    use sim_coco::snp::SevFeatures;
    use sim_coco::snp::firmware::contents_digest;

    /// Known digests of the VMSA of QEMU's boot processor (EPYC-v4), for features 1 and 0x21.
    #[test]
    fn sn_130_the_vmsa_after_reset_is_the_known_one() {
        for (features, digest) in [(1, "77920c4c629ff47e90c0e174fc1ad0eb"), (0x21, "ae79efa6efbe1594a2717dfd42af495a")]
        {
            let page = reset_vmsa(SevFeatures::from_bits_retain(features), &Default::default());
            let found = format!("{}", contents_digest(&page[..]));
            assert!(found.starts_with(digest), "features {features:#x}: {found}");
        }
    }
}
