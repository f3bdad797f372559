//! Puts what a strategy was told beside the engine's log.
//!
//! The log has the operations in order, with releases of locks, tracepoints and ends of tasks, and no places; the strategy is told every
//! operation with its place, and nothing of the rest.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;
use sim_coco::pkvm::{HostCall, SMCCC_INVALID_PARAMETER, SMCCC_NOT_SUPPORTED, SMCCC_SUCCESS, func};
use sim_coco::tdx::{Leaf, Status};
use sim_kernel::Errno;
use sim_kernel::sched::{Access, BUFFERS_FROM, Event, ObjId, TaskId, TraceRecord};
use sim_mmu::{KVM_TDP_MMU_SPTE_CHANGED, Spte};

use super::capture::{Tape, Told};
use super::names::Names;
use super::recording::{Arrow, ArrowKind, Callee, Line, Lock, Note, Pending, Recording, Step};
use super::store::{Store, Value};
use super::table::Table;
use crate::explore::functions;
use crate::explore::witness::{Site, owner};
use crate::kvm::pkvm::{PKVM_GUEST_HVC, PKVM_HOST_CALL};
use crate::kvm::tdx::TDX_SEAMCALL;

/// Number of the request to flush, among the words of [`Table::VCPUS`].
const TLB_FLUSH: &str = "TLB_FLUSH";

/// A lock that is held while the log is read.
struct Held {
    task: TaskId,
    object: ObjId,
    index: u64,
    access: Access,
    /// The place in the list of locks.
    lock: usize,
}

/// Numbers for what is seen again and again.
#[derive(Default)]
struct Interned<'a> {
    objects: Vec<String>,
    object_index: BTreeMap<ObjId, u32>,
    sites: Vec<(Site, Option<&'static str>)>,
    site_index: FxHashMap<(&'a str, u32), u32>,
}

impl Interned<'_> {
    fn object(&mut self, object: ObjId, names: &dyn Fn(ObjId) -> String) -> u32 {
        *self.object_index.entry(object).or_insert_with(|| {
            self.objects.push(names(object));
            self.objects.len() as u32 - 1
        })
    }

    fn site(&mut self, site: Site) -> u32 {
        *self.site_index.entry((site.file, site.line)).or_insert_with(|| {
            self.sites.push((site, functions::around(&site)));
            self.sites.len() as u32 - 1
        })
    }
}

