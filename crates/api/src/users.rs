//! Methods about users: who there is, what they may do, what they set for themselves.

use talon_acl::Role;
use talon_ids::{OrgId, Permission, Permissions, UserName};
use talon_proto as proto;
use talon_server::UserChange;
use tonic::Status;

use crate::service::Call;

/// Somebody's record, with the organisations in which the caller may know of them.
pub(crate) fn get_user(call: Call, request: proto::UserRequest) -> Result<proto::VelociraptorUser, Status> {
    let not_found = || Status::unknown(format!("User not found: {}", request.name));
    let name: UserName = request.name.parse().map_err(|_| not_found())?;
    let users = call.session.server().users();
    let user = users.user(&name).map_err(|error| call.failed(&error))?.ok_or_else(not_found)?;
    let own = name.folded() == call.session.principal().folded();
    let (mut orgs, mut administers) = (Vec::new(), own);
    for org in users.orgs_of(&name).map_err(|error| call.failed(&error))? {
        let there = users.authority(call.session.principal(), &org).map_err(|error| call.failed(&error))?;
        let may = |permission| there.holds_by_policy(Permissions::of(&[permission]));
        administers |= may(Permission::ServerAdmin) || may(Permission::OrgAdmin);
        if own || may(Permission::ServerAdmin) || may(Permission::OrgAdmin) || may(Permission::ReadResults) {
            orgs.push(call.session.public_record(&org).map_err(|error| call.failed(&error))?);
        }
    }
    let mut shown = proto::VelociraptorUser { name: user.name, orgs, ..proto::VelociraptorUser::default() };
    if administers {
        shown.stats = user.stats;
        shown.picture = user.picture;
        shown.verified_email = user.verified_email;
        shown.locked = user.locked;
    }
    Ok(shown)
}

pub(crate) fn get_users(call: Call, (): ()) -> Result<proto::Users, Status> {
    let users = call.session.users_in(&[call.session.org().id().clone()]).map_err(|error| call.failed(&error))?;
    Ok(proto::Users { users })
}

pub(crate) fn get_global_users(call: Call, (): ()) -> Result<proto::Users, Status> {
    let orgs = call.session.server().users().orgs().map_err(|error| call.failed(&error))?;
    Ok(proto::Users { users: call.session.users_in(&orgs).map_err(|error| call.failed(&error))? })
}

pub(crate) fn get_user_roles(call: Call, request: proto::UserRequest) -> Result<proto::UserRoles, Status> {
    let not_found = || Status::not_found(format!("User not found: {}", request.name));
    let name: UserName = request.name.parse().map_err(|_| not_found())?;
    let users = call.session.server().users();
    let org = call.session.org();
    if users.user(&name).map_err(|error| call.failed(&error))?.is_none() && name != *users.superuser() {
        return Err(not_found());
    }
    let policy = users.usable_policy(org.id(), &name).map_err(|error| call.failed(&error))?.unwrap_or_default();
    let custom = users.roles(org.id()).map_err(|error| call.failed(&error))?;
    let names = |permissions: Permissions| permissions.iter().map(|permission| permission.name().to_owned()).collect();
    let listed = Permission::ALL.iter().filter(|permission| **permission != Permission::Publish);
    let all_roles = Role::ALL.iter().map(ToString::to_string).chain(custom.iter().map(|role| role.name().to_owned()));
    Ok(proto::UserRoles {
        name: request.name,
        org: request.org,
        org_name: org.name().to_owned(),
        permissions: names(policy.granted()),
        roles: policy.role_names().map(str::to_owned).collect(),
        effective_permissions: names(policy.effective(org.id()).permissions()),
        all_roles: all_roles.collect(),
        all_permissions: listed.map(|permission| permission.name().to_owned()).collect(),
    })
}

/// Replaces roles and single permissions. Queues that the user may push to stay: the request has no field for them.
pub(crate) fn set_user_roles(call: Call, request: proto::UserRoles) -> Result<(), Status> {
    let name: UserName = request.name.parse().map_err(|_| Status::unknown(format!("User not found: {}", request.name)))?;
    let org = org_of(&call, &request.org)?;
    let granted = request.permissions.iter().map(|name| name.parse()).collect::<Result<_, _>>();
    let granted = granted.map_err(|_| Status::unknown("Unknown permission"))?;
    let users = call.session.server().users();
    let policy = users.policy_of(&request.roles, std::slice::from_ref(&org)).map_err(|error| call.failed(&error))?;
    let kept = users.usable_policy(&org, &name).map_err(|error| call.failed(&error))?.unwrap_or_default();
    let policy = kept.publish_queues().iter().fold(policy.with_permissions(granted), |policy, queue| policy.with_queue(queue.as_str()));
    change(&call, "user_grant", &[org], UserChange { policy: Some(policy), ..UserChange::of(name) })
}

