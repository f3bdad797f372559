//! Runs one model a number of times and says what a schedule costs in CPU time: the program to put under a profiler.
//!
//! `cargo run --release -p gmem-benches --example profile -- fault_punch 100000`, or under `valgrind --tool=callgrind`, whose instruction
//! counts do not mind what else the machine does.

use gmem_benches::cpu_time;
use gmem_benches::models::mutex_counter::{self, Size};
use gmem_benches::models::small_vm::SmallVm;
use gmem_benches::models::{fault_conversion, fault_punch};
use sim_kernel::sched::{Chooser, Config, LogLevel, Random, Sim};

fn main() {
    let mut args = std::env::args().skip(1);
    let usage = "profile MODEL SCHEDULES [off|hash|full]";
    let model = args.next().expect(usage);
    let schedules: u64 = args.next().expect(usage).parse().expect(usage);
    let log = match args.next().as_deref() {
        None | Some("off") => LogLevel::Off,
        Some("hash") => LogLevel::Hash,
        Some("full") => LogLevel::Full,
        Some(_) => panic!("{usage}"),
    };
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let (mut steps, mut decisions) = (0, 0);
    let start = cpu_time();
    for seed in 0..schedules {
        let config = Config { seed, log, ..Config::default() };
        match &*model {
            "fault_punch" => drop(fault_punch::run(&mut sim, &config)),
            "fault_punch_once" => drop(fault_punch::run_once(&mut sim, &config)),
            "fault_conversion" => drop(fault_conversion::run(&mut sim, &config)),
            "nothing" => {
                let (small, _) = sim.execute(&config, SmallVm::new);
                small.vm.check_invariants();
                sim.solo(|cx| small.destroy(cx));
            }
            "mutex_2x2" => mutex_counter::run(&mut sim, &config, Size::ALL[0]),
            "mutex_2x10" => mutex_counter::run(&mut sim, &config, Size::ALL[1]),
            "mutex_4x10" => mutex_counter::run(&mut sim, &config, Size::ALL[2]),
            other => panic!("no model is called {other}"),
        }
        steps += sim.steps();
        decisions += sim.decision_count() as u64;
    }
    let seconds = (cpu_time() - start).as_secs_f64();
    let n = schedules as f64;
    println!(
        "{model}: {:.0} schedules/s, {:.2} us each, {:.1} points and {:.1} decisions each, {:.1} ns a point",
        n / seconds,
        seconds * 1e6 / n,
        steps as f64 / n,
        decisions as f64 / n,
        seconds * 1e9 / steps as f64
    );
}
