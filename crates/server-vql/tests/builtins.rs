//! Built-ins against a server over a store in memory: what they give to who may, and what everybody else is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::{Arc, LazyLock};

use expect_test::expect;
use talon_acl::{Policy, Role, Unrestricted};
use talon_audit::{Log, MemoryStorage, SigningKey};
use talon_crypto::{RsaPrivateKey, SystemRng};
use talon_ids::{FlowId, OrgId, Target};
use talon_proto::{ArtifactCollectorContext, ClientInfo};
use talon_server::{Server, ServerOptions, Session, Settings, SystemClock, UserChange};
use talon_server_vql::{BY_REQUEST, PUBLIC};
use talon_store::{BlockEncoding, Engine, Memory, ObjectName, RowBlock, Scan, Space};
use talon_vql::{CancelToken, Dict, Kind, MemoryLog, Query, Registry, Value, json, parse};

static KEY: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::generate().unwrap());

const CLIENT: &str = "C.0000000000000001";
const FLOW: &str = "F.KNOWN";

struct Bench {
    server: Server,
    engine: Arc<Memory>,
}

impl Bench {
    fn new() -> Self {
        let engine = Arc::new(Memory::new());
        let mut registry = Registry::core();
        registry.merge(talon_server_vql::registry());
        let mut settings = Settings::new("VelociraptorServer".parse().unwrap(), "bm9uY2U=");
        settings.client_config = "Client:\n  nonce: bm9uY2U=\n".into();
        let server = Server::open(ServerOptions {
            settings,
            certificate_pem: String::new(),
            certificate_name: "VelociraptorServer".into(),
            key: KEY.clone(),
            engine: engine.clone(),
            audit: Arc::new(
                Log::open(Arc::new(MemoryStorage::default()), SigningKey::generate("test/audit", &SystemRng).unwrap(), Arc::new(SystemRng))
                    .unwrap(),
            ),
            restriction: Arc::new(Unrestricted),
            clock: Arc::new(SystemClock),
            rng: Arc::new(SystemRng),
            registry: Arc::new(registry),
            extensions: talon_vql::Extensions::default(),
            limits: talon_wire::Limits::default(),
        })
        .unwrap();
        let bench = Self { server, engine };
        bench.fill();
        bench.fill_shared();
        bench
    }

    /// One client with a running flow that has rows and log lines, artifacts, users.
    fn fill(&self) {
        for yaml in [
            "name: Test.Client\nsources:\n  - name: A\n    query: SELECT 1 AS X FROM scope()\n",
            "name: Test.Events\ntype: CLIENT_EVENT\nsources:\n  - query: SELECT * FROM clock()\n",
            "name: Test.ServerEvents\ntype: SERVER_EVENT\n",
        ] {
            self.root().set_artifact(yaml, "").unwrap();
        }
        let info = ClientInfo { client_id: CLIENT.into(), hostname: "web01".into(), system: "linux".into(), ..ClientInfo::default() };
        let mut flow =
            ArtifactCollectorContext { session_id: FLOW.into(), client_id: CLIENT.into(), ..ArtifactCollectorContext::default() };
        let mut request = talon_proto::ArtifactCollectorArgs { artifacts: vec!["Test.Client".into()], ..Default::default() };
        let query = talon_proto::VqlRequest { name: "Test.Client/A".into(), ..Default::default() };
        request.compiled_collector_args.push(talon_proto::VqlCollectorArgs { query: vec![query], ..Default::default() });
        flow.request = Some(request);
        let target: Target = CLIENT.parse().unwrap();
        let flow_id: FlowId = FLOW.parse().unwrap();
        let rows = talon_server::flow_rows(&target, &flow_id, &"Test.Client/A".parse().unwrap());
        let logs = talon_server::flow_logs(&target, &flow_id);
        let put = move |txn: &mut dyn talon_store::Txn| {
            let root = OrgId::root();
            txn.put(&root, Space::Clients, CLIENT.as_bytes(), prost::Message::encode_to_vec(&info));
            txn.put(&root, Space::Flows, format!("{CLIENT}\0{FLOW}").as_bytes(), prost::Message::encode_to_vec(&flow));
            txn.append_rows(&root, &rows, None, block("{\"X\":1}\n{\"X\":2}\n", 2))?;
            txn.append_rows(&root, &logs, None, block("{\"client_time\":1,\"level\":\"INFO\",\"message\":\"hello\"}\n", 1))?;
            Ok(())
        };
        self.engine.submit(Box::new(put)).wait().unwrap();
        self.user("victim", Policy::of_roles([Role::Reader]));
    }

