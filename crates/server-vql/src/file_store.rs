//! The accessor `fs`: what an organisation's agents uploaded, as files of its store; and `file_store()`, which says where one is.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use talon_endpoint_vql::FileTimes;
use talon_endpoint_vql::accessor::{Accessor, FileInfo, FileReader, Mode};
use talon_ids::{Permission, Permissions};
use talon_server::Session;
use talon_store::ObjectName;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, OsPath, PathFlavour, Registry, Scope, Signature, Value};

use crate::access::session;

const FILE_STORE: Signature = Signature::function("file_store", "Says where in the whole store a file of this organisation is.")
    .args(&[Arg::required("path", ArgType::Path, "The path, as the accessor fs has it.")])
    .permissions(&[Permission::ServerAdmin]);

pub(crate) fn register(registry: &mut Registry) {
    registry.function(FILE_STORE, location);
}

fn location(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let path = call.path("path").ok_or("Field path is required")?;
    let org = session.org().id();
    let within = name(&path).components().join("/");
    Ok(if org.is_root() { format!("/{within}") } else { format!("/orgs/{org}/{within}") }.into())
}

/// The accessor of the query's organisation. It only reads.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileStore;

fn name(path: &OsPath) -> ObjectName {
    ObjectName::new(path.components().iter().map(|part| part.to_str().into_owned()))
}

fn failed(error: impl std::fmt::Display) -> CallError {
    CallError::failed(error)
}

fn info(path: Arc<OsPath>, size: Option<u64>) -> FileInfo {
    FileInfo {
        path,
        size: size.unwrap_or(0),
        mode: Mode(if size.is_some() { 0o100_644 } else { 0o40_755 }),
        is_dir: size.is_none(),
        is_link: false,
        times: FileTimes::default(),
        identity: None,
        data: Dict::new(),
    }
}

/// The size of an upload or a table; `None` for what is neither.
fn size_of(session: &Session, name: &ObjectName) -> Result<Option<u64>, CallError> {
    let (org, reader) = (session.org().id(), session.org().reader());
    if let Some(upload) = reader.upload(org, name).map_err(failed)? {
        return Ok(Some(upload.bytes));
    }
    let table = reader.table(org, name).map_err(failed)?;
    Ok((table.rows > 0).then_some(table.bytes))
}

/// The names of what is directly in a folder, each with whether there is something below it.
fn entries(session: &Session, folder: &ObjectName) -> Result<Vec<(String, bool)>, CallError> {
    let within = folder.components();
    let mut found: Vec<(String, bool)> = Vec::new();
    let mut objects = session.org().reader().objects(session.org().id(), folder).map_err(failed)?;
    objects.sort();
    for object in objects {
        let Some(rest) = object.components().strip_prefix(within) else { continue };
        let Some((first, deeper)) = rest.split_first() else { continue };
        match found.last_mut().filter(|(name, _)| name == first) {
            Some((_, is_folder)) => *is_folder |= !deeper.is_empty(),
            None => found.push((first.clone(), !deeper.is_empty())),
        }
    }
    Ok(found)
}

impl Accessor for FileStore {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::FileStore
    }

    fn permissions(&self) -> Permissions {
        Permissions::of(&[Permission::ServerAdmin])
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        let (session, name) = (session(scope)?, name(path));
        match session.org().reader().upload(session.org().id(), &name).map_err(failed)? {
            Some(upload) => Ok(Box::new(StoredFile { session, name, size: upload.bytes, at: 0 })),
            None if size_of(&session, &name)?.is_some() => Err(failed(format!("{path} is a table of rows: read it with source()"))),
            None => Err(failed(format!("{path}: there is no such file"))),
        }
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        let (session, name) = (session(scope)?, name(path));
        if name.components().is_empty() {
            return Ok(info(path.clone(), None));
        }
        match size_of(&session, &name)? {
            Some(size) => Ok(info(path.clone(), Some(size))),
            None if !entries(&session, &name)?.is_empty() => Ok(info(path.clone(), None)),
            None => Err(failed(format!("{path}: there is no such file"))),
        }
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        let session = session(scope)?;
        let mut found = Vec::new();
        for (entry, is_folder) in entries(&session, &name(path))? {
            let path = Arc::new(path.join(entry.as_str()));
            let size = if is_folder { None } else { Some(size_of(&session, &name(&path))?.unwrap_or(0)) };
            found.push(info(path, size));
        }
        Ok(found)
    }
}

/// An upload that is being read.
struct StoredFile {
    session: Arc<Session>,
    name: ObjectName,
    size: u64,
    at: u64,
}

impl Read for StoredFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        /// Bytes asked of the store at once.
        const MOST: usize = 1 << 20;
        let org = self.session.org();
        let wanted = buffer.len().min(MOST);
        let bytes = org.reader().read_upload(org.id(), &self.name, self.at, wanted).map_err(io::Error::other)?;
        let count = bytes.len().min(wanted);
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

impl Seek for StoredFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

impl FileReader for StoredFile {}
