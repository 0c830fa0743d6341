//! The methods of hunts.

use talon_ids::{ClientId, HuntId, Target};
use talon_proto as proto;
use talon_server::flow_rows;
use talon_vql::{Dict, Value, json};
use tonic::Status;

use crate::service::Call;
use crate::tables;

/// Rows of results in one answer.
const MAX_RESULTS: u64 = 100;
/// Hunts in one list.
const MAX_HUNTS: u64 = 1_000;

fn id(text: &str) -> Result<HuntId, Status> {
    text.parse().map_err(|_| Status::not_found(format!("Hunt not found: {text}")))
}

pub(crate) fn create_hunt(call: Call, request: proto::Hunt) -> Result<proto::StartFlowResponse, Status> {
    // The service records its own refusals.
    let id = call.session.create_hunt(request).map_err(|error| crate::status::of(&error))?;
    Ok(proto::StartFlowResponse { flow_id: id.to_string() })
}

pub(crate) fn modify_hunt(call: Call, request: proto::HuntMutation) -> Result<(), Status> {
    let request = proto::HuntMutation { user: call.session.principal().to_string(), ..request };
    call.session.modify_hunt(&request).map_err(|error| call.failed(&error))
}

pub(crate) fn estimate_hunt(call: Call, request: proto::HuntEstimateRequest) -> Result<proto::HuntStats, Status> {
    let active_us = request.last_active.saturating_mul(1_000_000);
    let count = call.session.org().estimate_hunt(request.condition.as_ref(), active_us).map_err(|error| call.failed(&error))?;
    Ok(proto::HuntStats { total_clients_scheduled: count, ..proto::HuntStats::default() })
}

pub(crate) fn list_hunts(call: Call, request: proto::ListHuntsRequest) -> Result<proto::ListHuntsResponse, Status> {
    let mut items = call.session.org().hunts().map_err(|error| call.failed(&error))?;
    items.retain(|hunt| request.user_filter.is_empty() || hunt.creator == request.user_filter);
    let total = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let count = if request.count == 0 { MAX_HUNTS } else { request.count.min(MAX_HUNTS) };
    let (skip, take) = (usize::try_from(request.offset).unwrap_or(usize::MAX), usize::try_from(count).unwrap_or(usize::MAX));
    let items = items.into_iter().skip(skip).take(take).collect();
    Ok(proto::ListHuntsResponse { items, total })
}

pub(crate) fn get_hunt(call: Call, request: proto::GetHuntRequest) -> Result<proto::Hunt, Status> {
    let id = id(&request.hunt_id)?;
    let hunt = call.session.org().hunt(&id).map_err(|error| call.failed(&error))?;
    let mut hunt = hunt.ok_or_else(|| Status::not_found(format!("Hunt not found: {}", request.hunt_id)))?;
    if request.include_request {
        hunt.start_request = call.session.org().hunt_request(&id).map_err(|error| call.failed(&error))?;
    }
    Ok(hunt)
}

pub(crate) fn get_hunt_tags(call: Call, (): ()) -> Result<proto::HuntTags, Status> {
    let hunts = call.session.org().hunts().map_err(|error| call.failed(&error))?;
    let tags: std::collections::BTreeSet<String> = hunts.into_iter().flat_map(|hunt| hunt.tags).collect();
    Ok(proto::HuntTags { tags: tags.into_iter().collect() })
}

pub(crate) fn get_hunt_table(call: Call, request: proto::GetTableRequest) -> Result<proto::GetTableResponse, Status> {
    const COLUMNS: &[&str] = &["State", "Tags", "HuntId", "Description", "Created", "Started", "Expires", "Scheduled", "Creator"];
    let hunts = call.session.org().hunts().map_err(|error| call.failed(&error))?;
    let row = |hunt: proto::Hunt| {
        let scheduled = hunt.stats.as_ref().map_or(0, |stats| stats.total_clients_scheduled);
        let state = hunt.state().as_str_name();
        let tags = if hunt.tags.is_empty() { Value::Null } else { Value::list(hunt.tags.iter().map(|tag| Value::str(tag.as_str()))) };
        Dict::new()
            .with("State", state)
            .with("Tags", tags)
            .with("HuntId", hunt.hunt_id)
            .with("Description", hunt.hunt_description)
            .with("Created", hunt.create_time)
            .with("Started", hunt.start_time)
            .with("Expires", hunt.expires)
            .with("Scheduled", scheduled)
            .with("Creator", hunt.creator)
    };
    tables::page(&request, COLUMNS, Box::new(hunts.into_iter().map(|hunt| Ok(row(hunt)))))
}

pub(crate) fn get_hunt_flows(call: Call, request: proto::GetTableRequest) -> Result<proto::GetTableResponse, Status> {
    const COLUMNS: &[&str] = &["ClientId", "Hostname", "FlowId", "StartedTime", "State", "Duration", "TotalBytes", "TotalRows"];
    let org = call.session.org();
    let clients = org.hunt_clients(&id(&request.hunt_id)?).map_err(|error| call.failed(&error))?;
    if clients.is_empty() {
        return Ok(tables::missing(COLUMNS));
    }
    let rows = clients.into_iter().map(|participant| {
        let invalid = |_| Status::unknown("a stored client of the hunt is damaged");
        let client: ClientId = participant.client_id.parse().map_err(invalid)?;
        let info = org.client(&client).map_err(|error| call.failed(&error))?.unwrap_or_default();
        let flow = participant.flow_id.parse().map_err(invalid)?;
        let context = org.flow(&Target::Client(client), &flow).map_err(|error| call.failed(&error))?.unwrap_or_default();
        let state = context.state().as_str_name();
        Ok(Dict::new()
            .with("ClientId", participant.client_id)
            .with("Hostname", info.hostname)
            .with("FlowId", participant.flow_id)
            .with("StartedTime", context.start_time)
            .with("State", state)
            .with("Duration", context.execution_duration / 1_000_000_000)
            .with("TotalBytes", context.total_uploaded_bytes)
            .with("TotalRows", context.total_collected_rows))
    });
    tables::page(&request, COLUMNS, Box::new(rows))
}

pub(crate) fn get_hunt_results(call: Call, request: proto::GetHuntResultsRequest) -> Result<proto::GetTableResponse, Status> {
    let org = call.session.org();
    let query = request.artifact.parse().map_err(|_| Status::unknown("Invalid request"))?;
    let clients = org.hunt_clients(&id(&request.hunt_id)?).map_err(|error| call.failed(&error))?;
    let rows = clients.into_iter().flat_map(|participant| {
        let place = participant.client_id.parse::<ClientId>().ok().zip(participant.flow_id.parse().ok());
        let lines = place.map(|(client, flow)| org.rows(&flow_rows(&Target::Client(client), &flow, &query), 0));
        let lines = match lines {
            Some(Ok(lines)) => Some(lines),
            Some(Err(_)) | None => None,
        };
        lines.into_iter().flatten().map(move |line| {
            let line = line.map_err(|error| crate::status::of(&error))?;
            let mut row =
                json::decode_row(line.as_bytes()).map_err(|error| Status::unknown(format!("a stored row is damaged: {error}")))?;
            row.update("ClientId", participant.client_id.as_str());
            Ok(row)
        })
    });
    let count = if request.count == 0 { MAX_RESULTS } else { request.count.min(MAX_RESULTS) };
    let taken = rows.skip(usize::try_from(request.offset).unwrap_or(usize::MAX)).take(usize::try_from(count).unwrap_or(usize::MAX));
    let page = proto::GetTableRequest { rows: count, ..proto::GetTableRequest::default() };
    tables::page(&page, &[], Box::new(taken))
}
