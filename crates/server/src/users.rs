//! Users and their policies: one directory for the deployment, policies per organisation. Usable on a store without a running server.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use talon_acl::{Authority, Policy, Restriction};
use talon_audit::Receipt;
use talon_crypto::{Rng, Sha256, Zeroizing, random_array};
use talon_ids::{OrgId, Permission, UserName};
use talon_proto::{ApiClientAcl, OrgRecord, VelociraptorUser};
use talon_store::{Engine, Scan, Space};

use crate::ServerError;
use crate::layout::{decode, get, get_in, put};
use crate::transaction::Pending;

/// The users of a deployment.
#[derive(Clone)]
pub struct Directory {
    engine: Arc<dyn Engine>,
    superuser: UserName,
    restriction: Arc<dyn Restriction>,
}

/// Proof that somebody may administer the users of certain organisations. Made by [`Directory::right_over`] only.
#[derive(Debug)]
pub struct AdminRight {
    authorities: Vec<Authority>,
    over_all: bool,
}

impl AdminRight {
    /// Whether it is the right over all organisations, which `ORG_ADMIN` in the root organisation gives.
    #[must_use]
    pub fn is_over_all(&self) -> bool {
        self.over_all
    }

    /// The organisations.
    pub fn orgs(&self) -> impl Iterator<Item = &OrgId> {
        self.authorities.iter().map(Authority::org)
    }
}

/// What is to become of a user.
pub struct UserChange {
    /// The user.
    pub user: UserName,
    /// Whether to make the user when there is none.
    pub create: bool,
    /// The policy in each organisation of the right, in place of the one that is there.
    pub policy: Option<Policy>,
    /// A new password.
    pub password: Option<Zeroizing<String>>,
    /// The subject that the identity provider knows the user by; empty clears it.
    pub subject: Option<String>,
}

impl UserChange {
    /// No change to `user`; set what is wanted.
    #[must_use]
    pub fn of(user: UserName) -> Self {
        Self { user, create: false, policy: None, password: None, subject: None }
    }
}

