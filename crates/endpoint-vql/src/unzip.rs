//! `unzip()`: the members of archives into a folder.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, OsPath, PathFlavour, Registry, Rows, Scope, Signature, Text, Value, regex::Regex};

use crate::accessor::{self, FileInfo};
use crate::authority::permit;
use crate::host;

/// More is not unpacked in one call.
const MAX_BYTES: u64 = 100 << 30;

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("unzip", "Unpacks a ZIP or TAR archive into a folder.")
            .args(
                const {
                    &[
                        Arg::required("filename", ArgType::Path, "The archive."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                        Arg::optional("filename_filter", ArgType::String, "An expression that names of members match."),
                        Arg::required("output_directory", ArgType::String, "Where to."),
                        Arg::optional("type", ArgType::String, "zip, tar or tgz; by the content unless given."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemWrite, Permission::FilesystemRead])
            .version(2),
        unzip,
    );
}

/// The members of an archive, one after the other.
enum Archive {
    Zip { accessor: Arc<dyn accessor::Accessor>, pending: Vec<FileInfo> },
    Tar(Box<dyn Read + Send>),
}

/// A regular file in an archive.
struct Member {
    name: Text,
    parts: Vec<Text>,
    content: Box<dyn Read + Send>,
    size: u64,
}

fn unzip(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let path = call.path("filename").ok_or_else(|| CallError::failed("Field filename is required"))?;
    let name = call.string("accessor");
    let accessor = accessor::named(&scope, &name)?;
    let mut head = Vec::new();
    accessor.open(&scope, &path)?.take(512).read_to_end(&mut head)?;
    let kind = match (call.string("type").as_str(), head.as_slice()) {
        ("zip", _) | ("", [b'P', b'K', 3 | 5, 4 | 6, ..]) => "zip",
        ("tgz" | "tar.gz", _) | ("", [0x1f, 0x8b, ..]) => "tgz",
        ("tar", _) => "tar",
        ("", head) if head.get(257..262) == Some(b"ustar") => "tar",
        _ => return Err(CallError::failed("unknown file type")),
    };
    let mut archive = match kind {
        "zip" => {
            let delegate = talon_vql::Delegate { accessor: if name.is_empty() { "auto".to_owned() } else { name }, path: path.to_string() };
            let root = Arc::new(OsPath::root(PathFlavour::Generic).with_delegate(Some(delegate)));
            let accessor = accessor::named(&scope, "zip")?;
            let pending = reversed(accessor.list(&scope, &root)?);
            Archive::Zip { accessor, pending }
        }
        "tgz" => Archive::Tar(Box::new(flate2::read::MultiGzDecoder::new(accessor.open(&scope, &path)?))),
        _ => Archive::Tar(Box::new(accessor.open(&scope, &path)?)),
    };
    let filter = call.text("filename_filter").filter(|filter| !filter.is_empty());
    let filter = filter.map(|filter| scope.regex(&filter).ok_or(CallError::Silent)).transpose()?;
    let folder = PathBuf::from(std::ffi::OsStr::from_bytes(&call.bytes("output_directory")));
    let mut left = MAX_BYTES;
    Ok(Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            let member = match archive.next(&scope)? {
                Ok(member) => member,
                Err(error) => return Some(Err(error)),
            };
            match unpack(member, filter.as_deref(), &folder, &mut left, &scope) {
                Ok(None) => {}
                Ok(Some(row)) => return Some(Ok(row.into())),
                Err(error) => call.log(error.to_string()),
            }
        }
    }))
}

fn reversed(mut entries: Vec<FileInfo>) -> Vec<FileInfo> {
    entries.reverse();
    entries
}

/// Writes a member below the folder. Names cannot lead out of it: `.` and `..` are dropped when paths are read.
fn unpack(mut member: Member, filter: Option<&Regex>, folder: &Path, left: &mut u64, scope: &Scope) -> Result<Option<Dict>, CallError> {
    const STEP: usize = 1 << 16;
    if filter.is_some_and(|filter| !filter.is_match(&member.name)) || member.parts.is_empty() {
        std::io::copy(&mut member.content, &mut std::io::sink())?;
        return Ok(None);
    }
    let permit = permit(scope)?;
    let mut target = folder.to_owned();
    host::create_dirs(&permit, &target, 0o700)?;
    for (at, part) in member.parts.iter().enumerate() {
        target.push(std::ffi::OsStr::from_bytes(part));
        if at.saturating_add(1) < member.parts.len() {
            host::create_real_dir(&permit, &target)?;
        }
    }
    let mut out = host::write(&permit, &target, false)?;
    let mut buffer = vec![0; STEP];
    let mut written = 0_u64;
    loop {
        if scope.stopped() {
            return Err(CallError::Silent);
        }
        let got = member.content.read(&mut buffer)?;
        if got == 0 {
            break;
        }
        *left = left.checked_sub(got as u64).ok_or_else(|| CallError::failed(format!("more than {MAX_BYTES} bytes are not unpacked")))?;
        out.write_all(buffer.get(..got).unwrap_or_default())?;
        written = written.saturating_add(got as u64);
    }
    if written < member.size {
        return Err(CallError::failed(format!("{}: the archive ends early", member.name.to_str())));
    }
    let row = Dict::new()
        .with("OriginalPath", member.name)
        .with("NewPath", Value::str(target.as_os_str().as_bytes()))
        .with("Size", i64::try_from(written).unwrap_or(i64::MAX));
    Ok(Some(row))
}

