//! The index: one sled tree whose values carry checksums, under what was committed since the last checkpoint.
//!
//! A commit is durable in the journal and visible in `fresh`. A checkpoint freezes `fresh` and brings it into the tree, chunk by chunk, while readers still
//! find it in `frozen`; a crash in between is mended by the journal, whose records say what a key is, not how it changes.

use std::collections::BTreeMap;
use std::fs::File;
use std::iter::Peekable;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::sleep;
use std::time::Duration;

use super::key::{self, KeyRange};
use crate::{Record, StoreError};

/// Keys and their new values; `None` deletes.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Keys that are brought into the tree at once: readers and the writer get their turn in between.
const BATCH: usize = 512;

pub(super) struct Index {
    path: PathBuf,
    cache_bytes: u64,
    opened: RwLock<Opened>,
}

#[derive(Default)]
struct Opened {
    /// `None` after a failure from which sled could not be opened again yet.
    tree: Option<sled::Db>,
    /// On its way into the tree.
    frozen: Arc<Changes>,
    /// Committed after that.
    fresh: Changes,
}

impl Index {
    pub(super) fn open(path: PathBuf, cache_bytes: u64) -> Result<Self, StoreError> {
        let tree = Some(open_tree(&path, cache_bytes)?);
        Ok(Self { path, cache_bytes, opened: RwLock::new(Opened { tree, ..Opened::default() }) })
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let opened = self.read();
        if let Some(committed) = opened.fresh.get(key).or_else(|| opened.frozen.get(key)) {
            return Ok(committed.clone());
        }
        let found = guarded(&self.path, || opened.tree()?.get(key))?;
        found.map(|sealed| unseal(key, &sealed)).transpose()
    }

    /// At most `limit` entries of `range`, all of one moment.
    pub(super) fn entries(&self, range: &KeyRange, reverse: bool, limit: usize) -> Result<Vec<Record>, StoreError> {
        if range.from >= range.to {
            return Ok(Vec::new());
        }
        let opened = self.read();
        let tree = guarded(&self.path, || opened.tree())?;
        let mut tree = tree.range(range.from.as_slice()..range.to.as_slice());
        let base = std::iter::from_fn(|| {
            let next = guarded(&self.path, || if reverse { tree.next_back().transpose() } else { tree.next().transpose() });
            next.and_then(|found| found.map(|(key, sealed)| Ok((key.to_vec(), unseal(&key, &sealed)?))).transpose()).transpose()
        });
        let base = overlaid(base, &opened.frozen, range, reverse);
        overlaid(base, &opened.fresh, range, reverse).take(limit).collect()
    }

    /// Makes what the journal has durable visible.
    pub(super) fn publish(&self, changes: Changes) {
        self.write().fresh.extend(changes);
    }

    /// What the next checkpoint brings into the tree: all that is committed, or what an earlier one failed to bring.
    pub(super) fn freeze(&self) -> Arc<Changes> {
        let mut opened = self.write();
        if opened.frozen.is_empty() {
            opened.frozen = Arc::new(std::mem::take(&mut opened.fresh));
        }
        opened.frozen.clone()
    }

    /// Brings what is frozen into the tree, durably. When it fails it stays frozen, and the tree is opened again.
    pub(super) fn thaw(&self) -> Result<(), StoreError> {
        self.revive()?;
        let frozen = self.read().frozen.clone();
        let applied = self.apply(&frozen);
        let mut opened = self.write();
        match applied {
            Ok(()) => {
                opened.frozen = Arc::default();
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the index failed and is opened again");
                let failed = opened.tree.take();
                drop(catch_unwind(AssertUnwindSafe(|| drop(failed))));
                opened.tree = Some(open_tree(&self.path, self.cache_bytes)?);
                Err(error)
            }
        }
    }

