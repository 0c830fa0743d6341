//! The services of the server through queries: collections and events on the server itself, notebooks, metadata, removal.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use talon_acl::{Policy, Role, Unrestricted};
use talon_audit::{Log, MemoryStorage, SigningKey};
use talon_crypto::{RsaPrivateKey, SystemRng};
use talon_ids::{FlowId, OrgId, Permission, Permissions, Target};
use talon_proto::artifact_collector_context::State;
use talon_proto::{ArtifactCollectorArgs, ClientInfo, NotebookCellRequest, NotebookMetadata};
use talon_server::{Server, ServerOptions, Session, Settings, SystemClock, UserChange};
use talon_store::{Engine, Memory, Scan, Space};
use talon_vql::{MemoryLog, Query, Value, json, parse};

static KEY: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::generate().unwrap());

const SUPERUSER: &str = "VelociraptorServer";

const ARTIFACTS: &[&str] = &[
    "name: Test.Server\ntype: SERVER\nparameters:\n  - name: Word\n    default: none\nsources:\n  - name: A\n    query: |\n      SELECT _value AS N, Word, whoami() AS Who FROM range(end=3)\n",
    "name: Test.Impersonating\ntype: SERVER\nimpersonate: boss\nsources:\n  - query: SELECT whoami() AS Who FROM scope()\n",
    "name: Test.Demanding\ntype: SERVER\nrequired_permissions:\n  - EXECVE\nsources:\n  - query: SELECT 1 AS X FROM scope()\n",
    "name: Test.Endless\ntype: SERVER\nsources:\n  - query: SELECT _value FROM range(end=1000000000000)\n    \n",
    "name: Test.Broken\ntype: SERVER\nsources:\n  - query: SELECT nosuchfunction() AS X FROM scope()\n",
    "name: Test.Ticks\ntype: SERVER_EVENT\n",
    "name: Test.Forward\ntype: SERVER_EVENT\nparameters:\n  - name: Mark\n    default: plain\nsources:\n  - query: |\n      SELECT a, Mark FROM watch_monitoring(artifact='Test.Ticks')\n",
];

struct Bench {
    server: Server,
    engine: Arc<Memory>,
}

fn open(engine: &Arc<Memory>) -> Server {
    let mut registry = talon_vql::Registry::core();
    registry.merge(talon_server_vql::registry());
    let key = SigningKey::generate("test/audit", &SystemRng).unwrap();
    Server::open(ServerOptions {
        settings: Settings::new(SUPERUSER.parse().unwrap(), "bm9uY2U="),
        certificate_pem: String::new(),
        certificate_name: SUPERUSER.into(),
        key: KEY.clone(),
        engine: engine.clone(),
        audit: Arc::new(Log::open(Arc::new(MemoryStorage::default()), key, Arc::new(SystemRng)).unwrap()),
        restriction: Arc::new(Unrestricted),
        clock: Arc::new(SystemClock),
        rng: Arc::new(SystemRng),
        registry: Arc::new(registry),
        extensions: talon_vql::Extensions::default(),
        limits: talon_wire::Limits::default(),
    })
    .unwrap()
}

impl Bench {
    fn new() -> Self {
        let engine = Arc::new(Memory::new());
        let bench = Self { server: open(&engine), engine };
        for yaml in ARTIFACTS {
            bench.root().set_artifact(yaml, "").unwrap();
        }
        bench.server.start().unwrap();
        bench
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

    fn admin(&self, name: &str) -> Session {
        self.user(name, Policy::of_roles([Role::Administrator]))
    }

    fn state(&self, flow: &FlowId) -> (State, String) {
        let flow = self.root().org().flow(&Target::Server, flow).unwrap().unwrap();
        (flow.state(), flow.status)
    }

    fn ended(&self, flow: &FlowId) -> (State, String) {
        eventually(|| Some(self.state(flow)).filter(|(state, _)| matches!(state, State::Finished | State::Error)))
    }
}

/// Looks until there is something to see.
fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "it never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn run(session: &Session, vql: &str) -> (Vec<String>, Vec<String>) {
    let log = Arc::new(MemoryLog::default());
    let scope = session.environment().log(log.clone()).open();
    let mut rows = Vec::new();
    for statement in &parse(vql).unwrap().statements {
        rows.extend(Query::new(&scope, statement).map(|row| json::encode(&Value::Dict(row))));
    }
    drop(scope);
    (rows, log.take().into_iter().filter(|line| !line.starts_with("DEBUG:")).collect())
}

