//! `plist()`: property lists, binary or XML.

use std::io::Cursor;

use plist::Value as Plist;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, Registry, Rows, Signature, Time, Value, as_row};

use crate::accessor;
use crate::files::{buffer_limit, read_up_to};

pub(crate) fn register(registry: &mut Registry) {
    const ACCESSOR: Arg = Arg::optional("accessor", ArgType::String, "The accessor that reads it.");
    registry.function(
        Signature::function("plist", "The value that a property list holds.")
            .args(const { &[Arg::required("file", ArgType::Path, "The file."), ACCESSOR] }),
        |call| parse(&crate::files::content_of(&call, "file")?),
    );
    registry.plugin(
        Signature::plugin("plist", "The values that property lists hold.")
            .args(const { &[Arg::required("file", ArgType::Paths, "The files."), ACCESSOR] }),
        plugin,
    );
}

fn plugin(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let accessor = accessor::named(&scope, &call.string("accessor"))?;
    let mut paths = call.paths("file").into_iter();
    Ok(Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            let path = paths.next()?;
            let content = accessor.open(&scope, &path).and_then(|mut reader| read_up_to(&mut *reader, buffer_limit(&scope), &scope));
            match content.and_then(|content| parse(&content)) {
                Ok(value) => return Some(Ok(as_row(value))),
                Err(error) => call.log(error.to_string()),
            }
        }
    }))
}

fn parse(content: &[u8]) -> Result<Value, CallError> {
    let plist = Plist::from_reader(Cursor::new(content)).map_err(|error| CallError::failed(format!("plist: {error}")))?;
    Ok(value(plist, 0))
}

fn value(plist: Plist, depth: usize) -> Value {
    const MAX_DEPTH: usize = 150;
    if depth > MAX_DEPTH {
        return Value::Null;
    }
    let deeper = depth.saturating_add(1);
    match plist {
        Plist::Array(items) => Value::list(items.into_iter().map(|item| value(item, deeper))),
        Plist::Dictionary(entries) => entries.into_iter().map(|(key, item)| (Key::from(key), value(item, deeper))).collect::<Dict>().into(),
        Plist::Boolean(truth) => truth.into(),
        Plist::Data(bytes) => Value::Bytes(bytes.into()),
        Plist::Date(date) => Value::Time(moment(date.into())),
        Plist::Real(number) => number.into(),
        Plist::Integer(number) => number.as_signed().map(Value::Int).or_else(|| number.as_unsigned().map(Value::UInt)).unwrap_or_default(),
        Plist::String(text) => text.into(),
        Plist::Uid(uid) => Value::from(uid.get()),
        _ => Value::Null,
    }
}

fn moment(time: std::time::SystemTime) -> Time {
    let nanos = |duration: std::time::Duration| i128::try_from(duration.as_nanos()).unwrap_or(0);
    Time::from_unix_nanos(match time.duration_since(std::time::UNIX_EPOCH) {
        Ok(after) => nanos(after),
        Err(before) => nanos(before.duration()).saturating_neg(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::expect;
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    const XML: &str = r#"<?xml version="1.0"?><plist version="1.0"><dict><key>A</key><integer>1</integer><key>B</key><array><true/><real>1.5</real><string>x</string></array><key>D</key><data>AP8=</data><key>T</key><date>2020-05-31T15:28:05Z</date></dict></plist>"#;

    #[test]
    fn both_forms_are_read() {
        let expected = expect![[r#"{"A":1,"B":[true,1.5,"x"],"D":"AP8=","T":"2020-05-31T15:28:05Z"}"#]];
        expected.assert_eq(&json::encode(&parse(XML.as_bytes()).unwrap()));
        let mut binary = Vec::new();
        Plist::from_reader(Cursor::new(XML)).unwrap().to_writer_binary(&mut binary).unwrap();
        assert!(binary.starts_with(b"bplist00"));
        expected.assert_eq(&json::encode(&parse(&binary).unwrap()));
        assert!(parse(b"no property list").is_err());
        assert!(parse(b"bplist00\xff\xff").is_err());
    }

    #[test]
    fn the_plugin_gives_a_row_for_each_file() {
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(crate::registry())).log(log.clone()).variable("X", XML).open();
        let statement = parse_statement("SELECT A FROM plist(file=[X, 'bad', X], accessor='data')").unwrap();
        assert_eq!(Query::new(&scope, &statement).map(|row| json::encode(&row.into())).collect::<Vec<_>>(), [r#"{"A":1}"#, r#"{"A":1}"#]);
        assert!(log.take().iter().any(|line| line.starts_with("plist: ")));
    }
}
