//! `hunt`, `hunts`, `hunt_info`, `hunt_flows`, `hunt_results`, `hunt_add`, `hunt_update`, `hunt_delete`, `hunt_reindex`.

use std::sync::Arc;

use talon_ids::{ClientId, FlowId, HuntId, OrgId, Permission, Target};
use talon_proto::hunt::State;
use talon_proto::hunt_condition::UnionField;
use talon_proto::hunt_os_condition::Os;
use talon_proto::{
    ArtifactCollectorArgs, ArtifactParameters, ArtifactSpec, Hunt, HuntCondition, HuntLabelCondition, HuntMutation, HuntOsCondition,
};
use talon_server::{Participant, Session};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value, moment};

use crate::access::{client, failed, flow, session};
use crate::collect::variables;
use crate::flows::{flow_row, given, rows_of_flow};
use crate::message::to_dict;

const ID: Arg = Arg::required("hunt_id", ArgType::String, "The hunt.");

const HUNT: Signature = Signature::function("hunt", "Makes a hunt: a collection from every client that fits.")
    .args(&[
        Arg::optional("description", ArgType::String, "What it is for."),
        Arg::optional("tags", ArgType::Strings, "Words by which to find it."),
        Arg::required("artifacts", ArgType::Strings, "The artifacts to collect."),
        Arg::optional("expires", ArgType::Any, "When it ends by itself: a time."),
        Arg::optional("spec", ArgType::Any, "Parameters by artifact."),
        Arg::optional("timeout", ArgType::UInt, "Seconds after which a collection fails."),
        Arg::optional("ops_per_sec", ArgType::Float, "Operations a second, the old form of a CPU limit."),
        Arg::optional("cpu_limit", ArgType::Float, "Percent of a CPU."),
        Arg::optional("iops_limit", ArgType::Float, "I/O operations a second."),
        Arg::optional("max_rows", ArgType::UInt, "Rows after which a collection fails."),
        Arg::optional("max_bytes", ArgType::UInt, "Bytes of uploads after which a collection fails."),
        Arg::optional("pause", ArgType::Bool, "Makes it without starting it."),
        Arg::optional("include_labels", ArgType::Strings, "Only clients with one of these labels."),
        Arg::optional("exclude_labels", ArgType::Strings, "No clients with one of these labels."),
        Arg::optional("os", ArgType::String, "Only clients of this operating system: WINDOWS, LINUX or OSX."),
        Arg::optional("org_id", ArgType::Strings, "The organisations; the query's own when left out."),
    ])
    .permissions(&[Permission::StartHunt])
    .version(3);

const HUNTS: Signature = Signature::plugin("hunts", "Gives the hunts, newest first.")
    .args(&[
        Arg::optional("hunt_id", ArgType::String, "Only this one."),
        Arg::optional("summary", ArgType::Bool, "Accepted and without effect: rows are summaries."),
    ])
    .permissions(&[Permission::ReadResults])
    .version(2);

const HUNT_INFO: Signature = Signature::function("hunt_info", "Gives one hunt.")
    .args(&[Arg::optional("hunt_id", ArgType::String, "The hunt; that of the notebook when left out.")])
    .permissions(&[Permission::ReadResults]);

const HUNT_FLOWS: Signature = Signature::plugin("hunt_flows", "Gives the flows of a hunt, one for each client.")
    .args(&[
        ID,
        Arg::optional("start_row", ArgType::Int, "The first row, from 0."),
        Arg::optional("limit", ArgType::Int, "So many rows at most."),
        Arg::optional("basic_info", ArgType::Bool, "Leaves the flow itself out."),
    ])
    .permissions(&[Permission::ReadResults])
    .version(2);

const HUNT_RESULTS: Signature = Signature::plugin("hunt_results", "Gives the rows that a hunt has collected, of all clients.")
    .args(&[
        Arg::optional("artifact", ArgType::String, "The artifact; all of the hunt when left out."),
        Arg::optional("source", ArgType::String, "The source of the artifact."),
        ID,
        Arg::optional("brief", ArgType::Bool, "Leaves the columns out that say which client a row is from, but for its id."),
        Arg::optional("orgs", ArgType::Strings, "The organisations; the query's own when left out."),
    ])
    .permissions(&[Permission::ReadResults])
    .version(2);

