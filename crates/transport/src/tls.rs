//! TLS settings of both roles: which versions, groups and certificates.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::{ServerTls, TransportError};

/// The provider of both roles: aws-lc-rs with the post-quantum hybrid before X25519, P-256 and P-384. A stock server takes only the last two, so that a
/// handshake with one costs a round trip more.
#[must_use]
pub fn crypto_provider() -> CryptoProvider {
    let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() }
}

/// Makes [`crypto_provider`] the one of the whole process. A composition root calls it once, before anything speaks TLS.
///
/// # Errors
/// When the process has a provider already.
pub fn install_crypto_provider() -> Result<(), TransportError> {
    let taken = |_| TransportError::Configuration("the process has a TLS provider already".to_owned());
    crypto_provider().install_default().map_err(taken)
}

/// The process' provider, or the same one when none was installed.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(crypto_provider()))
}

/// The frontend's side of TLS.
pub(crate) fn server_config(settings: ServerTls) -> Result<ServerConfig, TransportError> {
    let ServerTls { chain, key, client_roots, allow_weak, nist_curves_only } = settings;
    let refuse = |what: &str, error: &dyn std::fmt::Display| TransportError::Configuration(format!("{what}: {error}"));
    let mut provider = provider();
    if nist_curves_only {
        let kx_groups = vec![kx_group::SECP256R1, kx_group::SECP384R1];
        provider = Arc::new(CryptoProvider { kx_groups, ..provider.as_ref().clone() });
    }
    let versions: &[&rustls::SupportedProtocolVersion] =
        if allow_weak { &[&rustls::version::TLS13, &rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| refuse("TLS", &error))?;
    let builder = match client_roots {
        None => builder.with_no_client_auth(),
        Some(certificates) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates {
                roots.add(certificate).map_err(|error| refuse("an authority for client certificates", &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| refuse("the authorities for client certificates", &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| refuse("the frontend's certificate and private key", &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| refuse("TLS", &error))?;
    config.send_tls13_tickets = 1;
    Ok(config)
}
