//! The whole agent against a scripted server that speaks the real wire protocol.

use std::collections::VecDeque;
use std::pin::Pin;

use bytes::Bytes;
use talon_crypto::{RsaPublicKey, SystemRng};
use talon_ids::{ClientId, OrgId};
use talon_pki::{Authority, Identity, LeafProfile, UnixTime, verify_csr};
use talon_transport::{Handler, Post, Reply, ServerLink, ServerUrl, TransportError};
use talon_wire::{Directory, Limits, LookupError, Opened, ServerCodec, UnixMicros};

use super::*;
use crate::schedule::Intervals;
use crate::{Agent, AgentSettings, ClientError};

const NONCE: &str = "c2VjcmV0";

/// A server whose answers can be bent.
struct Server {
    authority: Authority,
    state: Mutex<State>,
}

struct State {
    identity: Identity,
    codec: ServerCodec,
    enrolled: Option<(ClientId, RsaPublicKey)>,
    /// Answers given instead of the right ones, by handler.
    bent: Vec<(Handler, u16)>,
    tasks: VecDeque<VeloMessage>,
    received: Vec<VeloMessage>,
    requests: usize,
    fetches: usize,
}

impl Directory for State {
    fn org_of_nonce(&self, nonce: &str) -> Result<Option<OrgId>, LookupError> {
        Ok((nonce == NONCE).then(OrgId::root))
    }
    fn nonce_of_org(&self, _: &OrgId) -> Result<Option<String>, LookupError> {
        Ok(Some(NONCE.into()))
    }
    fn client_key(&self, _: &OrgId, client: &ClientId) -> Result<Option<RsaPublicKey>, LookupError> {
        Ok(self.enrolled.as_ref().filter(|(id, _)| id == client).map(|(_, key)| key.clone()))
    }
}

fn now() -> UnixTime {
    UnixTime::now()
}

fn codec(identity: &Identity) -> ServerCodec {
    ServerCodec::new(identity.key().clone(), identity.certificate().subject_name(), Limits::default(), SystemRng)
}

