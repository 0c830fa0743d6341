//! `leveldb()`: the entries of LevelDB databases, which browsers and programs built on them keep. The folder is read into memory.

use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use rusty_leveldb::env::Env;
use rusty_leveldb::{DB, LdbIterator, MemEnv, in_memory};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, OsPath, Registry, Rows, Signature, Value};

use crate::accessor;
use crate::files::{buffer_limit, read_up_to};

/// How many rows wait for the query.
const AHEAD: usize = 64;
/// A folder with more files is refused.
const MAX_FILES: usize = 10_000;

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("leveldb", "The entries of a LevelDB database.").args(
            const {
                &[
                    Arg::required("file", ArgType::Path, "The folder of the database."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                ]
            },
        ),
        leveldb,
    );
}

/// A file of the folder.
type File = (String, Vec<u8>);
/// An entry: key and value.
type Entry = Result<(Vec<u8>, Vec<u8>), String>;

fn leveldb(call: Call) -> Result<Rows, CallError> {
    const LOOK: Duration = Duration::from_millis(200);
    let scope = call.scope().clone();
    let accessor = accessor::named(&scope, &call.string("accessor"))?;
    let folder = call.path("file").ok_or_else(|| CallError::failed("Field file is required"))?;
    let mut files: Vec<File> = Vec::new();
    let mut left = buffer_limit(&scope);
    let listed = accessor.list(&scope, &folder)?;
    if listed.len() > MAX_FILES {
        return Err(CallError::failed(format!("more than {MAX_FILES} files")));
    }
    for info in listed.into_iter().filter(|info| !info.is_dir && is_part(&info.path)) {
        let mut reader = accessor.open(&scope, &info.path)?;
        let content = read_up_to(&mut *reader, left, &scope)?;
        left = left
            .checked_sub(content.len() as u64)
            .filter(|left| *left > 0)
            .ok_or_else(|| CallError::failed(format!("the database is larger than {} bytes", buffer_limit(&scope))))?;
        files.push((info.path.basename().to_str().into_owned(), content));
    }
    if !files.iter().any(|(name, _)| name == "CURRENT") {
        return Err(CallError::failed(format!("{folder}: not a LevelDB database")));
    }
    let (sender, receiver) = sync_channel(AHEAD);
    std::thread::Builder::new().name("leveldb".to_owned()).spawn(move || {
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| entries(files, &sender)));
        let failure = match read {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => "the database is damaged".to_owned(),
        };
        // Nobody listens any more when the query has ended.
        let _ = sender.send(Err(failure));
    })?;
    Ok(Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            match receiver.recv_timeout(LOOK) {
                Ok(Ok((key, value))) => {
                    return Some(Ok(Dict::new().with("Key", Value::str(key)).with("Value", Value::str(value)).into()));
                }
                Ok(Err(error)) => return Some(Err(CallError::failed(error))),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }))
}

/// Whether the file is one of a database: not its lock, nor its notes.
fn is_part(path: &Arc<OsPath>) -> bool {
    let name = path.basename();
    let name = name.to_str();
    name == "CURRENT" || name.starts_with("MANIFEST-") || [".ldb", ".sst", ".log"].iter().any(|end| name.ends_with(end))
}

fn entries(files: Vec<File>, out: &SyncSender<Entry>) -> Result<(), String> {
    const FOLDER: &str = "db";
    let env = MemEnv::new();
    for (name, content) in files {
        let mut file = env.open_writable_file(&Path::new(FOLDER).join(name)).map_err(|error| error.to_string())?;
        file.write_all(&content).map_err(|error| error.to_string())?;
    }
    let mut options = in_memory();
    options.env = Rc::new(Box::new(env));
    options.create_if_missing = false;
    options.write_buffer_size = usize::MAX / 4;
    let mut database = DB::open(FOLDER, options).map_err(|error| error.to_string())?;
    let mut iterator = database.new_iter().map_err(|error| error.to_string())?;
    while let Some(entry) = LdbIterator::next(&mut iterator) {
        if out.send(Ok(entry)).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    fn rows(folder: &Path) -> Vec<String> {
        let log = Arc::new(MemoryLog::default());
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let scope = crate::with_authority(Environment::new(Arc::new(crate::registry())).log(log.clone()), authority).open();
        let statement = parse_statement(&format!("SELECT * FROM leveldb(file='{}')", folder.display())).unwrap();
        let rows: Vec<String> = Query::new(&scope, &statement).map(|row| json::encode(&row.into())).collect();
        rows.into_iter().chain(log.take().into_iter().filter(|line| !line.starts_with("DEBUG"))).collect()
    }

    /// Writes a database with the library into memory, and its files into `folder`.
    fn database(folder: &Path) {
        let options = in_memory();
        let env = options.env.clone();
        let mut database = DB::open("made", options).unwrap();
        database.put(b"one", b"1").unwrap();
        database.put(b"two", b"2").unwrap();
        database.put(b"gone", b"x").unwrap();
        database.delete(b"gone").unwrap();
        database.flush().unwrap();
        database.close().unwrap();
        for name in env.children(Path::new("made")).unwrap() {
            let name = name.file_name().unwrap().to_owned();
            let mut content = Vec::new();
            env.open_sequential_file(&Path::new("made").join(&name)).unwrap().read_to_end(&mut content).unwrap();
            std::fs::write(folder.join(name), content).unwrap();
        }
    }

    #[test]
    fn entries_are_rows() {
        let folder = tempfile::tempdir().unwrap();
        database(folder.path());
        assert_eq!(rows(folder.path()), [r#"{"Key":"one","Value":"1"}"#, r#"{"Key":"two","Value":"2"}"#]);
    }

    #[test]
    fn other_folders_and_damage_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(rows(folder.path())[0].contains("not a LevelDB database"));
        std::fs::write(folder.path().join("CURRENT"), "MANIFEST-000001\n").unwrap();
        std::fs::write(folder.path().join("MANIFEST-000001"), [0xff; 100]).unwrap();
        let lines = rows(folder.path());
        assert!(lines.len() == 1 && lines[0].starts_with("leveldb: "), "{lines:?}");
    }
}