fn rows(session: &Session, vql: &str) -> Vec<String> {
    let (rows, log) = run(session, vql);
    assert!(log.is_empty(), "{vql}: {log:?}");
    rows
}

fn collect(session: &Session, artifact: &str) -> FlowId {
    let request = ArtifactCollectorArgs { client_id: "server".into(), artifacts: vec![artifact.into()], ..Default::default() };
    session.collect(request).unwrap().0
}

#[test]
fn a_collection_on_the_server_runs_as_whoever_asked_for_it() {
    let bench = Bench::new();
    let alice = bench.admin("alice");
    let vql = "SELECT collect_client(client_id='server', artifacts='Test.Server', env=dict(Word='w')).flow_id AS F FROM scope()";
    let row = rows(&alice, vql).remove(0);
    let flow: FlowId = row.trim_start_matches("{\"F\":\"").trim_end_matches("\"}").parse().unwrap();
    assert_eq!(bench.ended(&flow).0, State::Finished);
    let call = format!("client_id='server', flow_id='{flow}'");
    let found = rows(&alice, &format!("SELECT * FROM source({call}, artifact='Test.Server/A')"));
    assert_eq!(found[0], r#"{"N":0,"Word":"w","Who":"alice"}"#);
    assert_eq!(found.len(), 3);
    let context = bench.root().org().flow(&Target::Server, &flow).unwrap().unwrap();
    assert_eq!((context.total_collected_rows, context.artifacts_with_results.len(), context.query_stats.len()), (3, 1, 1));
    let log = rows(&alice, &format!("SELECT message FROM flow_logs({call})"));
    assert!(log[0].contains("Running query Test.Server/A on behalf of user alice"), "{log:?}");
    let ended = rows(&alice, "SELECT FlowId, ClientId FROM source(client_id='server', artifact='System.Flow.Completion')");
    assert_eq!(ended, [format!("{{\"FlowId\":\"{flow}\",\"ClientId\":\"server\"}}")]);
    let kinds = rows(&alice, &format!("SELECT Type FROM enumerate_flow({call})"));
    assert_eq!(kinds, [r#"{"Type":"Log"}"#, r#"{"Type":"Result"}"#, r#"{"Type":"CollectionContext"}"#]);
    rows(&alice, &format!("SELECT * FROM delete_flow({call}, really_do_it=TRUE)"));
    assert!(bench.root().org().flow(&Target::Server, &flow).unwrap().is_none());
    assert!(rows(&alice, &format!("SELECT Type FROM enumerate_flow({call})")).is_empty());
}

#[test]
fn an_artifact_may_lend_another_users_rights() {
    let bench = Bench::new();
    bench.admin("boss");
    let alice = bench.admin("alice");
    let flow = collect(&alice, "Test.Impersonating");
    assert_eq!(bench.ended(&flow).0, State::Finished);
    let found = rows(&alice, &format!("SELECT * FROM source(client_id='server', flow_id='{flow}', artifact='Test.Impersonating')"));
    assert_eq!(found, [r#"{"Who":"boss"}"#]);
}

#[test]
fn running_on_the_server_takes_its_own_permission() {
    let bench = Bench::new();
    let investigator = bench.user("investigator", Policy::of_roles([Role::Investigator]));
    let request =
        |artifact: &str| ArtifactCollectorArgs { client_id: "server".into(), artifacts: vec![artifact.into()], ..Default::default() };
    let refused = investigator.collect(request("Test.Server")).unwrap_err();
    assert_eq!(refused.to_string(), "PermissionDenied: User investigator is not allowed to launch flows COLLECT_SERVER.");
    let only = bench.user("only", Policy::default().with_permissions(Permissions::of(&[Permission::CollectServer])));
    let refused = only.collect(request("Test.Demanding")).unwrap_err();
    assert_eq!(refused.to_string(), "PermissionDenied: While collecting artifact (Test.Demanding) permission denied EXECVE");
    let table = ArtifactCollectorArgs { artifacts: vec!["Test.Forward".into()], ..Default::default() };
    assert!(investigator.set_server_monitoring(table).unwrap_err().is_denied());
    // The rights of the caller hold inside: a user who may run artifacts and read nothing reads nothing.
    bench.root().set_artifact("name: Test.Reads\ntype: SERVER\nsources:\n  - query: SELECT * FROM clients()\n", "").unwrap();
    let flow = collect(&only, "Test.Reads");
    bench.ended(&flow);
    let log = rows(&bench.root(), &format!("SELECT message FROM flow_logs(client_id='server', flow_id='{flow}')"));
    assert!(log.iter().any(|line| line.contains("clients: PermissionDenied: Permission denied: [READ_RESULTS]")), "{log:?}");
}

#[test]
fn a_collection_that_never_ends_is_cancelled_or_limited() {
    let bench = Bench::new();
    let alice = bench.admin("alice");
    let flow = collect(&alice, "Test.Endless");
    alice.cancel(&Target::Server, &flow, &talon_server::cancelled_by(alice.principal())).unwrap();
    assert_eq!(bench.ended(&flow), (State::Error, "Cancelled by alice".into()));
    let request =
        ArtifactCollectorArgs { client_id: "server".into(), artifacts: vec!["Test.Endless".into()], max_rows: 10, ..Default::default() };
    let flow = alice.collect(request).unwrap().0;
    assert_eq!(bench.ended(&flow), (State::Error, "Row limit exceeded".into()));
    assert_eq!(rows(&alice, &format!("SELECT * FROM flow_results(client_id='server', flow_id='{flow}')")).len(), 10);
}

#[test]
fn an_error_in_the_log_fails_a_collection() {
    let bench = Bench::new();
    let flow = collect(&bench.admin("alice"), "Test.Broken");
    let (state, status) = bench.ended(&flow);
    assert!(state == State::Error && status.contains("nosuchfunction"), "{status}");
}

#[test]
fn what_a_stopped_server_left_behind_is_settled_at_the_next_start() {
    let bench = Bench::new();
    let flow = collect(&bench.admin("alice"), "Test.Endless");
    // Another process over the same store: this one is not asked.
    let next = open(&bench.engine);
    next.start().unwrap();
    let context = next.own_session(&OrgId::root()).unwrap().org().flow(&Target::Server, &flow).unwrap().unwrap();
    assert_eq!((context.state(), context.status.as_str()), (State::Error, "The server was stopped while the collection ran"));
    bench.server.drain();
}

#[test]
fn server_events_run_until_the_table_says_otherwise() {
    let bench = Bench::new();
    let alice = bench.admin("alice");
    assert_eq!(rows(&alice, "SELECT get_server_monitoring().artifacts AS A FROM scope()"), [r#"{"A":["Server.Monitor.Health"]}"#]);
    let add = "SELECT add_server_monitoring(artifact='Test.Forward', parameters=dict(Mark='m')).artifacts AS A FROM scope()";
    assert_eq!(rows(&alice, add), [r#"{"A":["Server.Monitor.Health","Test.Forward"]}"#]);
    let forwarded = "SELECT a, Mark FROM source(client_id='server', artifact='Test.Forward')";
    let tick = "SELECT send_event(artifact='Test.Ticks', row=dict(a=1)) FROM scope()";
    let found = eventually(|| {
        rows(&alice, tick);
        rows(&alice, forwarded).into_iter().next()
    });
    assert_eq!(found, r#"{"a":1,"Mark":"m"}"#);
    let log =
        eventually(|| rows(&alice, "SELECT message FROM monitoring_logs(client_id='server', artifact='Test.Forward')").into_iter().next());
    assert!(log.contains("Starting query Test.Forward"), "{log}");
    // Watchers see what the query gives.
    let watch = bench.root().org().watch("Test.Forward");
    rows(&alice, tick);
    assert!(watch.next_within(Duration::from_secs(10)).is_some());
    // The table outlives the process.
    let next = open(&bench.engine);
    assert_eq!(next.own_session(&OrgId::root()).unwrap().org().server_monitoring().artifacts, ["Server.Monitor.Health", "Test.Forward"]);
    rows(&alice, "SELECT rm_server_monitoring(artifact='Test.Forward') FROM scope()");
    std::thread::sleep(Duration::from_millis(600));
    let before = rows(&alice, forwarded).len();
    rows(&alice, tick);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(rows(&alice, forwarded).len(), before, "a query that left the table runs no more");
    let (_, log) = run(&alice, "SELECT add_server_monitoring(artifact='Test.Server') FROM scope()");
    assert_eq!(log, ["add_server_monitoring: ServerEventTable: Artifact Test.Server is not a server event artifact"]);
}

#[test]
fn metadata_is_kept_and_that_of_the_server_is_for_administrators() {
    let bench = Bench::new();
    let alice = bench.admin("alice");
    rows(&alice, "SELECT client_create(client_id='C.00000000000000aa', hostname='web01', labels='x').client_id FROM scope()");
    let set = "SELECT client_set_metadata(client_id='C.00000000000000aa', a='1', b='2') AS R FROM scope()";
    assert_eq!(rows(&alice, set), [r#"{"R":true}"#]);
    rows(&alice, "SELECT client_set_metadata(client_id='C.00000000000000aa', metadata=dict(b=NULL, c='3')) FROM scope()");
    let shown = rows(&alice, "SELECT client_metadata(client_id='C.00000000000000aa') AS M FROM scope()");
    assert_eq!(shown, [r#"{"M":{"a":"1","c":"3"}}"#]);
    rows(&alice, "SELECT server_set_metadata(Token='hunter2') FROM scope()");
    assert_eq!(rows(&alice, "SELECT server_metadata() AS M FROM scope()"), [r#"{"M":{"Token":"hunter2"}}"#]);
    let reader = bench.user("reader", Policy::of_roles([Role::Reader]));
    for call in [
        "server_metadata()",
        "client_metadata(client_id='server')",
        "server_set_metadata(x='y')",
        "client_set_metadata(client_id='server', x='y')",
    ] {
        let (found, log) = run(&reader, &format!("SELECT {call} AS M FROM scope()"));
        assert_eq!(found, [r#"{"M":null}"#], "{call}");
        assert!(log[0].contains("[SERVER_ADMIN]"), "{call}: {log:?}");
    }
    // Secrets that metadata may hold are in no audit record.
    let records: Vec<_> = bench.root().org().audit().entries(0, usize::MAX).unwrap();
    assert!(!format!("{records:?}").contains("hunter2"));
    let (_, log) = run(&alice, "SELECT client_set_metadata(client_id='C.00000000000000ff', a='1') FROM scope()");
    assert_eq!(log, ["client_set_metadata: Client not found: C.00000000000000ff"]);
}

#[test]
fn a_deleted_client_leaves_nothing() {
    let bench = Bench::new();
    let alice = bench.admin("alice");
    let empty = bench.engine.reader().scan(&OrgId::root(), Space::ClientIndex, &Scan::default()).unwrap().len();
    rows(&alice, "SELECT client_create(client_id='C.00000000000000aa', hostname='web01', labels='x') FROM scope()");
    rows(&alice, "SELECT client_set_metadata(client_id='C.00000000000000aa', a='1') FROM scope()");
    rows(&alice, "SELECT collect_client(client_id='C.00000000000000aa', artifacts='Test.Server') FROM scope()");
    assert_eq!(rows(&alice, "SELECT client_id FROM clients(search='host:web')").len(), 1);
    let told = rows(&alice, "SELECT type FROM client_delete(client_id='C.00000000000000aa')");
    assert_eq!(told, [r#"{"type":"ClientInfo"}"#, r#"{"type":"CollectionContext"}"#]);
    assert_eq!(rows(&alice, "SELECT client_id FROM clients()").len(), 1, "only told");
    rows(&alice, "SELECT * FROM client_delete(client_id='C.00000000000000aa', really_do_it=TRUE)");
    let reader = bench.engine.reader();
    for space in [Space::Clients, Space::ClientKeys, Space::ClientMetadata, Space::Tasks, Space::Flows, Space::FlowStats] {
        assert!(reader.scan(&OrgId::root(), space, &Scan::default()).unwrap().is_empty(), "{space:?}");
    }
    assert_eq!(reader.scan(&OrgId::root(), Space::ClientIndex, &Scan::default()).unwrap().len(), empty);
    let gone: Option<ClientInfo> = bench.root().org().client(&"C.00000000000000aa".parse().unwrap()).unwrap();
    assert!(gone.is_none());
}

#[test]
fn events_are_deleted_between_two_moments() {
    let bench = Bench::new();
    let alice = bench.admin("alice");
    for _ in 0..3 {
        rows(&alice, "SELECT send_event(artifact='Test.Ticks', row=dict(a=1)) FROM scope()");
    }
    let count = || rows(&alice, "SELECT a FROM source(client_id='server', artifact='Test.Ticks')").len();
    rows(&alice, "SELECT * FROM delete_events(client_id='server', artifact='Test.Ticks', end_time=1000, really_do_it=TRUE)");
    assert_eq!(count(), 3, "they are younger");
    assert_eq!(rows(&alice, "SELECT * FROM delete_events(client_id='server', artifact='Test.Ticks')").len(), 1);
    assert_eq!(count(), 3, "only told");
    rows(&alice, "SELECT * FROM delete_events(client_id='server', artifact='Test.Ticks', really_do_it=TRUE)");
    assert_eq!(count(), 0);
}

#[test]
fn a_notebook_is_calculated_with_the_rights_of_whoever_asks() {
    let bench = Bench::new();
    let alice = bench.admin("alice");
    let made = rows(&alice, "SELECT notebook_create(name='mine', env=dict(Place='here')).notebook_id AS N FROM scope()").remove(0);
    let id = made.trim_start_matches("{\"N\":\"").trim_end_matches("\"}").to_owned();
    let permit = alice.notebook_editor().unwrap();
    let cell = |input: &str, kind: &str| NotebookCellRequest {
        notebook_id: id.clone(),
        input: input.into(),
        r#type: kind.into(),
        sync: true,
        ..Default::default()
    };
    let notebook =
        alice.add_cell(&permit, cell("LET X = 3\nSELECT X, Place FROM scope()\nSELECT _value FROM range(end=2)\n", "vql")).unwrap();
    let of_query = notebook.latest_cell_id.clone();
    let found = alice.notebook_cell(&id, &of_query, "").unwrap();
    assert_eq!((found.calculating, found.error.as_str(), found.output.matches("velo-csv-viewer").count()), (false, "", 2));
    let table = |number: u64| {
        let call = format!("notebook_id='{id}', notebook_cell_id='{of_query}', notebook_cell_table={number}");
        rows(&alice, &format!("SELECT * FROM source({call})"))
    };
    assert_eq!(table(1), [r#"{"X":3,"Place":"here"}"#]);
    assert_eq!(table(2), [r#"{"_value":0}"#, r#"{"_value":1}"#]);
    let text = alice.add_cell(&permit, cell("# Title\n\n<script>x</script>", "markdown")).unwrap();
    let found = alice.notebook_cell(&id, &text.latest_cell_id, "").unwrap();
    assert!(found.output.contains("<h1>Title</h1>") && !found.output.contains("<script"), "{}", found.output);
    assert_eq!(found.summary, "Title");

    // Nobody else sees it, an administrator neither, until it is shared; and then a query has the other's rights.
    let other = bench.admin("other");
    assert_eq!(other.notebook(&id).unwrap_err().to_string(), "InvalidStatus: Notebook is not shared with user.");
    for call in [
        "notebook_get(notebook_id=N)",
        "notebook_update(notebook_id=N, public=TRUE)",
        "notebook_update_cell(notebook_id=N, input='SELECT 1')",
    ] {
        let (found, log) = run(&other, &format!("LET N <= '{id}' SELECT {call} AS R FROM scope()"));
        assert!(found == [r#"{"R":null}"#] && log[0].contains("not shared"), "{call}: {found:?} {log:?}");
    }
    let policy = Policy::default().with_permissions(Permissions::of(&[Permission::NotebookEditor]));
    let editor = bench.user("editor", policy);
    let wish =
        NotebookMetadata { notebook_id: id.clone(), name: "ours".into(), collaborators: vec!["editor".into()], ..Default::default() };
    alice.update_notebook(&permit, &wish).unwrap();
    let theirs = editor.notebook_editor().unwrap();
    let request = NotebookCellRequest { cell_id: of_query.clone(), ..cell("SELECT * FROM clients()", "vql") };
    let found = editor.update_cell(&theirs, &request).unwrap();
    assert!(found.messages.iter().any(|line| line.contains("[READ_RESULTS]")), "{:?}", found.messages);
    assert_eq!(found.available_versions.len(), 2);
    let back = alice.revert_cell(&permit, &id, &of_query, &found.available_versions[0]).unwrap();
    assert!(back.input.starts_with("LET X"));
    assert!(alice.revert_cell(&permit, &id, &of_query, "nosuch").is_err());
    // Old versions go, five stay.
    for _ in 0..7 {
        alice
            .update_cell(&permit, &NotebookCellRequest { cell_id: of_query.clone(), ..cell("SELECT 1 AS X FROM scope()", "vql") })
            .unwrap();
    }
    assert_eq!(alice.notebook_cell(&id, &of_query, "").unwrap().available_versions.len(), 5);
    alice.delete_notebook(&permit, &id).unwrap();
    assert!(bench.engine.reader().scan(&OrgId::root(), Space::Notebooks, &Scan::default()).unwrap().is_empty());
}

#[test]
fn a_cell_that_never_ends_is_cancelled() {
    let bench = Bench::new();
    let alice = bench.admin("alice");
    let permit = alice.notebook_editor().unwrap();
    let notebook = alice.new_notebook(&permit, NotebookMetadata::default()).unwrap();
    let request = NotebookCellRequest {
        notebook_id: notebook.notebook_id.clone(),
        input: "SELECT _value FROM range(end=1000000000000) WHERE _value < 0".into(),
        r#type: "vql".into(),
        ..Default::default()
    };
    let cell = alice.add_cell(&permit, request).unwrap().latest_cell_id;
    let found = alice.notebook_cell(&notebook.notebook_id, &cell, "").unwrap();
    assert!(found.calculating, "the caller does not wait for it");
    alice.cancel_cell(&permit, &notebook.notebook_id, &cell).unwrap();
    let found = eventually(|| Some(alice.notebook_cell(&notebook.notebook_id, &cell, "").unwrap()).filter(|cell| !cell.calculating));
    assert_eq!(found.error, "Cancelled!");
    let wrong = NotebookCellRequest { notebook_id: notebook.notebook_id, r#type: "python".into(), ..Default::default() };
    assert_eq!(alice.add_cell(&permit, wrong).unwrap_err().to_string(), "Unsupported cell type.");
}

#[test]
fn a_secret_is_for_the_users_that_it_lists_and_never_shows() {
    use talon_endpoint_vql::Secrets;
    let bench = Bench::new();
    let alice = bench.admin("alice");
    let add = "SELECT secret_add(name='hook', type='HTTP Secrets', \
               secret=dict(url='https://127.0.0.1:1/hunter2', extra_headers=dict(A='b'))) AS R FROM scope()";
    assert_eq!(rows(&alice, add), [r#"{"R":"hook"}"#]);
    let open = |session: &Session| {
        let scope = session.environment().open();
        scope.extension::<Secrets>().unwrap().0.secret(&scope, "HTTP Secrets", "hook").map_err(|error| error.to_string())
    };
    let refusal = "Permission Denied accessing secret hook";
    assert_eq!(open(&alice).map(drop).unwrap_err(), refusal, "an administrator neither");
    rows(&alice, "SELECT secret_modify(name='hook', type='HTTP Secrets', add_users='alice') FROM scope()");
    let secret = open(&alice).unwrap();
    assert_eq!(secret.text("url"), Some("https://127.0.0.1:1/hunter2"));
    assert_eq!(secret.entries("extra_headers").collect::<Vec<_>>(), [("A", "b")]);
    assert_eq!(open(&bench.admin("bob")).map(drop).unwrap_err(), refusal);
    let shown = rows(&alice, "SELECT secrets FROM secrets() WHERE type_name = 'HTTP Secrets'");
    assert_eq!(shown, [r#"{"secrets":[{"name":"hook","users":["alice"]}]}"#]);
    // At rest and in the audit log there is nothing to read.
    let at_rest = bench.engine.reader().scan(&OrgId::root(), Space::Settings, &Scan::default()).unwrap();
    let holds = |bytes: &[u8]| bytes.windows(7).any(|window| window == b"hunter2");
    assert!(at_rest.iter().any(|(key, _)| key.starts_with(b"secret\0")) && !at_rest.iter().any(|(_, value)| holds(value)));
    assert!(!format!("{:?}", bench.root().org().audit().entries(0, usize::MAX).unwrap()).contains("hunter2"));
    let (_, log) = run(&alice, "SELECT secret_add(name='bad', type='HTTP Secrets', secret=dict(method='GET')) FROM scope()");
    assert_eq!(log, ["secret_add: Unable to verify secret for type HTTP Secrets"]);
    rows(&alice, "SELECT secret_modify(name='hook', type='HTTP Secrets', delete=TRUE) FROM scope()");
    assert_eq!(open(&alice).map(drop).unwrap_err(), refusal);
}

#[test]
fn links_tools_and_favourites() {
    let bench = Bench::new();
    let (alice, bob) = (bench.admin("alice"), bench.admin("bob"));
    let link = "SELECT link_to(client_id='C.1', flow_id='F.1', tab='a/b', text='[x](y)') AS L FROM scope()";
    assert_eq!(rows(&alice, link), [r#"{"L":"[_x_(y)](?org_id=root#/collected/C.1/F.1/a%2Fb)"}"#]);
    let (_, log) = run(&alice, "SELECT link_to(type='hunt') FROM scope()");
    assert_eq!(log, ["link_to: the id of the hunt is missing"]);

    let save = "SELECT favorites_save(name='mine', type='CLIENT', specs=dict(`Test.Server`=dict(Word='w'))).name AS N FROM scope()";
    assert_eq!(rows(&alice, save), [r#"{"N":"mine"}"#]);
    assert_eq!(rows(&alice, "SELECT name, spec[0].artifact AS A FROM favorites_list()"), [r#"{"name":"mine","A":"Test.Server"}"#]);
    assert!(rows(&bob, "SELECT * FROM favorites_list()").is_empty(), "each user's own");
    rows(&bob, "SELECT favorites_delete(name='mine', type='CLIENT') FROM scope()");
    assert_eq!(rows(&alice, "SELECT name FROM favorites_list()").len(), 1);

    rows(&alice, "SELECT inventory_add(tool='Tool', url='https://127.0.0.1:1/tool.exe', version='1', hash='AB') FROM scope()");
    let needs =
        "name: Test.Needs\ntools:\n  - name: Tool\n    url: https://example.com/other\nsources:\n  - query: SELECT 1 AS X FROM scope()\n";
    bench.root().set_artifact(needs, "").unwrap();
    rows(&alice, "SELECT client_create(client_id='C.00000000000000aa') FROM scope()");
    rows(&alice, "SELECT collect_client(client_id='C.00000000000000aa', artifacts='Test.Needs') FROM scope()");
    let target: Target = "C.00000000000000aa".parse().unwrap();
    let flow = bench.root().org().flows(&target).unwrap().remove(0);
    let env = &flow.request.unwrap().compiled_collector_args[0].env;
    let value = |key: &str| env.iter().find(|pair| pair.key == key).map(|pair| pair.value.as_str());
    assert_eq!(value("Tool_Tool_URL"), Some("https://127.0.0.1:1/tool.exe"), "what administrators say counts");
    assert_eq!((value("Tool_Tool_HASH"), value("Tool_Tool_FILENAME")), (Some("ab"), Some("tool.exe")));
}

#[test]
fn an_export_holds_what_a_flow_collected_and_opens_with_its_password_only() {
    use std::io::Read as _;
    let bench = Bench::new();
    let alice = bench.admin("alice");
    let flow = collect(&alice, "Test.Server");
    bench.ended(&flow);
    let open = |call: &str| {
        let row = rows(&alice, &format!("SELECT create_flow_download(client_id='server', flow_id='{flow}', {call}) AS P FROM scope()"));
        let path = row[0].trim_start_matches("{\"P\":\"fs:/downloads/").trim_end_matches("\"}").to_owned();
        let object = talon_server::download(&path.split('/').collect::<Vec<_>>());
        let stored = bench.engine.reader().read_upload(&OrgId::root(), &object, 0, 1 << 20).unwrap();
        (path, zip::ZipArchive::new(std::io::Cursor::new(stored.to_vec())).unwrap())
    };
    let (path, mut archive) = open("format='csv'");
    assert_eq!(path, format!("server/{flow}/server-server-{flow}.zip"));
    let mut text = |name: &str| {
        let mut text = String::new();
        archive.by_name(name).unwrap().read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(text("results/Test.Server%2FA.json").lines().next(), Some(r#"{"N":0,"Word":"none","Who":"alice"}"#));
    assert_eq!(text("results/Test.Server%2FA.csv"), "N,Word,Who\n0,none,alice\n1,none,alice\n2,none,alice\n");
    assert!(text("collection_context.json").contains(flow.as_str()) && text("log.json").contains("on behalf of user alice"));
    let (path, mut locked) = open("password='hunter2', name='../x'");
    assert_eq!(path, format!("server/{flow}/.._x_locked.zip"));
    let name = "results/Test.Server%2FA.json";
    assert!(locked.by_name(name).is_err(), "it does not open without the password");
    let mut text = String::new();
    locked.by_name_decrypt(name, b"hunter2").unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 3);
    assert!(!format!("{:?}", bench.root().org().audit().entries(0, usize::MAX).unwrap()).contains("hunter2"));
}

#[test]
fn a_timeline_is_read_in_the_order_of_time() {
    let bench = Bench::new();
    let alice = bench.admin("alice");
    let permit = alice.notebook_editor().unwrap();
    let id = alice.new_notebook(&permit, NotebookMetadata::default()).unwrap().notebook_id;
    let add = |name: &str, from: u32| {
        let query = format!("SELECT _value AS At, '{name}' AS message FROM range(start={from}, end=2000000010, step=4)");
        let call = format!("timeline_add(notebook_id='{id}', timeline='T', name='{name}', key='At', query={{ {query} }})");
        rows(&alice, &format!("SELECT {call}.name AS N FROM scope()"))
    };
    assert_eq!(add("a", 2_000_000_000), [r#"{"N":"T"}"#]);
    add("b", 2_000_000_002);
    let read = |more: &str| {
        rows(&alice, &format!("SELECT At - 2000000000 AS At, _Source AS S FROM timeline(notebook_id='{id}', timeline='T'{more})"))
    };
    let wanted = [(0, "a"), (2, "b"), (4, "a"), (6, "b"), (8, "a")].map(|(at, name)| format!("{{\"At\":{at},\"S\":\"{name}\"}}"));
    assert_eq!(read(""), wanted);
    assert_eq!(read(", start=2000000004"), wanted[2..]);
    assert_eq!(read(", components='b'").len(), 2);
    assert_eq!(read(", skip='b'").len(), 3);
    let note = |at: i64, event: &str| talon_proto::AnnotationRequest {
        notebook_id: id.clone(),
        super_timeline: "T".into(),
        timestamp: at,
        note: "odd".into(),
        event_json: event.into(),
    };
    alice.annotate(&note(2_000_000_003, "{\"x\":1}")).unwrap();
    alice.annotate(&note(2_000_000_001, "")).unwrap();
    assert!(alice.annotate(&note(1, "[1]")).is_err(), "an event is an object");
    let noted = rows(
        &alice,
        &format!(
            "SELECT Notes, _AnnotatedBy AS By, _OriginalTime - 2000000000 AS At FROM timeline(notebook_id='{id}', timeline='T', components='Annotation')"
        ),
    );
    assert_eq!(noted, [r#"{"Notes":"odd","By":"alice","At":1}"#, r#"{"Notes":"odd","By":"alice","At":3}"#]);
    let bob = bench.admin("bob");
    assert_eq!(bob.annotate(&note(1, "")).unwrap_err().to_string(), "InvalidStatus: Notebook is not shared with user.");
    for call in ["timeline(notebook_id=N, timeline='T')", "timelines(notebook_id=N)"] {
        let (found, log) = run(&bob, &format!("LET N <= '{id}' SELECT * FROM {call}"));
        assert!(found.is_empty() && log[0].contains("not shared"), "{call}: {log:?}");
    }
    rows(&alice, &format!("SELECT timeline_delete(notebook_id='{id}', timeline='T', name='b') FROM scope()"));
    assert_eq!(read(", skip='Annotation'").len(), 3);
    rows(&alice, &format!("SELECT timeline_delete(notebook_id='{id}', timeline='T') FROM scope()"));
    assert!(rows(&alice, &format!("SELECT * FROM timelines(notebook_id='{id}')")).is_empty());
}
