//! Ed25519 keys, which sign the audit log's checkpoints.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use crate::digest::fixed;
use crate::{CryptoError, Rng};

/// A private Ed25519 key, kept as its 32-byte seed.
pub struct Ed25519PrivateKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

impl Ed25519PrivateKey {
    /// A new key.
    ///
    /// # Errors
    /// [`CryptoError::Library`] when the library cannot derive the key.
    pub fn generate(rng: &dyn Rng) -> Result<Self, CryptoError> {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill(&mut *seed);
        Self::from_seed(&seed)
    }

    /// The key that `seed` determines.
    ///
    /// # Errors
    /// [`CryptoError::Library`] when the library cannot derive the key.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, CryptoError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| CryptoError::Library)?;
        Ok(Self { seed: Zeroizing::new(*seed), pair })
    }

    /// The seed, for storing the key.
    #[must_use]
    pub fn seed(&self) -> &Zeroizing<[u8; 32]> {
        &self.seed
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> Ed25519PublicKey {
        Ed25519PublicKey(fixed(self.pair.public_key().as_ref()))
    }

    /// The signature of `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        fixed(self.pair.sign(message).as_ref())
    }
}

/// A public Ed25519 key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ed25519PublicKey([u8; 32]);

impl Ed25519PublicKey {
    /// The key with this encoding. A point that is not on the curve verifies nothing.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The encoded point.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Checks a signature.
    ///
    /// # Errors
    /// [`CryptoError::Verify`] when `signature` was not made by this key over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).map_err(|_| CryptoError::Verify)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 2.
    #[test]
    fn signatures_match_the_standard() {
        let seed: [u8; 32] = hex::decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").unwrap().try_into().unwrap();
        let key = Ed25519PrivateKey::from_seed(&seed).unwrap();
        assert_eq!(hex::encode(key.public().as_bytes()), "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let signature = key.sign(&[0x72]);
        assert_eq!(
            hex::encode(signature),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
        assert_eq!(key.public().verify(&[0x72], &signature), Ok(()));
        assert_eq!(key.public().verify(&[0x73], &signature), Err(CryptoError::Verify));
    }
}
