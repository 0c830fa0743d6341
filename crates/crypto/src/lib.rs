//! The only crate that names ring and aws-lc-rs: digests, signatures, RSA keys, randomness, and the compatibility suites of the stock protocol.
//!
//! Modern primitives are at the root. What exists only because stock peers speak it (SHA-1, RSA-OAEP with SHA-1, PKCS#1 v1.5, AES-CBC, HMAC-SHA1)
//! is in [`compat`], so that a reader sees at a glance who still depends on it.
//!
//! ```
//! use talon_crypto::{Rng, RsaPrivateKey, SystemRng, compat, sha256};
//!
//! let key = RsaPrivateKey::generate()?;
//! let signature = key.sign_pkcs1_sha256(b"message")?;
//! key.public().verify_pkcs1_sha256(b"message", &signature)?;
//!
//! let sealed = key.public().oaep_sha1_encrypt(b"secret")?;
//! assert_eq!(*key.oaep_sha1_decrypt(&sealed)?, b"secret");
//!
//! let mut session = [0; 16];
//! SystemRng.fill(&mut session);
//! assert_eq!(compat::aes128_cbc::decrypt(&session, &[0; 16], &compat::aes128_cbc::encrypt(&session, &[0; 16], b"text")?)?, b"text");
//! assert_eq!(sha256(b"").len(), 32);
//! # Ok::<(), talon_crypto::CryptoError>(())
//! ```

mod aead;
pub mod compat;
mod der;
mod digest;
mod ed25519;
mod password;
mod rng;
mod rsa;

pub use aead::AeadKey;
pub use compat::{aes128_cbc, aes256_cbc, hmac_sha1, sha1, verify_hmac_sha1};
pub use digest::{Sha256, constant_time_eq, hmac_sha256, sha256, verify_hmac_sha256};
pub use ed25519::{Ed25519PrivateKey, Ed25519PublicKey};
pub use password::{MAX_PASSWORD, PasswordCost, PasswordHash};
pub use rng::{Rng, SystemRng, random_array};
pub use rsa::{RsaPrivateKey, RsaPublicKey};
pub use zeroize::{Zeroize, Zeroizing};

/// Why a cryptographic operation was refused. Says nothing about the secret or about which check failed inside a decryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// The bytes are no key of the expected kind, or a key outside the accepted sizes (RSA: 2048 to 8192 bits, public exponent 65537 or above).
    #[error("this is not an acceptable key")]
    Key,
    /// The PEM text is damaged or holds another kind of block.
    #[error("this is not the expected PEM block")]
    Pem,
    /// The ciphertext cannot be opened with this key, or its length or padding is wrong.
    #[error("decryption failed")]
    Decrypt,
    /// A signature or an authentication code does not match.
    #[error("verification failed")]
    Verify,
    /// The message does not fit the primitive.
    #[error("the message does not fit")]
    Length,
    /// The library failed, which means that memory or randomness ran out.
    #[error("the cryptographic library failed")]
    Library,
}
