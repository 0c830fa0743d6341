//! Files that grow: `watch_syslog()`, `watch_jsonl()`, `watch_csv()`, `watch_auditd()`. They begin at the end of what is there. Also `cat()`.

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, OsPath, Registry, Rows, Scope, Signature, Value, json};

use crate::accessor::{self, Accessor};
use crate::auditd::Events;
use crate::tables::typed;

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// A line with more is cut.
const MAX_LINE: usize = 1 << 20;
/// How much of a file is read at once.
const STEP: u64 = 1 << 20;

const FILES: Arg = Arg::required("filename", ArgType::Paths, "The files.");
const ACCESSOR: Arg = Arg::optional("accessor", ArgType::String, "The accessor that reads them.");
const BUFFER: Arg = Arg::optional("buffer_size", ArgType::Int, "At most this many bytes in one line.");

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("watch_syslog", "Lines as they are added to files.")
            .args(
                const {
                    &[
                        Arg::optional("filename", ArgType::Paths, "The files."),
                        ACCESSOR,
                        BUFFER,
                        Arg::optional("query", ArgType::Query, "Gives further files, as OSPath; asked when the watch begins."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemRead])
            .version(2),
        |call| follow(call, |line, _| Ok(Some(Dict::new().with("Line", Value::str(line))))),
    );
    registry.plugin(
        Signature::plugin("watch_jsonl", "Objects as they are added to files with one JSON object on each line.")
            .args(const { &[FILES, ACCESSOR, BUFFER] })
            .permissions(&[Permission::FilesystemRead]),
        |call| {
            follow(call, |line, _| {
                if line.trim_ascii().is_empty() { Ok(None) } else { json::decode_row(line).map(Some).map_err(|error| error.to_string()) }
            })
        },
    );
    registry.plugin(
        Signature::plugin("watch_csv", "Rows as they are added to CSV files.")
            .args(
                const {
                    &[
                        FILES,
                        ACCESSOR,
                        Arg::optional("auto_headers", ArgType::Bool, "Name the columns Col0, Col1 … instead of by the first line."),
                        Arg::optional("separator", ArgType::String, "What separates cells, a comma unless given."),
                        Arg::optional("comment", ArgType::String, "Lines that begin with this character are passed over."),
                        Arg::optional("columns", ArgType::Strings, "The names of the columns."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemRead]),
        watch_csv,
    );
    registry.plugin(
        Signature::plugin("watch_auditd", "Events as they are added to the log of the audit daemon.")
            .args(const { &[FILES, ACCESSOR, BUFFER] })
            .permissions(&[Permission::FilesystemRead]),
        |call| {
            let mut events = Events::default();
            follow(call, move |line, _| Ok(events.add(&String::from_utf8_lossy(line))))
        },
    );
    registry.plugin(
        Signature::plugin("cat", "The content of a file in pieces, as it comes; for pipes and devices.")
            .args(
                const {
                    &[
                        Arg::required("filename", ArgType::Path, "The file."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                        Arg::optional("chunk", ArgType::Int, "Bytes in each piece at most."),
                        Arg::optional("timeout", ArgType::Int, "Give up after this many seconds."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemRead]),
        cat,
    );
}

/// One watched file.
struct Watched {
    path: Arc<OsPath>,
    at: u64,
    identity: Option<(u64, u64)>,
    /// The beginning of a line whose end was not there yet.
    rest: Vec<u8>,
    /// What the file had as its first line when the watch began.
    header: Vec<u8>,
}

/// Makes a row of a line and the header of its file.
type Make = Box<dyn FnMut(&[u8], &[u8]) -> Result<Option<Dict>, String> + Send>;

struct Follow {
    call: Call,
    scope: Scope,
    accessor: Arc<dyn Accessor>,
    files: Vec<Watched>,
    longest: usize,
    pending: std::collections::VecDeque<Dict>,
    make: Make,
}

fn follow(call: Call, make: impl FnMut(&[u8], &[u8]) -> Result<Option<Dict>, String> + Send + 'static) -> Result<Rows, CallError> {
    const MAX_FILES: usize = 1000;
    let scope = call.scope().clone();
    let accessor = accessor::named(&scope, &call.string("accessor"))?;
    let mut paths = call.paths("filename");
    if let Some(query) = call.query("query") {
        for row in query.collect(&scope).into_iter().take(MAX_FILES) {
            let row = talon_vql::member::row_to_dict(&row);
            if let Some(text) = row.get("OSPath").or_else(|| row.get("FullPath")).and_then(talon_vql::member::path_text) {
                paths.push(Arc::new(OsPath::for_accessor(text, &call.string("accessor"))));
            }
        }
    }
    if paths.is_empty() || paths.len() > MAX_FILES {
        return Err(CallError::failed(format!("from 1 to {MAX_FILES} files can be watched")));
    }
    let longest = call.opt_int("buffer_size").and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
    let files = paths.into_iter().map(|path| Watched { path, at: 0, identity: None, rest: Vec::new(), header: Vec::new() }).collect();
    let mut follow = Follow {
        call,
        scope,
        accessor,
        files,
        longest: longest.unwrap_or(MAX_LINE).min(MAX_LINE),
        pending: std::collections::VecDeque::new(),
        make: Box::new(make),
    };
    follow.begin();
    Ok(Rows::from_fn(move || follow.next()))
}

impl Follow {
    /// Goes to the end of each file.
    fn begin(&mut self) {
        for file in &mut self.files {
            let Ok(info) = self.accessor.stat_target(&self.scope, &file.path) else { continue };
            (file.at, file.identity) = (info.size, info.identity);
            if let Ok(reader) = self.accessor.open(&self.scope, &file.path) {
                let mut head = Vec::new();
                if reader.take(MAX_LINE as u64).read_to_end(&mut head).is_ok() {
                    file.header = head.split(|byte| *byte == b'\n').next().unwrap_or_default().to_vec();
                }
            }
        }
    }

    fn next(&mut self) -> Option<Result<Value, CallError>> {
        loop {
            if let Some(row) = self.pending.pop_front() {
                return Some(Ok(row.into()));
            }
            if self.scope.stopped() {
                return None;
            }
            let mut more = false;
            for at in 0..self.files.len() {
                more |= self.look(at);
            }
            if self.pending.is_empty() && !more && self.scope.sleep(EVERY) {
                return None;
            }
        }
    }

    /// Reads what was added to a file; true if there may be more.
    fn look(&mut self, at: usize) -> bool {
        let Some(file) = self.files.get_mut(at) else { return false };
        let Ok(info) = self.accessor.stat_target(&self.scope, &file.path) else { return false };
        // Another file took its place, or it was emptied: it is read from its start.
        let replaced = file.identity.is_some() && info.identity.is_some() && file.identity != info.identity;
        if replaced || info.size < file.at {
            file.at = 0;
            file.rest.clear();
        }
        file.identity = info.identity.or(file.identity);
        if info.size <= file.at {
            return false;
        }
        let mut added = Vec::new();
        let read = self.accessor.open(&self.scope, &file.path).and_then(|mut reader| {
            reader.seek(SeekFrom::Start(file.at))?;
            Ok(reader.take(STEP).read_to_end(&mut added)?)
        });
        if let Err(error) = read {
            self.call.log(error.to_string());
            return false;
        }
        file.at = file.at.saturating_add(added.len() as u64);
        file.rest.extend_from_slice(&added);
        let complete = match file.rest.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => file.rest.drain(..=end).collect::<Vec<u8>>(),
            None if file.rest.len() >= self.longest => std::mem::take(&mut file.rest),
            None => Vec::new(),
        };
        for line in complete.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            for piece in line.chunks(self.longest.max(1)) {
                match (self.make)(piece, &file.header) {
                    Ok(row) => self.pending.extend(row),
                    Err(error) => self.call.log(error),
                }
            }
        }
        added.len() as u64 == STEP
    }
}

fn watch_csv(call: Call) -> Result<Rows, CallError> {
    let first_byte = |name: &str| call.string(name).bytes().next();
    let (separator, comment) = (first_byte("separator").unwrap_or(b','), first_byte("comment"));
    let named = call.strings("columns");
    let auto = call.bool("auto_headers");
    let cells = move |line: &[u8]| -> Vec<Vec<u8>> {
        let mut builder = csv::ReaderBuilder::new();
        builder.has_headers(false).flexible(true).delimiter(separator).comment(comment);
        let record = builder.from_reader(line).into_byte_records().next();
        record.and_then(Result::ok).map(|record| record.iter().map(<[u8]>::to_vec).collect()).unwrap_or_default()
    };
    follow(call, move |line, header| {
        let mut columns = named.clone();
        if columns.is_empty() && !auto {
            columns = cells(header).iter().map(|cell| String::from_utf8_lossy(cell).trim().to_owned()).collect();
            // A file that was empty when the watch began: its first line names the columns.
            if line == header {
                return Ok(None);
            }
        }
        let row = cells(line);
        if row.is_empty() {
            return Ok(None);
        }
        let name = |at: usize| columns.get(at).cloned().unwrap_or_else(|| format!("Col{at}"));
        Ok(Some(row.iter().enumerate().map(|(at, cell)| (Key::from(name(at)), typed(cell))).collect()))
    })
}

fn cat(call: Call) -> Result<Rows, CallError> {
    const WAIT: Duration = Duration::from_millis(100);
    let scope = call.scope().clone();
    let path = call.path("filename").ok_or_else(|| CallError::failed("Field filename is required"))?;
    let mut reader = accessor::named(&scope, &call.string("accessor"))?.open(&scope, &path)?;
    let chunk = usize::try_from(call.opt_int("chunk").unwrap_or(4096)).unwrap_or(0).clamp(1, 16 << 20);
    let timeout = call.opt_int("timeout").and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    let until = timeout.map(|seconds| scope.elapsed().saturating_add(Duration::from_secs(seconds)));
    let mut buffer = vec![0; chunk];
    let mut ended = false;
    Ok(Rows::from_fn(move || {
        loop {
            if ended || scope.stopped() || until.is_some_and(|until| scope.elapsed() >= until) {
                return None;
            }
            match reader.read(&mut buffer) {
                Ok(0) => return None,
                Ok(got) => return Some(Ok(Dict::new().with("Data", Value::str(buffer.get(..got).unwrap_or_default())).into())),
                // A pipe that has nothing at the moment.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if scope.sleep(WAIT) {
                        return None;
                    }
                }
                Err(error) => {
                    ended = true;
                    return Some(Err(error.into()));
                }
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, Query, parse_statement};

    use super::*;

    fn scope() -> Scope {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let clock = Arc::new(crate::SystemClock::default());
        crate::with_authority(Environment::new(Arc::new(crate::registry())).clock(clock), authority).open()
    }

    fn append(path: &Path, text: &str) {
        std::fs::File::options().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// The rows of a watch of a file that has `before`, while `steps` are written one after the other.
    fn watched(plugin: &str, before: &str, steps: &[&str], rows: usize) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, before).unwrap();
        let scope = scope();
        let vql = format!("SELECT * FROM {plugin}(filename='{}') LIMIT {rows}", path.display());
        let statement = parse_statement(&vql).unwrap();
        let mut query = Query::new(&scope, &statement);
        let steps: Vec<String> = steps.iter().map(|step| (*step).to_owned()).collect();
        let writer = std::thread::spawn(move || {
            for step in steps {
                std::thread::sleep(Duration::from_millis(300));
                append(&path, &step);
            }
            folder
        });
        let found = query.by_ref().map(|row| json::encode(&row.into())).collect();
        drop(writer.join().unwrap());
        found
    }

    #[test]
    fn lines_are_given_when_they_are_whole() {
        assert_eq!(watched("watch_syslog", "old\n", &["new ", "line\nsecond\n"], 2), [r#"{"Line":"new line"}"#, r#"{"Line":"second"}"#]);
        assert_eq!(watched("watch_jsonl", "{\"A\":0}\n", &["{\"A\":1}\nnonsense\n{\"A\":2}\n"], 2), [r#"{"A":1}"#, r#"{"A":2}"#]);
        assert_eq!(watched("watch_csv", "A,B\n1,2\n", &["3,x\n"], 1), [r#"{"A":3,"B":"x"}"#]);
    }

    #[test]
    fn a_watch_ends_when_its_query_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "").unwrap();
        let scope = scope();
        let token = scope.cancel_token().clone();
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            token.cancel("enough");
        });
        let started = std::time::Instant::now();
        let vql = format!("SELECT * FROM watch_syslog(filename='{}')", path.display());
        assert_eq!(Query::new(&scope, &parse_statement(&vql).unwrap()).count(), 0);
        assert!(started.elapsed() < Duration::from_secs(2));
        stopper.join().unwrap();
    }

    #[test]
    fn a_file_comes_in_pieces() {
        let scope = scope();
        let statement = parse_statement("SELECT * FROM cat(filename='abcde', accessor='data', chunk=2)").unwrap();
        let rows: Vec<String> = Query::new(&scope, &statement).map(|row| json::encode(&row.into())).collect();
        assert_eq!(rows, [r#"{"Data":"ab"}"#, r#"{"Data":"cd"}"#, r#"{"Data":"e"}"#]);
    }
}
