//! `inventory`, `inventory_add`, `inventory_get`: the tools that artifacts need on endpoints.

use std::io::Read;

use talon_ids::Permission;
use talon_proto::Tool;
use talon_vql::{Arg, ArgType, Call, CallError, Registry, Rows, Signature, Value};

use crate::access::{failed, session};
use crate::message::to_dict;

const INVENTORY: Signature = Signature::plugin("inventory", "Gives the tools that are known.");

const ADD: Signature =
    Signature::function("inventory_add", "Writes what is known of a tool, or takes the tool itself to serve it from here.")
        .args(&[
            Arg::required("tool", ArgType::String, "The tool."),
            Arg::optional(
                "serve_locally",
                ArgType::Bool,
                "Accepted and without effect: a tool is served from here when its file is given.",
            ),
            Arg::optional("url", ArgType::String, "Where endpoints fetch it."),
            Arg::optional("hash", ArgType::String, "Its SHA-256 in hex."),
            Arg::optional("filename", ArgType::String, "What its file is called on endpoints."),
            Arg::optional("version", ArgType::String, "Its version."),
            Arg::optional("file", ArgType::Path, "The file itself."),
            Arg::optional("accessor", ArgType::String, "The accessor that reads the file."),
        ])
        .permissions(&[Permission::ServerAdmin])
        .version(2);

const GET: Signature = Signature::function("inventory_get", "Gives one tool.")
    .args(&[
        Arg::required("tool", ArgType::String, "The tool."),
        Arg::optional("version", ArgType::String, "Its version; the highest when left out."),
        Arg::optional("probe", ArgType::Bool, "Accepted and without effect: nothing is fetched."),
    ])
    .permissions(&[Permission::ServerAdmin])
    .version(2);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(INVENTORY, inventory);
    registry.function(ADD, add);
    registry.function(GET, get);
}

fn inventory(call: Call) -> Result<Rows, CallError> {
    let tools = session(call.scope())?.org().tools().map_err(failed)?;
    Ok(Rows::try_of(tools.into_iter().map(|tool| to_dict("Tool", &tool))))
}

fn add(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let tool = Tool {
        name: call.string("tool"),
        url: call.string("url"),
        filename: call.string("filename"),
        version: call.string("version"),
        expected_hash: call.string("hash").to_ascii_lowercase(),
        ..Tool::default()
    };
    let mut file = match call.path("file") {
        Some(path) => Some(talon_endpoint_vql::accessor::named(call.scope(), &call.string("accessor"))?.open(call.scope(), &path)?),
        None => None,
    };
    let content = file.as_mut().map(|file| file as &mut dyn Read);
    let added = session.add_tool(tool, content).map_err(failed)?;
    Ok(Value::Dict(to_dict("Tool", &added)?.into()))
}

fn get(call: Call) -> Result<Value, CallError> {
    let found = session(call.scope())?.org().tool(&call.string("tool"), &call.string("version")).map_err(failed)?;
    let found = found.ok_or_else(|| CallError::failed("Not Found"))?;
    Ok(Value::Dict(to_dict("Tool", &found)?.into()))
}
