//! The registry of mutants: each is found in its scenario, by an invariant that its row names, and nothing is found in the scenario
//! without it. `docs/mutants.md` has the same rows.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use gmem::explore::portfolio::Memory;
use gmem::explore::program::ScenarioProgram;
use gmem::explore::zoo::{self, Effort};
use gmem::mutants::{self, MutantInfo};
use gmem::runner::{self, RunReport};
use gmem::scenario::{Scenario, parse};
use sim_kernel::explore::{Exploration, Options};
use sim_kernel::sched::{Chooser, LogLevel, Pct, Random, Verdict, invariant_of};

/// Schedules within which a mutant is found; the strategies take turns.
const SEEDS: u64 = 2000;
/// Executions within which a reduction, or samples in partial order alone, find what is too rare for that, or what goes on for ever: a single run does not tell
/// that from a long one.
const REDUCED: u64 = 6000;
/// Runs without an end after which samples are given up: they are long, and only a reduction says what they are.
const ENDLESS: u64 = 50;
/// Schedules under which a negative control stays silent.
const SILENT: u64 = 2000;
/// Random schedules of a scenario without mutants, all of them clean.
const CLEAN: u64 = 300;

fn scenario(path: &str) -> Scenario {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios").join(path);
    let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    parse(&path.display().to_string(), &source).unwrap_or_else(|error| panic!("{}", error.render(false)))
}

fn run(scenario: &Scenario, seed: u64) -> RunReport {
    runner::run(scenario, Chooser::Random(Random::new()), seed, LogLevel::Off)
}

/// The strategies that take turns, by their names in an exploration.
const STRATEGIES: [&str; 4] = ["random", "pct:2", "pct:3", "pos"];

/// Runs under the strategy whose turn it is; `steps` is how long a run is about.
fn run_in_turns(scenario: &Scenario, seed: u64, steps: u64) -> RunReport {
    let chooser = match seed % 4 {
        0 => Chooser::Random(Random::new()),
        1 => Chooser::Pct(Box::new(Pct::new(2, steps))),
        2 => Chooser::Pct(Box::new(Pct::new(3, steps))),
        _ => Chooser::Pos(Box::default()),
    };
    runner::run_within((steps * 20).max(100_000), scenario, chooser, seed, LogLevel::Off)
}

/// What went wrong, and the invariant that says so, if it is one.
fn finding(report: &RunReport) -> Option<(Option<String>, String)> {
    // An unfair strategy that never lets the other task on shows nothing.
    if report.is_as_expected() || matches!(report.verdict, Verdict::StepLimit { .. }) {
        return None;
    }
    let id = report.verdict.invariant().map(str::to_string);
    let id = id.or_else(|| report.invariant.as_deref().and_then(invariant_of).map(str::to_string));
    let steps = report.steps.iter().filter_map(|step| Some(format!("line {}: {}", step.line, step.problem.as_ref()?)));
    let verdict = (!report.verdict.is_completed()).then(|| report.verdict.to_string());
    let all = verdict.into_iter().chain(report.invariant.clone()).chain(steps).chain(report.outcome.clone().err());
    Some((id, all.collect::<Vec<_>>().join("; ")))
}

/// Seeds until one of the invariants of the row was broken.
fn seeds_to(info: &MutantInfo, seeds: u64) -> Result<(u64, String), String> {
    let mut scenario = scenario(info.scenario);
    let steps = run(&scenario, 0).scheduling_points;
    scenario.machine.mutants = scenario.machine.mutants.with(info.mutant);
    let mut others = Vec::new();
    let mut endless = 0;
    for seed in 0..seeds {
        let report = run_in_turns(&scenario, seed, steps);
        endless += u64::from(matches!(report.verdict, Verdict::StepLimit { .. }));
        if endless > ENDLESS {
            return Err(format!("{endless} of {} runs had no end", seed + 1));
        }
        let Some((id, text)) = finding(&report) else { continue };
        match id {
            Some(id) if info.caught_by.contains(&id.as_str()) => return Ok((seed + 1, id)),
            _ => others.push(text),
        }
    }
    Err(format!("{} others, such as {:?}", others.len(), others.first()))
}

