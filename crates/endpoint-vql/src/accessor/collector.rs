//! `collector`, `collector_sparse`: the ZIP files that offline collectors write. Sparse files in them are packed, with an index beside.

use std::io::Read;
use std::sync::Arc;

use talon_ids::Permissions;
use talon_vql::{CallError, OsPath, PathFlavour, Scope, Text};

use super::mapped::{Mapped, Mapping};
use super::zip::Zip;
use super::{Accessor, FileInfo, FileReader};

/// The end of the name of an index.
const INDEX: &[u8] = b".idx";

/// A collection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Collector {
    /// Packed files are shown as they were, with holes.
    pub(super) expand: bool,
}

impl Collector {
    fn mapping(self, scope: &Scope, path: &OsPath) -> Option<Mapping> {
        const LIMIT: u64 = 16 << 20;
        if !self.expand || path.basename().ends_with(INDEX) {
            return None;
        }
        let name = Text::from([path.basename().as_bytes(), INDEX].concat());
        let index = path.dirname().join(name);
        let archive = Zip::Plain.archive(scope, path).ok()?;
        let mut content = Vec::new();
        archive.open(scope, &index).ok()?.take(LIMIT).read_to_end(&mut content).ok()?;
        Mapping::parse(&content).ok()
    }

    fn expanded(self, scope: &Scope, info: FileInfo) -> FileInfo {
        if info.is_dir {
            return info;
        }
        match self.mapping(scope, &info.path) {
            Some(mapping) => FileInfo { size: mapping.size(), ..info },
            None => info,
        }
    }
}

impl Accessor for Collector {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        let packed = Zip::Plain.archive(scope, path)?.open(scope, path)?;
        Ok(match self.mapping(scope, path) {
            Some(mapping) => Box::new(Mapped::new(packed, mapping)),
            None => packed,
        })
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        Ok(self.expanded(scope, Zip::Plain.archive(scope, path)?.stat(path)?))
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        let entries = Zip::Plain.archive(scope, path)?.list(path)?;
        Ok(entries.into_iter().map(|entry| self.expanded(scope, entry)).collect())
    }
}
