//! What the bodies share: the session behind a call, ids in arguments, and which built-ins decide by their request.

use std::sync::Arc;

use talon_ids::{ClientId, FlowId, QueryName, Target};
use talon_server::{ServerError, Session};
use talon_store::ObjectName;
use talon_vql::{Call, CallError, Dict, Scope, json};

/// The built-ins whose permission depends on the request. The session decides before they do anything.
pub const BY_REQUEST: &[&str] = &[
    "artifact_delete",
    "artifact_set",
    "artifact_set_metadata",
    "cancel_flow",
    "client_metadata",
    "client_set_metadata",
    "collect_client",
    "get_flow",
    "lock_add",
    "lock_remove",
    "locks",
    "passwd",
    "send_event",
    "user",
    "user_create",
    "user_delete",
    "user_grant",
    "user_lock",
    "user_options",
];

/// The built-ins that anybody may call who may query: they tell about the caller, or filter by what the caller may see.
pub const PUBLIC: &[&str] =
    &["favorites_delete", "favorites_list", "favorites_save", "gui_users", "inventory", "link_to", "org", "orgs", "whoami"];

/// The session of the query.
pub(crate) fn session(scope: &Scope) -> Result<Arc<Session>, CallError> {
    scope.extension::<Session>().ok_or_else(|| CallError::failed("this query does not run on a server"))
}

/// A refusal or failure as the query's log shows it.
pub(crate) fn failed(error: ServerError) -> CallError {
    CallError::failed(error)
}

/// The client that an argument names.
pub(crate) fn client(session: &Session, call: &Call) -> Result<ClientId, CallError> {
    session.org().parse_client(&call.string("client_id")).map_err(failed)
}

/// The client, or the server itself, that an argument names.
pub(crate) fn target(session: &Session, text: &str) -> Result<Target, CallError> {
    if text == Target::Server.as_str() { Ok(Target::Server) } else { session.org().parse_client(text).map(Target::Client).map_err(failed) }
}

/// The flow that an argument names.
pub(crate) fn flow(text: &str) -> Result<FlowId, CallError> {
    text.parse().map_err(CallError::failed)
}

/// The queue or table that `artifact` and `source` name.
pub(crate) fn query_name(artifact: &str, source: &str) -> Result<QueryName, CallError> {
    let full = if source.is_empty() { artifact.to_owned() } else { format!("{artifact}/{source}") };
    full.parse().map_err(CallError::failed)
}

/// A stored row.
pub(crate) fn row(line: &str) -> Result<Dict, CallError> {
    json::decode_row(line.as_bytes()).map_err(|error| CallError::failed(format!("a stored row is damaged: {error}")))
}

/// The rows of a table from `start` on; a failure is the last of them.
pub(crate) fn lines(session: &Session, table: &ObjectName, start: u64) -> Box<dyn Iterator<Item = Result<String, ServerError>> + Send> {
    match session.org().rows(table, start) {
        Ok(lines) => Box::new(lines),
        Err(error) => Box::new(std::iter::once(Err(error))),
    }
}
