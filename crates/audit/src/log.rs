//! The log itself: appending with one durable write for all who wait, recovery after a crash, reading and proving.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tlog_tiles::{Hash, check_record, prove_record, record_hash};

use crate::key::Head;
use crate::layout::{self, CHECKPOINT, WIDTH};
use crate::tree::{FullTile, Hashes, Tree};
use crate::{AuditError, Proof, Record, SigningKey, Storage, VerifierKey};

/// Proof that a record is durable. Only [`Log::append`] makes one, and it is spent by the action that it is for.
#[derive(Debug)]
#[must_use = "the action that was recorded has not been done yet"]
pub struct Receipt {
    index: u64,
    leaf: Hash,
    operation: String,
}

impl Receipt {
    /// The record's number in the log; the first is 0.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The record's leaf hash, by which it can be found in any copy of the log.
    #[must_use]
    pub fn leaf_hash(&self) -> &[u8; 32] {
        &self.leaf.0
    }

    /// The operation that was recorded.
    #[must_use]
    pub fn operation(&self) -> &str {
        &self.operation
    }
}

/// A record as the log holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its number; the first is 0.
    pub index: u64,
    /// What it says.
    pub record: Record,
}

/// An append-only log that is open for writing. One process writes; any number may read its storage.
pub struct Log {
    queue: Mutex<Queue>,
    settled: Condvar,
    writer: Mutex<Writer>,
}

/// The number and leaf hash of a record that was written, or why it was not.
type Outcome = Result<(u64, Hash), AuditError>;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(u64, Vec<u8>)>,
    outcomes: BTreeMap<u64, Outcome>,
    next_ticket: u64,
    writing: bool,
    size: u64,
}

/// How many records one durable write carries at most, whoever waits.
const MAX_BATCH: usize = 64;

impl Log {
    /// Opens a log, or starts one in an empty storage. What a crash left unfinished is finished or dropped: nothing that was acknowledged
    /// is ever dropped.
    ///
    /// # Errors
    /// [`AuditError::Damaged`], [`AuditError::Truncated`] or [`AuditError::Checkpoint`] if the log is not what was signed.
    pub fn open(storage: Arc<dyn Storage>, key: SigningKey) -> Result<Self, AuditError> {
        let verifier = key.verifier();
        if storage.read(CHECKPOINT)?.is_none() {
            for name in [layout::journal(0), layout::bundle(0, WIDTH)] {
                if storage.read(&name)?.is_some() {
                    return Err(AuditError::Damaged { place: CHECKPOINT.to_owned(), detail: "it is missing, but there are records" });
                }
            }
            storage.write(CHECKPOINT, &key.sign(Tree::default().head())?)?;
        }
        let loaded = Loaded::read(storage.as_ref(), &verifier)?;
        let mut writer = Writer { storage, key, loaded };
        writer.drop_finished_journal()?;
        writer.settle()?;
        let queue = Queue { size: writer.loaded.tree.size(), ..Queue::default() };
        Ok(Self { queue: Mutex::new(queue), settled: Condvar::new(), writer: Mutex::new(writer) })
    }

    /// Appends a record and waits until it is durable. Threads that append at the same time share one write.
    ///
    /// # Errors
    /// When the record cannot be made durable: what it describes must not be done then.
    pub fn append(&self, record: &Record) -> Result<Receipt, AuditError> {
        let bytes = record.to_bytes()?;
        let mut queue = locked(&self.queue);
        let ticket = queue.next_ticket;
        queue.next_ticket = ticket.wrapping_add(1);
        queue.waiting.push_back((ticket, bytes));
        loop {
            if let Some(outcome) = queue.outcomes.remove(&ticket) {
                let operation = record.operation.clone();
                return outcome.map(|(index, leaf)| Receipt { index, leaf, operation });
            }
            queue =
                if queue.writing { self.settled.wait(queue).unwrap_or_else(PoisonError::into_inner) } else { self.write_waiting(queue) };
        }
    }

    /// Writes a batch on behalf of everybody who waits.
    fn write_waiting<'a>(&'a self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        queue.writing = true;
        let count = queue.waiting.len().min(MAX_BATCH);
        let batch: Vec<_> = queue.waiting.drain(..count).collect();
        drop(queue);

