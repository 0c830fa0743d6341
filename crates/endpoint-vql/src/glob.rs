//! `glob()`: files by patterns, all patterns in one walk of the tree.

mod pattern;

use std::sync::Arc;

use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Lambda, OsPath, Registry, Rows, Scope, Signature, Value, ops};

use crate::accessor::{self, Accessor, FileInfo};
use pattern::{Patterns, State};

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin(
            "glob",
            "Finds files by patterns: `*`, `?`, `[a-z]`, `{a,b}`, `**` for any depth up to 30, `**5` up to 5. Case does not matter.",
        )
        .args(
            const {
                &[
                    Arg::required("globs", ArgType::Strings, "The patterns."),
                    Arg::optional("root", ArgType::Path, "Where the patterns start."),
                    Arg::optional("accessor", ArgType::String, "The accessor that reads the tree."),
                    Arg::optional("nosymlink", ArgType::Bool, "Do not enter folders through symbolic links."),
                    Arg::optional("recursion_callback", ArgType::String, "A lambda over a row: whether to enter this folder."),
                    Arg::optional("one_filesystem", ArgType::Bool, "Do not leave the file system of the root."),
                ]
            },
        )
        .version(3)
        .permissions(&[Permission::FilesystemRead]),
        glob,
    );
}

fn glob(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let accessor = accessor::named(&scope, &call.string("accessor"))?;
    let flavour = accessor.flavour();
    let globs = call.strings("globs");
    let patterns =
        Patterns::parse(&globs, |text| OsPath::parse(text, flavour).components().iter().map(|part| part.to_str().into_owned()).collect())
            .map_err(CallError::failed)?;
    let enter = match call.text("recursion_callback").filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(scope.lambda(&text).ok_or(CallError::Silent)?),
    };
    let root = call.path("root").unwrap_or_else(|| Arc::new(OsPath::root(flavour)));
    let start = Folder { device: None, ancestors: Vec::new(), states: patterns.start(), path: root };
    let walk = Walk {
        patterns,
        accessor,
        enter,
        follow: !call.bool("nosymlink"),
        one_filesystem: call.bool("one_filesystem"),
        pending: vec![start],
        entries: Vec::new().into_iter(),
        folder: None,
        call,
        scope,
    };
    Ok(Rows::try_of(walk))
}

/// A folder to be read, and the patterns that may match below it.
struct Folder {
    path: Arc<OsPath>,
    states: Vec<State>,
    /// Device and inode of the folders above: a link to one of them is not entered again.
    ancestors: Vec<(u64, u64)>,
    device: Option<u64>,
}

/// A walk in progress: depth first, entries in the order of their names.
struct Walk {
    patterns: Patterns,
    accessor: Arc<dyn Accessor>,
    enter: Option<Arc<Lambda>>,
    follow: bool,
    one_filesystem: bool,
    pending: Vec<Folder>,
    entries: std::vec::IntoIter<FileInfo>,
    folder: Option<Folder>,
    call: Call,
    scope: Scope,
}

impl Iterator for Walk {
    type Item = Result<Dict, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.scope.stopped() {
                return None;
            }
            let Some(entry) = self.entries.next() else {
                self.open_next()?;
                continue;
            };
            let Some(folder) = &self.folder else { continue };
            let (matched, below) = self.patterns.step(&folder.states, &entry.path.basename().to_str());
            let row = entry.to_row().with("Globs", matched.iter().map(|glob| Value::str(*glob)).collect::<Vec<_>>());
            let is_match = !matched.is_empty();
            if !below.is_empty() {
                self.descend(&entry, below, &row);
            }
            if is_match {
                return Some(Ok(row));
            }
        }
    }
}

impl Walk {
    /// Reads the next folder. `None` when there is no more.
    fn open_next(&mut self) -> Option<()> {
        let folder = self.pending.pop()?;
        match self.accessor.list(&self.scope, &folder.path) {
            Ok(entries) => self.entries = entries.into_iter(),
            Err(error) => self.call.log(format!("DEBUG:{error}")),
        }
        // Folders found later are read first, so that a tree is walked depth first with little in memory.
        self.folder = Some(folder);
        Some(())
    }

