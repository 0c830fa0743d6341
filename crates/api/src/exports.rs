//! The methods of exports.

use talon_proto as proto;
use talon_server::{ExportOptions, ServerError, TableFormat};
use tonic::Status;

use crate::service::Call;

/// The answer comes when the archive is ready.
pub(crate) fn create_download_file(call: Call, request: proto::CreateDownloadRequest) -> Result<proto::CreateDownloadResponse, Status> {
    let format = match (request.json_format, request.csv_format) {
        (_, false) => TableFormat::Json,
        (false, true) => TableFormat::Csv,
        (true, true) => TableFormat::Both,
    };
    let mut details = talon_audit::Details::new()
        .text("client_id", &request.client_id)
        .text("flow_id", &request.flow_id)
        .text("hunt_id", &request.hunt_id);
    if !request.password.is_empty() {
        details = details.secret("password");
    }
    call.session.record("CreateDownloadRequest", details).map(drop).map_err(|error| call.failed(&error))?;
    let options = ExportOptions { format, password: request.password, only_combined: request.only_combined_hunt, ..Default::default() };
    let made = if request.hunt_id.is_empty() {
        let missing = |_| Status::not_found(format!("Flow not found: {}", request.flow_id));
        let target = crate::tables::target(&call.session, &request.client_id)?;
        call.session.export_flow(&target, &request.flow_id.parse().map_err(missing)?, &options)
    } else {
        let missing = |_| Status::not_found(format!("Hunt not found: {}", request.hunt_id));
        call.session.export_hunt(&request.hunt_id.parse().map_err(missing)?, &options)
    };
    let made = made.map_err(|error| call.failed(&error))?;
    Ok(proto::CreateDownloadResponse { vfs_path: format!("/{}", made.components().join("/")) })
}

pub(crate) fn create_notebook_download_file(call: Call, request: proto::NotebookExportRequest) -> Result<(), Status> {
    if !matches!(request.r#type.as_str(), "" | "zip") {
        return Err(Status::invalid_argument("a notebook is exported as zip; pages in HTML are not made"));
    }
    let options = ExportOptions { name: request.preferred_name, ..ExportOptions::default() };
    call.session.export_notebook(&request.notebook_id, &options).map(drop).map_err(|error| match error {
        ServerError::NotShared => Status::invalid_argument(error.to_string()),
        error => call.failed(&error),
    })
}
