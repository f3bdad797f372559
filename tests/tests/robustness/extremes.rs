//! Arguments of absurd size. What an operation costs depends on what exists, not on the numbers that it is given: each of these
//! programs would otherwise run for hours or take all memory.

use gmem::MachineConfig;
use gmem::interp::Sequential;
use gmem::ops::Op;
use gmem::replay::Executor;
use gmem::testing::values::check_and_end;

const M: u64 = 1 << 20;

fn machine(memory: u64) -> MachineConfig {
    MachineConfig { memory, ..MachineConfig::default() }
}

/// Performs one operation and returns its answer.
fn perform(executor: &mut Sequential, op: &str) -> String {
    let op: Op = serde_json::from_str(op).unwrap_or_else(|error| panic!("{op}: {error}"));
    executor.execute(&op).answer.to_string()
}

/// Performs the operations of a table, one a line: `{operation} => {answer}`. Then the process ends, and nothing is left.
fn run(machine: MachineConfig, table: &str) {
    let mut executor = Sequential::new(machine);
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (op, expected) = line.split_once(" => ").unwrap_or((line, r#"{"ok": 0}"#));
        assert_eq!(perform(&mut executor, op), expected, "{op}");
    }
    executor.with(check_and_end);
}

#[test]
fn attributes_of_the_whole_address_space() {
    run(
        machine(64 * M),
        r#"
        {"op": "create_vm", "vm": "vm0", "type": 1}
        {"op": "create_vcpu", "vm": "vm0", "vcpu": "c0", "index": 0}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 0, "size": 4503599627370496, "attributes": 8, "flags": 0} => {"errno": "ENOMEM"}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 0, "size": 18446744073709547520, "attributes": 8, "flags": 0} => {"errno": "ENOMEM"}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 0, "size": 4503599627370496, "attributes": 0, "flags": 0}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 0, "size": 18446744073709547520, "attributes": 0, "flags": 0}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 4096, "size": 18446744073709547520, "attributes": 0, "flags": 0} => {"errno": "EINVAL"}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 18446744073709539328, "size": 4096, "attributes": 8, "flags": 0}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 0, "size": 4294967296, "attributes": 8, "flags": 0}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 0, "size": 18446744073709547520, "attributes": 0, "flags": 0}
        "#,
    );
}

#[test]
fn a_quarter_of_a_terabyte_is_converted_and_back() {
    run(
        machine(3 << 30),
        r#"
        {"op": "create_vm", "vm": "vm0", "type": 1}
        {"op": "set_user_memory_region", "vm": "vm0", "slot": 0, "flags": 0, "gpa": 0, "size": 274877906944, "hva": 0}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 0, "size": 274877906944, "attributes": 8, "flags": 0}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 4096, "size": 274877898752, "attributes": 0, "flags": 0}
        {"op": "set_memory_attributes", "vm": "vm0", "gpa": 0, "size": 1099511627776, "attributes": 8, "flags": 0} => {"errno": "ENOMEM"}
        "#,
    );
}

