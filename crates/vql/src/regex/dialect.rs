//! Go's pattern syntax, rewritten for regex-syntax: what both write alike but mean otherwise is spelled out.

use std::iter::Peekable;
use std::str::Chars;
use std::sync::Arc;

/// The most repetitions that a pattern may ask for.
const MAX_REPEAT: u32 = 1000;

/// What matches one byte of broken UTF-8.
const BAD_BYTE: &str = r"(?-u:[\x80-\xff])";

/// A rewritten pattern.
#[derive(Debug, Default)]
pub(super) struct Pattern {
    pub(super) for_text: String,
    pub(super) for_bytes: String,
    pub(super) names: Vec<Option<Arc<str>>>,
}

impl Pattern {
    fn push(&mut self, text: &str) {
        self.for_text.push_str(text);
        self.for_bytes.push_str(text);
    }

    fn literal(&mut self, c: char) {
        let text = literal(c);
        self.push(&text);
    }

    /// A class that matches more than a set of characters: broken bytes too.
    fn open_class(&mut self, class: &str) {
        self.for_text.push_str(class);
        self.for_bytes.push_str("(?:");
        self.for_bytes.push_str(class);
        self.for_bytes.push('|');
        self.for_bytes.push_str(BAD_BYTE);
        self.for_bytes.push(')');
    }
}

fn literal(c: char) -> String {
    if c.is_ascii_alphanumeric() || !c.is_ascii() { c.to_string() } else { format!("\\x{{{:x}}}", u32::from(c)) }
}

/// What stood before: decides whether a repetition may follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Atom,
    Repetition,
}

pub(super) fn translate(pattern: &str, fold_case: bool) -> Result<Pattern, String> {
    let mut out = Pattern { names: vec![None], ..Pattern::default() };
    if fold_case {
        out.push("(?i)");
    }
    let mut before = Before::Nothing;
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        before = match c {
            '*' | '+' | '?' => {
                check_repetition(before, c)?;
                out.push(c.encode_utf8(&mut [0; 4]));
                lazy(&mut rest, &mut out);
                Before::Repetition
            }
            '{' => match counted(&rest)? {
                Some((text, used)) => {
                    check_repetition(before, '{')?;
                    out.push(&text);
                    for _ in 0..used {
                        rest.next();
                    }
                    lazy(&mut rest, &mut out);
                    Before::Repetition
                }
                None => {
                    out.literal('{');
                    Before::Atom
                }
            },
            '|' => {
                out.push("|");
                Before::Nothing
            }
            ')' => {
                out.push(")");
                Before::Atom
            }
            '(' => group(&mut rest, &mut out)?,
            '[' => {
                class(&mut rest, &mut out)?;
                Before::Atom
            }
            '.' => {
                out.open_class(".");
                Before::Atom
            }
            '^' => {
                out.push("^");
                Before::Atom
            }
            '$' => {
                out.push("$");
                Before::Atom
            }
            '\\' => escape(&mut rest, &mut out, before)?,
            c => {
                out.literal(c);
                Before::Atom
            }
        };
    }
    Ok(out)
}

fn check_repetition(before: Before, operator: char) -> Result<(), String> {
    match before {
        Before::Atom => Ok(()),
        Before::Nothing => Err(format!("missing argument to repetition operator: `{operator}`")),
        Before::Repetition => Err(format!("invalid nested repetition operator: `{operator}`")),
    }
}

fn lazy(rest: &mut Peekable<Chars<'_>>, out: &mut Pattern) {
    if rest.next_if_eq(&'?').is_some() {
        out.push("?");
    }
}

