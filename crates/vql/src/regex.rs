//! Regular expressions with the syntax and meaning of Go's, on an engine that is linear in the text.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use regex_automata::meta;
use regex_automata::util::captures::Captures;
use regex_automata::util::syntax;
use regex_automata::{Input, Span};

use crate::value::Text;

mod dialect;

/// The longest pattern, in bytes.
const MAX_PATTERN: usize = 1 << 20;
/// The largest compiled form, in bytes.
const MAX_PROGRAM: usize = 10 << 20;

/// Why a pattern is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error parsing regexp: {0}")]
pub struct RegexError(String);

impl RegexError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// A compiled pattern.
#[derive(Debug)]
pub struct Regex {
    text: meta::Regex,
    /// For haystacks that are not UTF-8, where each bad byte counts as one character.
    bytes: OnceLock<Option<meta::Regex>>,
    pattern: dialect::Pattern,
    names: Vec<Option<Arc<str>>>,
    by_name: HashMap<Arc<str>, usize>,
}

fn compile(pattern: &str) -> Result<meta::Regex, RegexError> {
    meta::Regex::builder()
        .configure(meta::Config::new().utf8_empty(false).nfa_size_limit(Some(MAX_PROGRAM)).hybrid_cache_capacity(2 << 20))
        .syntax(syntax::Config::new().utf8(false).nest_limit(200))
        .build(pattern)
        .map_err(|error| match error.syntax_error() {
            Some(syntax) => RegexError::new(syntax.to_string().lines().last().unwrap_or("bad syntax").trim_start_matches("error: ")),
            None if error.size_limit().is_some() => RegexError::new("expression nests or repeats too much"),
            None => RegexError::new("bad syntax"),
        })
}

impl Regex {
    /// Compiles `pattern` with `(?i)` before it, as the language does everywhere.
    ///
    /// # Errors
    /// The pattern is none, or too large.
    pub fn ignoring_case(pattern: &[u8]) -> Result<Self, RegexError> {
        Self::compile(pattern, true)
    }

    /// Compiles `pattern` as it is.
    ///
    /// # Errors
    /// The pattern is none, or too large.
    pub fn exact(pattern: &[u8]) -> Result<Self, RegexError> {
        Self::compile(pattern, false)
    }

    fn compile(pattern: &[u8], fold_case: bool) -> Result<Self, RegexError> {
        if pattern.len() > MAX_PATTERN {
            return Err(RegexError::new("expression too long"));
        }
        let pattern = std::str::from_utf8(pattern).map_err(|_| RegexError::new("invalid UTF-8"))?;
        let pattern = dialect::translate(pattern, fold_case).map_err(RegexError::new)?;
        let text = compile(&pattern.for_text)?;
        let names = pattern.names.clone();
        let by_name = names.iter().enumerate().filter_map(|(at, name)| Some((name.clone()?, at))).collect();
        Ok(Self { text, bytes: OnceLock::new(), pattern, names, by_name })
    }

    fn engine(&self, hay: &[u8]) -> &meta::Regex {
        if std::str::from_utf8(hay).is_ok() {
            return &self.text;
        }
        self.bytes.get_or_init(|| compile(&self.pattern.for_bytes).ok()).as_ref().unwrap_or(&self.text)
    }

    /// Whether the pattern is found in `hay`.
    #[must_use]
    pub fn is_match(&self, hay: &[u8]) -> bool {
        self.engine(hay).is_match(hay)
    }

    /// The names of the groups, the whole match first.
    #[must_use]
    pub fn group_names(&self) -> &[Option<Arc<str>>] {
        &self.names
    }

    /// The groups of the first match at or after `at`: the whole match first, `None` for groups that took no part.
    #[must_use]
    pub fn groups_at(&self, hay: &[u8], at: usize) -> Option<Vec<Option<Span>>> {
        let engine = self.engine(hay);
        let mut captures = engine.create_captures();
        groups(engine, hay, at, &mut captures)
    }

    /// The groups of all matches, one after another.
    pub fn matches<'a>(&'a self, hay: &'a [u8]) -> Matches<'a> {
        let engine = self.engine(hay);
        Matches { engine, captures: engine.create_captures(), hay, at: 0, last_end: None }
    }