#[test]
fn files_of_a_terabyte() {
    run(
        machine(32 * M),
        r#"
        {"op": "create_vm", "vm": "vm0", "type": 0}
        {"op": "create_vcpu", "vm": "vm0", "vcpu": "c0", "index": 0}
        {"op": "create_guest_memfd", "vm": "vm0", "fd": "g0", "size": 1099511627776, "flags": 3}
        {"op": "memfd_create", "fd": "f0", "size": 1099511627776, "flags": 0}
        {"op": "create_guest_memfd", "vm": "vm0", "fd": "g1", "size": 9223372036854771712, "flags": 3}
        {"op": "set_user_memory_region2", "vm": "vm0", "slot": 0, "flags": 4, "gpa": 0, "size": 549755813888, "hva": 0, "guest_memfd": "g0", "guest_memfd_offset": 4096} => {"errno": "EEXIST"}
        {"op": "set_user_memory_region2", "vm": "vm0", "slot": 0, "flags": 4, "gpa": 4294967296, "size": 549755813888, "hva": 0, "guest_memfd": "g0", "guest_memfd_offset": 4096}
        {"op": "set_user_memory_region2", "vm": "vm0", "slot": 1, "flags": 4, "gpa": 1073741824, "size": 8192, "hva": 0, "guest_memfd": "g1", "guest_memfd_offset": 9223372036854763520}
        {"op": "fallocate", "fd": "g0", "mode": 3, "offset": 0, "len": 9223372036854771712}
        {"op": "guest_write", "vcpu": "c0", "gpa": 4294967296, "value": 7} => {"exit": "hlt"}
        {"op": "guest_write", "vcpu": "c0", "gpa": 1073745920, "value": 7} => {"exit": "hlt"}
        {"op": "mmap", "map": "m0", "fd": "g0", "len": 1099511627776, "prot": "rw", "shared": true, "offset": 0, "align": 4096}
        {"op": "host_read", "map": "m0", "offset": 4096} => {"ok": 0, "value": 7}
        {"op": "mincore", "map": "m0", "offset": 0, "len": 1099511627776} => {"ok": 0, "resident": [1]}
        {"op": "mmap", "map": "m1", "fd": "f0", "len": 1099511627776, "prot": "rw", "shared": true, "offset": 0, "align": 4096}
        {"op": "host_write", "map": "m1", "offset": 1099511623680, "value": 1}
        {"op": "mincore", "map": "m1", "offset": 0, "len": 1099511627776} => {"ok": 0, "resident": [268435455]}
        {"op": "pread", "fd": "f0", "offset": 0, "len": 9223372036854775807} => {"ok": 2147479552}
        {"op": "fallocate", "fd": "g0", "mode": 1, "offset": 0, "len": 1099511627776} => {"errno": "ENOMEM"}
        {"op": "fallocate", "fd": "g0", "mode": 3, "offset": 0, "len": 1099511627776}
        {"op": "fallocate", "fd": "f0", "mode": 1, "offset": 1099511627776, "len": 1099511627776} => {"errno": "ENOMEM"}
        {"op": "fallocate", "fd": "f0", "mode": 0, "offset": 0, "len": 9223372036854775807} => {"errno": "ENOMEM"}
        {"op": "fallocate", "fd": "f0", "mode": 0, "offset": 1, "len": 9223372036854775807} => {"errno": "EFBIG"}
        {"op": "fallocate", "fd": "f0", "mode": 3, "offset": 0, "len": 9223372036854775807}
        {"op": "ftruncate", "fd": "f0", "size": 9223372036854775807}
        {"op": "ftruncate", "fd": "f0", "size": 0}
        "#,
    );
}

#[test]
fn mappings_of_most_of_the_address_space() {
    run(
        machine(32 * M),
        r#"
        {"op": "mmap", "map": "m0", "fd": null, "len": 70368744177664, "prot": "rw", "shared": false, "offset": 0, "align": 2097152}
        {"op": "host_write", "map": "m0", "offset": 35184372088832, "value": 1}
        {"op": "mincore", "map": "m0", "offset": 35184372088832, "len": 4096} => {"ok": 0, "resident": [0]}
        {"op": "mincore", "map": "m0", "offset": 35184374185984, "len": 35184369991680} => {"ok": 0, "resident": []}
        {"op": "mincore", "map": "m0", "offset": 0, "len": 140737488355328} => {"errno": "ENOMEM"}
        {"op": "madvise", "map": "m0", "offset": 0, "len": 70368744177664, "advice": "dontneed"}
        {"op": "madvise", "map": "m0", "offset": 0, "len": 70368744177664, "advice": "populate_read"} => {"errno": "ENOMEM"}
        {"op": "mlock", "map": "m0", "offset": 0, "len": 70368744177664} => {"errno": "EAGAIN"}
        {"op": "munmap", "map": "m0", "offset": 0, "len": 70368744177664}
        {"op": "mmap", "map": "m0", "fd": null, "len": 70368744177664, "prot": "rw", "shared": false, "offset": 0, "align": 4096}
        {"op": "madvise", "map": "m0", "offset": 0, "len": 70368744177664, "advice": "nohugepage"}
        {"op": "madvise", "map": "m0", "offset": 0, "len": 70368744177664, "advice": "populate_read"} => {"errno": "ENOMEM"}
        {"op": "madvise", "map": "m0", "offset": 0, "len": 70368744177664, "advice": "populate_write"} => {"errno": "ENOMEM"}
        {"op": "mprotect", "map": "m0", "offset": 4096, "len": 70368744169472, "prot": "r"}
        {"op": "munmap", "map": "m0", "offset": 0, "len": 70368744177664}
        {"op": "mmap", "map": "m1", "fd": null, "len": 140737488355328, "prot": "rw", "shared": false, "offset": 0, "align": 4096} => {"errno": "ENOMEM"}
        {"op": "mmap", "map": "m1", "fd": null, "len": 4096, "prot": "rw", "shared": false, "offset": 0, "align": 9223372036854775808} => {"errno": "ENOMEM"}
        {"op": "mmap", "map": "m2", "fd": null, "len": 70368744177664, "prot": "r", "shared": true, "offset": 0, "align": 4096}
        {"op": "madvise", "map": "m2", "offset": 0, "len": 70368744177664, "advice": "populate_read"} => {"errno": "ENOMEM"}
        {"op": "munmap", "map": "nothing", "offset": 0, "len": 140737488351232}
        "#,
    );
}

