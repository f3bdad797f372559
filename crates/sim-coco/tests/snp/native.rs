//! The same machine on threads: operations that meet are told so, and nothing is left half done.

use crate::machine::{DONE, G, GPA, Machine, config};
use sim_coco::snp::{GuestCpu, PageOperand, RmpFail, RmpSize, RmpUpdate, VmplPerms};
use sim_kernel::sched::run_native;
use sim_kernel::{Cx, Pfn};
use sim_mmu::Gpa;
use std::sync::Arc;

const ROUNDS: u64 = 300;

/// Until nobody is in the way.
fn retry(mut operation: impl FnMut() -> Result<(), RmpFail>) -> Result<(), RmpFail> {
    loop {
        match operation() {
            Err(RmpFail::Inuse) => std::thread::yield_now(),
            other => return other,
        }
    }
}

/// Gives one page of 4 KiB, accepts it, uses it, and takes it back; another thread may have made the region one page meanwhile.
fn small(cx: &Cx<'_>, machine: &Machine, pfn: Pfn, gpa: Gpa) {
    let snp = &machine.snp;
    let cpu = GuestCpu::snp(0, G);
    for round in 0..ROUNDS {
        if retry(|| snp.rmpupdate(cx, pfn, RmpUpdate::guest(G, gpa))).is_err() {
            continue;
        }
        if snp.pvalidate(cx, &cpu, &PageOperand::page(gpa, pfn), 1) == Ok(DONE) {
            let _ = snp.guest_write_u64(cx, &cpu, gpa, pfn, round);
        }
        assert_eq!(
            retry(|| match snp.rmpupdate(cx, pfn, RmpUpdate::HYPERVISOR) {
                // A region operation looks, and goes away: the page is assigned.
                Err(RmpFail::Overlap) => Err(RmpFail::Inuse),
                other => other,
            }),
            Ok(())
        );
    }
}

/// Makes the region one page, smashes it, and takes the parts back.
fn large(cx: &Cx<'_>, machine: &Machine, head: Pfn) {
    let snp = &machine.snp;
    let mut made = 0;
    for _ in 0..ROUNDS * 20 {
        if snp.rmpupdate(cx, head, RmpUpdate::guest(G, GPA).sized(RmpSize::Size2M)).is_err() {
            std::thread::yield_now();
            continue;
        }
        made += 1;
        assert_eq!(retry(|| snp.psmash(cx, head)), Ok(()));
        for i in 0..512 {
            // Others may be about to give the same page, and be refused or not.
            let take = || match snp.rmpupdate(cx, head + i, RmpUpdate::HYPERVISOR) {
                Err(RmpFail::Overlap) => Err(RmpFail::Inuse),
                other => other,
            };
            assert_eq!(retry(take), Ok(()));
        }
        if made == 8 {
            return;
        }
    }
}

#[test]
fn small_and_large_pages_of_one_region() {
    let (machine, head) = run_native(|cx| {
        let machine = Arc::new(Machine::new(cx, config()));
        let head = machine.huge();
        for i in [1, 2, 511] {
            let machine = Arc::clone(&machine);
            cx.spawn("small", move |cx| small(cx, &machine, head + i, Gpa(GPA.0 + (i << 12))));
        }
        let other = Arc::clone(&machine);
        cx.spawn("large", move |cx| large(cx, &other, head));
        (machine, head)
    });
    machine.snp.check_invariants().unwrap();
    assert!((0..512).all(|i| !machine.snp.rmp().is_assigned(head + i)), "everything was taken back");
    assert!((0..512).all(|i| machine.entry(head + i).perms == [VmplPerms::empty(); 4]));
}
