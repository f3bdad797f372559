//! What may follow `=>`: the answers that a step allows.
//!
//! | written | the answer |
//! |---|---|
//! | `ok`, `ok 7`, `ok [0, 3]` | success; with a number the word that was read, the file's size, or else the returned number; with a list the dirty or resident pages |
//! | `EINVAL` | failed with this error (a memory fault fails with `EFAULT`, too) |
//! | `SIGBUS` | the host access raised this signal |
//! | `hlt`, `hlt 7` | the guest access completed; with a number, and read this |
//! | `done`, `done 7` | the same of `guest_paged` |
//! | `exception`, `exception 14`, `exception 14 6` | the guest got an exception; with numbers, this vector with this error code |
//! | `memory_fault`, `memory_fault private`, `memory_fault shared 0x200000` | a memory-fault exit for that kind of access, at that guest address |
//! | `mmio`, `mmio read`, `mmio write` | an MMIO exit |
//! | `system_event`, `system_event 0x100` | a guest ended itself; with a number, for this reason |
//! | `hypercall`, `internal_error`, `shutdown`, `fail_entry`, `intr` | that exit |
//!
//! Alternatives are separated by `|`. Simplified: nothing is said about stage 2; traces are for that.

use std::fmt;

use super::words;
use crate::ops::answer::MEMORY_EXIT_FLAG_PRIVATE;
use crate::ops::suggest::did_you_mean;
use crate::ops::{Answer, Detail, Errno, Exit, Signal};

/// The answers that a step allows: any of the patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation(pub Vec<Pattern>);

/// One kind of answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Success.
    Ok,
    /// Success with a number: the word that was read, the file's size, or else the returned number.
    OkNumber(u64),
    /// Success with these dirty or resident pages.
    OkPages(Vec<u64>),
    /// Failure, with this error.
    Errno(Errno),
    /// A host access that raised this signal.
    Signal(Signal),
    /// The guest access completed and, where a value is said, read it.
    Hlt(Option<u64>),
    /// A paged access completed and, where a value is said, read it.
    Done(Option<u64>),
    /// The guest got an exception.
    Exception {
        /// Its vector; `None` if any.
        vector: Option<u64>,
        /// Its error code; `None` if any.
        error: Option<u64>,
    },
    /// A memory fault.
    MemoryFault {
        /// Whether the access was private; `None` if either will do.
        private: Option<bool>,
        /// Where; `None` if anywhere.
        gpa: Option<u64>,
    },
    /// An MMIO exit.
    Mmio {
        /// Whether it was a store; `None` if either will do.
        write: Option<bool>,
    },
    /// A hypercall exit.
    Hypercall,
    /// An internal error of KVM.
    InternalError {
        /// What came with it; `None` if anything or nothing.
        data: Option<u64>,
    },
    /// A triple fault.
    Shutdown,
    /// An event of the whole guest.
    SystemEvent {
        /// Its data; `None` if any.
        data: Option<u64>,
    },
    /// The guest was not entered.
    FailEntry,
    /// Interrupted by a signal.
    Intr,
}

/// A combination of answers: every condition names a step's label and what its answer must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The outcome as written.
    pub text: String,
    /// What must hold together.
    pub conditions: Vec<(String, Expectation)>,
}

impl Outcome {
    /// Whether all conditions hold.
    pub fn holds<'a>(&self, answer: &impl Fn(&str) -> Option<&'a Answer>) -> bool {
        let holds = |(label, expectation): &(String, Expectation)| {
            answer(label).is_some_and(|answer| expectation.check(answer).is_ok())
        };
        self.conditions.iter().all(holds)
    }
}

