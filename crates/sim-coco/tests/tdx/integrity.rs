//! Lines that the host wrote, poison, and caches: TD-080 to TD-084.

use crate::machine::{GPA, K, LP, Machine, config, leave, name, pfn, with, with_config};
use sim_coco::tdx::{GuestStop, Hpa, LineOwner, Lp, SeptInfo, StatusName, TdxConfig};
use sim_kernel::Cx;
use sim_mmu::{Gpa, Level};

const AT: SeptInfo = SeptInfo::page(GPA);

/// A running TD, and a page of it in which the guest wrote 7.
fn written(cx: &Cx<'_>, machine: &Machine) -> (Hpa, Hpa, Hpa) {
    let (tdr, tdvpr) = machine.running(cx);
    let page = machine.aug(cx, tdr, GPA, Level::L4K);
    let mut guest = machine.enter(cx, tdvpr, LP);
    guest.mem_page_accept(cx, AT).unwrap().unwrap();
    guest.write_u64(cx, GPA, 7).unwrap();
    leave(cx, guest);
    (tdr, tdvpr, page)
}

#[test]
fn td_080_a_line_that_the_host_wrote_kills_the_td() {
    with(|cx, machine| {
        let tdr = machine.building(cx);
        machine.table(cx, tdr, GPA, Level::L2M);
        let (first, second) = (machine.vcpu(cx, tdr, LP), machine.vcpu(cx, tdr, Lp(1)));
        machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
        let page = machine.aug(cx, tdr, GPA, Level::L4K);
        machine.accept(cx, first, GPA, Level::L4K);
        machine.tdx.on(LP).host_write(cx, pfn(page), 64, &[1; 64]).unwrap();
        let mut guest = machine.enter(cx, first, LP);
        // Other lines are good.
        assert_eq!(guest.read_u64(cx, GPA), Ok(0));
        let Err(GuestStop::Exit(exit)) = guest.read_u64(cx, Gpa(GPA.0 + 64)) else { panic!("poison was read") };
        assert_eq!(exit.status.name, StatusName::NonRecoverableTdNonAccessible);
        assert!(machine.tdx.peek_td(pfn(tdr)).unwrap().fatal);
        assert_eq!(name(machine.tdx.on(Lp(1)).vp_enter(cx, second)), StatusName::TdFatal);
        assert_eq!(name(machine.tdx.on(Lp(1)).mem_range_block(cx, AT, tdr)), StatusName::TdFatal);
        // It can still be taken apart.
        machine.free_key(cx, tdr, &[(first, LP), (second, Lp(1))]);
    });
}

#[test]
fn a_write_of_the_guest_reads_the_line_first() {
    with(|cx, machine| {
        let (_, tdvpr, page) = written(cx, machine);
        machine.tdx.on(LP).host_write(cx, pfn(page), 0, &[1]).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert!(matches!(guest.write_u64(cx, Gpa(GPA.0 + 8), 1), Err(GuestStop::Exit(_))));
    });
}

#[test]
fn a_host_write_into_a_table_kills_the_td() {
    with(|cx, machine| {
        let tdr = machine.building(cx);
        let table = machine.table(cx, tdr, GPA, Level::L2M);
        machine.tdx.on(LP).host_write(cx, pfn(table), 0, &[0; 8]).unwrap();
        assert_eq!(name(machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, machine.page())), StatusName::TdFatal);
        assert!(machine.tdx.peek_td(pfn(tdr)).unwrap().fatal);
    });
}

#[test]
fn td_081_the_host_reads_a_fixed_value() {
    with(|cx, machine| {
        let (_, tdvpr, page) = written(cx, machine);
        let mut bytes = [9; 16];
        machine.tdx.on(LP).host_read(cx, pfn(page), 0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 16]);
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert_eq!(guest.read_u64(cx, GPA), Ok(7));
        leave(cx, guest);
    });
}

