//! Whole scenarios that draw their features: no interleaving breaks an invariant; and a failure keeps its interleaving while it is made small.

use super::random::cases;
use gmem::mutants;
use gmem::runner;
use gmem::scenario::{Step, Thread, parse, parse_line, print_file};
use gmem::testing::{race, swarm};
use proptest::prelude::*;
use sim_kernel::sched::{Chooser, LogLevel, Replay};

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn no_interleaving_of_a_swarm_breaks_an_invariant(scenario in swarm::scenario().no_shrink(), seed: u64) {
        if let Some(failure) = race::search(&scenario, seed, 20) {
            prop_assert!(false, "{}", failure);
        }
    }

    #[test]
    fn a_scenario_prints_as_its_file(scenario in swarm::scenario()) {
        let printed = print_file(&scenario);
        let again = parse("generated.toml", &printed).map_err(|error| TestCaseError::fail(error.render(false)))?;
        prop_assert_eq!(&again.machine, &scenario.machine);
        let ops = |scenario: &gmem::scenario::Scenario| scenario.steps().map(|step| step.op.clone()).collect::<Vec<_>>();
        prop_assert_eq!(ops(&again), ops(&scenario));
        prop_assert_eq!(print_file(&again), printed);
    }
}

#[test]
fn a_failure_keeps_its_schedule_while_operations_go() {
    let info = mutants::find("RC-01").expect("the mutant exists");
    let path = format!("{}/../scenarios/{}", env!("CARGO_MANIFEST_DIR"), info.scenario);
    let mut scenario = parse("padded.toml", &std::fs::read_to_string(path).unwrap()).unwrap();
    scenario.machine.mutants = scenario.machine.mutants.with(info.mutant);
    scenario.outcomes.clear();
    // Operations that have nothing to do with it, before, between and beside.
    let noise = |text: &str| Step::new(parse_line(text).unwrap().op);
    for thread in &mut scenario.threads {
        for step in &mut thread.steps {
            *step = Step::new(step.op.clone());
        }
        thread.steps.insert(0, noise("fstat g0"));
        thread.steps.push(noise("fstat g0"));
    }
    let beside = vec![noise("mmap m7 len=8K"), noise("host_write m7 0 1"), noise("munmap m7 0 8K")];
    scenario.threads.push(Thread { name: "beside".into(), steps: beside });
    let before = scenario.steps().count();

    let failure = race::search(&scenario, 0, 4000).expect("the mutant is found");
    assert!(info.caught_by.contains(&failure.kind.as_str()), "{failure}");
    assert!(failure.scenario.threads.iter().all(|thread| thread.name != "beside"), "{failure}");
    assert!(failure.scenario.steps().count() + 7 <= before, "{failure}");
    // What the report says is enough to see it again.
    let again = parse("padded.toml", &print_file(&failure.scenario)).unwrap();
    let replay = Chooser::Replay(Replay::new(failure.schedule.to_string().parse().unwrap()));
    let report = runner::run(&again, replay, 0, LogLevel::Off);
    let id = report.verdict.invariant().map(str::to_string);
    let id = id.or_else(|| report.invariant.as_deref().and_then(sim_kernel::sched::invariant_of).map(str::to_string));
    assert_eq!(id.as_deref(), Some(failure.kind.as_str()), "{failure}");
}
