//! A configuration that a server can run with: sections are there, keys and certificates are parsed, values make sense.

use std::path::PathBuf;
use std::time::Duration;

use talon_ids::Permission;
use talon_pki::{Authority, DEFAULT_SERVER_NAME, Identity, PkiError, TrustBundle};

use crate::migrate::{fill_server, migrate};
use crate::schema::{Api, Client, Config, Datastore, Defaults, Frontend, FrontendResources, Gui, Security, TalonServer};
use crate::validate::{client_section, key_material, missing, ranges, value};
use crate::{ConfigError, Configuration, Secret};

/// A server's configuration, checked and with defaults filled in.
#[derive(Debug)]
pub struct ServerConfig {
    configuration: Configuration,
    client: Client,
    api: Api,
    gui: Gui,
    frontend: Frontend,
    datastore: Datastore,
    resources: FrontendResources,
    defaults: Defaults,
    security: Security,
    talon: TalonServer,
    trust: TrustBundle,
    frontend_identity: Identity,
    gateway_identity: Identity,
    authority: Option<Authority>,
}

impl ServerConfig {
    /// Checks what a server needs: sections, keys, certificates, values. Validity in time is not looked at, see
    /// [`talon_pki::Certificate::check_time`].
    ///
    /// # Errors
    /// [`ConfigError::Missing`], [`ConfigError::KeyMaterial`] or [`ConfigError::Value`].
    pub fn new(mut configuration: Configuration) -> Result<Self, ConfigError> {
        migrate(&mut configuration.stock);
        fill_server(&mut configuration.stock);
        let origin = configuration.origin.clone();
        let stock = &configuration.stock;
        let absent = |text, cure| missing(&origin, text, cure);
        const MAKE: &str = "add the section, or make a new file with 'talon config generate'";
        let api = stock.api.clone().ok_or_else(|| absent("No API config", MAKE))?;
        let gui = stock.gui.clone().ok_or_else(|| absent("No GUI config", MAKE))?;
        let frontend = stock.frontend.clone().ok_or_else(|| absent("No Frontend config", MAKE))?;
        let datastore = stock.datastore.clone().ok_or_else(|| absent("No Datastore config", MAKE))?;
        let client = stock.client.clone().ok_or_else(|| absent("Client config is required", MAKE))?;
        const ISSUE: &str = "put it back; keys and certificates are made by 'talon config generate'";
        let needed = [
            (gui.gw_certificate.is_empty(), "No GUI.gw_certificate config", ISSUE),
            (gui.gw_private_key.is_empty(), "No GUI.gw_private_key config", ISSUE),
            (frontend.hostname.is_empty(), "No Frontend.hostname config", "set it to the server's public name"),
            (frontend.certificate.is_empty(), "No Frontend.certificate config", ISSUE),
            (frontend.private_key.is_empty(), "No Frontend.private_key config", ISSUE),
            (datastore.location.is_empty(), "No Datastore.location config", "set it to the directory for the server's data"),
        ];
        if let Some((_, text, cure)) = needed.into_iter().find(|(absent, _, _)| *absent) {
            return Err(absent(text, cure));
        }
        let trust = client_section(&client, &origin)?;
        values(stock, &origin)?;
        let identity = |certificate: &str, key: &Secret, names: [&'static str; 2]| {
            Identity::from_pem(certificate.as_bytes(), key.expose()).map_err(|error| identity_error(&origin, names, &error))
        };
        let frontend_identity = identity(&frontend.certificate, &frontend.private_key, ["Frontend.certificate", "Frontend.private_key"])?;
        let gateway_identity = identity(&gui.gw_certificate, &gui.gw_private_key, ["GUI.gw_certificate", "GUI.gw_private_key"])?;
        let authority = match &stock.ca {
            Some(ca) if !ca.private_key.is_empty() => {
                let authority = Authority::from_pem(client.ca_certificate.as_bytes(), ca.private_key.expose());
                Some(authority.map_err(|error| identity_error(&origin, ["Client.ca_certificate", "CA.private_key"], &error))?)
            }
            _ => None,
        };
        Ok(Self {
            resources: frontend.resources.clone().unwrap_or_default(),
            defaults: stock.defaults.clone().unwrap_or_default(),
            security: stock.security.clone().unwrap_or_default(),
            talon: configuration.talon.server.clone().unwrap_or_default(),
            client,
            api,
            gui,
            frontend,
            datastore,
            trust,
            frontend_identity,
            gateway_identity,
            authority,
            configuration,
        })
    }

