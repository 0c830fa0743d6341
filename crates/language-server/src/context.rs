//! What stands at a place in a query, and what could stand there: read from the tokens before it, so that the query need not be complete.

use std::ops::Range;

use talon_vql::{TextToken, TokenClass, tokens};

/// What a writer may be about to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A source of rows: `FROM` stands before.
    Source,
    /// The name of an argument of a call, of which some are there already.
    Argument { callee: Callee, given: Vec<String> },
    /// The rest of an artifact's name.
    Artifact,
    /// A value.
    Expression,
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Callee {
    pub(crate) name: String,
    /// It stands after `FROM`.
    pub(crate) is_source: bool,
}

/// A word in a query, and what it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    /// With the parts before it, joined by dots.
    pub(crate) path: String,
    /// The bytes of the whole path in the query.
    pub(crate) range: Range<usize>,
    pub(crate) role: Role,
}

/// What a word is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// It stands after `FROM`.
    Source,
    /// The name of an argument.
    Argument(Callee),
    /// Anything else.
    Value,
}

struct Reader<'a> {
    text: &'a str,
    tokens: Vec<TextToken>,
}

/// An open bracket.
enum Open {
    Call { callee: Callee, given: Vec<String> },
    Other,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, tokens: tokens(text) }
    }

    fn word(&self, at: usize) -> &'a str {
        let span = self.tokens.get(at).map(|token| token.span).unwrap_or_default();
        self.text.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    fn class(&self, at: usize) -> Option<TokenClass> {
        self.tokens.get(at).map(|token| token.class)
    }

    fn is_keyword(&self, at: usize, keyword: &str) -> bool {
        self.class(at) == Some(TokenClass::Keyword) && self.word(at).eq_ignore_ascii_case(keyword)
    }

    /// The first token of the dotted path that ends with token `last`.
    fn path_start(&self, last: usize) -> usize {
        let mut start = last;
        while let (Some(dot), Some(name)) = (start.checked_sub(1), start.checked_sub(2)) {
            if self.word(dot) != "." || self.class(name) != Some(TokenClass::Name) {
                break;
            }
            start = name;
        }
        start
    }

    fn path(&self, start: usize, last: usize) -> String {
        let names = (start..=last).step_by(2).map(|at| self.word(at).trim_start_matches('-').trim_matches('`'));
        names.collect::<Vec<_>>().join(".")
    }

    fn is_source(&self, start: usize) -> bool {
        start.checked_sub(1).is_some_and(|before| self.is_keyword(before, "from"))
    }

    /// The brackets that are open after the first `count` tokens.
    fn open(&self, count: usize) -> Vec<Open> {
        let mut open = Vec::new();
        for at in 0..count.min(self.tokens.len()) {
            if self.class(at) != Some(TokenClass::Mark) {
                continue;
            }
            match self.word(at) {
                "(" => open.push(self.opened(at)),
                "{" | "[" => open.push(Open::Other),
                ")" | "}" | "]" => drop(open.pop()),
                "=" => {
                    if let (Some(Open::Call { given, .. }), Some(name)) = (open.last_mut(), at.checked_sub(1))
                        && self.class(name) == Some(TokenClass::Name)
                        && name.checked_sub(1).is_some_and(|before| ["(", ","].contains(&self.word(before)))
                    {
                        given.push(self.word(name).trim_matches('`').to_owned());
                    }
                }
                _ => {}
            }
        }
        open
    }

    fn opened(&self, bracket: usize) -> Open {
        let Some(last) = bracket.checked_sub(1).filter(|last| self.class(*last) == Some(TokenClass::Name)) else { return Open::Other };
        let start = self.path_start(last);
        if start.checked_sub(1).is_some_and(|before| self.is_keyword(before, "let")) {
            return Open::Other;
        }
        Open::Call { callee: Callee { name: self.path(start, last), is_source: self.is_source(start) }, given: Vec::new() }
    }
}

/// What could stand at the end of `before`, and the part of a word that is there already.
pub(crate) fn wanted(before: &str) -> Option<(Wanted, String)> {
    let reader = Reader::new(before);
    let mut count = reader.tokens.len();
    let last = count.checked_sub(1);
    if last.is_some_and(|last| reader.class(last) == Some(TokenClass::Fault) && !reader.word(last).starts_with('`')) {
        // Inside of a string that is not closed yet.
        return None;
    }
    let touches = last.and_then(|last| reader.tokens.get(last)).is_some_and(|token| token.span.end as usize == before.len());
    let mut prefix = String::new();
    if let Some(last) = last.filter(|_| touches)
        && matches!(reader.class(last), Some(TokenClass::Name | TokenClass::Keyword | TokenClass::Fault))
    {
        prefix = reader.word(last).trim_start_matches(['-', '`']).to_owned();
        count = last;
    }
    // A path in front of the word: `Artifact.Linux.`
    if let Some(dot) = count.checked_sub(1).filter(|dot| reader.word(*dot) == ".") {
        let name = dot.checked_sub(1).filter(|name| reader.class(*name) == Some(TokenClass::Name))?;
        let start = reader.path_start(name);
        let path = reader.path(start, name);
        let of_artifact = path == "Artifact" || path.starts_with("Artifact.");
        let so_far = path.strip_prefix("Artifact").map(|rest| rest.trim_start_matches('.')).unwrap_or_default();
        let so_far = if so_far.is_empty() { prefix } else { format!("{so_far}.{prefix}") };
        return of_artifact.then_some((Wanted::Artifact, so_far));
    }
    let before_word = count.checked_sub(1);
    if before_word.is_some_and(|at| reader.is_keyword(at, "from")) {
        return Some((Wanted::Source, prefix));
    }
    if before_word.is_some_and(|at| reader.is_keyword(at, "let") || reader.is_keyword(at, "as")) {
        return None;
    }
    let starts_argument = before_word.is_some_and(|at| ["(", ","].contains(&reader.word(at)));
    match reader.open(count).pop() {
        Some(Open::Call { callee, given }) if starts_argument => Some((Wanted::Argument { callee, given }, prefix)),
        _ => Some((Wanted::Expression, prefix)),
    }
}

