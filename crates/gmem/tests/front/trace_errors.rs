//! What the trace reader says about bad input, in full.

use expect_test::{Expect, expect};
use gmem::ops::Answer;
use gmem::trace::{MAX_LINE, Reader, TraceError};
use proptest::prelude::*;

const HEADER: &str =
    r#"{"trace": 1, "name": "t", "family": "f", "kernel": "7.3.4", "arch": "x86_64", "stage2": "npt"}"#;

/// Reads everything, recorded answers included, up to the first error.
fn read(bytes: &[u8]) -> Result<usize, TraceError> {
    let mut reader = Reader::new("bad.jsonl", bytes)?;
    let mut lines = 0;
    while let Some(line) = reader.next() {
        let line = line?;
        line.recorded().map_err(|mistake| reader.error_in(&line, mistake))?;
        lines += 1;
    }
    Ok(lines)
}

fn check_file(bytes: &[u8], expected: Expect) {
    expected.assert_eq(&read(bytes).unwrap_err().to_string());
}

/// Checks a file of a header, a good line and `line`.
fn check(line: &str, expected: Expect) {
    let good = r#"{"op": "close", "fd": "g0"}"#;
    check_file(format!("{HEADER}\n{good}\n{line}\n").as_bytes(), expected);
}

#[test]
fn files() {
    check_file(
        b"",
        expect![[
            r#"bad.jsonl:1:1: no header: expected {"trace": 1, "name": ..., "family": ..., ...}, found an empty file"#
        ]],
    );
    check_file(
        b"\n\n",
        expect![[
            r#"bad.jsonl:3:1: no header: expected {"trace": 1, "name": ..., "family": ..., ...}, found an empty file"#
        ]],
    );
    check_file(b"hello\n", expect![[r#"bad.jsonl:1:1: malformed JSON: expected value"#]]);
    check_file(
        br#"{"op": "close", "fd": "g0"}"#,
        expect![[
            r#"bad.jsonl:1:1: no header: expected {"trace": 1, "name": ..., "family": ..., ...}, found an operation"#
        ]],
    );
    check_file(
        br#"{"name": "t"}"#,
        expect![[
            r#"bad.jsonl:1:1: no header: expected {"trace": 1, "name": ..., "family": ..., ...}, found no field `trace`"#
        ]],
    );
    check_file(
        br#"{"trace": 2, "name": "t"}"#,
        expect![[r#"bad.jsonl:1:11: trace version 2; this program reads version 1"#]],
    );
    check_file(
        br#"{"trace": "1", "name": "t"}"#,
        expect![[r#"bad.jsonl:1:11: trace version "1"; this program reads version 1"#]],
    );
    check_file(
        br#"{"trace": 1, "name": "t", "family": 7}"#,
        expect![[r#"bad.jsonl:1:37: field `family`: expected a string, found the number 7"#]],
    );
    check_file(
        br#"{"trace": 1, "name": "t"}  "#,
        expect![[r#"bad.jsonl:1:26: field `family` is missing; expected a string"#]],
    );
    check_file(
        b"[1, 2]\n",
        expect![[r#"bad.jsonl:1:1: malformed JSON: invalid type: sequence, expected an object such as {"op": ...}"#]],
    );
    check_file(
        format!("{HEADER}\né is text").as_bytes(),
        expect![[r#"bad.jsonl:2:1: malformed JSON: expected value"#]],
    );
    check_file(
        &[HEADER.as_bytes(), b"\n{\"op\": \"\xff\"}"].concat(),
        expect![[r#"bad.jsonl:2:9: expected UTF-8 text, found the byte 0xff"#]],
    );
    let long = format!("{HEADER}\n{{\"op\": \"{}\"}}\n", "x".repeat(MAX_LINE));
    check_file(
        long.as_bytes(),
        expect![[r#"bad.jsonl:2:1048577: the line is longer than 1048576 bytes; expected one operation a line"#]],
    );
}

#[test]
fn lines() {
    check("{", expect![[r#"bad.jsonl:3:1: malformed JSON: EOF while parsing an object"#]]);
    check(r#"{"op": "close", "fd": "g0""#, expect![[r#"bad.jsonl:3:26: malformed JSON: EOF while parsing an object"#]]);
    check(r#"{"op": "close", "fd": g0}"#, expect![[r#"bad.jsonl:3:23: malformed JSON: expected value"#]]);
    check(
        r#"{"op": "close", "fd": "g0"} trailing"#,
        expect![[r#"bad.jsonl:3:29: malformed JSON: trailing characters"#]],
    );
    check(r#"{"op": "close", "fd": "g0", "fd": "g1"}"#, expect![[r#"bad.jsonl:3:35: field `fd` comes twice"#]]);
    check(
        r#""close""#,
        expect![[
            r#"bad.jsonl:3:1: malformed JSON: invalid type: string "close", expected an object such as {"op": ...}"#
        ]],
    );
    check(r#"{"fd": "g0"}"#, expect![[r#"bad.jsonl:3:13: field `op` is missing; expected the name of an operation"#]]);
    check(
        r#"{"op": 7}"#,
        expect![[r#"bad.jsonl:3:8: field `op`: expected the name of an operation, found the number 7"#]],
    );
    check(
        r#"{"op": "guest_raed", "vcpu": "c0", "gpa": 0}"#,
        expect![[r#"bad.jsonl:3:8: unknown operation `guest_raed`; did you mean `guest_read`?"#]],
    );
    check(r#"{"op": "reboot"}"#, expect![[r#"bad.jsonl:3:8: unknown operation `reboot`"#]]);
    check(r#"{"op": "close"}"#, expect![[r#"bad.jsonl:3:16: field `fd` is missing; expected a string"#]]);
    check(
        r#"{"op": "close", "fd": 3}"#,
        expect![[r#"bad.jsonl:3:23: field `fd`: expected a string, found the number 3"#]],
    );
    check(
        r#"{"op": "guest_read", "vcpu": "c0", "gpa": -1}"#,
        expect![[r#"bad.jsonl:3:43: field `gpa`: expected an unsigned 64-bit number, found the number -1"#]],
    );
    check(
        r#"{"op": "guest_read", "vcpu": "c0", "gpa": 1.5}"#,
        expect![[r#"bad.jsonl:3:43: field `gpa`: expected an unsigned 64-bit number, found the number 1.5"#]],
    );
    check(
        r#"{"op": "guest_read", "vcpu": "c0", "gpa": 18446744073709551616}"#,
        expect![[
            r#"bad.jsonl:3:43: field `gpa`: expected an unsigned 64-bit number, found the number 18446744073709551616"#
        ]],
    );
    check(
        r#"{"op": "guest_read", "vcpu": "c0", "gpa": "0x1000"}"#,
        expect![[r#"bad.jsonl:3:43: field `gpa`: expected an unsigned 64-bit number, found the string "0x1000""#]],
    );
    check(
        r#"{"op": "fallocate", "fd": "é", "mode": 0, "offset": -9223372036854775809, "len": 1}"#,
        expect![[r#"bad.jsonl:3:53: field `offset`: expected a 64-bit number, found the number -9223372036854775809"#]],
    );
    check(
        r#"{"op": "madvise", "map": "m0", "offset": 0, "len": 1, "advice": "dont_need"}"#,
        expect![[
            r#"bad.jsonl:3:65: field `advice`: expected a known advice such as "dontneed", found the string "dont_need""#
        ]],
    );
    check(
        r#"{"op": "mprotect", "map": "m0", "offset": 0, "len": 1, "prot": "rwz"}"#,
        expect![[r#"bad.jsonl:3:64: field `prot`: expected a string of letters of `rwx`, found the string "rwz""#]],
    );
    check(
        r#"{"op": "mprotect", "map": "m0", "offset": 0, "len": 1, "prot": "rr"}"#,
        expect![[r#"bad.jsonl:3:64: field `prot`: expected a string of letters of `rwx`, found the string "rr""#]],
    );
    check(
        r#"{"op": "mmap", "map": "m0", "fd": 3, "len": 1, "prot": "r", "shared": true, "offset": 0, "align": 1}"#,
        expect![[r#"bad.jsonl:3:35: field `fd`: expected a string or null, found the number 3"#]],
    );
    check(
        r#"{"op": "mmap", "map": "m0", "fd": null, "len": 1, "prot": "r", "shared": 1, "offset": 0, "align": 1}"#,
        expect![[r#"bad.jsonl:3:74: field `shared`: expected true or false, found the number 1"#]],
    );
    let slot = r#"{"op": "set_user_memory_region", "vm": "vm0", "slot": 0, "flags": 0, "gpa": 0, "size": 0"#;
    check(
        &format!(r#"{slot}, "hva": {{"map": "m0"}}}}"#),
        expect![[
            r#"bad.jsonl:3:98: field `hva`: expected {"map": NAME, "offset": NUMBER} or an unsigned 64-bit number, found the object {"map": "m0"}"#
        ]],
    );
    check(
        &format!(r#"{slot}, "hva": null}}"#),
        expect![[
            r#"bad.jsonl:3:98: field `hva`: expected {"map": NAME, "offset": NUMBER} or an unsigned 64-bit number, found null"#
        ]],
    );
    check(
        r#"{"op": "guest_hypercall", "vcpu": "c0", "nr": 12, "args": [1, "2"], "reply": 0}"#,
        expect![[
            r#"bad.jsonl:3:59: field `args`: expected a list of unsigned 64-bit numbers, found the list [1, "2"]"#
        ]],
    );
}

#[test]
fn answers() {
    let close = r#"{"op": "close", "fd": "g0", "ret": "#;
    check(
        &format!("{close}0}}"),
        expect![[r#"bad.jsonl:3:36: field `ret`: expected an object such as {"ok": 0}, found the number 0"#]],
    );
    check(
        &format!(r#"{close}{{"ok": "yes"}}}}"#),
        expect![[r#"bad.jsonl:3:36: field `ret`: `ok`: expected an unsigned 64-bit number, found the string "yes""#]],
    );
    check(
        &format!(r#"{close}{{"exit": "mmio", "gpa": 0, "len": 4, "write": 1}}}}"#),
        expect![[r#"bad.jsonl:3:36: field `ret`: `write`: expected true or false, found the number 1"#]],
    );
    check(
        &format!(r#"{close}{{"ok": 0, "dirty": [0, -1]}}}}"#),
        expect![[
            r#"bad.jsonl:3:36: field `ret`: `dirty`: expected a list of unsigned 64-bit numbers, found the list [0, -1]"#
        ]],
    );
    check(
        &format!(r#"{close}{{"ok": 0}}, "spte": 7}}"#),
        expect![[
            r#"bad.jsonl:3:55: field `spte`: expected a list of [gfn, entries, level, from, to, writable]: invalid type: integer `7`, expected a sequence"#
        ]],
    );
    check(
        &format!(r#"{close}{{"ok": 0}}, "spte": [[0, 1, 1, "none", "page", 0]]}}"#),
        expect![[
            r#"bad.jsonl:3:55: field `spte`: expected a list of [gfn, entries, level, from, to, writable]: unknown variant `page`, expected one of `none`, `leaf`, `table`, `frozen`, `mmio`"#
        ]],
    );
    check(
        &format!(r#"{close}{{"ok": 0}}, "spte": [[0, 1, 1]]}}"#),
        expect![[
            r#"bad.jsonl:3:55: field `spte`: expected a list of [gfn, entries, level, from, to, writable]: invalid length 3, expected six fields"#
        ]],
    );
}

#[test]
fn what_is_tolerated() {
    for line in [
        r#"{"op": "guest_read", "vcpu": "c0", "gpa": 0, "value": 7, "note": {"deep": [[[]]]}}"#,
        r#"{"op": "check_extension", "cap": 10}"#,
        r#"{"op":"fallocate","fd":"g0","mode":3,"offset":18446744073709547520,"len":-4096}"#,
        r#"{"op": "close", "fd": "g0", "ret": {"ok": 0, "newer": 1}}"#,
        r#"{"op": "close", "fd": "g0", "ret": {"errno": "ENEWER"}}"#,
        "",
        " \t \r",
    ] {
        let text = format!("\r\n{HEADER}\r\n\n{line}\n");
        assert_eq!(read(text.as_bytes()).unwrap(), usize::from(line.starts_with('{')), "{line}");
    }
}

#[test]
fn a_line_of_the_limit_passes() {
    let line = r#"{"op": "close", "fd": "g0"}"#;
    let padding = " ".repeat(MAX_LINE - line.len());
    assert_eq!(read(format!("{HEADER}\n{line}{padding}\r\n").as_bytes()).unwrap(), 1);
    assert!(read(format!("{HEADER}\n{line}{padding} \n").as_bytes()).is_err());
}

#[test]
fn a_number_in_an_unknown_answer_is_printed_as_it_was_read() {
    for number in ["8.444444449444444e38", "0.1", "1e23", "5e-324", "18446744073709551615", "-9223372036854775808"] {
        let line = format!(r#"{{"op": "close", "fd": "g0", "ret": {{"errno": "EBADF", "newer": {number}}}}}"#);
        let text = format!("{HEADER}\n{line}\n");
        let line = Reader::new("t.jsonl", text.as_bytes()).unwrap().next().unwrap().unwrap();
        let once = line.recorded().unwrap().unwrap().answer;
        let again = Answer::from_json(&serde_json::from_str(&once.to_string()).unwrap()).unwrap();
        assert_eq!(again, once, "{number}");
        assert!(once.to_string().replace("e+", "e").contains(number), "{once} has another number than {number}");
    }
}

#[test]
fn a_line_of_very_many_members_is_read_in_no_time() {
    // As many as a line has room for. Comparing each with each would take a minute.
    let members: String = (0..90_000).map(|n| format!("\"{n}\":0,")).collect();
    let line = |tail: &str| format!("{HEADER}\n{{{members}\"op\":\"close\",\"fd\":\"g0\"{tail}}}\n");
    assert_eq!(read(line("").as_bytes()).unwrap(), 1);
    let error = read(line(",\"89999\":1").as_bytes()).unwrap_err().to_string();
    assert!(error.contains("field `89999` comes twice"), "{error}");
}

proptest! {
    /// Recorded lines with bytes changed, removed and added: an error or not, but no panic.
    #[test]
    fn mangled_lines_do_not_panic(
        at in 0usize..400,
        remove in 0usize..4,
        insert in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let line = r#"{"op": "guest_read", "vcpu": "c0", "gpa": 4096, "ret": {"errno": "EFAULT", "exit": "memory_fault", "flags": 8, "gpa": 4096, "size": 4096}, "spte": [[0, 1, 4, "none", "table", 0]]}"#;
        let mut bytes = format!("{HEADER}\n{line}\n").into_bytes();
        let at = at.min(bytes.len());
        let end = (at + remove).min(bytes.len());
        bytes.splice(at..end, insert);
        let _ = read(&bytes);
    }
}

#[test]
fn machines() {
    let check = |members: &str, expected: Expect| {
        let header = format!(r#"{{"trace": 1, "name": "t", "family": "f", "arch": "x86_64", {members}}}"#);
        check_file(header.as_bytes(), expected);
    };
    check(
        r#""kernel": "6.1.170", "stage2": "npt""#,
        expect!["bad.jsonl:1:70: field `kernel`: Linux 6.1.170 is older than 6.8, the first release with guest_memfd"],
    );
    check(
        r#""kernel": "linux", "stage2": "npt""#,
        expect!["bad.jsonl:1:70: field `kernel`: `linux` is no Linux release; expected one such as 6.18 or 7.3.4"],
    );
    check(
        r#""kernel": "7.x", "stage2": "npt""#,
        expect!["bad.jsonl:1:70: field `kernel`: `7.x` is no Linux release; expected one such as 6.18 or 7.3.4"],
    );
    check(
        r#""kernel": "7.3", "stage2": "tdp""#,
        expect!["bad.jsonl:1:87: field `stage2`: expected one of npt, ept, shadow, found `tdp`"],
    );
    check(
        r#""kernel": "7.3", "stage2": "npt", "machine": []"#,
        expect![[
            r#"bad.jsonl:1:105: field `machine`: expected an object such as {"memory": 3221225472}, found the list []"#
        ]],
    );
    check(
        r#""kernel": "7.3", "stage2": "npt", "machine": {"memroy": 4096}"#,
        expect![
            "bad.jsonl:1:116: field `machine`: no fact `memroy`; did you mean `memory`?; expected one of memory, maxphyaddr, tlb, transparent_hugepage, sw_protected_vm, memory_attributes, smm, eager_page_split, ept_ad_bits, pml, nx_huge_pages, memory_failure, hwpoison_abba, xarray_steps, max_vcpus, files_max, snp, snp_asids, snp_contention, snp_cpuid, ciphertext_hiding, gmem_2m_enabled, tdx, tdx_hkids, tdx_packages, tdx_contention, tdx_host_priority, tdx_erratum, tdx_terminate_vm, tdx_caches, tdx_2m, tdx_dynamic_pamt, pkvm, pkvm_gmem, memlock, fail_frame, fail_table, fail_node, busy_private, psp_timeout, signal_step, signal_task"
        ],
    );
    check(
        r#""kernel": "7.3", "stage2": "npt", "machine": {"memory": 4096, "memory": 8192}"#,
        expect!["bad.jsonl:1:132: field `memory` comes twice"],
    );
    check(
        r#""kernel": "7.3", "stage2": "npt", "machine": {"memory": 4095}"#,
        expect![[
            r#"bad.jsonl:1:116: field `machine.memory`: expected a size such as "3G" or 0x1000_0000, from one page to 1T, found 4095"#
        ]],
    );
    check(
        r#""kernel": "7.3", "stage2": "npt", "machine": {"memory": 99999999999999999999}"#,
        expect![[
            r#"bad.jsonl:1:116: field `machine.memory`: expected a size such as "3G" or 0x1000_0000, from one page to 1T, found 99999999999999999999"#
        ]],
    );
    check(
        r#""kernel": "7.3", "stage2": "npt", "machine": {"transparent_hugepage": true}"#,
        expect![[
            r#"bad.jsonl:1:130: field `machine.transparent_hugepage`: expected one of "always", "madvise", "never", found true"#
        ]],
    );
    check(
        r#""kernel": "7.3", "stage2": "npt", "machine": {"memory_attributes": false}"#,
        expect![
            "bad.jsonl:1:105: field `machine`: a kernel with software-protected VMs has memory attributes: sw_protected_vm needs memory_attributes"
        ],
    );
}
