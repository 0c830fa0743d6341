//! Verification of a whole log with nothing but its storage and its public key.

use std::collections::BTreeSet;

use tlog_tiles::{HASH_SIZE, record_hash};

use crate::key::Head;
use crate::layout::{self, CHECKPOINT, WIDTH};
use crate::state::full;
use crate::tree::{FullTile, Tree};
use crate::witness::kept_head;
use crate::{AuditError, REDACTION, Record, Storage, VerifierKey};

/// What a verified log consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Records, each of them read and hashed.
    pub records: u64,
    /// Hash tiles that were compared with the records.
    pub tiles: u64,
    /// Checkpoints whose signature and root were checked.
    pub checkpoints: u64,
    /// The root over all records.
    pub root: [u8; 32],
    /// Records whose details have been erased, each of them with a record of that.
    pub redacted: u64,
    /// Bytes at the end of the journal that were never acknowledged: a write is going on, or was cut off by a crash.
    pub unfinished_bytes: u64,
}

/// Checks everything: each record, tile, hash and checkpoint, and that the log continues `remembered`, a checkpoint that the verifier
/// kept from an earlier time. Works on a log that is being written.
///
/// # Errors
/// The first thing found that is not what was signed.
pub fn verify_log(storage: &dyn Storage, key: &VerifierKey, remembered: Option<&[u8]>) -> Result<Report, AuditError> {
    let remembered = remembered.map(|note| kept_head(note, key)).transpose()?;
    let walk = || Walk::run(storage, key, remembered);
    walk().or_else(|error| match error {
        // A bundle may have been put away between two reads: a real fault is found again.
        AuditError::Truncated { .. } | AuditError::Damaged { .. } => walk(),
        other => Err(other),
    })
}

struct Walk<'a> {
    storage: &'a dyn Storage,
    key: &'a VerifierKey,
    tree: Tree,
    published: Head,
    remembered: Option<Head>,
    tiles: u64,
    checkpoints: u64,
    /// Records without details, and those of which a record says that they were erased.
    erased: BTreeSet<u64>,
    erasures: BTreeSet<u64>,
}

impl<'a> Walk<'a> {
    fn run(storage: &'a dyn Storage, key: &'a VerifierKey, remembered: Option<Head>) -> Result<Report, AuditError> {
        let missing = || AuditError::Damaged { place: CHECKPOINT.to_owned(), detail: "it is missing" };
        let published = key.open(&storage.read(CHECKPOINT)?.ok_or_else(missing)?)?;
        let mut walk = Self {
            storage,
            key,
            tree: Tree::default(),
            published,
            remembered,
            tiles: 0,
            checkpoints: 1,
            erased: BTreeSet::new(),
            erasures: BTreeSet::new(),
        };
        walk.check_heads()?;
        let mut n = 0_u64;
        while let Some(bundle) = storage.read(&layout::bundle(n, WIDTH))? {
            walk.full_bundle(n, &bundle)?;
            n = n.saturating_add(1);
        }
        let unfinished_bytes = walk.journal(n)?;
        walk.partial_files(n)?;
        let stored = walk.tree.size();
        if stored < published.size {
            return Err(AuditError::Truncated { signed: published.size, stored });
        }
        if let Some(head) = remembered.filter(|head| stored < head.size) {
            return Err(AuditError::Truncated { signed: head.size, stored });
        }
        if let Some(index) = walk.erased.difference(&walk.erasures).next() {
            return Err(AuditError::Damaged { place: format!("record {index}"), detail: "its details are gone, and no record says why" });
        }
        Ok(Report {
            records: stored,
            tiles: walk.tiles,
            checkpoints: walk.checkpoints,
            root: walk.tree.root().0,
            redacted: walk.erased.len() as u64,
            unfinished_bytes,
        })
    }

    fn full_bundle(&mut self, n: u64, bundle: &[u8]) -> Result<(), AuditError> {
        let place = layout::bundle(n, WIDTH);
        let leaves = layout::read_bundle(bundle).filter(|leaves| leaves.len() as u64 == WIDTH);
        let leaves = leaves.ok_or(AuditError::Damaged { place, detail: "it is not a full bundle" })?;
        for (leaf, opening) in leaves.into_iter().zip(full(self.storage, layout::openings(n))?) {
            self.record(leaf, &opening)?;
        }
        Ok(())
    }

