//! Assertions about policies: what must hold of users and roles, checked on demand and, when the configuration says so, before a policy is stored.

use serde::Deserialize;
use talon_ids::{OrgId, Permission, Permissions};

use crate::{Inventory, Role, Subject, escalations};

/// One assertion, as its file has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Assertion {
    /// What it says, for reports.
    pub name: String,
    /// It is about this user.
    pub user: String,
    /// It is about whoever holds this role, and about the role itself.
    pub role: String,
    /// It is about everybody but these.
    pub everybody_but: Option<Vec<String>>,
    /// In this organisation; in every one when left out.
    pub org: Option<String>,
    /// Permissions that must be held.
    pub must_have: Vec<String>,
    /// Permissions that must not be held.
    pub must_not_have: Vec<String>,
    /// Goals that must not be reached: `administrator`, `endpoint_code`, `server_code`.
    pub must_not_reach: Vec<String>,
}

/// An assertion that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("assertion {name:?}: {problem}")]
#[non_exhaustive]
pub struct BadAssertion {
    /// Which.
    pub name: String,
    /// What is wrong with it.
    pub problem: String,
}

/// An assertion that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub assertion: String,
    /// Why not.
    pub text: String,
}

impl Assertion {
    /// Whether the assertion can be decided.
    ///
    /// # Errors
    /// [`BadAssertion`] naming what cannot be.
    pub fn check(&self) -> Result<(), BadAssertion> {
        let bad = |problem: String| BadAssertion { name: self.title(), problem };
        let subjects = [!self.user.is_empty(), !self.role.is_empty(), self.everybody_but.is_some()];
        if subjects.iter().filter(|given| **given).count() != 1 {
            return Err(bad("it must be about exactly one of user, role, everybody_but".into()));
        }
        if self.must_have.is_empty() && self.must_not_have.is_empty() && self.must_not_reach.is_empty() {
            return Err(bad("it asserts nothing: give must_have, must_not_have or must_not_reach".into()));
        }
        if let Some(unknown) = self.must_have.iter().chain(&self.must_not_have).find(|name| name.parse::<Permission>().is_err()) {
            return Err(bad(format!("{unknown:?} is no permission")));
        }
        if let Some(unknown) = self.must_not_reach.iter().find(|name| !crate::Goal::ALL.iter().any(|goal| goal.name() == *name)) {
            return Err(bad(format!("{unknown:?} is no goal: administrator, endpoint_code, server_code")));
        }
        match &self.org {
            Some(org) if org.parse::<OrgId>().is_err() => Err(bad(format!("{org:?} is no organisation"))),
            _ => Ok(()),
        }
    }

    fn title(&self) -> String {
        if self.name.is_empty() {
            [self.user.as_str(), self.role.as_str(), "everybody"].into_iter().find(|text| !text.is_empty()).unwrap_or_default().to_owned()
        } else {
            self.name.clone()
        }
    }

    fn is_about(&self, name: &str, mut roles: impl Iterator<Item = impl AsRef<str>>) -> bool {
        if let Some(others) = &self.everybody_but {
            return !others.iter().any(|other| other.to_lowercase() == name.to_lowercase());
        }
        if self.user.is_empty() { roles.any(|role| role.as_ref() == self.role) } else { self.user.to_lowercase() == name.to_lowercase() }
    }

    fn is_in(&self, org: &OrgId) -> bool {
        self.org.as_ref().is_none_or(|own| own.parse::<OrgId>().is_ok_and(|own| own == *org))
    }
}

fn set(names: &[String]) -> Permissions {
    names.iter().filter_map(|name| name.parse::<Permission>().ok()).collect()
}

