//! The text of rules: words written short, and where each rule of a text begins and ends.

#![cfg_attr(not(feature = "yara"), allow(dead_code, reason = "used by the engine only; tested always"))]

/// The rules that `text` means: itself, or a rule for each line of the form `wide nocase ascii:word,word`.
pub(super) fn expand(text: &str) -> String {
    let short = |line: &str| {
        let (modifiers, words) = line.split_once(':')?;
        let modifiers: Vec<&str> = modifiers.split([' ', ',']).filter(|modifier| !modifier.is_empty()).collect();
        let known = |modifier: &&str| matches!(*modifier, "wide" | "ascii" | "nocase" | "fullword" | "xor");
        if modifiers.is_empty() || !modifiers.iter().all(known) || words.trim().is_empty() {
            return None;
        }
        Some((modifiers.join(" "), words.to_owned()))
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let Some(words) = lines.iter().map(|line| short(line)).collect::<Option<Vec<_>>>().filter(|words| !words.is_empty()) else {
        return text.to_owned();
    };
    let mut strings = String::new();
    let mut count = 0_usize;
    for (modifiers, words) in words {
        for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let escaped = word.replace('\\', "\\\\").replace('"', "\\\"");
            strings.push_str(&format!(" $a{count} = \"{escaped}\" {modifiers}\n"));
            count = count.saturating_add(1);
        }
    }
    format!("rule X {{\nstrings:\n{strings}condition:\n any of them\n}}\n")
}

/// A piece of a text with rules.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// `import "…"` and the like, up to the first rule or between rules.
    Between(&'a str),
    /// One rule from its first word to its last brace.
    Rule(&'a str),
}

/// Cuts a text into rules. What is not closed is one last piece.
pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let mut done = 0;
    let mut depth = 0_usize;
    let mut start = None;
    let mut lexer = Lexer { bytes: text.as_bytes(), at: 0, after_value: false };
    while let Some((token, from)) = lexer.next() {
        match token {
            Token::Word("rule" | "private" | "global") if depth == 0 && start.is_none() => start = Some(from),
            Token::Open => depth = depth.saturating_add(1),
            Token::Close => {
                depth = depth.saturating_sub(1);
                if depth == 0
                    && let Some(begin) = start.take()
                {
                    if let Some(between) = text.get(done..begin).filter(|between| !between.trim().is_empty()) {
                        found.push(Piece::Between(between));
                    }
                    found.extend(text.get(begin..lexer.at).map(Piece::Rule));
                    done = lexer.at;
                }
            }
            _ => {}
        }
    }
    if let Some(rest) = text.get(done..).filter(|rest| !rest.trim().is_empty()) {
        found.push(if start.is_some() { Piece::Rule(rest) } else { Piece::Between(rest) });
    }
    found
}

/// The rule without its `meta:` section.
pub(super) fn without_meta(rule: &str) -> String {
    let mut lexer = Lexer { bytes: rule.as_bytes(), at: 0, after_value: false };
    let mut from = None;
    let mut before: Option<(&str, usize)> = None;
    while let Some((token, at)) = lexer.next() {
        match token {
            Token::Word(word) => before = Some((word, at)),
            Token::Colon => match (before.take(), from) {
                (Some(("meta", at)), None) => from = Some(at),
                (Some(("strings" | "condition" | "variables", at)), Some(from)) => {
                    return format!("{}{}", rule.get(..from).unwrap_or_default(), rule.get(at..).unwrap_or_default());
                }
                _ => {}
            },
            _ => before = None,
        }
    }
    rule.to_owned()
}

/// The name of a rule.
pub(super) fn name(rule: &str) -> &str {
    let mut lexer = Lexer { bytes: rule.as_bytes(), at: 0, after_value: false };
    let mut named = false;
    while let Some((token, _)) = lexer.next() {
        match token {
            Token::Word("rule") => named = true,
            Token::Word(name) if named => return name,
            _ => {}
        }
    }
    ""
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Open,
    Close,
    Colon,
    Other,
}

