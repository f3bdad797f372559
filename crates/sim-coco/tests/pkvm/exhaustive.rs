//! All interleavings of two calls: what partial-order reduction calls equivalent gives the same. If a step were announced on too little, an outcome would be missing.

use crate::machine::{Both, GFN, IDLE, OK, P, config, ipa};
use sim_coco::pkvm::{HostCall, Touch, func, mutants};
use sim_kernel::explore::{Exploration, Judgement, Options, Program, StrategyKind};
use sim_kernel::sched::{Sim, Verdict};
use sim_kernel::{Cx, MutantSet, Pfn};
use std::collections::BTreeSet;
use std::sync::Arc;

type Task = fn(&Cx<'_>, &Both, Pfn) -> String;

struct Pair {
    mutants: MutantSet,
    /// A page of the protected VM, or of the host.
    donated: bool,
    tasks: [Task; 2],
}

struct State {
    both: Arc<Both>,
    pfn: Pfn,
    answers: Arc<parking_lot::Mutex<[String; 2]>>,
}

impl Program for Pair {
    type State = State;

    fn setup(&self, cx: &Cx<'_>) -> State {
        cx.set_mutants(self.mutants);
        let both = Arc::new(Both::new(cx, config()));
        let pfn = both.page();
        assert!(both.host_write(cx, IDLE, pfn, 5));
        if self.donated {
            assert_eq!(both.donate(cx, P, pfn, GFN), OK);
            assert!(both.guest_write(cx, P, GFN, 5));
        }
        both.top_up(cx, &both.protected.vcpus[0]);
        let answers = Arc::new(parking_lot::Mutex::new([const { String::new() }; 2]));
        for (i, (name, task)) in ["a", "b"].into_iter().zip(self.tasks).enumerate() {
            let (both, answers) = (Arc::clone(&both), Arc::clone(&answers));
            cx.spawn(name, move |cx| {
                let answer = task(cx, &both, pfn);
                answers.lock()[i] = answer;
            });
        }
        State { both, pfn, answers }
    }

    fn judge(&self, _sim: &mut Sim, state: State, verdict: &Verdict) -> Judgement {
        assert_eq!(*verdict, Verdict::Completed);
        let [a, b] = state.answers.lock().clone();
        let left = (state.both.state(state.pfn).name(), state.both.phys.peek_u64(state.pfn, 0));
        if self.mutants.is_empty() {
            state.both.check();
        }
        Judgement::outcome(format!("{a} {b} {left:?}"))
    }
}

fn outcomes(pair: &Pair, kind: StrategyKind) -> (BTreeSet<String>, u64) {
    let mut exploration = Exploration::new(pair, kind, 0, Options::default());
    let mut executions = 0;
    while exploration.step().is_some() {
        executions += 1;
        assert!(executions < 20_000, "{kind} does not end");
    }
    (exploration.statistics().outcomes.keys().map(|outcome| outcome.to_string()).collect(), executions)
}

const FORCE: Task = |cx, both, pfn| format!("{:?}", both.force(cx, pfn).is_ok());
const GUEST_WRITES: Task = |cx, both, _| format!("{:?}", both.guest_write(cx, P, GFN, 9));
const HOST_WRITES: Task = |cx, both, pfn| format!("{:?}", both.host_write(cx, IDLE, pfn, 8));
const SHARE: Task = |cx, both, _| format!("{:?}", both.pkvm.guest_hvc(cx, P, func::MEM_SHARE, [ipa(GFN).0, 0, 0]));
const DONATE: Task =
    |cx, both, pfn| format!("{:?}", both.call(cx, P, HostCall::HostDonateGuest { pfn, gfn: GFN }).is_ok());
const GUEST_WRITES_ELSEWHERE: Task =
    |cx, both, _| format!("{:?}", both.pkvm.guest_access(cx, P, ipa(GFN), Touch::Write(9)).is_ok());

#[test]
fn reduction_loses_no_outcome() {
    let all = MutantSet::EMPTY;
    for (name, pair, expected) in [
        ("force, guest writes", Pair { mutants: all, donated: true, tasks: [FORCE, GUEST_WRITES] }, 2),
        ("share, host writes", Pair { mutants: all, donated: true, tasks: [SHARE, HOST_WRITES] }, 2),
        ("donate, host writes", Pair { mutants: all, donated: false, tasks: [DONATE, HOST_WRITES] }, 2),
        ("donate, guest writes", Pair { mutants: all, donated: false, tasks: [DONATE, GUEST_WRITES_ELSEWHERE] }, 2),
        ("K5", Pair { mutants: all.with(mutants::K05), donated: true, tasks: [FORCE, GUEST_WRITES] }, 3),
        ("no TLBI", Pair { mutants: all.with(mutants::NO_TLBI), donated: true, tasks: [FORCE, GUEST_WRITES] }, 2),
    ] {
        let (reduced, few) = outcomes(&pair, StrategyKind::Dpor);
        let (every, many) = outcomes(&pair, StrategyKind::Dfs);
        assert_eq!(reduced, every, "{name}: {few} executions of {many}");
        assert_eq!(reduced.len(), expected, "{name}: {reduced:?}");
        assert!(few <= many, "{name}: {few} executions of {many}");
    }
}
