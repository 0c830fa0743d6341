//! Typed identifiers: every name that crosses a boundary is parsed once, and an invalid one cannot exist.
//!
//! Identifiers are facts that peers see (`F.CL9V2001081G8`, `C.9ec73ee0e319cb44`): their text forms are kept exactly.
//!
//! ```
//! use talon_ids::{ClientId, FlowId, SessionId};
//!
//! let client: ClientId = "C.9ec73ee0e319cb44".parse()?;
//! let flow = FlowId::from_parts(1_700_000_000, [1, 2, 3, 4]);
//! assert_eq!(flow.to_string(), "F.CL9V2001081G8");
//! assert_eq!("F.CL9V2001081G8/2".parse::<SessionId>()?.flow(), Some(&flow));
//! assert!("../etc".parse::<ClientId>().is_err());
//! # let _ = client;
//! # Ok::<(), talon_ids::InvalidId>(())
//! ```

mod artifact;
mod client;
mod flow;
mod org;
mod permission;
mod upload;
mod user;

pub use artifact::{ArtifactName, QueryName};
pub use client::{ClientId, Target};
pub use flow::{ChildFlow, FlowId, HuntId, SessionId, TimeOrderedId};
pub use org::OrgId;
pub use permission::{Permission, Permissions};
pub use upload::{StoredName, UploadPath};
pub use user::UserName;

/// Text that is not the identifier it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
#[non_exhaustive]
pub struct InvalidId {
    /// What the text should have been, with its article: "a client id".
    pub what: &'static str,
    /// The offending text, cut to 80 characters.
    pub text: String,
}

impl InvalidId {
    pub(crate) fn new(what: &'static str, text: &str) -> Self {
        Self { what, text: text.chars().take(80).collect() }
    }
}

/// Implements the traits that every textual identifier has, over its `as_str`.
macro_rules! textual {
    ($name:ident) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(self.as_str())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(self.as_str())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
    };
}
pub(crate) use textual;
