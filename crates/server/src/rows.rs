//! Rows as text: checks what an endpoint sent, and puts the server's own columns into a row by its structure, never by a text splice.

use std::fmt;
use std::io::Read;

use bytes::Bytes;
use flate2::read::ZlibDecoder;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use talon_store::{BlockEncoding, CheckedRows, Limits, RowBlock, StoreError};

/// At most this many rows in one message (`spec/01` §11.5).
pub(crate) const MAX_ROWS: u64 = 1_000_000;
/// At most this many bytes in one message, inflated: what the store takes as one block, a good deal more than the 5 MiB after which agents ship.
pub(crate) const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Why rows were not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRows {
    #[error("row {0} is no JSON object")]
    NotAnObject(u64),
    #[error("the message says {said} rows and carries {found}")]
    Count { said: u64, found: u64 },
    #[error("the message says {said} bytes and carries {found}")]
    Size { said: u64, found: u64 },
    #[error("the compressed rows do not inflate")]
    Inflate,
    #[error("more rows or bytes than one message may have")]
    TooMany,
    #[error(transparent)]
    Block(#[from] StoreError),
}

/// Checks rows that came as text: each a JSON object, as many as the message says (0: not said).
pub(crate) fn check_plain(text: &str, said: u64) -> Result<CheckedRows, BadRows> {
    let mut text = text.to_owned();
    if text.len() as u64 > MAX_BYTES {
        return Err(BadRows::TooMany);
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let length = text.len() as u64;
    counted(CheckedRows::new(Bytes::from(text), BlockEncoding::Plain, length, &Limits::default())?, said)
}

/// Checks rows that came compressed: what they inflate to is as [`check_plain`] wants it, and as long as the message says.
pub(crate) fn check_zlib(data: &Bytes, said_bytes: u64, said_rows: u64) -> Result<CheckedRows, BadRows> {
    if said_bytes > MAX_BYTES {
        return Err(BadRows::TooMany);
    }
    counted(CheckedRows::new(data.clone(), BlockEncoding::Zlib, said_bytes, &Limits::default())?, said_rows)
}

fn counted(rows: CheckedRows, said: u64) -> Result<CheckedRows, BadRows> {
    let found = u64::from(rows.count());
    if found > MAX_ROWS {
        return Err(BadRows::TooMany);
    }
    if said != 0 && said != found { Err(BadRows::Count { said, found }) } else { Ok(rows) }
}

/// Inflates a zlib stream that must come to exactly `said` bytes.
pub(crate) fn inflate(data: &[u8], said: u64) -> Result<Vec<u8>, BadRows> {
    if said > MAX_BYTES {
        return Err(BadRows::TooMany);
    }
    // What a peer says is a bound, not a reason to reserve memory before the bytes are there.
    let mut plain = Vec::with_capacity(usize::try_from(said).unwrap_or(0).min(data.len().saturating_mul(8)));
    let mut stream = ZlibDecoder::new(data).take(said.saturating_add(1));
    stream.read_to_end(&mut plain).map_err(|_| BadRows::Inflate)?;
    let found = plain.len() as u64;
    if found == said { Ok(plain) } else { Err(BadRows::Size { said, found }) }
}

/// The members of a JSON object in their order, values as their text.
pub(crate) struct Members<'a>(pub(crate) Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Members<'de>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Members<'de>, A::Error> {
                let mut kept = Vec::new();
                while let Some(member) = members.next_entry::<String, &'de RawValue>()? {
                    kept.push(member);
                }
                Ok(Members(kept))
            }
        }
        deserializer.deserialize_map(Ordered)
    }
}

/// Puts the server's columns into each row of `jsonl`. A column of the same name that the row brought is dropped: nobody speaks for the server.
pub(crate) fn stamp(jsonl: &str, columns: &[(&str, serde_json::Value)]) -> Result<Vec<String>, BadRows> {
    let mut rows = Vec::new();
    for line in jsonl.lines().filter(|line| !line.trim().is_empty()) {
        let members: Members<'_> = serde_json::from_str(line).map_err(|_| BadRows::NotAnObject(rows.len() as u64))?;
        let own = |name: &str| columns.iter().any(|(column, _)| *column == name);
        let kept = members.0.iter().filter(|(name, _)| !own(name)).map(|(name, value)| (name.as_str(), value.get().to_owned()));
        let added = columns.iter().map(|(name, value)| (*name, value.to_string()));
        let mut row = String::with_capacity(line.len() + 64);
        for (name, value) in kept.chain(added) {
            row.push(if row.is_empty() { '{' } else { ',' });
            row.push_str(&serde_json::Value::from(name).to_string());
            row.push(':');
            row.push_str(&value);
        }
        row.push_str(if row.is_empty() { "{}" } else { "}" });
        rows.push(row);
    }
    Ok(rows)
}

