//! The machines on which attacks run, and what differs between them: their steps, answers, rules that can be switched off, and ways to stop somebody.

use super::file::Attack;
use super::snp;
use super::step::{Answer, Step};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Mutant, MutantSet};

/// Which machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Machine {
    /// AMD SEV-SNP: [`sim_coco::snp`].
    Snp,
}

/// An action on one of the machines.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each is the machine's")]
pub enum Action {
    Snp(snp::Action),
}

/// What stops an attack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum StoppedBy {
    /// SNP: a check of the hypervisor's or the guest's access against the reverse map.
    Rmp,
    /// SNP: the firmware, because of the guest's policy.
    Firmware,
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
    pub const ALL: [Machine; 1] = [Machine::Snp];

    /// What there is to know of it.
    pub fn facts(self) -> &'static Facts {
        match self {
            Machine::Snp => &snp::FACTS,
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
        }
    }

    /// The answers to these steps, on a new machine.
    fn perform(self, cx: &Cx<'_>, switches: &[Switch], steps: &[Step]) -> Vec<Answer> {
        let actions = steps.iter().map(|step| &step.action);
        match self {
            Machine::Snp => {
                let own = actions.map(|action| match action {
                    Action::Snp(action) => action,
                });
                snp::perform_all(cx, switches, &own.collect::<Vec<_>>())
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
