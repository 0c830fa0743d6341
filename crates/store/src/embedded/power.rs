//! Tests of a machine that loses power: whatever was written and not synced is gone, in whole or from some byte on.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::journal::generations;
use super::segment::{Files, LocalFiles, SegmentFile};
use super::{Embedded, Options};
use crate::conformance::{Draw, contents, last, transaction};
use crate::{Engine, Memory};

/// Remembers how much of each file is synced, and what was there when the power went.
#[derive(Clone)]
struct VolatileFiles(Arc<Mutex<Disk>>);

struct Disk {
    folder: PathBuf,
    copy: PathBuf,
    files: BTreeMap<PathBuf, Synced>,
    /// Syncs until the power goes: in the middle of the last of them.
    left: usize,
    lost: Option<BTreeMap<PathBuf, Synced>>,
}

#[derive(Default, Clone, Copy)]
struct Synced {
    written: u64,
    durable: u64,
    /// Whether its name is in the folder for good.
    named: bool,
}

struct VolatileFile {
    inner: Box<dyn SegmentFile>,
    path: PathBuf,
    files: VolatileFiles,
}

impl VolatileFiles {
    /// The power goes in the middle of the sync with number `left`; `files` is what is known of those that are there.
    fn new(folder: &Path, copy: &Path, left: usize, files: BTreeMap<PathBuf, Synced>) -> Self {
        let (folder, copy) = (folder.to_owned(), copy.to_owned());
        Self(Arc::new(Mutex::new(Disk { folder, copy, files, left, lost: None })))
    }

    /// A machine that has just got its power back: what its files have came from the disk. The power stays.
    fn restarted(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        for folder in ["segments", "journal"].map(|name| folder.join(name)) {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let entry = entry.unwrap();
                let len = entry.metadata().unwrap().len();
                files.insert(entry.path(), Synced { written: len, durable: len, named: true });
            }
        }
        Self::new(folder, folder, usize::MAX, files)
    }

    fn known(&self) -> BTreeMap<PathBuf, Synced> {
        self.0.lock().unwrap().files.clone()
    }

    fn change(&self, path: &Path, change: impl FnOnce(&mut Synced)) {
        change(self.0.lock().unwrap().files.entry(path.to_owned()).or_default());
    }

    fn wrap(&self, path: &Path, inner: Box<dyn SegmentFile>) -> Box<dyn SegmentFile> {
        Box::new(VolatileFile { inner, path: path.to_owned(), files: self.clone() })
    }

    fn is_lost(&self) -> bool {
        self.0.lock().unwrap().lost.is_some()
    }

    /// What a disk may have after the power went: each file up to what was synced, and perhaps some of what came after, right or wrong.
    fn lose(&self, draw: &mut Draw) {
        let disk = self.0.lock().unwrap();
        for (path, synced) in disk.lost.as_ref().unwrap() {
            let path = disk.copy.join(path.strip_prefix(&disk.folder).unwrap());
            let Ok(mut bytes) = std::fs::read(&path) else { continue };
            let durable = usize::try_from(synced.durable).unwrap().min(bytes.len());
            let kept = durable + draw.below(bytes.len() - durable + 1);
            bytes.truncate(kept);
            if kept > durable && draw.below(2) == 0 {
                // The file had grown, but not all of its pages had come.
                let hole = durable + draw.below(kept - durable);
                bytes[hole..].fill(0);
            }
            if synced.named || draw.below(2) == 0 { std::fs::write(path, bytes).unwrap() } else { std::fs::remove_file(path).unwrap() }
        }
    }
}

