//! Puts the services together in the order in which they depend on each other: storage, audit log, restrictions, server.

use std::sync::Arc;

use anyhow::{Context, Result};
use talon_acl::{Restriction, Unrestricted};
use talon_audit::{Log, SigningKey};
use talon_config::ServerConfig;
use talon_crypto::SystemRng;
use talon_endpoint_vql::{LogFeed, UserMessages};
use talon_lockdown::Lockdown;
use talon_server::{AuditFileOutlet, FileRules, Outlet, Outlets, Server, ServerOptions, Settings, SyslogOutlet, SystemClock};
use talon_store::{AuditFiles, Embedded, Options};
use talon_transport::SyslogSender;
use talon_vql::{Extensions, Registry, Restrictions};
use talon_wire::Limits;

/// Opens the deployment, and the copies of its audit log, which end with the second value. Blocks on storage.
pub(crate) fn open(config: &ServerConfig, feed: Arc<LogFeed>) -> Result<(Server, Outlets)> {
    let audit = Arc::new(audit(config)?);
    let server = server(config, Arc::clone(&audit), feed)?;
    Ok((server, copies(config, &audit)?))
}

fn server(config: &ServerConfig, audit: Arc<Log>, feed: Arc<LogFeed>) -> Result<Server> {
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
        audit,
        restriction: restriction(config)?,
        clock: Arc::new(SystemClock),
        rng: Arc::new(SystemRng),
        registry: Arc::new(registry(config)),
        extensions: extensions(config, feed)?,
        limits: limits(config),
    };
    let server = Server::open(options)?;
    server.start()?;
    Ok(server)
}

fn audit(config: &ServerConfig) -> Result<Log> {
    let location = config.audit_directory();
    let cure = || format!("cannot open the audit log in {}", location.display());
    let key = AuditFiles::load_or_create_key(&location, || SigningKey::generate(config.audit_origin(), &SystemRng)).with_context(cure)?;
    let files = AuditFiles::open(&location).with_context(cure)?;
    Log::open(Arc::new(files), key, Arc::new(SystemRng)).with_context(cure)
}

/// Files in the stock format, and a syslog server if there is one. Neither has to be there for the server to start, but its settings have
/// to make sense.
fn copies(config: &ServerConfig, audit: &Arc<Log>) -> Result<Outlets> {
    let copies = config.audit_copies(&|name| std::env::var(name).ok());
    let rules = FileRules { rotation: copies.rotation, max_age: copies.max_age };
    let files = AuditFileOutlet::open(&copies.folder, rules, Arc::new(SystemClock))
        .with_context(|| format!("cannot write audit files in {}; see Logging.output_directory", copies.folder.display()))?;
    let mut outlets: Vec<Box<dyn Outlet>> = vec![Box::new(files)];
    if let Some(target) = copies.syslog {
        let sender = SyslogSender::new(&target.server, target.protocol.parse()?, &target.root_certs)?;
        let memory = config.audit_directory().join("outlets");
        let syslog = SyslogOutlet::open(sender, &config.frontend().hostname, &memory)
            .with_context(|| format!("cannot keep the place of syslog in {}", memory.display()))?;
        outlets.push(Box::new(syslog));
    }
    Ok(Outlets::start(audit, outlets)?)
}

fn restriction(config: &ServerConfig) -> Result<Arc<dyn Restriction>> {
    if !config.lockdown() {
        return Ok(Arc::new(Unrestricted));
    }
    let denied = &config.security().lockdown_denied_permissions;
    let names = denied.iter().map(String::as_str);
    let lockdown = if config.talon().lockdown_replace { Lockdown::replacing(names) } else { Lockdown::new(names) };
    let lockdown = lockdown.context("security.lockdown_denied_permissions")?;
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

/// What queries on the server find beside their built-ins: accessors, without those that the configuration takes away; the log; messages of users.
fn extensions(config: &ServerConfig, feed: Arc<LogFeed>) -> Result<Extensions> {
    let security = config.security();
    let accessors = talon_server_vql::accessors()
        .restricted(&security.allowed_accessors, &security.denied_accessors)
        .map_err(|name| anyhow::anyhow!("Unknown accessor in allow list: {name}; correct security.allowed_accessors"))?;
    let mut extensions = Extensions::default();
    extensions.insert(Arc::new(accessors));
    extensions.insert(feed);
    extensions.insert(Arc::new(UserMessages::default()));
    Ok(extensions)
}

fn limits(config: &ServerConfig) -> Limits {
    let mut limits = Limits::default();
    let size = |value: u64, stock: usize| if value == 0 { stock } else { usize::try_from(value).unwrap_or(usize::MAX) };
    limits.packet = size(config.resources().max_upload_size.saturating_mul(2), limits.packet);
    limits.sessions = size(config.resources().expected_clients, limits.sessions);
    limits
}
