//! The checker of recordings on recordings that are wrong: each of its rules with a line changed, missing or too many, and files that are no recordings.

use crate::discipline::Checker;
use crate::trace::{everything, recorded};
use std::path::Path;

type Lines = Vec<String>;
type Edit = fn(&mut Lines);

/// Where the `nth` line is, from 0, that has all these marks.
fn at(lines: &[String], nth: usize, marks: &[&str]) -> usize {
    let mut found = lines.iter().enumerate().filter(|(_, line)| marks.iter().all(|mark| line.contains(mark)));
    found.nth(nth).unwrap_or_else(|| panic!("line {nth} with {marks:?}")).0
}

fn drop_line(lines: &mut Lines, nth: usize, marks: &[&str]) {
    let at = at(lines, nth, marks);
    lines.remove(at);
}

fn change(lines: &mut Lines, marks: &[&str], from: &str, to: &str) {
    let at = at(lines, 0, marks);
    assert!(lines[at].contains(from), "{}", lines[at]);
    lines[at] = lines[at].replace(from, to);
}

/// After the first line with these marks.
fn insert(lines: &mut Lines, marks: &[&str], line: &str) {
    let at = at(lines, 0, marks);
    lines.insert(at + 1, line.to_string());
}

/// The first line with these marks once more, otherwise.
fn again(lines: &mut Lines, marks: &[&str], from: &str, to: &str) {
    let at = at(lines, 0, marks);
    lines.insert(at + 1, lines[at].replace(from, to));
}

/// The first donation to a guest.
const DONATES: &str = r#""event":"enter","call":"host_donate_guest""#;
/// What the host's descriptor says of a page of the VM with handle 0x1000.
const ANNOTATION: &str = r#""new":"0x2000008020010004""#;
const FORCES: &str = r#""event":"enter","call":"force_reclaim_guest_page""#;
/// A break of a page that the host has mapped begins.
const LOCKED: &str = r#"7ff","new":"0x1000000000000000""#;
const PTE: &str = r#""event":"pte""#;
const LOCK: &str = r#""event":"lock""#;
const UNLOCK: &str = r#""event":"unlock""#;

