//! The audit log: who did what, in an append-only log whose every record can be proved to somebody who trusts nothing but a public key.
//!
//! The log is a transparency log in the public C2SP formats: entry bundles and hash tiles (`tlog-tiles`), checkpoints that are signed
//! notes (`tlog-checkpoint`, `signed-note`) and self-contained proofs (`tlog-proof`). A [`Receipt`] exists only for a record that the
//! storage called durable; whoever changes state asks for one first and refuses its action without. The details of a record are in the
//! tree as a salted digest only, so that they can be erased ([`Log::redact`]) and every proof stays valid.
//!
//! ```
//! use std::sync::Arc;
//! use talon_audit::{Details, Log, MemoryStorage, Phase, Record, SigningKey, verify_proof};
//! use talon_crypto::SystemRng;
//!
//! let key = SigningKey::generate("example.com/audit", &SystemRng)?;
//! let public = key.verifier();
//! let log = Log::open(Arc::new(MemoryStorage::default()), key, Arc::new(SystemRng))?;
//! let mut record = Record::new(1_700_000_000_000_000_000, "root".parse()?, "alice", "user_create", Phase::Intended);
//! record.details = Details::new().text("username", "bob").secret("password");
//! let receipt = log.append(&record)?;
//!
//! let proof = log.prove(receipt.index())?.to_string();
//! let proved = verify_proof(&proof, &public)?;
//! assert_eq!(proved.record, record);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod key;
mod layout;
mod line;
mod log;
mod proof;
mod reader;
mod record;
mod state;
mod storage;
mod tree;
mod verify;
mod witness;
mod writer;

pub use key::{SigningKey, VerifierKey};
pub use line::{COMPONENT, component_line, syslog_message};
pub use log::{Entry, Log, REDACTION, Receipt};
pub use proof::{Proof, Proved, verify_proof};
pub use reader::LogReader;
pub use record::{Details, MAX_DETAILS, Phase, REDACTED, Record};
pub use storage::{MemoryStorage, Storage, StorageError};
pub use verify::{Report, verify_log};
pub use witness::{KeptCheckpoint, WitnessKey, read_checkpoint};

/// Why the audit log refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The log could not be written or read. A state-changing action must not go ahead.
    #[error("the audit log cannot be used")]
    Storage(#[from] StorageError),
    /// Stored data is not what was signed.
    #[error("{place} of the audit log was changed or is damaged: {detail}")]
    Damaged {
        /// Which part.
        place: String,
        /// What does not fit.
        detail: &'static str,
    },
    /// Records that were signed are missing at the end.
    #[error("the audit log was cut: {signed} records were signed, {stored} are stored")]
    Truncated {
        /// How many a signed checkpoint says.
        signed: u64,
        /// How many there are.
        stored: u64,
    },
    /// The log does not continue the checkpoint that the verifier remembered.
    #[error("the audit log is not the one whose checkpoint of {size} records was kept")]
    Forked {
        /// The size of the remembered checkpoint.
        size: u64,
    },
    /// A checkpoint is malformed, or not signed by the expected key.
    #[error("not a checkpoint signed by {key}")]
    Checkpoint {
        /// The expected key's name.
        key: String,
    },
    /// A proof is malformed or proves nothing.
    #[error("not a valid proof: {0}")]
    Proof(&'static str),
    /// A record that cannot be read.
    #[error("not an audit record: {0}")]
    Record(&'static str),
    /// No record has that number.
    #[error("the audit log has {size} records, there is no number {index}")]
    OutOfRange {
        /// The number asked for; the first is 0.
        index: u64,
        /// How many there are.
        size: u64,
    },
    /// A key that is not in the note format.
    #[error("not a key of an audit log")]
    Key,
}
