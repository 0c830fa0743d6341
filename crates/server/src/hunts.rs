//! Hunts: one collection over many clients. A client is taken on when it is in contact and the hunt's conditions fit, exactly once, in the transaction that
//! also writes its flow.

use talon_acl::{CollectClient, DeleteResults, Permit, StartHunt};
use talon_audit::{Details, Receipt};
use talon_crypto::random_array;
use talon_ids::{ClientId, FlowId, HuntId, OrgId, Permission, Permissions, Target};
use talon_proto::hunt::State;
use talon_proto::{ArtifactCollectorArgs, ArtifactCollectorContext, Hunt, HuntCondition, HuntMutation, HuntStats};
use talon_store::{Scan, Space, Txn};

use crate::ServerError;
use crate::events::{Push, Pusher};
use crate::flows::redacted;
use crate::layout::{decode, get, put};
use crate::org::Org;
use crate::session::Session;

mod condition;
mod dispatch;
mod participants;

pub use condition::fits;
pub(crate) use dispatch::{HuntBoard, Recruited};
pub use participants::Participant;
pub(crate) use participants::flow_ended;

/// More hunts than anybody keeps.
const MAX_HUNTS: usize = 100_000;

/// What allows a change of a hunt (`spec/05` §6.3).
enum ChangePermit {
    Collect(Permit<CollectClient>),
    Start(Permit<StartHunt>),
    Delete(Permit<DeleteResults>),
}

impl ChangePermit {
    fn check(&self, org: &Org) -> Result<(), ServerError> {
        match self {
            Self::Collect(permit) => org.own(permit),
            Self::Start(permit) => org.own(permit),
            Self::Delete(permit) => org.own(permit),
        }
    }
}

fn hunt_key(hunt: &HuntId) -> Vec<u8> {
    hunt.as_str().as_bytes().to_vec()
}

/// The compiled request of a hunt, beside the settings: it is large, and read only when a client is taken on.
fn request_key(hunt: &HuntId) -> Vec<u8> {
    [b"hunt_request\0", hunt.as_str().as_bytes()].concat()
}

impl Session {
    /// Makes a hunt. With `org_ids`, the same hunt is made in each of these organisations instead of this one.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::CollectDenied`], [`ServerError::Invalid`] for no artifacts or an expiry in the past.
    pub fn create_hunt(&self, mut hunt: Hunt) -> Result<HuntId, ServerError> {
        let seconds = u32::try_from(self.org().now_us() / 1_000_000).unwrap_or(u32::MAX);
        let id = HuntId::from_parts(seconds, random_array(self.org().rng()));
        let orgs = std::mem::take(&mut hunt.org_ids);
        if orgs.is_empty() {
            self.create_hunt_here(&id, hunt)?;
            return Ok(id);
        }
        self.authority().check(Permissions::of(&[Permission::OrgAdmin]))?;
        let ids = orgs.iter().map(|org| org.parse()).collect::<Result<Vec<OrgId>, _>>()?;
        let sessions = ids.iter().map(|org| self.in_org(org)).collect::<Result<Vec<_>, _>>()?;
        for session in &sessions {
            session.may_create_hunt(&hunt)?;
        }
        for session in &sessions {
            session.create_hunt_here(&id, Hunt { org_ids: orgs.clone(), ..hunt.clone() })?;
        }
        Ok(id)
    }

    fn may_create_hunt(&self, hunt: &Hunt) -> Result<Permit<CollectClient>, ServerError> {
        let request = hunt.start_request.clone().unwrap_or_default();
        if request.artifacts.is_empty() {
            return Err(ServerError::invalid("No artifacts to collect."));
        }
        if hunt.state() == State::Running {
            self.authority().permit::<StartHunt>()?;
        }
        self.org().catalog().permit_collection(self.authority(), &request)
    }

