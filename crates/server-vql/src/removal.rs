//! Clients, flows and events come and go: `enumerate_flow`, `delete_flow`, `delete_events`, `client_create`, `client_delete`, `killkillkill`; and
//! `server_frontend_cert`, which agents are deployed with.

use talon_ids::Permission;
use talon_proto::ClientInfo;
use talon_server::Belonging;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value, moment};

use crate::access::{client, failed, flow, query_name, session, target};
use crate::message::to_dict;

const CLIENT: Arg = Arg::required("client_id", ArgType::String, "The client, or `server`.");
const FLOW: Arg = Arg::required("flow_id", ArgType::String, "The flow.");
const REALLY: Arg = Arg::optional("really_do_it", ArgType::Bool, "Without it, only tells what would be deleted.");

const ENUMERATE_FLOW: Signature = Signature::plugin("enumerate_flow", "Gives what a flow keeps in the store, one row each.")
    .args(&[CLIENT, FLOW])
    .permissions(&[Permission::ReadResults])
    .version(3);

const DELETE_FLOW: Signature = Signature::plugin("delete_flow", "Deletes a flow with everything that it collected.")
    .args(&[
        FLOW,
        CLIENT,
        REALLY,
        Arg::optional("sync", ArgType::Bool, "Accepted and without effect: the deletion is done when it returns."),
    ])
    .permissions(&[Permission::DeleteResults])
    .version(2);

const DELETE_EVENTS: Signature = Signature::plugin("delete_events", "Deletes stored events of a queue.")
    .args(&[
        Arg::required("artifact", ArgType::String, "The event artifact."),
        CLIENT,
        Arg::optional("start_time", ArgType::Any, "The first moment; the beginning when left out."),
        Arg::optional("end_time", ArgType::Any, "The moment after the last; now when left out."),
        REALLY,
    ])
    .permissions(&[Permission::DeleteResults]);

const CLIENT_CREATE: Signature = Signature::function("client_create", "Makes a client by hand, for example for imported collections.")
    .args(&[
        Arg::optional("first_seen_at", ArgType::Time, "When it was first seen."),
        Arg::optional("last_seen_at", ArgType::Time, "When it was last seen."),
        Arg::optional("labels", ArgType::Strings, "Its labels."),
        Arg::optional("os", ArgType::String, "Its operating system."),
        Arg::optional("hostname", ArgType::String, "Its host name."),
        Arg::optional("client_id", ArgType::String, "Its id; made up when left out."),
        Arg::optional("mac_addresses", ArgType::Strings, "Its network addresses."),
    ])
    .permissions(&[Permission::ServerAdmin])
    .version(2);

const CLIENT_DELETE: Signature = Signature::plugin("client_delete", "Removes a client and all that was collected from it.")
    .args(&[Arg::required("client_id", ArgType::String, "The client."), REALLY])
    .permissions(&[Permission::ServerAdmin]);

const KILL: Signature = Signature::function("killkillkill", "Asks an agent to end itself; whatever supervises it starts it again.")
    .args(&[Arg::required("client_id", ArgType::String, "The client.")])
    .permissions(&[Permission::MachineState])
    .version(2);

const CERTIFICATE: Signature = Signature::function("server_frontend_cert", "Gives the frontend's certificate in PEM.")
    .permissions(&[Permission::MachineState])
    .version(2);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(ENUMERATE_FLOW, enumerate_flow);
    registry.plugin(DELETE_FLOW, delete_flow);
    registry.plugin(DELETE_EVENTS, delete_events);
    registry.function(CLIENT_CREATE, client_create);
    registry.plugin(CLIENT_DELETE, client_delete);
    registry.function(KILL, kill);
    registry.function(CERTIFICATE, |call| {
        let pem = session(call.scope())?.server().certificate_pem();
        Ok(Value::str(String::from_utf8_lossy(&pem).into_owned()))
    });
}

fn rows(belongings: Vec<Belonging>) -> Rows {
    let row = |(number, found): (i64, Belonging)| {
        let data = Dict::new().with("VFSPath", format!("fs:{}", found.vfs_path));
        Dict::new().with("Id", number).with("Type", found.kind).with("Data", data).with("Error", "")
    };
    Rows::of((1..).zip(belongings).map(row).collect::<Vec<_>>())
}

fn enumerate_flow(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let target = target(&session, &call.string("client_id"))?;
    Ok(rows(session.org().flow_belongings(&target, &flow(&call.string("flow_id"))?).map_err(failed)?))
}

fn delete_flow(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let target = target(&session, &call.string("client_id"))?;
    let flow = flow(&call.string("flow_id"))?;
    Ok(rows(session.delete_flow(&target, &flow, call.bool("really_do_it")).map_err(failed)?))
}

fn delete_events(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let target = target(&session, &call.string("client_id"))?;
    let queue = query_name(&call.string("artifact"), "")?;
    let bound = |name: &str| moment(&call.value(name), call.scope()).and_then(|time| u64::try_from(time.unix()).ok());
    let now = u64::try_from(call.scope().now().unix()).unwrap_or(0);
    let between = (bound("start_time").unwrap_or(0), bound("end_time").unwrap_or_else(|| now.saturating_add(1)));
    Ok(rows(session.delete_events(&target, &queue, between, call.bool("really_do_it")).map_err(failed)?))
}

fn client_create(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let seconds = |name: &str| call.time(name).and_then(|time| u64::try_from(time.unix()).ok()).unwrap_or(0);
    let info = ClientInfo {
        client_id: call.string("client_id"),
        hostname: call.string("hostname"),
        system: call.string("os"),
        labels: call.strings("labels"),
        mac_addresses: call.strings("mac_addresses"),
        first_seen_at: seconds("first_seen_at"),
        ping: seconds("last_seen_at").saturating_mul(1_000_000),
        ..ClientInfo::default()
    };
    let made = session.create_client(info).map_err(failed)?;
    Ok(Value::Dict(to_dict("ClientInfo", &made)?.into()))
}

fn client_delete(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let client = client(&session, &call)?;
    let really = call.bool("really_do_it");
    let found = session.delete_client(&client, really).map_err(failed)?;
    let row = |found: Belonging| {
        let path = format!("fs:{}", found.vfs_path);
        Dict::new().with("client_id", client.as_str()).with("type", found.kind).with("vfs_path", path).with("really_do_it", really)
    };
    Ok(Rows::of(found.into_iter().map(row).collect::<Vec<_>>()))
}

fn kill(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let client = client(&session, &call)?;
    session.restart_agent(&client).map_err(failed)?;
    Ok(Value::str(session.org().client_text(&client)))
}