/// `n}`, `n,}` or `n,m}` after a brace, and its length; `None` when the brace is only a brace.
fn counted(rest: &Peekable<Chars<'_>>) -> Result<Option<(String, usize)>, String> {
    let inner: String = rest.clone().take_while(|c| c.is_ascii_digit() || *c == ',').take(32).collect();
    if rest.clone().nth(inner.len()) != Some('}') {
        return Ok(None);
    }
    let (least, most) = inner.split_once(',').map_or((inner.as_str(), None), |(least, most)| (least, Some(most)));
    let number = |text: &str| text.parse::<u32>().ok().filter(|_| !text.is_empty() && (text == "0" || !text.starts_with('0')));
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(least) || most.is_some_and(|most| !most.is_empty() && !all_digits(most)) {
        return Ok(None);
    }
    let bad = || format!("invalid repeat count: `{{{inner}}}`");
    let low = number(least).filter(|count| *count <= MAX_REPEAT).ok_or_else(bad)?;
    if let Some(most) = most.filter(|most| !most.is_empty()) {
        let high = number(most).filter(|count| *count <= MAX_REPEAT).ok_or_else(bad)?;
        if high < low {
            return Err(bad());
        }
    }
    Ok(Some((format!("{{{inner}}}"), inner.len().saturating_add(1))))
}

fn group(rest: &mut Peekable<Chars<'_>>, out: &mut Pattern) -> Result<Before, String> {
    if rest.next_if_eq(&'?').is_none() {
        out.names.push(None);
        out.push("(");
        return Ok(Before::Nothing);
    }
    let marks: String = rest.clone().take(2).collect();
    if marks.starts_with("P<") || marks.starts_with('<') {
        if marks.starts_with('P') {
            rest.next();
        }
        rest.next();
        let mut name = String::new();
        loop {
            match rest.next() {
                Some('>') => break,
                Some(c) if c.is_ascii_alphanumeric() || c == '_' => name.push(c),
                _ => return Err("invalid named capture".to_owned()),
            }
        }
        if name.is_empty() || out.names.iter().flatten().any(|known| **known == *name) {
            return Err(format!("invalid named capture: `{name}`"));
        }
        out.names.push(Some(name.into()));
        out.push("(");
        return Ok(Before::Nothing);
    }
    let mut flags = String::from("(?");
    loop {
        match rest.next() {
            Some(c @ ('i' | 'm' | 's' | 'U' | '-')) => flags.push(c),
            Some(c @ (':' | ')')) => {
                flags.push(c);
                if flags.ends_with("-:") || flags.ends_with("-)") {
                    return Err("invalid or unsupported Perl syntax".to_owned());
                }
                if flags != "(?)" {
                    out.push(&flags);
                }
                return Ok(Before::Nothing);
            }
            _ => return Err(format!("invalid or unsupported Perl syntax: `{flags}`")),
        }
    }
}

/// `\d`, `\s`, `\w`: ASCII, as items of a class.
fn perl_class(c: char) -> Option<&'static str> {
    Some(match c.to_ascii_lowercase() {
        'd' => "0-9",
        's' => r"\t\n\f\r\x20",
        'w' => "0-9A-Za-z_",
        _ => return None,
    })
}

fn escape(rest: &mut Peekable<Chars<'_>>, out: &mut Pattern, before: Before) -> Result<Before, String> {
    let c = rest.next().ok_or("trailing backslash at end of expression")?;
    if let Some(items) = perl_class(c).filter(|_| matches!(c, 'd' | 's' | 'w' | 'D' | 'S' | 'W')) {
        if c.is_ascii_uppercase() {
            out.open_class(&format!("[^{items}]"))
        } else {
            out.push(&format!("[{items}]"))
        }
        return Ok(Before::Atom);
    }
    match c {
        'A' => out.push(r"\A"),
        'z' => out.push(r"\z"),
        'b' => out.push(r"(?-u:\b)"),
        'B' => out.push(r"(?-u:\B)"),
        'C' => out.push(r"(?s-u:.)"),
        'Q' => {
            let mut before = before;
            while let Some(c) = rest.next() {
                if c == '\\' && rest.next_if_eq(&'E').is_some() {
                    break;
                }
                out.literal(c);
                before = Before::Atom;
            }
            return Ok(before);
        }
        'E' => return Ok(before),
        'p' | 'P' => {
            let class = unicode_class(c, rest)?;
            if c == 'P' || class.starts_with(r"\P") { out.open_class(&class) } else { out.push(&class) }
        }
        c => out.literal(escaped_char(c, rest)?),
    }
    Ok(Before::Atom)
}

