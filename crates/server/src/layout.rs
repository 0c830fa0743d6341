//! Where things are stored: record keys, and names of tables and uploads.

use prost::Message;
use talon_crypto::sha256;
use talon_ids::{ClientId, FlowId, OrgId, QueryName, Target, UploadPath};
use talon_store::{ObjectName, Reader, Space, Txn};

use crate::ServerError;

/// Ends the client id inside a key: sorts before every character of an id.
const END: u8 = 0;

pub(crate) fn client_key(client: &ClientId) -> Vec<u8> {
    client.as_str().as_bytes().to_vec()
}

/// The prefix of all records of one target in [`Space::Flows`], [`Space::FlowStats`] and [`Space::Tasks`].
pub(crate) fn target_prefix(target: &Target) -> Vec<u8> {
    let mut key = target.as_str().as_bytes().to_vec();
    key.push(END);
    key
}

pub(crate) fn flow_key(target: &Target, flow: &FlowId) -> Vec<u8> {
    let mut key = target_prefix(target);
    key.extend_from_slice(flow.as_str().as_bytes());
    key
}

/// The record of one upload of a flow, beside the flow's progress.
pub(crate) fn upload_key(target: &Target, flow: &FlowId, path: &UploadPath) -> Vec<u8> {
    let mut key = flow_key(target, flow);
    key.push(END);
    let mut digested = Vec::new();
    for part in std::iter::once(path.accessor()).chain(path.components().iter().map(String::as_str)) {
        digested.extend_from_slice(&(part.len() as u64).to_be_bytes());
        digested.extend_from_slice(part.as_bytes());
    }
    key.extend_from_slice(&sha256(&digested));
    key
}

pub(crate) fn task_key(client: &ClientId, task: u64) -> Vec<u8> {
    let mut key = client_key(client);
    key.push(END);
    key.extend_from_slice(&task.to_be_bytes());
    key
}

/// The table of a flow's rows for one query.
pub fn flow_rows(target: &Target, flow: &FlowId, query: &QueryName) -> ObjectName {
    let mut parts = flow_parts(target, flow);
    parts.extend(["rows".to_owned(), query.artifact.to_string()]);
    parts.extend(query.source.clone());
    ObjectName::new(parts)
}

/// The table of a flow's log lines.
pub fn flow_logs(target: &Target, flow: &FlowId) -> ObjectName {
    flow_object(target, flow, "logs")
}

/// The table of a flow's finished uploads.
pub fn flow_uploads(target: &Target, flow: &FlowId) -> ObjectName {
    flow_object(target, flow, "uploads")
}

/// The table of a flow's upload transactions.
pub fn flow_transactions(target: &Target, flow: &FlowId) -> ObjectName {
    flow_object(target, flow, "upload_transactions")
}

/// Everything that a flow owns.
pub(crate) fn flow_objects(target: &Target, flow: &FlowId) -> ObjectName {
    ObjectName::new(flow_parts(target, flow))
}

