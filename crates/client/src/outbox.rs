//! The agent's outgoing mail: what queries produce is accepted here, and the sender takes it from here.
//!
//! Producers wait until their message is durable; producers that come together share one synchronization. Urgent answers, which describe a moment, are
//! kept in memory in a bounded queue and are sent first.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use talon_proto::prost::Message as _;
use talon_proto::{MessageList as ProtoList, VeloMessage};
use talon_wire::{Blobs, Compression, MessageList, Packer, WireError};
use tokio::sync::Notify;

use crate::buffer::{Buffer, Sequence, record_length};

/// How the outbox fills packets.
#[derive(Debug, Clone, Copy)]
pub struct OutboxSettings {
    /// Compressed bytes that make a packet full.
    pub packet: usize,
    /// Whether blobs are compressed.
    pub compression: Compression,
    /// Bytes of urgent messages that may wait.
    pub urgent: usize,
}

/// Accepts messages and gives them out until they are delivered.
pub struct Outbox {
    settings: OutboxSettings,
    state: Mutex<State>,
    buffer: Mutex<Buffer>,
    accepted: Condvar,
    ready: Notify,
}

#[derive(Default)]
struct State {
    waiting: Vec<Bytes>,
    bytes: u64,
    limit: u64,
    tickets: u64,
    synchronized: u64,
    writing: bool,
    urgent: VecDeque<Bytes>,
    urgent_bytes: usize,
    cancelled: HashSet<String>,
    closed: bool,
}

/// Messages on their way: kept until [`Outbox::delivered`].
#[derive(Debug)]
pub struct Lease {
    blobs: Blobs,
    last: Taken,
}

#[derive(Debug, Clone, Copy)]
enum Taken {
    Urgent { count: usize, bytes: usize },
    Buffered(Sequence),
}

impl Lease {
    /// What to send.
    #[must_use]
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Whether the server is asked to take it before others.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        matches!(self.last, Taken::Urgent { .. })
    }
}

/// How often a producer that waits looks whether the outbox was closed.
const PATIENCE: Duration = Duration::from_millis(200);

impl Outbox {
    /// An outbox over an opened buffer.
    #[must_use]
    pub fn new(settings: OutboxSettings, buffer: Buffer) -> Arc<Self> {
        let state = State { bytes: buffer.bytes(), limit: buffer.limit(), ..State::default() };
        Arc::new(Self { settings, state: Mutex::new(state), buffer: Mutex::new(buffer), accepted: Condvar::new(), ready: Notify::new() })
    }

    /// Accepts a message: returns when it is durable. Waits while the buffer is full, which slows the query that produces; false when the agent shuts down
    /// meanwhile and the message was not accepted. Blocks; not for async tasks.
    pub fn push(&self, message: &VeloMessage) -> bool {
        let record = Bytes::from(MessageList::from(message).into_bytes());
        if message.urgent { self.push_urgent(record) } else { self.push_buffered(record) }
    }

    fn push_urgent(&self, record: Bytes) -> bool {
        let mut state = self.state();
        while state.urgent_bytes.saturating_add(record.len()) > self.settings.urgent && !state.urgent.is_empty() {
            if state.closed {
                return false;
            }
            state = self.wait(state);
        }
        state.urgent_bytes = state.urgent_bytes.saturating_add(record.len());
        state.urgent.push_back(record);
        self.ready.notify_one();
        true
    }

    fn push_buffered(&self, record: Bytes) -> bool {
        let length = record_length(record.len());
        let mut state = self.state();
        // An empty buffer takes a record of any length.
        while !state.closed && state.bytes > 0 && state.bytes.saturating_add(length) > state.limit {
            state = self.wait(state);
        }
        if state.closed {
            return false;
        }
        state.waiting.push(record);
        state.bytes = state.bytes.saturating_add(length);
        state.tickets = state.tickets.saturating_add(1);
        let mine = state.tickets;
        while state.synchronized < mine {
            if state.writing {
                state = self.wait(state);
                continue;
            }
            state.writing = true;
            let (records, last) = (std::mem::take(&mut state.waiting), state.tickets);
            drop(state);
            let mut buffer = lock(&self.buffer);
            if let Err(error) = buffer.append(&records) {
                tracing::warn!(%error, "the buffer's disk refuses; results wait in memory and would not survive a restart");
            }
            let limit = buffer.limit();
            drop(buffer);
            state = self.state();
            state.limit = limit;
            state.writing = false;
            state.synchronized = last;
            self.accepted.notify_all();
        }
        let accepted = !state.closed;
        drop(state);
        self.ready.notify_one();
        accepted
    }

