//! A checker of Arm's stage-2 discipline, and of who has a page, that knows nothing but the recording: what an external one would do with it.
//!
//! It follows the tables from their roots by the descriptors that were written, and demands: break before make; TLB maintenance, and its barrier, before a descriptor that was
//! taken away is replaced, its table used for something else, the page changes hands, or the tree goes; descriptors written under the lock of their tree, and only in tables; tables only in
//! pages that the host has not; pages cleared between a guest and the host, when the guest cannot write any more; a page in the trees of those only who have it.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: u64 = 0x1000;
/// Pages of a root at most: so many tables of its level can be concatenated.
const ROOT_PAGES: u64 = 16;
const ADDRESS: u64 = ((1 << 48) - 1) & !0xfff;
/// What may change in a valid descriptor without a break: permissions, the access flag, and the bits that are software's.
const SOFT: u64 = 1 << 6 | 1 << 7 | 1 << 10 | 1 << 54 | 0xf << 55;
/// Of a guest's descriptor: the guest has the page for itself, or shares it; else it is the host's.
const OWNED: u64 = 0;
const SHARED: u64 = 1;
const BORROWED: u64 = 2;

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
    table: bool,
    pages: (u64, u64),
    stage: Stage,
}

/// A descriptor that says something and is no table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    pte: u64,
}

#[derive(Default)]
pub(crate) struct Checker {
    /// Frames of tables, and whose they are.
    tables: BTreeMap<u64, u64>,
    /// Values of descriptors.
    memory: BTreeMap<u64, u64>,
    /// Those that are no tables, by VMID, level and first address.
    entries: BTreeMap<(u64, u64, u64), Entry>,
    /// Where a page is mapped in guests: by VMID and address.
    mapped: BTreeMap<u64, BTreeMap<(u64, u64), u64>>,
    broken: BTreeMap<u64, Broken>,
    /// VMIDs of which TLBs may have something; whether, on which processor, a flush was issued that is not complete.
    cached: BTreeMap<u64, Option<u64>>,
    /// Locks that are held, by processor.
    locks: BTreeMap<u64, BTreeSet<(String, Option<u64>)>>,
    /// What each processor is doing.
    calls: BTreeMap<u64, String>,
    /// Pages of guests that were not cleared since they were mapped.
    dirty: BTreeSet<u64>,
    /// Pages that the host does not have.
    taken: BTreeSet<u64>,
    /// Pages that the hypervisor has, or may use.
    hyp: BTreeMap<u64, String>,
    /// Pages that EL2 maps.
    el2: BTreeSet<u64>,
    /// Pages to look at when the host's lock is released, and the hypervisor's.
    touched: BTreeSet<u64>,
    touched_hyp: BTreeSet<u64>,
}

/// A hexadecimal number in a text, or a number as it is.
fn number(record: &Value, field: &str) -> Result<u64, String> {
    let found = match &record[field] {
        Value::String(text) => text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()),
        other => other.as_u64(),
    };
    found.ok_or_else(|| format!("`{field}` is no number"))
}

/// The same, of a page.
fn page_of(record: &Value, field: &str) -> Result<u64, String> {
    let page = number(record, field)?;
    ensure(page & !ADDRESS == 0, format!("`{field}` is no page"))?;
    Ok(page)
}

fn text<'a>(record: &'a Value, field: &str) -> Result<&'a str, String> {
    record[field].as_str().ok_or_else(|| format!("`{field}` is no text"))
}

fn span(level: u64) -> u64 {
    PAGE << (9 * (3 - level))
}

fn state_of(pte: u64) -> u64 {
    pte >> 55 & 3
}

fn ensure(holds: bool, complaint: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(complaint.into()) }
}

impl Checker {
    /// Reads JSON Lines.
    ///
    /// # Errors
    /// The first line that breaks the discipline or is not of the format, and how; what is left to do at the end.
    pub(crate) fn check(lines: &str) -> Result<(), String> {
        let mut checker = Checker::default();
        for (i, line) in lines.lines().enumerate() {
            let record: Value = serde_json::from_str(line).map_err(|error| format!("line {}: {error}", i + 1))?;
            checker.step(&record).map_err(|what| format!("line {}: {what}: {line}", i + 1))?;
        }
        if let Some((cpu, call)) = checker.calls.iter().next() {
            return Err(format!("the recording ends in the middle of {call} on processor {cpu}"));
        }
        let left = checker.broken.values().next();
        left.map_or(Ok(()), |broken| Err(format!("TLBs may still have {broken:x?}")))
    }