const HUNT_ADD: Signature = Signature::function("hunt_add", "Takes a client on for a hunt, or attaches a flow that it has.")
    .args(&[
        Arg::required("client_id", ArgType::String, "The client."),
        ID,
        Arg::optional("flow_id", ArgType::String, "A flow of the client that becomes one of the hunt's."),
        Arg::optional("relaunch", ArgType::Bool, "Collects again, in place of what the client has collected in the hunt."),
    ])
    .permissions(&[Permission::StartHunt])
    .version(2);

const HUNT_UPDATE: Signature = Signature::function("hunt_update", "Starts, stops or describes a hunt.")
    .args(&[
        ID,
        Arg::optional("stop", ArgType::Bool, "Stops it."),
        Arg::optional("start", ArgType::Bool, "Starts it."),
        Arg::optional("description", ArgType::String, "What it is for."),
        Arg::optional("expires", ArgType::Time, "When it ends by itself."),
        Arg::optional("add_labels", ArgType::Strings, "Tags to add."),
        Arg::optional("del_labels", ArgType::Strings, "Tags to take away."),
    ])
    .permissions(&[Permission::StartHunt])
    .version(2);

const HUNT_DELETE: Signature = Signature::plugin("hunt_delete", "Deletes a hunt with the flows that it ran.")
    .args(&[
        ID,
        Arg::optional("really_do_it", ArgType::Bool, "Without it, only tells what would be deleted."),
        Arg::optional("workers", ArgType::Int, "Accepted and without effect."),
        Arg::optional("archive", ArgType::Bool, "Accepted and without effect."),
    ])
    .permissions(&[Permission::ServerAdmin])
    .version(2);

const HUNT_REINDEX: Signature = Signature::plugin("hunt_reindex", "Counts the totals of hunts afresh.")
    .args(&[Arg::optional("hunt_id", ArgType::String, "Only this one.")])
    .permissions(&[Permission::StartHunt]);

pub(crate) fn register(registry: &mut Registry) {
    registry.function(HUNT, hunt);
    registry.plugin(HUNTS, hunts);
    registry.function(HUNT_INFO, hunt_info);
    registry.plugin(HUNT_FLOWS, hunt_flows);
    registry.plugin(HUNT_RESULTS, hunt_results);
    registry.function(HUNT_ADD, hunt_add);
    registry.function(HUNT_UPDATE, hunt_update);
    registry.plugin(HUNT_DELETE, hunt_delete);
    registry.plugin(HUNT_REINDEX, hunt_reindex);
}

fn id(text: &str) -> Result<HuntId, CallError> {
    text.parse().map_err(CallError::failed)
}

fn microseconds(call: &Call, name: &str) -> Option<u64> {
    let time = moment(&call.value(name), call.scope())?;
    u64::try_from(time.unix()).ok()?.checked_mul(1_000_000)
}

fn condition(call: &Call) -> Result<Option<HuntCondition>, CallError> {
    let (include, exclude) = (call.strings("include_labels"), call.strings("exclude_labels"));
    let os = match call.string("os").to_ascii_uppercase().as_str() {
        "" => None,
        "ALL" => Some(Os::All),
        "WINDOWS" => Some(Os::Windows),
        "LINUX" => Some(Os::Linux),
        "OSX" | "DARWIN" => Some(Os::Osx),
        other => return Err(CallError::failed(format!("unknown operating system {other}: must be WINDOWS, LINUX or OSX"))),
    };
    let union_field = match (include.is_empty(), os) {
        (true, None) => None,
        (true, Some(os)) => Some(UnionField::Os(HuntOsCondition { os: os.into() })),
        (false, None) => Some(UnionField::Labels(HuntLabelCondition { label: include })),
        (false, Some(_)) => return Err(CallError::failed("a hunt is limited by labels or by an operating system, not by both")),
    };
    let excluded_labels = (!exclude.is_empty()).then_some(HuntLabelCondition { label: exclude });
    Ok((union_field.is_some() || excluded_labels.is_some()).then_some(HuntCondition { union_field, excluded_labels }))
}

