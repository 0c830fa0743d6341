//! `sqlite()`: queries on SQLite files. Files of other accessors, and files that others hold, are read in memory.

use std::io::Cursor;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use jiff::tz::TimeZone;
use rusqlite::limits::Limit;
use rusqlite::types::{Value as Cell, ValueRef};
use rusqlite::{Connection, OpenFlags};
use talon_acl::{FilesystemRead, Permit};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, Registry, Rows, Scope, Signature, Time, Value, time, to_text};

use crate::accessor::{self, FileReader};
use crate::authority::permit;
use crate::files::{buffer_limit, read_up_to};

/// How many rows wait for the query.
const AHEAD: usize = 64;

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("sqlite", "The rows of a query on an SQLite file. The file is only read.").args(
            const {
                &[
                    Arg::required("file", ArgType::Path, "The file."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                    Arg::required("query", ArgType::String, "The SQL statement."),
                    Arg::optional("args", ArgType::Any, "Values for the places of the statement: a list, or a dict by name."),
                ]
            },
        ),
        sqlite,
    );
}

/// Values for the places of a statement.
enum Places {
    ByOrder(Vec<Cell>),
    ByName(Vec<(String, Cell)>),
}

fn cell(value: &Value, scope: &Scope) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::Float(number) => Cell::Real(*number),
        Value::Bytes(bytes) => Cell::Blob(bytes.to_vec()),
        other => match other.as_int() {
            Some(number) => Cell::Integer(number),
            None => Cell::Text(to_text(other.clone(), scope).to_str().into_owned()),
        },
    }
}

fn places(call: &Call) -> Places {
    let scope = call.scope();
    match call.value("args").materialized(scope) {
        Value::Null => Places::ByOrder(Vec::new()),
        Value::Dict(dict) => Places::ByName(dict.iter().map(|(name, value)| (name.as_str().to_owned(), cell(value, scope))).collect()),
        Value::List(items) => Places::ByOrder(items.iter().map(|item| cell(item, scope)).collect()),
        one => Places::ByOrder(vec![cell(&one, scope)]),
    }
}

fn sqlite(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let name = call.string("accessor");
    let accessor = accessor::named(&scope, &name)?;
    let path = call.path("file").ok_or_else(|| CallError::failed("Field file is required"))?;
    let in_memory = || -> Result<Connection, CallError> { from_memory(accessor.open(&scope, &path)?, &scope) };
    let copies = scope.variable("SQLITE_ALWAYS_MAKE_TEMPFILE").is_some_and(|value| talon_vql::ops::truth(&value, &scope));
    let on_disk = matches!(name.as_str(), "" | "auto" | "file") && path.delegate().is_none() && !copies;
    let mut connection = if on_disk && accessor.stat_target(&scope, &path)?.mode.0 & 0o170_000 == 0o100_000 {
        let native = std::ffi::OsString::from(path.plain().to_str().into_owned());
        match open(&permit(&scope)?, Path::new(&native)) {
            Ok(connection) => connection,
            Err(_) => in_memory()?,
        }
    } else {
        in_memory()?
    };
    guard(&mut connection, &scope).map_err(CallError::failed)?;
    let (sql, places) = (call.string("query"), places(&call));
    let (sender, receiver) = sync_channel(AHEAD);
    std::thread::Builder::new().name("sqlite".to_owned()).spawn(move || run(&connection, &sql, &places, &sender))?;
    Ok(pull(receiver, scope))
}

/// Opens a file for reading; an error if others hold it in a way that stops readers.
fn open(_: &Permit<FilesystemRead>, path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
    Ok(connection)
}

fn from_memory(mut reader: Box<dyn FileReader>, scope: &Scope) -> Result<Connection, CallError> {
    /// The bytes of the header that ask for a write-ahead log, which memory has none of.
    const VERSIONS: std::ops::Range<usize> = 18..20;
    let limit = buffer_limit(scope);
    let mut content = read_up_to(&mut *reader, limit, scope)?;
    if content.len() as u64 >= limit {
        return Err(CallError::failed(format!("files that are read in memory may have {limit} bytes at most")));
    }
    if !content.starts_with(b"SQLite format 3\0") {
        return Err(CallError::failed("file is not a database"));
    }
    if let Some(versions) = content.get_mut(VERSIONS).filter(|versions| **versions == [2, 2]) {
        versions.fill(1);
    }
    let mut connection = Connection::open_in_memory().map_err(CallError::failed)?;
    let size = content.len();
    connection.deserialize_read_exact("main", Cursor::new(content), size, true).map_err(CallError::failed)?;
    Ok(connection)
}