    /// The state of the store last: it says which groups are in the tree.
    fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        let state = key::meta("state");
        let mut rest = changes.iter().filter(|(key, _)| **key != state).peekable();
        while rest.peek().is_some() {
            self.apply_batch(rest.by_ref().take(BATCH))?;
        }
        self.sync()?;
        self.apply_batch(changes.get_key_value(&state).into_iter())?;
        self.sync()
    }

    fn apply_batch<'a>(&self, changes: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key.as_slice(), seal(key, value)),
                None => batch.remove(key.as_slice()),
            }
        }
        let opened = self.read();
        guarded(&self.path, || opened.tree()?.apply_batch(batch))
    }

    fn sync(&self) -> Result<(), StoreError> {
        let opened = self.read();
        guarded(&self.path, || opened.tree()?.flush().map(drop))?;
        // On Linux sled's flush is sync_file_range, which does not reach through the disk's cache.
        File::open(self.path.join("db")).and_then(|file| file.sync_all()).map_err(|error| StoreError::io(&self.path, &error))
    }

    /// Opens the tree again if an earlier attempt failed.
    pub(super) fn revive(&self) -> Result<(), StoreError> {
        if self.read().tree.is_none() {
            let tree = open_tree(&self.path, self.cache_bytes)?;
            let mut opened = self.write();
            opened.tree = Some(tree);
        }
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, Opened> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Opened> {
        self.opened.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    fn tree(&self) -> sled::Result<&sled::Db> {
        self.tree.as_ref().ok_or_else(|| sled::Error::Unsupported("the index failed and could not be opened again yet".into()))
    }
}

fn open_tree(path: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
    let mut attempts: u32 = 0;
    loop {
        let opened = guarded(path, || sled::Config::new().path(path).cache_capacity(cache_bytes).open());
        attempts = attempts.saturating_add(1);
        match opened {
            // Threads of an instance that just failed may hold its lock for a moment.
            Err(StoreError::Io(_)) if attempts < 20 => sleep(Duration::from_millis(50)),
            other => return other,
        }
    }
}

/// Runs sled, which may panic over a damaged file.
fn guarded<T>(path: &Path, work: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) => Err(StoreError::io(path, &error)),
        Ok(Err(error @ sled::Error::Corruption { .. })) => Err(damaged_index(path, error.to_string())),
        Ok(Err(error)) => Err(StoreError::Io(format!("{}: {error}", path.display()))),
        Err(_) => Err(damaged_index(path, "the index cannot be read".into())),
    }
}

fn damaged_index(path: &Path, detail: String) -> StoreError {
    StoreError::Damaged { place: path.display().to_string(), detail }
}

fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    [&checksum(key, value).to_le_bytes(), value].concat()
}

fn unseal(key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
    match sealed.split_first_chunk::<4>() {
        Some((sum, value)) if u32::from_le_bytes(*sum) == checksum(key, value) => Ok(value.to_vec()),
        _ => Err(key::damaged(key, "the checksum does not match")),
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

/// Entries of `base` in `range` as `changes` make them; both run in the direction of `reverse`.
pub(super) fn overlaid<'a>(
    base: impl Iterator<Item = Result<Record, StoreError>> + 'a,
    changes: &'a Changes,
    range: &KeyRange,
    reverse: bool,
) -> impl Iterator<Item = Result<Record, StoreError>> + 'a {
    let mut changes = changes.range(range.from.clone()..range.to.clone());
    let changes = std::iter::from_fn(move || if reverse { changes.next_back() } else { changes.next() });
    let (mut base, mut changes) = (base.peekable(), changes.peekable());
    std::iter::from_fn(move || next_overlaid(&mut base, &mut changes, reverse))
}

fn next_overlaid<'a>(
    base: &mut Peekable<impl Iterator<Item = Result<Record, StoreError>>>,
    changes: &mut Peekable<impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>>,
    reverse: bool,
) -> Option<Result<Record, StoreError>> {
    loop {
        let order = match (base.peek(), changes.peek()) {
            (_, None) | (Some(Err(_)), _) => return base.next(),
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(Ok((left, _))), Some((right, _))) if reverse => (*right).cmp(left),
            (Some(Ok((left, _))), Some((right, _))) => left.cmp(right),
        };
        match order {
            std::cmp::Ordering::Less => return base.next(),
            std::cmp::Ordering::Equal => drop(base.next()),
            std::cmp::Ordering::Greater => {
                if let Some((key, Some(value))) = changes.next() {
                    return Some(Ok((key.clone(), value.clone())));
                }
            }
        }
    }
}
