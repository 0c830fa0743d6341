//! `upload()`: hands a file to whoever collects them; on an agent that is the flow, on the command line a folder.

use std::sync::Arc;

use talon_vql::{Arg, ArgType, Call, CallError, Dict, OsPath, PathFlavour, Registry, Scope, Signature, Value};

use crate::accessor::{self, FileInfo, FileReader, Range};

/// Where uploads go. The host program puts it into the environment: `environment.extension(Arc::new(Uploads(…)))`.
pub struct Uploads(pub Arc<dyn Uploader>);

/// Takes uploaded files.
pub trait Uploader: Send + Sync {
    /// Reads the whole file and takes it. Blocks while the receiver is behind; ends early when the query is stopped.
    ///
    /// # Errors
    /// What the user should read.
    fn upload(&self, scope: &Scope, request: UploadRequest) -> Result<Uploaded, CallError>;
}

/// One file to be taken.
pub struct UploadRequest {
    /// The accessor that reads it; `auto` when the query named none.
    pub accessor: String,
    /// The path as the accessor prints it; empty for accessors without paths.
    pub filename: String,
    /// The name to store it under: the argument `name`, else the path.
    pub store_as: String,
    /// The components of that name.
    pub components: Vec<String>,
    /// The size in bytes that is expected.
    pub expected_size: u64,
    /// When it was modified, accessed …
    pub times: FileTimes,
    /// Go's `os.FileMode` bits.
    pub mode: i64,
    /// The content.
    pub source: UploadSource,
}

/// What an uploader reads.
pub enum UploadSource {
    /// All bytes from the first to the last.
    Whole(Box<dyn FileReader>),
    /// A file with holes: ranges in order, some of them sparse.
    Ranges(Box<dyn FileReader>, Vec<Range>),
}

/// Times in nanoseconds since 1970, where they are known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileTimes {
    /// Content modified.
    pub mtime: Option<i64>,
    /// Read.
    pub atime: Option<i64>,
    /// Changed in any way.
    pub ctime: Option<i64>,
    /// Made.
    pub btime: Option<i64>,
}

/// What became of an upload.
#[derive(Debug, Clone, Default)]
pub struct Uploaded {
    /// The path on the host.
    pub path: String,
    /// Logical size in bytes.
    pub size: u64,
    /// Bytes stored: less than `size` for sparse files.
    pub stored_size: u64,
    /// Hexadecimal SHA-256 of the stored bytes; empty when not known yet.
    pub sha256: String,
    /// Hexadecimal MD5 of the stored bytes; empty when not known yet.
    pub md5: String,
    /// The name under which it is stored.
    pub stored_name: String,
    /// Its components.
    pub components: Vec<String>,
    /// The accessor that read it.
    pub accessor: String,
    /// The number of the upload within its flow.
    pub upload_id: i64,
    /// Why it failed, if it did.
    pub error: String,
}

impl Uploaded {
    /// The value of `upload()`: keys as stock peers have them, all but `Path`, `Size` and `UploadId` left out when empty.
    #[must_use]
    pub fn to_dict(&self) -> Dict {
        let mut dict = Dict::new().with("Path", self.path.as_str()).with("Size", self.size);
        if self.stored_size != 0 {
            dict.set("StoredSize", self.stored_size);
        }
        for (key, text) in [("Error", &self.error), ("sha256", &self.sha256), ("md5", &self.md5), ("StoredName", &self.stored_name)] {
            if !text.is_empty() {
                dict.set(key, text.as_str());
            }
        }
        if !self.components.is_empty() {
            dict.set("Components", self.components.clone());
        }
        if !self.accessor.is_empty() {
            dict.set("Accessor", self.accessor.as_str());
        }
        dict.set("UploadId", self.upload_id);
        dict
    }
}

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("upload", "Uploads a file to the server.")
            .args(
                const {
                    &[
                        Arg::required("file", ArgType::Path, "The file."),
                        Arg::optional("name", ArgType::Path, "The name to store it under, instead of its path."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads the file."),
                        Arg::optional("mtime", ArgType::Time, "Modification time to record."),
                        Arg::optional("atime", ArgType::Time, "Access time to record."),
                        Arg::optional("ctime", ArgType::Time, "Change time to record."),
                        Arg::optional("btime", ArgType::Time, "Birth time to record."),
                    ]
                },
            )
            .version(3),
        upload,
    );
}

fn upload(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let uploads = scope.extension::<Uploads>().ok_or_else(|| CallError::failed("there is nowhere to upload to"))?;
    let name = call.string("accessor");
    let accessor = accessor::named(scope, &name)?;
    let path = call.path("file").ok_or_else(|| CallError::failed("Field file is required"))?;
    let info = accessor.stat(scope, &path)?;
    if info.is_dir {
        return Err(CallError::failed(format!("{path} is a directory")));
    }
    let reader = accessor.open(scope, &path)?;
    let ranges = reader.ranges();
    let stored = call.path("name").unwrap_or_else(|| path.clone());
    let request = UploadRequest {
        accessor: if name.is_empty() { "auto".to_owned() } else { name },
        filename: if path.as_literal().is_some() && call.has("name") { String::new() } else { path.to_string() },
        store_as: store_as(&stored),
        components: stored.components().iter().map(|part| part.to_str().into_owned()).collect(),
        expected_size: info.size,
        times: times(&call, &info),
        mode: info.mode.go_bits(),
        source: match ranges {
            Some(ranges) => UploadSource::Ranges(reader, ranges),
            None => UploadSource::Whole(reader),
        },
    };
    Ok(uploads.0.upload(scope, request)?.to_dict().into())
}

