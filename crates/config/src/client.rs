//! A configuration that an agent can run with, and how it is derived from a server's.

use std::path::PathBuf;

use talon_ids::{Permission, Permissions};
use talon_pki::{DEFAULT_SERVER_NAME, TrustBundle};

use crate::migrate::{fill_client, migrate};
use crate::paths::{Lookup, WritebackPaths, by_system, expand, expand_with_nonce, writeback};
use crate::schema::{Client, Config, LocalBuffer, TalonSettings};
use crate::server::or_default;
use crate::validate::{client_section, key_material, missing, value};
use crate::{ConfigError, Configuration, Secret, ServerConfig};

/// How an agent verifies the certificate of a TLS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerificationMode {
    /// By the deployment's authority and the pinned name, else by public authorities and the host name.
    #[default]
    Pki,
    /// By thumbprint, else as [`VerificationMode::Pki`].
    PkiOrThumbprint,
    /// By thumbprint alone.
    ThumbprintOnly,
}

/// An agent's configuration, checked and with defaults filled in. It holds nothing that is the server's alone.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    configuration: Configuration,
    client: Client,
    trust: TrustBundle,
    extra_roots: Option<TrustBundle>,
    mode: VerificationMode,
    denied: Permissions,
}

impl ClientConfig {
    /// Checks what an agent needs. A server's configuration is stripped first.
    ///
    /// # Errors
    /// [`ConfigError::Missing`], [`ConfigError::KeyMaterial`] or [`ConfigError::Value`].
    pub fn new(configuration: Configuration) -> Result<Self, ConfigError> {
        let mut configuration = stripped(configuration);
        migrate(&mut configuration.stock);
        fill_client(&mut configuration.stock);
        let origin = &configuration.origin;
        let Some(client) = configuration.stock.client.clone() else {
            return Err(missing(origin, "Client config is required", "make the file with 'talon -c server.config.yaml config client'"));
        };
        let trust = client_section(&client, origin)?;
        let crypto = client.crypto.clone().unwrap_or_default();
        let mode = match crypto.certificate_verification_mode.to_ascii_uppercase().as_str() {
            "" | "PKI" => VerificationMode::Pki,
            "PKI_OR_THUMBPRINT" => VerificationMode::PkiOrThumbprint,
            "THUMBPRINT_ONLY" => VerificationMode::ThumbprintOnly,
            _ => {
                let problem = "this must be PKI, PKI_OR_THUMBPRINT or THUMBPRINT_ONLY";
                return Err(value(origin, "Client.Crypto.certificate_verification_mode", problem));
            }
        };
        let extra_roots = match crypto.root_certs.as_str() {
            "" => None,
            pem => {
                let bundle = TrustBundle::from_pem(pem.as_bytes());
                Some(bundle.map_err(|error| key_material(origin, "Client.Crypto.root_certs", &error))?)
            }
        };
        let denied = denied_permissions(&configuration)?;
        Ok(Self { client, trust, extra_roots, mode, denied, configuration })
    }

    /// The whole configuration, stripped, migrated and filled.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// The `Client` section.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The authorities of the deployment.
    #[must_use]
    pub fn trust(&self) -> &TrustBundle {
        &self.trust
    }

    /// Further authorities for TLS servers.
    #[must_use]
    pub fn extra_roots(&self) -> Option<&TrustBundle> {
        self.extra_roots.as_ref()
    }

    /// How TLS servers are verified.
    #[must_use]
    pub fn verification_mode(&self) -> VerificationMode {
        self.mode
    }

    /// SHA-256 thumbprints of accepted TLS servers: lower-case hexadecimal without colons.
    #[must_use]
    pub fn thumbprints(&self) -> Vec<String> {
        let listed = self.client.crypto.as_ref().map(|crypto| crypto.certificate_thumbprints.as_slice()).unwrap_or_default();
        listed.iter().map(|thumbprint| thumbprint.replace(':', "").trim().to_ascii_lowercase()).collect()
    }

