//! Reads a scenario file: the TOML outside, with a place for every mistake.
//!
//! Simplified: the first mistake ends the reading.

use std::ops::Range;
use std::sync::Arc;

use sim_kernel::MutantSet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::line::{self, LineError};
use super::offsets::offsets;
use super::{Diagnostic, Outcome, Scenario, Step, Thread, words};
use crate::facts::{FACTS, FactValue, STAGE2_NAMES};
use crate::kvm::config::{KernelVersionError, MachineConfig};
use crate::mutants;
use crate::ops::suggest::did_you_mean;

/// The most threads that a scenario has: a schedule names each in six bits, and one is left for the kernel's own.
pub const THREADS_MAX: usize = 63;

type Table<'s> = DeTable<'s>;
type Node<'s> = Spanned<DeValue<'s>>;

/// Parses a scenario. `file` is its name in errors; without `name` in the text, its stem names the scenario.
///
/// # Errors
/// The first mistake, with its place and what was expected there.
///
/// ```
/// let scenario = gmem::scenario::parse("scenarios/one.toml", r#"
/// [thread.vmm]
/// run = "create_vm vm0 => ok"
/// "#).unwrap();
/// assert_eq!((scenario.name.as_str(), scenario.threads.len()), ("one", 1));
/// ```
pub fn parse(file: &str, source: &str) -> Result<Scenario, Box<Diagnostic>> {
    let reader = FileReader { file: file.into(), source: source.into() };
    reader.scenario(source).map_err(Box::new)
}

struct FileReader {
    file: Arc<str>,
    source: Arc<str>,
}

