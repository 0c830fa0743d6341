//! What of a log is kept in memory, read from its storage and checked against its checkpoint.

use tlog_tiles::{HASH_SIZE, check_record, prove_record, record_hash};

use crate::key::Head;
use crate::layout::{self, CHECKPOINT, WIDTH};
use crate::log::Entry;
use crate::record::Sealed;
use crate::tree::{FullTile, HEIGHT, Hashes, Tree};
use crate::{AuditError, Proof, Record, Storage, VerifierKey};

/// What of a log is kept in memory.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) tree: Tree,
    /// The records since the last full bundle that has been put away, in the batches that signed them.
    pub(crate) open: Vec<Sealed>,
    /// How many bytes of the journal are good.
    pub(crate) journal_length: u64,
    /// Whether the journal has anything after them.
    pub(crate) unfinished: bool,
    /// Tiles that are full and not yet put away.
    pub(crate) full: Vec<FullTile>,
    /// The newest checkpoint.
    pub(crate) checkpoint: Vec<u8>,
    /// Whether the newest checkpoint and full tiles still have to be put away.
    pub(crate) unpublished: bool,
}

impl State {
    /// Reads the state from the storage and checks it against the published checkpoint. A checkpoint that a loss of power took is taken
    /// from the journal, which was durable before it.
    pub(crate) fn read(storage: &dyn Storage, verifier: &VerifierKey) -> Result<Self, AuditError> {
        let missing = || AuditError::Damaged { place: CHECKPOINT.to_owned(), detail: "it is missing" };
        let checkpoint = storage.read(CHECKPOINT)?.ok_or_else(missing)?;
        let published = if layout::is_lost(&checkpoint) { None } else { Some(verifier.open(&checkpoint)?) };
        let bundles = match published {
            Some(head) => head.size / WIDTH,
            None => full_bundles(storage)?,
        };
        let mut state = Self {
            tree: Tree::load(bundles, storage)?,
            open: Vec::new(),
            journal_length: 0,
            unfinished: false,
            full: Vec::new(),
            checkpoint,
            unpublished: false,
        };
        state.meets(published)?;
        let journal = storage.read(&layout::journal(bundles))?.unwrap_or_default();
        let mut rest = journal.as_slice();
        while let Some((batch, after)) = layout::take_batch(rest) {
            if !state.take(&batch, verifier) {
                break;
            }
            state.meets(published)?;
            rest = after;
        }
        state.unfinished = !rest.is_empty();
        state.journal_length = journal.len().saturating_sub(rest.len()) as u64;
        match published {
            None if state.open.is_empty() => return Err(missing()),
            Some(head) if state.tree.size() < head.size => {
                return Err(AuditError::Truncated { signed: head.size, stored: state.tree.size() });
            }
            _ => state.unpublished = published.is_none_or(|head| state.tree.size() > head.size),
        }
        Ok(state)
    }

    /// Takes a batch of the journal over, if it is what its checkpoint signs.
    fn take(&mut self, batch: &layout::Batch<'_>, verifier: &VerifierKey) -> bool {
        if self.open.len() + batch.records.len() > WIDTH as usize {
            return false;
        }
        let mut tree = self.tree.clone();
        let full: Vec<_> = batch.records.iter().flat_map(|(leaf, _)| tree.push(record_hash(leaf))).collect();
        if verifier.open(batch.checkpoint) != Ok(tree.head()) {
            return false;
        }
        self.tree = tree;
        self.full.extend(full);
        self.open.extend(batch.records.iter().map(|(leaf, opening)| Sealed { leaf: leaf.to_vec(), opening: opening.to_vec() }));
        self.checkpoint = batch.checkpoint.to_vec();
        true
    }

    fn meets(&self, published: Option<Head>) -> Result<(), AuditError> {
        if published.is_some_and(|head| self.tree.size() == head.size && self.tree.root() != head.root) {
            return Err(AuditError::Damaged { place: CHECKPOINT.to_owned(), detail: "it does not fit the records" });
        }
        Ok(())
    }

    /// The number of the bundle that the open records will fill.
    pub(crate) fn segment(&self) -> u64 {
        self.tree.size().saturating_sub(self.open.len() as u64) / WIDTH
    }

    /// Leaf and opening of the records of a segment.
    fn records(&self, storage: &dyn Storage, segment: u64) -> Result<Vec<Sealed>, AuditError> {
        if segment >= self.segment() {
            return Ok(self.open.clone());
        }
        let leaves = full(storage, layout::bundle(segment, WIDTH))?;
        let openings = full(storage, layout::openings(segment))?;
        Ok(leaves.into_iter().zip(openings).map(|(leaf, opening)| Sealed { leaf, opening }).collect())
    }

