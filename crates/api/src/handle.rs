//! The methods that answer once, after the decision.

use bytes::Bytes;
use talon_acl::{Policy, Role};
use talon_audit::Details;
use talon_ids::{FlowId, OrgId, Target, UserName};
use talon_proto as proto;
use talon_server::{LabelOperation, Push, Pusher, UserChange, api_client};
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
    let client = decide::client_of(&request.client_id)?;
    let flow: FlowId = request.flow_id.parse().map_err(|_| Status::not_found(format!("Flow not found: {}", request.flow_id)))?;
    let reason = talon_server::cancelled_by(call.session.principal());
    call.session.cancel(&client, &flow, &reason).map_err(|error| call.failed(&error))?;
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

pub(crate) fn get_user(call: Call, request: proto::UserRequest) -> Result<proto::VelociraptorUser, Status> {
    let not_found = || Status::unknown(format!("User not found: {}", request.name));
    let name: UserName = request.name.parse().map_err(|_| not_found())?;
    let user = call.session.server().users().user(&name).map_err(|error| call.failed(&error))?.ok_or_else(not_found)?;
    Ok(proto::VelociraptorUser { name: user.name, ..proto::VelociraptorUser::default() })
}

pub(crate) fn get_user_roles(call: Call, request: proto::UserRequest) -> Result<proto::UserRoles, Status> {
    let not_found = || Status::not_found(format!("User not found: {}", request.name));
    let name: UserName = request.name.parse().map_err(|_| not_found())?;
    let users = call.session.server().users();
    let org = call.session.org();
    if users.user(&name).map_err(|error| call.failed(&error))?.is_none() {
        return Err(not_found());
    }
    let policy = users.policy(org.id(), &name).map_err(|error| call.failed(&error))?.unwrap_or_default();
    let names = |permissions: talon_ids::Permissions| permissions.iter().map(|permission| permission.name().to_owned()).collect();
    let listed = talon_ids::Permission::ALL.iter().filter(|permission| **permission != talon_ids::Permission::Publish);
    Ok(proto::UserRoles {
        name: request.name,
        org: org.id().to_string(),
        org_name: org.name().to_owned(),
        permissions: names(policy.granted()),
        roles: policy.roles().iter().map(ToString::to_string).collect(),
        effective_permissions: names(policy.effective(org.id()).permissions()),
        all_roles: Role::ALL.iter().map(ToString::to_string).collect(),
        all_permissions: listed.map(|permission| permission.name().to_owned()).collect(),
    })
}

/// Replaces roles and single permissions. Queues that the user may push to stay: the request has no field for them.
pub(crate) fn set_user_roles(call: Call, request: proto::UserRoles) -> Result<(), Status> {
    let invalid = |error: talon_acl::PolicyError| Status::unknown(error.to_string());
    let name: UserName = request.name.parse().map_err(|_| Status::unknown(format!("User not found: {}", request.name)))?;
    let org = org_of(&call, &request.org)?;
    let unknown = |_| Status::unknown("Unknown permission");
    let granted = request.permissions.iter().map(|name| name.parse()).collect::<Result<_, _>>().map_err(unknown)?;
    let policy = Policy::of_role_names(request.roles.iter().map(String::as_str)).map_err(invalid)?.with_permissions(granted);
    let kept = call.session.server().users().policy(&org, &name).map_err(|error| call.failed(&error))?.unwrap_or_default();
    let policy = kept.publish_queues().iter().fold(policy, |policy, queue| policy.with_queue(queue.as_str()));
    change(&call, "user_grant", &[org], UserChange { policy: Some(policy), ..UserChange::of(name) })
}

pub(crate) fn create_user(call: Call, request: proto::UpdateUserRequest) -> Result<(), Status> {
    let name: UserName = request.name.parse().map_err(|_| Status::unknown(format!("Unacceptable username {}", request.name)))?;
    let mut orgs = request.orgs.iter().map(|org| org_of(&call, org)).collect::<Result<Vec<_>, _>>()?;
    if orgs.is_empty() {
        orgs.push(call.session.org().id().clone());
    }
    let policy = Policy::of_role_names(request.roles.iter().map(String::as_str)).map_err(|error| Status::unknown(error.to_string()))?;
    change(&call, "user_create", &orgs, UserChange { create: request.add_new_user, policy: Some(policy), ..UserChange::of(name) })
}

fn org_of(call: &Call, text: &str) -> Result<OrgId, Status> {
    if text.is_empty() { Ok(call.session.org().id().clone()) } else { text.parse().map_err(|_| Status::unknown("Org not found")) }
}

fn change(call: &Call, operation: &str, orgs: &[OrgId], change: UserChange) -> Result<(), Status> {
    let server = call.session.server();
    let right = server.users().right_over(call.session.principal(), orgs).map_err(|error| call.failed(&error))?;
    let roles = change.policy.iter().flat_map(|policy| policy.roles()).map(ToString::to_string);
    let granted =
        change.policy.iter().flat_map(|policy| policy.granted().iter().collect::<Vec<_>>()).map(|permission| permission.to_string());
    let details = Details::new()
        .text("username", change.user.as_str())
        .list("acl", roles.chain(granted))
        .list("org_ids", orgs.iter().map(OrgId::as_str));
    let receipt = call.session.record(operation, details).map_err(|error| call.failed(&error))?;
    let changed = server.users().change(&right, receipt, change, &talon_crypto::SystemRng);
    changed.and_then(talon_server::Pending::wait).map_err(|error| call.failed(&error))
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