impl Archive {
    /// The next regular file.
    fn next(&mut self, scope: &Scope) -> Option<Result<Member, CallError>> {
        match self {
            Self::Zip { accessor, pending } => loop {
                let entry = pending.pop()?;
                if entry.is_dir {
                    match accessor.list(scope, &entry.path) {
                        Ok(below) => pending.extend(reversed(below)),
                        Err(error) => return Some(Err(error)),
                    }
                    continue;
                }
                let open = accessor.open(scope, &entry.path);
                let name = entry.path.with_components(entry.path.components().to_vec()).with_delegate(None).plain();
                let parts = entry.path.components().to_vec();
                return Some(open.map(|content| Member { name, parts, content: Box::new(content), size: entry.size }));
            },
            Self::Tar(reader) => next_in_tar(reader).transpose(),
        }
    }
}

/// What the headers before a member say of its name and size.
#[derive(Default)]
struct Ahead {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

fn next_in_tar(reader: &mut Box<dyn Read + Send>) -> Result<Option<Member>, CallError> {
    const BLOCK: usize = 512;
    const MAX_HEADER: u64 = 1 << 20;
    let mut ahead = Ahead::default();
    loop {
        let mut header = [0_u8; BLOCK];
        if reader.read_exact(&mut header).is_err() || header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let field = |range: std::ops::Range<usize>| {
            let bytes = header.get(range).unwrap_or_default();
            bytes.split(|byte| *byte == 0).next().unwrap_or_default()
        };
        let own_size = number(header.get(124..136).unwrap_or_default()).ok_or_else(|| CallError::failed("tar: bad header"))?;
        let padded = |size: u64| size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64);
        match header.get(156) {
            Some(b'L' | b'x' | b'g') => {
                if own_size > MAX_HEADER {
                    return Err(CallError::failed("tar: a header is too large"));
                }
                let mut content = Vec::new();
                reader.by_ref().take(padded(own_size)).read_to_end(&mut content)?;
                content.truncate(usize::try_from(own_size).unwrap_or(0));
                match header.get(156) {
                    Some(b'L') => ahead.name = Some(content.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()),
                    Some(b'x') => extended(&content, &mut ahead),
                    _ => {}
                }
            }
            Some(0 | b'0' | b'7') => {
                let prefix = if field(257..262) == b"ustar" { field(345..500) } else { b"" };
                let name = ahead.name.take().unwrap_or_else(|| match prefix {
                    b"" => field(0..100).to_vec(),
                    prefix => [prefix, b"/", field(0..100)].concat(),
                });
                let size = ahead.size.take().unwrap_or(own_size);
                let parts = OsPath::parse(Text::from(name.clone()), PathFlavour::Linux).components().to_vec();
                let mut content = Vec::new();
                let body = TarBody::take(reader, size, padded(size), &mut content)?;
                return Ok(Some(Member { name: Text::from(name), parts, content: body, size }));
            }
            _ => {
                let skip =
                    if matches!(header.get(156), Some(b'1'..=b'6')) && header.get(156) != Some(&b'7') { padded(own_size) } else { 0 };
                std::io::copy(&mut reader.by_ref().take(skip), &mut std::io::sink())?;
                ahead = Ahead::default();
            }
        }
    }
}

/// Bodies of members of a TAR are taken into memory, so that the next header can be read whatever becomes of them.
struct TarBody;

impl TarBody {
    fn take(reader: &mut Box<dyn Read + Send>, size: u64, padded: u64, content: &mut Vec<u8>) -> Result<Box<dyn Read + Send>, CallError> {
        const MAX_MEMBER: u64 = 1 << 30;
        if size > MAX_MEMBER {
            return Err(CallError::failed(format!("tar: members may have {MAX_MEMBER} bytes at most")));
        }
        reader.by_ref().take(padded).read_to_end(content)?;
        content.truncate(usize::try_from(size).unwrap_or(0));
        Ok(Box::new(std::io::Cursor::new(std::mem::take(content))))
    }
}

