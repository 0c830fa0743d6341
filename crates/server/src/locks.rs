//! Runtime locks: set by administrators while the server runs, in force within a second for everything, kept over restarts, removed by a vote.

use std::collections::BTreeSet;

use serde_json::json;
use talon_audit::{Details, Receipt};
use talon_crypto::{constant_time_eq, random_array, sha256};
use talon_ids::{ClientId, OrgId, Permission, Permissions, Target};
use talon_lockdown::{Lock, LockTable, LockTarget, LockdownError, Removal, TaskInQuestion};
use talon_proto::{ArtifactCollectorContext, VeloMessage};
use talon_store::{Reader, Scan, Space};

use crate::ServerError;
use crate::layout::{flow_key, get};
use crate::session::Session;
use crate::transaction::Pending;
use crate::users::Directory;

/// Keys of locks in [`Space::Deployment`] begin with this.
const PREFIX: &str = "lock/";
/// More locks than anybody can keep an eye on.
const MAX_LOCKS: usize = 10_000;

impl From<LockdownError> for ServerError {
    fn from(error: LockdownError) -> Self {
        Self::invalid(error.to_string())
    }
}

/// A lock that is wanted.
#[derive(Debug, Clone)]
pub struct LockRequest {
    /// What it closes.
    pub target: LockTarget,
    /// Why. Everybody who is refused reads it.
    pub reason: String,
    /// Seconds after which it ends; never without.
    pub ttl_s: Option<u64>,
}

impl Directory {
    /// Reads the locks that are stored and puts them in force. One that cannot be read closes everything: it was meant to close something.
    ///
    /// # Errors
    /// When storage fails.
    pub fn load_locks(&self, now_s: u64) -> Result<(), ServerError> {
        let scan = Scan { prefix: PREFIX.into(), ..Scan::default() };
        let mut locks = Vec::new();
        for (key, value) in self.engine().reader().scan(&OrgId::root(), Space::Deployment, &scan)? {
            match serde_json::from_slice::<Lock>(&value) {
                Ok(lock) => locks.push(lock),
                Err(error) => {
                    let id = String::from_utf8_lossy(key.get(PREFIX.len()..).unwrap_or_default()).into_owned();
                    tracing::error!(lock = id, %error, "a stored lock cannot be read: everything is locked until it is removed");
                    locks.push(Lock {
                        id,
                        target: LockTarget::All,
                        org: None,
                        reason: "this lock cannot be read".into(),
                        author: self.superuser().to_string(),
                        created_s: now_s,
                        expires_s: None,
                        votes: BTreeSet::new(),
                    });
                }
            }
        }
        locks.retain(|lock| !lock.is_over(now_s));
        self.rules().set_locks(LockTable::new(locks));
        self.rights().changed();
        Ok(())
    }

    /// Takes locks whose time is over out of force.
    pub(crate) fn end_locks(&self, now_s: u64) -> Result<(), ServerError> {
        let over: Vec<Lock> = self.rules().locks().locks().iter().filter(|lock| lock.is_over(now_s)).cloned().collect();
        for lock in over {
            self.delete_lock(&lock.id).wait()?;
            tracing::info!(lock = lock.id, "a lock ended");
        }
        self.load_locks(now_s)
    }

    /// Stores a lock and puts it in force.
    ///
    /// # Errors
    /// [`ServerError::Invalid`] when there are too many, and when storage fails.
    pub fn put_lock(&self, receipt: Receipt, lock: Lock, now_s: u64) -> Result<(), ServerError> {
        drop(receipt);
        let value = serde_json::to_vec(&lock).map_err(|error| ServerError::invalid(error.to_string()))?;
        let key = format!("{PREFIX}{}", lock.id).into_bytes();
        Pending::submit(&**self.engine(), move |txn| {
            if txn.scan(&OrgId::root(), Space::Deployment, &Scan { prefix: PREFIX.into(), ..Scan::default() })?.len() >= MAX_LOCKS {
                return Err(ServerError::invalid("there are too many locks: remove some"));
            }
            txn.put(&OrgId::root(), Space::Deployment, &key, value);
            Ok(())
        })
        .wait()?;
        self.load_locks(now_s)
    }

    /// Takes a lock out of force, for whoever may: see [`Session::unlock`].
    ///
    /// # Errors
    /// When storage fails.
    pub fn drop_lock(&self, receipt: Receipt, id: &str, now_s: u64) -> Result<(), ServerError> {
        drop(receipt);
        self.delete_lock(id).wait()?;
        self.load_locks(now_s)
    }

    fn delete_lock(&self, id: &str) -> Pending<()> {
        let key = format!("{PREFIX}{id}").into_bytes();
        Pending::submit(&**self.engine(), move |txn| {
            txn.delete(&OrgId::root(), Space::Deployment, &key);
            Ok(())
        })
    }
}

/// Whether a token is the one that was made when the deployment was installed: only its digest is in the configuration.
#[must_use]
pub fn unlock_token_fits(token: &str, digest_hex: &str) -> bool {
    let wanted = data_encoding::HEXLOWER_PERMISSIVE.decode(digest_hex.trim().as_bytes()).unwrap_or_default();
    wanted.len() == 32 && constant_time_eq(&sha256(token.trim().as_bytes()), &wanted)
}

