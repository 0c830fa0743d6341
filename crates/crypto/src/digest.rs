//! Digests, keyed digests and comparison in constant time.

use ring::{digest, hmac};
use subtle::ConstantTimeEq;

use crate::CryptoError;

/// SHA-256 of `data`.
#[must_use]
pub fn sha256(data: &[u8]) -> [u8; 32] {
    fixed(digest::digest(&digest::SHA256, data).as_ref())
}

/// SHA-256 over parts that arrive one after the other.
#[derive(Clone)]
pub struct Sha256(digest::Context);

impl Sha256 {
    /// An empty digest.
    #[must_use]
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Appends `data`.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest of everything appended.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        fixed(self.0.finish().as_ref())
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

/// HMAC-SHA256 over the concatenation of `parts`.
#[must_use]
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    fixed(context.sign().as_ref())
}

/// Compares `tag` with the HMAC-SHA256 of `parts`, in constant time.
///
/// # Errors
/// [`CryptoError::Verify`] when they differ.
pub fn verify_hmac_sha256(key: &[u8], parts: &[&[u8]], tag: &[u8]) -> Result<(), CryptoError> {
    if constant_time_eq(&hmac_sha256(key, parts), tag) { Ok(()) } else { Err(CryptoError::Verify) }
}

/// Whether two byte strings are equal; the time depends on their lengths only.
#[must_use]
pub fn constant_time_eq(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}

/// The first `N` bytes of a digest whose length the algorithm fixes.
pub(crate) fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_match_published_vectors() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex::encode(sha256(b"abc")), abc);
        let mut parts = Sha256::new();
        parts.update(b"a");
        parts.update(b"bc");
        assert_eq!(hex::encode(parts.finish()), abc);
        // RFC 4231, test case 2.
        let tag = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex::encode(hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"])), tag);
    }

    #[test]
    fn a_wrong_or_short_tag_is_refused() {
        let mut tag = hmac_sha256(b"k", &[b"m"]);
        assert_eq!(verify_hmac_sha256(b"k", &[b"m"], &tag), Ok(()));
        assert_eq!(verify_hmac_sha256(b"k", &[b"m"], &tag[..31]), Err(CryptoError::Verify));
        assert_eq!(verify_hmac_sha256(b"k", &[b"m"], &[]), Err(CryptoError::Verify));
        tag[31] ^= 1;
        assert_eq!(verify_hmac_sha256(b"k", &[b"m"], &tag), Err(CryptoError::Verify));
    }
}
