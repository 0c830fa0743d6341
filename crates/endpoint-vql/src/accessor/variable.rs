//! `scope`: the path names a variable, whose bytes are the content.

use std::io::Cursor;
use std::sync::Arc;

use talon_ids::Permissions;
use talon_vql::{CallError, OsPath, PathFlavour, Scope};

use super::data::info;
use super::{Accessor, FileInfo, FileReader};

pub(super) struct Variable;

impl Accessor for Variable {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        Ok(Box::new(Cursor::new(content(scope, path)?)))
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        Ok(info(path, content(scope, path)?.len()))
    }

    fn list(&self, _: &Scope, _: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        Err(CallError::failed("the scope accessor has no folders"))
    }
}

fn content(scope: &Scope, path: &OsPath) -> Result<Arc<[u8]>, CallError> {
    let name = path.as_literal().map_or_else(|| path.plain().to_str().into_owned(), |text| text.to_str().into_owned());
    let value = scope.variable(&name).ok_or_else(|| CallError::failed(format!("scope accessor: no variable {name}")))?;
    Ok(value.as_bytes().map_or_else(|| talon_vql::text::plain(&value).into_bytes(), Arc::from))
}