/// The name as text. A bare name for an accessor whose paths are not those of a file system stays bare, as stock agents send it.
fn store_as(path: &OsPath) -> String {
    let components = path.components();
    match components {
        [name] if path.flavour() == PathFlavour::Generic && path.delegate().is_none() => name.to_str().into_owned(),
        _ => path.to_string(),
    }
}

fn times(call: &Call, info: &FileInfo) -> FileTimes {
    let given = |name: &str, known: Option<i64>| call.time(name).and_then(|time| i64::try_from(time.unix_nanos()).ok()).or(known);
    FileTimes {
        mtime: given("mtime", info.times.mtime),
        atime: given("atime", info.times.atime),
        ctime: given("ctime", info.times.ctime),
        btime: given("btime", info.times.btime),
    }
}

impl UploadSource {
    /// The reader and, for files with holes, the ranges.
    #[must_use]
    pub fn into_parts(self) -> (Box<dyn FileReader>, Option<Vec<Range>>) {
        match self {
            Self::Whole(reader) => (reader, None),
            Self::Ranges(reader, ranges) => (reader, Some(ranges)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    /// Keeps what it gets.
    #[derive(Default)]
    struct Kept(Mutex<Vec<(String, Vec<u8>)>>);

    impl Uploader for Arc<Kept> {
        fn upload(&self, _: &Scope, request: UploadRequest) -> Result<Uploaded, CallError> {
            let (mut reader, _) = request.source.into_parts();
            let mut content = Vec::new();
            reader.read_to_end(&mut content)?;
            let size = content.len() as u64;
            self.0.lock().unwrap().push((request.store_as.clone(), content));
            Ok(Uploaded { path: request.filename, size, stored_name: request.store_as, ..Uploaded::default() })
        }
    }

    fn run(environment: Environment, text: &str) -> (String, Vec<String>) {
        let log = Arc::new(MemoryLog::default());
        let scope = environment.log(log.clone()).open();
        let row = Query::new(&scope, &parse_statement(text).unwrap()).next().unwrap();
        (json::encode(row.get("U").unwrap()), log.take())
    }

    #[test]
    fn a_bare_name_stays_bare_outside_of_file_systems() {
        for (text, accessor, expected) in [
            ("sparse.bin", "sparse", "sparse.bin"),
            ("/dir/sparse.bin", "sparse", "/dir/sparse.bin"),
            ("a.txt", "data", "a.txt"),
            ("a.txt", "file", "/a.txt"),
        ] {
            assert_eq!(store_as(&OsPath::for_accessor(text, accessor)), expected, "{text} {accessor}");
        }
    }

    #[test]
    fn a_file_reaches_the_uploader_under_the_name_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.txt");
        std::fs::write(&file, "content").unwrap();
        let kept = Arc::new(Kept::default());
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let environment = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority)
            .extension(Arc::new(Uploads(Arc::new(kept.clone()))));
        let (value, _) = run(environment.clone(), &format!("SELECT upload(file='{}', name='/x/y') AS U FROM scope()", file.display()));
        assert_eq!(value, format!(r#"{{"Path":"{}","Size":7,"StoredName":"/x/y","UploadId":0}}"#, file.display()));
        assert_eq!(
            run(environment.clone(), "SELECT upload(file='text', accessor='data', name='d') AS U FROM scope()").1,
            Vec::<String>::new()
        );
        let stored = kept.0.lock().unwrap().clone();
        assert_eq!(stored.iter().map(|(_, content)| content.as_slice()).collect::<Vec<_>>(), [&b"content"[..], b"text"]);
        let (value, log) = run(environment, &format!("SELECT upload(file='{}') AS U FROM scope()", folder.path().display()));
        assert_eq!((value.as_str(), log.len()), ("null", 1));
    }

    #[test]
    fn without_permission_or_receiver_nothing_is_read() {
        let kept = Arc::new(Kept::default());
        let environment = Environment::new(Arc::new(crate::registry())).extension(Arc::new(Uploads(Arc::new(kept.clone()))));
        let (value, log) = run(environment, "SELECT upload(file='/etc/hostname') AS U FROM scope()");
        assert_eq!(value, "null");
        assert_eq!(log, ["upload: Accessor auto: PermissionDenied: Permission denied: [FILESYSTEM_READ]"]);
        assert!(kept.0.lock().unwrap().is_empty());
        let (_, log) = run(Environment::new(Arc::new(crate::registry())), "SELECT upload(file='/etc/hostname') AS U FROM scope()");
        assert_eq!(log, ["upload: there is nowhere to upload to"]);
    }
}
