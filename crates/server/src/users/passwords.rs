//! Checking and hashing passwords: at a cost that suits the machine, a few at a time, never faster for a name that does not exist.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use talon_crypto::{PasswordCost, PasswordHash, Rng, SystemRng};
use talon_ids::{OrgId, UserName};
use talon_proto::VelociraptorUser;
use talon_store::Space;

use super::Directory;
use crate::ServerError;
use crate::layout::{get_in, put};
use crate::transaction::Pending;

/// What one hash may take.
const BUDGET: Duration = Duration::from_millis(250);
/// Hashes that are computed at one time; each holds up to 64 MiB.
const SLOTS: usize = 2;

/// Computes password hashes. Blocks: never call it on a thread that serves others.
#[derive(Debug)]
pub struct Passwords {
    cost: PasswordCost,
    /// Compared with when there is no such user.
    decoy: PasswordHash,
    free: Mutex<usize>,
    freed: Condvar,
}

impl Default for Passwords {
    fn default() -> Self {
        Self::at(PasswordCost::FLOOR)
    }
}

impl Passwords {
    /// Hashes at this cost.
    #[must_use]
    pub fn at(cost: PasswordCost) -> Self {
        Self { cost, decoy: PasswordHash::decoy(cost), free: Mutex::new(SLOTS), freed: Condvar::new() }
    }

    /// Hashes at the highest cost that stays within a quarter of a second here, between [`PasswordCost::FLOOR`] and [`PasswordCost::CEILING`].
    #[must_use]
    pub fn tuned() -> Self {
        let started = Instant::now();
        drop(PasswordHash::of("measured", PasswordCost::FLOOR, &SystemRng));
        Self::at(affordable(started.elapsed()))
    }

    fn with_slot<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free = free.saturating_sub(1);
        drop(free);
        let slot = Slot(self);
        let done = work();
        drop(slot);
        done
    }

    /// The two fields of a user's record for a password.
    pub(crate) fn hash(&self, password: &str, rng: &dyn Rng) -> Result<Stored, ServerError> {
        let hash = self.with_slot(|| PasswordHash::of(password, self.cost, rng));
        Ok(Stored::of(&hash.map_err(|_| ServerError::invalid("Password is not set or too long: 1024 bytes at most"))?))
    }

    /// The same for what a stock server or its configuration stored.
    pub(crate) fn wrap(&self, sha256: &[u8], salt: &[u8], rng: &dyn Rng) -> Result<Stored, ServerError> {
        let hash = self.with_slot(|| PasswordHash::wrapping(sha256, salt, self.cost, rng));
        Ok(Stored::of(&hash.map_err(|_| ServerError::invalid("a stored password is no SHA-256 with a salt"))?))
    }

    /// Whether the password fits. Without a user, or for one without a password, the same work is done for nothing.
    #[must_use]
    fn fits(&self, user: Option<&VelociraptorUser>, password: &str) -> bool {
        let stored = user.and_then(hash_of);
        self.with_slot(|| stored.as_ref().unwrap_or(&self.decoy).fits(password)) && stored.is_some()
    }
}

struct Slot<'a>(&'a Passwords);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.saturating_add(1);
        self.0.freed.notify_one();
    }
}

/// The highest step that is affordable when the lowest took this long.
fn affordable(floor_took: Duration) -> PasswordCost {
    let work = |cost: &PasswordCost| f64::from(cost.memory_kib) * f64::from(cost.passes);
    let fits = |cost: &&PasswordCost| floor_took.as_secs_f64() * work(cost) / work(&PasswordCost::FLOOR) <= BUDGET.as_secs_f64();
    PasswordCost::STEPS.iter().rev().find(fits).copied().unwrap_or(PasswordCost::FLOOR)
}

/// A password as a user's record holds it.
pub(crate) struct Stored {
    pub(crate) hash: bytes::Bytes,
    pub(crate) salt: bytes::Bytes,
}

impl Stored {
    fn of(hash: &PasswordHash) -> Self {
        Self { hash: hash.phc().into_bytes().into(), salt: bytes::Bytes::copy_from_slice(hash.stock_salt()) }
    }
}

fn hash_of(user: &VelociraptorUser) -> Option<PasswordHash> {
    PasswordHash::parse(std::str::from_utf8(&user.password_hash).ok()?, &user.password_salt).ok()
}

