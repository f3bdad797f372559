//! Reads the file of an attack. Every mistake has its place; the first ends the reading.

use super::step::{Action, Answer, Step};
use crate::scenario::Diagnostic;
use crate::scenario::offsets::offsets;
use sim_coco::snp::mutants;
use sim_kernel::Mutant;
use std::ops::Range;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What stops an attack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoppedBy {
    /// A check of the hypervisor's or the guest's access against the reverse map.
    Rmp,
    /// The guest hears of it: `#VC`, or CF of PVALIDATE.
    Guest,
    /// The firmware, because of the guest's policy.
    Firmware,
    /// Nothing: it is outside of what SNP protects.
    Nothing,
}

impl StoppedBy {
    const WORDS: [(&'static str, StoppedBy); 4] = [
        ("RMP", StoppedBy::Rmp),
        ("guest", StoppedBy::Guest),
        ("firmware", StoppedBy::Firmware),
        ("nothing", StoppedBy::Nothing),
    ];

    /// In the specification's words.
    pub const fn label(self) -> &'static str {
        match self {
            StoppedBy::Rmp => "blocked by RMP",
            StoppedBy::Guest => "blocked by guest (#VC/CF)",
            StoppedBy::Firmware => "blocked by firmware (policy)",
            StoppedBy::Nothing => "outside the model",
        }
    }

    /// Whether this is an answer by which it stops something.
    fn stops_with(self, answer: Answer) -> bool {
        match self {
            StoppedBy::Rmp => matches!(answer, Answer::Npf | Answer::Pf | Answer::Dropped | Answer::Fail(_)),
            StoppedBy::Guest => matches!(answer, Answer::Vc | Answer::Cf),
            StoppedBy::Firmware => answer == Answer::Refused,
            StoppedBy::Nothing => false,
        }
    }
}

/// An attack.
#[derive(Clone, Debug)]
pub struct Attack {
    /// The file's name without folder and ending.
    pub name: String,
    /// A sentence.
    pub teaches: String,
    /// What stops it.
    pub stopped_by: StoppedBy,
    /// The check that does.
    pub check: Option<String>,
    /// The rule that is off on the machine of the second answers.
    pub mutant: Option<Mutant>,
    /// The guest's policy forbids that its pages are moved (bit 25); the machine of the second answers has a guest without it.
    pub forbids_moves: bool,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Attack {
    /// Whether there is a machine of the second answers.
    pub fn has_other_machine(&self) -> bool {
        self.stopped_by != StoppedBy::Nothing
    }
}

const KEYS: [&str; 6] = ["teaches", "stopped_by", "check", "mutant", "forbids_moves", "run"];

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
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.get_ref().as_ref())) {
            let title = format!("[attack] has no key `{}`", key.get_ref());
            return Err(self.error(key.span(), title, format!("expected one of {}", KEYS.join(", "))));
        }
        let needed = |key: &str| {
            let missing = || self.error(node.span(), format!("[attack] has no `{key}`"), format!("expected `{key}`"));
            table.get(key).ok_or_else(missing)
        };
        let label = needed("stopped_by")?;
        let word = self.text(label)?;
        let stopped_by = StoppedBy::WORDS.into_iter().find(|(known, _)| *known == word).ok_or_else(|| {
            let words = StoppedBy::WORDS.map(|(word, _)| format!("\"{word}\"")).join(", ");
            self.error(label.span(), "nobody can stop it so", format!("expected one of {words}"))
        })?;
        let attack = Attack {
            name: std::path::Path::new(&*self.file)
                .file_stem()
                .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
            teaches: self.text(needed("teaches")?)?.to_string(),
            stopped_by: stopped_by.1,
            check: table.get("check").map(|node| self.text(node).map(str::to_string)).transpose()?,
            mutant: table.get("mutant").map(|node| self.mutant(node)).transpose()?,
            forbids_moves: match table.get("forbids_moves") {
                None => false,
                Some(node) => node
                    .get_ref()
                    .as_bool()
                    .ok_or_else(|| self.error(node.span(), "this is no switch", "expected true or false"))?,
            },
            steps: self.steps(needed("run")?)?,
        };
        self.consistent(&attack, label.span())?;
        Ok(attack)
    }

    /// The label, the switch and the answers say the same.
    fn consistent(&self, attack: &Attack, span: Range<usize>) -> Result<(), Diagnostic> {
        let stops = |step: &Step| step.without.is_some() && attack.stopped_by.stops_with(step.expected);
        let problem = match attack.stopped_by {
            StoppedBy::Nothing if attack.mutant.is_some() || attack.steps.iter().any(|step| step.without.is_some()) => {
                "nothing stops it, so there is nothing to switch off and no second answer"
            }
            StoppedBy::Rmp | StoppedBy::Guest if attack.mutant.is_none() => {
                "expected `mutant`: the check to switch off"
            }
            StoppedBy::Firmware if !attack.forbids_moves => "expected `forbids_moves = true`",
            StoppedBy::Nothing => return Ok(()),
            _ if !attack.steps.iter().any(stops) => "expected a step that it stops, with another answer after `|`",
            _ => return Ok(()),
        };
        Err(self.error(span, "the steps do not show that", problem))
    }

    fn text<'t>(&self, node: &'t Node<'_>) -> Result<&'t str, Diagnostic> {
        node.get_ref().as_str().ok_or_else(|| self.error(node.span(), "this is no text", "expected text in quotes"))
    }

    fn mutant(&self, node: &Node<'_>) -> Result<Mutant, Diagnostic> {
        let id = self.text(node)?;
        mutants::ALL.into_iter().find(|mutant| mutant.id() == id).ok_or_else(|| {
            let ids = mutants::ALL.map(|mutant| mutant.id()).join(", ");
            self.error(node.span(), format!("the machine has no rule `{id}`"), format!("expected one of {ids}"))
        })
    }

    fn steps(&self, node: &Node<'_>) -> Result<Vec<Step>, Diagnostic> {
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
                steps.push(parse_step(code.trim(), number).map_err(wrong)?);
            }
            start += line.len() + 1;
        }
        if steps.is_empty() {
            return Err(self.error(span, "the attack does nothing", "expected steps, one a line"));
        }
        Ok(steps)
    }
}

fn parse_step(text: &str, line: usize) -> Result<Step, String> {
    let (action, answers) = match text.split_once("=>") {
        Some((action, answers)) => (action.trim(), Some(answers)),
        None => (text, None),
    };
    let mut answers = answers.into_iter().flat_map(|answers| answers.split('|')).map(|word| Answer::parse(word.trim()));
    let expected = answers.next().transpose()?.unwrap_or(Answer::Ok);
    let without = answers.next().transpose()?;
    if answers.next().is_some() {
        return Err("expected at most two answers".into());
    }
    if without == Some(expected) {
        return Err("the two answers are the same".into());
    }
    Ok(Step { action: Action::parse(action)?, expected, without, text: action.to_string(), line })
}
