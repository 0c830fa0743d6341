//! Keys of the log in the note format, and checkpoints signed and opened with them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use signed_note::{Note, Signature, Verifier, VerifierList, is_key_name_valid, key_id};
use talon_crypto::{Ed25519PrivateKey, Ed25519PublicKey, Rng};
use tlog_tiles::{Checkpoint, Hash};
use zeroize::Zeroizing;

use crate::AuditError;

/// The algorithm byte of Ed25519 in note keys.
const ED25519: u8 = 1;

/// The private key that signs the checkpoints of one log. Its name is also the log's origin.
pub struct SigningKey {
    verifier: VerifierKey,
    key: Ed25519PrivateKey,
}

/// The public key with which anybody verifies a log and its proofs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: u32,
    key: Ed25519PublicKey,
}

/// The head of a log at one size: what a checkpoint says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Head {
    pub(crate) size: u64,
    pub(crate) root: Hash,
}

impl SigningKey {
    /// A new key for a log called `name`: a URL without scheme is usual, spaces and `+` are not allowed.
    ///
    /// # Errors
    /// [`AuditError::Key`] if the name is not allowed.
    pub fn generate(name: &str, rng: &dyn Rng) -> Result<Self, AuditError> {
        Ed25519PrivateKey::generate(rng).map_err(|_| AuditError::Key).and_then(|key| Self::new(name, key))
    }

    fn new(name: &str, key: Ed25519PrivateKey) -> Result<Self, AuditError> {
        VerifierKey::new(name, key.public()).map(|verifier| Self { verifier, key })
    }

    /// Reads the private note form, `PRIVATE+KEY+<name>+<id>+<key>`.
    ///
    /// # Errors
    /// [`AuditError::Key`].
    pub fn parse(text: &str) -> Result<Self, AuditError> {
        let fields = text.trim_end().strip_prefix("PRIVATE+KEY+").ok_or(AuditError::Key)?;
        let (name, id, bytes) = note_key(fields, ED25519)?;
        let key = Ed25519PrivateKey::from_seed(&bytes).map_err(|_| AuditError::Key)?;
        let key = Self::new(name, key)?;
        if key.verifier.id == id { Ok(key) } else { Err(AuditError::Key) }
    }

    /// The private note form, for the key file.
    #[must_use]
    pub fn to_note_form(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new([&[ED25519], self.key.seed().as_slice()].concat());
        let VerifierKey { name, id, .. } = &self.verifier;
        Zeroizing::new(format!("PRIVATE+KEY+{name}+{id:08x}+{}", Zeroizing::new(STANDARD.encode(&*bytes)).as_str()))
    }

    /// The public half.
    #[must_use]
    pub fn verifier(&self) -> VerifierKey {
        self.verifier.clone()
    }

    pub(crate) fn sign(&self, head: Head) -> Result<Vec<u8>, AuditError> {
        let malformed = |_| AuditError::Checkpoint { key: self.verifier.name.clone() };
        let text = Checkpoint::new(&self.verifier.name, head.size, head.root, "")
            .map_err(|_| AuditError::Checkpoint { key: self.verifier.name.clone() })?
            .to_bytes();
        let signature = Signature::new(self.verifier.name.clone(), self.verifier.id, self.key.sign(&text).to_vec()).map_err(malformed)?;
        Note::new(&text, &[signature]).map_err(malformed).map(|note| note.to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SigningKey({})", self.verifier)
    }
}

impl VerifierKey {
    fn new(name: &str, key: Ed25519PublicKey) -> Result<Self, AuditError> {
        if !is_key_name_valid(name) || name.chars().any(char::is_control) {
            return Err(AuditError::Key);
        }
        let id = key_id(name, &[&[ED25519], key.as_bytes().as_slice()].concat());
        Ok(Self { name: name.to_owned(), id, key })
    }

    /// The key's name, which is the log's origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens a checkpoint: it must be this log's and carry this key's signature and nothing else, in the one form that [`SigningKey`] writes.
    pub(crate) fn open(&self, note: &[u8]) -> Result<Head, AuditError> {
        self.try_open(note).ok_or_else(|| AuditError::Checkpoint { key: self.name.clone() })
    }

    fn try_open(&self, bytes: &[u8]) -> Option<Head> {
        let note = Note::from_bytes(bytes).ok()?;
        let (verified, others) = note.verify(&VerifierList::new(vec![Box::new(self.clone())])).ok()?;
        let checkpoint = Checkpoint::from_bytes(note.text()).ok()?;
        let canonical = others.is_empty()
            && verified.len() == 1
            && note.to_bytes() == bytes
            && checkpoint.to_bytes() == note.text()
            && checkpoint.extension().is_empty()
            && checkpoint.origin() == self.name;
        canonical.then(|| Head { size: checkpoint.size(), root: *checkpoint.hash() })
    }
}

impl Verifier for VerifierKey {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify(message, signature).is_ok()
    }
}

