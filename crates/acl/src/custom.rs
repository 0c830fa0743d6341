//! Custom roles: named sets of permissions that administrators of one organisation make, beside the fixed roles.

use std::collections::BTreeMap;

use talon_ids::{Permission, Permissions};

use crate::{Authority, PolicyError, Role};

/// The most characters in a role's name.
const MAX_NAME: usize = 64;

/// A role that an organisation made for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomRole {
    name: String,
    permissions: Permissions,
}

impl CustomRole {
    /// A role. Its name is of small letters, digits, `_` and `-`, and no fixed role's. `PUBLISH` is granted by queue and is in no role; nor is
    /// `ORG_ADMIN`, which belongs to the root organisation's fixed roles.
    ///
    /// # Errors
    /// [`PolicyError::RoleName`], [`PolicyError::RoleContent`].
    pub fn new(name: &str, permissions: Permissions) -> Result<Self, PolicyError> {
        let shape = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        if !begins || name.len() > MAX_NAME || !name.bytes().all(shape) || name.parse::<Role>().is_ok() {
            return Err(PolicyError::RoleName(name.chars().take(80).collect()));
        }
        let barred = permissions.intersection(Permissions::of(&[Permission::Publish, Permission::OrgAdmin]));
        if permissions.is_empty() || !barred.is_empty() {
            return Err(PolicyError::RoleContent(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), permissions })
    }

    /// The name in policies.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it gives.
    #[must_use]
    pub fn permissions(&self) -> Permissions {
        self.permissions
    }

    /// What of the role `author` does not hold. Nobody makes a role that contains what they lack.
    #[must_use]
    pub fn beyond(&self, author: &Authority) -> Permissions {
        self.permissions.difference(author.held())
    }
}

/// The custom roles of one organisation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CustomRoles(BTreeMap<String, Permissions>);

impl CustomRoles {
    /// Of an organisation that made none.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The role with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<CustomRole> {
        self.0.get(name).map(|permissions| CustomRole { name: name.to_owned(), permissions: *permissions })
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = CustomRole> {
        self.0.iter().map(|(name, permissions)| CustomRole { name: name.clone(), permissions: *permissions })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<CustomRole> for CustomRoles {
    fn from_iter<I: IntoIterator<Item = CustomRole>>(roles: I) -> Self {
        Self(roles.into_iter().map(|role| (role.name, role.permissions)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_ids::OrgId;

    use super::*;
    use crate::{Policy, Unrestricted};

    fn triage() -> CustomRole {
        CustomRole::new("triage", Permissions::of(&[Permission::ReadResults, Permission::CollectClient])).unwrap()
    }

    #[test]
    fn names_are_plain_and_no_fixed_roles() {
        for bad in ["", "administrator", "Triage", "a b", "1a", "trïage", "a/b", &"a".repeat(65)] {
            assert!(CustomRole::new(bad, Permissions::of(&[Permission::ReadResults])).is_err(), "{bad:?}");
        }
        for bad in [Permission::Publish, Permission::OrgAdmin] {
            assert!(CustomRole::new("triage", Permissions::of(&[bad])).is_err(), "{bad}");
        }
        assert!(CustomRole::new("triage", Permissions::NONE).is_err());
    }

    #[test]
    fn a_role_may_not_contain_what_its_author_lacks() {
        let author = |policy: &Policy| Authority::user("a".parse().unwrap(), OrgId::root(), None, Some(policy), Arc::new(Unrestricted));
        assert!(triage().beyond(&author(&Policy::of_roles([Role::Investigator]))).is_empty());
        let analyst = author(&Policy::of_roles([Role::Analyst]));
        assert_eq!(triage().beyond(&analyst), Permissions::of(&[Permission::CollectClient]));
    }

    #[test]
    fn a_policy_with_a_custom_role_holds_what_the_role_gives_now() {
        let roles: CustomRoles = [triage()].into_iter().collect();
        let acl = talon_proto::ApiClientAcl { roles: vec!["reader".into(), "triage".into()], ..Default::default() };
        let policy = Policy::from_proto_with(&acl, &roles).unwrap();
        assert_eq!(policy.role_names().collect::<Vec<_>>(), ["reader", "triage"]);
        assert!(policy.effective(&OrgId::root()).permissions().contains(Permission::CollectClient));
        assert_eq!(policy.to_proto(), acl);
        let weaker: CustomRoles = [CustomRole::new("triage", Permissions::of(&[Permission::ReadResults])).unwrap()].into_iter().collect();
        let policy = Policy::from_proto_with(&acl, &weaker).unwrap();
        assert!(!policy.effective(&OrgId::root()).permissions().contains(Permission::CollectClient));
        assert_eq!(Policy::from_proto(&acl), Err(PolicyError::UnknownRole("triage".into())));
    }
}
