//! Prints an operation as a line of a scenario, in the one form that the printer prefers.
//!
//! Short operations are printed by position, long ones by name after the objects; defaults are left out. Whatever is
//! printed is read back as the same operation, which a property test checks.

use serde_json::Value;

use super::words::{self, NONE};
use super::{Scenario, Step};
use crate::facts::{FACTS, FactValue};
use crate::kvm::config::{KernelVersion, MachineConfig};
use crate::mutants;
use crate::ops::Op;
use crate::ops::json::recorded_style;
use crate::ops::table::{self, Arg, Kind, Symbol};

/// Operations with more arguments than this name them.
const POSITIONAL_MAX: usize = 4;

/// The operation as a line of a scenario.
///
/// ```
/// use gmem::ops::Op;
/// let op = Op::Fallocate { fd: "g0".into(), mode: 3, offset: 0, len: 4096 };
/// assert_eq!(gmem::scenario::print(&op), "fallocate g0 punch_hole 0 4K");
/// ```
pub fn print(op: &Op) -> String {
    let mut line = op.name().to_string();
    let Some(spec) = table::find(op.name()) else { return line };
    let fields = serde_json::to_value(op).unwrap_or_default();
    // What a trace may leave out is the default.
    let default = |arg: &Arg| arg.default.and_then(|default| words::value(arg.kind, default));
    let field = |arg: &Arg| fields.get(arg.name).cloned().or_else(|| default(arg)).unwrap_or_default();
    let is_default =
        |arg: &Arg| arg.default.is_some_and(|default| words::value(arg.kind, default).as_ref() == Some(&field(arg)));

    let positional = if spec.args.len() <= POSITIONAL_MAX {
        spec.args.len() - spec.args.iter().rev().take_while(|arg| is_default(arg)).count()
    } else {
        spec.args.iter().take_while(|arg| matches!(arg.kind, Kind::Name(_))).count()
    };
    for (i, arg) in spec.args.iter().enumerate() {
        let word = word(arg.kind, &field(arg));
        if i < positional {
            line.push_str(&format!(" {word}"));
        } else if !is_default(arg) {
            line.push_str(&format!(" {}={word}", arg.name));
        }
    }
    line
}

/// A whole scenario as the text of its file: [`parse`](super::parse) reads it back. Of the machine, what is as in the default is left out.
///
/// ```
/// let text = "[thread.vmm]\nrun = \"\"\"\ncreate_vm vm0 => ok\n\"\"\"\n";
/// let scenario = gmem::scenario::parse("one.toml", text).unwrap();
/// let printed = gmem::scenario::print_file(&scenario);
/// assert_eq!(printed, format!("[scenario]\nname = \"one\"\n\n{text}"));
/// ```
pub fn print_file(scenario: &Scenario) -> String {
    let mut text = format!("[scenario]\nname = \"{}\"\n", escaped(&scenario.name));
    if let Some(teaches) = &scenario.teaches {
        text.push_str(&format!("teaches = \"{}\"\n", escaped(teaches)));
    }
    let machine = machine(&scenario.machine);
    if !machine.is_empty() {
        text.push_str(&format!("\n[machine]\n{machine}"));
    }
    section(&mut text, "setup", &scenario.setup);
    for thread in &scenario.threads {
        section(&mut text, &format!("thread.{}", thread.name), &thread.steps);
    }
    section(&mut text, "finish", &scenario.finish);
    if !scenario.outcomes.is_empty() {
        text.push_str("\n[expect]\noutcomes = [\n");
        for outcome in &scenario.outcomes {
            text.push_str(&format!("  \"{}\",\n", escaped(&outcome.text)));
        }
        text.push_str("]\n");
    }
    text
}

