//! Replaying against an executor that repeats the recording, with one mistake where a test wants one.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use expect_test::expect;
use gmem::Status;
use gmem::ops::{Answer, Op};
use gmem::replay::{self, Executor, Options, Outcome};
use gmem::trace::{Header, Reader};

/// Says what the recording says.
pub(crate) struct Parrot {
    answers: VecDeque<Outcome>,
    mistake: Mistake,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Mistake {
    None,
    Answer,
    Stage2,
    Panic,
}

impl Executor for Parrot {
    fn execute(&mut self, op: &Op) -> Outcome {
        let mut outcome = self.answers.pop_front().unwrap_or(Outcome { answer: Answer::OK, spte: Vec::new() });
        if matches!(op, Op::GuestWrite { .. } | Op::GuestRead { .. }) {
            match self.mistake {
                Mistake::None => {}
                Mistake::Answer => outcome.answer = Answer::ok(5),
                Mistake::Stage2 => outcome.spte.push(outcome.spte.first().copied().unwrap_or(NOISE)),
                Mistake::Panic => panic!("a broken invariant"),
            }
        }
        outcome
    }
}

const NOISE: gmem::ops::SpteRun = gmem::ops::SpteRun {
    gfn: 7,
    entries: 1,
    level: 1,
    from: gmem::ops::SpteState::None,
    to: gmem::ops::SpteState::Leaf,
    writable: true,
};

/// What the recording of this name in `folder` says.
pub(crate) fn parrot(folder: &Path, name: &str, mistake: Mistake) -> Parrot {
    let text = fs::read_to_string(folder.join(format!("{name}.jsonl"))).unwrap();
    let answers = Reader::new(name, text.as_bytes())
        .unwrap()
        .filter_map(|line| line.unwrap().recorded().unwrap())
        .map(|recorded| Outcome { answer: recorded.answer, spte: recorded.spte })
        .collect();
    Parrot { answers, mistake }
}

fn factory(mistake: Mistake) -> impl Fn(&Header) -> Result<Box<dyn Executor>, String> + Sync {
    move |header| Ok(Box::new(parrot(&super::kept_recordings(), &header.name, mistake)) as Box<dyn Executor>)
}

fn compare(paths: &[PathBuf], options: &Options, mistake: Mistake) -> replay::Report {
    let mut report = replay::compare(paths, options, &factory(mistake), &|_| {});
    // The workspace lies elsewhere on every machine.
    let folder = format!("{}/", super::kept_recordings().display());
    for difference in &mut report.differences {
        difference.file = difference.file.replace(&folder, "");
    }
    for error in &mut report.internal_errors {
        error.file = error.file.replace(&folder, "");
    }
    for message in &mut report.bad_input {
        *message = message.replace(&folder, "");
    }
    report
}

fn text(report: &replay::Report) -> String {
    let mut out = Vec::new();
    replay::report::text(report, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn file(name: &str) -> PathBuf {
    super::kept_recordings().join(name)
}

#[test]
fn a_perfect_executor_agrees_everywhere() {
    let report = compare(&[super::kept_recordings()], &Options::default(), Mistake::None);
    assert_eq!(report.status(), Status::Success);
    expect![[r#"
        family     files  operations       answers agree      stage 2 agrees
        attrs          2          48         48  100.00%         48  100.00%
        conv           2          72         72  100.00%         72  100.00%
        dirty          2          46         46  100.00%         46  100.00%
        file           2          49         49  100.00%         49  100.00%
        life           2          55         55  100.00%         55  100.00%
        mmap           2          74         74  100.00%         74  100.00%
        prefault       2          37         37  100.00%         37  100.00%
        slots          2          52         52  100.00%         52  100.00%
        thp            2          52         52  100.00%         52  100.00%
        total         18         485        485  100.00%        485  100.00%
    "#]]
    .assert_eq(&text(&report));
}

#[test]
fn differences_are_shown_with_both_sides() {
    let options = Options { family: Some("life".into()), differences_max: 2 };
    let report = compare(&[super::kept_recordings()], &options, Mistake::Answer);
    assert_eq!(report.status(), Status::Found);
    expect![[r#"
        family   files  operations       answers agree      stage 2 agrees
        life         2          55         42   76.36%         42   76.36%
        total        2          55         42   76.36%         42   76.36%

        life-000.jsonl:13: {"op": "guest_read", "vcpu": "c0", "gpa": 2191360}
          expected {"errno": "EFAULT", "exit": "memory_fault", "flags": 8, "gpa": 2191360, "size": 4096}
          got      {"ok": 5}

        life-000.jsonl:15: {"op": "guest_write", "vcpu": "c0", "gpa": 2310144, "value": 812}
          expected {"errno": "EFAULT", "exit": "memory_fault", "flags": 8, "gpa": 2310144, "size": 4096}
          got      {"ok": 5}

        11 more operations disagree (--differences N shows more)
    "#]]
    .assert_eq(&text(&report));
    let report = compare(&[super::kept_recordings()], &options, Mistake::Stage2);
    assert_eq!(report.status(), Status::Found);
    assert_eq!(report.total.answers_agree, report.total.stage2_compared);
    expect![[r#"
        family   files  operations       answers agree      stage 2 agrees
        life         2          55         55  100.00%         42   76.36%
        total        2          55         55  100.00%         42   76.36%

        life-000.jsonl:13: {"op": "guest_read", "vcpu": "c0", "gpa": 2191360}
          expected stage 2 [[0, 1, 4, "none", "table", 0], [786432, 1, 3, "none", "table", 0], [983040, 1, 2, "none", "table", 0]]
          got      stage 2 [[0, 1, 4, "none", "table", 0], [786432, 1, 3, "none", "table", 0], [983040, 1, 2, "none", "table", 0], [0, 1, 4, "none", "table", 0]]

        life-000.jsonl:15: {"op": "guest_write", "vcpu": "c0", "gpa": 2310144, "value": 812}
          expected no change in stage 2
          got      stage 2 [[7, 1, 1, "none", "leaf", 1]]

        11 more operations disagree (--differences N shows more)
    "#]].assert_eq(&text(&report));
    expect![[r#"
        {
          "files": 2,
          "operations": 55,
          "answers_compared": 55,
          "answers_agree": 55,
          "stage2_compared": 55,
          "stage2_agree": 42,
          "families": {
            "life": {
              "files": 2,
              "operations": 55,
              "answers_compared": 55,
              "answers_agree": 55,
              "stage2_compared": 55,
              "stage2_agree": 42
            }
          },
          "differences": [
            {
              "file": "life-000.jsonl",
              "line": 13,
              "op": {
                "op": "guest_read",
                "vcpu": "c0",
                "gpa": 2191360
              },
              "expected": {
                "ret": {
                  "errno": "EFAULT",
                  "exit": "memory_fault",
                  "flags": 8,
                  "gpa": 2191360,
                  "size": 4096
                },
                "spte": [
                  [
                    0,
                    1,
                    4,
                    "none",
                    "table",
                    0
                  ],
                  [
                    786432,
                    1,
                    3,
                    "none",
                    "table",
                    0
                  ],
                  [
                    983040,
                    1,
                    2,
                    "none",
                    "table",
                    0
                  ]
                ]
              },
              "got": {
                "ret": {
                  "errno": "EFAULT",
                  "exit": "memory_fault",
                  "flags": 8,
                  "gpa": 2191360,
                  "size": 4096
                },
                "spte": [
                  [
                    0,
                    1,
                    4,
                    "none",
                    "table",
                    0
                  ],
                  [
                    786432,
                    1,
                    3,
                    "none",
                    "table",
                    0
                  ],
                  [
                    983040,
                    1,
                    2,
                    "none",
                    "table",
                    0
                  ],
                  [
                    0,
                    1,
                    4,
                    "none",
                    "table",
                    0
                  ]
                ]
              }
            },
            {
              "file": "life-000.jsonl",
              "line": 15,
              "op": {
                "op": "guest_write",
                "vcpu": "c0",
                "gpa": 2310144,
                "value": 812
              },
              "expected": {
                "ret": {
                  "errno": "EFAULT",
                  "exit": "memory_fault",
                  "flags": 8,
                  "gpa": 2310144,
                  "size": 4096
                },
                "spte": []
              },
              "got": {
                "ret": {
                  "errno": "EFAULT",
                  "exit": "memory_fault",
                  "flags": 8,
                  "gpa": 2310144,
                  "size": 4096
                },
                "spte": [
                  [
                    7,
                    1,
                    1,
                    "none",
                    "leaf",
                    1
                  ]
                ]
              }
            }
          ],
          "bad_input": [],
          "internal_errors": []
        }"#]]
    .assert_eq(&format!("{:#}", replay::report::json(&report)));
}

#[test]
fn a_panic_is_an_internal_error_of_its_file() {
    let report = compare(&[super::kept_recordings()], &Options::default(), Mistake::Panic);
    assert_eq!(report.status(), Status::Internal);
    // Every file was counted whole, those that panicked included.
    let good = compare(&[super::kept_recordings()], &Options::default(), Mistake::None);
    assert_eq!(report.total.operations, good.total.operations);
    assert_eq!(report.total.stage2_compared, good.total.stage2_compared);
    assert!(report.total.answers_agree < good.total.answers_agree);
    expect![[r#"attrs-002.jsonl:8: internal error: a broken invariant"#]]
        .assert_eq(&report.internal_errors[0].to_string());
}

#[test]
fn bad_input_is_reported_and_the_rest_still_runs() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("b/c")).unwrap();
    for name in ["z.jsonl", "a.jsonl", "b/m.jsonl", "b/c/n.jsonl"] {
        fs::write(folder.path().join(name), "no trace\n").unwrap();
    }
    fs::write(folder.path().join("notes.txt"), "not looked at").unwrap();
    let paths = [folder.path().to_path_buf(), file("nonesuch.jsonl"), super::kept_recordings()];
    let mut report = compare(&paths[..1], &Options::default(), Mistake::None);
    for message in &mut report.bad_input {
        *message = message.replace(&folder.path().display().to_string(), "FOLDER");
    }
    assert_eq!(report.status(), Status::BadInput);
    expect![[r#"
        FOLDER/a.jsonl:1:2: malformed JSON: expected ident
        FOLDER/b/c/n.jsonl:1:2: malformed JSON: expected ident
        FOLDER/b/m.jsonl:1:2: malformed JSON: expected ident
        FOLDER/z.jsonl:1:2: malformed JSON: expected ident"#]]
    .assert_eq(&report.bad_input.join("\n"));
    let report = compare(&paths, &Options::default(), Mistake::None);
    assert_eq!(report.status(), Status::BadInput, "a path that is not there ends the search");
    assert_eq!(report.total.files, 0);
    let report = compare(&[paths[0].clone(), paths[2].clone()], &Options::default(), Mistake::None);
    assert_eq!((report.status(), report.total.files), (Status::BadInput, 18));
}

#[test]
fn nothing_to_replay_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let report = compare(&[folder.path().to_path_buf()], &Options::default(), Mistake::None);
    assert_eq!(report.status(), Status::BadInput);
    let options = Options { family: Some("nonesuch".into()), ..Options::default() };
    let report = compare(&[super::kept_recordings()], &options, Mistake::None);
    assert_eq!(report.status(), Status::BadInput);
    expect![[r#"no trace found of the family `nonesuch`"#]].assert_eq(&report.bad_input.join("\n"));
}

#[test]
fn a_machine_that_cannot_be_made_is_bad_input() {
    let none = |header: &Header| Err(format!("stage 2 is {}", header.stage2));
    let report = replay::compare(&[super::kept_recordings()], &Options::default(), &none, &|_| {});
    assert_eq!(report.status(), Status::BadInput);
    assert!(report.bad_input[0].ends_with(".jsonl:1:1: no such machine: stage 2 is npt"), "{}", report.bad_input[0]);
}

/// Recorded answers are neither needed nor looked at: the same comes out with them, without them and with broken ones.
#[test]
fn emission_is_byte_for_byte_and_never_looks_at_recorded_answers() {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(super::kept_recordings()).unwrap() {
        let path = entry.unwrap().path();
        let original = fs::read_to_string(&path).unwrap();
        let stripped: Vec<&str> = original.lines().map(|line| line.split(", \"ret\": ").next().unwrap()).collect();
        let header = stripped[0];
        let bare: String = stripped[1..].iter().map(|line| format!("{line}}}\n")).collect();
        let broken: String = stripped[1..].iter().map(|line| format!("{line}, \"ret\": 5, \"spte\": []}}\n")).collect();
        for variant in [original.clone(), format!("{header}\n{bare}"), format!("{header}\n{broken}")] {
            let copy = folder.path().join(path.file_name().unwrap());
            fs::write(&copy, variant).unwrap();
            let mut out = Vec::new();
            let mut complaints = Vec::new();
            let mut complain = |message: &str| complaints.push(message.to_string());
            let status = replay::emit(&[copy], None, &factory(Mistake::None), &mut out, &mut complain).unwrap();
            assert_eq!((status, complaints.as_slice()), (Status::Success, &[] as &[String]));
            assert_eq!(String::from_utf8(out).unwrap(), original, "{}", path.display());
        }
    }
}

#[test]
fn lines_without_answers_are_executed_and_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program.jsonl");
    let original = fs::read_to_string(file("life-000.jsonl")).unwrap();
    let mut lines = original.lines();
    let mut program = format!("{}\n", lines.next().unwrap());
    for line in lines {
        program.push_str(line.split(", \"ret\": ").next().unwrap());
        program.push_str("}\n");
    }
    fs::write(&path, program).unwrap();
    let report = compare(&[path], &Options::default(), Mistake::Answer);
    assert_eq!(report.status(), Status::Success);
    assert!(report.total.operations > 0);
    assert_eq!((report.total.stage2_compared, report.total.answers_agree), (0, 0));
}
