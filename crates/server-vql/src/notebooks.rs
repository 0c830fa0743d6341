//! `notebooks`, `notebook_get`, `notebook_create`, `notebook_update`, `notebook_update_cell`, `notebook_delete`, and `source()` over cells.

use std::sync::Arc;

use talon_ids::Permission;
use talon_proto::{Env, NotebookCellRequest, NotebookMetadata};
use talon_server::{Session, cell_table};
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Rows, Signature, Value};

use crate::access::{failed, lines, row, session};
use crate::collect::variables;
use crate::flows::given;
use crate::message::to_dict;

const ID: Arg = Arg::required("notebook_id", ArgType::String, "The notebook.");

const NOTEBOOKS: Signature = Signature::plugin("notebooks", "Gives the notebooks that are shared with the caller.")
    .args(&[Arg::optional("all", ArgType::Bool, "Those of everybody, for administrators of the server.")])
    .permissions(&[Permission::ReadResults]);

const GET: Signature = Signature::function("notebook_get", "Gives a notebook that is shared with the caller.")
    .args(&[ID, Arg::optional("verbose", ArgType::Bool, "With the content of its cells.")])
    .permissions(&[Permission::ReadResults])
    .version(2);

const CREATE: Signature = Signature::function("notebook_create", "Makes a notebook.")
    .args(&[
        Arg::optional("name", ArgType::String, "Its name."),
        Arg::optional("description", ArgType::String, "What it is for."),
        Arg::optional("collaborators", ArgType::Strings, "The users that it is shared with."),
        Arg::optional("public", ArgType::Bool, "Shares it with everybody."),
        Arg::optional("artifacts", ArgType::Strings, "The artifacts whose cells it begins with."),
        Arg::optional("env", ArgType::Dict, "Variables of its cells."),
    ])
    .permissions(&[Permission::CollectServer]);

const UPDATE: Signature = Signature::function("notebook_update", "Changes the description and sharing of a notebook.")
    .args(&[
        ID,
        Arg::optional("description", ArgType::String, "What it is for."),
        Arg::optional("collaborators", ArgType::Strings, "The users that it is shared with."),
        Arg::optional("public", ArgType::Bool, "Shares it with everybody."),
        Arg::optional("attachment", ArgType::String, "The content of a file to attach."),
        Arg::optional("attachment_filename", ArgType::String, "The name of that file."),
    ])
    .permissions(&[Permission::CollectServer]);

const UPDATE_CELL: Signature = Signature::function("notebook_update_cell", "Writes a cell and calculates it, or deletes it.")
    .args(&[
        ID,
        Arg::optional("cell_id", ArgType::String, "The cell; a new one at the end when left out."),
        Arg::optional("delete", ArgType::Bool, "Deletes the cell."),
        Arg::optional("type", ArgType::String, "`vql` or `markdown`; `vql` when left out."),
        Arg::optional("input", ArgType::String, "The query or text."),
        Arg::optional("output", ArgType::String, "Accepted and without effect: cells show what they calculate."),
    ])
    .permissions(&[Permission::CollectServer])
    .version(2);

const DELETE: Signature = Signature::plugin("notebook_delete", "Deletes a notebook with its cells, whoever it belongs to.")
    .args(&[ID, Arg::optional("really_do_it", ArgType::Bool, "Without it, only tells what would be deleted.")])
    .permissions(&[Permission::ServerAdmin]);

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(NOTEBOOKS, notebooks);
    registry.function(GET, get);
    registry.function(CREATE, create);
    registry.function(UPDATE, update);
    registry.function(UPDATE_CELL, update_cell);
    registry.plugin(DELETE, delete);
}

fn shown(notebook: &NotebookMetadata) -> Result<Dict, CallError> {
    to_dict("NotebookMetadata", notebook)
}

fn notebooks(call: Call) -> Result<Rows, CallError> {
    let found = session(call.scope())?.notebooks(call.bool("all")).map_err(failed)?;
    Ok(Rows::try_of(found.into_iter().map(|notebook| shown(&notebook))))
}