impl Server {
    fn new() -> Arc<Self> {
        let authority = Authority::generate(&SystemRng, now()).unwrap();
        let identity = authority.issue(&LeafProfile::frontend("VelociraptorServer"), &SystemRng, now()).unwrap();
        let state = State {
            codec: codec(&identity),
            identity,
            enrolled: None,
            bent: Vec::new(),
            tasks: VecDeque::new(),
            received: Vec::new(),
            requests: 0,
            fetches: 0,
        };
        Arc::new(Self { authority, state: Mutex::new(state) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A new key and certificate: sessions made for the old one are refused.
    fn rotate(&self) {
        let identity = self.authority.issue(&LeafProfile::frontend("VelociraptorServer"), &SystemRng, now()).unwrap();
        let mut state = self.state();
        state.codec = codec(&identity);
        state.identity = identity;
    }

    fn answer(&self, post: Post) -> Reply {
        let mut state = self.state();
        let status = |status| Reply { status, location: None, body: Bytes::new() };
        if let Some(at) = state.bent.iter().position(|(handler, _)| *handler == post.handler) {
            return status(state.bent.remove(at).1);
        }
        let time = UnixMicros(1_700_000_000_000_000);
        let opened = state.codec.open(post.body, [127, 0, 0, 1].into(), time, &*state);
        match opened {
            Err(_) => status(403),
            Ok(Opened::Empty) => status(406),
            Ok(Opened::Unauthenticated(packet)) => {
                for pem in packet.csrs() {
                    assert_eq!(post.handler, Handler::Control);
                    assert!(post.urgent);
                    let request = verify_csr(pem).unwrap();
                    assert!(packet.is_from(request.public_key()));
                    state.requests += 1;
                    state.enrolled = Some((request.client_id().clone(), request.public_key().clone()));
                }
                status(406)
            }
            Ok(Opened::Authenticated(packet)) => {
                let client = packet.client().clone();
                let messages: Vec<_> = packet.messages().unwrap().collect::<Result<_, _>>().unwrap();
                state.received.extend(messages);
                let tasks: Vec<_> = if post.handler == Handler::Reader { state.tasks.drain(..).collect() } else { Vec::new() };
                let body = state.codec.seal(time, &client, &*state, &tasks.iter().collect()).unwrap();
                Reply { status: 200, location: None, body }
            }
        }
    }

    async fn wait_for(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let start = Instant::now();
        while !condition(&self.state()) {
            assert!(start.elapsed() < Duration::from_secs(20), "in vain: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct Link(Arc<Server>);

impl ServerLink for Link {
    fn fetch_pem<'a>(&'a self, _: &'a ServerUrl) -> Pin<Box<dyn Future<Output = Result<Bytes, TransportError>> + Send + 'a>> {
        Box::pin(async {
            let mut state = self.0.state();
            state.fetches += 1;
            Ok(state.identity.certificate().pem().into())
        })
    }

    fn post<'a>(&'a self, _: &'a ServerUrl, post: Post) -> Pin<Box<dyn Future<Output = Result<Reply, TransportError>> + Send + 'a>> {
        Box::pin(async {
            let reply = self.0.answer(post);
            if reply.status == 0 { Err(TransportError::Timeout("waiting for the test")) } else { Ok(reply) }
        })
    }
}

fn settings(server: &Server, folder: &std::path::Path) -> AgentSettings {
    settings_for(server.authority.trust_bundle(), folder)
}

/// Settings of an agent that trusts this authority.
pub(super) fn settings_for(trust: talon_pki::TrustBundle, folder: &std::path::Path) -> AgentSettings {
    AgentSettings {
        server_urls: vec!["https://frontend.example/".parse().unwrap()],
        server_name: "VelociraptorServer".into(),
        trust,
        nonce: NONCE.into(),
        intervals: Intervals {
            min_poll: Duration::from_millis(20),
            max_poll: Duration::from_millis(100),
            jitter: Duration::from_millis(10),
        },
        outbox: OutboxSettings { packet: 1 << 20, compression: Compression::Zlib, urgent: 1 << 20 },
        buffer: BufferSettings { file: Some(folder.join("buffer")), disk_size: 1 << 20, memory_size: 1 << 20 },
        writeback: talon_config::WritebackPaths { level1: folder.join("writeback.yaml"), level2: None },
        concurrency: 2,
        facts_period: Some(Duration::from_secs(3600)),
        flows: FlowDefaults::default(),
        labels: Vec::new(),
        prevent_execve: false,
        denied: talon_ids::Permissions::NONE,
        network: talon_endpoint_vql::NetworkSettings::default(),
    }
}

fn agent(server: &Arc<Server>, folder: &std::path::Path) -> Agent {
    let facts = |install_time| Some(Dict::new().with("hostname", "host").with("install_time", install_time));
    Agent::with_engine(settings(server, folder), Arc::new(Link(server.clone())), Scripted::new(rows(3)), facts).unwrap()
}

/// Runs an agent until `script` is done.
async fn with_agent(server: &Arc<Server>, folder: &std::path::Path, script: impl Future<Output = ()>) -> Result<(), ClientError> {
    agent(server, folder).run(script).await
}

fn has_end(state: &State, session: &str) -> bool {
    state.received.iter().any(|message| message.session_id == session && is_end(message))
}

#[tokio::test]
async fn an_agent_enrols_reports_its_host_and_runs_a_collection() {
    let (server, folder) = (Server::new(), tempfile::tempdir().unwrap());
    server.state().tasks.push_back(flow("F.1", request(&[&["A"]])));
    with_agent(&server, folder.path(), async {
        server.wait_for("the end of the collection", |state| has_end(state, "F.1")).await;
    })
    .await
    .unwrap();
    let state = server.state();
    assert_eq!(state.requests, 1);
    let first = &state.received[..2];
    assert_eq!(first[0].session_id, "E.Foreman");
    let facts = first[1].vql_response.as_ref().unwrap();
    assert_eq!(facts.query.as_ref().unwrap().name, "Server.Internal.ClientInfo");
    assert!(facts.jsonl_response.starts_with(r#"{"hostname":"host","install_time":"#), "kept through the 406");
    assert_eq!(state.received.iter().filter(|message| message.vql_response.is_some()).count(), 2);
}

#[tokio::test]
async fn no_answer_but_acceptance_or_rejection_loses_results() {
    for (bent, arrives) in
        [(403, true), (406, true), (408, true), (409, true), (500, true), (503, true), (0, true), (301, true), (400, false)]
    {
        let (server, folder) = (Server::new(), tempfile::tempdir().unwrap());
        with_agent(&server, folder.path(), async {
            server.wait_for("enrolment", |state| !state.received.is_empty()).await;
            server.state().bent = vec![(Handler::Control, bent)];
            server.state().tasks.push_back(flow("F.1", request(&[&["A"]])));
            server.wait_for("the bent answer", |state| state.bent.is_empty()).await;
            if arrives {
                server.wait_for("the end of the collection", |state| has_end(state, "F.1")).await;
            }
        })
        .await
        .unwrap();
        let state = server.state();
        let rows = state.received.iter().filter(|message| message.session_id == "F.1" && message.vql_response.is_some()).count();
        assert_eq!(rows, usize::from(arrives), "{bent}");
    }
}

#[tokio::test]
async fn results_that_were_not_delivered_survive_the_agent() {
    let (server, folder) = (Server::new(), tempfile::tempdir().unwrap());
    with_agent(&server, folder.path(), async {
        server.wait_for("enrolment", |state| !state.received.is_empty()).await;
        server.state().bent = vec![(Handler::Control, 503); 10_000];
        server.state().tasks.push_back(flow("F.1", request(&[&["A"]])));
        server.wait_for("attempts", |state| state.bent.len() < 9_997).await;
    })
    .await
    .unwrap();
    assert!(!has_end(&server.state(), "F.1"));
    server.state().bent.clear();
    with_agent(&server, folder.path(), async {
        server.wait_for("the end of the collection", |state| has_end(state, "F.1")).await;
    })
    .await
    .unwrap();
    let state = server.state();
    assert_eq!(state.requests, 1, "the identity is kept");
    assert_eq!(state.received.iter().filter(|message| message.session_id == "F.1" && message.vql_response.is_some()).count(), 1);
}

#[tokio::test]
async fn a_new_key_of_the_server_is_followed_and_a_foreign_one_is_not() {
    let (server, folder) = (Server::new(), tempfile::tempdir().unwrap());
    with_agent(&server, folder.path(), async {
        server.wait_for("enrolment", |state| !state.received.is_empty()).await;
        server.rotate();
        server.state().tasks.push_back(flow("F.1", request(&[&["A"]])));
        server.wait_for("the end of the collection", |state| has_end(state, "F.1")).await;

        let stranger = Authority::generate(&SystemRng, now()).unwrap();
        let identity = stranger.issue(&LeafProfile::frontend("VelociraptorServer"), &SystemRng, now()).unwrap();
        let before = {
            let mut state = server.state();
            state.codec = codec(&identity);
            state.identity = identity;
            (state.received.len(), state.fetches)
        };
        server.wait_for("attempts to verify", |state| state.fetches > before.1 + 3).await;
        assert_eq!(server.state().received.len(), before.0, "nothing is sent to a server that is not verified");
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_repeated_request_runs_once() {
    let (server, folder) = (Server::new(), tempfile::tempdir().unwrap());
    with_agent(&server, folder.path(), async {
        server.wait_for("enrolment", |state| !state.received.is_empty()).await;
        for _ in 0..2 {
            server.state().tasks.push_back(flow("F.1", request(&[&["A"]])));
            server.wait_for("delivery", |state| state.tasks.is_empty()).await;
        }
        server.state().tasks.push_back(flow("F.2", request(&[&["A"]])));
        server.wait_for("the end of the second collection", |state| has_end(state, "F.2")).await;
    })
    .await
    .unwrap();
    assert_eq!(server.state().received.iter().filter(|message| message.session_id == "F.1" && is_end(message)).count(), 1);
}
