//! `gzip`, `bzip2`: compressed files as if they were not. Folders are those of the file system.

use std::io::{BufReader, Read};
use std::sync::Arc;

use talon_ids::Permissions;
use talon_vql::{CallError, OsPath, PathFlavour, Scope};

use super::delegate::{Shared, Stream, inner};
use super::{Accessor, FileInfo, FileReader};

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compressed {
    Gzip,
    Bzip2,
}

impl Accessor for Compressed {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    /// What the file underneath needs is checked when it is opened.
    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        const BUFFER: usize = 1 << 16;
        let (accessor, below) = inner(scope, path)?;
        let file = Shared::new(accessor.open(scope, &below)?);
        let kind = *self;
        let restart = move || -> std::io::Result<Box<dyn Read + Send>> {
            let file = BufReader::with_capacity(BUFFER, file.clone());
            Ok(match kind {
                Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
                Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
            })
        };
        Ok(Box::new(Stream::new(scope, None, Box::new(restart))))
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        let (accessor, below) = inner(scope, path)?;
        Ok(FileInfo { path: path.clone(), ..accessor.stat(scope, &below)? })
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        if path.delegate().is_some() {
            return Err(CallError::failed("a compressed file has no folders"));
        }
        let (accessor, below) = inner(scope, path)?;
        let at_home = |entry: FileInfo| FileInfo { path: Arc::new(path.join(entry.path.basename())), ..entry };
        Ok(accessor.list(scope, &below)?.into_iter().map(at_home).collect())
    }
}