    fn create_hunt_here(&self, id: &HuntId, mut hunt: Hunt) -> Result<(), ServerError> {
        let org = self.org();
        let permit = self.unless_denied("CreateHunt", self.may_create_hunt(&hunt))?;
        let now_us = org.now_us();
        if hunt.expires == 0 {
            let long = u64::try_from(org.shared().settings.hunt_expiry.as_micros()).unwrap_or(u64::MAX);
            hunt.expires = now_us.saturating_add(long);
        } else if hunt.expires < now_us {
            return Err(ServerError::invalid("Hunt expiry is in the past!"));
        }
        let mut request = hunt.start_request.take().unwrap_or_default();
        // Compiled queries come from artifacts only.
        request.compiled_collector_args.clear();
        request.creator = self.principal().to_string();
        request.client_id.clear();
        request.flow_id = FlowId::of_hunt(id).to_string();
        let request = org.complete(request)?;
        hunt.hunt_id = id.to_string();
        hunt.creator = self.principal().to_string();
        hunt.create_time = now_us;
        hunt.version = i64::try_from(org.now_ns()).unwrap_or(i64::MAX);
        hunt.stats = Some(HuntStats::default());
        let running = hunt.state() == State::Running;
        hunt.set_state(if running { State::Running } else { State::Paused });
        hunt.start_time = if running { now_us } else { 0 };
        hunt.artifacts.clone_from(&request.artifacts);
        let sources = request.compiled_collector_args.iter().flat_map(|args| &args.query).filter(|query| !query.name.is_empty());
        hunt.artifact_sources = sources.map(|query| query.name.clone()).collect();
        hunt.start_request = Some(summary(&request));
        let shown = crate::reflect::to_json("Hunt", &hunt)?;
        let details = Details::new().text("hunt_id", id.as_str()).json("details", serde_json::from_str(&shown).unwrap_or_default());
        let receipt = self.record("CreateHunt", details)?;
        org.create_hunt(&permit, receipt, id, hunt, request)
    }

    /// Changes a hunt. One that does not exist is left so: a change is a wish, as stock servers take it.
    ///
    /// # Errors
    /// [`ServerError::Denied`]; [`ServerError::NotFound`] for a flow to attach that does not exist.
    pub fn modify_hunt(&self, change: &HuntMutation) -> Result<(), ServerError> {
        let id: HuntId = change.hunt_id.parse()?;
        let permit = match change.state() {
            State::Running => ChangePermit::Start(self.authority().permit()?),
            State::Deleted => ChangePermit::Delete(self.authority().permit()?),
            _ => ChangePermit::Collect(self.authority().permit()?),
        };
        let shown = crate::reflect::to_json("HuntMutation", change)?;
        let details = Details::new().text("hunt_id", id.as_str()).json("details", serde_json::from_str(&shown).unwrap_or_default());
        let receipt = self.record("ModifyHunt", details)?;
        self.org().modify_hunt(&permit, receipt, &id, change)
    }

    /// Takes a client on for a hunt, whatever its conditions, or attaches a flow that the client has. With `relaunch`, a client that was taken on before
    /// collects again, in place of what it collected.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotFound`].
    pub fn add_to_hunt(&self, id: &HuntId, client: &ClientId, flow: Option<FlowId>, relaunch: bool) -> Result<FlowId, ServerError> {
        let permit = self.authority().permit::<StartHunt>()?;
        let details = Details::new().text("hunt_id", id.as_str()).text("client_id", client.as_str());
        let receipt = self.record("hunt_add", details)?;
        self.org().add_to_hunt(&permit, receipt, id, client, flow, relaunch)
    }

    /// Deletes a hunt and the flows that it ran; with `really` false, only tells what that would be.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotFound`].
    pub fn delete_hunt(&self, id: &HuntId, really: bool) -> Result<Vec<Participant>, ServerError> {
        let permit = self.authority().permit::<talon_acl::Administer>()?;
        let hunt = self.org().hunt(id)?.ok_or_else(|| ServerError::not_found("Hunt", id))?;
        let participants = self.org().hunt_clients(id)?;
        if really {
            let details = Details::new().text("hunt_id", id.as_str()).text("creator", &hunt.creator).list("artifacts", &hunt.artifacts);
            let receipt = self.record("hunt_delete", details)?;
            self.org().delete_hunt(&permit, receipt, id, &participants)?;
        }
        Ok(participants)
    }
}

impl Org {
    fn create_hunt(
        &self,
        permit: &Permit<CollectClient>,
        receipt: Receipt,
        id: &HuntId,
        hunt: Hunt,
        request: ArtifactCollectorArgs,
    ) -> Result<(), ServerError> {
        self.own(permit)?;
        drop(receipt);
        let (org, id) = (self.clone(), id.clone());
        let stored = hunt.clone();
        self.submit(move |txn| {
            put(txn, org.id(), Space::Hunts, &hunt_key(&id), &stored);
            put(txn, org.id(), Space::Settings, &request_key(&id), &request);
            Ok(())
        })
        .wait()?;
        let shown = crate::reflect::to_json("Hunt", &hunt)?;
        let jsonl = format!("{{\"Timestamp\":{},\"Hunt\":{shown}}}\n", self.now_us() / 1_000_000);
        let superuser = self.shared().settings.superuser.clone();
        let push = Push { queue: "System.Hunt.Creation".parse()?, target: Target::Server, jsonl, keep: true };
        self.push_and_publish(&Pusher::Server { source: &superuser }, push)?;
        self.hunts_changed(&hunt)
    }

