//! Assertions about policies as a condition of changes: a policy that breaks one is not stored.

use std::path::Path;

use talon_acl::{Assertion, CustomRole, Holder, Inventory, Policy, violations};
use talon_ids::{OrgId, UserName};

use crate::ServerError;
use crate::users::Directory;

/// The most bytes of a file of assertions.
const MAX_FILE: u64 = 1 << 20;

/// What must hold after every change of a policy or a role.
#[derive(Debug, Clone, Default)]
pub struct Assertions(Vec<Assertion>);

impl Assertions {
    /// Reads a file of assertions: YAML, a list.
    ///
    /// # Errors
    /// [`ServerError::Configuration`] naming what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, ServerError> {
        let assertions: Vec<Assertion> = serde_saphyr::from_str(text)
            .map_err(|error| ServerError::Configuration(format!("not a list of assertions: {}", error.without_snippet())))?;
        for assertion in &assertions {
            assertion.check().map_err(|error| ServerError::Configuration(error.to_string()))?;
        }
        Ok(Self(assertions))
    }

    /// The same from a file.
    ///
    /// # Errors
    /// As [`Assertions::parse`], and when the file cannot be read.
    pub fn load(path: &Path) -> Result<Self, ServerError> {
        let unreadable = |error: std::io::Error| ServerError::Configuration(format!("{}: {error}", path.display()));
        if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE {
            return Err(ServerError::Configuration(format!("{}: more than a megabyte of assertions", path.display())));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(unreadable)?)
            .map_err(|error| ServerError::Configuration(format!("{}: {error}", path.display())))
    }

    /// The assertions.
    #[must_use]
    pub fn list(&self) -> &[Assertion] {
        &self.0
    }

    fn hold(&self, before: &Inventory, after: &Inventory) -> Result<(), ServerError> {
        let known = violations(&self.0, before);
        // What was broken before is no reason to refuse the change that mends something else.
        let new: Vec<String> = violations(&self.0, after)
            .into_iter()
            .filter(|violation| !known.contains(violation))
            .map(|violation| format!("{}: {}", violation.assertion, violation.text))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        Err(ServerError::Forbidden(format!("PermissionDenied: the change breaks assertions about policies: {}", new.join("; "))))
    }
}

impl Directory {
    /// Users with their policies and the roles of organisations, without artifacts.
    ///
    /// # Errors
    /// When storage fails.
    pub fn inventory(&self) -> Result<Inventory, ServerError> {
        let mut inventory = Inventory::default();
        let users = self.users()?;
        for org in self.orgs()? {
            for user in &users {
                let Ok(name) = user.name.parse::<UserName>() else { continue };
                if let Some(policy) = self.usable_policy(&org, &name)? {
                    inventory.holders.push(Holder { name: user.name.clone(), org: org.clone(), policy });
                }
            }
            let roles = self.roles(&org)?;
            if !roles.is_empty() {
                inventory.roles.insert(org, roles);
            }
        }
        Ok(inventory)
    }

    pub(crate) fn assert_with_policy<'a>(
        &self,
        orgs: impl Iterator<Item = &'a OrgId>,
        user: &UserName,
        policy: &Policy,
    ) -> Result<(), ServerError> {
        if self.assertions().list().is_empty() {
            return Ok(());
        }
        let before = self.inventory()?;
        let mut after = before.clone();
        for org in orgs {
            after.holders.retain(|holder| holder.org != *org || holder.name.to_lowercase() != user.folded());
            let holder = Holder { name: user.to_string(), org: org.clone(), policy: policy.clone().for_org(org) };
            after.holders.push(holder);
        }
        self.assertions().hold(&before, &after)
    }

    pub(crate) fn assert_with_role(&self, org: &OrgId, role: &CustomRole) -> Result<(), ServerError> {
        if self.assertions().list().is_empty() {
            return Ok(());
        }
        let before = self.inventory()?;
        let mut after = before.clone();
        let roles = after.roles.entry(org.clone()).or_default();
        *roles = roles.iter().filter(|old| old.name() != role.name()).chain([role.clone()]).collect();
        let roles = roles.clone();
        for holder in after.holders.iter_mut().filter(|holder| holder.org == *org) {
            if let Ok(policy) = Policy::from_proto_with(&holder.policy.to_proto(), &roles) {
                holder.policy = policy;
            }
        }
        self.assertions().hold(&before, &after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_assertions_is_read_strictly() {
        let good = "- name: analysts run no commands\n  role: analyst\n  must_not_have: [EXECVE]\n";
        assert_eq!(Assertions::parse(good).unwrap().list().len(), 1);
        for bad in
            ["- role: analyst\n", "- role: analyst\n  must_not_hav: [EXECVE]\n", "- role: analyst\n  must_not_have: [FLY]\n", "role: x\n"]
        {
            assert!(Assertions::parse(bad).is_err(), "{bad}");
        }
    }
}