    /// Wakes when there may be something to send.
    pub async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Whether the buffer holds more than one packet's worth.
    #[must_use]
    pub fn is_pressing(&self) -> bool {
        self.state().bytes > u64::try_from(self.settings.packet).unwrap_or(u64::MAX)
    }

    /// The next messages to send, urgent ones first; `None` when nothing waits. The same messages come again until they are delivered. Reads the disk.
    ///
    /// # Errors
    /// [`WireError`] when the compressor fails.
    pub fn lease(&self) -> Result<Option<Lease>, WireError> {
        let state = self.state();
        if !state.urgent.is_empty() {
            let mut list = MessageList::default();
            state.urgent.iter().for_each(|record| list.push_list(record));
            let last = Taken::Urgent { count: state.urgent.len(), bytes: state.urgent_bytes };
            drop(state);
            let mut packer = Packer::new(self.settings.compression, self.settings.packet);
            packer.push(list.as_bytes())?;
            return Ok(Some(Lease { blobs: packer.finish(), last }));
        }
        let cancelled = state.cancelled.clone();
        drop(state);
        self.lease_buffered(&cancelled)
    }

    fn lease_buffered(&self, cancelled: &HashSet<String>) -> Result<Option<Lease>, WireError> {
        let mut buffer = lock(&self.buffer);
        let mut packer = Packer::new(self.settings.compression, self.settings.packet);
        let mut after = Sequence::default();
        let mut more = true;
        while more {
            let (records, last) = buffer.peek(after, self.settings.packet / 4);
            if last == after {
                break;
            }
            after = last;
            let mut list = MessageList::default();
            records.iter().filter(|record| cancelled.is_empty() || is_wanted(record, cancelled)).for_each(|record| list.push_list(record));
            if !list.is_empty() {
                more = packer.push(list.as_bytes())?;
            }
        }
        let blobs = packer.finish();
        if blobs.is_empty() && after != Sequence::default() {
            // Only data of cancelled flows, or records that the disk lost: there is nothing to wait for.
            drop(buffer);
            self.commit(after);
            return Ok(None);
        }
        Ok((!blobs.is_empty()).then_some(Lease { blobs, last: Taken::Buffered(after) }))
    }

    /// The server has the messages of `lease`.
    pub fn delivered(&self, lease: &Lease) {
        match lease.last {
            Taken::Urgent { count, bytes } => {
                let mut state = self.state();
                let count = count.min(state.urgent.len());
                state.urgent.drain(..count);
                state.urgent_bytes = state.urgent_bytes.saturating_sub(bytes);
            }
            Taken::Buffered(last) => self.commit(last),
        }
        self.accepted.notify_all();
        self.ready.notify_one();
    }

    fn commit(&self, last: Sequence) {
        let mut buffer = lock(&self.buffer);
        let before = buffer.bytes();
        if let Err(error) = buffer.commit(last) {
            tracing::warn!(%error, "the buffer's disk refuses; delivered results may be sent again after a restart");
        }
        let (freed, limit) = (before.saturating_sub(buffer.bytes()), buffer.limit());
        drop(buffer);
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(freed);
        state.limit = limit;
        drop(state);
        self.accepted.notify_all();
    }

    /// Data of this session that still waits is dropped, except its log and its statistics.
    pub fn cancel(&self, session: &str) {
        // Bounded: an agent that forgets a cancelled flow merely sends some rows too many.
        const REMEMBERED: usize = 1000;
        let mut state = self.state();
        if state.cancelled.len() >= REMEMBERED {
            state.cancelled.clear();
        }
        state.cancelled.insert(session.to_owned());
    }