impl Directory {
    /// The directory in `engine`. `superuser` is bound by no policy, `restriction` binds even it.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, superuser: UserName, restriction: Arc<dyn Restriction>) -> Self {
        Self { engine, superuser, restriction }
    }

    /// The server's own principal.
    #[must_use]
    pub fn superuser(&self) -> &UserName {
        &self.superuser
    }

    /// A user's record, by any spelling of the name; hash and salt included.
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
        Ok(acl.map(|acl| Policy::from_proto(&acl)).transpose()?)
    }

    /// What `name` may do in `org`, as of now. Somebody who is no user, or is locked out, may do nothing.
    ///
    /// # Errors
    /// When storage fails.
    pub fn authority(&self, name: &UserName, org: &OrgId) -> Result<Authority, ServerError> {
        if *name == self.superuser {
            return Ok(Authority::superuser(name.clone(), org.clone(), self.restriction.clone()));
        }
        let user = self.user(name)?.filter(|user| !user.locked);
        let (here, in_root) = match &user {
            None => (None, None),
            Some(_) => (self.policy(org, name)?, self.policy(&OrgId::root(), name)?),
        };
        let principal = user.and_then(|user| user.name.parse().ok()).unwrap_or_else(|| name.clone());
        let empty = |policy: &Policy| !policy.is_empty();
        Ok(Authority::user(principal, org.clone(), here.filter(empty).as_ref(), in_root.filter(empty).as_ref(), self.restriction.clone()))
    }

    /// The authority of the server itself in `org`, for what it does on nobody's behalf.
    #[must_use]
    pub fn own_authority(&self, org: &OrgId) -> Authority {
        Authority::superuser(self.superuser.clone(), org.clone(), self.restriction.clone())
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

    /// The organisations that a user is a member of: those where the user reads results or administers.
    ///
    /// # Errors
    /// When storage fails.
    pub fn orgs_of(&self, name: &UserName) -> Result<Vec<OrgId>, ServerError> {
        let mut member_of = Vec::new();
        for org in self.orgs()? {
            let authority = self.authority(name, &org)?;
            if [Permission::ReadResults, Permission::ServerAdmin, Permission::OrgAdmin].into_iter().any(|held| authority.allows(held)) {
                member_of.push(org);
            }
        }
        Ok(member_of)
    }

    /// The right of `principal` to administer the users of `orgs`: `ORG_ADMIN` in the root organisation, or `SERVER_ADMIN` in each of them.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] naming the organisation.
    pub fn right_over(&self, principal: &UserName, orgs: &[OrgId]) -> Result<AdminRight, ServerError> {
        let known = self.orgs()?;
        let over_all = self.authority(principal, &OrgId::root())?.allows(Permission::OrgAdmin);
        let mut authorities = Vec::new();
        for org in orgs {
            if !known.contains(org) {
                return Err(ServerError::not_found("Org", org));
            }
            let authority = self.authority(principal, org)?;
            if !over_all && !authority.allows(Permission::ServerAdmin) {
                return Err(ServerError::Forbidden(format!(
                    "Error: PermissionDenied, User {principal} is not admin on {}.",
                    display_name(org)
                )));
            }
            authorities.push(authority);
        }
        Ok(AdminRight { authorities, over_all })
    }

    /// Changes a user. The receipt proves that the change is on record.
    ///
    /// # Errors
    /// [`ServerError::NotFound`], [`ServerError::Invalid`] for a reserved name, [`ServerError::Forbidden`] for a policy that gives more than the granter
    /// holds.
    pub fn change(&self, right: &AdminRight, receipt: Receipt, change: UserChange, rng: &dyn Rng) -> Result<Pending<()>, ServerError> {
        drop(receipt);
        if change.user.folded() == self.superuser.folded() {
            return Err(ServerError::invalid(format!("Username is reserved: {}", change.user)));
        }
        if let Some(policy) = &change.policy {
            self.check_grant(right, policy)?;
        }
        let secret = change.password.as_ref().map(|password| hash_password(password, rng));
        let orgs: Vec<OrgId> = right.orgs().cloned().collect();
        Ok(Pending::submit(&*self.engine, move |txn| {
            let root = OrgId::root();
            let key = change.user.folded().into_bytes();
            let stored: Option<VelociraptorUser> = get_in(txn, &root, Space::Users, &key)?;
            let mut user = match stored {
                Some(user) => user,
                None if change.create => VelociraptorUser { name: change.user.to_string(), ..VelociraptorUser::default() },
                None => return Err(ServerError::not_found("User", &change.user)),
            };
            if let Some((salt, hash)) = secret {
                user.password_salt = salt;
                user.password_hash = hash;
                user.locked = false;
            }
            if let Some(subject) = change.subject {
                user.oid = subject;
            }
            put(txn, &root, Space::Users, &key, &user);
            if let Some(policy) = change.policy {
                for org in orgs {
                    put(txn, &org, Space::Policies, &key, &policy.clone().for_org(&org).to_proto());
                }
            }
            Ok(())
        }))
    }

    /// Takes a user's policies away in the organisations of the right, and the record with the last of them.
    ///
    /// # Errors
    /// [`ServerError::NotFound`].
    pub fn delete(&self, right: &AdminRight, receipt: Receipt, user: &UserName) -> Result<Pending<()>, ServerError> {
        drop(receipt);
        if self.user(user)?.is_none() {
            return Err(ServerError::not_found("User", user));
        }
        let (here, user, all) = (right.orgs().cloned().collect::<Vec<_>>(), user.clone(), self.orgs()?);
        Ok(Pending::submit(&*self.engine, move |txn| {
            let key = user.folded().into_bytes();
            for org in &here {
                txn.delete(org, Space::Policies, &key);
            }
            let mut left = false;
            for org in &all {
                left |= txn.get(org, Space::Policies, &key)?.is_some();
            }
            if !left {
                txn.delete(&OrgId::root(), Space::Users, &key);
            }
            Ok(())
        }))
    }

    /// The policies of an organisation, by folded user name.
    ///
    /// # Errors
    /// When storage fails or a stored policy is none.
    pub fn policies(&self, org: &OrgId) -> Result<BTreeMap<String, Policy>, ServerError> {
        let mut policies = BTreeMap::new();
        for (key, value) in self.engine.reader().scan(org, Space::Policies, &Scan::default())? {
            let acl: ApiClientAcl = decode(Space::Policies, &key, &value)?;
            policies.insert(String::from_utf8_lossy(&key).into_owned(), Policy::from_proto(&acl)?);
        }
        Ok(policies)
    }

    fn check_grant(&self, right: &AdminRight, policy: &Policy) -> Result<(), ServerError> {
        if right.over_all {
            return Ok(());
        }
        for authority in &right.authorities {
            let beyond = authority.exceeded_by(policy);
            if !beyond.is_empty() {
                let (principal, org) = (authority.principal(), authority.org());
                return Err(ServerError::Forbidden(format!(
                    "Error: PermissionDenied, User {principal} cannot grant {beyond} in {org}: nobody grants more than they hold"
                )));
            }
        }
        Ok(())
    }

    fn all<M: prost::Message + Default>(&self, org: &OrgId, space: Space) -> Result<Vec<M>, ServerError> {
        self.engine.reader().scan(org, space, &Scan::default())?.iter().map(|(key, value)| decode(space, key, value)).collect()
    }
}

/// What users call an organisation in messages that peers match on.
fn display_name(org: &OrgId) -> &str {
    if org.is_root() { "<root>" } else { org.as_str() }
}

/// Salt and hash of a password, as stock servers store them.
fn hash_password(password: &str, rng: &dyn Rng) -> (Bytes, Bytes) {
    let salt: [u8; 32] = random_array(rng);
    let mut hash = Sha256::new();
    hash.update(&salt);
    hash.update(password.as_bytes());
    (Bytes::copy_from_slice(&salt), Bytes::copy_from_slice(&hash.finish()))
}

/// Whether `password` is the user's. A user without a password has none that fits.
#[must_use]
pub fn password_fits(user: &VelociraptorUser, password: &str) -> bool {
    let mut hash = Sha256::new();
    hash.update(&user.password_salt);
    hash.update(password.as_bytes());
    !user.password_hash.is_empty() && talon_crypto::constant_time_eq(&hash.finish(), &user.password_hash)
}
