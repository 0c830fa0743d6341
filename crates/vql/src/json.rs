//! JSON, byte for byte as stock peers write it (`spec/04` §9.4).

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::TimeZone;

use crate::dict::Dict;
use crate::shape::Shape;
use crate::time::Time;
use crate::value::{List, MAX_DEPTH, Text, Value};

/// Dicts nested deeper than this do not share their names with others.
const SHAPED_LEVELS: usize = 4;

/// Values that weigh more become null: parts shared over and over would make a text without end.
const MAX_WALK: u64 = 512 << 20;

/// How values become JSON.
#[derive(Debug, Clone)]
pub struct Encoder {
    zone: TimeZone,
    indent: bool,
}

impl Default for Encoder {
    /// Compact, times in UTC.
    fn default() -> Self {
        Self { zone: TimeZone::UTC, indent: false }
    }
}

/// A name before a value: `"name":`.
pub(crate) fn member_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    string(&mut out, name.as_bytes());
    out.push(b':');
    out
}

/// Compact JSON.
#[must_use]
pub fn encode(value: &Value) -> String {
    let mut out = Vec::new();
    Encoder::default().value(&mut out, value);
    String::from_utf8(out).unwrap_or_default()
}

/// JSON with an indent of one space per level, as golden outputs have it.
#[must_use]
pub fn encode_pretty(value: &Value) -> String {
    let mut out = Vec::new();
    Encoder::default().indented().value(&mut out, value);
    String::from_utf8(out).unwrap_or_default()
}

impl Encoder {
    /// Shows times in `zone`.
    #[must_use]
    pub fn in_zone(mut self, zone: TimeZone) -> Self {
        self.zone = zone;
        self
    }

    /// One space of indent per level.
    #[must_use]
    pub fn indented(mut self) -> Self {
        self.indent = true;
        self
    }

    /// Appends `row` and a newline: JSONL.
    pub fn line(&self, out: &mut Vec<u8>, row: &Dict) {
        self.dict(out, row, 0);
        out.push(b'\n');
    }

    /// Appends `value`. Queries that were not read become null.
    pub fn value(&self, out: &mut Vec<u8>, value: &Value) {
        if value.weight() > MAX_WALK {
            out.extend_from_slice(b"null");
        } else {
            self.at(out, value, 0);
        }
    }

    fn at(&self, out: &mut Vec<u8>, value: &Value, level: usize) {
        match value {
            Value::Null | Value::Query(_) | Value::Lambda(_) => out.extend_from_slice(b"null"),
            Value::Bool(true) => out.extend_from_slice(b"true"),
            Value::Bool(false) => out.extend_from_slice(b"false"),
            Value::Int(number) => integer(out, number.unsigned_abs(), *number < 0),
            Value::UInt(number) => integer(out, *number, false),
            Value::Float(number) => float(out, *number),
            Value::Str(text) => string(out, text),
            Value::Bytes(bytes) => {
                out.push(b'"');
                out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
                out.push(b'"');
            }
            Value::Time(time) => self.time(out, *time),
            Value::Dict(dict) => self.dict(out, dict, level),
            Value::List(items) => self.list(out, items, level),
            Value::Path(path) => string(out, &path.to_text()),
            Value::Lazy(lazy) => match lazy.reduce().reduced() {
                Value::Lazy(_) => out.extend_from_slice(b"null"),
                other => self.at(out, &other, level),
            },
            Value::Object(object) => match object.to_value() {
                Value::Object(_) => out.extend_from_slice(b"null"),
                other => self.at(out, &other, level),
            },
        }
    }

    fn time(&self, out: &mut Vec<u8>, time: Time) {
        match time.rfc3339(&self.zone) {
            Some(text) => {
                out.push(b'"');
                out.extend_from_slice(text.as_bytes());
                out.push(b'"');
            }
            None => out.extend_from_slice(b"null"),
        }
    }

    fn newline(&self, out: &mut Vec<u8>, level: usize) {
        if self.indent {
            out.push(b'\n');
            out.resize(out.len().saturating_add(level), b' ');
        }
    }

