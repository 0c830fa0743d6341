//! Where rows of queries go that do not fit into memory: files without a name in the system's folder for temporary things, gone when they are closed.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use talon_vql::{Spill, SpillFile};

/// What all queries that share it may have on disk at one time.
const MAX_BYTES: u64 = 16 << 30;

/// Temporary files of this host.
#[derive(Debug, Clone)]
pub(crate) struct DiskSpill {
    used: Arc<AtomicU64>,
    most: u64,
}

impl Default for DiskSpill {
    fn default() -> Self {
        Self::with_limit(MAX_BYTES)
    }
}

impl DiskSpill {
    /// At most `most` bytes at one time.
    #[must_use]
    pub(crate) fn with_limit(most: u64) -> Self {
        Self { used: Arc::default(), most }
    }
}

impl Spill for DiskSpill {
    fn create(&self) -> io::Result<Box<dyn SpillFile>> {
        Ok(Box::new(Spilled { file: nameless()?, length: 0, owner: self.clone() }))
    }
}

/// A new file that only this program has: its name is taken away at once.
fn nameless() -> io::Result<File> {
    const TRIES: u32 = 16;
    let mut outcome = Err(io::Error::other("no name for a temporary file was free"));
    for _ in 0..TRIES {
        let chance = RandomState::new().build_hasher().finish();
        let path = std::env::temp_dir().join(format!("talon-rows-{}-{chance:016x}", std::process::id()));
        outcome = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        match &outcome {
            Ok(_) => {
                std::fs::remove_file(&path)?;
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => break,
        }
    }
    outcome
}

struct Spilled {
    file: File,
    length: u64,
    owner: DiskSpill,
}

impl SpillFile for Spilled {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let more = bytes.len() as u64;
        let used = self.owner.used.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        let written = if used > self.owner.most {
            Err(io::Error::other(format!("queries have more than {} bytes of temporary files", self.owner.most)))
        } else {
            self.file.write_all_at(bytes, self.length)
        };
        match written {
            Ok(()) => self.length = self.length.saturating_add(more),
            Err(_) => drop(self.owner.used.fetch_sub(more, Ordering::Relaxed)),
        }
        written
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
}

impl Drop for Spilled {
    fn drop(&mut self) {
        self.owner.used.fetch_sub(self.length, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_vql::{Budget, Environment, MemoryLog, Query, Registry, json, parse};

    use super::*;

    fn rows(spill: &DiskSpill, vql: &str) -> (Vec<String>, Vec<String>) {
        let log = Arc::new(MemoryLog::default());
        let budget = Budget { spill: 64 << 10, bytes: 1 << 20, ..Budget::default() };
        let environment = Environment::new(Arc::new(Registry::core())).log(log.clone()).budget(budget).spill(Arc::new(spill.clone()));
        let scope = environment.open();
        let mut rows = Vec::new();
        for statement in &parse(vql).unwrap().statements {
            rows.extend(Query::new(&scope, statement).map(|row| json::encode(&row.into())));
        }
        (rows, log.take())
    }

    #[test]
    fn queries_go_on_on_disk_and_leave_nothing_there() {
        let spill = DiskSpill::default();
        let (sorted, _) = rows(&spill, "SELECT 49999 - _value AS N, 'x' AS X FROM range(end=50000) ORDER BY N");
        assert!(sorted.iter().enumerate().all(|(at, row)| *row == format!(r#"{{"N":{at},"X":"x"}}"#)) && sorted.len() == 50_000);
        let (grouped, _) = rows(
            &spill,
            "SELECT _value / 2 - 0.25 AS K, count() AS C FROM chain(a={ SELECT * FROM range(end=20000) }, b={ SELECT * FROM range(end=20000) }) GROUP BY K",
        );
        assert!(grouped.len() == 20_000 && grouped.iter().all(|row| row.ends_with(r#""C":2}"#)));
        let (kept, log) = rows(
            &spill,
            "LET X <= SELECT _value FROM range(end=50000) SELECT X[49998]._value AS A FROM scope() SELECT count() AS C FROM X GROUP BY 1",
        );
        assert_eq!(kept, [r#"{"A":49998}"#, r#"{"C":50000}"#]);
        assert!(log.iter().any(|line| line == "WARN:Materialized 50000 rows"));
        assert_eq!(spill.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_disk_has_a_bound_too() {
        let spill = DiskSpill::with_limit(100 << 10);
        let (found, log) = rows(&spill, "SELECT 0 - _value AS N FROM range(end=50000) ORDER BY N");
        assert!(found.is_empty());
        assert_eq!(log, ["ERROR:ORDER BY cannot use the disk: queries have more than 102400 bytes of temporary files"]);
    }
}
