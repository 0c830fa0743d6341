//! An agent's way to a server: what it may ask, without saying how it travels.

use std::pin::Pin;

use bytes::Bytes;

use crate::{ServerUrl, TransportError};

/// The two places an agent posts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Messages from the agent.
    Control,
    /// The long poll for messages to the agent.
    Reader,
}

impl Handler {
    /// The last part of the URL.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Reader => "reader",
        }
    }
}

/// One packet to a server.
#[derive(Clone, Debug)]
pub struct Post {
    /// Where to.
    pub handler: Handler,
    /// Whether to ask the server to handle it before others.
    pub urgent: bool,
    /// The sealed packet.
    pub body: Bytes,
}

/// A server's complete answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The `Location` header, when there is one. It is never followed here.
    pub location: Option<String>,
    /// The body, pads included.
    pub body: Bytes,
}

/// A way to reach servers. Which URL to use and what to do about an answer is the caller's business.
///
/// Futures may be dropped at any time, which abandons the exchange.
pub trait ServerLink: Send + Sync + 'static {
    /// Fetches `server.pem`, without any check of its content.
    ///
    /// # Errors
    /// [`TransportError::Status`] for an answer other than 200; others when there was no complete answer.
    fn fetch_pem<'a>(&'a self, server: &'a ServerUrl) -> Pin<Box<dyn Future<Output = Result<Bytes, TransportError>> + Send + 'a>>;

    /// Posts a packet and reads the whole answer. A `/reader` answer comes when the server has news or ends the poll.
    ///
    /// # Errors
    /// When there was no complete answer; an answer of any status is a [`Reply`].
    fn post<'a>(&'a self, server: &'a ServerUrl, post: Post) -> Pin<Box<dyn Future<Output = Result<Reply, TransportError>> + Send + 'a>>;
}
