//! What a listener and a link can be told: plain values that a composition root fills from a configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::TransportError;

/// Where and how a frontend listens.
#[derive(Debug)]
pub struct FrontendSettings {
    /// `Frontend.bind_address`: an address, or a name of this host.
    pub bind_address: String,
    /// `Frontend.bind_port`; 0 picks a free one.
    pub bind_port: u16,
    /// `Frontend.base_path`: the prefix of all routes.
    pub base_path: String,
    /// TLS, or `None` for plain HTTP (`Frontend.use_plain_http`).
    pub tls: Option<ServerTls>,
    /// `Frontend.proxy_header`: the header whose value is recorded as an agent's address.
    pub proxy_header: Option<String>,
    /// Bounds.
    pub limits: FrontendLimits,
}

/// What any peer may use up. The defaults are those of a stock frontend where it has such a bound.
#[derive(Clone, Debug)]
pub struct FrontendLimits {
    /// `Frontend.resources.max_upload_size` in bytes, 5,000,000 when 0: a `/control` body of twice that or more is dropped.
    pub max_upload_size: usize,
    /// Largest `/reader` body in bytes.
    pub max_reader_body: usize,
    /// Bytes of request bodies held at one time by all connections; what would go beyond is answered with 503.
    pub body_budget: usize,
    /// `Frontend.resources.global_upload_rate`: bytes a second of all packets to `/control` with a burst of 1 MiB; 0 for no limit.
    pub global_upload_rate: u64,
    /// `Frontend.resources.per_client_upload_rate`: the same for one connection, with a burst of 100 KiB.
    pub per_client_upload_rate: u64,
    /// `Frontend.resources.concurrency`: `/control` packets handled at one time. Urgent packets have as many slots of their own. Most of them wait for the
    /// disk; how many use processors and memory is the endpoint's to bound.
    pub concurrency: usize,
    /// `/reader` packets opened at one time. A waiting reader holds no slot.
    pub reader_concurrency: usize,
    /// `Frontend.resources.concurrency_timeout`: how long a packet waits for a slot before it is answered with 408.
    pub concurrency_timeout: Duration,
    /// How long an accepted packet may be processed.
    pub processing_deadline: Duration,
    /// How long a request may take to arrive.
    pub read_deadline: Duration,
    /// How long an answer may take to leave once it exists.
    pub write_deadline: Duration,
    /// How long a connection may be without a byte in either direction.
    pub idle_deadline: Duration,
    /// How long a connection may stand still in the middle of a message, and how long the average may be below `min_rate`.
    pub stall_deadline: Duration,
    /// Slowest acceptable pace of a request or an answer in bytes per second.
    pub min_rate: u32,
    /// How long a TLS handshake or a request's head may take.
    pub handshake_deadline: Duration,
    /// Open connections at one time.
    pub max_connections: usize,
    /// `Frontend.resources.connections_per_second`: new connections accepted over TLS, with a burst of ten; others wait for their turn.
    pub connections_per_second: u32,
    /// How long draining may take before what is left is cut.
    pub drain_deadline: Duration,
    /// How long the head of an answer on `/control` waits for its body, before it leaves alone and pads follow.
    pub head_delay: Duration,
    /// Time between two pads on `/control`.
    pub control_pad: Duration,
    /// Time between two pads on `/reader`.
    pub reader_pad: Duration,
    /// Upper bound of the random part of a poll.
    pub poll_jitter: Duration,
    /// `Client.ws_ping_wait_sec`: time between two pings on a WebSocket. A peer that is not heard of for a tenth more is gone.
    pub ping_interval: Duration,
}

impl Default for FrontendLimits {
    fn default() -> Self {
        Self {
            max_upload_size: 5_000_000,
            max_reader_body: 50 << 20,
            body_budget: 1 << 30,
            global_upload_rate: 0,
            per_client_upload_rate: 0,
            // Packets wait for the disk rather than for a processor, and those that wait together share one sync.
            concurrency: 1024,
            reader_concurrency: 100,
            concurrency_timeout: Duration::from_secs(600),
            processing_deadline: Duration::from_secs(60),
            read_deadline: Duration::from_secs(500),
            write_deadline: Duration::from_secs(900),
            idle_deadline: Duration::from_secs(150),
            stall_deadline: Duration::from_secs(60),
            min_rate: 512,
            handshake_deadline: Duration::from_secs(30),
            max_connections: 100_000,
            connections_per_second: 100,
            drain_deadline: Duration::from_secs(10),
            head_delay: Duration::from_millis(200),
            control_pad: Duration::from_secs(3),
            reader_pad: Duration::from_secs(10),
            poll_jitter: Duration::from_secs(29),
            ping_interval: Duration::from_secs(60),
        }
    }
}

/// A frontend's TLS identity and what it asks of peers.
pub struct ServerTls {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) client_roots: Option<Vec<CertificateDer<'static>>>,
    pub(crate) allow_weak: bool,
    pub(crate) nist_curves_only: bool,
}

impl ServerTls {
    /// Takes the certificate chain, leaf first, and its private key in PEM (PKCS#1, PKCS#8 or SEC1).
    ///
    /// # Errors
    /// When either text holds nothing usable.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TransportError> {
        let chain = certificates(chain, "the frontend's certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| TransportError::Configuration("the frontend's private key is not PEM".to_owned()))?;
        Ok(Self { chain, key, client_roots: None, allow_weak: false, nist_curves_only: false })
    }

