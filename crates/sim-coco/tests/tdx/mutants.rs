//! What each rule of the module stops, and what happens in a machine without it.

use crate::machine::{GPA, K, L, LP, Machine, config, info, leave, params, pfn};
use sim_coco::tdx::{Entry, Hpa, Lp, SeptInfo, TdParams, TdxConfig, mutants};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Mutant, MutantSet};
use sim_mmu::{Gpa, Level};

const AT: SeptInfo = SeptInfo::page(GPA);

/// What an attempt came to: `false` if the module stopped it.
type Attempt = fn(&Cx<'_>, &Machine) -> bool;

/// A running TD with a page in which its guest wrote 7, and the page.
fn written(cx: &Cx<'_>, machine: &Machine) -> (Hpa, Hpa, Hpa) {
    let (tdr, tdvpr) = machine.running(cx);
    let page = machine.aug(cx, tdr, GPA, Level::L4K);
    let mut guest = machine.enter(cx, tdvpr, LP);
    guest.mem_page_accept(cx, AT).unwrap().unwrap();
    guest.write_u64(cx, GPA, 7).unwrap();
    leave(cx, guest);
    (tdr, tdvpr, page)
}

/// Whether the vCPU still writes a page that was given back: then the host finds a line that is not its own.
fn writes_after(cx: &Cx<'_>, machine: &Machine, tdvpr: Hpa, lp: Lp) -> bool {
    let mut guest = machine.enter(cx, tdvpr, lp);
    let wrote = guest.write_u64(cx, GPA, 8).is_ok();
    if wrote {
        assert_eq!(machine.tdx.check_invariants().unwrap_err().id, "TDX-INV-006");
        leave(cx, guest);
    }
    wrote
}

fn breaks(machine: &Machine, id: &str, broken: bool) {
    assert_eq!(machine.tdx.check_invariant(id).unwrap().is_err(), broken, "{id}");
}

const ATTEMPTS: [(Mutant, Attempt); 23] = [
    // The host takes a page while a vCPU uses it.
    (mutants::BLOCKED, |cx, machine| {
        let (tdr, tdvpr, page) = written(cx, machine);
        let mut guest = machine.enter(cx, tdvpr, LP);
        let taken = machine.tdx.on(Lp(1)).mem_page_remove(cx, AT, tdr).is_ok();
        machine.tdx.on(Lp(1)).host_reset_page(cx, pfn(page));
        if taken {
            breaks(machine, "TDX-INV-006", true);
            assert!(guest.write_u64(cx, GPA, 8).is_err(), "it finds lines of the host");
        } else {
            leave(cx, guest);
        }
        taken
    }),
    (mutants::TRACKED, |cx, machine| {
        let (tdr, _, _) = written(cx, machine);
        machine.tdx.on(LP).mem_range_block(cx, AT, tdr).unwrap();
        let taken = machine.tdx.on(LP).mem_page_remove(cx, AT, tdr).is_ok();
        breaks(machine, "TDX-INV-006", taken);
        taken
    }),
    (mutants::UNBLOCK_TRACKED, |cx, machine| {
        let (tdr, _, _) = written(cx, machine);
        machine.tdx.on(LP).mem_range_block(cx, AT, tdr).unwrap();
        machine.tdx.on(LP).mem_range_unblock(cx, AT, tdr).is_ok()
    }),
    (mutants::EPOCH_FLUSH, |cx, machine| {
        let (tdr, tdvpr, _) = written(cx, machine);
        machine.take_away(cx, tdr, GPA, Level::L4K);
        writes_after(cx, machine, tdvpr, LP)
    }),
    // Two vCPUs of the TD on one processor: the second uses what the first has left there.
    (mutants::LP_FLUSH, |cx, machine| {
        let tdr = machine.building(cx);
        machine.table(cx, tdr, GPA, Level::L2M);
        let (first, second) = (machine.vcpu(cx, tdr, LP), machine.vcpu(cx, tdr, LP));
        machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
        machine.tdx.on(LP).vp_flush(cx, second).unwrap();
        machine.aug(cx, tdr, GPA, Level::L4K);
        let mut guest = machine.enter(cx, first, LP);
        guest.mem_page_accept(cx, AT).unwrap().unwrap();
        guest.write_u64(cx, GPA, 7).unwrap();
        leave(cx, guest);
        machine.take_away(cx, tdr, GPA, Level::L4K);
        writes_after(cx, machine, second, LP)
    }),
    // A vCPU that is two epochs behind counts as one that is not behind at all.
    (mutants::PREVIOUS_EPOCH, |cx, machine| {
        let (tdr, tdvpr, _) = written(cx, machine);
        let seam = machine.tdx.on(Lp(1));
        let guest = machine.enter(cx, tdvpr, LP);
        seam.mem_range_block(cx, AT, tdr).unwrap();
        seam.mem_track(cx, tdr).unwrap();
        let again = seam.mem_track(cx, tdr).is_ok();
        let taken = seam.mem_page_remove(cx, AT, tdr).is_ok();
        breaks(machine, "TDX-INV-006", taken);
        breaks(machine, "TDX-INV-009", again);
        leave(cx, guest);
        again && taken
    }),
    // A page comes back that the TD had before: what was in it is there, and nobody accepted it.
    (mutants::PENDING, |cx, machine| {
        let (tdr, tdvpr, page) = written(cx, machine);
        machine.take_away(cx, tdr, GPA, Level::L4K);
        machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, page).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        let read = guest.read_u64(cx, GPA);
        breaks(machine, "TDX-INV-008", read == Ok(7));
        leave(cx, guest);
        read == Ok(7)
    }),
    // A page that the TD had before comes back with what was in it.
    (mutants::ACCEPT_ZEROES, |cx, machine| {
        let tdr = machine.building(cx);
        machine.table(cx, tdr, GPA, Level::L2M);
        let page = machine.add(cx, tdr, GPA);
        let tdvpr = machine.vcpu(cx, tdr, LP);
        machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.write_u64(cx, GPA, 7).unwrap();
        leave(cx, guest);
        machine.take_away(cx, tdr, GPA, Level::L4K);
        machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, page).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.mem_page_accept(cx, AT).unwrap().unwrap();
        let found = guest.read_u64(cx, GPA).unwrap();
        leave(cx, guest);
        breaks(machine, "TDX-INV-007", found == 7);
        found == 7
    }),
    // The host has a page accepted twice, and with it what the guest wrote goes away in silence.
    (mutants::ACCEPTED_ONCE, |cx, machine| {
        let (_, tdvpr, _) = written(cx, machine);
        let mut guest = machine.enter(cx, tdvpr, LP);
        let again = guest.mem_page_accept(cx, AT).unwrap().is_ok();
        assert_eq!(guest.read_u64(cx, GPA), Ok(if again { 0 } else { 7 }));
        leave(cx, guest);
        again
    }),
    // One page for two TDs.
    (mutants::NDA, |cx, machine| {
        let (_, _, page) = written(cx, machine);
        let other = machine.building_with(cx, L, &params());
        machine.table(cx, other, GPA, Level::L2M);
        let taken = machine.tdx.on(LP).mem_page_aug(cx, AT, other, page).is_ok();
        breaks(machine, "TDX-INV-001", taken);
        taken
    }),
    (mutants::RANGE_FREE, |cx, machine| {
        let (tdr, _) = machine.running(cx);
        let huge = machine.huge();
        machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, Hpa(huge.0 + 0x5000)).unwrap();
        let large = info(Gpa(GPA.0 + (2 << 20)), Level::L2M);
        let taken = machine.tdx.on(LP).mem_page_aug(cx, large, tdr, huge).is_ok();
        breaks(machine, "TDX-INV-005", taken);
        breaks(machine, "TDX-INV-001", taken);
        taken
    }),
    (mutants::SEPT_EMPTY, |cx, machine| {
        let (tdr, _, _) = written(cx, machine);
        let (seam, table) = (machine.tdx.on(LP), info(GPA, Level::L2M));
        seam.mem_range_block(cx, table, tdr).unwrap();
        seam.mem_track(cx, tdr).unwrap();
        let taken = seam.mem_sept_remove(cx, table, tdr).is_ok();
        // The page is still the TD's, and nothing maps it any more.
        breaks(machine, "TDX-INV-002", taken);
        taken
    }),
    // Pages of which one is somebody else's become one large page.
    (mutants::PROMOTE_CONDITIONS, |cx, machine| {
        let tdr = machine.building(cx);
        machine.table(cx, tdr, GPA, Level::L2M);
        let huge = machine.huge();
        machine.tdx.on(LP).mem_page_aug(cx, AT, tdr, huge).unwrap();
        machine.tdx.on(LP).mem_page_promote(cx, info(GPA, Level::L2M), tdr).is_ok()
    }),
    // The host has the module copy another TD's memory.
    (mutants::SOURCE_KEYID, |cx, machine| {
        let (_, _, page) = written(cx, machine);
        let other = machine.building_with(cx, L, &params());
        machine.table(cx, other, GPA, Level::L2M);
        let source = page.with_keyid(K, machine.tdx.config().keyid_shift);
        let copied = machine.tdx.on(LP).mem_page_add(cx, AT, other, machine.page(), source).is_ok();
        let vcpu = machine.vcpu(cx, other, LP);
        machine.tdx.on(LP).mr_finalize(cx, other).unwrap();
        let mut guest = machine.enter(cx, vcpu, LP);
        assert_eq!(guest.read_u64(cx, GPA) == Ok(7), copied);
        if guest.is_inside() {
            leave(cx, guest);
        }
        copied
    }),
    // A page is in the image of a TD and not in its measurement.
    (mutants::MEASURES_ADD, |cx, machine| {
        let mrtd = [false, true].map(|adds| {
            let hkid = if adds { K } else { L };
            let tdr = machine.building_with(cx, hkid, &params());
            machine.table(cx, tdr, GPA, Level::L2M);
            if adds {
                machine.add(cx, tdr, GPA);
            }
            machine.vcpu(cx, tdr, LP);
            machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
            machine.tdx.peek_td(pfn(tdr)).unwrap().mrtd
        });
        mrtd[0] == mrtd[1]
    }),
    // The host writes into the guest's memory, and the guest reads it.
    (mutants::INTEGRITY, |cx, machine| {
        let (_, tdvpr, page) = written(cx, machine);
        machine.tdx.on(LP).host_write(cx, pfn(page), 0, &[9; 64]).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        let read = guest.read_u64(cx, GPA) == Ok(u64::from_le_bytes([9; 8]));
        if guest.is_inside() {
            leave(cx, guest);
        }
        read
    }),
    (mutants::TEARDOWN, |cx, machine| {
        let (_, _, page) = written(cx, machine);
        let taken = machine.tdx.on(LP).phymem_page_reclaim(cx, page).is_ok();
        breaks(machine, "TDX-INV-002", taken);
        taken
    }),
    (mutants::CHILDREN, |cx, machine| {
        let (tdr, tdvpr, _) = written(cx, machine);
        machine.free_key(cx, tdr, &[(tdvpr, LP)]);
        let taken = machine.tdx.on(LP).phymem_page_reclaim(cx, tdr).is_ok();
        breaks(machine, "TDX-INV-004", taken);
        if taken {
            // Whose pages the others are, nobody knows any more.
            assert!(machine.tdx.on(LP).phymem_page_reclaim(cx, tdvpr).is_err());
        }
        taken
    }),
    (mutants::WBCACHE, |cx, machine| {
        let (tdr, tdvpr, _) = written(cx, machine);
        machine.tdx.on(LP).vp_flush(cx, tdvpr).unwrap();
        machine.tdx.on(LP).mng_vpflushdone(cx, tdr).unwrap();
        let freed = machine.tdx.on(LP).mng_key_freeid(cx, tdr).is_ok();
        breaks(machine, "TDX-INV-012", false);
        if freed {
            // The next TD has its HKID while a package may still have lines of the last.
            machine.tdx.on(LP).mng_create(cx, machine.page(), K).unwrap();
            breaks(machine, "TDX-INV-012", true);
        }
        freed
    }),
    // A processor keeps translations under a KeyID that the next TD gets.
    (mutants::VPFLUSH, |cx, machine| {
        let (tdr, _, _) = written(cx, machine);
        let done = machine.tdx.on(LP).mng_vpflushdone(cx, tdr).is_ok();
        assert_eq!(machine.tdx.peek_tlb(LP).len(), 1);
        done
    }),
    // The vCPU comes back to a processor that nobody flushed meanwhile.
    (mutants::ASSOCIATED, |cx, machine| {
        let (tdr, tdvpr, _) = written(cx, machine);
        let moved = match machine.tdx.on(Lp(1)).vp_enter(cx, tdvpr) {
            Ok(Entry::Inside(guest)) => {
                leave(cx, guest);
                true
            }
            _ => false,
        };
        machine.take_away(cx, tdr, GPA, Level::L4K);
        if moved {
            leave(cx, machine.enter(cx, tdvpr, Lp(1)));
            assert!(writes_after(cx, machine, tdvpr, LP));
        }
        moved
    }),
    (mutants::ZERO_STEP, |cx, machine| {
        let (_, tdvpr) = machine.running(cx);
        for _ in 0..7 {
            let mut guest = machine.enter(cx, tdvpr, LP);
            assert!(guest.read_u64(cx, GPA).is_err());
        }
        match machine.tdx.on(LP).vp_enter(cx, tdvpr).unwrap() {
            Entry::Inside(guest) => {
                leave(cx, guest);
                true
            }
            Entry::Exit(_) => false,
        }
    }),
    // Of a large page the guest accepts a part, and can read the rest as it was.
    (mutants::ACCEPT_SIZE, |cx, machine| {
        let (tdr, tdvpr) = machine.running(cx);
        let (large, inside) = (Gpa(GPA.0 + (2 << 20)), Gpa(GPA.0 + (2 << 20) + 0x3000));
        let page = machine.aug(cx, tdr, large, Level::L2M);
        machine.accept(cx, tdvpr, large, Level::L2M);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.write_u64(cx, inside, 7).unwrap();
        leave(cx, guest);
        machine.take_away(cx, tdr, large, Level::L2M);
        machine.tdx.on(LP).mem_page_aug(cx, info(large, Level::L2M), tdr, page).unwrap();
        let mut guest = machine.enter(cx, tdvpr, LP);
        let found = guest.mem_page_accept(cx, SeptInfo::page(large)).is_ok() && guest.read_u64(cx, inside) == Ok(7);
        if guest.is_inside() {
            leave(cx, guest);
        }
        found
    }),
];