    /// A hunt and a public notebook with fixed ids.
    fn fill_shared(&self) {
        let hunt = talon_proto::Hunt { hunt_id: "H.KNOWN".into(), state: 1, ..Default::default() };
        let notebook = talon_proto::NotebookMetadata { notebook_id: "N.KNOWN".into(), public: true, ..Default::default() };
        let put = move |txn: &mut dyn talon_store::Txn| {
            let root = OrgId::root();
            txn.put(&root, Space::Hunts, b"H.KNOWN", prost::Message::encode_to_vec(&hunt));
            txn.put(&root, Space::Settings, b"hunt_request\0H.KNOWN", Vec::new());
            txn.put(&root, Space::Notebooks, b"N.KNOWN", prost::Message::encode_to_vec(&notebook));
            Ok(())
        };
        self.engine.submit(Box::new(put)).wait().unwrap();
    }

    fn root(&self) -> Session {
        self.server.own_session(&OrgId::root()).unwrap()
    }

    fn user(&self, name: &str, policy: Policy) -> Session {
        let mut change = UserChange::of(name.parse().unwrap());
        change.create = true;
        change.policy = Some(policy);
        self.root().change_user("user_create", &[OrgId::root()], change).unwrap();
        self.server.session(&name.parse().unwrap(), &OrgId::root()).unwrap()
    }

    /// All state but the audit events, which refusals add to.
    fn state(&self) -> Vec<String> {
        let (root, reader) = (OrgId::root(), self.engine.reader());
        let records = Space::ALL.iter().flat_map(|space| {
            reader.scan(&root, *space, &Scan::default()).unwrap().into_iter().map(move |record| format!("{space:?} {record:?}"))
        });
        let objects = reader.objects(&root, &ObjectName::new(Vec::<String>::new())).unwrap().into_iter();
        let objects = objects.filter(|name| !name.components().iter().any(|part| part == "Server.Audit.Logs"));
        records.chain(objects.map(|name| format!("{name:?} {:?}", reader.table(&root, &name).unwrap()))).collect()
    }
}

fn block(rows: &'static str, count: u32) -> RowBlock {
    RowBlock { data: rows.into(), count, plain_len: rows.len() as u64, encoding: BlockEncoding::Plain }
}

/// Runs a query; gives its rows as JSON lines, and its log.
fn run(session: &Session, vql: &str) -> (Vec<String>, Vec<String>) {
    let log = Arc::new(MemoryLog::default());
    let scope = session.environment().log(log.clone()).open();
    let mut rows = Vec::new();
    for statement in &parse(vql).unwrap().statements {
        rows.extend(Query::new(&scope, statement).map(|row| json::encode(&Value::Dict(row))));
    }
    drop(scope);
    let lines = log.take().into_iter().filter(|line| !line.starts_with("DEBUG:"));
    (rows, lines.collect())
}

fn rows(session: &Session, vql: &str) -> Vec<String> {
    let (rows, log) = run(session, vql);
    assert!(log.is_empty(), "{vql}: {log:?}");
    rows
}

