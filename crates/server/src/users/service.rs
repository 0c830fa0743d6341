//! What a session does to users: each decides, puts on record, and only then acts. API, queries and command line come here.

use serde_json::json;
use talon_acl::{CustomRole, CustomRoles, Policy};
use talon_audit::Details;
use talon_crypto::Zeroizing;
use talon_ids::{OrgId, Permission, Permissions, UserName};
use talon_proto::{OrgRecord, SetGuiOptionsRequest, VelociraptorUser};

use super::{Directory, OptionsChange, UserChange};
use crate::ServerError;
use crate::session::Session;

/// The fewest bytes of a password that somebody chooses for an account that exists.
const MIN_PASSWORD: usize = 4;

/// Whether a password may be chosen at all.
///
/// # Errors
/// [`ServerError::Invalid`], in the words that peers match on.
pub fn check_new_password(password: &str) -> Result<(), ServerError> {
    if password.len() < MIN_PASSWORD { Err(ServerError::invalid("Password is not set or too short")) } else { Ok(()) }
}

impl Directory {
    /// A policy of role names as `orgs` understand them: fixed roles, and custom roles that the first of them has.
    ///
    /// # Errors
    /// [`ServerError::Policy`] for a name that is no role's.
    pub fn policy_of(&self, names: &[String], orgs: &[OrgId]) -> Result<Policy, ServerError> {
        let custom = orgs.first().map_or_else(|| Ok(CustomRoles::none()), |org| self.roles(org))?;
        Ok(Policy::of_names(names.iter().map(String::as_str), &custom)?)
    }
}

impl Session {
    /// Changes a user in `orgs`.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`], and as [`Directory::change`].
    pub fn change_user(&self, operation: &str, orgs: &[OrgId], change: UserChange) -> Result<(), ServerError> {
        let users = self.server().users();
        let right = users.right_over(self.principal(), orgs)?;
        users.check_change(&right, &change)?;
        let mut details = Details::new().text("username", change.user.as_str());
        if let Some(policy) = &change.policy {
            details = details.json("acl", policy_json(policy));
        }
        details = details.list("org_ids", orgs.iter().map(OrgId::as_str));
        if let Some(locked) = change.locked {
            details = details.json("locked", locked.into());
        }
        if change.password.is_some() {
            details = details.secret("password");
        }
        let receipt = self.record(operation, details)?;
        users.change(&right, receipt, change, self.org().rng())?.wait()
    }

    /// Takes a user's policies away in `orgs`, and the user with the last of them.
    ///
    /// # Errors
    /// As [`Session::change_user`].
    pub fn delete_user(&self, orgs: &[OrgId], user: &UserName) -> Result<(), ServerError> {
        let users = self.server().users();
        let right = users.right_over(self.principal(), orgs)?;
        if users.user(user)?.is_none() {
            return Err(ServerError::not_found("User", user));
        }
        let details = Details::new().text("username", user.as_str()).list("org_ids", orgs.iter().map(OrgId::as_str));
        let receipt = self.record("user_delete", details)?;
        users.delete(&right, receipt, user)?.wait()
    }

    /// Sets a password: one's own, or that of somebody over whose every organisation one has the right.
    ///
    /// # Errors
    /// [`ServerError::Invalid`] for one that is too short, [`ServerError::Forbidden`] without the right.
    pub fn set_password(&self, user: &UserName, password: Zeroizing<String>) -> Result<(), ServerError> {
        check_new_password(&password)?;
        let users = self.server().users();
        users.names.check(user)?;
        let own = user.folded() == self.principal().folded();
        let right = users.right_over(self.principal(), &[])?;
        if !own {
            users.may_take_over(&right, user)?;
        }
        if users.user(user)?.is_none() {
            return Err(ServerError::not_found("User", user));
        }
        let operation = if own { "Update Own Password" } else { "Update Password By Admin" };
        let details = Details::new().text("operation", operation).text("user", user.as_str());
        let receipt = self.record("Update password", details)?;
        if own {
            return users.change_own_password(self.authority(), receipt, password, self.org().rng())?.wait();
        }
        let change = UserChange { password: Some(password), ..UserChange::of(user.clone()) };
        users.change(&right, receipt, change, self.org().rng())?.wait()
    }

    /// The users whom the principal sees in `orgs`, each with those of the organisations that both are members of.
    ///
    /// # Errors
    /// When storage fails.
    pub fn users_in(&self, orgs: &[OrgId]) -> Result<Vec<VelociraptorUser>, ServerError> {
        let users = self.server().users();
        let mut seen = Vec::new();
        for org in orgs {
            if users.sees_users_of(self.principal(), org)? {
                seen.push(org);
            }
        }
        let mut found = Vec::new();
        for user in users.users()? {
            let Ok(name) = user.name.parse::<UserName>() else { continue };
            let member_of = users.orgs_of(&name)?;
            let common: Vec<OrgRecord> =
                member_of.iter().filter(|org| seen.contains(org)).map(|org| self.public_record(org)).collect::<Result<_, _>>()?;
            if !common.is_empty() {
                found.push(VelociraptorUser {
                    name: user.name,
                    picture: user.picture,
                    stats: user.stats,
                    orgs: common,
                    ..Default::default()
                });
            }
        }
        Ok(found)
    }