/// What is done to a recording, and the complaint.
#[rustfmt::skip]
const CASES: &[(Edit, &str)] = &[
    // Locks.
    (|lines| drop_line(lines, 0, &[LOCK, r#""lock":"vm_table""#]), "a lock is released that is not held"),
    (|lines| drop_line(lines, 0, &[LOCK, r#""lock":"host""#]), "written without the lock of its tree"),
    (|lines| drop_line(lines, 0, &[UNLOCK, r#""lock":"hyp""#]), "a lock is held at the end"),
    (|lines| again(lines, &[LOCK, r#""lock":"hyp""#], r#""hyp""#, r#""host""#), "host after h"),
    (|lines| again(lines, &[LOCK, r#""lock":"hyp""#], r#""hyp""#, r#""vm","vmid":1"#), "are not nested"),
    (|lines| insert(lines, &[LOCK], r#"{"cpu":3,"event":"lock","lock":"big"}"#), "no lock: big"),
    (|lines| change(lines, &[PTE, r#""vmid":1"#], r#""cpu":0"#, r#""cpu":2"#), "written without the lock of its tree"),
    // Calls.
    (|lines| insert(lines, &[DONATES], r#"{"cpu":0,"event":"enter","call":"vcpu_put"}"#), "a call in the middle of another"),
    (|lines| drop_line(lines, 0, &[DONATES]), "the end of a call that did not begin"),
    (|lines| { lines.pop(); }, "the recording ends in the middle of finalize_teardown_vm on processor 3"),
    // Tables and roots.
    (|lines| change(lines, &[PTE, ANNOTATION], r#""at":"0x"#, r#""at":"0x3"#), "written outside the tables of its tree"),
    (|lines| change(lines, &[PTE, r#""vmid":1"#], r#""old":"0x0""#, r#""old":"0x400""#), "what was there is something else"),
    (|lines| insert(lines, &[DONATES], r#"{"cpu":0,"event":"table-gone","vmid":1,"page":"0x3fff000"}"#), "no table"),
    (|lines| insert(lines, &[DONATES], r#"{"cpu":0,"event":"table","vmid":1,"page":"0x2fff000","level":3}"#), "a table in memory of the host"),
    (|lines| change(lines, &[r#""event":"root""#, r#""vmid":1"#], r#""pages":2"#, r#""pages":17"#), "a root has a page, and at most sixteen"),
    (|lines| drop_line(lines, 0, &[r#""op":"vmalls12e1is""#, r#""vmid":1"#]), "TLBs may still have something of the VMID"),
    // Break before make.
    (|lines| drop_line(lines, 0, &[PTE, LOCKED]), "what was there is something else"),
    (|lines| { let at = at(lines, 0, &[PTE, LOCKED]); lines.remove(at + 1); }, "TLB"),
    (|lines| { let at = at(lines, 0, &[PTE, LOCKED]); lines.remove(at + 2); }, "TLB"),
    (|lines| { let at = at(lines, 0, &[PTE, LOCKED]); lines.remove(at + 3); }, "TLB"),
    (|lines| { let at = at(lines, 0, &[PTE, LOCKED]); lines.swap(at, at + 4); }, "what was there is something else"),
    // Owners.
    (|lines| change(lines, &[PTE, ANNOTATION], "0x2000008020010004", "0x1000000000000000"), "of which its descriptor is"),
    (|lines| drop_line(lines, 0, &[r#""component":"host""#, r#""from":"NOPAGE","to":"OWNED""#]), "of which its descriptor is"),
    (|lines| { let call = at(lines, 0, &[FORCES]); let zero = at(&lines[call..], 0, &[r#""event":"zero""#]); lines.remove(call + zero); }, "the host gets a page of a guest as it was"),
    (|lines| drop_line(lines, 0, &[r#""event":"el2-map""#, r#""mapped":true"#]), "EL2 maps"),
    // The format.
    (|lines| change(lines, &[DONATES], "enter", "entre"), "no event: entre"),
    (|lines| change(lines, &[PTE, ANNOTATION], r#""level":3"#, r#""level":4"#), "`level` and `ipa` are of no descriptor"),
    (|lines| change(lines, &[PTE, ANNOTATION], r#""at":"0x"#, r#""at":"x"#), "`at` is no number"),
    (|lines| change(lines, &[PTE, ANNOTATION], r#""level":3"#, r#""level":"three""#), "`level` is no number"),
    (|lines| change(lines, &[PTE, ANNOTATION], r#","new""#, r#","now""#), "`new` is no number"),
    (|lines| change(lines, &[r#""event":"zero""#], r#"000""#, r#"001""#), "`page` is no page"),
    (|lines| change(lines, &[r#""component":"hyp""#], "hyp", "guest"), "no component: guest"),
    (|lines| change(lines, &[DONATES], r#""cpu":0,"#, ""), "`cpu` is no number"),
    (|lines| change(lines, &[DONATES], r#""host_donate_guest""#, "7"), "`call` is no text"),
    (|lines| change(lines, &[DONATES], "}", ""), "EOF while parsing"),
    (|lines| lines.insert(7, String::new()), "line 8: EOF while parsing"),
    (|lines| lines[9] = "not JSON".into(), "line 10: expected ident"),
    (|lines| lines[9] = "[1, 2]".into(), "line 10: `cpu` is no number"),
    // In another order.
    (|lines| lines.reverse(), "line 1"),
];

#[test]
fn every_rule_of_the_checker_can_complain() {
    let good: Lines = recorded(None, everything).lines().map(String::from).collect();
    Checker::check(&good.join("\n")).unwrap();
    let mut wrong = Vec::new();
    for (i, (edit, complaint)) in CASES.iter().enumerate() {
        let mut lines = good.clone();
        edit(&mut lines);
        match Checker::check(&lines.join("\n")) {
            Ok(()) => wrong.push(format!("case {i}: nothing, not `{complaint}`")),
            Err(found) if !found.contains(complaint) => wrong.push(format!("case {i}: not `{complaint}` but {found}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Wherever a recording is cut off, or a line is missing, there is an answer, and no line that matters is missed in silence.
#[test]
fn a_recording_that_was_cut_off() {
    let text = recorded(None, everything);
    let lines: Vec<&str> = text.lines().collect();
    let silent = |end: &usize| Checker::check(&lines[..*end].join("\n")).is_ok();
    let ends: Vec<usize> = (0..=lines.len()).filter(silent).collect();
    // Only between two calls.
    let begins = |end: &usize| {
        lines.get(*end).is_none_or(|line| line.contains(r#""event":"enter""#) || !in_call(&lines[..*end]))
    };
    assert!(ends.iter().all(begins), "{ends:?}");
    for cut in (0..text.len()).step_by(997).filter(|cut| text.is_char_boundary(*cut)) {
        let _ = Checker::check(&text[..cut]);
    }
}

fn in_call(lines: &[&str]) -> bool {
    let count = |event: &str| lines.iter().filter(|line| line.contains(event)).count();
    count(r#""event":"enter""#) != count(r#""event":"exit""#)
}

#[test]
fn files_that_are_no_recordings() {
    let folder = std::env::temp_dir().join(format!("stage2-discipline-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let error = |path: &Path| Checker::check_file(path).unwrap_err();
    let good = recorded(None, everything);
    assert_eq!(Checker::check_file(&file("good", good.as_bytes())), Ok(good.lines().count()));
    for (path, complaint) in [
        (folder.join("missing"), "No such file"),
        (folder.clone(), "directory"),
        (file("empty", b""), "nothing is recorded here"),
        (file("blank", b"\n\n"), "nothing is recorded here"),
        (file("binary", b"\xff\xfe\x00"), "valid UTF-8"),
        (file("toml", b"[scenario]\n"), "line 1"),
    ] {
        let found = error(&path);
        assert!(found.contains(complaint) && found.starts_with(&path.display().to_string()), "{found}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
