//! What belongs to event monitoring: rows and log lines of event artifacts, and what agents say of themselves.

use prost::Message;
use serde::Deserialize;
use serde_json::json;
use talon_ids::QueryName;
use talon_proto::ClientInfo;
use talon_store::{RowBlock, Space};

use super::{Packet, Refusal, Stored, fingerprint};
use crate::layout::{event_logs, event_rows, get, put, target_prefix};
use crate::{clients, clock, rows};

/// So many messages of a queue are remembered by their fingerprint.
const REMEMBERED: usize = 64;

/// Where a client's event queue is: tells new rows from repeated ones. Event rows have no flow whose row count could tell.
#[derive(Clone, PartialEq, Message)]
struct Cursor {
    /// The row that comes next, in the count of the running query.
    #[prost(uint64, tag = "1")]
    next_row: u64,
    /// The newest message's own time, in microseconds.
    #[prost(uint64, tag = "2")]
    newest: u64,
    /// Fingerprints of the last messages.
    #[prost(fixed64, repeated, tag = "3")]
    recent: Vec<u64>,
}

impl Cursor {
    /// Whether a message was seen. One that is no newer than the newest and does not continue the rows is an old one that somebody replays. A message
    /// without a time of its own, which peers in use do not send, is known by its content alone.
    fn knows(&self, start: u64, timestamp: u64, print: u64) -> bool {
        let old = timestamp != 0 && timestamp <= self.newest && start != self.next_row;
        self.recent.contains(&print) || (old && !self.recent.is_empty())
    }

    fn advance(&mut self, start: u64, count: u64, timestamp: u64, print: u64) {
        self.next_row = start.saturating_add(count);
        self.newest = self.newest.max(timestamp);
        self.recent.push(print);
        let surplus = self.recent.len().saturating_sub(REMEMBERED);
        self.recent.drain(..surplus);
    }
}

impl Packet<'_, '_> {
    pub(super) fn event_rows(&mut self, queue: &QueryName, start: u64, timestamp: u64, jsonl: &str, count: u32) -> Stored {
        if !(self.context.monitored)(&self.info, queue) {
            return Ok(Err(Refusal::NotMonitored(queue.clone())));
        }
        if count == 0 {
            return Ok(Ok(()));
        }
        let (org, target) = (self.context.org, self.context.target());
        let mut key = target_prefix(&target);
        key.extend_from_slice(format!("F.Monitoring\0{queue}").as_bytes());
        let mut cursor: Cursor = get(&*self.txn, org, Space::FlowStats, &key)?.unwrap_or_default();
        let print = fingerprint(&[&start.to_be_bytes(), &timestamp.to_be_bytes(), jsonl.as_bytes()]);
        if cursor.knows(start, timestamp, print) {
            return Ok(Ok(()));
        }
        let now_s = self.context.now_us / 1_000_000;
        let client = self.context.client.as_str();
        let columns = [("ClientId", json!(client)), ("_ts", json!(now_s)), ("_Source", json!(client))];
        let stamped = match rows::stamp(jsonl, &columns) {
            Ok(stamped) => stamped,
            Err(bad) => return Ok(Err(bad.into())),
        };
        self.txn.append_rows(org, &event_rows(&target, queue, &clock::day(now_s)), None, rows::block(&stamped))?;
        cursor.advance(start, u64::from(count), timestamp, print);
        put(self.txn, org, Space::FlowStats, &key, &cursor);
        let queue = queue.to_string();
        for row in stamped {
            self.announce(&queue, row);
        }
        Ok(Ok(()))
    }

    pub(super) fn event_logs(&mut self, queue: &QueryName, block: RowBlock, alerts: &[String]) -> Stored {
        if !(self.context.monitored)(&self.info, queue) {
            return Ok(Err(Refusal::NotMonitored(queue.clone())));
        }
        let day = clock::day(self.context.now_us / 1_000_000);
        self.txn.append_rows(self.context.org, &event_logs(&self.context.target(), queue, &day), None, block)?;
        self.alerts(alerts, ("artifact", &queue.to_string()))?;
        Ok(Ok(()))
    }

    /// Merges what an agent says of itself into its record. It is data about the endpoint, never about who it is.
    pub(super) fn client_info(&mut self, info: ClientInfo) {
        let before = self.info.clone();
        let keep = |new: String, old: &mut String| {
            if !new.is_empty() {
                *old = new;
            }
        };
        keep(info.hostname, &mut self.info.hostname);
        keep(info.fqdn, &mut self.info.fqdn);
        keep(info.system, &mut self.info.system);
        keep(info.release, &mut self.info.release);
        keep(info.architecture, &mut self.info.architecture);
        keep(info.client_version, &mut self.info.client_version);
        keep(info.client_name, &mut self.info.client_name);
        keep(info.build_time, &mut self.info.build_time);
        keep(info.build_url, &mut self.info.build_url);
        if info.install_time != 0 {
            self.info.install_time = info.install_time;
        }
        clients::add_labels(&mut self.info, &info.labels, self.context.now_us.saturating_mul(1000));
        if self.info != before {
            self.info_changed = true;
            clients::index(self.txn, self.context.org, &self.info);
        }
    }
}

/// Reads the one row of `Server.Internal.ClientInfo`; unknown members are ignored.
pub(crate) fn reported_client_info(jsonl: &str) -> Option<ClientInfo> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Reported {
        hostname: String,
        fqdn: String,
        system: String,
        release: String,
        architecture: String,
        client_version: String,
        client_name: String,
        build_time: String,
        build_url: String,
        install_time: u64,
        labels: Vec<String>,
    }
    let line = jsonl.lines().next()?;
    let reported: Reported = serde_json::from_str(line).ok()?;
    let cut = |text: String| clients::clean(&text);
    Some(ClientInfo {
        hostname: cut(reported.hostname),
        fqdn: cut(reported.fqdn),
        system: cut(reported.system),
        release: cut(reported.release),
        architecture: cut(reported.architecture),
        client_version: cut(reported.client_version),
        client_name: cut(reported.client_name),
        build_time: cut(reported.build_time),
        build_url: cut(reported.build_url),
        install_time: reported.install_time,
        labels: reported.labels.into_iter().take(64).map(cut).collect(),
        ..ClientInfo::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_tells_new_messages_from_old_ones() {
        let mut cursor = Cursor::default();
        assert!(!cursor.knows(0, 100, 1));
        cursor.advance(0, 5, 100, 1);
        assert!(cursor.knows(0, 100, 1), "the same message again");
        assert!(!cursor.knows(5, 90, 2), "rows go on although the endpoint's clock was set back");
        cursor.advance(5, 5, 90, 2);
        assert!(!cursor.knows(0, 200, 3), "the agent started anew");
        cursor.advance(0, 1, 200, 3);
        assert!(cursor.knows(5, 90, 9), "an old packet whose fingerprint is forgotten");
        assert!(!cursor.knows(0, 0, 9), "other rows without a time");
        for print in 10..10 + REMEMBERED as u64 * 2 {
            cursor.advance(0, 1, print * 100, print);
        }
        assert_eq!(cursor.recent.len(), REMEMBERED);
    }

    #[test]
    fn what_an_agent_says_of_itself_is_cut_to_size() {
        let info = reported_client_info(&format!("{{\"hostname\":\"{}\",\"client_id\":\"C.evil\",\"x\":1}}\n", "h".repeat(5000))).unwrap();
        assert_eq!(info.client_id, "");
        assert!(info.hostname.len() <= 1024);
        assert!(reported_client_info("nonsense").is_none());
    }
}
