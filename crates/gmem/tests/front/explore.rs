//! Exploring scenarios: totals that do not depend on the number of workers, explorations that go on from a checkpoint, failures made
//! small and explained.

use gmem::KernelVersion;
use gmem::explore::campaign::{self, Flow, Progress};
use gmem::explore::checkpoint::{Checkpoint, Identity};
use gmem::explore::minimise::minimise;
use gmem::explore::portfolio::{Choice, Memory, Plan};
use gmem::explore::report::Origin;
use gmem::explore::trial::Trials;
use gmem::explore::{ScenarioProgram, explain};
use gmem::scenario::{Scenario, parse};
use sim_kernel::sched::Schedule;

/// Two vCPUs add to a word under a hole; the last outcome is missing, so that some schedules fail.
const ADDERS: &str = r#"
[setup]
run = """
create_vm vm0 type=sw_protected
create_vcpu vm0 c0
create_guest_memfd vm0 g0 size=16K
mmap m0 len=16K align=2M
set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=16K hva=m0 guest_memfd=g0
set_memory_attributes vm0 0x200000 16K private
guest_write c0 0x200000 1
"""
[thread.vcpu0]
run = "guest_rmw c0 0x200000 1       => hlt"
[thread.vmm]
run = "fallocate g0 punch_hole 0 4K  => ok"
[finish]
run = "sum: guest_read c0 0x200000   => hlt"
[expect]
outcomes = ["sum => hlt 1"]
"#;

/// Linux 6.8, on which deleting a slot and closing its file at the same time used a freed slot.
fn close_while_deleting() -> Scenario {
    let path = super::workspace().join("scenarios/versions/close-while-deleting.toml");
    let mut scenario = parse("close-while-deleting.toml", &std::fs::read_to_string(path).unwrap()).unwrap();
    scenario.machine.kernel = "6.8".parse::<KernelVersion>().unwrap();
    scenario
}

fn adders() -> ScenarioProgram {
    ScenarioProgram::new(&parse("adders.toml", ADDERS).unwrap())
}

fn plan(strategy: &str, executions: u64, keep_going: bool) -> Plan {
    let choice: Choice = strategy.parse().unwrap();
    Plan { choice, seed: 7, executions, search: executions / 2, keep_going, memory: Memory::Sc }
}

fn explore(program: &ScenarioProgram, plan: &Plan, jobs: usize) -> Progress {
    campaign::explore(program, plan, Progress::default(), jobs, &mut |_| Flow::Continue).unwrap()
}

#[test]
fn findings_and_totals_are_the_same_with_any_number_of_jobs() {
    let programs = [("adders", adders()), ("close-while-deleting", ScenarioProgram::new(&close_while_deleting()))];
    for (name, program) in &programs {
        for strategy in ["portfolio", "random", "dfs"] {
            for keep_going in [false, true] {
                let plan = plan(strategy, 900, keep_going);
                let one = explore(program, &plan, 1);
                assert!(one.finished && one.executions() > 0);
                for jobs in [2, 3] {
                    assert_eq!(one, explore(program, &plan, jobs), "{name}, {strategy}, {jobs} jobs");
                }
                if strategy == "random" && keep_going {
                    assert_eq!(one.executions(), 900, "{name}");
                    assert!(one.violations > 0, "{name}");
                }
            }
        }
    }
}

#[test]
fn a_finding_ends_the_exploration_and_says_after_how_many_executions() {
    let progress = explore(&adders(), &plan("random", 900, false), 2);
    let [finding] = progress.findings.as_slice() else { panic!("{:?}", progress.findings) };
    assert_eq!(finding.kind(), "expectation");
    assert_eq!(finding.executions, progress.executions());
    // The schedule is the failing one.
    let program = adders();
    let tried = Trials::new(&program).replay(&finding.schedule.parse().unwrap());
    assert_eq!(tried.failure.unwrap().message, finding.message);
}

