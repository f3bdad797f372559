//! The cipher: SN-081 to SN-087, SNP-INV-017, -027 and -028.

use crate::machine::{G, GPA, H, with};
use proptest::prelude::*;
use sim_coco::snp::firmware::{GuestPolicy, PageMove};
use sim_coco::snp::{BlockNumber, GuestCpu, KeyPath, MemoryKey, RmpSize, RmpUpdate, Spa};

fn bytes() -> impl Strategy<Value = [u8; 16]> {
    // Few values, so that equal ones are often drawn.
    prop_oneof![Just([0; 16]), Just([0xff; 16]), any::<[u8; 16]>()]
}

proptest! {
    #[test]
    fn sn_081_to_sn_084(
        keys in [0u8..3, 0u8..3],
        blocks in [0u64..4, 0u64..4],
        plaintexts in [bytes(), bytes()],
    ) {
        let key = keys.map(|key| MemoryKey::new(&[key; 32]));
        let block = blocks.map(BlockNumber);
        let raw = [0, 1].map(|i| key[i].encrypt(block[i], plaintexts[i]));
        let same = (keys[0], blocks[0], plaintexts[0]) == (keys[1], blocks[1], plaintexts[1]);
        // Equal where everything is, and nowhere else, but for a chance that nobody will see.
        prop_assert_eq!(raw[0] == raw[1], same);
        prop_assert_eq!(key[0].decrypt(block[0], raw[0]), plaintexts[0]);
        let wrong = key[1].decrypt(block[1], raw[0]);
        prop_assert_eq!(wrong == plaintexts[0], keys[0] == keys[1] && blocks[0] == blocks[1]);
        prop_assert_eq!(wrong, key[1].decrypt(block[1], raw[0]));
        prop_assert_ne!(raw[0], plaintexts[0]);
    }
}

#[test]
fn sn_085_an_asid_with_another_guest_has_another_key() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let pfn = machine.page();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
            machine.validated(cx, pfn, RmpUpdate::guest(G, GPA));
            snp.guest_write_u64(cx, &GuestCpu::snp(0, G), GPA, pfn, 7).unwrap();
            assert!(seen.insert(machine.phys.peek_u64(pfn, 0)), "a ciphertext came back");
            machine.assign(cx, pfn, RmpUpdate::HYPERVISOR);
            snp.snp_decommission(cx, gctx).unwrap();
            // SNP-INV-040: without the key, no path reads the plaintext.
            for path in [KeyPath::Raw, KeyPath::Guest(G), KeyPath::Guest(H)] {
                let mut bytes = [0; 8];
                snp.memory().read(path, pfn, 0, &mut bytes);
                assert_ne!(bytes, 7u64.to_le_bytes());
            }
            snp.wbinvd_all(cx);
            snp.snp_df_flush(cx).unwrap();
        }
    });
}

#[test]
fn sn_086_a_cleared_page_is_garbage_to_the_guest() {
    with(|cx, machine| {
        machine.launching(cx, G, GuestPolicy::USUAL);
        let pfn = machine.page();
        machine.validated(cx, pfn, RmpUpdate::guest(G, GPA));
        let page = machine.snp.memory().read_page(KeyPath::Guest(G), pfn);
        assert!(page.chunks(16).all(|block| block != [0; 16]), "a block is zero");
        let distinct: std::collections::BTreeSet<_> = page.chunks(16).collect();
        assert_eq!(distinct.len(), 256, "the address is a part of the cipher");
        assert_eq!(page, machine.snp.memory().read_page(KeyPath::Guest(G), pfn));
        assert_ne!(page, machine.snp.memory().read_page(KeyPath::Guest(H), pfn));
    });
}

#[test]
fn sn_087_a_moved_page_has_another_ciphertext_and_moved_back_the_old_one() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let cpu = GuestCpu::snp(0, G);
        let guest = RmpUpdate::guest(G, GPA);
        let a = machine.page();
        machine.validated(cx, a, guest);
        snp.guest_write_u64(cx, &cpu, GPA, a, 0x1234).unwrap();
        let ciphertext = snp.memory().read_page(KeyPath::Raw, a);
        let b = machine.page();
        for (src, dst) in [(a, b), (b, a)] {
            machine.assign(cx, src, guest.immutable());
            machine.assign(cx, dst, guest.immutable());
            let page_move = PageMove { gctx, page_size: RmpSize::Size4K, src: Spa::of(src), dst: Spa::of(dst) };
            snp.snp_page_move(cx, &page_move).unwrap();
            assert_eq!(snp.guest_read_u64(cx, &cpu, GPA, dst), Ok(0x1234));
            assert_eq!(snp.memory().read_page(KeyPath::Raw, dst) == ciphertext, dst == a);
            machine.assign(cx, src, RmpUpdate::HYPERVISOR);
        }
    });
}
