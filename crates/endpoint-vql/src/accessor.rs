//! Accessors: ways to reach something that looks like files. A path is read by the accessor that the query names.

mod collector;
#[cfg(test)]
mod composition;
mod compound;
mod compressed;
mod data;
mod delegate;
mod disk;
mod layered;
mod mapped;
mod memory;
pub(crate) mod mounts;
mod piped;
mod sparse;
mod variable;
mod zip;

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::sync::{Arc, LazyLock};

use talon_ids::Permissions;
use talon_vql::{CallError, Dict, OsPath, PathFlavour, Scope, Time, Value};

pub use disk::go_mode;

use crate::upload::FileTimes;

/// The content of an open file.
pub trait FileReader: Read + Seek + Send {
    /// The ranges of a file that may have holes; `None` for files that have none.
    fn ranges(&self) -> Option<Vec<Range>> {
        None
    }

    /// Whether going back means reading from the start again.
    fn is_stream(&self) -> bool {
        false
    }
}

impl FileReader for Box<dyn FileReader> {
    fn ranges(&self) -> Option<Vec<Range>> {
        (**self).ranges()
    }

    fn is_stream(&self) -> bool {
        (**self).is_stream()
    }
}

impl FileReader for std::io::Cursor<Arc<[u8]>> {}
impl FileReader for std::fs::File {}

/// A range of a file with holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Where it starts.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
    /// Whether it is a hole: reads give zeros.
    pub is_sparse: bool,
}

/// What is known of a file without opening it.
#[derive(Debug, Clone)]
pub struct FileInfo {
    /// Where it is.
    pub path: Arc<OsPath>,
    /// Size in bytes.
    pub size: u64,
    /// Kind and permission bits.
    pub mode: Mode,
    /// Whether it has entries.
    pub is_dir: bool,
    /// Whether it is a symbolic link.
    pub is_link: bool,
    /// Times, where the file system keeps them.
    pub times: FileTimes,
    /// Device and inode, where there are such things.
    pub identity: Option<(u64, u64)>,
    /// What the accessor adds: `Link`, `DevMajor` …
    pub data: Dict,
}

impl FileInfo {
    /// The row that `glob()` and `stat()` give.
    #[must_use]
    pub fn to_row(&self) -> Dict {
        let time = |nanos: Option<i64>| Value::Time(nanos.map_or(Time::ZERO, |nanos| Time::from_unix_nanos(nanos.into())));
        Dict::new()
            .with("Name", self.path.basename())
            .with("OSPath", self.path.clone())
            .with("Mtime", time(self.times.mtime))
            .with("Atime", time(self.times.atime))
            .with("Ctime", time(self.times.ctime))
            .with("Btime", time(self.times.btime))
            .with("Size", i64::try_from(self.size).unwrap_or(i64::MAX))
            .with("Mode", self.mode.to_string())
            .with("IsDir", self.is_dir)
            .with("IsLink", self.is_link)
            .with("Data", self.data.clone())
    }
}

/// Kind and permissions of a file, in Unix bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mode(pub u32);

/// A way to reach files.
pub trait Accessor: Send + Sync {
    /// How its paths are written.
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Linux
    }

    /// All are needed to use it. Checked by [`named`] before it is handed out.
    fn permissions(&self) -> Permissions;

    /// Opens a file for reading.
    ///
    /// # Errors
    /// What the user should read.
    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError>;

    /// What is known of a file. Symbolic links are not followed.
    ///
    /// # Errors
    /// What the user should read.
    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError>;

    /// What a symbolic link leads to; other files as they are.
    ///
    /// # Errors
    /// What the user should read.
    fn stat_target(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        self.stat(scope, path)
    }

    /// The entries of a folder, in the order of their names.
    ///
    /// # Errors
    /// What the user should read.
    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError>;
}

/// The accessors of a query. The host program may add its own: `environment.extension(Arc::new(accessors))`.
#[derive(Clone)]
pub struct Accessors(BTreeMap<String, Arc<dyn Accessor>>);

/// Accessors that are known by name only, by the reason.
const ABSENT: &[(&str, &[&str])] = &[
    ("not on this platform", &["file_links", "lazy_ntfs", "ntfs", "ntfs_vss", "reg", "registry", "winpmem"]),
    (
        "no maintained reader of this format may be linked in",
        &["ewf", "ext4", "fat", "mft", "pst", "raw_ext4", "raw_ntfs", "raw_reg", "vhdx", "vmdk"],
    ),
    ("this build has no client for that service", &["s3", "smb", "ssh"]),
    ("only the server has this accessor", &["vfs"]),
];

/// The accessors of this crate, for queries whose host program sets none.
static BUILT_IN: LazyLock<Arc<Accessors>> = LazyLock::new(Arc::default);

pub(crate) use piped::register;