        let (outcomes, size) = {
            let mut writer = locked(&self.writer);
            (writer.write(batch), writer.loaded.tree.size())
        };

        let mut queue = locked(&self.queue);
        queue.outcomes.extend(outcomes);
        queue.writing = false;
        queue.size = size;
        self.settled.notify_all();
        queue
    }

    /// How many records there are.
    #[must_use]
    pub fn size(&self) -> u64 {
        locked(&self.queue).size
    }

    /// Waits until there are more than `seen` records, but no longer than `at_most`; says how many there are.
    #[must_use]
    pub fn wait_beyond(&self, seen: u64, at_most: Duration) -> u64 {
        let queue = locked(&self.queue);
        self.settled.wait_timeout_while(queue, at_most, |queue| queue.size <= seen).unwrap_or_else(PoisonError::into_inner).0.size
    }

    /// The records from number `from` on, at most `limit` of them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn entries(&self, from: u64, limit: usize) -> Result<Vec<Entry>, AuditError> {
        let writer = locked(&self.writer);
        writer.loaded.entries(writer.storage.as_ref(), from, limit)
    }

    /// A self-contained proof of the record with number `index`, against the current checkpoint.
    ///
    /// # Errors
    /// [`AuditError::OutOfRange`], or when the log cannot be read.
    pub fn prove(&self, index: u64) -> Result<Proof, AuditError> {
        let writer = locked(&self.writer);
        writer.loaded.prove(writer.storage.as_ref(), index)
    }

    /// The current checkpoint: a signed note. Whoever keeps a copy elsewhere can tell later that nothing before it was changed.
    #[must_use]
    pub fn checkpoint(&self) -> String {
        String::from_utf8_lossy(&locked(&self.writer).loaded.checkpoint).into_owned()
    }

    /// The public key of the log.
    #[must_use]
    pub fn verifier(&self) -> VerifierKey {
        locked(&self.writer).key.verifier()
    }

    /// Writes the partial tiles of the current size, after which the storage is a complete static log that any tlog-tiles client can
    /// follow. The log itself does not need them.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn publish(&self) -> Result<(), AuditError> {
        let writer = locked(&self.writer);
        let Loaded { tree, open, .. } = &writer.loaded;
        if !open.is_empty() {
            let name = layout::bundle(writer.loaded.segment(), open.len() as u64);
            writer.storage.write(&name, &bundle_of(open)?)?;
        }
        for (level, n, hashes) in tree.partial_tiles() {
            let width = hashes.len() / tlog_tiles::HASH_SIZE;
            writer.storage.write(&layout::tile(level, n, width as u64), &hashes)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Log({} records)", self.size())
    }
}

/// A log that is open for reading only, also while another process writes it.
pub struct LogReader {
    storage: Arc<dyn Storage>,
    verifier: VerifierKey,
}

impl LogReader {
    /// A reader of the log whose checkpoints `verifier` opens.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, verifier: VerifierKey) -> Self {
        Self { storage, verifier }
    }

    /// How many records there are.
    ///
    /// # Errors
    /// When the log cannot be read or is not what was signed.
    pub fn size(&self) -> Result<u64, AuditError> {
        self.load().map(|loaded| loaded.tree.size())
    }

    /// The records from number `from` on, at most `limit` of them. To follow a log, ask again from where the last answer ended.
    ///
    /// # Errors
    /// When the log cannot be read or is not what was signed.
    pub fn entries(&self, from: u64, limit: usize) -> Result<Vec<Entry>, AuditError> {
        self.load()?.entries(self.storage.as_ref(), from, limit)
    }

    /// A self-contained proof of the record with number `index`.
    ///
    /// # Errors
    /// [`AuditError::OutOfRange`], or when the log cannot be read.
    pub fn prove(&self, index: u64) -> Result<Proof, AuditError> {
        self.load()?.prove(self.storage.as_ref(), index)
    }

    /// The writer may finish a bundle between two reads, so a failure counts only when it comes twice.
    fn load(&self) -> Result<Loaded, AuditError> {
        Loaded::read(self.storage.as_ref(), &self.verifier).or_else(|_| Loaded::read(self.storage.as_ref(), &self.verifier))
    }
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "LogReader({})", self.verifier)
    }
}

