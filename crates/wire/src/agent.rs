//! The agent's side: one session to the server, resent with every packet, and the server's answers judged.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use talon_crypto::{Rng, RsaPrivateKey, RsaPublicKey};
use talon_ids::{ClientId, OrgId};

use crate::envelope::Envelope;
use crate::messages::{Content, Messages, Sender};
use crate::session::{Outbound, Received};
use crate::{Blobs, Limits, PacketId, Reason, UnixMicros, WireError, client_id};

/// Sessions of the server that an agent keeps: a server has one per agent, a fleet of frontends one each.
const SERVER_SESSIONS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);

/// An agent's identity and its organisation's nonce. Cheap to clone.
#[derive(Clone)]
pub struct AgentCodec(Arc<Identity>);

struct Identity {
    key: RsaPrivateKey,
    id: ClientId,
    nonce: String,
    limits: Limits,
    rng: Box<dyn Rng>,
    recent: Mutex<VecDeque<PacketId>>,
}

impl AgentCodec {
    /// The agent with this key in the organisation with this nonce.
    #[must_use]
    pub fn new(key: RsaPrivateKey, nonce: &str, limits: Limits, rng: impl Rng + 'static) -> Self {
        let id = client_id(key.public());
        Self(Arc::new(Identity { key, id, nonce: nonce.to_owned(), limits, rng: Box::new(rng), recent: Mutex::default() }))
    }

    /// The agent's own id.
    #[must_use]
    pub fn client_id(&self) -> &ClientId {
        &self.0.id
    }

    /// The agent's key.
    #[must_use]
    pub fn key(&self) -> &RsaPrivateKey {
        &self.0.key
    }

    /// Starts a session with the server that has this name and key. They must come from a certificate that was verified (spec 01 §5.4).
    ///
    /// # Errors
    /// [`WireError::Crypto`].
    pub fn session(&self, server_name: &str, server_key: &RsaPublicKey) -> Result<AgentSession, WireError> {
        let identity = Arc::clone(&self.0);
        let outbound = Outbound::create(&*identity.rng, &identity.key, identity.id.as_str(), server_key, identity.limits.session)?;
        Ok(AgentSession {
            identity,
            outbound,
            server_name: server_name.to_owned(),
            server_key: server_key.clone(),
            inbound: Mutex::new(LruCache::new(SERVER_SESSIONS)),
        })
    }
}

/// A session with a verified server.
pub struct AgentSession {
    identity: Arc<Identity>,
    outbound: Outbound,
    server_name: String,
    server_key: RsaPublicKey,
    inbound: Mutex<LruCache<Bytes, Arc<Received>>>,
}

/// What a server's answer holds.
#[derive(Debug)]
pub enum Reply {
    /// Nothing: an empty body or pads.
    Empty,
    /// A packet that the server whose certificate we verified did not sign. Nothing of it may be used.
    Unauthenticated,
    /// A packet that this agent has opened before; somebody repeats it.
    Repeated,
    /// A packet of the server.
    Verified(VerifiedReply),
}

/// A packet of the verified server.
#[derive(Debug)]
pub struct VerifiedReply {
    timestamp: UnixMicros,
    messages: Messages,
}

impl VerifiedReply {
    /// When the server made it.
    #[must_use]
    pub fn timestamp(&self) -> UnixMicros {
        self.timestamp
    }

    /// The messages, opened while they are read; each can be an error.
    #[must_use]
    pub fn messages(self) -> Messages {
        self.messages
    }
}

impl AgentSession {
    /// The name in the server's certificate.
    #[must_use]
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Makes a packet.
    ///
    /// # Errors
    /// [`WireError::Crypto`].
    pub fn seal(&self, now: UnixMicros, blobs: &Blobs) -> Result<Bytes, WireError> {
        self.outbound.seal(&*self.identity.rng, now, &self.identity.nonce, blobs)
    }

    /// Opens the body of an answer.
    ///
    /// # Errors
    /// [`WireError::Refused`] when it was changed, is for somebody else, or carries another organisation's nonce.
    pub fn open(&self, body: Bytes) -> Result<Reply, WireError> {
        let limits = &self.identity.limits;
        let Some(envelope) = Envelope::parse(body, limits.packet)? else { return Ok(Reply::Empty) };
        let known = lock(&self.inbound).get(&envelope.cipher).cloned();
        let (packed, authenticated) = match known {
            Some(session) => (session.secrets.open(&envelope)?, true),
            None => {
                let (session, packed) = Received::open(&self.identity.key, &envelope, limits.session)?;
                let authenticated = session.source == self.server_name && session.is_signed_by(&self.server_key);
                if authenticated {
                    lock(&self.inbound).put(Bytes::copy_from_slice(&envelope.cipher), Arc::new(session));
                }
                (packed, authenticated)
            }
        };
        if packed.nonce != self.identity.nonce {
            return Err(WireError::Refused(Reason::Nonce));
        }
        if !authenticated {
            return Ok(Reply::Unauthenticated);
        }
        if !self.is_first(PacketId::of(&envelope.tag)) {
            return Ok(Reply::Repeated);
        }
        Ok(Reply::Verified(VerifiedReply { timestamp: packed.timestamp, messages: self.messages(packed.content) }))
    }

    fn messages(&self, content: Content) -> Messages {
        Messages::new(Sender::Server, &self.server_name, &OrgId::root(), true, content, &self.identity.limits)
    }

    /// Notes a packet; false when it was noted before, in this session or an earlier one of this process.
    fn is_first(&self, packet: PacketId) -> bool {
        let mut recent = lock(&self.identity.recent);
        if recent.contains(&packet) {
            return false;
        }
        while recent.len() >= self.identity.limits.remembered_packets.max(1) {
            recent.pop_front();
        }
        recent.push_back(packet);
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
