//! What can go wrong in an agent, by who has to act.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error of this crate.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A setting cannot be used; the text names the key.
    #[error("{0}")]
    Configuration(String),
    /// The agent's state cannot be read or written.
    #[error("the agent's state in {} cannot be used: {source}", path.display())]
    Writeback {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The buffer of results cannot be opened.
    #[error("the buffer of results cannot be used: {0}")]
    Buffer(Arc<io::Error>),
    /// The system gives no threads or no other means to run.
    #[error("the system refuses: {0}")]
    System(Arc<io::Error>),
    /// The cryptographic library or the wire refused.
    #[error("a packet cannot be made")]
    Wire(#[source] Arc<talon_wire::WireError>),
    /// The server asked the agent to end itself (`KillKillKill`).
    #[error("the server asked this agent to restart")]
    Killed,
}

impl ClientError {
    pub(crate) fn writeback(path: &Path, error: io::Error) -> Self {
        Self::Writeback { path: path.to_owned(), source: Arc::new(error) }
    }
}

impl From<talon_wire::WireError> for ClientError {
    fn from(error: talon_wire::WireError) -> Self {
        Self::Wire(Arc::new(error))
    }
}