#[test]
fn what_each_rule_stops() {
    for (mutant, attempt) in ATTEMPTS {
        for without in [None, Some(mutant)] {
            Sim::sequential().solo(|cx| {
                cx.set_mutants(without.into_iter().collect::<MutantSet>());
                let machine = Machine::new(cx, config());
                assert_eq!(attempt(cx, &machine), without.is_some(), "{} off: {}", mutant.id(), without.is_some());
                if without.is_none() {
                    machine.tdx.check_invariants().unwrap();
                }
            });
        }
    }
}

#[test]
fn every_mutant_is_attempted() {
    let attempted = ATTEMPTS.iter().map(|(mutant, _)| *mutant);
    // These two need two tasks: `races.rs`.
    let mut all: Vec<_> = attempted.chain([mutants::ENTRY_LOCK, mutants::TREE_LOCK]).collect();
    all.sort();
    assert_eq!(all, mutants::ALL, "each once, in the order of their numbers");
}

#[test]
fn a_machine_has_the_rules_that_it_was_made_with() {
    Sim::sequential().solo(|cx| {
        let machine = Machine::new(cx, config());
        cx.set_mutants(MutantSet::EMPTY.with(mutants::BLOCKED));
        let tdr = machine.building_with(cx, K, &TdParams { max_vcpus: 1, ..params() });
        machine.table(cx, tdr, GPA, Level::L2M);
        machine.vcpu(cx, tdr, LP);
        machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
        machine.aug(cx, tdr, GPA, Level::L4K);
        assert!(machine.tdx.on(LP).mem_page_remove(cx, AT, tdr).is_err());
    });
}

