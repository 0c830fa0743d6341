//! The compatibility suites: primitives that exist here only because stock peers and their files use them. Nothing new may be built on this module.
//!
//! The MAC of an envelope is checked before anything is decrypted, so the padding check below is no oracle.

use aws_lc_rs::cipher::{
    AES_128, AES_256, Algorithm, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::OAEP_SHA1_MGF1SHA1;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use ring::digest;
use zeroize::{Zeroize, Zeroizing};

use crate::digest::fixed;
use crate::{CryptoError, RsaPrivateKey, RsaPublicKey, constant_time_eq};

/// The block length of AES in bytes.
const BLOCK: usize = 16;

/// SHA-1 of `data`.
#[must_use]
pub fn sha1(data: &[u8]) -> [u8; 20] {
    fixed(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, data).as_ref())
}

/// HMAC-SHA1 over the concatenation of `parts`.
#[must_use]
pub fn hmac_sha1(key: &[u8], parts: &[&[u8]]) -> [u8; 20] {
    HmacSha1Key::new(key).sign(parts)
}

/// Compares `tag` with the HMAC-SHA1 of `parts`, in constant time; all 20 bytes count.
///
/// # Errors
/// [`CryptoError::Verify`] when they differ.
pub fn verify_hmac_sha1(key: &[u8], parts: &[&[u8]], tag: &[u8]) -> Result<(), CryptoError> {
    HmacSha1Key::new(key).verify(parts, tag)
}

/// A prepared HMAC-SHA1 key: a session signs and verifies many packets with it. By aws-lc-rs, whose SHA-1 uses the processor's instructions; ring's is
/// several times slower, which doubled the cost of opening a packet.
#[derive(Clone)]
pub struct HmacSha1Key(hmac::Key);

impl HmacSha1Key {
    /// Prepares `key`, of any length.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key))
    }

    /// The tag over the concatenation of `parts`.
    #[must_use]
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; 20] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(part);
        }
        fixed(context.sign().as_ref())
    }

    /// Compares `tag` with the tag over `parts`, in constant time; all 20 bytes count.
    ///
    /// # Errors
    /// [`CryptoError::Verify`] when they differ.
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8]) -> Result<(), CryptoError> {
        if constant_time_eq(&self.sign(parts), tag) { Ok(()) } else { Err(CryptoError::Verify) }
    }
}

/// A prepared AES-CBC key with PKCS#7 padding. The caller supplies the initialization vector, since the stock format stores it apart; it must be fresh
/// and unpredictable for each message.
pub struct CbcKey {
    sealer: PaddedBlockEncryptingKey,
    opener: PaddedBlockDecryptingKey,
}

impl CbcKey {
    /// An AES-128 key.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn aes128(key: &[u8; 16]) -> Result<Self, CryptoError> {
        Self::new(&AES_128, key)
    }

    /// An AES-256 key.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn aes256(key: &[u8; 32]) -> Result<Self, CryptoError> {
        Self::new(&AES_256, key)
    }

    fn new(algorithm: &'static Algorithm, key: &[u8]) -> Result<Self, CryptoError> {
        let sealer = UnboundCipherKey::new(algorithm, key).and_then(PaddedBlockEncryptingKey::cbc_pkcs7);
        let opener = UnboundCipherKey::new(algorithm, key).and_then(PaddedBlockDecryptingKey::cbc_pkcs7);
        Ok(Self { sealer: sealer.map_err(|_| CryptoError::Library)?, opener: opener.map_err(|_| CryptoError::Library)? })
    }

    /// Pads and encrypts `buffer` where it is.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn encrypt_in_place(&self, iv: &[u8; 16], buffer: &mut Vec<u8>) -> Result<(), CryptoError> {
        let context = EncryptionContext::Iv128(iv.into());
        self.sealer.less_safe_encrypt(buffer, context).map(drop).map_err(|_| CryptoError::Library)
    }

    /// Decrypts `buffer` where it is and cuts the padding off.
    ///
    /// # Errors
    /// [`CryptoError::Decrypt`] when the length is no positive multiple of the block length or the padding is not as it must be.
    pub fn decrypt_in_place(&self, iv: &[u8; 16], buffer: &mut Vec<u8>) -> Result<(), CryptoError> {
        if buffer.is_empty() || !buffer.len().is_multiple_of(BLOCK) {
            return Err(CryptoError::Decrypt);
        }
        let context = DecryptionContext::Iv128(iv.into());
        let plain = self.opener.decrypt(buffer, context).map(|plain| plain.len());
        match plain {
            Ok(length) => buffer.truncate(length),
            Err(_) => {
                buffer.zeroize();
                return Err(CryptoError::Decrypt);
            }
        }
        Ok(())
    }
}

