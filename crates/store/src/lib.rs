//! Durable state: storage traits, and the embedded engine of sled and segment files.

mod audit_files;
mod block;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod embedded;
mod engine;
mod memory;
mod portable;
mod rows;

pub use audit_files::{AUDIT_FOLDER, AUDIT_KEY, AUDIT_PUBLIC_KEY, AuditFiles};
pub use block::Limits;
pub use embedded::{CheckReport, Embedded, Options, SegmentBlock, segment_blocks};
pub use engine::{
    BlockEncoding, Engine, ObjectName, Reader, Record, RowBlock, RowBlocks, Scan, Space, TableInfo, Ticket, Txn, UploadInfo, Work,
};
pub use memory::Memory;
pub use portable::{Totals, export, import};
pub use rows::CheckedRows;

/// Why storage refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
    /// A table or an upload was deleted while it was read.
    #[error("deleted while it was read")]
    Gone,
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

impl StoreError {
    /// A failure of the file system at `place`.
    pub(crate) fn io(place: &std::path::Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;

        let place = place.display();
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Self::Full { place: place.to_string() },
            _ => Self::Io(format!("{place}: {error}")),
        }
    }
}
