//! `flows`, `get_flow`, `flow_results`, `flow_logs`, `uploads`, `source`.

use std::sync::Arc;

use talon_ids::{FlowId, Permission, Permissions, QueryName, Target};
use talon_proto::ArtifactCollectorContext;
use talon_server::{Session, flow_logs, flow_rows, flow_transactions, flow_uploads};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::access::{failed, flow, lines, query_name, row, session, target};
use crate::events;
use crate::message::to_dict;

const CLIENT: Arg = Arg::required("client_id", ArgType::String, "The client.");
const FLOW: Arg = Arg::required("flow_id", ArgType::String, "The flow.");
const ARTIFACT: Arg = Arg::optional("artifact", ArgType::String, "The artifact; all of the flow when left out.");
const SOURCE: Arg = Arg::optional("source", ArgType::String, "The source of the artifact.");

const FLOWS: Signature = Signature::plugin("flows", "Gives the flows of a client, newest first.")
    .args(&[
        CLIENT,
        Arg::optional("flow_id", ArgType::String, "Only this flow."),
        Arg::optional("summary", ArgType::Bool, "Accepted and without effect: rows are summaries."),
    ])
    .permissions(&[Permission::ReadResults])
    .version(3);

const GET_FLOW: Signature = Signature::function("get_flow", "Gives one flow.")
    .args(&[CLIENT, FLOW, Arg::optional("summary", ArgType::Bool, "Leaves the compiled queries out.")])
    .version(3);

const FLOW_RESULTS: Signature = Signature::plugin("flow_results", "Gives the rows that a flow collected.")
    .args(&[ARTIFACT, SOURCE, FLOW, CLIENT])
    .permissions(&[Permission::ReadResults]);

const FLOW_LOGS: Signature =
    Signature::plugin("flow_logs", "Gives the log lines of a flow.").args(&[FLOW, CLIENT]).permissions(&[Permission::ReadResults]);

const UPLOADS: Signature = Signature::plugin("uploads", "Gives the files that a flow uploaded.")
    .args(&[
        Arg::optional("client_id", ArgType::String, "The client; that of the notebook when left out."),
        Arg::optional("flow_id", ArgType::String, "The flow; that of the notebook when left out."),
    ])
    .permissions(&[Permission::ReadResults])
    .version(2);

const TRANSACTIONS: Signature = Signature::plugin("upload_transactions", "Gives the uploads that a flow has begun.")
    .args(&[CLIENT, Arg::optional("flow_id", ArgType::String, "The flow; that of the notebook when left out.")])
    .permissions(&[Permission::ReadResults])
    .version(2);

const ROWS_OF: Signature = Signature::plugin("source", "Gives the rows of a flow, or of an event artifact.")
    .args(&[
        Arg::optional("client_id", ArgType::String, "The client; that of the notebook when left out."),
        Arg::optional("flow_id", ArgType::String, "The flow; that of the notebook when left out."),
        Arg::optional("hunt_id", ArgType::String, "The hunt; that of the notebook when left out."),
        ARTIFACT,
        SOURCE,
        Arg::optional("notebook_id", ArgType::String, "The notebook whose cell to read."),
        Arg::optional("notebook_cell_id", ArgType::String, "The cell."),
        Arg::optional("notebook_cell_version", ArgType::String, "Its version; the present one when left out."),
        Arg::optional("notebook_cell_table", ArgType::Int, "The table of the cell, from 1."),
        Arg::optional("orgs", ArgType::Strings, "For hunts: the organisations."),
        Arg::optional("start_time", ArgType::Any, "For event artifacts: the first moment."),
        Arg::optional("end_time", ArgType::Any, "For event artifacts: the moment after the last."),
        Arg::optional("start_row", ArgType::Int, "The first row, from 0."),
        Arg::optional("count", ArgType::Int, "So many rows at most."),
    ])
    .permissions(&[Permission::ReadResults])
    .version(2);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(FLOWS, flows);
    registry.function(GET_FLOW, get_flow);
    registry.plugin(FLOW_RESULTS, flow_results);
    registry.plugin(FLOW_LOGS, logs);
    registry.plugin(UPLOADS, uploads);
    registry.plugin(TRANSACTIONS, transactions);
    registry.plugin(ROWS_OF, source);
}

pub(crate) fn flow_row(mut context: ArtifactCollectorContext, summary: bool) -> Result<Dict, CallError> {
    if summary && let Some(request) = &mut context.request {
        request.compiled_collector_args.clear();
    }
    to_dict("ArtifactCollectorContext", &context)
}

fn flows(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let target = target(&session, &call.string("client_id"))?;
    let found = match call.opt_string("flow_id") {
        Some(id) if !id.is_empty() => session.org().flow(&target, &flow(&id)?).map_err(failed)?.into_iter().collect(),
        _ => session.org().flows(&target).map_err(failed)?,
    };
    Ok(Rows::try_of(found.into_iter().map(|context| flow_row(context, true))))
}

