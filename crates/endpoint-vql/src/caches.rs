//! Files in which `cache()` remembers from query to query.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use talon_acl::{FilesystemRead, FilesystemWrite, Permit};
use talon_vql::{CacheFile, CacheStorage, CallError, Scope};

use crate::authority::permit;
use crate::host;

/// The largest file that is read as a cache.
const MAX_FILE: u64 = 64 << 20;

/// Keeps caches in files of the host, as far as the principal may read and write them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FileCaches;

impl CacheStorage for FileCaches {
    fn open(&self, name: &str, scope: &Scope) -> Result<Box<dyn CacheFile>, CallError> {
        Ok(Box::new(File { path: PathBuf::from(name), read: permit(scope)?, write: permit(scope)? }))
    }
}

struct File {
    path: PathBuf,
    read: Permit<FilesystemRead>,
    write: Permit<FilesystemWrite>,
}

impl CacheFile for File {
    fn load(&self) -> Result<Vec<u8>, CallError> {
        let file = match host::open(&self.read, &self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut content = Vec::new();
        file.take(MAX_FILE.saturating_add(1)).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE { Err(CallError::failed("the file is too large for a cache")) } else { Ok(content) }
    }

    fn save(&self, content: &[u8]) -> Result<(), CallError> {
        if content.len() as u64 > MAX_FILE {
            return Err(CallError::failed("the cache is too large for a file"));
        }
        Ok(host::write(&self.write, &self.path, false)?.write_all(content)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, Query, Value, json, parse_statement};

    fn value_of(environment: Environment, path: &std::path::Path, func: &str) -> String {
        let text = format!("SELECT cache(filename='{}', period=100, key='k', func={func}) AS X FROM scope()", path.display());
        let scope = environment.open();
        json::encode(&Value::list(Query::new(&scope, &parse_statement(&text).unwrap()).map(Value::Dict)))
    }

    #[test]
    fn a_cache_is_kept_in_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let environment = || crate::with_authority(Environment::new(Arc::new(crate::registry())), authority.clone());
        assert_eq!(value_of(environment(), &path, "1"), r#"[{"X":1}]"#);
        assert_eq!(value_of(environment(), &path, "2"), r#"[{"X":1}]"#);
    }

    #[test]
    fn who_may_not_write_has_no_such_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let environment =
            Environment::new(Arc::new(crate::registry())).extension(Arc::new(talon_vql::CacheFiles(Arc::new(super::FileCaches))));
        assert_eq!(value_of(environment, &path, "1"), r#"[{"X":null}]"#);
        assert!(!path.exists());
    }

    #[test]
    fn memories_outlive_their_query_in_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory");
        let find = |rows: &str, key: &str| {
            let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
            let environment = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority);
            let text = format!(
                "SELECT get(item=memoize(query={{ {rows} }}, key='K', period=100, filename='{}'), field='{key}').V AS X FROM scope()",
                file.display()
            );
            let scope = environment.clock(Arc::new(crate::SystemClock::new())).open();
            json::encode(&Value::list(Query::new(&scope, &parse_statement(&text).unwrap()).map(Value::Dict)))
        };
        assert_eq!(find("SELECT 'a' AS K, 1 AS V FROM scope()", "a"), r#"[{"X":1}]"#);
        assert_eq!(find("SELECT 'a' AS K, 2 AS V FROM scope()", "a"), r#"[{"X":1}]"#, "the file is younger than the period");
        std::fs::write(&file, "{\"since\":0,\"rows\":{}}").unwrap();
        assert_eq!(find("SELECT 'a' AS K, 3 AS V FROM scope()", "a"), r#"[{"X":3}]"#, "the file is too old");
        std::fs::write(&file, "other").unwrap();
        assert_eq!(find("SELECT 'a' AS K, 4 AS V FROM scope()", "a"), r#"[{"X":null}]"#);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "other");
    }
}
