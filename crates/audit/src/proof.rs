//! Proofs: one file that shows, to whoever has the public key and nothing else, that a record is in the log.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tlog_tiles::{Hash, check_record, record_hash};

use crate::layout;
use crate::record::Sealed;
use crate::{AuditError, Record, VerifierKey};

/// The first line of a proof, as tlog-proof prescribes.
const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// No tree is higher.
const MAX_HASHES: usize = 64;

/// A proof that a record is in a log. Its text is the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    pub(crate) index: u64,
    pub(crate) record: Sealed,
    pub(crate) hashes: Vec<Hash>,
    pub(crate) checkpoint: Vec<u8>,
}

/// What a proof proved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Proved {
    /// The record's number in the log.
    pub index: u64,
    /// How many records the log had when the proof was made.
    pub size: u64,
    /// The record.
    pub record: Record,
    /// Whether its details had been erased when the proof was made.
    pub redacted: bool,
}

impl fmt::Display for Proof {
    /// tlog-proof, with the leaf and the opening of the record as the extra data.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut extra = Vec::new();
        for part in [&self.record.leaf, &self.record.opening] {
            layout::push_entry(&mut extra, part).map_err(|_| fmt::Error)?;
        }
        writeln!(out, "{HEADER}\nextra {}\nindex {}", STANDARD.encode(&extra), self.index)?;
        for hash in &self.hashes {
            writeln!(out, "{}", STANDARD.encode(hash.0))?;
        }
        write!(out, "\n{}", String::from_utf8_lossy(&self.checkpoint))
    }
}

impl Proof {
    fn parse(text: &str) -> Result<Self, AuditError> {
        let (head, checkpoint) = text.split_once("\n\n").ok_or(AuditError::Proof("it has no checkpoint"))?;
        let mut lines = head.split('\n');
        if lines.next() != Some(HEADER) {
            return Err(AuditError::Proof("it does not start as a proof"));
        }
        let extra = lines.next().and_then(|line| line.strip_prefix("extra ")).ok_or(AuditError::Proof("it has no record"))?;
        let extra = STANDARD.decode(extra).map_err(|_| AuditError::Proof("its record is not base64"))?;
        let record = match layout::read_bundle(&extra).as_deref() {
            Some([leaf, opening]) => Sealed { leaf: leaf.to_vec(), opening: opening.to_vec() },
            _ => return Err(AuditError::Proof("its record is not in two parts")),
        };
        let number = lines.next().and_then(|line| line.strip_prefix("index ")).ok_or(AuditError::Proof("it has no index"))?;
        let index =
            number.parse().ok().filter(|index: &u64| index.to_string() == number).ok_or(AuditError::Proof("its index is no number"))?;
        let hashes = lines
            .map(|line| STANDARD.decode(line).ok().and_then(|hash| hash.try_into().ok()).map(Hash))
            .take(MAX_HASHES + 1)
            .collect::<Option<Vec<_>>>()
            .ok_or(AuditError::Proof("it has a line that is no hash"))?;
        if hashes.len() > MAX_HASHES {
            return Err(AuditError::Proof("it has too many hashes"));
        }
        Ok(Self { index, record, hashes, checkpoint: checkpoint.as_bytes().to_vec() })
    }
}

/// Verifies the text of a proof with the log's public key. Nothing else is needed, and nothing in the text is trusted.
///
/// # Errors
/// [`AuditError::Proof`] or [`AuditError::Checkpoint`].
pub fn verify_proof(proof: &str, key: &VerifierKey) -> Result<Proved, AuditError> {
    let proof = Proof::parse(proof)?;
    let head = key.open(&proof.checkpoint)?;
    check_record(&proof.hashes, head.size, head.root, proof.index, record_hash(&proof.record.leaf))
        .map_err(|_| AuditError::Proof("its hashes do not lead from the record to the checkpoint"))?;
    let Sealed { leaf, opening } = &proof.record;
    Ok(Proved { index: proof.index, size: head.size, record: Record::open(leaf, opening)?, redacted: opening.is_empty() })
}