#[test]
fn the_largest_slot() {
    // Over and over: what a slot's metadata took is given back with the slot.
    let mut executor = Sequential::new(machine(160 * M));
    assert_eq!(perform(&mut executor, r#"{"op": "create_vm", "vm": "vm0", "type": 0}"#), r#"{"ok": 0}"#);
    assert_eq!(
        perform(&mut executor, r#"{"op": "create_vcpu", "vm": "vm0", "vcpu": "c0", "index": 0}"#),
        r#"{"ok": 0}"#
    );
    for _ in 0..4 {
        for (flags, gpa, size, answer) in [
            (1, 4u64 << 30, (1u64 << 40) - (4 << 30), r#"{"ok": 0}"#),
            (0, 4 << 30, (1 << 40) - (4 << 30), r#"{"ok": 0}"#),
            (1, 4 << 30, (1 << 40) - (4 << 30), r#"{"ok": 0}"#),
            (0, 0, 0, r#"{"ok": 0}"#),
            // Too much memory for the bitmap is found out before that physical addresses end.
            (1, 4 << 30, ((1 << 31) - 1) * 4096, r#"{"errno": "ENOMEM"}"#),
            (0, 4 << 30, ((1 << 31) - 1) * 4096, r#"{"errno": "EINVAL"}"#),
            (0, 4 << 30, (1 << 31) * 4096, r#"{"errno": "EINVAL"}"#),
        ] {
            let region = format!(
                r#"{{"op": "set_user_memory_region", "vm": "vm0", "slot": 0, "flags": {flags}, "gpa": {gpa}, "size": {size}, "hva": 0}}"#
            );
            assert_eq!(perform(&mut executor, &region), answer, "{region}");
            if size != 0 && flags == 1 && answer.contains("ok") {
                let log = r#"{"op": "get_dirty_log", "vm": "vm0", "slot": 0, "npages": 1099511627776}"#;
                assert_eq!(perform(&mut executor, log), r#"{"ok": 0, "dirty": []}"#);
            }
        }
    }
    executor.with(check_and_end);
}

#[test]
fn prefaulting_as_much_as_there_is() {
    run(
        machine(32 * M),
        r#"
        {"op": "create_vm", "vm": "vm0", "type": 0}
        {"op": "create_vcpu", "vm": "vm0", "vcpu": "c0", "index": 0}
        {"op": "pre_fault_memory", "vcpu": "c0", "gpa": 0, "size": 18446744073709547520, "flags": 0} => {"errno": "ENOENT", "gpa": 0, "size": 18446744073709547520}
        {"op": "mmap", "map": "m0", "fd": null, "len": 1099511627776, "prot": "rw", "shared": false, "offset": 0, "align": 4096}
        {"op": "set_user_memory_region", "vm": "vm0", "slot": 0, "flags": 0, "gpa": 8589934592, "size": 1090921693184, "hva": {"map": "m0", "offset": 4096}}
        "#,
    );
}

#[test]
fn small_pages_of_untouched_memory_end_with_the_tables() {
    // What is not written is the zero page: no frames are taken, only tables and time. The host of 256 MiB has 512 tables.
    run(
        machine(256 * M),
        r#"
        {"op": "create_vm", "vm": "vm0", "type": 0}
        {"op": "create_vcpu", "vm": "vm0", "vcpu": "c0", "index": 0}
        {"op": "mmap", "map": "m0", "fd": null, "len": 70368744177664, "prot": "rw", "shared": false, "offset": 0, "align": 2097152}
        {"op": "madvise", "map": "m0", "offset": 0, "len": 70368744177664, "advice": "nohugepage"}
        {"op": "madvise", "map": "m0", "offset": 0, "len": 70368744177664, "advice": "populate_read"} => {"errno": "ENOMEM"}
        {"op": "mlock", "map": "m0", "offset": 0, "len": 70368744177664} => {"errno": "EAGAIN"}
        {"op": "madvise", "map": "m0", "offset": 0, "len": 70368744177664, "advice": "populate_write"} => {"errno": "ENOMEM"}
        {"op": "munmap", "map": "m0", "offset": 0, "len": 70368744177664}
        {"op": "mmap", "map": "m1", "fd": null, "len": 1099511627776, "prot": "rw", "shared": false, "offset": 0, "align": 2097152}
        {"op": "set_user_memory_region", "vm": "vm0", "slot": 0, "flags": 0, "gpa": 8589934592, "size": 1090921689088, "hva": {"map": "m1", "offset": 4096}}
        {"op": "guest_read", "vcpu": "c0", "gpa": 8589934592} => {"exit": "hlt", "value": 0}
        {"op": "pre_fault_memory", "vcpu": "c0", "gpa": 8589934592, "size": 1090921689088, "flags": 0} => {"ok": 0, "gpa": 9651093504, "size": 1089860530176}
        {"op": "pre_fault_memory", "vcpu": "c0", "gpa": 9651093504, "size": 4096, "flags": 0} => {"errno": "ENOMEM", "gpa": 9651093504, "size": 4096}
        {"op": "guest_read", "vcpu": "c0", "gpa": 1090921693184} => {"errno": "ENOMEM", "exit": "reason_0"}
        {"op": "guest_read", "vcpu": "c0", "gpa": 8589934592} => {"exit": "hlt", "value": 0}
        {"op": "set_user_memory_region", "vm": "vm0", "slot": 0, "flags": 0, "gpa": 0, "size": 0, "hva": 0}
        "#,
    );
}

#[test]
fn a_log_in_which_everything_is_dirty() {
    // The kernel's bitmap has 32 MiB; a list of its numbers would have gigabytes.
    run(
        machine(256 * M),
        r#"
        {"op": "create_vm", "vm": "vm0", "type": 0}
        {"op": "enable_cap", "vm": "vm0", "cap": 168, "arg": 3}
        {"op": "set_user_memory_region", "vm": "vm0", "slot": 0, "flags": 1, "gpa": 4294967296, "size": 1095216660480, "hva": 0}
        {"op": "get_dirty_log", "vm": "vm0", "slot": 0, "npages": 18446744073709551615} => {"errno": "ENOMEM"}
        {"op": "get_dirty_log", "vm": "vm0", "slot": 0, "npages": 4194305} => {"errno": "ENOMEM"}
        {"op": "get_dirty_log", "vm": "vm0", "slot": 0, "npages": 3} => {"ok": 0, "dirty": [0, 1, 2]}
        "#,
    );
}

#[test]
fn a_file_is_filled_and_read() {
    run(
        machine(256 * M),
        r#"
        {"op": "memfd_create", "fd": "f0", "size": 9223372036854775807, "flags": 0}
        {"op": "pwrite", "fd": "f0", "offset": 1, "len": 9223372036854775806} => {"ok": 268431359}
        {"op": "pread", "fd": "f0", "offset": 0, "len": 9223372036854775807} => {"ok": 2147479552}
        {"op": "lseek", "fd": "f0", "offset": 0, "whence": 4} => {"ok": 268431360}
        {"op": "pread", "fd": "f0", "offset": 1, "len": 4294967296} => {"ok": 2147479552}
        {"op": "ftruncate", "fd": "f0", "size": 0}
        "#,
    );
}

#[test]
fn every_memory_slot_is_created_moved_and_deleted() {
    for vm_type in [0, 1] {
        let mut executor = Sequential::new(machine(3 << 30));
        perform(&mut executor, &format!(r#"{{"op": "create_vm", "vm": "vm0", "type": {vm_type}}}"#));
        perform(&mut executor, r#"{"op": "create_vcpu", "vm": "vm0", "vcpu": "c0", "index": 0}"#);
        let mut all = |size: u64, base: u64| {
            for slot in (0..32_764u64).filter(|slot| *slot != 31) {
                let gpa = base + slot * (1 << 24);
                let hva = 0x10_0000 + slot * 4096;
                let region = format!(
                    r#"{{"op": "set_user_memory_region", "vm": "vm0", "slot": {slot}, "flags": 0, "gpa": {gpa}, "size": {size}, "hva": {hva}}}"#
                );
                assert_eq!(perform(&mut executor, &region), r#"{"ok": 0}"#, "{region}");
            }
        };
        all(4096, 8 << 30);
        all(4096, (8 << 30) - 4096);
        all(0, 0);
        executor.with(check_and_end);
    }
}

#[test]
fn as_many_vcpus_as_there_may_be() {
    let mut executor = Sequential::new(machine(256 * M));
    perform(&mut executor, r#"{"op": "create_vm", "vm": "vm0", "type": 1}"#);
    let mut created = 0;
    for index in 0..10_000 {
        let op = format!(r#"{{"op": "create_vcpu", "vm": "vm0", "vcpu": "c{index}", "index": {index}}}"#);
        created += u32::from(perform(&mut executor, &op) == r#"{"ok": 0}"#);
    }
    assert_eq!(created, 4096);
    for index in (0..4096).step_by(7) {
        let op = format!(r#"{{"op": "guest_read", "vcpu": "c{index}", "gpa": 0}}"#);
        assert_eq!(perform(&mut executor, &op), r#"{"exit": "mmio", "gpa": 0, "len": 4, "write": false}"#);
    }
    perform(&mut executor, r#"{"op": "close", "fd": "vm0"}"#);
    executor.with(check_and_end);
}

#[test]
fn a_million_descriptors() {
    let mut executor = Sequential::new(machine(32 * M));
    perform(&mut executor, r#"{"op": "memfd_create", "fd": "f0", "size": 4096, "flags": 0}"#);
    let mut answers = [0, 0];
    for _ in 0..1 << 20 {
        let answer = perform(&mut executor, r#"{"op": "dup", "fd": "f0", "as": "f1"}"#);
        answers[usize::from(answer == r#"{"errno": "EMFILE"}"#)] += 1;
    }
    // Standard streams, /dev/kvm and the file itself have the others.
    assert_eq!(answers, [(1 << 20) - 5, 5]);
    executor.with(check_and_end);
}

#[test]
fn as_many_mappings_as_there_may_be() {
    let mut executor = Sequential::new(machine(32 * M));
    perform(&mut executor, r#"{"op": "memfd_create", "fd": "f0", "size": 4096, "flags": 0}"#);
    let mut mapped = 0;
    for _ in 0..70_000 {
        let op = r#"{"op": "mmap", "map": "m", "fd": "f0", "len": 4096, "prot": "rw", "shared": true, "offset": 0, "align": 4096}"#;
        let answer = perform(&mut executor, op);
        if answer != r#"{"ok": 0}"# {
            assert_eq!(answer, r#"{"errno": "ENOMEM"}"#);
            continue;
        }
        mapped += 1;
        perform(&mut executor, r#"{"op": "host_read", "map": "m", "offset": 0}"#);
    }
    assert!(mapped > 60_000);
    executor.with(check_and_end);
}