/// The recording of a tape and the log of the same run.
pub(super) fn assemble(tape: Tape, events: &[Event], names: &dyn Fn(ObjId) -> String, lines: Vec<Line>) -> Recording {
    let Tape { store, names: known, told, left, is_left, mut booted, .. } = tape;
    let mut interned = Interned::default();
    let mut tasks = vec!["setup".to_string()];
    let mut steps: Vec<Step> = Vec::with_capacity(told.len());
    let mut locks: Vec<Lock> = Vec::new();
    // Those that were tried for are known when they are released.
    let mut tried: Vec<Lock> = Vec::new();
    let mut held: Vec<Held> = Vec::new();
    let last = told.len().saturating_sub(1);
    let mut told = told.into_iter();
    for event in events {
        match event {
            Event::Op { task, access: Access::Unlock, object, index } => {
                let step = steps.len().saturating_sub(1);
                let name = lock_name(*object, *index, names);
                if release(&mut held, &mut locks, *task, *object, *index, step).is_none() {
                    // A lock that was tried for and had: it was held since.
                    held_since_try(&steps, &mut tried, &interned, *task, *object, &name);
                }
                if let Some(step) = steps.last_mut() {
                    step.notes.push(Note::Released(name));
                }
            }
            Event::Op { .. } if booted > 0 => booted -= 1,
            Event::Op { task, access, object, index } => {
                let Some(told) = told.next() else { break };
                assert_eq!((told.task, told.op.object), (*task, *object), "the strategy is told what is logged");
                let at = steps.len();
                match access {
                    Access::LockShared | Access::LockExclusive | Access::SrcuEnter => {
                        let name = lock_name(*object, *index, names);
                        let (task, access) = (*task, *access);
                        held.push(Held { task, object: *object, index: *index, access, lock: locks.len() });
                        locks.push(Lock { task: owner(task), name, access, from: at, to: last });
                    }
                    Access::SrcuExit => {
                        release(&mut held, &mut locks, *task, *object, 0, at);
                    }
                    _ => {}
                }
                steps.push(step(told, &mut interned, names));
            }
            Event::Trace(record) => {
                if let Some(step) = steps.last_mut() {
                    step.notes.push(trace_note(record));
                }
            }
            Event::Spawn { name, .. } => {
                tasks.push(name.to_string());
                if let Some(step) = steps.last_mut() {
                    step.notes.push(Note::Spawned(tasks.len() - 1));
                }
            }
            // The log of a recording has none.
            Event::Note { .. } => {}
            Event::End { task } => {
                let of_task = |step: &&mut Step| step.task == *task;
                if let Some(step) = steps.iter_mut().rev().find(of_task) {
                    step.notes.push(Note::Ended);
                }
            }
        }
    }
    locks.append(&mut tried);
    locks.sort_by_key(|lock| lock.from);
    shorten(&mut interned.objects, &mut locks, &mut steps);
    let arrows = arrows(&store, &known, &steps);
    let choice = left.into_iter().map(|(task, op, runnable)| {
        let site = Site::of(&op);
        let function = functions::around(&site);
        let object = names(op.object);
        let verb = crate::explore::report::verb(op.access);
        let words = if object == "none" { verb.to_string() } else { format!("{verb} {object}") };
        let function = function.map_or_else(|| site_words(&site), str::to_string);
        Pending { task, op: words, function, runnable: runnable && is_left }
    });
    let choice = choice.collect();
    let mut recording = Recording {
        title: String::new(),
        teaches: None,
        facts: Vec::new(),
        tasks,
        lines,
        steps,
        setup_steps: 0,
        objects: interned.objects,
        sites: interned.sites,
        locks,
        arrows,
        store,
        names: known,
        ending: String::new(),
        is_as_expected: true,
        report: None,
        pair: None,
        schedule: String::new(),
        digest: 0,
        misfit: None,
        choice,
    };
    mark_notable(&mut recording);
    recording
}

/// Leaves out the number of an object of which the threads touch no other of its class.
fn shorten(objects: &mut [String], locks: &mut [Lock], steps: &mut [Step]) {
    let class = |name: &str| name.split('#').next().unwrap_or_default().to_string();
    let alone = steps.iter().all(|step| step.task == TaskId::BOOT);
    let mut touched: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for step in steps.iter().filter(|step| alone || step.task != TaskId::BOOT) {
        touched.entry(class(&objects[step.object as usize])).or_default().insert(step.object);
    }
    let mut short: BTreeMap<String, String> = BTreeMap::new();
    for (class, of_class) in touched {
        if let [object] = of_class.into_iter().collect::<Vec<_>>()[..] {
            let name = std::mem::replace(&mut objects[object as usize], class.clone());
            short.insert(name, class);
        }
    }
    let shortened = |name: &mut String| {
        let (object, index) = name.split_at(name.find('[').unwrap_or(name.len()));
        if let Some(class) = short.get(object) {
            *name = format!("{class}{index}");
        }
    };
    locks.iter_mut().for_each(|lock| shortened(&mut lock.name));
    for note in steps.iter_mut().flat_map(|step| &mut step.notes) {
        if let Note::Released(name) = note {
            shortened(name);
        }
    }
}

fn step(told: Told, interned: &mut Interned<'_>, names: &dyn Fn(ObjId) -> String) -> Step {
    let completed = told.completed.into_iter().map(Note::Completed);
    Step {
        task: owner(told.task),
        buffered: told.task.0 >= BUFFERS_FROM,
        access: told.op.access,
        object: interned.object(told.op.object, names),
        place: told.place,
        site: interned.site(Site::of(&told.op)),
        line: told.line,
        decisions: told.decisions,
        preempted: told.preempted,
        gfns: told.gfns,
        notes: completed.collect(),
        notable: false,
    }
}

