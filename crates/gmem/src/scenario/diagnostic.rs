//! A mistake in a file that a person wrote: where, what was found, what was expected, and the line with a caret.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// A mistake in a scenario file. Displays as rustc displays its errors, without colours.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// What is wrong.
    pub title: String,
    /// What was expected there, or why it is wrong.
    pub label: String,
    /// What else may help.
    pub help: Option<String>,
    file: Arc<str>,
    source: Arc<str>,
    span: Range<usize>,
}

impl Diagnostic {
    pub(crate) fn new(
        (file, source): (&Arc<str>, &Arc<str>),
        span: Range<usize>,
        title: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        // A span that leaves the text, or splits a character, would make the renderer panic.
        let mut start = span.start.min(source.len());
        let mut end = span.end.clamp(start, source.len());
        while !source.is_char_boundary(start) {
            start -= 1;
        }
        while !source.is_char_boundary(end) {
            end += 1;
        }
        let (file, source) = (Arc::clone(file), Arc::clone(source));
        Diagnostic { title: shortened(title.into()), label: label.into(), help: None, file, source, span: start..end }
    }

    pub(crate) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The line of the mistake, from 1.
    pub fn line(&self) -> usize {
        self.source[..self.span.start].matches('\n').count() + 1
    }

    /// The column of the mistake in characters, from 1.
    pub fn column(&self) -> usize {
        let before = &self.source[..self.span.start];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        before[start..].chars().count() + 1
    }

    /// The report, with terminal colours if `colours`.
    pub fn render(&self, colours: bool) -> String {
        let renderer = if colours { Renderer::styled() } else { Renderer::plain() };
        let snippet = Snippet::source(&*self.source)
            .path(&*self.file)
            .annotation(AnnotationKind::Primary.span(self.span.clone()).label(&self.label));
        let mut group = Level::ERROR.primary_title(&self.title).element(snippet);
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help));
        }
        renderer.render(&[group])
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostic {}

/// A title that quotes something endless, without its end.
fn shortened(mut title: String) -> String {
    const LONGEST: usize = 200;
    if let Some((end, _)) = title.char_indices().nth(LONGEST) {
        title.truncate(end);
        title.push_str("...");
    }
    title
}
