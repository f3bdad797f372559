//! What is said about mistakes after `=>` and in `[expect]`, and where in a file's strings it points.

use expect_test::expect;

use super::scenario_errors::{check, check_line};

#[test]
fn expectations() {
    check_line(
        "close g0 =>",
        expect![[r#"
            error: an expected answer is missing
             --> bad.toml:4:12
              |
            4 |   close g0 =>
              |            ^^ expected ok, hlt, done, exception, memory_fault, mmio, hypercall, internal_error, shutdown, system_event, fail_entry, intr, an error such as EINVAL, or a signal such as SIGBUS"#]],
    );
    check_line(
        "close g0 => okay",
        expect![[r#"
            error: `okay` is no answer that can be expected
             --> bad.toml:4:15
              |
            4 |   close g0 => okay
              |               ^^^^ expected ok, hlt, done, exception, memory_fault, mmio, hypercall, internal_error, shutdown, system_event, fail_entry, intr, an error such as EINVAL, or a signal such as SIGBUS"#]],
    );
    check_line(
        "close g0 => EINVALID",
        expect![[r#"
            error: `EINVALID` is no answer that can be expected
             --> bad.toml:4:15
              |
            4 |   close g0 => EINVALID
              |               ^^^^^^^^ expected ok, hlt, done, exception, memory_fault, mmio, hypercall, internal_error, shutdown, system_event, fail_entry, intr, an error such as EINVAL, or a signal such as SIGBUS; did you mean `EINVAL`?"#]],
    );
    check_line(
        "close g0 => ok |",
        expect![[r#"
            error: an expected answer is missing
             --> bad.toml:4:18
              |
            4 |   close g0 => ok |
              |                  ^ expected ok, hlt, done, exception, memory_fault, mmio, hypercall, internal_error, shutdown, system_event, fail_entry, intr, an error such as EINVAL, or a signal such as SIGBUS"#]],
    );
    check_line(
        "close g0 => ok | | EINVAL",
        expect![[r#"
            error: an expected answer is missing
             --> bad.toml:4:18
              |
            4 |   close g0 => ok | | EINVAL
              |                  ^ expected ok, hlt, done, exception, memory_fault, mmio, hypercall, internal_error, shutdown, system_event, fail_entry, intr, an error such as EINVAL, or a signal such as SIGBUS"#]],
    );
    check_line(
        "guest_read c0 0 => hlt seven",
        expect![[r#"
        error: `seven` is no answer that can be expected
         --> bad.toml:4:26
          |
        4 |   guest_read c0 0 => hlt seven
          |                          ^^^^^ expected the value that was read"#]],
    );
    check_line(
        "guest_read c0 0 => hlt 7 8",
        expect![[r#"
        error: `8` is no answer that can be expected
         --> bad.toml:4:28
          |
        4 |   guest_read c0 0 => hlt 7 8
          |                            ^ expected `|`, a comment or the end of the line"#]],
    );
    check_line(
        "guest_read c0 0 => memory_fault secret",
        expect![[r#"
        error: `secret` is no answer that can be expected
         --> bad.toml:4:35
          |
        4 |   guest_read c0 0 => memory_fault secret
          |                                   ^^^^^^ expected `private`, `shared` or a guest address"#]],
    );
    check_line(
        "guest_read c0 0 => memory_fault private page",
        expect![[r#"
        error: `page` is no answer that can be expected
         --> bad.toml:4:43
          |
        4 |   guest_read c0 0 => memory_fault private page
          |                                           ^^^^ expected a guest address"#]],
    );
    check_line(
        "guest_read c0 0 => mmio both",
        expect![[r#"
        error: `both` is no answer that can be expected
         --> bad.toml:4:27
          |
        4 |   guest_read c0 0 => mmio both
          |                           ^^^^ expected `read` or `write`"#]],
    );
    check_line(
        "close g0 => ok => ok",
        expect![[r#"
        error: `=>` is no answer that can be expected
         --> bad.toml:4:18
          |
        4 |   close g0 => ok => ok
          |                  ^^ expected a number or a list such as [0, 3]"#]],
    );
}

#[test]
fn outcomes() {
    let scenario = |outcomes: &str| {
        format!("[thread.t]\nrun = '''\nr0: close a\nr1: close b\n'''\n[expect]\noutcomes = {outcomes}\n")
    };
    check(
        &scenario("'r0 => ok'"),
        expect![[r#"
        error: these are no outcomes
         --> bad.toml:7:12
          |
        7 | outcomes = 'r0 => ok'
          |            ^^^^^^^^^^ expected a list of outcomes such as ["r0 => hlt 7 & r1 => ok"]"#]],
    );
    check(
        &scenario("['r0']"),
        expect![[r#"
        error: this is no outcome
         --> bad.toml:7:14
          |
        7 | outcomes = ['r0']
          |              ^^ expected `label => answer`, joined by `&`"#]],
    );
    check(
        &scenario("['r0 => ok & rl => ok']"),
        expect![[r#"
        error: no step has the label `rl`; did you mean `r0`?
         --> bad.toml:7:25
          |
        7 | outcomes = ['r0 => ok & rl => ok']
          |                         ^^ expected a label that a step has, as in `r0: guest_read ...`"#]],
    );
    check(
        &scenario("['r0 => ok', 'r0 => kaputt']"),
        expect![[r#"
            error: `kaputt` is no answer that can be expected
             --> bad.toml:7:32
              |
            7 | outcomes = ['r0 => ok', 'r0 => kaputt']
              |                                ^^^^^^ expected ok, hlt, done, exception, memory_fault, mmio, hypercall, internal_error, shutdown, system_event, fail_entry, intr, an error such as EINVAL, or a signal such as SIGBUS"#]],
    );
    check(
        "[thread.t]\nrun = '''\nr0: close a\nr0: close b\n'''\n",
        expect![[r#"
        error: the label `r0` is given twice
         --> bad.toml:4:1
          |
        4 | r0: close b
          | ^^^^^^^^^^^ given before; expected another name"#]],
    );
}

/// The place is right whatever kind of string the line stands in.
#[test]
fn places_in_strings() {
    check(
        "[thread.t]\nrun = 'close 7'\n",
        expect![[r#"
        error: `7` is no value for `fd`
         --> bad.toml:2:14
          |
        2 | run = 'close 7'
          |              ^ expected the name of a file descriptor such as `g0`
          |
          = help: usage: close FD"#]],
    );
    check(
        "[thread.t]\nrun = \"close a\\n\\tclose 7\"\n",
        expect![[r#"
        error: `7` is no value for `fd`
         --> bad.toml:2:25
          |
        2 | run = "close a\n\tclose 7"
          |                         ^ expected the name of a file descriptor such as `g0`
          |
          = help: usage: close FD"#]],
    );
    check(
        "[thread.t]\r\nrun = \"\"\"\r\nclose a\r\nclose 7\r\n\"\"\"\r\n",
        expect![[r#"
        error: `7` is no value for `fd`
         --> bad.toml:4:7
          |
        4 | close 7
          |       ^ expected the name of a file descriptor such as `g0`
          |
          = help: usage: close FD"#]],
    );
    check(
        "[thread.t]\nrun = \"\"\"close \\\n   7\"\"\"\n",
        expect![[r#"
        error: `7` is no value for `fd`
         --> bad.toml:3:4
          |
        3 |    7"""
          |    ^ expected the name of a file descriptor such as `g0`
          |
          = help: usage: close FD"#]],
    );
}
