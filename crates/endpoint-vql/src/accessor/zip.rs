//! `zip`, `zip_nocase`, `me`: the members of ZIP files as files and folders.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufReader, Cursor, Read};
use std::sync::{Arc, Mutex, PoisonError};

use talon_ids::{Permission, Permissions};
use talon_vql::{CallError, Dict, OsPath, PathFlavour, Scope, Text};
use zip::{CompressionMethod, ZipArchive};

use super::delegate::{Buffered, Part, Shared, Stream, open_seekable};
use super::{Accessor, FileInfo, FileReader, Mode};
use crate::authority::permit;
use crate::files::{buffer_limit, read_up_to};
use crate::host;
use crate::upload::FileTimes;

/// An archive with more members is refused.
const MAX_MEMBERS: usize = 1_000_000;
/// How many archives a query keeps open.
const MAX_OPEN: usize = 10;

/// Which file the archive is, and how names are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zip {
    /// The file that the path lies in.
    Plain,
    /// Likewise; names are the same in any case.
    NoCase,
    /// The program that runs.
    Own,
}

/// An open archive.
pub(super) struct Archive {
    file: Shared,
    index: ZipArchive<Buffered>,
    members: Vec<Member>,
    /// Members and implied folders by their key.
    places: HashMap<Vec<u8>, Place>,
    fold_case: bool,
}

#[derive(Default)]
struct Place {
    member: Option<usize>,
    is_dir: bool,
    children: Vec<Text>,
}

struct Member {
    at: usize,
    start: u64,
    size: u64,
    compressed: u64,
    method: CompressionMethod,
    encrypted: bool,
    modified: Option<i64>,
    mode: Option<u32>,
}

/// The archives that a query has open, the newest last.
#[derive(Default)]
struct Open(Mutex<VecDeque<(String, Arc<Archive>)>>);

impl Zip {
    /// The archive that `path` lies in.
    pub(super) fn archive(self, scope: &Scope, path: &OsPath) -> Result<Arc<Archive>, CallError> {
        let key = match (self, path.delegate()) {
            (Self::Own, _) => "me".to_owned(),
            (_, Some(delegate)) => format!("{self:?} {} {}", delegate.accessor, delegate.path),
            (_, None) => return Err(CallError::failed("zip: the path needs a DelegateAccessor and a DelegatePath")),
        };
        let open = scope.shared::<Open>();
        let lock = || open.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What a query may not open now it has not opened before: the guard of a query does not change.
        if let Some((_, known)) = lock().iter().find(|(known, _)| *known == key) {
            return Ok(known.clone());
        }
        let file: Box<dyn FileReader> = match self {
            Self::Own => Box::new(host::open(&permit(scope)?, &std::env::current_exe()?)?),
            _ => open_seekable(scope, path)?,
        };
        let archive = Arc::new(Archive::read(scope, file, self == Self::NoCase)?);
        let volatile = path.delegate().is_some_and(|delegate| delegate.accessor == "scope" || delegate.accessor == "pipe");
        if !volatile {
            let mut open = lock();
            open.push_back((key, archive.clone()));
            if open.len() > MAX_OPEN {
                open.pop_front();
            }
        }
        Ok(archive)
    }
}

impl Archive {
    fn read(scope: &Scope, file: Box<dyn FileReader>, fold_case: bool) -> Result<Self, CallError> {
        let file = Shared::new(file);
        let index = ZipArchive::new(Buffered::new(file.clone())).map_err(|error| CallError::failed(format!("zip: {error}")))?;
        if index.len() > MAX_MEMBERS {
            return Err(CallError::failed(format!("zip: more than {MAX_MEMBERS} members")));
        }
        let mut archive = Self { file, index, members: Vec::new(), places: HashMap::new(), fold_case };
        archive.places.insert(Vec::new(), Place { is_dir: true, ..Place::default() });
        let mut index = archive.index.clone();
        for at in 0..index.len() {
            if scope.stopped() {
                return Err(CallError::Silent);
            }
            let Ok(member) = index.by_index_raw(at) else { continue };
            let name = member.name().map_or_else(|_| String::from_utf8_lossy(member.name_raw()).into_owned(), |name| name.into_owned());
            let path = OsPath::parse(name, PathFlavour::Linux);
            let known = Member {
                at,
                start: member.data_start().unwrap_or(0),
                size: member.size(),
                compressed: member.compressed_size(),
                method: member.compression(),
                encrypted: member.encrypted(),
                modified: member.last_modified().and_then(nanos),
                mode: member.unix_mode(),
            };
            archive.add(path.components(), known, member.is_dir());
        }
        Ok(archive)
    }

    fn key(&self, components: &[Text]) -> Vec<u8> {
        let mut key = components.iter().map(Text::as_bytes).collect::<Vec<_>>().join(&0);
        if self.fold_case {
            key = String::from_utf8_lossy(&key).to_lowercase().into_bytes();
        }
        key
    }

    fn add(&mut self, components: &[Text], member: Member, is_dir: bool) {
        const MAX_DEPTH: usize = 100;
        if components.is_empty() || components.len() > MAX_DEPTH {
            return;
        }
        for depth in 1..=components.len() {
            let key = self.key(components.get(..depth).unwrap_or_default());
            let is_new = !self.places.contains_key(&key);
            let place = self.places.entry(key).or_default();
            place.is_dir |= is_dir || depth < components.len();
            if is_new && let Some(name) = components.get(depth.saturating_sub(1)) {
                let parent = self.key(components.get(..depth.saturating_sub(1)).unwrap_or_default());
                self.places.entry(parent).or_default().children.push(name.clone());
            }
        }
        let key = self.key(components);
        if let Some(place) = self.places.get_mut(&key) {
            place.member = Some(self.members.len());
        }
        self.members.push(member);
    }

