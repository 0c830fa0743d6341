//! The task queue of a client. A task is leased when it is handed out and leaves the queue when the agent is known to have it: a lost answer loses nothing.
//!
//! * A collection request stays until the first news of its flow. An agent that turns out not to know the flow gets the request again, at most
//!   [`MAX_DELIVERIES`] times; it is never sent blindly a second time, since an agent would run it twice.
//! * Anything else is safe to repeat: it is sent again when its lease is over, at most [`MAX_DELIVERIES`] times.

use prost::Message;
use talon_ids::{ClientId, FlowId, OrgId, Target};
use talon_proto::{Cancel, ClientInfo, FlowStatsRequest, VeloMessage};
use talon_store::{Reader, Scan, Space, Txn};

use crate::ServerError;
use crate::layout::{client_key, decode, flow_key, get, put, target_prefix, task_key};
use crate::progress::Progress;

/// A task is handed out at most this often.
pub(crate) const MAX_DELIVERIES: u32 = 3;
/// What is safe to repeat is repeated after this, in microseconds.
const LEASE_US: u64 = 30 * 1_000_000;
/// A delivered request without any news is asked about after this, in seconds.
const UNACKNOWLEDGED_S: u64 = 10;
/// At most this many flows are asked about in one message.
const MAX_QUESTIONS: usize = 100;

/// A task as it waits.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StoredTask {
    #[prost(message, optional, tag = "1")]
    pub(crate) message: Option<VeloMessage>,
    /// Not handed out again before this, in microseconds.
    #[prost(uint64, tag = "2")]
    pub(crate) leased_until: u64,
    #[prost(uint32, tag = "3")]
    pub(crate) deliveries: u32,
}

/// How tasks are handed out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Requests that may be in flight at once.
    pub(crate) max_in_flight: usize,
    /// A flow in flight is asked about after so many seconds without news; `None` for never.
    pub(crate) check_after_s: Option<u64>,
}

/// What is due for a client.
#[derive(Debug, Default)]
pub(crate) struct Due {
    tasks: Vec<(Vec<u8>, StoredTask)>,
    dropped: Vec<Vec<u8>>,
    questions: Vec<String>,
    /// When something will be due though nothing new is queued, in seconds since 1970.
    pub(crate) next_s: Option<u64>,
}

impl Due {
    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.dropped.is_empty() && self.questions.is_empty()
    }
}

/// Queues a message.
pub(crate) fn queue(txn: &mut dyn Txn, org: &OrgId, client: &ClientId, id: u64, message: VeloMessage) {
    let message = VeloMessage { task_id: id, ..message };
    let task = StoredTask { message: Some(message), leased_until: 0, deliveries: 0 };
    put(txn, org, Space::Tasks, &task_key(client, id), &task);
}

/// What is due for `client` at `now_us` apart from what `held` back; reads only.
pub(crate) fn due(
    reader: &dyn Reader,
    org: &OrgId,
    info: &ClientInfo,
    now_us: u64,
    rules: Rules,
    held: &dyn Fn(&VeloMessage) -> bool,
) -> Result<Due, ServerError> {
    let client: ClientId = info.client_id.parse()?;
    let mut due = Due::default();
    let mut in_flight = info.in_flight_flows.len();
    let mut unacknowledged = Vec::new();
    let prefix = target_prefix(&Target::Client(client));
    for (key, value) in reader.scan(org, Space::Tasks, &Scan { prefix, ..Scan::default() })? {
        let task: StoredTask = decode(Space::Tasks, &key, &value)?;
        let Some(message) = &task.message else {
            due.dropped.push(key);
            continue;
        };
        if held(message) {
            continue;
        }
        if message.flow_request.is_some() {
            if task.deliveries > 0 && task.leased_until != 0 {
                unacknowledged.push(message.session_id.clone());
            } else if message.urgent || in_flight < rules.max_in_flight {
                in_flight = in_flight.saturating_add(1);
                due.tasks.push((key, task));
            }
        } else if task.deliveries >= MAX_DELIVERIES {
            due.dropped.push(key);
        } else if task.leased_until <= now_us {
            due.tasks.push((key, task));
        } else {
            due.wake_at(task.leased_until / 1_000_000 + 1);
        }
    }
    if let Some(check_after_s) = rules.check_after_s {
        for (flow, &since) in &info.in_flight_flows {
            let patience = if unacknowledged.contains(flow) { UNACKNOWLEDGED_S.min(check_after_s) } else { check_after_s };
            let at = u64::try_from(since).unwrap_or(0).saturating_add(patience);
            if at > now_us / 1_000_000 {
                due.wake_at(at);
            } else if due.questions.len() < MAX_QUESTIONS {
                due.questions.push(flow.clone());
            }
        }
    }
    Ok(due)
}

