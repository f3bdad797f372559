//! Operations against each other under many schedules: the places that the specification gives to the hardware and the firmware.

use crate::machine::{DONE, G, GPA, Machine, UNCHANGED, config};
use sim_coco::AccessKind;
use sim_coco::snp::firmware::{GuestPolicy, LaunchUpdate, PageType};
use sim_coco::snp::{
    Asid, GuestCpu, GuestFault, HostSnpAccess, KeyPath, PageOperand, PageState, RmpFail, RmpSize, RmpUpdate, SnpAccess,
    SnpConfig, Spa, mutants,
};
use sim_kernel::sched::{Chooser, Config, Random, Sim, Verdict};
use sim_kernel::{Cx, MutantSet, Pfn};
use sim_mmu::{Gpa, Level};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

const SEEDS: u64 = 300;
const CPU: GuestCpu = GuestCpu::snp(0, G);

type Task = fn(&Cx<'_>, &Machine, Pfn) -> String;

/// Runs two tasks on a page or region that `setup` made, under many schedules; the pairs of answers that were seen. All invariants hold afterwards.
fn pairs(config: &SnpConfig, setup: fn(&Cx<'_>, &Machine) -> Pfn, tasks: [Task; 2]) -> BTreeSet<[String; 2]> {
    pairs_without(MutantSet::EMPTY, config, setup, tasks)
}

/// As [`pairs`], on a machine without some rules; of which nothing is checked afterwards.
fn pairs_without(
    mutants: MutantSet,
    config: &SnpConfig,
    setup: fn(&Cx<'_>, &Machine) -> Pfn,
    tasks: [Task; 2],
) -> BTreeSet<[String; 2]> {
    let mut seen = BTreeSet::new();
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    for seed in 0..SEEDS {
        let (shared, verdict) = sim.execute(&Config { seed, ..Config::default() }, |cx| {
            cx.set_mutants(mutants);
            let machine = Arc::new(Machine::new(cx, config.clone()));
            let pfn = setup(cx, &machine);
            let answers = Arc::new(parking_lot::Mutex::new([const { String::new() }; 2]));
            for (i, (name, task)) in ["a", "b"].into_iter().zip(tasks).enumerate() {
                let (machine, answers) = (Arc::clone(&machine), Arc::clone(&answers));
                cx.spawn(name, move |cx| {
                    let answer = task(cx, &machine, pfn);
                    answers.lock()[i] = answer;
                });
            }
            (machine, answers)
        });
        assert_eq!(verdict, Verdict::Completed, "seed {seed}");
        if mutants.is_empty() {
            shared.0.snp.check_invariants().unwrap();
        }
        seen.insert(shared.1.lock().clone());
    }
    seen
}

fn contended() -> SnpConfig {
    SnpConfig { contention: true, ..config() }
}

fn told(answer: impl Debug) -> String {
    format!("{answer:?}")
}

fn expect<const N: usize>(seen: &BTreeSet<[String; 2]>, expected: [[String; 2]; N]) {
    assert_eq!(*seen, BTreeSet::from(expected));
}

const OK: Result<(), RmpFail> = Ok(());

fn head_in(cx: &Cx<'_>, machine: &Machine, state: PageState) -> Pfn {
    machine.sized_in_state(cx, state, RmpSize::Size2M)
}

#[test]
fn sn_024_two_updates_in_one_region() {
    let take: Task = |cx, machine, head| told(machine.snp.rmpupdate(cx, head, RmpUpdate::guest(G, GPA)));
    let other: Task = |cx, machine, head| told(machine.snp.rmpupdate(cx, head + 9, RmpUpdate::guest(G, Gpa(0))));
    let setup = |_: &Cx<'_>, machine: &Machine| machine.huge();
    // One step each: they do not meet. With contention, OP-3: one is told to try again.
    expect(&pairs(&config(), setup, [take, other]), [[told(OK), told(OK)]]);
    let overlap = told(Err::<(), _>(RmpFail::Overlap));
    let seen = pairs(&contended(), setup, [take, other]);
    expect(&seen, [[told(OK), told(OK)], [told(OK), overlap.clone()], [overlap, told(OK)]]);
    // Without the rule, nobody is.
    let without = pairs_without(MutantSet::EMPTY.with(mutants::R06), &contended(), setup, [take, other]);
    expect(&without, [[told(OK), told(OK)]]);
}

#[test]
fn sn_024_an_update_is_tried_until_nobody_is_in_the_way() {
    // As software does it: FAIL_OVERLAP is tried again (R6).
    fn until_done(cx: &Cx<'_>, machine: &Machine, pfn: Pfn) -> String {
        let update = || machine.snp.rmpupdate(cx, pfn, RmpUpdate::guest(G, GPA));
        told(std::iter::repeat_with(update).find(|answer| *answer != Err(RmpFail::Overlap)))
    }
    let one: Task = until_done;
    let other: Task = |cx, machine, head| until_done(cx, machine, head + 1);
    let setup = |_: &Cx<'_>, machine: &Machine| machine.huge();
    expect(&pairs(&contended(), setup, [one, other]), [[told(Some(OK)), told(Some(OK))]]);
}

#[test]
fn r6_an_update_against_a_smash() {
    let smash: Task = |cx, machine, head| told(machine.snp.psmash(cx, head));
    let take: Task = |cx, machine, head| told(machine.snp.rmpupdate(cx, head + 5, RmpUpdate::HYPERVISOR));
    let overlap = told(Err::<(), _>(RmpFail::Overlap));
    let setup = |cx: &Cx<'_>, machine: &Machine| head_in(cx, machine, PageState::GuestValid);
    // Before the smash, and during it: overlap.
    expect(&pairs(&contended(), setup, [smash, take]), [[told(OK), overlap], [told(OK), told(OK)]]);
}

/// Between the check of an operand and the mark, the page may go to another guest: then it is that one's, and not accepted.
#[test]
fn an_acceptance_against_a_change_of_hands() {
    const H: Asid = Asid(G.0 + 1);
    let give: Task = |cx, machine, head| {
        for update in [RmpUpdate::HYPERVISOR, RmpUpdate::guest(H, GPA)] {
            while machine.snp.rmpupdate(cx, head, update).is_err() {}
        }
        told(machine.entry(head).asid)
    };
    let accept: Task = |cx, machine, head| {
        let accepted = machine.snp.pvalidate(cx, &GuestCpu::snp(0, G), &PageOperand::page(GPA, head), 1);
        let of_other = machine.entry(head).asid == H && machine.entry(head).validated;
        told((accepted.map_err(|fault| matches!(fault, GuestFault::Npf { .. })), of_other))
    };
    let setup = |cx: &Cx<'_>, machine: &Machine| machine.in_state(cx, PageState::GuestInvalid);
    let [npf, done] = [Err(true), Ok(DONE)].map(|accepted| told((accepted, false)));
    expect(&pairs(&contended(), setup, [give, accept]), [[told(H), npf], [told(H), done]]);
}

#[test]
fn r7_two_smashes() {
    let smash: Task = |cx, machine, head| told(machine.snp.psmash(cx, head));
    let setup = |cx: &Cx<'_>, machine: &Machine| head_in(cx, machine, PageState::GuestValid);
    let (inuse, done) = (told(Err::<(), _>(RmpFail::Inuse)), told(Err::<(), _>(RmpFail::BadAddr)));
    expect(&pairs(&config(), setup, [smash; 2]), [[told(OK), done.clone()], [done.clone(), told(OK)]]);
    let seen = pairs(&contended(), setup, [smash; 2]);
    let expected = [[told(OK), done.clone()], [done, told(OK)], [told(OK), inuse.clone()], [inuse, told(OK)]];
    expect(&seen, expected);
}

#[test]
fn r7_a_smash_under_a_guest_is_at_most_a_spurious_fault() {
    let smash: Task = |cx, machine, head| told(machine.snp.psmash(cx, head));
    let read: Task = |cx, machine, head| {
        let access = SnpAccess::private(AccessKind::Read, GPA, head).at_level(Level::L2M);
        match machine.snp.guest_read(cx, &CPU, &access, &mut [0; 8]) {
            Ok(()) => "read".into(),
            Err(GuestFault::Npf { .. }) => "npf".into(),
            Err(other) => told(other),
        }
    };
    let setup = |cx: &Cx<'_>, machine: &Machine| head_in(cx, machine, PageState::GuestValid);
    let seen = pairs(&contended(), setup, [smash, read]);
    expect(&seen, [[told(OK), "read".into()], [told(OK), "npf".into()]]);
}

#[test]
fn two_processors_validate_one_page() {
    let validate: Task = |cx, machine, pfn| told(machine.snp.pvalidate(cx, &CPU, &PageOperand::page(GPA, pfn), 1).ok());
    let setup = |cx: &Cx<'_>, machine: &Machine| machine.in_state(cx, PageState::GuestInvalid);
    let (done, unchanged, npf) = (told(Some(DONE)), told(Some(UNCHANGED)), told(None::<()>));
    let one = [[done.clone(), unchanged.clone()], [unchanged.clone(), done.clone()]];
    expect(&pairs(&config(), setup, [validate; 2]), one);
    // R22: exactly one is told that it did it.
    let seen = pairs(&contended(), setup, [validate; 2]);
    let expected =
        [[done.clone(), unchanged.clone()], [unchanged, done.clone()], [done.clone(), npf.clone()], [npf, done]];
    expect(&seen, expected);
}

#[test]
fn r18_the_firmware_keeps_what_it_is_writing() {
    // The host takes a page away that the firmware is launching: not while it does, and not before, because it is immutable.
    let launch: Task = |cx, machine, pfn| {
        let gctx = machine.snp.rmp().written_regions().into_iter().flat_map(|head| (0..512).map(move |i| head + i));
        let gctx = gctx.into_iter().find(|pfn| machine.snp.rmp().state(*pfn) == Some(PageState::Context)).unwrap();
        let update = LaunchUpdate::new(Spa::of(gctx), Spa::of(pfn), PageType::Normal);
        told(machine.snp.snp_launch_update(cx, &update))
    };
    let take: Task = |cx, machine, pfn| {
        let answer = machine.snp.rmpupdate(cx, pfn, RmpUpdate::HYPERVISOR);
        if answer.is_ok() {
            // It had been launched: what the host finds is ciphertext.
            assert_ne!(machine.snp.memory().read_page(KeyPath::Raw, pfn)[..], [0; 4096]);
        }
        told(answer)
    };
    let setup = |cx: &Cx<'_>, machine: &Machine| {
        machine.launching(cx, G, GuestPolicy::USUAL);
        machine.in_state(cx, PageState::PreGuest)
    };
    let refused = told(Err::<(), _>(RmpFail::Permission));
    let inuse = told(Err::<(), _>(RmpFail::Inuse));
    let launched = told(Ok::<(), RmpFail>(()));
    expect(
        &pairs(&config(), setup, [launch, take]),
        [[launched.clone(), refused.clone()], [launched.clone(), told(OK)]],
    );
    let seen = pairs(&contended(), setup, [launch, take]);
    let before_and_after = [[launched.clone(), refused], [launched.clone(), told(OK)]];
    let mut expected = BTreeSet::from(before_and_after);
    expected.insert([launched, inuse]);
    assert_eq!(seen, expected);
}

#[test]
fn a_host_write_and_a_page_that_is_given_away() {
    // The check and the write are one step: what was written is there before the page is the guest's, or not at all.
    let write: Task = |cx, machine, pfn| {
        told(machine.snp.host_write(cx, &HostSnpAccess::kernel(AccessKind::Write, pfn), 0, &[7]).is_ok())
    };
    let give: Task = |cx, machine, pfn| {
        machine.assign(cx, pfn, RmpUpdate::guest(G, GPA));
        let before = machine.phys.peek_u64(pfn, 0);
        cx.cond_resched();
        assert_eq!(machine.phys.peek_u64(pfn, 0), before, "SNP-INV-002");
        told(before)
    };
    let setup = |_: &Cx<'_>, machine: &Machine| machine.page();
    expect(&pairs(&config(), setup, [write, give]), [[told(true), told(7)], [told(false), told(0)]]);
}

#[test]
fn r6_without_the_mark_both_win() {
    let smash: Task = |cx, machine, head| told(machine.snp.psmash(cx, head));
    let take: Task = |cx, machine, head| {
        let answer = machine.snp.rmpupdate(cx, head, RmpUpdate::HYPERVISOR.sized(RmpSize::Size2M));
        told(answer)
    };
    let setup = |cx: &Cx<'_>, machine: &Machine| head_in(cx, machine, PageState::GuestValid);
    let both = [told(OK), told(OK)];
    assert!(!pairs(&contended(), setup, [smash, take]).contains(&both));
    // The host believes that the region is its own, and the smash has written the guest's entries over it.
    assert!(pairs_without(MutantSet::EMPTY.with(mutants::R06), &contended(), setup, [smash, take]).contains(&both));
}