pub(crate) fn create_user(call: Call, request: proto::UpdateUserRequest) -> Result<(), Status> {
    let name: UserName = request.name.parse().map_err(|_| Status::unknown(format!("Unacceptable username {}", clipped(&request.name))))?;
    let mut orgs = request.orgs.iter().map(|org| org_of(&call, org)).collect::<Result<Vec<_>, _>>()?;
    if orgs.is_empty() {
        orgs.push(call.session.org().id().clone());
    }
    // Whoever is made without a role reads.
    let roles = if request.roles.is_empty() && request.add_new_user { vec![Role::Reader.name().to_owned()] } else { request.roles };
    let policy = call.session.server().users().policy_of(&roles, &orgs).map_err(|error| call.failed(&error))?;
    change(&call, "user_create", &orgs, UserChange { create: request.add_new_user, policy: Some(policy), ..UserChange::of(name) })
}

pub(crate) fn set_password(call: Call, request: proto::SetPasswordRequest) -> Result<(), Status> {
    let user = if request.username.is_empty() {
        call.session.principal().clone()
    } else {
        request.username.parse().map_err(|_| Status::permission_denied("PermissionDenied"))?
    };
    call.session.set_password(&user, request.password.into()).map_err(|error| call.failed(&error))
}

pub(crate) fn set_gui_options(call: Call, request: proto::SetGuiOptionsRequest) -> Result<proto::SetGuiOptionsResponse, Status> {
    let user = call.session.principal().clone();
    call.session.set_options(&user, request).map_err(|error| call.failed(&error))?;
    Ok(proto::SetGuiOptionsResponse::default())
}

pub(crate) fn get_user_ui_traits(call: Call, (): ()) -> Result<proto::ApiUser, Status> {
    let (session, principal) = (&call.session, call.session.principal());
    let users = session.server().users();
    let options = session.options(principal).map_err(|error| call.failed(&error))?;
    let org = session.org();
    let orgs = users.orgs_of(principal).map_err(|error| call.failed(&error))?;
    let orgs = orgs.iter().map(|org| session.public_record(org)).collect::<Result<_, _>>().map_err(|error| call.failed(&error))?;
    let record = users.user(principal).map_err(|error| call.failed(&error))?;
    let policy = users.usable_policy(org.id(), principal).map_err(|error| call.failed(&error))?.unwrap_or_default();
    let traits = proto::ApiUserInterfaceTraits {
        ui_settings: options.options,
        theme: options.theme,
        default_password: options.default_password,
        default_downloads_lock: options.default_downloads_lock,
        permissions: Some(policy.effective(org.id()).to_proto()),
        customizations: options.customizations,
        picture: record.map(|record| record.picture).unwrap_or_default(),
        links: options.links,
        lang: options.lang,
        timezone: options.timezone,
        org: options.org,
        org_name: org.name().to_owned(),
        ..proto::ApiUserInterfaceTraits::default()
    };
    Ok(proto::ApiUser {
        username: principal.to_string(),
        interface_traits: Some(traits),
        user_type: proto::api_user::UserType::Admin.into(),
        orgs,
        ..proto::ApiUser::default()
    })
}

fn org_of(call: &Call, text: &str) -> Result<OrgId, Status> {
    if text.is_empty() { Ok(call.session.org().id().clone()) } else { text.parse().map_err(|_| Status::unknown("Org not found")) }
}

fn change(call: &Call, operation: &str, orgs: &[OrgId], change: UserChange) -> Result<(), Status> {
    call.session.change_user(operation, orgs, change).map_err(|error| match &error {
        // The user service of stock servers knows one code.
        talon_server::ServerError::NotFound { .. } => Status::unknown(error.to_string()),
        _ => call.failed(&error),
    })
}

fn clipped(text: &str) -> String {
    text.chars().take(80).collect()
}
