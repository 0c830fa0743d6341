//! The server event table: `get_server_monitoring`, `set_server_monitoring`, `add_server_monitoring`, `rm_server_monitoring`.

use talon_ids::Permission;
use talon_proto::{ArtifactCollectorArgs, ArtifactParameters, ArtifactSpec};
use talon_vql::{Arg, ArgType, Call, CallError, Registry, Signature, Value};

use crate::access::{failed, session};
use crate::collect::variables;
use crate::message::to_dict;
use crate::monitoring::collector_args;

const GET: Signature =
    Signature::function("get_server_monitoring", "Gives the server event table.").permissions(&[Permission::ReadResults]);

const SET: Signature = Signature::function("set_server_monitoring", "Replaces the server event table.")
    .args(&[Arg::required("value", ArgType::Any, "The table, in the form that `get_server_monitoring` gives.")])
    .permissions(&[Permission::CollectServer]);

const ADD: Signature = Signature::function("add_server_monitoring", "Adds an artifact to the server event table.")
    .args(&[
        Arg::required("artifact", ArgType::String, "The server event artifact."),
        Arg::optional("parameters", ArgType::Dict, "Its parameters."),
    ])
    .permissions(&[Permission::CollectServer]);

const RM: Signature = Signature::function("rm_server_monitoring", "Takes an artifact out of the server event table.")
    .args(&[Arg::required("artifact", ArgType::String, "The artifact.")])
    .permissions(&[Permission::CollectServer]);

pub(crate) fn register(registry: &mut Registry) {
    registry.function(GET, get);
    registry.function(SET, set);
    registry.function(ADD, |call| change(&call, true));
    registry.function(RM, |call| change(&call, false));
}

fn shown(table: &ArtifactCollectorArgs) -> Result<Value, CallError> {
    Ok(Value::Dict(to_dict("ArtifactCollectorArgs", table)?.into()))
}

fn get(call: Call) -> Result<Value, CallError> {
    shown(&session(call.scope())?.org().server_monitoring())
}

fn set(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let value = call.value("value");
    let table = value.as_dict().ok_or_else(|| CallError::failed("value must be a table"))?;
    shown(&session.set_server_monitoring(collector_args(table)).map_err(failed)?)
}

fn change(call: &Call, add: bool) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let artifact = call.string("artifact");
    let mut table = session.org().server_monitoring();
    table.artifacts.retain(|name| *name != artifact);
    table.specs.retain(|spec| spec.artifact != artifact);
    if add {
        let parameters = ArtifactParameters { env: call.dict("parameters").map(|given| variables(&given)).unwrap_or_default() };
        table.specs.push(ArtifactSpec { artifact: artifact.clone(), parameters: Some(parameters), ..ArtifactSpec::default() });
        table.artifacts.push(artifact);
    }
    shown(&session.set_server_monitoring(table).map_err(failed)?)
}
