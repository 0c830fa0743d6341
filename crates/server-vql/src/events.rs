//! `watch_monitoring`, `monitoring`, `monitoring_logs`, `send_event`.

use std::sync::Arc;
use std::time::Duration;

use talon_ids::{Permission, QueryName, Target};
use talon_server::{Push, Received, Session, event_logs, event_rows};
use talon_vql::{Arg, ArgType, Call, CallError, Registry, Rows, Signature, Value, json, moment};

use crate::access::{failed, lines, query_name, row, session, target};

/// A watcher looks so often whether its query was stopped.
const GLANCE: Duration = Duration::from_millis(250);

const WATCH: Signature =
    Signature::plugin("watch_monitoring", "Gives the events of a queue from now on, of all clients, until the query ends.")
        .args(&[Arg::required("artifact", ArgType::String, "The event artifact.")])
        .permissions(&[Permission::ReadResults]);

const STORED: &[Arg] = &[
    Arg::required("client_id", ArgType::String, "The client, or `server`."),
    Arg::required("artifact", ArgType::String, "The event artifact."),
    Arg::optional("source", ArgType::String, "The source of the artifact."),
    Arg::optional("start_time", ArgType::Any, "The first moment."),
    Arg::optional("end_time", ArgType::Any, "The moment after the last."),
    Arg::optional("start_row", ArgType::Int, "The first row, from 0."),
];

const MONITORING: Signature =
    Signature::plugin("monitoring", "Gives the stored events of a queue.").args(STORED).permissions(&[Permission::ReadResults]);

const MONITORING_LOGS: Signature = Signature::plugin("monitoring_logs", "Gives the stored log lines of an event artifact.")
    .args(STORED)
    .permissions(&[Permission::ReadResults]);

const SEND_EVENT: Signature = Signature::function("send_event", "Pushes one event to a queue and gives it as it was stored.")
    .args(&[
        Arg::required("artifact", ArgType::String, "The queue."),
        Arg::optional("client_id", ArgType::String, "Whose event it is; the server's when left out."),
        Arg::required("row", ArgType::Dict, "The event."),
    ])
    .version(2);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(WATCH, watch_monitoring);
    registry.plugin(MONITORING, |call| monitoring(call, false));
    registry.plugin(MONITORING_LOGS, |call| monitoring(call, true));
    registry.function(SEND_EVENT, send_event);
}

fn watch_monitoring(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let artifact = call.string("artifact");
    let plain = artifact.split('/').next().unwrap_or_default();
    let kind = session.org().artifacts().get(plain).map(|definition| definition.kind());
    match kind {
        None => return Err(CallError::failed(format!("Artifact {artifact} not known"))),
        Some(kind) if !kind.is_event() => return Err(CallError::failed(format!("Artifact {artifact} is no event artifact"))),
        Some(_) => {}
    }
    let events = session.org().watch(&artifact);
    let scope = call.scope().clone();
    Ok(Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            match events.next_within(GLANCE) {
                Some(Received::Event(event)) => {
                    let row = row(&event.row).map(|mut row| {
                        row.update("_Source", artifact.as_str());
                        Value::Dict(row.into())
                    });
                    return Some(row);
                }
                Some(Received::Lost(count)) => call.log(format!("WARN:{count} events were lost: the query is too slow")),
                None => {}
            }
        }
    }))
}

fn monitoring(call: Call, logs: bool) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let target = target(&session, &call.string("client_id"))?;
    let queue = query_name(&call.string("artifact"), &call.string("source"))?;
    let start = u64::try_from(call.int("start_row")).unwrap_or(0);
    stored(&call, session, target, queue, start, logs)
}

/// The stored rows of a queue between the moments that the call names, oldest first.
pub(crate) fn stored(
    call: &Call,
    session: Arc<Session>,
    target: Target,
    queue: QueryName,
    start: u64,
    logs: bool,
) -> Result<Rows, CallError> {
    let bound = |name: &str| moment(&call.value(name), call.scope()).map(|time| time.unix());
    let (from, to) = (bound("start_time"), bound("end_time"));
    let day = |second: i64| {
        let time = talon_vql::Time::from_unix(second).rfc3339(&talon_vql::time::zone("UTC")?)?;
        time.get(..10).map(str::to_owned)
    };
    let (first, last) = (from.and_then(day), to.and_then(day));
    let mut days = session.org().event_days(&target, &queue, logs).map_err(failed)?;
    days.retain(|day| first.as_ref().is_none_or(|first| day >= first) && last.as_ref().is_none_or(|last| day <= last));
    let found = days.into_iter().flat_map(move |day| {
        let table = if logs { event_logs(&target, &queue, &day) } else { event_rows(&target, &queue, &day) };
        lines(&session, &table, 0)
    });
    let rows = found.map(|line| row(&line.map_err(failed)?));
    let within = move |row: &Result<talon_vql::Dict, CallError>| {
        let column = if logs { "client_time" } else { "_ts" };
        let at = row.as_ref().ok().and_then(|row| row.get(column)).and_then(Value::as_int);
        at.is_none_or(|at| from.is_none_or(|from| at >= from) && to.is_none_or(|to| at < to))
    };
    let skipped = usize::try_from(start).unwrap_or(usize::MAX);
    Ok(Rows::try_of(rows.filter(within).skip(skipped)))
}

fn send_event(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let queue = query_name(&call.string("artifact"), "")?;
    let target = match call.opt_string("client_id") {
        Some(id) if !id.is_empty() => target(&session, &id)?,
        _ => Target::Server,
    };
    let event = call.dict("row").ok_or_else(|| CallError::failed("row must be a dict"))?;
    let jsonl = json::encode(&Value::Dict(event)) + "\n";
    let sent = session.send_event(Push { queue, target, jsonl, keep: true }).map_err(failed)?;
    Ok(sent.first().map(|event| row(&event.row)).transpose()?.map_or(Value::Null, |row| Value::Dict(row.into())))
}
