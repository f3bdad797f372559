//! Partial-order reduction against all interleavings: what it calls equivalent gives the same. If a step were announced on too little, an outcome would be missing.

use crate::machine::{GPA, L, LP, Machine, config, leave, params, pfn, told};
use sim_coco::tdx::{Entry, GuestStop, Hpa, InTd, Lp, SeptInfo, TdxConfig, mutants};
use sim_kernel::explore::{Exploration, Judgement, Options, Program, StrategyKind};
use sim_kernel::sched::{Sim, Verdict};
use sim_kernel::{Cx, MutantSet};
use sim_mmu::{Gpa, Level};
use std::collections::BTreeSet;
use std::sync::Arc;

const AT: SeptInfo = SeptInfo::page(GPA);

/// Beside it: pending, and blocked so that it can be moved.
const PENDING: SeptInfo = SeptInfo::page(Gpa(GPA.0 + 0x2000));
const BLOCKED: SeptInfo = SeptInfo::page(Gpa(GPA.0 + 0x3000));

/// A TD that runs, with two vCPUs, a page that was accepted, one that is pending, and one that is blocked; another that is being built; and a page of the host.
#[derive(Clone, Copy)]
struct Pages {
    tdr: Hpa,
    other: Hpa,
    tdvpr: Hpa,
    second: Hpa,
    other_tdvpr: Hpa,
    mapped: Hpa,
    free: Hpa,
}

