//! `mscfb`: the streams of compound files, which old office documents and installers are.

use std::io::Cursor;
use std::sync::Arc;

use talon_ids::Permissions;
use talon_vql::{CallError, Dict, OsPath, PathFlavour, Scope, Text};

use super::delegate::open_seekable;
use super::{Accessor, FileInfo, FileReader, Mode};
use crate::files::{buffer_limit, read_up_to};
use crate::upload::FileTimes;

pub(super) struct Compound;

type File = cfb::CompoundFile<Box<dyn FileReader>>;

fn open(scope: &Scope, path: &OsPath) -> Result<File, CallError> {
    if path.delegate().is_none() {
        return Err(CallError::failed("mscfb: the path needs a DelegateAccessor and a DelegatePath"));
    }
    cfb::CompoundFile::open(open_seekable(scope, path)?).map_err(|error| CallError::failed(format!("mscfb: {error}")))
}

/// The path as the reader of such files writes it.
fn inside(path: &OsPath) -> String {
    let parts = path.components().iter().map(|part| part.to_str().into_owned());
    format!("/{}", parts.collect::<Vec<_>>().join("/"))
}

fn info(path: Arc<OsPath>, entry: &cfb::Entry) -> FileInfo {
    let nanos = |time: std::time::SystemTime| {
        let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_nanos()).ok()
    };
    let is_dir = !entry.is_stream();
    FileInfo {
        path,
        size: entry.len(),
        mode: Mode(if is_dir { 0o040_755 } else { 0o100_644 }),
        is_dir,
        is_link: false,
        times: FileTimes { mtime: nanos(entry.modified()), btime: nanos(entry.created()), ..FileTimes::default() },
        identity: None,
        data: Dict::new(),
    }
}

impl Accessor for Compound {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    /// What the file underneath needs is checked when it is opened.
    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        let mut file = open(scope, path)?;
        let mut stream = file.open_stream(inside(path))?;
        let limit = buffer_limit(scope);
        if stream.len() > limit {
            return Err(CallError::failed(format!("{path}: streams may have {limit} bytes at most")));
        }
        let content = read_up_to(&mut stream, limit, scope)?;
        Ok(Box::new(Cursor::new(Arc::<[u8]>::from(content))))
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        Ok(info(path.clone(), &open(scope, path)?.entry(inside(path))?))
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        let file = open(scope, path)?;
        let mut entries: Vec<FileInfo> =
            file.read_storage(inside(path))?.map(|entry| info(Arc::new(path.join(Text::from(entry.name()))), &entry)).collect();
        entries.sort_by_key(|entry| entry.path.basename());
        Ok(entries)
    }
}
