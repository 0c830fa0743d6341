//! Rows that were looked at: JSON lines, each a whole object, as many and as long as was said. Looking at them takes time in proportion to their bytes, so it
//! is done once, on the thread of whoever brings them, and the type says that it was.

use bytes::Bytes;

use crate::block::{Limits, verified_bytes};
use crate::{BlockEncoding, RowBlock, StoreError};

/// Objects and lists within each other in one row. Readers of JSON commonly give up there as well.
const MAX_DEPTH: u32 = 127;

/// Rows whose claims are true.
#[derive(Debug, Clone)]
pub struct CheckedRows {
    data: Bytes,
    packing: Packing,
    count: u32,
    plain_len: u64,
}

/// How the bytes of rows are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Zlib,
    Lz4,
}

impl CheckedRows {
    /// Looks at rows: whole JSON objects in valid UTF-8, one a line, the last one ended too, that come to `plain_len` bytes. A zlib stream is inflated to that end and kept as it is;
    /// plain rows are compressed if that is of use.
    ///
    /// ```
    /// use talon_store::{BlockEncoding, CheckedRows, Limits};
    ///
    /// let rows = CheckedRows::new("{\"Pid\":1}\n{\"Pid\":2}\n".into(), BlockEncoding::Plain, 20, &Limits::default())?;
    /// assert_eq!(rows.count(), 2);
    /// assert!(CheckedRows::new("[1]\n".into(), BlockEncoding::Plain, 4, &Limits::default()).is_err());
    /// # Ok::<(), talon_store::StoreError>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the rows are not so, or beyond the limits.
    pub fn new(data: Bytes, encoding: BlockEncoding, plain_len: u64, limits: &Limits) -> Result<Self, StoreError> {
        let block = RowBlock { data, count: 0, plain_len, encoding };
        let plain = verified_bytes(&block, limits)?;
        let count = count_objects(&plain).map_err(|row| StoreError::Invalid(format!("row {row} of the block is not a JSON object")))?;
        let (data, packing) = match encoding {
            BlockEncoding::Zlib => (block.data, Packing::Zlib),
            BlockEncoding::Plain => pack(plain),
        };
        Ok(Self { data, packing, count, plain_len })
    }

    /// The rows of a block whose count is true as well.
    pub(crate) fn of_block(block: RowBlock, limits: &Limits) -> Result<Self, StoreError> {
        let claimed = block.count;
        let rows = Self::new(block.data, block.encoding, block.plain_len, limits)?;
        if rows.count != claimed {
            return Err(StoreError::Invalid(format!("the block claims {claimed} rows and has {}", rows.count)));
        }
        Ok(rows)
    }

    /// How many rows there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the rows before compression.
    #[must_use]
    pub fn plain_len(&self) -> u64 {
        self.plain_len
    }

    /// Bytes that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn packed(&self) -> (&Bytes, Packing) {
        (&self.data, self.packing)
    }

    pub(crate) fn plain(&self) -> Result<Bytes, StoreError> {
        let plain_len = usize::try_from(self.plain_len).unwrap_or(usize::MAX);
        match self.packing {
            Packing::None => Ok(self.data.clone()),
            Packing::Zlib => crate::block::inflate(&self.data, plain_len).map(Bytes::from).map_err(StoreError::Invalid),
            Packing::Lz4 => {
                let plain = lz4_flex::block::decompress(&self.data, plain_len);
                plain.map(Bytes::from).map_err(|error| StoreError::Invalid(error.to_string()))
            }
        }
    }
}

/// Compresses unless that is of no use.
pub(crate) fn pack(plain: Bytes) -> (Bytes, Packing) {
    let packed = lz4_flex::block::compress(&plain);
    if packed.len() < plain.len() { (packed.into(), Packing::Lz4) } else { (plain, Packing::None) }
}

/// How many rows there are, or the number of the first that is none.
fn count_objects(text: &[u8]) -> Result<u32, u64> {
    let mut count: u32 = 0;
    // Whatever is not UTF-8 is in a row, or is one.
    let mut rest = match std::str::from_utf8(text) {
        Ok(_) => text,
        Err(error) => {
            let before = text.get(..error.valid_up_to()).unwrap_or_default();
            return Err(u64::try_from(before.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(u64::MAX));
        }
    };
    while !rest.is_empty() {
        rest = match rest {
            [b'{', inside @ ..] => match object(inside) {
                Some([b'\n', next @ ..]) => next,
                _ => return Err(count.into()),
            },
            _ => return Err(count.into()),
        };
        count = count.checked_add(1).ok_or(count)?;
    }
    Ok(count)
}

/// What may come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    FirstKey,
    Key,
    Colon,
    FirstValue,
    Value,
    /// A comma, or the end of what is open.
    More,
}

