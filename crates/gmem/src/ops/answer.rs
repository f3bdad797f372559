//! [`Answer`]: what an operation returned, as recordings write it in `ret`.
//!
//! The order of fields on output is that of the recordings; equality ignores the order on input. Simplified: an answer with
//! fields that this version does not know is kept as text ([`Answer::Other`]), so that it can be shown and never agrees.

use std::fmt;

use serde_json::{Map, Value};

use super::json::{describe, recorded_style};
use super::{Errno, Signal};

/// The answer to one operation.
///
/// ```
/// use gmem::ops::{Answer, Errno};
/// let json = serde_json::json!({"errno": "EINVAL"});
/// let answer = Answer::from_json(&json).unwrap();
/// assert_eq!(answer, Answer::errno(Errno::from_name("EINVAL").unwrap()));
/// assert_eq!(answer.to_string(), r#"{"errno": "EINVAL"}"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Success: the returned number, and what else the call gave back.
    Ok {
        /// The returned number where it means something, else 0.
        value: u64,
        /// What the call wrote to its caller's memory.
        detail: Detail,
    },
    /// Failure.
    Failed {
        /// Why.
        errno: Errno,
        /// What the call wrote to its caller's memory nevertheless.
        detail: Detail,
    },
    /// A host access that faulted.
    Signal(Signal),
    /// `KVM_RUN` came back.
    Exit {
        /// The error of the ioctl, which memory faults set.
        errno: Option<Errno>,
        /// The exit reason with its data.
        exit: Exit,
    },
    /// Something that a newer recorder wrote: equal to nothing that the simulator says.
    Other(Vec<OtherField>),
}

/// What a call gave back besides its return value.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Detail {
    /// Nothing.
    #[default]
    None,
    /// The word that a host access read.
    Value(u64),
    /// The struct of `KVM_PRE_FAULT_MEMORY` after the call: what is left to do.
    Range {
        /// Where it stopped.
        gpa: u64,
        /// How many bytes are left.
        size: u64,
    },
    /// The struct of `KVM_MEMORY_ENCRYPT_OP` after the call.
    Firmware {
        /// The firmware's error; 0 if it was not the firmware's.
        error: u64,
    },
    /// The result of `fstat`.
    Stat(FileStat),
    /// The numbers of the bits set in a dirty log.
    Dirty(Vec<u64>),
    /// The numbers of the resident pages that `mincore` found.
    Resident(Vec<u64>),
    /// The numbers of the pages that are idle.
    Idle(Vec<u64>),
}

/// The fields of `struct stat` that recordings have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's st_ fields of that name")]
pub struct FileStat {
    pub size: u64,
    pub blocks: u64,
    pub blksize: u64,
    pub mode: u64,
    pub nlink: u64,
}

/// Why `KVM_RUN` came back, with what `struct kvm_run` then holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `KVM_EXIT_HLT`: the access completed.
    Hlt {
        /// The word that a read got.
        value: Option<u64>,
    },
    /// `guest_paged`: the access completed, and the guest said so by a port.
    Done {
        /// The word that a read got.
        value: Option<u64>,
    },
    /// `guest_paged`: the guest got an exception, and its handler said so by a port.
    Exception {
        /// Its vector.
        vector: u64,
        /// The error code that was pushed; 0 for those that have none.
        error: u64,
        /// CR2, of a page fault.
        cr2: Option<u64>,
    },
    /// `KVM_EXIT_MMIO`: the VMM is asked to do the access.
    Mmio {
        /// The guest physical address.
        gpa: u64,
        /// Bytes.
        len: u64,
        /// A store rather than a load.
        write: bool,
    },
    /// `KVM_EXIT_HYPERCALL`.
    Hypercall {
        /// The hypercall's number.
        nr: u64,
        /// Its arguments.
        args: Vec<u64>,
        /// What the guest found in `rax` after the VMM's reply.
        rax: Option<u64>,
    },
    /// `KVM_EXIT_MEMORY_FAULT`.
    MemoryFault {
        /// Bit 3 = the access was private.
        flags: u64,
        /// The start of the faulting range.
        gpa: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// `KVM_EXIT_INTERNAL_ERROR`.
    InternalError {
        /// The kind of error.
        suberror: Option<u64>,
        /// What came with it, of a TD that could not go on: what RAX held after VP.ENTER.
        data: Option<u64>,
    },
    /// `KVM_EXIT_SHUTDOWN`: a triple fault.
    Shutdown,
    /// `KVM_EXIT_SYSTEM_EVENT`.
    SystemEvent {
        /// Its type: 6 is a guest that ended itself (`KVM_SYSTEM_EVENT_SEV_TERM`).
        kind: u64,
        /// What comes with it: the guest's reasons.
        data: u64,
    },
    /// `KVM_EXIT_FAIL_ENTRY`: the processor did not enter the guest.
    FailEntry {
        /// The processor's reason.
        reason: u64,
    },
    /// `KVM_EXIT_INTR`: a signal is pending.
    Intr,
    /// Any other exit, by its number.
    Reason(u64),
}