/// No statement reaches another file, and a query that is stopped stops its statement.
fn guard(connection: &mut Connection, scope: &Scope) -> rusqlite::Result<()> {
    const STEPS: i32 = 10_000;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "query_only", true)?;
    let handle = scope.handle();
    connection.progress_handler(STEPS, Some(move || handle.get().is_none_or(|scope| scope.stopped())))
}

type Row = Result<Dict, String>;

fn run(connection: &Connection, sql: &str, places: &Places, out: &SyncSender<Row>) {
    if let Err(error) = rows(connection, sql, places, out) {
        // Nobody listens any more when the query has ended.
        let _ = out.send(Err(error.to_string()));
    }
}

fn rows(connection: &Connection, sql: &str, places: &Places, out: &SyncSender<Row>) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    match places {
        Places::ByOrder(values) => {
            for (at, value) in values.iter().enumerate() {
                statement.raw_bind_parameter(at.saturating_add(1), value)?;
            }
        }
        Places::ByName(values) => {
            for (name, value) in values {
                for mark in [":", "@", "$"] {
                    if let Some(at) = statement.parameter_index(&format!("{mark}{name}"))? {
                        statement.raw_bind_parameter(at, value)?;
                    }
                }
            }
        }
    }
    let columns: Vec<(Key, Declared)> = statement
        .columns()
        .map(|column| (Key::from(column.name().to_owned()), Declared::of(column.decl_type().unwrap_or_default())))
        .collect();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        let mut dict = Dict::new();
        for (at, (name, declared)) in columns.iter().enumerate() {
            dict.set(name, declared.value(row.get_ref(at)?));
        }
        if out.send(Ok(dict)).is_err() {
            break;
        }
    }
    Ok(())
}

/// What the type of a column makes of its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Declared {
    Any,
    Time,
    Bool,
}

impl Declared {
    fn of(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "timestamp" | "datetime" | "date" => Self::Time,
            "boolean" => Self::Bool,
            _ => Self::Any,
        }
    }

    fn value(self, cell: ValueRef<'_>) -> Value {
        /// Larger numbers are milliseconds.
        const MILLIS_FROM: i64 = 1_000_000_000_000;
        match (self, cell) {
            (_, ValueRef::Null) => Value::Null,
            (Self::Bool, ValueRef::Integer(number)) => Value::Bool(number > 0),
            (Self::Time, ValueRef::Integer(number)) => {
                let unit = if number.unsigned_abs() > MILLIS_FROM.unsigned_abs() { 1_000_000 } else { 1_000_000_000 };
                Value::Time(Time::from_unix_nanos(i128::from(number).saturating_mul(unit)))
            }
            (Self::Time, ValueRef::Text(text)) => {
                let text = String::from_utf8_lossy(text);
                Value::Time(time::parse_flexibly(text.trim(), &TimeZone::UTC).unwrap_or(Time::ZERO))
            }
            (_, ValueRef::Integer(number)) => Value::Int(number),
            (_, ValueRef::Real(number)) => Value::Float(number),
            (_, ValueRef::Text(bytes) | ValueRef::Blob(bytes)) => Value::str(bytes),
        }
    }
}

