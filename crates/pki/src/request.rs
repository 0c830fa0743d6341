//! Certificate requests: how an agent shows its key when it enrols. Nobody signs them; they prove possession of the key.

use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use talon_crypto::{RsaPrivateKey, RsaPublicKey};
use talon_ids::ClientId;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_PKCS1_SHA256WITHRSA;
use x509_parser::prelude::FromDer;

use crate::PkiError;
use crate::authority::Signer;
use crate::certificate::{encode_pem, rsa_key};

/// Longer requests are refused unread: one for the largest accepted key has 4 KiB.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// The id of the agent that owns `key`: SHA-256 of the modulus as a length-prefixed integer with a leading zero byte, its first eight bytes.
#[must_use]
pub fn client_id(key: &RsaPublicKey) -> ClientId {
    let modulus = key.modulus();
    let length = u32::try_from(modulus.len()).unwrap_or(u32::MAX).saturating_add(1);
    let mut bytes = Vec::with_capacity(modulus.len().saturating_add(5));
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.push(0);
    bytes.extend_from_slice(&modulus);
    ClientId::from_modulus_digest(&talon_crypto::sha256(&bytes))
}

/// The request of the agent that owns `key`, in PEM: named after its client id, without attributes.
///
/// # Errors
/// [`PkiError::Issue`].
pub fn create_csr(key: &RsaPrivateKey) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, client_id(key.public()).as_str());
    let request = params.serialize_request(&Signer::new(key))?;
    Ok(encode_pem("CERTIFICATE REQUEST", request.der()))
}

/// A request whose sender holds the key that it names.
#[derive(Clone)]
pub struct VerifiedRequest {
    client_id: ClientId,
    public_key: RsaPublicKey,
}

impl VerifiedRequest {
    /// The agent's id, derived from its key.
    #[must_use]
    pub fn client_id(&self) -> &ClientId {
        &self.client_id
    }

    /// The agent's key.
    #[must_use]
    pub fn public_key(&self) -> &RsaPublicKey {
        &self.public_key
    }
}

impl std::fmt::Debug for VerifiedRequest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("VerifiedRequest").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// Verifies an agent's request, in PEM: an RSA key of an accepted size, the signature of that key over the request, and the client id of that key as
/// its only name.
///
/// # Errors
/// [`PkiError::NoPemBlock`], [`PkiError::Malformed`], [`PkiError::NotRsa`], [`PkiError::KeySize`], [`PkiError::RequestSignature`] or
/// [`PkiError::RequestName`].
pub fn verify_csr(pem: &[u8]) -> Result<VerifiedRequest, PkiError> {
    let malformed = || PkiError::Malformed("the CSR");
    if pem.len() > MAX_REQUEST_BYTES {
        return Err(malformed());
    }
    let der = match CertificateSigningRequestDer::pem_slice_iter(pem).next() {
        None => return Err(PkiError::NoPemBlock("CERTIFICATE REQUEST")),
        Some(der) => der.map_err(|_| malformed())?,
    };
    let Ok(([], request)) = X509CertificationRequest::from_der(&der) else {
        return Err(malformed());
    };
    let info = &request.certification_request_info;
    let public_key = rsa_key(&info.subject_pki)?;
    if request.signature_algorithm.algorithm != OID_PKCS1_SHA256WITHRSA {
        return Err(PkiError::RequestSignature);
    }
    public_key.verify_pkcs1_sha256(info.raw, &request.signature_value.data).map_err(|_| PkiError::RequestSignature)?;
    let client_id = client_id(&public_key);
    let mut names = info.subject.iter_common_name();
    match (names.next().map(|name| name.as_str()), names.next()) {
        (Some(Ok(name)), None) if name == client_id.as_str() => Ok(VerifiedRequest { client_id, public_key }),
        _ => Err(PkiError::RequestName),
    }
}
