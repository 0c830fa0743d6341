//! `file` and `auto`: the file system of this host.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use talon_ids::{Permission, Permissions};
use talon_vql::{CallError, Dict, OsPath, Scope, Text};

use super::{Accessor, FileInfo, FileReader, Mode};
use crate::authority::permit;
use crate::host;
use crate::upload::FileTimes;

/// A folder with more entries is refused rather than read into memory.
const MAX_ENTRIES: usize = 2_000_000;

pub(super) struct Disk;

impl Accessor for Disk {
    fn permissions(&self) -> Permissions {
        Permissions::of(&[Permission::FilesystemRead])
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        let file = host::open(&permit(scope)?, &native(path)).map_err(|error| about(path, &error))?;
        Ok(Box::new(file))
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        let native = native(path);
        let metadata = host::symlink_metadata(&permit(scope)?, &native).map_err(|error| about(path, &error))?;
        let link = if metadata.is_symlink() { host::read_link(&permit(scope)?, &native).ok() } else { None };
        Ok(info(path.clone(), &metadata, link))
    }

    fn stat_target(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        let metadata = host::metadata(&permit(scope)?, &native(path)).map_err(|error| about(path, &error))?;
        Ok(info(path.clone(), &metadata, None))
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        let permit = permit(scope)?;
        let mut names = Vec::new();
        for entry in host::read_dir(&permit, &native(path)).map_err(|error| about(path, &error))? {
            names.push(entry.map_err(|error| about(path, &error))?.file_name().into_vec());
            if names.len() > MAX_ENTRIES {
                return Err(CallError::failed(format!("{path}: more than {MAX_ENTRIES} entries")));
            }
        }
        names.sort_unstable();
        let entries = names.into_iter().filter_map(|name| self.stat(scope, &Arc::new(path.join(Text::from(name)))).ok());
        Ok(entries.collect())
    }
}

fn native(path: &OsPath) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path.plain().as_bytes()))
}

fn about(path: &OsPath, error: &std::io::Error) -> CallError {
    CallError::failed(format!("{path}: {error}"))
}

fn info(path: Arc<OsPath>, metadata: &fs::Metadata, link: Option<PathBuf>) -> FileInfo {
    let nanos = |seconds: i64, nanos: i64| seconds.checked_mul(1_000_000_000).and_then(|total| total.checked_add(nanos));
    let since_epoch = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).ok();
    let btime = metadata.created().ok().and_then(since_epoch).and_then(|age| i64::try_from(age.as_nanos()).ok());
    let mut data = Dict::new();
    if let Some(link) = link {
        data.set("Link", link.to_string_lossy().into_owned());
    }
    FileInfo {
        path,
        size: metadata.size(),
        mode: Mode(metadata.mode()),
        is_dir: metadata.is_dir(),
        is_link: metadata.is_symlink(),
        times: FileTimes {
            mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
            atime: nanos(metadata.atime(), metadata.atime_nsec()),
            ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
            btime,
        },
        identity: Some((metadata.dev(), metadata.ino())),
        data,
    }
}

/// One kind or special bit: its mask, its value, Go's bit, Go's letter.
const KINDS: &[(u32, u32, u32, char)] = &[
    (0o170_000, 0o040_000, 31, 'd'),
    (0o170_000, 0o120_000, 27, 'L'),
    (0o170_000, 0o060_000, 26, 'D'),
    (0o170_000, 0o020_000, 26, 'D'),
    (0o170_000, 0o010_000, 25, 'p'),
    (0o170_000, 0o140_000, 24, 'S'),
    (0o004_000, 0o004_000, 23, 'u'),
    (0o002_000, 0o002_000, 22, 'g'),
    (0o170_000, 0o020_000, 21, 'c'),
    (0o001_000, 0o001_000, 20, 't'),
];

/// Go's `os.FileMode` of Unix mode bits.
#[must_use]
pub fn go_mode(unix: u32) -> i64 {
    let kinds = KINDS.iter().filter(|(mask, value, ..)| unix & mask == *value);
    kinds.fold(i64::from(unix & 0o777), |bits, (_, _, bit, _)| bits | 1 << bit)
}

impl Mode {
    /// Go's `os.FileMode` bits.
    #[must_use]
    pub fn go_bits(self) -> i64 {
        go_mode(self.0)
    }
}

impl fmt::Display for Mode {
    /// As Go writes it: `-rw-r--r--`, `drwxr-xr-x`, `Dcrw-rw-rw-`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut letters: String = KINDS.iter().filter(|(mask, value, ..)| self.0 & mask == *value).map(|(.., letter)| letter).collect();
        if letters.is_empty() {
            letters.push('-');
        }
        out.write_str(&letters)?;
        for (at, letter) in "rwxrwxrwx".chars().enumerate() {
            let set = self.0 & (0o400 >> at) != 0;
            write!(out, "{}", if set { letter } else { '-' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_print_as_go_prints_them() {
        let cases = [
            (0o100_644, "-rw-r--r--", 0o644),
            (0o040_755, "drwxr-xr-x", 1 << 31 | 0o755),
            (0o120_777, "Lrwxrwxrwx", 1 << 27 | 0o777),
            (0o041_777, "dtrwxrwxrwx", 1 << 31 | 1 << 20 | 0o777),
            (0o020_666, "Dcrw-rw-rw-", 1 << 26 | 1 << 21 | 0o666),
            (0o104_755, "urwxr-xr-x", 1 << 23 | 0o755),
        ];
        for (unix, text, go) in cases {
            assert_eq!(Mode(unix).to_string(), text);
            assert_eq!(go_mode(unix), go, "{text}");
        }
    }
}
