//! Who may do what: roles, policies, decisions, and the permits without which nothing with an effect can be called.
//!
//! Everything is denied unless a policy grants it. There is one decision, [`Authority::check`]; restrictions such as lockdown are inside it.
//!
//! ```
//! use std::sync::Arc;
//! use talon_acl::{Authority, CollectClient, FilesystemRead, Permit, Policy, Role, Unrestricted};
//! use talon_ids::OrgId;
//!
//! fn read_file(_permit: &Permit<FilesystemRead>, _path: &str) {}
//!
//! let policy = Policy::of_roles([Role::Investigator]);
//! let alice = Authority::user("alice".parse()?, OrgId::root(), None, Some(&policy), Arc::new(Unrestricted));
//! assert!(alice.permit::<CollectClient>().is_ok());
//! match alice.permit::<FilesystemRead>() {
//!     Ok(permit) => read_file(&permit, "/etc/passwd"),
//!     Err(denial) => assert_eq!(denial.to_string(), "PermissionDenied: Permission denied: [FILESYSTEM_READ]"),
//! }
//! # Ok::<(), talon_ids::InvalidId>(())
//! ```

mod access;
mod assertion;
mod authority;
mod custom;
mod decide;
mod denial;
mod effect;
mod escalation;
mod policy;
mod role;

pub use access::{AccessRow, AuditClass, CollectDenial, OrgScope, Requirement, check_collection, collection_permission};
pub use assertion::{Assertion, BadAssertion, Violation, violations};
pub use authority::Authority;
pub use custom::{CustomRole, CustomRoles};
pub use decide::{EndpointPolicy, Question, Restriction, Target, Token, Unrestricted, decide};
pub use denial::{Cure, Denial, Reason};
pub use effect::{
    Administer, CollectClient, CollectServer, DeleteResults, EditNotebooks, Effect, Execute, FilesystemRead, FilesystemWrite, LabelClient,
    MachineState, Network, Permit, PrepareResults, Publish, ReadResults, StartHunt,
};
pub use escalation::{ArtifactFacts, Escalation, Goal, Holder, Inventory, Subject, escalations};
pub use policy::{EffectivePolicy, FieldValue, Policy, PolicyError};
pub use role::Role;
