//! Scenarios that are right: what they mean, and that printing and parsing are each other's inverse.

use gmem::ops::table::{Kind, OPS};
use gmem::ops::{Advice, Answer, Detail, Errno, Exit, FdRef, FileStat, HvaRef, Op, Prot, Signal};
use gmem::scenario::{Scenario, parse, parse_line, print};
use gmem::trace::Reader;
use gmem::{KernelVersion, Stage2Kind as Stage2};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

const RACE: &str = r#"
# A scenario with everything in it.
[scenario]
name = "punch"
teaches = "A hole punched while the guest writes"

[machine]
kernel = "7.3"
stage2 = "ept"
memory = 0x4000_0000

[setup]
run = """
create_vm vm0 type=sw_protected
create_vcpu vm0 c0                  # index 0
create_guest_memfd vm0 g0 size=64K

mmap m0 len=2M prot=rw align=2M
set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=64K hva=m0 guest_memfd=g0
"""
[thread.vcpu0]
run = """
w: guest_write c0 0x200000 7      => hlt
r: guest_read  c0 0x200000        => hlt 7 | memory_fault private
"""
[thread.a-vmm]
run = '''
fallocate g0 punch_hole 0 4K   => ok
'''
[finish]
run = "close vm0 => ok|EBADF"

[expect]
outcomes = [
  "w => hlt & r => hlt 7",
  "r => memory_fault private 0x200000",
]
"#;

