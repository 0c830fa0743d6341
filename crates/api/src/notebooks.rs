//! The methods of notebooks.

use talon_proto as proto;
use talon_server::{NotebookPermit, ServerError};
use tonic::Status;

use crate::service::Call;

fn editor(call: &Call) -> Result<NotebookPermit, Status> {
    call.session.notebook_editor().map_err(|error| call.failed(&error))
}

pub(crate) fn get_notebooks(call: Call, request: proto::NotebookCellRequest) -> Result<proto::Notebooks, Status> {
    if request.notebook_id.is_empty() {
        return Err(Status::unknown("NotebookId must be specified"));
    }
    let notebook = call.session.notebook(&request.notebook_id).map_err(|error| match error {
        ServerError::NotShared => Status::unknown("InvalidStatus: User has no access to this notebook"),
        error => call.failed(&error),
    })?;
    Ok(proto::Notebooks { items: vec![notebook] })
}

pub(crate) fn new_notebook(call: Call, request: proto::NotebookMetadata) -> Result<proto::NotebookMetadata, Status> {
    call.session.new_notebook(&editor(&call)?, request).map_err(|error| call.failed(&error))
}

pub(crate) fn update_notebook(call: Call, request: proto::NotebookMetadata) -> Result<proto::NotebookMetadata, Status> {
    call.session.update_notebook(&editor(&call)?, &request).map_err(|error| call.failed(&error))
}

pub(crate) fn delete_notebook(call: Call, request: proto::NotebookMetadata) -> Result<(), Status> {
    call.session.delete_notebook(&editor(&call)?, &request.notebook_id).map_err(|error| call.failed(&error))
}

pub(crate) fn new_notebook_cell(call: Call, request: proto::NotebookCellRequest) -> Result<proto::NotebookMetadata, Status> {
    call.session.add_cell(&editor(&call)?, request).map_err(|error| call.failed(&error))
}

pub(crate) fn get_notebook_cell(call: Call, request: proto::NotebookCellRequest) -> Result<proto::NotebookCell, Status> {
    let found = call.session.notebook_cell(&request.notebook_id, &request.cell_id, &request.version);
    found.map_err(|error| call.failed(&error))
}

pub(crate) fn update_notebook_cell(call: Call, request: proto::NotebookCellRequest) -> Result<proto::NotebookCell, Status> {
    call.session.update_cell(&editor(&call)?, &request).map_err(|error| call.failed(&error))
}

pub(crate) fn revert_notebook_cell(call: Call, request: proto::NotebookCellRequest) -> Result<proto::NotebookCell, Status> {
    let reverted = call.session.revert_cell(&editor(&call)?, &request.notebook_id, &request.cell_id, &request.version);
    reverted.map_err(|error| call.failed(&error))
}

pub(crate) fn cancel_notebook_cell(call: Call, request: proto::NotebookCellRequest) -> Result<(), Status> {
    call.session.cancel_cell(&editor(&call)?, &request.notebook_id, &request.cell_id).map_err(|error| call.failed(&error))
}

/// The content comes as base64.
pub(crate) fn upload_notebook_attachment(
    call: Call,
    request: proto::NotebookFileUploadRequest,
) -> Result<proto::NotebookFileUploadResponse, Status> {
    use base64::Engine as _;
    let content = base64::engine::general_purpose::STANDARD.decode(&request.data);
    let content = content.map_err(|_| Status::invalid_argument("data is not base64"))?;
    let stored = call.session.attach(&editor(&call)?, &request.notebook_id, &request.filename, &content);
    let filename = stored.map_err(|error| call.failed(&error))?;
    let url = format!("/notebooks/{}/attach/{filename}?org_id={}", request.notebook_id, call.session.org().id());
    Ok(proto::NotebookFileUploadResponse { url, filename, mime_type: "binary/octet-stream".into() })
}

pub(crate) fn remove_notebook_attachment(call: Call, request: proto::NotebookFileUploadRequest) -> Result<(), Status> {
    let permit = call.session.authority().permit().map_err(|denial| call.refused(&denial, &call.method.row().refusal(&denial)))?;
    let name = request.components.last().cloned().unwrap_or(request.filename);
    call.session.detach(&permit, &request.notebook_id, &name).map_err(|error| call.failed(&error))
}

pub(crate) fn annotate_timeline(call: Call, request: proto::AnnotationRequest) -> Result<(), Status> {
    call.session.annotate(&request).map_err(|error| call.failed(&error))
}
