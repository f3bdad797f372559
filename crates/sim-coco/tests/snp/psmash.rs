//! PSMASH: SN-031 to SN-034.

use crate::machine::{G, GPA, STATES, with};
use sim_coco::snp::{
    GuestCpu, PageOperand, PageState, RmpAdjust, RmpEntry, RmpFail, RmpSize, RmpUpdate, Vmpl, VmplPerms,
};
use sim_mmu::Gpa;

#[test]
fn sn_031_what_cannot_be_smashed() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let head = machine.huge();
        assert_eq!(snp.psmash(cx, head + 1), Err(RmpFail::Input));
        assert_eq!(snp.psmash(cx, head), Err(RmpFail::BadAddr), "not assigned");
        machine.assign(cx, head, RmpUpdate::guest(G, GPA));
        assert_eq!(snp.psmash(cx, head), Err(RmpFail::BadAddr), "4 KiB");
        assert_eq!(RmpFail::BadAddr.code(), Some(4));
        for state in STATES {
            if state == PageState::Context || state == PageState::HvFixed || state == PageState::Hypervisor {
                continue;
            }
            let head = machine.sized_in_state(cx, state, RmpSize::Size2M);
            let before = machine.entry(head);
            let answer = snp.psmash(cx, head);
            if before.immutable {
                assert_eq!((answer, machine.entry(head)), (Err(RmpFail::Permission), before));
            } else {
                assert_eq!(answer, Ok(()), "{state:?}");
            }
        }
    });
}

#[test]
fn sn_032_to_sn_034_the_guest_notices_nothing() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let cpu = GuestCpu::snp(0, G);
        let head = machine.sized_in_state(cx, PageState::GuestValid, RmpSize::Size2M);
        let gives = RmpAdjust::new(Vmpl::new(2).unwrap(), VmplPerms::R, true);
        assert_eq!(snp.rmpadjust(cx, &cpu, &PageOperand::page(GPA, head).huge(), gives), Ok(Ok(())));
        let before = machine.entry(head);
        let at = |i: u64| Gpa(GPA.0 + (i << 12));
        snp.guest_write_u64(cx, &cpu, at(3), head + 3, 77).unwrap_err();
        let bytes = |i| (0..512).map(|word| machine.phys.peek_u64(head + i, word)).collect::<Vec<_>>();
        let contents: Vec<_> = (0..512).map(bytes).collect();
        snp.psmash(cx, head).unwrap();
        assert!((0..512).map(bytes).eq(contents), "SN-030");
        for i in 0..512 {
            let expected = RmpEntry { page_size: RmpSize::Size4K, gpa: at(i), ..before };
            assert_eq!(machine.entry(head + i), expected, "SNP-INV-015");
            assert_eq!(snp.guest_write_u64(cx, &cpu, at(i), head + i, i), Ok(()));
        }
        machine.assign(cx, head + 7, RmpUpdate::HYPERVISOR);
        for i in 0..512 {
            assert_eq!(snp.guest_read_u64(cx, &cpu, at(i), head + i).ok(), (i != 7).then_some(i));
        }
    });
}
