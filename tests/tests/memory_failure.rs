//! A lock-order hazard of the kernel's own: `kvm_gmem_error_folio` takes `invalidate_lock` with the page locked, a hole punch takes
//! page locks inside `invalidate_lock`. Some schedules complete, in others the two wait for each other, and the report says so.

use std::sync::Arc;

use gmem::MachineConfig;
use gmem::interp::World;
use gmem::kvm::ioctl;
use gmem::scenario::parse_line;
use sim_kernel::sched::{Chooser, Config, Random, Sim, Verdict};
use sim_kernel::{Cx, Pgoff};

fn perform(cx: &Cx<'_>, world: &World, line: &str) {
    world.execute(cx, &parse_line(line).expect("a line of a scenario").op);
}

/// A page of a guest_memfd fails while a hole is punched that has it.
fn failure_against_punch(seed: u64) -> Verdict {
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let (_, verdict) = sim.execute(&Config { seed, ..Config::default() }, |cx| {
        let world = Arc::new(World::new(cx, MachineConfig::default()));
        perform(cx, &world, "create_vm vm0");
        perform(cx, &world, "create_guest_memfd vm0 g0 size=16K");
        perform(cx, &world, "fallocate g0 keep_size 0 16K");
        let memory = ioctl::peek_gmem(cx, world.process(), world.fd(&"g0".into())).expect("g0 is a guest_memfd");
        cx.spawn("punch", move |cx| perform(cx, &world, "fallocate g0 punch_hole 0 16K"));
        cx.spawn("failure", move |cx| {
            let _ = memory.memory_failure(cx, Pgoff(0));
        });
    });
    verdict
}

#[test]
fn a_failing_page_and_a_hole_may_wait_for_each_other() {
    let (mut completed, mut deadlocks) = (0, 0);
    for seed in 0..200 {
        match failure_against_punch(seed) {
            Verdict::Completed => completed += 1,
            Verdict::Deadlock(deadlock) => {
                deadlocks += 1;
                let punch = &deadlock.waiters[0];
                assert_eq!((punch.task.as_str(), punch.holds[0].as_str()), ("punch", "invalidate_lock#0"));
                assert!(punch.wants.starts_with("lock folio_lock#0["), "{deadlock}");
                let failure = &deadlock.waiters[1];
                assert_eq!(
                    (failure.task.as_str(), failure.wants.as_str()),
                    ("failure", "lock_shared invalidate_lock#0")
                );
                assert!(failure.holds[0].starts_with("folio_lock#0["), "{deadlock}");
            }
            other => panic!("seed {seed}: {other}"),
        }
    }
    assert!(completed > 0 && deadlocks > 0, "{completed} completed, {deadlocks} deadlocks");
}