    /// An organisation as anybody in it may know it: without its secret.
    ///
    /// # Errors
    /// [`ServerError::NotFound`].
    pub fn public_record(&self, org: &OrgId) -> Result<OrgRecord, ServerError> {
        let org = self.server().org(org)?;
        Ok(OrgRecord { id: org.id().to_string(), name: org.name().to_owned(), ..OrgRecord::default() })
    }

    /// Options of a user: one's own, or another's for administrators of the root organisation, without the password in them.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`].
    pub fn options(&self, user: &UserName) -> Result<SetGuiOptionsRequest, ServerError> {
        let own = self.may_set_options(user)?;
        let mut options = self.server().users().options(user)?;
        if !own {
            options.default_password.clear();
        }
        Ok(options)
    }

    /// Changes options of a user, who may be oneself.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`], [`ServerError::Invalid`] listing what can be set.
    pub fn set_options(&self, user: &UserName, change: OptionsChange) -> Result<SetGuiOptionsRequest, ServerError> {
        self.may_set_options(user)?;
        let users = self.server().users();
        users.check_options(&change)?;
        let shown = OptionsChange { default_password: String::new(), ..change.clone() };
        let shown = crate::reflect::to_json("SetGUIOptionsRequest", &shown)?;
        let mut details = Details::new().text("username", user.as_str()).json("request", serde_json::from_str(&shown).unwrap_or_default());
        if !change.default_password.is_empty() {
            details = details.secret("default_password");
        }
        let receipt = self.record("user_options", details)?;
        users.set_options(receipt, user, change)?.wait()?;
        self.options(user)
    }

    /// Whether the options of `user` are the principal's own; an error if they are none of the principal's business.
    fn may_set_options(&self, user: &UserName) -> Result<bool, ServerError> {
        if user.folded() == self.principal().folded() {
            return Ok(true);
        }
        let users = self.server().users();
        let right = users.right_over(self.principal(), &[OrgId::root()])?;
        if users.user(user)?.is_none() {
            return Err(ServerError::not_found("User", user));
        }
        drop(right);
        Ok(false)
    }

    /// The roles that the organisation made for itself.
    ///
    /// # Errors
    /// When storage fails.
    pub fn custom_roles(&self) -> Result<CustomRoles, ServerError> {
        self.server().users().roles(self.org().id())
    }

    /// Makes a role of the organisation, or changes what it gives.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::Forbidden`] for one that contains what the author lacks, [`ServerError::Policy`].
    pub fn set_role(&self, name: &str, permissions: Permissions) -> Result<CustomRole, ServerError> {
        self.authority().check(Permissions::of(&[Permission::ServerAdmin]))?;
        let role = CustomRole::new(name, permissions)?;
        let users = self.server().users();
        users.check_role(self.authority(), &role)?;
        let details = Details::new().text("role", name).list("permissions", permissions.iter().map(Permission::name));
        let receipt = self.record("role_set", details)?;
        users.set_role(self.authority(), receipt, &role)?.wait()?;
        Ok(role)
    }

    /// Deletes a role of the organisation that nobody holds.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotFound`], [`ServerError::Invalid`] naming a holder.
    pub fn delete_role(&self, name: &str) -> Result<(), ServerError> {
        self.authority().check(Permissions::of(&[Permission::ServerAdmin]))?;
        if self.custom_roles()?.get(name).is_none() {
            return Err(ServerError::not_found("Role", name));
        }
        let receipt = self.record("role_delete", Details::new().text("role", name))?;
        self.server().users().delete_role(self.authority(), receipt, name)?.wait()
    }

    /// Makes an organisation.
    ///
    /// # Errors
    /// [`ServerError::Denied`] without `ORG_ADMIN`, and as [`crate::Server::create_org`].
    pub fn create_org(&self, name: &str, id: Option<OrgId>) -> Result<crate::Org, ServerError> {
        self.authority().check(Permissions::of(&[Permission::OrgAdmin]))?;
        let server = self.server();
        let right = server.users().right_over(self.principal(), &[])?;
        let id = id.map_or_else(|| server.new_org_id(), Ok)?;
        let details = Details::new().text("name", name).text("org_id", id.as_str()).secret("nonce");
        let receipt = self.record("org_create", details)?;
        server.create_org(&right, receipt, OrgRecord { id: id.to_string(), name: name.to_owned(), ..OrgRecord::default() })
    }

    /// Deletes an organisation with everything in it.
    ///
    /// # Errors
    /// [`ServerError::Denied`] without `ORG_ADMIN`, and as [`crate::Server::delete_org`].
    pub fn delete_org(&self, org: &OrgId) -> Result<(), ServerError> {
        self.authority().check(Permissions::of(&[Permission::OrgAdmin]))?;
        if org.is_root() {
            return Err(ServerError::invalid("Can not remove root org."));
        }
        let server = self.server();
        server.org(org)?;
        let right = server.users().right_over(self.principal(), &[])?;
        let receipt = self.record("org_delete", Details::new().text("org_id", org.as_str()))?;
        server.delete_org(&right, receipt, org)
    }
}

/// What a policy grants, without what it does not.
fn policy_json(policy: &Policy) -> serde_json::Value {
    let granted = crate::reflect::to_json("ApiClientACL", &policy.to_proto()).unwrap_or_default();
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&granted).unwrap_or_default();
    fields.retain(|_, value| *value != json!(false) && *value != json!([]) && !value.is_null());
    fields.into()
}
