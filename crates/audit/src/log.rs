//! The log as a process that writes it sees it: appending with one durable write for all who wait, following, erasing details.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use talon_crypto::Rng;
use tlog_tiles::Hash;

use crate::layout::{self, CHECKPOINT, WIDTH};
use crate::record::Sealed;
use crate::tree::Tree;
use crate::writer::Writer;
use crate::{AuditError, Proof, Record, SigningKey, Storage, VerifierKey};

/// The operation of a record that says that the details of another one were erased; its detail `record` is that one's number.
pub const REDACTION: &str = "audit_redact";

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
    /// Whether its details have been erased.
    pub redacted: bool,
}

impl Entry {
    /// A record with its details, as a log would hold it under this number.
    #[must_use]
    pub fn new(index: u64, record: Record) -> Self {
        Self { index, record, redacted: false }
    }
}

/// An append-only log that is open for writing. One process writes; any number may read its storage.
pub struct Log {
    queue: Mutex<Queue>,
    settled: Condvar,
    writer: Mutex<Writer>,
    rng: Arc<dyn Rng>,
}

/// The number and leaf hash of a record that was written, or why it was not.
pub(crate) type Outcome = Result<(u64, Hash), AuditError>;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(u64, Sealed)>,
    outcomes: BTreeMap<u64, Outcome>,
    next_ticket: u64,
    writing: bool,
    size: u64,
}

/// How many records one durable write carries at most, whoever waits.
const MAX_BATCH: usize = 64;

impl Log {
    /// Opens a log, or starts one in an empty storage. What a crash left unfinished is finished or dropped: nothing that was acknowledged
    /// is ever dropped. `rng` makes the salts of the records' details.
    ///
    /// # Errors
    /// [`AuditError::Damaged`], [`AuditError::Truncated`] or [`AuditError::Checkpoint`] if the log is not what was signed.
    pub fn open(storage: Arc<dyn Storage>, key: SigningKey, rng: Arc<dyn Rng>) -> Result<Self, AuditError> {
        if storage.read(CHECKPOINT)?.is_none() {
            for name in [layout::journal(0), layout::bundle(0, WIDTH)] {
                if storage.read(&name)?.is_some() {
                    return Err(AuditError::Damaged { place: CHECKPOINT.to_owned(), detail: "it is missing, but there are records" });
                }
            }
            storage.write(CHECKPOINT, &key.sign(Tree::default().head())?)?;
        }
        let writer = Writer::open(storage, key)?;
        let queue = Queue { size: writer.loaded.tree.size(), ..Queue::default() };
        Ok(Self { queue: Mutex::new(queue), settled: Condvar::new(), writer: Mutex::new(writer), rng })
    }

    /// Appends a record and waits until it is durable. Threads that append at the same time share one write.
    ///
    /// # Errors
    /// When the record cannot be made durable: what it describes must not be done then.
    pub fn append(&self, record: &Record) -> Result<Receipt, AuditError> {
        let sealed = record.seal(&*self.rng)?;
        let mut queue = locked(&self.queue);
        let ticket = queue.next_ticket;
        queue.next_ticket = ticket.wrapping_add(1);
        queue.waiting.push_back((ticket, sealed));
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
        writer.loaded.entries(writer.storage(), from, limit)
    }

    /// A self-contained proof of the record with number `index`, against the current checkpoint.
    ///
    /// # Errors
    /// [`AuditError::OutOfRange`], or when the log cannot be read.
    pub fn prove(&self, index: u64) -> Result<Proof, AuditError> {
        let writer = locked(&self.writer);
        writer.loaded.prove(writer.storage(), index)
    }

    /// Erases the details of the record with number `index` for good, after `by` is on record, which must be of the operation
    /// [`REDACTION`] and name the number in its detail `record`. The record itself and all proofs of it stay valid.
    ///
    /// # Errors
    /// [`AuditError::OutOfRange`], [`AuditError::Record`] if `by` says something else or the record is itself one of an erasure, and when
    /// the log cannot be written.
    pub fn redact(&self, index: u64, by: &Record) -> Result<Receipt, AuditError> {
        if by.operation != REDACTION || by.details.get("record").and_then(serde_json::Value::as_u64) != Some(index) {
            return Err(AuditError::Record("an erasure has to be recorded with the number of the record"));
        }
        match self.entries(index, 1)?.first() {
            None => return Err(AuditError::OutOfRange { index, size: self.size() }),
            Some(entry) if entry.record.operation == REDACTION => {
                return Err(AuditError::Record("the record of an erasure cannot be erased"));
            }
            Some(_) => {}
        }
        let receipt = self.append(by)?;
        locked(&self.writer).erase(index)?;
        Ok(receipt)
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

    /// Writes the partial tiles of the current size and makes the checkpoint durable, after which the storage is a complete static log
    /// that any tlog-tiles client can follow. The log itself does not need them.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn publish(&self) -> Result<(), AuditError> {
        locked(&self.writer).publish()
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Log({} records)", self.size())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
