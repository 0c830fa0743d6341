//! `org`, `orgs`, `org_create`, `org_delete`. The secret with which clients enrol is shown to administrators only.

use talon_ids::{Permission, Permissions};
use talon_server::{Org, Session};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::access::{failed, session};

const ORG: Signature = Signature::function("org", "Gives the organisation of the query.");
const ORGS: Signature = Signature::plugin("orgs", "Gives the organisations that the caller is a member of.");

const CREATE: Signature = Signature::function("org_create", "Makes an organisation.")
    .args(&[
        Arg::required("name", ArgType::String, "The name that users see."),
        Arg::optional("org_id", ArgType::String, "Its id; a new one when left out."),
    ])
    .permissions(&[Permission::OrgAdmin]);

const DELETE: Signature = Signature::function("org_delete", "Deletes an organisation with everything in it.")
    .args(&[Arg::required("org", ArgType::String, "Its id."), Arg::optional("really_do_it", ArgType::Bool, "Without it nothing happens.")])
    .permissions(&[Permission::OrgAdmin]);

pub(crate) fn register(registry: &mut Registry) {
    registry.function(CREATE, create);
    registry.function(DELETE, delete);
    registry.function(ORG, org);
    registry.plugin(ORGS, orgs);
}

/// What the caller is in an organisation.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Stranger,
    Member,
    Administrator,
}

fn standing(session: &Session, org: &Org) -> Result<Standing, CallError> {
    let there = session.in_org(org.id()).map_err(failed)?;
    // Lockdown takes rights away, and nobody's membership.
    let allows = |permission| there.authority().holds_by_policy(Permissions::of(&[permission]));
    Ok(if allows(Permission::OrgAdmin) || allows(Permission::ServerAdmin) {
        Standing::Administrator
    } else if allows(Permission::ReadResults) {
        Standing::Member
    } else {
        Standing::Stranger
    })
}

/// The configuration that clients of the organisation are deployed with.
fn client_config(session: &Session, org: &Org) -> Value {
    let settings = session.server().settings();
    if org.id().is_root() {
        return if settings.client_config.is_empty() { Value::Null } else { Value::str(settings.client_config.as_str()) };
    }
    settings.client_config_of.as_ref().and_then(|of| of(org.nonce())).map_or(Value::Null, Value::str)
}

fn create(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let id = call.opt_string("org_id").filter(|id| !id.is_empty());
    let id = id.map(|id| id.parse().map_err(CallError::failed)).transpose()?;
    let made = session.create_org(&call.string("name"), id).map_err(failed)?;
    let row = Dict::new().with("id", made.id().as_str()).with("name", made.name()).with("nonce", made.nonce());
    Ok(Value::Dict(row.into()))
}

fn delete(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let org = call.string("org");
    if call.bool("really_do_it") {
        session.delete_org(&org.parse().map_err(CallError::failed)?).map_err(failed)?;
    }
    Ok(Value::str(org))
}

fn org(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let org = session.org();
    let mut row = Dict::new().with("name", org.name()).with("id", org.id().as_str());
    if standing(&session, org)? == Standing::Administrator {
        row.update("nonce", org.nonce());
        row.update("_client_config", client_config(&session, org));
    }
    Ok(Value::Dict(row.into()))
}

fn orgs(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let mut rows = Vec::new();
    for org in session.server().orgs() {
        let standing = standing(&session, &org)?;
        if standing == Standing::Stranger {
            continue;
        }
        let mut row = Dict::new().with("Name", org.name()).with("OrgId", org.id().as_str());
        if standing == Standing::Administrator {
            row.update("_client_config", client_config(&session, &org));
        }
        rows.push(row);
    }
    Ok(Rows::of(rows))
}
