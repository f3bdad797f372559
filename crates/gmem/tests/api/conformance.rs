//! The registry of conformance checks: which rows there are, that they hold, and that one that does not is seen.

use gmem::conformance::{Check, Failure, Status, registry, select};
use std::collections::BTreeSet;

/// The rows of the checklist: id, suite and what they are about, one a line.
const ROWS: &str = include_str!("../../../../tests/data/conformance.txt");

#[test]
fn the_checks_are_the_rows_of_the_checklist() {
    let rows = ROWS.lines().filter(|line| !line.starts_with('#')).map(str::to_string);
    let checks = registry().map(|check| format!("{} {}: {}", check.id, check.suite, check.title));
    let (rows, checks): (Vec<_>, Vec<_>) = (rows.collect(), checks.collect());
    assert_eq!(rows.join("\n"), checks.join("\n"));

    let sequential = [1..=57, 60..=68, 70..=77, 80..=85, 130..=132, 160..=160];
    let threads = [90..=95, 100..=106, 110..=126, 140..=141, 150..=155];
    let kernel = sequential.into_iter().chain(threads).flatten().map(|number| format!("GM-{number:03}"));
    let expected: BTreeSet<String> = kernel.chain((1..=17).map(|number| format!("GX-{number:02}"))).collect();
    let found: BTreeSet<String> = registry().map(|check| check.id.to_string()).collect();
    assert_eq!(found, expected);
    assert_eq!(registry().count(), expected.len(), "an id is there twice");
}

#[test]
fn no_row_fails() {
    for check in registry() {
        let result = check.run();
        assert_ne!(result.status, Status::Fail, "{}: {}", result.id, result.reason);
        assert!(!result.reason.is_empty(), "{} says nothing", result.id);
    }
}

/// A row cannot silently stop being checked: what is absent would be named here.
#[test]
fn no_row_is_absent() {
    let absent: Vec<&str> = registry().filter(|check| check.is_absent()).map(|check| check.id).collect();
    assert!(absent.is_empty(), "{absent:?}");
}

#[test]
fn a_wrong_check_fails() {
    let wrong = Check::test("XX-1", "suite", "title", || Err(Failure::new("expected 1, found 2")));
    let result = wrong.run();
    assert_eq!((result.status, result.reason.as_str()), (Status::Fail, "expected 1, found 2"));
    let panicking = Check::test("XX-2", "suite", "title", || panic!("INV-000: {}", "broken"));
    let result = panicking.run();
    assert_eq!((result.status, result.reason.as_str()), (Status::Fail, "panicked: INV-000: broken"));
    let absent = Check::absent("XX-3", "suite", "title", "why").run();
    assert_eq!((absent.status, absent.reason.as_str()), (Status::Absent, "why"));
}

#[test]
fn a_check_says_the_same_each_time() {
    for check in select(&["GM-09*", "GX-04"]).unwrap() {
        assert_eq!(check.run(), check.run());
    }
}

#[test]
fn patterns_select() {
    let ids =
        |patterns: &[&str]| select(patterns).map(|checks| checks.iter().map(|check| check.id).collect::<Vec<_>>());
    assert_eq!(ids(&["gm-016"]).unwrap(), ["GM-016"]);
    assert_eq!(ids(&["GX-02", "GX-01"]).unwrap(), ["GX-01", "GX-02"], "in the order of the registry");
    assert_eq!(ids(&["GM-08*"]).unwrap(), ["GM-080", "GM-081", "GM-082", "GM-083", "GM-084", "GM-085"]);
    assert_eq!(ids(&[]).unwrap().len(), registry().count());
    assert_eq!(ids(&["QQ*"]).unwrap_err().to_string(), "no check has the id `QQ*`");
    assert_eq!(ids(&["GX-1O"]).unwrap_err().to_string(), "no check has the id `GX-1O`; did you mean `GX-10`?");
}
