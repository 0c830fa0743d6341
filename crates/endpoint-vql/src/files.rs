//! Files one at a time: `stat()`, `read_file()`.

use std::io::{Read, Seek, SeekFrom};

use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Scope, Signature, Value};

use crate::accessor::{self, FileReader};

/// How much a file read as one value may have unless the query says otherwise (`BUFFER_MAX_SIZE`).
const BUFFER_MAX_SIZE: u64 = 100 << 20;

/// The size of the pieces of `read_file()` as a plugin unless the query says otherwise.
const CHUNK: i64 = 1 << 20;

const STAT: &[Arg] =
    &[Arg::required("filename", ArgType::Path, "The file."), Arg::optional("accessor", ArgType::String, "The accessor that reads it.")];

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("stat", "What the file system says of a file.").args(STAT).version(2).permissions(&[Permission::FilesystemRead]),
        |call| Ok(Rows::one(stat_row(&call)?)),
    );
    registry.function(
        Signature::function("stat", "What the file system says of a file.").args(STAT).permissions(&[Permission::FilesystemRead]),
        |call| Ok(stat_row(&call)?.into()),
    );
    registry.function(
        Signature::function("read_file", "The content of a file as a string.").args(
            const {
                &[
                    Arg::required("filename", ArgType::Path, "The file."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                    Arg::optional("length", ArgType::Int, "At most this many bytes."),
                    Arg::optional("offset", ArgType::Int, "Starting at this byte."),
                ]
            },
        ),
        read_function,
    );
    registry.plugin(
        Signature::plugin("read_file", "The content of files in pieces.").args(
            const {
                &[
                    Arg::required("filenames", ArgType::Paths, "The files."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads them."),
                    Arg::optional("chunk", ArgType::Int, "Bytes in each piece."),
                    Arg::optional("max_length", ArgType::Int, "At most this many bytes of each file."),
                ]
            },
        ),
        read_plugin,
    );
}

fn stat_row(call: &Call) -> Result<Dict, CallError> {
    let accessor = accessor::named(call.scope(), &call.string("accessor"))?;
    let path = call.path("filename").ok_or_else(|| CallError::failed("Field filename is required"))?;
    Ok(accessor.stat(call.scope(), &path)?.to_row())
}

/// The most bytes that one value of this query may have.
pub(crate) fn buffer_limit(scope: &Scope) -> u64 {
    scope
        .variable("BUFFER_MAX_SIZE")
        .and_then(|value| value.as_int())
        .and_then(|limit| u64::try_from(limit).ok())
        .unwrap_or(BUFFER_MAX_SIZE)
}

/// Reads up to `limit` bytes, giving up when the query is stopped.
pub(crate) fn read_up_to(mut reader: &mut dyn Read, limit: u64, scope: &Scope) -> Result<Vec<u8>, CallError> {
    const STEP: u64 = 1 << 20;
    let mut content = Vec::new();
    while (content.len() as u64) < limit && !scope.stopped() {
        let before = content.len();
        if !scope.has_room_for(before as u64) {
            return Err(CallError::failed("the file is larger than the memory that this query may use"));
        }
        let want = STEP.min(limit.saturating_sub(before as u64));
        (&mut reader).take(want).read_to_end(&mut content)?;
        if content.len() == before {
            break;
        }
    }
    Ok(content)
}

/// The content of the file that the argument `name` names, read by the accessor of the call.
pub(crate) fn content_of(call: &Call, name: &str) -> Result<Vec<u8>, CallError> {
    let scope = call.scope();
    let accessor = accessor::named(scope, &call.string("accessor"))?;
    let path = call.path(name).ok_or_else(|| CallError::failed(format!("Field {name} is required")))?;
    read_up_to(&mut *accessor.open(scope, &path)?, buffer_limit(scope), scope)
}

fn read_function(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let accessor = accessor::named(scope, &call.string("accessor"))?;
    let path = call.path("filename").ok_or_else(|| CallError::failed("Field filename is required"))?;
    let mut reader = accessor.open(scope, &path)?;
    let offset = u64::try_from(call.int("offset")).unwrap_or(0);
    if offset > 0 {
        reader.seek(SeekFrom::Start(offset))?;
    }
    let limit = buffer_limit(scope);
    let length = call.opt_int("length").and_then(|length| u64::try_from(length).ok()).filter(|length| *length > 0).unwrap_or(limit);
    Ok(Value::str(read_up_to(&mut *reader, length.min(limit), scope)?))
}

fn read_plugin(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let accessor = accessor::named(&scope, &call.string("accessor"))?;
    let chunk = u64::try_from(call.opt_int("chunk").unwrap_or(CHUNK)).unwrap_or(0).clamp(1, buffer_limit(&scope));
    let most = call.opt_int("max_length").and_then(|length| u64::try_from(length).ok()).filter(|length| *length > 0).unwrap_or(u64::MAX);
    let mut paths = call.paths("filenames").into_iter();
    let mut open: Option<(Box<dyn FileReader>, _, u64)> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            let Some((reader, path, offset)) = &mut open else {
                let path = paths.next()?;
                match accessor.open(&scope, &path) {
                    Ok(reader) => open = Some((reader, path, 0)),
                    Err(error) => call.log(error.to_string()),
                }
                continue;
            };
            let piece = match read_up_to(&mut **reader, chunk.min(most.saturating_sub(*offset)), &scope) {
                Ok(piece) if !piece.is_empty() => piece,
                Ok(_) => {
                    open = None;
                    continue;
                }
                Err(error) => {
                    call.log(error.to_string());
                    open = None;
                    continue;
                }
            };
            let at = *offset;
            *offset = at.saturating_add(piece.len() as u64);
            let row = Dict::new().with("Data", Value::str(piece)).with("Offset", at).with("Filename", path.clone());
            return Some(Ok(row.into()));
        }
    }))
}
