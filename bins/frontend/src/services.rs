//! Puts the services together in the order in which they depend on each other: storage, audit log, restrictions, server.

use std::sync::Arc;

use anyhow::{Context, Result};
use talon_acl::{Restriction, Unrestricted};
use talon_audit::{Log, SigningKey};
use talon_config::ServerConfig;
use talon_crypto::SystemRng;
use talon_endpoint_vql::accessor::Accessors;
use talon_lockdown::Lockdown;
use talon_server::{Server, ServerOptions, Settings, SystemClock};
use talon_store::{AuditFiles, Embedded, Options};
use talon_vql::{Extensions, Registry, Restrictions};
use talon_wire::Limits;

/// Opens the deployment. Blocks on storage.
pub(crate) fn open(config: &ServerConfig) -> Result<Server> {
    let location = config.data_directory();
    let engine =
        Embedded::open(&location, Options::default()).with_context(|| format!("cannot open the store in {}", location.display()))?;
    let identity = config.frontend_identity();
    let options = ServerOptions {
        settings: Settings::from_config(config)?,
        certificate_pem: identity.certificate().pem(),
        certificate_name: identity.certificate().subject_name().to_owned(),
        key: identity.key().clone(),
        engine: Arc::new(engine),
        audit: Arc::new(audit(config)?),
        restriction: restriction(config)?,
        clock: Arc::new(SystemClock),
        rng: Arc::new(SystemRng),
        registry: Arc::new(registry(config)),
        extensions: extensions(config)?,
        limits: limits(config),
    };
    Ok(Server::open(options)?)
}

fn audit(config: &ServerConfig) -> Result<Log> {
    let location = config.audit_directory();
    let cure = || format!("cannot open the audit log in {}", location.display());
    let key = AuditFiles::load_or_create_key(&location, || SigningKey::generate(config.audit_origin(), &SystemRng)).with_context(cure)?;
    let files = AuditFiles::open(&location).with_context(cure)?;
    Log::open(Arc::new(files), key, Arc::new(SystemRng)).with_context(cure)
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

/// The accessors of queries on the server, without those that the configuration takes away.
fn extensions(config: &ServerConfig) -> Result<Extensions> {
    let security = config.security();
    let accessors = Accessors::default()
        .restricted(&security.allowed_accessors, &security.denied_accessors)
        .map_err(|name| anyhow::anyhow!("Unknown accessor in allow list: {name}; correct security.allowed_accessors"))?;
    let mut extensions = Extensions::default();
    extensions.insert(Arc::new(accessors));
    Ok(extensions)
}

fn limits(config: &ServerConfig) -> Limits {
    let mut limits = Limits::default();
    let size = |value: u64, stock: usize| if value == 0 { stock } else { usize::try_from(value).unwrap_or(usize::MAX) };
    limits.packet = size(config.resources().max_upload_size.saturating_mul(2), limits.packet);
    limits.sessions = size(config.resources().expected_clients, limits.sessions);
    limits
}
