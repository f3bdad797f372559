//! Guests with page tables of their own, on every kind of second stage and with every TLB.

use super::workspace;
use gmem::interp::Sequential;
use gmem::ops::Answer;
use gmem::replay::Executor;
use gmem::scenario::{parse, parse_line};
use gmem::{MachineConfig, Stage2Kind};
use sim_mmu::tlb::TlbConfig;

/// Tables in the first four pages of a slot, which lead from 0x1000 to its ninth page.
const TABLES: &str = "
    create_vm vm0
    create_vcpu vm0 c0 paging=paged
    mmap m0 len=64K
    set_user_memory_region vm0 slot=0 gpa=0x200000 size=64K hva=m0
    host_write64 m0 0x0 0x201007
    host_write64 m0 0x1000 0x202007
    host_write64 m0 0x2000 0x203007
    host_write64 m0 0x3008 0x208007
";

fn machines() -> Vec<MachineConfig> {
    let npt = MachineConfig::default();
    let ept = MachineConfig { stage2: Stage2Kind::Ept, ..MachineConfig::default() };
    let mut machines = vec![npt, ept.clone(), MachineConfig { pml: true, ..ept.clone() }];
    machines.push(MachineConfig { ept_ad_bits: false, ..ept });
    let tlbs = [TlbConfig::NONE, TlbConfig::SMALL, TlbConfig::LARGE];
    machines.iter().flat_map(|machine| tlbs.map(|tlb| MachineConfig { tlb, ..machine.clone() })).collect()
}

fn run(machine: &mut Sequential, lines: &str) -> Answer {
    let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| machine.execute(&parse_line(line).unwrap().op).answer).last().expect("there is a line")
}

#[test]
fn a_guest_finds_the_same_on_every_machine() {
    let path = workspace().join("scenarios/guest-paging.toml");
    let scenario = parse("guest-paging.toml", &std::fs::read_to_string(path).unwrap()).unwrap();
    for config in machines() {
        let mut machine = Sequential::new(config.clone());
        for step in scenario.steps() {
            let answer = machine.execute(&step.op).answer;
            if let Some(expect) = &step.expect {
                expect.check(&answer).unwrap_or_else(|error| panic!("{}: {error}\n{config:?}", step.text));
            }
        }
    }
}

