//! What the configuration says about the API, in the terms of its crate.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use talon_api::{ApiAddress, ApiListenerSettings, ApiOptions, ApiService};
use talon_config::ServerConfig;
use talon_lockdown::PrefixRules;
use talon_pki::Identity;
use talon_server::{Server, Session};
use talon_vql::Environment;

use crate::listener::any_if_empty;

/// Where and as whom the API listens.
pub(crate) async fn settings(config: &ServerConfig) -> Result<ApiListenerSettings> {
    let (api, frontend) = (config.api(), config.frontend());
    let address = if api.bind_scheme == "unix" {
        ApiAddress::Unix(PathBuf::from(&api.bind_address))
    } else {
        let port = u16::try_from(api.bind_port).context("API.bind_port is above 65535")?;
        let host = any_if_empty(&api.bind_address);
        let mut addresses = tokio::net::lookup_host((host.as_str(), port)).await.context("API.bind_address")?;
        ApiAddress::Tcp(addresses.next().context("API.bind_address is no address of this host")?)
    };
    Ok(ApiListenerSettings {
        address,
        identity: Identity::from_pem(frontend.certificate.as_bytes(), frontend.private_key.expose())?,
        authorities: config.trust().clone(),
        allow_weak: config.client().crypto.as_ref().is_some_and(|crypto| crypto.allow_weak_tls_server),
    })
}

/// The API over a deployment.
pub(crate) fn service(config: &ServerConfig, server: Server) -> ApiService {
    let security = config.security();
    let (allowed, denied) = (&security.allowed_fs_accessor_prefix, &security.denied_fs_accessor_prefix);
    ApiService::new(ApiOptions {
        server,
        gateway: Some(config.gateway_name().to_owned()),
        stored_files: PrefixRules::for_stored(allowed.iter().map(String::as_str), denied.iter().map(String::as_str)),
        environment: Arc::new(environment),
    })
}

fn environment(session: &Session) -> Environment {
    talon_endpoint_vql::with_authority(session.environment(), Arc::new(session.authority().clone()))
}
