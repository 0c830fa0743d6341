//! Client records: what the server knows of an endpoint, the index that finds it, labels, and what interrogation tells.

use std::collections::BTreeSet;

use serde::Deserialize;
use talon_acl::{LabelClient, Permit, ReadResults};
use talon_audit::Receipt;
use talon_ids::{ClientId, FlowId, OrgId, Target};
use talon_proto::{AgentInformation, ApiClient, ArtifactCollectorContext, ClientInfo, Uname};
use talon_store::{Reader, Scan, Space, Txn};

use crate::ServerError;
use crate::layout::{client_key, decode, flow_rows, get, put};
use crate::org::Org;
use crate::transaction::Pending;

/// Text that an endpoint reports about itself is cut to so many bytes.
const MAX_TEXT: usize = 1024;
/// More labels or network addresses than any endpoint has.
const MAX_ITEMS: usize = 256;
/// The artifacts that interrogate, the administrator's own first.
pub(crate) const INTERROGATIONS: [&str; 2] = ["Custom.Generic.Client.Info", "Generic.Client.Info"];
/// Interrogations file what the record needs under this source.
const BASIC: &str = "BasicInformation";

/// What an administrator does with labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelOperation {
    /// Adds them.
    Set,
    /// Takes them away.
    Remove,
}

impl Org {
    /// The record of one client.
    ///
    /// # Errors
    /// When storage fails.
    pub fn client(&self, client: &ClientId) -> Result<Option<ClientInfo>, ServerError> {
        let info: Option<ClientInfo> = get(self.reader(), self.id(), Space::Clients, &client_key(client))?;
        Ok(info.map(|info| self.with_presence(info)))
    }

    /// The clients that match a search (`spec/05` §8), by id.
    ///
    /// # Errors
    /// [`ServerError::Invalid`] for an unknown verb.
    pub fn search_clients(&self, query: &str) -> Result<Vec<ClientInfo>, ServerError> {
        let query = query.trim();
        let lower = query.to_lowercase();
        let found = match lower.split_once(':') {
            None if lower.is_empty() || lower == "all" => self.scan_clients(b"")?,
            None if lower.starts_with("c.") => self.scan_clients(format!("C{}", lower.get(1..).unwrap_or_default()).as_bytes())?,
            None => {
                let mut found = self.by_term(&format!("host:{lower}"))?;
                found.extend(self.by_term(&format!("label:{lower}"))?);
                self.load(found)?
            }
            Some(("client", id)) => self.scan_clients(format!("C{}", id.get(1..).unwrap_or_default()).as_bytes())?,
            Some(("label", "none")) => self.scan_clients(b"")?.into_iter().filter(|info| info.labels.is_empty()).collect(),
            Some(("host" | "label" | "mac", _)) => {
                let found = self.by_term(&lower)?;
                self.load(found)?
            }
            Some(("ip", address)) => self.scan_clients(b"")?.into_iter().filter(|info| info.ip_address.starts_with(address)).collect(),
            Some((verb, _)) => return Err(ServerError::invalid(format!("Invalid search operator {verb}"))),
        };
        Ok(found.into_iter().map(|info| self.with_presence(info)).collect())
    }