impl FileReader {
    fn scenario(&self, source: &str) -> Result<Scenario, Diagnostic> {
        let document = DeTable::parse(source).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            self.error(span, "this is not TOML", error.message())
        })?;
        let root = document.get_ref();
        self.known_keys(root, "a scenario", &["scenario", "machine", "setup", "thread", "finish", "expect"])?;

        let mut scenario = Scenario {
            name: stem(&self.file),
            teaches: None,
            machine: MachineConfig::default(),
            setup: Vec::new(),
            threads: Vec::new(),
            finish: Vec::new(),
            outcomes: Vec::new(),
        };
        if let Some(table) = self.section(root, "scenario", "scenario", &["name", "teaches"])? {
            if let Some(name) = table.get("name") {
                scenario.name = self.text(name, "the scenario's name")?.to_string();
            }
            if let Some(teaches) = table.get("teaches") {
                scenario.teaches = Some(self.text(teaches, "a sentence")?.to_string());
            }
        }
        let keys: Vec<_> =
            ["kernel", "stage2", "mutants"].into_iter().chain(FACTS.iter().map(|fact| fact.name)).collect();
        if let Some(table) = self.section(root, "machine", "machine", &keys)? {
            scenario.machine = self.machine(table)?;
            if let (Err(problem), Some(node)) = (scenario.machine.check(), root.get("machine")) {
                return Err(self.error(node.span(), "there is no such machine", problem));
            }
        }
        scenario.setup = self.run(root, "setup", "setup")?;
        scenario.threads = self.threads(root)?;
        scenario.finish = self.run(root, "finish", "finish")?;
        if scenario.steps().next().is_none() {
            let expected = "expected operations in [setup], [thread.NAME] or [finish]";
            return Err(self.error(0..0, "the scenario does nothing", expected));
        }
        self.labels(&scenario)?;
        if let Some(table) = self.section(root, "expect", "expect", &["outcomes"])? {
            scenario.outcomes = self.outcomes(table, &scenario)?;
        }
        Ok(scenario)
    }

    fn machine(&self, table: &Table<'_>) -> Result<MachineConfig, Diagnostic> {
        let mut machine = MachineConfig::default();
        if let Some(kernel) = table.get("kernel") {
            let text = self.text(kernel, "the kernel")?;
            let expected = format!("expected a release such as \"{}\"", machine.kernel);
            machine.kernel = text
                .parse()
                .map_err(|error: KernelVersionError| self.error(kernel.span(), error.to_string(), expected))?;
        }
        if let Some(stage2) = table.get("stage2") {
            let text = self.text(stage2, "the second stage")?;
            if !machine.set_stage2(text) {
                let names: Vec<String> = STAGE2_NAMES.iter().map(|name| format!("\"{name}\"")).collect();
                let expected = format!("expected one of {}", names.join(", "));
                return Err(self.error(stage2.span(), format!("unknown second stage `{text}`"), expected));
            }
        }
        if let Some(node) = table.get("mutants") {
            machine.mutants = self.mutants(node)?;
        }
        for fact in FACTS {
            let Some(node) = table.get(fact.name) else { continue };
            let value = match node.get_ref() {
                DeValue::String(text) if fact.is_number => words::number(text).map(FactValue::Number),
                DeValue::String(text) => Some(FactValue::Word(text.to_string())),
                DeValue::Integer(number) => {
                    u64::from_str_radix(number.as_str(), number.radix()).ok().map(FactValue::Number)
                }
                DeValue::Boolean(switch) => Some(FactValue::Switch(*switch)),
                _ => None,
            };
            value.ok_or(fact.expected).and_then(|value| fact.state(&mut machine, &value)).map_err(|expected| {
                self.error(node.span(), format!("this is no {}", fact.what), format!("expected {expected}"))
            })?;
        }
        Ok(machine)
    }

    fn mutants(&self, node: &Spanned<DeValue<'_>>) -> Result<MutantSet, Diagnostic> {
        let expected = "expected a list of mutants such as [\"RC-01\"]";
        let Some(list) = node.get_ref().as_array() else {
            return Err(self.error(node.span(), "these are no mutants", expected));
        };
        let mut mutants = MutantSet::EMPTY;
        for node in list.iter() {
            let info = mutants::named(self.text(node, "the id of a mutant")?)
                .map_err(|problem| self.error(node.span(), problem, "expected an id that `gmem zoo --list` shows"))?;
            mutants = mutants.with(info.mutant);
        }
        Ok(mutants)
    }

    fn threads(&self, root: &Table<'_>) -> Result<Vec<Thread>, Diagnostic> {
        let Some(node) = root.get("thread") else { return Ok(Vec::new()) };
        let Some(table) = node.get_ref().as_table() else {
            return Err(self.error(node.span(), "this is no thread", "expected [thread.NAME] with `run`"));
        };
        // The parser sorts keys; threads keep the order of the file.
        let mut nodes: Vec<_> = table.iter().collect();
        nodes.sort_by_key(|(name, _)| name.span().start);
        if let Some((name, _)) = nodes.get(THREADS_MAX) {
            let expected = format!("expected at most {THREADS_MAX} threads");
            return Err(self.error(name.span(), "too many threads", expected));
        }
        let mut threads = Vec::new();
        for (name, node) in nodes {
            let text = name.get_ref().as_ref();
            if !words::is_plain_name(text) {
                let expected = "expected letters, digits, `_`, `.` and `-`";
                return Err(self.error(name.span(), "this is no name of a thread", expected));
            }
            let steps = self.run(table, text, &format!("thread.{text}"))?;
            if steps.is_empty() {
                let title = format!("the thread `{text}` does nothing");
                return Err(self.error(node.span(), title, "expected `run` with operations"));
            }
            threads.push(Thread { name: text.to_string(), steps });
        }
        Ok(threads)
    }

    /// The steps of `run` in the section `name`, which the file calls `place`.
    fn run(&self, parent: &Table<'_>, name: &str, place: &str) -> Result<Vec<Step>, Diagnostic> {
        let Some(table) = self.section(parent, name, place, &["run"])? else { return Ok(Vec::new()) };
        let Some(node) = table.get("run") else { return Ok(Vec::new()) };
        let text = self.text(node, "operations, one a line")?;
        let places = self.places(node, text);
        let mut steps = Vec::new();
        let mut start = 0;
        for line in text.split('\n') {
            if !line::is_blank(line) {
                let parsed = line::parse_line(line).map_err(|error| self.line_error(error, &places, start))?;
                let at = places.at(start + line.len() - line.trim_start().len());
                steps.push(Step {
                    label: parsed.label,
                    op: parsed.op,
                    expect: parsed.expect,
                    line: (self.source[..at].matches('\n').count() + 1).try_into().unwrap_or(u32::MAX),
                    text: line::without_comment(line).trim().to_string(),
                });
            }
            start += line.len() + 1;
        }
        Ok(steps)
    }

    fn labels(&self, scenario: &Scenario) -> Result<(), Diagnostic> {
        let mut seen: Vec<&str> = Vec::new();
        for step in scenario.steps() {
            let Some(label) = step.label.as_deref() else { continue };
            if seen.contains(&label) {
                let title = format!("the label `{label}` is given twice");
                return Err(self.error(self.line_span(step), title, "given before; expected another name"));
            }
            seen.push(label);
        }
        Ok(())
    }

    fn outcomes(&self, table: &Table<'_>, scenario: &Scenario) -> Result<Vec<Outcome>, Diagnostic> {
        let Some(node) = table.get("outcomes") else { return Ok(Vec::new()) };
        let expected = "expected a list of outcomes such as [\"r0 => hlt 7 & r1 => ok\"]";
        let Some(list) = node.get_ref().as_array() else {
            return Err(self.error(node.span(), "these are no outcomes", expected));
        };
        let mut outcomes = Vec::new();
        for node in list.iter() {
            let text = self.text(node, "an outcome such as \"r0 => hlt 7 & r1 => ok\"")?;
            let places = self.places(node, text);
            let parsed = line::conditions(text).map_err(|error| self.line_error(error, &places, 0))?;
            let mut conditions = Vec::new();
            for (label, span, expectation) in parsed {
                let known = || scenario.steps().filter_map(|step| step.label.as_deref());
                if !known().any(|known| known == label) {
                    let title = format!("no step has the label `{label}`{}", did_you_mean(&label, known()));
                    let expected = "expected a label that a step has, as in `r0: guest_read ...`";
                    return Err(self.error(places.span(span), title, expected));
                }
                conditions.push((label, expectation));
            }
            outcomes.push(Outcome { text: text.to_string(), conditions });
        }
        Ok(outcomes)
    }

    fn section<'t, 's>(
        &self,
        parent: &'t Table<'s>,
        name: &str,
        place: &str,
        keys: &[&str],
    ) -> Result<Option<&'t Table<'s>>, Diagnostic> {
        let Some(node) = parent.get(name) else { return Ok(None) };
        let Some(table) = node.get_ref().as_table() else {
            let title = format!("`{place}` is {}", article(node.get_ref().type_str()));
            return Err(self.error(node.span(), title, format!("expected a table [{place}] with {}", keys.join(", "))));
        };
        self.known_keys(table, &format!("[{place}]"), keys)?;
        Ok(Some(table))
    }

    fn known_keys(&self, table: &Table<'_>, place: &str, known: &[&str]) -> Result<(), Diagnostic> {
        let unknown = table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        match unknown.min_by_key(|key| key.span().start) {
            None => Ok(()),
            Some(key) => {
                let suggestion = did_you_mean(key.get_ref(), known.iter().copied());
                let title = format!("{place} has no key `{}`{suggestion}", key.get_ref());
                let one_of = if known.len() > 1 { "one of " } else { "" };
                Err(self.error(key.span(), title, format!("expected {one_of}{}", known.join(", "))))
            }
        }
    }

    fn text<'t>(&self, node: &'t Node<'_>, expected: &str) -> Result<&'t str, Diagnostic> {
        node.get_ref().as_str().ok_or_else(|| {
            let title = format!("this is {}", article(node.get_ref().type_str()));
            self.error(node.span(), title, format!("expected {expected}, in quotes"))
        })
    }

    fn error(&self, span: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> Diagnostic {
        Diagnostic::new((&self.file, &self.source), span, title, label)
    }

    fn line_error(&self, error: LineError, places: &Places, start: usize) -> Diagnostic {
        let span = start + error.span.start..start + error.span.end;
        let diagnostic = self.error(places.span(span), error.title, error.label);
        match error.help {
            Some(help) => diagnostic.with_help(help),
            None => diagnostic,
        }
    }

    /// The source line of a step.
    fn line_span(&self, step: &Step) -> Range<usize> {
        let before = self.source.split_inclusive('\n').take(step.line as usize - 1).map(str::len).sum::<usize>();
        let line = self.source[before..].lines().next().unwrap_or_default();
        before + line.len() - line.trim_start().len()..before + line.len()
    }

    fn places(&self, node: &Node<'_>, decoded: &str) -> Places {
        let span = node.span();
        let raw = self.source.get(span.clone()).unwrap_or_default();
        Places { map: offsets(raw, decoded), span }
    }
}

/// Where the bytes of a TOML string stand in the file.
struct Places {
    map: Option<Vec<usize>>,
    span: Range<usize>,
}

impl Places {
    /// The place of a byte; of the whole string, should its spelling be beyond us.
    fn at(&self, byte: usize) -> usize {
        let offset = self.map.as_ref().and_then(|map| map.get(byte).or(map.last())).copied();
        self.span.start + offset.unwrap_or(0)
    }

    fn span(&self, bytes: Range<usize>) -> Range<usize> {
        if self.map.is_none() { self.span.clone() } else { self.at(bytes.start)..self.at(bytes.end) }
    }
}

fn article(kind: &str) -> String {
    let an = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if an { "an" } else { "a" })
}

fn stem(file: &str) -> String {
    let path = std::path::Path::new(file);
    path.file_stem().map_or_else(|| file.to_string(), |stem| stem.to_string_lossy().into_owned())
}
