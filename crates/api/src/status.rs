//! What callers are told: the one place where errors become status codes.

use talon_server::ServerError;
use tonic::{Code, Status};

/// The status of a service's error: permission denied 7, not found 5, everything else 2 with its text, as stock clients expect.
pub(crate) fn of(error: &ServerError) -> Status {
    match error {
        error if error.is_denied() => match error {
            // The user service of stock servers answers with the general code.
            ServerError::Forbidden(text) => Status::unknown(format!("{text} ")),
            _ => Status::permission_denied(error.to_string()),
        },
        ServerError::NotFound { what: "Org", .. } => Status::unknown("Org not found"),
        ServerError::NotFound { .. } => Status::not_found(error.to_string()),
        ServerError::Cancelled => Status::cancelled("cancelled"),
        ServerError::Audit(_) | ServerError::Store(_) | ServerError::Configuration(_) => {
            tracing::error!(error = %chain(error), "an API call failed");
            Status::unknown(error.to_string())
        }
        _ => Status::unknown(error.to_string()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A request that was larger than the limit, in the words that stock clients look for.
pub(crate) fn too_large(status: &Status, limit: usize) -> Option<Status> {
    let size =
        status.message().strip_prefix("Error, decoded message length too large: found ").filter(|_| status.code() == Code::OutOfRange)?;
    let size = size.split(' ').next().unwrap_or_default();
    Some(Status::resource_exhausted(format!("grpc: received message larger than max ({size} vs. {limit})")))
}
