//! Why a session with an editor ended badly.

/// Who is to blame: the streams, or the client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LanguageServerError {
    /// The environment: reading or writing failed.
    #[error("the editor cannot be reached any more")]
    Stream(#[from] std::io::Error),
    /// The client: what it sends is not framed as the protocol says.
    #[error("the editor does not speak the language server protocol: {0}")]
    Protocol(&'static str),
    /// The client: it left without the request to shut down.
    #[error("the editor left without a request to shut down")]
    Abandoned,
}
