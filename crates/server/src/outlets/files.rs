//! The audit log as files of JSON lines with the names, links and rotation of the stock component logs.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use talon_audit::{COMPONENT, Entry, component_line};

use super::{Outlet, OutletError};
use crate::clock::{self, Clock};

/// How far from the end of a file its last record is looked for: a record is shorter.
const TAIL: u64 = 256 << 10;

/// When a file ends and when it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRules {
    /// How long a file is written.
    pub rotation: Duration,
    /// How long it is kept.
    pub max_age: Duration,
}

impl Default for FileRules {
    /// A week, and a year: the stock defaults.
    fn default() -> Self {
        Self { rotation: Duration::from_secs(604_800), max_age: Duration::from_secs(31_536_000) }
    }
}

/// Writes `VelociraptorAudit_info.log` in a folder: a link to the current of the files `VelociraptorAudit_info.log.YYYYMMDDHHMM`.
pub struct AuditFileOutlet {
    folder: PathBuf,
    rules: FileRules,
    clock: Arc<dyn Clock>,
    /// The current file, and the name it has.
    current: Option<(String, File)>,
    next: u64,
}

impl AuditFileOutlet {
    /// An outlet to `folder`, which is made if it is not there. It goes on after the last record that the files have.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(folder: &Path, rules: FileRules, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let next = match files(folder)?.last() {
            Some(newest) => next_after(newest)?,
            None => 0,
        };
        Ok(Self { folder: folder.to_owned(), rules, clock, current: None, next })
    }

    fn write(&mut self, entries: &[Entry]) -> std::io::Result<()> {
        let name = self.name_now();
        let (open, mut file) = match self.current.take() {
            Some((open, file)) if open == name => (open, file),
            _ => {
                let file = self.begin(&name)?;
                (name, file)
            }
        };
        let mut lines = String::new();
        let mut last = None;
        for entry in entries {
            lines.push_str(&component_line(entry));
            lines.push('\n');
            last = Some(entry.index);
        }
        let length = file.metadata()?.len();
        let written = file.write_all(lines.as_bytes());
        if written.is_err() {
            // Half a line would be taken for a record; the rest comes again.
            file.set_len(length)?;
        }
        written?;
        self.current = Some((open, file));
        self.next = last.map_or(self.next, |last| last.saturating_add(1));
        Ok(())
    }

    /// The name of the file of now: time is cut into pieces of the rotation's length.
    fn name_now(&self) -> String {
        let now = self.clock.now_s();
        let start = clock::rfc3339(now - now % self.rules.rotation.as_secs().max(60));
        let digits: String = start.chars().filter(char::is_ascii_digit).take(12).collect();
        format!("{COMPONENT}_info.log.{digits}")
    }

    /// Opens a file, points the link at it, and removes the files that are too old.
    fn begin(&self, name: &str) -> std::io::Result<File> {
        let path = self.folder.join(name);
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let link = self.folder.join(format!("{COMPONENT}_info.log"));
        let new = self.folder.join(format!("{COMPONENT}_info.log_symlink"));
        fs::remove_file(&new).or_else(absent)?;
        symlink(name, &new)?;
        fs::rename(&new, &link)?;
        let oldest = (UNIX_EPOCH + Duration::from_secs(self.clock.now_s())).checked_sub(self.rules.max_age);
        for old in files(&self.folder)? {
            if old != path && fs::metadata(&old)?.modified().is_ok_and(|changed| oldest.is_some_and(|oldest| changed < oldest)) {
                fs::remove_file(&old).or_else(absent)?;
            }
        }
        Ok(file)
    }
}

impl Outlet for AuditFileOutlet {
    fn name(&self) -> &str {
        "files"
    }

    fn position(&self) -> u64 {
        self.next
    }

    fn deliver(&mut self, entries: &[Entry]) -> Result<(), OutletError> {
        self.write(entries).map_err(|error| OutletError(format!("writing to {}: {error}", self.folder.display())))
    }
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The files of the component, oldest first.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let prefix = format!("{COMPONENT}_info.log.");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)).is_some_and(|date| date.len() == 12) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The number after that of the last record in a file; half a line at its end is cut off.
fn next_after(path: &Path) -> std::io::Result<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        index: u64,
    }
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut reader = BufReader::new(&file);
    let (mut whole, mut next, mut line) = (start, 0, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)? as u64;
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        whole = whole.saturating_add(read);
        if let Ok(Numbered { index }) = serde_json::from_slice(&line) {
            next = index.saturating_add(1);
        }
    }
    if whole < length {
        file.set_len(whole)?;
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use talon_audit::{Details, Phase, Record};

    use super::*;

    #[derive(Debug)]
    struct Hands(AtomicU64);

    impl Clock for Hands {
        fn now_ns(&self) -> u64 {
            self.0.load(Ordering::SeqCst) * 1_000_000_000
        }
    }

    fn entry(index: u64) -> Entry {
        let mut record = Record::new(1_700_000_000_000_000_000, "root".parse().unwrap(), "alice", "user_create", Phase::Intended);
        record.details = Details::new().number("n", index);
        Entry::new(index, record)
    }

    fn lines(folder: &Path) -> Vec<u64> {
        let mut numbers = Vec::new();
        for path in files(folder).unwrap() {
            for line in fs::read_to_string(path).unwrap().lines() {
                numbers.push(serde_json::from_str::<serde_json::Value>(line).unwrap()["index"].as_u64().unwrap());
            }
        }
        numbers
    }

    #[test]
    fn each_record_has_one_line_through_restarts_rotation_and_half_lines() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Hands(AtomicU64::new(1_700_000_000)));
        let rules = FileRules { rotation: Duration::from_secs(3600), max_age: Duration::from_secs(7200) };
        let open = || AuditFileOutlet::open(folder.path(), rules, clock.clone()).unwrap();
        let mut outlet = open();
        outlet.deliver(&[entry(0), entry(1)]).unwrap();
        outlet.deliver(&[entry(2)]).unwrap();
        let first = files(folder.path()).unwrap().remove(0);
        assert!(first.ends_with("VelociraptorAudit_info.log.202311142200"), "{}", first.display());
        let text = fs::read_to_string(&first).unwrap();
        fs::write(&first, &text[..text.len() - 5]).unwrap();
        let mut outlet = open();
        assert_eq!(outlet.position(), 2, "the half line comes again");
        outlet.deliver(&[entry(2), entry(3)]).unwrap();
        clock.0.fetch_add(3600, Ordering::SeqCst);
        outlet.deliver(&[entry(4)]).unwrap();
        assert_eq!(open().position(), 5);
        assert_eq!(lines(folder.path()), [0, 1, 2, 3, 4]);
        assert_eq!(files(folder.path()).unwrap().len(), 2);
        let link = fs::read_link(folder.path().join("VelociraptorAudit_info.log")).unwrap();
        assert_eq!(link, Path::new("VelociraptorAudit_info.log.202311142300"));
    }

    #[test]
    fn a_folder_that_is_a_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "").unwrap();
        assert!(AuditFileOutlet::open(&path, FileRules::default(), Arc::new(Hands(AtomicU64::new(0)))).is_err());
    }
}