fn pull(rows: Receiver<Row>, scope: Scope) -> Rows {
    const LOOK: Duration = Duration::from_millis(200);
    Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            match rows.recv_timeout(LOOK) {
                Ok(Ok(row)) => return Some(Ok(row.into())),
                Ok(Err(error)) => return Some(Err(CallError::failed(error))),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    fn rows(database: &Path, more: &str) -> Vec<String> {
        let log = Arc::new(MemoryLog::default());
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let environment = crate::with_authority(Environment::new(Arc::new(crate::registry())).log(log.clone()), authority);
        let scope = environment.variable("DB", database.to_str().unwrap()).open();
        let rows: Vec<String> = Query::new(&scope, &parse_statement(&format!("SELECT * FROM sqlite(file={more}")).unwrap())
            .map(|row| json::encode(&row.into()))
            .collect();
        rows.into_iter().chain(log.take().into_iter().filter(|line| !line.starts_with("DEBUG"))).collect()
    }

    fn database() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let made = Connection::open(&path).unwrap();
        made.execute_batch(
            "CREATE TABLE T (Id INTEGER, Name TEXT, Score REAL, Seen TIMESTAMP, Flag BOOLEAN, Raw BLOB);
             INSERT INTO T VALUES (1, 'one', 1.5, 1590938885, 1, x'4142'), (2, NULL, NULL, '2020-05-31 15:28:05', 0, NULL), (3, 'three', 3, 1590938885000, NULL, NULL);",
        )
        .unwrap();
        (folder, path)
    }

    #[test]
    fn cells_have_the_types_of_their_columns() {
        let (_folder, path) = database();
        let expected = [
            r#"{"Id":1,"Name":"one","Score":1.5,"Seen":"2020-05-31T15:28:05Z","Flag":true,"Raw":"AB"}"#,
            r#"{"Id":2,"Name":null,"Score":null,"Seen":"2020-05-31T15:28:05Z","Flag":false,"Raw":null}"#,
            r#"{"Id":3,"Name":"three","Score":3,"Seen":"2020-05-31T15:28:05Z","Flag":null,"Raw":null}"#,
        ];
        assert_eq!(rows(&path, "DB, query='SELECT * FROM T ORDER BY Id')"), expected);
        assert_eq!(rows(&path, "read_file(filename=DB), accessor='data', query='SELECT * FROM T ORDER BY Id')"), expected);
    }

    #[test]
    fn places_are_filled_by_order_and_by_name() {
        let (_folder, path) = database();
        assert_eq!(rows(&path, "DB, query='SELECT Name FROM T WHERE Id = ? AND Name = ?', args=[3, 'three'])"), [r#"{"Name":"three"}"#]);
        assert_eq!(rows(&path, "DB, query='SELECT Name FROM T WHERE Id = :id', args=dict(id=1))"), [r#"{"Name":"one"}"#]);
    }

    #[test]
    fn a_file_with_a_write_ahead_log_is_read() {
        let (_folder, path) = database();
        let writer = Connection::open(&path).unwrap();
        writer.pragma_update(None, "journal_mode", "wal").unwrap();
        writer.execute("INSERT INTO T (Id) VALUES (4)", []).unwrap();
        assert_eq!(rows(&path, "DB, query='SELECT count(*) AS N FROM T')"), [r#"{"N":4}"#]);
    }

    #[test]
    fn statements_neither_write_nor_reach_other_files() {
        let (folder, path) = database();
        let other = folder.path().join("other.db");
        for sql in [
            "INSERT INTO T (Id) VALUES (9)".to_owned(),
            format!("ATTACH ''{}'' AS other", other.display()),
            format!("VACUUM INTO ''{}''", other.display()),
            "SELECT load_extension(''x'')".to_owned(),
            "SELECT * FROM NoSuch".to_owned(),
        ] {
            let sql = sql.replace("''", "\\'");
            let lines = rows(&path, &format!("DB, query='{sql}')"));
            assert!(lines.len() == 1 && lines[0].starts_with("sqlite: "), "{sql}: {lines:?}");
        }
        assert!(!other.exists());
        assert_eq!(rows(&path, "DB, query='SELECT count(*) AS N FROM T')"), [r#"{"N":3}"#]);
        let lines = rows(&path, "'no database', accessor='data', query='SELECT 1')");
        assert_eq!(lines, ["sqlite: file is not a database"]);
    }

    #[test]
    fn a_statement_without_end_stops_with_its_query() {
        let (_folder, path) = database();
        let scope = Environment::new(Arc::new(crate::registry())).open();
        let mut connection = Connection::open(&path).unwrap();
        guard(&mut connection, &scope).unwrap();
        scope.cancel_token().cancel("enough");
        let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c";
        assert!(connection.query_row(endless, [], |_| Ok(())).is_err());
    }
}