    fn modify_hunt(&self, permit: &ChangePermit, receipt: Receipt, id: &HuntId, change: &HuntMutation) -> Result<(), ServerError> {
        permit.check(self)?;
        drop(receipt);
        if let Some(assignment) = &change.assignment {
            let client = self.parse_client(&assignment.client_id)?;
            self.attach_flow(id, &client, &assignment.flow_id.parse()?)?;
        }
        if change.recalculate {
            self.recount_hunt(id)?;
        }
        let (org, id, change, now_us) = (self.clone(), id.clone(), change.clone(), self.now_us());
        let changed = self.submit(move |txn| {
            let Some(mut hunt) = get::<Hunt>(&*txn, org.id(), Space::Hunts, &hunt_key(&id))? else { return Ok(None) };
            change_hunt(&mut hunt, &change, now_us);
            hunt.version = i64::try_from(org.now_ns()).unwrap_or(i64::MAX);
            put(txn, org.id(), Space::Hunts, &hunt_key(&id), &hunt);
            if hunt.state() == State::Deleted {
                txn.delete(org.id(), Space::Settings, &request_key(&id));
            }
            Ok(Some(hunt))
        });
        match changed.wait()? {
            Some(hunt) => self.hunts_changed(&hunt),
            None => Ok(()),
        }
    }

    /// Brings the board up to date, and lets waiting clients see a hunt that has started.
    fn hunts_changed(&self, hunt: &Hunt) -> Result<(), ServerError> {
        self.load_hunts()?;
        self.announce("Server.Internal.HuntUpdate", &[("HuntId", hunt.hunt_id.as_str().into()), ("Version", hunt.version.into())]);
        if hunt.state() == State::Running {
            self.state().readers.wake_all();
        }
        Ok(())
    }

    /// One hunt as it is now; `None` for one that does not exist or was deleted.
    ///
    /// # Errors
    /// When storage fails.
    pub fn hunt(&self, id: &HuntId) -> Result<Option<Hunt>, ServerError> {
        let hunt: Option<Hunt> = get(self.reader(), self.id(), Space::Hunts, &hunt_key(id))?;
        Ok(hunt.filter(|hunt| hunt.state() != State::Deleted).map(|hunt| as_of(hunt, self.now_us())))
    }

    /// What a hunt collects, compiled, without values that are not to be seen again.
    ///
    /// # Errors
    /// When storage fails.
    pub fn hunt_request(&self, id: &HuntId) -> Result<Option<ArtifactCollectorArgs>, ServerError> {
        let request: Option<ArtifactCollectorArgs> = get(self.reader(), self.id(), Space::Settings, &request_key(id))?;
        Ok(request.as_ref().map(redacted))
    }

    /// The hunts of this organisation, newest first.
    ///
    /// # Errors
    /// When storage fails.
    pub fn hunts(&self) -> Result<Vec<Hunt>, ServerError> {
        let scan = Scan { prefix: b"H.".to_vec(), reverse: true, limit: MAX_HUNTS, ..Scan::default() };
        let mut hunts = Vec::new();
        for (key, value) in self.reader().scan(self.id(), Space::Hunts, &scan)? {
            let hunt: Hunt = decode(Space::Hunts, &key, &value)?;
            if hunt.state() != State::Deleted {
                hunts.push(as_of(hunt, self.now_us()));
            }
        }
        hunts.sort_by(|a, b| b.create_time.cmp(&a.create_time).then_with(|| b.hunt_id.cmp(&a.hunt_id)));
        Ok(hunts)
    }

    /// So many clients fit a condition and were in contact within `active_us`; 0 is any time.
    ///
    /// # Errors
    /// When storage fails.
    pub fn estimate_hunt(&self, condition: Option<&HuntCondition>, active_us: u64) -> Result<u64, ServerError> {
        let since = if active_us == 0 { 0 } else { self.now_us().saturating_sub(active_us) };
        let clients = self.search_clients("")?;
        Ok(clients.iter().filter(|info| info.ping >= since && fits(condition, info)).count() as u64)
    }

    fn delete_hunt(
        &self,
        permit: &Permit<talon_acl::Administer>,
        receipt: Receipt,
        id: &HuntId,
        participants: &[Participant],
    ) -> Result<(), ServerError> {
        self.own(permit)?;
        drop(receipt);
        let (org, of) = (self.clone(), id.clone());
        self.submit(move |txn| {
            txn.delete(org.id(), Space::Hunts, &hunt_key(&of));
            txn.delete(org.id(), Space::Settings, &request_key(&of));
            Ok(())
        })
        .wait()?;
        self.load_hunts()?;
        let own = FlowId::of_hunt(id);
        for participant in participants {
            let client: ClientId = participant.client_id.parse()?;
            // A flow that was only attached belongs to whoever collected it.
            if participant.flow_id == own.as_str() {
                self.remove_flow(&Target::Client(client.clone()), &own).wait()?;
            }
            let (org, key) = (self.clone(), participants::ran_key(id, &client));
            self.submit(move |txn| {
                txn.delete(org.id(), Space::Hunts, &key);
                Ok(())
            })
            .wait()?;
        }
        Ok(())
    }
}

