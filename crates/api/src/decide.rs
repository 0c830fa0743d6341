//! Decisions that need the request: which permission it takes, in which organisation, over whom.

use talon_ids::{OrgId, Permission, UserName};
use talon_proto as proto;
use tonic::Status;

use crate::service::Call;
use crate::status;

/// The row says it all.
pub(crate) fn by_row<Q>(call: &mut Call, _: &Q) -> Result<(), Status> {
    call.by_row()
}

pub(crate) fn create_hunt(call: &mut Call, hunt: &proto::Hunt) -> Result<(), Status> {
    call.by_row()?;
    if hunt.state() == proto::hunt::State::Running {
        call.need(Permission::StartHunt)?;
    }
    if hunt.org_ids.is_empty() {
        return Ok(());
    }
    let authority = call.session.authority();
    let checked = authority.check(talon_ids::Permissions::of(&[Permission::OrgAdmin]));
    checked.map_err(|denial| call.refused(&denial, "User is not allowed to launch hunts in other orgs."))?;
    hunt.org_ids.iter().try_for_each(|org| {
        let org: OrgId = org.parse().map_err(|_| Status::unknown("Org not found"))?;
        let there = call.session.in_org(&org).map_err(|error| status::of(&error))?;
        let checked = there.authority().check(talon_ids::Permissions::of(&[Permission::CollectClient]));
        checked.map_err(|denial| {
            let text = format!("CreateHunt: User is not allowed to launch hunts in org {org}.");
            let _ = call.refused(&denial, &text);
            Status::unknown(text)
        })
    })
}

pub(crate) fn modify_hunt(call: &mut Call, change: &proto::HuntMutation) -> Result<(), Status> {
    call.by_row()?;
    match proto::hunt::State::try_from(change.state) {
        Ok(proto::hunt::State::Running) => call.need(Permission::StartHunt),
        Ok(proto::hunt::State::Deleted) => call.need(Permission::DeleteResults),
        _ => Ok(()),
    }
}

pub(crate) fn get_client_metadata(call: &mut Call, request: &proto::GetClientRequest) -> Result<(), Status> {
    call.need(if request.client_id == "server" { Permission::ServerAdmin } else { Permission::ReadResults })
}

/// A member of the organisation, or whoever administers all of them.
pub(crate) fn get_user_roles(call: &mut Call, request: &proto::UserRequest) -> Result<(), Status> {
    call.enter(&request.org)?;
    if call.session.authority().allows(Permission::OrgAdmin) { Ok(()) } else { call.need(Permission::ReadResults) }
}

pub(crate) fn set_user_roles(call: &mut Call, request: &proto::UserRoles) -> Result<(), Status> {
    administers(call, std::slice::from_ref(&request.org))
}

pub(crate) fn create_user(call: &mut Call, request: &proto::UpdateUserRequest) -> Result<(), Status> {
    administers(call, &request.orgs)
}

fn administers(call: &Call, orgs: &[String]) -> Result<(), Status> {
    let own = [call.session.org().id().clone()];
    let named = orgs.iter().map(|org| org.parse()).collect::<Result<Vec<OrgId>, _>>().map_err(|_| Status::unknown("Org not found"))?;
    let orgs = if named.is_empty() { own.as_slice() } else { named.as_slice() };
    let right = call.session.server().users().right_over(call.session.principal(), orgs);
    right.map(drop).map_err(|error| call.failed(&error))
}

/// Oneself, or a user of an organisation in which the caller reads or administers.
pub(crate) fn get_user(call: &mut Call, request: &proto::UserRequest) -> Result<(), Status> {
    let not_found = || Status::unknown(format!("User not found: {}", request.name));
    let target: UserName = request.name.parse().map_err(|_| not_found())?;
    let users = call.session.server().users();
    if users.user(&target).map_err(|error| status::of(&error))?.is_none() {
        return Err(not_found());
    }
    let principal = call.session.principal();
    let root = users.authority(principal, &OrgId::root()).map_err(|error| status::of(&error))?;
    if target.folded() == principal.folded() || root.holds_by_policy(talon_ids::Permissions::of(&[Permission::OrgAdmin])) {
        return Ok(());
    }
    for org in users.orgs_of(&target).map_err(|error| status::of(&error))? {
        let authority = users.authority(principal, &org).map_err(|error| status::of(&error))?;
        if authority.allows(Permission::ServerAdmin) || authority.allows(Permission::ReadResults) {
            return Ok(());
        }
    }
    call.need(Permission::OrgAdmin)
}

