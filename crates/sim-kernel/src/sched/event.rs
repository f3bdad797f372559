//! The event log: every step of a simulation, byte for byte the same for the same program, scenario and seed.
//!
//! Two kinds of events share one sequence: the operations at scheduling points, and tracepoints, which the model emits like the
//! kernel's own (`kvm_tdp_mmu_spte_changed` and friends). Notes are in between if they are asked for: what the model says of itself, for people who want to know which
//! system call, instruction or firmware call it was; they are not part of the hash. Nothing in an event depends on addresses, clocks or source lines, so
//! the hash of a log is stable across machines and builds of one version.

use super::op::{Access, ObjId, TaskId};
use arrayvec::ArrayVec;
use std::fmt::Write;
use xxhash_rust::xxh3::Xxh3;

/// A kind of event that the model emits, like a kernel tracepoint.
#[derive(Debug, PartialEq, Eq)]
pub struct Tracepoint {
    /// Name, as the kernel spells it where it has one.
    pub name: &'static str,
    /// Names of the arguments, at most [`MAX_ARGS`].
    pub fields: &'static [&'static str],
}

/// Most arguments of a tracepoint.
pub const MAX_ARGS: usize = 8;

/// One emitted tracepoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// Which tracepoint.
    pub tracepoint: &'static Tracepoint,
    /// The task that emitted it.
    pub task: TaskId,
    /// Argument values, in the order of the tracepoint's fields.
    pub args: ArrayVec<u64, MAX_ARGS>,
}

/// How much of an execution is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum LogLevel {
    /// Nothing.
    #[default]
    Off,
    /// Only the hash of all events.
    Hash,
    /// The hash and the events.
    Full,
    /// The same, and notes ([`Event::Note`]). The hash is that of the other levels.
    Notes,
}

impl LogLevel {
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_code(code: u8) -> LogLevel {
        match code {
            0 => LogLevel::Off,
            1 => LogLevel::Hash,
            2 => LogLevel::Full,
            _ => LogLevel::Notes,
        }
    }
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A task was created.
    Spawn {
        /// The new task.
        task: TaskId,
        /// Its name.
        name: Box<str>,
    },
    /// A task performed an operation.
    Op {
        /// The task.
        task: TaskId,
        /// How it touched the object.
        access: Access,
        /// The object.
        object: ObjId,
        /// The index within the object.
        index: u64,
    },
    /// The model emitted a tracepoint.
    Trace(TraceRecord),
    /// The model says what it does. Only with [`LogLevel::Notes`], and not hashed.
    Note {
        /// The task.
        task: TaskId,
        /// Of what kind it is, as in `ioctl`.
        kind: &'static str,
        /// Its name, as in `KVM_RUN`.
        what: &'static str,
    },
    /// A task ended.
    End {
        /// The task.
        task: TaskId,
    },
}

/// The sequence of events of one execution and its hash.
#[derive(Clone)]
pub struct EventLog {
    level: LogLevel,
    hasher: Xxh3,
    events: Vec<Event>,
    count: u64,
}

impl std::fmt::Debug for EventLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLog").field("level", &self.level).field("count", &self.count).finish_non_exhaustive()
    }
}

impl EventLog {
    pub(crate) fn new(level: LogLevel) -> EventLog {
        EventLog { level, hasher: Xxh3::new(), events: Vec::new(), count: 0 }
    }

    pub(crate) fn clear(&mut self, level: LogLevel) {
        if self.count > 0 {
            self.hasher.reset();
        }
        self.level = level;
        self.events.clear();
        self.count = 0;
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.hash(&event);
        self.count += 1;
        if self.level >= LogLevel::Full {
            self.events.push(event);
        }
    }

    /// A note, which counts for nothing.
    pub(crate) fn note(&mut self, task: TaskId, kind: &'static str, what: &'static str) {
        self.events.push(Event::Note { task, kind, what });
    }

