//! A server over a store in memory, and agents that follow a script: they speak the real envelope.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use talon_acl::{Policy, Role, Unrestricted};
use talon_audit::{Log, LogReader, MemoryStorage, Record, SigningKey, Storage, StorageError};
use talon_crypto::{RsaPrivateKey, SystemRng};
use talon_ids::{ClientId, FlowId, OrgId, QueryName, Target, UserName};
use talon_proto::{
    ArtifactCollectorArgs, ArtifactCollectorContext, Certificate, ForemanCheckin, LogMessage, VeloMessage, VqlRequest, VqlResponse,
};
use talon_server::{Clock, Org, Server, ServerOptions, Session, Settings};
use talon_store::{Engine, Memory, ObjectName, Reader, StoreError, Ticket, Work};
use talon_transport::{AgentEndpoint, AgentRequest, ControlOutcome, Peer, Processed, ReaderOutcome, Rejection};
use talon_wire::{AgentCodec, AgentSession, Blobs, Limits, MessageList, Obfuscator, Reply, UnixMicros};

pub(crate) const NONCE: &str = "cm9vdA==";
pub(crate) const OTHER_NONCE: &str = "b3RoZXI=";
pub(crate) const SERVER_NAME: &str = "VelociraptorServer";
const OBFUSCATION: &str = "names";

/// Making keys takes time, so tests share them; ids differ by key.
pub(crate) static KEYS: LazyLock<Vec<RsaPrivateKey>> = LazyLock::new(|| (0..4).map(|_| RsaPrivateKey::generate().unwrap()).collect());

#[derive(Debug)]
pub(crate) struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// An engine whose disk can be full.
#[derive(Default)]
pub(crate) struct Flaky {
    store: Memory,
    full: AtomicBool,
}

impl Engine for Flaky {
    fn reader(&self) -> &dyn Reader {
        self.store.reader()
    }

    fn submit(&self, work: Work) -> Ticket {
        if self.full.load(Ordering::SeqCst) {
            let (sender, ticket) = Ticket::new();
            let _ = sender.send(Err(StoreError::Io("no space left on device".into())));
            return ticket;
        }
        self.store.submit(work)
    }
}

/// An audit storage whose disk can be full.
#[derive(Default)]
pub(crate) struct FlakyAudit {
    files: MemoryStorage,
    full: AtomicBool,
}

impl FlakyAudit {
    fn check(&self, name: &str) -> Result<(), StorageError> {
        if self.full.load(Ordering::SeqCst) { Err(StorageError::new("write", name, "no space left on device")) } else { Ok(()) }
    }
}

impl Storage for FlakyAudit {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
        self.files.read(name)
    }
    fn write(&self, name: &str, content: &[u8]) -> Result<(), StorageError> {
        self.check(name)?;
        self.files.write(name, content)
    }
    fn append(&self, name: &str, addition: &[u8]) -> Result<(), StorageError> {
        self.check(name)?;
        self.files.append(name, addition)
    }
    fn truncate(&self, name: &str, length: u64) -> Result<(), StorageError> {
        self.files.truncate(name, length)
    }
    fn remove(&self, name: &str) -> Result<(), StorageError> {
        self.files.remove(name)
    }
}

pub(crate) struct Bench {
    pub(crate) server: Arc<Server>,
    pub(crate) engine: Arc<Flaky>,
    pub(crate) audit: Arc<FlakyAudit>,
    pub(crate) clock: Arc<TestClock>,
    signing: String,
    facts: Facts,
}

/// What identifies a deployment.
#[derive(Clone)]
struct Facts {
    key: RsaPrivateKey,
    certificate: String,
    nonce: String,
    other: (OrgId, String),
    obfuscation: String,
}

impl Facts {
    fn made_up() -> Self {
        Self {
            key: KEYS[0].clone(),
            certificate: "a certificate".into(),
            nonce: NONCE.into(),
            other: ("O123".parse().unwrap(), OTHER_NONCE.into()),
            obfuscation: OBFUSCATION.into(),
        }
    }

    /// Those of the recorded deployment in `folder`.
    fn recorded(folder: &Path) -> Self {
        let text = |name: &str| std::fs::read_to_string(folder.join("keys").join(name)).unwrap();
        let keys: serde_json::Value = serde_json::from_str(&text("keys.json")).unwrap();
        let field = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        Self {
            key: RsaPrivateKey::from_pem(&text("server.key.pem")).unwrap(),
            certificate: text("server.cert.pem"),
            nonce: field(&keys["root_nonce"]),
            other: (field(&keys["orgs"][1]["id"]).parse().unwrap(), field(&keys["orgs"][1]["nonce"])),
            obfuscation: field(&keys["obfuscation_nonce"]),
        }
    }
}

