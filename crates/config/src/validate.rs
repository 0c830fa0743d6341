//! Checks that servers and agents share, and the making of their errors.

use talon_pki::{PkiError, TrustBundle};

use crate::ConfigError;
use crate::schema::Client;

/// Checks the `Client` section; the result is the trust that its authorities give.
pub(crate) fn client_section(client: &Client, origin: &str) -> Result<TrustBundle, ConfigError> {
    const COPY: &str = "copy it from the server's file, or make the client's file with 'talon config client'";
    if client.ca_certificate.is_empty() {
        return Err(missing(origin, "No Client.ca_certificate configured", COPY));
    }
    if client.nonce.is_empty() {
        return Err(missing(origin, "No Client.nonce configured", COPY));
    }
    if client.server_urls.is_empty() {
        return Err(missing(origin, "No Client.server_urls configured", "list the URLs of the frontends, as https://host:8000/"));
    }
    for url in &client.server_urls {
        let schemes = ["https://", "http://", "wss://", "ws://"];
        if !schemes.iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.starts_with('/'))) {
            return Err(value(origin, "Client.server_urls", &format!("{url:?} must begin with https, http, wss or ws and name a host")));
        }
        if !url.ends_with('/') {
            return Err(value(origin, "Client.server_urls", &format!("Configuration Client.server_urls must end with /: {url:?}")));
        }
    }
    TrustBundle::from_pem(client.ca_certificate.as_bytes()).map_err(|error| key_material(origin, "Client.ca_certificate", &error))
}

pub(crate) fn missing(origin: &str, text: &'static str, cure: &'static str) -> ConfigError {
    ConfigError::Missing { origin: origin.to_owned(), text, cure }
}

pub(crate) fn value(origin: &str, key: &'static str, problem: &str) -> ConfigError {
    ConfigError::Value { origin: origin.to_owned(), key, problem: problem.to_owned() }
}

pub(crate) fn key_material(origin: &str, key: &'static str, error: &PkiError) -> ConfigError {
    ConfigError::KeyMaterial { origin: origin.to_owned(), key, problem: error.to_string() }
}

/// Address ranges.
pub(crate) mod ranges {
    use std::net::IpAddr;

    /// Whether `text` is an address with a prefix length.
    pub(crate) fn is_cidr(text: &str) -> bool {
        let Some((address, prefix)) = text.split_once('/') else { return false };
        match (address.parse::<IpAddr>(), prefix.parse::<u8>()) {
            (Ok(IpAddr::V4(_)), Ok(length)) => length <= 32,
            (Ok(IpAddr::V6(_)), Ok(length)) => length <= 128,
            _ => false,
        }
    }
}
