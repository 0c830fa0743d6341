//! The server's listeners, stores and logs.

use super::ProxyConfig;
use crate::Secret;
use crate::section::section;

section! {
    /// The gRPC listener.
    Api {
        /// The name for connections from elsewhere; `Frontend.hostname` when not set.
        hostname: String,
        /// The address, or the path of a unix socket.
        bind_address: String,
        /// The port.
        bind_port: u32,
        /// `tcp` or `unix`.
        bind_scheme: String,
        /// The name in the gateway's certificate; `GRPC_GW` when not set.
        pinned_gw_name: String,
    }
}

section! {
    /// A client of the API: the whole of an `api.config.yaml`.
    ApiClientConfig {
        /// The authorities that are trusted, in PEM.
        ca_certificate: String,
        /// The client's certificate, in PEM.
        client_cert: String,
        /// Its private key.
        client_private_key: Secret,
        /// `host:port` or `unix://path`.
        api_connection_string: String,
        /// The user's name, which the certificate carries too.
        name: String,
        /// The name in the server's certificate.
        pinned_server_name: String,
        /// The largest message that the client receives; 4 MiB when not set.
        max_grpc_recv_size: u64,
    }
}

section! {
    /// The certificate authority.
    Ca {
        /// Its private key, in PEM.
        private_key: Secret,
    }
}

section! {
    /// The listener for agents.
    Frontend {
        /// The public name.
        hostname: String,
        /// The address.
        bind_address: String,
        /// The port.
        bind_port: u32,
        /// What all URLs begin with.
        base_path: String,
        /// Whether TLS ends before this server.
        use_plain_http: bool,
        /// Whether agents need a client certificate.
        require_client_certificates: bool,
        /// A proxy for http and https.
        proxy: String,
        /// Proxies in detail.
        proxy_config: Option<ProxyConfig>,
        /// The internal certificate, in PEM.
        certificate: String,
        /// Its private key.
        private_key: Secret,
        /// The file of an external certificate chain.
        tls_certificate_filename: String,
        /// The file of its private key.
        tls_private_key_filename: String,
        /// Unused.
        dns_name: String,
        /// Whether queries are sent as they are written.
        do_not_compress_artifacts: bool,
        /// Dynamic DNS.
        dyn_dns: Option<DynDns>,
        /// The header with an agent's address.
        proxy_header: String,
        /// What agents monitor at first.
        default_client_monitoring_artifacts: Vec<String>,
        /// What the server monitors at first.
        default_server_monitoring_artifacts: Vec<String>,
        /// What is collected on the server at its first start.
        initial_server_artifacts: Vec<String>,
        /// The user that the server runs as.
        run_as_user: String,
        /// Connections in the internal pool; 10 when not set.
        "GRPC_pool_max_size" => grpc_pool_max_size: i64,
        /// Seconds that a connection of the internal pool is waited for; 6000 when not set.
        "GRPC_pool_max_wait" => grpc_pool_max_wait: i64,
        /// Limits.
        resources: Option<FrontendResources>,
        /// Runtime only.
        is_minion: bool,
        /// A directory of artifacts.
        artifact_definitions_directory: String,
        /// Log lines that match mark a collection as failed.
        collection_error_regex: String,
        /// Deprecated: see `resources`.
        concurrency: u64,
        /// Deprecated: see `resources`.
        max_upload_size: u64,
        /// Deprecated: see `resources`.
        expected_clients: u64,
        /// Deprecated: see `resources`.
        per_client_upload_rate: u64,
        /// Deprecated: see `resources`.
        global_upload_rate: u64,
        /// Deprecated: see `resources`.
        client_event_max_wait: u64,
        /// Deprecated.
        do_not_redirect: bool,
    }
}

section! {
    /// Dynamic DNS.
    DynDns {
        /// `noip` or `cloudflare`.
        "type" => kind: String,
        /// The user's name.
        ddns_username: String,
        /// The password.
        ddns_password: Secret,
        /// Where updates are sent.
        update_url: String,
        /// Seconds between checks; 60 when not set.
        frequency: i64,
        /// What says our address.
        checkip_url: String,
        /// Who is asked for the present record.
        dns_server: String,
        /// The API token.
        api_token: Secret,
        /// The zone.
        zone_name: String,
        /// The host, if it is not `Frontend.hostname`.
        ddns_hostname: String,
    }
}

