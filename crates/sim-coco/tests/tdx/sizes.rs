//! DEMOTE and PROMOTE: TD-019, TD-020, TD-037; pages of 1 GiB: TD-031, TD-032.

use crate::machine::{GPA, K, LP, Machine, config, info, leave, name, params, pfn, told, with};
use sim_coco::tdx::{Hpa, Injected, PageSize, PageType, SeptEntry, SeptInfo, SeptState, StatusName};
use sim_kernel::Cx;
use sim_kernel::sched::Sim;
use sim_mmu::{Gpa, Level};

const LARGE: SeptInfo = SeptInfo::new(GPA, Level::L2M);

fn nth(i: u64) -> Gpa {
    Gpa(GPA.0 + (i << 12))
}

/// A TD that is being built with 512 pages in a row, one of which the test may have changed.
fn parts(cx: &Cx<'_>, machine: &Machine, frame: impl Fn(u64) -> u64) -> (Hpa, Hpa) {
    let tdr = machine.building(cx);
    machine.table(cx, tdr, GPA, Level::L2M);
    let base = machine.huge();
    for i in 0..512 {
        let page = Hpa(base.0 + (frame(i) << 12));
        machine.tdx.on(LP).mem_page_aug(cx, SeptInfo::page(nth(i)), tdr, page).unwrap();
    }
    (tdr, base)
}

#[test]
fn td_019_a_page_is_split() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let at = info(Gpa(GPA.0 + (2 << 20)), Level::L2M);
        let page = machine.aug(cx, tdr, at.gpa(), Level::L2M);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.mem_page_accept(cx, at).unwrap().unwrap();
        guest.write_u64(cx, Gpa(at.gpa().0 + 0x3008), 33).unwrap();
        leave(cx, guest);
        let seam = machine.tdx.on(LP);
        assert_eq!(told(seam.mem_page_demote(cx, at, tdr, machine.page(), None)), "GPA_RANGE_NOT_BLOCKED|1");
        seam.mem_range_block(cx, at, tdr).unwrap();
        assert_eq!(told(seam.mem_page_demote(cx, at, tdr, machine.page(), None)), "TLB_TRACKING_NOT_DONE|1");
        seam.mem_track(cx, tdr).unwrap();
        let before = machine.tdx.peek_td(pfn(tdr)).unwrap().chldcnt;
        let table = machine.page();
        seam.mem_page_demote(cx, at, tdr, table, None).unwrap();
        assert_eq!(machine.tdx.peek_td(pfn(tdr)).unwrap().chldcnt, before + 1);
        assert_eq!(machine.tdx.peek_pamt(pfn(table)).1.page_type, PageType::Ept);
        for i in 0..512 {
            let child = machine.tdx.peek_sept(pfn(tdr), Gpa(at.gpa().0 + (i << 12)).gfn(), Level::L4K).unwrap();
            assert_eq!(child, SeptEntry::leaf(SeptState::Mapped, pfn(page) + i));
            let (size, entry) = machine.tdx.peek_pamt(pfn(page) + i);
            assert_eq!((size, entry.page_type, entry.owner), (PageSize::Size4K, PageType::Reg, Some(pfn(tdr))));
            assert_eq!(entry.bepoch, 0);
        }
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.read_u64(cx, Gpa(at.gpa().0 + 0x3008)), Ok(33));
        leave(cx, guest);
        // A part can go, and the rest stays.
        machine.take_away(cx, tdr, Gpa(at.gpa().0 + 0x5000), Level::L4K);
    });
}

#[test]
fn td_020_pages_that_fit_become_one() {
    with(|cx, machine| {
        let (tdr, base) = parts(cx, machine, |i| i);
        let seam = machine.tdx.on(LP);
        let table = machine.tdx.peek_sept(pfn(tdr), GPA.gfn(), Level::L2M).unwrap().pfn();
        let done = seam.mem_page_promote(cx, LARGE, tdr).unwrap();
        assert_eq!(done.sept, Hpa::of(table));
        assert_eq!(machine.tdx.peek_pamt(table).1.page_type, PageType::Nda);
        let entry = machine.tdx.peek_sept(pfn(tdr), GPA.gfn(), Level::L2M).unwrap();
        assert_eq!(entry, SeptEntry::leaf(SeptState::Pending, pfn(base)));
        assert_eq!(machine.tdx.peek_pamt(pfn(base) + 9).0, PageSize::Size2M);
        // It is unblocked, also if the table was blocked.
        seam.mem_page_demote(cx, LARGE, tdr, machine.page(), None).unwrap();
        seam.mem_range_block(cx, LARGE, tdr).unwrap();
        seam.mem_page_promote(cx, LARGE, tdr).unwrap();
        assert_eq!(machine.state(tdr, GPA, Level::L2M), Some(SeptState::Pending));
    });
}

