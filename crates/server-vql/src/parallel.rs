//! `parallelize`: a query over the rows of a collection, which it reads with `source()`.

use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value};

const PARALLELIZE: Signature =
    Signature::plugin("parallelize", "Runs a query whose source() gives the rows that are named here, in order.")
        .args(&[
            Arg::optional("client_id", ArgType::String, "The client."),
            Arg::optional("flow_id", ArgType::String, "The flow."),
            Arg::optional("hunt_id", ArgType::String, "The hunt."),
            Arg::optional("artifact", ArgType::String, "The artifact."),
            Arg::optional("source", ArgType::String, "The source of the artifact."),
            Arg::optional("start_time", ArgType::Int, "For event artifacts: the first moment."),
            Arg::optional("end_time", ArgType::Int, "For event artifacts: the moment after the last."),
            Arg::optional("notebook_id", ArgType::String, "The notebook."),
            Arg::optional("notebook_cell_id", ArgType::String, "The cell."),
            Arg::optional("notebook_cell_table", ArgType::Int, "The table of the cell, from 1."),
            Arg::required("query", ArgType::Query, "The query."),
            Arg::optional("workers", ArgType::Int, "Not used: rows are read in one pass, so that aggregates see all of them."),
            Arg::optional("batch", ArgType::Int, "Not used."),
        ])
        .permissions(&[Permission::ReadResults]);

/// Arguments, and the variables from which `source()` takes what it is not given.
const NAMES: [(&str, &str); 9] = [
    ("client_id", "ClientId"),
    ("flow_id", "FlowId"),
    ("hunt_id", "HuntId"),
    ("source", "ArtifactSource"),
    ("start_time", "StartTime"),
    ("end_time", "EndTime"),
    ("notebook_id", "NotebookId"),
    ("notebook_cell_id", "NotebookCellId"),
    ("notebook_cell_table", "NotebookCellTable"),
];

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(PARALLELIZE, parallelize);
}

fn parallelize(call: Call) -> Result<Rows, CallError> {
    let mut names: Dict = NAMES.iter().filter(|(arg, _)| call.has(arg)).map(|(arg, name)| (*name, call.value(arg))).collect();
    let (artifact, source) = (call.string("artifact"), call.string("source"));
    if !artifact.is_empty() {
        let whole = if source.is_empty() { artifact } else { format!("{artifact}/{source}") };
        names.set("ArtifactName", Value::from(whole));
    }
    let scope = call.scope().child(names).ok_or("queries nest too deep")?;
    Ok(call.query("query").map_or_else(Rows::none, |query| query.open(&scope)))
}