/// A field of an answer that this version does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherField {
    /// The field's name.
    pub name: String,
    /// Its value as JSON text.
    pub text: String,
}

/// `KVM_MEMORY_EXIT_FLAG_PRIVATE`
pub const MEMORY_EXIT_FLAG_PRIVATE: u64 = 8;

impl Answer {
    /// Success with nothing to say: `{"ok": 0}`.
    pub const OK: Answer = Answer::Ok { value: 0, detail: Detail::None };

    /// Success with a returned number.
    pub fn ok(value: u64) -> Answer {
        Answer::Ok { value, detail: Detail::None }
    }

    /// Failure with nothing but the error.
    pub fn errno(errno: Errno) -> Answer {
        Answer::Failed { errno, detail: Detail::None }
    }

    /// An exit without an error.
    pub fn exit(exit: Exit) -> Answer {
        Answer::Exit { errno: None, exit }
    }

    /// Reads an answer as recordings write it.
    ///
    /// # Errors
    /// What was expected and found, if `value` is no object or a known field has the wrong type.
    pub fn from_json(value: &Value) -> Result<Answer, String> {
        let Value::Object(object) = value else {
            return Err(format!("expected an object such as {{\"ok\": 0}}, found {}", describe(value)));
        };
        let mut fields = Fields(object.clone());
        let answer = fields.answer()?;
        match answer {
            Some(answer) if fields.0.is_empty() => Ok(answer),
            _ => Ok(Answer::Other(
                object
                    .iter()
                    .map(|(name, value)| OtherField { name: name.clone(), text: recorded_style(value) })
                    .collect(),
            )),
        }
    }

    /// The answer as recordings write it, fields in their order.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        match self {
            Answer::Ok { value, detail } => {
                out.insert("ok".into(), (*value).into());
                detail.write(&mut out);
            }
            Answer::Failed { errno, detail } => {
                out.insert("errno".into(), errno.name().into());
                detail.write(&mut out);
            }
            Answer::Signal(signal) => {
                out.insert("signal".into(), signal.name().into());
            }
            Answer::Exit { errno, exit } => {
                if let Some(errno) = errno {
                    out.insert("errno".into(), errno.name().into());
                }
                exit.write(&mut out);
            }
            Answer::Other(fields) => {
                for OtherField { name, text } in fields {
                    // The text was printed from JSON; should someone have made it by hand, it is shown as a string.
                    let value = serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into());
                    out.insert(name.clone(), value);
                }
            }
        }
        Value::Object(out)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&recorded_style(&self.to_json()))
    }
}

impl Detail {
    fn write(&self, out: &mut Map<String, Value>) {
        let mut put = |name: &str, value: Value| drop(out.insert(name.into(), value));
        match self {
            Detail::None => {}
            Detail::Value(value) => put("value", (*value).into()),
            Detail::Range { gpa, size } => {
                put("gpa", (*gpa).into());
                put("size", (*size).into());
            }
            Detail::Firmware { error } => put("fw_error", (*error).into()),
            Detail::Stat(stat) => {
                put("size", stat.size.into());
                put("blocks", stat.blocks.into());
                put("blksize", stat.blksize.into());
                put("mode", stat.mode.into());
                put("nlink", stat.nlink.into());
            }
            Detail::Dirty(bits) => put("dirty", bits.as_slice().into()),
            Detail::Resident(pages) => put("resident", pages.as_slice().into()),
            Detail::Idle(pages) => put("idle", pages.as_slice().into()),
        }
    }
}

