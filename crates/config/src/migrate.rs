//! What older files mean today, and the values that stand for "not set".

use talon_crypto::sha256;

use crate::Secret;
use crate::schema::{Config, Frontend, FrontendResources, Security, Version};

/// Rewrites what older versions kept elsewhere. Running it twice changes nothing more.
pub(crate) fn migrate(config: &mut Config) {
    derive_obfuscation_nonce(config);
    if let Some(frontend) = &mut config.frontend {
        move_resources(frontend);
        for extra in &mut config.extra_frontends {
            extra.resources.clone_from(&frontend.resources);
        }
    }
    if let Some(datastore) = &mut config.datastore {
        if datastore.location.is_empty() {
            datastore.location.clone_from(&datastore.filestore_directory);
        }
        for path in [&mut datastore.location, &mut datastore.filestore_directory] {
            while path.len() > 1 && path.ends_with(['/', '\\']) {
                path.pop();
            }
        }
    }
    move_restrictions(config);
}

/// The version of this program, as it goes into files that it writes.
pub(crate) fn own_version() -> Version {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Version {
        name: "talon".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        system: system.to_owned(),
        architecture: architecture.to_owned(),
        ..Version::default()
    }
}

/// Files from before there was a nonce: it is derived from the frontend's key, so that all frontends find the same one.
fn derive_obfuscation_nonce(config: &mut Config) {
    if let Some(frontend) = &config.frontend
        && config.obfuscation_nonce.is_empty()
        && !frontend.private_key.is_empty()
    {
        let digest = sha256(frontend.private_key.expose().as_bytes());
        config.obfuscation_nonce = Secret::new(data_encoding::HEXLOWER.encode(&digest));
    }
}

fn move_resources(frontend: &mut Frontend) {
    if frontend.resources.is_some() {
        return;
    }
    frontend.resources = Some(FrontendResources {
        concurrency: std::mem::take(&mut frontend.concurrency),
        max_upload_size: std::mem::take(&mut frontend.max_upload_size),
        expected_clients: std::mem::take(&mut frontend.expected_clients),
        per_client_upload_rate: std::mem::take(&mut frontend.per_client_upload_rate),
        global_upload_rate: std::mem::take(&mut frontend.global_upload_rate),
        client_event_max_wait: std::mem::take(&mut frontend.client_event_max_wait),
        ..FrontendResources::default()
    });
}

/// Restrictions that older files keep under `defaults`: lists are appended to those under `security`.
fn move_restrictions(config: &mut Config) {
    let Some(defaults) = &mut config.defaults else { return };
    let mut security = config.security.take().unwrap_or_default();
    security.allowed_plugins.append(&mut defaults.allowed_plugins);
    security.allowed_functions.append(&mut defaults.allowed_functions);
    security.allowed_accessors.append(&mut defaults.allowed_accessors);
    security.denied_plugins.append(&mut defaults.denied_plugins);
    security.denied_functions.append(&mut defaults.denied_functions);
    security.denied_accessors.append(&mut defaults.denied_accessors);
    security.lockdown_denied_permissions.append(&mut defaults.lockdown_denied_permissions);
    if security.certificate_validity_days == 0 {
        security.certificate_validity_days = defaults.certificate_validity_days;
    }
    security.disable_inventory_service_external_access |= defaults.disable_inventory_service_external_access;
    config.security = Some(security);
}

/// Fills what a server needs and the file leaves to us.
pub(crate) fn fill_server(config: &mut Config) {
    let version = own_version();
    if let Some(resources) = config.frontend.as_mut().and_then(|frontend| frontend.resources.as_mut()) {
        let or = |value: u64, default| if value == 0 { default } else { value };
        resources.expected_clients = or(resources.expected_clients, 10_000);
        resources.connections_per_second = or(resources.connections_per_second, 100).min(1000);
        resources.notifications_per_second = or(resources.notifications_per_second, 10);
        resources.max_upload_size = or(resources.max_upload_size, 5_000_000);
    }
    if let Some(api) = &mut config.api
        && api.pinned_gw_name.is_empty()
    {
        api.pinned_gw_name = talon_pki::DEFAULT_GATEWAY_NAME.to_owned();
    }
    let defaults = config.defaults.get_or_insert_default();
    if defaults.hunt_expiry_hours == 0 {
        defaults.hunt_expiry_hours = 168;
    }
    if defaults.notebook_cell_timeout_min == 0 {
        defaults.notebook_cell_timeout_min = 10;
    }
    config.security.get_or_insert_with(Security::default);
    if let Some(client) = &mut config.client {
        client.server_version =
            Some(Version { name: String::new(), system: String::new(), architecture: String::new(), ..version.clone() });
    }
    config.version = Some(version);
}

/// Fills what an agent needs and the file leaves to us.
pub(crate) fn fill_client(config: &mut Config) {
    let version = own_version();
    if let Some(client) = &mut config.client {
        if client.server_version.is_none() {
            client.server_version = client.version.take();
        }
        client.version = Some(version.clone());
        let buffer = client.local_buffer.get_or_insert_default();
        if buffer.memory_size == 0 {
            buffer.memory_size = 50 * 1024 * 1024;
        }
        if client.max_poll == 0 {
            client.max_poll = 60;
        }
        if client.max_upload_size == 0 {
            client.max_upload_size = 5_242_880;
        }
    }
    config.version = Some(version);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::decode;

    fn migrated(text: &str) -> Config {
        let mut config: Config = decode("f.yaml", text, 0).unwrap();
        migrate(&mut config);
        let once = config.clone();
        migrate(&mut config);
        assert_eq!(config, once);
        config
    }

    #[test]
    fn limits_move_into_resources() {
        let old = migrated("Frontend: {concurrency: 7, max_upload_size: 9}\nExtraFrontends: [{hostname: b}]\n");
        let frontend = old.frontend.unwrap();
        let resources = frontend.resources.unwrap();
        assert_eq!((resources.concurrency, resources.max_upload_size, frontend.concurrency), (7, 9, 0));
        assert_eq!(old.extra_frontends[0].resources.as_ref(), Some(&resources));
        let new = migrated("Frontend: {concurrency: 7, resources: {concurrency: 3}}\n");
        assert_eq!(new.frontend.unwrap().resources.unwrap().concurrency, 3);
    }

    #[test]
    fn restrictions_move_into_security() {
        let config = migrated(
            "defaults: {allowed_plugins: [b], denied_functions: [c], certificate_validity_days: 9}\nsecurity: {allowed_plugins: [a]}\n",
        );
        let security = config.security.unwrap();
        assert_eq!((security.allowed_plugins, security.denied_functions), (vec!["a".into(), "b".into()], vec!["c".into()]));
        assert_eq!(security.certificate_validity_days, 9);
        assert!(config.defaults.unwrap().allowed_plugins.is_empty());
    }

    #[test]
    fn datastore_paths_lose_their_last_separator() {
        let config = migrated("Datastore: {filestore_directory: /data/}\n").datastore.unwrap();
        assert_eq!((config.location.as_str(), config.filestore_directory.as_str()), ("/data", "/data"));
    }
}
