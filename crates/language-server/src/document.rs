//! An open document: its text, kept up to date by edits, and the translation between places and bytes.

use std::ops::Range;

use gen_lsp_types as lsp;
use talon_artifacts::{Definition, query_ranges};
use talon_vql::ast::Span;

/// The longest text that is looked at, in bytes.
pub(crate) const MAX_DOCUMENT: usize = 4 << 20;

/// What a document holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A query.
    Vql,
    /// An artifact in YAML, with queries inside.
    Artifact,
    /// Something else: nothing is said about it.
    Other,
}

/// How the client counts characters in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Encoding {
    /// In bytes.
    Utf8,
    /// In units of 16 bits: what every client knows.
    #[default]
    Utf16,
}

/// An open document.
pub(crate) struct Document {
    pub(crate) text: String,
    pub(crate) version: i32,
    pub(crate) kind: Kind,
    /// The artifact, as it was when it was last sound.
    pub(crate) artifact: Option<Definition>,
    /// It grew too long; its text is not kept.
    pub(crate) is_too_long: bool,
    is_yaml: bool,
}

impl Document {
    pub(crate) fn new(uri: &str, language: &str, version: i32, text: String) -> Self {
        let lower = uri.to_ascii_lowercase();
        let is_yaml = language == "yaml" || [".yaml", ".yml"].iter().any(|end| lower.ends_with(end));
        let mut document = Self { text, version, kind: Kind::Other, artifact: None, is_too_long: false, is_yaml };
        document.changed();
        document
    }

    /// Applies one edit. Places outside of the text are taken for its nearest end.
    pub(crate) fn edit(&mut self, range: lsp::Range, with: &str, encoding: Encoding) {
        let (start, end) = (self.offset(range.start, encoding), self.offset(range.end, encoding));
        self.text.replace_range(start.min(end)..end.max(start), with);
    }

    /// To be called after edits.
    pub(crate) fn changed(&mut self) {
        if self.text.len() > MAX_DOCUMENT {
            self.text = String::new();
            self.is_too_long = true;
        }
        self.kind = if !self.is_yaml {
            Kind::Vql
        } else if looks_like_artifact(&self.text) {
            Kind::Artifact
        } else {
            Kind::Other
        };
        if self.kind == Kind::Artifact
            && let Ok(definition) = Definition::from_yaml(&self.text)
        {
            self.artifact = Some(definition);
        }
    }

    /// The bytes of the queries.
    pub(crate) fn queries(&self) -> Vec<Range<usize>> {
        match self.kind {
            Kind::Vql => std::iter::once(0..self.text.len()).collect(),
            Kind::Artifact => query_ranges(&self.text),
            Kind::Other => Vec::new(),
        }
    }

    /// The query in which a byte stands, and where it starts. In an artifact, blank lines behind a query belong to it.
    pub(crate) fn query_at(&self, offset: usize) -> Option<(&str, usize)> {
        let range = self.queries().into_iter().rev().find(|range| range.start <= offset)?;
        let behind = self.text.get(range.end..offset.max(range.end))?;
        let start = range.start;
        behind.trim().is_empty().then_some(())?;
        Some((self.text.get(start..range.end.max(offset))?, start))
    }

    /// The byte of a place.
    pub(crate) fn offset(&self, position: lsp::Position, encoding: Encoding) -> usize {
        let mut start = 0;
        for _ in 0..position.line {
            match self.text.get(start..).and_then(|rest| rest.find('\n')) {
                Some(at) => start += at + 1,
                None => return self.text.len(),
            }
        }
        let line = self.text.get(start..).unwrap_or_default().split('\n').next().unwrap_or_default();
        let mut left = position.character as usize;
        for (at, character) in line.char_indices() {
            let width = match encoding {
                Encoding::Utf8 => character.len_utf8(),
                Encoding::Utf16 => character.len_utf16(),
            };
            if left < width {
                return start + at;
            }
            left -= width;
        }
        start + line.len()
    }

    /// The place of a byte.
    pub(crate) fn position(&self, offset: usize, encoding: Encoding) -> lsp::Position {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = self.text.get(..offset).unwrap_or_default();
        let line = before.bytes().filter(|byte| *byte == b'\n').count();
        let content = before.rsplit('\n').next().unwrap_or_default();
        let character = match encoding {
            Encoding::Utf8 => content.len(),
            Encoding::Utf16 => content.chars().map(char::len_utf16).sum(),
        };
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        lsp::Position::new(number(line), number(character))
    }

    /// The places of some bytes.
    pub(crate) fn range(&self, range: Range<usize>, encoding: Encoding) -> lsp::Range {
        lsp::Range::new(self.position(range.start, encoding), self.position(range.end, encoding))
    }
}

/// The bytes of a span of a text that starts at `base`.
pub(crate) fn bytes(span: Span, base: usize) -> Range<usize> {
    base.saturating_add(span.start as usize)..base.saturating_add(span.end as usize)
}

fn looks_like_artifact(text: &str) -> bool {
    const KEYS: [&str; 6] = ["sources:", "parameters:", "export:", "precondition:", "imports:", "type:"];
    let has = |key: &str| text.lines().any(|line| line.starts_with(key));
    has("name:") && KEYS.into_iter().any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: u32, character: u32) -> lsp::Position {
        lsp::Position::new(line, character)
    }

    #[test]
    fn places_and_bytes_agree_in_both_encodings() {
        let document = Document::new("a.vql", "vql", 1, "SELECT 'é😀x'\nFROM y\r\n".to_owned());
        for encoding in [Encoding::Utf8, Encoding::Utf16] {
            for (offset, _) in document.text.char_indices() {
                let position = document.position(offset, encoding);
                assert_eq!(document.offset(position, encoding), offset);
            }
        }
        assert_eq!(document.position(15, Encoding::Utf16), at(0, 12));
        assert_eq!(document.position(10, Encoding::Utf8), at(0, 10));
        assert_eq!(document.offset(at(0, 10), Encoding::Utf16), 10, "inside of a pair of units");
        for position in [at(0, 999), at(99, 0), at(u32::MAX, u32::MAX)] {
            assert!(document.offset(position, Encoding::Utf16) <= document.text.len());
        }
    }

    #[test]
    fn edits_change_the_text_whatever_their_places() {
        let mut document = Document::new("a.vql", "vql", 1, "SELECT a\nFROM b".to_owned());
        document.edit(lsp::Range::new(at(0, 7), at(0, 8)), "é", Encoding::Utf16);
        document.edit(lsp::Range::new(at(1, 5), at(1, 6)), "scope()\n", Encoding::Utf16);
        assert_eq!(document.text, "SELECT é\nFROM scope()\n");
        document.edit(lsp::Range::new(at(9, 9), at(0, 7)), "1 FROM x", Encoding::Utf16);
        assert_eq!(document.text, "SELECT 1 FROM x");
    }

    #[test]
    fn kinds_are_told_apart_and_sizes_are_bounded() {
        let kind = |uri: &str, language: &str, text: &str| Document::new(uri, language, 1, text.to_owned()).kind;
        assert_eq!(kind("file:///a.vql", "vql", ""), Kind::Vql);
        assert_eq!(kind("file:///a.yaml", "yaml", "name: A\nsources: []\n"), Kind::Artifact);
        assert_eq!(kind("file:///compose.yml", "", "services: {}\n"), Kind::Other);
        let long = Document::new("a.vql", "vql", 1, " ".repeat(MAX_DOCUMENT + 1));
        assert!(long.is_too_long && long.text.is_empty());
    }
}
