//! Lockdown: what a deployment forbids to everybody, whatever roles they have. Pure decisions over configuration lists.
//!
//! ```
//! use std::sync::Arc;
//! use talon_acl::{Authority, Execute};
//! use talon_ids::OrgId;
//! use talon_lockdown::Lockdown;
//!
//! let lockdown = Arc::new(Lockdown::default());
//! let server = Authority::superuser("VelociraptorServer".parse()?, OrgId::root(), lockdown);
//! assert_eq!(server.permit::<Execute>().unwrap_err().to_string(), "PermissionDenied: Server locked down: [EXECVE]");
//! # Ok::<(), talon_ids::InvalidId>(())
//! ```

mod builtins;
mod mode;
mod paths;

pub use builtins::{ACCESSOR_DENIED, Blocked, BuiltinKind, BuiltinRules, NameRules, Verdict, server_defaults};
pub use mode::Lockdown;
pub use paths::{DENIED_STORED, PrefixRules};

/// A configuration that no lockdown can be made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockdownError {
    /// `security.lockdown_denied_permissions` names something else.
    #[error("Invalid permission {0} while parsing lockdown_denied_permissions")]
    UnknownPermission(String),
    /// `security.allowed_accessors` names something else.
    #[error("Unknown accessor in allow list: {0}")]
    UnknownAccessor(String),
}
