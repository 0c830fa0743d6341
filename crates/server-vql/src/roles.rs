//! `roles`, `role_set`, `role_delete`: the roles of an organisation, fixed and its own.

use talon_acl::Role;
use talon_ids::{Permission, Permissions};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::access::{failed, session};

const ROLES: Signature =
    Signature::plugin("roles", "Gives the roles of the organisation and what they hold.").permissions(&[Permission::ReadResults]);

const SET: Signature = Signature::function("role_set", "Makes a role of the organisation, or changes what it holds.")
    .args(&[
        Arg::required("name", ArgType::String, "Its name: small letters, digits, _ and -."),
        Arg::required("permissions", ArgType::Strings, "The permissions; none that the caller lacks."),
    ])
    .permissions(&[Permission::ServerAdmin]);

const DELETE: Signature = Signature::function("role_delete", "Deletes a role of the organisation that nobody holds.")
    .args(&[Arg::required("name", ArgType::String, "Its name.")])
    .permissions(&[Permission::ServerAdmin]);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(ROLES, roles);
    registry.function(SET, set);
    registry.function(DELETE, delete);
}

fn row(name: &str, custom: bool, permissions: Permissions) -> Dict {
    let permissions = Value::list(permissions.iter().map(|permission| Value::str(permission.name())));
    Dict::new().with("name", name).with("custom", custom).with("permissions", permissions)
}

fn roles(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let org = session.org().id();
    let mut rows: Vec<Dict> = Role::ALL.iter().map(|role| row(role.name(), false, role.permissions(org))).collect();
    rows.extend(session.custom_roles().map_err(failed)?.iter().map(|role| row(role.name(), true, role.permissions())));
    Ok(Rows::of(rows))
}

fn set(call: Call) -> Result<Value, CallError> {
    let name = call.string("name");
    let permissions: Result<Permissions, _> =
        call.strings("permissions").iter().map(|permission| permission.parse::<Permission>()).collect();
    let permissions = permissions.map_err(CallError::failed)?;
    let role = session(call.scope())?.set_role(&name, permissions).map_err(failed)?;
    Ok(Value::Dict(row(role.name(), true, role.permissions()).into()))
}

fn delete(call: Call) -> Result<Value, CallError> {
    let name = call.string("name");
    session(call.scope())?.delete_role(&name).map_err(failed)?;
    Ok(Value::str(name))
}
