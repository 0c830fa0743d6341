//! What can go wrong on the way between an agent and a frontend.

use std::error::Error;
use std::io;
use std::sync::Arc;

/// An error of this crate, by who has to act on it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A setting cannot be used; the text names the key and the cure.
    #[error("{0}")]
    Configuration(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address that was asked for.
        address: String,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// No connection to the server came about.
    #[error("cannot connect to {to}")]
    Connect {
        /// Host and port that were dialled last.
        to: String,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The TLS handshake failed, mostly because the peer's certificate is not acceptable.
    #[error("TLS with {with} failed")]
    Tls {
        /// The host.
        with: String,
        /// What the handshake said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The proxy refused to connect to the server.
    #[error("the proxy {proxy} refused the connection: {reason}")]
    Proxy {
        /// Host and port of the proxy.
        proxy: String,
        /// Its status line, or what was wrong with it.
        reason: String,
    },
    /// The peer took longer than it may.
    #[error("timed out while {0}")]
    Timeout(&'static str),
    /// The peer's answer is longer than the limit.
    #[error("the answer is longer than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The connection ended or broke the rules of HTTP before an answer was complete.
    #[error("the connection broke")]
    Broken(#[source] Arc<dyn Error + Send + Sync>),
    /// The server answered with a status that does not fit what was asked for.
    #[error("the server answered with status {0}")]
    Status(u16),
}
