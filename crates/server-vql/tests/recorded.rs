//! Queries of every kind of principal, decided as a stock server decided them: the recorded matrix, cell by cell.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failure ends the run")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, mpsc};
use std::time::Duration;

use talon_acl::{Policy, Restriction, Role, Unrestricted};
use talon_audit::{Log, MemoryStorage, SigningKey};
use talon_crypto::{RsaPrivateKey, SystemRng};
use talon_ids::{OrgId, Permission, Permissions};
use talon_proto::{ClientInfo, OrgRecord};
use talon_server::{Server, ServerOptions, Session, Settings, SystemClock, UserChange};
use talon_store::{Engine, Memory, Space};
use talon_vql::{CancelToken, Extensions, Kind, MemoryLog, Query, Registry, Value, parse};

static KEY: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::generate().unwrap());

const CLIENT: &str = "C.0000000000000001";

/// What a recorded query sees beside the usual variables.
fn variables(folder: &Path, principal: &str) -> Vec<(&'static str, String)> {
    vec![
        ("TMP", folder.display().to_string()),
        ("P", principal.to_owned()),
        ("CID", CLIENT.to_owned()),
        ("FID", "F.KNOWN".to_owned()),
        ("HID", "H.KNOWN".to_owned()),
        ("NB", "N.KNOWN".to_owned()),
        ("X", "X.nosuch".to_owned()),
    ]
}

fn registry() -> Registry {
    let mut registry = talon_endpoint_vql::registry();
    registry.merge(talon_server_vql::registry());
    registry
}

fn server(restriction: Arc<dyn Restriction>) -> Server {
    let engine = Arc::new(Memory::new());
    let mut extensions = Extensions::default();
    extensions.insert(Arc::new(talon_server_vql::accessors()));
    let mut settings = Settings::new("VelociraptorServer".parse().unwrap(), "bm9uY2U=");
    settings.client_config = "Client:\n  nonce: bm9uY2U=\n".into();
    let key = SigningKey::generate("test/audit", &SystemRng).unwrap();
    let server = Server::open(ServerOptions {
        settings,
        certificate_pem: String::new(),
        certificate_name: "VelociraptorServer".into(),
        key: KEY.clone(),
        engine: engine.clone(),
        audit: Arc::new(Log::open(Arc::new(MemoryStorage::default()), key, Arc::new(SystemRng)).unwrap()),
        restriction,
        clock: Arc::new(SystemClock),
        rng: Arc::new(SystemRng),
        registry: Arc::new(registry()),
        extensions,
        limits: talon_wire::Limits::default(),
    })
    .unwrap();
    let info = ClientInfo { client_id: CLIENT.into(), hostname: "web01".into(), system: "linux".into(), ..ClientInfo::default() };
    let put = move |txn: &mut dyn talon_store::Txn| {
        txn.put(&OrgId::root(), Space::Clients, CLIENT.as_bytes(), prost::Message::encode_to_vec(&info));
        Ok(())
    };
    engine.submit(Box::new(put)).wait().unwrap();
    server
}

/// The principals of the recording.
fn populate(server: &Server) {
    let root = OrgId::root();
    let second: OrgId = "OSEC".parse().unwrap();
    let users = server.users();
    let right = users.right_over(users.superuser(), std::slice::from_ref(&root)).unwrap();
    let receipt = server.org(&root).unwrap().record("VelociraptorServer", "org_create", talon_audit::Details::new()).unwrap();
    server.create_org(&right, receipt, OrgRecord { id: "OSEC".into(), name: "Second".into(), ..OrgRecord::default() }).unwrap();
    for yaml in [
        "name: Server.Information.Users\ntype: SERVER\nsources:\n  - query: SELECT 1 AS X FROM scope()\n",
        "name: Generic.Client.Stats\ntype: CLIENT_EVENT\nsources:\n  - query: SELECT * FROM clock()\n",
        "name: Windows.Remediation.QuarantineMonitor\ntype: CLIENT_EVENT\nrequired_permissions: [EXECVE]\nsources:\n  - query: SELECT * FROM clock()\n",
        "name: Linux.Sys.BashShell\nrequired_permissions: [EXECVE]\nparameters:\n  - name: Command\nsources:\n  - query: SELECT 1 AS X FROM scope()\n",
    ] {
        let name = yaml.lines().next().unwrap();
        if let Err(error) = server.own_session(&root).unwrap().set_artifact(yaml, "") {
            eprintln!("{name} is shipped: {error}");
        }
    }
    let only_query = || Policy::default().with_permissions(Permissions::of(&[Permission::AnyQuery]));
    for (name, org, policy) in [
        ("u_administrator", &root, Policy::of_roles([Role::Administrator])),
        ("u_analyst", &root, Policy::of_roles([Role::Analyst])),
        ("u_investigator", &root, Policy::of_roles([Role::Investigator])),
        ("u_api", &root, Policy::of_roles([Role::Api])),
        ("u_query", &root, only_query()),
        ("u_reader", &root, Policy::of_roles([Role::Reader])),
        ("u_victim", &root, Policy::of_roles([Role::Reader])),
        ("u_subadmin", &second, Policy::of_roles([Role::Administrator])),
    ] {
        let mut change = UserChange::of(name.parse().unwrap());
        change.create = true;
        change.policy = Some(policy);
        server.own_session(org).unwrap().change_user("user_create", std::slice::from_ref(org), change).unwrap();
    }
}

