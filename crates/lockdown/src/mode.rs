//! Lockdown mode: permissions that nobody has while it is on, the superuser included.

use talon_acl::{Question, Reason, Restriction};
use talon_ids::{Permission, Permissions};

use crate::LockdownError;

/// Lockdown mode. It is switched on by the server's configuration and off by nothing but the configuration and a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lockdown {
    denied: Permissions,
}

impl Lockdown {
    /// What is denied unless the configuration says otherwise: everything that changes the server or reaches an endpoint.
    pub const DEFAULT_DENIED: Permissions = Permissions::of(&[
        Permission::ArtifactWriter,
        Permission::LabelClient,
        Permission::ServerArtifactWriter,
        Permission::CollectClient,
        Permission::CollectServer,
        Permission::StartHunt,
        Permission::Execve,
        Permission::ServerAdmin,
        Permission::Network,
        Permission::FilesystemWrite,
        Permission::FilesystemRead,
        Permission::MachineState,
        Permission::CollectBasic,
        Permission::Impersonation,
        Permission::OrgAdmin,
    ]);

    /// Lockdown with [`Lockdown::DEFAULT_DENIED`] and the permissions of `security.lockdown_denied_permissions` besides.
    ///
    /// # Errors
    /// [`LockdownError::UnknownPermission`] with the first name that is no permission's.
    pub fn new<'a>(denied: impl IntoIterator<Item = &'a str>) -> Result<Self, LockdownError> {
        Ok(Self { denied: parse(denied)?.union(Self::DEFAULT_DENIED) })
    }

    /// Lockdown with the permissions of `security.lockdown_denied_permissions` alone, as `talon.server.lockdown_replace` asks for; with
    /// [`Lockdown::DEFAULT_DENIED`] if there are none.
    ///
    /// # Errors
    /// As [`Lockdown::new`].
    pub fn replacing<'a>(denied: impl IntoIterator<Item = &'a str>) -> Result<Self, LockdownError> {
        let denied = parse(denied)?;
        Ok(Self { denied: if denied.is_empty() { Self::DEFAULT_DENIED } else { denied } })
    }

    /// What is denied to everybody.
    #[must_use]
    pub fn denied(&self) -> Permissions {
        self.denied
    }

    /// The line for operators at start.
    #[must_use]
    pub fn notice(&self) -> String {
        format!("Server is in lockdown! The following permissions are denied: {}", self.denied)
    }
}

impl Default for Lockdown {
    fn default() -> Self {
        Self { denied: Self::DEFAULT_DENIED }
    }
}

fn parse<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Permissions, LockdownError> {
    names.into_iter().map(|name| name.parse().map_err(|_| LockdownError::UnknownPermission(name.to_owned()))).collect()
}

impl Restriction for Lockdown {
    fn lockdown(&self) -> Permissions {
        self.denied
    }

    fn refuses(&self, _: &Question<'_>) -> Option<Reason> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::expect;
    use talon_acl::{Authority, CollectClient, Policy, ReadResults, Role};
    use talon_ids::OrgId;

    use super::*;

    #[test]
    fn the_default_denies_fifteen_permissions() {
        expect!["Server is in lockdown! The following permissions are denied: [LABEL_CLIENT COLLECT_CLIENT COLLECT_BASIC START_HUNT COLLECT_SERVER ARTIFACT_WRITER SERVER_ARTIFACT_WRITER EXECVE SERVER_ADMIN ORG_ADMIN IMPERSONATION FILESYSTEM_READ FILESYSTEM_WRITE NETWORK MACHINE_STATE]"]
            .assert_eq(&Lockdown::default().notice());
        assert_eq!(Lockdown::DEFAULT_DENIED.iter().count(), 15);
    }

    #[test]
    fn every_permission_is_denied_or_not_for_everybody_alike() {
        let administrator = Policy::of_roles([Role::Administrator]).with_permissions(Permission::ALL.iter().copied().collect());
        let lockdown = Arc::new(Lockdown::default());
        let superuser = Authority::superuser("VelociraptorServer".parse().unwrap(), OrgId::root(), lockdown.clone());
        let user = Authority::user("alice".parse().unwrap(), OrgId::root(), None, Some(&administrator), lockdown);
        for permission in Permission::ALL {
            let denied = Lockdown::DEFAULT_DENIED.contains(*permission);
            assert_eq!(superuser.allows(*permission), !denied, "{permission}");
            let per_queue = *permission == Permission::Publish;
            assert_eq!(user.allows(*permission), !denied && !per_queue, "{permission}");
        }
        assert!(user.permit::<ReadResults>().is_ok());
        assert_eq!(user.permit::<CollectClient>().unwrap_err().to_string(), "PermissionDenied: Server locked down: [COLLECT_CLIENT]");
    }

    #[test]
    fn the_configuration_extends_the_set_unless_told_to_replace_it() {
        let more = Permissions::of(&[Permission::Execve, Permission::DeleteResults]);
        assert_eq!(Lockdown::new(["execve", "DELETE_RESULTS"]).unwrap().denied(), Lockdown::DEFAULT_DENIED.union(more));
        assert_eq!(Lockdown::replacing(["execve", "DELETE_RESULTS"]).unwrap().denied(), more);
        assert_eq!(Lockdown::replacing([]).unwrap(), Lockdown::default());
        assert_eq!(Lockdown::new([]).unwrap(), Lockdown::default());
    }

    #[test]
    fn a_misspelt_permission_is_refused() {
        expect!["Invalid permission EXECUTE while parsing lockdown_denied_permissions"]
            .assert_eq(&Lockdown::new(["EXECVE", "EXECUTE"]).unwrap_err().to_string());
    }
}
