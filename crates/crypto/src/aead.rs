//! Authenticated encryption of data at rest: AES-256-GCM with a fresh random nonce in front of each ciphertext.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::{CryptoError, Rng, random_array};

/// A symmetric key. One key may seal up to 2³² messages, the bound that random 96-bit nonces allow.
pub struct AeadKey(LessSafeKey);

impl AeadKey {
    /// The key with these bytes.
    ///
    /// # Errors
    /// [`CryptoError::Library`] when the library refuses the key.
    pub fn new(bytes: &[u8; 32]) -> Result<Self, CryptoError> {
        UnboundKey::new(&AES_256_GCM, bytes).map(|key| Self(LessSafeKey::new(key))).map_err(|_| CryptoError::Library)
    }

    /// Encrypts `plain`; `context` is authenticated, not stored.
    ///
    /// # Errors
    /// [`CryptoError::Length`] when `plain` is too long for the algorithm.
    pub fn seal(&self, rng: &dyn Rng, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let nonce: [u8; NONCE_LEN] = random_array(rng);
        let mut out = Vec::with_capacity(NONCE_LEN.saturating_add(plain.len()).saturating_add(AES_256_GCM.tag_len()));
        out.extend_from_slice(&nonce);
        let mut body = plain.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut body)
            .map_err(|_| CryptoError::Length)?;
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// Decrypts what [`AeadKey::seal`] made with the same `context`.
    ///
    /// # Errors
    /// [`CryptoError::Decrypt`] when anything was changed or another key or context is meant.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(CryptoError::Decrypt)?;
        let mut body = body.to_vec();
        let length = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), &mut body)
            .map_err(|_| CryptoError::Decrypt)?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemRng;

    #[test]
    fn what_was_sealed_opens_only_unchanged_and_in_its_context() {
        let key = AeadKey::new(&[7; 32]).unwrap();
        let sealed = key.seal(&SystemRng, b"context", b"plain").unwrap();
        assert_eq!(key.open(b"context", &sealed).unwrap(), b"plain");
        assert_eq!(key.open(b"other", &sealed), Err(CryptoError::Decrypt));
        assert_eq!(AeadKey::new(&[8; 32]).unwrap().open(b"context", &sealed), Err(CryptoError::Decrypt));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key.open(b"context", &changed), Err(CryptoError::Decrypt), "byte {at}");
            assert_eq!(key.open(b"context", &sealed[..at]), Err(CryptoError::Decrypt), "cut at {at}");
        }
    }
}