macro_rules! one_shot_cbc {
    ($module:ident, $title:literal, $length:literal, $prepare:ident) => {
        #[doc = concat!($title, " in CBC mode with PKCS#7 padding, for single messages.")]
        pub mod $module {
            use super::{CbcKey, CryptoError};

            /// Pads and encrypts `plain`.
            ///
            /// # Errors
            /// [`CryptoError::Library`].
            pub fn encrypt(key: &[u8; $length], iv: &[u8; 16], plain: &[u8]) -> Result<Vec<u8>, CryptoError> {
                let mut buffer = Vec::with_capacity(plain.len().saturating_add(super::BLOCK));
                buffer.extend_from_slice(plain);
                CbcKey::$prepare(key)?.encrypt_in_place(iv, &mut buffer)?;
                Ok(buffer)
            }

            /// Decrypts `sealed` and cuts the padding off.
            ///
            /// # Errors
            /// [`CryptoError::Decrypt`] when the length is no positive multiple of the block length or the padding is not as it must be.
            pub fn decrypt(key: &[u8; $length], iv: &[u8; 16], sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
                let mut buffer = sealed.to_vec();
                CbcKey::$prepare(key)?.decrypt_in_place(iv, &mut buffer)?;
                Ok(buffer)
            }
        }
    };
}

one_shot_cbc!(aes128_cbc, "AES-128", 16, aes128);
one_shot_cbc!(aes256_cbc, "AES-256", 32, aes256);