/// How a post ended for the agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Acknowledged,
    Refused,
    Failed,
    Dropped,
    Rejected(Rejection),
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::of(Facts::made_up())
    }

    /// The deployment whose traffic was recorded in `folder`.
    pub(crate) fn recorded(folder: &Path) -> Self {
        Self::of(Facts::recorded(folder))
    }

    fn of(facts: Facts) -> Self {
        let signing = SigningKey::generate("test/audit", &SystemRng).unwrap().to_note_form().to_string();
        let clock = Arc::new(TestClock(AtomicU64::new(1_700_000_000_000_000_000)));
        let (engine, audit) = (Arc::new(Flaky::default()), Arc::new(FlakyAudit::default()));
        let server = open(&engine, &audit, &clock, &signing, &facts);
        let bench = Self { server, engine, audit, clock, signing, facts };
        bench.add_artifacts();
        bench
    }

    /// The same deployment after a restart.
    pub(crate) fn restarted(self) -> Self {
        drop(self.server);
        let server = open(&self.engine, &self.audit, &self.clock, &self.signing, &self.facts);
        Self { server, ..self }
    }

    fn add_artifacts(&self) {
        for yaml in [
            "name: Test.Client\nsources:\n  - name: A\n    query: SELECT 1 AS X FROM scope()\n  - name: B\n    query: SELECT 2 AS X FROM scope()\n",
            "name: Test.Secret\nparameters:\n  - name: Password\n    type: redacted\nsources:\n  - query: SELECT Password FROM scope()\n",
            "name: Test.Other\nsources:\n  - query: SELECT 1 AS X FROM scope()\n",
            "name: Test.Events\ntype: CLIENT_EVENT\nsources:\n  - query: SELECT * FROM clock()\n",
            "name: Test.MoreEvents\ntype: CLIENT_EVENT\nsources:\n  - query: SELECT * FROM clock()\n",
            "name: Test.ServerEvents\ntype: SERVER_EVENT\n",
            "name: Custom.Generic.Client.Info\nsources:\n  - name: BasicInformation\n    query: SELECT 1 AS OS FROM scope()\n",
        ] {
            self.root().set_artifact(yaml, "").unwrap();
        }
    }

    pub(crate) fn root(&self) -> Session {
        self.server.own_session(&OrgId::root()).unwrap()
    }

    pub(crate) fn org(&self) -> Org {
        self.server.org(&OrgId::root()).unwrap()
    }

    /// A user with these roles in the root organisation.
    pub(crate) fn user(&self, name: &str, roles: impl IntoIterator<Item = Role>) -> Session {
        let user: UserName = name.parse().unwrap();
        let mut change = talon_server::UserChange::of(user.clone());
        change.create = true;
        change.policy = Some(Policy::of_roles(roles));
        self.root().change_user("user_create", &[OrgId::root()], change).unwrap();
        self.server.session(&user, &OrgId::root()).unwrap()
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.0.fetch_add(seconds * 1_000_000_000, Ordering::SeqCst);
    }

    pub(crate) fn fill_disk(&self, full: bool) {
        self.engine.full.store(full, Ordering::SeqCst);
    }

    pub(crate) fn fill_audit_disk(&self, full: bool) {
        self.audit.full.store(full, Ordering::SeqCst);
    }

    pub(crate) fn audit_records(&self) -> Vec<Record> {
        let reader = LogReader::new(self.audit.clone(), SigningKey::parse(&self.signing).unwrap().verifier());
        reader.entries(0, usize::MAX).unwrap().into_iter().map(|entry| entry.record).collect()
    }

    pub(crate) fn flow(&self, agent: &Agent, flow: &FlowId) -> ArtifactCollectorContext {
        self.org().flow(&agent.target(), flow).unwrap().unwrap()
    }

    pub(crate) fn rows(&self, table: &ObjectName) -> Vec<String> {
        self.org().rows(table, 0).unwrap().collect::<Result<_, _>>().unwrap()
    }

    pub(crate) fn flow_rows(&self, agent: &Agent, flow: &FlowId, query: &str) -> Vec<String> {
        self.rows(&talon_server::flow_rows(&agent.target(), flow, &query.parse().unwrap()))
    }

    pub(crate) fn event_rows(&self, target: &Target, queue: &str) -> Vec<String> {
        let queue: QueryName = queue.parse().unwrap();
        let days = self.org().event_days(target, &queue, false).unwrap();
        days.iter().flat_map(|day| self.rows(&talon_server::event_rows(target, &queue, day))).collect()
    }

    /// Everything stored in tables and uploads, by name and size: to see that something changed nothing.
    pub(crate) fn objects(&self) -> Vec<(ObjectName, u64, u64)> {
        let (org, root) = (OrgId::root(), ObjectName::new(Vec::<String>::new()));
        let reader = self.engine.reader();
        let size = |name: ObjectName| {
            let table = reader.table(&org, &name).unwrap();
            let upload = reader.upload(&org, &name).unwrap().unwrap_or_default();
            (name, table.rows, upload.bytes)
        };
        reader.objects(&org, &root).unwrap().into_iter().map(size).collect()
    }

    pub(crate) fn agent(&self, key: usize) -> Agent {
        self.agent_of(key, NONCE)
    }

    pub(crate) fn agent_of(&self, key: usize, nonce: &str) -> Agent {
        self.agent_with(KEYS[key].clone(), nonce)
    }

    /// An agent with this key, and a new session.
    pub(crate) fn agent_with(&self, key: RsaPrivateKey, nonce: &str) -> Agent {
        let codec = AgentCodec::new(key, nonce, Limits::default(), SystemRng);
        let session = codec.session(SERVER_NAME, self.facts.key.public()).unwrap();
        let names = Obfuscator::new(&self.facts.obfuscation);
        Agent { server: self.server.clone(), clock: self.clock.clone(), names, codec, session }
    }

    /// An agent that has enrolled and has been given its interrogation.
    pub(crate) async fn enrolled(&self, key: usize) -> Agent {
        let agent = self.agent(key);
        assert_eq!(agent.enrol().await, Answer::Rejected(Rejection::PleaseEnrol));
        agent
    }

    /// A collection that the agent has been given, and has all the requests of.
    pub(crate) async fn collecting(&self, agent: &Agent, artifact: &str) -> FlowId {
        let (flow, _) = self.root().collect(request(agent, artifact)).unwrap();
        let messages = agent.poll().await;
        assert!(messages.iter().any(|message| message.session_id == flow.as_str() && message.flow_request.is_some()), "{messages:?}");
        flow
    }
}

