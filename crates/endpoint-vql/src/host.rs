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

/// Makes a new folder that only its owner can enter.
///
/// # Errors
/// As the system says.
pub fn create_dir(_: &Permit<FilesystemWrite>, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path)
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
