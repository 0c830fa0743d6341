//! Files and folders that go when the query ends: `tempfile()`, `tempdir()`; and `rm()`.

use std::io::Write;

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
fn fresh_name(call: &Call, extension: &str) -> Result<std::path::PathBuf, CallError> {
    if extension.len() > 32 || !extension.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')) {
        return Err(CallError::failed("extension may have letters, digits, `.`, `-` and `_` only"));
    }
    let chance = (call.scope().random(), std::process::id());
    Ok(std::env::temp_dir().join(format!("talon-{:016x}-{}{extension}", chance.0, chance.1)))
}

fn tempfile(call: Call) -> Result<Value, CallError> {
    let path = fresh_name(&call, &call.string("extension"))?;
    let mut file = host::create_new(&permit(call.scope())?, &path)?;
    for piece in call.texts("data") {
        file.write_all(piece.as_bytes())?;
    }
    remove_at_end(&call, path.clone())?;
    Ok(path.display().to_string().into())
}

fn tempdir(call: Call) -> Result<Value, CallError> {
    let path = fresh_name(&call, "")?;
    host::create_dir(&permit(call.scope())?, &path)?;
    remove_at_end(&call, path.clone())?;
    Ok(path.display().to_string().into())
}

fn remove_at_end(call: &Call, path: std::path::PathBuf) -> Result<(), CallError> {
    let permit = permit(call.scope())?;
    call.scope().on_query_close(move || {
        if let Err(error) = host::remove(&permit, &path) {
            tracing::debug!(path = %path.display(), %error, "a temporary file was not removed");
        }
    });
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
    fn without_the_permission_nothing_is_written() {
        let scope = Environment::new(Arc::new(crate::registry())).open();
        let row = Query::new(&scope, &parse_statement("SELECT tempfile(data='x') AS Path FROM scope()").unwrap()).next().unwrap();
        assert!(row.get("Path").is_some_and(Value::is_null));
    }
}
