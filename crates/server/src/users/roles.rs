//! Custom roles of organisations: made by administrators, never of more than their author holds, in force for all holders at once.

use serde::{Deserialize, Serialize};
use talon_acl::{Authority, CustomRole, CustomRoles};
use talon_audit::Receipt;
use talon_ids::{OrgId, Permissions};
use talon_proto::ApiClientAcl;
use talon_store::{Scan, Space};

use super::Directory;
use crate::ServerError;
use crate::layout::decode;
use crate::transaction::Pending;

/// Keys of custom roles in [`Space::Settings`] begin with this.
const PREFIX: &str = "role/";

/// A role as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    permissions: Vec<String>,
}

impl Directory {
    /// The roles that an organisation made for itself.
    ///
    /// # Errors
    /// When storage fails.
    pub fn roles(&self, org: &OrgId) -> Result<CustomRoles, ServerError> {
        let scan = Scan { prefix: PREFIX.into(), ..Scan::default() };
        let mut roles = Vec::new();
        for (key, value) in self.engine().reader().scan(org, Space::Settings, &scan)? {
            let name = String::from_utf8_lossy(key.get(PREFIX.len()..).unwrap_or_default()).into_owned();
            let permissions = serde_json::from_slice::<Stored>(&value)
                .ok()
                .and_then(|stored| stored.permissions.iter().map(|permission| permission.parse().ok()).collect::<Option<Permissions>>());
            match permissions.and_then(|permissions| CustomRole::new(&name, permissions).ok()) {
                Some(role) => roles.push(role),
                None => {
                    tracing::error!(role = name, %org, "a stored role cannot be used: its holders are denied everything; write it anew")
                }
            }
        }
        Ok(roles.into_iter().collect())
    }

    /// Makes a role, or changes what it gives. Whoever holds it holds the new one from now on.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] for one that contains what the author lacks, or that whose present form does.
    pub fn set_role(&self, author: &Authority, receipt: Receipt, role: &CustomRole) -> Result<Pending<()>, ServerError> {
        drop(receipt);
        self.check_role(author, role)?;
        let org = author.org().clone();
        let key = format!("{PREFIX}{}", role.name()).into_bytes();
        let permissions = role.permissions().iter().map(|permission| permission.name().to_owned()).collect();
        let value = serde_json::to_vec(&Stored { permissions }).map_err(|error| ServerError::invalid(error.to_string()))?;
        let rights = self.rights().clone();
        let pending = Pending::submit(&**self.engine(), move |txn| {
            txn.put(&org, Space::Settings, &key, value);
            Ok(())
        });
        Ok(pending.then(move |()| rights.changed()))
    }

    /// Whether `author` may make a role, or change one to this, without making it.
    ///
    /// # Errors
    /// As [`Directory::set_role`].
    pub fn check_role(&self, author: &Authority, role: &CustomRole) -> Result<(), ServerError> {
        self.within(author, role)?;
        if let Some(before) = self.roles(author.org())?.get(role.name()) {
            self.within(author, &before)?;
        }
        self.assert_with_role(author.org(), role)
    }

    /// Deletes a role that nobody holds.
    ///
    /// # Errors
    /// [`ServerError::NotFound`], [`ServerError::Invalid`] naming a holder.
    pub fn delete_role(&self, author: &Authority, receipt: Receipt, name: &str) -> Result<Pending<()>, ServerError> {
        drop(receipt);
        let org = author.org().clone();
        let role = self.roles(&org)?.get(name).ok_or_else(|| ServerError::not_found("Role", name))?;
        self.within(author, &role)?;
        let name = name.to_owned();
        Ok(Pending::submit(&**self.engine(), move |txn| {
            for (key, value) in txn.scan(&org, Space::Policies, &Scan::default())? {
                let acl: ApiClientAcl = decode(Space::Policies, &key, &value)?;
                if acl.roles.contains(&name) {
                    let holder = String::from_utf8_lossy(&key).into_owned();
                    return Err(ServerError::invalid(format!("{holder} has the role {name}: grant another policy first")));
                }
            }
            txn.delete(&org, Space::Settings, format!("{PREFIX}{name}").as_bytes());
            Ok(())
        }))
    }

    fn within(&self, author: &Authority, role: &CustomRole) -> Result<(), ServerError> {
        let beyond = role.beyond(author);
        if beyond.is_empty() {
            return Ok(());
        }
        let (principal, org, name) = (author.principal(), self.display_name(author.org()), role.name());
        Err(ServerError::Forbidden(format!(
            "Error: PermissionDenied, User {principal} cannot make the role {name} of {beyond} on {org}: no role contains what its author lacks."
        )))
    }
}
