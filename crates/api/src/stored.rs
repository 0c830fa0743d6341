//! Stored results by the paths that stock clients know: rows of collections as JSON lines, uploads, public files.

use bytes::Bytes;
use talon_acl::{Permit, ReadResults};
use talon_ids::{FlowId, OrgId, QueryName, Target};
use talon_proto::VfsFileBuffer;
use talon_server::Org;
use talon_store::ObjectName;
use tonic::Status;

use crate::service::Call;

/// The most bytes in one answer.
const MAX_BUFFER: usize = 4 << 20;

/// What a path leads to.
enum Stored {
    /// A table, shown as JSON lines.
    Table(ObjectName),
    /// A file, and the organisation that keeps it.
    File(OrgId, ObjectName),
}

/// The bytes that a request asks for; none at the end of the file.
pub(crate) fn read(call: &Call, request: &VfsFileBuffer) -> Result<Bytes, Status> {
    let path = path(request);
    if path.is_empty() {
        return Err(Status::invalid_argument("Invalid pathspec"));
    }
    if !call.service.options.stored_files.allows(path.iter().map(String::as_str)) {
        return Err(Status::permission_denied("No access to filesystem path"));
    }
    let org = call.session.org();
    let permit: Permit<ReadResults> = call.session.authority().permit().map_err(|denial| call.refused(&denial, &denial.to_string()))?;
    org.may_read(&permit).map_err(|error| call.failed(&error))?;
    let missing = || Status::not_found(format!("open /{}: no such file or directory", path.join("/")));
    let length = usize::try_from(request.length).unwrap_or(MAX_BUFFER).min(MAX_BUFFER);
    let storage = |error: talon_store::StoreError| call.failed(&error.into());
    match locate(org, &path).ok_or_else(missing)? {
        Stored::Table(table) => {
            if org.reader().table(org.id(), &table).map_err(storage)?.rows == 0 {
                return Err(missing());
            }
            slice_of_rows(org, &table, request.offset, length).map_err(storage)
        }
        Stored::File(keeper, file) => {
            org.reader().upload(&keeper, &file).map_err(storage)?.ok_or_else(missing)?;
            org.reader().read_upload(&keeper, &file, request.offset, length).map_err(storage)
        }
    }
}

/// The components, below the client if the request names one. Splitting a path at `/` leaves an empty first one.
fn path(request: &VfsFileBuffer) -> Vec<String> {
    let components = request.components.iter().filter(|part| !part.is_empty()).cloned();
    if request.client_id.is_empty() {
        components.collect()
    } else {
        ["clients".to_owned(), request.client_id.clone()].into_iter().chain(components).collect()
    }
}

fn locate(org: &Org, path: &[String]) -> Option<Stored> {
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    let target = |client: &str| if client == "server" { Some(Target::Server) } else { org.parse_client(client).ok().map(Target::Client) };
    let flow = |client: &str, flow: &str| Some((target(client)?, flow.parse::<FlowId>().ok()?));
    let rows = |target: &Target, flow_id: &FlowId, name: String| {
        let query: QueryName = name.parse().ok()?;
        Some(Stored::Table(talon_server::flow_rows(target, flow_id, &query)))
    };
    match parts.as_slice() {
        ["clients", client, "artifacts", artifact, flow_id, source] => {
            let (target, flow_id) = flow(client, flow_id)?;
            rows(&target, &flow_id, format!("{artifact}/{}", source.strip_suffix(".json")?))
        }
        ["clients", client, "artifacts", artifact, file] => {
            let (target, flow_id) = flow(client, file.strip_suffix(".json")?)?;
            rows(&target, &flow_id, (*artifact).to_owned())
        }
        ["clients", client, "collections", flow_id, "logs" | "logs.json"] => {
            let (target, flow_id) = flow(client, flow_id)?;
            Some(Stored::Table(talon_server::flow_logs(&target, &flow_id)))
        }
        ["clients", client, "collections", flow_id, "uploads.json"] => {
            let (target, flow_id) = flow(client, flow_id)?;
            Some(Stored::Table(talon_server::flow_uploads(&target, &flow_id)))
        }
        // An archive is there when it is whole.
        ["downloads", rest @ ..] if !rest.is_empty() => Some(Stored::File(org.id().clone(), talon_server::download(rest))),
        ["clients", client, "collections", flow_id, "uploads", accessor, file @ ..] if !file.is_empty() => {
            let (target, flow_id) = flow(client, flow_id)?;
            let upload = talon_ids::UploadPath::new(accessor, file.iter().map(|part| (*part).to_owned()).collect()).ok()?;
            Some(Stored::File(org.id().clone(), talon_server::flow_file(&target, &flow_id, &upload)))
        }
        _ => None,
    }
}

/// Bytes `offset..offset + length` of a table's rows as JSON lines.
fn slice_of_rows(org: &Org, table: &ObjectName, offset: u64, length: usize) -> Result<Bytes, talon_store::StoreError> {
    let mut skip = offset;
    let mut slice = Vec::new();
    for block in org.reader().rows(org.id(), table, 0)? {
        let (_, block) = block?;
        let size = block.len() as u64;
        if skip >= size {
            skip = skip.saturating_sub(size);
            continue;
        }
        let start = usize::try_from(skip).unwrap_or(usize::MAX);
        skip = 0;
        let wanted = length.saturating_sub(slice.len());
        slice.extend(block.iter().skip(start).take(wanted));
        if slice.len() >= length {
            break;
        }
    }
    Ok(slice.into())
}
