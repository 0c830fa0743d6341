//! The methods of artifacts.

use std::io::{Cursor, Read as _};

use talon_proto as proto;
use tonic::Status;

use crate::service::Call;

/// Artifacts in one answer when the request does not say.
const DEFAULT_RESULTS: u64 = 100;
/// Files in one pack, and bytes of one of them.
const MAX_FILES: usize = 10_000;
const MAX_FILE: u64 = 4 << 20;
const MAX_PACK: u64 = 64 << 20;

/// Names and texts of a request: every word must occur, whatever its case.
pub(crate) fn get_artifacts(call: Call, request: proto::GetArtifactsRequest) -> Result<proto::ArtifactDescriptors, Status> {
    let repository = call.session.org().artifacts();
    let limit = if request.number_of_results == 0 { DEFAULT_RESULTS } else { request.number_of_results.min(10_000) };
    let words: Vec<String> = request.search_term.split_whitespace().map(str::to_lowercase).collect();
    let kind = request.r#type.to_ascii_uppercase();
    let mut items = Vec::new();
    for (name, entry) in repository.entries() {
        if items.len() as u64 >= limit {
            break;
        }
        if !request.names.is_empty() && !request.names.contains(&name) {
            continue;
        }
        let artifact = entry.definition.proto();
        let hidden = artifact.metadata.as_ref().is_some_and(|metadata| metadata.hidden);
        let text = format!("{} {}", name.to_lowercase(), artifact.description.to_lowercase());
        let of_kind = kind.is_empty() || entry.definition.kind().name() == kind;
        if !of_kind || (request.names.is_empty() && hidden) || !words.iter().all(|word| text.contains(word)) {
            continue;
        }
        let mut artifact = artifact.clone();
        artifact.is_inherited = entry.inherited;
        artifact.is_alias = entry.alias_of.is_some();
        items.push(selected(artifact, request.fields.as_ref()));
    }
    Ok(proto::ArtifactDescriptors { items, ..proto::ArtifactDescriptors::default() })
}

/// What of an artifact a request wants.
fn selected(artifact: proto::Artifact, fields: Option<&proto::FieldSelector>) -> proto::Artifact {
    let Some(fields) = fields else { return artifact };
    let mut shown =
        proto::Artifact { name: artifact.name, built_in: artifact.built_in, is_alias: artifact.is_alias, ..proto::Artifact::default() };
    if fields.description {
        shown.description = artifact.description;
    }
    if fields.r#type {
        shown.r#type = artifact.r#type;
    }
    if fields.sources {
        shown.sources = artifact.sources;
    }
    if fields.tags {
        shown.metadata = artifact.metadata;
    }
    shown
}

/// An artifact that does not exist is an empty answer.
pub(crate) fn get_artifact_file(call: Call, request: proto::GetArtifactRequest) -> Result<proto::GetArtifactResponse, Status> {
    let artifact = call.session.org().artifacts().get(&request.name).map(|definition| definition.proto().raw.clone());
    Ok(proto::GetArtifactResponse { artifact: artifact.unwrap_or_default() })
}

pub(crate) fn set_artifact_file(call: Call, request: proto::SetArtifactRequest) -> Result<proto::SetArtifactResponse, Status> {
    use proto::set_artifact_request::Operation;
    let definition = talon_artifacts::Definition::from_yaml(&request.artifact).map_err(|error| call.failed(&error.into()))?;
    match request.op() {
        Operation::Delete => {
            call.session.delete_artifact(definition.name().as_str()).map_err(|error| call.failed(&error))?;
        }
        Operation::Check => {
            let found = call.session.org().check_artifact(&request.artifact);
            return Ok(proto::SetArtifactResponse { errors: found.errors, warnings: found.warnings, ..Default::default() });
        }
        Operation::CheckAndSet => {
            let found = call.session.org().check_artifact(&request.artifact);
            if !found.errors.is_empty() {
                return Ok(proto::SetArtifactResponse { errors: found.errors, warnings: found.warnings, ..Default::default() });
            }
            call.session.set_artifact(&request.artifact, "").map_err(|error| call.failed(&error))?;
        }
        Operation::Set => {
            call.session.set_artifact(&request.artifact, "").map_err(|error| call.failed(&error))?;
        }
    }
    Ok(proto::SetArtifactResponse::default())
}

/// A pack is a zip of YAML files. What does not load is told, and does not keep the others out. Without `really_do_it` nothing is written.
pub(crate) fn load_artifact_pack(call: Call, request: proto::LoadArtifactPackRequest) -> Result<proto::LoadArtifactPackResponse, Status> {
    let not_a_zip = |_| Status::unknown("zip: not a valid zip file");
    let mut archive = zip::ZipArchive::new(Cursor::new(request.data.as_ref())).map_err(not_a_zip)?;
    if archive.len() > MAX_FILES {
        return Err(Status::invalid_argument(format!("the pack has more than {MAX_FILES} files")));
    }
    let filter = talon_vql::regex::Regex::ignoring_case(request.filter.as_bytes());
    let filter = filter.map_err(|error| Status::invalid_argument(format!("filter: {error}")))?;
    let mut response = proto::LoadArtifactPackResponse::default();
    let mut total = 0_u64;
    for number in 0..archive.len() {
        let mut file = archive.by_index(number).map_err(not_a_zip)?;
        let Ok(filename) = file.name().map(std::borrow::Cow::into_owned) else { continue };
        if !file.is_file() || !(filename.ends_with(".yaml") || filename.ends_with(".yml")) {
            continue;
        }
        let mut yaml = String::new();
        let read = (&mut file).take(MAX_FILE + 1).read_to_string(&mut yaml);
        total = total.saturating_add(yaml.len() as u64);
        if total > MAX_PACK {
            return Err(Status::invalid_argument(format!("the pack has more than {MAX_PACK} bytes")));
        }
        let loaded = match read {
            Ok(_) if yaml.len() as u64 > MAX_FILE => Err(format!("the file has more than {MAX_FILE} bytes")),
            Ok(_) => load(&call, &request, &filter, &yaml),
            Err(error) => Err(error.to_string()),
        };
        match loaded {
            Ok(Some(name)) => response.successful_artifacts.push(name),
            Ok(None) => {}
            Err(error) => response.errors.push(proto::LoadArtifactError { filename, error }),
        }
    }
    Ok(response)
}

fn load(
    call: &Call,
    request: &proto::LoadArtifactPackRequest,
    filter: &talon_vql::regex::Regex,
    yaml: &str,
) -> Result<Option<String>, String> {
    let definition = talon_artifacts::Definition::from_yaml(yaml).map_err(|error| error.to_string())?;
    let name = definition.name().to_string();
    if !filter.is_match(name.as_bytes()) {
        return Ok(None);
    }
    if !request.really_do_it {
        let prefixed = if name.starts_with(&request.prefix) { name } else { format!("{}{name}", request.prefix) };
        return Ok(Some(prefixed));
    }
    let written = call.session.load_artifact(yaml, &request.prefix).map_err(|error| call.failed(&error).message().to_owned())?;
    Ok(Some(written.name().to_string()))
}

pub(crate) fn get_tool_info(call: Call, request: proto::Tool) -> Result<proto::Tool, Status> {
    let tool = call.session.org().tool(&request.name, &request.version).map_err(|error| call.failed(&error))?;
    tool.ok_or_else(|| Status::unknown("Not Found"))
}

pub(crate) fn set_tool_info(call: Call, request: proto::Tool) -> Result<proto::Tool, Status> {
    call.session.set_tool(request).map_err(|error| call.failed(&error))
}
