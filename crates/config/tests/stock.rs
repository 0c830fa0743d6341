//! Files of stock programs: read, checked, and written back in the same form.

#![allow(clippy::unwrap_used, reason = "a failure ends the run")]

use std::path::{Path, PathBuf};

use talon_config::{ClientConfig, Configuration, ServerConfig};
use talon_pki::Purpose;

fn configs() -> Option<PathBuf> {
    match std::env::var_os("TALON_VECTORS") {
        Some(vectors) => Some(Path::new(&vectors).join("configs")),
        None => {
            eprintln!("SKIPPED: TALON_VECTORS is not set");
            None
        }
    }
}

fn read(folder: &Path, name: &str) -> Configuration {
    Configuration::from_file(&folder.join(name)).unwrap()
}

#[test]
fn a_stock_servers_file_is_a_servers_configuration() {
    let Some(folder) = configs() else { return };
    let server = ServerConfig::new(read(&folder, "server.config.yaml")).unwrap();
    assert_eq!((server.server_name(), server.gateway_name()), ("VelociraptorServer", "GRPC_GW"));
    assert_eq!((server.frontend().bind_port, server.frontend().use_plain_http), (18010, true));
    assert_eq!(server.api_connection_string(), "127.0.0.1:18011");
    assert_eq!(server.data_directory(), Path::new("/srv/v/datastore"));
    assert_eq!(server.audit_directory(), Path::new("/srv/v/datastore"));
    assert_eq!(server.obfuscation_nonce().expose(), "rLs33H2runw=");
    assert_eq!((server.resources().expected_clients, server.resources().max_upload_size), (30_000, 104_857_600));
    let frontend = server.frontend_identity().certificate();
    assert!(server.trust().verify(frontend.der(), Purpose::Server, frontend.not_before()).is_ok());
    assert!(server.authority().is_ok());
}

#[test]
fn stock_agents_files_are_agents_configurations() {
    let Some(folder) = configs() else { return };
    for (name, url, nonce) in [
        ("client-http.config.yaml", "http://localhost:18020/", "3vVleQrRXzs="),
        ("client-org.config.yaml", "http://localhost:18021/", "fIkWzzTKFRM="),
        ("client-ws.config.yaml", "ws://localhost:18030/", "3vVleQrRXzs="),
    ] {
        let agent = ClientConfig::new(read(&folder, name)).unwrap();
        assert_eq!(agent.client().server_urls, [url]);
        assert_eq!(agent.client().nonce.expose(), nonce);
        assert_eq!(agent.server_name(), "VelociraptorServer");
        if cfg!(target_os = "linux") {
            let paths = agent.writeback(&|_| None).unwrap();
            assert_eq!(paths.level1, Path::new("/srv/v/velociraptor.writeback.yaml"));
            assert_eq!(paths.level2.as_deref(), Some(Path::new("/srv/v/velociraptor.writeback.yaml.bak")));
        }
    }
}

/// Stock programs and this one write the same bytes, but for quotes that both may leave out or put around version numbers and dates.
#[test]
fn files_are_written_as_stock_programs_write_them() {
    let Some(folder) = configs() else { return };
    for name in ["server.config.yaml", "client-http.config.yaml", "client-org.config.yaml", "client-ws.config.yaml"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let written = read(&folder, name).to_yaml().unwrap();
        for (number, (ours, theirs)) in written.lines().zip(text.lines()).enumerate() {
            assert_eq!(ours.replace('"', ""), theirs.replace('"', ""), "{name}, line {}", number + 1);
        }
        assert_eq!(written.lines().count(), text.lines().count(), "{name}");
    }
}

#[test]
fn an_agent_starts_with_a_servers_file_and_holds_nothing_of_the_server() {
    let Some(folder) = configs() else { return };
    let agent = ClientConfig::new(read(&folder, "server.config.yaml")).unwrap();
    let text = agent.configuration().to_yaml().unwrap();
    assert!(!text.contains("PRIVATE KEY") && !text.contains("rLs33H2runw="));
}