/// The same for a mutant that takes store buffers to go wrong, which a single run has not.
fn samples_to(info: &MutantInfo, schedules: u64) -> Result<(u64, String), String> {
    let program = zoo::program_of(info)?;
    let options = Options { steps_max: 100_000, memory: program.memory(), ..Options::default() };
    let mut explorations =
        STRATEGIES.map(|name| Exploration::new(&program, name.parse().expect("a strategy"), 0, options));
    let mut others = Vec::new();
    for schedule in 0..schedules {
        let execution = explorations[schedule as usize % STRATEGIES.len()].step().expect("samples have no end");
        match execution.judgement.problem.map(|problem| problem.id.unwrap_or(problem.message)) {
            Some(id) if info.caught_by.contains(&id.as_str()) => return Ok((schedule + 1, id)),
            other => others.extend(other),
        }
    }
    Err(format!("{} others, such as {:?}", others.len(), others.first()))
}

/// Executions of a reduction until one of the invariants of the row was broken, or else of samples in partial order: a race of many steps
/// that a reduction would come to late.
fn reduced_to(info: &MutantInfo) -> Result<(&'static str, u64, String), String> {
    let effort = Effort { seed: 0, search: REDUCED, steps: 20_000_000, schedules: REDUCED, baseline: 0 };
    let program = zoo::program_of(info)?;
    let pos = || zoo::sample(&program, &["pos".parse().expect("a strategy")], &effort);
    let mut others = Vec::new();
    for (name, search) in [("dpor", &(|| zoo::search(&program, &effort)) as &dyn Fn() -> _), ("pos", &pos)] {
        let search = search();
        match search.caught {
            Some(id) if info.caught_by.contains(&id.as_str()) => return Ok((name, search.executions, id)),
            other => others.push(format!("{other:?} in {} executions of {name}", search.executions)),
        }
    }
    Err(others.join(", "))
}