pub(crate) fn request(agent: &Agent, artifact: &str) -> ArtifactCollectorArgs {
    ArtifactCollectorArgs { client_id: agent.id().to_string(), artifacts: vec![artifact.to_owned()], ..ArtifactCollectorArgs::default() }
}

fn open(engine: &Arc<Flaky>, audit: &Arc<FlakyAudit>, clock: &Arc<TestClock>, signing: &str, facts: &Facts) -> Arc<Server> {
    let mut settings = Settings::new(SERVER_NAME.parse().unwrap(), facts.nonce.as_str());
    settings.obfuscation_nonce = facts.obfuscation.clone();
    settings.initial_orgs =
        vec![talon_server::InitialOrg { id: Some(facts.other.0.clone()), name: "Other".into(), nonce: facts.other.1.clone() }];
    let log = Log::open(audit.clone() as Arc<dyn Storage>, SigningKey::parse(signing).unwrap(), Arc::new(SystemRng)).unwrap();
    Arc::new(
        Server::open(ServerOptions {
            settings,
            certificate_pem: facts.certificate.clone(),
            certificate_name: SERVER_NAME.into(),
            key: facts.key.clone(),
            engine: engine.clone(),
            audit: Arc::new(log),
            restriction: Arc::new(Unrestricted),
            clock: clock.clone(),
            rng: Arc::new(SystemRng),
            registry: Arc::default(),
            extensions: talon_vql::Extensions::default(),
            limits: Limits::default(),
        })
        .unwrap(),
    )
}

pub(crate) struct Agent {
    server: Arc<Server>,
    clock: Arc<TestClock>,
    names: Obfuscator,
    pub(crate) codec: AgentCodec,
    session: AgentSession,
}

impl Agent {
    pub(crate) fn id(&self) -> &ClientId {
        self.codec.client_id()
    }

    pub(crate) fn target(&self) -> Target {
        self.id().clone().into()
    }

    /// The same agent after the server was restarted.
    pub(crate) fn follow(mut self, bench: &Bench) -> Self {
        self.server = bench.server.clone();
        self
    }

    pub(crate) fn seal(&self, messages: &[VeloMessage]) -> Bytes {
        self.seal_blobs(&Blobs::compressed(messages.iter().map(MessageList::from)).unwrap())
    }

    pub(crate) fn seal_blobs(&self, blobs: &Blobs) -> Bytes {
        self.session.seal(UnixMicros(self.clock.now_us()), blobs).unwrap()
    }

    /// What an answer is, `None` when it is no envelope.
    pub(crate) fn try_open(&self, body: Bytes) -> Option<Reply> {
        self.session.open(body).ok()
    }