fn principal(recorded: &str) -> (&'static str, OrgId) {
    let name = match recorded {
        "administrator" => "u_administrator",
        "analyst" => "u_analyst",
        "investigator" => "u_investigator",
        "api" => "u_api",
        // The recorded grant of the permission took the place of the roles.
        "any_query only" | "reader+any_query" | "artifact_writer+any_query" | "org_admin+any_query" => "u_query",
        "administrator of OSEC (in OSEC)" => return ("u_subadmin", "OSEC".parse().unwrap()),
        "superuser" => "VelociraptorServer",
        other => panic!("the recording has a principal {other}"),
    };
    (name, OrgId::root())
}

/// The log of a query, which ends by itself or is ended soon.
fn log_of(session: &Session, vql: &str, variables: &[(&'static str, String)]) -> Vec<String> {
    let log = Arc::new(MemoryLog::default());
    let cancel = CancelToken::new();
    let mut environment = session.environment().log(log.clone()).cancel(cancel.clone());
    for (name, value) in variables {
        environment = environment.variable(*name, Value::from(value.as_str()));
    }
    let (done, ended) = mpsc::channel();
    let program = parse(vql).unwrap();
    let query = std::thread::spawn(move || {
        let scope = environment.open();
        for statement in &program.statements {
            for _ in Query::new(&scope, statement) {}
        }
        drop(scope);
        let _ = done.send(());
    });
    if ended.recv_timeout(Duration::from_millis(1_500)).is_err() {
        cancel.cancel("the case is over");
    }
    query.join().unwrap();
    log.take()
}

fn denied(log: &[String]) -> bool {
    log.iter().any(|line| {
        let line = line.to_ascii_lowercase();
        line.contains("permissiondenied") || line.contains("permission denied") || line.contains("locked down")
    })
}

/// Whether the server does not have the built-in at all: that it tells everybody.
fn refused(registry: &Registry, log: &[String]) -> bool {
    log.iter().filter_map(|line| line.split_once(": ")).any(|(name, reason)| {
        let signature = |kind| registry.signature(kind, name).and_then(|signature| signature.unavailable);
        [Kind::Plugin, Kind::Function].into_iter().filter_map(signature).any(|why| why == reason)
    })
}

/// Where this server decides otherwise on purpose; `docs/authorization.md` has the reasons.
fn differs(name: &str, principal: &str) -> bool {
    match name {
        // Stock servers forget the check.
        "netstat" | "cache file" | "query(org_id)" | "user_delete" | "user_options read" => true,
        // An administrator of the root organisation has no right to hunt in the other one; a stock server says so in other words.
        "hunt org_id" => principal == "administrator",
        // The recorded table had an event artifact already that the investigator may not collect.
        "add_client_monitoring" | "rm_client_monitoring" => principal == "investigator",
        _ => false,
    }
}

fn compare(file: &str, restriction: impl Fn(&Server) -> Server) {
    let Some(vectors) = std::env::var_os("TALON_VECTORS") else {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
        return;
    };
    let lines = std::fs::read_to_string(Path::new(&vectors).join("api").join(file)).unwrap();
    let open = server(Arc::new(Unrestricted));
    populate(&open);
    let server = restriction(&open);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in.txt"), "a,b\n1,2\n").unwrap();
    let registry = registry();
    let mut sessions: BTreeMap<String, Session> = BTreeMap::new();
    let (mut compared, mut wrong) = (0, Vec::new());
    for line in lines.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| case[key].as_str().unwrap();
        let verdict = text("verdict");
        if !matches!(verdict, "allowed" | "denied") || differs(text("name"), text("principal")) {
            continue;
        }
        let (name, org) = principal(text("principal"));
        let session = sessions.entry(name.to_owned()).or_insert_with(|| server.session(&name.parse().unwrap(), &org).unwrap());
        let log = log_of(session, text("vql"), &variables(folder.path(), name));
        if refused(&registry, &log) {
            continue;
        }
        compared += 1;
        if denied(&log) != (verdict == "denied") {
            wrong.push(format!("{} as {}: stock {verdict} {}, here {log:?}", text("name"), text("principal"), case["logs"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > 200, "only {compared} compared");
}

#[test]
fn queries_are_decided_as_a_stock_server_decides() {
    compare("matrix-vql.jsonl", Server::clone);
}
