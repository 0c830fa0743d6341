//! `vfs_ls()`: folders level by level, as the file browser of a server wants them: the entries, and after each folder where its entries stand.

use std::collections::VecDeque;
use std::sync::Arc;

use talon_vql::{Arg, ArgType, Call, CallError, Dict, OsPath, Registry, Rows, Scope, Signature, Time, Value};

use crate::accessor::{self, Accessor, FileInfo};

/// The most folders below one call.
const MAX_FOLDERS: usize = 1_000_000;

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin(
            "vfs_ls",
            "Lists a folder and those below it. After the entries of a folder comes a row whose Stats says which rows they were.",
        )
        .args(
            const {
                &[
                    Arg::optional("path", ArgType::Path, "The folder; the root unless given."),
                    Arg::optional("components", ArgType::Strings, "The folder by its components, instead."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                    Arg::optional("depth", ArgType::Int, "How many levels below it are listed too; none unless given."),
                ]
            },
        )
        .version(1),
        list,
    );
}

struct Walk {
    scope: Scope,
    accessor: Arc<dyn Accessor>,
    name: String,
    /// Folders that wait, with the levels left below each.
    folders: VecDeque<(Arc<OsPath>, i64)>,
    ready: VecDeque<Dict>,
    /// Entries given so far.
    given: u64,
}

fn list(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let name = call.string("accessor");
    let accessor = accessor::named(&scope, &name)?;
    let name = if name.is_empty() { "auto".to_owned() } else { name };
    let mut path = call.path("path").unwrap_or_else(|| Arc::new(OsPath::for_accessor("", &name)));
    if call.has("components") {
        path = Arc::new(call.texts("components").into_iter().fold(OsPath::for_accessor("", &name), |path, part| path.join(part)));
    }
    let depth = call.int("depth").clamp(0, 100);
    Ok(Rows::try_of(Walk { scope, accessor, name, folders: VecDeque::from([(path, depth)]), ready: VecDeque::new(), given: 0 }))
}

impl Iterator for Walk {
    type Item = Result<Dict, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                return Some(Ok(row));
            }
            let (folder, depth) = self.folders.pop_front()?;
            if self.scope.stopped() {
                return None;
            }
            self.look(&folder, depth);
        }
    }
}

impl Walk {
    fn look(&mut self, folder: &Arc<OsPath>, depth: i64) {
        let entries = match self.accessor.list(&self.scope, folder) {
            Ok(entries) => entries,
            Err(error) => {
                self.scope.log(format!("vfs_ls: {folder}: {error}"));
                Vec::new()
            }
        };
        let start = self.given;
        for entry in entries {
            if depth > 0 && entry.is_dir && !entry.is_link && self.folders.len() < MAX_FOLDERS {
                self.folders.push_back((entry.path.clone(), depth.saturating_sub(1)));
            }
            self.given = self.given.saturating_add(1);
            self.ready.push_back(self.row(&entry));
        }
        let components = Value::list(folder.components().iter().cloned().map(Value::Str));
        let stats = Dict::new().with("start_idx", start).with("end_idx", self.given);
        self.ready.push_back(Dict::new().with("Components", components).with("Accessor", self.name.as_str()).with("Stats", stats));
    }

    fn row(&self, entry: &FileInfo) -> Dict {
        let time = |nanos: Option<i64>| Value::Time(nanos.map_or(Time::ZERO, |nanos| Time::from_unix_nanos(nanos.into())));
        Dict::new()
            .with("_FullPath", entry.path.clone())
            .with("_Accessor", self.name.as_str())
            .with("_Data", entry.data.clone())
            .with("Name", entry.path.basename())
            .with("Size", i64::try_from(entry.size).unwrap_or(i64::MAX))
            .with("Mode", entry.mode.to_string())
            .with("mtime", time(entry.times.mtime))
            .with("atime", time(entry.times.atime))
            .with("ctime", time(entry.times.ctime))
            .with("btime", time(entry.times.btime))
            .with("Stats", Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    #[test]
    fn each_folder_ends_with_the_place_of_its_entries() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b/c")).unwrap();
        std::fs::write(folder.path().join("a/f"), "12345").unwrap();
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let scope = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).open();
        let vql = format!(
            "SELECT Name, Size, Mode =~ '^d' AS D, Stats, Components[-1:] AS C FROM vfs_ls(path='{}', depth=1)",
            folder.path().join("a").display()
        );
        let rows: Vec<String> = Query::new(&scope, &parse_statement(&vql).unwrap()).map(|row| json::encode(&row.into())).collect();
        assert!(rows[0].starts_with(r#"{"Name":"b""#) && rows[0].contains(r#""D":true,"Stats":null"#), "{rows:?}");
        assert!(rows[1].starts_with(r#"{"Name":"f","Size":5,"D":false,"Stats":null"#), "{rows:?}");
        assert!(rows[2].ends_with(r#""Stats":{"start_idx":0,"end_idx":2},"C":["a"]}"#), "{rows:?}");
        assert!(
            rows[3].starts_with(r#"{"Name":"c""#) && rows[4].ends_with(r#""Stats":{"start_idx":2,"end_idx":3},"C":["b"]}"#),
            "{rows:?}"
        );
        assert_eq!(rows.len(), 5);
    }

    #[test]
    fn without_the_permission_nothing_is_listed() {
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(crate::registry())).log(log.clone()).open();
        assert_eq!(Query::new(&scope, &parse_statement("SELECT * FROM vfs_ls(path='/')").unwrap()).count(), 0);
        assert!(log.take().iter().any(|line| line.contains("Permission denied: [FILESYSTEM_READ]")));
    }
}
