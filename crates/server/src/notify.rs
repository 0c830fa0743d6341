//! Waiting readers: who waits under which client id, and how news reaches it. One small entry per agent that waits, no thread.
//!
//! Two readers of one id are a restarted agent whose old connection is not yet known to be dead, or two machines with one key. The newest wins, so that
//! neither a dead socket nor a thief of the key can lock an agent out; but only once in [`DISPLACE_EVERY`], so that two machines do not chase each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use talon_ids::ClientId;
use tokio::sync::Notify;

/// A reader is displaced at most this often; in between the newcomer is turned away.
pub(crate) const DISPLACE_EVERY: Duration = Duration::from_secs(10);

/// The readers of one organisation.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    waiting: Mutex<HashMap<ClientId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    place: Arc<Place>,
    displaced_at_ns: Option<u64>,
}

/// Where one reader waits.
#[derive(Debug)]
struct Place {
    news: Notify,
    over: std::sync::atomic::AtomicBool,
}

/// What became of a newcomer.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// Nobody else waits.
    Alone(Waiting),
    /// It took the place of another reader.
    Displaced(Waiting),
    /// Another reader waits and has just taken the place itself.
    Refused,
}

impl Readers {
    /// Takes the place of `client` at `now_ns`.
    pub(crate) fn arrive(self: &Arc<Self>, client: &ClientId, now_ns: u64) -> Arrival {
        let mut waiting = self.lock();
        let place = Arc::new(Place { news: Notify::new(), over: false.into() });
        // Made only for who gets the place: dropping it takes the lock.
        let guard = |place| Waiting { readers: self.clone(), client: client.clone(), place };
        match waiting.get_mut(client) {
            None => {
                waiting.insert(client.clone(), Entry { place: place.clone(), displaced_at_ns: None });
                Arrival::Alone(guard(place))
            }
            Some(entry) => {
                let recently = |at| now_ns.saturating_sub(at) < u64::try_from(DISPLACE_EVERY.as_nanos()).unwrap_or(u64::MAX);
                if entry.displaced_at_ns.is_some_and(recently) {
                    return Arrival::Refused;
                }
                entry.place.over.store(true, std::sync::atomic::Ordering::SeqCst);
                entry.place.news.notify_one();
                *entry = Entry { place: place.clone(), displaced_at_ns: Some(now_ns) };
                Arrival::Displaced(guard(place))
            }
        }
    }

    /// Wakes the reader of `client`, if one waits on this frontend. News for nobody is found at the next poll.
    pub(crate) fn wake(&self, client: &ClientId) {
        if let Some(entry) = self.lock().get(client) {
            entry.place.news.notify_one();
        }
    }

    /// Wakes every reader.
    pub(crate) fn wake_all(&self) {
        for entry in self.lock().values() {
            entry.place.news.notify_one();
        }
    }

    /// Whether a reader waits for `client`.
    pub(crate) fn is_waiting(&self, client: &ClientId) -> bool {
        self.lock().contains_key(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ClientId, Entry>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader's place, given up when dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    readers: Arc<Readers>,
    client: ClientId,
    place: Arc<Place>,
}

impl Waiting {
    /// Waits for news, which may have come since the last call.
    pub(crate) async fn news(&self) {
        self.place.news.notified().await;
    }

    /// Whether another reader has taken the place.
    pub(crate) fn is_over(&self) -> bool {
        self.place.over.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.readers.lock();
        if waiting.get(&self.client).is_some_and(|entry| Arc::ptr_eq(&entry.place, &self.place)) {
            waiting.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[tokio::test]
    async fn news_that_came_before_the_wait_is_not_missed() {
        let readers = Arc::new(Readers::default());
        let client: ClientId = "C.1".parse().unwrap();
        let Arrival::Alone(waiting) = readers.arrive(&client, 0) else { panic!("somebody else waits") };
        readers.wake(&client);
        waiting.news().await;
        assert!(!waiting.is_over());
    }

    #[tokio::test]
    async fn the_newest_reader_wins_but_not_too_often() {
        let readers = Arc::new(Readers::default());
        let client: ClientId = "C.1".parse().unwrap();
        let Arrival::Alone(first) = readers.arrive(&client, 0) else { panic!("somebody else waits") };
        let Arrival::Displaced(second) = readers.arrive(&client, SECOND) else { panic!("not displaced") };
        first.news().await;
        assert!(first.is_over() && !second.is_over());
        assert!(matches!(readers.arrive(&client, 2 * SECOND), Arrival::Refused));
        drop(first);
        assert!(readers.is_waiting(&client), "the first reader's end gave up the place of the second");
        assert!(matches!(readers.arrive(&client, 12 * SECOND), Arrival::Displaced(_)));
    }

    #[test]
    fn a_reader_that_ends_gives_up_its_place() {
        let readers = Arc::new(Readers::default());
        let client: ClientId = "C.1".parse().unwrap();
        drop(readers.arrive(&client, 0));
        assert!(!readers.is_waiting(&client));
        assert!(matches!(readers.arrive(&client, 1), Arrival::Alone(_)));
    }
}
