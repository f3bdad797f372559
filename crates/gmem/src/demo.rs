//! What `gmem` shows a newcomer: a conversion step by step, the simulator against recordings of a real kernel, and a race under many
//! schedules. All on built-in input, and the same on every machine.

use std::collections::BTreeMap;
use std::io::Write;

use sim_kernel::sched::{Chooser, LogLevel, Random};

use crate::cli::Backend;
use crate::interp::Sequential;
use crate::kvm::config::MachineConfig;
use crate::ops::{Op, SpteRun, SpteState};
use crate::replay::Executor;
use crate::runner;
use crate::scenario::{Scenario, parse};
use crate::trace::Reader;
use crate::{Simulator, Status};

/// Schedules of the race that the demonstration runs.
const SCHEDULES: u64 = 3_000;

const CONVERSION: &str = include_str!("../../../scenarios/explicit-conversion.toml");
const RACE: &str = include_str!("../../../scenarios/fault-against-conversion.toml");

/// Recordings of a real Linux 7.3.4, one of every family.
const RECORDINGS: [(&str, &str); 9] = [
    ("attrs-002", include_str!("../../../tests/data/traces/attrs-002.jsonl")),
    ("conv-014", include_str!("../../../tests/data/traces/conv-014.jsonl")),
    ("dirty-035", include_str!("../../../tests/data/traces/dirty-035.jsonl")),
    ("file-017", include_str!("../../../tests/data/traces/file-017.jsonl")),
    ("life-001", include_str!("../../../tests/data/traces/life-001.jsonl")),
    ("mmap-022", include_str!("../../../tests/data/traces/mmap-022.jsonl")),
    ("prefault-008", include_str!("../../../tests/data/traces/prefault-008.jsonl")),
    ("slots-010", include_str!("../../../tests/data/traces/slots-010.jsonl")),
    ("thp-014", include_str!("../../../tests/data/traces/thp-014.jsonl")),
];

/// Runs the demonstration.
///
/// # Errors
/// If `out` cannot be written.
pub(crate) fn demonstrate(out: &mut dyn Write) -> anyhow::Result<Status> {
    writeln!(out, "gmem: guest_memfd of Linux 7.3, simulated. Three things it does:\n")?;
    let conversion = conversion(out)?;
    let recordings = recordings(out)?;
    let race = race(out)?;
    writeln!(
        out,
        "What to try next\n\
         \x20 gmem run scenarios/punch-hole.toml                  a scenario, step by step; there are more beside it\n\
         \x20 gmem run scenarios/fault-against-punch.toml --seed 4 --log events.jsonl\n\
         \x20                                                     one schedule of a race, every event on record\n\
         \x20 gmem explore scenarios/fault-against-punch.toml     every interleaving of a race\n\
         \x20 gmem replay tests/data/traces                       recordings of a real kernel against the simulator\n\
         \x20 gmem --help                                         everything else\n\
         (`cargo run --release --` stands for `gmem` until it is installed.)"
    )?;
    Ok(if conversion && recordings && race { Status::Success } else { Status::Found })
}

fn built_in(name: &str, source: &str) -> Scenario {
    parse(name, source).unwrap_or_else(|error| panic!("the built-in scenario is wrong: {}", error.render(false)))
}

/// A conversion, operation by operation, with what each did to the guest's stage-2 tables.
fn conversion(out: &mut dyn Write) -> anyhow::Result<bool> {
    let scenario = built_in("explicit-conversion.toml", CONVERSION);
    writeln!(out, "1. A conversion: one guest address, a shared and a private memory behind it")?;
    writeln!(out, "   {:<66}{:<24}stage 2", "operation", "answer")?;
    let mut machine = Sequential::new(MachineConfig::default());
    let mut as_expected = true;
    for step in scenario.steps() {
        let outcome = machine.execute(&step.op);
        as_expected &= step.expect.as_ref().is_none_or(|expect| expect.check(&outcome.answer).is_ok());
        let changes: Vec<String> = outcome.spte.iter().map(describe).collect();
        let text = step.text.split("=>").next().unwrap_or(&step.text).trim();
        writeln!(out, "   {:<66}{:<24}{}", shorten(text), answer(&step.op, &outcome.answer), changes.join(", "))?;
    }
    writeln!(out)?;
    Ok(as_expected)
}

