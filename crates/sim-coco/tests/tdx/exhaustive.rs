//! Partial-order reduction against all interleavings: what it calls equivalent gives the same. If a step were announced on too little, an outcome would be missing.

use crate::machine::{GPA, L, LP, Machine, config, leave, params, pfn, told};
use sim_coco::tdx::{Entry, GuestStop, Hpa, Lp, SeptInfo, TdxConfig, mutants};
use sim_kernel::explore::{Exploration, Judgement, Options, Program, StrategyKind};
use sim_kernel::sched::{Sim, Verdict};
use sim_kernel::{Cx, MutantSet};
use sim_mmu::Level;
use std::collections::BTreeSet;
use std::sync::Arc;

const AT: SeptInfo = SeptInfo::page(GPA);

/// A TD that runs with a page that was accepted, another TD, and a page of the host.
#[derive(Clone, Copy)]
struct Pages {
    tdr: Hpa,
    other: Hpa,
    tdvpr: Hpa,
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
        let (tdr, tdvpr) = machine.running(cx);
        let mapped = machine.aug(cx, tdr, GPA, Level::L4K);
        machine.accept(cx, tdvpr, GPA, Level::L4K);
        let other = machine.building_with(cx, L, &params());
        machine.table(cx, other, GPA, Level::L2M);
        let pages = Pages { tdr, other, tdvpr, mapped, free: machine.page() };
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