impl Default for Accessors {
    fn default() -> Self {
        let mut accessors = Self(BTreeMap::new());
        accessors.add("auto", disk::Disk);
        accessors.add("file", disk::Disk);
        accessors.add("data", data::Data);
        accessors.add("scope", variable::Variable);
        accessors.add("sparse", sparse::Sparse);
        accessors.add("ranged", mapped::Ranged);
        accessors.add("offset", mapped::Offset);
        accessors.add("gzip", compressed::Compressed::Gzip);
        accessors.add("bzip2", compressed::Compressed::Bzip2);
        accessors.add("zip", zip::Zip::Plain);
        accessors.add("zip_nocase", zip::Zip::NoCase);
        accessors.add("me", zip::Zip::Own);
        accessors.add("collector", collector::Collector { expand: true });
        accessors.add("collector_sparse", collector::Collector { expand: false });
        accessors.add("mscfb", compound::Compound);
        accessors.add("overlay", layered::Overlay);
        accessors.add("file_nocase", layered::NoCase);
        accessors.add("raw_file", layered::Raw);
        accessors.add("pipe", piped::Piped);
        accessors.add("process", memory::Memory);
        for (reason, names) in ABSENT {
            for name in *names {
                accessors.add(name, layered::Absent(name, reason));
            }
        }
        accessors
    }
}

impl Accessors {
    /// Adds an accessor; one of the same name gives way.
    pub fn add(&mut self, name: &str, accessor: impl Accessor + 'static) {
        self.0.insert(name.to_owned(), Arc::new(accessor));
    }

    /// What the lists of a configuration leave: an allow list that is not empty keeps only what it names; denials always count.
    ///
    /// # Errors
    /// The name in the allow list that no accessor has.
    pub fn restricted(mut self, allowed: &[String], denied: &[String]) -> Result<Self, String> {
        if let Some(unknown) = allowed.iter().find(|name| !self.0.contains_key(*name)) {
            return Err(unknown.clone());
        }
        if !allowed.is_empty() {
            self.0.retain(|name, _| allowed.contains(name));
        }
        for name in denied.iter().filter(|name| self.0.contains_key(*name)).cloned().collect::<Vec<_>>() {
            self.add(&name, Denied);
        }
        Ok(self)
    }

    /// What an accessor needs; nothing for one that is not there.
    #[must_use]
    pub fn permissions(&self, name: &str) -> Permissions {
        self.0.get(name).map(|accessor| accessor.permissions()).unwrap_or_default()
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// The accessor called `name` (empty: `auto`) for a query that may use it.
///
/// # Errors
/// `Unknown filesystem accessor X`, or the denial.
pub fn named(scope: &Scope, name: &str) -> Result<Arc<dyn Accessor>, CallError> {
    let accessors = mounts::of(scope).or_else(|| scope.extension::<Accessors>()).unwrap_or_else(|| BUILT_IN.clone());
    let name = if name.is_empty() { "auto" } else { name };
    let accessor = accessors.0.get(name).ok_or_else(|| CallError::failed(format!("Unknown filesystem accessor {name}")))?;
    scope.check(accessor.permissions()).map_err(|denied| CallError::failed(format!("Accessor {name}: PermissionDenied: {denied}")))?;
    Ok(accessor.clone())
}

/// Parses a path for the accessor called `name`.
///
/// # Errors
/// As [`named`].
pub fn parse_path(scope: &Scope, name: &str, text: &str) -> Result<Arc<OsPath>, CallError> {
    let flavour = named(scope, name)?.flavour();
    Ok(Arc::new(OsPath::parse(text, flavour)))
}

/// Stands where the configuration denies an accessor.
struct Denied;

impl Denied {
    fn refuse<T>() -> Result<T, CallError> {
        Err(CallError::failed("Not implemented: Accessor denied by configuration"))
    }
}

impl Accessor for Denied {
    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, _: &Scope, _: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        Self::refuse()
    }

    fn stat(&self, _: &Scope, _: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        Self::refuse()
    }

    fn list(&self, _: &Scope, _: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        Self::refuse()
    }
}

#[cfg(test)]
mod tests {
    use talon_vql::{Environment, MemoryLog, Query, Registry, parse_statement};

    use super::*;

    fn log_of(accessors: Accessors, vql: &str) -> Vec<String> {
        let log = Arc::new(MemoryLog::default());
        let mut registry = Registry::core();
        crate::register(&mut registry);
        let scope = Environment::new(Arc::new(registry)).log(log.clone()).extension(Arc::new(accessors)).open();
        assert_eq!(Query::new(&scope, &parse_statement(vql).unwrap()).count(), 0);
        log.take()
    }

    #[test]
    fn a_denied_accessor_says_so_and_one_that_is_not_listed_is_unknown() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let vql = "SELECT * FROM parse_lines(filename='x', accessor='data')";
        let denied = Accessors::default().restricted(&[], &names(&["data", "no such"])).unwrap();
        assert!(log_of(denied, vql).iter().any(|line| line.contains("Not implemented: Accessor denied by configuration")));
        let unlisted = Accessors::default().restricted(&names(&["scope"]), &[]).unwrap();
        assert!(log_of(unlisted, vql).iter().any(|line| line.contains("Unknown filesystem accessor data")));
        assert_eq!(Accessors::default().restricted(&names(&["nope"]), &[]).err().as_deref(), Some("nope"));
    }
}