impl Expectation {
    /// Whether `answer` is one of those allowed.
    ///
    /// # Errors
    /// What was expected and what came.
    ///
    /// ```
    /// use gmem::ops::{Answer, Exit};
    /// use gmem::scenario::parse_line;
    /// let line = parse_line("guest_read c0 0x1000 => hlt 7 | memory_fault").unwrap();
    /// let expectation = line.expect.unwrap();
    /// assert!(expectation.check(&Answer::exit(Exit::Hlt { value: Some(7) })).is_ok());
    /// assert_eq!(
    ///     expectation.check(&Answer::OK).unwrap_err(),
    ///     r#"expected hlt 7 | memory_fault, got {"ok": 0}"#,
    /// );
    /// ```
    pub fn check(&self, answer: &Answer) -> Result<(), String> {
        if self.0.iter().any(|pattern| pattern.matches(answer)) {
            Ok(())
        } else {
            Err(format!("expected {self}, got {answer}"))
        }
    }
}

impl Pattern {
    /// The narrowest pattern that an answer matches, in which it can be told in the words of scenarios. `None` if there is no word for it.
    ///
    /// ```
    /// use gmem::ops::{Answer, Exit};
    /// use gmem::scenario::Pattern;
    /// let answer = Answer::exit(Exit::Hlt { value: Some(7) });
    /// assert_eq!(Pattern::of(&answer).unwrap().to_string(), "hlt 7");
    /// ```
    pub fn of(answer: &Answer) -> Option<Pattern> {
        let pattern = match answer {
            Answer::Ok { value, detail } => match detail {
                Detail::Value(word) => Pattern::OkNumber(*word),
                Detail::Stat(stat) => Pattern::OkNumber(stat.size),
                Detail::Dirty(pages) | Detail::Resident(pages) | Detail::Idle(pages) => Pattern::OkPages(pages.clone()),
                _ if *value == 0 => Pattern::Ok,
                _ => Pattern::OkNumber(*value),
            },
            Answer::Failed { errno, .. } => Pattern::Errno(*errno),
            Answer::Signal(signal) => Pattern::Signal(*signal),
            Answer::Other(_) => return None,
            Answer::Exit { exit, .. } => match exit {
                Exit::Hlt { value } => Pattern::Hlt(*value),
                Exit::Done { value } => Pattern::Done(*value),
                Exit::Exception { vector, error, .. } => {
                    Pattern::Exception { vector: Some(*vector), error: Some(*error) }
                }
                Exit::MemoryFault { flags, gpa, .. } => {
                    Pattern::MemoryFault { private: Some(flags & MEMORY_EXIT_FLAG_PRIVATE != 0), gpa: Some(*gpa) }
                }
                Exit::Mmio { write, .. } => Pattern::Mmio { write: Some(*write) },
                Exit::Hypercall { .. } => Pattern::Hypercall,
                Exit::InternalError { data, .. } => Pattern::InternalError { data: *data },
                Exit::Shutdown => Pattern::Shutdown,
                Exit::SystemEvent { data, .. } => Pattern::SystemEvent { data: Some(*data) },
                Exit::FailEntry { .. } => Pattern::FailEntry,
                Exit::Intr => Pattern::Intr,
                _ => return None,
            },
        };
        Some(pattern)
    }