    /// `hay` with each match replaced by what `replace` gives for its groups.
    pub fn replace_all(&self, hay: &[u8], mut replace: impl FnMut(&[Option<Span>], &mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::with_capacity(hay.len());
        let mut copied = 0;
        for groups in self.matches(hay) {
            let Some(Some(whole)) = groups.first().copied() else { continue };
            out.extend_from_slice(hay.get(copied..whole.start).unwrap_or_default());
            replace(&groups, &mut out);
            copied = whole.end;
        }
        out.extend_from_slice(hay.get(copied..).unwrap_or_default());
        out
    }

    /// Appends `template` with `$1`, `${1}`, `$name` and `${name}` replaced by groups, `$$` by a dollar.
    pub fn expand(&self, template: &[u8], hay: &[u8], groups: &[Option<Span>], out: &mut Vec<u8>) {
        let mut rest = template;
        while let Some(at) = rest.iter().position(|byte| *byte == b'$') {
            out.extend_from_slice(rest.get(..at).unwrap_or_default());
            let tail = rest.get(at.saturating_add(1)..).unwrap_or_default();
            let word = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
            let (name, used) = match tail.first() {
                Some(b'$') => {
                    out.push(b'$');
                    rest = tail.get(1..).unwrap_or_default();
                    continue;
                }
                Some(b'{') => {
                    let inner = tail.get(1..).unwrap_or_default();
                    let length = word(inner);
                    if length == 0 || inner.get(length) != Some(&b'}') {
                        (&[][..], 0)
                    } else {
                        (inner.get(..length).unwrap_or_default(), length.saturating_add(2))
                    }
                }
                _ => {
                    let length = word(tail);
                    (tail.get(..length).unwrap_or_default(), length)
                }
            };
            if used == 0 {
                out.push(b'$');
                rest = tail;
                continue;
            }
            let name = std::str::from_utf8(name).unwrap_or_default();
            let group = name.parse::<usize>().ok().or_else(|| self.by_name.get(name).copied());
            if let Some(Some(span)) = group.and_then(|group| groups.get(group)) {
                out.extend_from_slice(hay.get(span.range()).unwrap_or_default());
            }
            rest = tail.get(used..).unwrap_or_default();
        }
        out.extend_from_slice(rest);
    }

    /// The pieces of `hay` between matches.
    #[must_use]
    pub fn split(&self, hay: &[u8]) -> Vec<Text> {
        let mut pieces = Vec::new();
        let mut from = 0;
        for groups in self.matches(hay) {
            let Some(Some(whole)) = groups.first().copied() else { continue };
            if whole.end == 0 || (whole.is_empty() && whole.start >= hay.len()) {
                continue;
            }
            pieces.push(Text::from(hay.get(from..whole.start).unwrap_or_default()));
            from = whole.end;
        }
        pieces.push(Text::from(hay.get(from..).unwrap_or_default()));
        pieces
    }
}

fn groups(engine: &meta::Regex, hay: &[u8], at: usize, captures: &mut Captures) -> Option<Vec<Option<Span>>> {
    if at > hay.len() {
        return None;
    }
    engine.search_captures(&Input::new(hay).span(at..hay.len()), captures);
    captures.is_match().then(|| (0..captures.group_len()).map(|group| captures.get_group(group)).collect())
}

/// See [`Regex::matches`].
pub struct Matches<'a> {
    engine: &'a meta::Regex,
    captures: Captures,
    hay: &'a [u8],
    at: usize,
    last_end: Option<usize>,
}

impl Iterator for Matches<'_> {
    type Item = Vec<Option<Span>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let found = groups(self.engine, self.hay, self.at, &mut self.captures)?;
            let whole = found.first().copied().flatten()?;
            if whole.is_empty() {
                let width = self
                    .hay
                    .get(whole.end..)
                    .and_then(|rest| rest.utf8_chunks().next())
                    .map_or(1, |chunk| chunk.valid().chars().next().map_or(1, char::len_utf8));
                self.at = whole.end.saturating_add(width);
                if self.last_end == Some(whole.end) {
                    continue;
                }
            } else {
                self.at = whole.end;
            }
            self.last_end = Some(whole.end);
            return Some(found);
        }
    }
}
