//! The server's side: packets from agents are opened and judged, answers are sealed.

use std::error::Error;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use talon_crypto::{Rng, RsaPrivateKey, RsaPublicKey};
use talon_ids::{ClientId, OrgId};
use talon_proto::certificate::Type;

use crate::budget::Budget;
use crate::envelope::{API_VERSION, Envelope};
use crate::messages::{Content, Messages, Sender};
use crate::session::{Outbound, Packed, Received};
use crate::sessions::{Inbound, Known, Pending, Sessions};
use crate::{AuthenticatedClient, Blobs, Limits, MessageList, Reason, UnixMicros, WireError, client_id};

/// Why a lookup failed; says that the answer is not known, not that it is no.
pub type LookupError = Box<dyn Error + Send + Sync>;

/// What the server knows about organisations and clients.
pub trait Directory {
    /// The organisation whose nonce this is.
    ///
    /// # Errors
    /// When the store does not answer.
    fn org_of_nonce(&self, nonce: &str) -> Result<Option<OrgId>, LookupError>;

    /// The nonce of an organisation.
    ///
    /// # Errors
    /// When the store does not answer.
    fn nonce_of_org(&self, org: &OrgId) -> Result<Option<String>, LookupError>;

    /// The key that a client enrolled with.
    ///
    /// # Errors
    /// When the store does not answer.
    fn client_key(&self, org: &OrgId, client: &ClientId) -> Result<Option<RsaPublicKey>, LookupError>;
}

/// What came out of a body.
#[derive(Debug)]
pub enum Opened {
    /// Nothing: an empty body or pads.
    Empty,
    /// A packet whose sender's key is not registered, or whose signature is not by that key. It offers only certificate requests.
    Unauthenticated(Unauthenticated),
    /// A packet of an enrolled client.
    Authenticated(Packet),
}

/// The one thing an unknown sender may say: please enrol me.
pub struct Unauthenticated {
    org: OrgId,
    requests: Vec<Bytes>,
    session: Arc<Received>,
}

impl Unauthenticated {
    /// The organisation whose nonce the sender knows.
    #[must_use]
    pub fn org(&self) -> &OrgId {
        &self.org
    }

    /// The PEM texts of its certificate requests. Not verified: `pki` does that.
    #[must_use]
    pub fn csrs(&self) -> &[Bytes] {
        &self.requests
    }

    /// Whether the packet was sealed by the holder of `key` under the id that `key` has: an agent asks for itself.
    #[must_use]
    pub fn is_from(&self, key: &RsaPublicKey) -> bool {
        self.session.source == client_id(key).as_str() && self.session.is_signed_by(key)
    }
}

impl std::fmt::Debug for Unauthenticated {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Unauthenticated").field("org", &self.org).field("requests", &self.requests.len()).finish_non_exhaustive()
    }
}

/// Identifies one packet of a client: a repetition of the same bytes has the same id, and only the client can make ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketId(u64);

impl PacketId {
    pub(crate) fn of(tag: &[u8; 20]) -> Self {
        Self(u64::from_be_bytes(tag.first_chunk().copied().unwrap_or_default()))
    }
}

/// A packet of an enrolled client.
#[derive(Debug)]
pub struct Packet {
    client: AuthenticatedClient,
    id: PacketId,
    timestamp: UnixMicros,
    api_version: u32,
    content: Content,
    limits: Arc<Limits>,
}

impl Packet {
    /// Who sent it.
    #[must_use]
    pub fn client(&self) -> &AuthenticatedClient {
        &self.client
    }

    /// Its id, for [`ServerCodec::was_processed`].
    #[must_use]
    pub fn id(&self) -> PacketId {
        self.id
    }

    /// When the client says that it made the packet. Authentic, but only as good as the client's clock.
    #[must_use]
    pub fn timestamp(&self) -> UnixMicros {
        self.timestamp
    }

    /// The messages, opened while they are read.
    ///
    /// # Errors
    /// [`WireError::Content`] for a sender whose protocol is older than version 4. Each item can be an error too.
    pub fn messages(self) -> Result<Messages, WireError> {
        if self.api_version < API_VERSION {
            return Err(WireError::Content(Reason::Version));
        }
        Ok(Messages::new(Sender::Agent, self.client.client_id().as_str(), self.client.org(), true, self.content, &self.limits))
    }
}

/// Opens and seals packets for one server key. Shared by all connections.
pub struct ServerCodec {
    key: RsaPrivateKey,
    name: String,
    limits: Arc<Limits>,
    rng: Box<dyn Rng>,
    sessions: Mutex<Sessions>,
    budget: Mutex<Budget>,
}

impl ServerCodec {
    /// The codec of the server whose certificate has this subject `name` and belongs to `key`.
    #[must_use]
    pub fn new(key: RsaPrivateKey, name: &str, limits: Limits, rng: impl Rng + 'static) -> Self {
        Self {
            key,
            name: name.to_owned(),
            sessions: Mutex::new(Sessions::new(&limits)),
            budget: Mutex::new(Budget::new(limits.budget.clone())),
            limits: Arc::new(limits),
            rng: Box::new(rng),
        }
    }