    /// Adds or removes labels of one client.
    ///
    /// # Errors
    /// [`ServerError::NotFound`], [`ServerError::Denied`].
    pub fn label_client(
        &self,
        permit: &Permit<LabelClient>,
        receipt: Receipt,
        client: &ClientId,
        operation: LabelOperation,
        labels: Vec<String>,
    ) -> Result<Pending<ClientInfo>, ServerError> {
        self.own(permit)?;
        drop(receipt);
        let (org, client, now_ns) = (self.id().clone(), client.clone(), self.now_ns());
        let (hunts_look, woken, of) = (self.hunts_look_at_clients(), self.clone(), client.clone());
        let (shown, name) = (labels.clone(), if operation == LabelOperation::Set { "Add" } else { "Remove" });
        let pending = self.submit(move |txn| {
            let Some(before) = get::<ClientInfo>(&*txn, &org, Space::Clients, &client_key(&client))? else {
                return Err(ServerError::not_found("Client", client));
            };
            let mut info = before.clone();
            match operation {
                LabelOperation::Set => add_labels(&mut info, &labels, now_ns),
                LabelOperation::Remove => remove_labels(&mut info, &labels, now_ns),
            }
            if hunts_look && info.labels != before.labels {
                info.last_hunt_timestamp = 0;
            }
            unindex(txn, &org, &before);
            index(txn, &org, &info);
            put(txn, &org, Space::Clients, &client_key(&client), &info);
            Ok(info)
        });
        Ok(pending.then(move |_| {
            for label in &shown {
                let row = [("client_id", of.as_str().into()), ("Operation", name.into()), ("Label", label.as_str().into())];
                woken.announce("Server.Internal.Label", &row);
            }
            woken.state().readers.wake(&of);
        }))
    }

    fn scan_clients(&self, prefix: &[u8]) -> Result<Vec<ClientInfo>, ServerError> {
        let scan = Scan { prefix: prefix.to_vec(), ..Scan::default() };
        self.reader().scan(self.id(), Space::Clients, &scan)?.iter().map(|(key, value)| decode(Space::Clients, key, value)).collect()
    }

    /// The ids under the index terms that fit a pattern: a prefix, and a glob after the first `*`.
    fn by_term(&self, pattern: &str) -> Result<BTreeSet<String>, ServerError> {
        let prefix = pattern.split('*').next().unwrap_or_default().as_bytes().to_vec();
        let mut ids = BTreeSet::new();
        for (key, _) in self.reader().scan(self.id(), Space::ClientIndex, &Scan { prefix, ..Scan::default() })? {
            let mut parts = key.splitn(2, |&byte| byte == 0);
            if let (Some(term), Some(id)) = (parts.next(), parts.next())
                && fits(&String::from_utf8_lossy(term), pattern)
            {
                ids.insert(String::from_utf8_lossy(id).into_owned());
            }
        }
        Ok(ids)
    }

    fn load(&self, ids: BTreeSet<String>) -> Result<Vec<ClientInfo>, ServerError> {
        let load = |id: String| get(self.reader(), self.id(), Space::Clients, id.as_bytes()).transpose();
        ids.into_iter().filter_map(load).collect()
    }

    /// Checks that a permit is one for reading here.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`].
    pub fn may_read(&self, permit: &Permit<ReadResults>) -> Result<(), ServerError> {
        self.own(permit)
    }
}

/// Whether a term fits: text before the first `*` is a prefix; with a `*`, the whole term must fit.
fn fits(term: &str, pattern: &str) -> bool {
    let Some((prefix, mut rest)) = pattern.split_once('*') else { return term.starts_with(pattern) };
    let Some(mut left) = term.strip_prefix(prefix) else { return false };
    while let Some((part, after)) = rest.split_once('*') {
        let Some(at) = left.find(part) else { return false };
        left = left.get(at.saturating_add(part.len())..).unwrap_or_default();
        rest = after;
    }
    left.ends_with(rest)
}

/// The form of a record that users and queries see.
#[must_use]
pub fn api_client(info: &ClientInfo) -> ApiClient {
    ApiClient {
        client_id: info.client_id.clone(),
        agent_information: Some(AgentInformation {
            version: info.client_version.clone(),
            name: info.client_name.clone(),
            build_time: info.build_time.clone(),
            build_url: info.build_url.clone(),
        }),
        os_info: Some(Uname {
            system: info.system.clone(),
            hostname: info.hostname.clone(),
            release: info.release.clone(),
            machine: info.architecture.clone(),
            fqdn: info.fqdn.clone(),
            mac_addresses: info.mac_addresses.clone(),
        }),
        first_seen_at: info.first_seen_at,
        last_seen_at: info.ping,
        last_ip: info.ip_address.clone(),
        labels: info.labels.clone(),
        last_interrogate_flow_id: info.last_interrogate_flow_id.clone(),
        last_interrogate_artifact_name: info.last_interrogate_artifact_name.clone(),
        last_hunt_timestamp: info.last_hunt_timestamp,
        last_event_table_version: info.last_event_table_version,
        last_label_timestamp: info.labels_timestamp,
        in_flight_flows: info.in_flight_flows.clone(),
    }
}

