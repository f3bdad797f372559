//! Target `trace`: the trace reader on any bytes, and the printer on what was read.

use std::io::BufRead;

use gmem::ops::{Answer, SpteRun};
use gmem::trace::{Header, Line, Reader, emit};

/// Reads the bytes as a trace. Whatever was read comes out of the printer again.
///
/// # Panics
/// If something that was printed is read as something else, or a mistake has no place in the text.
pub fn check(bytes: &[u8]) {
    let mut reader = match Reader::new("t.jsonl", bytes) {
        Ok(reader) => reader,
        Err(error) => {
            assert!(error.line >= 1 && error.column >= 1, "{error}");
            return;
        }
    };
    let header = emit::new_header(reader.header());
    assert_eq!(read_again(reader.header(), &header, None).header(), reader.header(), "{header}");
    while let Some(line) = next(&mut reader) {
        let recorded = match line.recorded() {
            Ok(recorded) => recorded,
            Err(mistake) => {
                let error = reader.error_in(&line, mistake);
                assert!(error.line == line.number && error.column >= 1, "{error}");
                continue;
            }
        };
        let (answer, spte) = recorded.map_or((Answer::OK, Vec::new()), |recorded| (recorded.answer, recorded.spte));
        for text in [emit::with_answer(&line, &answer, &spte), emit::new_line(&line.op, &answer, &spte)] {
            same(reader.header(), &line, &text, &answer, &spte);
        }
    }
}

fn next<R: BufRead>(reader: &mut Reader<R>) -> Option<Line> {
    match reader.next()? {
        Ok(line) => Some(line),
        Err(error) => {
            assert!(error.line >= 1 && error.column >= 1, "{error}");
            assert!(reader.next().is_none(), "nothing is read after the first mistake");
            None
        }
    }
}

/// A trace of this header, or of its text, and one line.
fn read_again(header: &Header, text: &str, line: Option<&str>) -> Reader<std::io::Cursor<String>> {
    let text = match line {
        Some(line) => format!("{}\n{line}\n", emit::new_header(header)),
        None => format!("{text}\n"),
    };
    Reader::new("again.jsonl", std::io::Cursor::new(text))
        .unwrap_or_else(|error| panic!("what was printed is not read: {error}"))
}

/// Asserts that the printed line is read as the operation and the answer that it was printed from, and printed again as it is.
fn same(header: &Header, line: &Line, text: &str, answer: &Answer, spte: &[SpteRun]) {
    // Escapes may make a line longer than any line may be.
    if text.len() > gmem::trace::MAX_LINE {
        return;
    }
    let mut reader = read_again(header, "", Some(text));
    let again =
        reader.next().expect("a line was printed").unwrap_or_else(|error| panic!("{text} is not read: {error}"));
    assert_eq!(again.op, line.op, "{text}");
    let recorded = again.recorded().unwrap_or_else(|(_, error)| panic!("the answer of {text} is not read: {error}"));
    let recorded = recorded.expect("an answer was printed");
    assert_eq!((&recorded.answer, &recorded.spte[..]), (answer, spte), "{text}");
    assert_eq!(emit::with_answer(&again, answer, spte), text, "what was printed once is printed so again");
}
