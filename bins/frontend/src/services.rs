//! Puts the services together in the order in which they depend on each other: storage, audit log, restrictions, server.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use talon_acl::{Restriction, Unrestricted};
use talon_audit::{Log, SigningKey};
use talon_config::ServerConfig;
use talon_crypto::SystemRng;
use talon_lockdown::Lockdown;
use talon_server::{InitialOrg, InitialUser, Server, ServerOptions, Settings, SystemClock};
use talon_store::{AuditFiles, Embedded, Options};
use talon_vql::{Registry, Restrictions};
use talon_wire::Limits;

/// Opens the deployment. Blocks on storage.
pub(crate) fn open(config: &ServerConfig) -> Result<Server> {
    let location = config.data_directory();
    let engine =
        Embedded::open(&location, Options::default()).with_context(|| format!("cannot open the store in {}", location.display()))?;
    let identity = config.frontend_identity();
    let options = ServerOptions {
        settings: settings(config)?,
        certificate_pem: identity.certificate().pem(),
        certificate_name: identity.certificate().subject_name().to_owned(),
        key: identity.key().clone(),
        engine: Arc::new(engine),
        audit: Arc::new(audit(config)?),
        restriction: restriction(config)?,
        clock: Arc::new(SystemClock),
        rng: Arc::new(SystemRng),
        registry: Arc::new(registry(config)),
        limits: limits(config),
    };
    Ok(Server::open(options)?)
}

fn audit(config: &ServerConfig) -> Result<Log> {
    let location = config.audit_directory();
    let cure = || format!("cannot open the audit log in {}", location.display());
    let key = AuditFiles::load_or_create_key(&location, || SigningKey::generate(config.audit_origin(), &SystemRng)).with_context(cure)?;
    let files = AuditFiles::open(&location).with_context(cure)?;
    Log::open(Arc::new(files), key).with_context(cure)
}

fn restriction(config: &ServerConfig) -> Result<Arc<dyn Restriction>> {
    if !config.lockdown() {
        return Ok(Arc::new(Unrestricted));
    }
    let denied = &config.security().lockdown_denied_permissions;
    let lockdown = Lockdown::new(denied.iter().map(String::as_str)).context("security.lockdown_denied_permissions")?;
    tracing::warn!("{}", lockdown.notice());
    Ok(Arc::new(lockdown))
}

/// The built-ins of queries on the server, without those that the configuration takes away.
fn registry(config: &ServerConfig) -> Registry {
    let security = config.security();
    let mut registry = talon_endpoint_vql::registry();
    registry.merge(talon_server_vql::registry());
    registry.restrict(&Restrictions {
        allowed_plugins: security.allowed_plugins.clone(),
        allowed_functions: security.allowed_functions.clone(),
        denied_plugins: security.denied_plugins.clone(),
        denied_functions: security.denied_functions.clone(),
    });
    registry
}

fn limits(config: &ServerConfig) -> Limits {
    let mut limits = Limits::default();
    let size = |value: u64, stock: usize| if value == 0 { stock } else { usize::try_from(value).unwrap_or(usize::MAX) };
    limits.packet = size(config.resources().max_upload_size.saturating_mul(2), limits.packet);
    limits.sessions = size(config.resources().expected_clients, limits.sessions);
    limits
}

fn settings(config: &ServerConfig) -> Result<Settings> {
    let (client, defaults, resources) = (config.client(), config.defaults(), config.resources());
    let superuser = config.server_name().parse().context("Client.pinned_server_name")?;
    let stock = Settings::new(superuser, config.root_nonce().expose());
    let seconds = |value: i64, stock: Duration| u64::try_from(value).ok().filter(|value| *value > 0).map_or(stock, Duration::from_secs);
    let unsigned = |value: u64, stock: Duration| if value == 0 { stock } else { Duration::from_secs(value) };
    Ok(Settings {
        obfuscation_nonce: config.obfuscation_nonce().expose().to_owned(),
        plain_names: config.frontend().do_not_compress_artifacts,
        max_poll: unsigned(client.max_poll, stock.max_poll),
        max_in_flight: usize::try_from(if client.concurrency == 0 { 2 } else { client.concurrency }).unwrap_or(2).saturating_add(2),
        in_flight_check: seconds(defaults.inflight_check_time, stock.in_flight_check),
        active_in_flight_checks: !defaults.disable_active_inflight_checks,
        interrogate: resources.enrollments_per_second >= 0,
        compress: matches!(config.datastore().compression.as_str(), "" | "zlib"),
        log_batch: unsigned(resources.default_log_batch_time, stock.log_batch),
        log_error_regex: config.frontend().collection_error_regex.clone(),
        batch_rows: defaults.max_rows,
        batch_bytes: defaults.max_row_buffer_size,
        batch_wait: Duration::from_secs(defaults.max_batch_wait),
        event_wait: seconds(defaults.event_max_wait, stock.event_wait),
        event_wait_jitter: seconds(defaults.event_max_wait_jitter, stock.event_wait_jitter),
        default_monitoring: config.frontend().default_client_monitoring_artifacts.clone(),
        initial_orgs: config.gui().initial_orgs.iter().map(org).collect::<Result<_>>()?,
        initial_users: config.gui().initial_users.iter().map(user).collect::<Result<_>>()?,
        client_config: config.client_config(None)?.configuration().to_yaml()?.to_string(),
        ..stock
    })
}

fn org(org: &talon_config::InitialOrg) -> Result<InitialOrg> {
    let id = org.org_id.parse().with_context(|| format!("GUI.initial_orgs: {:?} is not the id of an organisation", org.org_id))?;
    Ok(InitialOrg { id, name: org.name.clone(), nonce: org.nonce.expose().to_owned() })
}

fn user(user: &talon_config::InitialUser) -> Result<InitialUser> {
    let bytes = |text: &str| data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes());
    let cure = || format!("GUI.initial_users: {}", user.name);
    Ok(InitialUser {
        name: user.name.parse().with_context(cure)?,
        password_hash: bytes(user.password_hash.expose()).with_context(cure)?,
        password_salt: bytes(user.password_salt.expose()).with_context(cure)?,
    })
}