impl fmt::Display for VerifierKey {
    /// The note form, `<name>+<id>+<key>`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&[ED25519], self.key.as_bytes().as_slice()].concat();
        write!(out, "{}+{:08x}+{}", self.name, self.id, STANDARD.encode(bytes))
    }
}

impl FromStr for VerifierKey {
    type Err = AuditError;

    fn from_str(text: &str) -> Result<Self, AuditError> {
        let (name, id, bytes) = note_key(text.trim_end(), ED25519)?;
        let key = Self::new(name, Ed25519PublicKey::from_bytes(*bytes))?;
        if key.id == id { Ok(key) } else { Err(AuditError::Key) }
    }
}

/// Splits `<name>+<id>+<key>`, whose key is of this algorithm.
pub(crate) fn note_key(text: &str, algorithm: u8) -> Result<(&str, u32, Zeroizing<[u8; 32]>), AuditError> {
    let (name, rest) = text.split_once('+').ok_or(AuditError::Key)?;
    let (id, key) = rest.split_once('+').ok_or(AuditError::Key)?;
    let id = u32::from_str_radix(id, 16).ok().filter(|_| id.len() == 8).ok_or(AuditError::Key)?;
    let bytes = Zeroizing::new(STANDARD.decode(key).map_err(|_| AuditError::Key)?);
    match bytes.split_first() {
        Some((&found, key)) if found == algorithm => Ok((name, id, Zeroizing::new(key.try_into().map_err(|_| AuditError::Key)?))),
        _ => Err(AuditError::Key),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use expect_test::expect;

    use super::*;

    pub(crate) fn key(seed: u8) -> SigningKey {
        SigningKey::new("example.com/audit", Ed25519PrivateKey::from_seed(&[seed; 32]).unwrap()).unwrap()
    }

    #[test]
    fn keys_and_checkpoints_have_the_public_formats() {
        let signing = key(7);
        let private = signing.to_note_form();
        expect!["PRIVATE+KEY+example.com/audit+f80c4422+AQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH"].assert_eq(&private);
        assert_eq!(SigningKey::parse(&private).unwrap().verifier(), signing.verifier());
        let public = signing.verifier().to_string();
        expect!["example.com/audit+f80c4422+AepKbGPinFIKvvVQexMuxfmVR3auvr57kkIe6mkURtIs"].assert_eq(&public);
        assert_eq!(public.parse(), Ok(signing.verifier()));

        let head = Head { size: 3, root: Hash([9; 32]) };
        let note = signing.sign(head).unwrap();
        expect![[r#"
            example.com/audit
            3
            CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=

            — example.com/audit +AxEIkMTpmzjLhw+afseC0jgrzVfYiogKrtR2k6Kseoy93qJ8Bam8bgBUqeaLJEKJnfQXmZUAke1op0Y9vI9ZkIBWAE=
        "#]]
        .assert_eq(std::str::from_utf8(&note).unwrap());
        assert_eq!(signing.verifier().open(&note), Ok(head));
    }

    #[test]
    fn a_reference_implementation_accepts_keys_and_checkpoints() {
        let signing = key(7);
        let note = signing.sign(Head { size: 3, root: Hash([9; 32]) }).unwrap();
        let reference = signed_note::StandardVerifier::new(&signing.verifier().to_string()).unwrap();
        let signer = signed_note::StandardSigner::new(&signing.to_note_form()).unwrap();
        assert_eq!(signed_note::Signer::key_id(&signer), signing.verifier().id);
        assert!(Note::from_bytes(&note).unwrap().verify(&VerifierList::new(vec![Box::new(reference)])).is_ok());
    }

    #[test]
    fn no_byte_of_a_checkpoint_can_be_changed() {
        let signing = key(7);
        let note = signing.sign(Head { size: 300, root: Hash([9; 32]) }).unwrap();
        for at in 0..note.len() {
            for bit in 0..8 {
                let mut changed = note.clone();
                changed[at] ^= 1 << bit;
                assert!(signing.verifier().open(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
        for cut in 0..note.len() {
            assert!(signing.verifier().open(&note[..cut]).is_err(), "cut at {cut}");
        }
        assert!(key(8).verifier().open(&note).is_err());
    }

    #[test]
    fn malformed_keys_are_refused() {
        let private = key(7).to_note_form();
        let public = key(7).verifier().to_string();
        for bad in ["", "a+b", "example.com/audit+00000000+AQ==", &public.replace("audit", "other"), &private] {
            assert!(bad.parse::<VerifierKey>().is_err(), "{bad}");
        }
        assert!(SigningKey::parse(&public).is_err());
        assert!(SigningKey::parse(&private.replace("audit", "other")).is_err());
        for name in ["", "a b", "a+b", "a\u{7}"] {
            assert!(SigningKey::new(name, Ed25519PrivateKey::from_seed(&[1; 32]).unwrap()).is_err(), "{name:?}");
        }
        assert!(!format!("{:?}", key(7)).contains("PRIVATE"));
    }
}
