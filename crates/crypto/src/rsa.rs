//! RSA keys and their encodings. What is done with them is legacy and lives in [`crate::compat`].

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey, PublicKey,
};
use aws_lc_rs::signature::{KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use zeroize::Zeroizing;

use crate::{CryptoError, der};

/// PEM labels of keys.
const PKCS1_PRIVATE: &str = "RSA PRIVATE KEY";
const PKCS8_PRIVATE: &str = "PRIVATE KEY";
const PKCS1_PUBLIC: &str = "RSA PUBLIC KEY";
const SPKI_PUBLIC: &str = "PUBLIC KEY";

/// An encoded key of 8192 bits is below 8 KiB as PEM; anything above this is not a key.
const MAX_PEM: usize = 64 * 1024;

/// A private RSA key of 2048 to 8192 bits. Cheap to clone; the library wipes the key when the last clone goes.
#[derive(Clone)]
pub struct RsaPrivateKey(Arc<Private>);

struct Private {
    pub(crate) signer: KeyPair,
    pub(crate) opener: OaepPrivateDecryptingKey,
    public: RsaPublicKey,
}

impl RsaPrivateKey {
    /// A new key of 2048 bits, the size that every stock peer makes and expects.
    ///
    /// # Errors
    /// [`CryptoError::Library`] when the library has no randomness.
    pub fn generate() -> Result<Self, CryptoError> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| CryptoError::Library)?;
        Self::from_pair(pair)
    }

    /// A key from a PEM block `RSA PRIVATE KEY` (PKCS#1).
    ///
    /// # Errors
    /// [`CryptoError::Pem`] or [`CryptoError::Key`].
    pub fn from_pkcs1_pem(text: &str) -> Result<Self, CryptoError> {
        Self::from_pkcs1_der(&pem_block(text, PKCS1_PRIVATE)?)
    }

    /// A key from the first PEM block, PKCS#1 or PKCS#8.
    ///
    /// # Errors
    /// [`CryptoError::Pem`] or [`CryptoError::Key`].
    pub fn from_pem(text: &str) -> Result<Self, CryptoError> {
        match pem_block(text, PKCS1_PRIVATE) {
            Ok(der) => Self::from_pkcs1_der(&der),
            Err(_) => Self::from_pkcs8_der(&pem_block(text, PKCS8_PRIVATE)?),
        }
    }

    /// A key from PKCS#1 DER.
    ///
    /// # Errors
    /// [`CryptoError::Key`].
    pub fn from_pkcs1_der(der: &[u8]) -> Result<Self, CryptoError> {
        Self::from_pair(KeyPair::from_der(der).map_err(|_| CryptoError::Key)?)
    }

    /// A key from PKCS#8 DER.
    ///
    /// # Errors
    /// [`CryptoError::Key`].
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, CryptoError> {
        Self::from_pair(KeyPair::from_pkcs8(der).map_err(|_| CryptoError::Key)?)
    }

    fn from_pair(signer: KeyPair) -> Result<Self, CryptoError> {
        let encoded: Pkcs8V1Der<'_> = signer.as_der().map_err(|_| CryptoError::Key)?;
        let opener = PrivateDecryptingKey::from_pkcs8(encoded.as_ref()).map_err(|_| CryptoError::Key)?;
        let opener = OaepPrivateDecryptingKey::new(opener).map_err(|_| CryptoError::Key)?;
        let public = RsaPublicKey::from_library(signer.public_key())?;
        Ok(Self(Arc::new(Private { signer, opener, public })))
    }

    /// PKCS#8 DER.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn to_pkcs8_der(&self) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let encoded: Pkcs8V1Der<'_> = self.0.signer.as_der().map_err(|_| CryptoError::Library)?;
        Ok(Zeroizing::new(encoded.as_ref().to_vec()))
    }

    /// PKCS#1 DER.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn to_pkcs1_der(&self) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let envelope = self.to_pkcs8_der()?;
        der::pkcs1_of_pkcs8(&envelope).map(|key| Zeroizing::new(key.to_vec())).ok_or(CryptoError::Library)
    }

    /// A PEM block `RSA PRIVATE KEY`, the form in stock configurations and writeback files.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn to_pkcs1_pem(&self) -> Result<Zeroizing<String>, CryptoError> {
        Ok(Zeroizing::new(pem_text(PKCS1_PRIVATE, &self.to_pkcs1_der()?)))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &RsaPublicKey {
        &self.0.public
    }

    pub(crate) fn signer(&self) -> &KeyPair {
        &self.0.signer
    }

    pub(crate) fn opener(&self) -> &OaepPrivateDecryptingKey {
        &self.0.opener
    }
}

