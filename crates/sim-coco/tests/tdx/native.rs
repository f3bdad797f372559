//! The same module on threads: leaves that meet are told so, and nothing is left half done.

use crate::machine::{GPA, LP, Machine, config, leave, name, params, pfn};
use sim_coco::tdx::{Entry, GuestStop, Hpa, Lp, SeptInfo, SeptState, StatusName};
use sim_kernel::Cx;
use sim_kernel::sched::run_native;
use sim_mmu::{Gpa, Level};
use std::sync::Arc;

const ROUNDS: u64 = 200;

/// Until nobody is in the way, and no vCPU of an old epoch is inside.
fn retry(mut leaf: impl FnMut() -> StatusName) -> StatusName {
    loop {
        match leaf() {
            StatusName::OperandBusy | StatusName::TlbTrackingNotDone | StatusName::PreviousTlbEpochBusy => {
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}

/// Gives a page, and takes it back, again and again.
fn host(cx: &Cx<'_>, machine: &Machine, tdr: Hpa, lp: Lp, gpa: Gpa, page: Hpa) {
    let (seam, at) = (machine.tdx.on(lp), SeptInfo::page(gpa));
    for round in 0..ROUNDS {
        assert_eq!(retry(|| name(seam.mem_page_aug(cx, at, tdr, page))), StatusName::Success);
        assert_eq!(retry(|| name(seam.mem_range_block(cx, at, tdr))), StatusName::Success);
        // The other host may track for both: an epoch that is busy is one that will be over.
        assert_eq!(retry(|| name(seam.mem_track(cx, tdr))), StatusName::Success);
        assert_eq!(retry(|| name(seam.mem_page_remove(cx, at, tdr))), StatusName::Success);
        seam.host_reset_page(cx, pfn(page));
        seam.host_write(cx, pfn(page), 0, &round.to_le_bytes()).unwrap();
        let mut bytes = [0; 8];
        seam.host_read(cx, pfn(page), 0, &mut bytes).unwrap();
        assert_eq!(bytes, round.to_le_bytes(), "nobody else writes what came back");
    }
}

/// Accepts and writes what it finds, until the hosts are done.
fn guest(cx: &Cx<'_>, machine: &Machine, tdvpr: Hpa, pages: &[Gpa]) {
    for round in 0..ROUNDS * 4 {
        let entry = match machine.tdx.on(LP).vp_enter(cx, tdvpr) {
            Ok(entry) => entry,
            Err(fail) if fail.is_operand_busy() => continue,
            Err(fail) => panic!("{fail}"),
        };
        let Entry::Inside(mut guest) = entry else { continue };
        guest.set_rip(round);
        for gpa in pages {
            if !guest.is_inside() {
                break;
            }
            if guest.mem_page_accept(cx, SeptInfo::page(*gpa)) == Ok(Ok(())) {
                match guest.write_u64(cx, *gpa, round) {
                    Ok(()) | Err(GuestStop::Exit(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        if guest.is_inside() {
            leave(cx, guest);
        }
    }
}

#[test]
fn hosts_and_a_guest() {
    let pages = [GPA, Gpa(GPA.0 + 0x1000)];
    let (machine, tdr) = run_native(|cx| {
        let machine = Arc::new(Machine::new(cx, config()));
        let (tdr, tdvpr) = machine.running_with(cx, crate::machine::K, &params());
        for (i, gpa) in pages.into_iter().enumerate() {
            let (machine, page) = (Arc::clone(&machine), machine.page());
            cx.spawn("host", move |cx| host(cx, &machine, tdr, Lp(1 + i as u32), gpa, page));
        }
        let other = Arc::clone(&machine);
        cx.spawn("guest", move |cx| guest(cx, &other, tdvpr, &pages));
        (machine, tdr)
    });
    machine.tdx.check_invariants().unwrap();
    for gpa in pages {
        assert_eq!(machine.state(tdr, gpa, Level::L4K), Some(SeptState::Free), "everything was taken back");
    }
    assert!(!machine.tdx.peek_td(pfn(tdr)).unwrap().fatal);
}