/// Oneself; others take the right to administer every organisation that the user is a member of.
pub(crate) fn set_password(call: &mut Call, request: &proto::SetPasswordRequest) -> Result<(), Status> {
    talon_server::check_new_password(&request.password).map_err(|error| Status::unknown(format!("InvalidStatus: {error}")))?;
    let principal = call.session.principal();
    if request.username.is_empty() || request.username.to_lowercase() == principal.folded() {
        return Ok(());
    }
    let users = call.session.server().users();
    let refused = || Status::permission_denied("PermissionDenied");
    let target: UserName = request.username.parse().map_err(|_| refused())?;
    let right = users.right_over(principal, &[]).and_then(|right| users.may_take_over(&right, &target));
    right.map_err(|error| {
        let status = call.failed(&error);
        if error.is_denied() { refused() } else { status }
    })
}

/// A permission over clients, another one over the server.
fn by_target(call: &Call, target: &str) -> Result<(), Status> {
    call.need(talon_acl::collection_permission(target == "server"))
}

pub(crate) fn flow(call: &mut Call, request: &proto::ApiFlowRequest) -> Result<(), Status> {
    by_target(call, &request.client_id)
}

pub(crate) fn collect(call: &mut Call, request: &proto::ArtifactCollectorArgs) -> Result<(), Status> {
    collect_from(call, &request.client_id)
}

pub(crate) fn vfs_download(call: &mut Call, request: &proto::VfsStatDownloadRequest) -> Result<(), Status> {
    collect_from(call, &request.client_id)
}

/// Whether anything may be collected there at all. What the artifacts ask for is decided where they are compiled.
fn collect_from(call: &Call, client: &str) -> Result<(), Status> {
    let permission = talon_acl::collection_permission(client == "server");
    let checked = call.session.authority().check(talon_ids::Permissions::of(&[permission]));
    checked.map_err(|denial| {
        let text = format!("PermissionDenied: User {} is not allowed to launch flows {permission}.", denial.principal);
        call.refused(&denial, &text)
    })
}

/// Artifacts of clients and of the server have different writers. What cannot be read is refused to whoever writes neither.
pub(crate) fn set_artifact_file(call: &mut Call, request: &proto::SetArtifactRequest) -> Result<(), Status> {
    let permission = artifact_writer(&request.artifact);
    let checked = call.session.authority().check(talon_ids::Permissions::of(&[permission]));
    checked.map_err(|denial| call.refused(&denial, &denial.for_api(&format!("User is not allowed to modify artifacts ({permission})."))))
}

fn artifact_writer(yaml: &str) -> Permission {
    let kind = yaml.lines().filter_map(|line| line.strip_prefix("type:")).next_back().map(|kind| kind.trim().to_ascii_uppercase());
    match kind.as_deref() {
        None | Some("CLIENT" | "CLIENT_EVENT" | "INTERNAL") => Permission::ArtifactWriter,
        Some(_) => Permission::ServerArtifactWriter,
    }
}

/// A lock leaves administrators one thing: queries that may do nothing but look at locks and vote them away.
pub(crate) fn query(call: &mut Call, request: &proto::VqlCollectorArgs) -> Result<(), Status> {
    call.enter(&request.org_id)?;
    let asked = call.method.row().requirement.before_request();
    let locked = call.session.authority().check(asked).is_err_and(|denial| matches!(denial.reason, talon_acl::Reason::Locked(_)));
    if locked && call.session.authority().holds_by_policy(asked) && call.session.may_lock().is_ok() {
        call.session = call.session.reduced_to_locks();
        return Ok(());
    }
    call.by_row()
}

/// The right counts in the organisation whose events are watched.
pub(crate) fn watch_event(call: &mut Call, request: &proto::EventRequest) -> Result<(), Status> {
    if !request.org_id.is_empty() {
        call.enter(&request.org_id)?;
    }
    call.by_row()
}

pub(crate) fn push_events(call: &mut Call, request: &proto::PushEventRequest) -> Result<(), Status> {
    call.enter(&request.org_id)?;
    let authority = call.session.authority();
    authority.permit_publish(&request.artifact).map(drop).map_err(|denial| {
        let text = format!("Permission denied: PUBLISH {} to {}", denial.principal, request.artifact);
        call.refused_by_token(&denial, &text)
    })
}

pub(crate) fn vfs_get_buffer(call: &mut Call, request: &proto::VfsFileBuffer) -> Result<(), Status> {
    call.enter(&request.org_id)?;
    call.by_row()
}

/// Only the server itself may name another organisation.
pub(crate) fn datastore(call: &mut Call, request: &proto::DataRequest) -> Result<(), Status> {
    if call.session.authority().is_superuser() {
        call.enter(&request.org_id)?;
    }
    datastore_access(call)
}

pub(crate) fn datastore_access(call: &Call) -> Result<(), Status> {
    let row = call.method.row();
    row.check(call.session.authority()).map_err(|denial| call.refused_by_token(&denial, &row.refusal(&denial)))
}