section! {
    /// Limits of a frontend.
    FrontendResources {
        /// New connections in a second; 100 when not set, at most 1000.
        connections_per_second: u64,
        /// Hunt notifications in a second; 10 when not set.
        notifications_per_second: u64,
        /// Enrolments in a second; 100 when not set.
        enrollments_per_second: i64,
        /// Senders that are handled at once; twice the processors when not set.
        concurrency: u64,
        /// Ignored.
        target_heap_size: u64,
        /// Bodies of twice this size are refused; 5000000 when not set.
        max_upload_size: u64,
        /// Agents that are expected; 10000 when not set.
        expected_clients: u64,
        /// Bytes in a second from one agent; unlimited when not set.
        per_client_upload_rate: u64,
        /// Bytes in a second from all agents; unlimited when not set.
        global_upload_rate: u64,
        /// Unused.
        client_event_max_wait: u64,
        /// Seconds that a sender waits for its turn; 600 when not set.
        concurrency_timeout: u64,
        /// Unused.
        minion_batch_wait_time_ms: u64,
        /// Unused.
        index_snapshot_frequency: u64,
        /// Unused.
        client_info_lru_ttl: u64,
        /// Bytes; 1 GiB when not set.
        max_journal_buffer_size: u64,
        /// Milliseconds; 10000 when not set.
        client_info_sync_time: u64,
        /// Seconds; 300 when not set.
        client_info_write_time: u64,
        /// Seconds that log lines of a query are batched for.
        default_log_batch_time: u64,
        /// The same for monitoring queries.
        default_monitoring_log_batch_time: u64,
        /// Unused.
        disable_file_buffering: bool,
    }
}

section! {
    /// Where data is stored.
    Datastore {
        /// The stock engine's name; not used here.
        implementation: String,
        /// The directory.
        location: String,
        /// The directory of files.
        filestore_directory: String,
        /// Unused here.
        memcache_expiration_sec: i64,
        /// Unused here.
        memcache_write_mutation_buffer: i64,
        /// Unused here.
        memcache_write_mutation_writers: i64,
        /// Unused here.
        minion_implementation: String,
        /// Unused here.
        master_implementation: String,
        /// Unused here.
        memcache_write_mutation_max_age: i64,
        /// Unused here.
        memcache_datastore_max_size: i64,
        /// Unused here.
        memcache_datastore_max_item_size: i64,
        /// Unused here.
        memcache_datastore_max_dir_size: i64,
        /// Unused here.
        max_dir_size: i64,
        /// Unused here.
        memcache_write_mutation_min_age: i64,
        /// Megabytes that stay free; 50 when not set, -1 for no check.
        min_allowed_file_space_mb: i64,
        /// Seconds between checks of the free space; 10 when not set.
        disk_check_frequency_sec: i64,
        /// Unused here.
        memcache_write_max_memory: i64,
        /// Unused here.
        remote_datastore_rpc_deadline: i64,
        /// `zlib` or `none`.
        compression: String,
        /// Unused here.
        max_object_size: i64,
    }
}

section! {
    /// Log files.
    Logging {
        /// The directory; no files when not set.
        output_directory: String,
        /// One file for each component.
        separate_logs_per_component: bool,
        /// Seconds after which a new file begins.
        rotation_time: u64,
        /// Seconds that a file is kept.
        max_age: u64,
        /// The debug level.
        debug: Option<LogRotation>,
        /// The info level.
        info: Option<LogRotation>,
        /// The error level.
        error: Option<LogRotation>,
        /// `host[:port]` of a syslog server.
        remote_syslog_server: String,
        /// `udp` (when not set), `tcp` or `tls`.
        remote_syslog_protocol: String,
        /// The components that are sent there.
        remote_syslog_components: Vec<String>,
    }
}

section! {
    /// The files of one level.
    LogRotation {
        /// Seconds after which a new file begins.
        rotation_time: u64,
        /// Seconds that a file is kept.
        max_age: u64,
        /// Whether the level is not written.
        disabled: bool,
    }
}

section! {
    /// The metrics listener.
    Monitoring {
        /// The address.
        bind_address: String,
        /// The port.
        bind_port: u32,
        /// Unused.
        metrics_url: String,
    }
}

section! {
    /// What further frontends have differently.
    MinionOverrides {
        /// Notebook workers.
        notebook_number_of_local_workers: i64,
        /// Their priority.
        notebook_worker_priority: i64,
    }
}