/// What stands behind the object whose opening brace was taken.
fn object(mut rest: &[u8]) -> Option<&[u8]> {
    // A bit for each thing that is open, the innermost lowest: 1 for an object, 0 for a list.
    let (mut open, mut depth): (u128, u32) = (1, 1);
    let mut expected = Expected::FirstKey;
    loop {
        let (byte, tail) = rest.split_first()?;
        rest = tail;
        expected = match (byte, expected) {
            (b'"', Expected::FirstKey | Expected::Key) => {
                rest = string(rest)?;
                match rest {
                    [b':', tail @ ..] => {
                        rest = tail;
                        Expected::Value
                    }
                    _ => Expected::Colon,
                }
            }
            (b'"', Expected::FirstValue | Expected::Value) => {
                rest = string(rest)?;
                Expected::More
            }
            (b',', Expected::More) if open & 1 == 1 => Expected::Key,
            (b',', Expected::More) => Expected::Value,
            (b'0'..=b'9' | b'-', Expected::FirstValue | Expected::Value) => {
                rest = number(*byte, rest)?;
                Expected::More
            }
            (b'}', Expected::FirstKey | Expected::More) if open & 1 == 1 => {
                (open, depth) = (open >> 1, depth - 1);
                if depth == 0 {
                    return Some(rest);
                }
                Expected::More
            }
            (b']', Expected::FirstValue | Expected::More) if open & 1 == 0 => {
                (open, depth) = (open >> 1, depth - 1);
                Expected::More
            }
            (b'{' | b'[', Expected::FirstValue | Expected::Value) if depth < MAX_DEPTH => {
                let object = *byte == b'{';
                (open, depth) = (open << 1 | u128::from(object), depth + 1);
                if object { Expected::FirstKey } else { Expected::FirstValue }
            }
            (b':', Expected::Colon) => Expected::Value,
            (b't', Expected::FirstValue | Expected::Value) => {
                rest = rest.strip_prefix(b"rue")?;
                Expected::More
            }
            (b'f', Expected::FirstValue | Expected::Value) => {
                rest = rest.strip_prefix(b"alse")?;
                Expected::More
            }
            (b'n', Expected::FirstValue | Expected::Value) => {
                rest = rest.strip_prefix(b"ull")?;
                Expected::More
            }
            (b' ' | b'\t' | b'\r', _) => expected,
            _ => return None,
        };
    }
}

/// What stands behind the string whose opening quote was taken.
fn string(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        while let Some((chunk, tail)) = rest.split_first_chunk::<8>() {
            let special = special(u64::from_le_bytes(*chunk));
            if special != 0 {
                // Each byte has its mark in its highest bit.
                rest = rest.get(usize::try_from(special.trailing_zeros() / 8).ok()?..)?;
                break;
            }
            rest = tail;
        }
        rest = match rest {
            [b'"', tail @ ..] => return Some(tail),
            [b'\\', b'u', a, b, c, d, tail @ ..] if [a, b, c, d].into_iter().all(u8::is_ascii_hexdigit) => tail,
            [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', tail @ ..] => tail,
            [0x20..=0x5b | 0x5d..=0xff, tail @ ..] => tail,
            _ => return None,
        };
    }
}

/// Marks the bytes that are a quote, a backslash or a control character. What is above the first mark may be marked too, for no reason.
fn special(word: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let zero = |bytes: u64| bytes.wrapping_sub(ONES) & !bytes & HIGH;
    let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
    zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\'))) | control
}

/// What stands behind a number of which the first byte was taken.
fn number(first: u8, mut rest: &[u8]) -> Option<&[u8]> {
    let lead = match first {
        b'-' => {
            let (lead, tail) = rest.split_first()?;
            rest = tail;
            *lead
        }
        digit => digit,
    };
    rest = match lead {
        b'0' => rest,
        b'1'..=b'9' => digits(rest),
        _ => return None,
    };
    if let [b'.', tail @ ..] = rest {
        rest = some_digits(tail)?;
    }
    if let [b'e' | b'E', tail @ ..] = rest {
        rest = some_digits(match tail {
            [b'+' | b'-', tail @ ..] => tail,
            tail => tail,
        })?;
    }
    Some(rest)
}