/// A call of each built-in that works for who may make it, and the refusal where the request decides.
const CALLS: &[(&str, &str, &str)] = &[
    ("add_client_monitoring", "add_client_monitoring(artifact='Test.Events')", ""),
    ("add_server_monitoring", "add_server_monitoring(artifact='Test.ServerEvents')", ""),
    ("artifact_definitions", "artifact_definitions()", ""),
    ("artifact_delete", "artifact_delete(name='Test.Client')", "PermissionDenied: Permission denied: [ARTIFACT_WRITER]"),
    ("artifact_set", "artifact_set(definition='name: Test.New')", "PermissionDenied: Permission denied: [ARTIFACT_WRITER]"),
    (
        "artifact_set_metadata",
        "artifact_set_metadata(name='Linux.Sys.Pslist', basic=TRUE)",
        "PermissionDenied: Permission denied: [ARTIFACT_WRITER]",
    ),
    ("cancel_flow", "cancel_flow(client_id=C, flow_id=F)", "PermissionDenied: Permission denied: [COLLECT_CLIENT]"),
    ("client_create", "client_create(client_id='C.00000000000000aa', hostname='n')", ""),
    ("client_delete", "client_delete(client_id='C.00000000000000aa', really_do_it=TRUE)", ""),
    ("client_info", "client_info(client_id=C)", ""),
    ("client_metadata", "client_metadata(client_id=C)", "PermissionDenied: Permission denied: [READ_RESULTS]"),
    ("client_set_metadata", "client_set_metadata(client_id=C, k='v')", "PermissionDenied: Permission denied: [COLLECT_CLIENT]"),
    ("clients", "clients()", ""),
    (
        "collect_client",
        "collect_client(client_id=C, artifacts='Test.Client')",
        "PermissionDenied: User nobody is not allowed to launch flows COLLECT_CLIENT.",
    ),
    ("create_flow_download", "create_flow_download(client_id=C, flow_id=F)", ""),
    ("create_hunt_download", "create_hunt_download(hunt_id='H.KNOWN')", ""),
    ("create_notebook_download", "create_notebook_download(notebook_id='N.KNOWN')", ""),
    ("delete_events", "delete_events(client_id='server', artifact='Test.ServerEvents', really_do_it=TRUE)", ""),
    ("delete_flow", "delete_flow(client_id=C, flow_id='F.NONE', really_do_it=TRUE)", ""),
    ("enumerate_flow", "enumerate_flow(client_id=C, flow_id=F)", ""),
    ("file_store", "file_store(path='/clients')", ""),
    ("flow_logs", "flow_logs(client_id=C, flow_id=F)", ""),
    ("flow_results", "flow_results(client_id=C, flow_id=F)", ""),
    ("flows", "flows(client_id=C)", ""),
    ("get_client_monitoring", "get_client_monitoring()", ""),
    ("get_flow", "get_flow(client_id=C, flow_id=F)", "PermissionDenied: Permission denied: [COLLECT_CLIENT]"),
    ("get_server_monitoring", "get_server_monitoring()", ""),
    ("hunt", "hunt(artifacts='Test.Client', pause=TRUE)", ""),
    ("hunt_add", "hunt_add(client_id=C, hunt_id='H.KNOWN', flow_id=F)", ""),
    ("hunt_delete", "hunt_delete(hunt_id='H.KNOWN')", ""),
    ("hunt_flows", "hunt_flows(hunt_id='H.KNOWN')", ""),
    ("hunt_info", "hunt_info(hunt_id='H.KNOWN')", ""),
    ("hunt_reindex", "hunt_reindex()", ""),
    ("hunt_results", "hunt_results(hunt_id='H.KNOWN')", ""),
    ("hunt_update", "hunt_update(hunt_id='H.KNOWN', description='d')", ""),
    ("hunts", "hunts()", ""),
    ("inventory_add", "inventory_add(tool='t', url='https://127.0.0.1:1/x')", ""),
    ("inventory_get", "inventory_get(tool='t')", ""),
    ("killkillkill", "killkillkill(client_id=C)", ""),
    ("label", "label(client_id=C, labels='x')", ""),
    ("lock_add", "lock_add(kind='client', name='C.00000000000000ff', reason='r')", "PermissionDenied: Permission denied: [SERVER_ADMIN]"),
    (
        "lock_remove",
        "lock_remove(id=get(item={ SELECT id FROM locks() }, member='id.0'))",
        "PermissionDenied: Permission denied: [SERVER_ADMIN]",
    ),
    ("locks", "locks()", "PermissionDenied: Permission denied: [SERVER_ADMIN]"),
    ("org_create", "org_create(name='n')", ""),
    ("org_delete", "org_delete(org='ONONE')", ""),
    ("passwd", "passwd(user='victim', password='longer')", "Error: PermissionDenied, User nobody is not admin on <root>."),
    ("role_set", "role_set(name='triage', permissions='READ_RESULTS')", ""),
    ("role_delete", "role_delete(name='triage')", ""),
    ("roles", "roles()", ""),
    ("monitoring", "monitoring(client_id='server', artifact='Server.Audit.Logs')", ""),
    ("monitoring_logs", "monitoring_logs(client_id=C, artifact='Test.Events')", ""),
    ("notebook_create", "notebook_create(name='n')", ""),
    ("notebook_delete", "notebook_delete(notebook_id='N.NONE', really_do_it=TRUE)", ""),
    ("notebook_export", "notebook_export(notebook_id='N.KNOWN')", ""),
    ("notebook_get", "notebook_get(notebook_id='N.KNOWN')", ""),
    ("notebook_update", "notebook_update(notebook_id='N.KNOWN', public=TRUE)", ""),
    ("notebook_update_cell", "notebook_update_cell(notebook_id='N.KNOWN', input='SELECT 1 AS X FROM scope()')", ""),
    ("notebooks", "notebooks()", ""),
    ("rm_server_monitoring", "rm_server_monitoring(artifact='Test.ServerEvents')", ""),
    ("rm_client_monitoring", "rm_client_monitoring(artifact='Test.Events')", ""),
    ("secret_add", "secret_add(name='s', type='HTTP Secrets', secret=dict(url='https://127.0.0.1:1/'))", ""),
    ("secret_modify", "secret_modify(name='s', type='HTTP Secrets', add_users='victim')", ""),
    ("secrets", "secrets()", ""),
    ("send_event", "send_event(artifact='Test.ServerEvents', row=dict(a=1))", "PermissionDenied: Permission denied: PUBLISH"),
    ("server_frontend_cert", "server_frontend_cert()", ""),
    ("server_metadata", "server_metadata()", ""),
    ("server_set_metadata", "server_set_metadata(k='v')", ""),
    ("set_server_monitoring", "set_server_monitoring(value=dict())", ""),
    ("set_client_monitoring", "set_client_monitoring(value=dict())", ""),
    ("source", "source(client_id=C, flow_id=F, artifact='Test.Client/A')", ""),
    ("parallelize", "parallelize(client_id=C, flow_id=F, artifact='Test.Client/A', query={ SELECT * FROM source() })", ""),
    (
        "timeline_add",
        "timeline_add(notebook_id='N.KNOWN', timeline='T', name='P', key='_value', query={ SELECT _value FROM range(end=2) })",
        "",
    ),
    ("timeline", "timeline(notebook_id='N.KNOWN', timeline='T')", ""),
    ("timelines", "timelines(notebook_id='N.KNOWN')", ""),
    ("timeline_delete", "timeline_delete(notebook_id='N.KNOWN', timeline='T')", ""),
    ("upload_transactions", "upload_transactions(client_id=C, flow_id=F)", ""),
    ("uploads", "uploads(client_id=C, flow_id=F)", ""),
    ("user", "user(user='victim')", "PermissionDenied: Permission denied: [READ_RESULTS]"),
    ("user_create", "user_create(user='new', roles='reader')", "Error: PermissionDenied, User nobody is not admin on <root>."),
    ("user_delete", "user_delete(user='victim', really_do_it=TRUE)", "Error: PermissionDenied, User nobody is not admin on <root>."),
    ("user_grant", "user_grant(user='victim', roles='administrator')", "Error: PermissionDenied, User nobody is not admin on <root>."),
    ("user_lock", "user_lock(user='victim')", "Error: PermissionDenied, User nobody is not admin on <root>."),
    ("user_options", "user_options(user='victim', lang='fr')", "Error: PermissionDenied, User nobody is not admin on <root>."),
    ("watch_monitoring", "watch_monitoring(artifact='Test.Events')", ""),
];

