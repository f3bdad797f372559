//! The machines on which attacks run, and what differs between them: their steps, answers, rules that can be switched off, and ways to stop somebody.

use super::file::Attack;
use super::step::{Answer, Step};
use super::{pkvm, snp, tdx};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Mutant, MutantSet};

/// Which machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Machine {
    /// AMD SEV-SNP: [`sim_coco::snp`].
    Snp,
    /// Intel TDX: [`sim_coco::tdx`].
    Tdx,
    /// pKVM on Arm: [`sim_coco::pkvm`].
    Pkvm,
}

/// An action on one of the machines.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each is the machine's")]
pub enum Action {
    Snp(snp::Action),
    Tdx(tdx::Action),
    Pkvm(pkvm::Action),
}

/// What stops an attack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum StoppedBy {
    /// SNP: a check of the hypervisor's or the guest's access against the reverse map.
    Rmp,
    /// SNP: the firmware, because of the guest's policy.
    Firmware,
    /// TDX: the module refuses to do it, or does it so that nothing comes of it.
    Module,
    /// TDX: the processor has no translation for the guest's access.
    Processor,
    /// TDX: lines of memory that are not the TD's give it poison.
    Memory,
    /// pKVM: the hypervisor, by what it maps for whom and by the calls that it refuses.
    Hypervisor,
    /// pKVM: a page has nothing in it when it comes to the host.
    Cleared,
    /// The guest hears of it, and ends.
    Guest,
    /// Nothing: it is outside of what the machine protects.
    Nothing,
}

/// A way in which a machine stops somebody.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The way.
    pub by: StoppedBy,
    /// In a file.
    pub word: &'static str,
    /// In a report, in the specification's words.
    pub label: &'static str,
    /// Whether this is an answer by which it stops something.
    pub stops: fn(Answer) -> bool,
}

/// The way of what is not stopped, on every machine.
static NOTHING: Way = Way { by: StoppedBy::Nothing, word: "nothing", label: "outside the model", stops: |_| false };

/// Something about the machine or its guests that is not so if a file does not ask for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Switch {
    /// SNP: the guests' policy forbids that pages are moved (bit 25).
    ForbidsMoves,
    /// TDX: an access to a page that the guest has not accepted is a TD exit, not `#VE`.
    SeptVeDisable,
    /// TDX: stores stay in caches until something writes them back.
    Caches,
    /// TDX: a partial write of the host to a line of a TD poisons it.
    PartialWriteErratum,
    /// TDX: the TD `h` is still being built.
    Building,
}

/// What there is to know of a machine before anything runs on it.
#[derive(Debug)]
pub struct Facts {
    /// In a file.
    pub name: &'static str,
    /// Ways to stop somebody.
    pub ways: &'static [Way],
    /// Answers of this machine, by their words.
    pub answers: &'static [(&'static str, Answer)],
    /// Answers that no table has.
    pub other_answer: fn(&str) -> Option<Answer>,
    /// How these are written.
    pub other_answers: &'static str,
    /// Rules that can be switched off.
    pub mutants: &'static [Mutant],
    /// Keys of a file, and what a machine is whose switch is off.
    pub switches: &'static [(&'static str, Switch, &'static str)],
    /// Every form of a step, with what it does.
    pub usage: &'static [(&'static str, &'static str)],
}

impl Machine {
    /// All of them.
    pub const ALL: [Machine; 3] = [Machine::Snp, Machine::Tdx, Machine::Pkvm];