#[test]
fn td_020_pages_that_do_not_fit_stay() {
    let refused = |frame: fn(u64) -> u64, change: fn(&Cx<'_>, &Machine, Hpa)| {
        with(|cx, machine| {
            let (tdr, _) = parts(cx, machine, frame);
            change(cx, machine, tdr);
            let before = machine.tdx.snapshot();
            let answer = machine.tdx.on(LP).mem_page_promote(cx, LARGE, tdr);
            assert_eq!(told(answer), "EPT_INVALID_PROMOTE_CONDITIONS|1");
            assert_eq!(machine.tdx.snapshot(), before);
        });
    };
    let nothing = |_: &Cx<'_>, _: &Machine, _: Hpa| {};
    // Two pages in the wrong order; a first page that is not aligned.
    refused(
        |i| {
            if i == 7 {
                8
            } else if i == 8 {
                7
            } else {
                i
            }
        },
        nothing,
    );
    refused(|i| (i + 1) % 512, nothing);
    // A hole, a blocked page, and pages that were accepted among those that were not.
    refused(
        |i| i,
        |cx, machine, tdr| {
            machine.tdx.on(LP).mem_page_remove(cx, SeptInfo::page(nth(511)), tdr).unwrap();
        },
    );
    refused(
        |i| i,
        |cx, machine, tdr| {
            machine.tdx.on(LP).mem_range_block(cx, SeptInfo::page(nth(0)), tdr).unwrap();
        },
    );
    refused(
        |i| i,
        |cx, machine, tdr| {
            let seam = machine.tdx.on(LP);
            seam.mem_page_remove(cx, SeptInfo::page(nth(4)), tdr).unwrap();
            let page = machine.page();
            seam.mem_page_add(cx, SeptInfo::page(nth(4)), tdr, page, machine.page()).unwrap();
        },
    );
}

#[test]
fn td_037_an_interrupt_puts_it_off() {
    with(|cx, machine| {
        let (tdr, _) = parts(cx, machine, |i| i);
        let seam = machine.tdx.on(LP);
        machine.tdx.post_interrupt(LP);
        let before = machine.tdx.snapshot();
        assert_eq!(name(seam.mem_page_promote(cx, LARGE, tdr)), StatusName::InterruptedRestartable);
        assert_eq!(machine.tdx.snapshot(), before);
        machine.tdx.ack_interrupt(LP);
        seam.mem_page_promote(cx, LARGE, tdr).unwrap();
        machine.tdx.post_interrupt(LP);
        let before = machine.tdx.snapshot();
        assert_eq!(
            name(seam.mem_page_demote(cx, LARGE, tdr, machine.page(), None)),
            StatusName::InterruptedRestartable
        );
        assert_eq!(machine.tdx.snapshot(), before);
    });
}

#[test]
fn a_page_that_is_half_accepted_is_accepted_anew_when_it_is_split() {
    with(|cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let at = info(Gpa(GPA.0 + (2 << 20)), Level::L2M);
        machine.aug(cx, tdr, at.gpa(), Level::L2M);
        let mut guest = machine.enter(cx, tdvpr, LP);
        machine.tdx.inject(Injected::InterruptAcceptAfter(100));
        assert!(guest.mem_page_accept(cx, at).is_err());
        machine.tdx.ack_interrupt(LP);
        let seam = machine.tdx.on(LP);
        seam.mem_range_block(cx, at, tdr).unwrap();
        seam.mem_track(cx, tdr).unwrap();
        seam.mem_page_demote(cx, at, tdr, machine.page(), None).unwrap();
        assert_eq!(machine.state(tdr, at.gpa(), Level::L4K), Some(SeptState::Pending));
        machine.accept(cx, tdvpr, at.gpa(), Level::L4K);
    });
}