/// A public RSA key of 2048 to 8192 bits with a public exponent of at least 65537. Cheap to clone.
#[derive(Clone)]
pub struct RsaPublicKey(Arc<Public>);

struct Public {
    key: PublicKey,
    verifier: ParsedPublicKey,
    sealer: OaepPublicEncryptingKey,
    bits: usize,
}

impl RsaPublicKey {
    /// A key from a PEM block `RSA PUBLIC KEY` (PKCS#1), the form in which stock servers store agents' keys.
    ///
    /// # Errors
    /// [`CryptoError::Pem`] or [`CryptoError::Key`].
    pub fn from_pkcs1_pem(text: &str) -> Result<Self, CryptoError> {
        Self::from_pkcs1_der(&pem_block(text, PKCS1_PUBLIC)?)
    }

    /// A key from PKCS#1 DER.
    ///
    /// # Errors
    /// [`CryptoError::Key`].
    pub fn from_pkcs1_der(der: &[u8]) -> Result<Self, CryptoError> {
        Self::from_library(&PublicKey::from_der(der).map_err(|_| CryptoError::Key)?)
    }

    /// A key from a SubjectPublicKeyInfo, as certificates and certificate requests carry it.
    ///
    /// # Errors
    /// [`CryptoError::Key`].
    pub fn from_spki_der(der: &[u8]) -> Result<Self, CryptoError> {
        Self::from_pkcs1_der(der)
    }

    /// A key from the first PEM block, PKCS#1 or SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`CryptoError::Pem`] or [`CryptoError::Key`].
    pub fn from_pem(text: &str) -> Result<Self, CryptoError> {
        Self::from_pkcs1_der(&pem_block(text, PKCS1_PUBLIC).or_else(|_| pem_block(text, SPKI_PUBLIC))?)
    }

    /// The exponent is bounded from below because the client id does not cover it: with exponent 1 anybody could sign for a known modulus.
    fn from_library(key: &PublicKey) -> Result<Self, CryptoError> {
        let exponent = key.exponent();
        let exponent = exponent.big_endian_without_leading_zero();
        if exponent.len() > 8 || exponent.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)) < 65537 {
            return Err(CryptoError::Key);
        }
        let spki: PublicKeyX509Der<'_> = key.as_der().map_err(|_| CryptoError::Key)?;
        let sealer = PublicEncryptingKey::from_der(spki.as_ref()).map_err(|_| CryptoError::Key)?;
        let bits = sealer.key_size_bits();
        let sealer = OaepPublicEncryptingKey::new(sealer).map_err(|_| CryptoError::Key)?;
        let verifier = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.as_ref()).map_err(|_| CryptoError::Key)?;
        Ok(Self(Arc::new(Public { key: key.clone(), verifier, sealer, bits })))
    }

    /// PKCS#1 DER.
    #[must_use]
    pub fn to_pkcs1_der(&self) -> Vec<u8> {
        self.0.key.as_ref().to_vec()
    }

    /// A PEM block `RSA PUBLIC KEY`.
    #[must_use]
    pub fn to_pkcs1_pem(&self) -> String {
        pem_text(PKCS1_PUBLIC, self.0.key.as_ref())
    }

    /// SubjectPublicKeyInfo DER.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn to_spki_der(&self) -> Result<Vec<u8>, CryptoError> {
        let spki: PublicKeyX509Der<'_> = self.0.key.as_der().map_err(|_| CryptoError::Library)?;
        Ok(spki.as_ref().to_vec())
    }

    /// The modulus, big-endian, without leading zeros.
    #[must_use]
    pub fn modulus(&self) -> Vec<u8> {
        self.0.key.modulus().big_endian_without_leading_zero().to_vec()
    }

    /// The size of the modulus in bits.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.0.bits
    }

    pub(crate) fn verifier(&self) -> &ParsedPublicKey {
        &self.0.verifier
    }

    pub(crate) fn sealer(&self) -> &OaepPublicEncryptingKey {
        &self.0.sealer
    }
}

