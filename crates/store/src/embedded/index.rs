//! The index: one sled tree whose values carry checksums, with commits that readers see only once they are durable.
//!
//! sled shows a batch while it is being applied and calls a flush done before the disk has it. So the values that a commit replaces are kept
//! in a *shadow* over the tree until the file is synced, and readers look there first.

use std::collections::BTreeMap;
use std::fs::File;
use std::iter::Peekable;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread::sleep;
use std::time::Duration;

use super::key::{self, KeyRange, Layout as _, State};
use crate::{Record, StoreError};

/// Keys and their new values; `None` deletes.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

pub(super) struct Index {
    path: PathBuf,
    cache_bytes: u64,
    opened: RwLock<Opened>,
}

struct Opened {
    /// `None` after a failure from which sled could not be opened again yet.
    tree: Option<sled::Db>,
    shadow: Changes,
}

impl Index {
    pub(super) fn open(path: PathBuf, cache_bytes: u64) -> Result<Self, StoreError> {
        let tree = Some(open_tree(&path, cache_bytes)?);
        Ok(Self { path, cache_bytes, opened: RwLock::new(Opened { tree, shadow: Changes::new() }) })
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let opened = self.read();
        if let Some(old) = opened.shadow.get(key) {
            return Ok(old.clone());
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
        overlaid(base, &opened.shadow, range, reverse).take(limit).collect()
    }

    /// Makes a group durable, then visible. When it fails the index is as before, even if that takes opening it again.
    pub(super) fn commit(&self, changes: Changes, group: u64) -> Result<(), StoreError> {
        self.revive()?;
        let mut shadow = Changes::new();
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            shadow.insert(key.clone(), self.get(&key)?);
            match value {
                Some(value) => batch.insert(key.as_slice(), seal(&key, &value)),
                None => batch.remove(key.as_slice()),
            }
        }
        self.write().shadow = shadow;
        let applied = self.apply(batch);
        let mut opened = self.write();
        let result = match applied {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "the index failed and is opened again");
                let failed = opened.tree.take();
                drop(catch_unwind(AssertUnwindSafe(|| drop(failed))));
                opened.tree = Some(open_tree(&self.path, self.cache_bytes)?);
                opened.shadow.clear();
                // The batch is atomic: it is there or it is not, whatever was reported.
                if stored_group(&self.path, &opened)? == Some(group) { Ok(()) } else { Err(error) }
            }
        };
        opened.shadow.clear();
        result
    }

    fn apply(&self, batch: sled::Batch) -> Result<(), StoreError> {
        let opened = self.read();
        guarded(&self.path, || {
            let tree = opened.tree()?;
            tree.apply_batch(batch)?;
            tree.flush()
        })?;
        // On Linux sled's flush is sync_file_range, which does not reach through the disk's cache.
        File::open(self.path.join("db")).and_then(|file| file.sync_all()).map_err(|error| StoreError::io(&self.path, &error))
    }

    /// Opens the tree again if an earlier attempt failed.
    pub(super) fn revive(&self) -> Result<(), StoreError> {
        if self.read().tree.is_none() {
            let tree = open_tree(&self.path, self.cache_bytes)?;
            let mut opened = self.write();
            opened.tree = Some(tree);
            opened.shadow.clear();
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

fn stored_group(path: &Path, opened: &Opened) -> Result<Option<u64>, StoreError> {
    let key = key::meta("state");
    let sealed = guarded(path, || opened.tree()?.get(&key))?;
    sealed.map(|sealed| Ok(State::decode(&key, &unseal(&key, &sealed)?)?.group)).transpose()
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