fn hunt(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let artifacts = call.strings("artifacts");
    let spec = call.value("spec");
    let specs = artifacts.iter().map(|artifact| {
        let own = spec.as_dict().and_then(|spec| spec.get(artifact)).and_then(Value::as_dict);
        let env = own.map(|parameters| variables(parameters)).unwrap_or_default();
        ArtifactSpec { artifact: artifact.clone(), parameters: Some(ArtifactParameters { env }), ..ArtifactSpec::default() }
    });
    #[allow(clippy::cast_possible_truncation)]
    let float = |name| call.opt_float(name).unwrap_or(0.0) as f32;
    let request = ArtifactCollectorArgs {
        specs: specs.collect(),
        artifacts,
        timeout: call.uint("timeout"),
        ops_per_second: float("ops_per_sec"),
        cpu_limit: float("cpu_limit"),
        iops_limit: float("iops_limit"),
        max_rows: call.uint("max_rows"),
        max_upload_bytes: call.uint("max_bytes"),
        ..ArtifactCollectorArgs::default()
    };
    let state = if call.bool("pause") { State::Paused } else { State::Running };
    let made = Hunt {
        hunt_description: call.string("description"),
        tags: call.strings("tags"),
        condition: condition(&call)?,
        expires: microseconds(&call, "expires").unwrap_or(0),
        start_request: Some(request.clone()),
        org_ids: call.strings("org_id"),
        state: state.into(),
        ..Hunt::default()
    };
    let id = session.create_hunt(made).map_err(failed)?;
    let row = Dict::new().with("HuntId", id.as_str()).with("Request", to_dict("ArtifactCollectorArgs", &request)?);
    Ok(Value::Dict(row.into()))
}

fn hunts(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let found = match call.opt_string("hunt_id").filter(|id| !id.is_empty()) {
        Some(text) => session.org().hunt(&id(&text)?).map_err(failed)?.into_iter().collect(),
        None => session.org().hunts().map_err(failed)?,
    };
    Ok(Rows::try_of(found.into_iter().map(|hunt| to_dict("Hunt", &hunt))))
}

fn hunt_info(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let found = session.org().hunt(&id(&given(&call, "hunt_id", "HuntId"))?).map_err(failed)?;
    Ok(found.map(|hunt| to_dict("Hunt", &hunt)).transpose()?.map_or(Value::Null, |row| Value::Dict(row.into())))
}

fn place(participant: &Participant) -> Result<(Target, FlowId), CallError> {
    let client: ClientId = participant.client_id.parse().map_err(CallError::failed)?;
    Ok((Target::Client(client), flow(&participant.flow_id)?))
}

fn hunt_flows(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let text = call.string("hunt_id");
    let clients = session.org().hunt_clients(&id(&text)?).map_err(failed)?;
    let skip = usize::try_from(call.int("start_row")).unwrap_or(0);
    let limit = call.opt_int("limit").and_then(|limit| usize::try_from(limit).ok()).filter(|&limit| limit > 0).unwrap_or(usize::MAX);
    let basic = call.bool("basic_info");
    let row = move |participant: Participant| {
        let mut row = Dict::new().with("HuntId", text.as_str()).with("ClientId", participant.client_id.as_str());
        row.set("FlowId", participant.flow_id.as_str());
        if !basic {
            let (target, flow) = place(&participant)?;
            let context = session.org().flow(&target, &flow).map_err(failed)?;
            row.set("Flow", context.map(|context| flow_row(context, true)).transpose()?.map_or(Value::Null, |row| row.into()));
        }
        Ok::<_, CallError>(row)
    };
    Ok(Rows::try_of(clients.into_iter().skip(skip).take(limit).map(row)))
}

fn hunt_results(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let hunt = id(&call.string("hunt_id"))?;
    results(&session, &hunt, &call.string("artifact"), &call.string("source"), &call.strings("orgs"), call.bool("brief"))
}