fn unicode_class(mark: char, rest: &mut Peekable<Chars<'_>>) -> Result<String, String> {
    let first = rest.next().ok_or("invalid character class range")?;
    if first != '{' {
        return Ok(format!("\\{mark}{{{first}}}"));
    }
    let mut name = String::new();
    loop {
        match rest.next() {
            Some('}') => break,
            Some(c) if name.len() < 64 => name.push(c),
            _ => return Err("invalid character class range".to_owned()),
        }
    }
    let (name, negated) = name.strip_prefix('^').map_or((name.as_str(), false), |name| (name, true));
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(format!("invalid character class range: `{name}`"));
    }
    let upper = (mark == 'P') != negated;
    Ok(format!("\\{}{{{name}}}", if upper { 'P' } else { 'p' }))
}

/// The character of an escape that stands for one.
fn escaped_char(c: char, rest: &mut Peekable<Chars<'_>>) -> Result<char, String> {
    let bad = || format!("invalid escape sequence: `\\{c}`");
    let code = match c {
        'a' => 7,
        'f' => 12,
        'n' => 10,
        'r' => 13,
        't' => 9,
        'v' => 11,
        '1'..='7' if !rest.peek().is_some_and(|next| matches!(next, '0'..='7')) => return Err(bad()),
        '0'..='7' => {
            let mut code = c.to_digit(8).ok_or_else(bad)?;
            for _ in 0..2 {
                let Some(digit) = rest.peek().and_then(|next| next.to_digit(8)) else { break };
                code = code.saturating_mul(8).saturating_add(digit);
                rest.next();
            }
            code
        }
        'x' => hex(rest).ok_or_else(bad)?,
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => u32::from(c),
        _ => return Err(bad()),
    };
    char::from_u32(code).ok_or_else(bad)
}

fn hex(rest: &mut Peekable<Chars<'_>>) -> Option<u32> {
    if rest.next_if_eq(&'{').is_some() {
        let mut digits = String::new();
        loop {
            match rest.next()? {
                '}' => return u32::from_str_radix(&digits, 16).ok(),
                c if c.is_ascii_hexdigit() && digits.len() < 8 => digits.push(c),
                _ => return None,
            }
        }
    }
    let high = rest.next()?.to_digit(16)?;
    let low = rest.next()?.to_digit(16)?;
    Some(high.saturating_mul(16).saturating_add(low))
}

/// One item of a class.
enum Item {
    Char(char),
    Set(String, bool),
}

fn class(rest: &mut Peekable<Chars<'_>>, out: &mut Pattern) -> Result<(), String> {
    let missing = || "missing closing ]".to_owned();
    let negated = rest.next_if_eq(&'^').is_some();
    let mut items = String::new();
    let mut takes_bad_bytes = negated;
    let mut first = true;
    loop {
        let c = rest.next().ok_or_else(missing)?;
        if c == ']' && !first {
            break;
        }
        first = false;
        match item(c, rest)? {
            Item::Set(set, open) => {
                items.push_str(&set);
                takes_bad_bytes |= open && !negated;
            }
            Item::Char(low) => {
                let mut ahead = rest.clone();
                let ranged = ahead.next() == Some('-') && ahead.next().is_some_and(|next| next != ']');
                if !ranged {
                    items.push_str(&literal(low));
                    continue;
                }
                rest.next();
                let c = rest.next().ok_or_else(missing)?;
                match item(c, rest)? {
                    Item::Char(high) if low <= high => items.push_str(&format!("{}-{}", literal(low), literal(high))),
                    _ => return Err(format!("invalid character class range: `{low}-{c}`")),
                }
            }
        }
    }
    let class = format!("[{}{items}]", if negated { "^" } else { "" });
    if takes_bad_bytes {
        out.open_class(&class)
    } else {
        out.push(&class)
    }
    Ok(())
}

const POSIX: &[&str] =
    &["alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word", "xdigit"];

