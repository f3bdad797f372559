//! What is said about scenarios with mistakes, in full.

use expect_test::{Expect, expect};
use gmem::scenario::parse;

pub(crate) fn check(text: &str, expected: Expect) {
    let error = parse("bad.toml", text).unwrap_err();
    expected.assert_eq(&error.to_string());
    // The place that the report shows is the place that programs get.
    let place = format!("bad.toml:{}:{}", error.line(), error.column());
    assert!(error.to_string().contains(&place), "{place} is not in\n{error}");
}

/// Checks a thread of two good lines and `line`.
pub(crate) fn check_line(line: &str, expected: Expect) {
    check(&format!("[thread.t]\nrun = '''\nclose a\n  {line}\nclose b\n'''\n"), expected);
}

#[test]
fn toml() {
    check(
        "[thread.t\nrun = ''",
        expect![[r#"
        error: this is not TOML
         --> bad.toml:1:10
          |
        1 | [thread.t
          |          ^ unclosed table, expected `]`"#]],
    );
    check(
        "[thread.t]\nrun = 'close a",
        expect![[r#"
        error: this is not TOML
         --> bad.toml:2:15
          |
        2 | run = 'close a
          |               ^ invalid literal string, expected `'`"#]],
    );
    check(
        "[thread.t]\nrun = 'close a'\nrun = 'close b'\n",
        expect![[r#"
        error: this is not TOML
         --> bad.toml:3:1
          |
        3 | run = 'close b'
          | ^^^ duplicate key"#]],
    );
    check(
        "[thread.t]\nrun = 'close a'\n[thread.t]\nrun = 'close b'\n",
        expect![[r#"
        error: this is not TOML
         --> bad.toml:3:9
          |
        3 | [thread.t]
          |         ^ duplicate key"#]],
    );
    check(
        "",
        expect![[r#"
        error: the scenario does nothing
         --> bad.toml:1:1
          |
        1 |
          | ^ expected operations in [setup], [thread.NAME] or [finish]"#]],
    );
}

#[test]
fn sections_and_keys() {
    check(
        "[thred.t]\nrun = 'close a'\n",
        expect![[r#"
        error: a scenario has no key `thred`; did you mean `thread`?
         --> bad.toml:1:2
          |
        1 | [thred.t]
          |  ^^^^^ expected one of scenario, machine, setup, thread, finish, expect"#]],
    );
    check(
        "[thread.t]\nruns = 'close a'\n",
        expect![[r#"
            error: [thread.t] has no key `runs`; did you mean `run`?
             --> bad.toml:2:1
              |
            2 | runs = 'close a'
              | ^^^^ expected run"#]],
    );
    check(
        "[thread.t]\nrun = ['close a']\n",
        expect![[r#"
        error: this is an array
         --> bad.toml:2:7
          |
        2 | run = ['close a']
          |       ^^^^^^^^^^^ expected operations, one a line, in quotes"#]],
    );
    check(
        "[thread.t]\nrun = '# nothing'\n",
        expect![[r#"
        error: the thread `t` does nothing
         --> bad.toml:1:1
          |
        1 | [thread.t]
          | ^^^^^^^^^^ expected `run` with operations"#]],
    );
    check(
        "[thread.'two words']\nrun = 'close a'\n",
        expect![[r#"
        error: this is no name of a thread
         --> bad.toml:1:9
          |
        1 | [thread.'two words']
          |         ^^^^^^^^^^^ expected letters, digits, `_`, `.` and `-`"#]],
    );
    check(
        "[thread]\nrun = 'close a'\n",
        expect![[r#"
            error: `thread.run` is a string
             --> bad.toml:2:7
              |
            2 | run = 'close a'
              |       ^^^^^^^^^ expected a table [thread.run] with run"#]],
    );
    check(
        "thread = 3\n",
        expect![[r#"
        error: this is no thread
         --> bad.toml:1:10
          |
        1 | thread = 3
          |          ^ expected [thread.NAME] with `run`"#]],
    );
    check(
        "[scenario]\nname = 7\n[setup]\nrun = 'close a'\n",
        expect![[r#"
        error: this is an integer
         --> bad.toml:2:8
          |
        2 | name = 7
          |        ^ expected the scenario's name, in quotes"#]],
    );
    check(
        "[machine]\nkernel = '6.7'\n",
        expect![[r#"
            error: Linux 6.7 is older than 6.8, the first release with guest_memfd
             --> bad.toml:2:10
              |
            2 | kernel = '6.7'
              |          ^^^^^ expected a release such as "7.3""#]],
    );
    check(
        "[machine]\nkernel = 7.3\n",
        expect![[r#"
        error: this is a float
         --> bad.toml:2:10
          |
        2 | kernel = 7.3
          |          ^^^ expected the kernel, in quotes"#]],
    );
    check(
        "[machine]\nstage2 = 'shadwo'\n",
        expect![[r#"
            error: unknown second stage `shadwo`
             --> bad.toml:2:10
              |
            2 | stage2 = 'shadwo'
              |          ^^^^^^^^ expected one of "npt", "ept", "shadow""#]],
    );
    check(
        "[machine]\nmemory = '3 GB'\n",
        expect![[r#"
        error: this is no amount of memory
         --> bad.toml:2:10
          |
        2 | memory = '3 GB'
          |          ^^^^^^ expected a size such as "3G" or 0x1000_0000, from one page to 1T"#]],
    );
    check(
        "[machine]\nmemory = 0\n",
        expect![[r#"
        error: this is no amount of memory
         --> bad.toml:2:10
          |
        2 | memory = 0
          |          ^ expected a size such as "3G" or 0x1000_0000, from one page to 1T"#]],
    );
    check(
        "[machine]\nmemory = 4095\n",
        expect![[r#"
        error: this is no amount of memory
         --> bad.toml:2:10
          |
        2 | memory = 4095
          |          ^^^^ expected a size such as "3G" or 0x1000_0000, from one page to 1T"#]],
    );
    check(
        "[machine]\nthp = 'madvise'\n",
        expect![[r#"
            error: [machine] has no key `thp`
             --> bad.toml:2:1
              |
            2 | thp = 'madvise'
              | ^^^ expected one of kernel, stage2, mutants, memory, maxphyaddr, tlb, transparent_hugepage, sw_protected_vm, memory_attributes, smm, eager_page_split, ept_ad_bits, pml, nx_huge_pages, memory_failure, hwpoison_abba, xarray_steps, max_vcpus, files_max, snp, snp_asids, snp_contention, snp_cpuid, ciphertext_hiding, gmem_2m_enabled, tdx, tdx_hkids, tdx_packages, tdx_contention, tdx_host_priority, tdx_erratum, tdx_terminate_vm, tdx_caches, tdx_2m, tdx_dynamic_pamt, pkvm, pkvm_gmem, memlock, fail_frame, fail_table, fail_node, busy_private, psp_timeout, signal_step, signal_task"#]],
    );
    check(
        "[machine]\ntransparent_hugepage = 'sometimes'\n",
        expect![[r#"
        error: this is no setting of transparent huge pages
         --> bad.toml:2:24
          |
        2 | transparent_hugepage = 'sometimes'
          |                        ^^^^^^^^^^^ expected one of "always", "madvise", "never""#]],
    );
    check(
        "[machine]\nsw_protected_vm = 0\n",
        expect![[r#"
        error: this is no switch
         --> bad.toml:2:19
          |
        2 | sw_protected_vm = 0
          |                   ^ expected true or false"#]],
    );
    check(
        "[machine]\nmaxphyaddr = 64\n",
        expect![[r#"
        error: this is no width of addresses
         --> bad.toml:2:14
          |
        2 | maxphyaddr = 64
          |              ^^ expected a number of bits from 36 to 52"#]],
    );
    check(
        "[machine]\nmaxphyaddr = 36\nmemory = '128G'\n",
        expect![[r#"
        error: there is no such machine
         --> bad.toml:1:1
          |
        1 | [machine]
          | ^^^^^^^^^ the memory is larger than maxphyaddr reaches"#]],
    );
    check(
        "[machine]\nkernel = 'new'\n",
        expect![[r#"
        error: `new` is no Linux release; expected one such as 6.18 or 7.3.4
         --> bad.toml:2:10
          |
        2 | kernel = 'new'
          |          ^^^^^ expected a release such as "7.3""#]],
    );
    let many: String = (0..64).map(|i| format!("[thread.t{i}]\nrun = 'close a'\n")).collect();
    check(
        &many,
        expect![[r#"
        error: too many threads
           --> bad.toml:127:9
            |
        127 | [thread.t63]
            |         ^^^ expected at most 63 threads"#]],
    );
}

#[test]
fn operations() {
    check_line(
        "reboot",
        expect![[r#"
        error: unknown operation `reboot`
         --> bad.toml:4:3
          |
        4 |   reboot
          |   ^^^^^^ expected the name of an operation"#]],
    );
    check_line(
        "guest_raed c0 0",
        expect![[r#"
        error: unknown operation `guest_raed`; did you mean `guest_read`?
         --> bad.toml:4:3
          |
        4 |   guest_raed c0 0
          |   ^^^^^^^^^^ expected the name of an operation"#]],
    );
    check_line(
        "guest_read",
        expect![[r#"
        error: `guest_read` lacks the argument `vcpu`
         --> bad.toml:4:3
          |
        4 |   guest_read
          |   ^^^^^^^^^^ expected the name of a vCPU such as `c0`
          |
          = help: usage: guest_read VCPU GPA"#]],
    );
    check_line(
        "guest_read c0 0x20000g",
        expect![[r#"
        error: `0x20000g` is no value for `gpa`
         --> bad.toml:4:17
          |
        4 |   guest_read c0 0x20000g
          |                 ^^^^^^^^ expected an address such as 0x200000 or 2M
          |
          = help: usage: guest_read VCPU GPA"#]],
    );
    check_line(
        "guest_read c0 0 7",
        expect![[r#"
        error: too many arguments for `guest_read`
         --> bad.toml:4:19
          |
        4 |   guest_read c0 0 7
          |                   ^ expected `=>`, a comment or the end of the line
          |
          = help: usage: guest_read VCPU GPA"#]],
    );
    check_line(
        "guest_read c0 addr=0",
        expect![[r#"
        error: `guest_read` has no argument `addr`
         --> bad.toml:4:17
          |
        4 |   guest_read c0 addr=0
          |                 ^^^^ expected one of vcpu, gpa
          |
          = help: usage: guest_read VCPU GPA"#]],
    );
    check_line(
        "guest_read c0 gpa=0 gpa=0",
        expect![[r#"
        error: argument `gpa` is given twice
         --> bad.toml:4:23
          |
        4 |   guest_read c0 gpa=0 gpa=0
          |                       ^^^^^ given before
          |
          = help: usage: guest_read VCPU GPA"#]],
    );
    check_line(
        "guest_read c0 vcpu=c1",
        expect![[r#"
        error: argument `vcpu` is given twice
         --> bad.toml:4:17
          |
        4 |   guest_read c0 vcpu=c1
          |                 ^^^^^^^ given before
          |
          = help: usage: guest_read VCPU GPA"#]],
    );
    check_line(
        "guest_write gpa=0 c0 7",
        expect![[r#"
        error: a positional argument after a named one
         --> bad.toml:4:21
          |
        4 |   guest_write gpa=0 c0 7
          |                     ^^ expected `name=value`
          |
          = help: usage: guest_write VCPU GPA VALUE"#]],
    );
    check_line(
        "guest_read 7 0",
        expect![[r#"
        error: `7` is no value for `vcpu`
         --> bad.toml:4:14
          |
        4 |   guest_read 7 0
          |              ^ expected the name of a vCPU such as `c0`
          |
          = help: usage: guest_read VCPU GPA"#]],
    );
    check_line(
        "create_guest_memfd vm0 g0 99999999T",
        expect![[r#"
        error: `99999999T` is no value for `size`
         --> bad.toml:4:29
          |
        4 |   create_guest_memfd vm0 g0 99999999T
          |                             ^^^^^^^^^ expected a size such as 4K, 2M, 0x1000 or 4096
          |
          = help: usage: create_guest_memfd VM FD SIZE [FLAGS=0]"#]],
    );
    check_line(
        "create_guest_memfd vm0 g0 64K flags=mmap|shared",
        expect![[r#"
        error: `mmap|shared` is no value for `flags`
         --> bad.toml:4:39
          |
        4 |   create_guest_memfd vm0 g0 64K flags=mmap|shared
          |                                       ^^^^^^^^^^^ expected flags joined by `|`, of: mmap, init_shared; or a number
          |
          = help: usage: create_guest_memfd VM FD SIZE [FLAGS=0]"#]],
    );
    check_line(
        "create_guest_memfd vm0 g0 -4K",
        expect![[r#"
        error: `-4K` is no value for `size`
         --> bad.toml:4:29
          |
        4 |   create_guest_memfd vm0 g0 -4K
          |                             ^^^ expected a size such as 4K, 2M, 0x1000 or 4096
          |
          = help: usage: create_guest_memfd VM FD SIZE [FLAGS=0]"#]],
    );
    check_line(
        "create_vm vm0 type=tda",
        expect![[r#"
            error: `tda` is no value for `type`
             --> bad.toml:4:22
              |
            4 |   create_vm vm0 type=tda
              |                      ^^^ expected one of default, sw_protected, snp, tdx, protected; or a number
              |
              = help: usage: create_vm VM [TYPE=default]"#]],
    );
    check_line(
        "mmap m0 len=2M prot=rwq",
        expect![[r#"
        error: `rwq` is no value for `prot`
         --> bad.toml:4:23
          |
        4 |   mmap m0 len=2M prot=rwq
          |                       ^^^ expected a protection: letters of `rwx`, or `none`
          |
          = help: usage: mmap MAP [FD=none] LEN [PROT=rw] [SHARED=private] [OFFSET=0] [ALIGN=4K]"#]],
    );
    check_line(
        "mmap m0 len=2M shared=maybe",
        expect![[r#"
        error: `maybe` is no value for `shared`
         --> bad.toml:4:25
          |
        4 |   mmap m0 len=2M shared=maybe
          |                         ^^^^^ expected true, false, `private` or `shared`
          |
          = help: usage: mmap MAP [FD=none] LEN [PROT=rw] [SHARED=private] [OFFSET=0] [ALIGN=4K]"#]],
    );
    check_line(
        "madvise m0 0 4K advice=punch",
        expect![[r#"
        error: `punch` is no value for `advice`
         --> bad.toml:4:26
          |
        4 |   madvise m0 0 4K advice=punch
          |                          ^^^^^ expected one of dontneed, hugepage, nohugepage, hwpoison, remove, populate_read, populate_write, pageout, collapse, cold, soft_offline, willneed, normal, sequential, random, free
          |
          = help: usage: madvise MAP [OFFSET=0] LEN ADVICE"#]],
    );
    check_line(
        "set_user_memory_region vm0 0 0 0 4K hva=m0+",
        expect![[r#"
        error: `m0+` is no value for `hva`
         --> bad.toml:4:43
          |
        4 |   set_user_memory_region vm0 0 0 0 4K hva=m0+
          |                                           ^^^ expected a host address: a mapping such as `m0` or `m0+0x1000`, or a number
          |
          = help: usage: set_user_memory_region VM SLOT [FLAGS=0] GPA SIZE HVA"#]],
    );
    check_line(
        "guest_hypercall c0 12 [1, 2",
        expect![[r#"
        error: the list has no end
         --> bad.toml:4:25
          |
        4 |   guest_hypercall c0 12 [1, 2
          |                         ^^^^^ expected `]`"#]],
    );
    check_line(
        "guest_hypercall c0 12 [1, x]",
        expect![[r#"
        error: `[1, x]` is no value for `args`
         --> bad.toml:4:25
          |
        4 |   guest_hypercall c0 12 [1, x]
          |                         ^^^^^^ expected a list of numbers such as [0x200000, 1, 16]
          |
          = help: usage: guest_hypercall VCPU NR ARGS [REPLY=0]"#]],
    );
    check_line(
        "close \"g0",
        expect![[r#"
        error: the quoted name has no end
         --> bad.toml:4:9
          |
        4 |   close "g0
          |         ^^^ expected `"`"#]],
    );
    check_line(
        "close é",
        expect![[r#"
        error: `é` is no value for `fd`
         --> bad.toml:4:9
          |
        4 |   close é
          |         ^ expected the name of a file descriptor such as `g0`
          |
          = help: usage: close FD"#]],
    );
    check_line(
        "=> ok",
        expect![[r#"
        error: no operation
         --> bad.toml:4:3
          |
        4 |   => ok
          |   ^^ expected an operation such as `guest_read c0 0x200000`"#]],
    );
    check_line(
        "7up: close g0",
        expect![[r#"
        error: `7up` is no label
         --> bad.toml:4:3
          |
        4 |   7up: close g0
          |   ^^^^ expected a label of letters, digits, `_`, `.` and `-`"#]],
    );
}
