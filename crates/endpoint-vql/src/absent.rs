//! Built-ins that this host does not have, by name: those of other platforms, those of the server, and those that have no sane implementation. A query
//! may mention them in a branch; a call says why there is nothing, and `version()` gives −1.

use talon_vql::{Kind, Registry, Signature};

use Kind::{Function as F, Plugin as P};

/// Built-ins of other platforms, with the platforms.
const ELSEWHERE: &[(Kind, &str, &str)] = &[
    (F, "xattr", "darwin"),
    (P, "vad", "darwin,windows"),
    (F, "amsi", "windows"),
    (F, "describe_address", "windows"),
    (F, "reg_rm_key", "windows"),
    (F, "reg_rm_value", "windows"),
    (F, "reg_set_value", "windows"),
    (F, "token", "windows"),
    (F, "winpmem", "windows"),
    (P, "certificates", "windows"),
    (P, "etw_sessions", "windows"),
    (P, "handles", "windows"),
    (P, "modules", "windows"),
    (P, "proc_dump", "windows"),
    (P, "threads", "windows"),
    (P, "users", "windows"),
    (P, "watch_etw", "windows"),
    (P, "winobj", "windows"),
    (P, "wmi", "windows"),
    (P, "wmi_events", "windows"),
];

/// Built-ins that are refused, by the reason.
const REFUSED: &[(&str, &[(Kind, &str)])] = &[
    (
        "only the server has this built-in",
        &[
            (F, "add_server_monitoring"),
            (F, "artifact_set_metadata"),
            (F, "client_create"),
            (F, "client_metadata"),
            (F, "client_set_metadata"),
            (F, "create_flow_download"),
            (F, "create_hunt_download"),
            (F, "create_notebook_download"),
            (F, "favorites_delete"),
            (F, "favorites_save"),
            (F, "file_store"),
            (F, "file_store_delete"),
            (F, "get_server_monitoring"),
            (F, "hunt"),
            (F, "hunt_add"),
            (F, "hunt_info"),
            (F, "hunt_update"),
            (F, "import_collection"),
            (F, "inventory_add"),
            (F, "inventory_get"),
            (F, "link_to"),
            (F, "notebook_create"),
            (F, "notebook_export"),
            (F, "notebook_get"),
            (F, "notebook_update"),
            (F, "notebook_update_cell"),
            (F, "org_create"),
            (F, "org_delete"),
            (F, "passwd"),
            (F, "rekey"),
            (F, "repack"),
            (F, "rm_server_monitoring"),
            (F, "secret_add"),
            (F, "secret_modify"),
            (F, "server_frontend_cert"),
            (F, "server_metadata"),
            (F, "server_set_metadata"),
            (F, "set_server_monitoring"),
            (F, "timeline_add"),
            (F, "timeline_delete"),
            (F, "user_options"),
            (P, "backup"),
            (P, "backup_restore"),
            (P, "client_delete"),
            (P, "deb_create"),
            (P, "delete_events"),
            (P, "delete_flow"),
            (P, "enumerate_flow"),
            (P, "favorites_list"),
            (P, "hunt_delete"),
            (P, "hunt_flows"),
            (P, "hunt_reindex"),
            (P, "hunt_results"),
            (P, "hunts"),
            (P, "inventory"),
            (P, "notebook_delete"),
            (P, "notebooks"),
            (P, "parallelize"),
            (P, "rpm_create"),
            (P, "secrets"),
            (P, "timeline"),
            (P, "timelines"),
        ],
    ),
    (
        "this build has no client for that service; collect the rows and send them on from the server",
        &[
            (F, "gcs_pubsub_publish"),
            (F, "upload_gcs"),
            (F, "upload_s3"),
            (F, "upload_sftp"),
            (F, "upload_smb"),
            (P, "adx_upload"),
            (P, "sql"),
        ],
    ),
    (
        "no maintained reader of this format may be linked in; upload the file and parse it elsewhere",
        &[
            (F, "authenticode"),
            (F, "lookupSID"),
            (F, "lzxpress_decompress"),
            (F, "parse_pkcs7"),
            (P, "index_search"),
            (P, "partitions"),
            (F, "parse_ntfs"),
            (F, "srum_lookup_id"),
            (P, "carve_usn"),
            (P, "olevba"),
            (P, "parse_ese"),
            (P, "parse_ese_catalog"),
            (P, "parse_evtx"),
            (P, "parse_mft"),
            (P, "parse_ntfs_i30"),
            (P, "parse_ntfs_ranges"),
            (P, "parse_pst"),
            (P, "parse_recyclebin"),
            (P, "parse_usn"),
            (P, "prefetch"),
            (P, "read_reg_key"),
            (P, "watch_evtx"),
            (P, "watch_usn"),
        ],
    ),
    ("there is no search engine in this build; write the rows with write_jsonl() and index them elsewhere", &[(P, "index")]),
    ("this build has no resolver that can be asked about other records than addresses", &[(F, "host")]),
    ("this engine is not part of this build", &[(F, "sigma_log_sources"), (P, "sigma")]),
    (
        "no maintained crate reads this kernel interface without unsafe code; watch_auditd() follows the log of the audit daemon",
        &[(P, "audit"), (P, "ebpf_events"), (P, "watch_ebpf")],
    ),
    ("a query that ends the program is not wanted", &[(P, "panic")]),
    (
        "script engines would more than double the size of the agent; use VQL functions",
        &[(F, "js"), (F, "js_call"), (F, "js_get"), (F, "js_set"), (F, "starl")],
    ),
    (
        "its container format belongs to another program; use write_jsonl() or write_csv()",
        &[(P, "read_crypto_file"), (P, "write_crypto_file")],
    ),
    ("this needs a kernel interface that this program does not use", &[(F, "pe_dump")]),
    ("not available in this version", &[(F, "killkillkill"), (F, "pk_decrypt"), (F, "pk_encrypt"), (P, "collect")]),
];