    fn dict(&self, out: &mut Vec<u8>, dict: &Dict, level: usize) {
        out.push(b'{');
        let inner = level.saturating_add(1);
        let mut written = dict.shape().map(|shape| shape.written().iter());
        for (at, (key, value)) in dict.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            self.newline(out, inner);
            match written.as_mut().and_then(Iterator::next) {
                Some(name) => out.extend_from_slice(name),
                None => {
                    string(out, key.as_bytes());
                    out.push(b':');
                }
            }
            if self.indent {
                out.push(b' ');
            }
            self.at(out, value, inner);
        }
        if !dict.is_empty() {
            self.newline(out, level);
        }
        out.push(b'}');
    }

    fn list(&self, out: &mut Vec<u8>, items: &[Value], level: usize) {
        out.push(b'[');
        let inner = level.saturating_add(1);
        for (at, value) in items.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            self.newline(out, inner);
            self.at(out, value, inner);
        }
        if !items.is_empty() {
            self.newline(out, level);
        }
        out.push(b']');
    }
}

fn integer(out: &mut Vec<u8>, number: u64, negative: bool) {
    let mut digits = [0_u8; 20];
    let mut rest = number;
    let mut used = 0_usize;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        used += 1;
        if rest == 0 {
            break;
        }
    }
    if negative {
        out.push(b'-');
    }
    out.extend_from_slice(digits.get(20 - used..).unwrap_or_default());
}

fn float(out: &mut Vec<u8>, number: f64) {
    if !number.is_finite() {
        out.extend_from_slice(b"null");
        return;
    }
    let size = number.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{number:e}");
        match text.split_once('e') {
            Some((mantissa, exponent)) if !exponent.starts_with('-') => {
                out.extend_from_slice(mantissa.as_bytes());
                out.extend_from_slice(b"e+");
                out.extend_from_slice(exponent.as_bytes());
            }
            _ => out.extend_from_slice(text.as_bytes()),
        }
    } else {
        out.extend_from_slice(format!("{number}").as_bytes());
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn hex_digit(value: u32) -> u8 {
    HEX.get((value & 15) as usize).copied().unwrap_or(b'0')
}

fn escape(out: &mut Vec<u8>, code: u32) {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(hex_digit(code >> shift));
    }
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for chunk in text.utf8_chunks() {
        valid(out, chunk.valid());
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
    out.push(b'"');
}

/// Bytes of UTF-8 that are written as they are; 0xe2 may begin a character that is not.
#[allow(clippy::indexing_slicing, reason = "the compiler evaluates it, and would not go beyond the end")]
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut at = 0;
    while at < 256 {
        plain[at] = at >= 0x20 && !matches!(at as u8, b'"' | b'\\' | b'<' | b'>' | b'&' | 0xe2);
        at += 1;
    }
    plain
};

fn valid(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    loop {
        let clean = rest.iter().position(|byte| !PLAIN.get(usize::from(*byte)).copied().unwrap_or(false)).unwrap_or(rest.len());
        let (plain, tail) = rest.split_at_checked(clean).unwrap_or((rest, &[]));
        out.extend_from_slice(plain);
        let Some((byte, after)) = tail.split_first() else { return };
        rest = after;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0xe2 => match after {
                [0x80, last @ (0xa8 | 0xa9), tail @ ..] => {
                    escape(out, 0x2000 | u32::from(*last & 0x3f));
                    rest = tail;
                }
                _ => out.push(0xe2),
            },
            other => escape(out, u32::from(*other)),
        }
    }
}