/// A hunt as it shows at `now_us`: one whose time is over has stopped.
fn as_of(mut hunt: Hunt, now_us: u64) -> Hunt {
    if hunt.state() == State::Running && hunt.expires <= now_us {
        stop(&mut hunt);
    }
    hunt
}

fn stop(hunt: &mut Hunt) {
    hunt.set_state(State::Stopped);
    hunt.stats.get_or_insert_default().stopped = true;
}

fn change_hunt(hunt: &mut Hunt, change: &HuntMutation, now_us: u64) {
    match change.state() {
        State::Running => {
            hunt.set_state(State::Running);
            hunt.start_time = now_us;
            hunt.stats.get_or_insert_default().stopped = false;
        }
        State::Paused | State::Stopped => stop(hunt),
        State::Deleted => hunt.set_state(State::Deleted),
        State::Unset | State::Archived => {}
    }
    if !change.description.is_empty() {
        hunt.hunt_description.clone_from(&change.description);
    }
    match change.tags.as_slice() {
        [] => {}
        [only] if only == "-" => hunt.tags.clear(),
        tags => hunt.tags = tags.to_vec(),
    }
    if change.expires > 0 {
        hunt.expires = change.expires;
    }
    if change.start_time > 0 {
        hunt.start_time = change.start_time;
    }
}

/// What of a request is kept with the hunt itself.
fn summary(request: &ArtifactCollectorArgs) -> ArtifactCollectorArgs {
    let mut request = redacted(request);
    request.compiled_collector_args.clear();
    request.summary = true;
    request
}

/// Changes the record of a hunt inside a transaction, if there is one.
fn with_hunt(txn: &mut dyn Txn, org: &OrgId, id: &HuntId, change: impl FnOnce(&mut Hunt)) -> Result<(), ServerError> {
    let key = hunt_key(id);
    if let Some(mut hunt) = get::<Hunt>(&*txn, org, Space::Hunts, &key)? {
        change(&mut hunt);
        put(txn, org, Space::Hunts, &key, &hunt);
    }
    Ok(())
}

/// Adds what a flow that has ended brought to the totals of its hunt.
fn add_results(stats: &mut HuntStats, context: &ArtifactCollectorContext) {
    use talon_proto::artifact_collector_context::State as FlowState;
    let count = |total: &mut u64, more: u64| *total = total.saturating_add(more);
    count(&mut stats.total_finished_clients, 1);
    count(&mut stats.total_collected_rows, context.total_collected_rows);
    count(&mut stats.total_uploaded_bytes, context.total_uploaded_bytes);
    let some = context.total_collected_rows > 0 || context.total_uploaded_files > 0;
    count(if some { &mut stats.total_clients_with_results } else { &mut stats.total_clients_without_results }, 1);
    if context.state() == FlowState::Error {
        count(&mut stats.total_clients_with_errors, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hunt(state: State) -> Hunt {
        let mut hunt = Hunt { expires: 100, start_time: 5, tags: vec!["a".into()], ..Hunt::default() };
        hunt.set_state(state);
        hunt
    }

    #[test]
    fn a_hunt_whose_time_is_over_has_stopped() {
        assert_eq!(as_of(hunt(State::Running), 99).state(), State::Running);
        let over = as_of(hunt(State::Running), 100);
        assert!(over.state() == State::Stopped && over.stats.is_some_and(|stats| stats.stopped));
        assert_eq!(as_of(hunt(State::Paused), 100).state(), State::Paused);
    }

    #[test]
    fn changes_follow_the_request() {
        let change = |state: State| HuntMutation { state: state.into(), ..HuntMutation::default() };
        for (wish, state, start) in
            [(State::Unset, State::Paused, 5), (State::Running, State::Running, 9), (State::Paused, State::Stopped, 5)]
        {
            let mut changed = hunt(State::Paused);
            change_hunt(&mut changed, &change(wish), 9);
            assert_eq!((changed.state(), changed.start_time), (state, start), "{wish:?}");
        }
        let mut changed = hunt(State::Running);
        change_hunt(&mut changed, &HuntMutation { tags: vec!["-".into()], description: "d".into(), ..HuntMutation::default() }, 9);
        assert!(changed.tags.is_empty() && changed.hunt_description == "d" && changed.state() == State::Running);
    }
}
