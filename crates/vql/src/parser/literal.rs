//! The values of literals: numbers, string escapes, names in backticks.

use crate::ast::Number;

/// The value of a number token. `None` when no number type holds it.
pub(super) fn number(text: &str) -> Option<Number> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text),
    };
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return i64::from_str_radix(&format!("{sign}{hex}"), 16).ok().map(Number::Int);
    }
    let radix = if digits.len() > 1 && digits.starts_with('0') { 8 } else { 10 };
    if digits.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(value) = i64::from_str_radix(&format!("{sign}{digits}"), radix)
    {
        return Some(Number::Int(value));
    }
    text.parse::<f64>().ok().filter(|value| value.is_finite()).map(Number::Float)
}

/// The bytes of a quoted string, its quotes already removed.
pub(super) fn string(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte != b'\\' {
            out.push(byte);
            at += 1;
            continue;
        }
        match bytes.get(at + 1) {
            Some(b'n') => out.push(b'\n'),
            Some(b'r') => out.push(b'\r'),
            Some(b't') => out.push(b'\t'),
            Some(b'x' | b'X') => {
                // A cut escape drops the rest of the string; a wrong one stands for itself.
                let Some(pair) = text.as_bytes().get(at + 2..at + 4) else { return out };
                match hex_pair(pair) {
                    Some(value) => {
                        out.push(value);
                        at += 4;
                    }
                    None => {
                        out.extend_from_slice(bytes.get(at..at + 2).unwrap_or_default());
                        at += 2;
                    }
                }
                continue;
            }
            Some(&other) => out.push(other),
            None => return out,
        }
        at += 2;
    }
    out
}

/// The name between backticks. Escapes are those of a character literal; from a wrong one on, the text stands for itself.
pub(super) fn name(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (plain, escape) = rest.split_at(at);
        out.push_str(plain);
        let Some((value, length)) = escaped_char(escape) else {
            out.push_str(escape);
            return out;
        };
        out.push(value);
        rest = escape.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// The character that an escape at the start of `text` stands for, and the length of the escape.
fn escaped_char(text: &str) -> Option<(char, usize)> {
    let kind = *text.as_bytes().get(1)?;
    let simple = |c| Some((c, 2));
    match kind {
        b'a' => simple('\u{7}'),
        b'b' => simple('\u{8}'),
        b'f' => simple('\u{c}'),
        b'n' => simple('\n'),
        b'r' => simple('\r'),
        b't' => simple('\t'),
        b'v' => simple('\u{b}'),
        b'\\' | b'\'' | b'"' => simple(char::from(kind)),
        b'x' => coded(text, 2, 2, 16),
        b'u' => coded(text, 2, 4, 16),
        b'U' => coded(text, 2, 8, 16),
        b'0'..=b'7' => coded(text, 1, 3, 8).filter(|(c, _)| u32::from(*c) < 256),
        _ => None,
    }
}

fn coded(text: &str, start: usize, length: usize, radix: u32) -> Option<(char, usize)> {
    let digits = text.get(start..start + length)?;
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    char::from_u32(u32::from_str_radix(digits, radix).ok()?).map(|c| (c, start + length))
}

fn hex_pair(pair: &[u8]) -> Option<u8> {
    let [high, low] = pair else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_detect_their_base() {
        for (text, expected) in [
            ("0", Some(Number::Int(0))),
            ("0x10", Some(Number::Int(16))),
            ("-0xfF", Some(Number::Int(-255))),
            ("070", Some(Number::Int(56))),
            ("-010", Some(Number::Int(-8))),
            ("09", Some(Number::Float(9.0))),
            ("1e5", Some(Number::Float(100_000.0))),
            (".5", Some(Number::Float(0.5))),
            ("-.5", Some(Number::Float(-0.5))),
            ("9223372036854775807", Some(Number::Int(i64::MAX))),
            ("-9223372036854775808", Some(Number::Int(i64::MIN))),
            ("9223372036854775808", Some(Number::Float(9_223_372_036_854_775_808.0))),
            ("0x10000000000000000", None),
            ("1e999", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }

    #[test]
    fn string_escapes() {
        for (text, expected) in [
            (r"a\nb\rc\td", b"a\nb\rc\td".as_slice()),
            (r"\d\w\.", b"dw."),
            (r"\'\\", b"'\\"),
            (r"\x41\X42", b"AB"),
            (r"\xff", b"\xff"),
            (r"\xag", b"\\xag"),
            (r"Trailing \x1", b"Trailing "),
            (r"\é", "é".as_bytes()),
        ] {
            assert_eq!(string(text), expected, "{text}");
        }
    }

    #[test]
    fn name_escapes() {
        for (text, expected) in [
            ("Hello world", "Hello world"),
            (r"a\nb", "a\nb"),
            (r"\x41\u00e9\101", "AéA"),
            (r"C:\dir", r"C:\dir"),
            (r"ok\t\q\t", "ok\t\\q\\t"),
            (r"\777", r"\777"),
        ] {
            assert_eq!(name(text), expected, "{text}");
        }
    }
}