/// Why a text is not JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid JSON at byte {at}: {what}")]
pub struct JsonError {
    /// Offset in the text.
    pub at: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// Reads one JSON value: integers as unsigned if they fit, else signed, else floats; texts that are exactly how a time is written, as times.
///
/// # Errors
/// The text is not JSON, or nests deeper than values may.
pub fn decode(text: &[u8]) -> Result<Value, JsonError> {
    Decoder { text, at: 0, reader: None }.whole()
}

/// Reads one row of JSONL: a dict, or anything else as `_value`.
///
/// # Errors
/// As [`decode`].
pub fn decode_row(line: &[u8]) -> Result<Dict, JsonError> {
    Ok(match decode(line)? {
        Value::Dict(dict) => Arc::try_unwrap(dict).unwrap_or_else(|dict| Dict::clone(&dict)),
        other => Dict::new().with("_value", other),
    })
}

/// Reads rows of JSONL one after another. Rows that name the same columns in the same order share them.
#[derive(Default)]
pub struct RowReader {
    /// By depth: the shape of the last dict there.
    shapes: [Option<Arc<Shape>>; SHAPED_LEVELS],
    /// How many were made. Where each row looks different, that is not worth it.
    made: u32,
}

impl RowReader {
    /// One row: a dict, or anything else as `_value`.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn row(&mut self, line: &[u8]) -> Result<Arc<Dict>, JsonError> {
        Ok(match (Decoder { text: line, at: 0, reader: Some(self) }).whole()? {
            Value::Dict(dict) => dict,
            other => Arc::new(Dict::new().with("_value", other)),
        })
    }
}

impl RowReader {
    /// Where the shape of dicts at `level` is kept, as long as keeping it pays.
    fn slot(&mut self, level: usize) -> Option<&mut Option<Arc<Shape>>> {
        const MOST: u32 = 256;
        self.made = self.made.saturating_add(1);
        self.shapes.get_mut(level).filter(|_| self.made <= MOST)
    }
}

struct Decoder<'a> {
    text: &'a [u8],
    at: usize,
    reader: Option<&'a mut RowReader>,
}

impl<'a> Decoder<'a> {
    fn whole(mut self) -> Result<Value, JsonError> {
        let value = self.value(0)?;
        self.space();
        if self.at < self.text.len() { Err(self.error("more after the value")) } else { Ok(value) }
    }

