//! What a frontend's HTTP surface asks of the server behind it, and what the server may answer. Statuses and bodies are chosen by the listener.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// A serialized `ClientCommunication` that holds nothing but padding. Any number of them may stand before the one real packet of a body.
pub const PAD: [u8; 3] = [0x5A, 0x01, 0x00];

/// A boxed future that owns what it uses.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// The server, as agents see it. Implemented above this crate; one value serves all connections.
///
/// Dropping a returned future means that the peer is gone. The future inside [`ControlOutcome::Accepted`] is never dropped for that reason: what was
/// accepted is processed to the end or to [`FrontendLimits::processing_deadline`](crate::FrontendLimits::processing_deadline).
pub trait AgentEndpoint: Send + Sync + 'static {
    /// The frontend's certificate in PEM, served to anybody at `/server.pem`.
    fn server_pem(&self) -> Bytes;

    /// Whether messages can be taken now.
    ///
    /// # Errors
    /// [`Unhealthy`] with a text that may be shown to anybody.
    fn health(&self) -> Result<(), Unhealthy>;

    /// Takes one packet from an agent.
    fn control(self: Arc<Self>, request: AgentRequest) -> BoxFuture<ControlOutcome>;

    /// Starts a long poll for one agent.
    fn reader(self: Arc<Self>, request: AgentRequest) -> BoxFuture<ReaderOutcome>;

    /// A file that anybody may download, or `None`.
    fn public(self: Arc<Self>, path: PublicPath) -> BoxFuture<Option<PublicFile>>;
}

/// Who sent a request, as far as the transport knows. None of it is authenticated.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The other end of the TCP connection: the agent or a proxy.
    pub socket: SocketAddr,
    /// The address to record: the value of the configured proxy header where the request has it, else that of `socket`. Up to 256 visible characters.
    pub remote: String,
    /// The `User-Agent` header, up to 256 visible characters.
    pub user_agent: String,
}

/// One packet from an agent.
#[derive(Debug)]
pub struct AgentRequest {
    /// Who sent it.
    pub peer: Peer,
    /// Whether the agent asked for it to be handled before others (`X-Priority: urgent`). Said before authentication, so it must not lift any limit.
    pub urgent: bool,
    /// The sealed packet, within the limit of its route.
    pub body: Bytes,
}

/// What became of a packet that was posted to `/control`.
pub enum ControlOutcome {
    /// Not taken.
    Reject(Rejection),
    /// Not taken, and the agent must not send it again: 200 with an empty body.
    Dropped,
    /// Authenticated; it is being processed. The listener answers 200 at once and pads while the future runs.
    Accepted(BoxFuture<Processed>),
}

/// How the processing of an accepted packet ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Processed {
    /// Everything is durable; the sealed acknowledgement ends the body.
    Answer(Bytes),
    /// The packet is refused for good (an unknown artifact, a list that does not parse): the body ends without a packet, the agent drops its copy.
    Refused,
    /// It could not be made durable: the connection is cut before the body ends, so that the agent keeps its copy and sends it again.
    Failed,
}

/// What became of a packet that was posted to `/reader`.
pub enum ReaderOutcome {
    /// Not taken.
    Reject(Rejection),
    /// The agent has no record yet; 200 with an empty body.
    Empty,
    /// The agent waits for news.
    Poll(LongPoll),
}

/// One waiting agent.
pub struct LongPoll {
    /// Yields the sealed packet that ends the poll as soon as there is one, or `None` to end the poll without one. Dropped when the agent is gone.
    pub answer: BoxFuture<Option<Bytes>>,
    /// Makes the sealed empty packet that ends the poll when the frontend drains.
    pub farewell: Box<dyn FnOnce() -> Option<Bytes> + Send>,
    /// How long the agent may wait (`Client.max_poll` of its organisation); the listener adds up to 29 s.
    pub max_poll: Duration,
}

/// Why a packet is not taken. Towards the peer each variant is one status and one text, whatever the cause was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// It cannot be opened: 403 and an empty line.
    Unreadable,
    /// Nobody that is known sent it: 406 `Please Enrol`. Also the answer to a certificate request that was taken.
    PleaseEnrol,
    /// The certificate request is not acceptable: 503 and an empty line.
    EnrolmentFailed,
    /// Another reader waits under the same id: 409.
    Conflict,
    /// Too busy to handle it now: 503 and an empty line. The agent keeps its copy.
    Overloaded,
}

/// Why no messages can be taken now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhealthy(pub String);

/// The path of a public file below `/public/`: one or more names separated by `/`, none of them empty, `.` or `..`, no control character or backslash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicPath(String);

impl PublicPath {
    /// Parses a decoded path; `None` when it is not of that form or longer than 1024 bytes.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let plain = path.len() <= 1024 && !path.chars().any(|character| character.is_control() || character == '\\');
        let named = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        (plain && named).then(|| Self(path.to_owned()))
    }

    /// The names from the outermost folder to the file.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The whole path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A public file's content.
pub struct PublicFile {
    /// The name that the download gets.
    pub name: String,
    /// The size in bytes when it is known.
    pub size: Option<u64>,
    /// The content in pieces of bounded size; an error cuts the connection.
    pub content: Pin<Box<dyn futures_util::Stream<Item = std::io::Result<Bytes>> + Send>>,
}

impl fmt::Debug for PublicFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("PublicFile").field("name", &self.name).field("size", &self.size).finish_non_exhaustive()
    }
}
