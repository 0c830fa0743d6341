//! The clients of a hunt: who was taken on, with which flow, and how that ended.

use prost::Message;
use talon_acl::{Permit, StartHunt};
use talon_audit::Receipt;
use talon_ids::{ClientId, FlowId, HuntId, OrgId, Target};
use talon_proto::artifact_collector_context::State as FlowState;
use talon_proto::hunt::State;
use talon_proto::{ArtifactCollectorContext, Hunt, HuntStats};
use talon_store::{Scan, Space, Txn};

use super::{add_results, hunt_key, with_hunt};
use crate::ServerError;
use crate::layout::{decode, get, put};
use crate::org::Org;

/// A client of a hunt.
#[derive(Clone, PartialEq, Message)]
pub struct Participant {
    /// The client.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Its flow.
    #[prost(string, tag = "2")]
    pub flow_id: String,
    /// When it was taken on, in microseconds.
    #[prost(uint64, tag = "3")]
    pub scheduled: u64,
    /// When its flow ended, in microseconds; 0 before that.
    #[prost(uint64, tag = "4")]
    pub ended: u64,
    /// Why its flow failed, if it did.
    #[prost(string, tag = "5")]
    pub error: String,
}

/// The prefix of the clients of one hunt.
fn ran_prefix(hunt: &HuntId) -> Vec<u8> {
    [b"ran\0", hunt.as_str().as_bytes(), &[0]].concat()
}

/// The record that a client was taken on for a hunt: it is never twice.
pub(super) fn ran_key(hunt: &HuntId, client: &ClientId) -> Vec<u8> {
    [ran_prefix(hunt).as_slice(), client.as_str().as_bytes()].concat()
}

/// Counts a flow that has ended for its hunt, if it has one.
pub(crate) fn flow_ended(
    txn: &mut dyn Txn,
    org: &OrgId,
    client: &ClientId,
    flow: &FlowId,
    context: &ArtifactCollectorContext,
    now_us: u64,
) -> Result<(), ServerError> {
    let Some(hunt) = flow.hunt() else { return Ok(()) };
    let key = ran_key(&hunt, client);
    let Some(mut participant) = get::<Participant>(&*txn, org, Space::Hunts, &key)? else { return Ok(()) };
    if participant.ended != 0 || participant.flow_id != flow.as_str() {
        return Ok(());
    }
    participant.ended = now_us;
    if context.state() == FlowState::Error {
        participant.error.clone_from(&context.status);
    }
    put(txn, org, Space::Hunts, &key, &participant);
    with_hunt(txn, org, &hunt, |hunt| add_results(hunt.stats.get_or_insert_default(), context))
}

impl Org {
    /// The clients of a hunt, by id.
    ///
    /// # Errors
    /// When storage fails.
    pub fn hunt_clients(&self, id: &HuntId) -> Result<Vec<Participant>, ServerError> {
        let scan = Scan { prefix: ran_prefix(id), ..Scan::default() };
        self.reader().scan(self.id(), Space::Hunts, &scan)?.iter().map(|(key, value)| decode(Space::Hunts, key, value)).collect()
    }

    pub(super) fn add_to_hunt(
        &self,
        permit: &Permit<StartHunt>,
        receipt: Receipt,
        id: &HuntId,
        client: &ClientId,
        flow: Option<FlowId>,
        relaunch: bool,
    ) -> Result<FlowId, ServerError> {
        self.own(permit)?;
        drop(receipt);
        if let Some(flow) = flow {
            self.attach_flow(id, client, &flow)?;
            return Ok(flow);
        }
        let own = FlowId::of_hunt(id);
        let ran = self.reader().get(self.id(), Space::Hunts, &ran_key(id, client))?.is_some();
        if ran && !relaunch {
            return Ok(own);
        }
        if ran {
            self.remove_flow(&Target::Client(client.clone()), &own).wait()?;
        }
        let (org, id, of) = (self.clone(), id.clone(), client.clone());
        let scheduled = self.submit(move |txn| {
            if crate::tasks::client(&*txn, org.id(), &of)?.is_none() {
                return Err(ServerError::not_found("Client", of));
            }
            let hunt = get::<Hunt>(&*txn, org.id(), Space::Hunts, &hunt_key(&id))?.filter(|hunt| hunt.state() != State::Deleted);
            let mut hunt = hunt.ok_or_else(|| ServerError::not_found("Hunt", &id))?;
            if ran {
                // It counts once, however often it collects.
                let stats = hunt.stats.get_or_insert_default();
                stats.total_clients_scheduled = stats.total_clients_scheduled.saturating_sub(1);
            }
            org.schedule_for(txn, &mut hunt, &id, &of)
        });
        let flow = scheduled.wait()?;
        self.load_hunts()?;
        self.state().readers.wake(client);
        Ok(flow)
    }

    /// Makes a flow that a client has one of the hunt's.
    pub(super) fn attach_flow(&self, id: &HuntId, client: &ClientId, flow: &FlowId) -> Result<(), ServerError> {
        let target = Target::Client(client.clone());
        let context = self.flow(&target, flow)?.ok_or_else(|| ServerError::not_found("Flow", flow))?;
        let (org, id, client, now_us) = (self.clone(), id.clone(), client.clone(), self.now_us());
        let attached = self.submit(move |txn| {
            let key = ran_key(&id, &client);
            let hunt = get::<Hunt>(&*txn, org.id(), Space::Hunts, &hunt_key(&id))?.filter(|hunt| hunt.state() != State::Deleted);
            let Some(mut hunt) = hunt else { return Err(ServerError::not_found("Hunt", &id)) };
            if txn.get(org.id(), Space::Hunts, &key)?.is_some() {
                return Ok(());
            }
            let participant = Participant {
                client_id: client.to_string(),
                flow_id: context.session_id.clone(),
                scheduled: context.create_time,
                ended: now_us,
                error: if context.state() == FlowState::Error { context.status.clone() } else { String::new() },
            };
            put(txn, org.id(), Space::Hunts, &key, &participant);
            let stats = hunt.stats.get_or_insert_default();
            stats.total_clients_scheduled = stats.total_clients_scheduled.saturating_add(1);
            add_results(stats, &context);
            put(txn, org.id(), Space::Hunts, &hunt_key(&id), &hunt);
            Ok(())
        });
        attached.wait()
    }

    /// Counts a hunt's totals afresh from its flows.
    ///
    /// # Errors
    /// When storage fails.
    pub(crate) fn recount_hunt(&self, id: &HuntId) -> Result<(), ServerError> {
        let mut stats = HuntStats::default();
        for participant in self.hunt_clients(id)? {
            stats.total_clients_scheduled = stats.total_clients_scheduled.saturating_add(1);
            let (client, flow): (ClientId, FlowId) = (participant.client_id.parse()?, participant.flow_id.parse()?);
            if participant.ended != 0
                && let Some(context) = self.flow(&Target::Client(client), &flow)?
            {
                add_results(&mut stats, &context);
            }
        }
        stats.last_client_table_scan = i64::try_from(self.now_us()).unwrap_or(i64::MAX);
        let (org, id) = (self.clone(), id.clone());
        self.submit(move |txn| {
            with_hunt(txn, org.id(), &id, |hunt| {
                stats.stopped = hunt.stats.as_ref().is_some_and(|old| old.stopped);
                hunt.stats = Some(stats);
            })
        })
        .wait()
    }
}