fn race() -> Scenario {
    parse("race.toml", RACE).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_scenario_with_everything() {
    let scenario = race();
    assert_eq!(scenario.name, "punch");
    assert_eq!(scenario.teaches.as_deref(), Some("A hole punched while the guest writes"));
    assert_eq!(scenario.machine.kernel, KernelVersion::V7_3);
    assert_eq!(scenario.machine.stage2, Stage2::Ept);
    assert_eq!(scenario.machine.memory, 1 << 30);
    assert_eq!(scenario.setup.len(), 5);
    // In the order of the file, not of the alphabet.
    let names: Vec<&str> = scenario.threads.iter().map(|thread| thread.name.as_str()).collect();
    assert_eq!(names, ["vcpu0", "a-vmm"]);
    assert_eq!(scenario.setup[1].op, Op::CreateVcpu { vm: "vm0".into(), vcpu: "c0".into(), index: 0, paging: false });
    assert_eq!(scenario.setup[1].text, "create_vcpu vm0 c0");
    assert_eq!(
        scenario.setup[3].op,
        Op::Mmap {
            map: "m0".into(),
            fd: None,
            len: 2 << 20,
            prot: Prot::READ | Prot::WRITE,
            shared: false,
            offset: 0,
            align: 2 << 20,
        }
    );
    assert_eq!(
        scenario.setup[4].op,
        Op::SetUserMemoryRegion2 {
            vm: "vm0".into(),
            slot: 0,
            flags: 4,
            gpa: 0x20_0000,
            size: 0x1_0000,
            hva: HvaRef::Map { map: "m0".into(), offset: 0 },
            guest_memfd: FdRef::Name("g0".into()),
            guest_memfd_offset: 0,
        }
    );
    assert_eq!(scenario.threads[1].steps[0].op, Op::Fallocate { fd: "g0".into(), mode: 3, offset: 0, len: 4096 });
    for step in scenario.steps() {
        let line = RACE.lines().nth(step.line as usize - 1).unwrap();
        assert!(line.contains(&step.text), "{} is not in line {}: {line}", step.text, step.line);
    }
}

#[test]
fn defaults_of_a_scenario() {
    let scenario = parse("dir/tiny.toml", "[thread.t]\nrun = 'close x'").unwrap();
    assert_eq!(scenario.name, "tiny");
    assert_eq!((scenario.machine.kernel, scenario.machine.stage2), (KernelVersion::V7_3, Stage2::Npt));
    assert_eq!(scenario.machine.memory, 3 << 30);
}

#[test]
fn outcomes_hold_or_say_what_came() {
    let scenario = race();
    let hlt = |value| Answer::exit(Exit::Hlt { value });
    let answer = |write: Answer, read: Answer| {
        let answers = [("w", write), ("r", read)];
        let find = |label: &str| answers.iter().find(|(name, _)| *name == label).map(|(_, answer)| answer);
        scenario.check_outcome(find)
    };
    assert_eq!(answer(hlt(None), hlt(Some(7))), Ok(()));
    let fault = Exit::MemoryFault { flags: 8, gpa: 0x20_0000, size: 4096 };
    assert_eq!(answer(hlt(None), Answer::Exit { errno: Errno::from_name("EFAULT"), exit: fault }), Ok(()));
    let error = answer(hlt(None), hlt(Some(0))).unwrap_err();
    assert_eq!(
        error,
        "no expected outcome came out; got\n  w => {\"exit\": \"hlt\"}\n  r => {\"exit\": \"hlt\", \"value\": 0}"
    );
}

#[test]
fn expectations_match_what_they_say() {
    let efault = Errno::from_name("EFAULT").unwrap();
    let fault = |flags| {
        let exit = Exit::MemoryFault { flags, gpa: 0x1000, size: 4096 };
        Answer::Exit { errno: Some(efault), exit }
    };
    let mmio = |write| Answer::exit(Exit::Mmio { gpa: 0, len: 4, write });
    let read = Answer::Ok { value: 0, detail: Detail::Value(9) };
    let dirty = Answer::Ok { value: 0, detail: Detail::Dirty(vec![0, 3]) };
    let stat = FileStat { size: 65536, blocks: 0, blksize: 4096, mode: 0, nlink: 1 };
    let stat = Answer::Ok { value: 0, detail: Detail::Stat(stat) };
    let hypercall = Answer::exit(Exit::Hypercall { nr: 12, args: vec![], rax: Some(0) });
    let cases: &[(&str, &Answer, bool)] = &[
        ("ok", &Answer::OK, true),
        ("ok", &read, true),
        ("ok", &Answer::errno(efault), false),
        ("ok 5", &Answer::ok(5), true),
        ("ok 5", &Answer::ok(6), false),
        ("ok 9", &read, true),
        ("ok 0", &read, false),
        ("ok [0, 3]", &dirty, true),
        ("ok [0]", &dirty, false),
        ("ok 64K", &stat, true),
        ("EFAULT", &Answer::errno(efault), true),
        ("EINVAL", &Answer::errno(efault), false),
        ("EFAULT", &fault(8), true),
        ("SIGBUS", &Answer::Signal(Signal::BUS), true),
        ("SIGSEGV", &Answer::Signal(Signal::BUS), false),
        ("hlt", &Answer::exit(Exit::Hlt { value: Some(3) }), true),
        ("hlt 3", &Answer::exit(Exit::Hlt { value: Some(3) }), true),
        ("hlt 4", &Answer::exit(Exit::Hlt { value: Some(3) }), false),
        ("hlt 0", &Answer::exit(Exit::Hlt { value: None }), false),
        ("memory_fault", &fault(0), true),
        ("memory_fault private", &fault(8), true),
        ("memory_fault private", &fault(0), false),
        ("memory_fault shared", &fault(0), true),
        ("memory_fault shared 4K", &fault(0), true),
        ("memory_fault 0x2000", &fault(0), false),
        ("mmio", &mmio(true), true),
        ("mmio write", &mmio(true), true),
        ("mmio read", &mmio(true), false),
        ("hypercall", &hypercall, true),
        ("shutdown", &hypercall, false),
        ("shutdown", &Answer::exit(Exit::Shutdown), true),
        ("intr", &Answer::exit(Exit::Intr), true),
        ("internal_error", &Answer::exit(Exit::InternalError { suberror: Some(1), data: None }), true),
        ("internal_error 2", &Answer::exit(Exit::InternalError { suberror: Some(4), data: Some(2) }), true),
        ("internal_error 2", &Answer::exit(Exit::InternalError { suberror: Some(4), data: Some(3) }), false),
        ("internal_error 2", &Answer::exit(Exit::InternalError { suberror: Some(4), data: None }), false),
        ("ok|EFAULT", &Answer::errno(efault), true),
        ("ok | EINVAL", &Answer::errno(efault), false),
    ];
    for (text, answer, expected) in cases {
        let expectation = parse_line(&format!("fstat g0 => {text}")).unwrap().expect.unwrap();
        assert_eq!(expectation.check(answer).is_ok(), *expected, "{text} on {answer}");
        // What an expectation prints, it reads.
        let again = parse_line(&format!("fstat g0=>{expectation}")).unwrap().expect.unwrap();
        assert_eq!(again, expectation);
    }
}

#[test]
fn every_recorded_operation_survives_as_a_line() {
    for entry in std::fs::read_dir(super::kept_recordings()).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in Reader::new("trace", text.as_bytes()).unwrap() {
            let op = line.unwrap().op;
            assert_eq!(parse_line(&print(&op)).unwrap().op, op);
        }
    }
}