    /// Whether `answer` is of this kind.
    pub fn matches(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (Pattern::Ok, Answer::Ok { .. }) => true,
            (Pattern::OkNumber(number), Answer::Ok { value, detail }) => match detail {
                Detail::Value(word) => word == number,
                Detail::Stat(stat) => stat.size == *number,
                _ => value == number,
            },
            (
                Pattern::OkPages(pages),
                Answer::Ok { detail: Detail::Dirty(got) | Detail::Resident(got) | Detail::Idle(got), .. },
            ) => got == pages,
            (Pattern::Errno(errno), Answer::Failed { errno: got, .. } | Answer::Exit { errno: Some(got), .. }) => {
                got == errno
            }
            (Pattern::Signal(signal), Answer::Signal(got)) => got == signal,
            (pattern, Answer::Exit { exit, .. }) => pattern.matches_exit(exit),
            _ => false,
        }
    }

    fn matches_exit(&self, exit: &Exit) -> bool {
        match (self, exit) {
            (Pattern::Hlt(expected), Exit::Hlt { value }) | (Pattern::Done(expected), Exit::Done { value }) => {
                expected.is_none() || expected == value
            }
            (Pattern::Exception { vector, error }, Exit::Exception { vector: got, error: code, .. }) => {
                vector.is_none_or(|vector| vector == *got) && error.is_none_or(|error| error == *code)
            }
            (Pattern::MemoryFault { private, gpa }, Exit::MemoryFault { flags, gpa: at, .. }) => {
                let was_private = flags & MEMORY_EXIT_FLAG_PRIVATE != 0;
                private.is_none_or(|private| private == was_private) && gpa.is_none_or(|gpa| gpa == *at)
            }
            (Pattern::Mmio { write }, Exit::Mmio { write: wrote, .. }) => write.is_none_or(|write| write == *wrote),
            (Pattern::InternalError { data }, Exit::InternalError { data: got, .. }) => data.is_none() || data == got,
            (Pattern::SystemEvent { data }, Exit::SystemEvent { data: got, .. }) => {
                data.is_none_or(|data| data == *got)
            }
            (Pattern::Hypercall, Exit::Hypercall { .. })
            | (Pattern::FailEntry, Exit::FailEntry { .. })
            | (Pattern::Shutdown, Exit::Shutdown)
            | (Pattern::Intr, Exit::Intr) => true,
            _ => false,
        }
    }

    /// Reads one alternative, given as words. `Err` holds the index of the word that is wrong, and what was expected.
    pub(super) fn parse(words: &[&str]) -> Result<Pattern, (usize, String)> {
        let Some((&head, rest)) = words.split_first() else { return Err((0, expected_pattern(""))) };
        let mut rest = rest.iter().enumerate().map(|(i, word)| (i + 1, *word)).peekable();
        let pattern = match head {
            "ok" => match rest.next() {
                None => Pattern::Ok,
                Some((i, word)) => match (words::number(word), words::list(word)) {
                    (Some(number), _) => Pattern::OkNumber(number),
                    (_, Some(pages)) => Pattern::OkPages(pages),
                    _ => return Err((i, "expected a number or a list such as [0, 3]".into())),
                },
            },
            "hlt" => match rest.next() {
                None => Pattern::Hlt(None),
                Some((i, word)) => {
                    Pattern::Hlt(Some(words::number(word).ok_or((i, "expected the value that was read".to_string()))?))
                }
            },
            "done" => match rest.next() {
                None => Pattern::Done(None),
                Some((i, word)) => {
                    Pattern::Done(Some(words::number(word).ok_or((i, "expected the value that was read".to_string()))?))
                }
            },
            "exception" => {
                let mut number = |what: &str| match rest.next() {
                    None => Ok(None),
                    Some((i, word)) => words::number(word).map(Some).ok_or((i, format!("expected {what}"))),
                };
                Pattern::Exception { vector: number("a vector such as 14")?, error: number("an error code")? }
            }
            "memory_fault" => {
                let private = match rest.peek().map(|(_, word)| *word) {
                    Some("private") => Some(true),
                    Some("shared") => Some(false),
                    _ => None,
                };
                if private.is_some() {
                    rest.next();
                }
                let gpa = match rest.next() {
                    None => None,
                    Some((i, word)) => match words::number(word) {
                        Some(gpa) => Some(gpa),
                        None if private.is_some() => return Err((i, "expected a guest address".into())),
                        None => return Err((i, "expected `private`, `shared` or a guest address".into())),
                    },
                };
                Pattern::MemoryFault { private, gpa }
            }
            "mmio" => Pattern::Mmio {
                write: match rest.next() {
                    None => None,
                    Some((_, "read")) => Some(false),
                    Some((_, "write")) => Some(true),
                    Some((i, _)) => return Err((i, "expected `read` or `write`".into())),
                },
            },
            "hypercall" => Pattern::Hypercall,
            "internal_error" => Pattern::InternalError {
                data: match rest.next() {
                    None => None,
                    Some((i, word)) => {
                        Some(words::number(word).ok_or((i, "expected what came with the error".to_string()))?)
                    }
                },
            },
            "shutdown" => Pattern::Shutdown,
            "system_event" => Pattern::SystemEvent {
                data: match rest.next() {
                    None => None,
                    Some((i, word)) => {
                        Some(words::number(word).ok_or((i, "expected the data of the event".to_string()))?)
                    }
                },
            },
            "fail_entry" => Pattern::FailEntry,
            "intr" => Pattern::Intr,
            _ => match (Errno::from_name(head), Signal::from_name(head)) {
                (Some(errno), _) => Pattern::Errno(errno),
                (_, Some(signal)) => Pattern::Signal(signal),
                _ => return Err((0, expected_pattern(head))),
            },
        };
        match rest.next() {
            None => Ok(pattern),
            Some((i, _)) => Err((i, "expected `|`, a comment or the end of the line".into())),
        }
    }
}

