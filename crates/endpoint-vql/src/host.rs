//! The sinks: every function of this crate that touches the outside world. Each takes the permit for its effect, which only an ACL decision makes.

use std::fs::{self, File, ReadDir};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use talon_acl::{Execute, FilesystemRead, FilesystemWrite, MachineState, Permit};

/// Opens a file for reading. Pipes and devices do not block the open.
///
/// # Errors
/// As the system says.
pub fn open(_: &Permit<FilesystemRead>, path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0)).open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    Ok(file)
}

/// What is known of a file; links are followed.
///
/// # Errors
/// As the system says.
pub fn metadata(_: &Permit<FilesystemRead>, path: &Path) -> io::Result<fs::Metadata> {
    fs::metadata(path)
}

/// What is known of a file; links are not followed.
///
/// # Errors
/// As the system says.
pub fn symlink_metadata(_: &Permit<FilesystemRead>, path: &Path) -> io::Result<fs::Metadata> {
    fs::symlink_metadata(path)
}

/// What a link says.
///
/// # Errors
/// As the system says.
pub fn read_link(_: &Permit<FilesystemRead>, path: &Path) -> io::Result<PathBuf> {
    fs::read_link(path)
}

/// The entries of a folder.
///
/// # Errors
/// As the system says.
pub fn read_dir(_: &Permit<FilesystemRead>, path: &Path) -> io::Result<ReadDir> {
    fs::read_dir(path)
}

/// Makes a new file that only its owner can read. An existing one is refused.
///
/// # Errors
/// As the system says.
pub fn create_new(_: &Permit<FilesystemWrite>, path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Opens a file for writing, at its end or in place of what it has. A new one can be read by its owner only; links at its place are refused.
///
/// # Errors
/// As the system says.
pub fn write(_: &Permit<FilesystemWrite>, path: &Path, append: bool) -> io::Result<File> {
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    File::options().write(true).create(true).append(append).truncate(!append).mode(0o600).custom_flags(no_follow).open(path)
}

/// The mode that a text means: octal digits, or some of the letters `rwx` for the owner.
///
/// # Errors
/// It means none.
pub fn mode(text: &str) -> io::Result<u32> {
    if let Some(mode) = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777) {
        return Ok(mode);
    }
    let letter = |letter: char| match letter {
        'r' => Some(0o400),
        'w' => Some(0o200),
        'x' => Some(0o100),
        _ => None,
    };
    let letters: Option<u32> = text.chars().map(letter).try_fold(0, |mode, bit| Some(mode | bit?));
    // An executable that nobody can read is of no use.
    let letters = letters.map(|mode| if mode == 0o100 { 0o700 } else { mode });
    letters.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is no mode: octal up to 777, or letters of rwx")))
}

/// Sets the mode of an open file.
///
/// # Errors
/// As the system says.
pub fn set_mode(_: &Permit<FilesystemWrite>, file: &File, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// Makes a new folder that only its owner can enter.
///
/// # Errors
/// As the system says.
pub fn create_dir(_: &Permit<FilesystemWrite>, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// Makes a folder and those above it, as far as they are not there; new ones get `mode`.
///
/// # Errors
/// As the system says.
pub fn create_dirs(_: &Permit<FilesystemWrite>, path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Sets when a file was changed and read, in nanoseconds since the epoch; `None` leaves it.
///
/// # Errors
/// As the system says.
pub fn set_times(_: &Permit<FilesystemWrite>, file: &File, modified: Option<i64>, accessed: Option<i64>) -> io::Result<()> {
    let moment = |nanos: i64| {
        let age = std::time::Duration::from_nanos(nanos.unsigned_abs());
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        if nanos < 0 { epoch.checked_sub(age) } else { epoch.checked_add(age) }
    };
    let mut times = fs::FileTimes::new();
    if let Some(at) = modified.and_then(moment) {
        times = times.set_modified(at);
    }
    if let Some(at) = accessed.and_then(moment) {
        times = times.set_accessed(at);
    }
    file.set_times(times)
}

/// Makes a folder that only its owner can enter, unless it is there; a link in its place is refused.
///
/// # Errors
/// As the system says.
pub fn create_real_dir(permit: &Permit<FilesystemWrite>, path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        Err(_) => create_dir(permit, path),
    }
}

/// Removes a file or a folder with all that is in it. Links are removed, not followed.
///
/// # Errors
/// As the system says.
pub fn remove(_: &Permit<FilesystemWrite>, path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Starts a process.
///
/// # Errors
/// As the system says.
pub fn spawn(_: &Permit<Execute>, command: &mut Command) -> io::Result<Child> {
    command.spawn()
}

/// Ends a process at once.
///
/// # Errors
/// There is none, or it is not ours to end.
pub fn kill(_: &Permit<Execute>, pid: i32) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

/// Reads a file of `/proc`, `/sys` or `/etc` that describes the machine, up to 4 MiB.
///
/// # Errors
/// As the system says.
pub fn state(_: &Permit<MachineState>, path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    const LIMIT: u64 = 4 << 20;
    let mut content = Vec::new();
    File::open(path)?.take(LIMIT).read_to_end(&mut content)?;
    Ok(content)
}

/// Opens a file of `/proc` that is read here and there, such as the memory of a process.
///
/// # Errors
/// As the system says.
pub fn state_file(_: &Permit<MachineState>, path: &Path) -> io::Result<File> {
    File::open(path)
}

/// How many bytes the file system at `path` has, and how many are free.
///
/// # Errors
/// As the system says.
pub fn space(_: &Permit<MachineState>, path: &Path) -> io::Result<(u64, u64)> {
    let known = rustix::fs::statvfs(path)?;
    Ok((known.f_blocks.saturating_mul(known.f_frsize), known.f_bfree.saturating_mul(known.f_frsize)))
}

/// What a link of `/proc` says.
///
/// # Errors
/// As the system says.
pub fn state_link(_: &Permit<MachineState>, path: &Path) -> io::Result<PathBuf> {
    fs::read_link(path)
}

/// The names in a folder of `/proc` or `/sys`.
///
/// # Errors
/// As the system says.
pub fn state_names(_: &Permit<MachineState>, path: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(path)?.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.collect())
}