    /// Lets producers that wait go away empty-handed and gives the buffer's files up.
    pub fn close(&self) {
        self.state().closed = true;
        lock(&self.buffer).close();
        self.accepted.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.accepted.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Whether a buffered record is still of interest: cancelled flows keep their log and their statistics only.
fn is_wanted(record: &[u8], cancelled: &HashSet<String>) -> bool {
    let Ok(list) = ProtoList::decode(record) else { return true };
    list.job.iter().all(|message| !cancelled.contains(&message.session_id) || message.log_message.is_some() || message.flow_stats.is_some())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use talon_proto::{FlowStats, LogMessage, VqlResponse};

    use super::*;
    use crate::buffer::BufferSettings;

    fn outbox(file: Option<&Path>, memory_size: u64) -> Arc<Outbox> {
        let settings = BufferSettings { file: file.map(|folder| folder.join("buffer")), disk_size: 1 << 20, memory_size };
        let settings_of_packets = OutboxSettings { packet: 4000, compression: Compression::None, urgent: 100 };
        Outbox::new(settings_of_packets, Buffer::open(settings).unwrap().0)
    }

    fn rows(session: &str) -> VeloMessage {
        VeloMessage { session_id: session.into(), vql_response: Some(VqlResponse::default()), ..VeloMessage::default() }
    }

    fn sent(outbox: &Outbox) -> Option<usize> {
        let lease = outbox.lease().unwrap()?;
        outbox.delivered(&lease);
        Some(lease.blobs().size())
    }

    #[test]
    fn a_lease_comes_again_until_it_was_delivered_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let first = outbox(Some(folder.path()), 0);
        assert!(first.push(&rows("F.1")));
        assert_eq!(first.lease().unwrap().unwrap().blobs().size(), first.lease().unwrap().unwrap().blobs().size());
        drop(first);
        let second = outbox(Some(folder.path()), 0);
        assert_eq!(sent(&second), Some(MessageList::from(&rows("F.1")).len()));
        assert!(second.lease().unwrap().is_none());
        drop(second);
        assert!(outbox(Some(folder.path()), 0).lease().unwrap().is_none());
    }

    #[test]
    fn urgent_messages_are_sent_first_and_their_queue_is_emptied() {
        let outbox = outbox(None, 1 << 20);
        outbox.push(&rows("F.1"));
        outbox.push(&VeloMessage { urgent: true, ..rows("F.2") });
        assert!(outbox.lease().unwrap().unwrap().is_urgent());
        sent(&outbox);
        assert!(!outbox.lease().unwrap().unwrap().is_urgent());
        sent(&outbox);
        for _ in 0..100 {
            outbox.push(&VeloMessage { urgent: true, ..rows("F.2") });
            assert!(sent(&outbox).is_some(), "room is given back");
        }
    }

    #[test]
    fn cancelled_flows_keep_their_log_and_their_statistics() {
        let outbox = outbox(None, 1 << 20);
        outbox.push(&rows("F.1"));
        outbox.push(&rows("F.2"));
        let log = VeloMessage { session_id: "F.1".into(), log_message: Some(LogMessage::default()), ..VeloMessage::default() };
        let stats = VeloMessage { session_id: "F.1".into(), flow_stats: Some(FlowStats::default()), ..VeloMessage::default() };
        outbox.push(&log);
        outbox.push(&stats);
        outbox.cancel("F.1");
        let wanted: MessageList = [rows("F.2"), log, stats].iter().collect();
        assert_eq!(sent(&outbox), Some(wanted.len()));
        outbox.push(&rows("F.1"));
        assert!(outbox.lease().unwrap().is_none());
        assert!(lock(&outbox.buffer).is_empty(), "nothing of it waits any longer");
    }

    #[test]
    fn a_full_buffer_holds_the_producer_until_there_is_room() {
        let outbox = outbox(None, 60);
        outbox.push(&rows("F.1"));
        let producer = std::thread::spawn({
            let outbox = Arc::clone(&outbox);
            move || (0..10).all(|_| outbox.push(&rows("F.1")))
        });
        let mut delivered = 0;
        while !producer.is_finished() || outbox.lease().unwrap().is_some() {
            delivered += sent(&outbox).unwrap_or_default() / MessageList::from(&rows("F.1")).len();
        }
        assert!(producer.join().unwrap());
        assert_eq!(delivered, 11);
    }

    #[test]
    fn shutting_down_releases_producers() {
        let outbox = outbox(None, 10);
        outbox.push(&rows("F.1"));
        outbox.close();
        assert!(!outbox.push(&rows("F.1")));
    }

    #[test]
    fn producers_that_come_together_are_all_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = outbox(Some(folder.path()), 0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10).for_each(|_| assert!(outbox.push(&rows("F.1")))));
            }
        });
        let mut total = 0;
        while let Some(bytes) = sent(&outbox) {
            total += bytes;
        }
        assert_eq!(total, 80 * MessageList::from(&rows("F.1")).len());
    }
}