    fn descend(&mut self, entry: &FileInfo, states: Vec<State>, row: &Dict) {
        let Some(folder) = &self.folder else { return };
        let target = match (entry.is_dir, entry.is_link && self.follow) {
            (true, _) => entry.clone(),
            (false, true) => match self.accessor.stat_target(&self.scope, &entry.path) {
                Ok(target) if target.is_dir => target,
                _ => return,
            },
            (false, false) => return,
        };
        let mut ancestors = folder.ancestors.clone();
        let mut device = folder.device;
        if let Some(identity) = target.identity {
            if ancestors.contains(&identity) || (self.one_filesystem && device.is_some_and(|device| device != identity.0)) {
                return;
            }
            ancestors.push(identity);
            device = device.or(Some(identity.0));
        }
        if let Some(lambda) = &self.enter
            && !ops::truth(&lambda.call(&self.scope, &[Value::from(row.clone())]), &self.scope)
        {
            return;
        }
        self.pending.push(Folder { path: entry.path.clone(), states, ancestors, device });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, parse_statement};

    use super::*;

    fn find(root: &std::path::Path, vql_args: &str) -> Vec<String> {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let environment = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority);
        let scope = environment.variable("Root", root.to_str().unwrap()).open();
        let statement = parse_statement(&format!("SELECT OSPath FROM glob(root=Root, {vql_args})")).unwrap();
        let rows = Query::new(&scope, &statement).map(|row| talon_vql::text::display(row.get("OSPath").unwrap()));
        rows.map(|path| path.strip_prefix(root.to_str().unwrap()).unwrap().to_owned()).collect()
    }

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["a/b/c", "a/B2", "x"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for file in ["one.txt", "Two.TXT", "a/three.txt", "a/b/four.log", "a/b/c/five.txt", "x/six.txt"] {
            fs::write(root.path().join(file), "content").unwrap();
        }
        std::os::unix::fs::symlink(root.path(), root.path().join("a/loop")).unwrap();
        root
    }

    #[test]
    fn patterns_match_components_in_any_case() {
        let root = tree();
        assert_eq!(find(root.path(), "globs='*.txt'"), ["/Two.TXT", "/one.txt"]);
        assert_eq!(find(root.path(), "globs='ONE.txt'"), ["/one.txt"]);
        assert_eq!(find(root.path(), "globs=['{a,x}/*.txt']"), ["/x/six.txt", "/a/three.txt"]);
        assert_eq!(find(root.path(), "globs='/a/b*'"), ["/a/B2", "/a/b"]);
    }

    #[test]
    fn two_stars_match_any_depth_and_links_do_not_loop() {
        let root = tree();
        let mut found = find(root.path(), "globs='**/*.txt', nosymlink=TRUE");
        found.sort();
        assert_eq!(found, ["/Two.TXT", "/a/b/c/five.txt", "/a/three.txt", "/one.txt", "/x/six.txt"]);
        assert_eq!(find(root.path(), "globs='a/**1/*.log', nosymlink=TRUE"), ["/a/b/four.log"]);
        assert!(find(root.path(), "globs='**'").len() < 100);
    }

    #[test]
    fn a_callback_decides_where_to_go() {
        let root = tree();
        let found = find(root.path(), "globs='**/*.txt', nosymlink=TRUE, recursion_callback='x=>x.Name != \"b\"'");
        assert!(!found.contains(&"/a/b/c/five.txt".to_owned()) && found.contains(&"/x/six.txt".to_owned()), "{found:?}");
    }

    #[test]
    fn without_the_permission_nothing_is_found_and_the_log_says_why() {
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(crate::registry())).log(log.clone()).open();
        assert_eq!(Query::new(&scope, &parse_statement("SELECT * FROM glob(globs='/*')").unwrap()).count(), 0);
        assert!(log.take().iter().any(|line| line.contains("glob: PermissionDenied: Permission denied: [FILESYSTEM_READ]")));
    }
}