    /// What there is to know of it.
    pub fn facts(self) -> &'static Facts {
        match self {
            Machine::Snp => &snp::FACTS,
            Machine::Tdx => &tdx::FACTS,
            Machine::Pkvm => &pkvm::FACTS,
        }
    }

    /// Its ways to stop somebody, and that nothing does.
    pub fn ways(self) -> impl Iterator<Item = &'static Way> {
        self.facts().ways.iter().chain([&NOTHING])
    }

    /// What a step says.
    ///
    /// # Errors
    /// What was expected instead.
    pub(super) fn action(self, text: &str) -> Result<Action, String> {
        match self {
            Machine::Snp => snp::Action::parse(text).map(Action::Snp),
            Machine::Tdx => tdx::Action::parse(text).map(Action::Tdx),
            Machine::Pkvm => pkvm::Action::parse(text).map(Action::Pkvm),
        }
    }

    /// The names of pages in a step.
    pub(super) fn pages_of(self, text: &str) -> impl Iterator<Item = &str> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let is_literal = |token: &str| token.starts_with(|first: char| first.is_ascii_lowercase());
        let is_form = |form: &&str| {
            let mut tokens = form.split(' ').take_while(|token| !token.starts_with('[')).zip(&words);
            tokens.all(|(token, word)| !is_literal(token) || token == *word)
        };
        let form = self.facts().usage.iter().map(|(form, _)| *form).find(is_form).unwrap_or_default();
        let named: Vec<&str> =
            form.split(' ').zip(words).filter(|(token, _)| *token == "PAGE").map(|(_, word)| word).collect();
        named.into_iter().map(|word| word.split('+').next().unwrap_or(word))
    }

    /// The answers to these steps, on a new machine.
    fn perform(self, cx: &Cx<'_>, switches: &[Switch], steps: &[Step]) -> Vec<Answer> {
        let actions = steps.iter().map(|step| &step.action);
        match self {
            Machine::Snp => {
                let own = actions.filter_map(|action| if let Action::Snp(own) = action { Some(own) } else { None });
                snp::perform_all(cx, switches, own)
            }
            Machine::Tdx => {
                let own = actions.filter_map(|action| if let Action::Tdx(own) = action { Some(own) } else { None });
                tdx::perform_all(cx, switches, own)
            }
            Machine::Pkvm => {
                let own = actions.filter_map(|action| if let Action::Pkvm(own) = action { Some(own) } else { None });
                pkvm::perform_all(cx, own)
            }
        }
    }
}

/// A step, and what came of it.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The step.
    pub step: Step,
    /// What had to come of it on this machine.
    pub expected: Answer,
    /// What came of it.
    pub answer: Answer,
}

impl Ran {
    /// Whether that is what had to.
    pub fn is_as_expected(&self) -> bool {
        self.answer == self.expected
    }
}

/// An attack on both machines.
#[derive(Clone, Debug)]
pub struct Report {
    /// On a machine with all checks.
    pub with: Vec<Ran>,
    /// On the one without the check; empty if nothing stops the attack.
    pub without: Vec<Ran>,
}

impl Report {
    /// Whether every step came out as it had to.
    pub fn is_as_expected(&self) -> bool {
        self.with.iter().chain(&self.without).all(Ran::is_as_expected)
    }
}

/// Runs an attack.
pub fn run(attack: &Attack) -> Report {
    let without = if attack.has_other_machine() { run_on(attack, true) } else { Vec::new() };
    Report { with: run_on(attack, false), without }
}

/// Without a check to switch off, it is the file's switches that are off on the weak machine.
fn run_on(attack: &Attack, weak: bool) -> Vec<Ran> {
    let (attack, mut ran) = (attack.clone(), Vec::new());
    Sim::sequential().solo(|cx| {
        let mut switches = attack.switches.clone();
        match attack.mutant {
            Some(mutant) if weak => cx.set_mutants(MutantSet::EMPTY.with(mutant)),
            None if weak => switches.clear(),
            _ => {}
        }
        let answers = attack.machine.perform(cx, &switches, &attack.steps);
        ran = attack
            .steps
            .into_iter()
            .zip(answers)
            .map(|(step, answer)| {
                let expected = if weak { step.without.unwrap_or(step.expected) } else { step.expected };
                Ran { step, expected, answer }
            })
            .collect();
    });
    ran
}