impl PartialEq for RsaPublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key.as_ref() == other.0.key.as_ref()
    }
}

impl Eq for RsaPublicKey {}

impl std::fmt::Debug for RsaPublicKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "RsaPublicKey({} bits)", self.0.bits)
    }
}

fn pem_block(text: &str, label: &str) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    if text.len() > MAX_PEM {
        return Err(CryptoError::Pem);
    }
    let block = pem::parse(text).map_err(|_| CryptoError::Pem)?;
    if block.tag() == label { Ok(Zeroizing::new(block.into_contents())) } else { Err(CryptoError::Pem) }
}

fn pem_text(label: &str, der: &[u8]) -> String {
    pem::encode_config(&pem::Pem::new(label, der), pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_every_encoding() {
        let key = RsaPrivateKey::generate().unwrap();
        assert_eq!(key.public().bits(), 2048);
        assert_eq!(key.public().modulus().len(), 256);
        let text = key.to_pkcs1_pem().unwrap();
        assert!(text.starts_with("-----BEGIN RSA PRIVATE KEY-----\n"));
        for again in [
            RsaPrivateKey::from_pkcs1_pem(&text).unwrap(),
            RsaPrivateKey::from_pem(&text).unwrap(),
            RsaPrivateKey::from_pkcs8_der(&key.to_pkcs8_der().unwrap()).unwrap(),
            RsaPrivateKey::from_pem(&pem_text(PKCS8_PRIVATE, &key.to_pkcs8_der().unwrap())).unwrap(),
        ] {
            assert_eq!(again.public(), key.public());
            assert_eq!(*again.to_pkcs1_der().unwrap(), *key.to_pkcs1_der().unwrap());
        }
        let public = key.public();
        assert_eq!(RsaPublicKey::from_pkcs1_pem(&public.to_pkcs1_pem()).unwrap(), *public);
        assert_eq!(RsaPublicKey::from_pkcs1_der(&public.to_pkcs1_der()).unwrap(), *public);
        assert_eq!(RsaPublicKey::from_spki_der(&public.to_spki_der().unwrap()).unwrap(), *public);
    }

    #[test]
    fn other_text_is_no_key() {
        let key = RsaPrivateKey::generate().unwrap();
        assert!(matches!(RsaPrivateKey::from_pem(""), Err(CryptoError::Pem)));
        assert!(matches!(RsaPrivateKey::from_pem(&key.public().to_pkcs1_pem()), Err(CryptoError::Pem)));
        assert!(matches!(RsaPrivateKey::from_pem(&pem_text(PKCS1_PRIVATE, b"no der")), Err(CryptoError::Key)));
        assert_eq!(RsaPublicKey::from_pkcs1_pem(&key.to_pkcs1_pem().unwrap()), Err(CryptoError::Pem));
    }

    #[test]
    fn small_keys_and_exponents_are_refused() {
        // 2048-bit odd modulus, exponent 3 and 1; 1024-bit modulus, exponent 65537.
        for (bytes, exponent) in [(256, &[3_u8][..]), (256, &[1][..]), (128, &[1, 0, 1][..])] {
            let mut modulus = vec![0xc5; bytes];
            modulus.insert(0, 0);
            let mut body = vec![0x02, 0x82];
            body.extend((modulus.len() as u16).to_be_bytes());
            body.extend(&modulus);
            body.extend([0x02, exponent.len() as u8]);
            body.extend(exponent);
            let mut der = vec![0x30, 0x82];
            der.extend((body.len() as u16).to_be_bytes());
            der.extend(body);
            assert_eq!(RsaPublicKey::from_pkcs1_der(&der), Err(CryptoError::Key), "{bytes} bytes, exponent {exponent:?}");
        }
    }
}