/// The rows of a hunt, client by client.
pub(crate) fn results(
    session: &Arc<Session>,
    hunt: &HuntId,
    artifact: &str,
    source: &str,
    orgs: &[String],
    brief: bool,
) -> Result<Rows, CallError> {
    let mut sessions = Vec::new();
    for org in orgs {
        let org: OrgId = org.parse().map_err(CallError::failed)?;
        let there = session.in_org(&org).map_err(failed)?;
        there.authority().permit::<talon_acl::ReadResults>().map_err(CallError::failed)?;
        sessions.push(Arc::new(there));
    }
    if sessions.is_empty() {
        sessions.push(session.clone());
    }
    let mut places = Vec::new();
    for session in sessions {
        let clients = session.org().hunt_clients(hunt).map_err(failed)?;
        places.extend(clients.into_iter().map(|participant| (session.clone(), participant)));
    }
    let (artifact, source) = (artifact.to_owned(), source.to_owned());
    let found = places.into_iter().flat_map(move |(session, participant)| {
        let rows = place(&participant).and_then(|(target, flow)| {
            let host = if brief {
                String::new()
            } else {
                let info = target.client().map(|client| session.org().client(client)).transpose().map_err(failed)?.flatten();
                info.map(|info| info.fqdn).unwrap_or_default()
            };
            Ok((host, rows_of_flow(session.clone(), target, flow, &artifact, &source, 0)?))
        });
        let (host, rows) = match rows {
            Ok(found) => found,
            Err(error) => (String::new(), Rows::try_of(std::iter::once(Err::<Dict, _>(error)))),
        };
        let client = session.org().client_text(&participant.client_id.parse().ok()?);
        Some(rows.map(move |row| {
            let row = row?;
            let mut row = row.as_dict().map(|row| Dict::clone(row)).unwrap_or_default();
            if !brief {
                row.update("FlowId", participant.flow_id.as_str());
            }
            row.update("ClientId", client.as_str());
            if !brief {
                row.update("Fqdn", host.as_str());
            }
            Ok::<_, CallError>(row)
        }))
    });
    Ok(Rows::try_of(found.flatten()))
}

fn hunt_add(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let client = client(&session, &call)?;
    let own = call.opt_string("flow_id").filter(|text| !text.is_empty()).map(|text| flow(&text)).transpose()?;
    session.add_to_hunt(&id(&call.string("hunt_id"))?, &client, own, call.bool("relaunch")).map_err(failed)?;
    Ok(Value::str(session.org().client_text(&client)))
}

fn hunt_update(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let text = call.string("hunt_id");
    let hunt = session.org().hunt(&id(&text)?).map_err(failed)?;
    let hunt = hunt.ok_or_else(|| CallError::failed(format!("Hunt not found: {text}")))?;
    let (add, remove) = (call.strings("add_labels"), call.strings("del_labels"));
    let mut tags = Vec::new();
    if !add.is_empty() || !remove.is_empty() {
        tags = hunt.tags.iter().filter(|tag| !remove.contains(tag)).cloned().collect();
        let new: Vec<String> = add.into_iter().filter(|tag| !tags.contains(tag)).collect();
        tags.extend(new);
        if tags.is_empty() {
            // A lone dash takes all of them away.
            tags.push("-".to_owned());
        }
    }
    let state = match (call.bool("start"), call.bool("stop")) {
        (true, true) => return Err(CallError::failed("a hunt is started or stopped, not both")),
        (true, false) => State::Running,
        (false, true) => State::Stopped,
        (false, false) => State::Unset,
    };
    let change = HuntMutation {
        hunt_id: text.clone(),
        description: call.string("description"),
        expires: call.time("expires").and_then(|time| u64::try_from(time.unix()).ok()).unwrap_or(0).saturating_mul(1_000_000),
        state: state.into(),
        tags,
        user: session.principal().to_string(),
        ..HuntMutation::default()
    };
    session.modify_hunt(&change).map_err(failed)?;
    Ok(Value::str(text))
}

fn hunt_delete(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let text = call.string("hunt_id");
    let really = call.bool("really_do_it");
    let found = session.delete_hunt(&id(&text)?, really).map_err(failed)?;
    let row = |participant: Participant| {
        let row = Dict::new().with("HuntId", text.as_str()).with("ClientId", participant.client_id).with("FlowId", participant.flow_id);
        row.with("really_do_it", really)
    };
    Ok(Rows::of(found.into_iter().map(row).collect::<Vec<_>>()))
}

fn hunt_reindex(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let hunts = match call.opt_string("hunt_id").filter(|id| !id.is_empty()) {
        Some(text) => vec![text],
        None => session.org().hunts().map_err(failed)?.into_iter().map(|hunt| hunt.hunt_id).collect(),
    };
    let count = move |text: String| {
        let change = HuntMutation { hunt_id: text.clone(), recalculate: true, ..HuntMutation::default() };
        session.modify_hunt(&change).map_err(failed)?;
        Ok::<_, CallError>(Dict::new().with("HuntId", text))
    };
    Ok(Rows::try_of(hunts.into_iter().map(count)))
}