/// Octal digits, or a big-endian number after 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if field.first() == Some(&0x80) {
        let tail = field.get(4..)?;
        return tail.iter().try_fold(0_u64, |number, byte| number.checked_mul(256)?.checked_add((*byte).into()));
    }
    let digits = field.iter().filter(|byte| !matches!(byte, 0 | b' '));
    digits.map(|byte| char::from(*byte).to_digit(8)).try_fold(0_u64, |number, digit| number.checked_mul(8)?.checked_add(digit?.into()))
}

/// Records of the form `<length> <key>=<value>\n`.
fn extended(content: &[u8], ahead: &mut Ahead) {
    for line in content.split(|byte| *byte == b'\n') {
        let Some(space) = line.iter().position(|byte| *byte == b' ') else { continue };
        let record = line.get(space.saturating_add(1)..).unwrap_or_default();
        if let Some(path) = record.strip_prefix(b"path=") {
            ahead.name = Some(path.to_vec());
        } else if let Some(size) = record.strip_prefix(b"size=") {
            ahead.size = std::str::from_utf8(size).ok().and_then(|size| size.parse().ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};
    use zip::write::SimpleFileOptions;

    use super::*;

    fn run(archive: &Path, out: &Path, more: &str) -> Vec<String> {
        let log = Arc::new(MemoryLog::default());
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let scope = crate::with_authority(Environment::new(Arc::new(crate::registry())).log(log.clone()), authority).open();
        let vql =
            format!("SELECT OriginalPath, Size FROM unzip(filename='{}', output_directory='{}'{more})", archive.display(), out.display());
        let rows: Vec<String> = Query::new(&scope, &parse_statement(&vql).unwrap()).map(|row| json::encode(&row.into())).collect();
        rows.into_iter().chain(log.take().into_iter().filter(|line| !line.starts_with("DEBUG"))).collect()
    }

    fn tarred(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, content) in members {
            let mut header = [0_u8; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
            header[156] = b'0';
            header[257..262].copy_from_slice(b"ustar");
            out.extend_from_slice(&header);
            out.extend_from_slice(content);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out.resize(out.len() + 1024, 0);
        out
    }

    #[test]
    fn members_are_unpacked_below_the_folder_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in [("a/one.txt", "one"), ("../../escape.txt", "no"), ("b.log", "bb")] {
            archive.start_file(name, SimpleFileOptions::default()).unwrap();
            archive.write_all(content.as_bytes()).unwrap();
        }
        let file = folder.path().join("a.zip");
        std::fs::write(&file, archive.finish().unwrap().into_inner()).unwrap();
        let out = folder.path().join("out/deep");
        let mut rows = run(&file, &out, "");
        rows.sort();
        assert_eq!(
            rows,
            [
                r#"{"OriginalPath":"/a/one.txt","Size":3}"#,
                r#"{"OriginalPath":"/b.log","Size":2}"#,
                r#"{"OriginalPath":"/escape.txt","Size":2}"#
            ]
        );
        assert_eq!(std::fs::read_to_string(out.join("a/one.txt")).unwrap(), "one");
        assert!(!folder.path().join("escape.txt").exists());
        assert_eq!(run(&file, &folder.path().join("some"), ", filename_filter='log$'"), [r#"{"OriginalPath":"/b.log","Size":2}"#]);
    }

    #[test]
    fn links_that_wait_in_the_folder_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (out, elsewhere) = (folder.path().join("out"), folder.path().join("elsewhere"));
        std::fs::create_dir(&out).unwrap();
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, out.join("a")).unwrap();
        let file = folder.path().join("a.tar");
        std::fs::write(&file, tarred(&[("a/evil", b"x"), ("good", b"y")])).unwrap();
        let lines = run(&file, &out, "");
        assert!(lines.contains(&r#"{"OriginalPath":"good","Size":1}"#.to_owned()) && lines.len() == 2, "{lines:?}");
        assert!(!elsewhere.join("evil").exists());
    }

    #[test]
    fn tar_and_tgz_are_known_by_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let tar = tarred(&[("x/one", b"1"), ("two", &[7; 600])]);
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        out.write_all(&tar).unwrap();
        for (name, content) in [("a.tar", tar), ("a.tgz", out.finish().unwrap())] {
            let file = folder.path().join(name);
            std::fs::write(&file, content).unwrap();
            let rows = run(&file, &folder.path().join(format!("{name}.out")), "");
            assert_eq!(rows, [r#"{"OriginalPath":"x/one","Size":1}"#, r#"{"OriginalPath":"two","Size":600}"#]);
        }
        let file = folder.path().join("text");
        std::fs::write(&file, "no archive").unwrap();
        assert_eq!(run(&file, folder.path(), ""), ["unzip: unknown file type"]);
    }
}
