//! Why a key, a certificate or a request was refused.

/// Why a key, a certificate or a request was refused. The texts name no secret; those about peers say what the peer showed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The text has no PEM block of the kind that was asked for.
    #[error("no {0} block in the PEM text")]
    NoPemBlock(&'static str),
    /// A PEM block or its DER content cannot be parsed.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// A key that is not RSA.
    #[error("Not RSA algorithm")]
    NotRsa,
    /// An RSA key outside of the accepted sizes.
    #[error("an RSA key of {bits} bits is refused: it must have {} to {} bits", crate::MIN_KEY_BITS, crate::MAX_KEY_BITS)]
    KeySize {
        /// The size of the modulus.
        bits: usize,
    },
    /// A private key that does not belong to the certificate beside it.
    #[error("the private key does not belong to the certificate of {subject:?}")]
    KeyMismatch {
        /// The certificate's subject name.
        subject: String,
    },
    /// No trusted authority signed this certificate, or the signature is wrong.
    #[error("the certificate of {subject:?} is not signed by a trusted authority")]
    Untrusted {
        /// The certificate's subject name.
        subject: String,
    },
    /// The certificate has expired.
    #[error("the certificate of {subject:?} expired at {not_after} (unix time)")]
    Expired {
        /// The certificate's subject name.
        subject: String,
        /// Its last second, in unix time.
        not_after: u64,
    },
    /// The certificate is not valid yet.
    #[error("the certificate of {subject:?} is not valid before {not_before} (unix time): is the clock right?")]
    NotYetValid {
        /// The certificate's subject name.
        subject: String,
        /// Its first second, in unix time.
        not_before: u64,
    },
    /// The certificate is not for this use: an authority, or without the extended key usage.
    #[error("the certificate of {subject:?} may not be used as a {usage} certificate")]
    WrongPurpose {
        /// The certificate's subject name.
        subject: String,
        /// The use that was asked for.
        usage: &'static str,
    },
    /// The server showed a certificate with another name than the pinned one.
    #[error("Invalid server certificate common name {found}!")]
    WrongName {
        /// The name in the certificate.
        found: String,
        /// The name that was expected.
        expected: String,
    },
    /// The certificate request is not signed by the key that it carries.
    #[error("Invalid CSR: it is not signed by its own key")]
    RequestSignature,
    /// The certificate request is not named after the key that it carries.
    #[error("Invalid CSR: its name is not the client id of its key")]
    RequestName,
    /// The certificate that should sign is no authority.
    #[error("the certificate of {subject:?} is not a certificate authority")]
    NotAnAuthority {
        /// The certificate's subject name.
        subject: String,
    },
    /// Certificates cannot carry this name.
    #[error("{0:?} cannot be the name in a certificate: use 1 to 64 printable ASCII characters")]
    Name(String),
    /// The certificate or request could not be made.
    #[error("a certificate could not be made")]
    Issue(#[source] rcgen::Error),
    /// A cryptographic operation failed.
    #[error("a cryptographic operation failed")]
    Crypto(#[source] talon_crypto::CryptoError),
}

impl From<talon_crypto::CryptoError> for PkiError {
    fn from(error: talon_crypto::CryptoError) -> Self {
        Self::Crypto(error)
    }
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self::Issue(error)
    }
}
