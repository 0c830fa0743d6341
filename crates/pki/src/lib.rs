//! The deployment's own certificate authority: issuing its certificates, certificate requests of agents, and verification by purpose and name.
//!
//! There is one authority per deployment and no intermediate: every certificate here is signed by the authority itself. This crate keeps two
//! promises. A [`VerifiedCertificate`] or [`VerifiedRequest`] can only be made by a successful verification, and only they give out a public key or a
//! name that decides something. And the authority signs nothing that outlives it, that is a certificate authority itself, or whose name a peer
//! would read in two ways. Time and randomness are arguments; nothing is read or written.
//!
//! ```
//! use std::time::Duration;
//! use talon_crypto::SystemRng;
//! use talon_pki::{Authority, LeafProfile, UnixTime, verify_server_pem};
//!
//! let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
//! let authority = Authority::generate(&SystemRng, now)?;
//! let frontend = authority.issue(&LeafProfile::frontend("VelociraptorServer"), &SystemRng, now)?;
//!
//! let server = verify_server_pem(frontend.certificate().pem().as_bytes(), &authority.trust_bundle(), "VelociraptorServer", now)?;
//! assert_eq!(server.name(), "VelociraptorServer");
//! assert!(verify_server_pem(frontend.certificate().pem().as_bytes(), &authority.trust_bundle(), "GRPC_GW", now).is_err());
//! # Ok::<(), talon_pki::PkiError>(())
//! ```

mod authority;
mod certificate;
mod error;
mod identity;
mod request;
mod trust;

pub use authority::{Authority, DEFAULT_VALIDITY, LeafProfile};
pub use certificate::Certificate;
pub use error::PkiError;
pub use identity::Identity;
pub use request::{VerifiedRequest, client_id, create_csr, verify_csr};
pub use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
pub use trust::{Purpose, TrustBundle, VerifiedCertificate, verify_server_pem};

/// The name of the frontend certificate unless `Client.pinned_server_name` says otherwise.
pub const DEFAULT_SERVER_NAME: &str = "VelociraptorServer";

/// The name of the gateway certificate unless `API.pinned_gw_name` says otherwise.
pub const DEFAULT_GATEWAY_NAME: &str = "GRPC_GW";

/// The smallest RSA modulus that is accepted, in bits.
pub const MIN_KEY_BITS: usize = 2048;

/// The largest RSA modulus that is accepted, in bits: a bound on what a peer can make us compute.
pub const MAX_KEY_BITS: usize = 8192;
