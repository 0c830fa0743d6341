//! `pipe`: the rows of a query as a file. The path is the name of a variable that holds what `pipe()` gives, or the name it was given.

use std::any::Any;
use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use talon_ids::Permissions;
use talon_vql::{
    Arg, ArgType, Call, CallError, OsPath, PathFlavour, Registry, Rows, Scope, Signature, StoredQuery, Text, Value, member, to_text,
};

use super::data::info;
use super::{Accessor, FileInfo, FileReader};

/// How many names a query may give to pipes.
const MAX_PIPES: usize = 1000;

/// What `pipe()` gives.
#[derive(Clone)]
struct Pipe {
    query: StoredQuery,
    separator: Text,
}

impl talon_vql::Object for Pipe {
    fn type_name(&self) -> &'static str {
        "*functions.Pipe"
    }

    fn is_true(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The pipes of a query that have names.
#[derive(Default)]
struct Named(Mutex<HashMap<String, Pipe>>);

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("pipe", "Makes a file of the rows of a query, for the pipe accessor: the first column of each.").args(
            const {
                &[
                    Arg::optional("name", ArgType::String, "The name by which the accessor finds it; else that of the variable."),
                    Arg::optional("query", ArgType::Query, "Where the rows come from."),
                    Arg::optional("sep", ArgType::String, "What follows each row."),
                ]
            },
        ),
        pipe,
    );
}

fn pipe(call: Call) -> Result<Value, CallError> {
    let query = call.query("query").ok_or_else(|| CallError::failed("Field query is required"))?;
    let pipe = Pipe { query, separator: call.text("sep").unwrap_or_else(|| Text::from("")) };
    if let Some(name) = call.opt_string("name").filter(|name| !name.is_empty()) {
        let named = call.scope().shared::<Named>();
        let mut named = named.0.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() >= MAX_PIPES {
            return Err(CallError::failed(format!("more than {MAX_PIPES} pipes")));
        }
        named.insert(name, pipe.clone());
    }
    Ok(Value::Object(Arc::new(pipe)))
}

/// The `pipe` accessor.
pub(super) struct Piped;

impl Accessor for Piped {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    /// The query has checked what it needs.
    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        let name = path.as_literal().map_or_else(
            || path.components().iter().map(|part| part.to_str().into_owned()).collect::<Vec<_>>().join("/"),
            |text| text.to_str().into_owned(),
        );
        let held = match scope.variable(&name) {
            Some(Value::Object(object)) => object.as_any().downcast_ref::<Pipe>().cloned(),
            _ => None,
        };
        let named = || scope.shared::<Named>().0.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        let pipe = held.or_else(named).ok_or_else(|| CallError::failed(format!("pipe accessor: there is no pipe {name}")))?;
        Ok(Box::new(PipeReader { rows: Some(pipe.query.open(scope)), pipe, scope: scope.clone(), pending: Vec::new(), read: 0 }))
    }

    fn stat(&self, _: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        Ok(info(path, 0))
    }

    fn list(&self, _: &Scope, _: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        Err(CallError::failed("the pipe accessor has no folders"))
    }
}

struct PipeReader {
    pipe: Pipe,
    scope: Scope,
    rows: Option<Rows>,
    pending: Vec<u8>,
    read: u64,
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pending.is_empty() {
            if self.scope.stopped() {
                return Ok(0);
            }
            let Some(Ok(row)) = self.rows.as_mut().and_then(Iterator::next) else {
                self.rows = None;
                return Ok(0);
            };
            let row = member::row_to_dict(&row);
            let Some((_, value)) = row.get_index(0) else { continue };
            self.pending.extend_from_slice(&to_text(value.clone().materialized(&self.scope), &self.scope));
            self.pending.extend_from_slice(&self.pipe.separator);
        }
        let want = buffer.len().min(self.pending.len());
        for (target, byte) in buffer.iter_mut().zip(self.pending.drain(..want)) {
            *target = byte;
        }
        self.read = self.read.saturating_add(want as u64);
        Ok(want)
    }
}

impl Seek for PipeReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.read.checked_add_signed(by).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?,
            SeekFrom::End(_) => return Err(io::Error::from(io::ErrorKind::Unsupported)),
        };
        if target < self.read {
            self.rows = Some(self.pipe.query.open(&self.scope));
            self.pending.clear();
            self.read = 0;
        }
        let mut scratch = [0; 4096];
        while self.read < target {
            let want = usize::try_from(target.saturating_sub(self.read)).unwrap_or(usize::MAX).min(scratch.len());
            if self.read(scratch.get_mut(..want).unwrap_or_default())? == 0 {
                break;
            }
        }
        Ok(self.read)
    }
}

impl FileReader for PipeReader {
    fn is_stream(&self) -> bool {
        true
    }
}
