//! Leaves and guests against each other under many schedules: who is told that somebody else is in the way. TD-025, TD-046, and races of the specification that are the
//! module's to decide.

use crate::machine::{GPA, K, L, LP, Machine, config, info, leave, name, params, pfn, told};
use sim_coco::tdx::{Entry, GuestStop, Hpa, Lp, SeptInfo, SeptState, StatusName, TdxConfig, mutants};
use sim_kernel::sched::{Chooser, Config, Random, Sim, Verdict};
use sim_kernel::{Cx, MutantSet};
use sim_mmu::{Gpa, Level};
use std::collections::BTreeSet;
use std::sync::Arc;

const SEEDS: u64 = 300;
/// Of so many schedules, in one every step is followed by a look at everything.
const LOOKS: u64 = 10;
const AT: SeptInfo = SeptInfo::page(GPA);
const OTHER: SeptInfo = SeptInfo::page(Gpa(GPA.0 + 0x3000));

/// Pages that the tasks are about.
#[derive(Clone, Copy)]
struct Pages {
    tdr: Hpa,
    other_tdr: Hpa,
    tdvpr: Hpa,
    page: Hpa,
}

type Setup = fn(&Cx<'_>, &Machine) -> Pages;
type Task = fn(&Cx<'_>, &Machine, Pages) -> String;

/// A TD that runs, with a table and a page that is still free; another that is being built.
fn plain(cx: &Cx<'_>, machine: &Machine) -> Pages {
    let (tdr, tdvpr) = machine.running(cx);
    let other_tdr = machine.building_with(cx, L, &params());
    machine.table(cx, other_tdr, GPA, Level::L2M);
    Pages { tdr, other_tdr, tdvpr, page: machine.page() }
}

/// As that, with a pending page.
fn pending(cx: &Cx<'_>, machine: &Machine) -> Pages {
    let pages = plain(cx, machine);
    Pages { page: machine.aug(cx, pages.tdr, GPA, Level::L4K), ..pages }
}

/// Runs two tasks under many schedules; the pairs of answers that were seen. Invariants hold afterwards, and in some of them after every step.
fn pairs(contention: bool, setup: Setup, tasks: [Task; 2]) -> BTreeSet<[String; 2]> {
    pairs_without(MutantSet::EMPTY, contention, setup, tasks, |_, _| ())
}

fn pairs_without(
    mutants: MutantSet,
    contention: bool,
    setup: Setup,
    tasks: [Task; 2],
    afterwards: fn(&Machine, Pages),
) -> BTreeSet<[String; 2]> {
    pairs_on(TdxConfig { contention, ..config() }, mutants, setup, tasks, afterwards)
}

fn pairs_on(
    config: TdxConfig,
    mutants: MutantSet,
    setup: Setup,
    tasks: [Task; 2],
    afterwards: fn(&Machine, Pages),
) -> BTreeSet<[String; 2]> {
    let mut seen = BTreeSet::new();
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    for seed in 0..SEEDS {
        let (shared, verdict) = sim.execute(&Config { seed, ..Config::default() }, |cx| {
            cx.set_mutants(mutants);
            let machine = Arc::new(Machine::new(cx, config.clone()));
            let pages = setup(cx, &machine);
            if mutants.is_empty() && seed % LOOKS == 0 {
                let observed = Arc::clone(&machine);
                cx.observe(move |_| observed.tdx.check_invariants_midway().unwrap());
            }
            let answers = Arc::new(parking_lot::Mutex::new([const { String::new() }; 2]));
            for (i, (name, task)) in ["a", "b"].into_iter().zip(tasks).enumerate() {
                let (machine, answers) = (Arc::clone(&machine), Arc::clone(&answers));
                cx.spawn(name, move |cx| {
                    let answer = task(cx, &machine, pages);
                    answers.lock()[i] = answer;
                });
            }
            (machine, answers, pages)
        });
        assert_eq!(verdict, Verdict::Completed, "seed {seed}");
        let (machine, answers, pages) = shared;
        if mutants.is_empty() {
            machine.tdx.check_invariants().unwrap();
        }
        afterwards(&machine, pages);
        seen.insert(answers.lock().clone());
    }
    seen
}

#[track_caller]
fn expect<const N: usize>(seen: &BTreeSet<[String; 2]>, expected: [[&str; 2]; N]) {
    assert_eq!(*seen, BTreeSet::from(expected.map(|pair| pair.map(String::from))));
}

const OK: &str = "SUCCESS";
const TREE: &str = "OPERAND_BUSY|146";

#[test]
fn td_025_what_needs_the_tree_for_itself_and_what_shares_it() {
    let aug: Task = |cx, machine, pages| told(machine.tdx.on(LP).mem_page_aug(cx, OTHER, pages.tdr, machine.page()));
    let block: Task = |cx, machine, pages| told(machine.tdx.on(Lp(1)).mem_range_block(cx, AT, pages.tdr));
    // A leaf is one step each: they do not meet.
    expect(&pairs(false, pending, [aug, block]), [[OK, OK]]);
    expect(&pairs(true, pending, [aug, block]), [[OK, OK], [OK, TREE], [TREE, OK]]);
    // Without the lock, nobody is in the way.
    let without = MutantSet::EMPTY.with(mutants::TREE_LOCK);
    expect(&pairs_without(without, true, pending, [aug, block], |_, _| ()), [[OK, OK]]);
}

#[test]
fn two_pages_for_one_entry() {
    let aug: Task = |cx, machine, pages| told(machine.tdx.on(LP).mem_page_aug(cx, AT, pages.tdr, machine.page()));
    let (incorrect, busy) = ("EPT_ENTRY_STATE_INCORRECT|1", "OPERAND_BUSY|1");
    expect(&pairs(true, plain, [aug, aug]), [[OK, incorrect], [incorrect, OK], [OK, busy], [busy, OK]]);
}

#[test]
fn one_page_for_two_tds() {
    let mine: Task = |cx, machine, pages| told(machine.tdx.on(LP).mem_page_aug(cx, AT, pages.tdr, pages.page));
    let theirs: Task =
        |cx, machine, pages| told(machine.tdx.on(Lp(1)).mem_page_aug(cx, AT, pages.other_tdr, pages.page));
    let (incorrect, busy) = ("PAGE_METADATA_INCORRECT|8", "OPERAND_BUSY|8");
    expect(&pairs(true, plain, [mine, theirs]), [[OK, incorrect], [incorrect, OK], [OK, busy], [busy, OK]]);
}

/// What an accept of [`AT`] came to.
fn accepting(cx: &Cx<'_>, machine: &Machine, pages: Pages) -> String {
    let mut guest = machine.enter(cx, pages.tdvpr, LP);
    match guest.mem_page_accept(cx, AT) {
        Ok(answer) => {
            leave(cx, guest);
            answer.map_or_else(|status| format!("{status:?}"), |()| OK.into())
        }
        Err(GuestStop::Exit(exit)) => format!("exit {}", exit.eeq_type()),
        Err(other) => format!("{other:?}"),
    }
}

#[test]
fn td_046_a_block_and_an_accept_of_one_entry() {
    let block: Task = |cx, machine, pages| told(machine.tdx.on(Lp(1)).mem_range_block(cx, AT, pages.tdr));
    let busy = "OPERAND_BUSY|1";
    let seen = pairs(true, pending, [accepting, block]);
    // One after the other; the host meets the guest's lock, and the guest the host's.
    expect(&seen, [[OK, OK], ["exit 1", OK], [OK, busy], [busy, OK]]);
    // Without the guest's lock its last store puts the page back that the host has blocked.
    let without = MutantSet::EMPTY.with(mutants::ENTRY_LOCK);
    let seen = pairs_without(without, true, pending, [accepting, block], |_, _| ());
    expect(&seen, [[OK, OK], ["exit 1", OK]]);
}

#[test]
fn r20_without_the_lock_a_blocked_page_is_mapped_again() {
    fn is_open(machine: &Machine, pages: Pages) -> bool {
        machine.state(pages.tdr, GPA, Level::L4K) == Some(SeptState::Mapped)
    }
    let take: Task = |cx, machine, pages| {
        let seam = machine.tdx.on(Lp(1));
        let blocked = seam.mem_range_block(cx, AT, pages.tdr).is_ok();
        cx.cond_resched();
        format!("{blocked} {}", is_open(machine, pages))
    };
    let seen = |mutants| pairs_without(mutants, true, pending, [accepting, take], |_, _| ());
    let both = [OK.to_string(), "true true".to_string()];
    assert!(!seen(MutantSet::EMPTY).contains(&both));
    assert!(seen(MutantSet::EMPTY.with(mutants::ENTRY_LOCK)).contains(&both));
}

#[test]
fn r21_what_becomes_of_the_priority() {
    // The host meets the accept, which then completes. In module 2.0 the mark is still there for whoever comes next.
    let accept_twice: Task = |cx, machine, pages| {
        let first = accepting(cx, machine, pages);
        first + " " + &accepting(cx, machine, pages)
    };
    let block: Task = |cx, machine, pages| told(machine.tdx.on(Lp(1)).mem_range_block(cx, AT, pages.tdr));
    let after_busy_host = |tree_host_priority| {
        let config = TdxConfig { tree_host_priority, ..config() };
        let seen = pairs_on(config, MutantSet::EMPTY, pending, [accept_twice, block], |_, _| ());
        let seen = seen.into_iter().filter(|[_, host]| host == "OPERAND_BUSY|1").map(|[guest, _]| guest);
        seen.collect::<BTreeSet<String>>()
    };
    assert_eq!(after_busy_host(false), BTreeSet::from(["SUCCESS PAGE_ALREADY_ACCEPTED|0".to_string()]));
    assert_eq!(after_busy_host(true), BTreeSet::from(["SUCCESS OPERAND_BUSY|1".to_string()]));
}

#[test]
fn r31_a_page_that_arrives_while_it_is_being_accepted() {
    let aug: Task = |cx, machine, pages| told(machine.tdx.on(Lp(1)).mem_page_aug(cx, AT, pages.tdr, pages.page));
    let seen = pairs(true, plain, [accepting, aug]);
    let busy = "OPERAND_BUSY|1";
    expect(&seen, [[OK, OK], ["exit 1", OK], ["PAGE_SIZE_MISMATCH|0", OK], [busy, OK]]);
}

#[test]
fn a_track_and_an_entry_meet_at_the_epoch() {
    let track: Task = |cx, machine, pages| told(machine.tdx.on(Lp(1)).mem_track(cx, pages.tdr));
    let enter: Task = |cx, machine, pages| match machine.tdx.on(LP).vp_enter(cx, pages.tdvpr) {
        Ok(Entry::Inside(guest)) => {
            leave(cx, guest);
            OK.into()
        }
        other => told(other),
    };
    let busy = "OPERAND_BUSY|169";
    expect(&pairs(true, plain, [enter, track]), [[OK, OK], [OK, busy], [busy, OK]]);
}

/// A TD whose first vCPU faulted seven times at one instruction.
fn stepped(cx: &Cx<'_>, machine: &Machine, then_maps: bool) -> Pages {
    let tdr = machine.building(cx);
    machine.table(cx, tdr, GPA, Level::L2M);
    let (tdvpr, second) = (machine.vcpu(cx, tdr, LP), machine.vcpu(cx, tdr, Lp(3)));
    machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
    for _ in 0..7 {
        let mut guest = machine.enter(cx, tdvpr, LP);
        assert!(guest.read_u64(cx, GPA).is_err());
    }
    if then_maps {
        machine.aug(cx, tdr, GPA, Level::L4K);
        let mut guest = machine.enter(cx, second, Lp(3));
        guest.mem_page_accept(cx, AT).unwrap().unwrap();
        leave(cx, guest);
    }
    Pages { tdr, other_tdr: tdr, tdvpr, page: machine.page() }
}

/// Whether the address can be used or not: the entry has the tree while it looks, and who adds a page meets it, or it meets who adds one.
#[test]
fn an_entry_that_stops_zero_stepping_is_in_the_way_of_faults() {
    let enter: Task = |cx, machine, pages| match machine.tdx.on(LP).vp_enter(cx, pages.tdvpr) {
        Ok(Entry::Inside(guest)) => {
            leave(cx, guest);
            OK.into()
        }
        Ok(Entry::Exit(_)) => "not entered".into(),
        Err(fail) => format!("{:?}", fail.status),
    };
    let aug: Task = |cx, machine, pages| told(machine.tdx.on(Lp(1)).mem_page_aug(cx, OTHER, pages.tdr, pages.page));
    let seen = pairs(true, |cx, machine| stepped(cx, machine, true), [enter, aug]);
    expect(&seen, [[OK, OK], [OK, TREE], [TREE, OK]]);
    let seen = pairs(true, |cx, machine| stepped(cx, machine, false), [enter, aug]);
    expect(&seen, [["not entered", OK], ["not entered", TREE], [TREE, OK]]);
}

#[test]
fn one_vcpu_on_two_processors() {
    fn enter(cx: &Cx<'_>, machine: &Machine, pages: Pages, lp: Lp) -> String {
        match machine.tdx.on(lp).vp_enter(cx, pages.tdvpr) {
            Ok(Entry::Inside(guest)) => {
                leave(cx, guest);
                OK.into()
            }
            other => told(other),
        }
    }
    let setup: Setup = |cx, machine| {
        let pages = plain(cx, machine);
        machine.tdx.on(LP).vp_flush(cx, pages.tdvpr).unwrap();
        pages
    };
    let here: Task = |cx, machine, pages| enter(cx, machine, pages, LP);
    let there: Task = |cx, machine, pages| enter(cx, machine, pages, Lp(1));
    // While it is on its way, and afterwards; and while it is inside.
    let (associated, active) = ("VCPU_ASSOCIATED|0", "VCPU_STATE_INCORRECT|0");
    let expected = [[OK, associated], [associated, OK], [OK, active], [active, OK]];
    expect(&pairs(true, setup, [here, there]), expected);
}

#[test]
fn r26_two_tds_are_torn_down() {
    let setup: Setup = |cx, machine| {
        let pages = plain(cx, machine);
        machine.tdx.on(LP).vp_flush(cx, pages.tdvpr).unwrap();
        machine.tdx.on(LP).mng_vpflushdone(cx, pages.tdr).unwrap();
        pages
    };
    let write_back: Task = |cx, machine, _| told(machine.tdx.on(LP).phymem_cache_wb(cx, false));
    let done: Task = |cx, machine, pages| told(machine.tdx.on(Lp(1)).mng_vpflushdone(cx, pages.other_tdr));
    let busy = "OPERAND_BUSY|186";
    expect(&pairs(true, setup, [write_back, done]), [[OK, OK], [OK, busy], [busy, OK]]);
    let seen = pairs(true, setup, [write_back, write_back]);
    let (nothing, cache) = ("NO_HKID_READY_TO_WBCACHE|0", "OPERAND_BUSY|188");
    expect(&seen, [[OK, nothing], [nothing, OK], [OK, cache], [cache, OK]]);
}

/// Until nobody is in the way, as a host may try.
fn retry(cx: &Cx<'_>, mut leaf: impl FnMut() -> StatusName) -> StatusName {
    loop {
        match leaf() {
            StatusName::OperandBusy | StatusName::TlbTrackingNotDone => cx.cond_resched(),
            other => return other,
        }
    }
}

#[test]
fn r01_a_page_is_taken_from_a_guest_that_uses_it() {
    let used: Setup = |cx, machine| {
        let pages = pending(cx, machine);
        machine.accept(cx, pages.tdvpr, GPA, Level::L4K);
        pages
    };
    let guest: Task = |cx, machine, pages| {
        for value in 0..3 {
            let entry = match machine.tdx.on(LP).vp_enter(cx, pages.tdvpr) {
                Ok(entry) => entry,
                Err(fail) if fail.name() == StatusName::OperandBusy => continue,
                Err(fail) => return format!("{:?}", fail.status),
            };
            let Entry::Inside(mut guest) = entry else { return "not entered".into() };
            match guest.write_u64(cx, GPA, value) {
                Ok(()) => leave(cx, guest),
                Err(GuestStop::Exit(exit)) => return format!("exit {:?}", exit.status.name),
                Err(other) => return format!("{other:?}"),
            }
        }
        "wrote".into()
    };
    let host: Task = |cx, machine, pages| {
        let seam = machine.tdx.on(Lp(1));
        let tdr = pages.tdr;
        assert_eq!(retry(cx, || name(seam.mem_range_block(cx, AT, tdr))), StatusName::Success);
        assert_eq!(retry(cx, || name(seam.mem_track(cx, tdr))), StatusName::Success);
        assert_eq!(retry(cx, || name(seam.mem_page_remove(cx, AT, tdr))), StatusName::Success);
        seam.host_reset_page(cx, pfn(pages.page));
        cx.cond_resched();
        let mut bytes = [1; 8];
        seam.host_write(cx, pfn(pages.page), 0, &[5; 8]).unwrap();
        cx.cond_resched();
        seam.host_read(cx, pfn(pages.page), 0, &mut bytes).unwrap();
        format!("{}", bytes == [5; 8])
    };
    let seen = pairs(true, used, [guest, host]);
    let hosts: BTreeSet<&str> = seen.iter().map(|[_, host]| host.as_str()).collect();
    assert_eq!(hosts, BTreeSet::from(["true"]), "what the host writes is what it reads");
    let guests: BTreeSet<&str> = seen.iter().map(|[guest, _]| guest.as_str()).collect();
    assert_eq!(guests, BTreeSet::from(["wrote", "exit Success"]));
    // Without tracking, or without the flush, the guest writes into what is the host's.
    for mutant in [mutants::TRACKED, mutants::EPOCH_FLUSH] {
        let seen = pairs_without(MutantSet::EMPTY.with(mutant), true, used, [guest, host], |_, _| ());
        assert!(
            seen.iter().any(|[guest, host]| host == "false" || guest.contains("NonRecoverable")),
            "{}",
            mutant.id()
        );
    }
}

#[test]
fn the_module_is_shut_down_twice() {
    let here: Task = |cx, machine, _| told(machine.tdx.on(LP).sys_shutdown(cx));
    let (busy, done) = ("SYS_BUSY|0", "SYS_SHUTDOWN|0");
    expect(&pairs(true, plain, [here, here]), [[OK, busy], [busy, OK], [OK, done], [done, OK]]);
}

#[test]
fn operations_on_different_tds_do_not_meet() {
    let mine: Task = |cx, machine, pages| told(machine.tdx.on(LP).mem_page_aug(cx, AT, pages.tdr, machine.page()));
    let theirs: Task = |cx, machine, pages| {
        let table = info(GPA, Level::L2M);
        told(machine.tdx.on(Lp(1)).mem_range_block(cx, table, pages.other_tdr))
    };
    expect(&pairs(true, plain, [mine, theirs]), [[OK, OK]]);
    let _ = K;
}

#[test]
fn an_execution_that_fails_ends_with_vcpus_inside_and_locks_held() {
    // What is unwound then must not fail again: the next execution begins.
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    for seed in 0..40 {
        let ((), verdict) = sim.execute(&Config { seed, ..Config::default() }, |cx| {
            let machine = Arc::new(Machine::new(cx, config()));
            let pages = pending(cx, &machine);
            let (first, second) = (Arc::clone(&machine), machine);
            cx.spawn("guest", move |cx| {
                accepting(cx, &first, pages);
            });
            cx.spawn("host", move |cx| {
                let seam = second.tdx.on(Lp(1));
                let _ = seam.mem_range_block(cx, OTHER, pages.tdr);
                cx.cond_resched();
                panic!("on purpose");
            });
        });
        assert!(matches!(&verdict, Verdict::Panicked { message, .. } if message == "on purpose"), "{verdict:?}");
    }
}
