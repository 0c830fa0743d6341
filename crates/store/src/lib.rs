//! Durable state: storage traits, and the embedded engine of sled and segment files.

mod engine;

pub use engine::{
    BlockEncoding, Engine, ObjectName, Reader, Record, RowBlock, RowBlocks, Scan, Space, TableInfo, Ticket, Txn, UploadInfo, Work,
};

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
    /// The disk or the engine failed.
    #[error("storage failed: {0}")]
    Io(String),
    /// The engine was shut down.
    #[error("the store is closed")]
    Closed,
}