    /// Opens the body of a request that came from the address `from` at `now`.
    ///
    /// A packet of a known session costs no RSA operation. One that starts a session costs one, if the budget grants it.
    ///
    /// # Errors
    /// [`WireError::Refused`], [`WireError::Throttled`] or [`WireError::Lookup`].
    pub fn open(&self, body: Bytes, from: IpAddr, now: UnixMicros, directory: &dyn Directory) -> Result<Opened, WireError> {
        let Some(envelope) = Envelope::parse(body, self.limits.packet)? else { return Ok(Opened::Empty) };
        // The lock must be free again before anything below takes time.
        let known = self.sessions().find(&envelope.cipher);
        match known {
            Some(Known::Inbound(inbound)) => {
                let packed = inbound.session.secrets.open(&envelope)?;
                require_org(directory, &packed.nonce, inbound.client.org())?;
                Ok(self.packet(inbound.client.clone(), &envelope, packed))
            }
            Some(Known::Pending(pending)) => {
                let packed = pending.session.secrets.open(&envelope)?;
                require_org(directory, &packed.nonce, &pending.org)?;
                self.judge(pending, &envelope, packed, directory)
            }
            None => {
                self.budget().take(from, now).map_err(|retry_after| WireError::Throttled { retry_after })?;
                let (session, packed) = Received::open(&self.key, &envelope, self.limits.session)?;
                let org = lookup(directory.org_of_nonce(&packed.nonce))?.ok_or(WireError::Refused(Reason::Nonce))?;
                // Stock servers take `C.x-Oyyy` for the client of another organisation; here that is no client id, so the sender stays unknown.
                let claimed = session.source.parse().ok();
                let opened = self.judge(Arc::new(Pending { session: Arc::new(session), org, claimed }), &envelope, packed, directory)?;
                if matches!(opened, Opened::Authenticated(_)) {
                    self.budget().forgive(from);
                }
                Ok(opened)
            }
        }
    }

    /// Decides whether a session is authentic: the claimed client is registered in the organisation, its key has the claimed id and made the signature.
    fn judge(&self, pending: Arc<Pending>, envelope: &Envelope, packed: Packed, directory: &dyn Directory) -> Result<Opened, WireError> {
        if let Some(claimed) = &pending.claimed {
            let key = lookup(directory.client_key(&pending.org, claimed))?;
            if key.is_some_and(|key| client_id(&key) == *claimed && pending.session.is_signed_by(&key)) {
                let client = AuthenticatedClient::new(pending.org.clone(), claimed.clone());
                let inbound = Inbound { session: Arc::clone(&pending.session), client: client.clone() };
                self.sessions().authenticate(&envelope.cipher, Arc::new(inbound));
                return Ok(self.packet(client, envelope, packed));
            }
        }
        self.sessions().postpone(&envelope.cipher, Arc::clone(&pending));
        let requests = self.requests(&pending.org, packed.content);
        Ok(Opened::Unauthenticated(Unauthenticated { org: pending.org.clone(), requests, session: Arc::clone(&pending.session) }))
    }

    fn packet(&self, client: AuthenticatedClient, envelope: &Envelope, packed: Packed) -> Opened {
        Opened::Authenticated(Packet {
            client,
            id: PacketId::of(&envelope.tag),
            timestamp: packed.timestamp,
            api_version: envelope.api_version,
            content: packed.content,
            limits: Arc::clone(&self.limits),
        })
    }

    /// The certificate requests of an unknown sender. Content that does not parse holds none.
    fn requests(&self, org: &OrgId, content: Content) -> Vec<Bytes> {
        Messages::new(Sender::Agent, "", org, false, content, &self.limits)
            .at_most(self.limits.unauthenticated_total)
            .map_while(Result::ok)
            .filter_map(|message| message.csr)
            .filter(|request| request.r#type() == Type::Csr && !request.pem.is_empty())
            .map(|request| request.pem)
            .take(self.limits.requests)
            .collect()
    }

    /// Seals an answer, which may be empty, for a client of this deployment.
    ///
    /// # Errors
    /// [`WireError::UnknownRecipient`] when client or organisation are gone, [`WireError::Lookup`], [`WireError::Crypto`].
    pub fn seal(
        &self,
        now: UnixMicros,
        client: &AuthenticatedClient,
        directory: &dyn Directory,
        list: &MessageList,
    ) -> Result<Bytes, WireError> {
        let nonce = lookup(directory.nonce_of_org(client.org()))?.ok_or(WireError::UnknownRecipient)?;
        let known = self.sessions().outbound(client);
        let outbound = match known {
            Some(outbound) => outbound,
            None => {
                let key = lookup(directory.client_key(client.org(), client.client_id()))?.ok_or(WireError::UnknownRecipient)?;
                let outbound = Arc::new(Outbound::create(&*self.rng, &self.key, &self.name, &key, self.limits.session)?);
                self.sessions().keep_outbound(client, Arc::clone(&outbound));
                outbound
            }
        };
        outbound.seal(&*self.rng, now, &nonce, &Blobs::plain([list.clone()]))
    }

    /// Whether this packet was processed before. Such a packet is acknowledged and not processed again.
    #[must_use]
    pub fn was_processed(&self, client: &AuthenticatedClient, packet: PacketId) -> bool {
        self.sessions().was_processed(client, packet)
    }

    /// Notes that a packet was processed: call it once its results are durable.
    pub fn remember(&self, client: &AuthenticatedClient, packet: PacketId) {
        self.sessions().remember(client, packet);
    }

    /// Drops the sessions of a client that was deleted or got another key.
    pub fn forget(&self, org: &OrgId, client: &ClientId) {
        self.sessions().forget(&AuthenticatedClient::new(org.clone(), client.clone()));
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lookup<T>(answer: Result<T, LookupError>) -> Result<T, WireError> {
    answer.map_err(WireError::Lookup)
}

/// A session belongs to the organisation in which it was opened; a packet of it that names another one is refused.
fn require_org(directory: &dyn Directory, nonce: &str, org: &OrgId) -> Result<(), WireError> {
    match lookup(directory.org_of_nonce(nonce))? {
        Some(named) if named == *org => Ok(()),
        Some(_) => Err(WireError::Refused(Reason::OtherOrg)),
        None => Err(WireError::Refused(Reason::Nonce)),
    }
}