    /// The whole configuration, migrated and filled.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// The `Client` section.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The `API` section.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The `GUI` section.
    #[must_use]
    pub fn gui(&self) -> &Gui {
        &self.gui
    }

    /// The `Frontend` section.
    #[must_use]
    pub fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    /// The `Datastore` section.
    #[must_use]
    pub fn datastore(&self) -> &Datastore {
        &self.datastore
    }

    /// `Frontend.resources`, with defaults.
    #[must_use]
    pub fn resources(&self) -> &FrontendResources {
        &self.resources
    }

    /// The `defaults` section, with defaults.
    #[must_use]
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// The `security` section.
    #[must_use]
    pub fn security(&self) -> &Security {
        &self.security
    }

    /// Talon's own settings of the server.
    #[must_use]
    pub fn talon(&self) -> &TalonServer {
        &self.talon
    }

    /// Whether the server starts locked down.
    #[must_use]
    pub fn lockdown(&self) -> bool {
        self.configuration.stock.lockdown
    }

    /// The name of the frontend's certificate, which is the superuser's name too.
    #[must_use]
    pub fn server_name(&self) -> &str {
        or_default(&self.client.pinned_server_name, DEFAULT_SERVER_NAME)
    }

    /// The name of the gateway's certificate, as that certificate says.
    #[must_use]
    pub fn gateway_name(&self) -> &str {
        self.gateway_identity.certificate().subject_name()
    }

    /// The authorities that certificates of this deployment are verified with.
    #[must_use]
    pub fn trust(&self) -> &TrustBundle {
        &self.trust
    }

    /// The frontend's certificate and key.
    #[must_use]
    pub fn frontend_identity(&self) -> &Identity {
        &self.frontend_identity
    }

    /// The gateway's certificate and key.
    #[must_use]
    pub fn gateway_identity(&self) -> &Identity {
        &self.gateway_identity
    }

    /// The authority, if its key is in this file.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn authority(&self) -> Result<&Authority, ConfigError> {
        self.authority.as_ref().ok_or_else(|| {
            missing(
                &self.configuration.origin,
                "Config with valid CA is required",
                "run this with the copy of the file that has CA.private_key",
            )
        })
    }

    /// The secret that agents of the root organisation carry.
    #[must_use]
    pub fn root_nonce(&self) -> &Secret {
        &self.client.nonce
    }

    /// What hides the names of queries from agents.
    #[must_use]
    pub fn obfuscation_nonce(&self) -> &Secret {
        &self.configuration.stock.obfuscation_nonce
    }

    /// How long new certificates are valid.
    #[must_use]
    pub fn certificate_validity(&self) -> Duration {
        certificate_validity(&self.security)
    }

    /// The directory of the server's data.
    #[must_use]
    pub fn data_directory(&self) -> PathBuf {
        PathBuf::from(&self.datastore.location)
    }

    /// The directory in which the audit log has its keys and its folder.
    #[must_use]
    pub fn audit_directory(&self) -> PathBuf {
        match &self.talon.audit {
            Some(audit) if !audit.directory.is_empty() => PathBuf::from(&audit.directory),
            _ => self.data_directory(),
        }
    }

    /// The audit log's name in its checkpoints.
    #[must_use]
    pub fn audit_origin(&self) -> &str {
        let origin = self.talon.audit.as_ref().map(|audit| audit.origin.as_str()).unwrap_or_default();
        or_default(origin, &self.frontend.hostname)
    }

    /// Where API clients connect: `host:port`, or `unix://path`.
    #[must_use]
    pub fn api_connection_string(&self) -> String {
        if self.api.bind_scheme == "unix" {
            return format!("unix://{}", self.api.bind_address);
        }
        let host = match self.api.bind_address.as_str() {
            "127.0.0.1" => "127.0.0.1",
            bound => or_default(&self.api.hostname, or_default(&self.frontend.hostname, bound)),
        };
        format!("{host}:{}", self.api.bind_port)
    }
}

