//! Programs of which releases answer the last operation differently. One thread, so that the answer is a function of the release.

use super::{RELEASES, machine, releases, run};
use gmem::interp::Sequential;
use gmem::{MachineConfig, Stage2Kind};

const OK: &str = r#"{"ok": 0}"#;
const EINVAL: &str = r#"{"errno": "EINVAL"}"#;
const ENODEV: &str = r#"{"errno": "ENODEV"}"#;
const ENOMEM: &str = r#"{"errno": "ENOMEM"}"#;
const EPERM: &str = r#"{"errno": "EPERM"}"#;
const EEXIST: &str = r#"{"errno": "EEXIST"}"#;

/// A software-protected VM with a vCPU, a guest_memfd of four pages and a mapping of as many.
const PROTECTED: &str = "
    create_vm vm0 sw_protected
    create_vcpu vm0 c0
    create_guest_memfd vm0 g0 size=16K
    mmap m0 len=16K
";

/// The same with the guest_memfd bound at 2 MiB.
const BOUND: &str = "
    create_vm vm0 sw_protected
    create_vcpu vm0 c0
    create_guest_memfd vm0 g0 size=16K
    mmap m0 len=16K
    set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=16K hva=m0 guest_memfd=g0
";

/// A row of the table: what 6.8, 6.12, 6.18, 6.18.44 and 7.3 answer to the last operation of `before` and `program`.
#[track_caller]
fn check(row: &str, before: &str, program: &str, answers: [&str; RELEASES]) {
    check_on(row, &MachineConfig::default(), before, program, answers);
}

#[track_caller]
fn check_on(row: &str, config: &MachineConfig, before: &str, program: &str, answers: [&str; RELEASES]) {
    for ((name, kernel), expected) in releases(answers) {
        let mut machine = Sequential::new(MachineConfig { kernel, ..config.clone() });
        for outcome in run(&mut machine, before) {
            assert!(!outcome.answer.to_string().contains("errno"), "{row}: {}", outcome.answer);
        }
        let outcomes = run(&mut machine, program);
        assert_eq!(outcomes.last().unwrap().answer.to_string(), expected, "{row} on Linux {name}");
    }
}

#[test]
fn v1_creation_flags() {
    let create = |flags: &str| format!("create_guest_memfd vm0 g1 size=16K flags={flags}");
    check("V1", PROTECTED, &create("mmap"), [EINVAL, EINVAL, OK, OK, OK]);
    check("V1", "create_vm vm0", &create("mmap|init_shared"), [EINVAL, EINVAL, OK, OK, OK]);
    check("V1", "create_vm vm0", &create("0"), [OK; RELEASES]);
}