    /// A record, and the tiles that it fills.
    fn record(&mut self, leaf: &[u8], opening: &[u8]) -> Result<(), AuditError> {
        let index = self.tree.size();
        let record = Record::open(leaf, opening)
            .map_err(|_| AuditError::Damaged { place: format!("record {index}"), detail: "it is not what was recorded" })?;
        if opening.is_empty() {
            self.erased.insert(index);
        }
        if record.operation == REDACTION {
            self.erasures.extend(record.details.get("record").and_then(serde_json::Value::as_u64));
        }
        for tile in self.tree.push(record_hash(leaf)) {
            let stored = self.storage.read(&tile.name())?;
            // The records of the journal fill a tile before it is put away.
            let put_away = self.tree.size() <= self.published.size;
            if stored.as_ref().map_or(put_away, |stored| *stored != tile.hashes) {
                return Err(unlike(&tile, stored.as_deref()));
            }
            self.tiles = self.tiles.saturating_add(u64::from(stored.is_some()));
        }
        self.check_heads()
    }

    fn check_heads(&self) -> Result<(), AuditError> {
        let differs = |head: &Head| head.size == self.tree.size() && head.root != self.tree.root();
        if differs(&self.published) {
            return Err(AuditError::Damaged { place: "the records".to_owned(), detail: "they are not those that the checkpoint signs" });
        }
        match self.remembered {
            Some(head) if differs(&head) => Err(AuditError::Forked { size: head.size }),
            _ => Ok(()),
        }
    }

    /// The batches after the last full bundle. Says how many bytes at the end are no batch: beyond the published checkpoint that is a
    /// write under way, before it the missing records are found by their number.
    fn journal(&mut self, n: u64) -> Result<u64, AuditError> {
        let name = layout::journal(n);
        let journal = self.storage.read(&name)?.unwrap_or_default();
        let mut rest = journal.as_slice();
        while let Some((batch, after)) = layout::take_batch(rest) {
            let before = self.tree.clone();
            if before.size() >= self.published.size && !signs(&before, &batch, self.key) {
                break;
            }
            for (leaf, opening) in &batch.records {
                self.record(leaf, opening)?;
            }
            if self.key.open(batch.checkpoint)? != self.tree.head() {
                let (first, after) = (before.size(), self.tree.size());
                let place = format!("one of the records {first} to {}", after.saturating_sub(1));
                return Err(AuditError::Damaged { place, detail: "their checkpoint signs something else" });
            }
            self.checkpoints = self.checkpoints.saturating_add(1);
            rest = after;
        }
        Ok(rest.len() as u64)
    }

    /// Partial tiles and bundles, of whatever size they were published at.
    fn partial_files(&mut self, n: u64) -> Result<(), AuditError> {
        let open = self.storage.read(&layout::journal(n))?.unwrap_or_default();
        let mut records = Vec::new();
        let mut rest = open.as_slice();
        while let Some((batch, after)) = layout::take_batch(rest) {
            records.extend(batch.records);
            rest = after;
        }
        let mut bundle = Vec::new();
        for ((leaf, _), width) in records.iter().zip(1..WIDTH) {
            layout::push_entry(&mut bundle, leaf)?;
            self.compare(layout::bundle(n, width), &bundle)?;
        }
        for (level, n, hashes) in self.tree.clone().partial_tiles() {
            for width in (1..WIDTH).take(hashes.len() / HASH_SIZE) {
                let start = hashes.get(..usize::try_from(width).unwrap_or_default().saturating_mul(HASH_SIZE)).unwrap_or_default();
                self.compare(layout::tile(level, n, width), start)?;
            }
        }
        Ok(())
    }

    fn compare(&mut self, name: String, expected: &[u8]) -> Result<(), AuditError> {
        match self.storage.read(&name)? {
            Some(stored) if stored != expected => Err(AuditError::Damaged { place: name, detail: "it does not fit the records" }),
            stored => {
                self.tiles = self.tiles.saturating_add(u64::from(stored.is_some()));
                Ok(())
            }
        }
    }
}

fn signs(before: &Tree, batch: &layout::Batch<'_>, key: &VerifierKey) -> bool {
    let mut tree = before.clone();
    for (leaf, _) in &batch.records {
        tree.push(record_hash(leaf));
    }
    key.open(batch.checkpoint) == Ok(tree.head())
}

/// A tile that is not what the records make: at the lowest level the first hash that differs names the record.
fn unlike(tile: &FullTile, stored: Option<&[u8]>) -> AuditError {
    let same = |stored: &[u8]| stored.chunks(HASH_SIZE).zip(tile.hashes.chunks(HASH_SIZE)).take_while(|(one, other)| one == other).count();
    match stored {
        Some(stored) if tile.level == 0 && stored.len() == tile.hashes.len() => {
            let index = tile.n.saturating_mul(WIDTH).saturating_add(same(stored) as u64);
            AuditError::Damaged { place: format!("record {index}"), detail: "it does not fit its hash in the tiles" }
        }
        _ => AuditError::Damaged { place: tile.name(), detail: "it does not fit the records" },
    }
}
