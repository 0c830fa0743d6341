//! Event queues: who may push to which, what is kept, and how watchers get it. A queue is named after an event artifact.

use std::sync::Arc;

use serde_json::json;
use talon_acl::{Administer, Permit, Publish};
use talon_ids::{FlowId, OrgId, QueryName, Target, UserName};
use talon_proto::ArtifactCollectorContext;
use talon_store::{ObjectName, Txn};

use crate::ServerError;
use crate::bus::{Event, Subscription};
use crate::catalog::ArtifactType;
use crate::clock;
use crate::layout::event_rows;
use crate::org::Org;
use crate::rows;
use crate::transaction::Pending;

/// Events to push.
pub struct Push {
    /// The queue.
    pub queue: QueryName,
    /// Whose events they are: a client's, or the server's.
    pub target: Target,
    /// The rows, one JSON object a line.
    pub jsonl: String,
    /// Whether they are kept in the queue's day table; internal queues never are.
    pub keep: bool,
}

/// Who pushes events.
pub enum Pusher<'a> {
    /// A user with a permit for the queue. Rows carry the user's name in `_Sender`; they are always kept.
    User(&'a Permit<Publish>),
    /// An administrator of the server.
    Administrator(&'a Permit<Administer>),
    /// The server itself, on behalf of `source`.
    Server {
        /// What `_Source` says.
        source: &'a UserName,
    },
}

impl Org {
    /// Listens on a queue. Events before this moment are not delivered.
    #[must_use]
    pub fn watch(&self, queue: &str) -> Subscription {
        self.state().bus.subscribe(queue)
    }

    /// Pushes events. They reach watchers once they are durable.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] for an unknown artifact, [`ServerError::Invalid`] when the queue is not one for such events or a row is no object.
    pub fn push(&self, pusher: &Pusher<'_>, push: Push) -> Result<Pending<Vec<Event>>, ServerError> {
        let kind = self.catalog().kind(&push.queue.artifact).ok_or_else(|| ServerError::not_found("Artifact", &push.queue))?;
        check_target(kind, &push.target, pusher)?;
        let now_s = self.now_us() / 1_000_000;
        let (source, mut columns) = match pusher {
            Pusher::User(permit) => {
                self.own(permit)?;
                (permit.principal().to_string(), vec![("_Sender", json!(permit.principal().as_str()))])
            }
            Pusher::Administrator(permit) => {
                self.own(permit)?;
                (permit.principal().to_string(), Vec::new())
            }
            Pusher::Server { source } => (source.to_string(), Vec::new()),
        };
        if let Target::Client(client) = &push.target {
            columns.push(("ClientId", json!(client.as_str())));
        }
        columns.extend([("_ts", json!(now_s)), ("_Source", json!(source))]);
        let stamped = rows::stamp(&push.jsonl, &columns).map_err(|bad| ServerError::invalid(bad.to_string()))?;
        let keep = kind != ArtifactType::Internal && (push.keep || matches!(pusher, Pusher::User(_)));
        let (queue, source): (Arc<str>, Arc<str>) = (push.queue.to_string().into(), source.into());
        let events: Vec<Event> =
            stamped.iter().map(|row| Event { queue: queue.clone(), source: source.clone(), row: row.as_str().into() }).collect();
        let org = self.clone();
        Ok(self.submit(move |txn| {
            if keep && !stamped.is_empty() {
                let table = event_rows(&push.target, &push.queue, &clock::day(now_s));
                txn.append_rows(org.id(), &table, None, rows::block(&stamped))?;
            }
            Ok(events)
        }))
    }

    /// Pushes events, waits until they are durable and publishes them.
    ///
    /// # Errors
    /// As [`Org::push`], or when storage fails.
    pub fn push_and_publish(&self, pusher: &Pusher<'_>, push: Push) -> Result<Vec<Event>, ServerError> {
        let events = self.push(pusher, push)?.wait()?;
        self.publish_all(&events);
        Ok(events)
    }

    /// Publishes an event of the server on an internal queue.
    pub(crate) fn announce(&self, queue: &str, columns: &[(&str, serde_json::Value)]) {
        self.state().bus.publish(&internal(queue, columns, self.now_us() / 1_000_000));
    }

    /// The queues of which a client, or the server, has stored events or log lines.
    ///
    /// # Errors
    /// When storage fails.
    pub fn event_queues(&self, target: &Target) -> Result<Vec<QueryName>, ServerError> {
        let mut queues = std::collections::BTreeSet::new();
        for kind in ["events", "event_logs"] {
            for name in self.reader().objects(self.id(), &ObjectName::new([kind, target.as_str()]))? {
                if let [_, _, artifact, source, _] = name.components() {
                    let source = source.trim_start_matches('@');
                    let full = if source.is_empty() { artifact.clone() } else { format!("{artifact}/{source}") };
                    queues.extend(full.parse::<QueryName>());
                }
            }
        }
        Ok(queues.into_iter().collect())
    }

    /// The days for which a queue has rows, oldest first, as `YYYY-MM-DD`.
    ///
    /// # Errors
    /// When storage fails.
    pub fn event_days(&self, target: &Target, queue: &QueryName, logs: bool) -> Result<Vec<String>, ServerError> {
        let prefix = if logs { crate::layout::event_log_days(target, queue) } else { crate::layout::event_days(target, queue) };
        let names = self.reader().objects(self.id(), &prefix)?;
        Ok(names.iter().filter_map(|name| name.components().last().cloned()).collect())
    }
}

/// An event of the server itself, which is not kept.
pub(crate) fn internal(queue: &str, columns: &[(&str, serde_json::Value)], now_s: u64) -> Event {
    let mut all = columns.to_vec();
    all.extend([("_ts", json!(now_s)), ("_Source", json!("server"))]);
    Event { queue: queue.into(), source: "server".into(), row: rows::object(&all).into() }
}

/// Stores the event that a flow has ended, and gives it for publishing once that is durable.
pub(crate) fn flow_ended(
    txn: &mut dyn Txn,
    org: &OrgId,
    target: &Target,
    flow: &FlowId,
    mut context: ArtifactCollectorContext,
    now_s: u64,
) -> Result<Event, ServerError> {
    if let Some(request) = &mut context.request {
        request.compiled_collector_args.clear();
    }
    let summary = crate::reflect::to_json("ArtifactCollectorContext", &context)?;
    // Ids need no escaping, and the summary is JSON of our own making.
    let row = format!(r#"{{"Timestamp":{now_s},"Flow":{summary},"FlowId":"{flow}","ClientId":"{target}"}}"#);
    target_event(txn, org, target, "System.Flow.Completion", &row, now_s)
}

/// Stores an event that the server raises about a client or itself, and gives it for publishing once that is durable.
pub(crate) fn target_event(
    txn: &mut dyn Txn,
    org: &OrgId,
    target: &Target,
    queue: &str,
    row: &str,
    now_s: u64,
) -> Result<Event, ServerError> {
    let stamped = rows::stamp(row, &[("_ts", json!(now_s)), ("_Source", json!(target.as_str()))]);
    let row = stamped.ok().and_then(|rows| rows.into_iter().next()).unwrap_or_default();
    let table = event_rows(target, &queue.parse()?, &clock::day(now_s));
    txn.append_rows(org, &table, None, rows::block(&[&row]))?;
    Ok(Event { queue: queue.into(), source: target.as_str().into(), row: row.into() })
}

/// The rules of `spec/05` §9.1: whose events a queue holds.
fn check_target(kind: ArtifactType, target: &Target, pusher: &Pusher<'_>) -> Result<(), ServerError> {
    let allowed = match kind {
        ArtifactType::ClientEvent => target.client().is_some(),
        ArtifactType::ServerEvent => target.client().is_none(),
        ArtifactType::Internal => matches!(pusher, Pusher::Server { .. }),
        ArtifactType::Client | ArtifactType::Server | ArtifactType::Notebook => false,
    };
    if allowed {
        return Ok(());
    }
    Err(ServerError::invalid(match kind {
        ArtifactType::ServerEvent => "Only servers can write to a SERVER_EVENT artifact_type".to_owned(),
        ArtifactType::ClientEvent => "Only clients can write to a CLIENT_EVENT artifact_type".to_owned(),
        ArtifactType::Internal => "Only the server can write to an INTERNAL artifact_type".to_owned(),
        _ => "the artifact is no event queue".to_owned(),
    }))
}
