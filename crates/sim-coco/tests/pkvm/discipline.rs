//! A checker of Arm's stage-2 discipline that knows nothing but the recording: what an external one would do with it.
//!
//! It follows the tables from their roots by the descriptors that were written, and demands: break before make; TLB maintenance, and its barrier, before a descriptor that was
//! taken away is replaced, its table used for something else, or the page changes hands; descriptors written under the lock of their tree, and only in tables; pages cleared between
//! a guest and the host.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: u64 = 0x1000;
const ADDRESS: u64 = ((1 << 48) - 1) & !0xfff;
/// What may change in a valid descriptor without a break: permissions and the access flag.
const SOFT: u64 = 1 << 6 | 1 << 7 | 1 << 10 | 1 << 54;

/// Where a descriptor is on its way from valid to anything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Written invalid; walks may not see that yet.
    Unclean,
    /// Walks do; TLBs may have it.
    Ordered,
    /// TLBI was issued.
    Invalidated,
}

/// A descriptor that was valid and is not any more.
#[derive(Clone, Copy, Debug)]
struct Broken {
    cpu: u64,
    vmid: u64,
    ipa: u64,
    level: u64,
    pages: (u64, u64),
    stage: Stage,
}

#[derive(Default)]
pub(crate) struct Checker {
    /// Frames of tables, and whose they are.
    tables: BTreeMap<u64, u64>,
    /// Values of descriptors.
    memory: BTreeMap<u64, u64>,
    broken: BTreeMap<u64, Broken>,
    /// Locks that are held, by processor.
    locks: BTreeMap<u64, BTreeSet<(String, Option<u64>)>>,
    /// Pages of guests that were not cleared since they were mapped.
    dirty: BTreeSet<u64>,
    /// Pages that the host does not have.
    taken: BTreeSet<u64>,
}

