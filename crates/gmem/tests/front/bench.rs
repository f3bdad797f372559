//! `gmem bench`: every workload runs, and what is written is whole.

use std::path::Path;
use std::process::{Command, Output};

use gmem::bench::{Case, GOALS, Meter, Size, Timer, Weighing};
use serde_json::Value;

/// Runs each body twice, with a clock that goes on by a microsecond whenever somebody looks.
#[derive(Default)]
struct Twice {
    cases: Vec<Case>,
}

impl Meter for Twice {
    fn measure(&mut self, case: Case, body: &mut dyn FnMut(&mut Timer)) {
        use std::sync::atomic::{AtomicU64, Ordering};
        static LOOKS: AtomicU64 = AtomicU64::new(0);
        let mut timer = Timer::new(|| std::time::Duration::from_micros(LOOKS.fetch_add(1, Ordering::Relaxed)));
        body(&mut timer);
        assert!(!timer.spent().is_zero(), "{} times nothing", case.id());
        body(&mut timer);
        self.cases.push(case);
    }

    fn weigh(&mut self, case: Case, body: &mut Weighing<'_>) {
        let order = std::cell::RefCell::new(String::new());
        body(&mut || order.borrow_mut().push('a'), &mut || order.borrow_mut().push('b'));
        assert_eq!(order.into_inner(), "ab", "{}", case.id());
        self.cases.push(case);
    }
}

#[test]
fn every_workload_runs_again_and_again() {
    for goal in GOALS {
        let mut meter = Twice::default();
        (goal.run)(&mut meter, &Size { small: true, guest: None });
        assert!(!meter.cases.is_empty(), "{} measures nothing", goal.id);
        for case in &meter.cases {
            assert_eq!(case.goal, goal.id);
            assert!(case.elements > 0, "{} has no elements", case.id());
        }
    }
}

#[test]
fn walks_make_the_references_that_they_are_named_for() {
    for (goal, references) in [("P2", "2.00 references"), ("P3", "24.00 references"), ("P4", "35.00 references")] {
        let mut meter = Twice::default();
        (gmem::bench::goal(goal).unwrap().run)(&mut meter, &Size { small: true, guest: None });
        let all_caches = |case: &&Case| !case.name.contains("all caches");
        for case in meter.cases.iter().filter(all_caches) {
            assert!(case.note.starts_with(references), "{}: {}", case.id(), case.note);
        }
    }
}

fn gmem(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gmem")).arg("bench").args(arguments).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn goals_are_listed_and_selected() {
    let output = gmem(&["--list"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), GOALS.len(), "{text}");
    let output = gmem(&["--list", "p3"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "P3     a cold walk of 24 references, with the fill\n");
    let output = gmem(&["P3", "P99"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("there is no goal `P99`"), "{text}");
}

#[test]
fn json_file_and_plot_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("measured");
    let output =
        gmem(&["--quick", "P1", "P7", "P12", "pages", "--kvm", "/nowhere/kvm", "--output", path(&target), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let written: Value = serde_json::from_str(&std::fs::read_to_string(target.join("bench.json")).unwrap()).unwrap();
    assert_eq!(printed, written);
    let cases = printed["cases"].as_array().unwrap();
    for case in cases {
        let of = |name: &str| case["measured"][name].as_f64().unwrap();
        assert!(0.0 < of("min") && of("min") <= of("median") && of("median") <= of("max"), "{case}");
        let within = case["case"]["limit"].as_f64().map(|limit| of("median") <= limit);
        assert_eq!(case["within"].as_bool(), within, "{case}");
    }
    let goals: std::collections::BTreeSet<_> =
        cases.iter().map(|case| case["case"]["goal"].as_str().unwrap()).collect();
    assert_eq!(goals.into_iter().collect::<Vec<_>>(), ["P1", "P12", "P7", "pages"]);
    let svg = std::fs::read_to_string(target.join("bench.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg:.100}");
    assert!(svg.contains("P7/empty entries/512"));
    let weighed = cases.iter().find(|case| case["id"] == "P12/private/2048").expect("P12 is weighed");
    assert_eq!(weighed["unit"], "B");
    // A frame and an entry of stage 2 are 40 bytes; a whole page would be contents.
    let bytes = weighed["measured"]["median"].as_f64().unwrap();
    assert!((40.0..400.0).contains(&bytes), "{bytes}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("the real kernel is left out"), "{text}");
}

#[test]
fn a_guest_that_cannot_be_is_bad_usage() {
    for size in ["3K", "0", "64T", "much"] {
        let output = gmem(&["P12", "--guest", size]);
        assert_eq!(output.status.code(), Some(2), "{size}: {output:?}");
    }
}

#[test]
fn a_folder_that_cannot_be_is_an_error_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = gmem(&["--quick", "P1", "--output", path(&file)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("cannot make"), "{text}");
}

/// Where there is a KVM with a guest_memfd that can be mapped, its four deeds are measured too.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn the_real_kernel_is_measured_where_there_is_one() {
    let output = gmem(&["--quick", "pages", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let complaint = String::from_utf8(output.stderr).unwrap();
    if complaint.contains("left out") {
        println!("skipped: {complaint}");
        return;
    }
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let cases = printed["cases"].as_array().unwrap();
    let real = cases.iter().filter(|case| case["case"]["is_peer"] == true).count();
    assert_eq!((real, cases.len()), (4, 8), "{printed:#}");
}