/// Text from an endpoint, cut to size and without control characters.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars().filter(|character| !character.is_control()) {
        if out.len().saturating_add(character.len_utf8()) > MAX_TEXT {
            break;
        }
        out.push(character);
    }
    out
}

/// Adds labels that are not there yet, in any case of letters.
pub(crate) fn add_labels(info: &mut ClientInfo, labels: &[String], now_ns: u64) {
    for label in labels.iter().map(|label| clean(label.trim())) {
        let there = info.labels.iter().any(|old| old.to_lowercase() == label.to_lowercase());
        if !label.is_empty() && !there && !label.eq_ignore_ascii_case("all") && info.labels.len() < MAX_ITEMS {
            info.labels.push(label);
            info.labels_timestamp = now_ns;
        }
    }
}

fn remove_labels(info: &mut ClientInfo, labels: &[String], now_ns: u64) {
    let before = info.labels.len();
    info.labels.retain(|old| !labels.iter().any(|label| label.trim().to_lowercase() == old.to_lowercase()));
    if info.labels.len() != before {
        info.labels_timestamp = now_ns;
    }
}

/// Whether a client has a label; everybody has `all`.
pub(crate) fn has_label(info: &ClientInfo, label: &str) -> bool {
    label.eq_ignore_ascii_case("all") || info.labels.iter().any(|old| old.to_lowercase() == label.to_lowercase())
}

fn terms(info: &ClientInfo) -> BTreeSet<String> {
    let mut terms = BTreeSet::from([info.client_id.to_lowercase()]);
    let hosts = [&info.hostname, &info.fqdn].into_iter().filter(|host| !host.is_empty());
    terms.extend(hosts.map(|host| format!("host:{}", host.to_lowercase())));
    terms.extend(info.labels.iter().map(|label| format!("label:{}", label.to_lowercase())));
    terms.extend(info.mac_addresses.iter().map(|mac| format!("mac:{}", mac.to_lowercase())));
    terms
}

fn term_key(term: &str, info: &ClientInfo) -> Vec<u8> {
    [term.as_bytes(), &[0], info.client_id.as_bytes()].concat()
}

/// Puts a client under its index terms.
pub(crate) fn index(txn: &mut dyn Txn, org: &OrgId, info: &ClientInfo) {
    for term in terms(info) {
        txn.put(org, Space::ClientIndex, &term_key(&term, info), Vec::new());
    }
}

pub(crate) fn unindex(txn: &mut dyn Txn, org: &OrgId, info: &ClientInfo) {
    for term in terms(info) {
        txn.delete(org, Space::ClientIndex, &term_key(&term, info));
    }
}

/// Takes the results of an interrogation into the record, when the ended flow was one. Says whether it was.
pub(crate) fn interrogated(
    reader: &dyn Reader,
    org: &OrgId,
    target: &Target,
    flow: &FlowId,
    context: &ArtifactCollectorContext,
    info: &mut ClientInfo,
) -> Result<bool, ServerError> {
    let collected = |name: &str| context.request.as_ref().is_some_and(|request| request.artifacts.iter().any(|artifact| artifact == name));
    let Some(artifact) = INTERROGATIONS.into_iter().find(|name| collected(name)) else { return Ok(false) };
    let table = flow_rows(target, flow, &format!("{artifact}/{BASIC}").parse()?);
    let Some(block) = reader.rows(org, &table, 0)?.next() else { return Ok(false) };
    let (_, jsonl) = block?;
    let line = jsonl.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let Ok(row) = serde_json::from_slice::<BasicInformation>(line) else { return Ok(false) };
    if row.os.is_empty() {
        return Ok(false);
    }
    row.merge(info);
    info.last_interrogate_flow_id = flow.to_string();
    info.last_interrogate_artifact_name = artifact.to_owned();
    Ok(true)
}

