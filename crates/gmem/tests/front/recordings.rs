//! Every recording parses, and comes out byte for byte when its own answers are put back.

use std::fs;
use std::path::Path;

use gmem::ops::{Answer, SpteRun};
use gmem::trace::{Reader, emit};

#[test]
fn kept_recordings_come_out_as_they_came_in() {
    assert_eq!(check_folder(&super::kept_recordings()), 18);
}

#[test]
fn all_recordings_come_out_as_they_came_in() {
    if let Some(folder) = super::all_recordings() {
        assert!(check_folder(&folder) >= 324);
    }
}

fn check_folder(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            check_file(&path);
            files += 1;
        }
    }
    files
}

fn check_file(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let reader = Reader::new(path.to_string_lossy(), text.as_bytes()).unwrap();
    assert_eq!(emit::new_header(reader.header()), reader.header_text());
    let mut again = format!("{}\n", reader.header_text());
    for line in reader {
        let line = line.unwrap();
        let recorded = line.recorded().unwrap().expect("recordings have answers");
        assert!(!matches!(recorded.answer, Answer::Other(_)), "{}", line.text);
        assert_folded(&recorded.spte, &line.text);
        let emitted = emit::with_answer(&line, &recorded.answer, &recorded.spte);
        again.push_str(&emitted);
        again.push('\n');
    }
    // Whole files, not lines: a lost or an added line would show.
    assert_eq!(again, text, "{}", path.display());
}

/// No two recorded runs could have been one: that is what `fold` promises, too.
fn assert_folded(runs: &[SpteRun], line: &str) {
    for pair in runs.windows(2) {
        let next = gmem::ops::SpteChange {
            gfn: pair[1].gfn,
            level: pair[1].level,
            from: pair[1].from,
            to: pair[1].to,
            writable: pair[1].writable,
        };
        assert!(!pair[0].continues_with(&next), "{line}");
    }
}