fn digits(mut rest: &[u8]) -> &[u8] {
    while let [b'0'..=b'9', tail @ ..] = rest {
        rest = tail;
    }
    rest
}

fn some_digits(rest: &[u8]) -> Option<&[u8]> {
    let behind = digits(rest);
    (behind.len() < rest.len()).then_some(behind)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    fn is_object(text: &str) -> bool {
        let parsed = serde_json::from_str::<BTreeMap<String, IgnoredAny>>(text);
        let expected = text.starts_with('{') && !text.contains('\n') && text.ends_with('}') && parsed.is_ok();
        let counted = count_objects(format!("{text}\n").as_bytes());
        assert_eq!(counted == Ok(1), expected, "{text:?}");
        expected
    }

    #[test]
    fn rows_are_whole_objects() {
        for good in [
            "{}",
            "{ }",
            r#"{"a":1}"#,
            r#"{"a" : [ ] , "b":[1,-0.5e+3,1E9,true,false,null,"x",{"c":{}}]}"#,
            r#"{"a long key with \" and \\ and \u00e4":"straße ✓ \/\b\f\n\r\t"}"#,
        ] {
            assert!(is_object(good), "{good}");
        }
        for bad in [
            "",
            "1",
            "[]",
            " {}",
            "{} ",
            "{",
            "}",
            "{}{}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{,"a":1}"#,
            r#"{"a":1 "b":2}"#,
            r#"{a:1}"#,
            r#"{"a":01}"#,
            r#"{"a":1.}"#,
            r#"{"a":.1}"#,
            r#"{"a":1e}"#,
            r#"{"a":-}"#,
            r#"{"a":+1}"#,
            r#"{"a":tru}"#,
            r#"{"a":nul}"#,
            r#"{"a":"}"#,
            r#"{"a":"\x"}"#,
            r#"{"a":"\u12g4"}"#,
            r#"{"a":[1}"#,
            r#"{"a":{]}"#,
            r#"{"a":[1,]}"#,
            "{\"a\":\"tab\tin it, behind eight bytes\"}",
            "{\"a\":\"\u{1}\"}",
            r#"{"a":NaN}"#,
            r#"{"a":1]"#,
        ] {
            assert!(!is_object(bad), "{bad}");
        }
    }

    #[test]
    fn the_row_that_is_none_is_named() {
        assert_eq!(count_objects(b""), Ok(0));
        assert_eq!(count_objects(b"{}\n{}\n"), Ok(2));
        assert_eq!(count_objects(b"{}\n{}"), Err(1));
        assert_eq!(count_objects(b"{}\n\n{}\n"), Err(1));
        assert_eq!(count_objects(b"{}\n{\"a\":\"\xff\"}\n"), Err(1));
    }

    #[test]
    fn depth_has_its_bound() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        for (depth, readable) in [(126, true), (127, false), (1_000_000, false)] {
            assert_eq!(count_objects(format!("{}\n", nested(depth)).as_bytes()).is_ok(), readable, "{depth}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&nested(depth)).is_ok(), readable, "{depth}: readers stop there");
        }
    }

    proptest! {
        #[test]
        fn what_is_made_of_the_bytes_of_json_is_judged_as_serde_json_does(text in r#"\{["a\\u0019{}\[\]:,.eE+ -]{0,12}\}"#) {
            // Escapes of half a surrogate pair are grammar, though no text.
            prop_assume!(!text.contains("\\u"));
            is_object(&text);
        }

        #[test]
        fn changed_rows_are_judged_as_serde_json_does(at in 0..70_usize, byte in 0x20..0x7f_u8) {
            let mut text = br#"{"Pid":12,"Name":"a name with a \\ in it","List":[1,2.5e3,null],"O":{}}"#.to_vec();
            let length = text.len();
            text[at % length] = byte;
            let text = String::from_utf8(text).unwrap();
            prop_assume!(!text.contains("\\u"));
            is_object(&text);
        }
    }
}