#[test]
fn td_082_a_partial_write_and_the_erratum() {
    for partial_write_erratum in [false, true] {
        with_config(TdxConfig { partial_write_erratum, ..config() }, |cx, machine| {
            let (_, _, page) = written(cx, machine);
            let seam = machine.tdx.on(LP);
            seam.host_write_direct(cx, pfn(page), 8, &[1; 8]).unwrap();
            let read = seam.host_read(cx, pfn(page), 0, &mut [0; 8]);
            assert_eq!(read.is_err(), partial_write_erratum);
            // Whole lines never do it.
            seam.host_write_direct(cx, pfn(page), 64, &[1; 64]).unwrap();
            assert!(seam.host_read(cx, pfn(page), 64, &mut [0; 8]).is_ok());
        });
    }
}

#[test]
fn td_083_what_is_left_in_caches() {
    let caches = || TdxConfig { caches: true, ..config() };
    with_config(caches(), |cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let page = machine.page();
        let seam = machine.tdx.on(LP);
        seam.host_write(cx, pfn(page), 0, &[5; 64]).unwrap();
        // The host flushes what it hands over.
        seam.clflush(cx, pfn(page));
        seam.mem_page_aug(cx, AT, tdr, page).unwrap();
        machine.accept(cx, tdvpr, GPA, Level::L4K);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.write_u64(cx, GPA, 6).unwrap();
        leave(cx, guest);
        machine.take_away(cx, tdr, GPA, Level::L4K);
        // What the guest wrote last is in a cache, under its KeyID, until the host has it written back.
        let dirty =
            || machine.tdx.peek_dirty_lines().into_iter().filter(|(at, _, _)| *at == pfn(page)).collect::<Vec<_>>();
        assert_eq!(dirty(), [(pfn(page), 0, K)]);
        let shift = machine.tdx.config().keyid_shift;
        seam.phymem_page_wbinvd(cx, page.with_keyid(K, shift)).unwrap();
        assert_eq!(dirty(), []);
        seam.host_reset_page(cx, pfn(page));
        assert_eq!(machine.tdx.peek_line(pfn(page), 0).owner, LineOwner::Host);
    });
    // Without CLFLUSH: noticed at once, and felt when the line is evicted.
    sim_kernel::sched::Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, caches());
        let (tdr, tdvpr) = machine.running(cx);
        let page = machine.page();
        machine.tdx.on(LP).host_write(cx, pfn(page), 0, &[5; 64]).unwrap();
        machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, page).unwrap();
        assert_eq!(machine.tdx.check_invariants().unwrap_err().id, "TDX-INV-024");
        machine.accept(cx, tdvpr, GPA, Level::L4K);
        assert!(machine.tdx.evict(cx, (pfn(page), 0, sim_coco::tdx::Hkid::HOST)));
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert!(matches!(guest.read_u64(cx, GPA), Err(GuestStop::Exit(_))));
    });
    // Without PAGE.WBINVD: the line overwrites what the host has put there meanwhile.
    sim_kernel::sched::Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, caches());
        let (tdr, tdvpr) = machine.running(cx);
        let page = machine.aug(cx, tdr, GPA, Level::L4K);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.mem_page_accept(cx, AT).unwrap().unwrap();
        guest.write_u64(cx, GPA, 6).unwrap();
        leave(cx, guest);
        machine.take_away(cx, tdr, GPA, Level::L4K);
        machine.tdx.on(LP).host_reset_page(cx, pfn(page));
        assert!(machine.tdx.evict(cx, (pfn(page), 0, K)));
        assert!(matches!(machine.tdx.peek_line(pfn(page), 0).owner, LineOwner::Key(_)));
    });
}

