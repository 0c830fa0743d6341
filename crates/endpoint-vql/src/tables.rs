//! Files that hold tables: CSV, JSON arrays, JSON lines.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, Registry, Rows, Scope, Shape, Signature, Value, json};

use crate::accessor::{self, FileReader};
use crate::records::{Lines, MAX_LINE};

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

/// The longest record.
const MAX_RECORD: u64 = 64 << 20;

/// Lets through as much as one record may have, then refuses until the next begins; and gives up when the query is stopped.
struct Bounded {
    reader: Box<dyn FileReader>,
    left: Arc<AtomicU64>,
    scope: Scope,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(std::io::Error::other(format!("a record has more than {MAX_RECORD} bytes")));
        }
        if self.scope.stopped() {
            return Ok(0);
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.reader.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.left.store(left.saturating_sub(got as u64), Ordering::Relaxed);
        Ok(got)
    }
}

/// The records of one file.
struct Records {
    reader: csv::Reader<Bounded>,
    left: Arc<AtomicU64>,
    columns: Vec<Key>,
    /// Of the last record: most have as many cells.
    shape: Option<Arc<Shape>>,
}

fn parse_csv(call: Call) -> Result<Rows, CallError> {
    let first_byte = |name: &str| call.string(name).bytes().next();
    let separator = first_byte("separator").unwrap_or(b',');
    let comment = first_byte("comment");
    let named: Vec<Key> = call.strings("columns").into_iter().map(Key::from).collect();
    let auto = call.bool("auto_headers");
    let scope = call.scope().clone();
    let mut files = readers(&call)?.into_iter();
    let mut record = csv::ByteRecord::new();
    let mut open: Option<Records> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            let Some(records) = &mut open else {
                let left = Arc::new(AtomicU64::new(MAX_RECORD));
                let reader = Bounded { reader: files.next()?, left: left.clone(), scope: scope.clone() };
                let mut builder = csv::ReaderBuilder::new();
                builder.has_headers(false).flexible(true).delimiter(separator).comment(comment).buffer_capacity(64 << 10);
                open = Some(Records { reader: builder.from_reader(reader), left, columns: named.clone(), shape: None });
                continue;
            };
            records.left.store(MAX_RECORD, Ordering::Relaxed);
            match records.reader.read_byte_record(&mut record) {
                Ok(true) => {}
                Ok(false) => {
                    open = None;
                    continue;
                }
                Err(error) => {
                    call.log(error.to_string());
                    open = None;
                    continue;
                }
            }
            let columns = &mut records.columns;
            if columns.is_empty() && !auto {
                *columns = record.iter().map(|cell| Key::from(String::from_utf8_lossy(cell).trim().to_owned())).collect();
                continue;
            }
            while columns.len() < record.len() {
                columns.push(Key::from(format!("Col{}", columns.len())));
                records.shape = None;
            }
            let shape = records.shape.get_or_insert_with(|| Shape::new(columns.iter()));
            if shape.len() == columns.len() && record.len() == columns.len() {
                return Some(Ok(Dict::of_shape(shape, record.iter().map(typed).collect()).into()));
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
    let may_be_number = matches!(cell.first(), Some(b'0'..=b'9' | b'-' | b'+' | b'.'));
    if may_be_number && let Ok(number) = text.parse::<i64>() {
        return Value::Int(number);
    }
    if may_be_number
        && text.bytes().any(|byte| byte.is_ascii_digit())
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
    let mut files = readers(&call)?.into_iter();
    let mut open: Option<Lines> = None;
    let mut rows = json::RowReader::default();
    Ok(Rows::from_fn(move || {
        loop {
            if call.scope().stopped() {
                return None;
            }
            let Some(lines) = &mut open else {
                open = Some(Lines::new(files.next()?, MAX_LINE));
                continue;
            };
            match lines.next_with(|line| (!line.trim_ascii().is_empty()).then(|| rows.row(line.trim_ascii()))) {
                Ok(Some(None)) => {}
                Ok(Some(Some(Ok(row)))) => return Some(Ok(row.into())),
                Ok(Some(Some(Err(error)))) => call.log(error.to_string()),
                Ok(None) => open = None,
                Err(error) => {
                    call.log(error.to_string());
                    open = None;
                }
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
