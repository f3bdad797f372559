//! The page: one file that needs nothing else, with the recording in it.

use std::io::{self, Write};

use super::data;
use crate::record::Recording;

const PAGE: &str = include_str!("assets/report.html");
const STYLE: &str = include_str!("assets/report.css");
const SCRIPT: &str = include_str!("assets/report.js");

/// Writes the page that shows a recording.
///
/// # Errors
/// If `out` cannot be written.
pub fn write(recording: &Recording, out: &mut dyn Write) -> io::Result<()> {
    let title = escaped(&recording.title);
    let data = data::json(recording);
    let mut rest = PAGE;
    // In one pass: what is put in is not looked at again.
    for (mark, text) in
        [("{{title}}", title.as_str()), ("{{style}}", STYLE), ("{{data}}", &data), ("{{script}}", SCRIPT)]
    {
        let (before, after) = rest.split_once(mark).expect("the page has its marks in this order");
        out.write_all(before.as_bytes())?;
        out.write_all(text.as_bytes())?;
        rest = after;
    }
    out.write_all(rest.as_bytes())
}

/// Text as it stands in a page.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for (name, text) in [("report.html", PAGE), ("report.css", STYLE), ("report.js", SCRIPT)] {
            for word in ["http:", "https:", "//cdn", "@import", "url(", "fetch(", "XMLHttpRequest", "import("] {
                let found = text.replace("http://www.w3.org/2000/svg", "").contains(word);
                assert!(!found, "{name} has {word}");
            }
        }
        assert!(!SCRIPT.contains("</script"));
    }

    #[test]
    fn a_title_is_text() {
        assert_eq!(escaped("<b> & co"), "&lt;b&gt; &amp; co");
    }
}
