//! Target `operations`: any sequence of operations with any arguments, on a machine that is short of memory, alone or dealt to tasks
//! under a random schedule. Every operation has an answer; at the end the invariants hold, and the process leaves nothing.
//!
//! A program is bytes, so that a fuzzer that knows nothing of it can change it: [`decode`] makes operations of any bytes at all,
//! mostly on objects that exist and with numbers that matter, and with any number where the bytes say so. [`encode`] goes the other way,
//! for programs that exist already. The kinds of arguments are those of [`gmem::ops::table`], so a new operation is fuzzed when its
//! name is added to [`NAMES`].

use std::sync::Arc;

use gmem::MachineConfig;
use gmem::interp::{Sequential, World};
use gmem::ops::table::{self, Kind, Object};
use gmem::ops::{Advice, Op};
use gmem::replay::Executor;
use serde_json::{Map, Value, json};
use sim_kernel::sched::{Chooser, Config, LogLevel, Random, Sim, Verdict};

use gmem::testing::values::{self, EDGES, FILES_MAX, MEMORY, NEAR, SetUp, check_and_end};

/// The operations, by the number that stands for each in a program. New ones go to the end, so that the corpus keeps its meaning.
pub const NAMES: [&str; 63] = [
    "create_vm",
    "create_vcpu",
    "check_extension",
    "enable_cap",
    "create_guest_memfd",
    "memfd_create",
    "set_user_memory_region",
    "set_user_memory_region2",
    "set_memory_attributes",
    "pre_fault_memory",
    "get_dirty_log",
    "fallocate",
    "ftruncate",
    "fstat",
    "pread",
    "pwrite",
    "lseek",
    "dup",
    "close",
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
    "mincore",
    "mlock",
    "host_read",
    "host_write",
    "guest_read",
    "guest_write",
    "guest_rmw",
    "guest_hypercall",
    "clear_dirty_log",
    "host_read64",
    "host_write64",
    "host_fill64",
    "guest_paged",
    "page_idle_mark",
    "page_idle_read",
    "nx_huge_page_recovery",
    "sev_init2",
    "snp_launch_start",
    "snp_launch_update",
    "snp_launch_finish",
    "guest_read_shared",
    "guest_write_shared",
    "guest_pvalidate",
    "guest_rmpadjust",
    "guest_ghcb_msr",
    "guest_vmgexit",
    "guest_psc",
    "guest_convert",
    "tdx_init_vm",
    "tdx_init_vcpu",
    "tdx_init_mem_region",
    "tdx_finalize_vm",
    "guest_accept",
    "guest_map_gpa",
    "guest_tdvmcall",
    "guest_make_vmsa",
    "guest_set_memory",
    "create_protected_vm",
    "add_guest_memory",
    "launch",
];

/// Operations that a program has at most: what follows is ignored.
pub const OPS_MAX: usize = 48;
/// Scheduling points after which a run of tasks is taken for endless. The largest operation makes a million.
const STEPS_MAX: u64 = 200_000_000;

/// The names that programs use. Descriptors of all kinds are in one pool, so that each is also used as what it is not.
const VMS: [&str; 2] = ["vm0", "vm1"];
const VCPUS: [&str; 3] = ["c0", "c1", "c2"];
const FDS: [&str; 8] = ["g0", "f0", "g1", "f1", "g2", "vm0", "c0", "nothing"];
const MAPS: [&str; 6] = ["m0", "m1", "m2", "m3", "m4", "nothing"];

/// A program and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The host.
    pub machine: MachineConfig,
    /// What is done first, by nobody else's interference.
    pub set_up: Vec<Op>,
    /// The operations of each task; a single one runs without a schedule, on [`Sequential`].
    pub tasks: Vec<Vec<Op>>,
    /// Seed of the schedule.
    pub seed: u64,
}

/// Runs the program that the bytes stand for.
///
/// # Panics
/// If an operation panics, an invariant does not hold, tasks do not come to an end, or something is left when the process has ended.
pub fn check(bytes: &[u8]) {
    run(&decode(bytes));
}

/// Runs a program.
///
/// # Panics
/// As [`check`].
pub fn run(program: &Program) {
    match &program.tasks[..] {
        [ops] => {
            let mut executor = Sequential::new(program.machine.clone());
            for op in program.set_up.iter().chain(ops) {
                executor.execute(op);
            }
            executor.with(check_and_end);
        }
        tasks => run_tasks(program, tasks),
    }
}

fn run_tasks(program: &Program, tasks: &[Vec<Op>]) {
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let config = Config { seed: program.seed, steps_max: STEPS_MAX, log: LogLevel::Off, ..Config::default() };
    let (world, verdict) = sim.execute(&config, |cx| {
        let world = Arc::new(World::watched(cx, program.machine.clone()));
        for op in &program.set_up {
            world.execute(cx, op);
        }
        for (n, ops) in tasks.iter().enumerate() {
            let (world, ops) = (Arc::clone(&world), ops.clone());
            cx.spawn(&format!("task{n}"), move |cx| {
                for op in &ops {
                    world.execute(cx, op);
                }
            });
        }
        world
    });
    assert_eq!(verdict, Verdict::Completed);
    sim.solo(|cx| check_and_end(cx, &world));
}