    /// The events; empty below [`LogLevel::Full`].
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// How many events happened; notes are none.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether nothing happened, or nothing was logged.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// XXH3-64 over the canonical bytes of all events; `None` if logging is off.
    pub fn digest(&self) -> Option<u64> {
        (self.level != LogLevel::Off).then(|| self.hasher.digest())
    }

    /// Canonical bytes of an event: a tag, then fixed-width little-endian fields, then length-prefixed text.
    fn hash(&mut self, event: &Event) {
        let mut bytes: ArrayVec<u8, 96> = ArrayVec::new();
        let put = |bytes: &mut ArrayVec<u8, 96>, value: u64| {
            bytes.try_extend_from_slice(&value.to_le_bytes()).expect("an event has at most ten numbers");
        };
        match event {
            Event::Spawn { task, name } => {
                bytes.push(1);
                bytes.push(task.0);
                put(&mut bytes, name.len() as u64);
                self.hasher.update(&bytes);
                self.hasher.update(name.as_bytes());
                return;
            }
            Event::Op { task, access, object, index } => {
                bytes.push(2);
                bytes.push(task.0);
                bytes.push(access.code());
                put(&mut bytes, u64::from(object.0));
                put(&mut bytes, *index);
            }
            Event::Trace(record) => {
                bytes.push(3);
                bytes.push(record.task.0);
                bytes.push(record.args.len() as u8);
                for arg in &record.args {
                    put(&mut bytes, *arg);
                }
                self.hasher.update(&bytes);
                self.hasher.update(record.tracepoint.name.as_bytes());
                return;
            }
            Event::End { task } => {
                bytes.push(4);
                bytes.push(task.0);
            }
            Event::Note { .. } => return,
        }
        self.hasher.update(&bytes);
    }
}

/// Names for the numbers in events, as the engine knows them.
pub trait Names {
    /// Name of a task.
    fn task(&self, task: TaskId) -> String;
    /// Class and number of an object, as in `mmu_lock#0`.
    fn object(&self, object: ObjId) -> String;
}

/// Renders one event as a line of JSON, without the newline.
///
/// Columns: `n` number of the event, `task`, then `op` with `obj` and `index`, or `trace` with the tracepoint's fields, or
/// `note` with `what`.
pub fn render_json(n: u64, event: &Event, names: &dyn Names) -> String {
    let mut line = String::new();
    let quote = |s: &str| {
        let mut out = String::from("\"");
        for c in s.chars() {
            match c {
                '"' | '\\' => {
                    out.push('\\');
                    out.push(c);
                }
                c if (c as u32) < 0x20 => {
                    let _ = write!(out, "\\u{:04x}", c as u32);
                }
                c => out.push(c),
            }
        }
        out.push('"');
        out
    };
    let _ = write!(line, "{{\"n\":{n}");
    match event {
        Event::Spawn { task, name } => {
            let _ = write!(line, ",\"task\":{},\"spawn\":{}", quote(&names.task(*task)), quote(name));
        }
        Event::Op { task, access, object, index } => {
            let _ = write!(
                line,
                ",\"task\":{},\"op\":\"{}\",\"obj\":{},\"index\":{index}",
                quote(&names.task(*task)),
                access.name(),
                quote(&names.object(*object))
            );
        }
        Event::Trace(record) => {
            let _ = write!(
                line,
                ",\"task\":{},\"trace\":{}",
                quote(&names.task(record.task)),
                quote(record.tracepoint.name)
            );
            for (field, value) in record.tracepoint.fields.iter().zip(&record.args) {
                let _ = write!(line, ",{}:{value}", quote(field));
            }
        }
        Event::Note { task, kind, what } => {
            let _ = write!(
                line,
                ",\"task\":{},\"note\":{},\"what\":{}",
                quote(&names.task(*task)),
                quote(kind),
                quote(what)
            );
        }
        Event::End { task } => {
            let _ = write!(line, ",\"task\":{},\"end\":true", quote(&names.task(*task)));
        }
    }
    line.push('}');
    line
}