/// An uploaded file. The endpoint's names are encoded, so none of them is ever a path.
pub fn flow_file(target: &Target, flow: &FlowId, path: &UploadPath) -> ObjectName {
    let mut parts = flow_parts(target, flow);
    parts.push("files".to_owned());
    let sent = std::iter::once(path.accessor()).chain(path.components().iter().map(String::as_str));
    for (name, sent) in path.stored().into_iter().zip(sent) {
        if name.is_cut() {
            let digest = sha256(sent.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            parts.push(format!("{}#{digest}", name.as_str().chars().take(128).collect::<String>()));
        } else {
            parts.push(name.as_str().to_owned());
        }
    }
    ObjectName::new(parts)
}

/// The day table of an event artifact: of one client, or of the server.
pub fn event_rows(target: &Target, queue: &QueryName, day: &str) -> ObjectName {
    let mut parts = event_parts(target, "events", queue);
    parts.push(day.to_owned());
    ObjectName::new(parts)
}

/// The prefix of all day tables of an event artifact.
pub(crate) fn event_days(target: &Target, queue: &QueryName) -> ObjectName {
    ObjectName::new(event_parts(target, "events", queue))
}

/// The day table of the log lines of a monitored artifact.
pub fn event_logs(target: &Target, queue: &QueryName, day: &str) -> ObjectName {
    let mut parts = event_parts(target, "event_logs", queue);
    parts.push(day.to_owned());
    ObjectName::new(parts)
}

/// The prefix of all day tables of the log lines of a monitored artifact.
pub(crate) fn event_log_days(target: &Target, queue: &QueryName) -> ObjectName {
    ObjectName::new(event_parts(target, "event_logs", queue))
}

fn event_parts(target: &Target, kind: &str, queue: &QueryName) -> Vec<String> {
    // A source is a component of its own, and `@` can begin no source that an artifact may have, nor a day.
    let source = queue.source.as_ref().map_or_else(|| "@".to_owned(), |source| format!("@{source}"));
    vec![kind.to_owned(), target.to_string(), queue.artifact.to_string(), source]
}

fn flow_parts(target: &Target, flow: &FlowId) -> Vec<String> {
    vec!["flows".to_owned(), target.to_string(), flow.to_string()]
}

fn flow_object(target: &Target, flow: &FlowId, kind: &str) -> ObjectName {
    let mut parts = flow_parts(target, flow);
    parts.push(kind.to_owned());
    ObjectName::new(parts)
}

/// Reads one record that is a message.
pub(crate) fn get<M: Message + Default>(reader: &dyn Reader, org: &OrgId, space: Space, key: &[u8]) -> Result<Option<M>, ServerError> {
    reader.get(org, space, key)?.map(|bytes| decode(space, key, &bytes)).transpose()
}

/// Reads the same record inside a transaction.
pub(crate) fn get_in<M: Message + Default>(txn: &dyn Txn, org: &OrgId, space: Space, key: &[u8]) -> Result<Option<M>, ServerError> {
    txn.get(org, space, key)?.map(|bytes| decode(space, key, &bytes)).transpose()
}

pub(crate) fn put<M: Message>(txn: &mut dyn Txn, org: &OrgId, space: Space, key: &[u8], message: &M) {
    txn.put(org, space, key, message.encode_to_vec());
}

pub(crate) fn decode<M: Message + Default>(space: Space, key: &[u8], bytes: &[u8]) -> Result<M, ServerError> {
    M::decode(bytes).map_err(|error| {
        ServerError::Store(talon_store::StoreError::Damaged {
            place: format!("{space:?}/{}", String::from_utf8_lossy(key).escape_debug()),
            detail: error.to_string(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_client_are_no_prefix_of_anothers() {
        let short: Target = "C.ab".parse().unwrap();
        let long: Target = "C.abc".parse().unwrap();
        assert!(!target_prefix(&long).starts_with(&target_prefix(&short)));
    }

    #[test]
    fn what_an_endpoint_calls_a_file_is_never_a_path() {
        let target: Target = "C.ab".parse().unwrap();
        let flow: FlowId = "F.1".parse().unwrap();
        let sent = ["..", ".", "", "a/b", "\0", "x."].map(str::to_owned).to_vec();
        let name = flow_file(&target, &flow, &UploadPath::new("auto", sent).unwrap());
        for part in name.components() {
            assert!(!part.is_empty() && !matches!(part.as_str(), "." | "..") && !part.contains(['/', '\\', '\0']), "{part:?}");
        }
    }

    #[test]
    fn long_names_that_differ_at_their_end_stay_apart() {
        let target: Target = "C.ab".parse().unwrap();
        let flow: FlowId = "F.1".parse().unwrap();
        let name = |end: &str| flow_file(&target, &flow, &UploadPath::new("auto", vec!["x".repeat(300) + end]).unwrap());
        assert_ne!(name("a"), name("b"));
        assert!(name("a").components().iter().all(|part| part.len() < 250));
    }
}
