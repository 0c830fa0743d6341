//! The permissions that guard every action, by the names that administrators and artifacts use.

use std::fmt;
use std::str::FromStr;

use crate::InvalidId;

macro_rules! permissions {
    ($($variant:ident $name:literal $meaning:literal),* $(,)?) => {
        /// One permission. The order of the variants is the order in which stock servers list them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Permission {
            $(#[doc = $meaning] $variant),*
        }

        impl Permission {
            /// Every permission.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in configuration, artifacts and messages.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// What the permission allows, in one sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }
        }
    };
}

permissions! {
    AnyQuery "ANY_QUERY" "Run queries and watch events through the API.",
    Publish "PUBLISH" "Push events to the queues that the policy names.",
    ReadResults "READ_RESULTS" "Read whatever was collected; also makes a user a member of the organisation.",
    LabelClient "LABEL_CLIENT" "Change the labels and metadata of clients.",
    CollectClient "COLLECT_CLIENT" "Schedule and cancel collections on clients, propose hunts.",
    CollectBasic "COLLECT_BASIC" "Collect the artifacts that are marked as basic.",
    StartHunt "START_HUNT" "Start hunts.",
    CollectServer "COLLECT_SERVER" "Run server artifacts and change server monitoring.",
    ArtifactWriter "ARTIFACT_WRITER" "Write artifacts that run on clients, and tool definitions.",
    ServerArtifactWriter "SERVER_ARTIFACT_WRITER" "Write artifacts that run on the server.",
    Execve "EXECVE" "Run commands.",
    NotebookEditor "NOTEBOOK_EDITOR" "Create and edit notebooks, that is: run queries on the server.",
    ServerAdmin "SERVER_ADMIN" "Administer the server, the users of the organisation and its secrets.",
    OrgAdmin "ORG_ADMIN" "Administer organisations and the users of all of them; counts in the root organisation only.",
    Impersonation "IMPERSONATION" "Run queries as another user.",
    FilesystemRead "FILESYSTEM_READ" "Read files of the machine that the query runs on.",
    FilesystemWrite "FILESYSTEM_WRITE" "Write files of the machine that the query runs on.",
    Network "NETWORK" "Open network connections.",
    MachineState "MACHINE_STATE" "Read the state of the machine: processes, interfaces, users.",
    PrepareResults "PREPARE_RESULTS" "Prepare exports and downloads.",
    DeleteResults "DELETE_RESULTS" "Delete collections and events.",
    DatastoreAccess "DATASTORE_ACCESS" "Read and write the raw datastore.",
}

impl fmt::Display for Permission {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Permission {
    type Err = InvalidId;

    /// Names are taken in any case.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::ALL
            .iter()
            .find(|permission| permission.name().eq_ignore_ascii_case(text))
            .copied()
            .ok_or_else(|| InvalidId::new("a permission", text))
    }
}

/// A set of permissions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Permissions(u32);

impl Permissions {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// Every permission.
    pub const ALL: Self = Self::of(Permission::ALL);

    /// The set of `permissions`.
    #[must_use]
    pub const fn of(permissions: &[Permission]) -> Self {
        let mut bits = 0;
        let mut rest = permissions;
        while let Some((first, tail)) = rest.split_first() {
            bits |= 1 << *first as u32;
            rest = tail;
        }
        Self(bits)
    }

    /// Whether `permission` is in the set.
    #[must_use]
    pub const fn contains(self, permission: Permission) -> bool {
        self.0 & (1 << permission as u32) != 0
    }

    /// Whether all of `other` is in the set.
    #[must_use]
    pub const fn contains_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members, in the order of [`Permission::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.iter().copied().filter(move |permission| self.contains(*permission))
    }
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        permissions.into_iter().fold(Self::NONE, |set, permission| set.union(Self::of(&[permission])))
    }
}

impl fmt::Display for Permissions {
    /// `[A B]`, the form of refusals that peers match on.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("[")?;
        for (at, permission) in self.iter().enumerate() {
            write!(out, "{}{permission}", if at == 0 { "" } else { " " })?;
        }
        out.write_str("]")
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_in_any_case_and_unknown_ones_are_refused() {
        assert_eq!("read_results".parse(), Ok(Permission::ReadResults));
        assert!("NO_PERMISSIONS".parse::<Permission>().is_err());
        for permission in Permission::ALL {
            assert_eq!(permission.name().parse(), Ok(*permission));
        }
    }

    #[test]
    fn sets_print_as_peers_expect() {
        let set = Permissions::of(&[Permission::FilesystemRead, Permission::Execve]);
        assert_eq!(set.to_string(), "[EXECVE FILESYSTEM_READ]");
        assert!(set.contains_all(Permissions::of(&[Permission::Execve])));
        assert!(!set.contains(Permission::Network));
    }
}
