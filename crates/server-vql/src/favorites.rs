//! `favorites_list`, `favorites_save`, `favorites_delete`: each user's own.

use talon_proto::{ArtifactParameters, ArtifactSpec, Favorite};
use talon_vql::{Arg, ArgType, Call, CallError, Registry, Rows, Signature, Value};

use crate::access::{failed, session};
use crate::collect::variables;
use crate::message::to_dict;

const NAME: Arg = Arg::required("name", ArgType::String, "Its name.");
const TYPE: Arg = Arg::required("type", ArgType::String, "Its type, such as `CLIENT`.");

const LIST: Signature = Signature::plugin("favorites_list", "Gives the collections that the caller keeps.");

const SAVE: Signature = Signature::function("favorites_save", "Keeps a collection for the caller.").args(&[
    NAME,
    Arg::optional("description", ArgType::String, "What it is for."),
    Arg::required("specs", ArgType::Lazy, "Parameters by artifact: a dict, or a list of dicts with `artifact` and `parameters`."),
    TYPE,
]);

const DELETE: Signature = Signature::function("favorites_delete", "Keeps a collection no more.").args(&[NAME, TYPE]);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(LIST, list);
    registry.function(SAVE, save);
    registry.function(DELETE, delete);
}

fn list(call: Call) -> Result<Rows, CallError> {
    let found = session(call.scope())?.favorites("").map_err(failed)?;
    Ok(Rows::try_of(found.into_iter().map(|favorite| to_dict("Favorite", &favorite))))
}

fn spec(artifact: &str, parameters: Option<&Value>) -> ArtifactSpec {
    let env = parameters.and_then(Value::as_dict).map(|parameters| variables(parameters)).unwrap_or_default();
    ArtifactSpec { artifact: artifact.to_owned(), parameters: Some(ArtifactParameters { env }), ..ArtifactSpec::default() }
}

fn save(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let specs = match call.lazy("specs") {
        Value::Dict(specs) => specs.iter().map(|(artifact, parameters)| spec(artifact.as_str(), Some(parameters))).collect(),
        Value::List(specs) => specs
            .as_slice()
            .iter()
            .filter_map(Value::as_dict)
            .map(|entry| spec(entry.get("artifact").and_then(Value::as_str).unwrap_or_default(), entry.get("parameters")))
            .collect(),
        _ => return Err(CallError::failed("specs must be a dict or a list of dicts")),
    };
    let favorite =
        Favorite { name: call.string("name"), description: call.string("description"), spec: specs, r#type: call.string("type") };
    let row = to_dict("Favorite", &favorite)?;
    session.save_favorite(favorite).map_err(failed)?;
    Ok(Value::Dict(row.into()))
}

fn delete(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    session.delete_favorite(&call.string("name"), &call.string("type")).map_err(failed)?;
    Ok(Value::str(call.string("name")))
}