/// Whether a record still has what a stock server stored.
pub(crate) fn is_stock(user: &VelociraptorUser) -> bool {
    user.password_hash.len() == 32 && !user.password_salt.is_empty()
}

/// The hash and salt of a password as `GUI.initial_users` of a stock configuration has them.
#[must_use]
pub fn initial_hash(password: &str, salt: &[u8]) -> [u8; 32] {
    let mut hash = talon_crypto::Sha256::new();
    hash.update(salt);
    hash.update(password.as_bytes());
    hash.finish()
}

impl Directory {
    /// Whether this is the password of `name`, who is not locked out. One that was stored in a weaker form is stored anew.
    ///
    /// # Errors
    /// When storage fails.
    pub fn check_password(&self, name: &UserName, password: &str, rng: &dyn Rng) -> Result<bool, ServerError> {
        let user = self.user(name)?;
        if let Some(user) = user.as_ref().filter(|user| is_stock(user)) {
            // A record that came in behind the server's back: it is wrapped like all others before it counts.
            self.store_password(name, user, self.passwords.wrap(&user.password_hash, &user.password_salt, rng)?)?;
            return self.check_password(name, password, rng);
        }
        if !self.passwords.fits(user.as_ref(), password) {
            return Ok(false);
        }
        let Some(user) = user.filter(|user| !user.locked) else { return Ok(false) };
        if hash_of(&user).is_some_and(|hash| hash.is_outdated(self.passwords.cost)) {
            self.store_password(name, &user, self.passwords.hash(password, rng)?)?;
        }
        Ok(true)
    }

    /// Wraps every password that is stored as stock servers do. Called when the server opens, before anybody can log in.
    pub(crate) fn wrap_stock_passwords(&self, rng: &dyn Rng) -> Result<(), ServerError> {
        for user in self.users()?.iter().filter(|user| is_stock(user)) {
            let Ok(name) = user.name.parse() else { continue };
            self.store_password(&name, user, self.passwords.wrap(&user.password_hash, &user.password_salt, rng)?)?;
        }
        Ok(())
    }

    pub(crate) fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// Stores a password in another form, unless it was changed meanwhile.
    fn store_password(&self, name: &UserName, seen: &VelociraptorUser, stored: Stored) -> Result<(), ServerError> {
        let (key, seen) = (name.folded().into_bytes(), seen.password_hash.clone());
        Pending::submit(&**self.engine(), move |txn| {
            let user: Option<VelociraptorUser> = get_in(txn, &OrgId::root(), Space::Users, &key)?;
            if let Some(mut user) = user.filter(|user| user.password_hash == seen) {
                user.password_hash = stored.hash;
                user.password_salt = stored.salt;
                put(txn, &OrgId::root(), Space::Users, &key, &user);
            }
            Ok(())
        })
        .wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_follows_the_machine_within_bounds() {
        assert_eq!(affordable(Duration::from_millis(5)), PasswordCost::CEILING);
        assert_eq!(affordable(Duration::from_secs(5)), PasswordCost::FLOOR);
        let middle = affordable(Duration::from_millis(90));
        assert!(middle > PasswordCost::FLOOR && middle < PasswordCost::CEILING, "{middle:?}");
    }

    #[test]
    fn somebody_who_does_not_exist_has_no_password() {
        let passwords = Passwords::at(PasswordCost { memory_kib: 8, passes: 1 });
        assert!(!passwords.fits(None, "x"));
        assert!(!passwords.fits(Some(&VelociraptorUser::default()), ""));
    }

    #[test]
    fn only_so_many_hashes_are_computed_at_one_time() {
        let passwords = Passwords::at(PasswordCost { memory_kib: 8, passes: 1 });
        let (running, most) = (Mutex::new(0_usize), Mutex::new(0_usize));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    passwords.with_slot(|| {
                        let mut now = running.lock().unwrap();
                        *now += 1;
                        let mut most = most.lock().unwrap();
                        *most = (*most).max(*now);
                        drop((now, most));
                        std::thread::sleep(Duration::from_millis(5));
                        *running.lock().unwrap() -= 1;
                    });
                });
            }
        });
        assert!(*most.lock().unwrap() <= SLOTS);
    }
}