impl Exit {
    /// The name of the exit in `exit`.
    pub fn name(&self) -> String {
        match self {
            Exit::Hlt { .. } => "hlt".into(),
            Exit::Done { .. } => "done".into(),
            Exit::Exception { .. } => "exception".into(),
            Exit::Mmio { .. } => "mmio".into(),
            Exit::Hypercall { .. } => "hypercall".into(),
            Exit::MemoryFault { .. } => "memory_fault".into(),
            Exit::InternalError { .. } => "internal_error".into(),
            Exit::Shutdown => "shutdown".into(),
            Exit::SystemEvent { .. } => "system_event".into(),
            Exit::FailEntry { .. } => "fail_entry".into(),
            Exit::Intr => "intr".into(),
            Exit::Reason(number) => format!("reason_{number}"),
        }
    }

    fn write(&self, out: &mut Map<String, Value>) {
        let mut put = |name: &str, value: Value| drop(out.insert(name.into(), value));
        put("exit", self.name().into());
        match self {
            Exit::Hlt { value: Some(value) } | Exit::Done { value: Some(value) } => put("value", (*value).into()),
            Exit::Exception { vector, error, cr2 } => {
                put("vector", (*vector).into());
                put("error", (*error).into());
                if let Some(cr2) = cr2 {
                    put("cr2", (*cr2).into());
                }
            }
            Exit::Mmio { gpa, len, write } => {
                put("gpa", (*gpa).into());
                put("len", (*len).into());
                put("write", (*write).into());
            }
            Exit::Hypercall { nr, args, rax } => {
                put("nr", (*nr).into());
                put("args", args.as_slice().into());
                if let Some(rax) = rax {
                    put("rax", (*rax).into());
                }
            }
            Exit::MemoryFault { flags, gpa, size } => {
                put("flags", (*flags).into());
                put("gpa", (*gpa).into());
                put("size", (*size).into());
            }
            Exit::InternalError { suberror, data } => {
                for (name, value) in [("suberror", suberror), ("data", data)] {
                    if let Some(value) = value {
                        put(name, (*value).into());
                    }
                }
            }
            Exit::SystemEvent { kind, data } => {
                put("type", (*kind).into());
                put("data", (*data).into());
            }
            Exit::FailEntry { reason } => put("reason", (*reason).into()),
            Exit::Hlt { value: None } | Exit::Done { value: None } => {}
            Exit::Shutdown | Exit::Intr | Exit::Reason(_) => {}
        }
    }
}

/// The fields that are still to be understood.
struct Fields(Map<String, Value>);

impl Fields {
    /// The answer, as far as its fields are known; what is left in `self` was not.
    fn answer(&mut self) -> Result<Option<Answer>, String> {
        let ok = self.number("ok")?;
        let errno = self.text("errno")?;
        let signal = self.text("signal")?;
        let exit = self.text("exit")?;
        // An error that this version has no name for makes the whole answer "other", which the caller sees as `None`.
        let known_errno = errno.as_deref().and_then(Errno::from_name);
        if errno.is_some() && known_errno.is_none() {
            return Ok(None);
        }
        Ok(match (ok, known_errno, signal, exit) {
            (Some(value), None, None, None) => Some(Answer::Ok { value, detail: self.detail()? }),
            (None, Some(errno), None, None) => Some(Answer::Failed { errno, detail: self.detail()? }),
            (None, None, Some(signal), None) => Signal::from_name(&signal).map(Answer::Signal),
            (None, errno, None, Some(exit)) => self.exit(&exit)?.map(|exit| Answer::Exit { errno, exit }),
            _ => None,
        })
    }

