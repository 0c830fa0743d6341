//! Clients of the API: making their configuration, and what a connection needs of it.

use talon_crypto::Rng;
use talon_ids::UserName;
use talon_pki::{DEFAULT_GATEWAY_NAME, DEFAULT_SERVER_NAME, Identity, LeafProfile, TrustBundle, UnixTime};

use crate::server::or_default;
use crate::validate::{key_material, missing};
use crate::{ApiClientConfig, ConfigError, Secret, ServerConfig};

impl ServerConfig {
    /// The configuration of an API client for `user`: a new certificate of the authority, and where the server listens.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] when the file has no authority's key, [`ConfigError::Generate`], or [`ConfigError::Value`] for a name that is the
    /// server's own.
    pub fn api_client(&self, user: &UserName, rng: &dyn Rng, now: UnixTime) -> Result<ApiClientConfig, ConfigError> {
        let reserved = [self.server_name(), self.gateway_name(), DEFAULT_SERVER_NAME, DEFAULT_GATEWAY_NAME];
        if reserved.iter().any(|name| name.to_lowercase() == user.folded()) {
            let problem = format!("Username is reserved: {user}: choose another name");
            return Err(ConfigError::Value { origin: self.configuration().origin.clone(), key: "name", problem });
        }
        let authority = self.authority()?;
        let profile = LeafProfile::api_client(user.as_str()).valid_for(self.certificate_validity());
        let identity = authority.issue(&profile, rng, now).map_err(ConfigError::Generate)?;
        let key = identity.private_key_pem().map_err(ConfigError::Generate)?;
        Ok(ApiClientConfig {
            ca_certificate: self.client().ca_certificate.clone(),
            client_cert: identity.certificate().pem(),
            client_private_key: Secret::new(key.as_str()),
            api_connection_string: self.api_connection_string(),
            name: user.as_str().to_owned(),
            ..ApiClientConfig::default()
        })
    }
}

/// What a connection to the API needs, checked.
#[derive(Debug)]
pub struct ApiConnection {
    /// The authorities that the server's certificate is verified with.
    pub trust: TrustBundle,
    /// The caller's certificate and key.
    pub identity: Identity,
    /// Where the server listens.
    pub address: ApiAddress,
    /// The name in the server's certificate, whatever host is dialled.
    pub server_name: String,
    /// The largest message that is received, in bytes.
    pub max_receive: usize,
}

/// Where the API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiAddress {
    /// `host:port`.
    Tcp(String),
    /// The path of a unix socket.
    Unix(std::path::PathBuf),
}

impl ApiConnection {
    /// Checks the configuration of an API client that was read from `origin`.
    ///
    /// # Errors
    /// [`ConfigError::Missing`], [`ConfigError::KeyMaterial`] or [`ConfigError::Value`].
    pub fn new(config: &ApiClientConfig, origin: &str) -> Result<Self, ConfigError> {
        const MAKE: &str = "make the file with 'talon -c server.config.yaml config api_client'";
        let needed = [
            (config.ca_certificate.is_empty(), "No ca_certificate"),
            (config.client_cert.is_empty(), "No client_cert"),
            (config.client_private_key.is_empty(), "No client_private_key"),
            (config.api_connection_string.is_empty(), "No api_connection_string"),
        ];
        if let Some((_, text)) = needed.into_iter().find(|(absent, _)| *absent) {
            return Err(missing(origin, text, MAKE));
        }
        if config.client_private_key.expose().contains("ENCRYPTED") {
            let problem = "the key is encrypted with a password, which is not supported: make the file again without one";
            return Err(ConfigError::Value { origin: origin.to_owned(), key: "client_private_key", problem: problem.to_owned() });
        }
        let trust =
            TrustBundle::from_pem(config.ca_certificate.as_bytes()).map_err(|error| key_material(origin, "ca_certificate", &error))?;
        let identity = Identity::from_pem(config.client_cert.as_bytes(), config.client_private_key.expose())
            .map_err(|error| key_material(origin, "client_cert", &error))?;
        let address = match config.api_connection_string.strip_prefix("unix://") {
            Some(path) => ApiAddress::Unix(path.into()),
            None => ApiAddress::Tcp(config.api_connection_string.clone()),
        };
        if let ApiAddress::Tcp(address) = &address
            && !address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            let problem = "this must be host:port or unix://path".to_owned();
            return Err(ConfigError::Value { origin: origin.to_owned(), key: "api_connection_string", problem });
        }
        let configured = usize::try_from(config.max_grpc_recv_size).unwrap_or(usize::MAX);
        let max_receive = if configured == 0 { 4 * 1024 * 1024 } else { configured };
        let server_name = or_default(&config.pinned_server_name, DEFAULT_SERVER_NAME).to_owned();
        Ok(Self { trust, identity, address, server_name, max_receive })
    }
}