/// The word at a byte of a query.
pub(crate) fn word_at(query: &str, offset: usize) -> Option<Word> {
    let reader = Reader::new(query);
    let touched =
        |token: &TextToken| token.class == TokenClass::Name && (token.span.start as usize..=token.span.end as usize).contains(&offset);
    let last = reader.tokens.iter().position(touched)?;
    let start = reader.path_start(last);
    let range = reader.tokens.get(start)?.span.start as usize..reader.tokens.get(last)?.span.end as usize;
    let before = start.checked_sub(1).map(|at| reader.word(at));
    let is_argument = start == last && reader.word(last.saturating_add(1)) == "=" && matches!(before, Some("(" | ","));
    let role = match reader.open(start).pop() {
        Some(Open::Call { callee, .. }) if is_argument => Role::Argument(callee),
        _ if reader.is_source(start) => Role::Source,
        _ => Role::Value,
    };
    // The name of an artifact goes on to the right of the word that was pointed at.
    let mut end = last;
    if reader.path(start, last).starts_with("Artifact") {
        while reader.word(end.saturating_add(1)) == "." && reader.class(end.saturating_add(2)) == Some(TokenClass::Name) {
            end = end.saturating_add(2);
        }
    }
    let range = range.start..reader.tokens.get(end)?.span.end as usize;
    Some(Word { path: reader.path(start, end), range, role })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(before: &str) -> String {
        match wanted(before) {
            None => "nothing".to_owned(),
            Some((Wanted::Source, prefix)) => format!("source {prefix}"),
            Some((Wanted::Artifact, prefix)) => format!("artifact {prefix}"),
            Some((Wanted::Expression, prefix)) => format!("expression {prefix}"),
            Some((Wanted::Argument { callee, given }, prefix)) => {
                format!("argument of {}{} without {} {prefix}", callee.name, if callee.is_source { " rows" } else { "" }, given.join(","))
            }
        }
    }

    #[test]
    fn unfinished_queries_say_what_they_want() {
        for (before, expected) in [
            ("", "expression "),
            ("SELECT ", "expression "),
            ("SELECT has", "expression has"),
            ("SELECT * FROM ", "source "),
            ("SELECT * FROM gl", "source gl"),
            ("SELECT * FROM glob(", "argument of glob rows without  "),
            ("SELECT * FROM glob(globs='/', acc", "argument of glob rows without globs acc"),
            ("SELECT * FROM glob(globs=", "expression "),
            ("SELECT * FROM glob(globs=fo", "expression fo"),
            ("SELECT hash(path='x', ", "argument of hash without path "),
            ("SELECT if(condition=(1 + 2), ", "argument of if without condition "),
            ("SELECT * FROM foreach(row={ SELECT * FROM inf", "source inf"),
            ("SELECT * FROM foreach(row={ SELECT Na", "expression Na"),
            ("SELECT * FROM Artifact.", "artifact "),
            ("SELECT * FROM Artifact.Linux.S", "artifact Linux.S"),
            ("SELECT * FROM Artifact.Linux.Sys.Pslist(", "argument of Artifact.Linux.Sys.Pslist rows without  "),
            ("SELECT 'inside FROM ", "nothing"),
            ("SELECT 1 -- FROM ", "expression "),
            ("LET ", "nothing"),
            ("LET F(", "expression "),
            ("SELECT OSPath.Bas", "nothing"),
            ("))))]]] FROM ", "source "),
        ] {
            assert_eq!(shown(before).trim_end(), expected.trim_end(), "{before}");
        }
    }

    #[test]
    fn words_have_roles() {
        let query = "SELECT hash(path=OSPath).MD5 AS M FROM glob(globs='/', accessor='file') WHERE Artifact.Linux.Sys.Pslist";
        let at = |word: &str| {
            let found = word_at(query, query.find(word).unwrap() + 1).unwrap();
            (found.path, found.role)
        };
        let callee = |name: &str, is_source| Role::Argument(Callee { name: name.to_owned(), is_source });
        assert_eq!(at("hash"), ("hash".to_owned(), Role::Value));
        assert_eq!(at("path"), ("path".to_owned(), callee("hash", false)));
        assert_eq!(at("glob("), ("glob".to_owned(), Role::Source));
        assert_eq!(at("accessor"), ("accessor".to_owned(), callee("glob", true)));
        assert_eq!(at("Artifact"), ("Artifact.Linux.Sys.Pslist".to_owned(), Role::Value));
        assert_eq!(at("Sys"), ("Artifact.Linux.Sys.Pslist".to_owned(), Role::Value));
        assert_eq!(word_at(query, 9999), None);
        assert_eq!(word_at("'", 0), None);
    }
}