impl Due {
    fn wake_at(&mut self, second: u64) {
        self.next_s = Some(self.next_s.map_or(second, |next| next.min(second)));
    }
}

/// Leases what is due and gives the messages to hand out.
pub(crate) fn hand_out(
    txn: &mut dyn Txn,
    org: &OrgId,
    info: &mut ClientInfo,
    now_us: u64,
    due: Due,
) -> Result<Vec<VeloMessage>, ServerError> {
    let target = Target::Client(info.client_id.parse()?);
    let now_s = i64::try_from(now_us / 1_000_000).unwrap_or(i64::MAX);
    let mut messages = Vec::new();
    for key in due.dropped {
        txn.delete(org, Space::Tasks, &key);
    }
    for (key, mut task) in due.tasks {
        let Some(message) = task.message.clone() else { continue };
        task.deliveries = task.deliveries.saturating_add(1);
        task.leased_until = now_us.saturating_add(LEASE_US);
        put(txn, org, Space::Tasks, &key, &task);
        if message.flow_request.is_some() {
            let flow: FlowId = message.session_id.parse()?;
            let key = flow_key(&target, &flow);
            let mut progress: Progress = get(&*txn, org, Space::FlowStats, &key)?.unwrap_or_default();
            progress.delivered_at = now_us;
            put(txn, org, Space::FlowStats, &key, &progress);
            info.in_flight_flows.insert(message.session_id.clone(), now_s);
        }
        messages.push(message);
    }
    if !due.questions.is_empty() {
        for flow in &due.questions {
            // Asked: the next question is due as long after this one as this one was after the last news.
            info.in_flight_flows.insert(flow.clone(), now_s);
        }
        let request = FlowStatsRequest { flow_id: due.questions };
        messages.push(VeloMessage { session_id: "F.Status".into(), flow_stats_request: Some(request), ..VeloMessage::default() });
    }
    put(txn, org, Space::Clients, info.client_id.as_bytes(), info);
    Ok(messages)
}

/// Takes the request of a flow off the queue: the agent has it, or is not to get it.
pub(crate) fn settle(txn: &mut dyn Txn, org: &OrgId, client: &ClientId, progress: &mut Progress) {
    if progress.task_id != 0 {
        txn.delete(org, Space::Tasks, &task_key(client, progress.task_id));
        progress.task_id = 0;
    }
}

/// What to do about a flow that the agent says it does not know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// The request never arrived; it goes out again.
    Repeat,
    /// The agent had the flow and lost it.
    Lost,
}

/// Decides about a flow that the agent does not know, and puts an unsettled request back on the queue.
pub(crate) fn unknown(txn: &mut dyn Txn, org: &OrgId, client: &ClientId, progress: &Progress) -> Result<Unknown, ServerError> {
    if progress.task_id == 0 {
        return Ok(Unknown::Lost);
    }
    let key = task_key(client, progress.task_id);
    match get::<StoredTask>(&*txn, org, Space::Tasks, &key)? {
        Some(task) if task.deliveries < MAX_DELIVERIES => {
            put(txn, org, Space::Tasks, &key, &StoredTask { leased_until: 0, ..task });
            Ok(Unknown::Repeat)
        }
        _ => Ok(Unknown::Lost),
    }
}

/// Deletes every task of one session, for example those that ask to cancel it once it has ended.
pub(crate) fn forget_session(txn: &mut dyn Txn, org: &OrgId, client: &ClientId, session: &str) -> Result<(), ServerError> {
    let prefix = target_prefix(&Target::Client(client.clone()));
    for (key, value) in txn.scan(org, Space::Tasks, &Scan { prefix, ..Scan::default() })? {
        let task: StoredTask = decode(Space::Tasks, &key, &value)?;
        if task.message.is_none_or(|message| message.session_id == session) {
            txn.delete(org, Space::Tasks, &key);
        }
    }
    Ok(())
}

/// The message that cancels a flow on the agent.
pub(crate) fn cancel_message(flow: &FlowId) -> VeloMessage {
    VeloMessage { session_id: flow.to_string(), urgent: true, cancel: Some(Cancel::default()), ..VeloMessage::default() }
}

/// The client's record.
pub(crate) fn client(reader: &dyn Reader, org: &OrgId, client: &ClientId) -> Result<Option<ClientInfo>, ServerError> {
    get(reader, org, Space::Clients, &client_key(client))
}

#[cfg(test)]
mod tests {
    use talon_proto::FlowRequest;
    use talon_store::{Engine, Memory};

    use super::*;
    use crate::transaction::Pending;

    const S: u64 = 1_000_000;
    const RULES: Rules = Rules { max_in_flight: 2, check_after_s: Some(60) };

    fn client_id() -> ClientId {
        "C.1".parse().unwrap()
    }