#[test]
fn td_084_a_page_that_comes_back_to_the_host() {
    with(|cx, machine| {
        let (tdr, _, page) = written(cx, machine);
        let seam = machine.tdx.on(LP);
        machine.take_away(cx, tdr, GPA, Level::L4K);
        seam.host_reset_page(cx, pfn(page));
        seam.host_write(cx, pfn(page), 8, &[3; 8]).unwrap();
        let mut bytes = [9; 16];
        seam.host_read(cx, pfn(page), 0, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 3]);
        assert_eq!(machine.phys.peek_u64(pfn(page), 1), 0x0303_0303_0303_0303);
    });
}

#[test]
fn memory_of_a_td_is_not_read_with_its_next_key() {
    with(|cx, machine| {
        let (tdr, tdvpr, page) = written(cx, machine);
        machine.free_key(cx, tdr, &[(tdvpr, LP)]);
        machine.tdx.on(LP).phymem_page_reclaim(cx, page).unwrap();
        // The HKID and the page go to another TD; the guest there sees zeroes once it has accepted, and never what was there.
        let (next, vcpu) = machine.running(cx);
        machine.tdx.on(LP).mem_page_aug(cx, AT, next, page).unwrap();
        machine.tdx.force_sept_state(pfn(next), GPA.gfn(), Level::L4K, sim_coco::tdx::SeptState::Mapped);
        let mut guest = machine.enter(cx, vcpu, LP);
        assert!(matches!(guest.read_u64(cx, GPA), Err(GuestStop::Exit(_))), "another key under the same HKID");
    });
}

#[test]
fn a_part_of_a_line_past_the_caches_keeps_what_a_cache_has_of_the_rest() {
    with_config(TdxConfig { caches: true, ..config() }, |cx, machine| {
        let (seam, page) = (machine.tdx.on(LP), pfn(machine.page()));
        seam.host_write(cx, page, 0, &[5; 8]).unwrap();
        seam.host_write_direct(cx, page, 8, &[6; 8]).unwrap();
        let mut bytes = [0; 16];
        seam.host_read(cx, page, 0, &mut bytes).unwrap();
        assert_eq!(bytes, [5, 5, 5, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 6]);
        // A whole line replaces it.
        seam.host_write(cx, page, 0, &[7; 8]).unwrap();
        seam.host_write_direct(cx, page, 0, &[8; 64]).unwrap();
        assert_eq!(machine.tdx.peek_dirty_lines(), []);
        seam.host_read(cx, page, 0, &mut bytes).unwrap();
        assert_eq!(bytes, [8; 16]);
    });
}

/// TDX-INV-024 is about pages that were handed over, not about those that were refused.
#[test]
fn a_leaf_that_fails_hands_nothing_over() {
    with_config(TdxConfig { caches: true, ..config() }, |cx, machine| {
        machine.created(cx, K, 0);
        let (seam, page) = (machine.tdx.on(LP), machine.page());
        seam.host_write(cx, pfn(page), 0, &[5; 8]).unwrap();
        assert_eq!(name(seam.mng_create(cx, page, K)), StatusName::HkidNotFree);
        machine.tdx.check_invariants().unwrap();
        seam.clflush(cx, pfn(page));
        seam.mng_create(cx, page, sim_coco::tdx::Hkid(40)).unwrap();
    });
}

/// Also where the module reads for a leaf.
#[test]
fn poison_in_memory_of_the_host_is_a_machine_check_of_the_module() {
    with_config(TdxConfig { partial_write_erratum: true, ..config() }, |cx, machine| {
        let (tdr, tdvpr, page) = written(cx, machine);
        machine.take_away(cx, tdr, GPA, Level::L4K);
        let seam = machine.tdx.on(LP);
        seam.host_write_direct(cx, pfn(page), 0, &[1; 8]).unwrap();
        machine.free_key(cx, tdr, &[(tdvpr, LP)]);
        let next = machine.created(cx, sim_coco::tdx::Hkid(40), 6);
        assert_eq!(name(seam.mng_init(cx, next, page)), StatusName::TdFatal);
        assert!(machine.tdx.peek_td(pfn(next)).unwrap().fatal);
    });
}