impl RsaPrivateKey {
    /// The RSASSA-PKCS1-v1_5 signature with SHA-256 of `message`.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn sign_pkcs1_sha256(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut signature = vec![0; self.signer().public_modulus_len()];
        self.signer().sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).map_err(|_| CryptoError::Library)?;
        Ok(signature)
    }

    /// Opens an RSA-OAEP ciphertext (SHA-1, MGF1 with SHA-1, empty label).
    ///
    /// # Errors
    /// [`CryptoError::Decrypt`], whatever the cause.
    pub fn oaep_sha1_decrypt(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let opener = self.opener();
        if sealed.len() != opener.key_size_bytes() {
            return Err(CryptoError::Decrypt);
        }
        let mut buffer = Zeroizing::new(vec![0; opener.min_output_size()]);
        let length =
            opener.decrypt(&OAEP_SHA1_MGF1SHA1, sealed, &mut buffer, None).map(|plain| plain.len()).map_err(|_| CryptoError::Decrypt)?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

impl RsaPublicKey {
    /// Checks an RSASSA-PKCS1-v1_5 signature with SHA-256.
    ///
    /// # Errors
    /// [`CryptoError::Verify`] when `signature` was not made by this key over `message`.
    pub fn verify_pkcs1_sha256(&self, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        self.verifier().verify_sig(message, signature).map_err(|_| CryptoError::Verify)
    }

    /// Seals a short secret to this key with RSA-OAEP (SHA-1, MGF1 with SHA-1, empty label).
    ///
    /// # Errors
    /// [`CryptoError::Length`] when `plain` is longer than the modulus minus 42 bytes.
    pub fn oaep_sha1_encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let sealer = self.sealer();
        let mut sealed = vec![0; sealer.ciphertext_size()];
        let length =
            sealer.encrypt(&OAEP_SHA1_MGF1SHA1, plain, &mut sealed, None).map(|sealed| sealed.len()).map_err(|_| CryptoError::Length)?;
        sealed.truncate(length);
        Ok(sealed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counting(from: u8) -> [u8; 16] {
        std::array::from_fn(|at| from + u8::try_from(at).unwrap())
    }

    #[test]
    fn cbc_matches_the_stock_vector() {
        let sealed = aes128_cbc::encrypt(&counting(0), &counting(0x10), b"0123456789abcdef").unwrap();
        assert_eq!(hex::encode(&sealed), "eb9e5ba41b902db8252982aa1a23f4be50c761ee882c090360eb92688653635f");
        assert_eq!(aes128_cbc::decrypt(&counting(0), &counting(0x10), &sealed).unwrap(), b"0123456789abcdef");
    }

    #[test]
    fn the_envelope_mac_matches_the_stock_vector() {
        let parts: [&[u8]; 5] = [&[b'E'; 32], &[b'C'; 256], &[b'M'; 48], &counting(0x10), &4_u32.to_le_bytes()];
        let tag = hmac_sha1(&counting(0), &parts);
        assert_eq!(hex::encode(tag), "b928b34248d8cf5ab49d576a7afaebccc507c75a");
        assert_eq!(verify_hmac_sha1(&counting(0), &parts, &tag), Ok(()));
        assert_eq!(verify_hmac_sha1(&counting(0), &parts, &tag[..19]), Err(CryptoError::Verify));
        assert_eq!(verify_hmac_sha1(&counting(1), &parts, &tag), Err(CryptoError::Verify));
        assert_eq!(hex::encode(sha1(b"abc")), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }

    #[test]
    fn name_obfuscation_keys_match_the_stock_vector() {
        let key = crate::sha256(b"nonce");
        let iv: [u8; 16] = *key.first_chunk().unwrap();
        let sealed = aes256_cbc::encrypt(&key, &iv, b"Generic.Client.Info/BasicInformation").unwrap();
        assert_eq!(
            hex::encode(&sealed),
            "3d090a3f9307255cdca7bcc0dac1cffe3487b87ea5fe19b1d968891ed0d5c7e18a439bf14b2cb238f4870a8f3cb71bee"
        );
    }

    #[test]
    fn wrong_lengths_and_paddings_are_refused_before_use() {
        for length in [0, 1, 15, 17, 31] {
            assert_eq!(aes128_cbc::decrypt(&counting(0), &counting(0), &vec![0; length]), Err(CryptoError::Decrypt), "{length}");
        }
        // A block whose last plain byte is 0, 17 or 255, or whose padding bytes differ: made by encrypting it as a whole block.
        for tail in [[1, 0], [17, 17], [255, 255], [2, 3], [1, 2]] {
            let mut block = [9; 16];
            block[14..].copy_from_slice(&tail);
            let sealed = aes128_cbc::encrypt(&counting(0), &counting(0), &block).unwrap();
            let opened = aes128_cbc::decrypt(&counting(0), &counting(0), &sealed[..16]);
            assert_eq!(opened, Err(CryptoError::Decrypt), "{tail:?}");
        }
    }

    #[test]
    fn signatures_bind_key_and_message() {
        let (key, other) = (RsaPrivateKey::generate().unwrap(), RsaPrivateKey::generate().unwrap());
        let mut signature = key.sign_pkcs1_sha256(b"message").unwrap();
        assert_eq!(key.public().verify_pkcs1_sha256(b"message", &signature), Ok(()));
        assert_eq!(other.public().verify_pkcs1_sha256(b"message", &signature), Err(CryptoError::Verify));
        assert_eq!(key.public().verify_pkcs1_sha256(b"massage", &signature), Err(CryptoError::Verify));
        assert_eq!(key.public().verify_pkcs1_sha256(b"message", &[]), Err(CryptoError::Verify));
        signature[0] ^= 1;
        assert_eq!(key.public().verify_pkcs1_sha256(b"message", &signature), Err(CryptoError::Verify));
    }

    #[test]
    fn oaep_opens_only_its_own() {
        let (key, other) = (RsaPrivateKey::generate().unwrap(), RsaPrivateKey::generate().unwrap());
        let sealed = key.public().oaep_sha1_encrypt(&[3; 214]).unwrap();
        assert_eq!(*key.oaep_sha1_decrypt(&sealed).unwrap(), [3; 214]);
        assert_eq!(key.public().oaep_sha1_encrypt(&[3; 215]), Err(CryptoError::Length));
        assert!(other.oaep_sha1_decrypt(&sealed).is_err());
        for junk in [&[][..], &[0; 255], &[0; 256], &[0xff; 256], &[0; 257]] {
            assert!(key.oaep_sha1_decrypt(junk).is_err());
        }
    }

    proptest! {
        #[test]
        fn cbc_round_trips(key: [u8; 16], iv: [u8; 16], plain: Vec<u8>) {
            let sealed = aes128_cbc::encrypt(&key, &iv, &plain).unwrap();
            prop_assert_eq!(sealed.len(), plain.len() / 16 * 16 + 16);
            prop_assert_eq!(aes128_cbc::decrypt(&key, &iv, &sealed).unwrap(), plain);
        }

        #[test]
        fn junk_never_panics(key: [u8; 32], iv: [u8; 16], junk: Vec<u8>) {
            let _ = aes256_cbc::decrypt(&key, &iv, &junk);
            let _ = RsaPublicKey::from_pkcs1_der(&junk);
            let _ = RsaPrivateKey::from_pkcs8_der(&junk);
            let _ = RsaPrivateKey::from_pem(&String::from_utf8_lossy(&junk));
        }
    }
}
