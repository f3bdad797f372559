//! Operations against each other in every interleaving: the races (`K..`) of the specification that the hypervisor decides.

use crate::discipline::Checker;
use crate::machine::{Both, GFN, IDLE, N, OK, P, config, ipa};
use sim_coco::pkvm::{CpuId, HostCall, HostContext, HvcResult, Memcache, Pa, PkvmConfig, SMCCC_SUCCESS, Touch, func};
use sim_coco::pkvm::{invariants, mutants};
use sim_kernel::explore::{Exploration, Judgement, Options, Program, StrategyKind};
use sim_kernel::sched::{Sim, Verdict};
use sim_kernel::{Cx, MutantSet, Pfn};
use sim_mmu::Gfn;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

/// Executions of a race that is not searched to its end.
const SEEDS: u64 = 200;
const OTHER: Gfn = Gfn(GFN.0 + 7);
/// The protected VM's vCPU 1 is loaded here.
const Q: CpuId = CpuId(2);

pub(crate) type Task = fn(&Cx<'_>, &Both, Pfn) -> String;
pub(crate) type Setup = fn(&Cx<'_>, &Both) -> Pfn;
/// What the two tasks answered, and what was left: the host's state of the page, and its first word.
pub(crate) type Seen = BTreeSet<[String; 3]>;

/// Two tasks on a page that `setup` made.
pub(crate) struct Race {
    pub(crate) mutants: MutantSet,
    pub(crate) setup: Setup,
    pub(crate) tasks: [Task; 2],
}

pub(crate) struct State {
    both: Arc<Both>,
    pfn: Pfn,
    answers: Arc<parking_lot::Mutex<[String; 2]>>,
}

impl Program for Race {
    type State = State;

    fn setup(&self, cx: &Cx<'_>) -> State {
        cx.set_mutants(self.mutants);
        let both = Arc::new(Both::new(cx, PkvmConfig { trace: true, ..config() }));
        assert!(both.load(cx, Q, both.protected.handle, 1));
        let pfn = (self.setup)(cx, &both);
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

    /// With all rules, the invariants and the discipline hold afterwards; without one, what does not is part of what is seen.
    fn judge(&self, _sim: &mut Sim, State { both, pfn, answers }: State, verdict: &Verdict) -> Judgement {
        assert_eq!(*verdict, Verdict::Completed);
        let recording = Checker::check(&both.pkvm.trace_jsonl());
        let mut left = format!("{} {}", both.state(pfn).name(), both.phys.peek_u64(pfn, 0));
        if self.mutants.is_empty() {
            both.check();
            recording.unwrap();
        } else {
            let broken = invariants::ALL.iter().filter(|(_, holds)| holds(&both.pkvm).is_err());
            broken.for_each(|(id, _)| left += &format!(" {id}"));
            left += if recording.is_err() { " recorded" } else { "" };
        }
        let [a, b] = answers.lock().clone();
        Judgement::outcome(format!("{a};{b};{left}"))
    }
}

impl Race {
    /// What comes of it under a strategy, and after how many executions.
    pub(crate) fn outcomes(&self, kind: StrategyKind) -> (Seen, u64) {
        let mut exploration = Exploration::new(self, kind, 0, Options::default());
        let mut executions = 0;
        while executions < SEEDS || kind.is_exhaustive() {
            if exploration.step().is_none() {
                break;
            }
            executions += 1;
            assert!(executions < 20_000, "{kind} does not end");
        }
        let outcome = |outcome: &String| {
            let parts: Vec<String> = outcome.split(';').map(String::from).collect();
            parts.try_into().expect("three parts")
        };
        (exploration.statistics().outcomes.keys().map(outcome).collect(), executions)
    }
}

/// What comes of a race: with all rules in every interleaving, without one in many.
fn pairs(mutants: MutantSet, setup: Setup, tasks: [Task; 2]) -> Seen {
    let kind = if mutants.is_empty() { StrategyKind::Dpor } else { StrategyKind::Random };
    Race { mutants, setup, tasks }.outcomes(kind).0
}

fn told(answer: impl Debug) -> String {
    format!("{answer:?}")
}

fn expect<const N: usize>(seen: &Seen, expected: [[&str; 3]; N]) {
    assert_eq!(*seen, expected.into_iter().map(|seen| seen.map(String::from)).collect());
}

pub(crate) fn host_page(cx: &Cx<'_>, both: &Both) -> Pfn {
    let pfn = both.page();
    assert!(both.host_write(cx, IDLE, pfn, 5));
    for vcpu in &both.protected.vcpus {
        both.top_up(cx, vcpu);
    }
    pfn
}

pub(crate) fn guest_page(cx: &Cx<'_>, both: &Both) -> Pfn {
    let pfn = host_page(cx, both);
    assert_eq!(both.call(cx, P, HostCall::HostDonateGuest { pfn, gfn: GFN }), OK);
    assert!(both.guest_write(cx, P, GFN, 5));
    pfn
}

fn short(answer: crate::machine::Answer) -> String {
    answer.map_or_else(|fail| fail.to_string(), |value| value.to_string())
}

const DONATE_HERE: Task = |cx, both, pfn| short(both.call(cx, P, HostCall::HostDonateGuest { pfn, gfn: GFN }));
const DONATE_THERE: Task = |cx, both, pfn| short(both.call(cx, Q, HostCall::HostDonateGuest { pfn, gfn: OTHER }));
const FORCE: Task = |cx, both, pfn| short(both.force(cx, pfn));

#[test]
fn k1_pk_023_two_vcpus_fault_together() {
    let here: Task = |cx, both, _| {
        let pfn = both.page();
        short(both.call(cx, P, HostCall::HostDonateGuest { pfn, gfn: GFN }))
    };
    let too: Task = |cx, both, _| {
        let pfn = both.page();
        short(both.call(cx, Q, HostCall::HostDonateGuest { pfn, gfn: GFN }))
    };
    let seen = pairs(MutantSet::EMPTY, host_page, [here, too]);
    expect(&seen, [["0", "EPERM", "OWNED 5"], ["EPERM", "0", "OWNED 5"]]);
}

#[test]
fn k6_one_page_for_two() {
    let seen = pairs(MutantSet::EMPTY, host_page, [DONATE_HERE, DONATE_THERE]);
    expect(&seen, [["0", "EPERM", "NOPAGE 5"], ["EPERM", "0", "NOPAGE 5"]]);
    let without = pairs(MutantSet::EMPTY.with(mutants::K06), host_page, [DONATE_HERE, DONATE_THERE]);
    // Two guests have it, and the recording says so.
    let both = |[a, b, left]: &[String; 3]| {
        a == "0" && b == "0" && left.contains("PKVM-INV-001") && left.ends_with("recorded")
    };
    assert!(without.iter().any(both), "{without:?}");
}

#[test]
fn k6_donated_and_shared() {
    let share: Task = |cx, both, pfn| short(both.share_guest(cx, N, pfn, GFN, 1));
    let seen = pairs(MutantSet::EMPTY, host_page, [DONATE_HERE, share]);
    expect(&seen, [["0", "EPERM", "NOPAGE 5"], ["EPERM", "0", "SHARED_OWNED 5"]]);
}

#[test]
fn k2_the_host_touches_a_page_that_is_donated() {
    fn writes(cx: &Cx<'_>, both: &Both, pfn: Pfn, context: HostContext) -> String {
        told(both.pkvm.host_touch(cx, IDLE, context, Pa::of(pfn), Touch::Write(9)))
    }
    let write: Task = |cx, both, pfn| writes(cx, both, pfn, HostContext::Kernel);
    let seen = pairs(MutantSet::EMPTY, host_page, [DONATE_HERE, write]);
    // Before the donation, which keeps it; or by force, so that what the guest gets is a mark.
    expect(&seen, [["0", "Done(9)", "NOPAGE 9"], ["0", "Done(9)", "OWNED 9"]]);
    let user: Task = |cx, both, pfn| writes(cx, both, pfn, HostContext::User);
    let seen = pairs(MutantSet::EMPTY, host_page, [DONATE_HERE, user]);
    expect(&seen, [["0", "Done(9)", "NOPAGE 9"], ["0", "SigSegv", "NOPAGE 5"]]);
}

#[test]
fn k4_taken_by_force_and_shared() {
    let share: Task = |cx, both, _| {
        let hvc = both.pkvm.guest_hvc(cx, P, func::MEM_SHARE, [ipa(GFN).0, 0, 0]).unwrap();
        told(hvc == HvcResult::Answered(SMCCC_SUCCESS))
    };
    let seen = pairs(MutantSet::EMPTY, guest_page, [FORCE, share]);
    expect(&seen, [["0", "false", "OWNED 0"], ["EAGAIN", "true", "SHARED_BORROWED 5"]]);
    let without = pairs(MutantSet::EMPTY.with(mutants::K04), guest_page, [FORCE, share]);
    assert!(without.iter().any(|[force, share, _]| force == "0" && share == "true"), "{without:?}");
}

#[test]
fn k5_taken_by_force_while_the_guest_writes() {
    let write: Task = |cx, both, _| told(both.guest_write(cx, P, GFN, 9));
    let seen = pairs(MutantSet::EMPTY, guest_page, [FORCE, write]);
    expect(&seen, [["0", "false", "OWNED 0"], ["0", "true", "OWNED 0"]]);
    let without = pairs(MutantSet::EMPTY.with(mutants::K05), guest_page, [FORCE, write]);
    // PK-029: the host reads what the guest wrote. That is what PKVM-INV-008 is about; -009 cannot see it, because no TLB has the page in the end.
    let leaked = |[_, _, left]: &[String; 3]| left == "OWNED 9 PKVM-INV-008 recorded";
    assert!(without.iter().any(leaked), "{without:?}");
    let without = pairs(MutantSet::EMPTY.with(mutants::NO_TLBI), guest_page, [FORCE, write]);
    assert!(without.iter().any(|[_, _, left]| left == "OWNED 9 PKVM-INV-009 recorded"), "{without:?}");
}

#[test]
fn k3_taken_by_force_while_the_vm_ends() {
    let end: Task = |cx, both, _| {
        let handle = both.protected.handle;
        let calls = [HostCall::StartTeardownVm { handle }, HostCall::FinalizeTeardownVm { handle }];
        told(calls.map(|call| both.call(cx, P, call).is_ok()))
    };
    let setup: Setup = |cx, both| {
        let pfn = guest_page(cx, both);
        assert_eq!([P, Q].map(|cpu| both.call(cx, cpu, HostCall::VcpuPut)), [OK; 2]);
        pfn
    };
    let seen = pairs(MutantSet::EMPTY, setup, [FORCE, end]);
    expect(&seen, [["0", "[true, true]", "OWNED 0"], ["EAGAIN", "[true, true]", "NOPAGE 5"]]);
    // The VM that was found is gone: its tables are the host's.
    let without = pairs(MutantSet::EMPTY.with(mutants::K03), setup, [FORCE, end]);
    assert!(without.iter().any(|[force, ..]| force == "ENOENT"), "{without:?}");
}

#[test]
fn k12_k14_loading_while_the_vm_ends() {
    let load: Task = |cx, both, _| told(both.load(cx, P, both.protected.handle, 0));
    let end: Task = |cx, both, _| {
        let handle = both.protected.handle;
        short(both.call(cx, IDLE, HostCall::StartTeardownVm { handle }))
    };
    let setup: Setup = |cx, both| {
        let pfn = host_page(cx, both);
        assert_eq!([P, Q].map(|cpu| both.call(cx, cpu, HostCall::VcpuPut)), [OK; 2]);
        pfn
    };
    let seen = pairs(MutantSet::EMPTY, setup, [load, end]);
    expect(&seen, [["false", "0", "OWNED 5"], ["true", "EINVAL", "OWNED 5"]]);
}

#[test]
fn k8_taken_back_while_it_is_pinned() {
    let pin: Task = |cx, both, pfn| told(both.pkvm.el2(cx, P).pin_shared_mem(pfn, 1));
    let unshare: Task = |cx, both, pfn| short(both.call(cx, Q, HostCall::HostUnshareHyp { pfn }));
    let setup: Setup = |cx, both| {
        let pfn = host_page(cx, both);
        assert_eq!(both.call(cx, P, HostCall::HostShareHyp { pfn }), OK);
        pfn
    };
    let seen = pairs(MutantSet::EMPTY, setup, [pin, unshare]);
    expect(&seen, [["Err(EPERM)", "0", "OWNED 5"], ["Ok(())", "EBUSY", "SHARED_OWNED 5"]]);
}

#[test]
fn k7_shared_and_taken_back_elsewhere() {
    let share: Task = |cx, both, pfn| short(both.share_guest(cx, N, pfn, OTHER, 1));
    let unshare: Task = |cx, both, _| {
        let handle = both.other.handle;
        short(both.call(cx, IDLE, HostCall::HostUnshareGuest { handle, gfn: GFN, pages: 1 }))
    };
    let setup: Setup = |cx, both| {
        let pfn = host_page(cx, both);
        assert_eq!(both.share_guest(cx, N, pfn, GFN, 1), OK);
        pfn
    };
    expect(&pairs(MutantSet::EMPTY, setup, [share, unshare]), [["0", "0", "SHARED_OWNED 5"]]);
}

#[test]
fn k9_the_host_changes_its_list_meanwhile() {
    let donate: Task = |cx, both, pfn| short(both.call(cx, P, HostCall::HostDonateGuest { pfn, gfn: GFN }));
    let change: Task = |cx, both, _| {
        let head = both.protected.vcpus[0].memcache.lock().head;
        // The link, in a page that the host still has, or has not any more.
        told(both.pkvm.host_access(cx, IDLE, head, Touch::Write(Pa::of(both.protected.kvm.frame()).0)).is_ok())
    };
    let seen = pairs(MutantSet::EMPTY, host_page, [donate, change]);
    assert!(seen.iter().any(|[donate, ..]| donate == "0"));
    assert!(seen.iter().any(|[donate, changed, _]| donate == "ENOMEM" && changed == "true"), "{seen:?}");
}

#[test]
fn k9_the_host_replaces_its_list_meanwhile() {
    let donate: Task = |cx, both, pfn| short(both.call(cx, P, HostCall::HostDonateGuest { pfn, gfn: GFN }));
    let replace: Task = |cx, both, _| {
        let old = both.protected.vcpus[0].replace_memcache(cx, &both.phys, Memcache::default());
        old.nr_pages.to_string()
    };
    // Before the hypervisor copies the list; between that and its writing back what is left of it; after.
    let seen = pairs(MutantSet::EMPTY, host_page, [donate, replace]);
    let (none, there) = (["ENOMEM", "2", "OWNED 5"], ["0", "2", "NOPAGE 5"]);
    expect(&seen, [none, there, ["0", "0", "NOPAGE 5"]]);
}

#[test]
fn sharing_does_not_disturb_the_guest() {
    // Only bits that no processor looks at change in its descriptor: there is always one.
    let share: Task =
        |cx, both, _| told(both.pkvm.el2(cx, Q).guest_share_host(&both.pkvm.loaded(Q).unwrap(), GFN).is_ok());
    let read: Task = |cx, both, _| told(both.guest_read(cx, P, GFN));
    let seen = pairs(MutantSet::EMPTY, guest_page, [share, read]);
    expect(&seen, [["true", "Some(5)", "SHARED_BORROWED 5"]]);
}
