//! The `Client` section: what an agent is told, and what servers must agree with it about.

use std::collections::BTreeMap;

use super::{Logging, Version};
use crate::Secret;
use crate::section::section;

section! {
    /// The agent's section. Durations are in seconds and sizes in bytes unless a key says otherwise.
    Client {
        /// Labels that the agent reports.
        labels: Vec<String>,
        /// Where frontends are: `http`, `https`, `ws` or `wss`, each with a trailing `/`.
        server_urls: Vec<String>,
        /// A proxy for http and https.
        proxy: String,
        /// Proxies in detail.
        proxy_config: Option<ProxyConfig>,
        /// The authorities that are trusted, in PEM.
        ca_certificate: String,
        /// The organisation's secret, which maps an agent to it.
        nonce: Secret,
        /// Deprecated: messages are not compressed.
        disable_compression: bool,
        /// The state file on macOS.
        writeback_darwin: String,
        /// The state file on Linux.
        writeback_linux: String,
        /// The state file on Windows; `HKLM\…` is a registry key.
        writeback_windows: String,
        /// The second state file is the first one's path with this suffix.
        level2_writeback_suffix: String,
        /// The directory for temporary files on Linux.
        tempdir_linux: String,
        /// The directory for temporary files on Windows.
        tempdir_windows: String,
        /// The directory for temporary files on macOS.
        tempdir_darwin: String,
        /// How long the reader waits before it connects again; 1 when not set.
        min_poll: u64,
        /// The longest back-off; 60 when not set.
        max_poll: u64,
        /// Up to this much is added to a back-off; 30 when not set.
        max_poll_std: u64,
        /// Period of WebSocket pings; 60 when not set.
        ws_ping_wait_sec: u64,
        /// The watchdog's limit without a connection; off when not set.
        nanny_max_connection_delay: u64,
        /// Windows installation.
        windows_installer: Option<WindowsInstaller>,
        /// macOS installation.
        darwin_installer: Option<DarwinInstaller>,
        /// Whether the agent runs no commands.
        prevent_execve: bool,
        /// The agent's own version, set when it starts.
        version: Option<Version>,
        /// The version of the server that made this file.
        server_version: Option<Version>,
        /// Results are sent in batches that wait at most this long; 100 when not set.
        default_max_wait: u64,
        /// Whether only the deployment's own authority is trusted, and its certificate has the pinned name.
        use_self_signed_ssl: bool,
        /// The name in the frontend certificate; `VelociraptorServer` when not set.
        pinned_server_name: String,
        /// The largest body that the agent sends; 5242880 when not set.
        max_upload_size: u64,
        /// The buffer of results that wait for the server.
        local_buffer: Option<LocalBuffer>,
        /// The agent ends when it uses more memory than this; off when not set.
        max_memory_hard_limit: u64,
        /// Queries that run at once; 2 when not set.
        concurrency: u64,
        /// TLS in detail.
        "Crypto" => crypto: Option<CryptoConfig>,
        /// Limit of each step of a connection; 300 when not set.
        connection_timeout: u64,
        /// Period of the progress reports of flows; 5 when not set.
        default_server_flow_stats_update: u64,
        /// Period of the agent's report on itself; 86400 when not set, -1 for never.
        client_info_update_time: i64,
        /// `host:port` to `ip:port`, for when a name does not resolve.
        fallback_addresses: BTreeMap<String, String>,
        /// Whether flows in flight are not remembered.
        disable_checkpoints: bool,
        /// Event artifacts that always run.
        additional_event_artifacts: Vec<String>,
        /// An encrypted log in the directory for temporary files.
        logfile_name: String,
        /// The largest size of that log; 10 MiB when not set.
        logfile_size: u64,
        /// Where Windows services report a crash.
        panic_file: String,
        /// A debugging aid of stock agents that turns off name checks. Read and never obeyed.
        insecure_network_trace_file: String,
        /// Percentage of a processor on small machines; 50 when not set.
        low_resource_max_cpu: u64,
        /// Machines with fewer processors are small; 2 when not set.
        low_resource_cpu_count: u64,
        /// Minutes between refreshes of cached names; off when not set.
        dns_cache_refresh_min: u64,
        /// The agent's log files.
        "Logging" => logging: Option<Logging>,
    }
}

section! {
    /// Proxies by scheme, by pattern or by script.
    ProxyConfig {
        /// The proxy for https.
        https: String,
        /// The proxy for http.
        http: String,
        /// Regular expression on the URL to proxy; an empty proxy is a direct connection.
        proxy_url_regexp: BTreeMap<String, String>,
        /// URL of a proxy auto-configuration script.
        pac: String,
        /// Whether the environment's proxies are ignored.
        ignore_environment: bool,
    }
}

section! {
    /// Windows installation.
    WindowsInstaller {
        /// The service's name.
        service_name: String,
        /// Where the program is installed.
        install_path: String,
        /// The service's description.
        service_description: String,
    }
}

section! {
    /// macOS installation.
    DarwinInstaller {
        /// The service's name.
        service_name: String,
        /// Where the program is installed.
        install_path: String,
    }
}

section! {
    /// The buffer of results that wait for the server.
    LocalBuffer {
        /// Bytes in memory; 52428800 when the section is absent.
        memory_size: u64,
        /// Bytes on disk.
        disk_size: u64,
        /// The file on Linux.
        filename_linux: String,
        /// The file on Windows.
        filename_windows: String,
        /// The file on macOS.
        filename_darwin: String,
    }
}

section! {
    /// TLS in detail.
    CryptoConfig {
        /// Further trusted authorities, in PEM.
        root_certs: String,
        /// SHA-256 thumbprints of server certificates.
        certificate_thumbprints: Vec<String>,
        /// `PKI` (when not set), `PKI_OR_THUMBPRINT` or `THUMBPRINT_ONLY`.
        certificate_verification_mode: String,
        /// Whether listeners accept TLS 1.2.
        allow_weak_tls_server: bool,
        /// The certificate for mutual TLS, in PEM.
        client_certificate: String,
        /// Its private key.
        client_certificate_private_key: Secret,
    }
}