fn lock_name(object: ObjId, index: u64, names: &dyn Fn(ObjId) -> String) -> String {
    if index == 0 { names(object) } else { format!("{}[{index:#x}]", names(object)) }
}

/// File and line, as a reader wants them.
pub fn site_words(site: &Site) -> String {
    let file = site.file.rsplit('/').next().unwrap_or(site.file);
    format!("{file}:{}", site.line)
}

fn release(
    held: &mut Vec<Held>,
    locks: &mut [Lock],
    task: TaskId,
    object: ObjId,
    index: u64,
    step: usize,
) -> Option<()> {
    let is_it = |h: &Held| h.task == task && h.object == object && (h.index == index || h.access == Access::SrcuEnter);
    let at = held.iter().rposition(is_it)?;
    locks[held.remove(at).lock].to = step;
    Some(())
}

fn held_since_try(
    steps: &[Step],
    locks: &mut Vec<Lock>,
    interned: &Interned<'_>,
    task: TaskId,
    object: ObjId,
    name: &str,
) {
    let Some(number) = interned.object_index.get(&object) else { return };
    let is_try = |step: &Step| step.task == owner(task) && step.access == Access::TryLock && step.object == *number;
    let Some(from) = steps.iter().rposition(is_try) else { return };
    let to = steps.len() - 1;
    locks.push(Lock { task: owner(task), name: name.to_string(), access: Access::TryLock, from, to });
}

/// A tracepoint; of calls to whom is below the kernel, by their names.
fn trace_note(record: &TraceRecord) -> Note {
    let point = record.tracepoint;
    match record.args[..] {
        [leaf, rax] if *point == TDX_SEAMCALL => {
            let leaf =
                u16::try_from(leaf).ok().and_then(Leaf::from_number).map_or_else(|| format!("{leaf:#x}"), Leaf::name);
            let status =
                Status::from_raw(rax).map_or_else(|| format!("{rax:#x}"), |status| status.name.name().to_string());
            Note::Call(Callee::TdxModule, format!("{leaf}: {status}"))
        }
        [call, ret] if *point == PKVM_HOST_CALL => {
            let call = HostCall::name_of(call).map_or_else(|| format!("{call:#x}"), str::to_string);
            Note::Call(Callee::El2, format!("{call}: {}", ret_words(ret)))
        }
        [function, x1, answer] if *point == PKVM_GUEST_HVC => {
            let words = match u32::try_from(function) {
                Ok(func::FEATURES) => "FEATURES".to_string(),
                Ok(func::MEMINFO) => "MEMINFO".to_string(),
                Ok(func::MEM_SHARE) => format!("MEM_SHARE {x1:#x}"),
                Ok(func::MEM_UNSHARE) => format!("MEM_UNSHARE {x1:#x}"),
                _ => format!("{function:#x}"),
            };
            let answer = match answer as i64 {
                SMCCC_SUCCESS => "SUCCESS".to_string(),
                SMCCC_NOT_SUPPORTED => "NOT_SUPPORTED".to_string(),
                SMCCC_INVALID_PARAMETER => "INVALID_PARAMETER".to_string(),
                answer => format!("{answer:#x}"),
            };
            Note::Call(Callee::Hvc, format!("{words}: {answer}"))
        }
        _ => Note::Trace(trace_words(record)),
    }
}

/// What a call of the kernel's kind gives back: a value, or an error number below zero.
fn ret_words(ret: u64) -> String {
    let code = (ret as i64).checked_neg().filter(|code| *code > 0);
    let errno = code.and_then(|code| Errno::ALL.iter().find(|errno| i64::from(errno.number()) == code));
    match errno {
        Some(errno) => errno.name().to_string(),
        None if ret == 0 => "ok".to_string(),
        None => format!("{ret:#x}"),
    }
}