    fn detail(&mut self) -> Result<Detail, String> {
        if let Some(value) = self.number("value")? {
            return Ok(Detail::Value(value));
        }
        if let Some(error) = self.number("fw_error")? {
            return Ok(Detail::Firmware { error });
        }
        if let Some(bits) = self.numbers("dirty")? {
            return Ok(Detail::Dirty(bits));
        }
        if let Some(pages) = self.numbers("resident")? {
            return Ok(Detail::Resident(pages));
        }
        if let Some(pages) = self.numbers("idle")? {
            return Ok(Detail::Idle(pages));
        }
        if self.has(&["size", "blocks", "blksize", "mode", "nlink"]) {
            let mut field = |name| self.required(name);
            return Ok(Detail::Stat(FileStat {
                size: field("size")?,
                blocks: field("blocks")?,
                blksize: field("blksize")?,
                mode: field("mode")?,
                nlink: field("nlink")?,
            }));
        }
        if self.has(&["gpa", "size"]) {
            return Ok(Detail::Range { gpa: self.required("gpa")?, size: self.required("size")? });
        }
        Ok(Detail::None)
    }

    fn exit(&mut self, name: &str) -> Result<Option<Exit>, String> {
        Ok(Some(match name {
            "hlt" => Exit::Hlt { value: self.number("value")? },
            "done" => Exit::Done { value: self.number("value")? },
            "exception" if self.has(&["vector", "error"]) => Exit::Exception {
                vector: self.required("vector")?,
                error: self.required("error")?,
                cr2: self.number("cr2")?,
            },
            "mmio" if self.has(&["gpa", "len", "write"]) => {
                Exit::Mmio { gpa: self.required("gpa")?, len: self.required("len")?, write: self.truth("write")? }
            }
            "hypercall" if self.has(&["nr", "args"]) => Exit::Hypercall {
                nr: self.required("nr")?,
                args: self.numbers("args")?.unwrap_or_default(),
                rax: self.number("rax")?,
            },
            "memory_fault" if self.has(&["flags", "gpa", "size"]) => Exit::MemoryFault {
                flags: self.required("flags")?,
                gpa: self.required("gpa")?,
                size: self.required("size")?,
            },
            "internal_error" => Exit::InternalError { suberror: self.number("suberror")?, data: self.number("data")? },
            "shutdown" => Exit::Shutdown,
            "system_event" if self.has(&["type", "data"]) => {
                Exit::SystemEvent { kind: self.required("type")?, data: self.required("data")? }
            }
            "fail_entry" if self.has(&["reason"]) => Exit::FailEntry { reason: self.required("reason")? },
            "intr" => Exit::Intr,
            // A number that would print differently (leading zeros, a sign) is not ours.
            _ => match name.strip_prefix("reason_").and_then(|digits| digits.parse().ok()).map(Exit::Reason) {
                Some(exit) if exit.name() == name => exit,
                _ => return Ok(None),
            },
        }))
    }

    fn has(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.0.contains_key(*name))
    }

    fn take<T>(&mut self, name: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, String> {
        match self.0.shift_remove(name) {
            None => Ok(None),
            Some(value) => read(&value)
                .map(Some)
                .ok_or_else(|| format!("`{name}`: expected {expected}, found {}", describe(&value))),
        }
    }

    fn number(&mut self, name: &str) -> Result<Option<u64>, String> {
        self.take(name, "an unsigned 64-bit number", Value::as_u64)
    }

    fn required(&mut self, name: &str) -> Result<u64, String> {
        self.number(name)?.ok_or_else(|| format!("`{name}` is missing"))
    }

    fn truth(&mut self, name: &str) -> Result<bool, String> {
        Ok(self.take(name, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        self.take(name, "a string", |value| value.as_str().map(String::from))
    }

    fn numbers(&mut self, name: &str) -> Result<Option<Vec<u64>>, String> {
        self.take(name, "a list of unsigned 64-bit numbers", |value| {
            value.as_array()?.iter().map(Value::as_u64).collect()
        })
    }
}
