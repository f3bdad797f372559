//! Reads the file of an attack. Every mistake has its place; the first ends the reading.

use super::machine::{Machine, StoppedBy, Switch, Way};
use super::step::Step;
use crate::scenario::Diagnostic;
use crate::scenario::offsets::offsets;
use sim_kernel::Mutant;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// An attack.
#[derive(Clone, Debug)]
pub struct Attack {
    /// The file's name without folder and ending.
    pub name: String,
    /// A sentence.
    pub teaches: String,
    /// Where it runs.
    pub machine: Machine,
    /// What stops it.
    pub stopped_by: &'static Way,
    /// The check that does.
    pub check: Option<String>,
    /// The rule that is off on the machine of the second answers.
    pub mutant: Option<Mutant>,
    /// What is switched on. If there is no such rule, all of it is off on the machine of the second answers.
    pub switches: Vec<Switch>,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Attack {
    /// Whether there is a machine of the second answers.
    pub fn has_other_machine(&self) -> bool {
        self.stopped_by.by != StoppedBy::Nothing
    }
}

/// What a machine has memory for.
const STEPS_MAX: usize = 200;
/// The same of names: each has 2 MiB to itself.
const PAGES_MAX: usize = 20;

/// Keys that a file may have, whatever the machine.
const KEYS: [&str; 6] = ["machine", "teaches", "stopped_by", "check", "mutant", "run"];

/// Parses an attack; `file` is its name in errors.
///
/// # Errors
/// The first mistake, with its place and what was expected there. Also if the label is not what the answers say.
pub fn parse(file: &str, source: &str) -> Result<Attack, Box<Diagnostic>> {
    Reader { file: file.into(), source: source.into() }.attack(source).map_err(Box::new)
}

struct Reader {
    file: Arc<str>,
    source: Arc<str>,
}

type Node<'s> = Spanned<DeValue<'s>>;

impl Reader {
    fn error(&self, span: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> Diagnostic {
        Diagnostic::new((&self.file, &self.source), span, title, label)
    }

    fn attack(&self, source: &str) -> Result<Attack, Diagnostic> {
        let document = DeTable::parse(source)
            .map_err(|error| self.error(error.span().unwrap_or(0..0), "this is not TOML", error.message()))?;
        let root = document.get_ref();
        if let Some(key) = root.keys().find(|key| key.get_ref() != "attack") {
            let title = format!("an attack has no section `{}`", key.get_ref());
            return Err(self.error(key.span(), title, "expected [attack]"));
        }
        let node = root.get("attack").ok_or_else(|| self.error(0..0, "there is no attack", "expected [attack]"))?;
        let Some(table) = node.get_ref().as_table() else {
            return Err(self.error(node.span(), "this is no attack", "expected a table [attack]"));
        };
        let needed = |key: &str| {
            let missing = || self.error(node.span(), format!("[attack] has no `{key}`"), format!("expected `{key}`"));
            table.get(key).ok_or_else(missing)
        };
        let machine = self.machine(needed("machine")?)?;
        let switches = machine.facts().switches;
        let known: Vec<&str> = KEYS.into_iter().chain(switches.iter().map(|(key, ..)| *key)).collect();
        if let Some(key) = table.keys().find(|key| !known.contains(&key.get_ref().as_ref())) {
            let title = format!("[attack] has no key `{}`", key.get_ref());
            return Err(self.error(key.span(), title, format!("expected one of {}", known.join(", "))));
        }
        let label = needed("stopped_by")?;
        let word = self.text(label)?;
        let stopped_by = machine.ways().find(|way| way.word == word).ok_or_else(|| {
            let words: Vec<_> = machine.ways().map(|way| format!("\"{}\"", way.word)).collect();
            self.error(label.span(), "nobody can stop it so", format!("expected one of {}", words.join(", ")))
        })?;
        let mut on = Vec::new();
        for (key, switch, _) in switches {
            if let Some(node) = table.get(*key)
                && self.switch(node)?
            {
                on.push(*switch);
            }
        }
        let attack = Attack {
            name: std::path::Path::new(&*self.file)
                .file_stem()
                .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
            teaches: self.text(needed("teaches")?)?.to_string(),
            machine,
            stopped_by,
            check: table.get("check").map(|node| self.text(node).map(str::to_string)).transpose()?,
            mutant: table.get("mutant").map(|node| self.mutant(machine, node)).transpose()?,
            switches: on,
            steps: self.steps(machine, needed("run")?)?,
        };
        self.consistent(&attack, label.span())?;
        Ok(attack)
    }

    /// The label, the switch and the answers say the same.
    fn consistent(&self, attack: &Attack, span: Range<usize>) -> Result<(), Diagnostic> {
        let stops = |step: &Step| step.without.is_some() && (attack.stopped_by.stops)(step.expected);
        let problem = match attack.stopped_by.by {
            StoppedBy::Nothing if attack.mutant.is_some() || attack.steps.iter().any(|step| step.without.is_some()) => {
                "nothing stops it, so there is nothing to switch off and no second answer"
            }
            StoppedBy::Nothing => return Ok(()),
            _ if attack.mutant.is_none() && attack.switches.is_empty() => {
                "expected `mutant`: the check to switch off, or a switch of the machine"
            }
            _ if !attack.steps.iter().any(stops) => "expected a step that it stops, with another answer after `|`",
            _ => return Ok(()),
        };
        Err(self.error(span, "the steps do not show that", problem))
    }

    fn machine(&self, node: &Node<'_>) -> Result<Machine, Diagnostic> {
        let name = self.text(node)?;
        Machine::ALL.into_iter().find(|machine| machine.facts().name == name).ok_or_else(|| {
            let names = Machine::ALL.map(|machine| format!("\"{}\"", machine.facts().name)).join(", ");
            self.error(node.span(), "there is no such machine", format!("expected one of {names}"))
        })
    }

    fn switch(&self, node: &Node<'_>) -> Result<bool, Diagnostic> {
        let on = node.get_ref().as_bool();
        on.ok_or_else(|| self.error(node.span(), "this is no switch", "expected true or false"))
    }

    fn text<'t>(&self, node: &'t Node<'_>) -> Result<&'t str, Diagnostic> {
        node.get_ref().as_str().ok_or_else(|| self.error(node.span(), "this is no text", "expected text in quotes"))
    }

    fn mutant(&self, machine: Machine, node: &Node<'_>) -> Result<Mutant, Diagnostic> {
        let (id, mutants) = (self.text(node)?, machine.facts().mutants);
        mutants.iter().copied().find(|mutant| mutant.id() == id).ok_or_else(|| {
            let ids: Vec<_> = mutants.iter().map(|mutant| mutant.id()).collect();
            let expected = format!("expected one of {}", ids.join(", "));
            self.error(node.span(), format!("the machine has no rule `{id}`"), expected)
        })
    }

    fn steps(&self, machine: Machine, node: &Node<'_>) -> Result<Vec<Step>, Diagnostic> {
        let text = self.text(node)?;
        let span = node.span();
        let map = offsets(self.source.get(span.clone()).unwrap_or_default(), text);
        let place = |byte: usize| span.start + map.as_ref().and_then(|map| map.get(byte).copied()).unwrap_or(0);
        let (mut steps, mut start) = (Vec::new(), 0);
        for line in text.split('\n') {
            let code = line.split('#').next().unwrap_or_default();
            if !code.trim().is_empty() {
                let at = place(start + code.len() - code.trim_start().len());
                let end = place(start + code.trim_end().len());
                let number = self.source[..at].matches('\n').count() + 1;
                let wrong = |problem: String| self.error(at..end, "this is no step", problem);
                steps.push(Step::parse(machine, code.trim(), number).map_err(wrong)?);
            }
            start += line.len() + 1;
        }
        if steps.is_empty() {
            return Err(self.error(span, "the attack does nothing", "expected steps, one a line"));
        }
        let pages: BTreeSet<&str> = steps.iter().flat_map(|step| machine.pages_of(&step.text)).collect();
        if steps.len() > STEPS_MAX || pages.len() > PAGES_MAX {
            let most = format!("expected at most {STEPS_MAX} steps, and {PAGES_MAX} names of pages");
            return Err(self.error(span, "the attack is too long", most));
        }
        Ok(steps)
    }
}
