//! `clients`, `client_info`, `label`.

use talon_ids::Permission;
use talon_proto::ClientInfo;
use talon_server::{LabelOperation, Session, api_client};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::access::{client, failed, session};
use crate::message::to_dict;

const CLIENTS: Signature = Signature::plugin("clients", "Gives a row for each client that a search finds.")
    .args(&[
        Arg::optional("search", ArgType::String, "What to look for, for example `host:web*` or `label:dmz`; all when left out."),
        Arg::optional("client_id", ArgType::String, "Only this client."),
    ])
    .permissions(&[Permission::ReadResults]);

const CLIENT_INFO: Signature = Signature::function("client_info", "Gives what is known of one client.")
    .args(&[Arg::required("client_id", ArgType::String, "The client.")])
    .permissions(&[Permission::ReadResults])
    .version(2);

const LABEL: Signature = Signature::function("label", "Adds labels to a client, removes them, or tells whether it has them all.")
    .args(&[
        Arg::required("client_id", ArgType::String, "The client."),
        Arg::required("labels", ArgType::Strings, "The labels."),
        Arg::optional("op", ArgType::String, "`set`, `remove` or `check`; `set` when left out."),
    ])
    .permissions(&[Permission::LabelClient]);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(CLIENTS, clients);
    registry.function(CLIENT_INFO, client_info);
    registry.function(LABEL, label);
}

fn row(session: &Session, info: &ClientInfo) -> Result<Dict, CallError> {
    let mut client = api_client(info);
    if let Ok(id) = client.client_id.parse() {
        client.client_id = session.org().client_text(&id);
    }
    to_dict("ApiClient", &client)
}

fn clients(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let found = match call.opt_string("client_id") {
        Some(id) if !id.is_empty() => {
            let id = session.org().parse_client(&id).map_err(failed)?;
            session.org().client(&id).map_err(failed)?.into_iter().collect()
        }
        _ => session.org().search_clients(&call.string("search")).map_err(failed)?,
    };
    Ok(Rows::try_of(found.into_iter().map(move |info| row(&session, &info))))
}

fn client_info(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let id = client(&session, &call)?;
    let found = session.org().client(&id).map_err(failed)?;
    Ok(found.map(|info| row(&session, &info)).transpose()?.map_or(Value::Null, |row| Value::Dict(row.into())))
}

fn label(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let (id, labels) = (client(&session, &call)?, call.strings("labels"));
    let op = call.opt_string("op").filter(|op| !op.is_empty()).unwrap_or_else(|| "set".into());
    let operation = match op.as_str() {
        "set" => LabelOperation::Set,
        "remove" => LabelOperation::Remove,
        "check" => {
            let info = session.org().client(&id).map_err(failed)?.unwrap_or_default();
            let has = |label: &String| info.labels.iter().any(|old| old.to_lowercase() == label.to_lowercase());
            return Ok(Value::Bool(labels.iter().all(has)));
        }
        other => return Err(CallError::failed(format!("unknown operation {other}: must be set, remove or check"))),
    };
    session.label(&id, operation, labels.clone()).map_err(failed)?;
    let labels = Value::list(labels.iter().map(|label| Value::str(label.as_str())));
    let row = Dict::new().with("ClientId", session.org().client_text(&id)).with("Labels", labels).with("Op", op);
    Ok(Value::Dict(row.into()))
}