    /// The certificate and the key for mutual TLS, in PEM, if both are configured.
    #[must_use]
    pub fn client_certificate(&self) -> Option<(&str, &Secret)> {
        let crypto = self.client.crypto.as_ref()?;
        let both = !crypto.client_certificate.is_empty() && !crypto.client_certificate_private_key.is_empty();
        both.then_some((crypto.client_certificate.as_str(), &crypto.client_certificate_private_key))
    }

    /// The name that the server's certificate must have.
    #[must_use]
    pub fn server_name(&self) -> &str {
        or_default(&self.client.pinned_server_name, DEFAULT_SERVER_NAME)
    }

    /// What no query may do on this host.
    #[must_use]
    pub fn denied_permissions(&self) -> Permissions {
        self.denied
    }

    /// The buffer's sizes.
    #[must_use]
    pub fn local_buffer(&self) -> LocalBuffer {
        self.client.local_buffer.clone().unwrap_or_default()
    }

    /// The buffer's file on this operating system, if it is on disk.
    #[must_use]
    pub fn buffer_file(&self, lookup: Lookup<'_>) -> Option<PathBuf> {
        let buffer = self.client.local_buffer.as_ref()?;
        let path = by_system(&buffer.filename_linux, &buffer.filename_windows, &buffer.filename_darwin);
        let on_disk = buffer.disk_size > 0 && !path.is_empty();
        on_disk.then(|| PathBuf::from(expand_with_nonce(path, &self.client.nonce, lookup)))
    }

    /// The directory for temporary files on this operating system, if one is configured.
    #[must_use]
    pub fn temporary_directory(&self, lookup: Lookup<'_>) -> Option<PathBuf> {
        let path = by_system(&self.client.tempdir_linux, &self.client.tempdir_windows, &self.client.tempdir_darwin);
        (!path.is_empty()).then(|| PathBuf::from(expand(path, lookup)))
    }

    /// The files of the agent's state.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] when there is no path for this operating system.
    pub fn writeback(&self, lookup: Lookup<'_>) -> Result<WritebackPaths, ConfigError> {
        writeback(&self.client, &self.configuration.origin, lookup)
    }
}

impl ServerConfig {
    /// The configuration of agents. `nonce` is that of their organisation, the root organisation's when `None`. It is put together from what agents
    /// need: nothing that is added to a server's configuration gets in by itself.
    ///
    /// # Errors
    /// As [`ClientConfig::new`].
    pub fn client_config(&self, nonce: Option<Secret>) -> Result<ClientConfig, ConfigError> {
        let mut configuration = self.configuration().clone();
        if let (Some(nonce), Some(client)) = (nonce, &mut configuration.stock.client) {
            client.nonce = nonce;
        }
        let mut config = ClientConfig::new(configuration)?;
        let stock = std::mem::take(&mut config.configuration.stock);
        config.configuration.stock = Config { version: stock.version, client: stock.client, autoexec: stock.autoexec, ..Config::default() };
        Ok(config)
    }
}

/// What an agent may know of a configuration.
fn stripped(configuration: Configuration) -> Configuration {
    let stock = configuration.stock;
    let agent = configuration.talon.agent;
    Configuration {
        stock: Config {
            version: stock.version,
            client: stock.client,
            autoexec: stock.autoexec,
            remappings: stock.remappings,
            verbose: stock.verbose,
            debug_mode: stock.debug_mode,
            ..Config::default()
        },
        talon: TalonSettings { agent, server: None },
        origin: configuration.origin,
    }
}

fn denied_permissions(configuration: &Configuration) -> Result<Permissions, ConfigError> {
    let names = configuration.talon.agent.as_ref().map(|agent| agent.denied_permissions.as_slice()).unwrap_or_default();
    let mut permissions = Vec::with_capacity(names.len());
    for name in names {
        let problem = || value(&configuration.origin, "talon.agent.denied_permissions", &format!("{name:?} is not a permission"));
        permissions.push(name.parse::<Permission>().map_err(|_| problem())?);
    }
    Ok(Permissions::of(&permissions))
}