    fn error(&self, what: &'static str) -> JsonError {
        JsonError { at: self.at, what }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.at += 1;
        }
        found
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, JsonError> {
        if self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word.as_bytes())) {
            self.at += word.len();
            return Ok(value);
        }
        Err(self.error("unknown word"))
    }

    fn value(&mut self, depth: u16) -> Result<Value, JsonError> {
        self.space();
        if depth >= MAX_DEPTH {
            return Err(self.error("nested too deep"));
        }
        match self.peek() {
            None => Err(self.error("ends early")),
            Some(b'n') => self.word("null", Value::Null),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'"') => self.string().map(text_or_time),
            Some(b'{') => self.dict(depth),
            Some(b'[') => self.list(depth),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => Err(self.error("no value begins so")),
        }
    }

    fn dict(&mut self, depth: u16) -> Result<Value, JsonError> {
        self.at += 1;
        self.space();
        if self.take(b'}') {
            return Ok(Dict::new().into());
        }
        let level = usize::from(depth);
        let shape = self.reader.as_ref().and_then(|reader| reader.shapes.get(level)?.clone());
        let mut values = Vec::with_capacity(shape.as_ref().map_or(0, |shape| shape.len()));
        // As long as the names are those of the dict before, only values are kept.
        let mut other: Option<Dict> = None;
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.error("a key must be a string"));
            }
            let key = self.string()?;
            self.space();
            if !self.take(b':') {
                return Err(self.error("a colon must follow the key"));
            }
            let value = self.value(depth + 1)?;
            match &mut other {
                None if shape.as_ref().and_then(|shape| shape.keys().get(values.len())).is_some_and(|known| known.as_bytes() == &*key) => {
                    values.push(value);
                }
                _ => {
                    let dict = other.get_or_insert_with(|| {
                        shape.iter().flat_map(|shape| shape.keys()).cloned().zip(std::mem::take(&mut values)).collect()
                    });
                    dict.set(String::from_utf8_lossy(&key).into_owned(), value);
                }
            }
            self.space();
            if self.take(b'}') {
                break;
            }
            if !self.take(b',') {
                return Err(self.error("a comma or } must follow"));
            }
        }
        if let Some(shape) = shape.as_ref().filter(|shape| other.is_none() && values.len() == shape.len()) {
            return Ok(Dict::of_shape(shape, values).into());
        }
        let dict = other.unwrap_or_else(|| shape.iter().flat_map(|shape| shape.keys()).cloned().zip(values).collect());
        let Some(slot) = self.reader.as_mut().and_then(|reader| reader.slot(level)) else { return Ok(dict.into()) };
        let shape = Shape::new(dict.keys());
        *slot = Some(shape.clone());
        Ok(Dict::of_shape(&shape, dict.into_iter().map(|(_, value)| value).collect()).into())
    }

    fn list(&mut self, depth: u16) -> Result<Value, JsonError> {
        self.at += 1;
        let mut list = List::new();
        self.space();
        if self.take(b']') {
            return Ok(list.into());
        }
        loop {
            list.push(self.value(depth + 1)?);
            self.space();
            if self.take(b']') {
                return Ok(list.into());
            }
            if !self.take(b',') {
                return Err(self.error("a comma or ] must follow"));
            }
        }
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let text = self.text.get(start..self.at).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
        if !number_is_well_formed(text) {
            return Err(JsonError { at: start, what: "not a number" });
        }
        if !text.contains(['.', 'e', 'E']) && text != "-0" {
            if let Ok(number) = text.parse() {
                return Ok(Value::UInt(number));
            }
            if let Ok(number) = text.parse() {
                return Ok(Value::Int(number));
            }
        }
        text.parse().map(Value::Float).map_err(|_| JsonError { at: start, what: "not a number" })
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.get(self.at..self.at.saturating_add(4)).ok_or_else(|| self.error("ends early"))?;
        let mut code = 0_u32;
        for digit in digits {
            code = code << 4 | (*digit as char).to_digit(16).ok_or_else(|| self.error("not a hex digit"))?;
        }
        self.at += 4;
        Ok(code)
    }

    fn string(&mut self) -> Result<Cow<'a, [u8]>, JsonError> {
        self.at += 1;
        let text = self.text;
        let rest = text.get(self.at..).unwrap_or_default();
        let clean = rest.iter().position(|byte| matches!(byte, b'"' | b'\\') || *byte < 0x20);
        if let Some(clean) = clean.filter(|clean| rest.get(*clean) == Some(&b'"')) {
            self.at += clean + 1;
            return Ok(Cow::Borrowed(rest.get(..clean).unwrap_or_default()));
        }
        self.escaped_string().map(Cow::Owned)
    }

    fn escaped_string(&mut self) -> Result<Vec<u8>, JsonError> {
        let mut out = Vec::new();
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let clean = rest
                .iter()
                .position(|byte| matches!(byte, b'"' | b'\\') || *byte < 0x20)
                .ok_or_else(|| self.error("string without end"))?;
            out.extend_from_slice(rest.get(..clean).unwrap_or_default());
            self.at += clean;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.escaped(&mut out)?;
                }
                _ => return Err(self.error("control character in a string")),
            }
        }
    }

    fn escaped(&mut self, out: &mut Vec<u8>) -> Result<(), JsonError> {
        let mark = self.peek().ok_or_else(|| self.error("ends early"))?;
        self.at += 1;
        let byte = match mark {
            b'"' | b'\\' | b'/' => mark,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let first = self.hex4()?;
                let code = if (0xd800..0xdc00).contains(&first) && self.text.get(self.at..).is_some_and(|rest| rest.starts_with(b"\\u")) {
                    let back = self.at;
                    self.at += 2;
                    let second = self.hex4()?;
                    if (0xdc00..0xe000).contains(&second) {
                        0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
                    } else {
                        self.at = back;
                        first
                    }
                } else {
                    first
                };
                let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.error("unknown escape")),
        };
        out.push(byte);
        Ok(())
    }
}