fn get(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let mut notebook = session.notebook(&call.string("notebook_id")).map_err(failed)?;
    if call.bool("verbose") {
        for cell in &mut notebook.cell_metadata {
            *cell = session.notebook_cell(&notebook.notebook_id, &cell.cell_id, "").map_err(failed)?;
        }
    }
    Ok(Value::Dict(shown(&notebook)?.into()))
}

fn create(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let env = call.dict("env").map(|env| variables(&env)).unwrap_or_default();
    let wish = NotebookMetadata {
        name: call.string("name"),
        description: call.string("description"),
        collaborators: call.strings("collaborators"),
        public: call.bool("public"),
        artifacts: call.strings("artifacts"),
        env: env.into_iter().map(|pair| Env { key: pair.key, value: pair.value }).collect(),
        ..NotebookMetadata::default()
    };
    let permit = session.notebook_in_query().map_err(failed)?;
    Ok(Value::Dict(shown(&session.new_notebook(&permit, wish).map_err(failed)?)?.into()))
}

/// What is left out stays as it is.
fn update(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let permit = session.notebook_in_query().map_err(failed)?;
    let mut notebook = session.notebook(&call.string("notebook_id")).map_err(failed)?;
    if call.has("description") {
        notebook.description = call.string("description");
    }
    if call.has("collaborators") {
        notebook.collaborators = call.strings("collaborators");
    }
    if call.has("public") {
        notebook.public = call.bool("public");
    }
    if call.has("attachment") {
        let name = call.string("attachment_filename");
        session.attach(&permit, &notebook.notebook_id, &name, &call.bytes("attachment")).map_err(failed)?;
    }
    Ok(Value::Dict(shown(&session.update_notebook(&permit, &notebook).map_err(failed)?)?.into()))
}

fn update_cell(call: Call) -> Result<Value, CallError> {
    let session = session(call.scope())?;
    let permit = session.notebook_in_query().map_err(failed)?;
    let (notebook, cell) = (call.string("notebook_id"), call.string("cell_id"));
    if call.bool("delete") {
        return Ok(Value::Dict(shown(&session.remove_cell(&permit, &notebook, &cell).map_err(failed)?)?.into()));
    }
    let kind = call.opt_string("type").filter(|kind| !kind.is_empty()).unwrap_or_else(|| "vql".into());
    let request = NotebookCellRequest {
        notebook_id: notebook,
        cell_id: cell,
        r#type: kind,
        input: call.string("input"),
        sync: true,
        ..NotebookCellRequest::default()
    };
    if request.cell_id.is_empty() {
        return Ok(Value::Dict(shown(&session.add_cell(&permit, request).map_err(failed)?)?.into()));
    }
    session.update_cell(&permit, &request).map_err(failed)?;
    Ok(Value::Dict(shown(&session.notebook(&request.notebook_id).map_err(failed)?)?.into()))
}

fn delete(call: Call) -> Result<Rows, CallError> {
    let session = session(call.scope())?;
    let id = call.string("notebook_id");
    if call.bool("really_do_it") {
        session.delete_any_notebook(&id).map_err(failed)?;
    }
    let path = format!("ds:/notebooks/{id}");
    Ok(Rows::one(Dict::new().with("notebook_id", id).with("type", "Notebook").with("vfs_path", path)))
}

/// The rows of a table of a cell that the call, or the notebook that it runs in, names.
pub(crate) fn cell_rows(session: &Arc<Session>, call: &Call, start: u64) -> Result<Rows, CallError> {
    let notebook = given(call, "notebook_id", "NotebookId");
    let cell = given(call, "notebook_cell_id", "NotebookCellId");
    let found = session.notebook_cell(&notebook, &cell, &call.string("notebook_cell_version")).map_err(failed)?;
    let number = call.opt_int("notebook_cell_table").and_then(|number| u64::try_from(number).ok()).filter(|&number| number > 0);
    let table = cell_table(&notebook, &cell, &found.current_version, number.unwrap_or(1));
    let found = lines(session, &table, start);
    Ok(Rows::try_of(found.map(|line| row(&line.map_err(failed)?))))
}