fn get_flow(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let target = target(&session, &call.string("client_id"))?;
    let needed = if target == Target::Server { Permission::CollectServer } else { Permission::CollectClient };
    call.scope().check(Permissions::of(&[needed]))?;
    let found = session.org().flow(&target, &flow(&call.string("flow_id"))?).map_err(failed)?;
    Ok(found.map(|context| flow_row(context, call.bool("summary"))).transpose()?.map_or(Value::Null, |row| Value::Dict(row.into())))
}

/// Rows of a flow from `start` on: of one query, of all queries of an artifact, or of all.
pub(crate) fn rows_of_flow(
    session: Arc<Session>,
    target: Target,
    flow: FlowId,
    artifact: &str,
    source: &str,
    start: u64,
) -> Result<Rows, CallError> {
    let mut queries: Vec<QueryName> = session.org().flow_queries(&target, &flow).map_err(failed)?;
    if !artifact.is_empty() {
        let wanted = query_name(artifact, source)?;
        queries.retain(|query| if wanted.source.is_none() { query.artifact == wanted.artifact } else { *query == wanted });
    }
    let mut skip = start;
    let mut tables = Vec::new();
    for query in queries {
        let table = flow_rows(&target, &flow, &query);
        let held = session.org().reader().table(session.org().id(), &table).map_err(CallError::failed)?.rows;
        if skip < held {
            tables.push((table, skip));
        }
        skip = skip.saturating_sub(held);
    }
    let found = tables.into_iter().flat_map(move |(table, start)| lines(&session, &table, start));
    Ok(Rows::try_of(found.map(|line| row(&line.map_err(failed)?))))
}

fn flow_results(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let (target, flow) = (target(&session, &call.string("client_id"))?, flow(&call.string("flow_id"))?);
    rows_of_flow(session, target, flow, &call.string("artifact"), &call.string("source"), 0)
}

fn logs(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let (target, flow) = (target(&session, &call.string("client_id"))?, flow(&call.string("flow_id"))?);
    let lines = session.org().rows(&flow_logs(&target, &flow), 0).map_err(failed)?;
    Ok(Rows::try_of(lines.map(|line| row(&line.map_err(failed)?))))
}

fn uploads(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let target = target(&session, &given(&call, "client_id", "ClientId"))?;
    let flow = flow(&given(&call, "flow_id", "FlowId"))?;
    let lines = session.org().rows(&flow_uploads(&target, &flow), 0).map_err(failed)?;
    Ok(Rows::try_of(lines.map(|line| {
        let row = row(&line.map_err(failed)?)?;
        let components = row.get("_Components").cloned().unwrap_or_default();
        // What the API takes to read the file.
        let upload = Dict::new().with("Accessor", "fs").with("Components", components);
        Ok::<_, CallError>(row.with("Upload", upload))
    })))
}

fn transactions(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let target = target(&session, &call.string("client_id"))?;
    let flow = flow(&given(&call, "flow_id", "FlowId"))?;
    let lines = session.org().rows(&flow_transactions(&target, &flow), 0).map_err(failed)?;
    Ok(Rows::try_of(lines.map(|line| row(&line.map_err(failed)?))))
}

/// An argument, or the variable of the notebook that stands for it.
pub(crate) fn given(call: &Call, argument: &str, variable: &str) -> String {
    let own = call.opt_string(argument).filter(|text| !text.is_empty());
    own.or_else(|| call.scope().variable(variable)?.as_str().map(str::to_owned)).unwrap_or_default()
}

fn source(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let artifact = given(&call, "artifact", "ArtifactName");
    let start = u64::try_from(call.int("start_row")).unwrap_or(0);
    let count = call.opt_int("count").and_then(|count| usize::try_from(count).ok()).filter(|&count| count > 0).unwrap_or(usize::MAX);
    let plain = artifact.split('/').next().unwrap_or_default();
    let is_event = session.org().artifacts().get(plain).is_some_and(|definition| definition.kind().is_event());
    let target_text = given(&call, "client_id", "ClientId");
    let hunt = given(&call, "hunt_id", "HuntId");
    let found = if call.has("notebook_id") {
        crate::notebooks::cell_rows(&session, &call, start)?
    } else if !hunt.is_empty() && !call.has("flow_id") {
        let hunt = hunt.parse().map_err(CallError::failed)?;
        let found = crate::hunts::results(&session, &hunt, &artifact, &call.string("source"), &call.strings("orgs"), false)?;
        Rows::try_of(found.skip(usize::try_from(start).unwrap_or(usize::MAX)))
    } else if is_event {
        let target = target(&session, if target_text.is_empty() { Target::Server.as_str() } else { &target_text })?;
        let queue = query_name(&artifact, &call.string("source"))?;
        events::stored(&call, session, target, queue, start, false)?
    } else {
        let target = target(&session, &target_text)?;
        rows_of_flow(session, target, flow(&given(&call, "flow_id", "FlowId"))?, &artifact, &call.string("source"), start)?
    };
    Ok(Rows::try_of(found.take(count)))
}