fn identity(plan: Plan) -> Identity {
    Identity {
        version: "1".into(),
        scenario: Identity::hash(ADDERS),
        kernel: "7.3".into(),
        mutants: vec![],
        memory_model: "sc".into(),
        plan,
    }
}

/// Stops after every unit of work, keeps what was done as text, and goes on from that: as if it had never stopped.
#[test]
fn an_exploration_goes_on_from_its_checkpoint() {
    let path = super::workspace().join("scenarios/fault-against-punch.toml");
    let punch = parse("fault-against-punch.toml", &std::fs::read_to_string(path).unwrap()).unwrap();
    let punch = ScenarioProgram::new(&punch);
    for (program, strategy, executions) in
        [(&punch, "portfolio", 2_600), (&adders(), "random", 900), (&adders(), "dfs", 1_700)]
    {
        let plan = plan(strategy, executions, true);
        let whole = explore(program, &plan, 2);
        let identity = identity(plan);
        for jobs in [1, 2] {
            let mut progress = Progress::default();
            let mut stops = 0;
            while !progress.finished {
                let before = progress.executions();
                let stop = &mut |now: &Progress| if now.executions() > before { Flow::Stop } else { Flow::Continue };
                let stopped = campaign::explore(program, &plan, progress, jobs, stop).unwrap();
                let text = Checkpoint { identity: identity.clone(), progress: stopped }.print();
                progress = Checkpoint::read(&text, &identity).unwrap();
                stops += 1;
            }
            assert_eq!(progress, whole, "{strategy}");
            // How many units two workers do before anybody looks is the machine's business.
            assert!(jobs > 1 || stops > 2, "{strategy} was stopped {stops} times");
        }
    }
}

#[test]
fn a_checkpoint_of_something_else_is_refused_in_words() {
    let ours = identity(plan("portfolio", 900, false));
    let refuse = |theirs: Identity| {
        let text = Checkpoint { identity: theirs, progress: Progress::default() }.print();
        Checkpoint::read(&text, &ours).unwrap_err().to_string()
    };
    assert!(
        Checkpoint::read(&Checkpoint { identity: ours.clone(), progress: Progress::default() }.print(), &ours).is_ok()
    );
    let scenario = Identity { scenario: Identity::hash("other"), ..ours.clone() };
    assert!(refuse(scenario).starts_with("it is of another exploration: its scenario (hash of the text) is "));
    let version = Identity { version: "0".into(), ..ours.clone() };
    let message = "it was written by gmem 0, and this is gmem 1: what a schedule means may have changed";
    assert_eq!(refuse(version), message);
    let mutants = Identity { mutants: vec!["RC-01".into()], ..ours.clone() };
    assert_eq!(refuse(mutants), "it is of another exploration: its list of mutants is RC-01, and none was asked for");
    let seed = Identity { plan: Plan { seed: 8, ..ours.plan }, ..ours.clone() };
    assert_eq!(refuse(seed), "it is of another exploration: its seed is 8, and 7 was asked for");
    let budget = identity(plan("portfolio", 1_000, false));
    assert_eq!(refuse(budget), "it is of another exploration: its budget of executions is 1000, and 900 was asked for");
    for text in ["", "{}", "no json", "{\"identity\": {\"version\": 1}}"] {
        let message = Checkpoint::read(text, &ours).unwrap_err().to_string();
        assert!(message.starts_with("this is no checkpoint of an exploration: "), "{message}");
    }
}

#[test]
fn a_failing_schedule_is_made_small_and_still_fails_in_the_same_way() {
    let program = ScenarioProgram::new(&close_while_deleting());
    let progress = explore(&program, &plan("random", 2_000, true), 2);
    let finding = progress.findings.iter().find(|finding| finding.kind() == "INV-401").expect("6.8 has this bug");
    let schedule: Schedule = finding.schedule.parse().unwrap();
    let minimal = minimise(&program, &schedule, "INV-401").unwrap();
    let mut trials = Trials::new(&program);
    let (before, after) = (trials.replay(&schedule), trials.replay(&minimal.schedule));
    assert_eq!(after.failure.unwrap().kind(), "INV-401");
    assert_eq!((after.preemptions, after.order.len()), (minimal.preemptions, minimal.steps));
    // Without stopping the closer between its last put and the release, nothing goes wrong.
    assert_eq!(minimal.preemptions, 1);
    assert!(before.preemptions >= 1 && before.order.len() >= minimal.steps);
    assert!(minimise(&program, &schedule, "INV-201").unwrap_err().starts_with("the schedule fails otherwise"));
}

