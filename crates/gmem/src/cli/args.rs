//! The command line, with help and examples.

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, value_parser};
use clap_complete::Shell;
use tracing::level_filters::LevelFilter;

pub use super::budget::Budget;
use crate::explore::portfolio::{Choice, Memory};
use crate::kvm::config::KernelVersion;

/// A deterministic simulator of Linux KVM's guest_memfd
#[derive(Debug, Parser)]
#[command(name = "gmem", version, about, long_about = None, after_help = "\
Without a command, gmem shows in a minute what it can do.

Examples:
  gmem
  gmem run scenarios/punch-hole.toml --seed 7
  gmem explore scenarios/fault-against-punch.toml
  gmem replay traces/

Exit codes: 0 nothing to report, 1 something differs or fails, 2 bad usage or input, 3 a bug in gmem")]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Say more on stderr; twice or three times for even more (RUST_LOG takes precedence)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say less on stderr; twice for nothing but what went wrong
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "verbose")]
    pub quiet: u8,
}

impl Arguments {
    /// The level of diagnostics that `-v` and `-q` ask for.
    pub fn verbosity(&self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (0, 0) => LevelFilter::WARN,
            (0, 1) => LevelFilter::INFO,
            (0, 2) => LevelFilter::DEBUG,
            (0, _) => LevelFilter::TRACE,
            (1, _) => LevelFilter::ERROR,
            (_, _) => LevelFilter::OFF,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a scenario once, under one schedule
    #[command(after_help = "\
Examples:
  gmem run scenarios/punch-hole.toml
  gmem run scenarios/punch-hole.toml --seed 7 --log events.jsonl
  gmem run scenarios/punch-hole.toml --strategy round-robin
  gmem run scenarios/punch-hole.toml --kernel 6.12
  gmem run scenarios/races/fault-punch.toml --mutant RC-01 --seed 3
  gmem run scenarios/kinds/conversion.toml --machine tdx=true --machine stage2=ept

The same scenario, seed and strategy give the same events on every machine.
Exit codes: 0 every expectation held, 1 one did not, 2 bad input, 3 a bug in gmem")]
    Run(Run),
    /// Run a scenario on every kind of machine that protects guests, and compare what each does, step by step
    #[command(after_help = "\
Examples:
  gmem kinds scenarios/kinds/conversion.toml
  gmem kinds scenarios/kinds/conversion.toml --line 18 --line 20
  gmem kinds scenarios/kinds/conversion.toml --json | jq '.steps[].answers'

The kinds are software-protected VMs, AMD SEV-SNP, Intel TDX, and pKVM as Linux 7.3 has it and with guest_memfd. Only the machine differs.
Exit codes: 0 every expectation held on each, 1 one did not, 2 bad input, 3 a bug in gmem")]
    Kinds(Kinds),
    /// Explore the interleavings of a scenario: find a race and explain it, or verify that there is none
    #[command(after_help = "\
Examples:
  gmem explore scenarios/fault-against-punch.toml
  gmem explore scenarios/fault-against-punch.toml --mutant RC-01
  gmem explore scenarios/fault-against-conversion.toml --strategy pct:3 --budget 1M
  gmem explore scenarios/fault-against-punch.toml --budget 30s --checkpoint punch.json
  gmem explore scenarios/fault-against-punch.toml --mutant RC-01 --replay gmem1:aeda

By default an exhaustive search (dpor) is tried first, for half of the budget, then pos, pct, random and urw in turns. The same
scenario, strategy, seed and number of executions give the same findings and totals with any number of jobs.
Exit codes: 0 nothing found, 1 a failure, 2 bad input, 3 a bug in gmem")]
    Explore(Explore),
    /// Switch every rule off in turn and see that it is missed: what finds each bug, how fast, and that nothing is found without bugs
    #[command(after_help = "\
Examples:
  gmem zoo
  gmem zoo RC-01 'BUG-*'
  gmem zoo --list
  gmem zoo --json | jq '.mutants[] | select(.found | not)'

Exit codes: 0 every bug was found and nothing else, 1 otherwise, 2 an unknown id, 3 a bug in gmem")]
    Zoo(Zoo),
    /// Attack a protected guest as its host could: with the check that stops it, and without
    #[command(after_help = "\
Examples:
  gmem attack scenarios/attacks/snp/remap.toml
  gmem attack scenarios/attacks/tdx/*.toml

After each step comes what it ended in, and after a bar what it ends in on a machine without the check.
Exit codes: 0 everything came out as the files say, 1 something did not, 2 bad input, 3 a bug in gmem")]
    Attack(Attack),
    /// Boot an SNP guest or a TD of a given size, and count what it converts
    #[command(after_help = "\
Examples:
  gmem workload
  gmem workload --vcpus 4 --memory 1G
  gmem workload --platform tdx --vcpus 8 --memory 1G
  gmem workload --bounces 5000 --conversions 1000 --kexec --seed 7
  gmem workload --json | jq .log_digest

The same sizes and seed give the same event log, whose hash is in the last line.
Exit codes: 0 every vCPU came to its end, 1 one did not, 2 bad input, 3 a bug in gmem")]
    Workload(Workload),
    /// List the invariants that are checked, with what they say
    #[command(after_help = "\
Examples:
  gmem invariants
  gmem invariants INV-201 'INV-3*'
  gmem invariants --json | jq '.invariants[].id'")]
    Invariants(Invariants),
    /// Record a run and write a page that shows it step by step, for a browser
    #[command(after_help = "\
Examples:
  gmem report scenarios/fault-against-punch.toml -o run.html
  gmem report scenarios/fault-against-punch.toml --seed 7 -o run.html
  gmem report scenarios/races/fault-punch.toml --mutant RC-01 --replay gmem1:aeda -o failure.html
  gmem report traces/conv-011.jsonl -o trace.html
  gmem report scenarios/punch-hole.toml --perfetto -o run.json

The page is one file that needs nothing else: no network, no server. The command that ends a report of gmem explore makes a page
of the failure, with `report` in the place of `explore` and `-o FILE` behind it.
Exit codes: 0 written, whether the run fails or not, 2 bad input, 3 a bug in gmem")]
    Report(Report),
    /// Step through a scenario in the terminal, forwards and backwards, and decide by hand who goes on
    #[command(after_help = "\
Examples:
  gmem step scenarios/fault-against-punch.toml
  gmem step scenarios/races/fault-punch.toml --mutant RC-01
  gmem step scenarios/races/fault-punch.toml --mutant RC-01 --replay gmem1:aeda

What was decided is printed at the end as a schedule, for gmem run --schedule and gmem report --schedule.
Exit codes: 0 it was left, 2 bad input or no terminal, 3 a bug in gmem")]
    Step(Step),
    /// Replay recorded traces and compare with what the real kernel answered
    #[command(after_help = "\
Examples:
  gmem replay traces/
  gmem replay --family conv --differences 3 traces/
  gmem replay --json traces/ | jq .families
  gmem replay --kernel 6.12 traces/
  gmem replay --emit program.jsonl > answered.jsonl

An operation agrees in stage 2 if its answer and the changes of stage-2 entries both equal the recorded ones.
Exit codes: 0 everything agrees, 1 something differs, 2 bad input, 3 a bug in gmem")]
    Replay(Replay),
    /// Record what a real kernel answers: run programs on this machine's /dev/kvm
    #[command(after_help = "\
Examples:
  gmem record program.jsonl -o recordings/
  gmem record scenarios/punch-hole.toml -o recordings/
  gmem record traces/*.jsonl -o recordings/ && gmem replay recordings/

A program is a trace, whose answers and header may be missing, or a scenario, of which the part that does not race is run.
Each runs in a process of its own, with real memory and a real vCPU. What the kernel lacks or the recorder refuses is said in
the recording, as notes. Changes of stage 2 are recorded where KVM has two-dimensional paging and tracefs can be read.
Exit codes: 0 recorded, 1 a program ended early, 2 bad input or no KVM, 3 a bug in gmem")]
    Record(Record),
    /// Compare the simulator with this machine's /dev/kvm, on programs made from a seed
    #[command(after_help = "\
Examples:
  gmem fuzz-compare --seconds 60 --seed 7
  gmem fuzz-compare --programs 100 --json
  gmem fuzz-compare --seed 7 --first 1234 --programs 1 -o difference.jsonl

The first difference is made as small as possible and printed as a trace with the kernel's answers. Programs take at most
64 MiB, run in processes of their own, and never touch hardware poison.
Exit codes: 0 no difference, 1 a difference, 2 bad input or no KVM, 3 a bug in gmem")]
    FuzzCompare(FuzzCompare),
    /// Measure what the model costs, with peers and the real kernel beside it
    #[command(after_help = "\
Examples:
  gmem bench
  gmem bench P1 P3 pages
  gmem bench P3/npt/64
  gmem bench --output measured/
  gmem bench P12 --guest 1T
  gmem bench --json | jq '.cases[] | select(.within == false) | .id'

Times are medians of this thread's processor time, so that other work on the machine disturbs little; where several threads
work together they are of the time that passed. With --output, bench.json and bench.svg are written into that folder.
The real kernel is measured where /dev/kvm has a guest_memfd that can be mapped.
Exit codes: 0 measured, 2 bad input, 3 a bug in gmem")]
    Bench(Bench),
    /// Serve operations on the real kernel, for gmem itself
    #[command(hide = true)]
    LiveWorker(LiveWorker),
    /// Check the simulator against the assertions of the kernel's own selftests
    #[command(after_help = "\
Examples:
  gmem conformance
  gmem conformance GM-016 'GX-*'
  gmem conformance --json | jq '.checks[] | select(.status != \"pass\")'

Every check makes machines of its own; one with several threads runs under many schedules with fixed seeds.
Exit codes: 0 no check failed, 1 one did, 2 an unknown id, 3 a bug in gmem")]
    Conformance(Conformance),
    /// Print completions for a shell
    #[command(after_help = "\
Examples:
  gmem completions bash > ~/.local/share/bash-completion/completions/gmem
  gmem completions zsh > ~/.zfunc/_gmem
  gmem completions fish > ~/.config/fish/completions/gmem.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    #[command(after_help = "\
Examples:
  gmem man | man -l -
  gmem man replay > gmem-replay.1")]
    Man {
        /// The command whose page to print, instead of the one of gmem
        command: Option<String>,
    },
}

/// The arguments of `gmem run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The scenario file
    pub scenario: PathBuf,
    /// Which schedule: the same seed gives the same run
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Who runs next
    #[arg(long, value_enum, default_value_t = Strategy::Random)]
    pub strategy: Strategy,
    /// Follow this recorded schedule (`gmem1:...`) instead of a strategy
    #[arg(long, value_name = "SCHEDULE", conflicts_with_all = ["seed", "strategy"])]
    pub schedule: Option<String>,
    /// With this fact of the machine instead of the scenario's, as in snp=true (repeatable)
    #[arg(long, value_name = "FACT=VALUE")]
    pub machine: Vec<String>,
    /// Under the rules of this Linux release instead of the scenario's
    #[arg(long, value_name = "RELEASE")]
    pub kernel: Option<KernelVersion>,
    /// With this rule of the kernel switched off, as in RC-01 (repeatable)
    #[arg(long, value_name = "ID")]
    pub mutant: Vec<String>,
    /// Write every event to this file, as JSON Lines
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Write what pKVM's hypervisor does to this file, as JSON Lines
    #[arg(long, value_name = "FILE")]
    pub pkvm_trace: Option<PathBuf>,
}

/// The arguments of `gmem kinds`.
#[derive(Debug, Args)]
pub struct Kinds {
    /// The scenario file
    pub scenario: PathBuf,
    /// Show only the step in this line of the file (repeatable)
    #[arg(long, value_name = "N")]
    pub line: Vec<u32>,
    /// Which schedule: the same seed gives the same runs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Who runs next
    #[arg(long, value_enum, default_value_t = Strategy::Random)]
    pub strategy: Strategy,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// A number of worker threads.
fn jobs(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|jobs| (1..=1024).contains(jobs));
    number.ok_or_else(|| "expected a number from 1 to 1024".to_string())
}

/// The arguments of `gmem explore`.
#[derive(Debug, Args)]
pub struct Explore {
    /// The scenario file; with --replay too, for a schedule says in which order tasks run and not what they do
    pub scenario: PathBuf,
    /// How: portfolio, dpor, sleep, dfs, preempt:BOUND, pos, pct:DEPTH, random or urw
    #[arg(long, value_name = "STRATEGY", default_value_t = Choice::Portfolio)]
    pub strategy: Choice,
    /// Switch this rule off; may be given several times
    #[arg(long = "mutant", value_name = "ID")]
    pub mutants: Vec<String>,
    /// What the sampling strategies draw from
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// When to stop: executions such as 100k or 2M, or a time such as 10s or 5m
    #[arg(long, value_name = "BUDGET", default_value_t = Budget::Executions(100_000))]
    pub budget: Budget,
    /// Which reorderings of loads and stores are explored
    #[arg(long, value_name = "MODEL", value_enum, default_value_t = Memory::Sc)]
    pub memory_model: Memory,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = jobs)]
    pub jobs: Option<usize>,
    /// Do not stop at the first failure: one of each kind
    #[arg(long)]
    pub keep_going: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Keep what was done in this file, and go on from there if it exists
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Explain this one schedule (`gmem1:...`) of SCENARIO instead of exploring; a report of a failure ends with the whole command
    #[arg(long, value_name = "SCHEDULE", conflicts_with_all = ["strategy", "seed", "budget", "jobs", "keep_going", "checkpoint"])]
    pub replay: Option<String>,
    /// With this fact of the machine instead of the scenario's, as in snp=true (repeatable)
    #[arg(long, value_name = "FACT=VALUE")]
    pub machine: Vec<String>,
    /// Under the rules of this Linux release instead of the scenario's
    #[arg(long, value_name = "RELEASE")]
    pub kernel: Option<KernelVersion>,
}

/// The arguments of `gmem report`.
#[derive(Debug, Args)]
pub struct Report {
    /// A scenario, or a trace (*.jsonl)
    pub input: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Write Chrome trace events instead of a page: ui.perfetto.dev and chrome://tracing open them
    #[arg(long)]
    pub perfetto: bool,
    /// Which schedule: the same seed gives the same run
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Who runs next
    #[arg(long, value_enum, default_value_t = Strategy::Random)]
    pub strategy: Strategy,
    /// Follow this schedule (`gmem1:...`) instead of a strategy
    #[arg(long, visible_alias = "replay", value_name = "SCHEDULE", conflicts_with_all = ["seed", "strategy"])]
    pub schedule: Option<String>,
    /// With this fact of the machine instead of the scenario's, as in snp=true (repeatable)
    #[arg(long, value_name = "FACT=VALUE")]
    pub machine: Vec<String>,
    /// Under the rules of this Linux release instead of the scenario's or the recording's
    #[arg(long, value_name = "RELEASE")]
    pub kernel: Option<KernelVersion>,
    /// With this rule of the kernel switched off, as in RC-01 (repeatable)
    #[arg(long, value_name = "ID")]
    pub mutant: Vec<String>,
    /// Which reorderings of loads and stores there are
    #[arg(long, value_name = "MODEL", value_enum, default_value_t = Memory::Sc)]
    pub memory_model: Memory,
    /// Steps after which a run is given up
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = value_parser!(u64).range(1..))]
    pub steps: u64,
}

/// The arguments of `gmem step`.
#[derive(Debug, Args)]
pub struct Step {
    /// The scenario file
    pub scenario: PathBuf,
    /// Begin with these decisions (`gmem1:...`)
    #[arg(long, visible_alias = "replay", value_name = "SCHEDULE")]
    pub schedule: Option<String>,
    /// With this fact of the machine instead of the scenario's, as in snp=true (repeatable)
    #[arg(long, value_name = "FACT=VALUE")]
    pub machine: Vec<String>,
    /// Under the rules of this Linux release instead of the scenario's
    #[arg(long, value_name = "RELEASE")]
    pub kernel: Option<KernelVersion>,
    /// With this rule of the kernel switched off, as in RC-01 (repeatable)
    #[arg(long, value_name = "ID")]
    pub mutant: Vec<String>,
    /// Which reorderings of loads and stores there are
    #[arg(long, value_name = "MODEL", value_enum, default_value_t = Memory::Sc)]
    pub memory_model: Memory,
}

/// The arguments of `gmem zoo`.
#[derive(Debug, Args)]
pub struct Zoo {
    /// Which mutants: ids such as RC-01, or the beginning of some and a star [default: all]
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Only list them
    #[arg(long)]
    pub list: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// What the sampling strategies draw from
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Most schedules of a sampling strategy for each mutant
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub schedules: u64,
    /// Random schedules without a mutant of a scenario that is too large to be verified
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub baseline: u64,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = jobs)]
    pub jobs: Option<usize>,
}

/// The arguments of `gmem attack`.
#[derive(Debug, Args)]
pub struct Attack {
    /// The files
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
}

/// What a guest of `gmem workload` runs on.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Platform {
    /// AMD SEV-SNP
    Snp,
    /// Intel TDX
    Tdx,
}

/// The arguments of `gmem workload`.
#[derive(Debug, Args)]
pub struct Workload {
    /// What it runs on
    #[arg(long, value_enum, default_value = "snp")]
    pub platform: Platform,
    /// vCPUs, at most 8
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub vcpus: u32,
    /// Bytes of guest memory, such as 1G
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = guest_size)]
    pub memory: u64,
    /// Bytes that the firmware accepts before the kernel runs [default: half of memory, at most 512M]
    #[arg(long, value_name = "SIZE", value_parser = guest_size)]
    pub firmware_accept: Option<u64>,
    /// Cycles of firmware DMA through bounce buffers (W4)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub bounces: u32,
    /// Blocks of 4M that each vCPU accepts (W7) [default: until none is left]
    #[arg(long, value_name = "N")]
    pub lazy_blocks: Option<u32>,
    /// Conversions of each vCPU at run time (W8) [default: 64]
    #[arg(long, value_name = "N")]
    pub conversions: Option<u32>,
    /// Leave for another kernel in the end (W9)
    #[arg(long)]
    pub kexec: bool,
    /// Terminate the TD before its memory is closed (W11), by a command that was proposed and that no kernel has so far
    #[arg(long)]
    pub terminate: bool,
    /// Leaves of the TDX module meet each other's locks, and are told that they are busy
    #[arg(long)]
    pub contention: bool,
    /// Map memory of the TD by leaves of 2 MiB, which no kernel does so far
    #[arg(long)]
    pub large_pages: bool,
    /// Who runs when is drawn from it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `gmem bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Which goals, such as P3, or which cases of one, such as P3/npt/64 [default: all]
    #[arg(value_name = "GOAL")]
    pub goals: Vec<String>,
    /// Only list them
    #[arg(long)]
    pub list: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// Write bench.json and bench.svg into this folder
    #[arg(short, long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
    /// Small sizes and few samples: to see that everything runs, not how fast
    #[arg(long)]
    pub quick: bool,
    /// Bytes of the guest whose pages are weighed by P12, such as 1T, instead of several sizes
    #[arg(long, value_name = "SIZE", value_parser = guest_size)]
    pub guest: Option<u64>,
    /// The device of the real kernel
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm")]
    pub kvm: PathBuf,
    /// Weigh this case, and nothing else, in this process
    #[arg(long, value_name = "ID", hide = true)]
    pub weigh: Option<String>,
}

/// The arguments of `gmem invariants`.
#[derive(Debug, Args)]
pub struct Invariants {
    /// Which: ids such as INV-201, or the beginning of some and a star [default: all]
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `gmem replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// Traces, or folders with traces named *.jsonl
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long, conflicts_with = "emit")]
    pub json: bool,
    /// Print the traces again, with the simulator's answers for the recorded ones
    #[arg(long)]
    pub emit: bool,
    /// Under the rules of this Linux release instead of the one that was recorded
    #[arg(long, value_name = "RELEASE")]
    pub kernel: Option<KernelVersion>,
    /// Only traces of this family
    #[arg(long, value_name = "F")]
    pub family: Option<String>,
    /// How many differences to show [default: 10, with --json all]
    #[arg(long, value_name = "N")]
    pub differences: Option<usize>,
}

/// The arguments of `gmem record`.
#[derive(Debug, Args)]
pub struct Record {
    /// Traces or scenarios
    #[arg(required = true, value_name = "PROGRAM")]
    pub programs: Vec<PathBuf>,
    /// The folder for the recordings, NAME.jsonl for each program
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// The device
    #[arg(long, value_name = "DEVICE", default_value = "/dev/kvm")]
    pub kvm: PathBuf,
    /// Most bytes that one operation may make the kernel allocate
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    pub memory: u64,
    /// Seconds that the answer to one operation may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = value_parser!(u64).range(1..))]
    pub timeout: u64,
}

/// The arguments of `gmem fuzz-compare`.
#[derive(Debug, Args)]
pub struct FuzzCompare {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Which programs: the same seed gives the same ones
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// So many programs, however long they take
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = value_parser!(u64).range(1..))]
    pub programs: Option<u64>,
    /// The number of the first program
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub first: u64,
    /// Write the smallest differing program to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// The release whose rules the simulator follows, instead of the machine's
    #[arg(long, value_name = "RELEASE")]
    pub kernel: Option<KernelVersion>,
    /// The device
    #[arg(long, value_name = "DEVICE", default_value = "/dev/kvm")]
    pub kvm: PathBuf,
    /// Seconds that the answer to one operation may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = value_parser!(u64).range(1..))]
    pub timeout: u64,
}

/// The arguments of a worker.
#[derive(Debug, Args)]
pub struct LiveWorker {
    /// The device
    #[arg(long)]
    pub kvm: PathBuf,
    /// Say what the machine is, and end
    #[arg(long)]
    pub probe: bool,
    /// Measure what a page of a file of so many costs, and end
    #[arg(long, value_name = "PAGES", value_parser = value_parser!(u64).range(1..=65_536))]
    pub bench: Option<u64>,
    /// Most bytes of one call
    #[arg(long, default_value_t = 64 << 20)]
    pub memory: u64,
    /// Seconds of processor time
    #[arg(long, default_value_t = 60)]
    pub cpu_seconds: u64,
    /// vCPUs run in long mode
    #[arg(long)]
    pub long_mode: bool,
}

/// The arguments of `gmem conformance`.
#[derive(Debug, Args)]
pub struct Conformance {
    /// Which checks: ids such as GM-016, or the beginning of some and a star [default: all]
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// A number of bytes, whole huge pages of them, that a guest can have.
fn guest_size(text: &str) -> Result<u64, String> {
    const HUGE: u64 = 2 << 20;
    let bytes = crate::scenario::words::number(text).ok_or("no number of bytes; 1G or 0x4000_0000 is one")?;
    if bytes.is_multiple_of(HUGE) && (HUGE..=32 << 40).contains(&bytes) {
        Ok(bytes)
    } else {
        Err("a guest has between 2M and 32T, in steps of 2M".to_string())
    }
}

/// Who runs next when several threads can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Any of them, drawn with the seed.
    Random,
    /// The next in turn.
    RoundRobin,
    /// The one that ran last, as long as it can.
    RunToCompletion,
}

impl ValueEnum for Strategy {
    fn value_variants<'a>() -> &'a [Self] {
        &[Strategy::Random, Strategy::RoundRobin, Strategy::RunToCompletion]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Strategy::Random => ("random", "any thread that can run, drawn with the seed"),
            Strategy::RoundRobin => ("round-robin", "the next thread in turn"),
            Strategy::RunToCompletion => ("run-to-completion", "the thread that ran last, as long as it can"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}
