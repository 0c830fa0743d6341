//! `timeline`, `timelines`, `timeline_add`, `timeline_delete`.

use talon_ids::Permission;
use talon_proto::Timeline;
use talon_vql::{Arg, ArgType, Call, CallError, Registry, Rows, Signature, Time, Value, as_row, json, moment};

use crate::access::{failed, row, session};
use crate::flows::given;
use crate::message::to_dict;

const NOTEBOOK: Arg = Arg::optional("notebook_id", ArgType::String, "The notebook; that of the cell when left out.");
const TIMELINE: Arg = Arg::required("timeline", ArgType::String, "The timeline.");
/// Rows that one call adds at most.
const MAX_ROWS: usize = 1_000_000;

const READ: Signature = Signature::plugin("timeline", "Gives the rows of a timeline in the order of time.")
    .args(&[
        TIMELINE,
        Arg::optional("components", ArgType::Strings, "Only these parts of it."),
        Arg::optional("skip", ArgType::Strings, "Not these parts of it."),
        Arg::optional("start", ArgType::Any, "The first moment."),
        NOTEBOOK,
    ])
    .permissions(&[Permission::ReadResults])
    .version(2);

const LIST: Signature = Signature::plugin("timelines", "Gives the timelines of a notebook with their parts.")
    .args(&[NOTEBOOK])
    .permissions(&[Permission::ReadResults])
    .version(2);

const ADD: Signature = Signature::function("timeline_add", "Puts the rows of a query on a timeline.")
    .args(&[
        TIMELINE,
        Arg::required("name", ArgType::String, "The part of the timeline that the rows make."),
        Arg::required("query", ArgType::Query, "The rows."),
        Arg::required("key", ArgType::String, "The column with the time of a row."),
        Arg::optional("message_column", ArgType::String, "The column to show; `message` when left out."),
        Arg::optional("ts_desc_column", ArgType::String, "The column that says what the time is of."),
        NOTEBOOK,
    ])
    .permissions(&[Permission::ReadResults])
    .version(2);

const DELETE: Signature = Signature::function("timeline_delete", "Deletes a timeline, or a part of it.")
    .args(&[TIMELINE, NOTEBOOK, Arg::optional("name", ArgType::String, "The part; the whole timeline when left out.")])
    .permissions(&[Permission::NotebookEditor])
    .version(2);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(READ, read);
    registry.plugin(LIST, list);
    registry.function(ADD, add);
    registry.function(DELETE, delete);
}

fn nanoseconds(time: &Time) -> i64 {
    i64::try_from(time.unix_nanos()).unwrap_or(i64::MAX)
}

fn read(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let notebook = given(&call, "notebook_id", "NotebookId");
    let start = moment(&call.value("start"), call.scope()).map_or(i64::MIN, |time| nanoseconds(&time));
    let found = session.timeline(&notebook, &call.string("timeline"), &call.strings("components"), &call.strings("skip"), start);
    Ok(Rows::try_of(found.map_err(failed)?.map(|found| {
        let (at, part, line) = found.map_err(failed)?;
        let mut row = row(&line)?;
        row.update("_ts", Value::from(Time::from_unix_nanos(i128::from(at))));
        row.update("_Source", part);
        Ok::<_, CallError>(row)
    })))
}

fn list(call: Call) -> Result<Rows, CallError> {
    let found = session(call.scope())?.timelines(&given(&call, "notebook_id", "NotebookId")).map_err(failed)?;
    Ok(Rows::try_of(found.into_iter().map(|timeline| to_dict("SuperTimeline", &timeline))))
}

fn add(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let key = call.string("key");
    let query = call.query("query").ok_or_else(|| CallError::failed("query must be a query"))?;
    let mut timed = Vec::new();
    for found in query.open(call.scope()) {
        let found = as_row(found?.materialized(call.scope()));
        let at = found.as_dict().and_then(|row| row.get(&key)).and_then(|at| moment(at, call.scope()));
        let Some(at) = at else { return Err(CallError::failed(format!("the column {key} of a row is no time"))) };
        timed.push((nanoseconds(&at), json::encode(&found)));
        if timed.len() > MAX_ROWS {
            return Err(CallError::failed(format!("a timeline has at most {MAX_ROWS} rows")));
        }
    }
    let message = call.opt_string("message_column").filter(|column| !column.is_empty()).unwrap_or_else(|| "message".into());
    let part = Timeline {
        id: call.string("name"),
        timestamp_column: key,
        message_column: message,
        timestamp_description_column: call.string("ts_desc_column"),
        ..Timeline::default()
    };
    let stored = session.add_timeline(&given(&call, "notebook_id", "NotebookId"), &call.string("timeline"), part, timed).map_err(failed)?;
    Ok(Value::Dict(to_dict("SuperTimeline", &stored)?.into()))
}

fn delete(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let name = call.string("timeline");
    session.delete_timeline(&given(&call, "notebook_id", "NotebookId"), &name, &call.string("name")).map_err(failed)?;
    Ok(Value::str(name))
}
