//! Locks: what administrators close while the server runs, without a change of the configuration. Pure: time and storage are the caller's.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use talon_acl::{Question, Reason, Restriction, Target};
use talon_ids::{OrgId, Permissions};

use crate::LockdownError;

/// The most characters in a lock's reason.
const MAX_REASON: usize = 500;

/// What a lock closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "name", rename_all = "lowercase")]
pub enum LockTarget {
    /// One user, by the folded name: may do nothing.
    User(String),
    /// Whoever has this role: may do nothing.
    Role(String),
    /// One client: nothing is collected from it, tasks that wait for it stay where they are.
    Client(String),
    /// One artifact: it is not collected, and tasks that wait and contain it stay where they are.
    Artifact(String),
    /// One organisation: nobody does anything in it.
    Org(String),
    /// Everything.
    All,
}

impl LockTarget {
    /// The target of a kind, as command lines and queries name it.
    ///
    /// # Errors
    /// [`LockdownError::LockTarget`].
    pub fn parse(kind: &str, name: &str) -> Result<Self, LockdownError> {
        let unusable = || LockdownError::LockTarget { kind: kind.to_owned(), name: name.chars().take(80).collect() };
        if kind == "all" {
            return if name.is_empty() { Ok(Self::All) } else { Err(unusable()) };
        }
        if name.is_empty() || name.len() > 256 {
            return Err(unusable());
        }
        match kind {
            "user" => Ok(Self::User(name.to_lowercase())),
            "role" => Ok(Self::Role(name.to_owned())),
            "client" => name.parse::<talon_ids::ClientId>().map(|client| Self::Client(client.to_string())).map_err(|_| unusable()),
            "artifact" => Ok(Self::Artifact(name.to_owned())),
            "org" => name.parse::<OrgId>().map(|org| Self::Org(org.to_string())).map_err(|_| unusable()),
            _ => Err(unusable()),
        }
    }

    /// The kind, by the word of the command line.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Role(_) => "role",
            Self::Client(_) => "client",
            Self::Artifact(_) => "artifact",
            Self::Org(_) => "org",
            Self::All => "all",
        }
    }

    /// The name; empty for everything.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::User(name) | Self::Role(name) | Self::Client(name) | Self::Artifact(name) | Self::Org(name) => name,
            Self::All => "",
        }
    }
}

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Its id.
    pub id: String,
    /// What it closes.
    #[serde(flatten)]
    pub target: LockTarget,
    /// The organisation that it holds in, as text; everywhere when it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<String>,
    /// Why.
    pub reason: String,
    /// Who set it.
    pub author: String,
    /// When, in seconds since 1970.
    pub created_s: u64,
    /// When it ends by itself, in seconds since 1970; never when it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
    /// The administrators who want it removed, by folded name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub votes: BTreeSet<String>,
}

/// What a vote for the removal of a lock came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The lock is to be removed.
    Removed,
    /// So many more administrators have to want it.
    Needs(usize),
}

impl Lock {
    /// The text of refusals. The reason is for whoever is refused: they are known users.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "lock {} on {}{}{}: {}",
            self.id,
            self.target.kind(),
            if self.target.name().is_empty() { "" } else { " " },
            self.target.name(),
            self.reason
        )
    }

    /// The reason as it is kept: one line of bounded length.
    #[must_use]
    pub fn clean_reason(text: &str) -> String {
        text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(MAX_REASON).collect::<String>().trim().to_owned()
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_over(&self, now_s: u64) -> bool {
        self.expires_s.is_some_and(|at| at <= now_s)
    }

    fn holds_in(&self, org: &OrgId) -> bool {
        self.org.as_deref().is_none_or(|own| own == org.as_str())
    }

    fn refuses(&self, question: &Question<'_>) -> bool {
        self.holds_in(question.org)
            && match (&self.target, question.target) {
                (LockTarget::All, _) => true,
                (LockTarget::Org(org), _) => org == question.org.as_str(),
                (LockTarget::User(user), _) => user == question.folded,
                (LockTarget::Role(role), _) => question.roles.iter().any(|held| **held == **role),
                (LockTarget::Client(client), Some(Target::Client(asked))) => client == asked,
                (LockTarget::Artifact(artifact), Some(Target::Artifact(asked))) => artifact == asked,
                (LockTarget::Client(_) | LockTarget::Artifact(_), _) => false,
            }
    }

    /// Takes one administrator's vote for the removal. A lock on everything takes `quorum` of them, any other lock one.
    #[must_use]
    pub fn vote(&mut self, administrator: &str, quorum: usize) -> Removal {
        self.votes.insert(administrator.to_lowercase());
        let needed = if self.target == LockTarget::All { quorum.max(1) } else { 1 };
        match needed.saturating_sub(self.votes.len()) {
            0 => Removal::Removed,
            missing => Removal::Needs(missing),
        }
    }
}

