//! One scenario on every kind of machine that protects guests, and what each of them did for it, step by step.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the kinds, and a run on each |
//! | `tally.rs` | what the log of a run says of each step, as counts |
//!
//! Only the facts of the machine differ: scenarios that mean to run everywhere say what they want in the words that all kinds share (`create_protected_vm`,
//! `add_guest_memory`, `launch`, `guest_convert`), and expect what holds everywhere.

mod tally;

pub use tally::{Count, Group, Step, Tally};

use crate::cli::args::Strategy;
use crate::kvm::config::MachineConfig;
use crate::runner::{self, RunReport};
use crate::scenario::Scenario;
use sim_kernel::sched::LogLevel;

/// A kind of machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// In a word.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// The facts that make it, as `gmem run --machine` has them.
    pub facts: &'static [&'static str],
}

/// Every kind, the one without hardware first.
pub const KINDS: [Kind; 5] = [
    Kind { name: "software", title: "software-protected: KVM's bookkeeping alone", facts: &[] },
    Kind { name: "SNP", title: "AMD SEV-SNP: encryption, and a table of owners", facts: &["snp=true", "stage2=npt"] },
    Kind {
        name: "TDX",
        title: "Intel TDX: encryption, and tables that the module keeps",
        facts: &["tdx=true", "stage2=ept"],
    },
    Kind { name: "pKVM", title: "pKVM on Arm, as in Linux 7.3: ownership of pinned memory", facts: &["pkvm=true"] },
    Kind {
        name: "pKVM+gmem",
        title: "pKVM with guest_memfd, as it is proposed",
        facts: &["pkvm=true", "pkvm_gmem=true"],
    },
];

impl Kind {
    /// The machine of this kind that is otherwise like `base`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn machine(&self, base: &MachineConfig) -> Result<MachineConfig, String> {
        let mut machine = base.clone();
        self.facts.iter().try_for_each(|fact| machine.state_text(fact))?;
        machine.check()?;
        Ok(machine)
    }
}

/// A run of the scenario on one kind.
#[derive(Clone, Debug)]
pub struct Run {
    /// On what.
    pub kind: Kind,
    /// What came of it.
    pub report: RunReport,
    /// What was done, step by step.
    pub tally: Tally,
}

/// Runs a scenario once on each kind, with the same strategy and seed.
///
/// ```
/// use gmem::cli::args::Strategy;
/// use gmem::{kinds, scenario};
/// let scenario = scenario::parse("write.toml", r#"
/// [machine]
/// memory = "64M"
/// [setup]
/// run = """
/// create_protected_vm vm0
/// create_vcpu vm0 c0
/// add_guest_memory vm0 0 0x200000 16K m0 g0
/// launch vm0 0x200000 16K m0
/// guest_write c0 0x200000 7 => hlt
/// """
/// "#).unwrap();
/// let runs = kinds::run(&scenario, Strategy::Random, 0).unwrap();
/// assert!(runs.iter().all(|run| run.report.is_as_expected()));
/// ```
///
/// # Errors
/// If the scenario states facts with which there is no machine of a kind, or says itself of which kind its machine is.
pub fn run(scenario: &Scenario, strategy: Strategy, seed: u64) -> Result<Vec<Run>, String> {
    let base = &scenario.machine;
    for (fact, is_stated) in [("snp", base.snp), ("tdx", base.tdx), ("pkvm", base.pkvm)] {
        if is_stated {
            return Err(format!("the scenario's machine has {fact} = true; one for every kind says nothing of that"));
        }
    }
    let run_on = |kind: Kind| {
        let machine =
            kind.machine(&scenario.machine).map_err(|error| format!("no machine of kind {}: {error}", kind.name))?;
        let scenario = Scenario { machine, ..scenario.clone() };
        let chooser = runner::chooser(strategy, None);
        let (report, tally) =
            runner::run_looked(&scenario, chooser, seed, LogLevel::Notes, |sim| tally::of(sim, &scenario));
        Ok(Run { kind, report, tally })
    };
    KINDS.into_iter().map(run_on).collect()
}
