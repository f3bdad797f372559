//! temporary
use gmem::explore::{ScenarioProgram, minimise, program, report};
use sim_kernel::sched::*;
fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let path = std::env::args().nth(1).unwrap();
    let scenario = gmem::scenario::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    let mut scenario = scenario;
    if let Some(k) = std::env::args().nth(2) {
        scenario.machine.kernel = k.parse().unwrap();
    }
    let program = ScenarioProgram::new(&scenario);
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    for seed in 0..20000 {
        let (running, verdict) = sim.execute(&Config { seed, ..Config::default() }, |cx| program.begin(cx));
        let schedule = sim.schedule();
        let ending = program.end(&mut sim, &running, &verdict);
        if let Some(failure) = program.failure(&running, &verdict, &ending) {
            let failure: program::Failure = failure;
            let minimal = minimise::minimise(&program, &schedule, failure.kind()).unwrap();
            println!("seed {seed}: {} trials", minimal.trials);
            let origin = report::Origin {
                found_by: format!("random, execution {seed}"),
                command: format!("gmem explore {path}"),
                mutants: vec![],
            };
            println!("{}", report::Report::new(&program, &minimal.schedule, &origin).unwrap());
            return;
        }
    }
    println!("nothing");
}
