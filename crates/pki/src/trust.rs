//! Verification: which authorities are trusted, and what a certificate signed by them proves.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use talon_crypto::RsaPublicKey;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::{Certificate, PkiError};

/// The use that a certificate is verified for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Extended key usage serverAuth: `/server.pem`, TLS servers.
    Server,
    /// Extended key usage clientAuth: callers of the API, mutual TLS.
    Client,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }

    fn usage(self) -> KeyUsage {
        match self {
            Self::Server => KeyUsage::server_auth(),
            Self::Client => KeyUsage::client_auth(),
        }
    }
}

/// The authorities that are trusted: every certificate of a PEM text. More than one is how an authority is replaced.
#[derive(Clone)]
pub struct TrustBundle {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl TrustBundle {
    /// All `CERTIFICATE` blocks of a PEM text.
    ///
    /// # Errors
    /// [`PkiError::NoPemBlock`] when there is none, [`PkiError::Malformed`] when one of them cannot be parsed.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PkiError> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|_| PkiError::Malformed("the PEM text of the trusted certificates"))?;
        if certificates.is_empty() {
            return Err(PkiError::NoPemBlock("CERTIFICATE"));
        }
        Self::from_certificates(certificates)
    }

    pub(crate) fn of(certificate: &Certificate) -> Result<Self, PkiError> {
        Self::from_certificates(vec![certificate.der().clone()])
    }

    fn from_certificates(certificates: Vec<CertificateDer<'static>>) -> Result<Self, PkiError> {
        let anchor = |certificate: &CertificateDer<'static>| anchor_from_trusted_cert(certificate).map(|anchor| anchor.to_owned());
        let anchors =
            certificates.iter().map(anchor).collect::<Result<_, _>>().map_err(|_| PkiError::Malformed("a trusted certificate"))?;
        Ok(Self { certificates, anchors })
    }

    /// This bundle and `other` together.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        self.certificates.extend(other.certificates.iter().cloned());
        self.anchors.extend(other.anchors.iter().cloned());
        self
    }

    /// The certificates of the authorities.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The authorities as TLS libraries want them: `rustls::RootCertStore::from_iter(bundle.trust_anchors())`.
    #[must_use]
    pub fn trust_anchors(&self) -> Vec<TrustAnchor<'static>> {
        self.anchors.clone()
    }

    /// Verifies that one of the authorities signed `leaf` itself (there are no intermediates), that it is an end-entity certificate for
    /// `purpose`, and that `now` is inside of its validity. The name is not looked at: see [`VerifiedCertificate::require_name`].
    ///
    /// # Errors
    /// [`PkiError::Malformed`], [`PkiError::Untrusted`], [`PkiError::Expired`], [`PkiError::NotYetValid`] or [`PkiError::WrongPurpose`].
    pub fn verify(&self, leaf: &CertificateDer<'_>, purpose: Purpose, now: UnixTime) -> Result<VerifiedCertificate, PkiError> {
        let certificate = Certificate::from_der(leaf.clone())?;
        let entity = EndEntityCert::try_from(certificate.der()).map_err(|_| PkiError::Malformed("the certificate"))?;
        let verdict = entity.verify_for_usage(ALL_VERIFICATION_ALGS, &self.anchors, &[], now, purpose.usage(), None, None);
        match verdict {
            Ok(_) => Ok(VerifiedCertificate(certificate.clone())),
            Err(error) => Err(refusal(&certificate, purpose, &error)),
        }
    }
}

impl std::fmt::Debug for TrustBundle {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("TrustBundle").field("authorities", &self.certificates.len()).finish()
    }
}

fn refusal(certificate: &Certificate, purpose: Purpose, error: &webpki::Error) -> PkiError {
    use webpki::Error;
    let subject = certificate.subject_name().to_owned();
    match error {
        Error::CertExpired { .. } => PkiError::Expired { subject, not_after: certificate.not_after().as_secs() },
        Error::CertNotValidYet { .. } => PkiError::NotYetValid { subject, not_before: certificate.not_before().as_secs() },
        Error::CaUsedAsEndEntity | Error::RequiredEkuNotFoundContext(_) => PkiError::WrongPurpose { subject, usage: purpose.name() },
        _ => PkiError::Untrusted { subject },
    }
}

/// A certificate that a trusted authority vouches for, for one purpose, at the time of verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCertificate(Certificate);

impl VerifiedCertificate {
    /// The subject name: the principal of an API caller, the pinned name of a server.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.subject_name()
    }

    /// The same certificate, if its name is `expected`, byte by byte.
    ///
    /// # Errors
    /// [`PkiError::WrongName`].
    pub fn require_name(self, expected: &str) -> Result<Self, PkiError> {
        if self.name() == expected {
            Ok(self)
        } else {
            Err(PkiError::WrongName { found: self.name().to_owned(), expected: expected.to_owned() })
        }
    }

    /// The RSA key that it certifies.
    ///
    /// # Errors
    /// [`PkiError::NotRsa`] or [`PkiError::KeySize`].
    pub fn public_key(&self) -> Result<RsaPublicKey, PkiError> {
        self.0.claimed_key()
    }

    /// The certificate itself.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.0
    }
}

/// Verifies the body of `/server.pem`: its first certificate must be signed by one of `authorities`, be valid `now` for a server, certify an RSA key
/// and carry `pinned_name`. Nothing else in the body is looked at; no other authority is trusted.
///
/// # Errors
/// Whatever [`Certificate::from_pem`], [`TrustBundle::verify`], [`VerifiedCertificate::public_key`] and [`VerifiedCertificate::require_name`] refuse.
pub fn verify_server_pem(pem: &[u8], authorities: &TrustBundle, pinned_name: &str, now: UnixTime) -> Result<VerifiedCertificate, PkiError> {
    let shown = Certificate::from_pem(pem)?;
    shown.claimed_key()?;
    authorities.verify(shown.der(), Purpose::Server, now)?.require_name(pinned_name)
}
