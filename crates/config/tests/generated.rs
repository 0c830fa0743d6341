//! Generated configurations: their shape, the agent's file that is derived, and that what is written is what is read.

#![allow(clippy::unwrap_used, reason = "a failure ends the run")]

use std::sync::LazyLock;
use std::time::Duration;

use expect_test::expect;
use proptest::prelude::*;
use talon_config::*;
use talon_crypto::SystemRng;
use talon_ids::UserName;
use talon_pki::{Purpose, UnixTime};

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn generated(patch: &str) -> Result<Configuration, ConfigError> {
    generate(&[MergePatch::parse("--merge", patch)?], &SystemRng, at(NOW))
}

static PLAIN: LazyLock<Configuration> = LazyLock::new(|| generated("{}").unwrap());

fn server(configuration: &Configuration) -> ServerConfig {
    ServerConfig::new(configuration.clone()).unwrap()
}

/// The text with the lines of PEM blocks and nonces taken out.
fn redacted(text: &str) -> String {
    let mut out = String::new();
    let mut in_pem = false;
    for line in text.lines() {
        in_pem &= !line.contains("-----END ");
        match line.split_once(": ") {
            _ if in_pem => {}
            Some((key, value)) if key.ends_with("nonce") => {
                assert_eq!(value.len(), 12);
                out.push_str(&format!("{key}: …\n"));
            }
            Some((key @ ("  system" | "  architecture" | "    system" | "    architecture"), _)) => out.push_str(&format!("{key}: …\n")),
            _ => out.push_str(&format!("{line}\n")),
        }
        in_pem |= line.contains("-----BEGIN ");
    }
    out.replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

#[test]
fn the_shape_of_a_new_servers_file() {
    expect![[r#"
        version:
          name: talon
          version: "VERSION"
          system: …
          architecture: …
        Client:
          server_urls:
          - https://localhost:8000/
          ca_certificate: |
            -----BEGIN CERTIFICATE-----
            -----END CERTIFICATE-----
          nonce: …
          writeback_darwin: /etc/velociraptor.writeback.yaml
          writeback_linux: /etc/velociraptor.writeback.yaml
          writeback_windows: $ProgramFiles\Velociraptor\velociraptor.writeback.yaml
          level2_writeback_suffix: .bak
          tempdir_windows: $ProgramFiles\Velociraptor\Tools
          max_poll: 60
          nanny_max_connection_delay: 600
          windows_installer:
            service_name: Velociraptor
            install_path: $ProgramFiles\Velociraptor\Velociraptor.exe
            service_description: Velociraptor service
          darwin_installer:
            service_name: com.velocidex.velociraptor
            install_path: /usr/local/bin/velociraptor
          server_version:
            version: "VERSION"
          use_self_signed_ssl: true
          max_upload_size: 5242880
          local_buffer:
            memory_size: 52428800
            disk_size: 1073741824
            filename_linux: /var/tmp/Velociraptor_Buffer.bin
            filename_windows: $TEMP/Velociraptor_Buffer.bin
            filename_darwin: /var/tmp/Velociraptor_Buffer.bin
        API:
          bind_address: "127.0.0.1"
          bind_port: 8001
          bind_scheme: tcp
        GUI:
          bind_address: "127.0.0.1"
          bind_port: 8889
          gw_certificate: |
            -----BEGIN CERTIFICATE-----
            -----END CERTIFICATE-----
          gw_private_key: |
            -----BEGIN RSA PRIVATE KEY-----
            -----END RSA PRIVATE KEY-----
          public_url: https://localhost:8889/app/index.html
          authenticator:
            type: Basic
        CA:
          private_key: |
            -----BEGIN RSA PRIVATE KEY-----
            -----END RSA PRIVATE KEY-----
        Frontend:
          hostname: localhost
          bind_address: "0.0.0.0"
          bind_port: 8000
          certificate: |
            -----BEGIN CERTIFICATE-----
            -----END CERTIFICATE-----
          private_key: |
            -----BEGIN RSA PRIVATE KEY-----
            -----END RSA PRIVATE KEY-----
          dyn_dns: {}
          default_client_monitoring_artifacts:
          - Generic.Client.Stats
          GRPC_pool_max_size: 100
          GRPC_pool_max_wait: 60
          resources:
            connections_per_second: 100
            notifications_per_second: 30
            max_upload_size: 104857600
            expected_clients: 30000
        Datastore:
          implementation: FileBaseDataStore
          location: /var/tmp/talon/
          filestore_directory: /var/tmp/talon/
          compression: zlib
        Logging:
          separate_logs_per_component: true
          debug:
            disabled: true
          info:
            rotation_time: 604800
            max_age: 31536000
          error:
            rotation_time: 604800
            max_age: 31536000
        Monitoring:
          bind_address: "127.0.0.1"
          bind_port: 8003
        api_config: {}
        obfuscation_nonce: …
        defaults:
          hunt_expiry_hours: 168
          notebook_cell_timeout_min: 10
        security: {}
    "#]]
    .assert_eq(&redacted(&PLAIN.to_yaml().unwrap()));
}

#[test]
fn an_agents_file_is_derived() {
    let client = server(&PLAIN).client_config(None).unwrap();
    expect![[r#"
        version:
          name: talon
          version: "VERSION"
          system: …
          architecture: …
        Client:
          server_urls:
          - https://localhost:8000/
          ca_certificate: |
            -----BEGIN CERTIFICATE-----
            -----END CERTIFICATE-----
          nonce: …
          writeback_darwin: /etc/velociraptor.writeback.yaml
          writeback_linux: /etc/velociraptor.writeback.yaml
          writeback_windows: $ProgramFiles\Velociraptor\velociraptor.writeback.yaml
          level2_writeback_suffix: .bak
          tempdir_windows: $ProgramFiles\Velociraptor\Tools
          max_poll: 60
          nanny_max_connection_delay: 600
          windows_installer:
            service_name: Velociraptor
            install_path: $ProgramFiles\Velociraptor\Velociraptor.exe
            service_description: Velociraptor service
          darwin_installer:
            service_name: com.velocidex.velociraptor
            install_path: /usr/local/bin/velociraptor
          version:
            name: talon
            version: "VERSION"
            system: …
            architecture: …
          server_version:
            version: "VERSION"
          use_self_signed_ssl: true
          max_upload_size: 5242880
          local_buffer:
            memory_size: 52428800
            disk_size: 1073741824
            filename_linux: /var/tmp/Velociraptor_Buffer.bin
            filename_windows: $TEMP/Velociraptor_Buffer.bin
            filename_darwin: /var/tmp/Velociraptor_Buffer.bin
    "#]]
    .assert_eq(&redacted(&client.configuration().to_yaml().unwrap()));
    let org = server(&PLAIN).client_config(Some(Secret::new("other"))).unwrap();
    assert_eq!(org.client().nonce.expose(), "other");
    assert_eq!(org.client().ca_certificate, client.client().ca_certificate);
}

#[test]
fn no_secret_of_the_server_reaches_an_agents_file() {
    let patch = r#"{
        "GUI": {"authenticator": {"oauth_client_secret": "SECRET-1", "saml_private_key": "SECRET-2", "sub_authenticators": [{"oauth_client_secret": "SECRET-3"}]},
                "initial_users": [{"name": "a", "password_hash": "SECRET-4", "password_salt": "SECRET-5"}], "initial_orgs": [{"nonce": "SECRET-6"}]},
        "Frontend": {"dyn_dns": {"ddns_password": "SECRET-7", "api_token": "SECRET-8"}},
        "security": {"secrets_dek": "SECRET-9"},
        "api_config": {"client_private_key": "SECRET-10"},
        "ExtraFrontends": [{"private_key": "SECRET-11"}],
        "talon": {"server": {"audit": {"origin": "SERVER-ONLY"}}, "agent": {"denied_permissions": ["EXECVE"]}}
    }"#;
    let configuration = generated(patch).unwrap();
    let whole = configuration.to_yaml().unwrap();
    (1..=11).for_each(|number| assert!(whole.contains(&format!("SECRET-{number}")), "SECRET-{number}"));
    let stock = &configuration.stock;
    let (frontend, gui, ca) = (stock.frontend.as_ref().unwrap(), stock.gui.as_ref().unwrap(), stock.ca.as_ref().unwrap());
    let client = server(&configuration).client_config(None).unwrap();
    let text = client.configuration().to_yaml().unwrap().to_string();
    for secret in [&ca.private_key, &frontend.private_key, &gui.gw_private_key, &stock.obfuscation_nonce] {
        assert!(!text.contains(secret.expose().trim()));
        let middle = secret.expose().lines().nth(secret.expose().lines().count() / 2).unwrap();
        assert!(!text.contains(middle));
    }
    assert!(!text.contains("SECRET") && !text.contains("SERVER-ONLY") && !text.contains("PRIVATE KEY"), "{text}");
    assert!(text.contains("---\ntalon:\n  agent:\n    denied_permissions:\n    - EXECVE\n"), "{text}");
    assert!(!format!("{:?}", server(&configuration)).contains("SECRET"));
}

#[test]
fn patches_reach_the_certificates() {
    let patch =
        r#"{"Client": {"pinned_server_name": "Hawk"}, "API": {"pinned_gw_name": "Gate"}, "security": {"certificate_validity_days": 30}}"#;
    let server = server(&generated(patch).unwrap());
    assert_eq!((server.server_name(), server.gateway_name()), ("Hawk", "Gate"));
    let frontend = server.frontend_identity().certificate();
    assert_eq!(frontend.subject_name(), "Hawk");
    assert_eq!(frontend.not_after(), at(NOW + 30 * 86_400));
}

#[test]
fn api_clients_get_a_certificate_and_an_address() {
    let server = server(&generated(r#"{"API": {"bind_address": "0.0.0.0", "hostname": "api.example.com"}}"#).unwrap());
    let user: UserName = "alice@example.com".parse().unwrap();
    let config = server.api_client(&user, &SystemRng, at(NOW)).unwrap();
    let text = config.to_yaml().unwrap();
    let keys: Vec<_> = text.lines().filter(|line| !line.starts_with(' ')).map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(keys, ["ca_certificate", "client_cert", "client_private_key", "api_connection_string", "name"]);
    let again = ApiClientConfig::from_text("api.config.yaml", &text).unwrap();
    let connection = ApiConnection::new(&again, "api.config.yaml").unwrap();
    assert_eq!(connection.address, ApiAddress::Tcp("api.example.com:8001".to_owned()));
    assert_eq!((connection.server_name.as_str(), connection.max_receive), ("VelociraptorServer", 4 << 20));
    let caller = server.trust().verify(connection.identity.certificate().der(), Purpose::Client, at(NOW)).unwrap();
    assert_eq!(caller.name(), "alice@example.com");
    for reserved in ["VelociraptorServer", "velociraptorserver", "grpc_gw"] {
        let error = server.api_client(&reserved.parse().unwrap(), &SystemRng, at(NOW)).unwrap_err().to_string();
        assert!(error.contains("Username is reserved"), "{error}");
    }
}

#[test]
fn what_is_missing_is_named() {
    for (patch, message) in [
        (r#"{"API": null}"#, "No API config"),
        (r#"{"GUI": null}"#, "No GUI config"),
        (r#"{"GUI": {"gw_certificate": null}}"#, "No GUI.gw_certificate config"),
        (r#"{"GUI": {"gw_private_key": null}}"#, "No GUI.gw_private_key config"),
        (r#"{"Frontend": null}"#, "No Frontend config"),
        (r#"{"Frontend": {"hostname": null}}"#, "No Frontend.hostname config"),
        (r#"{"Frontend": {"certificate": null}}"#, "No Frontend.certificate config"),
        (r#"{"Frontend": {"private_key": null}}"#, "No Frontend.private_key config"),
        (r#"{"Datastore": null}"#, "No Datastore config"),
        (r#"{"Client": null}"#, "Client config is required"),
        (r#"{"Client": {"ca_certificate": null}}"#, "No Client.ca_certificate configured"),
        (r#"{"Client": {"nonce": null}}"#, "No Client.nonce configured"),
        (r#"{"Client": {"server_urls": []}}"#, "No Client.server_urls configured"),
        (r#"{"Client": {"server_urls": ["https://a"]}}"#, "Client.server_urls: Configuration Client.server_urls must end with /"),
        (r#"{"Client": {"server_urls": ["ftp://a/"]}}"#, "Client.server_urls: \"ftp://a/\" must begin with"),
        (r#"{"Client": {"ca_certificate": "x"}}"#, "Client.ca_certificate: no CERTIFICATE block"),
        (r#"{"Frontend": {"certificate": "x"}}"#, "Frontend.certificate: no CERTIFICATE block"),
        (r#"{"Frontend": {"private_key": "x"}}"#, "Frontend.private_key: the private key is malformed"),
        (r#"{"CA": {"private_key": "x"}}"#, "CA.private_key: the private key is malformed"),
        (r#"{"Datastore": {"compression": "zip"}}"#, "Datastore.compression: this must be zlib or none"),
        (r#"{"GUI": {"public_url": "https://a/"}}"#, "GUI.public_url: this must end in /app/index.html"),
        (r#"{"GUI": {"base_path": "/a/"}}"#, "GUI.base_path: this must be like"),
        (r#"{"GUI": {"allowed_cidr": ["10.0.0.0/33"]}}"#, "GUI.allowed_cidr: Invalid CIDR Range 10.0.0.0/33 for GUI.allowed_cidr"),
        (r#"{"security": {"lockdown_denied_permissions": ["FLY"]}}"#, "security.lockdown_denied_permissions: \"FLY\" is not a permission"),
        (r#"{"API": {"bind_port": 70000}}"#, "API.bind_port: this must be a port"),
    ] {
        let mut broken = PLAIN.clone().merge(&[MergePatch::parse("--merge", patch).unwrap()]).unwrap();
        broken.origin = "server.config.yaml".to_owned();
        let error = ServerConfig::new(broken).unwrap_err().to_string();
        assert!(error.starts_with(&format!("server.config.yaml: {message}")), "{patch}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_key_that_belongs_elsewhere_is_refused() {
    let mut mixed = PLAIN.clone();
    mixed.stock.frontend.as_mut().unwrap().private_key = mixed.stock.gui.as_ref().unwrap().gw_private_key.clone();
    let error = ServerConfig::new(mixed).unwrap_err().to_string();
    assert!(error.contains("Frontend.private_key: the private key does not belong to the certificate"), "{error}");
}

#[test]
fn a_server_runs_without_the_authoritys_key() {
    let mut offline = PLAIN.clone();
    offline.stock.ca = None;
    let server = server(&offline);
    let error = server.api_client(&"admin".parse().unwrap(), &SystemRng, at(NOW)).unwrap_err().to_string();
    assert!(error.contains("Config with valid CA is required: run this with the copy"), "{error}");
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    let findings = |patch: &str, now: u64| -> Vec<String> {
        let configuration = PLAIN.clone().merge(&[MergePatch::parse("--merge", patch).unwrap()]).unwrap();
        check(&configuration, at(now)).into_iter().map(|finding| format!("{}: {}", finding.severity.word(), finding.text)).collect()
    };
    assert!(findings("{}", NOW).iter().all(|finding| finding.starts_with("note:")), "{:#?}", findings("{}", NOW));
    for (patch, now, expected) in [
        (r#"{"GUI": {"bind_port": 8001}}"#, NOW, "error: GUI.bind_port and API.bind_port are both 8001"),
        (r#"{"GUI": {"bind_port": 8000}}"#, NOW, "note: Frontend and GUI share port 8000"),
        ("{}", NOW + 330 * 86_400, "warning: Frontend.certificate expires in 35 days"),
        ("{}", NOW + 366 * 86_400, "error: GUI.gw_certificate has expired"),
        ("{}", NOW - 5 * 86_400, "error: Client.ca_certificate is not valid yet"),
        (r#"{"Mail": {}}"#, NOW, "note: Mail has no effect"),
        (r#"{"defaults": {"allowed_plugins": ["a"]}}"#, NOW, "note: restrictions in defaults are deprecated"),
        (r#"{"GUI": {"bind_address": "0.0.0.0"}}"#, NOW, "warning: the GUI is reachable from all networks"),
        (r#"{"Monitoring": {"bind_address": "0.0.0.0"}}"#, NOW, "warning: Monitoring has neither TLS nor a login"),
        (r#"{"Client": {"pinned_server_name": "Other"}}"#, NOW, "error: Frontend.certificate is named \"VelociraptorServer\""),
        (r#"{"Frontend": {"hostname": null}}"#, NOW, "error: config generate: No Frontend.hostname config"),
    ] {
        let found = findings(patch, now);
        assert!(found.iter().any(|finding| finding.starts_with(expected)), "{patch}: {found:#?}");
    }
    let foreign = generated("{}").unwrap();
    let mut mixed = PLAIN.clone();
    mixed.stock.client.as_mut().unwrap().ca_certificate = foreign.stock.client.unwrap().ca_certificate;
    mixed.stock.ca = None;
    let found = check(&mixed, at(NOW));
    assert!(
        found.iter().any(|finding| finding.text.starts_with("Frontend.certificate is not signed by Client.ca_certificate")),
        "{found:#?}"
    );
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~\n\t]{0,60}",
        prop::sample::select(vec![
            "y",
            "No",
            "010",
            "1e3",
            "null",
            "~",
            "2026-11-24",
            "---\nx",
            "...",
            "a: b",
            "# c",
            " x ",
            "1:30",
            "<<",
            "=",
            "\r\n"
        ])
        .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_what_is_read(
        words in prop::collection::vec(text(), 8),
        numbers in any::<(u64, i64, u32, bool)>(),
        map in prop::collection::btree_map(text(), text(), 0..4),
        present in any::<[bool; 4]>(),
    ) {
        let word = |index: usize| words[index].clone();
        let client = Client {
            labels: words.clone(), server_urls: vec![], proxy: word(0), nonce: Secret::new(word(1)), max_poll: numbers.0,
            client_info_update_time: numbers.1, prevent_execve: numbers.3, fallback_addresses: map.clone(), ca_certificate: word(2),
            proxy_config: present[0].then(|| ProxyConfig { proxy_url_regexp: map.clone(), ..ProxyConfig::default() }),
            ..Client::default()
        };
        let gui = Gui {
            bind_port: numbers.2,
            links: vec![GuiLink { text: word(3), kind: word(4), ..GuiLink::default() }, GuiLink::default()],
            authenticator: present[1].then(|| Authenticator { sub_authenticators: vec![Authenticator::default(); 2], ..Authenticator::default() }),
            ..Gui::default()
        };
        let talon = TalonSettings { agent: present[3].then(|| TalonAgent { denied_permissions: words.clone() }), server: None };
        let stock = Config {
            client: present[2].then_some(client), gui: Some(gui), obfuscation_nonce: Secret::new(word(5)), org_id: word(6),
            lockdown: numbers.3, security: Some(Security::default()), ..Config::default()
        };
        let configuration = Configuration { stock, talon, origin: "f.yaml".to_owned() };
        let written = configuration.to_yaml().unwrap();
        prop_assert_eq!(Configuration::from_text("f.yaml", &written).map_err(|error| error.to_string()), Ok(configuration), "{}", &*written);
    }
}