/// The row that an interrogation gives (`spec/01` §6.3). Members that are missing or of another type stay empty.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct BasicInformation {
    #[serde(rename = "OS", deserialize_with = "lenient")]
    os: String,
    #[serde(deserialize_with = "lenient")]
    hostname: String,
    #[serde(deserialize_with = "lenient")]
    fqdn: String,
    #[serde(deserialize_with = "lenient")]
    architecture: String,
    #[serde(deserialize_with = "lenient")]
    name: String,
    #[serde(deserialize_with = "lenient")]
    version: String,
    #[serde(deserialize_with = "lenient")]
    build_time: String,
    #[serde(rename = "build_url", deserialize_with = "lenient")]
    build_url: String,
    #[serde(deserialize_with = "lenient")]
    platform: String,
    #[serde(deserialize_with = "lenient")]
    platform_version: String,
    #[serde(deserialize_with = "lenient_list")]
    labels: Vec<String>,
    #[serde(rename = "MACAddresses", deserialize_with = "lenient_list")]
    mac_addresses: Vec<String>,
    #[serde(rename = "install_time", deserialize_with = "lenient_number")]
    install_time: u64,
}

impl BasicInformation {
    fn merge(self, info: &mut ClientInfo) {
        info.system = self.os;
        info.hostname = self.hostname;
        info.fqdn = self.fqdn;
        info.architecture = self.architecture;
        info.client_name = self.name;
        info.client_version = self.version;
        info.build_time = self.build_time;
        info.build_url = self.build_url;
        info.release = clean(&format!("{}{}", self.platform, self.platform_version));
        let macs: BTreeSet<String> = self.mac_addresses.into_iter().take(MAX_ITEMS).collect();
        info.mac_addresses = macs.into_iter().collect();
        if self.install_time != 0 {
            info.install_time = self.install_time;
        }
        let stamp = info.labels_timestamp.max(1);
        add_labels(info, &self.labels, stamp);
    }
}

fn lenient<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => clean(&text),
        serde_json::Value::Number(number) => number.to_string(),
        _ => String::new(),
    })
}

fn lenient_list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Array(items) => items.iter().filter_map(serde_json::Value::as_str).take(MAX_ITEMS).map(clean).collect(),
        _ => Vec::new(),
    })
}

fn lenient_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(serde_json::Value::deserialize(deserializer)?.as_u64().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_one_whatever_their_case() {
        let mut info = ClientInfo::default();
        add_labels(&mut info, &["Lab ".into(), "lab".into(), "all".into(), String::new()], 5);
        assert_eq!((info.labels.clone(), info.labels_timestamp), (vec!["Lab".to_owned()], 5));
        assert!(has_label(&info, "LAB") && has_label(&info, "All") && !has_label(&info, "x"));
        remove_labels(&mut info, &["LAB".into()], 9);
        assert_eq!((info.labels.len(), info.labels_timestamp), (0, 9));
    }

    #[test]
    fn search_patterns_are_prefixes_or_globs() {
        for (term, pattern, wanted) in [
            ("host:web01", "host:web", true),
            ("host:web01", "host:*01", true),
            ("host:web01", "host:*02", false),
            ("host:web01", "host:w*b*1", true),
            ("host:web01", "host:w*b", false),
        ] {
            assert_eq!(fits(term, pattern), wanted, "{term} {pattern}");
        }
    }

    #[test]
    fn an_interrogation_row_of_wrong_types_does_no_harm() {
        let row: BasicInformation = serde_json::from_str(
            r#"{"OS":"linux","Hostname":7,"Labels":null,"MACAddresses":["b","a","a",1],"install_time":"x","Fqdn":{}}"#,
        )
        .unwrap();
        let mut info = ClientInfo::default();
        row.merge(&mut info);
        assert_eq!((info.system.as_str(), info.hostname.as_str(), info.fqdn.as_str()), ("linux", "7", ""));
        assert_eq!(info.mac_addresses, ["a", "b"]);
    }
}