/// Whether a lock keeps a waiting message from being handed out. Without locks nothing is read.
pub(crate) fn holds_back(reader: &dyn Reader, org: &OrgId, client: &ClientId, message: &VeloMessage, locks: &LockTable) -> bool {
    if locks.is_empty() || message.cancel.is_some() {
        return false;
    }
    let flow = message.session_id.parse().ok().and_then(|flow| {
        let key = flow_key(&Target::Client(client.clone()), &flow);
        get::<ArtifactCollectorContext>(reader, org, Space::Flows, &key).ok().flatten()
    });
    let request = flow.and_then(|flow| flow.request).unwrap_or_default();
    let task = TaskInQuestion { org, client: client.as_str(), creator: &request.creator, artifacts: &request.artifacts };
    locks.holds_back(&task).is_some()
}

impl Session {
    /// The locks that hold where this session may see them: all of them from the root organisation, else those of the own.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] for whoever administers nothing.
    pub fn locks(&self) -> Result<Vec<Lock>, ServerError> {
        self.may_lock()?;
        let locks = self.server().users().rules().locks();
        let seen = |lock: &&Lock| self.org().id().is_root() || lock.org.as_deref() == Some(self.org().id().as_str());
        Ok(locks.locks().iter().filter(seen).cloned().collect())
    }

    /// Sets a lock. From the root organisation it holds everywhere, from another one there only. Lockdown and other locks do not keep an
    /// administrator from it: a lock only ever takes away.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`], [`ServerError::Invalid`] for a lock without a reason or on somebody else's organisation.
    pub fn lock(&self, request: LockRequest) -> Result<Lock, ServerError> {
        self.may_lock()?;
        let reason = Lock::clean_reason(&request.reason);
        if reason.is_empty() {
            return Err(ServerError::invalid("a lock needs a reason: whoever is refused reads it"));
        }
        let own = self.org().id();
        if let LockTarget::Org(org) = &request.target
            && !own.is_root()
            && org != own.as_str()
        {
            return Err(ServerError::Forbidden(format!("PermissionDenied: from {own} only {own} itself can be locked")));
        }
        let now_s = self.org().now_us() / 1_000_000;
        let random: [u8; 8] = random_array(self.org().rng());
        let lock = Lock {
            id: format!("L.{}", data_encoding::BASE32HEX_NOPAD.encode(&random)),
            target: request.target,
            org: (!own.is_root()).then(|| own.to_string()),
            reason,
            author: self.principal().to_string(),
            created_s: now_s,
            expires_s: request.ttl_s.map(|ttl| now_s.saturating_add(ttl)),
            votes: BTreeSet::new(),
        };
        let receipt = self.record("lock_add", details(&lock))?;
        self.server().users().put_lock(receipt, lock.clone(), now_s)?;
        Ok(lock)
    }

    /// Votes for the removal of a lock; with the offline token it goes at once. The superuser has no vote over a lock on everything: it is
    /// nobody in particular.
    ///
    /// # Errors
    /// [`ServerError::NotFound`], [`ServerError::Forbidden`] also for a token that is not the right one.
    pub fn unlock(&self, id: &str, token: Option<&str>) -> Result<Removal, ServerError> {
        self.may_lock()?;
        let (server, users) = (self.server(), self.server().users());
        let found = self.locks()?.into_iter().find(|lock| lock.id == id);
        let mut lock = found.ok_or_else(|| ServerError::not_found("Lock", id))?;
        let (now_s, settings) = (self.org().now_us() / 1_000_000, server.settings());
        let by_token = match token {
            None => false,
            Some(token) if unlock_token_fits(token, &settings.unlock_token_sha256) => true,
            Some(_) => {
                self.org().record_denial(self.principal().as_str(), "lock_remove", Details::new().text("id", id).text("token", "wrong"))?;
                return Err(ServerError::Forbidden("PermissionDenied: that is not the unlock token of this deployment".into()));
            }
        };
        if *self.principal() == *users.superuser() && lock.target == LockTarget::All && !by_token {
            return Err(ServerError::Forbidden(format!(
                "PermissionDenied: a lock on everything is removed by {} administrators under their own names, or with the unlock token",
                settings.lock_quorum.max(1)
            )));
        }
        let outcome = if by_token { Removal::Removed } else { lock.vote(&self.principal().folded(), settings.lock_quorum) };
        let missing = if let Removal::Needs(missing) = outcome { missing } else { 0 };
        let receipt = self.record("lock_remove", details(&lock).json("votes_missing", json!(missing)).json("by_token", json!(by_token)))?;
        match outcome {
            Removal::Removed => {
                users.drop_lock(receipt, id, now_s)?;
                // What was held back goes on.
                server.orgs().iter().for_each(|org| org.state().readers.wake_all());
            }
            Removal::Needs(_) => users.put_lock(receipt, lock, now_s)?,
        }
        Ok(outcome)
    }

    /// Whether this session may set and remove locks: it administers, apart from lockdown and locks, and no lock names the user.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`].
    pub fn may_lock(&self) -> Result<(), ServerError> {
        let users = self.server().users();
        let named = users.rules().locks().names_user(&self.principal().folded());
        // A session that is there for locks only was given no authority: what its principal holds counts.
        let full = if self.is_for_locks_only() { Some(users.authority(self.principal(), self.org().id())?) } else { None };
        let authority = full.as_ref().unwrap_or_else(|| self.authority());
        if !named && authority.holds_by_policy(Permissions::of(&[Permission::ServerAdmin])) {
            return Ok(());
        }
        Err(ServerError::Forbidden("PermissionDenied: Permission denied: [SERVER_ADMIN]".into()))
    }
}

fn details(lock: &Lock) -> Details {
    Details::new()
        .text("id", &lock.id)
        .text("kind", lock.target.kind())
        .text("name", lock.target.name())
        .text("org", lock.org.as_deref().unwrap_or("*"))
        .text("reason", &lock.reason)
        .json("expires", json!(lock.expires_s))
}
