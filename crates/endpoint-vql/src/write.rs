//! Rows into files of this machine, passed on as they are written: `write_jsonl()`, `write_csv()`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, OsPath, Registry, Rows, Signature, Value, csv, json, member};

use crate::authority::permit;
use crate::host;

pub(crate) fn register(registry: &mut Registry) {
    const FILE: Arg = Arg::required("filename", ArgType::Path, "The file.");
    const ACCESSOR: Arg = Arg::optional("accessor", ArgType::String, "How the file is reached: auto or file.");
    const QUERY: Arg = Arg::required("query", ArgType::Query, "Where rows come from.");
    registry.plugin(
        Signature::plugin("write_jsonl", "Writes rows to a file, one JSON object a line.")
            .args(
                const {
                    &[
                        FILE,
                        ACCESSOR,
                        QUERY,
                        Arg::optional("buffer_size", ArgType::Int, "Not used."),
                        Arg::optional("max_time", ArgType::Int, "Not used."),
                        Arg::optional("append", ArgType::Bool, "Keep what the file has."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemWrite])
            .version(2),
        |call| {
            let append = call.bool("append");
            write_rows(&call, append, |out, row| {
                let mut line = Vec::new();
                json::Encoder::default().line(&mut line, row);
                out.write_all(&line)
            })
        },
    );
    registry.plugin(
        Signature::plugin("write_csv", "Writes rows to a CSV file; the first row decides about columns.")
            .args(const { &[FILE, ACCESSOR, QUERY] })
            .permissions(&[Permission::FilesystemWrite]),
        |call| {
            let mut header: Option<Vec<Key>> = None;
            write_rows(&call, false, move |out, row| {
                let first = header.is_none();
                let columns = header.get_or_insert_with(|| row.keys().cloned().collect());
                if first {
                    writeln!(out, "{}", columns.iter().map(|name| csv::quoted(name)).collect::<Vec<_>>().join(","))?;
                }
                let cell = |name: &Key| csv::quoted(&csv::cell(row.get(name).unwrap_or(&Value::Null)));
                writeln!(out, "{}", columns.iter().map(cell).collect::<Vec<_>>().join(","))
            })
        },
    );
}

fn write_rows(
    call: &Call,
    append: bool,
    mut write: impl FnMut(&mut BufWriter<File>, &Dict) -> std::io::Result<()> + Send + 'static,
) -> Result<Rows, CallError> {
    let accessor = call.string("accessor");
    if !matches!(accessor.as_str(), "" | "auto" | "file") {
        return Err(CallError::failed(format!("Accessor {accessor} cannot be written to")));
    }
    let path = call.path("filename").unwrap_or_default();
    let file = host::write(&permit(call.scope())?, &on_disk(&path), append)?;
    let mut out = BufWriter::new(file);
    let scope = call.scope().clone();
    let mut rows = call.query("query").map_or_else(Rows::none, |query| query.open(&scope));
    let mut ended = false;
    Ok(Rows::from_fn(move || {
        if ended {
            return None;
        }
        let written = match rows.next() {
            Some(Ok(row)) => {
                let row = member::row_to_dict(&row.materialized(&scope));
                write(&mut out, &row).map(|()| Some(row))
            }
            Some(Err(error)) => return Some(Err(error)),
            None => out.flush().map(|()| None),
        };
        match written {
            Ok(row) => {
                ended = row.is_none();
                row.map(|row| Ok(Value::Dict(row)))
            }
            Err(error) => {
                ended = true;
                Some(Err(error.into()))
            }
        }
    }))
}

fn on_disk(path: &OsPath) -> std::path::PathBuf {
    Path::new(std::ffi::OsStr::from_bytes(&path.plain())).to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, parse_statement};

    fn run(environment: Environment, text: &str) -> usize {
        let scope = environment.open();
        Query::new(&scope, &parse_statement(text).unwrap()).count()
    }

    fn allowed() -> Environment {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        crate::with_authority(Environment::new(Arc::new(crate::registry())), authority)
    }

    #[test]
    fn rows_are_written_and_passed_on() {
        let folder = tempfile::tempdir().unwrap();
        let (jsonl, csv) = (folder.path().join("a.jsonl"), folder.path().join("a.csv"));
        let text =
            format!("SELECT * FROM write_jsonl(filename='{}', query={{ SELECT _value FROM range(end=2) }}, append=TRUE)", jsonl.display());
        assert_eq!((run(allowed(), &text), run(allowed(), &text)), (2, 2));
        let line = "{\"_value\":0}\n{\"_value\":1}\n";
        assert_eq!(std::fs::read_to_string(&jsonl).unwrap(), line.repeat(2));
        let text = format!("SELECT * FROM write_csv(filename='{}', query={{ SELECT 'x,\"y' AS A, 5 AS B FROM scope() }})", csv.display());
        assert_eq!((run(allowed(), &text), run(allowed(), &text)), (1, 1));
        assert_eq!(std::fs::read_to_string(&csv).unwrap(), "A,B\n\"x,\"\"y\",5\n");
    }

    #[test]
    fn without_the_permission_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let log = Arc::new(MemoryLog::default());
        let environment = Environment::new(Arc::new(crate::registry())).log(log.clone());
        let text = format!("SELECT * FROM write_jsonl(filename='{}', query={{ SELECT 1 FROM scope() }})", file.display());
        assert_eq!(run(environment, &text), 0);
        assert_eq!(log.take(), ["write_jsonl: PermissionDenied: Permission denied: [FILESYSTEM_WRITE]"]);
        assert!(!file.exists());
    }
}