/// What a task that waits for a client is about.
#[derive(Debug, Clone, Copy)]
pub struct TaskInQuestion<'a> {
    /// The organisation.
    pub org: &'a OrgId,
    /// The client.
    pub client: &'a str,
    /// Who asked for it, as written down; empty when nobody did.
    pub creator: &'a str,
    /// The artifacts in it.
    pub artifacts: &'a [String],
}

/// The locks that hold at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LockTable(Vec<Lock>);

impl LockTable {
    /// The table of these locks.
    pub fn new(locks: impl IntoIterator<Item = Lock>) -> Self {
        Self(locks.into_iter().collect())
    }

    /// All of them.
    #[must_use]
    pub fn locks(&self) -> &[Lock] {
        &self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lock that keeps a task from being handed out.
    #[must_use]
    pub fn holds_back(&self, task: &TaskInQuestion<'_>) -> Option<&Lock> {
        self.0.iter().find(|lock| {
            lock.holds_in(task.org)
                && match &lock.target {
                    LockTarget::All => true,
                    LockTarget::Org(org) => org == task.org.as_str(),
                    LockTarget::Client(client) => client == task.client,
                    LockTarget::User(user) => *user == task.creator.to_lowercase(),
                    LockTarget::Artifact(artifact) => task.artifacts.contains(artifact),
                    LockTarget::Role(_) => false,
                }
        })
    }

    /// Whether a lock names this user: such a user removes no locks.
    #[must_use]
    pub fn names_user(&self, folded: &str) -> bool {
        self.0.iter().any(|lock| matches!(&lock.target, LockTarget::User(user) if user == folded))
    }
}

/// The rules above all policies in a server: what its configuration says, and the locks that hold now.
pub struct Rules {
    configured: Arc<dyn Restriction>,
    locks: ArcSwap<LockTable>,
}

impl Rules {
    /// The rules of a configuration, without locks.
    #[must_use]
    pub fn new(configured: Arc<dyn Restriction>) -> Self {
        Self { configured, locks: ArcSwap::default() }
    }

    /// The locks that hold.
    #[must_use]
    pub fn locks(&self) -> Arc<LockTable> {
        self.locks.load_full()
    }

    /// Replaces the locks. From here on every decision knows them.
    pub fn set_locks(&self, table: LockTable) {
        self.locks.store(Arc::new(table));
    }
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Rules").field("lockdown", &self.configured.lockdown()).field("locks", &self.locks.load()).finish()
    }
}

impl Restriction for Rules {
    fn lockdown(&self) -> Permissions {
        self.configured.lockdown()
    }

    fn refuses(&self, question: &Question<'_>) -> Option<Reason> {
        let locks = self.locks.load();
        let lock = locks.0.iter().find(|lock| lock.refuses(question));
        lock.map(|lock| Reason::Locked(lock.text())).or_else(|| self.configured.refuses(question))
    }
}

#[cfg(test)]
mod tests {
    use talon_acl::{Authority, Policy, Role, Unrestricted};
    use talon_ids::Permission;

    use super::*;

    fn lock(kind: &str, name: &str, org: Option<&str>) -> Lock {
        Lock {
            id: "L.1".into(),
            target: LockTarget::parse(kind, name).unwrap(),
            org: org.map(str::to_owned),
            reason: "incident 7".into(),
            author: "alice".into(),
            created_s: 0,
            expires_s: None,
            votes: BTreeSet::new(),
        }
    }

    fn rules(locks: impl IntoIterator<Item = Lock>) -> Arc<Rules> {
        let rules = Rules::new(Arc::new(Unrestricted));
        rules.set_locks(LockTable::new(locks));
        Arc::new(rules)
    }

    fn user(name: &str, org: &OrgId, rules: Arc<Rules>) -> Authority {
        let policy = Policy::of_roles([Role::Investigator]);
        Authority::user(name.parse().unwrap(), org.clone(), Some(&policy), Some(&policy), rules)
    }

