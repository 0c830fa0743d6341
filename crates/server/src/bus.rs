//! The event bus of an organisation: queues by name, bounded mailboxes, no replay. A slow listener loses the oldest events and is told how many.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

/// A listener that is behind holds at most this many events …
const MAX_EVENTS: usize = 10_000;
/// … and this many bytes.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// One event: a JSON object as text, with the server's own columns in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The queue: the event artifact's name.
    pub queue: Arc<str>,
    /// Who sent it: a client id, a principal or the server.
    pub source: Arc<str>,
    /// The row.
    pub row: Arc<str>,
}

/// What a listener gets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// An event.
    Event(Event),
    /// So many events were lost because the listener was too slow.
    Lost(u64),
}

#[derive(Debug, Default)]
pub(crate) struct Bus {
    queues: Mutex<HashMap<String, Vec<Weak<Mailbox>>>>,
}

#[derive(Debug, Default)]
struct Mailbox {
    held: Mutex<Held>,
    filled: Condvar,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Held {
    events: VecDeque<Event>,
    bytes: usize,
    lost: u64,
}

impl Bus {
    pub(crate) fn subscribe(&self, queue: &str) -> Subscription {
        let mailbox = Arc::new(Mailbox::default());
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let listeners = queues.entry(queue.to_owned()).or_default();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(&mailbox));
        Subscription { mailbox }
    }

    pub(crate) fn publish(&self, event: &Event) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(listeners) = queues.get_mut(&*event.queue) else { return };
        listeners.retain(|listener| match listener.upgrade() {
            Some(mailbox) => {
                mailbox.deliver(event.clone());
                true
            }
            None => false,
        });
        if listeners.is_empty() {
            queues.remove(&*event.queue);
        }
    }
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, event: Event) {
        let mut held = self.lock();
        held.bytes = held.bytes.saturating_add(event.row.len());
        held.events.push_back(event);
        while held.events.len() > MAX_EVENTS || (held.bytes > MAX_BYTES && held.events.len() > 1) {
            if let Some(oldest) = held.events.pop_front() {
                held.bytes = held.bytes.saturating_sub(oldest.row.len());
                held.lost = held.lost.saturating_add(1);
            }
        }
        drop(held);
        self.filled.notify_one();
        self.wake.notify_one();
    }
}

impl Held {
    fn take(&mut self) -> Option<Received> {
        if self.lost > 0 {
            return Some(Received::Lost(std::mem::take(&mut self.lost)));
        }
        let event = self.events.pop_front()?;
        self.bytes = self.bytes.saturating_sub(event.row.len());
        Some(Received::Event(event))
    }
}

/// A listener on one queue. Events published before it existed are not delivered.
#[derive(Debug)]
pub struct Subscription {
    mailbox: Arc<Mailbox>,
}

impl Subscription {
    /// The next event.
    pub async fn next(&self) -> Received {
        loop {
            let woken = self.mailbox.wake.notified();
            if let Some(received) = self.mailbox.lock().take() {
                return received;
            }
            woken.await;
        }
    }

    /// The next event, if one comes within `patience`. Blocks this thread: not for async code.
    #[must_use]
    pub fn next_within(&self, patience: Duration) -> Option<Received> {
        let held = self.mailbox.lock();
        let (mut held, _) = self
            .mailbox
            .filled
            .wait_timeout_while(held, patience, |held| held.events.is_empty() && held.lost == 0)
            .unwrap_or_else(PoisonError::into_inner);
        held.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(queue: &str, row: &str) -> Event {
        Event { queue: queue.into(), source: "server".into(), row: row.into() }
    }

    #[tokio::test]
    async fn events_reach_the_listeners_of_their_queue() {
        let bus = Bus::default();
        let (ours, other) = (bus.subscribe("A.B"), bus.subscribe("A.B/C"));
        bus.publish(&event("A.B", "{}"));
        assert_eq!(ours.next().await, Received::Event(event("A.B", "{}")));
        assert_eq!(other.next_within(Duration::ZERO), None);
    }

    #[test]
    fn a_slow_listener_is_told_what_it_lost() {
        let bus = Bus::default();
        let slow = bus.subscribe("Q");
        for _ in 0..MAX_EVENTS + 3 {
            bus.publish(&event("Q", "{}"));
        }
        assert_eq!(slow.next_within(Duration::ZERO), Some(Received::Lost(3)));
        let rest = std::iter::from_fn(|| slow.next_within(Duration::ZERO)).count();
        assert_eq!(rest, MAX_EVENTS);
    }

    #[test]
    fn a_listener_that_left_costs_nothing() {
        let bus = Bus::default();
        drop(bus.subscribe("Q"));
        bus.publish(&event("Q", "{}"));
        assert!(bus.queues.lock().unwrap().is_empty());
    }
}