#[test]
fn v2_guest_memfd_in_the_host() {
    check("V2", "", "check_extension guest_memfd_flags", [OK, OK, r#"{"ok": 3}"#, r#"{"ok": 3}"#, r#"{"ok": 3}"#]);
    check(
        "V2",
        PROTECTED,
        "check_extension guest_memfd_flags vm0",
        [OK, OK, r#"{"ok": 1}"#, r#"{"ok": 1}"#, r#"{"ok": 1}"#],
    );
    check("V2", PROTECTED, "mmap m1 fd=g0 len=16K shared=shared", [ENODEV; RELEASES]);
}

#[test]
fn v3_slots_of_every_vm() {
    let program = "
        create_guest_memfd vm0 g0 size=16K
        set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=16K hva=0x10000000 guest_memfd=g0
    ";
    check("V3", "create_vm vm0", program, [EINVAL, EINVAL, OK, OK, OK]);
    let extension = "check_extension guest_memfd vm0";
    check("V3", "create_vm vm0", extension, [OK, OK, r#"{"ok": 1}"#, r#"{"ok": 1}"#, r#"{"ok": 1}"#]);
    check("V3", PROTECTED, extension, [r#"{"ok": 1}"#; RELEASES]);
}

#[test]
fn v4_binding_overlap() {
    let again = "set_user_memory_region2 vm0 slot=1 flags=guest_memfd gpa=0x400000 size=4K hva=m0 guest_memfd=g0 guest_memfd_offset=4K";
    check("V4", BOUND, again, [EINVAL, EINVAL, EINVAL, EINVAL, EEXIST]);
}

/// Binding before the slot's other memory is allocated, the overlap is found before the want of memory.
#[test]
fn v6_bind_order() {
    let config = MachineConfig { memory: 256 << 10, ..MachineConfig::default() };
    let before = "
        create_vm vm0 sw_protected
        create_guest_memfd vm0 g0 size=512G
        set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0 size=4K hva=0x10000000 guest_memfd=g0
    ";
    let large =
        "set_user_memory_region2 vm0 slot=1 flags=guest_memfd gpa=0x40000000 size=256G hva=0x10000000 guest_memfd=g0";
    check_on("V6", &config, before, large, [EINVAL, EINVAL, EINVAL, EINVAL, ENOMEM]);
    // A binding whose slot fails afterwards is undone.
    let elsewhere = format!("{large} guest_memfd_offset=4K");
    check_on("V6", &config, before, &elsewhere, [ENOMEM; RELEASES]);
    let free = "set_user_memory_region2 vm0 slot=2 flags=guest_memfd gpa=0x40000000 size=4K hva=0x10000000 guest_memfd=g0 guest_memfd_offset=4K";
    check_on("V6", &config, before, &format!("{elsewhere}\n{free}"), [OK; RELEASES]);
}

#[test]
fn v7_offset_arithmetic() {
    let bind = |offset: &str| {
        format!(
            "set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=16K hva=m0 guest_memfd=g0 guest_memfd_offset={offset}"
        )
    };
    check("V7", PROTECTED, &bind("0x7fffffffffffd000"), [OK, EINVAL, OK, OK, EINVAL]);
    // The sum is still positive, the offset is negative, or the sum wraps as an unsigned number too.
    check("V7", PROTECTED, &bind("0x7fffffffffffb000"), [EINVAL; RELEASES]);
    check("V7", PROTECTED, &bind("0x8000000000000000"), [EINVAL; RELEASES]);
    check("V7", PROTECTED, &bind("0xffffffffffffd000"), [EINVAL; RELEASES]);
    check("V7", PROTECTED, &bind("4K"), [EINVAL; RELEASES]);
    // Where it passes, the guest gets a page that the file does not have.
    let program = format!(
        "{}\nset_memory_attributes vm0 0x200000 16K private\nguest_write c0 0x200000 7",
        bind("0x7fffffffffffd000")
    );
    let fault = r#"{"errno": "EFAULT", "exit": "memory_fault", "flags": 8, "gpa": 2097152, "size": 4096}"#;
    let halted = r#"{"exit": "hlt"}"#;
    check("V7", PROTECTED, &program, [halted, fault, halted, halted, fault]);
}

/// Programs that use up the memory for xarray nodes: pages 64 apart, until nothing is left.
fn exhaust(machine: &mut Sequential) {
    for i in 0..4000u64 {
        let line = format!("set_memory_attributes vm0 {:#x} 4K private", 0x1_0000_0000 + i * 64 * 4096);
        if run(machine, &line)[0].answer.to_string() == ENOMEM {
            return;
        }
    }
    panic!("the memory for nodes does not end");
}

#[test]
fn v8_a_binding_that_cannot_be_stored() {
    let fault = |errno: &str| {
        format!(r#"{{"errno": "{errno}", "exit": "memory_fault", "flags": 8, "gpa": 2097152, "size": 4096}}"#)
    };
    let rows = [(OK, "EIO"), (ENOMEM, "EFAULT"), (OK, "EIO"), (OK, "EIO"), (ENOMEM, "EFAULT")];
    for ((name, kernel), (answer, errno)) in releases(rows) {
        let mut machine = Sequential::new(MachineConfig { memory: 1 << 20, ..machine(kernel) });
        run(&mut machine, PROTECTED);
        run(&mut machine, "set_memory_attributes vm0 0x200000 4K private");
        exhaust(&mut machine);
        let bind = "set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=16K hva=m0 guest_memfd=g0";
        assert_eq!(run(&mut machine, bind)[0].answer.to_string(), answer, "V8 on Linux {name}");
        // The slot is there and the file does not know it; or there is no slot.
        let access = run(&mut machine, "guest_write c0 0x200000 1");
        assert_eq!(access[0].answer.to_string(), fault(errno), "V8 on Linux {name}");
    }
}

#[test]
fn v18_clearing_attributes_needs_no_memory() {
    for ((name, kernel), answer) in releases([ENOMEM, ENOMEM, ENOMEM, ENOMEM, OK]) {
        let mut machine = Sequential::new(MachineConfig { memory: 1 << 20, ..machine(kernel) });
        run(&mut machine, PROTECTED);
        run(&mut machine, "set_memory_attributes vm0 0x200000 4K private");
        exhaust(&mut machine);
        let clear = run(&mut machine, "set_memory_attributes vm0 0x200000 1G shared");
        assert_eq!(clear[0].answer.to_string(), answer, "V18 on Linux {name}");
    }
}

#[test]
fn v19_flags_of_a_bound_slot() {
    let readonly =
        "set_user_memory_region2 vm0 slot=0 flags=guest_memfd|readonly gpa=0x200000 size=16K hva=m0 guest_memfd=g0";
    check("V19a", PROTECTED, readonly, [EINVAL; RELEASES]);
    let drop = "set_user_memory_region2 vm0 slot=0 gpa=0x200000 size=16K hva=m0";
    check("V19b", BOUND, drop, [OK, EINVAL, OK, EINVAL, EINVAL]);
    let moved = "set_user_memory_region2 vm0 slot=0 gpa=0x400000 size=16K hva=m0";
    check("V19b", BOUND, moved, [OK, EINVAL, OK, EINVAL, EINVAL]);
    let same = "set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=16K hva=m0 guest_memfd=g0";
    check("V19b", BOUND, same, [EINVAL; RELEASES]);
}

#[test]
fn v21_pre_faulting() {
    let one = r#"{"ok": 1}"#;
    check("V21", "", "check_extension pre_fault_memory", [OK, one, one, one, one]);
    let refused = r#"{"errno": "EINVAL", "gpa": 2097152, "size": 4096}"#;
    let done = r#"{"ok": 0, "gpa": 2101248, "size": 0}"#;
    check("V21", BOUND, "pre_fault_memory c0 0x200000 4K", [refused, done, done, done, done]);
}

/// A frame becomes private while an MMIO entry says that no slot is there, and another slot makes the entry stale.
#[test]
fn v22_faults_on_mmio_entries() {
    let program = "
        guest_read c0 0x300000
        set_memory_attributes vm0 0x300000 4K private
        set_user_memory_region vm0 slot=1 gpa=0x400000 size=4K hva=m0
        guest_read c0 0x300000
    ";
    let fault = |flags| {
        format!(r#"{{"errno": "EFAULT", "exit": "memory_fault", "flags": {flags}, "gpa": 3145728, "size": 4096}}"#)
    };
    let (private, shared) = (fault(8), fault(0));
    check("V22", PROTECTED, program, [&private, &shared, &shared, &shared, &shared]);
}

#[test]
fn v23_executable_mappings() {
    check("V23", PROTECTED, "mmap m1 fd=g0 len=16K prot=rwx shared=shared", [ENODEV, EPERM, EPERM, EPERM, EPERM]);
}

/// Two slots are mapped and one is deleted: which mappings are gone afterwards?
#[test]
fn v25_deleting_a_slot() {
    for ((name, kernel), zapped) in releases([2, 1, 1, 1, 1]) {
        let mut machine = Sequential::new(machine(kernel));
        run(&mut machine, BOUND);
        run(&mut machine, "set_user_memory_region vm0 slot=1 gpa=0x400000 size=4K hva=m0+0x1000");
        run(&mut machine, "guest_write c0 0x200000 1\nguest_write c0 0x400000 1");
        let outcomes = run(&mut machine, "set_user_memory_region vm0 slot=1 gpa=0x400000 size=0 hva=m0");
        let leaves = outcomes[0].spte.iter().filter(|run| run.from == gmem::ops::SpteState::Leaf).count();
        assert_eq!(leaves, zapped, "V25 on Linux {name}: {:?}", outcomes[0].spte);
    }
    // An ordinary VM zaps everything on all of them, and since 6.12 the quirk can be disabled.
    let disable = "enable_cap vm0 213 0x80";
    check("V25", "create_vm vm0", disable, [EINVAL, OK, OK, OK, OK]);
}

#[test]
fn v27_sw_protected_vms() {
    check("V27", "", "create_vm vm0 sw_protected", [OK; RELEASES]);
    let shadow = MachineConfig { tdp_enabled: false, ..MachineConfig::default() };
    check_on("V27", &shadow, "", "create_vm vm0 sw_protected", [EINVAL; RELEASES]);
}

/// A range inside one block, in an area that has whole blocks.
#[test]
fn v29_snp_vms() {
    let config = MachineConfig { snp: true, ..MachineConfig::default() };
    let refused = r#"{"errno": "EINVAL"}"#;
    check_on("V29", &config, "", "create_vm vm1 type=snp", [refused, OK, OK, OK, OK]);
}

#[test]
fn v30_tds() {
    let config = MachineConfig { tdx: true, stage2: Stage2Kind::Ept, ..MachineConfig::default() };
    let refused = r#"{"errno": "EINVAL"}"#;
    check_on("V30", &config, "", "create_vm vm1 type=tdx", [refused, refused, OK, OK, OK]);
}

#[test]
fn h1_collapse_of_less_than_a_block() {
    let before = "mmap m0 len=4M align=2M\nhost_write m0 0 1";
    check("H1", before, "madvise m0 4K 4K collapse", [EINVAL, EINVAL, EINVAL, EINVAL, OK]);
}