/// What of a log is kept in memory.
pub(crate) struct Loaded {
    pub(crate) tree: Tree,
    /// The records since the last full bundle that has been put away.
    open: Vec<Vec<u8>>,
    /// How many bytes of the journal are good.
    journal_length: u64,
    /// Whether the journal has anything after them.
    unfinished: bool,
    /// Tiles that are full and not yet put away.
    full: Vec<FullTile>,
    /// The newest checkpoint.
    checkpoint: Vec<u8>,
    /// Whether the newest checkpoint and full tiles still have to be put away.
    unpublished: bool,
}

impl Loaded {
    /// Reads the state from the storage and checks it against the published checkpoint.
    fn read(storage: &dyn Storage, verifier: &VerifierKey) -> Result<Self, AuditError> {
        let missing = || AuditError::Damaged { place: CHECKPOINT.to_owned(), detail: "it is missing" };
        let checkpoint = storage.read(CHECKPOINT)?.ok_or_else(missing)?;
        let published = verifier.open(&checkpoint)?;
        let bundles = published.size / WIDTH;
        let mut loaded = Self {
            tree: Tree::load(bundles, storage)?,
            open: Vec::new(),
            journal_length: 0,
            unfinished: false,
            full: Vec::new(),
            checkpoint,
            unpublished: false,
        };
        loaded.meets(published)?;
        let journal = storage.read(&layout::journal(bundles))?.unwrap_or_default();
        let mut rest = journal.as_slice();
        while let Some((batch, after)) = layout::take_batch(rest) {
            if !loaded.take(&batch, verifier) {
                break;
            }
            loaded.meets(published)?;
            rest = after;
        }
        loaded.unfinished = !rest.is_empty();
        loaded.journal_length = journal.len().saturating_sub(rest.len()) as u64;
        loaded.unpublished = loaded.tree.size() > published.size;
        if loaded.tree.size() < published.size {
            return Err(AuditError::Truncated { signed: published.size, stored: loaded.tree.size() });
        }
        Ok(loaded)
    }

    /// Takes a batch of the journal over, if it is what its checkpoint signs.
    fn take(&mut self, batch: &layout::Batch<'_>, verifier: &VerifierKey) -> bool {
        if self.open.len() + batch.records.len() > WIDTH as usize {
            return false;
        }
        let mut tree = self.tree.clone();
        let full: Vec<_> = batch.records.iter().flat_map(|record| tree.push(record_hash(record))).collect();
        if verifier.open(batch.checkpoint) != Ok(tree.head()) {
            return false;
        }
        self.tree = tree;
        self.full.extend(full);
        self.open.extend(batch.records.iter().map(|record| record.to_vec()));
        self.checkpoint = batch.checkpoint.to_vec();
        true
    }

    fn meets(&self, published: Head) -> Result<(), AuditError> {
        if self.tree.size() == published.size && self.tree.root() != published.root {
            return Err(AuditError::Damaged { place: CHECKPOINT.to_owned(), detail: "it does not fit the records" });
        }
        Ok(())
    }

    /// The number of the bundle that the open records will fill.
    fn segment(&self) -> u64 {
        self.tree.size().saturating_sub(self.open.len() as u64) / WIDTH
    }

    fn record(&self, storage: &dyn Storage, index: u64) -> Result<Vec<u8>, AuditError> {
        let out_of_range = || AuditError::OutOfRange { index, size: self.tree.size() };
        let within = usize::try_from(index % WIDTH).map_err(|_| out_of_range())?;
        if index / WIDTH >= self.segment() {
            return self.open.get(within).cloned().filter(|_| index < self.tree.size()).ok_or_else(out_of_range);
        }
        let name = layout::bundle(index / WIDTH, WIDTH);
        let bundle = storage.read(&name)?.unwrap_or_default();
        let record = layout::read_bundle(&bundle).and_then(|records| records.get(within).map(|record| record.to_vec()));
        record.ok_or(AuditError::Damaged { place: name, detail: "it is not a full bundle" })
    }