/// TDX-INV-006 looks at every frame of a translation, not at its first.
#[test]
fn a_part_of_a_large_page_is_taken_while_the_whole_is_translated() {
    Sim::sequential().solo(|cx| {
        cx.set_mutants(MutantSet::EMPTY.with(mutants::BLOCKED));
        let machine = Machine::new(cx, config());
        let (tdr, tdvpr) = machine.running(cx);
        let at = info(Gpa(GPA.0 + (2 << 20)), Level::L2M);
        machine.aug(cx, tdr, at.gpa(), Level::L2M);
        let mut guest = machine.enter(cx, tdvpr, LP);
        guest.mem_page_accept(cx, at).unwrap().unwrap();
        guest.write_u64(cx, at.gpa(), 7).unwrap();
        let seam = machine.tdx.on(Lp(1));
        seam.mem_page_demote(cx, at, tdr, machine.page(), None).unwrap();
        breaks(&machine, "TDX-INV-006", false);
        seam.mem_page_remove(cx, SeptInfo::page(Gpa(at.gpa().0 + 0x1000)), tdr).unwrap();
        breaks(&machine, "TDX-INV-006", true);
        leave(cx, guest);
    });
}

/// TDX-INV-006 asks whose memory it is, and where it is: the frame may be memory again.
#[test]
fn a_page_is_taken_and_given_again_while_it_is_translated() {
    Sim::sequential().solo(|cx| {
        cx.set_mutants(MutantSet::EMPTY.with(mutants::TRACKED));
        let machine = Machine::new(cx, config());
        let (tdr, _, page) = written(cx, &machine);
        let seam = machine.tdx.on(LP);
        seam.mem_range_block(cx, AT, tdr).unwrap();
        breaks(&machine, "TDX-INV-006", false);
        seam.mem_page_remove(cx, AT, tdr).unwrap();
        let other = machine.building_with(cx, L, &params());
        machine.table(cx, other, GPA, Level::L2M);
        seam.mem_page_aug(cx, AT, other, page).unwrap();
        breaks(&machine, "TDX-INV-006", true);
        seam.mem_page_remove(cx, AT, other).unwrap();
        seam.mem_page_aug(cx, SeptInfo::page(Gpa(GPA.0 + 0x1000)), tdr, page).unwrap();
        breaks(&machine, "TDX-INV-006", true);
        // Where it was, it is pending now.
        seam.mem_range_block(cx, SeptInfo::page(Gpa(GPA.0 + 0x1000)), tdr).unwrap();
        seam.mem_page_remove(cx, SeptInfo::page(Gpa(GPA.0 + 0x1000)), tdr).unwrap();
        seam.mem_page_aug(cx, AT, tdr, page).unwrap();
        breaks(&machine, "TDX-INV-006", false);
        breaks(&machine, "TDX-INV-008", true);
    });
}

