//! The audit log in files: a folder that one process writes and any number may read, and the key files beside it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use talon_audit::{AuditError, SigningKey, Storage, StorageError, VerifierKey};

/// The folder of the log, below the datastore.
pub const AUDIT_FOLDER: &str = "audit";

/// The private key, below the datastore, readable by its owner only.
pub const AUDIT_KEY: &str = "audit.key";

/// The public key, below the datastore, in the note format: keep a copy elsewhere.
pub const AUDIT_PUBLIC_KEY: &str = "audit.pub";

/// The longest file of a log is a full bundle of the longest records.
const MAX_FILE: u64 = 64 << 20;

/// The storage of an audit log in a folder.
#[derive(Debug)]
pub struct AuditFiles {
    folder: PathBuf,
    /// Held as long as this process writes; none for readers.
    lock: Option<File>,
    /// The file that was appended to last.
    appending: Mutex<Option<(String, File)>>,
}

impl AuditFiles {
    /// Opens the log below `datastore` for writing. No other process can do so as long as this value lives.
    ///
    /// # Errors
    /// When the folder cannot be made, or another process writes the log.
    pub fn open(datastore: &Path) -> Result<Self, StorageError> {
        let folder = datastore.join(AUDIT_FOLDER);
        create_folder(&folder)?;
        let failed = |error: std::io::Error| StorageError::new("locking", AUDIT_FOLDER, error);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, lock: Some(lock), appending: Mutex::new(None) }),
            Err(TryLockError::WouldBlock) => Err(StorageError::new("locking", AUDIT_FOLDER, "another process writes this audit log")),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Opens the log below `datastore` for reading, whether it is being written or not.
    #[must_use]
    pub fn read_only(datastore: &Path) -> Self {
        Self { folder: datastore.join(AUDIT_FOLDER), lock: None, appending: Mutex::new(None) }
    }

    /// The key of the log below `datastore`; the first time, one from `generate`, written to the key files.
    ///
    /// # Errors
    /// [`AuditError::Key`] if a key file is not what it should be, else what `generate` or the disk says.
    pub fn load_or_create_key(
        datastore: &Path,
        generate: impl FnOnce() -> Result<SigningKey, AuditError>,
    ) -> Result<SigningKey, AuditError> {
        let path = datastore.join(AUDIT_KEY);
        let key = match read_file(&path, AUDIT_KEY)? {
            Some(text) => SigningKey::parse(std::str::from_utf8(&text).map_err(|_| AuditError::Key)?)?,
            None => {
                create_folder(datastore)?;
                let key = generate()?;
                replace_file(&path, AUDIT_KEY, format!("{}\n", *key.to_note_form()).as_bytes(), Access::Owner, Durability::Synced)?;
                key
            }
        };
        let public = format!("{}\n", key.verifier());
        let public_path = datastore.join(AUDIT_PUBLIC_KEY);
        match read_file(&public_path, AUDIT_PUBLIC_KEY)? {
            Some(stored) if stored == public.as_bytes() => {}
            Some(_) => return Err(AuditError::Key),
            None => replace_file(&public_path, AUDIT_PUBLIC_KEY, public.as_bytes(), Access::Everybody, Durability::Synced)?,
        }
        Ok(key)
    }

    /// The public key of the log below `datastore`.
    ///
    /// # Errors
    /// [`AuditError::Key`] if the file is not a key, or what the disk says.
    pub fn load_public_key(datastore: &Path) -> Result<VerifierKey, AuditError> {
        let text = read_file(&datastore.join(AUDIT_PUBLIC_KEY), AUDIT_PUBLIC_KEY)?
            .ok_or_else(|| StorageError::new("reading", AUDIT_PUBLIC_KEY, "there is no such file"))?;
        std::str::from_utf8(&text).map_err(|_| AuditError::Key)?.parse()
    }

    fn path(&self, name: &str) -> Result<PathBuf, StorageError> {
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.')
        };
        if name.split('/').all(plain) && name != "lock" {
            Ok(name.split('/').fold(self.folder.clone(), |path, part| path.join(part)))
        } else {
            Err(StorageError::new("naming", name, "not a name of the audit log"))
        }
    }

    /// The path for a change, which readers cannot make.
    fn path_to_change(&self, name: &str) -> Result<PathBuf, StorageError> {
        match self.lock {
            Some(_) => self.path(name),
            None => Err(StorageError::new("changing", name, "the audit log is open for reading only")),
        }
    }

    fn replace(&self, name: &str, content: &[u8], durability: Durability) -> Result<(), StorageError> {
        let path = self.path_to_change(name)?;
        self.stop_appending(name);
        replace_file(&path, name, content, Access::Everybody, durability)
    }

    /// The file of this name is about to be another one.
    fn stop_appending(&self, name: &str) {
        let mut appending = self.appending();
        if appending.as_ref().is_some_and(|(open, _)| open == name) {
            *appending = None;
        }
    }

    fn appending(&self) -> std::sync::MutexGuard<'_, Option<(String, File)>> {
        self.appending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for AuditFiles {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
        read_file(&self.path(name)?, name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), StorageError> {
        self.replace(name, content, Durability::Synced)
    }

    fn write_lazily(&self, name: &str, content: &[u8]) -> Result<(), StorageError> {
        self.replace(name, content, Durability::Lazy)
    }

    fn append(&self, name: &str, addition: &[u8]) -> Result<(), StorageError> {
        let path = self.path_to_change(name)?;
        let failed = |error: std::io::Error| StorageError::new("appending to", name, error);
        let mut appending = self.appending();
        let mut file = match appending.take() {
            Some((open, file)) if open == name => file,
            _ => {
                let parent = path.parent().unwrap_or(&self.folder);
                create_folder(parent)?;
                let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
                sync_folder(parent).map_err(failed)?;
                file
            }
        };
        file.write_all(addition).and_then(|()| file.sync_data()).map_err(failed)?;
        *appending = Some((name.to_owned(), file));
        Ok(())
    }

    fn truncate(&self, name: &str, length: u64) -> Result<(), StorageError> {
        let path = self.path_to_change(name)?;
        *self.appending() = None;
        match OpenOptions::new().write(true).open(path) {
            Ok(file) => file.set_len(length).and_then(|()| file.sync_all()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|error| StorageError::new("cutting", name, error))
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        let path = self.path_to_change(name)?;
        self.stop_appending(name);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(path.parent().unwrap_or(&self.folder)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|error| StorageError::new("removing", name, error))
    }
}

/// A file's content; none if there is no such file.
fn read_file(path: &Path, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
    let failed = |error: std::io::Error| StorageError::new("reading", name, error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut content = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_FILE {
        return Err(StorageError::new("reading", name, "it is larger than any file of an audit log"));
    }
    Ok(Some(content))
}

/// Who may read a file that is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Owner,
    Everybody,
}

/// When a file that is written survives a loss of power.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// From the moment that writing it returns.
    Synced,
    /// When the file system gets to it.
    Lazy,
}