/// A machine that has a page of 1 GiB.
fn with_large(test: impl FnOnce(&Cx<'_>, &Machine)) {
    Sim::sequential().solo(|cx| {
        let machine = Machine::large(cx, config());
        test(cx, &machine);
        machine.tdx.check_invariants().unwrap();
    });
}

/// A TD that is being built, with a page of 1 GiB at [`GIANT`] and its first frame.
fn giant(cx: &Cx<'_>, machine: &Machine) -> (Hpa, Hpa) {
    let tdr = machine.initialized(cx, K, &params());
    machine.table(cx, tdr, GIANT.gpa(), Level::L512G);
    let first = machine.giant(cx, tdr, GIANT.gpa());
    (tdr, first)
}

const GIANT: SeptInfo = SeptInfo::new(Gpa(1 << 30), Level::L1G);
const PAGES: u64 = 512 * 512;

#[test]
fn td_031_td_032_a_page_of_1_gib_counts_for_all_its_pages_and_is_one_in_the_metadata() {
    with_large(|cx, machine| {
        let (tdr, first) = giant(cx, machine);
        let seam = machine.tdx.on(LP);
        let owned = || machine.tdx.peek_td(pfn(tdr)).unwrap().chldcnt;
        // Beside it there are TDCS and a table.
        assert_eq!(owned(), 6 + 1 + PAGES);
        for page in [first, Hpa(first.0 + (3 << 21)), Hpa(first.0 + (1 << 30) - 0x1000)] {
            let answer = seam.phymem_page_rdmd(cx, page).unwrap();
            assert_eq!((answer.page_type, answer.owner, answer.size), (PageType::Reg, Some(tdr), PageSize::Size1G));
        }
        // What is inside of it is taken, in every size.
        let other = info(Gpa(2 << 30), Level::L2M);
        machine.table(cx, tdr, other.gpa(), Level::L1G);
        let part = Hpa(first.0 + (5 << 21));
        assert_eq!(told(seam.mem_page_aug(cx, other, tdr, part)), "PAGE_METADATA_INCORRECT|8");
        machine.table(cx, tdr, other.gpa(), Level::L2M);
        let small = info(other.gpa(), Level::L4K);
        assert_eq!(told(seam.mem_page_aug(cx, small, tdr, part)), "PAGE_METADATA_INCORRECT|8");
        assert_eq!(seam.mem_page_remove(cx, GIANT, tdr).unwrap(), first);
        assert_eq!(owned(), 6 + 3);
        assert_eq!(told(seam.mem_page_aug(cx, small, tdr, part)), "SUCCESS");
    });
}

#[test]
fn no_leaf_adds_a_page_of_1_gib() {
    with_large(|cx, machine| {
        let (tdr, first) = giant(cx, machine);
        let seam = machine.tdx.on(LP);
        seam.mem_page_remove(cx, GIANT, tdr).unwrap();
        assert_eq!(told(seam.mem_page_aug(cx, GIANT, tdr, first)), "OPERAND_INVALID|1");
        assert_eq!(told(seam.mem_page_add(cx, GIANT, tdr, first, machine.page())), "OPERAND_INVALID|1");
        assert_eq!(told(seam.mem_page_relocate(cx, GIANT, tdr, first)), "OPERAND_INVALID|1");
    });
}

#[test]
fn td_019_td_037_a_page_of_1_gib_is_split_twice() {
    with_large(|cx, machine| {
        let (tdr, first) = giant(cx, machine);
        let seam = machine.tdx.on(LP);
        let owned = || machine.tdx.peek_td(pfn(tdr)).unwrap().chldcnt;
        machine.tdx.post_interrupt(LP);
        let demote = |at| seam.mem_page_demote(cx, at, tdr, machine.page(), None);
        let before = machine.tdx.snapshot();
        assert_eq!(name(demote(GIANT)), StatusName::InterruptedRestartable);
        assert_eq!(machine.tdx.snapshot(), before);
        machine.tdx.ack_interrupt(LP);
        demote(GIANT).unwrap();
        for i in [0, 1, 511] {
            let gfn = Gpa(GIANT.gpa().0 + (i << 21)).gfn();
            let child = machine.tdx.peek_sept(pfn(tdr), gfn, Level::L2M).unwrap();
            assert_eq!(child, SeptEntry::leaf(SeptState::Pending, pfn(first) + i * 512));
            assert_eq!(machine.tdx.peek_pamt(pfn(first) + i * 512 + 7).0, PageSize::Size2M);
        }
        assert_eq!(owned(), 6 + 2 + PAGES);
        demote(info(Gpa(GIANT.gpa().0 + (511 << 21)), Level::L2M)).unwrap();
        let last = machine.tdx.peek_sept(pfn(tdr), Gpa(GIANT.gpa().0 + (1 << 30) - 0x1000).gfn(), Level::L4K).unwrap();
        assert_eq!(last, SeptEntry::leaf(SeptState::Pending, pfn(first) + (PAGES - 1)));
        assert_eq!(machine.tdx.peek_pamt(pfn(first) + (PAGES - 1)).0, PageSize::Size4K);
        // A table among the parts: they do not become one.
        assert_eq!(told(seam.mem_page_promote(cx, GIANT, tdr)), "EPT_INVALID_PROMOTE_CONDITIONS|1");
        seam.mem_page_promote(cx, info(Gpa(GIANT.gpa().0 + (511 << 21)), Level::L2M), tdr).unwrap();
        seam.mem_page_promote(cx, GIANT, tdr).unwrap();
        assert_eq!(owned(), 6 + 1 + PAGES);
    });
}

#[test]
fn a_guest_uses_a_page_of_1_gib_and_accepts_none() {
    with_large(|cx, machine| {
        let tdr = machine.initialized(cx, K, &params());
        machine.table(cx, tdr, GIANT.gpa(), Level::L512G);
        machine.table(cx, tdr, GIANT.gpa(), Level::L1G);
        machine.fill_table(cx, tdr, GIANT.gpa(), Level::L1G);
        let tdvpr = machine.vcpu(cx, tdr, LP);
        let seam = machine.tdx.on(LP);
        seam.mr_finalize(cx, tdr).unwrap();
        let part = |i: u64| info(Gpa(GIANT.gpa().0 + (i << 21)), Level::L2M);
        let mut guest = machine.enter(cx, tdvpr, LP);
        for i in [0, 300] {
            guest.mem_page_accept(cx, part(i)).unwrap().unwrap();
        }
        guest.write_u64(cx, Gpa(part(300).gpa().0 + 0x1_0008), 42).unwrap();
        leave(cx, guest);
        // The others as if they had been accepted, too: what is in them nobody looks at.
        for i in (0..512).filter(|i| ![0, 300].contains(i)) {
            assert!(machine.tdx.force_sept_state(pfn(tdr), part(i).gpa().gfn(), Level::L2M, SeptState::Mapped));
        }
        seam.mem_range_block(cx, GIANT, tdr).unwrap();
        assert_eq!(told(seam.mem_page_promote(cx, GIANT, tdr)), "TLB_TRACKING_NOT_DONE|1");
        seam.mem_track(cx, tdr).unwrap();
        seam.mem_page_promote(cx, GIANT, tdr).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.read_u64(cx, Gpa(part(300).gpa().0 + 0x1_0008)), Ok(42));
        for at in [part(7), SeptInfo::page(GIANT.gpa())] {
            let answer = guest.mem_page_accept(cx, at).unwrap().unwrap_err();
            assert_eq!(format!("{answer:?}"), "PAGE_ALREADY_ACCEPTED|2");
        }
        let answer = guest.mem_page_accept(cx, GIANT).unwrap().unwrap_err();
        assert_eq!(format!("{answer:?}"), "OPERAND_INVALID|1");
        leave(cx, guest);
        assert_eq!(told(seam.mem_page_remove(cx, GIANT, tdr)), "GPA_RANGE_NOT_BLOCKED|1");
        machine.take_away(cx, tdr, GIANT.gpa(), Level::L1G);
        assert_eq!(machine.state(tdr, GIANT.gpa(), Level::L1G), Some(SeptState::Free));
    });
}

#[test]
fn a_page_of_1_gib_is_reclaimed_as_one() {
    with_large(|cx, machine| {
        let (tdr, first) = giant(cx, machine);
        machine.free_key(cx, tdr, &[]);
        let seam = machine.tdx.on(LP);
        assert_eq!(told(seam.phymem_page_reclaim(cx, Hpa(first.0 + 0x1000))), "OPERAND_INVALID|1");
        assert_eq!(seam.phymem_page_reclaim(cx, first).unwrap().size, PageSize::Size1G);
        assert_eq!(machine.tdx.peek_td(pfn(tdr)).unwrap().chldcnt, 6 + 1);
        assert_eq!(told(seam.phymem_page_reclaim(cx, first)), "PAGE_METADATA_INCORRECT|1");
    });
}