fn trace_words(record: &TraceRecord) -> String {
    if *record.tracepoint == KVM_TDP_MMU_SPTE_CHANGED
        && let [as_id, gfn, level, old, new] = record.args[..]
    {
        let word = |spte: u64| match Spte(spte) {
            spte if spte.is_present() => format!("present, frame {:#x}", spte.pfn().0),
            spte if spte.is_frozen() => "frozen".to_string(),
            _ => "not present".to_string(),
        };
        let space = if as_id == 0 { String::new() } else { format!(", address space {as_id}") };
        return format!(
            "{}: gfn {gfn:#x}, level {level}{space}: {} → {}",
            record.tracepoint.name,
            word(old),
            word(new)
        );
    }
    let fields = record.tracepoint.fields.iter().zip(&record.args);
    let fields: Vec<String> = fields.map(|(field, value)| format!("{field} {value:#x}")).collect();
    format!("{}: {}", record.tracepoint.name, fields.join(", "))
}

/// Whether a tracepoint's words say that a translation was taken away.
fn is_zap(note: &Note) -> bool {
    matches!(note, Note::Trace(text) if text.contains(": present, ") && text.ends_with("→ not present"))
}

/// From what was zapped to the requests for flushes that were made for it, and from those to where the vCPU served them: the state of the
/// vCPUs tells.
fn arrows(store: &Store, names: &Names, steps: &[Step]) -> Vec<Arrow> {
    let mut arrows = Vec::new();
    // Of each vCPU, the step that asked for a flush which was not served yet.
    let mut asked: BTreeMap<u32, usize> = BTreeMap::new();
    // Of each task, the step that zapped last.
    let mut zapped: BTreeMap<TaskId, usize> = BTreeMap::new();
    for (at, step) in steps.iter().enumerate() {
        if at + 1 < store.len() {
            for change in store.changes(at + 1) {
                let (row, column) = store.row_of(change.cell);
                if store.rows()[row].table != Table::VCPUS || column != 2 {
                    continue;
                }
                let value = &store.values()[change.value as usize];
                let wants = *value != Value::Absent && value.words(names).split(' ').any(|word| word == TLB_FLUSH);
                if wants {
                    if let Some(from) = zapped.get(&step.task) {
                        arrows.push(Arrow { kind: ArrowKind::Flush, from: *from, to: at });
                    }
                    asked.entry(change.cell).or_insert(at);
                } else if let Some(from) = asked.remove(&change.cell) {
                    arrows.push(Arrow { kind: ArrowKind::Acknowledge, from, to: at });
                }
            }
        }
        if step.notes.iter().any(is_zap) {
            zapped.insert(step.task, at);
        }
    }
    arrows
}

/// Steps that a reader wants to see: those that begin or complete a line, come after a preemption, change the state, or touch what another
/// task touches too, and the ends of arrows.
fn mark_notable(recording: &mut Recording) {
    let mut line: BTreeMap<TaskId, Option<u32>> = BTreeMap::new();
    let mut touched: FxHashMap<(u32, &str), Touched> = FxHashMap::default();
    for step in &recording.steps {
        let seen = touched.entry((step.object, step.place.as_str())).or_default();
        // The set-up and the finish run alone: what only they write, all threads may read at any time.
        seen.tasks |= 1 << step.task.index();
        seen.written |= !step.access.is_read() && step.task != TaskId::BOOT;
    }
    let last = recording.steps.len().saturating_sub(1);
    let shared: Vec<bool> = recording
        .steps
        .iter()
        .map(|step| {
            let seen = touched[&(step.object, step.place.as_str())];
            let threads = seen.tasks & !1;
            recording.objects[step.object as usize] != "none" && threads.count_ones() > 1 && seen.written
        })
        .collect();
    drop(touched);
    for (at, (step, shared)) in recording.steps.iter_mut().zip(shared).enumerate() {
        let begins = line.insert(step.task, step.line) != Some(step.line);
        let changes = at + 1 < recording.store.len() && !recording.store.changes(at + 1).is_empty();
        let told = step.notes.iter().any(|note| !matches!(note, Note::Released(_)));
        step.notable = begins || changes || told || shared || step.preempted.is_some() || at == last;
    }
    for arrow in &recording.arrows {
        recording.steps[arrow.from].notable = true;
        recording.steps[arrow.to].notable = true;
    }
}

#[derive(Clone, Copy, Default)]
struct Touched {
    tasks: u64,
    written: bool,
}
