//! Every number that bounds what a peer can make us do.

use std::time::Duration;

/// Bounds on packets and caches. The defaults admit everything that a stock peer sends.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Longest envelope in bytes. Stock servers take twice `max_upload_size`, 100 MiB in generated configurations.
    pub packet: usize,
    /// Longest blob after decompression, in bytes (stock: 100 MiB).
    pub blob: usize,
    /// Sum of all blobs of one packet after decompression, in bytes. Blobs are opened one after the other, so this bounds time, not memory; it is
    /// above [`Limits::blob`] because an honest packet of well compressible rows holds many blobs of `max_upload_size / 4` each.
    pub total: usize,
    /// Messages in one packet.
    pub messages: usize,
    /// Blobs in one packet.
    pub blobs: usize,
    /// Longest single message in bytes.
    pub message: usize,
    /// Sum of all blobs of an unauthenticated packet after decompression, in bytes: room for a certificate request.
    pub unauthenticated_total: usize,
    /// Certificate requests taken from one unauthenticated packet.
    pub requests: usize,
    /// Clients whose sessions are kept (stock: `expected_clients`).
    pub sessions: usize,
    /// Sessions of senders whose key is not known, kept so that the same session costs one RSA operation only.
    pub pending_sessions: usize,
    /// Packets of one client that are remembered to recognise duplicates.
    pub remembered_packets: usize,
    /// Opening of new sessions.
    pub budget: BudgetLimits,
    /// How sessions are made and judged.
    pub session: SessionOptions,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packet: 256 << 20,
            blob: 100 << 20,
            total: 512 << 20,
            messages: 1_000_000,
            blobs: 100_000,
            message: 64 << 20,
            unauthenticated_total: 256 << 10,
            requests: 4,
            sessions: 30_000,
            pending_sessions: 4096,
            remembered_packets: 128,
            budget: BudgetLimits::default(),
            session: SessionOptions::default(),
        }
    }
}

/// How fast new sessions may be opened. Each costs one RSA decryption, the only expensive thing that an unknown peer can demand.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BudgetLimits {
    /// Sessions per second from all sources together.
    pub per_second: u32,
    /// Sessions from all sources that may come at once.
    pub burst: u32,
    /// Sessions per second from one source. A session that authenticates is given back, so a whole fleet behind one address is not held up.
    pub source_per_second: u32,
    /// Sessions from one source that may come at once.
    pub source_burst: u32,
    /// Sources that are remembered; the longest unseen is forgotten first.
    pub sources: usize,
    /// Longest wait that a refusal names.
    pub longest_wait: Duration,
}

impl Default for BudgetLimits {
    fn default() -> Self {
        Self {
            per_second: 800,
            burst: 1600,
            source_per_second: 20,
            source_burst: 100,
            sources: 65_536,
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// How sessions are made and judged.
///
/// The stock signature covers the session's secrets, but not for whom they are: an agent to which the server opened a session can wrap the same
/// signed secrets for another agent and speak as the server. Talon closes this without leaving the stock format: the metadata IV, a field that
/// receivers only have to use, is a mark followed by a digest over the secrets and the recipient's key. A Talon receiver refuses a session that
/// carries the mark for somebody else.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Bind own sessions to their recipient.
    pub bind: bool,
    /// Refuse sessions that are not bound, i.e. stock peers.
    pub require_bound: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { bind: true, require_bound: false }
    }
}