fn text_of(kind: Kind, call: &str) -> String {
    let prefix = format!("LET C <= '{CLIENT}' LET F <= '{FLOW}'");
    match kind {
        Kind::Plugin => format!("{prefix} SELECT * FROM {call}"),
        Kind::Function => format!("{prefix} SELECT {call} AS R FROM scope()"),
    }
}

#[test]
fn without_permission_a_call_gives_nothing_and_does_nothing() {
    let bench = Bench::new();
    let nobody = bench.user("nobody", Policy::default().with_queue("Some.Queue"));
    for signature in talon_server_vql::registry().signatures() {
        if PUBLIC.contains(&signature.name) {
            assert!(signature.permissions.is_empty(), "{}", signature.name);
            continue;
        }
        let call = CALLS.iter().find(|(name, ..)| *name == signature.name);
        let Some((name, call, refusal)) = call else { panic!("{} has no row in this test", signature.name) };
        assert_eq!(BY_REQUEST.contains(name), signature.permissions.is_empty(), "{name}: either its signature or its request decides");
        let declared = format!("PermissionDenied: Permission denied: {}", signature.permissions);
        let refusal = if signature.permissions.is_empty() { *refusal } else { &declared };
        let before = bench.state();
        let (rows, log) = run(&nobody, &text_of(signature.kind, call));
        assert!(log.contains(&format!("{name}: {refusal}")), "{name}: {log:?}");
        let nothing: &[&str] = if signature.kind == Kind::Plugin { &[] } else { &["{\"R\":null}"] };
        assert_eq!(rows, nothing, "{name}");
        assert_eq!(bench.state(), before, "{name} did something");
    }
}

