//! The methods of secrets. No answer holds what a secret holds.

use talon_proto as proto;
use talon_server::ServerError;
use tonic::Status;

use crate::service::Call;

fn told(call: &Call, error: &ServerError) -> Status {
    if matches!(error, ServerError::NotFound { what: "Secret", .. }) { Status::not_found("Secret Not Found") } else { call.failed(error) }
}

pub(crate) fn get_secret_definitions(call: Call, (): ()) -> Result<proto::SecretDefinitionList, Status> {
    let items = call.session.secret_definitions().map_err(|error| call.failed(&error))?;
    Ok(proto::SecretDefinitionList { items })
}

pub(crate) fn add_secret(call: Call, request: proto::Secret) -> Result<(), Status> {
    call.session.add_secret(&request).map_err(|error| told(&call, &error))
}

pub(crate) fn modify_secret(call: Call, request: proto::ModifySecretRequest) -> Result<(), Status> {
    call.session.modify_secret(&request).map_err(|error| told(&call, &error))
}

pub(crate) fn get_secret(call: Call, request: proto::Secret) -> Result<proto::Secret, Status> {
    call.session.secret(&request.type_name, &request.name).map_err(|error| told(&call, &error))
}
