//! The server as agents see it: opens packets, hands them to the services, seals the answers.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use talon_ids::ClientId;
use talon_proto::{ClientInfo, VeloMessage};
use talon_store::{ObjectName, Space};
use talon_transport::{
    AgentEndpoint, AgentRequest, BoxFuture, ControlOutcome, LongPoll, Peer, Processed, PublicFile, PublicPath, ReaderOutcome, Rejection,
    Unhealthy,
};
use talon_wire::{AuthenticatedClient, MessageList, Opened, Packet, PacketId, Unauthenticated, UnixMicros, WireError};
use tokio::sync::Semaphore;

use crate::ServerError;
use crate::deployment::Server;
use crate::hunts::Recruited;
use crate::ingest::{self, Item, Taken};
use crate::layout::{client_key, put};
use crate::locks;
use crate::monitoring::{self, Sent};
use crate::notify::{Arrival, Waiting};
use crate::org::Org;
use crate::tasks;

/// Packets with more bytes than this are parsed off the async threads.
const INLINE_BYTES: usize = 16 * 1024;
/// Messages of accepted packets that wait for the disk may hold so much memory, in KiB.
const WAITING_KIB: u32 = 256 * 1024;
/// A public file is read in pieces of so many bytes.
const PIECE: usize = 256 * 1024;
/// A reader looks for work at most this seldom, whatever it is told.
const LONGEST_NAP: Duration = Duration::from_secs(600);

/// The one place where an unopened packet becomes an answer (`spec/01` §7.2). All that does not decrypt or verify looks alike.
fn rejection(error: &WireError) -> Option<Rejection> {
    match error {
        WireError::Refused(_) => Some(Rejection::Unreadable),
        // Sound envelope, unusable content: the agent is not to send it again.
        WireError::Content(_) => None,
        _ => Some(Rejection::Overloaded),
    }
}

/// What is known of a packet besides its messages.
struct Sender {
    org: Org,
    client: AuthenticatedClient,
    packet: PacketId,
    peer: Peer,
    size: usize,
}

/// Messages of a packet, up to the first that cannot be read.
struct Unpacked {
    items: Vec<Result<Item, ingest::Refusal>>,
    damaged: bool,
}

impl Unpacked {
    /// The memory that its messages hold, in KiB.
    fn weight(&self) -> u32 {
        let bytes = self.items.iter().flatten().map(Item::held).fold(0_usize, usize::saturating_add);
        u32::try_from(bytes / 1024).unwrap_or(u32::MAX).saturating_add(1).min(WAITING_KIB)
    }
}

/// What packets may use up, all together.
pub(crate) struct Load {
    /// Packets that are unpacked at one time: each may inflate to much more than it is.
    turns: Semaphore,
    /// KiB of messages that wait for the disk.
    memory: Semaphore,
}

impl Default for Load {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self { turns: Semaphore::new(processors.saturating_mul(8)), memory: Semaphore::new(WAITING_KIB as usize) }
    }
}

impl Server {
    fn open_packet(&self, request: &AgentRequest) -> Result<Opened, WireError> {
        let from: IpAddr = request.peer.socket.ip();
        self.codec().open(request.body.clone(), from, UnixMicros(self.shared().clock.now_us()), self)
    }

