//! What the configuration says about the way to servers, in the transport's terms.

use std::time::Duration;

use anyhow::{Result, bail};
use talon_config::{ClientConfig, ProxyConfig, VerificationMode};
use talon_transport::{LinkSettings, ProxySettings};

/// The settings of the link to servers.
pub(crate) fn settings(config: &ClientConfig) -> Result<LinkSettings> {
    let client = config.client();
    let mut settings = LinkSettings::new(client.ca_certificate.clone(), config.server_name());
    settings.use_self_signed_ssl = client.use_self_signed_ssl;
    settings.root_certs = client.crypto.as_ref().map(|crypto| crypto.root_certs.clone()).unwrap_or_default();
    settings.verification = match config.verification_mode() {
        VerificationMode::Pki => talon_transport::VerificationMode::Pki,
        VerificationMode::PkiOrThumbprint => talon_transport::VerificationMode::PkiOrThumbprint,
        VerificationMode::ThumbprintOnly => talon_transport::VerificationMode::ThumbprintOnly,
    };
    settings.thumbprints = config.thumbprints();
    settings.client_certificate = config.client_certificate().map(|(certificate, key)| (certificate.to_owned(), key.expose().to_owned()));
    if client.connection_timeout > 0 {
        settings.connection_timeout = Duration::from_secs(client.connection_timeout);
    }
    if client.ws_ping_wait_sec > 0 {
        settings.ping_interval = Duration::from_secs(client.ws_ping_wait_sec);
    }
    settings.fallback_addresses = client.fallback_addresses.clone();
    settings.proxy = proxy(&client.proxy, client.proxy_config.as_ref())?;
    Ok(settings)
}

fn proxy(both: &str, detailed: Option<&ProxyConfig>) -> Result<ProxySettings> {
    let stated = |url: &str| Some(url.to_owned()).filter(|url| !url.is_empty());
    let Some(detailed) = detailed else {
        return Ok(ProxySettings { http: stated(both), https: stated(both), ..ProxySettings::default() });
    };
    if !detailed.pac.is_empty() {
        bail!("Client.proxy_config.pac is not supported: name the proxies with http, https or proxy_url_regexp");
    }
    Ok(ProxySettings {
        http: stated(&detailed.http).or_else(|| stated(both)),
        https: stated(&detailed.https).or_else(|| stated(both)),
        by_url: detailed.proxy_url_regexp.iter().map(|(pattern, url)| (pattern.clone(), url.clone())).collect(),
        ignore_environment: detailed.ignore_environment,
    })
}
