//! The log as everybody else sees it: read only, also while another process writes it.

use std::sync::Arc;

use crate::log::Entry;
use crate::state::State;
use crate::{AuditError, Proof, Storage, VerifierKey};

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

    /// The newest checkpoint: a signed note.
    ///
    /// # Errors
    /// When the log cannot be read or is not what was signed.
    pub fn checkpoint(&self) -> Result<String, AuditError> {
        Ok(String::from_utf8_lossy(&self.load()?.checkpoint).into_owned())
    }

    /// Hands out the files of the log as a static log that any tlog-tiles client can follow, the checkpoint last: leaves without the
    /// details, all of one size.
    ///
    /// # Errors
    /// When the log cannot be read or is not what was signed, and what `take` fails with.
    pub fn static_files<E: From<AuditError>>(&self, take: &mut impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<u64, E> {
        self.load()?.static_files(self.storage.as_ref(), take)
    }

    /// The writer may finish a bundle between two reads, so a failure counts only when it comes twice.
    fn load(&self) -> Result<State, AuditError> {
        State::read(self.storage.as_ref(), &self.verifier).or_else(|_| State::read(self.storage.as_ref(), &self.verifier))
    }
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "LogReader({})", self.verifier)
    }
}