    /// Reads a file of them; answers how many lines.
    ///
    /// # Errors
    /// That it cannot be read, that there is nothing in it, or as [`Checker::check`].
    #[allow(dead_code, reason = "not every binary that has this module reads files")]
    pub(crate) fn check_file(path: &std::path::Path) -> Result<usize, String> {
        let lines = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if lines.trim().is_empty() {
            return Err(format!("{}: nothing is recorded here", path.display()));
        }
        Checker::check(&lines).map_err(|what| format!("{}: {what}", path.display()))?;
        Ok(lines.lines().count())
    }

    fn step(&mut self, record: &Value) -> Result<(), String> {
        let cpu = number(record, "cpu")?;
        match text(record, "event")? {
            "lock" => self.lock(cpu, record),
            "unlock" => {
                let lock = (text(record, "lock")?.to_string(), record.get("vmid").and_then(Value::as_u64));
                ensure(self.locks.entry(cpu).or_default().remove(&lock), "a lock is released that is not held")?;
                match &*lock.0 {
                    "host" => self.host_done(),
                    "hyp" => self.hyp_done(),
                    _ => Ok(()),
                }
            }
            "enter" => {
                let call = text(record, "call")?.to_string();
                let before = self.calls.insert(cpu, call);
                ensure(before.is_none(), "a call in the middle of another")
            }
            "exit" => {
                let call = text(record, "call")?;
                ensure(self.calls.remove(&cpu).is_some_and(|of| of == call), "the end of a call that did not begin")?;
                ensure(self.locks.get(&cpu).is_none_or(BTreeSet::is_empty), "a lock is held at the end")
            }
            "root" => {
                let (first, vmid, pages) =
                    (page_of(record, "page")?, number(record, "vmid")?, number(record, "pages")?);
                ensure((1..=ROOT_PAGES).contains(&pages), "a root has a page, and at most sixteen")?;
                (0..pages).try_for_each(|i| self.table(first + i * PAGE, vmid))
            }
            "table" => self.table(page_of(record, "page")?, number(record, "vmid")?),
            "table-gone" => {
                let page = page_of(record, "page")?;
                self.drop_entries(|_, entry| entry.at & !(PAGE - 1) == page);
                ensure(self.tables.remove(&page).is_some(), "no table")
            }
            "root-gone" => {
                let vmid = number(record, "vmid")?;
                ensure(!self.cached.contains_key(&vmid), "TLBs may still have something of the VMID")?;
                self.drop_entries(|of, _| of == vmid);
                self.tables.retain(|_, of| *of != vmid);
                Ok(())
            }
            "pte" => self.pte(cpu, record),
            "tlbi" => self.tlbi(cpu, record),
            "dsb" => {
                self.broken.retain(|_, broken| broken.cpu != cpu || broken.stage != Stage::Invalidated);
                for broken in self.broken.values_mut().filter(|broken| broken.cpu == cpu) {
                    broken.stage = Stage::Ordered;
                }
                self.cached.retain(|_, flushed| *flushed != Some(cpu));
                Ok(())
            }
            "zero" => {
                let page = page_of(record, "page")?;
                // No vCPU of a VM runs that is being torn down; elsewhere a guest that maps the page may write it again.
                let dying = self.calls.get(&cpu).is_some_and(|call| call == "reclaim_dying_guest_page");
                if dying || !self.mapped.contains_key(&page) {
                    self.dirty.remove(&page);
                }
                Ok(())
            }
            "state" => self.state(record),
            "el2-map" => {
                let page = page_of(record, "page")?;
                self.touched_hyp.insert(page);
                if record["mapped"] == true {
                    self.el2.insert(page)
                } else {
                    self.el2.remove(&page)
                };
                Ok(())
            }
            other => Err(format!("no event: {other}")),
        }
    }

