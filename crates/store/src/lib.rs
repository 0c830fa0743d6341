//! Durable state: storage traits, and the embedded engine of sled and segment files.

mod block;
mod engine;
mod memory;

pub use block::Limits;
pub use engine::{
    BlockEncoding, Engine, ObjectName, Reader, Record, RowBlock, RowBlocks, Scan, Space, TableInfo, Ticket, Txn, UploadInfo, Work,
};
pub use memory::Memory;

/// Why storage refused.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Rows or bytes do not continue what is stored.
    #[error("expected {expected}, but {stored} are stored")]
    OutOfSequence {
        /// Where the sender wanted to continue.
        expected: u64,
        /// Where the table or upload ends.
        stored: u64,
    },
    /// The caller's own reason to undo its transaction.
    #[error("{0}")]
    Refused(String),
    /// What was read back is not what was written.
    #[error("damaged data in {place}: {detail}")]
    Damaged {
        /// The file and offset, or the key.
        place: String,
        /// What does not match.
        detail: String,
    },
    /// What a block, a key or a name says of itself is not true, or it is larger than the limits.
    #[error("invalid data: {0}")]
    Invalid(String),
    /// A work tried to submit other work to the engine that runs it.
    #[error("a transaction cannot start another one")]
    Nested,
    /// A work panicked; what it did is undone.
    #[error("the transaction was aborted by a defect in the program")]
    Panicked,
    /// There is no space left on the disk. Writing works again when there is.
    #[error("no space left for {place}: free some, writing then continues")]
    Full {
        /// The folder that is full.
        place: String,
    },
    /// Another process uses the same folder.
    #[error("{place} is in use by another process: stop it first")]
    Locked {
        /// The folder.
        place: String,
    },
    /// The disk or the engine failed.
    #[error("storage failed: {0}")]
    Io(String),
    /// The engine was shut down.
    #[error("the store is closed")]
    Closed,
}