fn item(c: char, rest: &mut Peekable<Chars<'_>>) -> Result<Item, String> {
    if c == '[' && rest.peek() == Some(&':') {
        let name: String = rest.clone().skip(1).take_while(|c| *c != ':' && *c != ']').take(16).collect();
        let end: String = rest.clone().skip(1).skip(name.chars().count()).take(2).collect();
        if end == ":]" {
            let plain = name.strip_prefix('^').unwrap_or(&name);
            if !POSIX.contains(&plain) {
                return Err(format!("invalid character class range: `[:{name}:]`"));
            }
            for _ in 0..name.chars().count().saturating_add(3) {
                rest.next();
            }
            return Ok(Item::Set(format!("[:{name}:]"), name.starts_with('^')));
        }
    }
    if c != '\\' {
        return Ok(Item::Char(c));
    }
    let c = rest.next().ok_or("trailing backslash at end of expression")?;
    if matches!(c, 'd' | 's' | 'w' | 'D' | 'S' | 'W')
        && let Some(items) = perl_class(c)
    {
        let negated = c.is_ascii_uppercase();
        return Ok(Item::Set(if negated { format!("[^{items}]") } else { items.to_owned() }, negated));
    }
    if matches!(c, 'p' | 'P') {
        let class = unicode_class(c, rest)?;
        let open = class.starts_with(r"\P");
        return Ok(Item::Set(class, open));
    }
    escaped_char(c, rest).map(Item::Char)
}

#[cfg(test)]
mod tests {
    use super::super::Regex;

    #[test]
    fn what_go_accepts_means_what_go_means() {
        for (pattern, hay, found) in [
            (r"\Qa.b\E+", &b"a.bb"[..], true),
            (r"\Qa.b\E", b"axb", false),
            ("a{", b"a{", true),
            ("{", b"{", true),
            ("a{,5}", b"a{,5}", true),
            ("[[a]", b"[", true),
            (r"\07", b"\x07", true),
            ("[a&&b]", b"&", true),
            ("[+--b]", b",", true),
            ("[a~~b]", b"~", true),
            (r"^\d$", "٣".as_bytes(), false),
            (r"^\w$", "é".as_bytes(), false),
            (r"^\s$", b"\x0b", false),
            (r"\bx\b", "éx".as_bytes(), true),
            ("^.$", b"\xff", true),
            ("^[^a]$", b"\xff", true),
            ("^.$", "é".as_bytes(), true),
            ("^..$", "é".as_bytes(), false),
            ("a.c", b"a\nc", false),
            ("(?s)a.c", b"a\nc", true),
            ("ABC", b"xabcx", true),
            ("(?-i)ABC", b"abc", false),
            ("[]a]", b"]", true),
            ("[a-]", b"-", true),
            (r"[\]x]", b"]", true),
            ("[[:alpha:]]", b"q", true),
            ("[[:^alpha:]]", b"q", false),
            (r"\p{Greek}", "λ".as_bytes(), true),
            (r"\p{^Greek}", "λ".as_bytes(), false),
            (r"\x{3bb}\x41", "λA".as_bytes(), true),
            ("(?P<a>x)(?<b>y)", b"xy", true),
            ("x{2,3}?y", b"xxy", true),
        ] {
            let regex = Regex::ignoring_case(pattern.as_bytes()).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert_eq!(regex.is_match(hay), found, "{pattern} in {hay:?}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for pattern in [
            "a**",
            "a*+",
            "a{1001}",
            "a{2,1}",
            "*",
            "(",
            ")",
            "[a",
            r"\8",
            r"\y",
            r"(?x)a",
            "(?P<a>x)(?P<a>y)",
            r"\",
            "[z-a]",
            "(?=a)",
            "((((a{100}){100}){100}){100})",
        ] {
            assert!(Regex::exact(pattern.as_bytes()).is_err(), "{pattern}");
        }
    }

    #[test]
    fn groups_and_templates() {
        let regex = Regex::ignoring_case(b"(?P<first>\\w+) (?P<1st>\\w+)").unwrap();
        let hay = b"hello world";
        let replaced = regex.replace_all(hay, |groups, out| regex.expand(b"$2 ${first}$$ $none!", hay, groups, out));
        assert_eq!(replaced, b"world hello$ !");
        assert_eq!(Regex::exact(b",").unwrap().split(b"a,b,,c").len(), 4);
        assert_eq!(Regex::exact(b"").unwrap().split(b"abc").len(), 3);
    }
}
