//! What of the configuration the services need, in units of their own.

use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use talon_config::ServerConfig;
use talon_ids::{OrgId, UserName};

use crate::ServerError;

/// Settings of the services. [`Default`] has the stock defaults and suits tests.
#[derive(Clone)]
pub struct Settings {
    /// The server's own principal, which policies do not bind: `Client.pinned_server_name`.
    pub superuser: UserName,
    /// The enrolment secret of the root organisation: `Client.nonce`.
    pub root_nonce: String,
    /// Keys the names of queries on the wire: `obfuscation_nonce`.
    pub obfuscation_nonce: String,
    /// Whether query names travel in clear: `Frontend.do_not_compress_artifacts`.
    pub plain_names: bool,
    /// How long an agent waits for news: `Client.max_poll`.
    pub max_poll: Duration,
    /// Collections that may be in flight on one client: 2 + `Client.concurrency`.
    pub max_in_flight: usize,
    /// A flow in flight is asked about after so long without news: `Defaults.inflight_check_time`.
    pub in_flight_check: Duration,
    /// Whether flows in flight are asked about at all: not `Defaults.disable_active_inflight_checks`.
    pub active_in_flight_checks: bool,
    /// Whether new clients are interrogated: `Frontend.resources.enrollments_per_second` is not negative.
    pub interrogate: bool,
    /// Whether agents send rows and files as zlib: `Datastore.compression` is `zlib`.
    pub compress: bool,
    /// How often agents ship log lines: `Frontend.resources.default_log_batch_time`.
    pub log_batch: Duration,
    /// Log lines that fail a collection: `Frontend.collection_error_regex`; empty for the agent's own.
    pub log_error_regex: String,
    /// Rows in one message of a collection: `Defaults.max_rows`, 0 for the built-in default.
    pub batch_rows: u64,
    /// Bytes in one message of a collection: `Defaults.max_row_buffer_size`, 0 for the agent's own.
    pub batch_bytes: u64,
    /// How long a message of a collection is held back for more rows: `Defaults.max_batch_wait`, zero for the agent's own.
    pub batch_wait: Duration,
    /// How long an event query holds rows back: `Defaults.event_max_wait`.
    pub event_wait: Duration,
    /// Spread of that: `Defaults.event_max_wait_jitter`.
    pub event_wait_jitter: Duration,
    /// Monitored on every client when no table was ever set: `Frontend.default_client_monitoring_artifacts`.
    pub default_monitoring: Vec<String>,
    /// Organisations to create at the first start: `GUI.initial_orgs`.
    pub initial_orgs: Vec<InitialOrg>,
    /// Administrators to create at the first start: `GUI.initial_users`.
    pub initial_users: Vec<InitialUser>,
    /// The version in messages and to queries.
    pub version: String,
    /// The client configuration of the root organisation as YAML, for administrators; without secrets of the server.
    pub client_config: String,
}

/// An organisation to create at the first start.
#[derive(Clone)]
pub struct InitialOrg {
    /// Its id; made up when absent.
    pub id: Option<OrgId>,
    /// Its display name.
    pub name: String,
    /// Its enrolment secret; empty to make one.
    pub nonce: String,
}

/// An administrator to create at the first start.
#[derive(Clone)]
pub struct InitialUser {
    /// The name.
    pub name: UserName,
    /// SHA-256 of salt and password.
    pub password_hash: Vec<u8>,
    /// The salt.
    pub password_salt: Vec<u8>,
}

impl Settings {
    /// The stock defaults for a deployment with this superuser and this nonce of the root organisation.
    #[must_use]
    pub fn new(superuser: UserName, root_nonce: &str) -> Self {
        Self {
            superuser,
            root_nonce: root_nonce.to_owned(),
            obfuscation_nonce: String::new(),
            plain_names: false,
            max_poll: Duration::from_secs(60),
            max_in_flight: 4,
            in_flight_check: Duration::from_secs(60),
            active_in_flight_checks: true,
            interrogate: true,
            compress: true,
            log_batch: Duration::from_secs(2),
            log_error_regex: String::new(),
            batch_rows: 0,
            batch_bytes: 0,
            batch_wait: Duration::ZERO,
            event_wait: Duration::from_secs(120),
            event_wait_jitter: Duration::from_secs(20),
            default_monitoring: Vec::new(),
            initial_orgs: Vec::new(),
            initial_users: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            client_config: String::new(),
        }
    }
}

impl Settings {
    /// The settings of a configuration.
    ///
    /// # Errors
    /// [`ServerError::Configuration`] naming the key whose value is unusable.
    pub fn from_config(config: &ServerConfig) -> Result<Self, ServerError> {
        let unusable = |key: &str, value: &str| ServerError::Configuration(format!("{key}: {value:?} is unusable"));
        let superuser = config.server_name().parse().map_err(|_| unusable("Client.pinned_server_name", config.server_name()))?;
        let (client, frontend, defaults, resources) = (config.client(), config.frontend(), config.defaults(), config.resources());
        let mut settings = Self::new(superuser, config.root_nonce().expose());
        config.obfuscation_nonce().expose().clone_into(&mut settings.obfuscation_nonce);
        settings.plain_names = frontend.do_not_compress_artifacts;
        settings.max_poll = seconds(client.max_poll).unwrap_or(settings.max_poll);
        let concurrency = if client.concurrency == 0 { 2 } else { client.concurrency };
        settings.max_in_flight = usize::try_from(concurrency).unwrap_or(usize::MAX).saturating_add(2);
        settings.in_flight_check = positive(defaults.inflight_check_time).unwrap_or(settings.in_flight_check);
        settings.active_in_flight_checks = !defaults.disable_active_inflight_checks;
        settings.interrogate = resources.enrollments_per_second >= 0;
        settings.compress = config.datastore().compression == "zlib";
        settings.log_batch = seconds(resources.default_log_batch_time).unwrap_or(settings.log_batch);
        settings.log_error_regex.clone_from(&frontend.collection_error_regex);
        settings.batch_rows = defaults.max_rows;
        settings.batch_bytes = defaults.max_row_buffer_size;
        settings.batch_wait = Duration::from_secs(defaults.max_batch_wait);
        settings.event_wait = positive(defaults.event_max_wait).unwrap_or(settings.event_wait);
        settings.event_wait_jitter = positive(defaults.event_max_wait_jitter).unwrap_or(settings.event_wait_jitter);
        settings.default_monitoring.clone_from(&frontend.default_client_monitoring_artifacts);
        for org in &config.gui().initial_orgs {
            let id = || org.org_id.parse().map_err(|_| unusable("GUI.initial_orgs", &org.org_id));
            let id = (!org.org_id.is_empty()).then(id).transpose()?;
            settings.initial_orgs.push(InitialOrg { id, name: org.name.clone(), nonce: org.nonce.expose().to_owned() });
        }
        for user in &config.gui().initial_users {
            let hex = |text: &str| HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| unusable("GUI.initial_users", &user.name));
            settings.initial_users.push(InitialUser {
                name: user.name.parse().map_err(|_| unusable("GUI.initial_users", &user.name))?,
                password_hash: hex(user.password_hash.expose())?,
                password_salt: hex(user.password_salt.expose())?,
            });
        }
        let text = config.client_config(None).and_then(|client| client.configuration().to_yaml());
        settings.client_config = text.map_err(|error| ServerError::Configuration(error.to_string()))?.to_string();
        Ok(settings)
    }
}

fn seconds(number: u64) -> Option<Duration> {
    (number > 0).then(|| Duration::from_secs(number))
}

fn positive(number: i64) -> Option<Duration> {
    u64::try_from(number).ok().and_then(seconds)
}
