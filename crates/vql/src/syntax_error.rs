//! What is wrong with a text, where, and how it may be cured.

use std::fmt;

use crate::ast::Span;

/// The longest piece of source text that an error quotes, in characters.
const EXCERPT: usize = 100;
/// The longest token that an error quotes, in characters.
const QUOTED: usize = 40;

/// Why a text is not VQL. `Display` is `line:column: message`; [`SyntaxError::render`] adds the line, a caret and a hint.
#[derive(Clone, PartialEq, Eq)]
pub struct SyntaxError(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    message: String,
    line: u32,
    column: u32,
    span: Span,
    hint: Option<String>,
    excerpt: String,
    /// Characters of the excerpt before the fault.
    indent: usize,
    /// Characters under the caret line; at least one.
    width: usize,
}

impl SyntaxError {
    /// `message` about the bytes `span` of `text`. Checks that come after parsing report in the same form.
    pub fn new(text: &str, span: Span, message: String) -> Self {
        let start = floor_boundary(text, span.start as usize);
        let end = floor_boundary(text, span.end as usize).max(start);
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let prefix = before.get(line_start..).unwrap_or_default();
        let column = prefix.chars().count() + 1;
        let line_end = text.get(start..).and_then(|rest| rest.find('\n')).map_or(text.len(), |at| start + at);
        let skipped = prefix.chars().count().saturating_sub(EXCERPT / 2);
        let excerpt: String = text
            .get(line_start..line_end)
            .unwrap_or_default()
            .chars()
            .skip(skipped)
            .take(EXCERPT)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let indent = prefix.chars().count() - skipped;
        let fault = text.get(start..end.min(line_end)).unwrap_or_default().chars().count();
        let width = fault.min(excerpt.chars().count().saturating_sub(indent)).max(1);
        Self(Box::new(Inner {
            message,
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
            span,
            hint: None,
            excerpt,
            indent,
            width,
        }))
    }

    pub(crate) fn unexpected(text: &str, span: Span, expected: Option<&str>) -> Self {
        let token = text.get(span.start as usize..span.end as usize).unwrap_or_default();
        let quoted = if token.is_empty() { "\"<EOF>\"".to_owned() } else { quote(token) };
        let message = match expected {
            Some(expected) => format!("unexpected token {quoted} (expected {expected})"),
            None => format!("unexpected token {quoted}"),
        };
        Self::new(text, span, message)
    }

    /// The same with what the author may have meant.
    #[must_use]
    pub fn with_hint(mut self, hint: Option<String>) -> Self {
        self.0.hint = hint;
        self
    }

    /// What is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The line, from 1.
    pub fn line(&self) -> u32 {
        self.0.line
    }

    /// The column in characters, from 1.
    pub fn column(&self) -> u32 {
        self.0.column
    }

    /// The bytes at fault; empty at the end of the text.
    pub fn span(&self) -> Span {
        self.0.span
    }

    /// What the author may have meant.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The message, the line at fault with a caret beneath, and the hint.
    pub fn render(&self) -> String {
        let number = self.0.line.to_string();
        let gutter = " ".repeat(number.len());
        let mut out = format!(
            "{self}\n{gutter} |\n{number} | {}\n{gutter} | {}{}",
            self.0.excerpt.trim_end(),
            " ".repeat(self.0.indent),
            "^".repeat(self.0.width)
        );
        if let Some(hint) = &self.0.hint {
            out.push_str("\nhint: ");
            out.push_str(hint);
        }
        out
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.0.line, self.0.column, self.0.message)
    }
}

impl fmt::Debug for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for SyntaxError {}

/// The closest of `candidates` to `word`, when it is close enough to be a slip of the finger.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(64).map(|c| c.to_ascii_lowercase()).collect();
    let allowed = match word.len() {
        0..=1 => return None,
        2..=4 => 1,
        _ => 2,
    };
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let other: Vec<char> = candidate.chars().take(66).map(|c| c.to_ascii_lowercase()).collect();
        if other.len().abs_diff(word.len()) > allowed {
            continue;
        }
        let distance = edits(&word, &other);
        if distance <= allowed && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut a_previous = None;
    for (row, &from) in a.iter().enumerate() {
        let mut current = vec![row + 1];
        let mut b_previous = None;
        for (column, &to) in b.iter().enumerate() {
            let get = |line: &[usize], at: usize| line.get(at).copied().unwrap_or(usize::MAX / 2);
            let mut least = get(&last, column) + usize::from(from != to);
            least = least.min(get(&last, column + 1) + 1).min(get(&current, column) + 1);
            if a_previous == Some(to) && b_previous == Some(from) && column > 0 {
                least = least.min(get(&before_last, column - 1) + 1);
            }
            current.push(least);
            b_previous = Some(to);
        }
        before_last = std::mem::replace(&mut last, current);
        a_previous = Some(from);
    }
    last.last().copied().unwrap_or(0)
}

fn quote(token: &str) -> String {
    let mut out = String::from("\"");
    for (count, c) in token.chars().enumerate() {
        if count == QUOTED {
            out.push('…');
            break;
        }
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_forgives_one_slip_in_short_words_and_two_in_long_ones() {
        let keywords = ["SELECT", "FROM", "WHERE", "LIMIT"];
        for (word, expected) in [
            ("FRO", Some("FROM")),
            ("form", Some("FROM")),
            ("SELCT", Some("SELECT")),
            ("slecet", Some("SELECT")),
            ("WHRE", Some("WHERE")),
            ("x", None),
            ("foobar", None),
            ("fr", None),
        ] {
            assert_eq!(nearest(word, keywords), expected, "{word}");
        }
    }

    #[test]
    fn places_count_characters_and_survive_any_span() {
        let text = "é\n  ñx";
        let error = SyntaxError::new(text, Span { start: 7, end: 8 }, "bad".to_owned());
        assert_eq!((error.line(), error.column()), (2, 4));
        assert_eq!(error.render(), "2:4: bad\n  |\n2 |   ñx\n  |    ^");
        for start in 0..12 {
            for end in 0..12 {
                SyntaxError::unexpected(text, Span { start, end }, None).render();
            }
        }
    }
}
