//! `data`: the path is the content.

use std::io::Cursor;
use std::sync::Arc;

use talon_ids::Permissions;
use talon_vql::{CallError, Dict, OsPath, PathFlavour, Scope};

use super::{Accessor, FileInfo, FileReader, Mode};
use crate::upload::FileTimes;

pub(super) struct Data;

/// The file that consists of `content`.
pub(super) fn info(path: &Arc<OsPath>, size: usize) -> FileInfo {
    FileInfo {
        path: path.clone(),
        size: size as u64,
        mode: Mode(0o100_644),
        is_dir: false,
        is_link: false,
        times: FileTimes::default(),
        identity: None,
        data: Dict::new(),
    }
}

impl Accessor for Data {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, _: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        Ok(Box::new(Cursor::new(content(path))))
    }

    fn stat(&self, _: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        Ok(info(path, content(path).len()))
    }

    fn list(&self, _: &Scope, _: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        Err(CallError::failed("the data accessor has no folders"))
    }
}

fn content(path: &OsPath) -> Arc<[u8]> {
    path.as_literal().map_or_else(|| path.plain().into_bytes(), |text| text.clone().into_bytes())
}