/// A hole of a TDMR is in use though nothing was ever in it (TDX-INV-001, -005).
#[test]
fn a_large_page_with_a_hole_is_taken() {
    for without in [None, Some(mutants::RANGE_FREE)] {
        Sim::sequential().solo(|cx| {
            cx.set_mutants(without.into_iter().collect::<MutantSet>());
            let huge = pfn(Machine::new(cx, config()).huge());
            let mut tdmr = config().tdmrs[0].clone();
            tdmr.reserved.push(huge + 5..huge + 6);
            let machine = Machine::new(cx, TdxConfig { tdmrs: vec![tdmr], ..config() });
            assert_eq!(pfn(machine.huge()), huge, "as the first");
            let tdr = machine.building(cx);
            let at = info(Gpa(GPA.0 + (2 << 20)), Level::L2M);
            let taken = machine.tdx.on(LP).mem_page_aug(cx, at, tdr, Hpa::of(huge)).is_ok();
            assert_eq!(taken, without.is_some());
            breaks(&machine, "TDX-INV-001", taken);
            breaks(&machine, "TDX-INV-005", taken);
        });
    }
}

/// Without the check, a table goes whose tables are in use: they are tables of the TD, and nothing points to them (TDX-INV-003).
#[test]
fn a_table_of_tables_is_taken() {
    Sim::sequential().solo(|cx| {
        cx.set_mutants(MutantSet::EMPTY.with(mutants::SEPT_EMPTY));
        let machine = Machine::new(cx, config());
        let (tdr, _) = machine.running(cx);
        let (seam, table) = (machine.tdx.on(LP), info(GPA, Level::L1G));
        seam.mem_range_block(cx, table, tdr).unwrap();
        seam.mem_track(cx, tdr).unwrap();
        breaks(&machine, "TDX-INV-003", false);
        seam.mem_sept_remove(cx, table, tdr).unwrap();
        breaks(&machine, "TDX-INV-003", true);
    });
}

