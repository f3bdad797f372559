//! This simulator's engine beside [shuttle](https://docs.rs/shuttle) and [loom](https://docs.rs/loom): the same small programs, in the same run.
//!
//! `cargo bench -p gmem-benches --bench peers` prints three tables: how fast, how many executions a whole space takes, and how many
//! until a seeded bug shows. `-- speed`, `-- space` or `-- bugs` prints one of them; `quick` asks for fewer repetitions. Time is CPU time of the
//! thread, the median of the repetitions. docs/benchmarks.md has what was seen.

mod bugs;
mod engines;
mod models;
mod platform;

use engines::{Reach, loom_search, ours_random, ours_search, ours_sim, shuttle_run, shuttle_search};
use gmem_benches::cpu_time;
use models::{FlagRace, Model, MutexCounter, SequenceRetry};
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler};
use sim_kernel::explore::StrategyKind;
use sim_kernel::sched::LogLevel;
use std::time::Duration;

/// How much is done for a figure.
#[derive(Clone, Copy)]
struct Effort {
    /// Repetitions of a speed, of which the median is given.
    repetitions: usize,
    /// CPU time of one at least.
    at_least: Duration,
    /// Seeds of a randomised search, of which the median is given.
    seeds: u64,
    /// Executions of a randomised search at most.
    executions_max: u64,
    /// Executions of an exhaustive search at most.
    space_max: u64,
}

const FULL: Effort = Effort {
    repetitions: 5,
    at_least: Duration::from_millis(300),
    seeds: 51,
    executions_max: 50_000,
    space_max: 300_000,
};
const QUICK: Effort = Effort {
    repetitions: 3,
    at_least: Duration::from_millis(100),
    seeds: 11,
    executions_max: 2_000,
    space_max: 30_000,
};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let asked = |word: &str| words.iter().any(|w| w == word);
    if let Some(unknown) = words.iter().find(|w| !["speed", "space", "bugs", "quick"].contains(&w.as_str())) {
        eprintln!("{unknown} is no table: speed, space, bugs; or quick");
        std::process::exit(2);
    }
    let effort = if asked("quick") { QUICK } else { FULL };
    let all = !["speed", "space", "bugs"].iter().any(|table| asked(table));
    // Bugs show as failed assertions, some thousand times.
    std::panic::set_hook(Box::new(|_| ()));
    if all || asked("speed") {
        speed_table(effort);
    }
    if all || asked("space") {
        space_table(effort);
    }
    if all || asked("bugs") {
        bugs_table(effort);
    }
}

/// Calls `$f` with each of the models.
macro_rules! for_each_model {
    ($f:ident, $effort:expr) => {
        $f(MutexCounter { tasks: 2, increments: 2 }, $effort);
        $f(MutexCounter { tasks: 2, increments: 10 }, $effort);
        $f(MutexCounter { tasks: 4, increments: 10 }, $effort);
        $f(FlagRace { readers: 2 }, $effort);
        $f(SequenceRetry { faults: 1, punches: 1 }, $effort);
        $f(SequenceRetry { faults: 2, punches: 2 }, $effort);
        $f(SequenceRetry { faults: 20, punches: 20 }, $effort);
    };
}

fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Executions per second of CPU time: `run` does so many and says how many it did.
fn rate(effort: Effort, mut run: impl FnMut(u64) -> u64) -> f64 {
    let mut batch = 100;
    let rates = (0..effort.repetitions).map(|_| {
        let (start, mut done) = (cpu_time(), 0);
        loop {
            done += run(batch);
            let spent = cpu_time() - start;
            if spent >= effort.at_least {
                // In millihertz, to have an order.
                return (done as f64 * 1e3 / spent.as_secs_f64()) as u64;
            }
            batch = (batch * 2).min(20_000);
        }
    });
    median(rates.collect()) as f64 / 1e3
}

