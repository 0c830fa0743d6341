//! Rights act at once: whatever runs on somebody's behalf ends when a right that it began with is taken away.
//!
//! Queries and streams put themselves under supervision with [`Session::supervise`]. A change of users, policies, roles, organisations or locks wakes one
//! thread, which decides anew for everything that runs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use talon_ids::{OrgId, Permissions, UserName};

use crate::org::lock;
use crate::session::Session;

/// How long the thread sleeps when nothing changes: locks end by themselves in time.
pub(crate) const SWEEP: Duration = Duration::from_millis(250);

/// Ends what runs; the text says why.
type End = Box<dyn Fn(&str) + Send + Sync>;

/// What runs, and word of changes.
#[derive(Clone, Default)]
pub(crate) struct Rights(Arc<Shared>);

#[derive(Default)]
struct Shared {
    running: Mutex<HashMap<u64, Running>>,
    next: AtomicU64,
    changes: Mutex<u64>,
    changed: Condvar,
}

struct Running {
    principal: UserName,
    org: OrgId,
    held: Permissions,
    end: Arc<End>,
}

impl Rights {
    /// Says that rights may have changed.
    pub(crate) fn changed(&self) {
        let mut changes = lock(&self.0.changes);
        *changes = changes.wrapping_add(1);
        self.0.changed.notify_all();
    }

    fn add(&self, running: Running) -> Supervised {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.0.running).insert(number, running);
        Supervised { rights: Arc::downgrade(&self.0), number }
    }

    /// Waits for a change after `seen`, or for a while. Gives the number of changes so far.
    pub(crate) fn wait(&self, seen: u64) -> u64 {
        let changes = lock(&self.0.changes);
        let waited = self.0.changed.wait_timeout_while(changes, SWEEP, |changes| *changes == seen);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Decides anew for everything that runs. `now` gives what a principal holds in an organisation.
    pub(crate) fn review(&self, now: impl Fn(&UserName, &OrgId) -> Permissions) {
        let mut known: HashMap<(UserName, OrgId), Permissions> = HashMap::new();
        let mut ending = Vec::new();
        for running in lock(&self.0.running).values() {
            let key = (running.principal.clone(), running.org.clone());
            let held = *known.entry(key).or_insert_with(|| now(&running.principal, &running.org));
            let taken = running.held.difference(held);
            if !taken.is_empty() {
                ending.push((running.end.clone(), format!("rights were taken from {} in {}: {taken}", running.principal, running.org)));
            }
        }
        for (end, text) in ending {
            end(&text);
        }
    }
}

/// Ends the supervision when it is dropped: keep it for as long as the work runs.
#[must_use = "supervision ends when this is dropped"]
pub struct Supervised {
    rights: Weak<Shared>,
    number: u64,
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if let Some(rights) = self.rights.upgrade() {
            lock(&rights.running).remove(&self.number);
        }
    }
}

impl std::fmt::Debug for Supervised {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Supervised({})", self.number)
    }
}

impl Session {
    /// Puts work of this session under supervision: `end` is called, with the reason, within a second after a right that the session holds now
    /// was taken away. It must not block, and may be called more than once.
    pub fn supervise(&self, end: impl Fn(&str) + Send + Sync + 'static) -> Supervised {
        let rights = self.server().users().rights();
        let supervised = rights.add(Running {
            principal: self.principal().clone(),
            org: self.org().id().clone(),
            held: self.authority().held(),
            end: Arc::new(Box::new(end)),
        });
        // What was taken between the decision and this line is seen too.
        rights.changed();
        supervised
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use talon_ids::Permission;

    use super::*;

    fn running(ended: &Arc<AtomicUsize>, held: &[Permission]) -> Running {
        let ended = ended.clone();
        let end: End = Box::new(move |_| {
            ended.fetch_add(1, Ordering::SeqCst);
        });
        Running { principal: "bob".parse().unwrap(), org: OrgId::root(), held: Permissions::of(held), end: Arc::new(end) }
    }

    #[test]
    fn only_what_lost_a_right_ends() {
        let (rights, ended) = (Rights::default(), Arc::new(AtomicUsize::new(0)));
        let reader = rights.add(running(&ended, &[Permission::ReadResults]));
        let both = rights.add(running(&ended, &[Permission::ReadResults, Permission::Execve]));
        rights.review(|_, _| Permissions::of(&[Permission::ReadResults, Permission::Execve, Permission::Network]));
        assert_eq!(ended.load(Ordering::SeqCst), 0);
        rights.review(|_, _| Permissions::of(&[Permission::ReadResults]));
        assert_eq!(ended.load(Ordering::SeqCst), 1);
        drop(both);
        rights.review(|_, _| Permissions::NONE);
        assert_eq!(ended.load(Ordering::SeqCst), 2);
        drop(reader);
        rights.review(|_, _| Permissions::NONE);
        assert_eq!(ended.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_change_wakes_whoever_waits() {
        let rights = Rights::default();
        let other = rights.clone();
        let waiting = std::thread::spawn(move || other.wait(0));
        rights.changed();
        assert_eq!(waiting.join().unwrap(), 1);
    }
}