#[test]
fn preferred_form() {
    let lines = [
        "create_vm vm0",
        "create_vm vm0 sw_protected",
        "create_vcpu vm0 c1 1",
        "check_extension guest_memfd_flags vm0",
        "create_guest_memfd vm0 g0 4M mmap|init_shared",
        "set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=4M hva=m2 guest_memfd=g1",
        "set_user_memory_region vm0 slot=3 flags=log_dirty|readonly|0x80000000 gpa=0x0 size=8K hva=m1+0xc000",
        "set_memory_attributes vm0 gpa=0x200000 size=8K attributes=private",
        "set_memory_attributes vm0 gpa=0x200000 size=8K attributes=shared flags=1",
        "fallocate g0 punch_hole 0 -4K",
        "fallocate g0 2 0 1",
        "lseek g0 8K end",
        "mmap m0 fd=g0 len=4K prot=r shared=shared",
        "mmap m0 len=4K prot=none",
        "madvise m0 0 4K dontneed",
        "guest_hypercall c0 map_gpa_range [2097152, 1, 16]",
        r#"close "a name with \"quotes\"""#,
        r#"close "none""#,
    ];
    for line in lines {
        assert_eq!(print(&parse_line(line).unwrap().op), line);
    }
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..20, any::<u64>(), (0u32..64).prop_map(|shift| 1 << shift), (0u64..99).prop_map(|n| n << 12)]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z][0-9]", Just("none".to_string()), Just(String::new()), "[ -~]{0,6}", any::<String>()]
}

fn value(kind: Kind) -> BoxedStrategy<Value> {
    match kind {
        Kind::Name(_) => name().prop_map(Value::from).boxed(),
        Kind::MaybeName(_) => prop::option::of(name()).prop_map(Value::from).boxed(),
        Kind::Count | Kind::Size | Kind::Address => number().prop_map(Value::from).boxed(),
        Kind::Flags(known) | Kind::Choice(known) => {
            let symbols: Vec<u64> = known.iter().map(|(_, value)| *value).chain([0]).collect();
            prop_oneof![prop::sample::select(symbols), number()].prop_map(Value::from).boxed()
        }
        Kind::Only(known) => {
            let numbers: Vec<u64> = known.iter().map(|(_, value)| *value).collect();
            prop::sample::select(numbers).prop_map(Value::from).boxed()
        }
        Kind::Signed => number().prop_map(|number| Value::from(number.cast_signed())).boxed(),
        Kind::Hva => prop_oneof![
            number().prop_map(Value::from),
            (name(), number()).prop_map(|(map, offset)| json!({"map": map, "offset": offset})),
        ]
        .boxed(),
        Kind::FdRef => prop_oneof![
            name().prop_map(Value::from),
            Just(json!(-1)),
            number().prop_map(|number| Value::from(number.cast_signed())),
        ]
        .boxed(),
        Kind::Prot => (0u8..8).prop_map(|bits| Value::from(Prot::from_bits_truncate(bits).letters())).boxed(),
        Kind::Advice => prop::sample::select(&Advice::ALL[..]).prop_map(|(word, _)| Value::from(word)).boxed(),
        Kind::Word(words) => prop::sample::select(words).prop_map(Value::from).boxed(),
        Kind::Switch { .. } => any::<bool>().prop_map(Value::from).boxed(),
        Kind::List => prop::collection::vec(number(), 0..4).prop_map(Value::from).boxed(),
    }
}

/// Any operation with any arguments.
pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop::sample::select(OPS).prop_flat_map(|spec| {
        let values: Vec<_> = spec.args.iter().map(|arg| value(arg.kind)).collect();
        values.prop_map(move |values| {
            let mut fields = Map::from_iter([("op".to_string(), json!(spec.name))]);
            fields.extend(spec.args.iter().map(|arg| arg.name.to_string()).zip(values));
            serde_json::from_value(Value::Object(fields)).unwrap()
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn parsing_undoes_printing(op in op()) {
        let line = print(&op);
        let parsed = parse_line(&line).map_err(|error| TestCaseError::fail(format!("{line}: {error}")))?;
        prop_assert_eq!(parsed.op, op);
    }

    #[test]
    fn a_trace_line_says_the_same(op in op()) {
        let line = gmem::trace::emit::new_line(&op, &Answer::OK, &[]);
        let header = r#"{"trace": 1, "name": "t", "family": "f", "kernel": "7.3.4", "arch": "x86_64", "stage2": "npt"}"#;
        let text = format!("{header}\n{line}\n");
        let read = Reader::new("t", text.as_bytes()).unwrap().next().unwrap().unwrap();
        prop_assert_eq!(gmem::trace::emit::with_answer(&read, &Answer::OK, &[]), line);
        prop_assert_eq!(read.op, op);
    }

    #[test]
    fn no_line_panics(line in prop_oneof![any::<String>(), "[a-z0-9_=>|# \"\\[\\],+:&-]{0,40}"]) {
        let _ = parse_line(&line);
    }

    #[test]
    fn no_file_panics(at in 0usize..900, remove in 0usize..6, insert in "[ -~\n\"'\\\\]{0,4}|é") {
        let mut text = RACE.to_string();
        let start = at.min(text.len());
        let end = (start + remove).min(text.len());
        text.replace_range(start..end, &insert);
        if let Err(error) = parse("mangled.toml", &text) {
            let _ = error.render(true);
        }
    }
}