#[test]
fn the_report_names_the_two_steps_that_collided() {
    let scenario = close_while_deleting();
    let program = ScenarioProgram::new(&scenario);
    let progress = explore(&program, &plan("random", 2_000, true), 2);
    let finding = progress.findings.iter().find(|finding| finding.kind() == "INV-401").expect("6.8 has this bug");
    let origin = Origin { command: "gmem explore x.toml".into(), ..Origin::default() };
    let report = explain(&scenario, &finding.schedule.parse().unwrap(), Some("INV-401"), &origin).unwrap();
    let collision = report.collision.as_ref().expect("two steps collided");
    // The last reference goes away, and then the file can no longer be taken.
    assert!(collision.first.object.starts_with("f_ref") && collision.first.object == collision.second.object);
    assert_eq!((collision.first.task.as_str(), collision.second.task.as_str()), ("closer", "deleter"));
    assert_eq!(collision.second.function, Some("kvm_gmem_get_file"));
    assert!(collision.common.is_empty());
    assert_eq!(collision.first.performing, "line 18: close g0");
    assert!(collision.second.holds[0].starts_with("slots_lock, taken at set_memory_region.rs:"));
    // What it says can be seen again with the command that it prints.
    let schedule: Schedule = report.schedule.parse().unwrap();
    assert_eq!(report.command, format!("gmem explore x.toml --replay {schedule}"));
    let again = explain(&scenario, &schedule, None, &origin).unwrap();
    assert_eq!(again.to_string(), report.to_string());
}

/// In the two orders of a pair that is named, the failure appears and does not: on a scenario whose only fault is its expectation.
#[test]
fn the_order_that_is_named_matters() {
    let scenario = parse("adders.toml", ADDERS).unwrap();
    let progress = explore(&adders(), &plan("random", 900, false), 1);
    let schedule: Schedule = progress.findings[0].schedule.parse().unwrap();
    let report = explain(&scenario, &schedule, Some("expectation"), &Origin::default()).unwrap();
    let collision = report.collision.expect("the write comes before the hole");
    assert_ne!(collision.first.task, collision.second.task);
    assert!(collision.first.step < collision.second.step);
    assert_eq!(report.preemptions, 0, "one after the other is enough");
}

#[test]
fn what_does_not_fail_is_said_to_be_well() {
    let scenario =
        parse("adders.toml", &ADDERS.replace(r#""sum => hlt 1""#, r#""sum => hlt 1", "sum => hlt 0""#)).unwrap();
    let program = ScenarioProgram::new(&scenario);
    let progress = explore(&program, &plan("random", 400, true), 1);
    assert_eq!((progress.violations, progress.executions()), (0, 400));
    let schedule = Trials::new(&program).follow(vec![]).schedule;
    let report = explain(&scenario, &schedule, None, &Origin::default()).unwrap();
    assert!(!report.failed);
    assert!(report.to_string().starts_with("nothing fails"), "{report}");
    let error = explain(&scenario, &schedule, Some("INV-201"), &Origin::default()).unwrap_err();
    assert_eq!(error, "the schedule does not fail");
}

#[test]
fn a_schedule_that_does_not_fit_is_said() {
    let scenario = close_while_deleting();
    let schedule: Schedule = "gmem1:aeaq".parse().unwrap();
    let report = explain(&scenario, &schedule, None, &Origin::default()).unwrap();
    assert!(report.failed && report.message.contains("the schedule does not fit"), "{}", report.message);
}
