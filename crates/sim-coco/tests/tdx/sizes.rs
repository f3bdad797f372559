//! DEMOTE and PROMOTE: TD-019, TD-020, TD-037.

use crate::machine::{GPA, K, LP, Machine, info, leave, name, params, pfn, told, with};
use sim_coco::tdx::{Hpa, Injected, PageSize, PageType, SeptEntry, SeptInfo, SeptState, StatusName};
use sim_kernel::Cx;
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

#[test]
fn large_pages_of_1_gib_are_only_named() {
    // No leaf makes one on a machine of this size; the levels are legal all the same.
    with(|cx, machine| {
        let tdr = machine.building_with(cx, K, &params());
        let seam = machine.tdx.on(LP);
        let at = info(Gpa(1 << 30), Level::L1G);
        assert_eq!(told(seam.mem_page_demote(cx, at, tdr, machine.page(), None)), "EPT_ENTRY_STATE_INCORRECT|1");
        assert_eq!(told(seam.mem_page_promote(cx, at, tdr)), "EPT_INVALID_PROMOTE_CONDITIONS|1");
    });
}
