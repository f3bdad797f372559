//! Canonical entry values of both formats, and MMIO entries.

use sim_kernel::Pfn;
use sim_mmu::{Access, Gfn, Level, MEMSLOT_GEN_UPDATE_IN_PROGRESS, Spte, SpteMasks, SpteState, Stage2Kind};

const MAX_GFN: Gfn = Gfn(1 << 34);

#[test]
fn canonical_values() {
    let ept = SpteMasks::new(Stage2Kind::Ept, MAX_GFN, true);
    let npt = SpteMasks::new(Stage2Kind::Npt, MAX_GFN, true);
    let pfn = Pfn(0x12_3400);
    let base = pfn.0 << 12;
    let cases = [
        (ept.make_spte(pfn, Level::L4K, true, false), 0x80a0_0000_0000_0f77),
        (ept.make_spte(pfn, Level::L2M, true, false), 0x80a0_0000_0000_0ff7),
        (ept.make_spte(pfn, Level::L4K, false, false), 0x8000_0000_0000_0d75),
        (ept.make_spte(pfn, Level::L4K, true, true), 0x80a0_0000_0000_0e77),
        (ept.make_nonleaf_spte(pfn), 0x8000_0000_0000_0d07),
        (npt.make_spte(pfn, Level::L4K, true, false), 0xe67),
        (npt.make_spte(pfn, Level::L2M, true, false), 0xee7),
        (npt.make_spte(pfn, Level::L4K, false, false), 0x825),
        (npt.make_nonleaf_spte(pfn), 0x827),
    ];
    for (spte, bits) in cases {
        assert_eq!(spte, Spte(bits | base), "expected {bits:#x}");
        assert_eq!(spte.pfn(), pfn);
        assert!(spte.is_present());
    }
    assert_eq!(Spte::NONPRESENT.0, 1 << 63);
    assert_eq!(Spte::FROZEN.0, 0x8000_0000_0000_01a0);
    for masks in [ept, npt] {
        assert_eq!(masks.classify(Spte::NONPRESENT, Level::L4K), SpteState::None);
        assert_eq!(masks.classify(Spte::FROZEN, Level::L4K), SpteState::Frozen);
        assert!(!masks.is_malformed(Spte::NONPRESENT.0), "the hardware takes it for not present");
    }
}

#[test]
fn small_and_huge() {
    let npt = SpteMasks::new(Stage2Kind::Npt, MAX_GFN, true);
    let huge = npt.make_spte(Pfn(0x40000), Level::L1G, true, false);
    let middle = npt.make_small_spte(huge, Level::L1G, 3);
    assert_eq!(middle, npt.make_spte(Pfn(0x40600), Level::L2M, true, false));
    let small = npt.make_small_spte(middle, Level::L2M, 511);
    assert_eq!(small, npt.make_spte(Pfn(0x407ff), Level::L4K, true, false));
    assert_eq!(npt.make_huge_spte(small, Level::L2M), middle);
    assert_eq!(npt.make_huge_spte(middle, Level::L1G), huge);
    let read_only = small.write_protected();
    assert!(npt.needs_atomic_update(read_only), "the fast path may set W");
    assert!(!npt.needs_atomic_update(small), "W and D are set: only A can change");
    assert!(npt.is_access_allowed(read_only, Access::Exec) && !npt.is_access_allowed(read_only, Access::Write));
}

#[test]
fn mmio_entries() {
    for kind in [Stage2Kind::Ept, Stage2Kind::Npt] {
        let masks = SpteMasks::new(kind, MAX_GFN, true);
        for (gfn, generation) in [(Gfn(0), 0), (Gfn(0xf_ee00), 0x3_ffff), (Gfn(1 << 33), 0x2_a57f), (Gfn(7), 0x80)] {
            let spte = masks.make_mmio_spte(gfn, generation);
            assert_eq!(masks.classify(spte, Level::L4K), SpteState::Mmio);
            assert_eq!(masks.mmio_gfn(spte), gfn);
            assert_eq!(masks.mmio_generation(spte), generation);
            assert!(!spte.is_present() && masks.is_malformed(spte.0), "the hardware reports it");
            assert!(masks.check_mmio_spte(spte, generation | 5 << 18), "only 18 bits are remembered");
            assert!(!masks.check_mmio_spte(spte, generation ^ 1));
            assert!(!masks.check_mmio_spte(spte, generation | MEMSLOT_GEN_UPDATE_IN_PROGRESS));
        }
    }
    let ept = SpteMasks::new(Stage2Kind::Ept, MAX_GFN, true);
    assert_eq!(ept.make_mmio_spte(Gfn(1), 0x81), Spte(6 | 1 << 3 | 1 << 12 | 1 << 52));
    let npt = SpteMasks::new(Stage2Kind::Npt, MAX_GFN, true);
    assert_eq!(npt.make_mmio_spte(Gfn(1), 0), Spte(7 | 1 << 12 | 1 << 51));
    let full = SpteMasks::new(Stage2Kind::Npt, Gfn(1 << 40), true);
    assert!(!full.mmio_caching(), "no reserved address bit is left with 52 bits");
    assert!(SpteMasks::new(Stage2Kind::Ept, Gfn(1 << 40), true).mmio_caching());
}