    /// Asks every peer for a certificate that chains to one of `roots` (PEM): `Frontend.require_client_certificates`.
    ///
    /// # Errors
    /// When `roots` holds no certificate.
    pub fn require_client_certificates(mut self, roots: &[u8]) -> Result<Self, TransportError> {
        self.client_roots = Some(certificates(roots, "the list of authorities for client certificates")?);
        Ok(self)
    }

    /// Also takes TLS 1.2: `Client.Crypto.allow_weak_tls_server`.
    #[must_use]
    pub fn allow_weak(mut self, allow: bool) -> Self {
        self.allow_weak = allow;
        self
    }

    /// Offers P-256 and P-384 only, without X25519 and its post-quantum hybrid: `talon.server.nist_curves_only`.
    #[must_use]
    pub fn nist_curves_only(mut self, only: bool) -> Self {
        self.nist_curves_only = only;
        self
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asks = self.client_roots.is_some();
        out.debug_struct("ServerTls")
            .field("chain", &self.chain.len())
            .field("asks", &asks)
            .field("allow_weak", &self.allow_weak)
            .finish_non_exhaustive()
    }
}

/// How an agent reaches servers and which ones it trusts.
pub struct LinkSettings {
    /// `Client.ca_certificate` in PEM: the deployment's authority.
    pub ca_certificate: String,
    /// `Client.pinned_server_name`: the only name that a certificate of the deployment's authority may carry.
    pub pinned_server_name: String,
    /// `Client.use_self_signed_ssl`: nothing but the deployment's authority is trusted, and the pinned name is sent as SNI.
    pub use_self_signed_ssl: bool,
    /// `Client.Crypto.root_certs` in PEM: further authorities; empty for none.
    pub root_certs: String,
    /// `Client.Crypto.certificate_verification_mode`.
    pub verification: VerificationMode,
    /// `Client.Crypto.certificate_thumbprints`: SHA-256 of leaf certificates in hexadecimal; colons and case do not matter.
    pub thumbprints: Vec<String>,
    /// `Client.Crypto.client_certificate` and `client_certificate_private_key` in PEM, shown when a server asks.
    pub client_certificate: Option<(String, String)>,
    /// `Client.connection_timeout`: for dialling, for the handshake and for the head of an answer.
    pub connection_timeout: Duration,
    /// `Client.fallback_addresses`: `host:port` to the `ip:port` that is dialled when the name does not lead to a connection.
    pub fallback_addresses: BTreeMap<String, String>,
    /// Proxies.
    pub proxy: ProxySettings,
    /// `Client.ws_ping_wait_sec`: the server's pause between two pings. One that is not heard of for a tenth more is gone.
    pub ping_interval: Duration,
    /// Longest accepted answer in bytes.
    pub max_reply: usize,
    /// The `User-Agent` header.
    pub user_agent: String,
}

impl LinkSettings {
    /// Settings with the stock defaults for a deployment.
    #[must_use]
    pub fn new(ca_certificate: impl Into<String>, pinned_server_name: impl Into<String>) -> Self {
        Self {
            ca_certificate: ca_certificate.into(),
            pinned_server_name: pinned_server_name.into(),
            use_self_signed_ssl: false,
            root_certs: String::new(),
            verification: VerificationMode::Pki,
            thumbprints: Vec::new(),
            client_certificate: None,
            connection_timeout: Duration::from_secs(300),
            fallback_addresses: BTreeMap::new(),
            proxy: ProxySettings::default(),
            ping_interval: Duration::from_secs(60),
            max_reply: 100 << 20,
            user_agent: "Velociraptor".to_owned(),
        }
    }
}

impl fmt::Debug for LinkSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certificate = self.client_certificate.is_some();
        out.debug_struct("LinkSettings")
            .field("pinned_server_name", &self.pinned_server_name)
            .field("use_self_signed_ssl", &self.use_self_signed_ssl)
            .field("verification", &self.verification)
            .field("client_certificate", &certificate)
            .finish_non_exhaustive()
    }
}

/// `Client.Crypto.certificate_verification_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerificationMode {
    /// The deployment's authority with the pinned name, else (unless `use_self_signed_ssl`) public authorities with the host's name.
    #[default]
    Pki,
    /// A known leaf, else as [`VerificationMode::Pki`].
    PkiOrThumbprint,
    /// A known leaf only.
    ThumbprintOnly,
}

impl std::str::FromStr for VerificationMode {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        match text.to_ascii_uppercase().as_str() {
            "" | "PKI" => Ok(Self::Pki),
            "PKI_OR_THUMBPRINT" => Ok(Self::PkiOrThumbprint),
            "THUMBPRINT_ONLY" => Ok(Self::ThumbprintOnly),
            _ => Err(TransportError::Configuration(format!(
                "Client.Crypto.certificate_verification_mode: {text:?} is none of PKI, PKI_OR_THUMBPRINT, THUMBPRINT_ONLY"
            ))),
        }
    }
}

/// `Client.proxy_config`, or `Client.proxy` for both schemes.
#[derive(Clone, Debug, Default)]
pub struct ProxySettings {
    /// Proxy URL for `http://` servers.
    pub http: Option<String>,
    /// Proxy URL for `https://` servers.
    pub https: Option<String>,
    /// Proxy URL by regular expression over the server's URL, matched without regard to case; an empty value means a direct connection.
    pub by_url: Vec<(String, String)>,
    /// Whether `HTTP_PROXY` and `HTTPS_PROXY` are ignored; else they come before `http` and `https`.
    pub ignore_environment: bool,
}

pub(crate) fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let refuse = || TransportError::Configuration(format!("{what} is not a PEM certificate"));
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|_| refuse())?;
    if found.is_empty() { Err(refuse()) } else { Ok(found) }
}
