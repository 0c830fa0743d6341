//! What accessors of container files stand on: the file underneath, parts of it, and streams that can be sought.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use talon_vql::{CallError, OsPath, PathFlavour, Scope, ScopeHandle};

use super::{Accessor, FileReader, named};
use crate::files::{buffer_limit, read_up_to};

/// How deep container files may lie in each other.
const MAX_NESTING: usize = 10;

/// The accessor and path of the file that `path` lies in. Without a delegate it is the file of that path itself.
pub(super) fn inner(scope: &Scope, path: &OsPath) -> Result<(Arc<dyn Accessor>, Arc<OsPath>), CallError> {
    match path.delegate() {
        None => Ok((named(scope, "file")?, Arc::new(OsPath::from_components(PathFlavour::Linux, path.components().iter().cloned())))),
        Some(delegate) => {
            if delegate.path.matches("DelegateAccessor").count() > MAX_NESTING {
                return Err(CallError::failed(format!("more than {MAX_NESTING} container files inside each other")));
            }
            let accessor = named(scope, &delegate.accessor)?;
            let path = if delegate.accessor == "data" || delegate.accessor == "scope" {
                OsPath::literal(delegate.path.as_str())
            } else {
                OsPath::parse(delegate.path.as_str(), accessor.flavour())
            };
            Ok((accessor, Arc::new(path)))
        }
    }
}

/// The file that `path` lies in, for reading here and there: one that can only be read from its start is taken into memory.
pub(super) fn open_seekable(scope: &Scope, path: &OsPath) -> Result<Box<dyn FileReader>, CallError> {
    let (accessor, inner) = inner(scope, path)?;
    let mut reader = accessor.open(scope, &inner)?;
    if !reader.is_stream() {
        return Ok(reader);
    }
    let limit = buffer_limit(scope);
    let content = read_up_to(&mut *reader, limit, scope)?;
    if content.len() as u64 >= limit {
        return Err(CallError::failed(format!("{inner}: compressed container files may have {limit} bytes at most")));
    }
    Ok(Box::new(io::Cursor::new(Arc::<[u8]>::from(content))))
}

/// A file that several readers share, each at a place of its own.
#[derive(Clone)]
pub(super) struct Shared {
    file: Arc<Mutex<Box<dyn FileReader>>>,
    at: u64,
}

impl Shared {
    pub(super) fn new(file: Box<dyn FileReader>) -> Self {
        Self { file: Arc::new(Mutex::new(file)), at: 0 }
    }
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.at))?;
        let got = file.read(buffer)?;
        self.at = self.at.saturating_add(got as u64);
        Ok(got)
    }
}

impl Seek for Shared {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => moved(self.at, by)?,
            SeekFrom::End(_) => self.file.lock().unwrap_or_else(PoisonError::into_inner).seek(to)?,
        };
        Ok(self.at)
    }
}

impl FileReader for Shared {}

/// A shared file with a buffer that survives small moves.
#[derive(Clone)]
pub(super) struct Buffered {
    file: Shared,
    buffer: Vec<u8>,
    /// Where the buffer lies in the file.
    from: u64,
    at: u64,
}

impl Buffered {
    pub(super) fn new(file: Shared) -> Self {
        Self { file, buffer: Vec::new(), from: 0, at: 0 }
    }

    fn held(&self) -> &[u8] {
        let into = self.at.checked_sub(self.from).and_then(|into| usize::try_from(into).ok());
        into.and_then(|into| self.buffer.get(into..)).unwrap_or_default()
    }
}

impl Read for Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const PAGE: usize = 8 << 10;
        if self.held().is_empty() {
            self.file.at = self.at;
            self.from = self.at;
            self.buffer.resize(PAGE, 0);
            let got = self.file.read(&mut self.buffer);
            self.buffer.truncate(*got.as_ref().unwrap_or(&0));
            got?;
        }
        let got = self.held().read(buffer)?;
        self.at = self.at.saturating_add(got as u64);
        Ok(got)
    }
}

impl Seek for Buffered {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => moved(self.at, by)?,
            SeekFrom::End(_) => self.file.seek(to)?,
        };
        Ok(self.at)
    }
}

fn moved(from: u64, by: i64) -> io::Result<u64> {
    from.checked_add_signed(by).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// A part of a file: `length` bytes from `start`.
#[derive(Clone)]
pub(super) struct Part<R> {
    file: R,
    start: u64,
    length: u64,
    at: u64,
}

impl<R: Read + Seek> Part<R> {
    pub(super) fn new(file: R, start: u64, length: u64) -> Self {
        Self { file, start, length, at: 0 }
    }
}

impl<R: Read + Seek> Read for Part<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let want = buffer.len().min(left);
        let Some(target) = buffer.get_mut(..want).filter(|target| !target.is_empty()) else { return Ok(0) };
        self.file.seek(SeekFrom::Start(self.start.saturating_add(self.at)))?;
        let got = self.file.read(target)?;
        self.at = self.at.saturating_add(got as u64);
        Ok(got)
    }
}

impl<R: Read + Seek> Seek for Part<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => moved(self.at, by)?,
            SeekFrom::End(by) => moved(self.length, by)?,
        };
        Ok(self.at)
    }
}

impl<R: Read + Seek + Send> FileReader for Part<R> {}

/// Starts a stream over.
pub(super) type Restart = Box<dyn FnMut() -> io::Result<Box<dyn Read + Send>> + Send>;

/// A stream that can only be read from its start: seeking reads on, or starts over.
pub(super) struct Stream {
    restart: Restart,
    stream: Option<Box<dyn Read + Send>>,
    /// How far the stream was read.
    read: u64,
    /// Where the next read is wanted.
    at: u64,
    size: Option<u64>,
    scope: ScopeHandle,
}

impl Stream {
    /// `size` is the size of the whole, if it is known without reading.
    pub(super) fn new(scope: &Scope, size: Option<u64>, restart: Restart) -> Self {
        Self { restart, stream: None, read: 0, at: 0, size, scope: scope.handle() }
    }

    /// The stream, having been read up to `to` or its end.
    fn advance(&mut self, to: u64) -> io::Result<&mut Box<dyn Read + Send>> {
        const STEP: usize = 1 << 16;
        if self.stream.is_none() || self.read > to {
            self.stream = Some((self.restart)()?);
            self.read = 0;
        }
        let stream = self.stream.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut scratch = Vec::new();
        while self.read < to {
            if self.scope.get().is_none_or(|scope| scope.stopped()) {
                return Err(io::Error::from(io::ErrorKind::TimedOut));
            }
            scratch.resize(STEP, 0);
            let want = usize::try_from(to.saturating_sub(self.read)).unwrap_or(STEP).min(STEP);
            let got = stream.read(scratch.get_mut(..want).unwrap_or_default())?;
            if got == 0 {
                break;
            }
            self.read = self.read.saturating_add(got as u64);
        }
        Ok(stream)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = self.at;
        self.advance(at)?;
        if self.read < at {
            return Ok(0);
        }
        let got = self.stream.as_mut().map_or(Ok(0), |stream| stream.read(buffer))?;
        self.read = self.read.saturating_add(got as u64);
        self.at = self.read;
        Ok(got)
    }
}

impl Seek for Stream {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => moved(self.at, by)?,
            SeekFrom::End(by) => {
                let size = match self.size {
                    Some(size) => size,
                    None => {
                        self.advance(u64::MAX)?;
                        *self.size.insert(self.read)
                    }
                };
                moved(size, by)?
            }
        };
        Ok(self.at)
    }
}

impl FileReader for Stream {
    fn is_stream(&self) -> bool {
        true
    }
}
