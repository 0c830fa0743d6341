//! Files and folders that go when the query ends: `tempfile()`, `tempdir()`; and `rm()`.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use talon_acl::{FilesystemWrite, Permit};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Registry, Signature, Value};

use crate::authority::permit;
use crate::host;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("tempfile", "A new file with the given content, removed when the query ends.")
            .args(
                const {
                    &[
                        Arg::optional("data", ArgType::Strings, "Its content; several are written one after the other."),
                        Arg::optional("extension", ArgType::String, "The end of its name."),
                        Arg::optional("permissions", ArgType::String, "Its mode: octal, or letters of rwx for the owner; rw unless given."),
                        Arg::optional("remove_last", ArgType::Bool, "Remove it after everything else."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemWrite]),
        tempfile,
    );
    registry.function(
        Signature::function("tempdir", "A new folder, removed with all that is in it when the query ends.")
            .args(const { &[Arg::optional("remove_last", ArgType::Bool, "Remove it after everything else.")] })
            .permissions(&[Permission::FilesystemWrite]),
        tempdir,
    );
    registry.function(
        Signature::function("rm", "Removes a file, or a folder with all that is in it.")
            .args(const { &[Arg::required("filename", ArgType::String, "What to remove.")] })
            .permissions(&[Permission::FilesystemWrite]),
        |call| {
            host::remove(&permit(call.scope())?, call.string("filename").as_ref())?;
            Ok(true.into())
        },
    );
}

/// A name that nobody can guess, in the system's folder for such things.
fn fresh_name(call: &Call, extension: &str) -> Result<PathBuf, CallError> {
    if extension.len() > 32 || !extension.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')) {
        return Err(CallError::failed("extension may have letters, digits, `.`, `-` and `_` only"));
    }
    let chance = (call.scope().random(), std::process::id());
    Ok(std::env::temp_dir().join(format!("talon-{:016x}-{}{extension}", chance.0, chance.1)))
}

/// A new temporary file.
pub(crate) fn create(
    permit: &Permit<FilesystemWrite>,
    call: &Call,
    extension: &str,
    remove_last: bool,
) -> Result<(File, PathBuf), CallError> {
    let path = fresh_name(call, extension)?;
    let file = host::create_new(permit, &path)?;
    remove_at_end(call, path.clone(), remove_last)?;
    Ok((file, path))
}

fn tempfile(call: Call) -> Result<Value, CallError> {
    let permit = permit(call.scope())?;
    let mode = call.opt_string("permissions").filter(|mode| !mode.is_empty()).map(|mode| host::mode(&mode)).transpose()?;
    let (mut file, path) = create(&permit, &call, &call.string("extension"), call.bool("remove_last"))?;
    for piece in call.texts("data") {
        file.write_all(piece.as_bytes())?;
    }
    if let Some(mode) = mode {
        host::set_mode(&permit, &file, mode)?;
    }
    Ok(path.display().to_string().into())
}

fn tempdir(call: Call) -> Result<Value, CallError> {
    let path = fresh_name(&call, "")?;
    host::create_dir(&permit(call.scope())?, &path)?;
    remove_at_end(&call, path.clone(), call.bool("remove_last"))?;
    Ok(path.display().to_string().into())
}

/// What goes when everything else of the query is gone: it is dropped with the query itself.
#[derive(Default)]
struct Last(Mutex<Vec<(Permit<FilesystemWrite>, PathBuf)>>);

impl Drop for Last {
    fn drop(&mut self) {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        all.iter().for_each(|(permit, path)| remove(permit, path));
    }
}

fn remove(permit: &Permit<FilesystemWrite>, path: &std::path::Path) {
    match host::remove(permit, path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), %error, "a temporary file was not removed");
        }
        _ => {}
    }
}

fn remove_at_end(call: &Call, path: PathBuf, last: bool) -> Result<(), CallError> {
    let permit = permit(call.scope())?;
    if last {
        call.scope().shared::<Last>().0.lock().unwrap_or_else(PoisonError::into_inner).push((permit, path));
    } else {
        call.scope().on_query_close(move || remove(&permit, &path));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, Query, Value, parse_statement};

    #[test]
    fn a_temporary_file_holds_its_content_until_the_query_ends() {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let scope = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).open();
        let mut query =
            Query::new(&scope, &parse_statement("SELECT tempfile(data='secret', extension='.txt') AS Path FROM scope()").unwrap());
        let path = query.next().and_then(|row| row.get("Path").and_then(Value::as_str).map(str::to_owned)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "secret");
        drop(query);
        drop(scope);
        assert!(!std::path::Path::new(&path).exists());
    }

    #[test]
    fn modes_are_as_asked_and_the_last_file_goes_last() {
        use std::os::unix::fs::PermissionsExt as _;
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let scope = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).open();
        let path = |text: &str| {
            let row = Query::new(&scope, &parse_statement(&format!("SELECT {text} AS Path FROM scope()")).unwrap()).next().unwrap();
            row.get("Path").and_then(Value::as_str).map(str::to_owned).unwrap()
        };
        let mode = |path: &str| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (plain, program, last) = (path("tempfile()"), path("tempfile(permissions='rx')"), path("tempdir(remove_last=TRUE)"));
        assert_eq!((mode(&plain), mode(&program), mode(&path("tempfile(permissions='0640')"))), (0o600, 0o500, 0o640));
        let (seen, kept) = (last.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let witness = kept.clone();
        scope.on_query_close(move || witness.store(std::path::Path::new(&seen).exists(), std::sync::atomic::Ordering::Relaxed));
        drop(scope);
        assert!(kept.load(std::sync::atomic::Ordering::Relaxed));
        assert!([plain, program, last].iter().all(|path| !std::path::Path::new(path).exists()));
    }

    #[test]
    fn without_the_permission_nothing_is_written() {
        let scope = Environment::new(Arc::new(crate::registry())).open();
        let row = Query::new(&scope, &parse_statement("SELECT tempfile(data='x') AS Path FROM scope()").unwrap()).next().unwrap();
        assert!(row.get("Path").is_some_and(Value::is_null));
    }
}