/// An operation that fits into its column.
fn shorten(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    if text.len() <= 64 { text } else { format!("{}...", &text[..61]) }
}

/// The answer in the words of scenarios rather than those of recordings.
fn answer(op: &Op, answer: &crate::ops::Answer) -> String {
    use crate::ops::{Answer, Detail, Exit};
    match (op, answer) {
        (_, Answer::Ok { detail: Detail::Value(value), .. }) => format!("ok, read {value}"),
        (_, Answer::Ok { .. }) => "ok".to_string(),
        (_, Answer::Exit { exit: Exit::Hlt { value: Some(value) }, .. }) => format!("done, read {value}"),
        (_, Answer::Exit { exit: Exit::Hlt { value: None }, .. }) => "done".to_string(),
        (_, Answer::Exit { exit: Exit::Hypercall { .. }, .. }) => "exit to the VMM".to_string(),
        (_, Answer::Exit { exit: Exit::MemoryFault { .. }, .. }) => "memory-fault exit".to_string(),
        (_, other) => other.to_string(),
    }
}

/// A change of stage 2 in few words.
fn describe(run: &SpteRun) -> String {
    let what = match (run.from, run.to) {
        (SpteState::None, SpteState::Leaf) if run.writable => "mapped",
        (SpteState::None, SpteState::Leaf) => "mapped read-only",
        (SpteState::Leaf, SpteState::None) => "unmapped",
        (SpteState::None, SpteState::Table) => return format!("level-{} table", run.level),
        _ => "changed",
    };
    let size = ["", "4K", "2M", "1G"].get(usize::from(run.level)).unwrap_or(&"?");
    format!("{what} gfn {:#x} ({size})", run.gfn)
}

/// The simulator against what a real kernel answered.
fn recordings(out: &mut dyn Write) -> anyhow::Result<bool> {
    writeln!(out, "2. The same answers as the real kernel: recordings of Linux 7.3.4, replayed")?;
    let (mut operations, mut answers, mut stage2) = (0u64, 0u64, 0u64);
    for (name, text) in RECORDINGS {
        let mut reader = Reader::new(name, text.as_bytes())?;
        let mut machine = Simulator.executor(reader.header()).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        for line in &mut reader {
            let line = line?;
            let outcome = machine.execute(&line.op);
            let recorded = line.recorded().map_err(|(column, kind)| anyhow::anyhow!("{name}:{column}: {kind}"))?;
            if let Some(recorded) = recorded {
                operations += 1;
                let agrees = recorded.answer == outcome.answer;
                answers += u64::from(agrees);
                stage2 += u64::from(agrees && recorded.spte == outcome.spte);
            }
        }
    }
    writeln!(
        out,
        "   {} recordings, {operations} operations: {answers} answers agree, {stage2} with every change of stage 2\n",
        RECORDINGS.len()
    )?;
    Ok(answers == operations && stage2 == operations)
}

/// One race under many schedules: which outcomes there are, and how often each came out.
fn race(out: &mut dyn Write) -> anyhow::Result<bool> {
    let scenario = built_in("fault-against-conversion.toml", RACE);
    writeln!(out, "3. A race: a vCPU writes 7 while the VMM makes the page private, under {SCHEDULES} schedules")?;
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut violations = 0;
    for seed in 0..SCHEDULES {
        let report = runner::run(&scenario, Chooser::Random(Random::new()), seed, LogLevel::Off);
        violations += u64::from(!report.is_as_expected());
        let label = |name: &str| report.steps.iter().find(|s| s.label.as_deref() == Some(name));
        let shown: Vec<String> = ["r0", "r1", "r2"]
            .into_iter()
            .filter_map(label)
            .map(|step| {
                let op = crate::scenario::parse_line(&step.text).map(|line| line.op);
                op.map_or_else(|_| step.answer.to_string(), |op| answer(&op, &step.answer))
            })
            .collect();
        *outcomes.entry(shown.join(" | ")).or_default() += 1;
    }
    writeln!(out, "   {:>9}  the write | the VMM's page afterwards | the private page afterwards", "schedules")?;
    for (outcome, count) in &outcomes {
        writeln!(out, "   {count:>9}  {outcome}")?;
    }
    writeln!(out, "   {violations} of them broke an invariant or an expectation\n")?;
    Ok(violations == 0)
}