    #[test]
    fn each_kind_of_lock_closes_what_it_names_and_nothing_else() {
        let (root, other): (OrgId, OrgId) = (OrgId::root(), "OA".parse().unwrap());
        for (lock, name, org, allowed) in [
            (lock("user", "Bob", None), "bob", &root, false),
            (lock("user", "Bob", None), "BOB", &other, false),
            (lock("user", "Bob", None), "bobby", &root, true),
            (lock("user", "Bob", Some("root")), "bob", &other, true),
            (lock("role", "investigator", None), "bob", &root, false),
            (lock("role", "reader", None), "bob", &root, true),
            (lock("org", "OA", None), "bob", &other, false),
            (lock("org", "OA", None), "bob", &root, true),
            (lock("all", "", None), "bob", &root, false),
            (lock("client", "C.1", None), "bob", &root, true),
            (lock("artifact", "A", None), "bob", &root, true),
        ] {
            let text = lock.text();
            assert_eq!(user(name, org, rules([lock])).allows(Permission::ReadResults), allowed, "{text} {name} {org}");
        }
    }

    #[test]
    fn a_lock_binds_the_superuser_and_says_why() {
        let server = Authority::superuser("VelociraptorServer".parse().unwrap(), OrgId::root(), rules([lock("all", "", None)]));
        let denial = server.check(Permissions::of(&[Permission::ReadResults])).unwrap_err();
        assert_eq!(denial.to_string(), "PermissionDenied: Locked by lock L.1 on all: incident 7: [READ_RESULTS]");
        assert_eq!(denial.rule(), "lock");
        assert!(server.holds_by_policy(Permissions::of(&[Permission::ServerAdmin])));
    }

    #[test]
    fn an_artifact_is_locked_for_who_may_collect_everything_else() {
        let investigator = user("bob", &OrgId::root(), rules([lock("artifact", "Evil", None)]));
        let collect = |name| talon_acl::check_collection(&investigator, false, name, false, Permissions::NONE);
        assert!(collect("Good").is_ok());
        assert_eq!(
            collect("Evil").unwrap_err().to_string(),
            "PermissionDenied: Locked by lock L.1 on artifact Evil: incident 7: [COLLECT_CLIENT]"
        );
    }

    #[test]
    fn waiting_tasks_are_held_back_by_what_they_are_about() {
        let artifacts = ["A".to_owned()];
        let root = OrgId::root();
        let task = TaskInQuestion { org: &root, client: "C.1", creator: "Bob", artifacts: &artifacts };
        for (lock, held) in [
            (lock("client", "C.1", None), true),
            (lock("client", "C.2", None), false),
            (lock("user", "bob", None), true),
            (lock("artifact", "A", None), true),
            (lock("artifact", "B", None), false),
            (lock("org", "OA", None), false),
            (lock("all", "", None), true),
            (lock("all", "", Some("OA")), false),
        ] {
            let text = lock.text();
            assert_eq!(LockTable::new([lock]).holds_back(&task).is_some(), held, "{text}");
        }
    }

    #[test]
    fn a_lock_on_everything_takes_two_to_remove() {
        let mut all = lock("all", "", None);
        assert_eq!(all.vote("alice", 2), Removal::Needs(1));
        assert_eq!(all.vote("ALICE", 2), Removal::Needs(1), "one administrator has one vote");
        assert_eq!(all.vote("bob", 2), Removal::Removed);
        assert_eq!(lock("user", "x", None).vote("alice", 2), Removal::Removed);
        assert_eq!(lock("all", "", None).vote("alice", 0), Removal::Removed);
    }

    #[test]
    fn locks_survive_their_stored_form_and_end_in_time() {
        let mut stored = lock("client", "C.1", Some("OA"));
        stored.expires_s = Some(10);
        let text = serde_json::to_string(&stored).unwrap();
        assert_eq!(serde_json::from_str::<Lock>(&text).unwrap(), stored);
        assert!(!stored.is_over(9) && stored.is_over(10));
        assert!(serde_json::from_str::<Lock>(&serde_json::to_string(&lock("all", "", None)).unwrap()).is_ok());
        assert!(!lock("all", "", None).is_over(u64::MAX));
    }

    #[test]
    fn targets_are_read_strictly() {
        for (kind, name) in [("all", "x"), ("user", ""), ("client", "nobody"), ("org", "../x"), ("planet", "earth")] {
            assert!(LockTarget::parse(kind, name).is_err(), "{kind} {name}");
        }
        assert_eq!(Lock::clean_reason(" a\nb\u{0} "), "a b");
    }
}