type Task = fn(&Cx<'_>, &Machine, Pages) -> String;

struct Race {
    mutants: MutantSet,
    contention: bool,
    tasks: [Task; 2],
}

struct State {
    machine: Arc<Machine>,
    pages: Pages,
    answers: Arc<parking_lot::Mutex<[String; 2]>>,
}

impl Program for Race {
    type State = State;

    fn setup(&self, cx: &Cx<'_>) -> State {
        cx.set_mutants(self.mutants);
        let machine = Arc::new(Machine::new(cx, TdxConfig { contention: self.contention, ..config() }));
        let tdr = machine.building(cx);
        machine.table(cx, tdr, GPA, Level::L2M);
        let (tdvpr, second) = (machine.vcpu(cx, tdr, LP), machine.vcpu(cx, tdr, Lp(3)));
        machine.tdx.on(LP).mr_finalize(cx, tdr).unwrap();
        let mapped = machine.aug(cx, tdr, GPA, Level::L4K);
        machine.accept(cx, tdvpr, GPA, Level::L4K);
        for at in [PENDING, BLOCKED] {
            machine.aug(cx, tdr, at.gpa(), Level::L4K);
        }
        machine.tdx.on(LP).mem_range_block(cx, BLOCKED, tdr).unwrap();
        machine.tdx.on(LP).mem_track(cx, tdr).unwrap();
        let other = machine.building_with(cx, L, &params());
        machine.table(cx, other, GPA, Level::L2M);
        let other_tdvpr = machine.vcpu(cx, other, Lp(2));
        let pages = Pages { tdr, other, tdvpr, second, other_tdvpr, mapped, free: machine.page() };
        let answers = Arc::new(parking_lot::Mutex::new([const { String::new() }; 2]));
        for (i, (name, task)) in ["a", "b"].into_iter().zip(self.tasks).enumerate() {
            let (machine, answers) = (Arc::clone(&machine), Arc::clone(&answers));
            cx.spawn(name, move |cx| {
                let answer = task(cx, &machine, pages);
                answers.lock()[i] = answer;
            });
        }
        State { machine, pages, answers }
    }

    fn judge(&self, _sim: &mut Sim, State { machine, pages, answers }: State, verdict: &Verdict) -> Judgement {
        assert_eq!(*verdict, Verdict::Completed);
        if self.mutants.is_empty() {
            machine.tdx.check_invariants().unwrap();
        }
        let [a, b] = answers.lock().clone();
        let state = machine.state(pages.tdr, GPA, Level::L4K);
        let owner = machine.tdx.peek_line(pfn(pages.mapped), 0).owner;
        let fatal = machine.tdx.peek_td(pfn(pages.tdr)).unwrap().fatal;
        Judgement::outcome(format!("{a}; {b}; {state:?} {owner:?} {fatal}"))
    }
}

impl Race {
    fn outcomes(&self, kind: StrategyKind) -> (BTreeSet<String>, u64) {
        let mut exploration = Exploration::new(self, kind, 0, Options::default());
        let mut executions = 0;
        while exploration.step().is_some() {
            executions += 1;
            assert!(executions < 20_000, "{kind} does not end");
        }
        (exploration.statistics().outcomes.keys().cloned().collect(), executions)
    }
}

const BLOCK: Task = |cx, machine, pages| told(machine.tdx.on(Lp(1)).mem_range_block(cx, AT, pages.tdr));
const TRACK: Task = |cx, machine, pages| told(machine.tdx.on(Lp(1)).mem_track(cx, pages.tdr));
const AUG: Task = |cx, machine, pages| {
    let next = SeptInfo::page(sim_mmu::Gpa(GPA.0 + 0x1000));
    told(machine.tdx.on(Lp(1)).mem_page_aug(cx, next, pages.tdr, pages.free))
};
const AUG_OTHER: Task = |cx, machine, pages| told(machine.tdx.on(Lp(2)).mem_page_aug(cx, AT, pages.other, pages.free));
const TAKE: Task = |cx, machine, pages| {
    let seam = machine.tdx.on(Lp(1));
    let steps = [
        told(seam.mem_range_block(cx, AT, pages.tdr)),
        told(seam.mem_track(cx, pages.tdr)),
        told(seam.mem_page_remove(cx, AT, pages.tdr)),
    ];
    steps.join(" ")
};
const HOST_WRITES: Task = |cx, machine, pages| {
    let written = machine.tdx.on(Lp(1)).host_write(cx, pfn(pages.mapped), 0, &[1; 64]);
    format!("{written:?}")
};
const HOST_BREAKS_TABLE: Task = |cx, machine, pages| {
    let table = machine.tdx.peek_sept(pfn(pages.tdr), GPA.gfn(), Level::L2M).unwrap().pfn();
    let written = machine.tdx.on(Lp(1)).host_write(cx, table, 0, &[1; 8]);
    format!("{written:?}")
};
const GUEST_WRITES: Task = |cx, machine, pages| {
    let mut guest = match machine.tdx.on(LP).vp_enter(cx, pages.tdvpr) {
        Ok(Entry::Inside(guest)) => guest,
        other => return told(other),
    };
    match guest.write_u64(cx, GPA, 9) {
        Ok(()) => {
            leave(cx, guest);
            "wrote".into()
        }
        Err(GuestStop::Exit(exit)) => format!("exit {:?}", exit.status),
        Err(other) => format!("{other:?}"),
    }
};

/// A vCPU is entered and does something.
fn inside(
    cx: &Cx<'_>,
    machine: &Machine,
    (lp, tdvpr): (Lp, Hpa),
    what: impl FnOnce(&mut InTd<'_>) -> Result<String, GuestStop>,
) -> String {
    let mut guest = match machine.tdx.on(lp).vp_enter(cx, tdvpr) {
        Ok(Entry::Inside(guest)) => guest,
        other => return told(other),
    };
    let answer = what(&mut guest).unwrap_or_else(|stop| match stop {
        GuestStop::Exit(exit) => format!("exit {:?}", exit.status),
        other => format!("{other:?}"),
    });
    if guest.is_inside() {
        leave(cx, guest);
    }
    answer
}

const ACCEPT: Task = |cx, machine, pages| {
    inside(cx, machine, (LP, pages.tdvpr), |guest| Ok(format!("{:?}", guest.mem_page_accept(cx, PENDING)?)))
};
const BLOCK_PENDING: Task = |cx, machine, pages| told(machine.tdx.on(Lp(1)).mem_range_block(cx, PENDING, pages.tdr));
const SEPT_ADD: Task = |cx, machine, pages| {
    let table = SeptInfo::new(Gpa(GPA.0 + (2 << 20)), Level::L2M);
    told(machine.tdx.on(LP).mem_sept_add(cx, table, pages.tdr, pages.free))
};
const PAGE_ADD: Task =
    |cx, machine, pages| told(machine.tdx.on(LP).mem_page_add(cx, AT, pages.other, pages.free, pages.mapped));
const VP_FLUSH: Task = |cx, machine, pages| told(machine.tdx.on(Lp(2)).vp_flush(cx, pages.other_tdvpr));
const RELOCATE: Task =
    |cx, machine, pages| told(machine.tdx.on(LP).mem_page_relocate(cx, BLOCKED, pages.tdr, pages.free));
fn extends(cx: &Cx<'_>, machine: &Machine, vcpu: (Lp, Hpa)) -> String {
    inside(cx, machine, vcpu, |guest| Ok(format!("{:?}", guest.mr_rtmr_extend(cx, GPA, 1)?)))
}
const RTMR: Task = |cx, machine, pages| extends(cx, machine, (LP, pages.tdvpr));
const RTMR_SECOND: Task = |cx, machine, pages| extends(cx, machine, (Lp(3), pages.second));
/// The host writes over the page before: what the guest reads is poison.
const GUEST_READS_POISON: Task = |cx, machine, pages| {
    machine.tdx.on(LP).host_write(cx, pfn(pages.mapped), 0, &[1; 64]).unwrap();
    inside(cx, machine, (LP, pages.tdvpr), |guest| Ok(format!("{:?}", guest.read_u64(cx, GPA)?)))
};
const SECOND_ENTERS: Task = |cx, machine, pages| inside(cx, machine, (Lp(3), pages.second), |_| Ok("entered".into()));
#[test]
fn reduction_loses_no_outcome() {
    let all = MutantSet::EMPTY;
    for (name, mutants, tasks) in [
        ("block, guest writes", all, [BLOCK, GUEST_WRITES]),
        ("track, guest writes", all, [TRACK, GUEST_WRITES]),
        ("block, aug", all, [BLOCK, AUG]),
        ("a page for two TDs", all, [AUG, AUG_OTHER]),
        ("host writes, guest writes", all, [HOST_WRITES, GUEST_WRITES]),
        ("host breaks a table, guest writes", all, [HOST_BREAKS_TABLE, GUEST_WRITES]),
        ("host breaks a table, aug", all, [HOST_BREAKS_TABLE, AUG]),
        ("a page is taken, guest writes", all, [TAKE, GUEST_WRITES]),
        ("the same without tracking", all.with(mutants::TRACKED), [TAKE, GUEST_WRITES]),
        // The second step of these is announced on bytes, and releases locks.
        ("accept, block", all, [ACCEPT, BLOCK_PENDING]),
        ("a table, block", all, [SEPT_ADD, BLOCK]),
        ("a page of the image, a flush", all, [PAGE_ADD, VP_FLUSH]),
        ("relocate, aug of the same page", all, [RELOCATE, AUG]),
        ("a guest reads poison, another vCPU is entered", all, [GUEST_READS_POISON, SECOND_ENTERS]),
    ] {
        for contention in [false, true] {
            let race = Race { mutants, contention, tasks };
            let (reduced, few) = race.outcomes(StrategyKind::Dpor);
            let (every, many) = race.outcomes(StrategyKind::Dfs);
            assert_eq!(reduced, every, "{name}, {contention}: {few} executions of {many}");
            assert!(few <= many, "{name}: {few} executions of {many}");
        }
    }
}

/// Too many interleavings to make all: what is to be found is known. The lock is taken in a step that was announced as a translation.
#[test]
fn two_guests_measure_at_once() {
    let race = Race { mutants: MutantSet::EMPTY, contention: false, tasks: [RTMR, RTMR_SECOND] };
    let (outcomes, _) = race.outcomes(StrategyKind::Dpor);
    let answers: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.rsplit_once("; ").unwrap().0).collect();
    let (done, busy) = ("Ok(())", "Err(OPERAND_BUSY|168)");
    let expected = [[done, done], [busy, done], [done, busy]].map(|pair| pair.join("; "));
    assert_eq!(answers, expected.iter().map(String::as_str).collect());
}