/// The program that any bytes stand for.
pub fn decode(bytes: &[u8]) -> Program {
    let mut bytes = Bytes(bytes);
    let machine = bytes.byte();
    let more = bytes.byte();
    let memory = MEMORY[usize::from(machine >> 2) % MEMORY.len()];
    let files_max = FILES_MAX[usize::from(more >> 2) % FILES_MAX.len()];
    let machine = values::machine(machine & 1 != 0, machine & 2 != 0, memory, files_max);
    let count = usize::from(more & 3).max(1);
    let set_up = bytes.byte();
    let set_up = match more & 0x80 {
        0 => Vec::new(),
        _ => SetUp {
            r#type: u64::from(set_up & 1),
            flags: u64::from(set_up >> 1 & 3),
            has_file: set_up & 8 != 0,
            skew: u64::from(set_up >> 4 & 3),
            align: if set_up & 0x40 == 0 { 4096 } else { 2 << 20 },
            slot_flags: u64::from(set_up >> 7),
        }
        .ops(),
    };
    let seed = if count > 1 { u64::from(bytes.byte()) << 8 | u64::from(bytes.byte()) } else { 0 };
    let mut tasks = vec![Vec::new(); count];
    for _ in 0..OPS_MAX {
        if bytes.0.is_empty() {
            break;
        }
        let task = if count > 1 { usize::from(bytes.byte()) % count } else { 0 };
        tasks[task].push(bytes.op());
    }
    Program { machine, set_up, tasks, seed }
}

/// Bytes that stand for this sequence of operations, on a machine with the most memory and without other set-up. Names that
/// programs do not use become others, and no more than [`OPS_MAX`] operations are kept.
pub fn encode(ops: &[Op]) -> Vec<u8> {
    let mut bytes = vec![1 | 2 | (MEMORY.len() as u8 - 1) << 2, 1 | (FILES_MAX.len() as u8 - 1) << 2, 0];
    for op in ops.iter().take(OPS_MAX) {
        let spec = table::find(op.name()).expect("the table has every operation");
        bytes.push(NAMES.iter().position(|name| *name == spec.name).expect("a program has every operation") as u8);
        let fields = serde_json::to_value(op).expect("an operation is JSON");
        for arg in spec.args {
            put(&mut bytes, arg.kind, fields.get(arg.name).unwrap_or(&Value::Null));
        }
    }
    bytes
}

/// The rest of a program; after the end there are zeroes.
struct Bytes<'a>(&'a [u8]);

/// From here on a byte starts an edge, a number of pages, of huge pages, or any number.
const EDGE: u8 = 0x80;
const PAGES: u8 = 0xc0;
const HUGE: u8 = 0xe0;
const ANY: u8 = 0xf0;
/// Null where a name may be absent, a number where a name is usual.
const NOT_A_NAME: u8 = 0xe0;

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn op(&mut self) -> Op {
        let name = NAMES[usize::from(self.byte()) % NAMES.len()];
        let spec = table::find(name).expect("the table has every operation");
        let mut fields = Map::from_iter([("op".to_string(), json!(name))]);
        for arg in spec.args {
            fields.insert(arg.name.into(), self.value(arg.kind));
        }
        serde_json::from_value(Value::Object(fields)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn value(&mut self, kind: Kind) -> Value {
        match kind {
            Kind::Name(object) => self.name(object),
            Kind::Count | Kind::Size | Kind::Address | Kind::Flags(_) | Kind::Choice(_) => json!(self.number(kind)),
            Kind::Only(known) => json!(known[usize::from(self.byte()) % known.len()].1),
            Kind::Signed => json!(self.number(kind).cast_signed()),
            Kind::MaybeName(object) => match self.peek() {
                NOT_A_NAME.. => self.skipped(Value::Null),
                _ => self.name(object),
            },
            Kind::Hva => match self.peek() {
                NOT_A_NAME.. => {
                    self.byte();
                    json!(self.number(Kind::Address))
                }
                _ => json!({"map": self.name(Object::Map), "offset": self.number(Kind::Size)}),
            },
            Kind::FdRef => match self.peek() {
                NOT_A_NAME.. => {
                    self.byte();
                    json!(self.number(Kind::Count).cast_signed())
                }
                _ => self.name(Object::Fd),
            },
            Kind::Word(words) => json!(words[usize::from(self.byte()) % words.len()]),
            Kind::Prot => {
                let bits = self.byte();
                json!(
                    ["r", "w", "x"]
                        .iter()
                        .enumerate()
                        .filter(|(i, _)| bits >> i & 1 != 0)
                        .map(|(_, l)| *l)
                        .collect::<String>()
                )
            }
            Kind::Advice => json!(Advice::ALL[usize::from(self.byte()) % Advice::ALL.len()].0),
            Kind::Switch { .. } => json!(self.byte() & 1 != 0),
            Kind::List => {
                let length = self.byte() % 6;
                (0..length).map(|_| json!(self.number(Kind::Address))).collect()
            }
        }
    }

    fn peek(&self) -> u8 {
        self.0.first().copied().unwrap_or(0)
    }

    fn skipped(&mut self, value: Value) -> Value {
        self.byte();
        value
    }

    fn name(&mut self, object: Object) -> Value {
        let names = names(object);
        json!(names[usize::from(self.byte()) % names.len()])
    }

    fn number(&mut self, kind: Kind) -> u64 {
        match self.byte() {
            byte @ ANY.. => {
                let mut number = [0; 8];
                number.fill_with(|| self.byte());
                // Half of these numbers are aligned, or few operations would get further than that.
                u64::from_le_bytes(number) & if byte & 1 == 0 { u64::MAX } else { !0xfff }
            }
            HUGE.. => u64::from(self.byte()) << 21,
            PAGES.. => u64::from(u16::from_le_bytes([self.byte(), self.byte()])) << 12,
            byte @ EDGE.. => {
                let edge = EDGES[usize::from(byte & 0x3f) % EDGES.len()];
                edge.wrapping_add(NEAR[usize::from(self.byte()) % NEAR.len()])
            }
            byte => small(kind, byte),
        }
    }
}

fn names(object: Object) -> &'static [&'static str] {
    match object {
        Object::Vm => &VMS,
        Object::Vcpu => &VCPUS,
        Object::Fd => &FDS,
        Object::Map => &MAPS,
    }
}