    async fn take_packet(self: Arc<Self>, request: AgentRequest) -> ControlOutcome {
        let opened = match self.open_packet(&request) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(remote = %request.peer.socket, ?error, "refused a packet");
                return rejection(&error).map_or(ControlOutcome::Dropped, ControlOutcome::Reject);
            }
        };
        match opened {
            Opened::Empty => ControlOutcome::Reject(Rejection::PleaseEnrol),
            Opened::Unauthenticated(unknown) => ControlOutcome::Reject(self.enrol_unknown(&unknown, &request.peer).await),
            Opened::Authenticated(packet) if self.is_void(&packet) => ControlOutcome::Reject(Rejection::PleaseEnrol),
            Opened::Authenticated(packet) => ControlOutcome::Accepted(Box::pin(self.process(packet, request))),
        }
    }

    /// Whether the sender's session is one from before the client was removed.
    fn is_void(&self, packet: &Packet) -> bool {
        self.org(packet.client().org()).is_ok_and(|org| org.was_removed(packet.client().client_id()))
    }

    /// The only thing that an unknown sender may do. The answer is the same whether it just succeeded or there was nothing to do.
    async fn enrol_unknown(&self, unknown: &Unauthenticated, peer: &Peer) -> Rejection {
        let Ok(org) = self.org(unknown.org()) else { return Rejection::Unreadable };
        for csr in unknown.csrs() {
            let request = match talon_pki::verify_csr(csr) {
                Ok(request) if unknown.is_from(request.public_key()) => request,
                Ok(request) => {
                    tracing::warn!(client = %request.client_id(), remote = %peer.socket, "a certificate request came under another key");
                    return Rejection::EnrolmentFailed;
                }
                Err(error) => {
                    tracing::debug!(remote = %peer.socket, %error, "refused a certificate request");
                    return Rejection::EnrolmentFailed;
                }
            };
            match org.enrol(&request, &peer.remote).await {
                Ok(enrolled) if enrolled.conflict => {
                    tracing::warn!(client = %request.client_id(), remote = %peer.socket, "another key is enrolled under this id");
                    return Rejection::EnrolmentFailed;
                }
                Ok(_) => tracing::info!(client = %request.client_id(), org = %org.id(), "enrolled"),
                Err(error) => {
                    tracing::error!(client = %request.client_id(), %error, "cannot enrol");
                    return Rejection::Overloaded;
                }
            }
        }
        Rejection::PleaseEnrol
    }

    async fn process(self: Arc<Self>, packet: Packet, request: AgentRequest) -> Processed {
        let Ok(org) = self.org(packet.client().org()) else { return Processed::Failed };
        let sender = Sender { org, client: packet.client().clone(), packet: packet.id(), size: request.body.len(), peer: request.peer };
        if self.codec().was_processed(&sender.client, sender.packet) {
            return self.acknowledgement(&sender.client);
        }
        let Ok(turn) = self.load().turns.acquire().await else { return Processed::Failed };
        let Some(unpacked) = self.unpack(packet, sender.size).await else { return Processed::Refused };
        let Ok(_held) = self.load().memory.acquire_many(unpacked.weight()).await else { return Processed::Failed };
        drop(turn);
        let damaged = unpacked.damaged;
        match self.store(&sender, unpacked.items).await {
            Err(error) => {
                tracing::error!(client = %sender.client.client_id(), %error, "a packet could not be stored");
                Processed::Failed
            }
            Ok(taken) => {
                self.codec().remember(&sender.client, sender.packet);
                if damaged || taken.refused > 0 { Processed::Refused } else { self.acknowledgement(&sender.client) }
            }
        }
    }

    fn acknowledgement(&self, client: &AuthenticatedClient) -> Processed {
        self.seal(client, &MessageList::default()).map_or(Processed::Failed, Processed::Answer)
    }

    fn seal(&self, client: &AuthenticatedClient, list: &MessageList) -> Option<Bytes> {
        match self.codec().seal(UnixMicros(self.shared().clock.now_us()), client, self, list) {
            Ok(sealed) => Some(sealed),
            Err(error) => {
                tracing::error!(client = %client.client_id(), %error, "cannot seal an answer");
                None
            }
        }
    }

    /// Reads and checks the messages of a packet, `None` when its protocol is too old. A big one does not hold up the other agents meanwhile.
    async fn unpack(&self, packet: Packet, size: usize) -> Option<Unpacked> {
        let shared = self.shared().clone();
        let messages = packet.messages().ok()?;
        let unpack = move || {
            let mut unpacked = Unpacked { items: Vec::new(), damaged: false };
            for message in messages {
                match message {
                    Ok(message) => unpacked.items.push(ingest::parse_one(message, &shared.names)),
                    Err(_) => unpacked.damaged = true,
                }
            }
            unpacked
        };
        if size <= INLINE_BYTES { Some(unpack()) } else { tokio::task::spawn_blocking(unpack).await.ok() }
    }

    /// Stores a packet in one transaction; resolves when it is durable. What it sets off is published only then.
    async fn store(&self, sender: &Sender, items: Vec<Result<Item, ingest::Refusal>>) -> Result<Taken, ServerError> {
        let (org, client) = (sender.org.clone(), sender.client.client_id().clone());
        let now_us = org.now_us();
        let contact = org.seen(&client, &sender.peer.remote, now_us).then(|| sender.peer.remote.clone());
        let nothing = items.iter().all(|item| matches!(item, Ok(Item::Checkin { .. } | Item::Nothing)));
        if nothing && contact.is_none() {
            return Ok(Taken::default());
        }
        let (published, woken) = (org.clone(), client.clone());
        let pending = org.clone().submit(move |txn| {
            let table = org.event_table();
            let context = ingest::Context {
                org: org.id(),
                client: &client,
                now_us,
                contact: contact.as_deref(),
                monitored: &|info, query| table.has(info, query, now_us / 1_000_000),
                gates: &|reader, flow| org.gate(reader, &client, flow),
            };
            ingest::store(txn, &context, items)
        });
        let taken = pending.await?;
        published.publish_all(&taken.events);
        if taken.wake {
            published.state().readers.wake(&woken);
        }
        Ok(taken)
    }

    async fn start_poll(self: Arc<Self>, request: AgentRequest) -> ReaderOutcome {
        let packet = match self.open_packet(&request) {
            Ok(Opened::Authenticated(packet)) if !self.is_void(&packet) => packet,
            Ok(_) => return ReaderOutcome::Reject(Rejection::PleaseEnrol),
            Err(error) => return rejection(&error).map_or(ReaderOutcome::Empty, ReaderOutcome::Reject),
        };
        let Ok(org) = self.org(packet.client().org()) else { return ReaderOutcome::Reject(Rejection::PleaseEnrol) };
        let sender = Sender { org, client: packet.client().clone(), packet: packet.id(), size: request.body.len(), peer: request.peer };
        match self.has_record(&sender).await {
            Ok(true) => {}
            Ok(false) => return ReaderOutcome::Empty,
            Err(_) => return ReaderOutcome::Reject(Rejection::Overloaded),
        }
        let repeated = self.codec().was_processed(&sender.client, sender.packet);
        let Some(waiting) = self.take_place(&sender, repeated) else { return ReaderOutcome::Reject(Rejection::Conflict) };
        let unpacked = if repeated { None } else { self.unpack(packet, sender.size).await };
        let items = unpacked.map(|unpacked| unpacked.items).unwrap_or_default();
        let reported = items.iter().find_map(|item| match item {
            Ok(Item::Checkin { table_version }) => Some(*table_version),
            _ => None,
        });
        if self.store(&sender, items).await.is_err() {
            return ReaderOutcome::Reject(Rejection::Overloaded);
        }
        self.codec().remember(&sender.client, sender.packet);
        let (farewell, client) = (self.clone(), sender.client.clone());
        ReaderOutcome::Poll(LongPoll {
            max_poll: self.settings().max_poll,
            farewell: Box::new(move || farewell.seal(&client, &MessageList::default())),
            answer: Box::pin(async move { self.wait(&sender, &waiting, reported).await }),
        })
    }

    /// Whether the client has a record. One with a key and without a record is made one, and comes back.
    async fn has_record(&self, sender: &Sender) -> Result<bool, ServerError> {
        let (org, client) = (sender.org.clone(), sender.client.client_id().clone());
        if org.client(&client)?.is_some() {
            return Ok(true);
        }
        let maker = org.clone();
        org.submit(move |txn| maker.make_record(txn, &client)).await?;
        Ok(false)
    }

    /// Takes the client's place among the waiting readers. A repeated packet displaces nobody: it may be somebody else's copy.
    fn take_place(&self, sender: &Sender, repeated: bool) -> Option<Waiting> {
        let (readers, client) = (&sender.org.state().readers, sender.client.client_id());
        if repeated && readers.is_waiting(client) {
            return None;
        }
        let conflict = |outcome: &str| {
            let columns = [
                ("ClientId", client.as_str().into()),
                ("RemoteAddr", sender.peer.remote.as_str().into()),
                ("UserAgent", sender.peer.user_agent.as_str().into()),
                ("Outcome", outcome.into()),
            ];
            sender.org.announce("Server.Internal.ClientConflict", &columns);
        };
        match readers.arrive(client, self.shared().clock.now_ns()) {
            Arrival::Alone(waiting) => Some(waiting),
            Arrival::Displaced(waiting) => {
                conflict("displaced");
                Some(waiting)
            }
            Arrival::Refused => {
                conflict("refused");
                None
            }
        }
    }

    /// Waits until something is due, and seals it.
    async fn wait(&self, sender: &Sender, waiting: &Waiting, reported: Option<u64>) -> Option<Bytes> {
        loop {
            if waiting.is_over() {
                return self.seal(&sender.client, &MessageList::default());
            }
            let (messages, next_s) = match self.hand_out(sender, reported).await {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(client = %sender.client.client_id(), %error, "cannot hand out tasks");
                    (Vec::new(), None)
                }
            };
            if !messages.is_empty() {
                return self.seal(&sender.client, &messages.iter().collect());
            }
            if self.is_draining() {
                return self.seal(&sender.client, &MessageList::default());
            }
            let now_s = self.shared().clock.now_s();
            let nap = next_s.map_or(LONGEST_NAP, |at| Duration::from_secs(at.saturating_sub(now_s).max(1)).min(LONGEST_NAP));
            tokio::select! {
                () = waiting.news() => {}
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    /// Leases what is due for the client, if anything is.
    async fn hand_out(&self, sender: &Sender, reported: Option<u64>) -> Result<(Vec<VeloMessage>, Option<u64>), ServerError> {
        let (org, client) = (sender.org.clone(), sender.client.client_id().clone());
        let (now_us, rules) = (org.now_us(), org.rules());
        let Some(mut info) = tasks::client(org.reader(), org.id(), &client)? else { return Ok((Vec::new(), None)) };
        let mut turn_s = None;
        match org.recruit(&client, &info) {
            Recruited::Nothing => {}
            Recruited::Later(second) => turn_s = Some(second),
            Recruited::Changing(pending) => {
                org.publish_all(&pending.await?);
                let Some(changed) = tasks::client(org.reader(), org.id(), &client)? else { return Ok((Vec::new(), None)) };
                info = changed;
            }
        }
        let locks = self.users().rules().locks();
        let held = |message: &VeloMessage| locks::holds_back(org.reader(), org.id(), &client, message, &locks);
        let mut due = tasks::due(org.reader(), org.id(), &info, now_us, rules, &held)?;
        due.next_s = due.next_s.into_iter().chain(turn_s).min();
        let table = self.table_for(&org, &client, &info, reported, now_us)?;
        if due.is_empty() && table.is_none() {
            return Ok((Vec::new(), due.next_s));
        }
        // What was seen outside decided only that there is something to do; what is handed out is decided inside the transaction.
        let rules_above = self.users().rules().clone();
        let messages = org.clone().submit(move |txn| {
            let Some(mut info) = tasks::client(&*txn, org.id(), &client)? else { return Ok(Vec::new()) };
            let locks = rules_above.locks();
            let held = |message: &VeloMessage| locks::holds_back(&*txn, org.id(), &client, message, &locks);
            let due = tasks::due(&*txn, org.id(), &info, now_us, rules, &held)?;
            let mut messages = tasks::hand_out(txn, org.id(), &mut info, now_us, due)?;
            if let Some((sent, message)) = table {
                monitoring::note_sent(txn, org.id(), &client, sent);
                info.last_event_table_version = sent.version;
                put(txn, org.id(), Space::Clients, &client_key(&client), &info);
                messages.push(message);
            }
            Ok(messages)
        });
        Ok((messages.await?, None))
    }

    fn table_for(
        &self,
        org: &Org,
        client: &ClientId,
        info: &ClientInfo,
        reported: Option<u64>,
        now_us: u64,
    ) -> Result<Option<(Sent, VeloMessage)>, ServerError> {
        let Some(reported) = reported else { return Ok(None) };
        let update = org.event_table_update(info, reported)?;
        Ok(update.filter(|(sent, _)| org.may_send_table(client, sent.version, now_us)))
    }
}

impl AgentEndpoint for Server {
    fn server_pem(&self) -> Bytes {
        self.certificate_pem()
    }

    fn health(&self) -> Result<(), Unhealthy> {
        if self.is_draining() { Err(Unhealthy("shutting down".into())) } else { Ok(()) }
    }

    fn control(self: Arc<Self>, request: AgentRequest) -> BoxFuture<ControlOutcome> {
        Box::pin(self.take_packet(request))
    }

    fn reader(self: Arc<Self>, request: AgentRequest) -> BoxFuture<ReaderOutcome> {
        Box::pin(self.start_poll(request))
    }

    fn public(self: Arc<Self>, path: PublicPath) -> BoxFuture<Option<PublicFile>> {
        Box::pin(async move {
            let root = self.org(&talon_ids::OrgId::root()).ok()?;
            let object = public_object(&path);
            let size = root.reader().upload(root.id(), &object).ok()?.filter(|upload| upload.complete)?.bytes;
            let name = path.parts().last()?.to_owned();
            let pieces = futures_util::stream::unfold(0_u64, move |offset| {
                let (root, object) = (root.clone(), object.clone());
                async move {
                    if offset >= size {
                        return None;
                    }
                    let read = tokio::task::spawn_blocking(move || root.reader().read_upload(root.id(), &object, offset, PIECE)).await;
                    let piece = read.map_err(std::io::Error::other).and_then(|read| read.map_err(std::io::Error::other));
                    let next = match &piece {
                        Ok(piece) if !piece.is_empty() => offset.saturating_add(piece.len() as u64),
                        _ => u64::MAX,
                    };
                    Some((piece, next))
                }
            });
            Some(PublicFile { name, size: Some(size), content: Box::pin(pieces) as Pin<Box<_>> })
        })
    }
}

/// Where a public file is kept: among the uploads of the root organisation.
#[must_use]
pub fn public_object(path: &PublicPath) -> ObjectName {
    ObjectName::new(std::iter::once("public").chain(path.parts()))
}
