//! Files written by queries: `copy()`, `write_file()`, `upload_directory()`.

use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use md5::Digest;
use talon_acl::{FilesystemWrite, Permit};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, OsPath, Registry, Scope, Signature, Value};

use crate::accessor::{self, FileReader};
use crate::authority::permit;
use crate::host;

/// The mode of new folders unless the call says otherwise.
const FOLDER_MODE: u32 = 0o700;
/// Bytes at one time; cancellation is seen between two.
const PIECE: usize = 64 << 10;

pub(crate) fn register(registry: &mut Registry) {
    const PERMISSIONS: Arg =
        Arg::optional("permissions", ArgType::String, "Its mode: octal, or letters of rwx for the owner; rw unless given.");
    const APPEND: Arg = Arg::optional("append", ArgType::Bool, "Keep what the file has.");
    const FOLDERS: Arg = Arg::optional("create_directories", ArgType::Bool, "Make the folders above it.");
    registry.function(
        Signature::function("copy", "Copies a file to a place on this machine, and gives that place.")
            .args(
                const {
                    &[
                        Arg::required("filename", ArgType::Path, "The file."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                        Arg::required("dest", ArgType::String, "Where the copy goes."),
                        PERMISSIONS,
                        Arg::optional(
                            "dir_permissions",
                            ArgType::String,
                            "The mode of folders that are made; rwx for the owner unless given.",
                        ),
                        APPEND,
                        FOLDERS,
                    ]
                },
            )
            .permissions(&[Permission::FilesystemWrite, Permission::FilesystemRead])
            .version(3),
        copy,
    );
    registry.function(
        Signature::function("write_file", "Writes a text to a file of this machine, and gives its path.")
            .args(
                const {
                    &[
                        Arg::required("data", ArgType::String, "The content."),
                        Arg::required("dest", ArgType::String, "The file."),
                        PERMISSIONS,
                        APPEND,
                        FOLDERS,
                    ]
                },
            )
            .permissions(&[Permission::FilesystemWrite, Permission::FilesystemRead]),
        write_file,
    );
    registry.function(
        Signature::function("upload_directory", "Copies a file into a folder, under the name that an upload of it would have.")
            .args(
                const {
                    &[
                        Arg::required("file", ArgType::Path, "The file."),
                        Arg::optional("name", ArgType::Path, "The name to store it under, instead of its path."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                        Arg::required("output", ArgType::String, "The folder."),
                        Arg::optional("mtime", ArgType::Any, "Modification time to set."),
                        Arg::optional("atime", ArgType::Any, "Access time to set."),
                        Arg::optional("ctime", ArgType::Any, "Not used: no system lets it be set."),
                        Arg::optional("btime", ArgType::Any, "Not used: no system lets it be set."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemWrite]),
        upload_directory,
    );
}

/// The file to be written, and whether its mode must be set afterwards.
fn destination(call: &Call, permit: &Permit<FilesystemWrite>) -> Result<(File, PathBuf), CallError> {
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(&call.bytes("dest")));
    let mode = |name: &str| call.opt_string(name).filter(|mode| !mode.is_empty()).map(|mode| host::mode(&mode)).transpose();
    let (mode, folder_mode) = (mode("permissions")?, mode("dir_permissions")?);
    if call.bool("create_directories")
        && let Some(folder) = path.parent()
    {
        host::create_dirs(permit, folder, folder_mode.unwrap_or(FOLDER_MODE)).map_err(|error| named(folder, &error))?;
    }
    let file = host::write(permit, &path, call.bool("append")).map_err(|error| named(&path, &error))?;
    if let Some(mode) = mode {
        host::set_mode(permit, &file, mode)?;
    }
    Ok((file, path))
}

fn named(path: &Path, error: &std::io::Error) -> CallError {
    CallError::failed(format!("{}: {error}", path.display()))
}

/// Copies all of `from`, and shows each piece to `look`.
fn pump(scope: &Scope, from: &mut dyn FileReader, to: &mut File, mut look: impl FnMut(&[u8])) -> Result<u64, CallError> {
    let mut buffer = vec![0; PIECE];
    let mut size = 0_u64;
    loop {
        if scope.stopped() {
            return Err(CallError::Silent);
        }
        let got = from.read(&mut buffer)?;
        let Some(piece) = buffer.get(..got).filter(|piece| !piece.is_empty()) else { return Ok(size) };
        look(piece);
        to.write_all(piece)?;
        size = size.saturating_add(piece.len() as u64);
    }
}

/// An open file with its path and what is known of it.
type Source = (std::sync::Arc<OsPath>, Box<dyn FileReader>, accessor::FileInfo);

fn source(call: &Call, argument: &str) -> Result<Source, CallError> {
    let scope = call.scope();
    let accessor = accessor::named(scope, &call.string("accessor"))?;
    let path = call.path(argument).ok_or_else(|| CallError::failed(format!("Field {argument} is required")))?;
    let info = accessor.stat_target(scope, &path)?;
    if info.is_dir {
        return Err(CallError::failed(format!("{path} is a directory")));
    }
    Ok((path.clone(), accessor.open(scope, &path)?, info))
}

fn copy(call: Call) -> Result<Value, CallError> {
    let permit: Permit<FilesystemWrite> = permit(call.scope())?;
    let (_, mut reader, _) = source(&call, "filename")?;
    let (mut file, path) = destination(&call, &permit)?;
    pump(call.scope(), reader.as_mut(), &mut file, |_| ())?;
    Ok(Value::str(path.as_os_str().as_bytes()))
}

fn write_file(call: Call) -> Result<Value, CallError> {
    let permit: Permit<FilesystemWrite> = permit(call.scope())?;
    let (mut file, path) = destination(&call, &permit)?;
    file.write_all(&call.bytes("data"))?;
    Ok(Value::str(path.as_os_str().as_bytes()))
}

/// A component as the name of a file: nothing in it leads anywhere.
fn safe(component: &str) -> String {
    let escaped: String = component.chars().map(|c| if c == '/' || c == '\0' { '_' } else { c }).collect();
    if matches!(escaped.as_str(), "" | "." | "..") { format!("_{escaped}") } else { escaped }
}

fn upload_directory(call: Call) -> Result<Value, CallError> {
    let permit: Permit<FilesystemWrite> = permit(call.scope())?;
    let (path, mut reader, info) = source(&call, "file")?;
    let stored = call.path("name").unwrap_or_else(|| path.clone());
    let components: Vec<String> = stored.components().iter().map(|part| safe(&part.to_str())).collect();
    let mut target = PathBuf::from(std::ffi::OsStr::from_bytes(&call.bytes("output")));
    target.extend(&components);
    let folder = target.parent().ok_or("output must be a folder")?;
    host::create_dirs(&permit, folder, FOLDER_MODE).map_err(|error| named(folder, &error))?;
    let mut file = host::write(&permit, &target, false).map_err(|error| named(&target, &error))?;
    let (mut md5, mut sha256) = (md5::Md5::new(), talon_crypto::Sha256::new());
    let size = pump(call.scope(), reader.as_mut(), &mut file, |piece| {
        md5.update(piece);
        sha256.update(piece);
    })?;
    let given = |name: &str| {
        let time = call.has(name).then(|| talon_vql::moment(&call.value(name), call.scope())).flatten();
        time.and_then(|time| i64::try_from(time.unix_nanos()).ok())
    };
    host::set_times(&permit, &file, given("mtime").or(info.times.mtime), given("atime").or(info.times.atime))?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(Dict::new()
        .with("Path", Value::str(target.as_os_str().as_bytes()))
        .with("Size", size)
        .with("sha256", hex(&sha256.finish()))
        .with("md5", hex(&md5.finalize()))
        .with("Components", components)
        .into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    fn allowed() -> Environment {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        crate::with_authority(Environment::new(Arc::new(crate::registry())), authority)
    }

    fn value(environment: Environment, expression: &str) -> String {
        let scope = environment.open();
        let row = Query::new(&scope, &parse_statement(&format!("SELECT {expression} AS X FROM scope()")).unwrap()).next().unwrap();
        json::encode(row.get("X").unwrap())
    }

    #[test]
    fn files_are_written_and_copied() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display();
        let file = folder.path().join("a/b");
        assert_eq!(
            value(allowed(), &format!("write_file(data='one', dest='{root}/a/b', create_directories=TRUE, permissions='0640')")),
            format!("\"{}\"", file.display())
        );
        assert_eq!(
            value(allowed(), &format!("copy(filename='two', accessor='data', dest='{root}/a/b', append=TRUE)")),
            format!("\"{}\"", file.display())
        );
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "onetwo");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(value(allowed(), &format!("copy(filename='x', accessor='data', dest='{root}/no/where')")), "null");
    }

    #[test]
    fn a_stored_name_leads_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display();
        let name = "pathspec(parse='../../etc/passwd', path_type='generic')";
        let shown = value(
            allowed(),
            &format!("upload_directory(file='abc', accessor='data', name={name}, output='{root}/out', mtime=1000000000).sha256"),
        );
        assert_eq!(shown, "\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"");
        let file = folder.path().join("out/etc/passwd");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "abc");
        let changed = std::fs::metadata(&file).unwrap().modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(changed.as_secs(), 1_000_000_000);
        assert_eq!((safe(".."), safe("a/b"), safe("")), ("_..".to_owned(), "a_b".to_owned(), "_".to_owned()));
    }

    #[test]
    fn without_the_permission_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let log = Arc::new(MemoryLog::default());
        for call in [
            "write_file(data='x', dest='{}/a')",
            "copy(filename='x', accessor='data', dest='{}/a')",
            "upload_directory(file='x', accessor='data', output='{}')",
        ] {
            let environment = Environment::new(Arc::new(crate::registry())).log(log.clone());
            assert_eq!(value(environment, &call.replace("{}", &folder.path().display().to_string())), "null");
        }
        assert_eq!(log.take().iter().filter(|line| line.contains("PermissionDenied")).count(), 3);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