    /// Locks are taken in one order.
    fn lock(&mut self, cpu: u64, record: &Value) -> Result<(), String> {
        let class = text(record, "lock")?;
        let rank = |class: &str| ["vm_table", "host", "hyp", "vm"].iter().position(|of| *of == class);
        ensure(rank(class).is_some(), format!("no lock: {class}"))?;
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

    /// A zeroed page becomes a table. The host's own are there before it has lost anything.
    fn table(&mut self, page: u64, vmid: u64) -> Result<(), String> {
        self.fresh(page)?;
        self.memory.retain(|at, _| at & !(PAGE - 1) != page);
        self.tables.insert(page, vmid);
        ensure(vmid == 0 || self.taken.contains(&page), "a table in memory of the host")
    }

    /// Nobody may still translate to a page, or through it.
    fn fresh(&self, page: u64) -> Result<(), String> {
        let stale = self.broken.values().find(|broken| {
            let (first, bytes) = broken.pages;
            (first..first + bytes).contains(&page)
        });
        stale.map_or(Ok(()), |broken| Err(format!("TLBs may still have {broken:x?}")))
    }

    /// Descriptors go with their tables.
    fn drop_entries(&mut self, goes: impl Fn(u64, &Entry) -> bool) {
        let gone: Vec<_> =
            self.entries.iter().filter(|((vmid, ..), entry)| goes(*vmid, entry)).map(|(key, _)| *key).collect();
        gone.into_iter().for_each(|key| self.replace_entry(key, None));
    }

    fn replace_entry(&mut self, key: (u64, u64, u64), new: Option<Entry>) {
        let (vmid, level, ipa) = key;
        let old = self.entries.remove(&key);
        self.entries.extend(new.map(|new| (key, new)));
        for (entry, maps) in [(old, false), (new, true)] {
            let Some(Entry { pte, .. }) = entry else { continue };
            for offset in (0..span(level) / PAGE).map(|i| i * PAGE).take_while(|_| vmid != 0 && pte & 1 != 0) {
                let frame = (pte & ADDRESS) + offset;
                let at = self.mapped.entry(frame).or_default();
                if maps {
                    at.insert((vmid, ipa + offset), state_of(pte))
                } else {
                    at.remove(&(vmid, ipa + offset))
                };
                if at.is_empty() {
                    self.mapped.remove(&frame);
                }
            }
            if vmid == 0 {
                self.touched.extend(self.taken.range(ipa..ipa + span(level)));
            }
        }
    }

    fn pte(&mut self, cpu: u64, record: &Value) -> Result<(), String> {
        let (at, vmid, level) = (number(record, "at")?, number(record, "vmid")?, number(record, "level")?);
        let (old, new, ipa) = (number(record, "old")?, number(record, "new")?, page_of(record, "ipa")?);
        ensure(at % 8 == 0, "`at` is no descriptor's address")?;
        ensure(level <= 3 && ipa % span(level) == 0, "`level` and `ipa` are of no descriptor")?;
        ensure(self.tables.get(&(at & !(PAGE - 1))) == Some(&vmid), "written outside the tables of its tree")?;
        ensure(self.memory.get(&at).copied().unwrap_or(0) == old, "what was there is something else")?;
        let lock = if vmid == 0 { ("host".to_string(), None) } else { ("vm".to_string(), Some(vmid)) };
        let locked = self.locks.get(&cpu).is_some_and(|locks| locks.contains(&lock));
        ensure(locked, "written without the lock of its tree")?;
        self.memory.insert(at, new);
        let table = |pte: u64| pte & 3 == 3 && level < 3;
        let is_block = new & 1 != 0 && !table(new);
        ensure(!is_block || level > 0 && new & ADDRESS & (span(level) - 1) == 0, "there is no such block")?;
        match (old & 1 != 0, new & 1 != 0) {
            (true, true) => ensure((old ^ new) & !SOFT == 0 && !table(old), "break before make")?,
            (true, false) => {
                let bytes = if table(old) { PAGE } else { span(level) };
                let pages = (old & ADDRESS, bytes);
                let broken = Broken { cpu, vmid, ipa, level, table: table(old), pages, stage: Stage::Unclean };
                self.broken.insert(at, broken);
            }
            (false, true) => ensure(!self.broken.contains_key(&at), "made before TLB maintenance was complete")?,
            (false, false) => {}
        }
        if new & 1 != 0 {
            self.cached.insert(vmid, None);
        }
        let says = new != 0 && !table(new);
        self.replace_entry((vmid, level, ipa), says.then_some(Entry { at, pte: new }));
        if vmid != 0 && new & 1 != 0 && !table(new) {
            let first = new & ADDRESS;
            (first..first + span(level)).step_by(PAGE as usize).try_for_each(|page| self.gets(page, state_of(new)))?;
        }
        Ok(())
    }

    /// A guest gets a page.
    fn gets(&mut self, page: u64, state: u64) -> Result<(), String> {
        let others = self.mapped.get(&page).into_iter().flatten();
        let fits = match state {
            OWNED | SHARED => others.count() == 1 && self.taken.contains(&page),
            BORROWED => others.into_iter().all(|(_, other)| *other == BORROWED) && !self.taken.contains(&page),
            _ => false,
        };
        ensure(fits && !self.hyp.contains_key(&page), format!("a guest gets {page:#x}, which is somebody else's"))?;
        if state == OWNED {
            self.dirty.insert(page);
        }
        Ok(())
    }

    fn tlbi(&mut self, cpu: u64, record: &Value) -> Result<(), String> {
        let vmid = number(record, "vmid")?;
        // What is on one processor only cleans nothing.
        if !text(record, "op")?.ends_with("is") {
            return Ok(());
        }
        let first = record.get("ipa").map(|_| number(record, "ipa")).transpose()?;
        let (pages, hint) = ["pages", "level"].map(|field| record.get(field).and_then(Value::as_u64)).into();
        if first.is_none()
            && let Some(flushed) = self.cached.get_mut(&vmid)
        {
            *flushed = Some(cpu);
        }
        let ordered = |broken: &&mut Broken| broken.vmid == vmid && broken.cpu == cpu && broken.stage != Stage::Unclean;
        for broken in self.broken.values_mut().filter(ordered) {
            let all = broken.ipa..broken.ipa + span(broken.level);
            let hit = match (first, pages) {
                (None, _) => true,
                (Some(first), Some(pages)) => {
                    first <= all.start && all.end <= first.saturating_add(pages.saturating_mul(PAGE))
                }
                // The hint is the level of a leaf.
                (Some(ipa), None) => {
                    all.contains(&ipa) && hint.is_none_or(|level| level == broken.level && !broken.table)
                }
            };
            if hit {
                broken.stage = Stage::Invalidated;
            }
        }
        Ok(())
    }

    fn state(&mut self, record: &Value) -> Result<(), String> {
        let page = page_of(record, "page")?;
        let (from, to) = (text(record, "from")?, text(record, "to")?);
        let component = text(record, "component")?;
        ensure(matches!(component, "host" | "hyp"), format!("no component: {component}"))?;
        if component == "hyp" {
            self.touched_hyp.insert(page);
            if to == "NOPAGE" {
                self.hyp.remove(&page)
            } else {
                self.hyp.insert(page, to.to_string())
            };
            return Ok(());
        }
        self.touched.insert(page);
        if to == "NOPAGE" {
            self.taken.insert(page);
        } else {
            self.taken.remove(&page);
        }
        if from == "NOPAGE" || to == "NOPAGE" {
            self.fresh(page)?;
        }
        ensure(to != "OWNED" || !self.mapped.contains_key(&page), "the host has alone what a guest maps")?;
        // A page that a guest had for itself; one that it shares was its own first, and is not cleared.
        let clean = !self.dirty.remove(&page) || (from, to) != ("NOPAGE", "OWNED");
        ensure(clean, "the host gets a page of a guest as it was")
    }

    /// What the host has not is not mapped for it, but says who has it.
    fn host_done(&mut self) -> Result<(), String> {
        for page in std::mem::take(&mut self.touched).into_iter().filter(|page| self.taken.contains(page)) {
            let entries: Vec<_> =
                (0..4).filter_map(|level| self.entries.get(&(0, level, page & !(span(level) - 1)))).collect();
            let donation = matches!(entries[..], [Entry { pte, .. }] if pte & 1 == 0 && pte >> 60 == 2);
            ensure(donation, format!("the host has not {page:#x}, of which its descriptor is {entries:x?}"))?;
        }
        Ok(())
    }

    /// EL2 maps its own, and of what the host shares what it uses.
    fn hyp_done(&mut self) -> Result<(), String> {
        for page in std::mem::take(&mut self.touched_hyp) {
            let fits = match self.hyp.get(&page).map(String::as_str) {
                None => !self.el2.contains(&page),
                Some("OWNED") => self.el2.contains(&page),
                Some(_) => true,
            };
            ensure(fits, format!("EL2 maps {page:#x} or not, against its state {:?}", self.hyp.get(&page)))?;
        }
        Ok(())
    }
}
