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
    #[error("TLS with {with} failed{cure}")]
    Tls {
        /// The host.
        with: String,
        /// What can be done about it, in brackets, or nothing.
        cure: &'static str,
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

impl TransportError {
    /// The error and all its causes in one line, for logs.
    #[must_use]
    pub fn with_causes(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(inner) = cause {
            line.push_str(": ");
            line.push_str(&inner.to_string());
            cause = inner.source();
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stand_in_one_line() {
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "refused");
        let error = TransportError::Connect { to: "a:1".to_owned(), source: Arc::new(refused) };
        assert_eq!(error.to_string(), "cannot connect to a:1");
        assert_eq!(error.with_causes(), "cannot connect to a:1: refused");
    }
}