    fn find(&self, path: &OsPath) -> Result<&Place, CallError> {
        self.places.get(&self.key(path.components())).ok_or_else(|| CallError::failed(format!("{path}: file does not exist")))
    }

    fn info(&self, path: Arc<OsPath>, place: &Place) -> FileInfo {
        let member = place.member.and_then(|at| self.members.get(at));
        let mut data = Dict::new();
        if let Some(member) = member.filter(|_| !place.is_dir) {
            data.set("CompressedSize", i64::try_from(member.compressed).unwrap_or(i64::MAX));
            data.set(
                "Method",
                match member.method {
                    CompressionMethod::Stored => "stored",
                    CompressionMethod::Deflated => "zlib",
                    _ => "unknown",
                },
            );
        }
        let bits = member.and_then(|member| member.mode).unwrap_or(0o644) & 0o777;
        FileInfo {
            path,
            size: member.map_or(0, |member| member.size),
            mode: Mode(if place.is_dir { 0o040_755 } else { 0o100_000 | bits }),
            is_dir: place.is_dir,
            is_link: false,
            times: FileTimes { mtime: member.and_then(|member| member.modified), ..FileTimes::default() },
            identity: None,
            data,
        }
    }

    /// What is known of the member or folder at `path`.
    pub(super) fn stat(&self, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        Ok(self.info(path.clone(), self.find(path)?))
    }

    /// The entries of a folder.
    pub(super) fn list(&self, path: &OsPath) -> Result<Vec<FileInfo>, CallError> {
        let place = self.find(path)?;
        if !place.is_dir {
            return Err(CallError::failed(format!("{path}: not a folder")));
        }
        let mut names = place.children.clone();
        names.sort();
        let info = |name: Text| {
            let path = Arc::new(path.join(name));
            self.find(&path).ok().map(|place| self.info(path.clone(), place))
        };
        Ok(names.into_iter().filter_map(info).collect())
    }

    /// The content of a member.
    pub(super) fn open(&self, scope: &Scope, path: &OsPath) -> Result<Box<dyn FileReader>, CallError> {
        const BUFFER: usize = 1 << 16;
        let place = self.find(path)?;
        let member = place.member.and_then(|at| self.members.get(at)).filter(|_| !place.is_dir);
        let member = member.ok_or_else(|| CallError::failed(format!("{path}: is a folder")))?;
        if member.encrypted {
            return self.decrypted(scope, path, member);
        }
        let part = Part::new(self.file.clone(), member.start, member.compressed);
        let (method, size) = (member.method, member.size);
        if method == CompressionMethod::Stored {
            return Ok(Box::new(part));
        }
        if !matches!(method, CompressionMethod::Deflated | CompressionMethod::Deflate64 | CompressionMethod::Bzip2) {
            return Err(CallError::failed(format!("{path}: compressed in a way that is not known ({method})")));
        }
        let restart = move || -> io::Result<Box<dyn Read + Send>> {
            let part = BufReader::with_capacity(BUFFER, part.clone());
            Ok(match method {
                CompressionMethod::Deflate64 => Box::new(deflate64::Deflate64Decoder::with_buffer(part).take(size)),
                CompressionMethod::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(part).take(size)),
                _ => Box::new(flate2::bufread::DeflateDecoder::new(part).take(size)),
            })
        };
        Ok(Box::new(Stream::new(scope, Some(size), Box::new(restart))))
    }

    /// The content of an encrypted member, by the passwords in `ZIP_PASSWORDS`. It is held in memory.
    fn decrypted(&self, scope: &Scope, path: &OsPath, member: &Member) -> Result<Box<dyn FileReader>, CallError> {
        let passwords = scope.variable("ZIP_PASSWORDS").unwrap_or_default();
        let passwords = talon_vql::to_text(passwords, scope).to_str().into_owned();
        let limit = buffer_limit(scope);
        if member.size > limit || !scope.has_room_for(member.size) {
            return Err(CallError::failed(format!("{path}: encrypted members may have {limit} bytes at most")));
        }
        let whole = std::iter::once(passwords.as_str()).chain(passwords.lines()).chain(passwords.split(',')).map(str::trim);
        for password in whole.filter(|password| !password.is_empty()) {
            let mut index = self.index.clone();
            let Ok(mut content) = index.by_index_decrypt(member.at, password.as_bytes()) else { continue };
            if let Ok(content) = read_up_to(&mut content, limit, scope)
                && content.len() as u64 == member.size
            {
                return Ok(Box::new(Cursor::new(Arc::<[u8]>::from(content))));
            }
        }
        Err(CallError::failed(format!("{path}: encrypted; set ZIP_PASSWORDS to its password")))
    }
}

/// The moment in nanoseconds: archives keep no zone, so it is taken as UTC.
fn nanos(time: zip::DateTime) -> Option<i64> {
    let text =
        format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", time.year(), time.month(), time.day(), time.hour(), time.minute(), time.second());
    i64::try_from(talon_vql::Time::parse_rfc3339(&text)?.unix_nanos()).ok()
}

impl Accessor for Zip {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    /// What the file underneath needs is checked when it is opened. The own program may hold a configuration.
    fn permissions(&self) -> Permissions {
        match self {
            Self::Own => Permissions::of(&[Permission::FilesystemRead]),
            _ => Permissions::NONE,
        }
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        self.archive(scope, path)?.open(scope, path)
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        self.archive(scope, path)?.stat(path)
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        self.archive(scope, path)?.list(path)
    }
}