fn number(record: &Value, field: &str) -> u64 {
    match &record[field] {
        Value::String(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a hexadecimal number"),
        other => other.as_u64().unwrap_or_else(|| panic!("{field} of {record} is a number")),
    }
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_else(|| panic!("{field} of {record} is a text"))
}

fn span(level: u64) -> u64 {
    PAGE << (9 * (3 - level))
}

impl Checker {
    /// Reads JSON Lines.
    ///
    /// # Errors
    /// The first line that breaks the discipline, and how.
    pub(crate) fn check(lines: &str) -> Result<(), String> {
        let mut checker = Checker::default();
        for (i, line) in lines.lines().enumerate() {
            let record: Value = serde_json::from_str(line).map_err(|error| format!("line {}: {error}", i + 1))?;
            checker.step(&record).map_err(|what| format!("line {}: {what}: {line}", i + 1))?;
        }
        let left = checker.broken.values().next();
        left.map_or(Ok(()), |broken| Err(format!("TLBs may still have {broken:x?}")))
    }

    fn step(&mut self, record: &Value) -> Result<(), String> {
        let cpu = number(record, "cpu");
        match text(record, "event") {
            "lock" => self.lock(cpu, record),
            "unlock" => {
                let lock = (text(record, "lock").to_string(), record.get("vmid").and_then(Value::as_u64));
                let held = self.locks.entry(cpu).or_default().remove(&lock);
                held.then_some(()).ok_or("a lock is released that is not held".into())
            }
            "exit" => {
                let held = self.locks.get(&cpu).is_some_and(|locks| !locks.is_empty());
                if held { Err("a lock is held at the end".into()) } else { Ok(()) }
            }
            "root" => {
                for i in 0..number(record, "pages") {
                    self.tables.insert(number(record, "page") + i * PAGE, number(record, "vmid"));
                }
                Ok(())
            }
            "table" => {
                let page = number(record, "page");
                let vmid = number(record, "vmid");
                self.forget(page)?;
                self.tables.insert(page, vmid);
                // The host's own tables are there before it has lost anything.
                let safe = vmid == 0 || self.taken.contains(&page);
                safe.then_some(()).ok_or("a table in memory of the host".into())
            }
            "table-gone" => {
                let page = number(record, "page");
                self.tables.remove(&page).map(|_| ()).ok_or("no table".into())
            }
            "root-gone" => {
                let vmid = number(record, "vmid");
                self.tables.retain(|_, of| *of != vmid);
                Ok(())
            }
            "pte" => self.pte(cpu, record),
            "tlbi" => {
                self.tlbi(cpu, record);
                Ok(())
            }
            "dsb" => {
                self.broken.retain(|_, broken| broken.cpu != cpu || broken.stage != Stage::Invalidated);
                for broken in self.broken.values_mut().filter(|broken| broken.cpu == cpu) {
                    broken.stage = Stage::Ordered;
                }
                Ok(())
            }
            "zero" => {
                self.dirty.remove(&number(record, "page"));
                Ok(())
            }
            "state" => self.state(record),
            "enter" | "el2-map" => Ok(()),
            other => Err(format!("no event: {other}")),
        }
    }

    /// Locks are taken in one order.
    fn lock(&mut self, cpu: u64, record: &Value) -> Result<(), String> {
        let class = text(record, "lock");
        let rank = |class: &str| ["vm_table", "host", "hyp", "vm"].iter().position(|of| *of == class);
        let held = self.locks.entry(cpu).or_default();
        if let Some((other, _)) = held.iter().find(|(other, _)| rank(other) >= rank(class)) {
            return Err(format!("{class} after {other}"));
        }
        if class == "vm" && held.iter().any(|(other, _)| other == "hyp") {
            return Err("the locks of the hypervisor and of a VM are not nested".into());
        }
        held.insert((class.to_string(), record.get("vmid").and_then(Value::as_u64)));
        Ok(())
    }

    /// A page is used for something else: nobody may still translate through it, or to it.
    fn forget(&mut self, page: u64) -> Result<(), String> {
        let stale = self.broken.values().find(|broken| {
            let (first, bytes) = broken.pages;
            (first..first + bytes).contains(&page)
        });
        self.memory.retain(|at, _| at & !(PAGE - 1) != page);
        stale.map_or(Ok(()), |broken| Err(format!("TLBs may still have {broken:x?}")))
    }

    fn pte(&mut self, cpu: u64, record: &Value) -> Result<(), String> {
        let (at, vmid, level) = (number(record, "at"), number(record, "vmid"), number(record, "level"));
        let (old, new, ipa) = (number(record, "old"), number(record, "new"), number(record, "ipa"));
        if self.tables.get(&(at & !(PAGE - 1))) != Some(&vmid) {
            return Err("written outside the tables of its tree".into());
        }
        if self.memory.get(&at).copied().unwrap_or(0) != old {
            return Err("what was there is something else".into());
        }
        let lock = if vmid == 0 { ("host".to_string(), None) } else { ("vm".to_string(), Some(vmid)) };
        if !self.locks.get(&cpu).is_some_and(|locks| locks.contains(&lock)) {
            return Err("written without the lock of its tree".into());
        }
        self.memory.insert(at, new);
        let table = |pte: u64| pte & 3 == 3 && level < 3;
        match (old & 1 != 0, new & 1 != 0) {
            (true, true) if (old ^ new) & !SOFT != 0 || table(old) => return Err("break before make".into()),
            (true, false) => {
                let bytes = if table(old) { PAGE } else { span(level) };
                let pages = (old & ADDRESS, bytes);
                self.broken.insert(at, Broken { cpu, vmid, ipa, level, pages, stage: Stage::Unclean });
            }
            (false, true) => {
                if self.broken.contains_key(&at) {
                    return Err("made before TLB maintenance was complete".into());
                }
                if vmid != 0 && !table(new) && new >> 55 & 3 == 0 {
                    let first = new & ADDRESS;
                    self.dirty.extend((0..span(level) / PAGE).map(|i| first + i * PAGE));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn tlbi(&mut self, cpu: u64, record: &Value) {
        let vmid = number(record, "vmid");
        let range = record.get("ipa").map(|_| {
            let first = number(record, "ipa");
            first..first + span(number(record, "level"))
        });
        // What is on one processor only cleans nothing.
        if !text(record, "op").ends_with("is") {
            return;
        }
        let ordered = |broken: &&mut Broken| broken.vmid == vmid && broken.cpu == cpu && broken.stage != Stage::Unclean;
        for broken in self.broken.values_mut().filter(ordered) {
            let all = broken.ipa..broken.ipa + span(broken.level);
            if range.as_ref().is_none_or(|range| range.start <= all.start && all.end <= range.end) {
                broken.stage = Stage::Invalidated;
            }
        }
    }

    /// A page changes hands.
    fn state(&mut self, record: &Value) -> Result<(), String> {
        let page = number(record, "page");
        if text(record, "component") != "host" {
            return Ok(());
        }
        let (from, to) = (text(record, "from"), text(record, "to"));
        if to == "NOPAGE" {
            self.taken.insert(page);
        } else {
            self.taken.remove(&page);
        }
        let changes_hands = from == "NOPAGE" || to == "NOPAGE";
        let stale = self.broken.values().find(|broken| changes_hands && broken.pages == (page, PAGE));
        if let Some(broken) = stale {
            return Err(format!("TLBs may still have {broken:x?}"));
        }
        // A page that a guest had for itself; one that it shares was its own first, and is not cleared.
        if (from, to) == ("NOPAGE", "OWNED") && self.dirty.remove(&page) {
            return Err("the host gets a page of a guest as it was".into());
        }
        if from == "NOPAGE" && to != "OWNED" {
            self.dirty.remove(&page);
        }
        Ok(())
    }
}