/// The number that a byte below [`EDGE`] stands for: pages and huge pages where there are bytes, a known number where there are some.
fn small(kind: Kind, byte: u8) -> u64 {
    match kind {
        Kind::Size | Kind::Signed | Kind::Address if byte < 64 => u64::from(byte) << 12,
        Kind::Size | Kind::Signed | Kind::Address => u64::from(byte - 64) << 21,
        Kind::Choice(known) if byte >= 64 => known[usize::from(byte) % known.len()].1,
        _ => u64::from(byte),
    }
}

fn put(bytes: &mut Vec<u8>, kind: Kind, value: &Value) {
    match kind {
        Kind::Name(object) => put_name(bytes, object, value),
        Kind::Count | Kind::Size | Kind::Address | Kind::Flags(_) | Kind::Choice(_) => put_number(bytes, kind, value),
        Kind::Only(known) => {
            let at = known.iter().position(|(_, number)| Some(*number) == value.as_u64());
            bytes.push(at.unwrap_or_default() as u8);
        }
        Kind::Signed => put_number(bytes, kind, value),
        Kind::MaybeName(_) if value.is_null() => bytes.push(NOT_A_NAME),
        Kind::MaybeName(object) => put_name(bytes, object, value),
        Kind::Hva => match value.get("map") {
            Some(map) => {
                put_name(bytes, Object::Map, map);
                put_number(bytes, Kind::Size, &value["offset"]);
            }
            None => {
                bytes.push(NOT_A_NAME);
                put_number(bytes, Kind::Address, value);
            }
        },
        Kind::FdRef if value.is_string() => put_name(bytes, Object::Fd, value),
        Kind::FdRef => {
            bytes.push(NOT_A_NAME);
            put_number(bytes, Kind::Count, value);
        }
        Kind::Word(words) => {
            let word = value.as_str().unwrap_or_default();
            bytes.push(words.iter().position(|known| *known == word).unwrap_or(0) as u8);
        }
        Kind::Prot => {
            let letters = value.as_str().unwrap_or_default();
            bytes.push((0..3).map(|i| u8::from(letters.contains(["r", "w", "x"][i])) << i).sum());
        }
        Kind::Advice => {
            let word = value.as_str().unwrap_or_default();
            bytes.push(Advice::ALL.iter().position(|(name, _)| *name == word).unwrap_or(0) as u8);
        }
        Kind::Switch { .. } => bytes.push(u8::from(value == &Value::Bool(true))),
        Kind::List => {
            let list: Vec<_> = value.as_array().into_iter().flatten().take(5).collect();
            bytes.push(list.len() as u8);
            for number in list {
                put_number(bytes, Kind::Address, number);
            }
        }
    }
}

/// The name, or another one of its kind that programs use.
fn put_name(bytes: &mut Vec<u8>, object: Object, name: &Value) {
    let (name, names) = (name.as_str().unwrap_or_default(), names(object));
    let like = |known: &&str| known.bytes().next() == name.bytes().next();
    let position = names.iter().position(|known| *known == name).or_else(|| names.iter().rposition(like));
    bytes.push(position.unwrap_or(names.len() - 1) as u8);
}

/// The number in as few bytes as there are for it.
fn put_number(bytes: &mut Vec<u8>, kind: Kind, number: &Value) {
    let number = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned)).unwrap_or(0);
    if let Some(byte) = (0..EDGE).find(|byte| small(kind, *byte) == number) {
        bytes.push(byte);
    } else if number.is_multiple_of(4096) && number >> 12 <= 0xffff {
        bytes.push(PAGES);
        bytes.extend((number as u32 >> 12).to_le_bytes()[..2].iter());
    } else {
        bytes.push(ANY);
        bytes.extend(number.to_le_bytes());
    }
}