    /// Posts a packet as it is.
    pub(crate) async fn post(&self, body: Bytes) -> Answer {
        match self.server.clone().control(packet(body)).await {
            ControlOutcome::Reject(rejection) => Answer::Rejected(rejection),
            ControlOutcome::Dropped => Answer::Dropped,
            ControlOutcome::Accepted(processed) => match processed.await {
                Processed::Answer(body) => {
                    assert!(matches!(self.session.open(body).unwrap(), Reply::Verified(_)));
                    Answer::Acknowledged
                }
                Processed::Refused => Answer::Refused,
                Processed::Failed => Answer::Failed,
            },
        }
    }

    pub(crate) async fn send(&self, messages: &[VeloMessage]) -> Answer {
        self.post(self.seal(messages)).await
    }

    pub(crate) async fn enrol(&self) -> Answer {
        self.send(&[csr(&talon_pki::create_csr(self.codec.key()).unwrap())]).await
    }

    /// Starts a poll that reports an event table of `version`.
    pub(crate) async fn reader(&self, version: u64) -> ReaderOutcome {
        self.read(self.seal(&[checkin(version)])).await
    }

    pub(crate) async fn read(&self, body: Bytes) -> ReaderOutcome {
        self.server.clone().reader(packet(body)).await
    }

    /// Polls, and gives the messages that came within a moment.
    pub(crate) async fn poll(&self) -> Vec<VeloMessage> {
        self.poll_with(0).await
    }

    pub(crate) async fn poll_with(&self, version: u64) -> Vec<VeloMessage> {
        match self.reader(version).await {
            ReaderOutcome::Poll(poll) => match tokio::time::timeout(Duration::from_millis(40), poll.answer).await {
                Ok(body) => self.open(body.unwrap()),
                Err(_) => Vec::new(),
            },
            ReaderOutcome::Empty => panic!("the client has no record"),
            ReaderOutcome::Reject(rejection) => panic!("{rejection:?}"),
        }
    }

    pub(crate) fn open(&self, body: Bytes) -> Vec<VeloMessage> {
        match self.session.open(body).unwrap() {
            Reply::Verified(reply) => reply.messages().collect::<Result<_, _>>().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn hide(&self, name: &str) -> String {
        self.names.obfuscate(name).unwrap()
    }

    pub(crate) fn reveal(&self, name: &str) -> String {
        self.names.reveal(name).unwrap()
    }

    /// Rows of a query, numbered from `start`.
    pub(crate) fn rows(&self, session: &str, query: &str, start: u64, count: u64) -> VeloMessage {
        let jsonl: String = (start..start + count).map(|row| format!("{{\"Row\":{row}}}\n")).collect();
        self.jsonl(session, query, start, count, &jsonl)
    }

    pub(crate) fn jsonl(&self, session: &str, query: &str, start: u64, count: u64, jsonl: &str) -> VeloMessage {
        let response = VqlResponse {
            query: Some(VqlRequest { name: self.hide(query), ..VqlRequest::default() }),
            query_start_row: start,
            total_rows: count,
            jsonl_response: jsonl.into(),
            timestamp: self.clock.now_us(),
            ..VqlResponse::default()
        };
        VeloMessage { session_id: session.into(), vql_response: Some(response), ..VeloMessage::default() }
    }
}

fn packet(body: Bytes) -> AgentRequest {
    let socket = "192.0.2.1:40000".parse().unwrap();
    AgentRequest { peer: Peer { socket, remote: "192.0.2.1:40000".into(), user_agent: "Velociraptor".into() }, urgent: false, body }
}

pub(crate) fn csr(pem: &str) -> VeloMessage {
    let request = Certificate { pem: pem.as_bytes().to_vec().into(), ..Certificate::default() };
    VeloMessage { session_id: "E:Enrol".into(), urgent: true, csr: Some(request), ..VeloMessage::default() }
}

pub(crate) fn checkin(version: u64) -> VeloMessage {
    let checkin = ForemanCheckin { last_event_table_version: version, ..ForemanCheckin::default() };
    VeloMessage { session_id: "E.Foreman".into(), foreman_checkin: Some(checkin), ..VeloMessage::default() }
}

pub(crate) fn logs(session: &str, first: i64, lines: &[&str]) -> VeloMessage {
    let jsonl: String =
        lines.iter().map(|line| format!("{}\n", serde_json::json!({"client_time": 1, "level": "INFO", "message": line}))).collect();
    let log = LogMessage { id: first, number_of_rows: lines.len() as u64, jsonl, ..LogMessage::default() };
    VeloMessage { session_id: session.into(), request_id: 980, log_message: Some(log), ..VeloMessage::default() }
}
