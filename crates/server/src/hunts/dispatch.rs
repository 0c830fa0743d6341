//! Taking clients on: what runs now, who is behind, how many a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};

use serde_json::json;
use talon_ids::{ClientId, FlowId, HuntId};
use talon_proto::hunt::State;
use talon_proto::{ArtifactCollectorArgs, ClientInfo, Hunt, HuntCondition};
use talon_store::Space;

use super::participants::{Participant, ran_key};
use super::{fits, hunt_key, request_key, stop};
use crate::ServerError;
use crate::bus::Event;
use crate::events;
use crate::layout::{client_key, get, put};
use crate::org::{Org, lock, read, write};
use crate::tasks;
use crate::transaction::Pending;

/// A turn that was not used is forgotten after this, in microseconds.
const FORGOTTEN_US: u64 = 600 * 1_000_000;

/// The hunts that run, and the turns of the clients that are to be taken on.
#[derive(Default)]
pub(crate) struct HuntBoard {
    running: RwLock<Arc<Vec<Running>>>,
    turns: Mutex<Turns>,
}

/// A hunt that runs.
struct Running {
    id: HuntId,
    start_time: u64,
    expires: u64,
    condition: Option<HuntCondition>,
}

/// Spreads clients over time: each gets a turn, and comes back when it is up.
#[derive(Default)]
struct Turns {
    next_us: u64,
    given: HashMap<ClientId, u64>,
}

impl Turns {
    /// When the client's turn is. A turn that is up is used by asking.
    fn of(&mut self, client: &ClientId, now_us: u64, rate: u64) -> u64 {
        if let Some(&at) = self.given.get(client) {
            if at <= now_us {
                self.given.remove(client);
            }
            return at;
        }
        let at = self.next_us.max(now_us);
        self.next_us = at.saturating_add(1_000_000_u64.checked_div(rate).unwrap_or(0));
        if at > now_us {
            self.given.retain(|_, at| at.saturating_add(FORGOTTEN_US) > now_us);
            self.given.insert(client.clone(), at);
        }
        at
    }
}

/// What became of a client that was behind.
pub(crate) enum Recruited {
    /// Nothing runs that it has not seen.
    Nothing,
    /// It is looked at in this change.
    Changing(Pending<Vec<Event>>),
    /// Its turn comes at this second.
    Later(u64),
}

impl Org {
    /// Reads the running hunts from the store.
    pub(crate) fn load_hunts(&self) -> Result<(), ServerError> {
        let mut running = Vec::new();
        for hunt in self.hunts()?.into_iter().filter(|hunt| hunt.state() == State::Running) {
            let Hunt { hunt_id, start_time, expires, condition, .. } = hunt;
            running.push(Running { id: hunt_id.parse()?, start_time, expires, condition });
        }
        write(&self.state().hunts.running, Arc::new(running));
        Ok(())
    }

    /// Whether a label or the operating system of a client decides about a hunt that runs.
    pub(crate) fn hunts_look_at_clients(&self) -> bool {
        read(&self.state().hunts.running).iter().any(|hunt| hunt.condition.is_some())
    }

    /// Takes a client on for the hunts that have started since it was last looked at.
    pub(crate) fn recruit(&self, client: &ClientId, info: &ClientInfo) -> Recruited {
        let now_us = self.now_us();
        let board = read(&self.state().hunts.running);
        let behind = |hunt: &&Running| hunt.start_time > info.last_hunt_timestamp && hunt.expires > now_us;
        let Some(newest) = board.iter().filter(behind).map(|hunt| hunt.start_time).max() else { return Recruited::Nothing };
        let hunts: Vec<HuntId> =
            board.iter().filter(behind).filter(|hunt| fits(hunt.condition.as_ref(), info)).map(|hunt| hunt.id.clone()).collect();
        if !hunts.is_empty() {
            let turn = lock(&self.state().hunts.turns).of(client, now_us, self.shared().settings.hunt_rate);
            if turn > now_us {
                return Recruited::Later(turn / 1_000_000 + 1);
            }
        }
        let (org, client) = (self.clone(), client.clone());
        Recruited::Changing(self.submit(move |txn| {
            let key = client_key(&client);
            let mut events = Vec::new();
            for hunt in &hunts {
                org.take_on(txn, hunt, &client, &mut events)?;
            }
            if let Some(mut info) = tasks::client(&*txn, org.id(), &client)? {
                info.last_hunt_timestamp = info.last_hunt_timestamp.max(newest);
                put(txn, org.id(), Space::Clients, &key, &info);
            }
            Ok(events)
        }))
    }