    fn run<T: Send + 'static>(store: &Memory, work: impl FnOnce(&mut dyn Txn) -> Result<T, ServerError> + Send + 'static) -> T {
        Pending::submit(store, work).wait().unwrap()
    }

    fn store() -> Memory {
        let store = Memory::new();
        run(&store, |txn| {
            put(txn, &OrgId::root(), Space::Clients, b"C.1", &ClientInfo { client_id: "C.1".into(), ..ClientInfo::default() });
            Ok(())
        });
        store
    }

    fn queue_flow(store: &Memory, id: u64, flow: &str, urgent: bool) {
        let session_id = flow.to_owned();
        run(store, move |txn| {
            let request = Some(FlowRequest::default());
            let key = flow_key(&Target::Client(client_id()), &session_id.parse()?);
            put(txn, &OrgId::root(), Space::FlowStats, &key, &Progress { task_id: id, ..Progress::default() });
            queue(
                txn,
                &OrgId::root(),
                &client_id(),
                id,
                VeloMessage { session_id, flow_request: request, urgent, ..VeloMessage::default() },
            );
            Ok(())
        });
    }

    fn poll(store: &Memory, now_us: u64) -> Vec<VeloMessage> {
        run(store, move |txn| {
            let mut info = client(&*txn, &OrgId::root(), &client_id())?.unwrap();
            let due = due(&*txn, &OrgId::root(), &info, now_us, RULES, &|_| false)?;
            hand_out(txn, &OrgId::root(), &mut info, now_us, due)
        })
    }

    fn sessions(messages: &[VeloMessage]) -> Vec<&str> {
        messages.iter().map(|message| message.session_id.as_str()).collect()
    }

    #[test]
    fn a_client_runs_so_many_flows_at_once_and_urgent_ones_always() {
        let store = store();
        for (id, flow, urgent) in [(1, "F.1", false), (2, "F.2", false), (3, "F.3", false), (4, "F.4", true)] {
            queue_flow(&store, id, flow, urgent);
        }
        let first = poll(&store, S);
        assert_eq!(sessions(&first), ["F.1", "F.2", "F.4"]);
        assert_eq!(first[0].task_id, 1);
        assert!(poll(&store, 2 * S).is_empty());
    }

    #[test]
    fn a_request_whose_answer_was_lost_is_repeated_once_the_agent_denies_the_flow() {
        let store = store();
        queue_flow(&store, 1, "F.1", false);
        assert_eq!(sessions(&poll(&store, S)), ["F.1"]);
        assert!(poll(&store, 5 * S).is_empty());
        let question = poll(&store, 12 * S);
        assert_eq!(question[0].flow_stats_request.as_ref().unwrap().flow_id, ["F.1"]);
        assert!(poll(&store, 13 * S).is_empty(), "asked twice");
        for (at, wanted) in [(14, Unknown::Repeat), (16, Unknown::Repeat), (18, Unknown::Lost)] {
            let found = run(&store, |txn| {
                let key = flow_key(&Target::Client(client_id()), &"F.1".parse()?);
                let progress: Progress = get(&*txn, &OrgId::root(), Space::FlowStats, &key)?.unwrap();
                unknown(txn, &OrgId::root(), &client_id(), &progress)
            });
            assert_eq!(found, wanted);
            if wanted == Unknown::Repeat {
                assert_eq!(sessions(&poll(&store, at * S)), ["F.1"]);
            }
        }
    }

    #[test]
    fn a_settled_request_is_gone() {
        let store = store();
        queue_flow(&store, 1, "F.1", false);
        poll(&store, S);
        run(&store, |txn| {
            let mut progress = Progress { task_id: 1, ..Progress::default() };
            settle(txn, &OrgId::root(), &client_id(), &mut progress);
            assert_eq!(unknown(txn, &OrgId::root(), &client_id(), &progress)?, Unknown::Lost);
            Ok(())
        });
        assert!(store.reader().scan(&OrgId::root(), Space::Tasks, &Scan::default()).unwrap().is_empty());
        assert!(poll(&store, 30 * S).is_empty());
        assert_eq!(poll(&store, 62 * S)[0].flow_stats_request.as_ref().unwrap().flow_id, ["F.1"]);
    }

    #[test]
    fn what_is_safe_to_repeat_is_repeated_a_few_times() {
        let store = store();
        run(&store, |txn| {
            queue(txn, &OrgId::root(), &client_id(), 7, cancel_message(&"F.9".parse()?));
            Ok(())
        });
        let counts: Vec<usize> = [1, 2, 40, 80, 120, 160].into_iter().map(|second| poll(&store, second * S).len()).collect();
        assert_eq!(counts, [1, 0, 1, 1, 0, 0]);
    }
}