fn machine(machine: &MachineConfig) -> String {
    let default = MachineConfig::default();
    let mut text = String::new();
    if machine.kernel != KernelVersion::default() {
        text.push_str(&format!("kernel = \"{}\"\n", machine.kernel));
    }
    if machine.stage2_name() != default.stage2_name() {
        text.push_str(&format!("stage2 = \"{}\"\n", machine.stage2_name()));
    }
    let ids = mutants::all().filter(|info| machine.mutants.contains(info.mutant));
    let ids: Vec<String> = ids.map(|info| format!("\"{}\"", info.id())).collect();
    if !ids.is_empty() {
        text.push_str(&format!("mutants = [{}]\n", ids.join(", ")));
    }
    for fact in FACTS.iter().filter(|fact| fact.of(machine) != fact.of(&default)) {
        let value = match fact.of(machine) {
            FactValue::Number(number) => number.to_string(),
            FactValue::Switch(switch) => switch.to_string(),
            FactValue::Word(word) => format!("\"{word}\""),
        };
        text.push_str(&format!("{} = {value}\n", fact.name));
    }
    text
}

fn section(text: &mut String, name: &str, steps: &[Step]) {
    if !steps.is_empty() {
        let lines: String = steps.iter().map(|step| format!("{}\n", escaped_lines(&step.text))).collect();
        text.push_str(&format!("\n[{name}]\nrun = \"\"\"\n{lines}\"\"\"\n"));
    }
}

/// Text for a TOML string of several lines.
fn escaped_lines(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace("\"\"\"", "\"\"\\\"");
    escaped.chars().map(|c| if c.is_control() { format!("\\u{:04x}", c as u32) } else { c.to_string() }).collect()
}

/// Text for a TOML string.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").chars().fold(String::new(), |mut escaped, c| {
        match c.is_control() {
            true => escaped.push_str(&format!("\\u{:04x}", c as u32)),
            false => escaped.push(c),
        }
        escaped
    })
}

fn word(kind: Kind, value: &Value) -> String {
    let number = value.as_u64().unwrap_or_default();
    match kind {
        Kind::MaybeName(_) if value.is_null() => NONE.into(),
        Kind::Name(_) | Kind::MaybeName(_) => name(value),
        Kind::Count => number.to_string(),
        Kind::Size => size(number),
        Kind::Address => format!("{number:#x}"),
        Kind::Signed => signed(value.as_i64().unwrap_or_default()),
        Kind::Flags(known) => flags(known, number),
        Kind::Choice(known) | Kind::Only(known) => {
            symbol(known, number).map_or_else(|| number.to_string(), String::from)
        }
        Kind::Hva => match (value.get("map"), value.get("offset").and_then(Value::as_u64)) {
            (Some(map), Some(0)) => name(map),
            (Some(map), Some(offset)) => format!("{}+{offset:#x}", name(map)),
            _ => format!("{number:#x}"),
        },
        Kind::FdRef => match value.as_i64() {
            Some(-1) => NONE.into(),
            Some(number) => number.to_string(),
            None => name(value),
        },
        Kind::Prot => match value.as_str() {
            None | Some("") => NONE.into(),
            Some(letters) => letters.into(),
        },
        Kind::Advice | Kind::Word(_) => value.as_str().unwrap_or_default().into(),
        Kind::Switch { off, on } => if value == &Value::Bool(true) { on } else { off }.into(),
        Kind::List => recorded_style(value),
    }
}

fn name(value: &Value) -> String {
    match value.as_str() {
        Some(name) if words::is_plain_name(name) && name != NONE => name.into(),
        _ => recorded_style(value),
    }
}

fn size(bytes: u64) -> String {
    let suffix = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    match suffix.into_iter().find(|(_, shift)| bytes != 0 && bytes.is_multiple_of(1 << shift)) {
        Some((suffix, shift)) => format!("{}{suffix}", bytes >> shift),
        None => bytes.to_string(),
    }
}

fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", size(bytes.unsigned_abs()))
}

fn symbol(known: &[Symbol], value: u64) -> Option<&'static str> {
    known.iter().find(|(_, known)| *known == value).map(|(name, _)| *name)
}

fn flags(known: &[Symbol], value: u64) -> String {
    if let Some(name) = symbol(known, value) {
        return name.into();
    }
    let mut left = value;
    let mut parts = Vec::new();
    for (name, bits) in known {
        if *bits != 0 && left & bits == *bits {
            parts.push((*name).to_string());
            left &= !bits;
        }
    }
    if left != 0 || parts.is_empty() {
        parts.push(if left < 10 { left.to_string() } else { format!("{left:#x}") });
    }
    parts.join("|")
}