const HEADS: [&str; 12] = [
    "ok",
    "hlt",
    "done",
    "exception",
    "memory_fault",
    "mmio",
    "hypercall",
    "internal_error",
    "shutdown",
    "system_event",
    "fail_entry",
    "intr",
];

fn expected_pattern(found: &str) -> String {
    let known = HEADS.into_iter().chain(Errno::names()).chain(Signal::names());
    let suggestion = if found.is_empty() { String::new() } else { did_you_mean(found, known) };
    format!("expected {}, an error such as EINVAL, or a signal such as SIGBUS{suggestion}", HEADS.join(", "))
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, pattern) in self.0.iter().enumerate() {
            write!(f, "{}{pattern}", if i == 0 { "" } else { " | " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Ok => f.write_str("ok"),
            Pattern::OkNumber(number) => write!(f, "ok {number}"),
            Pattern::OkPages(pages) => write!(f, "ok {pages:?}"),
            Pattern::Errno(errno) => write!(f, "{errno}"),
            Pattern::Signal(signal) => write!(f, "{signal}"),
            Pattern::Hlt(None) => f.write_str("hlt"),
            Pattern::Hlt(Some(value)) => write!(f, "hlt {value}"),
            Pattern::Done(None) => f.write_str("done"),
            Pattern::Done(Some(value)) => write!(f, "done {value}"),
            Pattern::Exception { vector, error } => {
                f.write_str("exception")?;
                vector.map_or(Ok(()), |vector| write!(f, " {vector}"))?;
                error.map_or(Ok(()), |error| write!(f, " {error}"))
            }
            Pattern::MemoryFault { private, gpa } => {
                f.write_str("memory_fault")?;
                if let Some(private) = private {
                    f.write_str(if *private { " private" } else { " shared" })?;
                }
                gpa.map_or(Ok(()), |gpa| write!(f, " {gpa:#x}"))
            }
            Pattern::Mmio { write: None } => f.write_str("mmio"),
            Pattern::Mmio { write: Some(false) } => f.write_str("mmio read"),
            Pattern::Mmio { write: Some(true) } => f.write_str("mmio write"),
            Pattern::Hypercall => f.write_str("hypercall"),
            Pattern::InternalError { data: None } => f.write_str("internal_error"),
            Pattern::InternalError { data: Some(data) } => write!(f, "internal_error {data:#x}"),
            Pattern::Shutdown => f.write_str("shutdown"),
            Pattern::SystemEvent { data: None } => f.write_str("system_event"),
            Pattern::SystemEvent { data: Some(data) } => write!(f, "system_event {data:#x}"),
            Pattern::FailEntry => f.write_str("fail_entry"),
            Pattern::Intr => f.write_str("intr"),
        }
    }
}