/// A row of these columns.
pub(crate) fn object(columns: &[(&str, serde_json::Value)]) -> String {
    stamp("{}", columns).ok().and_then(|rows| rows.into_iter().next()).unwrap_or_default()
}

/// The row with `change` applied to each text among its values.
pub(crate) fn map_text(row: &str, change: impl Fn(&str) -> String) -> Result<String, BadRows> {
    if !row.contains('$') {
        return Ok(row.to_owned());
    }
    let members: Members<'_> = serde_json::from_str(row).map_err(|_| BadRows::NotAnObject(0))?;
    let mut out = String::with_capacity(row.len());
    for (name, value) in members.0 {
        out.push(if out.is_empty() { '{' } else { ',' });
        out.push_str(&serde_json::Value::from(name).to_string());
        out.push(':');
        match serde_json::from_str::<String>(value.get()) {
            Ok(text) => out.push_str(&serde_json::Value::from(change(&text)).to_string()),
            Err(_) => out.push_str(value.get()),
        }
    }
    out.push_str(if out.is_empty() { "{}" } else { "}" });
    Ok(out)
}

/// The text in one member of a row.
pub(crate) fn text_member(row: &str, name: &str) -> Option<String> {
    let members: Members<'_> = serde_json::from_str(row).ok()?;
    let (_, value) = members.0.into_iter().find(|(member, _)| member == name)?;
    serde_json::from_str(value.get()).ok()
}

/// The number in one member of a row.
pub(crate) fn number_member(row: &str, name: &str) -> Option<u64> {
    let members: Members<'_> = serde_json::from_str(row).ok()?;
    let (_, value) = members.0.into_iter().find(|(member, _)| member == name)?;
    serde_json::from_str(value.get()).ok()
}

/// Rows as one block.
pub(crate) fn block<S: AsRef<str>>(rows: &[S]) -> RowBlock {
    let mut text = String::new();
    for row in rows {
        text.push_str(row.as_ref());
        text.push('\n');
    }
    RowBlock {
        plain_len: text.len() as u64,
        data: Bytes::from(text),
        count: u32::try_from(rows.len()).unwrap_or(u32::MAX),
        encoding: BlockEncoding::Plain,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::json;

    use super::*;

    fn zlib(text: &str) -> Bytes {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        Bytes::from(encoder.finish().unwrap())
    }

    #[test]
    fn counts_that_lie_are_refused() {
        assert_eq!(check_plain("{}\n{}\n", 2).unwrap().count(), 2);
        let unended = check_plain("{}\n{}", 0).unwrap();
        assert_eq!((unended.count(), unended.plain_len()), (2, 6));
        assert_eq!(check_plain("{}\n{}\n", 3).err(), Some(BadRows::Count { said: 3, found: 2 }));
        let rows = "{\"a\":1}\n{\"a\":2}\n";
        assert_eq!(check_zlib(&zlib(rows), 16, 2).unwrap().count(), 2);
        for said in [0, 1, 15, 17] {
            assert!(matches!(check_zlib(&zlib(rows), said, 2).err(), Some(BadRows::Block(_))), "{said}");
        }
        assert_eq!(check_zlib(&zlib(rows), 16, 1).err(), Some(BadRows::Count { said: 1, found: 2 }));
        assert_eq!(check_zlib(&zlib(rows), u64::MAX, 2).err(), Some(BadRows::TooMany));
        assert!(matches!(check_zlib(&Bytes::from_static(b"no zlib"), 16, 2).err(), Some(BadRows::Block(_))));
        assert_eq!(inflate(&zlib(rows), 15).err(), Some(BadRows::Size { said: 15, found: 16 }));
    }

    #[test]
    fn rows_are_objects() {
        for bad in ["1\n", " {}\n", "[]\n", "{\n", "{}\n\n{}\n", "{} {}\n", "\n"] {
            assert!(check_plain(bad, 0).is_err(), "{bad:?}");
        }
        assert_eq!(check_plain("", 0).unwrap().count(), 0);
    }

    #[test]
    fn a_row_cannot_bring_the_servers_columns() {
        let columns = [("_ts", json!(7)), ("ClientId", json!("C.1"))];
        let rows = stamp("{\"b\":{\"ClientId\":1},\"ClientId\":\"C.2\",\"a\":18446744073709551615}\n{}\n", &columns);
        let expected = [r#"{"b":{"ClientId":1},"a":18446744073709551615,"_ts":7,"ClientId":"C.1"}"#, r#"{"_ts":7,"ClientId":"C.1"}"#];
        assert_eq!(rows.unwrap(), expected);
    }

    #[test]
    fn an_escaped_name_is_the_same_name() {
        let rows = stamp("{\"\\u0043lientId\":\"C.2\"}", &[("ClientId", json!("C.1"))]);
        assert_eq!(rows.unwrap(), [r#"{"ClientId":"C.1"}"#]);
    }
}
