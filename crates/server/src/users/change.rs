//! Changing users: who may, what it does. A change is durable, and in force for everything that runs, when its result is there.

use talon_acl::{Authority, Denial, Policy};
use talon_audit::Receipt;
use talon_crypto::{Rng, Zeroizing};
use talon_ids::{OrgId, Permission, Permissions, UserName};
use talon_proto::VelociraptorUser;
use talon_store::Space;

use super::{Directory, NameRule, not_admin, options};
use crate::ServerError;
use crate::layout::{get_in, put};
use crate::transaction::Pending;

/// Proof that somebody may administer the users of certain organisations. Made by [`Directory::right_over`] only.
#[derive(Debug)]
pub struct AdminRight {
    principal: UserName,
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

    /// Whose right it is.
    #[must_use]
    pub fn principal(&self) -> &UserName {
        &self.principal
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
    /// Whether the user is locked out.
    pub locked: Option<bool>,
}

impl UserChange {
    /// No change to `user`; set what is wanted.
    #[must_use]
    pub fn of(user: UserName) -> Self {
        Self { user, create: false, policy: None, password: None, subject: None, locked: None }
    }

    /// Whether it changes how the user proves who they are, or whether they may.
    fn takes_over(&self) -> bool {
        self.password.is_some() || self.subject.is_some() || self.locked.is_some()
    }
}

impl Directory {
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
            let denial: Option<Denial> = authority.check(Permissions::of(&[Permission::ServerAdmin])).err();
            if !over_all && denial.is_some() {
                return Err(ServerError::Forbidden(not_admin(principal, &self.display_name(org), denial.as_ref())));
            }
            authorities.push(authority);
        }
        Ok(AdminRight { principal: principal.clone(), authorities, over_all })
    }

    /// Whether whoever holds `right` may change how an existing user logs in, or lock them out: only with a right over every organisation of
    /// that user, and not over somebody who holds more.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`].
    pub fn may_take_over(&self, right: &AdminRight, user: &UserName) -> Result<(), ServerError> {
        if right.over_all {
            return Ok(());
        }
        let mut orgs = Vec::new();
        for org in self.orgs()? {
            if self.usable_policy(&org, user)?.is_some() {
                orgs.push(org);
            }
        }
        for org in if orgs.is_empty() { vec![OrgId::root()] } else { orgs } {
            let mine = self.authority(&right.principal, &org)?;
            let denial = mine.check(Permissions::of(&[Permission::ServerAdmin])).err();
            let theirs = self.usable_policy(&org, user)?.unwrap_or_default();
            if denial.is_some() || !mine.exceeded_by(&theirs).is_empty() {
                return Err(ServerError::Forbidden(not_admin(&right.principal, &self.display_name(&org), denial.as_ref())));
            }
        }
        Ok(())
    }

    /// Changes a user. The receipt proves that the change is on record.
    ///
    /// # Errors
    /// [`ServerError::NotFound`], [`ServerError::Invalid`] for a reserved name, [`ServerError::Forbidden`] for a policy that gives more than the granter
    /// holds or a password of somebody who is administered elsewhere too.
    pub fn change(&self, right: &AdminRight, receipt: Receipt, change: UserChange, rng: &dyn Rng) -> Result<Pending<()>, ServerError> {
        drop(receipt);
        self.check_change(right, &change)?;
        self.write(right.orgs().cloned().collect(), change, rng)
    }

    /// Whether a change may be made, without making it: what is refused needs no record that it was going to be done.
    ///
    /// # Errors
    /// As [`Directory::change`].
    pub fn check_change(&self, right: &AdminRight, change: &UserChange) -> Result<(), ServerError> {
        self.names.check(&change.user)?;
        let existing = self.user(&change.user)?;
        match &existing {
            None if !change.create => return Err(ServerError::not_found("User", &change.user)),
            None => NameRule::check_unlike(&change.user, &self.users()?)?,
            Some(_) if change.takes_over() => self.may_take_over(right, &change.user)?,
            Some(_) => {}
        }
        if let Some(policy) = &change.policy {
            self.check_grant(right, policy)?;
            self.assert_with_policy(right.orgs(), &change.user, policy)?;
        }
        Ok(())
    }

    /// Sets one's own password: that takes no right over anybody.
    ///
    /// # Errors
    /// [`ServerError::NotFound`].
    pub fn change_own_password(
        &self,
        authority: &Authority,
        receipt: Receipt,
        password: Zeroizing<String>,
        rng: &dyn Rng,
    ) -> Result<Pending<()>, ServerError> {
        drop(receipt);
        let change = UserChange { password: Some(password), ..UserChange::of(authority.principal().clone()) };
        self.write(Vec::new(), change, rng)
    }

    fn write(&self, orgs: Vec<OrgId>, change: UserChange, rng: &dyn Rng) -> Result<Pending<()>, ServerError> {
        let stored = change.password.as_ref().map(|password| self.passwords().hash(password, rng)).transpose()?;
        let rights = self.rights().clone();
        let pending = Pending::submit(&**self.engine(), move |txn| {
            let root = OrgId::root();
            let key = change.user.folded().into_bytes();
            let before: Option<VelociraptorUser> = get_in(txn, &root, Space::Users, &key)?;
            let mut user = match before {
                Some(user) => user,
                None if change.create => VelociraptorUser { name: change.user.to_string(), ..VelociraptorUser::default() },
                None => return Err(ServerError::not_found("User", &change.user)),
            };
            if let Some(stored) = stored {
                user.password_salt = stored.salt;
                user.password_hash = stored.hash;
            }
            if let Some(subject) = change.subject {
                user.oid = subject;
            }
            user.locked = change.locked.unwrap_or(user.locked);
            put(txn, &root, Space::Users, &key, &user);
            if let Some(policy) = change.policy {
                for org in orgs {
                    put(txn, &org, Space::Policies, &key, &policy.clone().for_org(&org).to_proto());
                }
            }
            Ok(())
        });
        Ok(pending.then(move |()| rights.changed()))
    }

    /// Takes a user's policies away in the organisations of the right, and the record with the last of them.
    ///
    /// # Errors
    /// [`ServerError::NotFound`]; [`ServerError::Forbidden`] for somebody who is in none of those organisations and is not the right's to delete.
    pub fn delete(&self, right: &AdminRight, receipt: Receipt, user: &UserName) -> Result<Pending<()>, ServerError> {
        drop(receipt);
        if self.user(user)?.is_none() {
            return Err(ServerError::not_found("User", user));
        }
        let in_none =
            self.orgs()?.iter().try_fold(true, |none, org| Ok::<_, ServerError>(none && self.usable_policy(org, user)?.is_none()))?;
        if in_none && !right.over_all {
            self.may_take_over(right, user)?;
        }
        let (here, user, all) = (right.orgs().cloned().collect::<Vec<_>>(), user.clone(), self.orgs()?);
        let rights = self.rights().clone();
        let pending = Pending::submit(&**self.engine(), move |txn| {
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
                txn.delete(&OrgId::root(), Space::Settings, &options::key(&user));
            }
            Ok(())
        });
        Ok(pending.then(move |()| rights.changed()))
    }

    fn check_grant(&self, right: &AdminRight, policy: &Policy) -> Result<(), ServerError> {
        for authority in &right.authorities {
            // A custom role is what its organisation says.
            let policy = Policy::from_proto_with(&policy.to_proto(), &self.roles(authority.org())?)?;
            let beyond = if right.over_all { Permissions::NONE } else { authority.exceeded_by(&policy) };
            if !beyond.is_empty() {
                let (principal, org) = (authority.principal(), self.display_name(authority.org()));
                return Err(ServerError::Forbidden(format!(
                    "Error: PermissionDenied, User {principal} cannot grant {beyond} in {org}: nobody grants more than they hold"
                )));
            }
        }
        Ok(())
    }
}