/// Replaces a file so that after the end of the process it is the old one or the new one, and if synced after a loss of power too.
fn replace_file(path: &Path, name: &str, content: &[u8], access: Access, durability: Durability) -> Result<(), StorageError> {
    let failed = |error: std::io::Error| StorageError::new("writing", name, error);
    let Some(parent) = path.parent() else { return Err(StorageError::new("writing", name, "it has no folder")) };
    create_folder(parent)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    if access == Access::Owner {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = access;
    let mut file = options.open(&new).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    if durability == Durability::Lazy {
        return fs::rename(&new, path).map_err(failed);
    }
    file.sync_all().map_err(failed)?;
    fs::rename(&new, path).and_then(|()| sync_folder(parent)).map_err(failed)
}

/// Makes a folder and those above it durable.
fn create_folder(folder: &Path) -> Result<(), StorageError> {
    if folder.is_dir() {
        return Ok(());
    }
    let failed = |error: std::io::Error| StorageError::new("creating", AUDIT_FOLDER, error);
    fs::create_dir_all(folder).map_err(failed)?;
    folder.ancestors().take(4).skip(1).filter(|above| above.is_dir()).try_for_each(sync_folder).map_err(failed)
}

/// Makes names in a folder durable. Only Unix knows how.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_audit::{Details, Log, LogReader, Phase, REDACTION, Record, verify_log, verify_proof};
    use talon_crypto::SystemRng;

    use super::*;

    fn key() -> Result<SigningKey, AuditError> {
        SigningKey::parse("PRIVATE+KEY+example.com/audit+f80c4422+AQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH")
    }

    fn record(n: u64) -> Record {
        Record::new(1_700_000_000_000_000_000, "root".parse().unwrap(), "alice", &format!("operation {n}"), Phase::Intended)
    }

    fn open(datastore: &Path) -> Log {
        let key = AuditFiles::load_or_create_key(datastore, key).unwrap();
        Log::open(Arc::new(AuditFiles::open(datastore).unwrap()), key, Arc::new(SystemRng)).unwrap()
    }

    #[test]
    fn a_log_in_files_survives_its_process_and_is_verified_while_it_is_written() {
        let datastore = tempfile::tempdir().unwrap();
        let log = open(datastore.path());
        for n in 0..300 {
            assert_eq!(log.append(&record(n)).unwrap().index(), n);
        }
        let public = AuditFiles::load_public_key(datastore.path()).unwrap();
        assert_eq!(verify_log(&AuditFiles::read_only(datastore.path()), &public, None).unwrap().records, 300);
        let remembered = log.checkpoint();
        log.publish().unwrap();
        drop(log);

        let log = open(datastore.path());
        assert_eq!(log.append(&record(300)).unwrap().index(), 300);
        let files = AuditFiles::read_only(datastore.path());
        assert_eq!(verify_log(&files, &public, Some(remembered.as_bytes())).unwrap().records, 301);
        let reader = LogReader::new(Arc::new(files), public.clone());
        assert_eq!(reader.entries(299, 9).unwrap().into_iter().map(|entry| entry.record).collect::<Vec<_>>(), [record(299), record(300)]);
        let proof = reader.prove(7).unwrap().to_string();
        assert_eq!(verify_proof(&proof, &public).unwrap().record, record(7));
        for name in ["checkpoint", "opening/000", "tile/0/000", "tile/entries/000", "tile/1/000.p/1", "journal/001"] {
            assert!(datastore.path().join(AUDIT_FOLDER).join(name).is_file(), "{name}");
        }
    }

    #[test]
    fn a_kill_at_any_byte_of_a_write_loses_nothing_acknowledged() {
        let datastore = tempfile::tempdir().unwrap();
        let log = open(datastore.path());
        for n in 0..3 {
            let _ = log.append(&record(n)).unwrap();
        }
        let journal = datastore.path().join(AUDIT_FOLDER).join("journal/000");
        let before = fs::metadata(&journal).unwrap().len();
        let checkpoint = fs::read(datastore.path().join(AUDIT_FOLDER).join("checkpoint")).unwrap();
        let _ = log.append(&record(3)).unwrap();
        let whole = fs::read(&journal).unwrap();
        drop(log);
        for cut in before..=whole.len() as u64 {
            fs::write(&journal, &whole[..usize::try_from(cut).unwrap()]).unwrap();
            fs::write(datastore.path().join(AUDIT_FOLDER).join("checkpoint"), &checkpoint).unwrap();
            let log = open(datastore.path());
            assert_eq!(log.size(), if cut == whole.len() as u64 { 4 } else { 3 }, "{cut}");
            let next = log.append(&record(9)).unwrap().index();
            assert_eq!(log.entries(next, 1).unwrap()[0].record, record(9));
        }
    }

    #[test]
    fn details_are_erased_from_the_files_and_the_log_goes_on() {
        let datastore = tempfile::tempdir().unwrap();
        let log = open(datastore.path());
        for n in 0..3 {
            let mut record = record(n);
            record.details = Details::new().text("name", &format!("person {n}"));
            let _ = log.append(&record).unwrap();
        }
        let mut by = Record::new(1_800_000_000_000_000_000, "root".parse().unwrap(), "admin", REDACTION, Phase::Intended);
        by.details = Details::new().number("record", 1);
        let _ = log.redact(1, &by).unwrap();
        let _ = log.append(&record(4)).unwrap();
        let text = fs::read(datastore.path().join(AUDIT_FOLDER).join("journal/000")).unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("person 0") && !text.contains("person 1") && text.contains("person 2"));
        drop(log);
        let public = AuditFiles::load_public_key(datastore.path()).unwrap();
        let report = verify_log(&AuditFiles::read_only(datastore.path()), &public, None).unwrap();
        assert_eq!((report.records, report.redacted), (5, 1));
        assert_eq!(open(datastore.path()).entries(4, 1).unwrap()[0].record, record(4));
    }

    #[test]
    fn only_one_process_writes() {
        let datastore = tempfile::tempdir().unwrap();
        let first = AuditFiles::open(datastore.path()).unwrap();
        let error = AuditFiles::open(datastore.path()).unwrap_err();
        assert_eq!(error.to_string(), "locking audit: another process writes this audit log");
        drop(first);
        AuditFiles::open(datastore.path()).unwrap();
        let reader = AuditFiles::read_only(datastore.path());
        assert!(reader.write("checkpoint", b"x").is_err());
        assert!(reader.append("journal/000", b"x").is_err());
        assert!(reader.remove("checkpoint").is_err());
        assert!(reader.truncate("checkpoint", 0).is_err());
    }

    #[test]
    fn names_stay_inside_the_folder() {
        let datastore = tempfile::tempdir().unwrap();
        let files = AuditFiles::open(datastore.path()).unwrap();
        for name in ["../audit.key", "/etc/passwd", "a//b", "", ".", "tile/../x", "lock", "A", "a b"] {
            assert!(files.read(name).is_err(), "{name}");
            assert!(files.write(name, b"").is_err(), "{name}");
        }
        assert_eq!(files.read("tile/0/000").unwrap(), None);
    }

    #[test]
    fn the_key_is_made_once_and_its_files_must_agree() {
        let datastore = tempfile::tempdir().unwrap();
        let made = AuditFiles::load_or_create_key(datastore.path(), key).unwrap().verifier();
        let never = || Err(AuditError::Key);
        assert_eq!(AuditFiles::load_or_create_key(datastore.path(), never).unwrap().verifier(), made);
        assert_eq!(AuditFiles::load_public_key(datastore.path()).unwrap(), made);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(datastore.path().join(AUDIT_KEY)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        fs::write(datastore.path().join(AUDIT_PUBLIC_KEY), "other+00000000+AAAA\n").unwrap();
        assert!(AuditFiles::load_or_create_key(datastore.path(), never).is_err());
    }
}
