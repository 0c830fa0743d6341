//! Which TLS servers an agent accepts.
//!
//! A certificate of the deployment's authority is accepted under the pinned name only, whatever host was dialled: the same authority issues certificates
//! to API users and for mutual TLS, and none of their holders may pose as the server. Public authorities count only where the configuration lets
//! them, with the ordinary check of the host's name, and the deployment's authority is never one of them.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use talon_pki::{PkiError, Purpose, TrustBundle};

use crate::settings::certificates;
use crate::tls::provider;
use crate::{LinkSettings, TransportError, VerificationMode};

/// The agent's side of TLS.
pub(crate) fn client_config(settings: &LinkSettings) -> Result<ClientConfig, TransportError> {
    let provider = provider();
    let verifier = Verifier::new(settings, &provider)?;
    let refuse = |what: &str, error: &dyn std::fmt::Display| TransportError::Configuration(format!("{what}: {error}"));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| refuse("TLS", &error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &settings.client_certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = certificates(chain.as_bytes(), "Client.Crypto.client_certificate")?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|_| TransportError::Configuration("Client.Crypto.client_certificate_private_key is not PEM".to_owned()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| refuse("Client.Crypto.client_certificate and its private key", &error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct Verifier {
    mode: VerificationMode,
    thumbprints: Vec<[u8; 32]>,
    authority: TrustBundle,
    pinned_name: String,
    public: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(settings: &LinkSettings, provider: &Arc<CryptoProvider>) -> Result<Self, TransportError> {
        let authority = TrustBundle::from_pem(settings.ca_certificate.as_bytes())
            .map_err(|error| TransportError::Configuration(format!("Client.ca_certificate: {error}")))?;
        let thumbprints = settings.thumbprints.iter().map(|text| thumbprint(text)).collect::<Result<Vec<_>, _>>()?;
        if settings.verification == VerificationMode::ThumbprintOnly && thumbprints.is_empty() {
            let text = "Client.Crypto.certificate_verification_mode is THUMBPRINT_ONLY, but certificate_thumbprints is empty";
            return Err(TransportError::Configuration(text.to_owned()));
        }
        let unneeded = settings.use_self_signed_ssl || settings.verification == VerificationMode::ThumbprintOnly;
        let public = if unneeded && settings.root_certs.is_empty() { None } else { public(settings, provider)? };
        Ok(Self {
            mode: settings.verification,
            thumbprints,
            authority,
            pinned_name: settings.pinned_server_name.clone(),
            public: public.filter(|_| !unneeded),
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

/// Trust in the system's authorities and those of `Client.Crypto.root_certs`; `None` when there are none at all.
fn public(settings: &LinkSettings, provider: &Arc<CryptoProvider>) -> Result<Option<Arc<WebPkiServerVerifier>>, TransportError> {
    let unusable = || TransportError::Configuration("Unable to parse Crypto.root_certs in the config file.".to_owned());
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    let (_, ignored) = roots.add_parsable_certificates(system.certs);
    if ignored > 0 || !system.errors.is_empty() {
        tracing::warn!(ignored, errors = system.errors.len(), "some of the system's certificate authorities cannot be used");
    }
    if !settings.root_certs.trim().is_empty() {
        for certificate in certificates(settings.root_certs.as_bytes(), "").map_err(|_| unusable())? {
            roots.add(certificate).map_err(|_| unusable())?;
        }
    }
    if roots.is_empty() {
        return Ok(None);
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build().map_err(|_| unusable())?;
    Ok(Some(verifier))
}

/// SHA-256 in hexadecimal, with or without colons, in any case.
fn thumbprint(text: &str) -> Result<[u8; 32], TransportError> {
    let refuse =
        || TransportError::Configuration(format!("Client.Crypto.certificate_thumbprints: {text:?} is not a SHA-256 in hexadecimal"));
    let digits: Vec<u32> = text
        .chars()
        .filter(|character| *character != ':')
        .map(|character| character.to_digit(16))
        .collect::<Option<_>>()
        .ok_or_else(refuse)?;
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(high * 16 + low).ok(),
            _ => None,
        })
        .collect::<Option<_>>()
        .ok_or_else(refuse)?;
    bytes.try_into().map_err(|_| refuse())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.mode != VerificationMode::Pki && self.thumbprints.contains(&talon_crypto::sha256(leaf)) {
            return Ok(ServerCertVerified::assertion());
        }
        if self.mode == VerificationMode::ThumbprintOnly {
            return Err(Error::General("Server certificate had no known thumbprint".to_owned()));
        }
        match self.authority.verify(leaf, Purpose::Server, now) {
            Ok(verified) => match verified.require_name(&self.pinned_name) {
                Ok(_) => Ok(ServerCertVerified::assertion()),
                Err(error) => Err(refusal(error)),
            },
            Err(error) => match (&self.public, error) {
                (Some(public), PkiError::Untrusted { .. }) => public.verify_server_cert(leaf, intermediates, host, ocsp, now),
                (_, error) => Err(refusal(error)),
            },
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The alert that fits, for the peer; the cause goes to the log.
fn refusal(error: PkiError) -> Error {
    Error::InvalidCertificate(match error {
        PkiError::Expired { .. } => CertificateError::Expired,
        PkiError::NotYetValid { .. } => CertificateError::NotValidYet,
        PkiError::Untrusted { .. } => CertificateError::UnknownIssuer,
        PkiError::WrongPurpose { .. } => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprints_may_have_colons_and_any_case() {
        let plain = "00".repeat(31) + "fe";
        let mut colons = "00:".repeat(31);
        colons.push_str("FE");
        assert_eq!(thumbprint(&plain).unwrap(), thumbprint(&colons).unwrap());
        for wrong in ["", "00", "zz", &plain[1..], &format!("{plain}00")] {
            assert!(thumbprint(wrong).is_err(), "{wrong}");
        }
    }
}
