//! What of the configuration the services need, in units of their own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use talon_artifacts::Pack;
use talon_config::{Secret, ServerConfig};
use talon_ids::{OrgId, UserName};

use crate::ServerError;
use crate::assertions::Assertions;
use crate::secrets::SecretsKey;

/// Settings of the services. [`Default`] has the stock defaults and suits tests.
#[derive(Clone)]
pub struct Settings {
    /// The server's own principal, which policies do not bind: `Client.pinned_server_name`.
    pub superuser: UserName,
    /// The name in the gateway's certificate, which no user may have.
    pub gateway: Option<UserName>,
    /// Whether names of users are of ASCII letters only: `Defaults.disable_unicode_usernames`, or no section `defaults`.
    pub ascii_names: bool,
    /// Whether the cost of password hashes is fitted to this machine; else it is the least that is ever used.
    pub tune_passwords: bool,
    /// What must hold after every change of a policy: the file `talon.server.policy_assertions`.
    pub assertions: Assertions,
    /// Administrators who remove a lock on everything: `talon.server.lock_quorum`.
    pub lock_quorum: usize,
    /// SHA-256, in hex, of the token that removes any lock: `talon.server.unlock_token_sha256`.
    pub unlock_token_sha256: String,
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
    /// Monitored on the server when no table was ever set: `Frontend.default_server_monitoring_artifacts`.
    pub default_server_monitoring: Vec<String>,
    /// How long a hunt runs that does not say: `Defaults.hunt_expiry_hours`.
    pub hunt_expiry: Duration,
    /// Clients that hunts take on in one second: `Frontend.resources.notifications_per_second`.
    pub hunt_rate: u64,
    /// Where people reach the pages: `GUI.public_url`; empty when it is not set.
    pub public_url: String,
    /// Where clients reach the server: `Client.server_urls`.
    pub server_urls: Vec<String>,
    /// What seals secrets: follows from `security.secrets_dek`, else `obfuscation_nonce`, else the frontend's key.
    pub secrets_key: SecretsKey,
    /// Whether built-ins take credentials from secrets only: `security.vql_must_use_secrets`.
    pub must_use_secrets: bool,
    /// Organisations to create at the first start: `GUI.initial_orgs`.
    pub initial_orgs: Vec<InitialOrg>,
    /// Administrators to create at the first start: `GUI.initial_users`.
    pub initial_users: Vec<InitialUser>,
    /// The version in messages and to queries.
    pub version: String,
    /// The client configuration of the root organisation as YAML, for administrators; without secrets of the server.
    pub client_config: String,
    /// The same for an organisation with another nonce.
    pub client_config_of: Option<ClientConfigs>,
    /// Artifacts that the configuration loads: they count as built-in.
    pub definitions: Vec<talon_artifacts::Definition>,
}

/// Makes the client configuration of an organisation from its nonce.
pub type ClientConfigs = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

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
            gateway: None,
            ascii_names: true,
            tune_passwords: false,
            assertions: Assertions::default(),
            lock_quorum: 2,
            unlock_token_sha256: String::new(),
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
            default_server_monitoring: vec!["Server.Monitor.Health".to_owned()],
            hunt_expiry: Duration::from_secs(168 * 3600),
            hunt_rate: 100,
            public_url: String::new(),
            server_urls: Vec::new(),
            secrets_key: SecretsKey::derived_from(root_nonce),
            must_use_secrets: false,
            initial_orgs: Vec::new(),
            initial_users: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            client_config: String::new(),
            client_config_of: None,
            definitions: Vec::new(),
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
        settings.gateway = config.gateway_name().parse().ok();
        settings.ascii_names = config.configuration().stock.defaults.as_ref().is_none_or(|defaults| defaults.disable_unicode_usernames);
        settings.tune_passwords = true;
        let talon = config.talon();
        if !talon.policy_assertions.is_empty() {
            settings.assertions = Assertions::load(Path::new(&talon.policy_assertions))?;
        }
        settings.lock_quorum = if talon.lock_quorum == 0 { 2 } else { usize::try_from(talon.lock_quorum).unwrap_or(usize::MAX) };
        settings.unlock_token_sha256.clone_from(&talon.unlock_token_sha256);
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
        settings.default_server_monitoring.extend(frontend.default_server_monitoring_artifacts.iter().cloned());
        settings.default_server_monitoring.dedup();
        if let Some(hours) = positive(defaults.hunt_expiry_hours) {
            settings.hunt_expiry = hours.saturating_mul(3600);
        }
        if resources.notifications_per_second > 0 {
            settings.hunt_rate = resources.notifications_per_second;
        }
        settings.public_url.clone_from(&config.gui().public_url);
        settings.server_urls.clone_from(&client.server_urls);
        settings.secrets_key = SecretsKey::derived_from(&secrets_text(config)?);
        settings.must_use_secrets = config.security().vql_must_use_secrets;
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
        let whole = ServerConfig::new(config.configuration().clone()).map_err(|error| ServerError::Configuration(error.to_string()))?;
        settings.client_config_of = Some(Arc::new(move |nonce| {
            let client = whole.client_config(Some(Secret::new(nonce.to_owned()))).ok()?;
            client.configuration().to_yaml().ok().map(|text| text.to_string())
        }));
        settings.load_definitions("Frontend.artifact_definitions_directory", &frontend.artifact_definitions_directory)?;
        for pack in &defaults.artifact_definitions_directories {
            settings.load_definitions("Defaults.artifact_definitions_directories", pack)?;
        }
        Ok(settings)
    }
}

/// The text that the key of secrets follows from; `env://NAME` reads the environment.
fn secrets_text(config: &ServerConfig) -> Result<talon_crypto::Zeroizing<String>, ServerError> {
    let own = config.security().secrets_dek.expose();
    if let Some(name) = own.strip_prefix("env://") {
        let missing = |_| ServerError::Configuration(format!("security.secrets_dek: the environment has no variable {name}"));
        return std::env::var(name).map(talon_crypto::Zeroizing::new).map_err(missing);
    }
    let candidates = [own, config.obfuscation_nonce().expose(), config.frontend().private_key.expose()];
    let text = candidates.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    Ok(talon_crypto::Zeroizing::new(text.to_owned()))
}

impl Settings {
    /// Reads the artifacts of a folder or zip file. Those that are not sound are passed over, with a warning; an empty path has none.
    ///
    /// # Errors
    /// [`ServerError::Configuration`] with `key`: the pack cannot be read.
    fn load_definitions(&mut self, key: &str, path: &str) -> Result<(), ServerError> {
        if path.is_empty() {
            return Ok(());
        }
        let pack = Pack::read(std::path::Path::new(path)).map_err(|error| ServerError::Configuration(format!("{key}: {error}")))?;
        let (sound, refused) = pack.definitions();
        for (file, error) in refused {
            tracing::warn!(file = %file.display(), %error, "an artifact of the configuration does not load");
        }
        tracing::info!(count = sound.len(), path, "artifacts of the configuration are loaded");
        self.definitions.extend(sound);
        Ok(())
    }
}

fn seconds(number: u64) -> Option<Duration> {
    (number > 0).then(|| Duration::from_secs(number))
}

fn positive(number: i64) -> Option<Duration> {
    u64::try_from(number).ok().and_then(seconds)
}
