//! Cosignatures of witnesses (C2SP `tlog-cosignature`): others who saw a checkpoint, checked that it continues the one before, and signed it.
//! Whoever asks for some of them need not trust that the log's operator shows everybody the same log.

use std::fmt;
use std::str::FromStr;

use signed_note::{Note, Verifier, VerifierList, key_id};
use talon_crypto::Ed25519PublicKey;
use tlog_tiles::Checkpoint;

use crate::key::{Head, note_key};
use crate::{AuditError, VerifierKey};

/// The algorithm byte of timestamped Ed25519 cosignatures in note keys.
const COSIGNATURE: u8 = 4;

/// The public key of a witness, in the note form `<name>+<id>+<key>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessKey {
    name: String,
    id: u32,
    key: Ed25519PublicKey,
}

impl FromStr for WitnessKey {
    type Err = AuditError;

    fn from_str(text: &str) -> Result<Self, AuditError> {
        let (name, id, bytes) = note_key(text.trim_end(), COSIGNATURE)?;
        if key_id(name, &[&[COSIGNATURE], bytes.as_slice()].concat()) != id {
            return Err(AuditError::Key);
        }
        Ok(Self { name: name.to_owned(), id, key: Ed25519PublicKey::from_bytes(*bytes) })
    }
}

impl fmt::Display for WitnessKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)
    }
}

impl Verifier for WitnessKey {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let Some((time, signature)) = signature.split_first_chunk::<8>() else { return false };
        let head = format!("cosignature/v1\ntime {}\n", u64::from_be_bytes(*time));
        self.key.verify(&[head.as_bytes(), message].concat(), signature).is_ok()
    }
}

/// A checkpoint that was kept outside the log.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct KeptCheckpoint {
    /// How many records it signs.
    pub size: u64,
    /// The root over them.
    pub root: [u8; 32],
    /// The witnesses among those asked for that signed it too, and when they did, in seconds since 1970.
    pub cosigned: Vec<(String, u64)>,
}

/// Reads a checkpoint that was kept outside the log. It has to carry the log's signature; signatures of others are looked at if they are of
/// one of `witnesses`, and count only if they are right.
///
/// # Errors
/// [`AuditError::Checkpoint`].
pub fn read_checkpoint(note: &[u8], key: &VerifierKey, witnesses: &[WitnessKey]) -> Result<KeptCheckpoint, AuditError> {
    let refused = || AuditError::Checkpoint { key: key.name().to_owned() };
    let note = Note::from_bytes(note).map_err(|_| refused())?;
    let mut verifiers: Vec<Box<dyn Verifier>> = vec![Box::new(key.clone())];
    verifiers.extend(witnesses.iter().map(|witness| Box::new(witness.clone()) as Box<dyn Verifier>));
    let (verified, _) = note.verify(&VerifierList::new(verifiers)).map_err(|_| refused())?;
    let checkpoint = Checkpoint::from_bytes(note.text()).map_err(|_| refused())?;
    let own = |signature: &&signed_note::Signature| signature.name() == key.name() && signature.id() == Verifier::key_id(key);
    if checkpoint.origin() != key.name() || !verified.iter().any(|signature| own(&signature)) {
        return Err(refused());
    }
    let time = |signature: &signed_note::Signature| signature.signature().first_chunk::<8>().map(|time| u64::from_be_bytes(*time));
    let cosigned = verified.iter().filter(|signature| !own(signature));
    let cosigned = cosigned.filter_map(|signature| Some((signature.name().to_owned(), time(signature)?))).collect();
    Ok(KeptCheckpoint { size: checkpoint.size(), root: checkpoint.hash().0, cosigned })
}

/// The head that a kept checkpoint signs.
pub(crate) fn kept_head(note: &[u8], key: &VerifierKey) -> Result<Head, AuditError> {
    let kept = read_checkpoint(note, key, &[])?;
    Ok(Head { size: kept.size, root: tlog_tiles::Hash(kept.root) })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use talon_crypto::Ed25519PrivateKey;
    use tlog_tiles::Hash;

    use super::*;
    use crate::key::tests::key;

    fn witness(seed: u8) -> (Ed25519PrivateKey, WitnessKey) {
        let private = Ed25519PrivateKey::from_seed(&[seed; 32]).unwrap();
        let bytes = [&[COSIGNATURE], private.public().as_bytes().as_slice()].concat();
        let text = format!("witness.example/{seed}+{:08x}+{}", key_id(&format!("witness.example/{seed}"), &bytes), STANDARD.encode(&bytes));
        (private, text.parse().unwrap())
    }

    fn cosigned(note: &[u8], by: &(Ed25519PrivateKey, WitnessKey), time: u64) -> Vec<u8> {
        let text = Note::from_bytes(note).unwrap().text().to_vec();
        let message = [format!("cosignature/v1\ntime {time}\n").as_bytes(), &text].concat();
        let signature = [&by.1.id.to_be_bytes()[..], &time.to_be_bytes(), &by.0.sign(&message)].concat();
        [note, format!("— {} {}\n", by.1.name, STANDARD.encode(signature)).as_bytes()].concat()
    }

    #[test]
    fn witnesses_count_when_they_are_asked_for_and_right() {
        let signing = key(7);
        let note = signing.sign(Head { size: 3, root: Hash([9; 32]) }).unwrap();
        let (one, two) = (witness(1), witness(2));
        let both = cosigned(&cosigned(&note, &one, 1_700_000_000), &two, 1_700_000_001);
        let public = signing.verifier();
        let read = |note: &[u8], witnesses: &[WitnessKey]| read_checkpoint(note, &public, witnesses).map(|kept| kept.cosigned);
        assert_eq!(read(&note, std::slice::from_ref(&one.1)), Ok(Vec::new()));
        assert_eq!(read(&both, &[]), Ok(Vec::new()));
        assert_eq!(read(&both, std::slice::from_ref(&two.1)), Ok(vec![("witness.example/2".to_owned(), 1_700_000_001)]));
        assert_eq!(read(&both, &[one.1.clone(), two.1.clone()]).unwrap().len(), 2);
        let text = String::from_utf8(both).unwrap();
        let forged = text.replacen("\n3\n", "\n4\n", 1);
        assert!(read(forged.as_bytes(), std::slice::from_ref(&one.1)).is_err());
        let (head, last) = text.trim_end().rsplit_once(' ').unwrap();
        let mut signature = STANDARD.decode(last).unwrap();
        signature[20] ^= 1;
        let broken = format!("{head} {}\n", STANDARD.encode(signature));
        assert!(read(broken.as_bytes(), std::slice::from_ref(&two.1)).is_err(), "a wrong signature of a witness that was asked for");
        assert!(key(8).verifier().name() == public.name() && read_checkpoint(text.as_bytes(), &key(8).verifier(), &[]).is_err());
    }

    #[test]
    fn keys_of_logs_are_not_keys_of_witnesses() {
        assert!(key(7).verifier().to_string().parse::<WitnessKey>().is_err());
    }
}