#[test]
fn mm_151_every_mutant_is_found_by_an_invariant_of_its_row() {
    let only = std::env::var("MUTANT").ok();
    let wanted = |info: &&MutantInfo| only.as_deref().is_none_or(|id| id == info.id()) && !info.is_negative_control();
    let rows: Vec<_> = mutants::all().filter(wanted).collect();
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(BTreeMap::new());
    // A row at a time for each processor: what one finds is nothing to another.
    let work = || {
        while let Some((at, info)) = rows.get(next.fetch_add(1, Ordering::Relaxed)).map(|info| (info.id(), info)) {
            let found = if info.memory == Memory::Sc { seeds_to(info, SEEDS) } else { samples_to(info, SEEDS) };
            let found = found.map(|(seeds, id)| (STRATEGIES[(seeds as usize - 1) % 4], seeds, id));
            let found = found
                .or_else(|sampled| reduced_to(info).map_err(|others| format!("sampled: {sampled}; reduced: {others}")));
            match found {
                Ok((strategy, executions, id)) => {
                    println!("{:8} {executions:5} {strategy:8} {id:12} {}", info.id(), info.scenario);
                }
                Err(others) => {
                    missed.lock().unwrap().insert(at, format!("{}: {}: {others}", info.id(), info.scenario));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    let missed: Vec<String> = missed.into_inner().unwrap().into_values().collect();
    assert!(missed.is_empty(), "not found within {SEEDS} schedules and {REDUCED} executions:\n{}", missed.join("\n"));
}

#[test]
fn negative_controls_stay_silent() {
    for info in mutants::all().filter(|info| info.is_negative_control()) {
        let mut scenario = scenario(info.scenario);
        scenario.machine.mutants = scenario.machine.mutants.with(info.mutant);
        let steps = run(&scenario, 0).scheduling_points;
        for seed in 0..SILENT {
            assert_eq!(finding(&run_in_turns(&scenario, seed, steps)), None, "{}: seed {seed}", info.id());
        }
    }
}

/// The MMU's table of races: each row, and the name of what goes wrong without its mechanism. R21, R34 and R68 have none: without theirs nothing does.
#[rustfmt::skip]
const RACES: &[(&str, &str)] = &[
    ("R01", "STALE_CHECK_SKIPPED"), ("R02", "SEQ_ONLY"), ("R03", "INPROGRESS_ONLY"), ("R04", "END_ORDER_SWAPPED"),
    ("R05", "SEQ_LATE"), ("R06", "RANGE_RESET"), ("R07", "RANGE_LATE"), ("R08", "FLUSH_MISSING"),
    ("R09", "YIELD_NO_FLUSH"), ("R10", "YIELD_STALE_ITER"), ("R11", "YIELD_LIVELOCK"), ("R12", "PLAIN_STORE_READLOCK"),
    ("R13", "LOST_LINK"), ("R14", "NO_FREEZE_CHILDREN"), ("R15", "DOUBLE_RECURSE"), ("R16", "FREEZE_NO_LOOP"),
    ("R17", "FREE_NO_RCU"), ("R18", "RCU_BEFORE_FLUSH"), ("R19", "REMOVED_CHILD_STORE"), ("R20", "VOLATILE_IGNORED"),
    ("R22", "MARK_BEFORE_W"), ("R23", "COLLECT_READLOCK"), ("R24", "COLLECT_NO_FLUSH"), ("R25", "FLUSH_BY_SPTE"),
    ("R26", "PROTECT_THEN_TAKE"), ("R27", "ENABLE_NO_SRCU"), ("R28", "ENABLE_NO_FLUSH"), ("R29", "FAST_HUGE_LOG"),
    ("R30", "PML_CLEAR_ALL"), ("R31", "PML_NO_FULL"), ("R32", "SPLIT_BAD_CHILD"), ("R33", "SPLIT_PLAIN"),
    ("R35", "RECOVER_NO_FLUSH"), ("R36", "RECOVER_IGNORES_MIXED"), ("R37", "ATTR_NO_NEIGHBOUR"), ("R38", "ATTR_NO_SEQ"),
    ("R39", "MIXED_LATE"), ("R40", "ATTR_FILTER_INVERTED"), ("R41", "DELETE_ZAP_BEFORE_SYNC"), ("R42", "INVALID_AS_NOSLOT"),
    ("R43", "LAZY_ROOT_ZAP"), ("R44", "OBSOLETE_LATE"), ("R45", "ROOT_NO_RECHECK"), ("R46", "NOTIFIER_SKIPS_INVALID"),
    ("R47", "ROOT_GET_PLAIN"), ("R48", "ROOT_NO_RESEARCH"), ("R49", "DEKKER_BROKEN"), ("R50", "WAIT_ONLY_IN_GUEST"),
    ("R51", "CLEAR_AFTER_ACT"), ("R52", "MIGRATE_NO_FLUSH"), ("R53", "ASID_REUSE"), ("R54", "ROOTLOAD_NO_FLUSH"),
    ("R55", "FLUSH_MIDWALK"), ("R56", "TRACK_NO_FLUSH"), ("R57", "AGE_PLAIN_STORE"), ("R58", "MIRROR_NO_FREEZE"),
    ("R59", "MIRROR_STUCK_FROZEN"), ("R60", "TRACK_SKIPPED"), ("R61", "TRACK_NO_KICK"), ("R62", "EXT_FREE_EARLY"),
    ("R63", "POPULATE_NO_LOCK"), ("R64", "GMEM_DEAD_FILE"), ("R65", "MMIO_GEN_IGNORED"), ("R66", "MMIO_WRAP"),
    ("R67", "LINK_BEFORE_INIT"), ("R69", "REMAP_NO_ZAP"), ("R70", "SVE_DROPPED"),
];

#[test]
fn every_race_of_the_mmu_has_a_mutant_or_a_reason() {
    for (row, name) in RACES {
        let mutant = mutants::find(name);
        let absent = mutants::ABSENT.iter().find(|absent| absent.id == *name);
        match (mutant, absent) {
            (Some(info), None) => assert_eq!(mutants::find(row).map(MutantInfo::id), Some(info.id()), "{row} {name}"),
            (None, Some(absent)) => assert!(absent.reason.contains(row), "{row} {name}: {}", absent.reason),
            (None, None) => panic!("{row} {name}: neither a mutant nor a reason"),
            (Some(_), Some(_)) => panic!("{row} {name}: both a mutant and a reason why there is none"),
        }
    }
}

/// Each of these is a mutant or a row without one, and not both.
fn assert_accounted_for(ids: impl Iterator<Item = String>) {
    for id in ids {
        let absent = mutants::ABSENT.iter().any(|absent| absent.id == id);
        assert!(mutants::find(&id).is_some() != absent, "{id}: a mutant, or a reason why there is none");
    }
}

/// SEV-SNP's table of races, R1 to R27, and the defects of Linux that are about it.
#[test]
fn every_race_and_defect_of_sev_snp_has_a_mutant_or_a_reason() {
    let races = (1..=27).map(|row| format!("SNP-R{row:02}"));
    let defects = [28].into_iter().chain(40..=50).map(|row| format!("BUG-{row}"));
    assert_accounted_for(races.chain(defects));
}

/// pKVM's table of races, K1 to K17, and the defects of hypervisors and of arm64 that it could have.
#[test]
fn every_race_and_defect_of_pkvm_has_a_mutant_or_a_reason() {
    let races = (1..=17).map(|row| format!("PKVM-K{row:02}"));
    let defects = [36, 74, 82, 83, 84, 86].map(|row| format!("BUG-{row}"));
    assert_accounted_for(races.chain(defects));
}

/// TDX's table of races, R1 to R31, and the defects of Linux that are about it.
#[test]
fn every_race_and_defect_of_tdx_has_a_mutant_or_a_reason() {
    let races = (1..=31).map(|row| format!("TDX-R{row:02}"));
    let defects = [26].into_iter().chain(51..=60).map(|row| format!("BUG-{row}"));
    assert_accounted_for(races.chain(defects));
}

/// What `sim-coco` can switch off at EL2, and the rows: KVM brings it about, or there is a reason, with a file that shows what the rule is for.
#[test]
fn every_rule_of_the_hypervisor_has_a_row_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for mutant in sim_coco::pkvm::mutants::ALL {
        let row = mutants::find(mutant.id());
        let absent = mutants::ABSENT.iter().find(|absent| absent.id == mutant.id());
        match (row, absent) {
            (Some(row), None) => assert_eq!((row.mutant, row.is_negative_control()), (mutant, false)),
            (None, Some(absent)) => {
                let file = absent.reason.split_whitespace().find(|word| word.contains('/'));
                let file = file.unwrap_or_else(|| panic!("{}: no file shows what it stops", absent.id));
                let file = root.join(file.trim_end_matches(';'));
                let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                let name = mutant.id().trim_start_matches("PKVM-").replace('-', "_");
                let shows = text.contains(mutant.id()) || text.contains(&format!("mutants::{name}"));
                assert!(shows, "{}: not in {}", absent.id, file.display());
            }
            _ => panic!("{}: a row or a reason, not both", mutant.id()),
        }
    }
}

/// Each rule of the module that can be switched off is a row, or has a reason why it is none; and nothing else is called as they are.
#[test]
fn every_mutant_of_the_tdx_module_has_a_row_or_a_reason() {
    let of_module: Vec<&str> = sim_coco::tdx::mutants::ALL.iter().map(|mutant| mutant.id()).collect();
    for id in &of_module {
        let absent = mutants::ABSENT.iter().any(|absent| absent.id == *id);
        let row = mutants::all().any(|info| info.id() == *id);
        assert!(row != absent, "{id}: a row, or a reason why there is none");
    }
    let is_race = |id: &str| id.strip_prefix("TDX-R").is_some_and(|rest| rest.parse::<u8>().is_ok());
    let named = mutants::all().map(MutantInfo::id).chain(mutants::ABSENT.iter().map(|absent| absent.id));
    let named = named.filter(|id| id.starts_with("TDX-") && !is_race(id));
    let strangers: Vec<&str> = named.filter(|id| !of_module.contains(id)).collect();
    assert!(strangers.is_empty(), "the module has no {strangers:?}");
}

/// Executions of each strategy for a scenario in which leaves meet locks.
const STORMS: u64 = 100;

/// Where every leaf can be told that a lock is busy, every operation ends all the same: what goes on for long is judged as an explorer does, under a fair schedule.
#[test]
fn storms_of_busy_locks_end() {
    let all = zoo::baseline().into_iter().map(|path| (path, scenario(path)));
    let contended: Vec<(&str, Scenario)> = all.filter(|(_, scenario)| scenario.machine.tdx_contention).collect();
    assert!(contended.iter().any(|(path, _)| *path == "tdx/busy.toml"));
    for (path, scenario) in &contended {
        let program = ScenarioProgram::new(scenario);
        let effort = Effort { seed: 0, search: STORMS, steps: 20_000_000, schedules: STORMS, baseline: 0 };
        for name in STRATEGIES {
            let sample = zoo::sample(&program, &[name.parse().expect("a strategy")], &effort);
            assert_eq!((sample.caught, sample.executions), (None, STORMS), "{path}: {name}");
        }
        let search = zoo::search(&program, &effort);
        assert_eq!(search.caught, None, "{path}: {} executions of dpor", search.executions);
        assert!(search.executions == STORMS || search.exhausted, "{path}: {search:?}");
    }
}

/// Scenarios with a larger bound are not searched to their end here, only for [`BEGUN`] executions.
const SEARCHED: u64 = 10_000;
const BEGUN: u64 = 1_000;

/// Scenario and bound of each row of the table of verified scenarios.
fn verified() -> Vec<(String, Option<u64>)> {
    let page = include_str!("../../docs/mutants.md");
    let (_, rest) = page.split_once("<!-- verified -->").expect("the table begins");
    let (table, _) = rest.split_once("<!-- /verified -->").expect("the table ends");
    let rows = table.lines().filter(|line| line.starts_with("| [")).map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (_, link) = cells[1].split_once("](../scenarios/").expect("a link to a scenario");
        let bound = match cells[2] {
            "no end" | "not measured" => None,
            number => Some(number.replace(',', "").parse().expect("a number of executions")),
        };
        (link.trim_end_matches(')').to_string(), bound)
    });
    rows.collect()
}

#[test]
fn scenarios_are_verified_within_the_executions_of_their_rows() {
    let rows = verified();
    let scenarios = zoo::scenarios_of(mutants::all())
        .into_iter()
        .filter(|path| !path.starts_with("mmu/") && !path.starts_with("snp/") && !path.starts_with("tdx/"))
        .filter(|path| !path.starts_with("pkvm/"));
    assert!(rows.iter().map(|(path, _)| path.as_str()).eq(scenarios), "each scenario has a row, in order");
    for (path, bound) in rows {
        let small = bound.filter(|bound| *bound <= SEARCHED);
        let effort = Effort { seed: 0, search: small.unwrap_or(BEGUN), steps: 5_000_000, schedules: 0, baseline: 0 };
        let search = zoo::search(&ScenarioProgram::new(&scenario(&path)), &effort);
        assert_eq!(search.caught, None, "{path}");
        let executions = search.executions;
        assert!(search.exhausted || small.is_none(), "{path}: {executions} executions, {bound:?} in the table");
    }
}

#[test]
fn without_a_mutant_every_scenario_is_clean_and_every_outcome_comes_out() {
    let scenarios: BTreeMap<_, _> = zoo::baseline().into_iter().map(|path| (path, scenario(path))).collect();
    for (path, scenario) in scenarios {
        assert!(scenario.teaches.is_some(), "{path} teaches nothing");
        let steps = run(&scenario, 0).scheduling_points;
        let mut missing: Vec<_> = (0..scenario.outcomes.len()).collect();
        for seed in 0..SEEDS {
            if seed >= CLEAN && missing.is_empty() {
                break;
            }
            let report = run_in_turns(&scenario, seed, steps);
            assert_eq!(finding(&report), None, "{path}: seed {seed}");
            let answer =
                |label: &str| report.steps.iter().find(|s| s.label.as_deref() == Some(label)).map(|s| &s.answer);
            missing.retain(|&i| !scenario.outcomes[i].holds(&answer));
        }
        assert!(missing.is_empty(), "{path}: outcomes {missing:?} never came out");
    }
}

/// A guest's own tables lead to the page, and no TLB has it when its store is recorded.
const PAGED_STORE: &str = r#"
[scenario]
teaches = "stores are recorded by the frame that the walk found"
[machine]
stage2 = "ept"
pml = true
tlb = "none"
mutants = ["CLEAR_AFTER_ACT"]
[setup]
run = """
create_vm vm0
create_vcpu vm0 c0 paging=paged
mmap m0 len=64K
mmap m1 len=8K
set_user_memory_region vm0 slot=0 gpa=0x200000 size=64K hva=m0
set_user_memory_region vm0 slot=1 gpa=0x400000 size=8K hva=m1
host_write64 m0 0x0 0x201007
host_write64 m0 0x1000 0x202007
host_write64 m0 0x2000 0x203007
host_write64 m0 0x3008 0x400007
guest_paged c0 m0 cr3=0x200000 access=w gva=0x1000 value=1
set_user_memory_region vm0 slot=1 flags=log_dirty gpa=0x400000 size=8K hva=m1
set_user_memory_region vm0 slot=1 gpa=0x400000 size=8K hva=m1
"""
[thread.vcpu]
run = """
guest_paged c0 m0 cr3=0x200000 access=w gva=0x1000 value=2
"""
[thread.vmm]
run = """
set_user_memory_region vm0 slot=1 flags=log_dirty gpa=0x400000 size=8K hva=m1
"""
"#;

#[test]
fn a_store_with_paging_is_recorded_without_a_tlb() {
    let scenario = parse("paged-store.toml", PAGED_STORE).unwrap_or_else(|error| panic!("{}", error.render(false)));
    let steps = run(&scenario, 0).scheduling_points;
    let lost =
        |seed| finding(&run_in_turns(&scenario, seed, steps)).is_some_and(|(_, text)| text.contains("has written"));
    assert!((0..4 * SEEDS).any(lost), "no lost store is found");
}
