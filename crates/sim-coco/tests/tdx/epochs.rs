//! TLB tracking: TD-009 to TD-012, and what a translation that should be gone shows.

use crate::machine::{GPA, LP, leave, name, pfn, told, with};
use sim_coco::tdx::{GuestStop, Hpa, Lp, SeptInfo, StatusName};
use sim_kernel::Cx;
use sim_mmu::{Gpa, Level};

const AT: SeptInfo = SeptInfo::page(GPA);

fn accepted(cx: &Cx<'_>, machine: &crate::machine::Machine) -> (Hpa, Hpa) {
    let (tdr, tdvpr) = machine.running(cx);
    machine.aug(cx, tdr, GPA, Level::L4K);
    machine.accept(cx, tdvpr, GPA, Level::L4K);
    (tdr, tdvpr)
}

#[test]
fn td_009_a_vcpu_of_the_old_epoch_holds_the_page() {
    with(|cx, machine| {
        let (tdr, tdvpr) = accepted(cx, machine);
        let seam = machine.tdx.on(Lp(1));
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.write_u64(cx, GPA, 5).unwrap();
        seam.mem_range_block(cx, AT, tdr).unwrap();
        seam.mem_track(cx, tdr).unwrap();
        assert_eq!(told(seam.mem_page_remove(cx, AT, tdr)), "TLB_TRACKING_NOT_DONE|1");
        // The translation is still there, and so is the page.
        assert_eq!(guest.read_u64(cx, GPA), Ok(5));
        leave(cx, guest);
        assert_eq!(told(seam.mem_page_remove(cx, AT, tdr)), "SUCCESS");
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert!(matches!(guest.read_u64(cx, GPA), Err(GuestStop::Exit(_))));
    });
}

#[test]
fn td_010_with_nobody_inside_tracking_is_done_at_once() {
    with(|cx, machine| {
        let (tdr, _) = accepted(cx, machine);
        machine.take_away(cx, tdr, GPA, Level::L4K);
    });
}

#[test]
fn td_011_a_second_track_waits_for_the_first_epoch() {
    with(|cx, machine| {
        let (tdr, tdvpr) = accepted(cx, machine);
        let seam = machine.tdx.on(Lp(1));
        let guest = machine.enter(cx, tdvpr, LP);
        seam.mem_track(cx, tdr).unwrap();
        assert_eq!(told(seam.mem_track(cx, tdr)), "PREVIOUS_TLB_EPOCH_BUSY|0");
        leave(cx, guest);
        assert_eq!(told(seam.mem_track(cx, tdr)), "SUCCESS");
    });
}

#[test]
fn td_012_a_vcpu_that_comes_back_in_the_same_epoch_keeps_its_translations() {
    with(|cx, machine| {
        let (tdr, tdvpr) = accepted(cx, machine);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.write_u64(cx, GPA, 6).unwrap();
        leave(cx, guest);
        machine.tdx.on(LP).mem_range_block(cx, AT, tdr).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.read_u64(cx, GPA), Ok(6));
        leave(cx, guest);
        // In the next epoch it does not.
        machine.tdx.on(LP).mem_track(cx, tdr).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert!(matches!(guest.read_u64(cx, GPA), Err(GuestStop::Exit(_))));
    });
}

#[test]
fn one_track_serves_every_block_before_it() {
    with(|cx, machine| {
        let (tdr, _) = machine.running(cx);
        let seam = machine.tdx.on(LP);
        let pages: Vec<Gpa> = (0..5).map(|i| Gpa(GPA.0 + (i << 12))).collect();
        for gpa in &pages {
            machine.aug(cx, tdr, *gpa, Level::L4K);
            seam.mem_range_block(cx, SeptInfo::page(*gpa), tdr).unwrap();
        }
        seam.mem_track(cx, tdr).unwrap();
        for gpa in &pages {
            assert_eq!(name(seam.mem_page_remove(cx, SeptInfo::page(*gpa), tdr)), StatusName::Success);
        }
    });
}

#[test]
fn another_vcpu_of_the_td_on_the_processor_does_not_use_what_was_left_there() {
    with(|cx, machine| {
        let tdr = machine.building(cx);
        machine.table(cx, tdr, GPA, Level::L2M);
        let (first, second) = (machine.vcpu(cx, tdr, LP), machine.vcpu(cx, tdr, LP));
        machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
        machine.aug(cx, tdr, GPA, Level::L4K);
        machine.accept(cx, first, GPA, Level::L4K);
        let mut guest = machine.enter(cx, first, LP);
        guest.read_u64(cx, GPA).unwrap();
        leave(cx, guest);
        assert_eq!(machine.tdx.peek_tlb(LP).len(), 1);
        let guest = machine.enter(cx, second, LP);
        assert_eq!(machine.tdx.peek_tlb(LP), []);
        leave(cx, guest);
    });
}

#[test]
fn a_vcpu_that_moves_leaves_nothing_behind() {
    with(|cx, machine| {
        let (_, tdvpr) = accepted(cx, machine);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.read_u64(cx, GPA).unwrap();
        leave(cx, guest);
        assert_eq!(told(machine.tdx.on(Lp(1)).vp_enter(cx, tdvpr)), "VCPU_ASSOCIATED|0");
        machine.tdx.on(LP).vp_flush(cx, tdvpr).unwrap();
        assert_eq!(machine.tdx.peek_tlb(LP), []);
        let mut guest = machine.enter(cx, tdvpr, Lp(1));
        guest.read_u64(cx, GPA).unwrap();
        leave(cx, guest);
    });
}

/// Its translation is still in the processor, and flushed before the vCPU runs: nothing is wrong meanwhile.
#[test]
fn a_page_may_come_back_before_its_vcpu_does() {
    with(|cx, machine| {
        let (tdr, tdvpr) = accepted(cx, machine);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.write_u64(cx, GPA, 5).unwrap();
        leave(cx, guest);
        let page = machine.take_away(cx, tdr, GPA, Level::L4K);
        machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, page).unwrap();
        let stale: Vec<_> = machine.tdx.peek_tlb(LP).into_iter().map(|(_, gfn, entry)| (gfn, entry.pfn)).collect();
        assert_eq!(stale, [(GPA.gfn(), pfn(page))]);
        machine.tdx.check_invariants().unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert!(matches!(guest.read_u64(cx, GPA), Err(GuestStop::Ve(_))), "it is pending");
        leave(cx, guest);
    });
}
