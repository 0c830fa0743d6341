//! The methods that answer once, after the decision.

use bytes::Bytes;
use talon_audit::Details;
use talon_ids::{FlowId, Target};
use talon_proto as proto;
use talon_server::{LabelOperation, Push, Pusher, api_client};
use tonic::{Request, Response, Status, Streaming};

use crate::decide;
use crate::methods::Method;
use crate::service::{ApiService, Call, blocking};
use crate::stored;

/// The most clients in one answer.
const MAX_CLIENTS: u64 = 10_000;

/// The caller may; the method is not there yet.
pub(crate) fn later<Q, A>(call: Call, _: Q) -> Result<A, Status> {
    Err(Status::unimplemented(format!("{} is not available on this server yet", call.method.row().name)))
}

/// A scheduler that has no jobs to give.
pub(crate) type NoJobs = tokio_stream::Empty<Result<proto::ScheduleResponse, Status>>;

pub(crate) async fn scheduler(
    service: &ApiService,
    request: Request<Streaming<proto::ScheduleRequest>>,
) -> Result<Response<NoJobs>, Status> {
    let (pending, _) = service.pending(Method::Scheduler, request)?;
    blocking(move || {
        let call = pending.admit()?;
        decide::datastore_access(&call)?;
        later(call, ())
    })
    .await
}

pub(crate) fn serving() -> proto::HealthCheckResponse {
    proto::HealthCheckResponse { status: proto::health_check_response::ServingStatus::Serving.into() }
}

pub(crate) fn push_events(call: Call, request: proto::PushEventRequest) -> Result<(), Status> {
    let authority = call.session.authority();
    let permit = authority.permit_publish(&request.artifact).map_err(|denial| call.refused(&denial, &denial.to_string()))?;
    let target: Target = if request.client_id.is_empty() {
        return Err(Status::unknown("Only servers can write to a SERVER_EVENT artifact_type"));
    } else if request.client_id == "server" {
        Target::Server
    } else {
        Target::Client(call.session.org().parse_client(&request.client_id).map_err(|error| call.failed(&error))?)
    };
    let queue = request.artifact.parse().map_err(|_| Status::unknown(format!("Artifact {} not known", request.artifact)))?;
    let jsonl = String::from_utf8(request.jsonl.into()).map_err(|_| Status::unknown("the rows are not UTF-8"))?;
    let push = Push { queue, target, jsonl, keep: request.write };
    let pusher = if authority.is_superuser() { Pusher::Server { source: authority.principal() } } else { Pusher::User(&permit) };
    let pushed = call.session.org().push_and_publish(&pusher, push);
    pushed.map(drop).map_err(|error| match &error {
        talon_server::ServerError::NotFound { what: "Artifact", name } => Status::unknown(format!("Artifact {name} not known")),
        _ => call.failed(&error),
    })
}

pub(crate) fn vfs_get_buffer(call: Call, request: proto::VfsFileBuffer) -> Result<proto::VfsFileBuffer, Status> {
    let data: Bytes = stored::read(&call, &request)?;
    Ok(proto::VfsFileBuffer { data, ..proto::VfsFileBuffer::default() })
}

pub(crate) fn collect_artifact(call: Call, request: proto::ArtifactCollectorArgs) -> Result<proto::ArtifactCollectorResponse, Status> {
    // The service records its own refusals.
    let (flow, request) = call.session.collect(request).map_err(|error| crate::status::of(&error))?;
    Ok(proto::ArtifactCollectorResponse { flow_id: flow.to_string(), request: Some(request) })
}

pub(crate) fn cancel_flow(call: Call, request: proto::ApiFlowRequest) -> Result<proto::StartFlowResponse, Status> {
    let target = crate::tables::target(&call.session, &request.client_id)?;
    let flow: FlowId = request.flow_id.parse().map_err(|_| Status::not_found(format!("Flow not found: {}", request.flow_id)))?;
    let reason = talon_server::cancelled_by(call.session.principal());
    call.session.cancel(&target, &flow, &reason).map_err(|error| call.failed(&error))?;
    Ok(proto::StartFlowResponse { flow_id: flow.to_string() })
}

pub(crate) fn get_flow_details(call: Call, request: proto::ApiFlowRequest) -> Result<proto::FlowDetails, Status> {
    let not_found = || Status::not_found(format!("Flow not found: {}", request.flow_id));
    let target: Target = request.client_id.parse().map_err(|_| not_found())?;
    let flow: FlowId = request.flow_id.parse().map_err(|_| not_found())?;
    let context = call.session.org().flow(&target, &flow).map_err(|error| call.failed(&error))?.ok_or_else(not_found)?;
    Ok(proto::FlowDetails { context: Some(context), ..proto::FlowDetails::default() })
}

pub(crate) fn list_clients(call: Call, request: proto::SearchClientsRequest) -> Result<proto::SearchClientsResponse, Status> {
    let found = call.session.org().search_clients(&request.query).map_err(|error| call.failed(&error))?;
    let limit = if request.limit == 0 { MAX_CLIENTS } else { request.limit.min(MAX_CLIENTS) };
    let page = |skip: u64, take: u64| (usize::try_from(skip).unwrap_or(usize::MAX), usize::try_from(take).unwrap_or(usize::MAX));
    let (skip, take) = page(request.offset, limit);
    let total = found.len() as u64;
    let items = found.iter().skip(skip).take(take).map(api_client).collect();
    Ok(proto::SearchClientsResponse { items, total, ..proto::SearchClientsResponse::default() })
}

/// A client that does not exist is an empty answer.
pub(crate) fn get_client(call: Call, request: proto::GetClientRequest) -> Result<proto::ApiClient, Status> {
    let Ok(client) = call.session.org().parse_client(&request.client_id) else { return Ok(proto::ApiClient::default()) };
    let info = call.session.org().client(&client).map_err(|error| call.failed(&error))?;
    Ok(info.as_ref().map(api_client).unwrap_or_default())
}

pub(crate) fn label_clients(call: Call, request: proto::LabelClientsRequest) -> Result<proto::ApiResponse, Status> {
    let (operation, name) = match request.operation.as_str() {
        "set" => (LabelOperation::Set, "SetClientLabel"),
        "remove" => (LabelOperation::Remove, "RemoveClientLabel"),
        _ => return Err(Status::unknown("unknown label operation")),
    };
    let org = call.session.org();
    for text in &request.client_ids {
        let client = org.parse_client(text).map_err(|error| call.failed(&error))?;
        let permit = call.session.authority().permit().map_err(|denial| call.refused(&denial, "User is not allowed to label clients."))?;
        let details = Details::new().text("client_id", client.as_str()).list("label", &request.labels);
        let receipt = call.session.record(name, details).map_err(|error| call.failed(&error))?;
        let labelled = org.label_client(&permit, receipt, &client, operation, request.labels.clone());
        labelled.and_then(talon_server::Pending::wait).map_err(|error| call.failed(&error))?;
    }
    Ok(proto::ApiResponse::default())
}

pub(crate) fn reformat_vql(_: Call, request: proto::ReformatVqlMessage) -> Result<proto::ReformatVqlMessage, Status> {
    let program = talon_vql::parse(&request.vql).map_err(|error| Status::unknown(error.to_string()))?;
    let vql = talon_vql::format::pretty(&program, &request.vql);
    Ok(proto::ReformatVqlMessage { vql, ..request })
}

pub(crate) fn get_client_monitoring_state(
    call: Call,
    _: proto::GetClientMonitoringStateRequest,
) -> Result<proto::ClientEventTable, Status> {
    Ok(call.session.org().monitoring_table())
}