/// Without integrity a TD reads what the host wrote. What another TD wrote it does not read either way: the keys differ.
#[test]
fn another_key_gives_no_text() {
    Sim::sequential().solo(|cx| {
        cx.set_mutants(MutantSet::EMPTY.with(mutants::INTEGRITY));
        let machine = Machine::new(cx, config());
        let (tdr, _, page) = written(cx, &machine);
        machine.take_away(cx, tdr, GPA, Level::L4K);
        let (other, vcpu) = machine.running_with(cx, L, &params());
        machine.tdx.on(LP).mem_page_aug(cx, AT, other, page).unwrap();
        machine.tdx.force_sept_state(pfn(other), GPA.gfn(), Level::L4K, sim_coco::tdx::SeptState::Mapped);
        let mut guest = machine.enter(cx, vcpu, LP);
        let read = guest.read_u64(cx, GPA);
        assert!(read.is_ok() && read != Ok(7), "{read:?}");
        leave(cx, guest);
        machine.tdx.on(LP).host_write(cx, pfn(page), 0, &[9; 64]).unwrap();
        let mut guest = machine.enter(cx, vcpu, LP);
        assert_eq!(guest.read_u64(cx, GPA), Ok(u64::from_le_bytes([9; 8])));
        leave(cx, guest);
    });
}

/// Each of the checks above and in the other files fails somewhere; a machine that cannot be is refused before it is made.
#[test]
fn machines_that_there_cannot_be() {
    let tdmr = config().tdmrs[0].clone();
    let with = |change: fn(&mut TdxConfig)| {
        let mut config = config();
        change(&mut config);
        config.check()
    };
    assert_eq!(with(|_| ()), Ok(()));
    let wrong: [fn(&mut TdxConfig); 8] = [
        |config| config.packages = 0,
        |config| config.packages = 65,
        |config| config.lps_per_package = 0,
        |config| config.keyid_shift = 64,
        |config| config.hkids = 0..4,
        |config| config.hkids = 32..33,
        |config| config.tdcs_pages = (2, 9),
        |config| config.tdcs_pages = (9, 6),
    ];
    for (i, change) in wrong.into_iter().enumerate() {
        assert!(with(change).is_err(), "{i}");
    }
    assert!(TdxConfig { tdmrs: vec![tdmr.clone(), tdmr], ..config() }.check().is_err());
}
