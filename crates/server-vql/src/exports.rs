//! `create_flow_download`, `create_hunt_download`, `create_notebook_download`, `notebook_export`.

use talon_ids::{HuntId, Permission};
use talon_server::{Download, ExportOptions, ServerError, TableFormat};
use talon_vql::{Arg, ArgType, Call, CallError, Registry, Signature, Value};

use crate::access::{failed, flow, session, target};

const PASSWORD: Arg = Arg::optional("password", ArgType::String, "Encrypts the files of the archive.");
const FORMAT: Arg = Arg::optional("format", ArgType::String, "`json`, `csv_only`, or `csv` for both; `json` when left out.");
const WAIT: Arg = Arg::optional("wait", ArgType::Bool, "Accepted and without effect: the archive is ready when the call returns.");
const SPARSE: Arg = Arg::optional("expand_sparse", ArgType::Bool, "Accepted and without effect: files are packed as they are stored.");

const FLOW: Signature = Signature::function("create_flow_download", "Packs what a flow collected as a zip file among the downloads.")
    .args(&[
        Arg::required("client_id", ArgType::String, "The client, or `server`."),
        Arg::required("flow_id", ArgType::String, "The flow."),
        WAIT,
        Arg::optional("type", ArgType::String, "Accepted and without effect."),
        Arg::optional("template", ArgType::String, "Accepted and without effect."),
        PASSWORD,
        FORMAT,
        SPARSE,
        Arg::optional("name", ArgType::String, "The name of the file, without ending."),
    ])
    .permissions(&[Permission::PrepareResults])
    .version(2);

const HUNT: Signature = Signature::function("create_hunt_download", "Packs what a hunt collected as a zip file among the downloads.")
    .args(&[
        Arg::required("hunt_id", ArgType::String, "The hunt."),
        Arg::optional("only_combined", ArgType::Bool, "Only the tables over all clients."),
        WAIT,
        FORMAT,
        Arg::optional("base", ArgType::String, "What the name of the file begins with."),
        PASSWORD,
        SPARSE,
    ])
    .permissions(&[Permission::PrepareResults])
    .version(2);

const NOTEBOOK: Signature = Signature::function("create_notebook_download", "Packs a notebook as a zip file among the downloads.")
    .args(&[
        Arg::required("notebook_id", ArgType::String, "The notebook."),
        Arg::optional("filename", ArgType::String, "The name of the file, without ending."),
    ])
    .permissions(&[Permission::PrepareResults])
    .version(2);

const NOTEBOOK_EXPORT: Signature = Signature::function("notebook_export", "Packs a notebook as a zip file among the downloads.")
    .args(&[
        Arg::required("notebook_id", ArgType::String, "The notebook."),
        Arg::optional("filename", ArgType::String, "The name of the file, without ending."),
        Arg::optional("type", ArgType::String, "`zip`, the only form there is."),
    ])
    .permissions(&[Permission::PrepareResults])
    .version(2);

pub(crate) fn register(registry: &mut Registry) {
    registry.function(FLOW, of_flow);
    registry.function(HUNT, of_hunt);
    registry.function(NOTEBOOK, of_notebook);
    registry.function(NOTEBOOK_EXPORT, of_notebook);
}

fn options(call: &Call) -> Result<ExportOptions, CallError> {
    let text = |name: &str| if call.has(name) { call.string(name) } else { String::new() };
    let format = TableFormat::from_name(&text("format"));
    let format = format.ok_or_else(|| CallError::failed("format must be json, csv_only or csv"))?;
    Ok(ExportOptions { format, password: text("password"), ..ExportOptions::default() })
}

fn path(made: Result<Download, ServerError>) -> Result<Value, CallError> {
    Ok(Value::str(format!("fs:/{}", made.map_err(failed)?.components().join("/"))))
}

fn of_flow(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let target = target(&session, &call.string("client_id"))?;
    let options = ExportOptions { name: call.string("name"), ..options(&call)? };
    path(session.export_flow(&target, &flow(&call.string("flow_id"))?, &options))
}

fn of_hunt(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let hunt: HuntId = call.string("hunt_id").parse().map_err(CallError::failed)?;
    let base = call.string("base");
    let name = if base.is_empty() { String::new() } else { format!("{base}{hunt}") };
    let options = ExportOptions { only_combined: call.bool("only_combined"), name, ..options(&call)? };
    path(session.export_hunt(&hunt, &options))
}

fn of_notebook(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    if call.has("type") && call.string("type") != "zip" {
        return Err(CallError::failed("a notebook is exported as zip; pages in HTML are not made"));
    }
    let options = ExportOptions { name: call.string("filename"), ..ExportOptions::default() };
    path(session.export_notebook(&call.string("notebook_id"), &options))
}
