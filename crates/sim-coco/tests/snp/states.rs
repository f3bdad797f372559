//! Page states: SN-010, SNP-INV-001, and the traces of §11.6.

use crate::machine::{G, GPA, STATES, with};
use sim_coco::snp::firmware::{GuestPolicy, LaunchUpdate, PageMove, PageType};
use sim_coco::snp::{
    Asid, GuestCpu, PageOperand, PageState, RmpAdjust, RmpEntry, RmpSize, RmpUpdate, Spa, Vmpl, VmplPerms,
};
use sim_mmu::Gpa;

#[test]
fn sn_010_every_combination_is_one_state_or_none() {
    let mut found = std::collections::BTreeMap::new();
    for bits in 0..64u32 {
        let bit = |i: u32| bits >> i & 1 != 0;
        let entry = RmpEntry {
            assigned: bit(0),
            immutable: bit(1),
            validated: bit(2),
            vmsa: bit(3),
            asid: Asid(u16::from(bit(4))),
            gpa: Gpa(u64::from(bit(5)) << 12),
            ..RmpEntry::HYPERVISOR
        };
        // The table of the specification, column by column.
        let guest = bit(4);
        let expected: Vec<PageState> = STATES
            .into_iter()
            .filter(|state| {
                let [assigned, owned, immutable] = match state {
                    PageState::Hypervisor => [false, false, false],
                    PageState::HvFixed => [false, false, true],
                    PageState::Reclaim => [true, false, false],
                    PageState::Firmware | PageState::Context | PageState::Metadata => [true, false, true],
                    PageState::GuestInvalid | PageState::GuestValid => [true, true, false],
                    PageState::PreGuest | PageState::PreSwap => [true, true, true],
                };
                let validated = matches!(state, PageState::GuestValid | PageState::PreSwap);
                let vmsa = match state {
                    PageState::Context => entry.vmsa,
                    _ => owned || !entry.vmsa,
                };
                let gpa = match state {
                    PageState::Metadata => bit(5),
                    PageState::Reclaim => true,
                    _ => owned || !bit(5),
                };
                [entry.assigned, guest, entry.immutable] == [assigned, owned, immutable]
                    && entry.validated == validated
                    && vmsa
                    && gpa
            })
            .collect();
        assert!(expected.len() <= 1, "{entry:?} would be {expected:?}");
        assert_eq!(PageState::of(&entry), expected.first().copied(), "{entry:?}");
        if let Some(state) = PageState::of(&entry) {
            *found.entry(state).or_insert(0) += 1;
        }
    }
    assert_eq!(found.len(), STATES.len(), "every state exists: {found:?}");
}

#[test]
fn traces_of_a_page() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let gctx = machine.launching(cx, G, GuestPolicy::USUAL);
        let cpu = GuestCpu::snp(0, G);
        let guest = RmpUpdate::guest(G, GPA);
        let back = |pfn| {
            machine.assign(cx, pfn, RmpUpdate::HYPERVISOR);
            assert_eq!(machine.state(pfn), PageState::Hypervisor);
        };
        // A: a page that is launched.
        let a = machine.in_state(cx, PageState::PreGuest);
        snp.snp_launch_update(cx, &LaunchUpdate::new(gctx, Spa::of(a), PageType::Normal)).unwrap();
        assert_eq!(machine.state(a), PageState::GuestValid);
        back(a);
        // B: one that the guest accepts at run time.
        let b = machine.in_state(cx, PageState::GuestValid);
        snp.pvalidate(cx, &cpu, &PageOperand::page(GPA, b), 0).unwrap();
        assert_eq!(machine.state(b), PageState::GuestInvalid);
        back(b);
        // C: one that could not be launched.
        let c = machine.in_state(cx, PageState::PreGuest);
        snp.snp_page_reclaim(cx, Spa::of(c), RmpSize::Size4K).unwrap();
        assert_eq!(machine.state(c), PageState::GuestInvalid);
        back(c);
        // D: a response page.
        let d = machine.in_state(cx, PageState::Firmware);
        snp.snp_page_reclaim(cx, Spa::of(d), RmpSize::Size4K).unwrap();
        assert_eq!(machine.state(d), PageState::Reclaim);
        back(d);
        // F: KVM's own VMSA.
        let f = machine.in_state(cx, PageState::PreGuest);
        snp.snp_launch_update(cx, &LaunchUpdate::new(gctx, Spa::of(f), PageType::Vmsa)).unwrap();
        assert_eq!((machine.state(f), machine.entry(f).vmsa), (PageState::GuestValid, true));
        back(f);
        // G: a VMSA that the guest makes.
        let g = machine.in_state(cx, PageState::GuestValid);
        let vmsa = RmpAdjust::new(Vmpl::new(1).unwrap(), VmplPerms::empty(), true);
        assert_eq!(snp.rmpadjust(cx, &cpu, &PageOperand::page(GPA, g), vmsa), Ok(Ok(())));
        assert_eq!((machine.state(g), machine.entry(g).vmsa), (PageState::GuestValid, true));
        // A VMSA that is taken back and closed: no column of the table, but reachable.
        let rescinded = snp.pvalidate(cx, &cpu, &PageOperand::page(GPA, g), 0);
        assert!(rescinded.is_ok());
        machine.assign(cx, g, guest.immutable());
        assert_eq!((machine.state(g), machine.entry(g).vmsa), (PageState::PreGuest, true));
        // H: a page that moves.
        let src = machine.in_state(cx, PageState::PreSwap);
        let dst = machine.in_state(cx, PageState::PreGuest);
        let page_move = PageMove { gctx, page_size: RmpSize::Size4K, src: Spa::of(src), dst: Spa::of(dst) };
        snp.snp_page_move(cx, &page_move).unwrap();
        assert_eq!([src, dst].map(|pfn| machine.state(pfn)), [PageState::GuestInvalid, PageState::GuestValid]);
        back(src);
        // I: 2 MiB, of which one page is taken back.
        let head = machine.sized_in_state(cx, PageState::GuestValid, RmpSize::Size2M);
        snp.psmash(cx, head).unwrap();
        back(head + 9);
        assert!((0..512).filter(|i| *i != 9).all(|i| machine.state(head + i) == PageState::GuestValid));
        // E: the context.
        snp.snp_decommission(cx, gctx).unwrap();
        assert_eq!(machine.state(gctx.pfn()), PageState::Firmware);
        snp.snp_page_reclaim(cx, gctx, RmpSize::Size4K).unwrap();
        back(gctx.pfn());
    });
}
