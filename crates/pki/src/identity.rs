//! A certificate with its private key.

use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer};
use talon_crypto::{RsaPrivateKey, Zeroizing};

use crate::{Certificate, PkiError};

/// A certificate and the private key that belongs to it.
pub struct Identity {
    certificate: Certificate,
    key: RsaPrivateKey,
}

impl Identity {
    /// The first certificate of `certificate_pem` with the RSA key of `key_pem`.
    ///
    /// # Errors
    /// When one of them cannot be parsed, or with [`PkiError::KeyMismatch`].
    pub fn from_pem(certificate_pem: &[u8], key_pem: &str) -> Result<Self, PkiError> {
        let certificate = Certificate::from_pem(certificate_pem)?;
        let key = RsaPrivateKey::from_pem(key_pem).map_err(|_| PkiError::Malformed("the private key"))?;
        Self::from_parts(certificate, key)
    }

    pub(crate) fn from_parts(certificate: Certificate, key: RsaPrivateKey) -> Result<Self, PkiError> {
        if certificate.claimed_key()?.to_pkcs1_der() == key.public().to_pkcs1_der() {
            Ok(Self { certificate, key })
        } else {
            Err(PkiError::KeyMismatch { subject: certificate.subject_name().to_owned() })
        }
    }

    /// The certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> &RsaPrivateKey {
        &self.key
    }

    /// The private key as PKCS#1 PEM, the form of every key in a configuration file.
    ///
    /// # Errors
    /// [`PkiError::Crypto`].
    pub fn private_key_pem(&self) -> Result<Zeroizing<String>, PkiError> {
        Ok(self.key.to_pkcs1_pem()?)
    }

    /// What a TLS peer sends: the certificate alone, without the authority's.
    #[must_use]
    pub fn certificate_chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.der().clone()]
    }

    /// The private key for a TLS library.
    ///
    /// # Errors
    /// [`PkiError::Crypto`].
    pub fn private_key_der(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        Ok(PrivatePkcs1KeyDer::from(self.key.to_pkcs1_der()?.to_vec()).into())
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}
