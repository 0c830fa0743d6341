//! A complete new server configuration: the values of stock deployments, and fresh keys.

use talon_crypto::{Rng, random_array};
use talon_pki::{Authority, DEFAULT_GATEWAY_NAME, DEFAULT_SERVER_NAME, Identity, LeafProfile, UnixTime};

use crate::merge::MergePatch;
use crate::migrate::own_version;
use crate::schema::*;
use crate::server::{certificate_validity, or_default};
use crate::{ConfigError, Configuration, Secret};

/// Makes a server configuration with its own authority. Patches apply in their order, also to what the certificates are made from: names and
/// validity.
///
/// # Errors
/// [`ConfigError::Generate`], or what the patches refuse.
pub fn generate(patches: &[MergePatch], rng: &dyn Rng, now: UnixTime) -> Result<Configuration, ConfigError> {
    let template = Configuration { stock: template(), talon: TalonSettings::default(), origin: "config generate".to_owned() };
    let mut configuration = template.clone();
    add_keys(&mut configuration.stock, &template.merge(patches)?.stock, rng, now)?;
    configuration.merge(patches)
}

/// Adds nonces, keys and certificates for the names in `wanted`.
fn add_keys(config: &mut Config, wanted: &Config, rng: &dyn Rng, now: UnixTime) -> Result<(), ConfigError> {
    let make = ConfigError::Generate;
    let validity = certificate_validity(&wanted.security.clone().unwrap_or_default());
    let server_name = wanted.client.as_ref().map(|client| client.pinned_server_name.as_str()).unwrap_or_default();
    let gateway_name = wanted.api.as_ref().map(|api| api.pinned_gw_name.as_str()).unwrap_or_default();
    let authority = Authority::generate(rng, now).map_err(make)?;
    let (client_nonce, obfuscation_nonce) = (nonce(rng), nonce(rng));
    let issue = |profile: LeafProfile| authority.issue(&profile.valid_for(validity), rng, now).map_err(make);
    let frontend_identity = issue(LeafProfile::frontend(or_default(server_name, DEFAULT_SERVER_NAME)))?;
    let gateway_identity = issue(LeafProfile::gateway(or_default(gateway_name, DEFAULT_GATEWAY_NAME)))?;
    let key = |identity: &Identity| identity.private_key_pem().map(|pem| Secret::new(pem.as_str())).map_err(make);

    let client = config.client.get_or_insert_default();
    client.ca_certificate = authority.certificate().pem();
    client.nonce = client_nonce;
    let frontend = config.frontend.get_or_insert_default();
    frontend.certificate = frontend_identity.certificate().pem();
    frontend.private_key = key(&frontend_identity)?;
    let gui = config.gui.get_or_insert_default();
    gui.gw_certificate = gateway_identity.certificate().pem();
    gui.gw_private_key = key(&gateway_identity)?;
    config.ca = Some(Ca { private_key: Secret::new(authority.private_key_pem().map_err(make)?.as_str()) });
    config.obfuscation_nonce = obfuscation_nonce;
    Ok(())
}

/// Everything but keys. An agent and a server on one machine work with it as it is.
fn template() -> Config {
    let version = own_version();
    let rotation = || Some(LogRotation { rotation_time: 604_800, max_age: 31_536_000, disabled: false });
    let (windows_program, writeback) = ("$ProgramFiles\\Velociraptor\\Velociraptor.exe", "/etc/velociraptor.writeback.yaml");
    let buffer = "/var/tmp/Velociraptor_Buffer.bin";
    let datastore = if cfg!(windows) { "C:\\Windows\\Temp" } else { "/var/tmp/talon/" };
    Config {
        client: Some(Client {
            server_urls: vec!["https://localhost:8000/".to_owned()],
            writeback_darwin: writeback.to_owned(),
            writeback_linux: writeback.to_owned(),
            writeback_windows: "$ProgramFiles\\Velociraptor\\velociraptor.writeback.yaml".to_owned(),
            level2_writeback_suffix: ".bak".to_owned(),
            tempdir_windows: "$ProgramFiles\\Velociraptor\\Tools".to_owned(),
            max_poll: 60,
            nanny_max_connection_delay: 600,
            windows_installer: Some(WindowsInstaller {
                service_name: "Velociraptor".to_owned(),
                install_path: windows_program.to_owned(),
                service_description: "Velociraptor service".to_owned(),
            }),
            darwin_installer: Some(DarwinInstaller {
                service_name: "com.velocidex.velociraptor".to_owned(),
                install_path: "/usr/local/bin/velociraptor".to_owned(),
            }),
            server_version: Some(Version { version: version.version.clone(), ..Version::default() }),
            use_self_signed_ssl: true,
            max_upload_size: 5_242_880,
            local_buffer: Some(LocalBuffer {
                memory_size: 52_428_800,
                disk_size: 1_073_741_824,
                filename_linux: buffer.to_owned(),
                filename_windows: "$TEMP/Velociraptor_Buffer.bin".to_owned(),
                filename_darwin: buffer.to_owned(),
            }),
            ..Client::default()
        }),
        version: Some(version),
        api: Some(Api { bind_address: "127.0.0.1".to_owned(), bind_port: 8001, bind_scheme: "tcp".to_owned(), ..Api::default() }),
        gui: Some(Gui {
            bind_address: "127.0.0.1".to_owned(),
            bind_port: 8889,
            public_url: "https://localhost:8889/app/index.html".to_owned(),
            authenticator: Some(Authenticator { kind: "Basic".to_owned(), ..Authenticator::default() }),
            ..Gui::default()
        }),
        frontend: Some(Frontend {
            hostname: "localhost".to_owned(),
            bind_address: "0.0.0.0".to_owned(),
            bind_port: 8000,
            dyn_dns: Some(DynDns::default()),
            default_client_monitoring_artifacts: vec!["Generic.Client.Stats".to_owned()],
            grpc_pool_max_size: 100,
            grpc_pool_max_wait: 60,
            resources: Some(FrontendResources {
                connections_per_second: 100,
                notifications_per_second: 30,
                max_upload_size: 104_857_600,
                expected_clients: 30_000,
                ..FrontendResources::default()
            }),
            ..Frontend::default()
        }),
        datastore: Some(Datastore {
            implementation: "FileBaseDataStore".to_owned(),
            location: datastore.to_owned(),
            filestore_directory: datastore.to_owned(),
            compression: "zlib".to_owned(),
            ..Datastore::default()
        }),
        logging: Some(Logging {
            separate_logs_per_component: true,
            debug: Some(LogRotation { disabled: true, ..LogRotation::default() }),
            info: rotation(),
            error: rotation(),
            ..Logging::default()
        }),
        monitoring: Some(Monitoring { bind_address: "127.0.0.1".to_owned(), bind_port: 8003, ..Monitoring::default() }),
        api_config: Some(ApiClientConfig::default()),
        defaults: Some(Defaults { hunt_expiry_hours: 168, notebook_cell_timeout_min: 10, ..Defaults::default() }),
        security: Some(Security::default()),
        ..Config::default()
    }
}

/// 64 random bits in base64, the form of stock deployments.
fn nonce(rng: &dyn Rng) -> Secret {
    Secret::new(data_encoding::BASE64.encode(&random_array::<8>(rng)))
}