    /// Takes a client on for one hunt, unless it was before or the hunt is over. What decides is what the transaction sees.
    fn take_on(&self, txn: &mut dyn talon_store::Txn, id: &HuntId, client: &ClientId, events: &mut Vec<Event>) -> Result<(), ServerError> {
        let now_us = self.now_us();
        let Some(mut hunt) = get::<Hunt>(&*txn, self.id(), Space::Hunts, &hunt_key(id))? else { return Ok(()) };
        let Some(info) = tasks::client(&*txn, self.id(), client)? else { return Ok(()) };
        let ran = txn.get(self.id(), Space::Hunts, &ran_key(id, client))?.is_some();
        if ran || hunt.state() != State::Running || hunt.expires <= now_us || !fits(hunt.condition.as_ref(), &info) {
            return Ok(());
        }
        let scheduled = hunt.stats.get_or_insert_default().total_clients_scheduled;
        if hunt.client_limit > 0 && scheduled >= hunt.client_limit {
            stop(&mut hunt);
            put(txn, self.id(), Space::Hunts, &hunt_key(id), &hunt);
            return Ok(());
        }
        self.schedule_for(txn, &mut hunt, id, client)?;
        let row = [("HuntId", json!(id.as_str())), ("ClientId", json!(client.as_str()))];
        events.push(events::internal("System.Hunt.Participation", &row, now_us / 1_000_000));
        Ok(())
    }

    /// Writes the flow of a client for a hunt, and counts it.
    pub(super) fn schedule_for(
        &self,
        txn: &mut dyn talon_store::Txn,
        hunt: &mut Hunt,
        id: &HuntId,
        client: &ClientId,
    ) -> Result<FlowId, ServerError> {
        let Some(mut request) = get::<ArtifactCollectorArgs>(&*txn, self.id(), Space::Settings, &request_key(id))? else {
            return Err(ServerError::not_found("Hunt", id));
        };
        request.client_id = client.to_string();
        let flow = FlowId::of_hunt(id);
        self.write_flow(txn, client, &flow, &request);
        let participant =
            Participant { client_id: client.to_string(), flow_id: flow.to_string(), scheduled: self.now_us(), ..Participant::default() };
        put(txn, self.id(), Space::Hunts, &ran_key(id, client), &participant);
        let limit = hunt.client_limit;
        let stats = hunt.stats.get_or_insert_default();
        stats.total_clients_scheduled = stats.total_clients_scheduled.saturating_add(1);
        if limit > 0 && stats.total_clients_scheduled >= limit {
            stop(hunt);
        }
        put(txn, self.id(), Space::Hunts, &hunt_key(id), hunt);
        Ok(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_spread_over_time_and_keep_their_turn() {
        let mut turns = Turns::default();
        let client = |number: u64| format!("C.{number}").parse::<ClientId>().unwrap();
        let asked: Vec<u64> = (0..4).map(|number| turns.of(&client(number), 1_000_000, 2)).collect();
        assert_eq!(asked, [1_000_000, 1_500_000, 2_000_000, 2_500_000]);
        assert_eq!(turns.of(&client(1), 1_200_000, 2), 1_500_000, "asking again does not move it");
        assert_eq!(turns.of(&client(1), 1_500_000, 2), 1_500_000);
        assert_eq!(turns.of(&client(1), 1_500_000, 2), 3_000_000, "a used turn is used up");
        assert_eq!(turns.of(&client(9), 60_000_000, 2), 60_000_000, "nobody waits when nobody else does");
    }
}
