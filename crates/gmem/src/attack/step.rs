//! The steps of an attack, as people write them.

use crate::scenario::words::number;
use std::fmt;

/// A frame of the host, by name; `name+3` is three frames on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PageName {
    /// The name.
    pub name: String,
    /// Frames behind it.
    pub offset: u64,
}

/// Who a step is about: `g`, or another guest `h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// The guest that is attacked.
    G,
    /// A guest on the attacker's side.
    H,
}

/// What is done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the operands are said in `USAGE`")]
pub enum Action {
    Give { page: PageName, who: Who, gpa: u64, huge: bool },
    Map { who: Who, gpa: u64, page: PageName, huge: bool },
    Take { page: PageName },
    Smash { page: PageName },
    Close { page: PageName },
    HostWrite { page: PageName, value: u64 },
    DeviceWrite { page: PageName, value: u64 },
    Note { page: PageName, note: String },
    Compare { page: PageName, note: String },
    BusWrite { page: PageName, note: String },
    Move { from: PageName, to: PageName },
    Accept { who: Who, gpa: u64, huge: bool },
    Rescind { who: Who, gpa: u64 },
    Read { who: Who, gpa: u64, vmpl: u8 },
    Write { who: Who, gpa: u64, value: u64 },
    ReadShared { who: Who, gpa: u64 },
    WriteShared { who: Who, gpa: u64, value: u64 },
}

/// Every form of a step, with what it does.
pub const USAGE: &[(&str, &str)] = &[
    ("host give PAGE WHO GPA [2m]", "RMPUPDATE: the page becomes the guest's at this address, and is mapped there"),
    ("host map WHO GPA PAGE [2m]", "the nested tables show the page at this address"),
    ("host take PAGE", "RMPUPDATE: the page becomes the hypervisor's again"),
    ("host smash PAGE", "PSMASH of 2 MiB"),
    ("host close PAGE", "RMPUPDATE: the page becomes immutable"),
    ("host write PAGE VALUE", "a store through the direct map"),
    ("host note PAGE NOTE", "reads what lies in memory, and keeps it"),
    ("host compare PAGE NOTE", "whether what lies in memory is what was noted"),
    ("host move PAGE PAGE", "PAGE_MOVE by the firmware: closes the first, gives the second, and maps it"),
    ("device write PAGE VALUE", "a store by DMA"),
    ("bus write PAGE NOTE", "somebody at the memory bus puts back what was noted"),
    ("guest WHO accept GPA [2m]", "PVALIDATE"),
    ("guest WHO rescind GPA", "PVALIDATE, to take acceptance back"),
    ("guest WHO read GPA [vmpl1]", "a load with the C-bit"),
    ("guest WHO write GPA VALUE", "a store with the C-bit"),
    ("guest WHO read-shared GPA", "a load without the C-bit"),
    ("guest WHO write-shared GPA VALUE", "a store without the C-bit"),
];

/// What came of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was done.
    Ok,
    /// A load got this.
    Value(u64),
    /// A load got bytes that mean nothing.
    Garbage,
    /// The guest left with a nested page fault of the RMP.
    Npf,
    /// `#VC` in the guest: the page was not validated.
    Vc,
    /// PVALIDATE had nothing to do, which for Linux is the end.
    Cf,
    /// `#PF` of the host, with the RMP bit.
    Pf,
    /// A device's store had no effect.
    Dropped,
    /// An instruction failed with this code.
    Fail(u32),
    /// The firmware refused.
    Refused,
    /// What lies in memory is what was noted.
    Same,
    /// It is not.
    Different,
}