/// The tokens that matter: comments, strings and expressions are passed over.
struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    /// A slash would divide, not open an expression.
    after_value: bool,
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at.saturating_add(ahead)).copied()
    }

    fn skip(&mut self, count: usize) {
        self.at = self.at.saturating_add(count);
    }

    /// Goes behind the next `end`.
    fn skip_past(&mut self, end: &[u8]) {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let found = rest.windows(end.len()).position(|window| window == end);
        self.at = found.map_or(self.bytes.len(), |found| self.at.saturating_add(found).saturating_add(end.len()));
    }

    /// Goes behind the closing `quote`, on the same line.
    fn skip_quoted(&mut self, quote: u8) {
        self.skip(1);
        while let Some(byte) = self.peek(0) {
            self.skip(if byte == b'\\' { 2 } else { 1 });
            if byte == quote || byte == b'\n' {
                break;
            }
        }
    }

    fn next(&mut self) -> Option<(Token<'a>, usize)> {
        loop {
            let byte = self.peek(0)?;
            let from = self.at;
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => self.skip(1),
                b'/' if self.peek(1) == Some(b'/') => self.skip_past(b"\n"),
                b'/' if self.peek(1) == Some(b'*') => self.skip_past(b"*/"),
                b'"' => {
                    self.skip_quoted(b'"');
                    self.after_value = true;
                    return Some((Token::Other, from));
                }
                b'/' if !self.after_value => {
                    self.skip_quoted(b'/');
                    self.after_value = true;
                    return Some((Token::Other, from));
                }
                b'_' | b'$' | b'#' | b'@' | b'!' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                    self.skip(1);
                    while self.peek(0).is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                        self.skip(1);
                    }
                    self.after_value = true;
                    let word = self.bytes.get(from..self.at).and_then(|word| std::str::from_utf8(word).ok()).unwrap_or_default();
                    if word == "matches" {
                        self.after_value = false;
                    }
                    return Some((Token::Word(word), from));
                }
                _ => {
                    self.skip(1);
                    self.after_value = matches!(byte, b')' | b']');
                    let token = match byte {
                        b'{' => Token::Open,
                        b'}' => Token::Close,
                        b':' => Token::Colon,
                        _ => Token::Other,
                    };
                    return Some((token, from));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_a_rule() {
        assert_eq!(
            expand("wide nocase:one, tw\"o"),
            "rule X {\nstrings:\n $a0 = \"one\" wide nocase\n $a1 = \"tw\\\"o\" wide nocase\ncondition:\n any of them\n}\n"
        );
        let rule = "rule A { condition: true }";
        assert_eq!(expand(rule), rule);
    }

    #[test]
    fn rules_are_cut_where_they_end() {
        let text = "import \"pe\"\n// rule no {\nprivate rule A : tag { strings: $a = { 4D 5A } $b = \"}\" $c = /a\\/}{2}/ condition: $a }\n/* } */ rule B { condition: 6 / 2 == 3 } rule C {";
        assert_eq!(
            pieces(text),
            [
                Piece::Between("import \"pe\"\n// rule no {\n"),
                Piece::Rule("private rule A : tag { strings: $a = { 4D 5A } $b = \"}\" $c = /a\\/}{2}/ condition: $a }"),
                Piece::Between("\n/* } */ "),
                Piece::Rule("rule B { condition: 6 / 2 == 3 }"),
                Piece::Rule(" rule C {"),
            ]
        );
        assert_eq!(name("private rule A : tag {"), "A");
    }

    #[test]
    fn metadata_can_be_left_out() {
        assert_eq!(
            without_meta("rule A { meta: a = \"strings:\" b = 1 strings: $a = \"x\" condition: $a }"),
            "rule A { strings: $a = \"x\" condition: $a }"
        );
        assert_eq!(without_meta("rule A { condition: true }"), "rule A { condition: true }");
    }
}
