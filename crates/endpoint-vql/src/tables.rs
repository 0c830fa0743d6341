//! Files that hold tables: CSV, JSON arrays, JSON lines.

use std::io::Read;

use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, Registry, Rows, Signature, Value, json};

use crate::accessor::{self, FileReader};
use crate::files::{buffer_limit, read_up_to};

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("parse_csv", "The rows of CSV files.").args(
            const {
                &[
                    Arg::required("filename", ArgType::Paths, "The files."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads them."),
                    Arg::optional("auto_headers", ArgType::Bool, "Name the columns Col0, Col1 … instead of by the first line."),
                    Arg::optional("separator", ArgType::String, "What separates cells, a comma unless given."),
                    Arg::optional("comment", ArgType::String, "Lines that begin with this character are passed over."),
                    Arg::optional("columns", ArgType::Strings, "The names of the columns; the first line is data then."),
                ]
            },
        ),
        parse_csv,
    );
    registry.plugin(
        Signature::plugin("parse_jsonl", "The rows of files with one JSON object on each line.")
            .args(
                const {
                    &[
                        Arg::required("filename", ArgType::Path, "The file."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                    ]
                },
            )
            .version(2),
        parse_jsonl,
    );
}

/// The files of a call, opened one after the other.
fn readers(call: &Call) -> Result<Vec<Box<dyn FileReader>>, CallError> {
    let accessor = accessor::named(call.scope(), &call.string("accessor"))?;
    let paths = if call.paths("filename").is_empty() { call.path("filename").into_iter().collect() } else { call.paths("filename") };
    let mut readers = Vec::new();
    for path in paths {
        match accessor.open(call.scope(), &path) {
            Ok(reader) => readers.push(reader),
            Err(error) => call.log(error.to_string()),
        }
    }
    Ok(readers)
}

/// The records of one file.
type Records = csv::ByteRecordsIntoIter<std::io::Take<Box<dyn FileReader>>>;

fn parse_csv(call: Call) -> Result<Rows, CallError> {
    let first_byte = |name: &str| call.string(name).bytes().next();
    let separator = first_byte("separator").unwrap_or(b',');
    let comment = first_byte("comment");
    let named: Vec<Key> = call.strings("columns").into_iter().map(Key::from).collect();
    let auto = call.bool("auto_headers");
    let limit = buffer_limit(call.scope());
    let scope = call.scope().clone();
    let mut files = readers(&call)?.into_iter();
    let mut open: Option<(Records, Vec<Key>)> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            let Some((records, columns)) = &mut open else {
                let reader = files.next()?;
                let mut builder = csv::ReaderBuilder::new();
                builder.has_headers(false).flexible(true).delimiter(separator).comment(comment);
                open = Some((builder.from_reader(reader.take(limit)).into_byte_records(), named.clone()));
                continue;
            };
            let record = match records.next() {
                Some(Ok(record)) => record,
                Some(Err(error)) => {
                    call.log(error.to_string());
                    open = None;
                    continue;
                }
                None => {
                    open = None;
                    continue;
                }
            };
            if columns.is_empty() && !auto {
                *columns = record.iter().map(|cell| Key::from(String::from_utf8_lossy(cell).trim().to_owned())).collect();
                continue;
            }
            while columns.len() < record.len() {
                columns.push(Key::from(format!("Col{}", columns.len())));
            }
            let row: Dict = columns.iter().zip(record.iter()).map(|(key, cell)| (key, typed(cell))).collect();
            return Some(Ok(row.into()));
        }
    }))
}

/// A cell as a value: numbers and booleans are recognised; a leading space keeps text that looks like one.
pub(crate) fn typed(cell: &[u8]) -> Value {
    let Ok(text) = std::str::from_utf8(cell) else { return Value::str(cell) };
    if let Some(protected) = text.strip_prefix(' ') {
        return Value::str(protected);
    }
    if let Ok(number) = text.parse::<i64>() {
        return Value::Int(number);
    }
    if text.bytes().any(|byte| byte.is_ascii_digit())
        && let Ok(number) = text.parse::<f64>()
        && number.is_finite()
    {
        return Value::Float(number);
    }
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => Value::str(text),
    }
}

fn parse_jsonl(call: Call) -> Result<Rows, CallError> {
    let limit = buffer_limit(call.scope());
    let mut content = Vec::new();
    for mut reader in readers(&call)? {
        content.extend(read_up_to(&mut *reader, limit, call.scope())?);
    }
    let mut at = 0;
    Ok(Rows::from_fn(move || {
        loop {
            let rest = content.get(at..).filter(|rest| !rest.is_empty())?;
            if call.scope().stopped() {
                return None;
            }
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            let line = rest.get(..end).unwrap_or_default().trim_ascii();
            at = at.saturating_add(end).saturating_add(1);
            if line.is_empty() {
                continue;
            }
            match json::decode_row(line) {
                Ok(row) => return Some(Ok(row.into())),
                Err(error) => call.log(format!("{error}")),
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_vql::{Environment, Query, json, parse_statement};

    fn rows(vql: &str) -> Vec<String> {
        let scope = Environment::new(Arc::new(crate::registry())).open();
        Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
    }

    #[test]
    fn cells_have_types() {
        assert_eq!(
            rows("SELECT * FROM parse_csv(filename='A,B,C\n1,x,1.5\n 1,true,', accessor='data')"),
            [r#"{"A":1,"B":"x","C":1.5}"#, r#"{"A":"1","B":true,"C":""}"#]
        );
    }

    #[test]
    fn columns_can_be_named_or_numbered() {
        assert_eq!(rows("SELECT * FROM parse_csv(filename='1,2', accessor='data', columns=['X','Y'])"), [r#"{"X":1,"Y":2}"#]);
        assert_eq!(rows("SELECT * FROM parse_csv(filename='1,2', accessor='data', auto_headers=TRUE)"), [r#"{"Col0":1,"Col1":2}"#]);
    }

    #[test]
    fn json_lines_are_rows() {
        assert_eq!(
            rows("SELECT * FROM parse_jsonl(filename='{\"A\":1}\n\n{\"A\":[true]}\n', accessor='data')"),
            [r#"{"A":1}"#, r#"{"A":[true]}"#]
        );
    }
}
