//! Every check after every step of the scenarios, under random schedules: the full checks hold wherever the assertions at the steps do.

use gmem::interp::World;
use gmem::invariants::{self, Snapshot};
use gmem::scenario::{Scenario, Step, parse};
use sim_kernel::Cx;
use sim_kernel::sched::{Chooser, Config, Random, Sim};
use std::path::Path;
use std::sync::Arc;

/// Steps of one scenario that are looked at, over all its schedules.
const STEPS: u64 = 60_000;
/// Schedules of a scenario, at most.
const SCHEDULES: u64 = 300;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let read = |path: &std::path::PathBuf| parse(&path.display().to_string(), &std::fs::read_to_string(path).unwrap());
    paths.iter().map(|path| read(path).unwrap()).collect()
}

fn perform(cx: &Cx<'_>, world: &World, steps: &[Step]) {
    for step in steps {
        world.execute(cx, &step.op);
    }
}

/// One execution with every check after every step, and at its end. Returns the steps.
fn run(sim: &mut Sim, scenario: &Scenario, seed: u64) -> u64 {
    let config = Config { seed, ..Config::default() };
    let (world, verdict) = sim.execute(&config, |cx| {
        let world = Arc::new(World::checked(cx, scenario.machine.clone()));
        perform(cx, &world, &scenario.setup);
        invariants::watch(cx, world.process().host());
        for thread in &scenario.threads {
            let (world, steps) = (Arc::clone(&world), thread.steps.clone());
            cx.spawn(&thread.name, move |cx| perform(cx, &world, &steps));
        }
        world
    });
    assert!(verdict.is_completed(), "{}, seed {seed}: {verdict}", scenario.name);
    sim.solo(|cx| {
        perform(cx, &world, &scenario.finish);
        let quiet = |cx: &Cx<'_>| Snapshot::of(world.process().host(), true, cx.held_locks());
        assert_eq!(invariants::check(&quiet(cx)), Ok(()), "{}, seed {seed}", scenario.name);
        world.process().exit(cx);
        assert_eq!(invariants::check(&quiet(cx)), Ok(()), "{}, seed {seed}, after the process", scenario.name);
    });
    assert_eq!(invariants::check_locks(&sim.lock_order()), Ok(()), "{}, seed {seed}", scenario.name);
    sim.steps()
}

#[test]
fn all_checks_hold_after_every_step_of_the_scenarios() {
    for scenario in scenarios() {
        let mut sim = Sim::new(Chooser::Random(Random::new()));
        let (mut steps, mut schedules) = (0, 0);
        while steps < STEPS && schedules < SCHEDULES {
            steps += run(&mut sim, &scenario, schedules);
            schedules += 1;
        }
        println!("{}: {schedules} schedules, {steps} steps", scenario.name);
    }
}
