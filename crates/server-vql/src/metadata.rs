//! `client_metadata`, `client_set_metadata`, `server_metadata`, `server_set_metadata`.

use std::collections::BTreeMap;

use talon_ids::{Permission, Permissions, Target};
use talon_server::Session;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Signature, Value, json};

use crate::access::{failed, session, target};

const CLIENT_METADATA: Signature = Signature::function("client_metadata", "Gives the metadata of a client, or of the server.")
    .args(&[Arg::required("client_id", ArgType::String, "The client, or `server`.")]);

const CLIENT_SET_METADATA: Signature =
    Signature::function("client_set_metadata", "Changes metadata: further arguments are keys with their texts; NULL takes a key away.")
        .args(&[
            Arg::required("client_id", ArgType::String, "The client, or `server`."),
            Arg::optional("metadata", ArgType::Dict, "Keys and texts, in place of further arguments."),
            Arg::optional("modify", ArgType::Lambda, "Gets the present metadata and gives what is to be changed."),
        ])
        .free_form()
        .version(3);

const SERVER_METADATA: Signature = Signature::function("server_metadata", "Gives the metadata of the server.")
    .args(&[Arg::optional("metadata", ArgType::Dict, "Accepted and without effect.")])
    .permissions(&[Permission::ServerAdmin])
    .version(3);

const SERVER_SET_METADATA: Signature =
    Signature::function("server_set_metadata", "Changes the server's metadata: further arguments are keys with their texts.")
        .args(&[Arg::optional("metadata", ArgType::Dict, "Keys and texts, in place of further arguments.")])
        .permissions(&[Permission::ServerAdmin])
        .free_form();

pub(crate) fn register(registry: &mut Registry) {
    registry.function(CLIENT_METADATA, client_metadata);
    registry.function(CLIENT_SET_METADATA, |call| {
        let session = session(call.scope())?;
        let target = target(&session, &call.string("client_id"))?;
        change(&call, &session, &target)
    });
    registry.function(SERVER_METADATA, |call| shown(&*session(call.scope())?, &Target::Server));
    registry.function(SERVER_SET_METADATA, |call| {
        let session = session(call.scope())?;
        change(&call, &session, &Target::Server)
    });
}

fn shown(session: &Session, target: &Target) -> Result<Value, CallError> {
    let metadata = session.org().metadata(target).map_err(failed)?;
    Ok(Value::Dict(metadata.into_iter().map(|(key, text)| (key, Value::str(text))).collect::<Dict>().into()))
}

fn client_metadata(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let target = target(&session, &call.string("client_id"))?;
    let needed = if target == Target::Server { Permission::ServerAdmin } else { Permission::ReadResults };
    call.scope().check(Permissions::of(&[needed]))?;
    shown(&session, &target)
}

fn change(call: &Call, session: &Session, target: &Target) -> Result<Value, CallError> {
    let permit = session.metadata_permit(target).map_err(failed)?;
    let mut changes: BTreeMap<String, Option<String>> = BTreeMap::new();
    for (key, value) in call.dict("metadata").iter().flat_map(|given| given.iter()) {
        changes.insert(key.to_string(), text(value));
    }
    for (key, value) in call.extras() {
        changes.insert(key.to_string(), text(value));
    }
    if let Some(modify) = call.lambda("modify") {
        let answer = modify.call(call.scope(), &[shown(session, target)?]);
        for (key, value) in answer.as_dict().iter().flat_map(|given| given.iter()) {
            changes.insert(key.to_string(), text(value));
        }
    }
    session.set_metadata(&permit, target, changes).map_err(failed)?;
    Ok(Value::Bool(true))
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Str(text) => Some(text.to_str().into_owned()),
        other => Some(json::encode(other)),
    }
}
