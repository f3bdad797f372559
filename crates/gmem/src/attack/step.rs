//! A step of an attack as people write it, whatever the machine: an action, and what comes of it.

use super::machine::{Action, Machine};
use crate::scenario::words::number;
use sim_coco::tdx::StatusName;
use std::fmt;

/// A frame of the host, by name; `name+3` is three frames on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PageName {
    /// The name.
    pub name: String,
    /// Frames behind it.
    pub offset: u64,
}

/// What came of a step. Which of them a machine gives, and by which words, is in its [`Facts`](super::Facts).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was done.
    Ok,
    /// A load got this.
    Value(u64),
    /// A load got bytes that mean nothing.
    Garbage,
    /// What lies in memory is what was noted.
    Same,
    /// It is not.
    Different,
    /// SNP: the guest left with a nested page fault of the RMP.
    Npf,
    /// SNP: `#VC` in the guest: the page was not validated.
    Vc,
    /// SNP: PVALIDATE had nothing to do, which for Linux is the end.
    Cf,
    /// SNP: `#PF` of the host, with the RMP bit.
    Pf,
    /// SNP: a device's store had no effect.
    Dropped,
    /// SNP: an instruction failed with this code. pKVM: a call of the host, with this error number.
    Fail(u32),
    /// SNP: the firmware refused.
    Refused,
    /// TDX: a leaf of the module answered this.
    Status(StatusName),
    /// TDX: the guest left with an EPT violation.
    Violation,
    /// TDX: the guest left because it has not accepted the page.
    Pending,
    /// TDX: `#VE` in the guest, for the same reason.
    Ve,
    /// TDX: the guest consumed poison, and the TD is fatal.
    Poison,
    /// TDX: the host consumed poison: a machine check.
    MachineCheck,
    /// pKVM: SIGSEGV for the process of the host.
    Segv,
    /// pKVM: the guest left with an abort at stage 2.
    Abort,
    /// pKVM: the hypervisor refused the guest's call.
    Invalid,
}

/// Words that every machine knows.
const COMMON: [(&str, Answer); 4] =
    [("ok", Answer::Ok), ("garbage", Answer::Garbage), ("same", Answer::Same), ("different", Answer::Different)];

impl Answer {
    fn parse(machine: Machine, text: &str) -> Result<Answer, String> {
        let facts = machine.facts();
        let words = || COMMON.iter().chain(facts.answers);
        if let Some((_, answer)) = words().find(|(word, _)| *word == text) {
            return Ok(*answer);
        }
        (facts.other_answer)(text).or_else(|| number(text).map(Answer::Value)).ok_or_else(|| {
            let words: Vec<_> = words().map(|(word, _)| *word).collect();
            format!("expected a number, {}, or one of {}", facts.other_answers, words.join(", "))
        })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Value(value) => write!(f, "{value:#x}"),
            Answer::Fail(code) => write!(f, "fail {code}"),
            Answer::Status(name) => f.write_str(name.name()),
            other => {
                let mut words = COMMON.iter().chain(Machine::ALL.iter().flat_map(|machine| machine.facts().answers));
                let word = words.find(|(_, answer)| answer == other).expect("every other one has a word");
                f.write_str(word.0)
            }
        }
    }
}

/// A step with its answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// What must come of it.
    pub expected: Answer,
    /// What must come of it on a machine without the check, if that is something else.
    pub without: Option<Answer>,
    /// As it is written.
    pub text: String,
    /// Where, from 1.
    pub line: usize,
}

impl Step {
    /// What a line says.
    ///
    /// # Errors
    /// What was expected instead.
    pub(super) fn parse(machine: Machine, text: &str, line: usize) -> Result<Step, String> {
        let (action, answers) = match text.split_once("=>") {
            Some((action, answers)) => (action.trim(), Some(answers)),
            None => (text, None),
        };
        let answers = answers.into_iter().flat_map(|answers| answers.split('|'));
        let mut answers = answers.map(|word| Answer::parse(machine, word.trim()));
        let expected = answers.next().transpose()?.unwrap_or(Answer::Ok);
        let without = answers.next().transpose()?;
        if answers.next().is_some() {
            return Err("expected at most two answers".into());
        }
        if without == Some(expected) {
            return Err("the two answers are the same".into());
        }
        Ok(Step { action: machine.action(action)?, expected, without, text: action.to_string(), line })
    }
}

pub(super) fn page(word: &str) -> Result<PageName, String> {
    let (name, offset) = word.split_once('+').map_or((word, Some(0)), |(name, offset)| (name, number(offset)));
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match offset {
        Some(offset) if is_name && offset < 512 => Ok(PageName { name: name.to_string(), offset }),
        _ => Err(format!("`{word}` is no page: expected a name such as `a`, or `a+3`")),
    }
}

/// Whose a step is: `g`, or another one `h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    /// The guest that is attacked.
    G,
    /// A guest on the attacker's side.
    H,
}

/// Who a word means; `kind` is what the machine calls its guests.
pub(super) fn who(word: &str, kind: &str) -> Result<Who, String> {
    match word {
        "g" => Ok(Who::G),
        "h" => Ok(Who::H),
        _ => Err(format!("`{word}` is no {kind}: expected g or h")),
    }
}

/// The words of a step without the `2m` at their end, and whether it was there.
pub(super) fn split_large<'a, 'w>(words: &'w [&'a str]) -> (&'w [&'a str], bool) {
    match words.split_last() {
        Some((&"2m", rest)) => (rest, true),
        _ => (words, false),
    }
}

pub(super) fn value(word: &str) -> Result<u64, String> {
    number(word).ok_or_else(|| format!("`{word}` is no number"))
}

pub(super) fn gpa(word: &str) -> Result<u64, String> {
    /// Where the machine's guests end.
    const END: u64 = 1 << 40;
    let gpa = value(word)?;
    if gpa.is_multiple_of(4096) && gpa < END {
        Ok(gpa)
    } else {
        Err(format!("`{word}` is no page's address below 1 TiB"))
    }
}

/// The forms that begin as the line does.
pub(super) fn expected(usage: &[(&str, &str)], words: &[&str]) -> String {
    let first = words.first().copied().unwrap_or_default();
    let close: Vec<&str> = usage.iter().map(|(form, _)| *form).filter(|form| form.starts_with(first)).collect();
    let forms = if close.is_empty() {
        let mut firsts: Vec<_> = usage.iter().filter_map(|(form, _)| form.split(' ').next()).collect();
        firsts.dedup();
        firsts.into_iter().map(|first| format!("{first} ...")).collect::<Vec<_>>().join(", ")
    } else {
        close.join("; ")
    };
    format!("expected one of: {forms}")
}
