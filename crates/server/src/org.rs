//! One organisation: everything that reads or writes its state takes an [`Org`] handle, which is cheap to clone.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use lru::LruCache;
use talon_acl::{Effect, Permit};
use talon_crypto::{Rng, random_array};
use talon_ids::{ClientId, FlowId, OrgId};
use talon_proto::{ClientInfo, OrgRecord};
use talon_store::{BlockEncoding, ObjectName, Reader, RowBlock, Txn};

use crate::ServerError;
use crate::bus::{Bus, Event};
use crate::catalog::Catalog;
use crate::deployment::{Server, Shared};
use crate::hunts::HuntBoard;
use crate::ingest::FlowGate;
use crate::monitoring::EventTable;
use crate::notebooks::Calculations;
use crate::notify::Readers;
use crate::server_flows::Runs;
use crate::server_monitoring::ServerTable;
use crate::tasks::Rules;
use crate::transaction::Pending;

/// Flows whose checks are remembered between packets.
const GATES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(16_383);
/// Clients whose last contact is remembered between writes.
const PRESENCES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(131_071);

/// A file is stored in pieces of so many bytes.
const FILE_PIECE: usize = 1 << 20;

/// A handle to one organisation.
#[derive(Clone)]
pub struct Org(Arc<OrgState>);

pub(crate) struct OrgState {
    id: OrgId,
    name: String,
    nonce: String,
    shared: Arc<Shared>,
    pub(crate) bus: Bus,
    pub(crate) readers: Arc<Readers>,
    gates: Mutex<LruCache<(ClientId, FlowId), Arc<FlowGate>>>,
    presence: Mutex<LruCache<ClientId, Presence>>,
    pub(crate) table: RwLock<Arc<EventTable>>,
    pub(crate) catalog: Catalog,
    pub(crate) runs: Runs,
    pub(crate) notebooks: Calculations,
    pub(crate) hunts: HuntBoard,
    /// Clients that were removed since the start: their sessions are void.
    pub(crate) removed: Mutex<HashSet<ClientId>>,
    pub(crate) server_table: ServerTable,
}

/// When and from where a client was last in contact. Written to its record only now and then.
#[derive(Debug, Clone, Default)]
pub(crate) struct Presence {
    pub(crate) seen_us: u64,
    pub(crate) address: String,
    pub(crate) written_us: u64,
    /// The event table that was sent last, and when.
    pub(crate) table_sent: (u64, u64),
}

impl Org {
    pub(crate) fn new(record: OrgRecord, shared: Arc<Shared>, root: Option<&Self>) -> Result<Self, ServerError> {
        let id: OrgId = record.id.parse()?;
        let catalog = Catalog::load(&*shared.engine, &id, root.map(Self::catalog), &shared.settings)?;
        let org = Self(Arc::new(OrgState {
            name: record.name,
            nonce: record.nonce,
            id,
            shared,
            bus: Bus::default(),
            readers: Arc::new(Readers::default()),
            gates: Mutex::new(LruCache::new(GATES)),
            presence: Mutex::new(LruCache::new(PRESENCES)),
            table: RwLock::new(Arc::new(EventTable::default())),
            catalog,
            runs: Runs::default(),
            notebooks: Calculations::default(),
            hunts: HuntBoard::default(),
            removed: Mutex::default(),
            server_table: ServerTable::default(),
        }));
        org.load_event_table()?;
        org.load_server_table()?;
        org.load_hunts()?;
        Ok(org)
    }

    /// The organisation's id.
    #[must_use]
    pub fn id(&self) -> &OrgId {
        &self.0.id
    }

    /// The name that users see.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The secret with which clients enrol here. For administrators only.
    #[must_use]
    pub fn nonce(&self) -> &str {
        &self.0.nonce
    }