impl Answer {
    const WORDS: [(&'static str, Answer); 10] = [
        ("ok", Answer::Ok),
        ("garbage", Answer::Garbage),
        ("npf", Answer::Npf),
        ("vc", Answer::Vc),
        ("cf", Answer::Cf),
        ("pf", Answer::Pf),
        ("dropped", Answer::Dropped),
        ("refused", Answer::Refused),
        ("same", Answer::Same),
        ("different", Answer::Different),
    ];

    pub(super) fn parse(text: &str) -> Result<Answer, String> {
        if let Some((_, answer)) = Answer::WORDS.into_iter().find(|(word, _)| *word == text) {
            return Ok(answer);
        }
        if let Some(code) = text.strip_prefix("fail ").and_then(number).and_then(|code| u32::try_from(code).ok()) {
            return Ok(Answer::Fail(code));
        }
        let words = Answer::WORDS.map(|(word, _)| word).join(", ");
        number(text).map(Answer::Value).ok_or_else(|| format!("expected a number, `fail N`, or one of {words}"))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Value(value) => write!(f, "{value:#x}"),
            Answer::Fail(code) => write!(f, "fail {code}"),
            other => {
                let word =
                    Answer::WORDS.iter().find(|(_, answer)| answer == other).expect("every other one has a word");
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

fn page(word: &str) -> Result<PageName, String> {
    let (name, offset) = word.split_once('+').map_or((word, Some(0)), |(name, offset)| (name, number(offset)));
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match offset {
        Some(offset) if is_name && offset < 512 => Ok(PageName { name: name.to_string(), offset }),
        _ => Err(format!("`{word}` is no page: expected a name such as `a`, or `a+3`")),
    }
}

fn who(word: &str) -> Result<Who, String> {
    match word {
        "g" => Ok(Who::G),
        "h" => Ok(Who::H),
        _ => Err(format!("`{word}` is no guest: expected g or h")),
    }
}

fn value(word: &str) -> Result<u64, String> {
    number(word).ok_or_else(|| format!("`{word}` is no number"))
}

fn gpa(word: &str) -> Result<u64, String> {
    /// Where the machine's guests end.
    const END: u64 = 1 << 40;
    let gpa = value(word)?;
    if gpa.is_multiple_of(4096) && gpa < END {
        Ok(gpa)
    } else {
        Err(format!("`{word}` is no page's address below 1 TiB"))
    }
}

impl Action {
    /// What a line says.
    ///
    /// # Errors
    /// What was expected instead.
    pub(super) fn parse(text: &str) -> Result<Action, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (words, huge) = match words.split_last() {
            Some((&"2m", rest)) => (rest, true),
            _ => (&words[..], false),
        };
        let note = |word: &str| word.to_string();
        let action = match *words {
            ["host", "give", p, w, g] => Action::Give { page: page(p)?, who: who(w)?, gpa: gpa(g)?, huge },
            ["host", "map", w, g, p] => Action::Map { who: who(w)?, gpa: gpa(g)?, page: page(p)?, huge },
            ["guest", w, "accept", g] => Action::Accept { who: who(w)?, gpa: gpa(g)?, huge },
            _ if huge => return Err(Action::expected(words)),
            ["host", "take", p] => Action::Take { page: page(p)? },
            ["host", "smash", p] => Action::Smash { page: page(p)? },
            ["host", "close", p] => Action::Close { page: page(p)? },
            ["host", "write", p, v] => Action::HostWrite { page: page(p)?, value: value(v)? },
            ["host", "note", p, n] => Action::Note { page: page(p)?, note: note(n) },
            ["host", "compare", p, n] => Action::Compare { page: page(p)?, note: note(n) },
            ["host", "move", p, q] => Action::Move { from: page(p)?, to: page(q)? },
            ["device", "write", p, v] => Action::DeviceWrite { page: page(p)?, value: value(v)? },
            ["bus", "write", p, n] => Action::BusWrite { page: page(p)?, note: note(n) },
            ["guest", w, "rescind", g] => Action::Rescind { who: who(w)?, gpa: gpa(g)? },
            ["guest", w, "read", g] => Action::Read { who: who(w)?, gpa: gpa(g)?, vmpl: 0 },
            ["guest", w, "read", g, "vmpl1"] => Action::Read { who: who(w)?, gpa: gpa(g)?, vmpl: 1 },
            ["guest", w, "write", g, v] => Action::Write { who: who(w)?, gpa: gpa(g)?, value: value(v)? },
            ["guest", w, "read-shared", g] => Action::ReadShared { who: who(w)?, gpa: gpa(g)? },
            ["guest", w, "write-shared", g, v] => Action::WriteShared { who: who(w)?, gpa: gpa(g)?, value: value(v)? },
            _ => return Err(Action::expected(words)),
        };
        Ok(action)
    }

    /// The forms that begin as the line does.
    fn expected(words: &[&str]) -> String {
        let first = words.first().copied().unwrap_or_default();
        let close: Vec<&str> = USAGE.iter().map(|(form, _)| *form).filter(|form| form.starts_with(first)).collect();
        let forms = if close.is_empty() { "host ..., device ..., bus ..., guest ...".into() } else { close.join("; ") };
        format!("expected one of: {forms}")
    }
}
