//! What the tests talk to: an endpoint that obeys the text of a packet, a frontend around it, and a client that sees every byte.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use rustls_pki_types::UnixTime;
use talon_crypto::SystemRng;
use talon_pki::{Authority, LeafProfile};
use talon_transport::{
    AgentEndpoint, AgentRequest, BoxFuture, ControlOutcome, FrontendLimits, FrontendListener, FrontendSettings, LongPoll, Processed,
    PublicFile, PublicPath, ReaderOutcome, Rejection, ServerTls, Unhealthy,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const PEM: &str = "-----BEGIN CERTIFICATE-----\nfake\n-----END CERTIFICATE-----\n";

/// Does what the body says; remembers who asked and what was finished.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) sick: bool,
    pub(crate) max_poll: Duration,
    pub(crate) seen: Mutex<Vec<Seen>>,
    pub(crate) processed: AtomicUsize,
    pub(crate) polls_ended: AtomicUsize,
}

/// Socket, recorded address, user agent, urgency and length of a request.
pub(crate) type Seen = (SocketAddr, String, String, bool, usize);

struct Registered(Arc<Fake>);

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.polls_ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn note(&self, request: &AgentRequest) -> String {
        let peer = &request.peer;
        self.seen.lock().unwrap().push((peer.socket, peer.remote.clone(), peer.user_agent.clone(), request.urgent, request.body.len()));
        String::from_utf8_lossy(&request.body).into_owned()
    }

    pub(crate) fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn rejection(text: &str) -> Option<Rejection> {
    match text {
        "" | "Z\u{1}\0" | "stranger" => Some(Rejection::PleaseEnrol),
        "bad csr" => Some(Rejection::EnrolmentFailed),
        "busy" => Some(Rejection::Overloaded),
        "second" => Some(Rejection::Conflict),
        text if text.starts_with("garbage") => Some(Rejection::Unreadable),
        _ => None,
    }
}

impl AgentEndpoint for Fake {
    fn server_pem(&self) -> Bytes {
        Bytes::from_static(PEM.as_bytes())
    }

    fn health(&self) -> Result<(), Unhealthy> {
        if self.sick { Err(Unhealthy("the disk is full".to_owned())) } else { Ok(()) }
    }

    fn control(self: Arc<Self>, request: AgentRequest) -> BoxFuture<ControlOutcome> {
        Box::pin(async move {
            let text = self.note(&request);
            if let Some(rejection) = rejection(&text) {
                return ControlOutcome::Reject(rejection);
            }
            if text == "dropped" {
                return ControlOutcome::Dropped;
            }
            ControlOutcome::Accepted(Box::pin(async move {
                let processed = match text.split_once(' ').unwrap_or((&text, "")) {
                    ("refused", _) => Processed::Refused,
                    ("failed", _) => Processed::Failed,
                    ("panic", _) => panic!("asked for"),
                    ("slow", ms) => {
                        tokio::time::sleep(Duration::from_millis(ms.parse().unwrap())).await;
                        Processed::Answer(Bytes::from_static(b"sealed"))
                    }
                    ("big", size) => Processed::Answer(vec![b'x'; size.parse().unwrap()].into()),
                    _ => Processed::Answer(Bytes::from_static(b"sealed")),
                };
                self.processed.fetch_add(1, Ordering::SeqCst);
                processed
            }))
        })
    }

    fn reader(self: Arc<Self>, request: AgentRequest) -> BoxFuture<ReaderOutcome> {
        Box::pin(async move {
            let text = self.note(&request);
            if let Some(rejection) = rejection(&text) {
                return ReaderOutcome::Reject(rejection);
            }
            if text == "unknown record" {
                return ReaderOutcome::Empty;
            }
            let max_poll = self.max_poll;
            let registered = Registered(self);
            let answer = Box::pin(async move {
                let _registered = registered;
                match text.split_once(' ').unwrap_or((&text, "")) {
                    ("news", ms) => {
                        tokio::time::sleep(Duration::from_millis(ms.parse().unwrap_or(0))).await;
                        Some(Bytes::from_static(b"tasks"))
                    }
                    ("big", size) => Some(vec![b'x'; size.parse().unwrap()].into()),
                    ("nothing", _) => None,
                    _ => std::future::pending().await,
                }
            });
            ReaderOutcome::Poll(LongPoll { answer, farewell: Box::new(|| Some(Bytes::from_static(b"farewell"))), max_poll })
        })
    }

