//! Executions: alone, under random schedules, replayed, native.

use super::*;
use gmem::{Errno, Execution, VcpuExit};
use sim_kernel::sched::{Chooser, RoundRobin, Verdict};

/// One vCPU writes while another task frees the page and converts the range.
fn race(cx: &Cx<'_>, process: &Arc<Process>) -> VmFd {
    let (vm, memory, _shared) = booted(cx, process);
    let mut vcpu = vm.create_vcpu(cx, 0).unwrap();
    cx.spawn("vcpu", move |cx| {
        vcpu.load_program(cx, &[write(0x1000, 1), read(0x1000)]);
        assert!(matches!(vcpu.run(cx), Ok(VcpuExit::Hlt)));
    });
    cx.spawn("punch", move |cx| memory.punch_hole(cx, 0, SIZE).unwrap());
    vm
}

fn check(_cx: &Cx<'_>, _process: &Arc<Process>, vm: VmFd) {
    vm.vm().check_invariants();
}

fn explore(machine: &mut Machine, seed: u64) -> Execution {
    machine.explore_random(seed, race, check)
}

#[test]
fn a_seed_selects_an_execution() {
    let mut machine = Machine::new(MachineConfig::default());
    let first: Vec<_> = (0..20).map(|seed| explore(&mut machine, seed)).collect();
    for (seed, execution) in (0..).zip(&first) {
        execution.assert_completed();
        assert_eq!(execution.seed(), Some(seed));
        assert!(execution.steps() > 0);
        assert_eq!(*execution, explore(&mut Machine::new(MachineConfig::default()), seed));
    }
    assert!(first.windows(2).any(|pair| pair[0].schedule() != pair[1].schedule()), "seeds differ");
}

#[test]
fn a_schedule_replays() {
    let mut machine = Machine::new(MachineConfig::default());
    let execution = explore(&mut machine, 5);
    let text = execution.schedule().to_string();
    let replayed = machine.replay(&text.parse().unwrap(), race, check);
    assert_eq!(replayed.seed(), None);
    assert_eq!(replayed.schedule(), execution.schedule());
    assert_eq!(replayed.steps(), execution.steps());
    let diverged = machine.replay(&"gmem1:".parse().unwrap(), race, check);
    assert!(matches!(diverged.verdict(), Verdict::Diverged(_)));
}

#[test]
fn other_strategies_fit() {
    let mut machine = Machine::new(MachineConfig::default());
    machine.explore(Chooser::RoundRobin(RoundRobin), 0, race, check).assert_completed();
}

#[test]
fn failures_say_how_to_have_them_again() {
    let mut machine = Machine::new(MachineConfig::default());
    let in_check = machine.explore_random(1, race, |_, _, _| panic!("not what I thought"));
    assert!(matches!(in_check.verdict(), Verdict::Panicked { task, .. } if task == "check"));
    let in_task = machine.explore_random(2, |cx, _| cx.spawn("bad", |_| panic!("oops")), |_, _, _| {});
    assert!(matches!(in_task.verdict(), Verdict::Panicked { task, .. } if task.contains("bad")), "{in_task}");
    assert!(in_task.to_string().starts_with("seed 2, schedule gmem1:"));
    // The machine is as good as new.
    explore(&mut machine, 3).assert_completed();
    machine.run(|cx, process| Kvm::new(cx, process).unwrap().close(cx).unwrap());
}

#[test]
#[should_panic(expected = "to replay: Machine::replay(&\"gmem1:")]
fn assert_completed_prints_the_replay() {
    let mut machine = Machine::new(MachineConfig::default());
    machine.explore_random(0, race, |_, _, _| panic!("no")).assert_completed();
}

#[test]
fn every_execution_has_a_new_host() {
    let mut machine = Machine::new(MachineConfig { files_max: 4, ..MachineConfig::default() });
    assert_eq!(machine.config().files_max, 4);
    for _ in 0..2 {
        machine.run(|cx, process| assert_eq!(Kvm::new(cx, process).unwrap().as_raw_fd(), 3));
    }
    assert_eq!(machine.run(|_, _| Errno::EINVAL), Errno::EINVAL);
}

#[test]
fn the_same_code_runs_on_threads() {
    let vm = Machine::run_native(MachineConfig::default(), |cx, process| race(cx, process).vm());
    assert!(vm.is_destroyed(), "the process has exited");
}