fn speed_table(effort: Effort) {
    println!("\nExecutions per second of CPU time; in brackets ns for each visible operation.\n");
    println!(
        "| model (visible operations) | ours, random | ours, hash of all events | ours, all events kept | shuttle, random | loom | ours / shuttle | ours / loom |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for_each_model!(speed_row, effort);
}

fn speed_row(model: impl Model, effort: Effort) {
    let mut sim = ours_sim();
    let mut seed = 0;
    let mut ours = |log| {
        rate(effort, |n| {
            ours_random(&mut sim, model, seed..seed + n, log);
            seed += n;
            n
        })
    };
    let (off, hash, full) = (ours(LogLevel::Off), ours(LogLevel::Hash), ours(LogLevel::Full));
    let mut seed = 0;
    let shuttle = rate(effort, |n| {
        seed += 1;
        shuttle_run(model, RandomScheduler::new_from_seed(seed, n as usize))
    });
    // A run of loom begins its search anew; one that ends early says how much it did.
    let loom = rate(effort, |n| match loom_search(model, n) {
        Reach::Exhausted { executions, .. } => executions,
        Reach::Capped(n) => n,
        Reach::Found(_) => panic!("{} has no bug", model.name()),
    });
    let cell = |rate: f64| format!("{} ({:.0})", si(rate), 1e9 / rate / model.visible() as f64);
    println!(
        "| {} ({}) | {} | {} | {} | {} | {} | {:.1} | {:.0} |",
        model.name(),
        model.visible(),
        cell(off),
        cell(hash),
        cell(full),
        cell(shuttle),
        cell(loom),
        off / shuttle,
        off / loom
    );
}

fn si(n: f64) -> String {
    match n {
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e5 => format!("{:.0} k", n / 1e3),
        n => format!("{:.1} k", n / 1e3),
    }
}

fn reach(reach: Reach) -> String {
    match reach {
        Reach::Found(n) => n.to_string(),
        Reach::Exhausted { executions, cut: 0 } => executions.to_string(),
        Reach::Exhausted { executions, cut } => format!("{executions} + {cut} cut"),
        Reach::Capped(n) => format!("> {n}"),
    }
}

fn space_table(effort: Effort) {
    println!("\nExecutions that the whole space takes.\n");
    println!("| model | ours, DPOR | ours, sleep sets | ours, DFS | shuttle, DFS | loom |");
    println!("|---|---|---|---|---|---|");
    for_each_model!(space_row, effort);
}

fn space_row(model: impl Model, effort: Effort) {
    let max = effort.space_max;
    let ours = |kind| reach(ours_search(model, kind, 0, max));
    println!(
        "| {} | {} | {} | {} | {} | {} |",
        model.name(),
        ours(StrategyKind::Dpor),
        ours(StrategyKind::Sleep),
        ours(StrategyKind::Dfs),
        reach(shuttle_search(model, DfsScheduler::new(Some(max as usize), false), max)),
        reach(loom_search(model, max)),
    );
}

fn bugs_table(effort: Effort) {
    let Effort { seeds, executions_max: max, .. } = effort;
    println!(
        "\nExecutions until the bug shows; of randomised searches, the median of {seeds} seeds, at most {max} each.\n"
    );
    println!(
        "| bug | ours, random | ours, URW | ours, PCT 3 | ours, POS | ours, DPOR | shuttle, random | shuttle, PCT 3 | loom |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for bug in bugs::all() {
        // Seeds far apart: an execution's seed is the search's seed plus its number.
        let ours = |kind| sampled(seeds, max, |seed| ours_search(bug, kind, seed << 32, max));
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            bug.name(),
            ours(StrategyKind::Random),
            ours(StrategyKind::Urw),
            ours(StrategyKind::Pct { depth: 3 }),
            ours(StrategyKind::Pos),
            reach(ours_search(bug, StrategyKind::Dpor, 0, max)),
            sampled(seeds, max, |seed| shuttle_search(bug, RandomScheduler::new_from_seed(seed, max as usize), max)),
            sampled(seeds, max, |seed| shuttle_search(bug, PctScheduler::new_from_seed(seed, 3, max as usize), max)),
            reach(loom_search(bug, max)),
        );
    }
}

/// The median of many searches. A search without a finding is longer than any.
fn sampled(seeds: u64, max: u64, search: impl Fn(u64) -> Reach) -> String {
    let mut found = Vec::new();
    let (mut missed, mut done) = (0, 0);
    while done < seeds && missed <= seeds / 2 {
        done += 1;
        match search(done) {
            Reach::Found(n) => found.push(n),
            _ => missed += 1,
        }
    }
    if missed > seeds / 2 {
        // More than half of all seeds, whatever the others would have been.
        return format!("> {max}");
    }
    found.sort_unstable();
    let median = found[seeds as usize / 2];
    if missed == 0 { median.to_string() } else { format!("{median} ({missed} missed)") }
}
