//! Roles: the fixed, named sets of permissions.

use std::fmt;
use std::str::FromStr;

use talon_ids::{OrgId, Permission, Permissions};

use crate::PolicyError;

/// A named set of permissions. The set of roles is fixed: peers know them by these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Administers organisations and the users of all of them.
    OrgAdmin,
    /// Everything but the raw datastore; in the root organisation also [`Role::OrgAdmin`].
    Administrator,
    /// Reads what was collected.
    Reader,
    /// Reads, labels and analyses in notebooks.
    Analyst,
    /// An analyst who also collects and hunts.
    Investigator,
    /// Writes client artifacts.
    ArtifactWriter,
    /// A program that queries through the API.
    Api,
}

const READING: Permissions = Permissions::of(&[Permission::ReadResults]);

const QUERYING: Permissions = Permissions::of(&[Permission::AnyQuery, Permission::ReadResults]);

const ANALYSING: Permissions =
    QUERYING.union(Permissions::of(&[Permission::LabelClient, Permission::NotebookEditor, Permission::PrepareResults]));

const INVESTIGATING: Permissions = ANALYSING.union(Permissions::of(&[Permission::CollectClient, Permission::StartHunt]));

const ADMINISTERING: Permissions = INVESTIGATING.union(Permissions::of(&[
    Permission::CollectBasic,
    Permission::CollectServer,
    Permission::ArtifactWriter,
    Permission::ServerArtifactWriter,
    Permission::Execve,
    Permission::ServerAdmin,
    Permission::Impersonation,
    Permission::FilesystemRead,
    Permission::FilesystemWrite,
    Permission::Network,
    Permission::MachineState,
    Permission::DeleteResults,
]));

const ADMINISTERING_ORGS: Permissions = Permissions::of(&[Permission::OrgAdmin]);

impl Role {
    /// Every role, in the order in which peers list them.
    pub const ALL: &'static [Self] =
        &[Self::OrgAdmin, Self::Administrator, Self::Reader, Self::Analyst, Self::Investigator, Self::ArtifactWriter, Self::Api];

    /// The name in policies and messages. Case counts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OrgAdmin => "org_admin",
            Self::Administrator => "administrator",
            Self::Reader => "reader",
            Self::Analyst => "analyst",
            Self::Investigator => "investigator",
            Self::ArtifactWriter => "artifact_writer",
            Self::Api => "api",
        }
    }

    /// What the role holds in `org`. `ORG_ADMIN` exists in the root organisation only.
    #[must_use]
    pub fn permissions(self, org: &OrgId) -> Permissions {
        let everywhere = match self {
            Self::OrgAdmin => Permissions::NONE,
            Self::Administrator => ADMINISTERING,
            Self::Reader => READING,
            Self::Analyst => ANALYSING,
            Self::Investigator => INVESTIGATING,
            Self::ArtifactWriter => Permissions::of(&[Permission::ArtifactWriter]),
            Self::Api => QUERYING,
        };
        match self {
            Self::OrgAdmin | Self::Administrator if org.is_root() => everywhere.union(ADMINISTERING_ORGS),
            _ => everywhere,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        Self::ALL.iter().find(|role| role.name() == text).copied().ok_or_else(|| PolicyError::UnknownRole(text.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect;

    use super::*;

    fn matrix(org: &OrgId) -> String {
        let mut table = format!("{:<22}", "");
        for role in Role::ALL {
            let _ = write!(table, " {role}");
        }
        for permission in Permission::ALL {
            let _ = write!(table, "\n{:<22}", permission.name());
            for role in Role::ALL {
                let mark = if role.permissions(org).contains(*permission) { "Y" } else { "." };
                let _ = write!(table, " {mark:^width$}", width = role.name().len());
            }
        }
        table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    #[test]
    fn the_role_matrix_in_the_root_organisation() {
        expect![[r#"
                                   org_admin administrator reader analyst investigator artifact_writer api
            ANY_QUERY                  .           Y         .       Y         Y              .         Y
            PUBLISH                    .           .         .       .         .              .         .
            READ_RESULTS               .           Y         Y       Y         Y              .         Y
            LABEL_CLIENT               .           Y         .       Y         Y              .         .
            COLLECT_CLIENT             .           Y         .       .         Y              .         .
            COLLECT_BASIC              .           Y         .       .         .              .         .
            START_HUNT                 .           Y         .       .         Y              .         .
            COLLECT_SERVER             .           Y         .       .         .              .         .
            ARTIFACT_WRITER            .           Y         .       .         .              Y         .
            SERVER_ARTIFACT_WRITER     .           Y         .       .         .              .         .
            EXECVE                     .           Y         .       .         .              .         .
            NOTEBOOK_EDITOR            .           Y         .       Y         Y              .         .
            SERVER_ADMIN               .           Y         .       .         .              .         .
            ORG_ADMIN                  Y           Y         .       .         .              .         .
            IMPERSONATION              .           Y         .       .         .              .         .
            FILESYSTEM_READ            .           Y         .       .         .              .         .
            FILESYSTEM_WRITE           .           Y         .       .         .              .         .
            NETWORK                    .           Y         .       .         .              .         .
            MACHINE_STATE              .           Y         .       .         .              .         .
            PREPARE_RESULTS            .           Y         .       Y         Y              .         .
            DELETE_RESULTS             .           Y         .       .         .              .         .
            DATASTORE_ACCESS           .           .         .       .         .              .         .
        "#]]
        .assert_eq(&matrix(&OrgId::root()));
    }

    #[test]
    fn nobody_administers_organisations_from_inside_one() {
        let org: OrgId = "O123".parse().unwrap();
        for role in Role::ALL {
            let elsewhere = role.permissions(&org);
            assert!(!elsewhere.contains(Permission::OrgAdmin), "{role}");
            let root = role.permissions(&OrgId::root());
            assert_eq!(elsewhere, root.difference(Permissions::of(&[Permission::OrgAdmin])), "{role}");
        }
    }

    #[test]
    fn role_names_are_exact() {
        for role in Role::ALL {
            assert_eq!(role.name().parse::<Role>().unwrap(), *role);
            assert!(role.name().to_uppercase().parse::<Role>().is_err());
        }
        assert_eq!("root".parse::<Role>().unwrap_err().to_string(), "Invalid role root");
    }
}
