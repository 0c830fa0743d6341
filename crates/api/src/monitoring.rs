//! The methods of event tables, of what they brought, and of metadata.

use std::collections::BTreeMap;

use talon_ids::{ArtifactName, QueryName, Target};
use talon_proto as proto;
use talon_server::MetadataPermit;
use tonic::Status;

use crate::service::Call;
use crate::tables::target;

pub(crate) fn get_server_monitoring_state(call: Call, (): ()) -> Result<proto::ArtifactCollectorArgs, Status> {
    Ok(call.session.org().server_monitoring())
}

pub(crate) fn set_server_monitoring_state(
    call: Call,
    request: proto::ArtifactCollectorArgs,
) -> Result<proto::ArtifactCollectorArgs, Status> {
    call.session.set_server_monitoring(request).map_err(|error| call.failed(&error))
}

pub(crate) fn set_client_monitoring_state(call: Call, request: proto::ClientEventTable) -> Result<(), Status> {
    call.session.set_monitoring(request).map_err(|error| call.failed(&error))
}

pub(crate) fn get_client_metadata(call: Call, request: proto::GetClientRequest) -> Result<proto::ClientMetadata, Status> {
    let target = target(&call.session, &request.client_id)?;
    let metadata = call.session.org().metadata(&target).map_err(|error| call.failed(&error))?;
    let items = metadata.into_iter().map(|(key, value)| proto::ClientMetadataItem { key, value }).collect();
    Ok(proto::ClientMetadata { items, client_id: request.client_id })
}

pub(crate) fn set_client_metadata(call: Call, request: proto::SetClientMetadataRequest) -> Result<(), Status> {
    let target = target(&call.session, &request.client_id)?;
    let permit = call.session.authority().permit().map_err(|denial| call.refused(&denial, &call.method.row().refusal(&denial)))?;
    let mut changes: BTreeMap<String, Option<String>> = request.remove.into_iter().map(|key| (key, None)).collect();
    changes.extend(request.add.into_iter().map(|item| (item.key, Some(item.value))));
    call.session.set_metadata(&MetadataPermit::Label(permit), &target, changes).map_err(|error| call.failed(&error))
}

/// Lets waiting clients look for work.
pub(crate) fn notify_clients(call: Call, request: proto::NotificationRequest) -> Result<(), Status> {
    let client = if request.client_id.is_empty() {
        None
    } else {
        Some(call.session.org().parse_client(&request.client_id).map_err(|error| call.failed(&error))?)
    };
    call.session.notify(client.as_ref()).map_err(|error| call.failed(&error))
}

/// The event artifacts of a client or of the server that have rows or log lines, and the days of one of them.
pub(crate) fn list_available_event_results(
    call: Call,
    request: proto::ListAvailableEventResultsRequest,
) -> Result<proto::ListAvailableEventResultsResponse, Status> {
    let org = call.session.org();
    let target = if request.client_id.is_empty() { Target::Server } else { target(&call.session, &request.client_id)? };
    let mut queues = org.event_queues(&target).map_err(|error| call.failed(&error))?;
    if !request.artifact.is_empty() {
        let wanted: QueryName = request.artifact.parse().map_err(|_| Status::unknown("Invalid request"))?;
        queues.retain(|queue| *queue == wanted);
    }
    let mut logs = Vec::new();
    for queue in queues {
        let mut event = proto::AvailableEvent { artifact: queue.to_string(), ..proto::AvailableEvent::default() };
        event.definition = definition(&call, &queue.artifact);
        if !request.artifact.is_empty() {
            event.row_timestamps = days(&call, &target, &queue, false)?;
            event.log_timestamps = days(&call, &target, &queue, true)?;
        }
        logs.push(event);
    }
    Ok(proto::ListAvailableEventResultsResponse { logs })
}

fn definition(call: &Call, name: &ArtifactName) -> Option<proto::Artifact> {
    let definition = call.session.org().artifacts().get(name.as_str())?;
    let artifact = definition.proto();
    Some(proto::Artifact { name: artifact.name.clone(), r#type: artifact.r#type.clone(), ..proto::Artifact::default() })
}

fn days(call: &Call, target: &Target, queue: &QueryName, logs: bool) -> Result<Vec<i32>, Status> {
    let days = call.session.org().event_days(target, queue, logs).map_err(|error| call.failed(&error))?;
    let midnight = |day: &String| {
        let time = talon_vql::moment(&talon_vql::Value::str(format!("{day}T00:00:00Z")), &scope())?;
        i32::try_from(time.unix()).ok()
    };
    Ok(days.iter().filter_map(midnight).collect())
}

/// A scope in which a day is read: in UTC, with nothing in it.
fn scope() -> talon_vql::Scope {
    talon_vql::Environment::new(std::sync::Arc::default()).open()
}
