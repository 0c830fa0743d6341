//! What can go wrong in a call of a built-in. Nothing here ends a query: the line is logged, and the query goes on.

use talon_ids::Permissions;

/// Why a call gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The caller lacks a permission. The text follows `PermissionDenied: `.
    #[error("PermissionDenied: {0}")]
    Denied(Denied),
    /// The arguments do not fit the signature.
    #[error("{0}")]
    Argument(String),
    /// Anything else, for the user to read. The text must carry no secret.
    #[error("{0}")]
    Failed(String),
    /// Nothing to log: the call has said what there was to say.
    #[error("")]
    Silent,
}

impl CallError {
    /// A failure with `cause` as its text.
    pub fn failed(cause: impl std::fmt::Display) -> Self {
        Self::Failed(cause.to_string())
    }
}

impl From<Denied> for CallError {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl From<String> for CallError {
    fn from(text: String) -> Self {
        Self::Failed(text)
    }
}

impl From<&str> for CallError {
    fn from(text: &str) -> Self {
        Self::Failed(text.to_owned())
    }
}

impl From<std::io::Error> for CallError {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A refusal by the guard of a query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Denied(String);

impl Denied {
    /// A refusal with a text of its own, such as `Server locked down: [EXECVE]`.
    pub fn with_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The usual refusal: `Permission denied: [A B]`.
    #[must_use]
    pub fn missing(permissions: Permissions) -> Self {
        Self(format!("Permission denied: {permissions}"))
    }
}
