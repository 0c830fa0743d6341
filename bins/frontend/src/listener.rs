//! What the configuration says about the listener for agents, in the transport's terms.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use talon_config::ServerConfig;
use talon_transport::{FrontendLimits, FrontendSettings, ServerTls};

/// The settings of the listener for agents.
pub(crate) fn settings(config: &ServerConfig) -> Result<FrontendSettings> {
    let frontend = config.frontend();
    let bind_port = u16::try_from(frontend.bind_port).context("Frontend.bind_port is above 65535")?;
    Ok(FrontendSettings {
        bind_address: any_if_empty(&frontend.bind_address),
        bind_port,
        base_path: frontend.base_path.clone(),
        tls: if frontend.use_plain_http { plain(config)? } else { Some(tls(config)?) },
        proxy_header: Some(frontend.proxy_header.clone()).filter(|name| !name.is_empty()),
        limits: limits(config),
    })
}

/// An address that is not set means all of them.
pub(crate) fn any_if_empty(address: &str) -> String {
    if address.is_empty() { "0.0.0.0".to_owned() } else { address.to_owned() }
}

fn plain(config: &ServerConfig) -> Result<Option<ServerTls>> {
    if config.frontend().require_client_certificates {
        bail!(
            "Frontend.require_client_certificates has no effect with Frontend.use_plain_http: turn one of them off, or let the proxy in front ask for certificates and turn the first one off"
        );
    }
    Ok(None)
}

fn tls(config: &ServerConfig) -> Result<ServerTls> {
    let frontend = config.frontend();
    let crypto = config.client().crypto.clone().unwrap_or_default();
    let mut tls = match (frontend.tls_certificate_filename.as_str(), frontend.tls_private_key_filename.as_str()) {
        ("", "") => ServerTls::from_pem(frontend.certificate.as_bytes(), frontend.private_key.expose().as_bytes())?,
        (certificate, key) if !certificate.is_empty() && !key.is_empty() => {
            let read = |name: &str, path: &str| fs::read(path).with_context(|| format!("{name} cannot be read: {path}"));
            ServerTls::from_pem(&read("Frontend.tls_certificate_filename", certificate)?, &read("Frontend.tls_private_key_filename", key)?)?
        }
        _ => bail!("Frontend.tls_certificate_filename and Frontend.tls_private_key_filename need each other: set both or none"),
    };
    if frontend.require_client_certificates {
        let roots = format!("{}\n{}", config.client().ca_certificate, crypto.root_certs);
        tls = tls.require_client_certificates(roots.as_bytes())?;
    }
    Ok(tls.allow_weak(crypto.allow_weak_tls_server).nist_curves_only(config.talon().nist_curves_only))
}

fn limits(config: &ServerConfig) -> FrontendLimits {
    let resources = config.resources();
    let stock = FrontendLimits::default();
    let size = |value: u64, default: usize| if value == 0 { default } else { usize::try_from(value).unwrap_or(default) };
    let expected = size(resources.expected_clients, 10_000);
    FrontendLimits {
        max_upload_size: size(resources.max_upload_size, stock.max_upload_size),
        body_budget: stock.body_budget.max(size(resources.max_upload_size, 0).saturating_mul(8)),
        global_upload_rate: resources.global_upload_rate,
        per_client_upload_rate: resources.per_client_upload_rate,
        concurrency: size(resources.concurrency, stock.concurrency),
        concurrency_timeout: match resources.concurrency_timeout {
            0 => stock.concurrency_timeout,
            seconds => Duration::from_secs(seconds),
        },
        connections_per_second: match resources.connections_per_second {
            0 => stock.connections_per_second,
            count => u32::try_from(count.min(1000)).unwrap_or(1000),
        },
        idle_deadline: Duration::from_secs(if config.frontend().use_plain_http { 300 } else { 150 }),
        max_connections: expected.saturating_mul(4).max(1000),
        ping_interval: match config.client().ws_ping_wait_sec {
            0 => stock.ping_interval,
            seconds => Duration::from_secs(seconds),
        },
        ..stock
    }
}