    /// The organisation's state as it is committed. Reading is allowed or denied where the reader is authorised, before it gets here.
    #[must_use]
    pub fn reader(&self) -> &dyn Reader {
        self.0.shared.engine.reader()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(crate) fn state(&self) -> &OrgState {
        &self.0
    }

    /// The deployment.
    pub(crate) fn server(&self) -> Result<Server, ServerError> {
        self.0.shared.server().ok_or(ServerError::Cancelled)
    }

    pub(crate) fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Txn) -> Result<T, ServerError> + Send + 'static,
    ) -> Pending<T> {
        Pending::submit(&*self.0.shared.engine, work)
    }

    /// Stores a small file whole, in place of one of that name.
    pub(crate) fn store_file(&self, name: ObjectName, content: Vec<u8>) -> Result<(), ServerError> {
        let id = self.id().clone();
        self.submit(move |txn| {
            txn.delete_object(&id, &name)?;
            let data = bytes::Bytes::from(content);
            let mut offset = 0_u64;
            loop {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
                let piece = data.slice(from..from.saturating_add(FILE_PIECE).min(data.len()));
                let more = piece.len() as u64;
                let chunk = RowBlock { plain_len: more, data: piece, count: 0, encoding: BlockEncoding::Plain };
                txn.append_upload(&id, &name, offset, chunk)?;
                offset = offset.saturating_add(more);
                if offset >= data.len() as u64 {
                    break;
                }
            }
            Ok(txn.finish_upload(&id, &name)?)
        })
        .wait()
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.0.shared.clock.now_ns()
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.0.shared.clock.now_us()
    }

    /// A new flow's id.
    pub(crate) fn new_flow_id(&self) -> FlowId {
        let seconds = u32::try_from(self.0.shared.clock.now_s()).unwrap_or(u32::MAX);
        FlowId::from_parts(seconds, random_array(&*self.0.shared.rng))
    }

    pub(crate) fn rng(&self) -> &dyn Rng {
        &*self.0.shared.rng
    }

    /// Checks that a permit is one for this organisation.
    pub(crate) fn own<E: Effect>(&self, permit: &Permit<E>) -> Result<(), ServerError> {
        if permit.org() == self.id() {
            return Ok(());
        }
        Err(ServerError::Forbidden(format!("PermissionDenied: a permit for {} does not count in {}", permit.org(), self.id())))
    }

    /// The client that a query or an API call names: the bare id, or with the suffix `-` and this organisation's id.
    ///
    /// # Errors
    /// [`ServerError::InvalidId`].
    pub fn parse_client(&self, text: &str) -> Result<ClientId, ServerError> {
        let suffix = format!("-{}", self.id());
        Ok(text.strip_suffix(&suffix).filter(|_| !self.id().is_root()).unwrap_or(text).parse()?)
    }

    /// Lets go of everything that waits or runs here: the organisation is deleted.
    pub(crate) fn close(&self) {
        self.0.server_table.stop();
        self.0.runs.stop();
        self.0.readers.wake_all();
    }

    /// How a client of this organisation is called in queries and by the API.
    #[must_use]
    pub fn client_text(&self, client: &ClientId) -> String {
        if self.id().is_root() { client.to_string() } else { format!("{client}-{}", self.id()) }
    }

    pub(crate) fn rules(&self) -> Rules {
        let settings = &self.0.shared.settings;
        let check_after_s = settings.active_in_flight_checks.then(|| settings.in_flight_check.as_secs().max(1));
        Rules { max_in_flight: if check_after_s.is_some() { settings.max_in_flight } else { usize::MAX }, check_after_s }
    }

    pub(crate) fn publish_all(&self, events: &[Event]) {
        for event in events {
            self.0.bus.publish(event);
        }
    }

    /// The checks for a flow's data, from memory or through `reader`.
    pub(crate) fn gate(&self, reader: &dyn Reader, client: &ClientId, flow: &FlowId) -> Result<Option<Arc<FlowGate>>, ServerError> {
        let key = (client.clone(), flow.clone());
        if let Some(gate) = lock(&self.0.gates).get(&key) {
            return Ok(Some(gate.clone()));
        }
        let gate = crate::ingest::load_gate(reader, self.id(), &client.clone().into(), flow)?.map(Arc::new);
        if let Some(gate) = &gate {
            lock(&self.0.gates).put(key, gate.clone());
        }
        Ok(gate)
    }

    pub(crate) fn forget_gate(&self, client: &ClientId, flow: &FlowId) {
        lock(&self.0.gates).pop(&(client.clone(), flow.clone()));
    }

    /// Notes a contact. Says whether the record should be brought up to date with it.
    pub(crate) fn seen(&self, client: &ClientId, address: &str, now_us: u64) -> bool {
        const EVERY_US: u64 = 60 * 1_000_000;
        let mut presence = lock(&self.0.presence);
        let entry = presence.get_or_insert_mut(client.clone(), Presence::default);
        entry.seen_us = now_us;
        let moved = entry.address != address;
        if moved {
            address.clone_into(&mut entry.address);
        }
        let due = moved || now_us.saturating_sub(entry.written_us) >= EVERY_US;
        if due {
            entry.written_us = now_us;
        }
        due
    }

    /// Puts the last contact into a record.
    pub(crate) fn with_presence(&self, mut info: ClientInfo) -> ClientInfo {
        let Ok(client) = info.client_id.parse() else { return info };
        if let Some(entry) = lock(&self.0.presence).peek(&client) {
            info.ping = info.ping.max(entry.seen_us);
            if !entry.address.is_empty() {
                info.ip_address.clone_from(&entry.address);
            }
        }
        info
    }

    /// Whether an event table of `version` may be sent now; a table is repeated at most every 30 seconds.
    pub(crate) fn may_send_table(&self, client: &ClientId, version: u64, now_us: u64) -> bool {
        const AGAIN_US: u64 = 30 * 1_000_000;
        let mut presence = lock(&self.0.presence);
        let entry = presence.get_or_insert_mut(client.clone(), Presence::default);
        let (sent, at) = entry.table_sent;
        if sent == version && now_us.saturating_sub(at) < AGAIN_US {
            return false;
        }
        entry.table_sent = (version, now_us);
        true
    }
}

impl std::fmt::Debug for Org {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Org({})", self.0.id)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read<T: Clone>(shared: &RwLock<T>) -> T {
    shared.read().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(crate) fn write<T>(shared: &RwLock<T>, value: T) {
    *shared.write().unwrap_or_else(PoisonError::into_inner) = value;
}