pub(crate) fn certificate_validity(security: &Security) -> Duration {
    match u64::try_from(security.certificate_validity_days) {
        Ok(days @ 1..) => Duration::from_secs(days.saturating_mul(86_400)),
        _ => talon_pki::DEFAULT_VALIDITY,
    }
}

pub(crate) fn or_default<'a>(value: &'a str, default: &'a str) -> &'a str {
    if value.is_empty() { default } else { value }
}

/// Blames the certificate or the key, whichever it is.
fn identity_error(origin: &str, [certificate, key]: [&'static str; 2], error: &PkiError) -> ConfigError {
    let about_key = matches!(error, PkiError::KeyMismatch { .. } | PkiError::Malformed("the private key"));
    key_material(origin, if about_key { key } else { certificate }, error)
}

/// The checks that stock servers make when they start.
fn values(stock: &Config, origin: &str) -> Result<(), ConfigError> {
    let datastore = stock.datastore.clone().unwrap_or_default();
    if !matches!(datastore.compression.as_str(), "" | "zlib" | "none") {
        return Err(value(origin, "Datastore.compression", "this must be zlib or none"));
    }
    let api = stock.api.clone().unwrap_or_default();
    if !matches!(api.bind_scheme.as_str(), "" | "tcp" | "unix") {
        return Err(value(origin, "API.bind_scheme", "this must be tcp or unix"));
    }
    let gui = stock.gui.clone().unwrap_or_default();
    if !gui.base_path.is_empty() && !is_base_path(&gui.base_path) {
        return Err(value(origin, "GUI.base_path", "this must be like /one/two: letters, digits, _ and -, no / at the end"));
    }
    let page = format!("{}/app/index.html", gui.base_path);
    if !gui.public_url.is_empty() && !gui.public_url.ends_with(&page) {
        return Err(value(origin, "GUI.public_url", &format!("this must end in {page}")));
    }
    if let Some(range) = gui.allowed_cidr.iter().find(|range| !ranges::is_cidr(range)) {
        let problem = format!("Invalid CIDR Range {range} for GUI.allowed_cidr: write an address and a prefix length, as 10.0.0.0/8");
        return Err(value(origin, "GUI.allowed_cidr", &problem));
    }
    let security = stock.security.clone().unwrap_or_default();
    if let Some(name) = security.lockdown_denied_permissions.iter().find(|name| name.parse::<Permission>().is_err()) {
        return Err(value(origin, "security.lockdown_denied_permissions", &format!("{name:?} is not a permission")));
    }
    let ports = [
        ("Frontend.bind_port", stock.frontend.as_ref().map_or(0, |frontend| frontend.bind_port)),
        ("API.bind_port", api.bind_port),
        ("GUI.bind_port", gui.bind_port),
        ("Monitoring.bind_port", stock.monitoring.as_ref().map_or(0, |monitoring| monitoring.bind_port)),
    ];
    match ports.into_iter().find(|(_, port)| u16::try_from(*port).is_err()) {
        Some((key, _)) => Err(value(origin, key, "this must be a port, 1 to 65535")),
        None => Ok(()),
    }
}

fn is_base_path(path: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part))
}