fn number_is_well_formed(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = digits.split_once(['e', 'E']).map_or((digits, None), |(mantissa, exponent)| (mantissa, Some(exponent)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(whole, fraction)| (whole, Some(fraction)));
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all_digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(all_digits)
        && exponent.is_none_or(|exponent| all_digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

/// Texts that look like times become times, but only where writing the time gives the same text back.
fn text_or_time(text: Cow<'_, [u8]>) -> Value {
    if text.len() >= 20
        && text.get(10) == Some(&b'T')
        && let Ok(utf8) = std::str::from_utf8(&text)
        && let Some(time) = Time::parse_rfc3339(utf8)
        && time.rfc3339(&TimeZone::UTC).as_deref() == Some(utf8)
    {
        return Value::Time(time);
    }
    Value::Str(Text::from(&*text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_written_as_stock_peers_write_it() {
        for (value, expected) in [
            (Value::Null, "null"),
            (Value::Int(i64::MIN), "-9223372036854775808"),
            (Value::UInt(u64::MAX), "18446744073709551615"),
            (Value::Int(0), "0"),
            (Value::Float(2.0), "2"),
            (Value::Float(1.0 / 3.0), "0.3333333333333333"),
            (Value::Float(1e21), "1e+21"),
            (Value::Float(1e20), "100000000000000000000"),
            (Value::Float(1.5e-9), "1.5e-9"),
            (Value::Float(1e-6), "0.000001"),
            (Value::Float(f64::NAN), "null"),
            (Value::from("a\"\\\n\r\t\u{1}<>&\u{2028}é"), r#""a\"\\\n\r\t\u0001\u003c\u003e\u0026\u2028é""#),
            (Value::str(&b"a\xff\xfeb"[..]), r#""a\ufffd\ufffdb""#),
            (Value::Bytes(b"\x00\xff"[..].into()), r#""AP8=""#),
            (Value::Time(Time::ZERO), r#""0001-01-01T00:00:00Z""#),
            (Value::Time(Time::from_unix(1 << 40)), "null"),
            (Value::from(Dict::new().with("b", 1).with("a", Value::list([1, 2]))), r#"{"b":1,"a":[1,2]}"#),
            (Value::list(Vec::<Value>::new()), "[]"),
            (Value::opaque(), "null"),
        ] {
            assert_eq!(encode(&value), expected);
        }
    }

    #[test]
    fn pretty_has_one_space_per_level() {
        let value = Value::list([Dict::new().with("A", Value::list([1])).with("B", Dict::new())]);
        assert_eq!(encode_pretty(&value), "[\n {\n  \"A\": [\n   1\n  ],\n  \"B\": {}\n }\n]");
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        for text in [
            r#"{"a":[1,-2,1.5,null,true,"x\u0000"],"b":{}}"#,
            r#""2020-05-31T14:48:05Z""#,
            r#""2020-05-31T14:48:05.000Z""#,
            "18446744073709551615",
        ] {
            assert_eq!(encode(&decode(text.as_bytes()).unwrap()), text);
        }
        assert!(matches!(decode(br#""2020-05-31T14:48:05Z""#), Ok(Value::Time(_))));
        assert!(matches!(decode(br#""2020-05-31T14:48:05.000Z""#), Ok(Value::Str(_))));
        assert!(matches!(decode(b"7"), Ok(Value::UInt(7))));
        assert!(matches!(decode(b"-7"), Ok(Value::Int(-7))));
        assert_eq!(decode(br#""\ud83d\ude00\ud800""#).unwrap().as_str(), Some("😀\u{fffd}"));
    }

    #[test]
    fn rows_are_the_same_whatever_came_before() {
        let lines = [
            r#"{"a":1,"b":{"c":[{"x":1},{"x":2,"y":3},{}]}}"#,
            r#"{"a":2,"b":{"c":[]}}"#,
            r#"{"b":2,"a":1}"#,
            r#"{"a":2}"#,
            r#"{"a":2,"b":1,"z":{"q":"\n"}}"#,
            r#"{"a":1,"a":2,"b":3}"#,
            r#"{"a":1,"b":2,"a":3}"#,
            "5",
            "{}",
        ];
        let mut reader = RowReader::default();
        for _ in 0..100 {
            for line in lines {
                let alone = Value::from(decode_row(line.as_bytes()).unwrap());
                assert_eq!(encode(&Value::Dict(reader.row(line.as_bytes()).unwrap())), encode(&alone), "{line}");
            }
        }
    }

    #[test]
    fn bad_json_is_refused_without_harm() {
        for bad in ["", "{", "[1,]", "{\"a\"}", "01", "1.", "nul", "\"", "\"\\x\"", "1 2", "{\"a\":1,}", "\"a\nb\""] {
            assert!(decode(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(decode("[".repeat(100_000).as_bytes()).is_err());
    }
}
