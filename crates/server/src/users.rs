//! Users and their policies: one directory for the deployment, policies per organisation. Usable on a store without a running server.

mod change;
mod names;
mod options;
mod passwords;
mod roles;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

use talon_acl::{Authority, Denial, Policy, Restriction};
use talon_ids::{OrgId, Permission, Permissions, UserName};
use talon_lockdown::Rules;
use talon_proto::{ApiClientAcl, OrgRecord, VelociraptorUser};
use talon_store::{Engine, Scan, Space};

use crate::ServerError;
use crate::assertions::Assertions;
use crate::layout::{decode, get};
use crate::supervise::Rights;

pub use change::{AdminRight, UserChange};
pub(crate) use names::NameRule;
pub use options::{OptionsChange, default_options};
pub use passwords::{Passwords, initial_hash};
pub use service::check_new_password;

/// The users of a deployment.
#[derive(Clone)]
pub struct Directory {
    engine: Arc<dyn Engine>,
    superuser: UserName,
    names: NameRule,
    rules: Arc<Rules>,
    passwords: Arc<Passwords>,
    assertions: Arc<Assertions>,
    rights: Rights,
}

impl Directory {
    /// The directory in `engine`. `superuser` is bound by no policy, `restriction` binds even it.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, superuser: UserName, restriction: Arc<dyn Restriction>) -> Self {
        Self {
            engine,
            names: NameRule::reserving(superuser.clone()),
            superuser,
            rules: Arc::new(Rules::new(restriction)),
            passwords: Arc::new(Passwords::default()),
            assertions: Arc::default(),
            rights: Rights::default(),
        }
    }

    /// Also reserves the gateway's name, and says whether names may have letters beyond ASCII.
    #[must_use]
    pub fn with_names(mut self, gateway: Option<UserName>, ascii_only: bool) -> Self {
        self.names.gateway = gateway;
        self.names.ascii_only = ascii_only;
        self
    }

    /// Hashes passwords at the cost that suits this machine.
    #[must_use]
    pub fn with_passwords(mut self, passwords: Passwords) -> Self {
        self.passwords = Arc::new(passwords);
        self
    }

    /// Makes assertions about policies a condition of every change of one.
    #[must_use]
    pub fn with_assertions(mut self, assertions: Assertions) -> Self {
        self.assertions = Arc::new(assertions);
        self
    }

    pub(crate) fn assertions(&self) -> &Assertions {
        &self.assertions
    }

    pub(crate) fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Lockdown and the locks that hold.
    #[must_use]
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    pub(crate) fn rights(&self) -> &Rights {
        &self.rights
    }

    /// The server's own principal.
    #[must_use]
    pub fn superuser(&self) -> &UserName {
        &self.superuser
    }

    /// A user's record, by any spelling of the name; what is stored of the password included.
    ///
    /// # Errors
    /// When storage fails.
    pub fn user(&self, name: &UserName) -> Result<Option<VelociraptorUser>, ServerError> {
        get(self.engine.reader(), &OrgId::root(), Space::Users, name.folded().as_bytes())
    }

    /// All users' records, by folded name.
    ///
    /// # Errors
    /// When storage fails.
    pub fn users(&self) -> Result<Vec<VelociraptorUser>, ServerError> {
        self.all(&OrgId::root(), Space::Users)
    }

    /// A user's policy in one organisation.
    ///
    /// # Errors
    /// When storage fails or the stored policy is none.
    pub fn policy(&self, org: &OrgId, name: &UserName) -> Result<Option<Policy>, ServerError> {
        let acl: Option<ApiClientAcl> = get(self.engine.reader(), org, Space::Policies, name.folded().as_bytes())?;
        acl.map(|acl| Policy::from_proto_with(&acl, &self.roles(org)?).map_err(ServerError::from)).transpose()
    }

    /// A user's policy in one organisation, unless it is empty or cannot be read: then the user has none, and the operator is told.
    ///
    /// # Errors
    /// When storage fails.
    pub fn usable_policy(&self, org: &OrgId, name: &UserName) -> Result<Option<Policy>, ServerError> {
        match self.policy(org, name) {
            Err(error @ (ServerError::Policy(_) | ServerError::Store(talon_store::StoreError::Damaged { .. }))) => {
                tracing::error!(user = %name, %org, %error, "a stored policy cannot be used: the user is denied everything; grant it anew");
                Ok(None)
            }
            found => Ok(found?.filter(|policy| !policy.is_empty())),
        }
    }

    /// What `name` may do in `org`, as of now. Somebody who is no user, is locked out or has a policy that cannot be read may do nothing.
    ///
    /// # Errors
    /// When storage fails.
    pub fn authority(&self, name: &UserName, org: &OrgId) -> Result<Authority, ServerError> {
        let rules: Arc<dyn Restriction> = self.rules.clone();
        if *name == self.superuser {
            return Ok(Authority::superuser(name.clone(), org.clone(), rules));
        }
        let user = self.user(name)?.filter(|user| !user.locked);
        let (here, in_root) = match &user {
            None => (None, None),
            Some(_) => (self.usable_policy(org, name)?, self.usable_policy(&OrgId::root(), name)?),
        };
        let principal = user.and_then(|user| user.name.parse().ok()).unwrap_or_else(|| name.clone());
        Ok(Authority::user(principal, org.clone(), here.as_ref(), in_root.as_ref(), rules))
    }

    /// The authority of the server itself in `org`, for what it does on nobody's behalf.
    #[must_use]
    pub fn own_authority(&self, org: &OrgId) -> Authority {
        Authority::superuser(self.superuser.clone(), org.clone(), self.rules.clone())
    }

    /// All organisations, the root first.
    ///
    /// # Errors
    /// When storage fails.
    pub fn orgs(&self) -> Result<Vec<OrgId>, ServerError> {
        let mut orgs = vec![OrgId::root()];
        for record in self.all::<OrgRecord>(&OrgId::root(), Space::Orgs)? {
            orgs.push(record.id.parse()?);
        }
        Ok(orgs)
    }

    /// The organisations that a user is a member of: those where the user reads results or administers. Lockdown and locks change nothing about it.
    ///
    /// # Errors
    /// When storage fails.
    pub fn orgs_of(&self, name: &UserName) -> Result<Vec<OrgId>, ServerError> {
        const MEMBER: [Permission; 3] = [Permission::ReadResults, Permission::ServerAdmin, Permission::OrgAdmin];
        let mut member_of = Vec::new();
        for org in self.orgs()? {
            let authority = self.authority(name, &org)?;
            if MEMBER.into_iter().any(|held| authority.holds_by_policy(Permissions::of(&[held]))) {
                member_of.push(org);
            }
        }
        Ok(member_of)
    }

    /// Whether `principal` may see who the users of `org` are.
    ///
    /// # Errors
    /// When storage fails.
    pub fn sees_users_of(&self, principal: &UserName, org: &OrgId) -> Result<bool, ServerError> {
        let there = self.authority(principal, org)?;
        // Lockdown denies to administer, and not to read.
        Ok(there.allows(Permission::ReadResults)
            || [Permission::OrgAdmin, Permission::ServerAdmin].into_iter().any(|held| there.holds_by_policy(Permissions::of(&[held]))))
    }

    /// The policies of an organisation, by folded user name. What cannot be read is left out.
    ///
    /// # Errors
    /// When storage fails.
    pub fn policies(&self, org: &OrgId) -> Result<BTreeMap<String, Policy>, ServerError> {
        let roles = self.roles(org)?;
        let mut policies = BTreeMap::new();
        for (key, value) in self.engine.reader().scan(org, Space::Policies, &Scan::default())? {
            let acl: ApiClientAcl = decode(Space::Policies, &key, &value)?;
            match Policy::from_proto_with(&acl, &roles) {
                Ok(policy) => drop(policies.insert(String::from_utf8_lossy(&key).into_owned(), policy)),
                Err(error) => tracing::error!(user = %String::from_utf8_lossy(&key), %org, %error, "a stored policy cannot be used"),
            }
        }
        Ok(policies)
    }

    /// What users call an organisation in messages that peers match on.
    fn display_name(&self, org: &OrgId) -> String {
        if org.is_root() {
            return "<root>".to_owned();
        }
        let record: Option<OrgRecord> = get(self.engine.reader(), &OrgId::root(), Space::Orgs, org.as_str().as_bytes()).ok().flatten();
        record.map(|record| record.name).filter(|name| !name.is_empty()).unwrap_or_else(|| org.to_string())
    }

    fn all<M: prost::Message + Default>(&self, org: &OrgId, space: Space) -> Result<Vec<M>, ServerError> {
        self.engine.reader().scan(org, space, &Scan::default())?.iter().map(|(key, value)| decode(space, key, value)).collect()
    }
}

/// The text of a refusal to administer `org`, in the words that peers match on.
pub(crate) fn not_admin(principal: &UserName, org: &str, denial: Option<&Denial>) -> String {
    let why = match denial.map(|denial| &denial.reason) {
        Some(talon_acl::Reason::LockedDown) => " PERMISSION_DENIED: Server locked down".to_owned(),
        Some(talon_acl::Reason::Locked(lock)) => format!(" Locked by {lock}"),
        _ => String::new(),
    };
    format!("Error: PermissionDenied, User {principal} is not admin on {org}.{why}")
}
