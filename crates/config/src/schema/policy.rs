//! Behaviour that can be tuned, and restrictions.

use crate::Secret;
use crate::section::section;

section! {
    /// Behaviour that can be tuned.
    Defaults {
        /// Hours that a hunt lives; 168 when not set.
        hunt_expiry_hours: i64,
        /// Minutes that a notebook cell runs; 10 when not set.
        notebook_cell_timeout_min: i64,
        /// The separator of exported CSV; `,` when not set.
        csv_delimiter: String,
        /// Seconds between updates of event tables; 120 when not set.
        event_max_wait: i64,
        /// Seconds of jitter; 20 when not set.
        event_max_wait_jitter: i64,
        /// Whether all agents are told of a new event table.
        event_change_notify_all_clients: bool,
        /// Unused.
        max_vfs_directory_size: u64,
        /// Directories of artifacts that count as built-in.
        artifact_definitions_directories: Vec<String>,
        /// Groups that are held in memory; 30000 when not set.
        max_in_memory_group_by: u64,
        /// Deprecated: see `security`.
        allowed_plugins: Vec<String>,
        /// Deprecated: see `security`.
        allowed_functions: Vec<String>,
        /// Deprecated: see `security`.
        allowed_accessors: Vec<String>,
        /// Seconds that policies are cached; 300 when not set.
        acl_lru_timeout_sec: u64,
        /// Seconds that unknown agents are remembered; 10 when not set, negative for off.
        unauthenticated_lru_timeout_sec: i64,
        /// Bytes to which sparse files grow; 100 MiB when not set.
        max_sparse_expand_size: u64,
        /// Whether the server keeps no events of its own.
        disable_server_events: bool,
        /// Unused.
        auth_redirect_template: String,
        /// Whether there is no button to isolate a host.
        disable_quarantine_button: bool,
        /// The theme of new users.
        default_theme: String,
        /// Rows in a message; 10000 when not set.
        max_rows: u64,
        /// Bytes in a message; 5 MiB when not set.
        max_row_buffer_size: u64,
        /// Deprecated: see `security`.
        lockdown_denied_permissions: Vec<String>,
        /// Deprecated: see `security`.
        certificate_validity_days: i64,
        /// Deprecated: see `security`.
        disable_inventory_service_external_access: bool,
        /// Seconds that rows are batched for; 100 when not set.
        max_batch_wait: u64,
        /// Bytes.
        notebook_memory_low_water_mark: u64,
        /// Bytes.
        notebook_memory_high_water_mark: u64,
        /// Notebook workers; 5 when not set, -1 for none.
        notebook_number_of_local_workers: i64,
        /// Their priority.
        notebook_worker_priority: i64,
        /// Exports at once; 10 when not set.
        export_concurrency: i64,
        /// Seconds of an export; 600 when not set.
        export_max_timeout_sec: i64,
        /// Versions of a notebook cell; 5 when not set.
        notebook_versions: i64,
        /// Seconds; 600 when not set.
        hunt_dispatcher_refresh_sec: i64,
        /// Seconds; 3 when not set.
        watch_plugin_frequency: i64,
        /// Events; 16384 when not set.
        watch_plugin_buffer_size: i64,
        /// Milliseconds; 10000 when not set, negative for none.
        notebook_wait_time_for_worker_ms: i64,
        /// Seconds between backups; 86400 when not set, negative for off.
        backup_period_seconds: i64,
        /// Seconds; 600 when not set, negative for off.
        client_info_housekeeping_period: i64,
        /// Whether user names are limited to ASCII.
        disable_unicode_usernames: bool,
        /// Seconds; 300 when not set.
        reindex_period_seconds: i64,
        /// Metadata of clients that can be searched.
        indexed_client_metadata: Vec<String>,
        /// Whether flows in flight are not asked after.
        disable_active_inflight_checks: bool,
        /// Whether internal events are stored.
        write_internal_events: bool,
        /// Deprecated: see `security`.
        denied_plugins: Vec<String>,
        /// Deprecated: see `security`.
        denied_functions: Vec<String>,
        /// Log lines of a flow; 100000 when not set.
        max_logs: u64,
        /// Rows; 50 when not set.
        notebook_default_new_cell_rows: u64,
        /// Deprecated: see `security`.
        denied_accessors: Vec<String>,
        /// Seconds; 60 when not set.
        inflight_check_time: i64,
        /// In a second; 100 when not set.
        hunt_dispatcher_refresh_rate: i64,
    }
}

section! {
    /// Restrictions of what queries on the server may do.
    Security {
        /// Where the `file` accessor may look; everywhere when empty.
        allowed_file_accessor_prefix: Vec<String>,
        /// Where the `fs` accessor may look; everywhere when empty.
        allowed_fs_accessor_prefix: Vec<String>,
        /// What encrypts secrets; `env://NAME` reads the environment.
        secrets_dek: Secret,
        /// Environment variables that queries do not see.
        shadowed_env_vars: Vec<String>,
        /// Whether credentials must be secrets.
        vql_must_use_secrets: bool,
        /// The only plugins; all when empty.
        allowed_plugins: Vec<String>,
        /// The only functions; all when empty.
        allowed_functions: Vec<String>,
        /// The only accessors; all when empty.
        allowed_accessors: Vec<String>,
        /// What lockdown takes away, instead of the built-in set.
        lockdown_denied_permissions: Vec<String>,
        /// Days that new certificates are valid; 365 when not set.
        certificate_validity_days: i64,
        /// Whether tools are not fetched from elsewhere.
        disable_inventory_service_external_access: bool,
        /// Plugins that are not there.
        denied_plugins: Vec<String>,
        /// Functions that are not there.
        denied_functions: Vec<String>,
        /// Accessors that are not there.
        denied_accessors: Vec<String>,
        /// Where the `file` accessor may not look.
        denied_file_accessor_prefix: Vec<String>,
        /// Where the `fs` accessor may not look.
        denied_fs_accessor_prefix: Vec<String>,
        /// Whether agents older than 0.6.8 are accepted. Read and never obeyed.
        allow_ancient_clients: bool,
    }
}
