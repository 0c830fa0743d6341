//! `artifact_definitions`, `artifact_set`, `artifact_delete`.

use std::sync::Arc;

use talon_artifacts::Definition;
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::access::{failed, session};
use crate::message::to_dict;

const DEFINITIONS: Signature = Signature::plugin("artifact_definitions", "Gives the definitions of artifacts, by name.")
    .args(&[Arg::optional("names", ArgType::Strings, "Only these; all when left out.")])
    .permissions(&[Permission::ReadResults]);

const SET: Signature = Signature::function("artifact_set", "Writes an artifact.")
    .args(&[
        Arg::required("definition", ArgType::String, "The definition in YAML."),
        Arg::optional("prefix", ArgType::String, "What its name is made to begin with."),
    ])
    .version(2);

const SET_METADATA: Signature = Signature::function(
    "artifact_set_metadata",
    "Changes what is noted of an artifact beside its definition; built-in ones have notes too.",
)
.args(&[
    Arg::required("name", ArgType::String, "The artifact."),
    Arg::optional("hidden", ArgType::Bool, "Whether lists leave it out."),
    Arg::optional("basic", ArgType::Bool, "Whether whoever has COLLECT_BASIC may collect it."),
    Arg::optional("tags", ArgType::Strings, "Words by which to find it."),
])
.version(2);

const DELETE: Signature = Signature::function("artifact_delete", "Deletes an artifact that was written here.").args(&[Arg::required(
    "name",
    ArgType::String,
    "The artifact.",
)]);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(DEFINITIONS, definitions);
    registry.function(SET, set);
    registry.function(SET_METADATA, set_metadata);
    registry.function(DELETE, delete);
}

fn row(definition: &Definition) -> Result<Dict, CallError> {
    to_dict("Artifact", definition.proto())
}

fn definitions(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let names = call.strings("names");
    let repository = session.org().artifacts();
    let found: Vec<Arc<Definition>> = if names.is_empty() {
        repository.entries().into_values().filter(|entry| entry.alias_of.is_none()).map(|entry| entry.definition).collect()
    } else {
        names.iter().filter_map(|name| repository.get(name)).collect()
    };
    Ok(Rows::try_of(found.into_iter().map(|definition| row(&definition))))
}

fn set(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let definition = session.set_artifact(&call.string("definition"), &call.string("prefix")).map_err(failed)?;
    Ok(Value::Dict(row(&definition)?.into()))
}

fn set_metadata(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let flag = |name: &str| call.has(name).then(|| call.bool(name));
    let tags = call.has("tags").then(|| call.strings("tags"));
    session.set_artifact_metadata(&call.string("name"), flag("hidden"), flag("basic"), tags).map_err(failed)?;
    Ok(Value::Dict(Dict::new().into()))
}

fn delete(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let name = call.string("name");
    session.delete_artifact(&name).map_err(failed)?;
    Ok(Value::str(name))
}