    pub(crate) fn entries(&self, storage: &dyn Storage, from: u64, limit: usize) -> Result<Vec<Entry>, AuditError> {
        let mut entries = Vec::new();
        let end = from.saturating_add(limit as u64).min(self.tree.size());
        let mut index = from;
        while index < end {
            let segment = index / WIDTH;
            let first = segment.saturating_mul(WIDTH);
            for (number, sealed) in (first..end).zip(self.records(storage, segment)?).skip_while(|(number, _)| *number < index) {
                let record = Record::open(&sealed.leaf, &sealed.opening).map_err(|_| damaged_record(number))?;
                entries.push(Entry { index: number, record, redacted: sealed.opening.is_empty() });
            }
            index = first.saturating_add(WIDTH);
        }
        Ok(entries)
    }

    /// Every file of a static log of the present size; says how many records that is.
    pub(crate) fn static_files<E: From<AuditError>>(
        &self,
        storage: &dyn Storage,
        take: &mut impl FnMut(&str, &[u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let size = self.tree.size();
        for segment in 0..self.segment() {
            let name = layout::bundle(segment, WIDTH);
            take(&name, &whole(storage, &name)?)?;
        }
        if !self.open.is_empty() {
            take(&layout::bundle(self.segment(), self.open.len() as u64), &bundle_of(self.open.iter().map(|record| &record.leaf))?)?;
        }
        let mut tiles = self.segment();
        for level in 0..HEIGHT {
            for n in 0..tiles {
                let name = layout::tile(level, n, WIDTH);
                take(&name, &whole(storage, &name)?)?;
            }
            tiles /= WIDTH;
        }
        for tile in &self.full {
            take(&tile.name(), &tile.hashes)?;
        }
        for (level, n, hashes) in self.tree.partial_tiles() {
            let width = hashes.len() / HASH_SIZE;
            take(&layout::tile(level, n, width as u64), &hashes)?;
        }
        take(CHECKPOINT, &self.checkpoint)?;
        Ok(size)
    }

    pub(crate) fn prove(&self, storage: &dyn Storage, index: u64) -> Result<Proof, AuditError> {
        let Head { size, root } = self.tree.head();
        let out_of_range = || AuditError::OutOfRange { index, size };
        if index >= size {
            return Err(out_of_range());
        }
        let within = usize::try_from(index % WIDTH).map_err(|_| out_of_range())?;
        let record = self.records(storage, index / WIDTH)?.into_iter().nth(within).ok_or_else(out_of_range)?;
        let damaged = |_| AuditError::Damaged { place: format!("record {index}"), detail: "its tiles do not lead to the root" };
        let hashes = prove_record(size, index, &Hashes { tree: &self.tree, storage }).map_err(damaged)?;
        check_record(&hashes, size, root, index, record_hash(&record.leaf)).map_err(damaged)?;
        Record::open(&record.leaf, &record.opening).map_err(|_| damaged_record(index))?;
        Ok(Proof { index, record, hashes, checkpoint: self.checkpoint.clone() })
    }
}

fn damaged_record(index: u64) -> AuditError {
    AuditError::Damaged { place: format!("record {index}"), detail: "it is not what was recorded" }
}

/// The entries of a file of a full bundle.
pub(crate) fn full(storage: &dyn Storage, name: String) -> Result<Vec<Vec<u8>>, AuditError> {
    let stored = storage.read(&name)?.unwrap_or_default();
    let entries = layout::read_bundle(&stored).filter(|entries| entries.len() as u64 == WIDTH);
    let whole = entries.ok_or(AuditError::Damaged { place: name, detail: "it is not a full bundle" })?;
    Ok(whole.into_iter().map(<[u8]>::to_vec).collect())
}

fn whole(storage: &dyn Storage, name: &str) -> Result<Vec<u8>, AuditError> {
    storage.read(name)?.ok_or_else(|| AuditError::Damaged { place: name.to_owned(), detail: "it is missing" })
}

/// A bundle of these entries.
pub(crate) fn bundle_of<'a>(entries: impl Iterator<Item = &'a Vec<u8>>) -> Result<Vec<u8>, AuditError> {
    let mut bundle = Vec::new();
    for entry in entries {
        layout::push_entry(&mut bundle, entry)?;
    }
    Ok(bundle)
}

/// How many bundles have been put away.
fn full_bundles(storage: &dyn Storage) -> Result<u64, AuditError> {
    let mut bundles = 0_u64;
    while storage.read(&layout::bundle(bundles, WIDTH))?.is_some() {
        bundles = bundles.saturating_add(1);
    }
    Ok(bundles)
}
