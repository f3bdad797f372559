//! The table of operations against the `Op` enum, and the algebra of folding.

use gmem::MachineConfig;
use gmem::interp::Sequential;
use gmem::ops::table::{Kind, OPS, Object};
use gmem::ops::{Op, PkvmOp, ProtectedOp, SnpOp, SpteChange, SpteRun, SpteState, TdxOp, fold};
use gmem::replay::Executor;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A value of each kind, as `Op` holds it.
fn sample(kind: Kind) -> Value {
    match kind {
        Kind::Name(_) | Kind::FdRef => json!("name"),
        Kind::MaybeName(Object::Vm) => json!("vm0"),
        Kind::MaybeName(_) => Value::Null,
        Kind::Count | Kind::Size | Kind::Address | Kind::Flags(_) | Kind::Choice(_) => json!(u64::MAX),
        Kind::Only(known) => json!(known[0].1),
        Kind::Signed => json!(i64::MIN),
        Kind::Hva => json!({"map": "m0", "offset": 4096}),
        Kind::Prot => json!("rw"),
        Kind::Advice => json!("populate_read"),
        Kind::Word(words) => json!(words[0]),
        Kind::Switch { .. } => json!(true),
        Kind::List => json!([1, u64::MAX]),
    }
}

/// A machine goes with all that it made, though a VM, its vCPUs and its files hold each other.
#[test]
fn nothing_is_left_of_a_machine() {
    let mut machine = Sequential::new(MachineConfig::default());
    for line in [
        r#"{"op": "create_vm", "vm": "vm0", "type": 1}"#,
        r#"{"op": "create_vcpu", "vm": "vm0", "vcpu": "c0", "index": 0}"#,
        r#"{"op": "create_guest_memfd", "vm": "vm0", "fd": "g0", "size": 8192, "flags": 0}"#,
        r#"{"op": "mmap", "map": "m0", "fd": null, "len": 8192, "prot": "rw", "shared": false, "offset": 0, "align": 4096}"#,
        r#"{"op": "set_user_memory_region2", "vm": "vm0", "slot": 0, "flags": 4, "gpa": 0, "size": 8192, "hva": {"map": "m0", "offset": 0}, "guest_memfd": "g0", "guest_memfd_offset": 0}"#,
        r#"{"op": "guest_write", "vcpu": "c0", "gpa": 0, "value": 7}"#,
    ] {
        let op: Op = serde_json::from_str(line).unwrap();
        machine.execute(&op);
    }
    let (process, vm) = machine.with(|cx, world| {
        let vm = world.vm(cx, &"vm0".into()).unwrap();
        (Arc::downgrade(world.process()), Arc::downgrade(&vm))
    });
    assert!(process.upgrade().is_some() && vm.upgrade().is_some());
    drop(machine);
    assert!(process.upgrade().is_none() && vm.upgrade().is_none());
}

#[test]
fn table_and_enum_agree() {
    assert_eq!(OPS.len(), 63);
    for spec in OPS {
        let mut fields = Map::from_iter([("op".to_string(), json!(spec.name))]);
        fields.extend(spec.args.iter().map(|arg| (arg.name.to_string(), sample(arg.kind))));
        let op: Op = serde_json::from_value(Value::Object(fields.clone()))
            .unwrap_or_else(|error| panic!("{}: {error}", spec.name));
        assert_eq!(op.name(), spec.name);
        // Objects compare without order: the table's is that of hand-written lines, the enum's that of recordings.
        assert_eq!(serde_json::to_value(&op).unwrap(), Value::Object(fields), "{}", spec.name);
    }
}

#[test]
fn table_names_every_operation_once() {
    for (i, spec) in OPS.iter().enumerate() {
        assert!(OPS[..i].iter().all(|earlier| earlier.name != spec.name), "{}", spec.name);
    }
}

#[test]
fn enum_has_no_operation_that_the_table_lacks() {
    // serde names every variant of an enum when it meets one that it does not know; a family's are in another enum.
    let unknown = r#"{"op": "?"}"#;
    let errors = [
        serde_json::from_str::<Op>(unknown).unwrap_err().to_string(),
        serde_json::from_str::<SnpOp>(unknown).unwrap_err().to_string(),
        serde_json::from_str::<TdxOp>(unknown).unwrap_err().to_string(),
        serde_json::from_str::<PkvmOp>(unknown).unwrap_err().to_string(),
        serde_json::from_str::<ProtectedOp>(unknown).unwrap_err().to_string(),
    ];
    let names: Vec<&str> = errors.iter().flat_map(|error| error.split('`').skip(3).step_by(2)).collect();
    assert_eq!(names.len(), OPS.len(), "{errors:?}");
    for name in names {
        assert!(OPS.iter().any(|spec| spec.name == name), "{name}");
    }
}

fn change() -> impl Strategy<Value = SpteChange> {
    let state = prop_oneof![Just(SpteState::None), Just(SpteState::Leaf)];
    (0u64..6, 1u8..4, state.clone(), state, any::<bool>()).prop_map(|(index, level, from, to, writable)| SpteChange {
        gfn: index * SpteRun::span(level),
        level,
        from,
        to,
        writable,
    })
}

fn unfold(runs: &[SpteRun]) -> Vec<SpteChange> {
    let single = |run: &SpteRun, i: u64| SpteChange {
        gfn: run.gfn + i * SpteRun::span(run.level),
        level: run.level,
        from: run.from,
        to: run.to,
        writable: run.writable,
    };
    runs.iter().flat_map(|run| (0..run.entries).map(move |i| single(run, i))).collect()
}

proptest! {
    #[test]
    fn folding_loses_nothing_and_leaves_nothing_to_fold(changes in prop::collection::vec(change(), 0..40)) {
        let runs = fold(changes.iter().copied());
        prop_assert_eq!(unfold(&runs), changes);
        for pair in runs.windows(2) {
            prop_assert!(!pair[0].continues_with(&unfold(&pair[1..])[0]));
        }
    }
}

#[test]
fn spans_are_those_of_the_levels() {
    assert_eq!([1, 2, 3, 4].map(SpteRun::span), [1, 512, 262_144, 512 * 512 * 512]);
}
