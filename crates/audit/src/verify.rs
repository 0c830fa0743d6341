//! Verification of a whole log with nothing but its storage and its public key.

use tlog_tiles::{HASH_SIZE, record_hash};

use crate::key::Head;
use crate::layout::{self, CHECKPOINT, WIDTH};
use crate::tree::Tree;
use crate::{AuditError, Record, Storage, VerifierKey};

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
    /// Bytes at the end of the journal that were never acknowledged: a write is going on, or was cut off by a crash.
    pub unfinished_bytes: u64,
}

/// Checks everything: each record, tile, hash and checkpoint, and that the log continues `remembered`, a checkpoint that the verifier
/// kept from an earlier time. Works on a log that is being written.
///
/// # Errors
/// The first thing found that is not what was signed.
pub fn verify_log(storage: &dyn Storage, key: &VerifierKey, remembered: Option<&[u8]>) -> Result<Report, AuditError> {
    let remembered = remembered.map(|note| key.open(note)).transpose()?;
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
}

impl<'a> Walk<'a> {
    fn run(storage: &'a dyn Storage, key: &'a VerifierKey, remembered: Option<Head>) -> Result<Report, AuditError> {
        let missing = || AuditError::Damaged { place: CHECKPOINT.to_owned(), detail: "it is missing" };
        let published = key.open(&storage.read(CHECKPOINT)?.ok_or_else(missing)?)?;
        let mut walk = Self { storage, key, tree: Tree::default(), published, remembered, tiles: 0, checkpoints: 1 };
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
        match remembered {
            Some(head) if stored < head.size => Err(AuditError::Truncated { signed: head.size, stored }),
            _ => {
                Ok(Report { records: stored, tiles: walk.tiles, checkpoints: walk.checkpoints, root: walk.tree.root().0, unfinished_bytes })
            }
        }
    }

    fn full_bundle(&mut self, n: u64, bundle: &[u8]) -> Result<(), AuditError> {
        let place = || layout::bundle(n, WIDTH);
        let records = layout::read_bundle(bundle).filter(|records| records.len() as u64 == WIDTH);
        for record in records.ok_or_else(|| AuditError::Damaged { place: place(), detail: "it is not a full bundle" })? {
            self.record(record, &place)?;
        }
        Ok(())
    }

    /// A record, and the tiles that it fills.
    fn record(&mut self, record: &[u8], place: &dyn Fn() -> String) -> Result<(), AuditError> {
        Record::from_bytes(record)
            .map_err(|_| AuditError::Damaged { place: place(), detail: "it holds something that is not a record" })?;
        for tile in self.tree.push(record_hash(record)) {
            let stored = self.storage.read(&tile.name())?;
            // The records of the journal fill a tile before it is put away.
            let put_away = self.tree.size() <= self.published.size;
            if stored.as_ref().map_or(put_away, |stored| *stored != tile.hashes) {
                return Err(AuditError::Damaged { place: tile.name(), detail: "it does not fit the records" });
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
            for record in &batch.records {
                self.record(record, &|| name.clone())?;
            }
            if self.key.open(batch.checkpoint)? != self.tree.head() {
                return Err(AuditError::Damaged { place: name, detail: "a checkpoint does not fit the records" });
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
        for (record, width) in records.iter().zip(1..WIDTH) {
            layout::push_entry(&mut bundle, record)?;
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
    for record in &batch.records {
        tree.push(record_hash(record));
    }
    key.open(batch.checkpoint) == Ok(tree.head())
}
