//! Lockdown, locks and lists: what a deployment forbids to everybody, whatever roles they have. Pure decisions.
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
mod lock;
mod mode;
mod paths;

pub use builtins::{ACCESSOR_DENIED, Blocked, BuiltinKind, BuiltinRules, NameRules, Verdict, server_defaults};
pub use lock::{Lock, LockTable, LockTarget, Removal, Rules, TaskInQuestion};
pub use mode::Lockdown;
pub use paths::{DENIED_STORED, PrefixRules};

/// A configuration that no lockdown can be made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockdownError {
    /// `security.lockdown_denied_permissions` names something else.
    #[error("Invalid permission {0} while parsing lockdown_denied_permissions")]
    UnknownPermission(String),
    /// A lock on that is not possible.
    #[error("there is no lock on {kind} {name:?}: lock a user, role, client, artifact or org by its name, or all without one")]
    LockTarget {
        /// The kind that was asked for.
        kind: String,
        /// The name that was asked for.
        name: String,
    },
    /// `security.allowed_accessors` names something else.
    #[error("Unknown accessor in allow list: {0}")]
    UnknownAccessor(String),
}
