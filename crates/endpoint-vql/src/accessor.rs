//! Accessors: ways to reach something that looks like files. A path is read by the accessor that the query names.

mod data;
mod disk;
mod sparse;
mod variable;

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::sync::Arc;

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

impl Default for Accessors {
    fn default() -> Self {
        let mut accessors = Self(BTreeMap::new());
        accessors.add("auto", disk::Disk);
        accessors.add("file", disk::Disk);
        accessors.add("data", data::Data);
        accessors.add("scope", variable::Variable);
        accessors.add("sparse", sparse::Sparse);
        accessors
    }
}

impl Accessors {
    /// Adds an accessor; one of the same name gives way.
    pub fn add(&mut self, name: &str, accessor: impl Accessor + 'static) {
        self.0.insert(name.to_owned(), Arc::new(accessor));
    }

    /// Replaces accessor `name` by one that refuses with the text for denied accessors.
    pub fn deny(&mut self, name: &str) {
        self.add(name, Denied);
    }

    /// Keeps only the named accessors.
    pub fn keep_only(&mut self, names: &[String]) {
        self.0.retain(|name, _| names.contains(name));
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
    let accessors = scope.extension::<Accessors>().unwrap_or_default();
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