/// The assertions that do not hold of an inventory.
#[must_use]
pub fn violations(assertions: &[Assertion], inventory: &Inventory) -> Vec<Violation> {
    let mut found = Vec::new();
    // Reaching is computed once, and only when somebody asks.
    let mut reached = None;
    for assertion in assertions {
        let mut violated = |text: String| found.push(Violation { assertion: assertion.title(), text });
        let (must, must_not) = (set(&assertion.must_have), set(&assertion.must_not_have));
        let mut judge = |who: String, held: Permissions| {
            let missing = must.difference(held);
            if !missing.is_empty() {
                violated(format!("{who} lacks {missing}"));
            }
            let beyond = must_not.intersection(held);
            if !beyond.is_empty() {
                violated(format!("{who} has {beyond}"));
            }
        };
        for holder in inventory.holders.iter().filter(|holder| assertion.is_in(&holder.org)) {
            if assertion.is_about(&holder.name, holder.policy.role_names()) {
                judge(format!("user {} in {}", holder.name, holder.org), holder.policy.effective(&holder.org).permissions());
            }
        }
        if !assertion.role.is_empty() {
            if let Ok(role) = assertion.role.parse::<Role>() {
                let org = assertion.org.as_ref().and_then(|org| org.parse().ok()).unwrap_or_default();
                judge(format!("role {role}"), role.permissions(&org));
            }
            for (org, roles) in inventory.roles.iter().filter(|(org, _)| assertion.is_in(org)) {
                if let Some(role) = roles.get(&assertion.role) {
                    judge(format!("role {} in {org}", role.name()), role.permissions());
                }
            }
        }
        if assertion.must_not_reach.is_empty() {
            continue;
        }
        for escalation in reached.get_or_insert_with(|| escalations(inventory)) {
            let about = match &escalation.subject {
                Subject::User(name) => {
                    let holder = inventory.holders.iter().find(|holder| holder.name == *name && holder.org == escalation.org);
                    holder.is_some_and(|holder| assertion.is_about(name, holder.policy.role_names()))
                }
                Subject::Role(role) => !assertion.role.is_empty() && *role == assertion.role,
            };
            if about && assertion.is_in(&escalation.org) && assertion.must_not_reach.iter().any(|goal| goal == escalation.goal.name()) {
                violated(format!(
                    "{} in {} reaches {}: {}",
                    escalation.subject,
                    escalation.org,
                    escalation.goal,
                    escalation.path.join("; ")
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Holder, Policy};

    fn inventory() -> Inventory {
        let holder = |name: &str, policy| Holder { name: name.into(), org: OrgId::root(), policy };
        let holders = vec![
            holder("Alice", Policy::of_roles([Role::Administrator])),
            holder("bob", Policy::of_roles([Role::Analyst])),
            holder("carol", Policy::of_roles([Role::Analyst]).with_permissions(Permissions::of(&[Permission::Execve]))),
        ];
        Inventory { holders, ..Inventory::default() }
    }

    fn broken(assertion: Assertion) -> Vec<String> {
        assertion.check().unwrap();
        violations(&[assertion], &inventory()).into_iter().map(|violation| violation.text).collect()
    }

    #[test]
    fn what_must_not_be_held_is_found_on_users_and_roles() {
        let execve = vec!["EXECVE".to_owned()];
        let of = |role: &str| Assertion { role: role.into(), must_not_have: execve.clone(), ..Assertion::default() };
        assert_eq!(broken(of("analyst")), ["user carol in root has [EXECVE]"]);
        assert_eq!(broken(of("administrator")).len(), 2);
        let others = Assertion { everybody_but: Some(vec!["alice".into()]), must_not_have: execve.clone(), ..Assertion::default() };
        assert_eq!(broken(others), ["user carol in root has [EXECVE]"]);
        assert!(broken(Assertion { user: "BOB".into(), must_not_have: execve, ..Assertion::default() }).is_empty());
    }

    #[test]
    fn what_must_be_held_and_not_reached() {
        let lacks = Assertion { user: "bob".into(), must_have: vec!["EXECVE".into()], ..Assertion::default() };
        assert_eq!(broken(lacks), ["user bob in root lacks [EXECVE]"]);
        let reach = Assertion { role: "analyst".into(), must_not_reach: vec!["server_code".into()], ..Assertion::default() };
        let found = broken(reach);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found.iter().all(|text| text.starts_with("user carol in root reaches server_code: ANY_QUERY runs")), "{found:?}");
    }

    #[test]
    fn other_organisations_are_not_meant() {
        let there =
            Assertion { user: "carol".into(), org: Some("OA".into()), must_not_have: vec!["EXECVE".into()], ..Assertion::default() };
        assert!(broken(there).is_empty());
    }

    #[test]
    fn assertions_that_make_no_sense_are_refused() {
        let good = Assertion { user: "bob".into(), must_have: vec!["execve".into()], ..Assertion::default() };
        assert!(good.check().is_ok());
        for bad in [
            Assertion::default(),
            Assertion { role: "x".into(), ..good.clone() },
            Assertion { must_have: Vec::new(), ..good.clone() },
            Assertion { must_have: vec!["FLY".into()], ..good.clone() },
            Assertion { must_not_reach: vec!["moon".into()], ..good.clone() },
            Assertion { org: Some("../".into()), ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