impl Files for VolatileFiles {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        self.change(path, |synced| *synced = Synced::default());
        LocalFiles.create(path).map(|file| self.wrap(path, file))
    }

    fn resume(&self, path: &Path, len: u64) -> io::Result<Box<dyn SegmentFile>> {
        let file = LocalFiles.resume(path, len)?;
        self.change(path, |synced| *synced = Synced { written: len, durable: synced.durable.min(len), named: true });
        Ok(self.wrap(path, file))
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.left = disk.left.saturating_sub(1);
        if disk.left == 0 && disk.lost.is_none() {
            copy_folder(&disk.folder, &disk.copy);
            disk.lost = Some(disk.files.clone());
        }
        // What recovery puts back into a segment does not come through this seam, and a sync takes all that the file has.
        let len = std::fs::metadata(path)?.len();
        let synced = disk.files.entry(path.to_owned()).or_default();
        synced.written = synced.written.max(len);
        synced.durable = synced.written;
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.files.iter_mut().filter(|(path, _)| path.parent() == Some(folder)).for_each(|(_, synced)| synced.named = true);
        Ok(())
    }

    fn free(&self, _folder: &Path) -> Option<u64> {
        None
    }
}

impl SegmentFile for VolatileFile {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.files.change(&self.path, |synced| synced.written += u64::try_from(data.len()).unwrap());
        self.inner.append(data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.files.sync_file(&self.path)
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// `TALON_POWER_ROUNDS` says how often (40), `TALON_CRASH_SEED` repeats a run.
#[test]
fn lost_power_takes_nothing_that_was_acknowledged() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("TALON_CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let rounds = number("TALON_POWER_ROUNDS").unwrap_or(40);
    println!("seed {seed}");
    let mut draw = Draw::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let (mut now, index) = (folder.path().join("0"), folder.path().join("index"));
    let (model, mut next, mut losses) = (Memory::new(), 0, 0);
    let mut known = BTreeMap::new();
    let options = Options { segment_bytes: 30_000, cache_bytes: 4 << 20, reserve_bytes: 0, ..Options::default() };
    for round in 1..=rounds {
        let after = folder.path().join(round.to_string());
        let generation = generations(&now.join("journal")).unwrap_or_default().last().map_or(1, |last| last + 1);
        let files = VolatileFiles::new(&now, &after, 2 + draw.below(40), std::mem::take(&mut known));
        let store = Embedded::open_with(&now, options.clone(), Arc::new(files.clone())).unwrap();
        // sled's file as it was at the last checkpoint: the worst that a lost cache can do to it.
        copy_folder(&now.join("index"), &index);
        let (mut number, mut acknowledged) = (next, None);
        let mut waiting = std::collections::VecDeque::new();
        while !files.is_lost() {
            waiting.push_back((number, store.submit(transaction(seed, number))));
            number += 1;
            while waiting.len() > draw.below(30) {
                let (number, ticket) = waiting.pop_front().unwrap();
                // Known before the power went, if it is on still.
                if ticket.wait().is_ok() && !files.is_lost() {
                    acknowledged = Some(number);
                }
            }
        }
        drop((waiting, store));
        // A checkpoint in between, after a moment of idleness, has other files of sled, of which there is no copy.
        if generations(&after.join("journal")).unwrap() == [generation] {
            std::fs::remove_dir_all(after.join("index")).unwrap();
            copy_folder(&index, &after.join("index"));
            files.lose(&mut draw);
            losses += 1;
        }
        std::fs::remove_dir_all(&index).unwrap();
        std::fs::remove_dir_all(&now).unwrap();
        now = after;
        let restarted = VolatileFiles::restarted(&now);
        let store = Embedded::open_with(&now, options.clone(), Arc::new(restarted.clone())).unwrap();
        let stored = last(store.reader());
        assert!(stored >= acknowledged, "seed {seed}, round {round}: {acknowledged:?} was acknowledged, {stored:?} is the last");
        while stored.is_some_and(|stored| next <= stored) {
            drop(model.submit(transaction(seed, next)).wait());
            next += 1;
        }
        assert_eq!(contents(&store), contents(model.reader()), "seed {seed}, round {round}");
        let report = store.check().unwrap();
        assert!(report.is_sound(), "seed {seed}, round {round}: {report:?}");
        drop(store);
        known = restarted.known();
    }
    assert!(losses > 0, "the power was never lost");
    println!("{losses} losses of power, {next} transactions: what was acknowledged is there, nothing by half");
}