/// A walk of a guest's tables is a write to their pages where A and D bits of stage 2 make it one.
#[test]
fn mm_031_mm_100_reading_dirties_the_pages_of_tables() {
    for config in machines().into_iter().filter(|config| config.ept_ad_bits) {
        let mut machine = Sequential::new(config.clone());
        run(&mut machine, TABLES);
        // All of it is mapped, and then logged.
        let read = "guest_paged c0 m0 cr3=0x200000 access=r gva=0x1000";
        assert_eq!(run(&mut machine, read).to_string(), r#"{"exit": "done", "value": 0}"#);
        run(&mut machine, "set_user_memory_region vm0 slot=0 flags=log_dirty gpa=0x200000 size=64K hva=m0");
        for round in 0..3 {
            run(&mut machine, read);
            let dirty = run(&mut machine, "get_dirty_log vm0 0 16");
            assert_eq!(dirty.to_string(), r#"{"ok": 0, "dirty": [0, 1, 2, 3]}"#, "round {round}: {config:?}");
        }
        run(&mut machine, "guest_paged c0 m0 cr3=0x200000 access=w gva=0x1000 value=7");
        let dirty = run(&mut machine, "get_dirty_log vm0 0 16");
        assert_eq!(dirty.to_string(), r#"{"ok": 0, "dirty": [0, 1, 2, 3, 8]}"#, "{config:?}");
    }
}

/// A table that lies in no memory slot: KVM's own walk cannot read it either, and the guest gets a page fault.
#[test]
fn a_table_in_no_memory_is_a_page_fault() {
    for config in machines() {
        let mut machine = Sequential::new(config.clone());
        run(&mut machine, TABLES);
        run(&mut machine, "host_write64 m0 0x1000 0x40000007");
        let answer = run(&mut machine, "guest_paged c0 m0 cr3=0x200000 access=w gva=0x1000 value=7");
        let expected = r#"{"exit": "exception", "vector": 14, "error": 2, "cr2": 4096}"#;
        assert_eq!(answer.to_string(), expected, "{config:?}");
    }
}

/// Without the slot that has its interrupt table, a guest's page fault cannot be delivered, and KVM does not emulate deliveries.
#[test]
fn a_fault_that_cannot_be_delivered_is_an_internal_error() {
    for config in machines() {
        let mut machine = Sequential::new(config.clone());
        run(&mut machine, TABLES);
        run(&mut machine, "set_user_memory_region vm0 slot=31 gpa=0xf0000000 size=0 hva=0");
        let answer = run(&mut machine, "guest_paged c0 m0 cr3=0x200000 access=r gva=0x1000");
        assert_eq!(answer.to_string(), r#"{"exit": "internal_error", "suberror": 3}"#, "{config:?}");
    }
}

/// A table that lies in private memory: stage 2 has the guest's page, KVM's own walk reads the VMM's, where nothing is present.
#[test]
fn a_page_fault_of_an_emulated_read_modify_write_is_that_of_a_write() {
    let tables = TABLES.replace("create_vm vm0", "create_vm vm0 type=sw_protected").replace(
        "set_user_memory_region vm0 slot=0 gpa=0x200000 size=64K hva=m0",
        "create_guest_memfd vm0 g0 size=64K
        set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=64K hva=m0 guest_memfd=g0
        set_memory_attributes vm0 0x203000 4K private",
    );
    let tables = tables.replace("host_write64 m0 0x3008 0x208007", "guest_write c0 0x203008 0x900007");
    for config in machines() {
        let mut machine = Sequential::new(config.clone());
        run(&mut machine, &tables);
        for (access, error) in [("r", 0), ("w", 2), ("rmw", 2)] {
            let answer = run(&mut machine, &format!("guest_paged c0 m0 cr3=0x200000 access={access} gva=0x1000"));
            let expected = format!(r#"{{"exit": "exception", "vector": 14, "error": {error}, "cr2": 4096}}"#);
            assert_eq!(answer.to_string(), expected, "{access}: {config:?}");
        }
    }
}

/// `KVM_SET_SREGS` refuses it, and the guest never runs.
#[test]
fn a_cr3_beyond_maxphyaddr_is_refused() {
    for config in machines() {
        let mut machine = Sequential::new(config.clone());
        run(&mut machine, TABLES);
        for cr3 in [1u64 << config.maxphyaddr, 1 << 63 | 0x200000] {
            let answer = run(&mut machine, &format!("guest_paged c0 m0 cr3={cr3:#x} access=r gva=0x1000"));
            assert_eq!(answer.to_string(), r#"{"errno": "EINVAL"}"#, "{cr3:#x}: {config:?}");
        }
        let answer = run(&mut machine, "guest_paged c0 m0 cr3=0x200000 access=r gva=0x1000");
        assert_eq!(answer.to_string(), r#"{"exit": "done", "value": 0}"#, "{config:?}");
    }
}

/// Recordings have 0 and 3.
#[test]
fn a_privilege_that_is_neither_0_nor_3_is_refused() {
    for cpl in ["1", "4", "0x100000003"] {
        let line = format!("guest_paged c0 m0 cr3=0x200000 cpl={cpl} access=r gva=0x1000");
        let error = parse_line(&line).unwrap_err().to_string();
        assert!(error.contains("one of supervisor, user; or their numbers, 0, 3"), "{error}");
    }
    for cpl in ["0", "3", "user"] {
        parse_line(&format!("guest_paged c0 m0 cr3=0x200000 cpl={cpl} access=r gva=0x1000")).unwrap();
    }
}