#[test]
fn with_permission_the_same_calls_work() {
    let bench = Bench::new();
    let admin = bench.user("admin", Policy::of_roles([Role::Administrator]));
    for (name, call, _) in CALLS {
        if *name == "watch_monitoring" {
            continue;
        }
        let kind = if talon_server_vql::registry().signature(Kind::Plugin, name).is_some() { Kind::Plugin } else { Kind::Function };
        let (rows, log) = run(&Bench::new_admin(&bench, &admin), &text_of(kind, call));
        assert!(log.is_empty(), "{name}: {log:?}");
        assert!(kind == Kind::Plugin || rows.len() == 1, "{name}: {rows:?}");
        // Some calls delete what others need.
        bench.fill_again();
    }
}

impl Bench {
    fn new_admin(bench: &Self, admin: &Session) -> Session {
        bench.server.session(admin.principal(), &OrgId::root()).unwrap()
    }

    fn fill_again(&self) {
        if self.root().org().artifacts().get("Test.Client").is_none()
            || self.server.users().user(&"victim".parse().unwrap()).unwrap().is_none()
        {
            self.fill();
        }
    }
}

#[test]
fn results_come_out_as_they_were_stored() {
    let bench = Bench::new();
    let root = bench.root();
    assert_eq!(rows(&root, "SELECT client_id, os_info.hostname AS H FROM clients(search='host:web')").len(), 0, "not indexed");
    let found = rows(&root, "SELECT client_id, os_info.hostname AS H, os_info.system AS S FROM clients()");
    expect![[r#"["{\"client_id\":\"C.0000000000000001\",\"H\":\"web01\",\"S\":\"linux\"}"]"#]].assert_eq(&format!("{found:?}"));
    let call = format!("client_id='{CLIENT}', flow_id='{FLOW}'");
    assert_eq!(rows(&root, &format!("SELECT * FROM source({call}, artifact='Test.Client/A')")), [r#"{"X":1}"#, r#"{"X":2}"#]);
    assert_eq!(rows(&root, &format!("SELECT * FROM source({call}, artifact='Test.Client', start_row=1)")), [r#"{"X":2}"#]);
    let summed =
        format!("SELECT * FROM parallelize({call}, artifact='Test.Client', source='A', query={{ SELECT X + 1 AS Y FROM source() }})");
    assert_eq!(rows(&root, &summed), [r#"{"Y":2}"#, r#"{"Y":3}"#]);
    assert_eq!(rows(&root, &format!("SELECT * FROM source({call}, artifact='Test.Client', count=1)")), [r#"{"X":1}"#]);
    assert_eq!(rows(&root, &format!("SELECT * FROM flow_results({call}, artifact='Test.Client', source='A')")).len(), 2);
    assert_eq!(rows(&root, &format!("SELECT message FROM flow_logs({call})")), [r#"{"message":"hello"}"#]);
    assert_eq!(
        rows(&root, &format!("SELECT session_id, state FROM flows(client_id='{CLIENT}')")),
        [r#"{"session_id":"F.KNOWN","state":"RUNNING"}"#]
    );
    assert_eq!(rows(&root, "SELECT name FROM artifact_definitions(names='Test.Client')"), [r#"{"name":"Test.Client"}"#]);
}

#[test]
fn a_collection_is_scheduled_and_cancelled() {
    let bench = Bench::new();
    let alice = bench.user("alice", Policy::of_roles([Role::Investigator]));
    let vql = format!(
        "SELECT collect_client(client_id='{CLIENT}', artifacts='Test.Client', env=dict(N=3, On=TRUE), timeout=7) AS R FROM scope()"
    );
    let [row] = &rows(&alice, &vql)[..] else { panic!("one row") };
    let row = json::decode_row(row.as_bytes()).unwrap();
    let response = row.get("R").and_then(Value::as_dict).unwrap();
    let flow = response.get("flow_id").and_then(Value::as_str).unwrap().to_owned();
    let request = response.get("request").and_then(Value::as_dict).unwrap();
    assert_eq!(request.get("creator").and_then(Value::as_str), Some("alice"));
    let stored = bench.root().org().flow(&CLIENT.parse().unwrap(), &flow.parse().unwrap()).unwrap().unwrap().request.unwrap();
    let env = &stored.specs[0].parameters.as_ref().unwrap().env;
    assert_eq!(env.iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect::<Vec<_>>(), ["N=3", "On=Y"]);
    assert_eq!(stored.timeout, 7);
    assert_eq!(
        rows(&alice, &format!("SELECT cancel_flow(client_id='{CLIENT}', flow_id='{flow}').flow_id AS R FROM scope()")),
        [format!("{{\"R\":\"{flow}\"}}")]
    );
    let state = rows(&alice, &format!("SELECT get_flow(client_id='{CLIENT}', flow_id='{flow}').status AS R FROM scope()"));
    assert_eq!(state, [r#"{"R":"Cancelled by VQL query"}"#]);
}

#[test]
fn users_are_made_and_shown() {
    let bench = Bench::new();
    let root = bench.root();
    rows(&root, "SELECT user_create(user='TestUser', password='hunter2', roles=['reader', 'investigator']) FROM scope()");
    let shown = rows(&root, "SELECT name, roles FROM gui_users() WHERE name =~ 'TestUser'");
    assert_eq!(shown, [r#"{"name":"TestUser","roles":["reader","investigator"]}"#]);
    rows(&root, "LET _ <= user_grant(user='testuser', roles='reader', policy=dict(label_clients=TRUE))");
    let shown = rows(&root, "SELECT user(user='TestUser') AS U FROM scope()");
    let wanted = r#"{"U":{"name":"TestUser","org_id":"root","org_name":"\u003croot\u003e","picture":"","email":false,"stats":null,"roles":["reader"],"_policy":{"label_clients":true,"roles":["reader"]},"effective_policy":{"read_results":true,"label_clients":true}}}"#;
    assert_eq!(shown, [wanted]);
    let fits = |password: &str| bench.server.users().check_password(&"TESTUSER".parse().unwrap(), password, &SystemRng).unwrap();
    assert!(fits("hunter2") && !fits("hunter"));
    rows(&root, "SELECT user_delete(user='TestUser', really_do_it=TRUE) FROM scope()");
    assert!(bench.server.users().user(&"TestUser".parse().unwrap()).unwrap().is_none());
    let (_, log) = run(&root, "SELECT user_grant(user='Nobody', roles='reader') FROM scope()");
    assert_eq!(log, ["user_grant: User not found: Nobody"]);
    let (_, log) = run(&root, "SELECT user_create(user='VelociraptorServer', roles='reader') FROM scope()");
    assert_eq!(log, ["user_create: Username is reserved: VelociraptorServer"]);
}

#[test]
fn nobody_grants_more_than_they_hold() {
    let bench = Bench::new();
    let keeper =
        bench.user("keeper", Policy::default().with_permissions(talon_ids::Permissions::of(&[talon_ids::Permission::ServerAdmin])));
    let (_, log) = run(&keeper, "SELECT user_grant(user='victim', roles='administrator') FROM scope()");
    assert!(log[0].contains("nobody grants more than they hold"), "{log:?}");
    let policy = bench.server.users().policy(&OrgId::root(), &"victim".parse().unwrap()).unwrap().unwrap();
    assert_eq!(policy, Policy::of_roles([Role::Reader]));
}

#[test]
fn the_nonce_is_for_administrators() {
    let bench = Bench::new();
    let reader = bench.user("reader", Policy::of_roles([Role::Reader]));
    assert_eq!(rows(&reader, "SELECT * FROM orgs()"), [r#"{"Name":"\u003croot\u003e","OrgId":"root"}"#]);
    assert_eq!(rows(&reader, "SELECT org() AS O FROM scope()"), [r#"{"O":{"name":"\u003croot\u003e","id":"root"}}"#]);
    let admin = bench.user("admin", Policy::of_roles([Role::Administrator]));
    assert!(rows(&admin, "SELECT org() AS O FROM scope()")[0].contains("bm9uY2U="));
}

#[test]
fn a_watcher_sees_what_is_sent_and_stops_when_told() {
    let bench = Bench::new();
    let session = bench.root();
    let cancel = CancelToken::new();
    let token = cancel.clone();
    let (sender, receiver) = std::sync::mpsc::channel::<Arc<Dict>>();
    let watching = session
        .spawn_query(move |session| {
            let scope = session.environment().cancel(token).open();
            let program = parse("SELECT * FROM watch_monitoring(artifact='Test.ServerEvents')").unwrap();
            for row in Query::new(&scope, &program.statements[0]) {
                sender.send(row).unwrap();
            }
        })
        .unwrap();
    let row = loop {
        rows(&session, "SELECT send_event(artifact='Test.ServerEvents', row=dict(a=1, _Source='forged')) FROM scope()");
        if let Ok(row) = receiver.recv_timeout(std::time::Duration::from_millis(100)) {
            break row;
        }
    };
    assert_eq!(row.get("a").and_then(Value::as_int), Some(1));
    assert_eq!(row.get("_Source").and_then(Value::as_str), Some("Test.ServerEvents"));
    cancel.cancel("enough");
    watching.join().unwrap();
    let stored = rows(&session, "SELECT a, _Source FROM monitoring(client_id='server', artifact='Test.ServerEvents') LIMIT 1");
    assert_eq!(stored, [r#"{"a":1,"_Source":"VelociraptorServer"}"#]);
}