    fn entries(&self, storage: &dyn Storage, from: u64, limit: usize) -> Result<Vec<Entry>, AuditError> {
        let mut entries = Vec::new();
        let end = from.saturating_add(limit as u64).min(self.tree.size());
        let mut index = from;
        while index < end {
            let segment = index / WIDTH;
            let stored;
            let records: Vec<&[u8]> = if segment >= self.segment() {
                self.open.iter().map(Vec::as_slice).collect()
            } else {
                let name = layout::bundle(segment, WIDTH);
                stored = storage.read(&name)?.unwrap_or_default();
                let whole = layout::read_bundle(&stored).filter(|records| records.len() as u64 == WIDTH);
                whole.ok_or(AuditError::Damaged { place: name, detail: "it is not a full bundle" })?
            };
            let first = segment.saturating_mul(WIDTH);
            for (number, record) in (first..end).zip(records).skip_while(|(number, _)| *number < index) {
                entries.push(Entry { index: number, record: Record::from_bytes(record)? });
            }
            index = first.saturating_add(WIDTH);
        }
        Ok(entries)
    }

    fn prove(&self, storage: &dyn Storage, index: u64) -> Result<Proof, AuditError> {
        let record = self.record(storage, index)?;
        let Head { size, root } = self.tree.head();
        let damaged = |_| AuditError::Damaged { place: format!("the tiles under record {index}"), detail: "they do not lead to the root" };
        let hashes = prove_record(size, index, &Hashes { tree: &self.tree, storage }).map_err(damaged)?;
        check_record(&hashes, size, root, index, record_hash(&record)).map_err(damaged)?;
        Ok(Proof { index, record, hashes, checkpoint: self.checkpoint.clone() })
    }
}

struct Writer {
    storage: Arc<dyn Storage>,
    key: SigningKey,
    loaded: Loaded,
}

impl Writer {
    fn write(&mut self, batch: Vec<(u64, Vec<u8>)>) -> Vec<(u64, Outcome)> {
        let mut outcomes = Vec::new();
        let mut waiting = batch.into_iter().peekable();
        while waiting.peek().is_some() {
            let put_away = self.settle();
            let room = (WIDTH as usize).saturating_sub(self.loaded.open.len()).max(1);
            let (tickets, records): (Vec<u64>, Vec<Vec<u8>>) = waiting.by_ref().take(room).unzip();
            match put_away.and_then(|()| self.write_records(records)) {
                Ok(written) => outcomes.extend(tickets.into_iter().zip(written.into_iter().map(Ok))),
                Err(error) => outcomes.extend(tickets.into_iter().map(|ticket| (ticket, Err(error.clone())))),
            }
        }
        outcomes
    }

    fn write_records(&mut self, records: Vec<Vec<u8>>) -> Result<Vec<(u64, Hash)>, AuditError> {
        let mut tree = self.loaded.tree.clone();
        let mut written = Vec::new();
        let mut full = Vec::new();
        for record in &records {
            let leaf = record_hash(record);
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
    /// The journal goes only after everything that replaces it is durable.
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
                self.storage.write(&layout::bundle(segment, WIDTH), &bundle_of(&self.loaded.open)?)?;
            }
            for tile in &self.loaded.full {
                self.storage.write(&tile.name(), &tile.hashes)?;
            }
            self.storage.write(CHECKPOINT, &self.loaded.checkpoint)?;
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

    /// Removes what [`Log::publish`] wrote for sizes that full bundles and tiles now cover.
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

    /// A crash may have kept the journal of a bundle that had been put away.
    fn drop_finished_journal(&self) -> Result<(), AuditError> {
        match self.loaded.segment().checked_sub(1) {
            Some(finished) => Ok(self.storage.remove(&layout::journal(finished))?),
            None => Ok(()),
        }
    }
}

fn bundle_of(records: &[Vec<u8>]) -> Result<Vec<u8>, AuditError> {
    let mut bundle = Vec::new();
    for record in records {
        layout::push_entry(&mut bundle, record)?;
    }
    Ok(bundle)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
