//! Escalation: permissions that come to more than their names say, so that whoever grants them knows.

use talon_ids::{Permission, Permissions};

/// A set of permissions and what its holder can make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Escalation {
    /// All of these together.
    pub held: Permissions,
    /// What they come to.
    pub reaches: &'static str,
}

const KNOWN: &[(&[Permission], &str)] = &[
    (&[Permission::OrgAdmin], "administrator of every organisation: may grant any policy anywhere"),
    (&[Permission::ServerAdmin], "administrator of the organisation: may grant any permission to anybody in it"),
    (&[Permission::Impersonation], "any user: runs queries as them"),
    (&[Permission::DatastoreAccess], "any user: reads and writes policies and users in the raw datastore"),
    (&[Permission::Execve], "the server's account on the server machine: runs commands"),
    (&[Permission::FilesystemWrite], "the server's account on the server machine: writes its files"),
    (&[Permission::FilesystemRead], "the server's secrets: reads its files, the configuration with the keys among them"),
    (&[Permission::ServerArtifactWriter, Permission::CollectServer], "any user: an artifact may impersonate one"),
    (&[Permission::ServerArtifactWriter, Permission::NotebookEditor], "whoever opens the notebook: templates run as the viewer"),
    (&[Permission::ArtifactWriter, Permission::CollectClient], "root on every endpoint: collects an artifact of one's own"),
    (&[Permission::ArtifactWriter, Permission::StartHunt], "root on every endpoint: hunts with an artifact of one's own"),
    (&[Permission::ArtifactWriter], "endpoints, through artifacts and tools that others collect"),
];

/// What `permissions` come to beyond their names.
pub fn escalations(permissions: Permissions) -> impl Iterator<Item = Escalation> {
    KNOWN
        .iter()
        .map(|(held, reaches)| Escalation { held: Permissions::of(held), reaches })
        .filter(move |escalation| permissions.contains_all(escalation.held))
}

#[cfg(test)]
mod tests {
    use talon_ids::OrgId;

    use super::*;
    use crate::Role;

    #[test]
    fn only_writers_and_administrators_escalate_by_role() {
        let escalating: Vec<_> = Role::ALL.iter().filter(|role| escalations(role.permissions(&OrgId::root())).next().is_some()).collect();
        assert_eq!(escalating, [&Role::OrgAdmin, &Role::Administrator, &Role::ArtifactWriter]);
    }

    #[test]
    fn two_harmless_looking_permissions_can_be_one_dangerous_set() {
        let set = Permissions::of(&[Permission::ServerArtifactWriter, Permission::CollectServer]);
        assert_eq!(escalations(set).count(), 1);
        assert_eq!(escalations(Permissions::of(&[Permission::CollectServer])).count(), 0);
    }
}
