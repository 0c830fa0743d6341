//! `org`, `orgs`. The secret with which clients enrol is shown to administrators only.

use talon_ids::Permission;
use talon_server::{Org, Session};
use talon_vql::{Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::access::{failed, session};

const ORG: Signature = Signature::function("org", "Gives the organisation of the query.");
const ORGS: Signature = Signature::plugin("orgs", "Gives the organisations that the caller is a member of.");

pub(crate) fn register(registry: &mut Registry) {
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
    let allows = |permission| there.authority().allows(permission);
    Ok(if allows(Permission::OrgAdmin) || allows(Permission::ServerAdmin) {
        Standing::Administrator
    } else if allows(Permission::ReadResults) {
        Standing::Member
    } else {
        Standing::Stranger
    })
}

/// The configuration that clients of the organisation are deployed with; the root organisation's is the one that the server has whole.
fn client_config(session: &Session, org: &Org) -> Value {
    let config = session.server().settings().client_config.as_str();
    if config.is_empty() || !org.id().is_root() { Value::Null } else { Value::str(config) }
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
