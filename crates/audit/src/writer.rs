//! Changing the storage of a log: each step leaves something that the next start understands.

use std::sync::Arc;

use tlog_tiles::{HASH_SIZE, Hash, record_hash};

use crate::layout::{self, CHECKPOINT, WIDTH};
use crate::log::Outcome;
use crate::record::Sealed;
use crate::state::{State, bundle_of, full};
use crate::{AuditError, SigningKey, Storage};

/// The one that changes the storage of a log.
pub(crate) struct Writer {
    storage: Arc<dyn Storage>,
    pub(crate) key: SigningKey,
    pub(crate) loaded: State,
}

impl Writer {
    /// Takes a log over: what a crash left unfinished is finished or dropped.
    pub(crate) fn open(storage: Arc<dyn Storage>, key: SigningKey) -> Result<Self, AuditError> {
        let loaded = State::read(storage.as_ref(), &key.verifier())?;
        let mut writer = Self { storage, key, loaded };
        writer.drop_finished_journal()?;
        writer.settle()?;
        Ok(writer)
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        self.storage.as_ref()
    }

    pub(crate) fn write(&mut self, batch: Vec<(u64, Sealed)>) -> Vec<(u64, Outcome)> {
        let mut outcomes = Vec::new();
        let mut waiting = batch.into_iter().peekable();
        while waiting.peek().is_some() {
            let put_away = self.settle();
            let room = (WIDTH as usize).saturating_sub(self.loaded.open.len()).max(1);
            let (tickets, records): (Vec<u64>, Vec<Sealed>) = waiting.by_ref().take(room).unzip();
            match put_away.and_then(|()| self.write_records(records)) {
                Ok(written) => outcomes.extend(tickets.into_iter().zip(written.into_iter().map(Ok))),
                Err(error) => outcomes.extend(tickets.into_iter().map(|ticket| (ticket, Err(error.clone())))),
            }
        }
        outcomes
    }

    fn write_records(&mut self, records: Vec<Sealed>) -> Result<Vec<(u64, Hash)>, AuditError> {
        let mut tree = self.loaded.tree.clone();
        let mut written = Vec::new();
        let mut full = Vec::new();
        for record in &records {
            let leaf = record_hash(&record.leaf);
            written.push((tree.size(), leaf));
            full.extend(tree.push(leaf));
        }
        let checkpoint = self.key.sign(tree.head())?;
        let batch = layout::write_batch(&records, &checkpoint)?;

        self.loaded.unfinished = true;
        self.storage.append(&layout::journal(self.loaded.segment()), &batch)?;

        self.loaded.unfinished = false;
        self.loaded.journal_length = self.loaded.journal_length.saturating_add(batch.len() as u64);
        self.loaded.tree = tree;
        self.loaded.full.extend(full);
        self.loaded.open.extend(records);
        self.loaded.checkpoint = checkpoint;
        self.loaded.unpublished = true;
        self.settle().map(|()| written)
    }

    /// Does what is left to do: drops the rest of a failed append, puts away a full bundle and its tiles, publishes the checkpoint.
    /// The journal goes only after everything that replaces it is durable; until then it has each checkpoint too, so that the published
    /// one costs no durable write.
    fn settle(&mut self) -> Result<(), AuditError> {
        let segment = self.loaded.segment();
        let journal = layout::journal(segment);
        if self.loaded.unfinished {
            self.storage.truncate(&journal, self.loaded.journal_length)?;
            self.loaded.unfinished = false;
        }
        let full = self.loaded.open.len() as u64 == WIDTH;
        if self.loaded.unpublished {
            if full {
                self.storage.write(&layout::openings(segment), &openings(&self.loaded.open)?)?;
                self.storage.write(&layout::bundle(segment, WIDTH), &leaves(&self.loaded.open)?)?;
            }
            for tile in &self.loaded.full {
                self.storage.write(&tile.name(), &tile.hashes)?;
            }
            if full {
                self.storage.write(CHECKPOINT, &self.loaded.checkpoint)?;
            } else {
                self.storage.write_lazily(CHECKPOINT, &self.loaded.checkpoint)?;
            }
            self.drop_partials(segment, full)?;
            self.loaded.full.clear();
            self.loaded.unpublished = false;
        }
        if full {
            self.storage.remove(&journal)?;
            self.loaded.open.clear();
            self.loaded.journal_length = 0;
        }
        Ok(())
    }

    /// Removes what [`Log::publish`](crate::Log::publish) wrote for sizes that full bundles and tiles now cover.
    fn drop_partials(&self, segment: u64, full: bool) -> Result<(), AuditError> {
        for width in 1..WIDTH {
            if full {
                self.storage.remove(&layout::bundle(segment, width))?;
            }
            for tile in &self.loaded.full {
                self.storage.remove(&layout::tile(tile.level, tile.n, width))?;
            }
        }
        Ok(())
    }

    /// Makes the storage a complete static log of the current size.
    pub(crate) fn publish(&self) -> Result<(), AuditError> {
        let State { tree, open, checkpoint, .. } = &self.loaded;
        if !open.is_empty() {
            self.storage.write(&layout::bundle(self.loaded.segment(), open.len() as u64), &leaves(open)?)?;
        }
        for (level, n, hashes) in tree.partial_tiles() {
            let width = hashes.len() / HASH_SIZE;
            self.storage.write(&layout::tile(level, n, width as u64), &hashes)?;
        }
        Ok(self.storage.write(CHECKPOINT, checkpoint)?)
    }

    /// Erases the opening of a record that is there.
    pub(crate) fn erase(&mut self, index: u64) -> Result<(), AuditError> {
        let segment = index / WIDTH;
        let within = usize::try_from(index % WIDTH).map_err(|_| AuditError::Record("there is no such record"))?;
        if segment < self.loaded.segment() {
            let name = layout::openings(segment);
            let mut openings = full(self.storage(), name.clone())?;
            if let Some(opening) = openings.get_mut(within) {
                opening.clear();
            }
            return Ok(self.storage.write(&name, &bundle_of(openings.iter())?)?);
        }
        let name = layout::journal(segment);
        let journal = self.storage.read(&name)?.unwrap_or_default();
        let (mut rest, mut number, mut rewritten) = (journal.as_slice(), 0_usize, Vec::new());
        while let Some((batch, after)) = layout::take_batch(rest) {
            let mut records = Vec::new();
            for (leaf, opening) in &batch.records {
                let opening = if number == within { Vec::new() } else { opening.to_vec() };
                records.push(Sealed { leaf: leaf.to_vec(), opening });
                number = number.saturating_add(1);
            }
            rewritten.extend(layout::write_batch(&records, batch.checkpoint)?);
            rest = after;
        }
        self.storage.write(&name, &rewritten)?;
        self.loaded.journal_length = rewritten.len() as u64;
        if let Some(sealed) = self.loaded.open.get_mut(within) {
            sealed.opening.clear();
        }
        Ok(())
    }

    /// A crash may have kept the journal of a bundle that had been put away.
    fn drop_finished_journal(&self) -> Result<(), AuditError> {
        match self.loaded.segment().checked_sub(1) {
            Some(finished) => Ok(self.storage.remove(&layout::journal(finished))?),
            None => Ok(()),
        }
    }
}

fn leaves(records: &[Sealed]) -> Result<Vec<u8>, AuditError> {
    bundle_of(records.iter().map(|record| &record.leaf))
}

fn openings(records: &[Sealed]) -> Result<Vec<u8>, AuditError> {
    bundle_of(records.iter().map(|record| &record.opening))
}
