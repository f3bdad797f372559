//! A kernel author's proposal, before it is code: may an invalidation do without its in-progress count? Each rule is a few lines over the
//! primitives of the simulated kernel, and every interleaving of it is run.
//!
//! Run with `cargo run -p gmem --example my_locking_rule`. To try a rule of your own, add it to [`Rule`] and to `punch`.

use sim_kernel::Cx;
use sim_kernel::explore::{Execution, Exploration, Judgement, Options, Problem, Program, StrategyKind};
use sim_kernel::sched::{Sim, Verdict};
use sim_kernel::sync::{Atomic64, Mutex};
use std::sync::Arc;

/// How somebody who takes a page away keeps faults from mapping it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// KVM's: count in progress from the zap to the end, sequence number at the end.
    CountAndSequence,
    /// Only the sequence number, at the end.
    SequenceAfter,
    /// Only the sequence number, with the zap.
    SequenceBefore,
    /// Only the sequence number with the zap, and the page leaves the page cache first.
    CacheFirst,
}

/// What `mmu_lock` protects.
#[derive(Default)]
struct Mmu {
    in_progress: u64,
    /// The page that the guest can reach, 0 for none.
    spte: u64,
}

struct State {
    mmu_lock: Mutex<Mmu>,
    mmu_invalidate_seq: Atomic64,
    /// The page in the page cache, 0 for none.
    cache: Atomic64,
}

impl State {
    /// A fault: note the sequence number, look the page up, map it under the lock if nothing has changed, else try again.
    fn fault(&self, cx: &Cx<'_>) {
        for _attempt in 0..3 {
            let seq = self.mmu_invalidate_seq.load(cx);
            let page = self.cache.load(cx);
            if page == 0 {
                return;
            }
            let mut mmu = self.mmu_lock.lock(cx);
            if mmu.in_progress == 0 && self.mmu_invalidate_seq.peek() == seq {
                mmu.spte = page;
                return;
            }
        }
    }

    fn punch(&self, cx: &Cx<'_>, rule: Rule) {
        if rule == Rule::CacheFirst {
            self.cache.store(cx, 0);
        }
        {
            let mut mmu = self.mmu_lock.lock(cx);
            match rule {
                Rule::CountAndSequence => mmu.in_progress += 1,
                Rule::SequenceAfter => {}
                Rule::SequenceBefore | Rule::CacheFirst => _ = self.mmu_invalidate_seq.fetch_add(cx, 1),
            }
            mmu.spte = 0;
        }
        if rule != Rule::CacheFirst {
            self.cache.store(cx, 0);
        }
        if matches!(rule, Rule::CountAndSequence | Rule::SequenceAfter) {
            let mut mmu = self.mmu_lock.lock(cx);
            self.mmu_invalidate_seq.fetch_add(cx, 1);
            if rule == Rule::CountAndSequence {
                mmu.in_progress -= 1;
            }
        }
    }
}

impl Program for Rule {
    type State = Arc<State>;

    fn setup(&self, cx: &Cx<'_>) -> Arc<State> {
        let state = Arc::new(State {
            mmu_lock: Mutex::new(cx, "mmu_lock", Mmu::default()),
            mmu_invalidate_seq: Atomic64::new(cx, "mmu_invalidate_seq", 0),
            cache: Atomic64::new(cx, "page cache", 1),
        });
        for name in ["vcpu0", "vcpu1"] {
            let shared = Arc::clone(&state);
            cx.spawn(name, move |cx| shared.fault(cx));
        }
        let (shared, rule) = (Arc::clone(&state), *self);
        cx.spawn("punch", move |cx| shared.punch(cx, rule));
        state
    }

    /// The page was given back: nobody may reach it.
    fn judge(&self, _sim: &mut Sim, state: Arc<State>, verdict: &Verdict) -> Judgement {
        let reachable = state.mmu_lock.peek(|mmu| mmu.spte);
        let message = match verdict {
            Verdict::Completed if reachable == 0 => return Judgement::outcome("unmapped"),
            Verdict::Completed => format!("the guest still reaches page {reachable}, which was given back"),
            other => other.to_string(),
        };
        Judgement { outcome: String::new(), problem: Some(Problem { id: None, message }) }
    }
}

/// The first interleaving in which the rule fails, or how many there were of which none does.
fn check(rule: Rule) -> Result<u64, Box<Execution>> {
    let mut exploration = Exploration::new(&rule, StrategyKind::Dpor, 0, Options::default());
    while let Some(execution) = exploration.step() {
        if execution.judgement.problem.is_some() {
            return Err(Box::new(execution));
        }
    }
    assert!(exploration.is_exhausted());
    Ok(exploration.statistics().executions)
}

fn main() {
    for rule in [Rule::CountAndSequence, Rule::SequenceAfter, Rule::SequenceBefore, Rule::CacheFirst] {
        let holds = match check(rule) {
            Ok(executions) => {
                println!("{rule:?}: verified: {executions} executions, all interleavings");
                true
            }
            Err(failed) => {
                let problem = failed.judgement.problem.as_ref().expect("it failed");
                println!("{rule:?}: execution {}: {}", failed.number + 1, problem.message);
                println!("    {}", failed.schedule);
                false
            }
        };
        assert_eq!(holds, matches!(rule, Rule::CountAndSequence | Rule::CacheFirst), "{rule:?}");
    }
}

#[test]
fn every_rule_is_judged() {
    main();
}
