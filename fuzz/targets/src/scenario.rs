//! Target `scenario`: the scenario reader on any text, as a file and as a single line, and the printer on every operation read.

use gmem::scenario::{self, ParsedLine};

/// Reads the text as a scenario, and its first lines as lines of one. Whatever was read comes out of the printer again.
///
/// # Panics
/// If something that was printed is read as something else, or a mistake has no place in the text.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match scenario::parse("fuzz.toml", text) {
        Ok(scenario) => {
            assert!(scenario.threads.len() <= scenario::THREADS_MAX, "too many threads were read");
            for step in scenario.steps() {
                let again = scenario::parse_line(&step.text)
                    .unwrap_or_else(|error| panic!("the text of a step is not read: {}: {error}", step.text));
                assert_eq!(
                    (&again.label, &again.op, &again.expect),
                    (&step.label, &step.op, &step.expect),
                    "{}",
                    step.text
                );
                assert!(step.line as usize <= text.split('\n').count(), "line {} of a shorter text", step.line);
            }
        }
        Err(mistake) => {
            assert!(mistake.line() >= 1 && mistake.column() >= 1, "{mistake}");
            for colours in [false, true] {
                assert!(!mistake.render(colours).is_empty(), "a mistake that nobody sees");
            }
        }
    }
    for line in text.lines().take(LINES) {
        check_line(line);
    }
}

/// Lines of a text that are read on their own.
const LINES: usize = 32;

fn check_line(line: &str) {
    let ParsedLine { label, op, expect } = match scenario::parse_line(line) {
        Ok(parsed) => parsed,
        Err(mistake) => {
            let part = line.get(mistake.span.clone());
            assert!(part.is_some(), "the mistake {mistake:?} lies across characters or outside of {line:?}");
            return;
        }
    };
    let printed = scenario::print(&op);
    let again = scenario::parse_line(&printed).unwrap_or_else(|error| panic!("{printed:?} is not read: {error}"));
    assert_eq!(again, ParsedLine { label: None, op: op.clone(), expect: None }, "{printed:?}");
    assert_eq!(scenario::print(&again.op), printed);
    if let Some(expect) = &expect {
        let label = label.map(|label| format!("{label}: ")).unwrap_or_default();
        let printed = format!("{label}{printed} => {expect}");
        let again = scenario::parse_line(&printed).unwrap_or_else(|error| panic!("{printed:?} is not read: {error}"));
        assert_eq!(again.expect.as_ref(), Some(expect), "{printed:?}");
    }
}