    fn public(self: Arc<Self>, path: PublicPath) -> BoxFuture<Option<PublicFile>> {
        Box::pin(async move {
            let content: Vec<std::io::Result<Bytes>> = vec![Ok(Bytes::from_static(b"some ")), Ok(Bytes::from_static(b"tool"))];
            (path.as_str() == "tools/a b;c.exe").then(|| PublicFile {
                name: "a b;c.exe".to_owned(),
                size: Some(9),
                content: Box::pin(futures_util::stream::iter(content)),
            })
        })
    }
}

/// A running frontend.
pub(crate) struct Frontend {
    pub(crate) address: SocketAddr,
    pub(crate) endpoint: Arc<Fake>,
    pub(crate) drain: CancellationToken,
    pub(crate) served: JoinHandle<()>,
}

/// Bounds that let a test end soon.
pub(crate) fn limits() -> FrontendLimits {
    FrontendLimits {
        poll_jitter: Duration::ZERO,
        connections_per_second: 1000,
        head_delay: Duration::from_millis(5),
        ..FrontendLimits::default()
    }
}

pub(crate) async fn start(endpoint: Fake, limits: FrontendLimits, tls: Option<ServerTls>) -> Frontend {
    start_below("", endpoint, limits, tls).await
}

pub(crate) async fn start_below(base: &str, endpoint: Fake, limits: FrontendLimits, tls: Option<ServerTls>) -> Frontend {
    let settings = FrontendSettings {
        bind_address: "127.0.0.1".to_owned(),
        bind_port: 0,
        base_path: base.to_owned(),
        tls,
        proxy_header: Some("X-Forwarded-For".to_owned()),
        limits,
    };
    let listener = FrontendListener::bind(settings).await.unwrap();
    let (address, endpoint, drain) = (listener.local_addr(), Arc::new(endpoint), CancellationToken::new());
    let served = tokio::spawn(listener.serve(Arc::clone(&endpoint) as Arc<dyn AgentEndpoint>, drain.clone()));
    Frontend { address, endpoint, drain, served }
}

impl Frontend {
    /// Sends a request as it stands and returns all that comes until the end of the connection, without the date.
    pub(crate) async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("the connection stays open");
        without_date(&String::from_utf8_lossy(&answer))
    }

    /// Posts a body and asks for the connection to be closed after the answer.
    pub(crate) async fn post(&self, path: &str, body: &str) -> String {
        self.raw(&request("POST", path, "", body)).await
    }
}

pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn without_date(answer: &str) -> String {
    answer.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: ")).collect()
}

/// The deployment's authority in all tests.
pub(crate) fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::generate(&SystemRng, UnixTime::now()).unwrap())
}

/// An authority that the deployment does not know.
pub(crate) fn stranger() -> &'static Authority {
    static STRANGER: OnceLock<Authority> = OnceLock::new();
    STRANGER.get_or_init(|| Authority::generate(&SystemRng, UnixTime::now()).unwrap())
}

pub(crate) fn ca_pem(authority: &Authority) -> String {
    authority.certificate().pem()
}

/// Certificate and private key of a leaf.
pub(crate) fn leaf(authority: &Authority, profile: &LeafProfile) -> (String, String) {
    let identity = authority.issue(profile, &SystemRng, UnixTime::now()).unwrap();
    (identity.certificate().pem(), identity.private_key_pem().unwrap().to_string())
}

/// The frontend's identity in all tests that need nothing else.
pub(crate) fn server_tls() -> ServerTls {
    static LEAF: OnceLock<(String, String)> = OnceLock::new();
    let (certificate, key) = LEAF.get_or_init(|| leaf(authority(), &LeafProfile::frontend("VelociraptorServer")));
    ServerTls::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
}