/// Adds the names. Built-ins that are there already stay, and those that come later take their place.
pub(crate) fn register(registry: &mut Registry) {
    for (kind, name, platforms) in ELSEWHERE {
        registry.elsewhere(*kind, name, platforms);
    }
    for (reason, names) in REFUSED {
        for (kind, name) in *names {
            const DOC: &str = "Known by name only.";
            let signature = match kind {
                P => Signature::plugin(name, DOC),
                F => Signature::function(name, DOC),
            };
            registry.unavailable(signature.unavailable(reason));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_vql::{Environment, MemoryLog, Query, Value, parse_statement};

    use super::*;

    fn run(vql: &str) -> (Vec<String>, Vec<String>) {
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(crate::registry())).log(log.clone()).open();
        let rows = Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| talon_vql::json::encode(&Value::from(row))).collect();
        (rows, log.take().into_iter().filter(|line| !line.starts_with("DEBUG")).collect())
    }

    #[test]
    fn a_refused_call_says_why_once_and_the_query_goes_on() {
        let (rows, log) = run("SELECT upload_s3(file='x', nonsense=1) AS X FROM range(end=2)");
        assert_eq!(rows, [r#"{"X":null}"#, r#"{"X":null}"#]);
        assert_eq!(log.len(), 1, "{log:?}");
        assert!(log[0].starts_with("upload_s3: "), "{log:?}");
        let (rows, log) = run("SELECT * FROM elastic_upload(query={ SELECT * FROM range(end=2) })");
        assert!(rows.is_empty());
        assert_eq!(log.len(), 1, "{log:?}");
    }

    #[test]
    fn what_another_platform_has_says_so() {
        let (rows, log) = run("SELECT * FROM wmi(query='x')");
        assert!(rows.is_empty());
        assert!(log.iter().any(|line| line.contains("only available for the following platforms [windows]")), "{log:?}");
        let (rows, _) =
            run("SELECT version(plugin='wmi') AS A, version(function='upload_s3') AS B, version(plugin='no_such') AS C FROM scope()");
        assert_eq!(rows, [r#"{"A":-1,"B":-1,"C":null}"#]);
    }

    #[test]
    fn no_row_hides_behind_a_built_in_that_is_there() {
        let registry = crate::registry();
        for (kind, name, _) in ELSEWHERE {
            assert!(registry.signature(*kind, name).is_none(), "{name} is there: remove its row");
        }
        for (kind, name) in REFUSED.iter().flat_map(|(_, names)| *names) {
            assert!(registry.signature(*kind, name).is_some_and(|found| found.unavailable.is_some()), "{name} is there: remove its row");
        }
    }
}
