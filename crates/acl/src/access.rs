//! Access rows: the declaration, once for each entry point, of who may use it and what of it is recorded.

use talon_ids::{Permission, Permissions};

use crate::{Authority, Denial, Reason, Target};

/// What the caller of an entry point needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// A verified connection, nothing else.
    Connection,
    /// To be a known user.
    User,
    /// All these permissions.
    All(Permissions),
    /// At least these permissions; the request decides what more, as the text says.
    AtLeast(Permissions, &'static str),
    /// The request alone decides, as the text says. The handler makes the check before it does anything else.
    ByRequest(&'static str),
    /// `PUBLISH` for the queue in the request.
    Queue,
}

impl Requirement {
    /// All of `permissions`.
    #[must_use]
    pub const fn all(permissions: &[Permission]) -> Self {
        Self::All(Permissions::of(permissions))
    }

    /// What can be decided before the request is read.
    #[must_use]
    pub const fn before_request(self) -> Permissions {
        match self {
            Self::All(permissions) | Self::AtLeast(permissions, _) => permissions,
            Self::Connection | Self::User | Self::ByRequest(_) | Self::Queue => Permissions::NONE,
        }
    }
}

/// In which organisation the permissions are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrgScope {
    /// In none: the entry point is not about an organisation.
    Nowhere,
    /// In the one that the caller works in.
    Own,
    /// In the one that the request names.
    Requested,
    /// In the root organisation, wherever the caller works.
    Root,
}

/// What the audit log says of a use. Refusals are recorded for every entry point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditClass {
    /// Nothing: it changes nothing.
    Reads,
    /// Nothing of its own: what it starts is recorded where it is done.
    Delegates,
    /// These operations, each durable before it starts.
    Changes(&'static [&'static str]),
}

/// One entry point: a method of the API, a route, a verb.
#[derive(Debug, Clone, Copy)]
pub struct AccessRow {
    /// Its name.
    pub name: &'static str,
    /// What its caller needs.
    pub requirement: Requirement,
    /// Where.
    pub scope: OrgScope,
    /// What is recorded.
    pub audit: AuditClass,
    /// What a refused caller is told, for example `User is not allowed to view clients.`; `{user}` stands for the caller. Empty for the
    /// text of the denial itself.
    pub refusal: &'static str,
}

impl AccessRow {
    /// Decides what the row alone can decide. `authority` must be one of the organisation that [`AccessRow::scope`] says.
    ///
    /// # Errors
    /// The denial.
    pub fn check(&self, authority: &Authority) -> Result<(), Denial> {
        authority.check(self.requirement.before_request())
    }

    /// What a refused caller is told.
    #[must_use]
    pub fn refusal(&self, denial: &Denial) -> String {
        if self.refusal.is_empty() {
            denial.to_string()
        } else {
            denial.for_api(&self.refusal.replace("{user}", denial.principal.as_str()))
        }
    }
}

/// Which permission a collection from an endpoint, or from the server itself, needs before the artifact's own are looked at.
#[must_use]
pub fn collection_permission(on_server: bool) -> Permission {
    if on_server { Permission::CollectServer } else { Permission::CollectClient }
}

/// Why one artifact may not be collected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectDenial {
    /// The principal schedules no collections there.
    #[error("{}", launch_text(permission, denial))]
    Launch {
        /// What is missing.
        permission: Permission,
        /// The decision.
        denial: Denial,
    },
    /// The artifact itself asks for a permission that the principal does not hold.
    #[error("PermissionDenied: While collecting artifact ({artifact}) permission denied {permission}")]
    Artifact {
        /// The artifact.
        artifact: String,
        /// What it asks for.
        permission: Permission,
        /// The decision.
        denial: Denial,
    },
}

fn launch_text(permission: &Permission, denial: &Denial) -> String {
    match denial.reason {
        Reason::Locked(_) => denial.to_string(),
        _ => format!("PermissionDenied: User {} is not allowed to launch flows {permission}.", denial.principal),
    }
}

/// Whether `authority` may collect one artifact that the request names. Artifacts that it depends on are not looked at: wrapping is a feature.
///
/// # Errors
/// The denial.
pub fn check_collection(
    authority: &Authority,
    on_server: bool,
    artifact: &str,
    basic: bool,
    required: Permissions,
) -> Result<(), CollectDenial> {
    if basic && authority.check_about(Permissions::of(&[Permission::CollectBasic]), Some(Target::Artifact(artifact))).is_ok() {
        return Ok(());
    }
    let permission = collection_permission(on_server);
    authority
        .check_about(Permissions::of(&[permission]), Some(Target::Artifact(artifact)))
        .map_err(|denial| CollectDenial::Launch { permission, denial })?;
    required.iter().try_for_each(|permission| {
        authority.check(Permissions::of(&[permission])).map_err(|denial| CollectDenial::Artifact {
            artifact: artifact.to_owned(),
            permission,
            denial,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::expect;
    use talon_ids::OrgId;

    use super::*;
    use crate::{Policy, Role, Unrestricted};

    fn authority(policy: &Policy) -> Authority {
        Authority::user("alice".parse().unwrap(), OrgId::root(), None, Some(policy), Arc::new(Unrestricted))
    }

    #[test]
    fn a_row_decides_and_tells() {
        let row = AccessRow {
            name: "ListClients",
            requirement: Requirement::all(&[Permission::ReadResults]),
            scope: OrgScope::Own,
            audit: AuditClass::Reads,
            refusal: "User is not allowed to view clients.",
        };
        assert!(row.check(&authority(&Policy::of_roles([Role::Reader]))).is_ok());
        let denial = row.check(&authority(&Policy::of_roles([Role::ArtifactWriter]))).unwrap_err();
        assert_eq!(row.refusal(&denial), "User is not allowed to view clients.");
        assert_eq!(AccessRow { refusal: "", ..row }.refusal(&denial), "PermissionDenied: Permission denied: [READ_RESULTS]");
    }

    #[test]
    fn an_artifact_may_ask_for_more_than_collecting() {
        let execve = Permissions::of(&[Permission::Execve]);
        let investigator = authority(&Policy::of_roles([Role::Investigator]));
        assert!(check_collection(&investigator, false, "A", false, Permissions::NONE).is_ok());
        expect!["PermissionDenied: While collecting artifact (A) permission denied EXECVE"]
            .assert_eq(&check_collection(&investigator, false, "A", false, execve).unwrap_err().to_string());
        expect!["PermissionDenied: User alice is not allowed to launch flows COLLECT_SERVER."]
            .assert_eq(&check_collection(&investigator, true, "A", false, Permissions::NONE).unwrap_err().to_string());
    }

    #[test]
    fn a_basic_collector_collects_basic_artifacts_only() {
        let basic = authority(&Policy::default().with_permissions(Permissions::of(&[Permission::CollectBasic])));
        let execve = Permissions::of(&[Permission::Execve]);
        assert!(check_collection(&basic, false, "A", true, execve).is_ok());
        assert!(check_collection(&basic, false, "A", false, Permissions::NONE).is_err());
        let reader = authority(&Policy::of_roles([Role::Reader]));
        assert!(check_collection(&reader, false, "A", true, Permissions::NONE).is_err());
    }
}
