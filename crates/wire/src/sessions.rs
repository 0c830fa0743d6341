//! The server's memory of sessions: bounded, one session in and one out per client, found by the exact bytes that the peer resends.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use talon_ids::{ClientId, OrgId};

use crate::session::{Outbound, Received};
use crate::{AuthenticatedClient, Limits, PacketId};

/// An authenticated session. Its organisation is part of it: a packet that names another one does not belong to the session.
pub(crate) struct Inbound {
    pub(crate) session: Arc<Received>,
    pub(crate) client: AuthenticatedClient,
}

/// A session whose sender had no key registered when it was opened.
///
/// Kept under its exact wrapped bytes, which nobody else can use without its secrets, so no stranger can influence how somebody else's
/// session is judged; the key is looked up anew each time.
pub(crate) struct Pending {
    pub(crate) session: Arc<Received>,
    pub(crate) org: OrgId,
    pub(crate) claimed: Option<ClientId>,
}

/// What is known about a wrapped session.
pub(crate) enum Known {
    Inbound(Arc<Inbound>),
    Pending(Arc<Pending>),
}

#[derive(Default)]
struct Peer {
    inbound: Option<Bytes>,
    outbound: Option<Arc<Outbound>>,
    recent: VecDeque<PacketId>,
}

/// Sessions of all clients. The least recently heard client is forgotten first, with both its sessions.
pub(crate) struct Sessions {
    peers: LruCache<AuthenticatedClient, Peer>,
    inbound: HashMap<Bytes, Arc<Inbound>>,
    pending: LruCache<Bytes, Arc<Pending>>,
    remembered: usize,
}

impl Sessions {
    pub(crate) fn new(limits: &Limits) -> Self {
        let size = |limit| NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN);
        Self {
            peers: LruCache::sparse(size(limits.sessions)),
            inbound: HashMap::new(),
            pending: LruCache::sparse(size(limits.pending_sessions)),
            remembered: limits.remembered_packets.max(1),
        }
    }

    pub(crate) fn find(&mut self, cipher: &Bytes) -> Option<Known> {
        if let Some(inbound) = self.inbound.get(cipher) {
            self.peers.promote(&inbound.client);
            return Some(Known::Inbound(Arc::clone(inbound)));
        }
        self.pending.get(cipher).map(|pending| Known::Pending(Arc::clone(pending)))
    }

    /// Stores an authenticated session; an older one of the same client goes.
    pub(crate) fn authenticate(&mut self, cipher: &Bytes, inbound: Arc<Inbound>) {
        // The packet's buffer may be large; the key must not keep it alive.
        let key = Bytes::copy_from_slice(cipher);
        self.pending.pop(&key);
        let old = self.peer(&inbound.client).inbound.replace(key.clone());
        if let Some(old) = old.filter(|old| *old != key) {
            self.inbound.remove(&old);
        }
        self.inbound.insert(key, inbound);
    }

    pub(crate) fn postpone(&mut self, cipher: &Bytes, pending: Arc<Pending>) {
        self.pending.put(Bytes::copy_from_slice(cipher), pending);
    }

    pub(crate) fn outbound(&mut self, client: &AuthenticatedClient) -> Option<Arc<Outbound>> {
        self.peers.get(client).and_then(|peer| peer.outbound.clone())
    }

    pub(crate) fn keep_outbound(&mut self, client: &AuthenticatedClient, outbound: Arc<Outbound>) {
        self.peer(client).outbound = Some(outbound);
    }

    pub(crate) fn was_processed(&self, client: &AuthenticatedClient, packet: PacketId) -> bool {
        self.peers.peek(client).is_some_and(|peer| peer.recent.contains(&packet))
    }

    pub(crate) fn remember(&mut self, client: &AuthenticatedClient, packet: PacketId) {
        let remembered = self.remembered;
        let recent = &mut self.peer(client).recent;
        if recent.contains(&packet) {
            return;
        }
        while recent.len() >= remembered {
            recent.pop_front();
        }
        recent.push_back(packet);
    }

    pub(crate) fn forget(&mut self, client: &AuthenticatedClient) {
        if let Some(cipher) = self.peers.pop(client).and_then(|peer| peer.inbound) {
            self.inbound.remove(&cipher);
        }
    }

    fn peer(&mut self, client: &AuthenticatedClient) -> &mut Peer {
        let full = !self.peers.contains(client) && self.peers.len() >= self.peers.cap().get();
        let evicted = if full { self.peers.pop_lru() } else { None };
        if let Some(cipher) = evicted.and_then(|(_, peer)| peer.inbound) {
            self.inbound.remove(&cipher);
        }
        self.peers.get_or_insert_mut_ref(client, Peer::default)
    }
}
