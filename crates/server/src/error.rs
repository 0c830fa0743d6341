//! Why a service refused, by who is to blame.

use talon_ids::InvalidId;
use talon_store::StoreError;

/// Why a service refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The principal may not do that.
    #[error(transparent)]
    Denied(#[from] talon_acl::Denial),
    /// The principal may not collect that artifact.
    #[error(transparent)]
    CollectDenied(#[from] talon_acl::CollectDenial),
    /// The principal may not administer that user or organisation.
    #[error("{0}")]
    Forbidden(String),
    /// The notebook is another's and not shared with the principal.
    #[error("InvalidStatus: Notebook is not shared with user.")]
    NotShared,
    /// What the request names does not exist.
    #[error("{}", not_found_text(.what, .name))]
    NotFound {
        /// What was looked for: `Flow`, `Client`, `User` …
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The request cannot be carried out as it stands.
    #[error("{0}")]
    Invalid(String),
    /// A name in the request is none.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    /// A policy in the request is none.
    #[error(transparent)]
    Policy(#[from] talon_acl::PolicyError),
    /// An artifact in the request does not load or compile.
    #[error(transparent)]
    Artifact(#[from] talon_artifacts::ArtifactError),
    /// The action cannot be recorded, so it is not done.
    #[error("the audit log cannot record this, so it is not done")]
    Audit(#[source] talon_audit::AuditError),
    /// The configuration is unusable.
    #[error("{0}")]
    Configuration(String),
    /// Storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The query was cancelled, or the server is closing.
    #[error("cancelled")]
    Cancelled,
}

fn not_found_text(what: &str, name: &str) -> String {
    // The one text of stock servers without the name.
    if what == "Org" { "Org not found".to_owned() } else { format!("{what} not found: {name}") }
}

impl ServerError {
    pub(crate) fn not_found(what: &'static str, name: impl ToString) -> Self {
        Self::NotFound { what, name: name.to_string() }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// Whether the caller was refused for lack of permission.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::CollectDenied(_) | Self::Forbidden(_))
    }
}
