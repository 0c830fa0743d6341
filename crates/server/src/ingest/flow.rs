//! What belongs to collections: rows, log lines, statistics, files.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;
use talon_ids::{FlowId, OrgId, QueryName, Target, UploadPath};
use talon_proto::velo_status::ReturnedStatus;
use talon_proto::{ArtifactCollectorContext, FileBuffer, FlowStats, UploadTransaction, VeloStatus};
use talon_store::{CheckedRows, Reader, RowBlock, Space};

use super::{Packet, Refusal, Stored, fingerprint};
use crate::ServerError;
use crate::clients;
use crate::events;
use crate::layout::{flow_file, flow_key, flow_logs, flow_rows, flow_transactions, flow_uploads, get, put, upload_key};
use crate::progress::{self, Progress, UploadState};
use crate::rows;
use crate::tasks::{self, Unknown};
use crate::uploads;

/// What an agent may upload beyond its limit, since it notices only after it has passed it.
const UPLOAD_SLACK: u64 = 64 * 1024 * 1024;
/// More statuses than any collection has queries.
const MAX_STATUSES: usize = 10_000;

/// What a flow's data is checked against. Never changes once a flow is scheduled.
#[derive(Debug)]
pub(crate) struct FlowGate {
    queries: BTreeSet<QueryName>,
    max_upload_bytes: u64,
}

/// Reads the gate of a flow of this client; `None` when no such flow was scheduled.
pub(crate) fn load_gate(reader: &dyn Reader, org: &OrgId, target: &Target, flow: &FlowId) -> Result<Option<FlowGate>, ServerError> {
    let context: Option<ArtifactCollectorContext> = get(reader, org, Space::Flows, &flow_key(target, flow))?;
    Ok(context.map(|context| {
        let request = context.request.unwrap_or_default();
        let queries = request.compiled_collector_args.iter().flat_map(|args| &args.query);
        FlowGate { queries: queries.filter_map(|query| query.name.parse().ok()).collect(), max_upload_bytes: request.max_upload_bytes }
    }))
}

/// A flow that the packet touches.
pub(super) struct OpenFlow {
    gate: Arc<FlowGate>,
    progress: Progress,
    ended: bool,
}

impl Packet<'_, '_> {
    /// The flow, if it was scheduled for this client. Marks it as heard of.
    fn open(&mut self, flow: &FlowId) -> Result<Result<&mut OpenFlow, Refusal>, ServerError> {
        if !self.flows.contains_key(flow) {
            let Some(gate) = (self.context.gates)(&*self.txn, flow)? else {
                return Ok(Err(Refusal::NotScheduled(flow.to_string())));
            };
            let key = flow_key(&self.context.target(), flow);
            let progress = get(&*self.txn, self.context.org, Space::FlowStats, &key)?.unwrap_or_default();
            self.flows.insert(flow.clone(), OpenFlow { gate, progress, ended: false });
        }
        Ok(self.flows.get_mut(flow).ok_or_else(|| Refusal::NotScheduled(flow.to_string())))
    }

    /// Notes that the agent has the flow: its request is off the queue.
    fn heard_of(&mut self, flow: &FlowId) {
        let Some(open) = self.flows.get_mut(flow) else { return };
        open.progress.last_news = self.context.now_us;
        tasks::settle(self.txn, self.context.org, self.context.client, &mut open.progress);
        if !open.progress.complete && open.progress.delivered_at != 0 {
            let now_s = i64::try_from(self.context.now_us / 1_000_000).unwrap_or(i64::MAX);
            if self.info.in_flight_flows.insert(flow.to_string(), now_s) != Some(now_s) {
                self.info_changed = true;
            }
        }
    }

    pub(super) fn rows(&mut self, flow: &FlowId, query: &QueryName, start: u64, block: CheckedRows) -> Stored {
        let open = match self.open(flow)? {
            Ok(open) => open,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if !open.gate.queries.contains(query) {
            return Ok(Err(Refusal::NotCollected(query.clone())));
        }
        self.heard_of(flow);
        let table = flow_rows(&self.context.target(), flow, query);
        let stored = self.txn.table(self.context.org, &table)?.rows;
        match place(start, u64::from(block.count()), stored) {
            Place::Next => {
                if let Some(open) = self.flows.get_mut(flow) {
                    open.progress.rows = open.progress.rows.saturating_add(u64::from(block.count()));
                }
                self.txn.append_checked(self.context.org, &table, Some(stored), block)?;
                Ok(Ok(()))
            }
            Place::Known => Ok(Ok(())),
            Place::Gap => Ok(Err(Refusal::Gap { sent: start, stored })),
        }
    }

    /// Log lines have an index too, but agents lose some (`spec/01` §20.2): a gap is taken, what was seen is dropped.
    pub(super) fn logs(&mut self, flow: &FlowId, first: u64, count: u64, block: RowBlock, alerts: &[String]) -> Stored {
        let open = match self.open(flow)? {
            Ok(open) => open,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let next = first.saturating_add(count);
        if first < open.progress.next_log {
            let known = next <= open.progress.next_log;
            let stored = open.progress.next_log;
            self.heard_of(flow);
            return Ok(if known { Ok(()) } else { Err(Refusal::Gap { sent: first, stored }) });
        }
        open.progress.next_log = next;
        self.heard_of(flow);
        let table = flow_logs(&self.context.target(), flow);
        self.txn.append_rows(self.context.org, &table, None, block)?;
        self.alerts(alerts, ("flow_id", flow.as_str()))?;
        Ok(Ok(()))
    }

    pub(super) fn stats(&mut self, flow: &FlowId, mut stats: FlowStats) -> Stored {
        let open = match self.open(flow)? {
            Ok(open) => open,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if open.progress.complete || stats.query_status.len() > MAX_STATUSES {
            return Ok(Ok(()));
        }
        let denied = stats.flow_complete && says_unknown(&stats);
        if denied {
            let progress = open.progress.clone();
            if tasks::unknown(self.txn, self.context.org, self.context.client, &progress)? == Unknown::Repeat {
                self.info.in_flight_flows.remove(flow.as_str());
                self.info_changed = true;
                self.taken.wake = true;
                return Ok(Ok(()));
            }
        }
        let Some(open) = self.flows.get_mut(flow) else { return Ok(Ok(())) };
        for query in &mut stats.query_status {
            query.names_with_response.retain(|name| name.parse().is_ok_and(|name| open.gate.queries.contains(&name)));
        }
        let complete = stats.flow_complete;
        if denied {
            open.progress.stats = Some(lost(open.progress.stats.take(), &stats));
        } else if !open.progress.stats.as_ref().is_some_and(|kept| progress::is_stale(kept, &stats)) {
            open.progress.stats = Some(stats);
        }
        self.heard_of(flow);
        if complete && let Some(open) = self.flows.get_mut(flow) {
            open.progress.complete = true;
            open.ended = true;
        }
        Ok(Ok(()))
    }

    pub(super) fn chunk(&mut self, flow: &FlowId, path: &UploadPath, buffer: &FileBuffer, chunk: RowBlock) -> Stored {
        let open = match self.open(flow)? {
            Ok(open) => open,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let limit = open.gate.max_upload_bytes.saturating_add(UPLOAD_SLACK);
        let used = open.progress.uploaded.saturating_add(chunk.plain_len);
        self.heard_of(flow);
        let (org, target) = (self.context.org, self.context.target());
        let (name, key) = (flow_file(&target, flow, path), upload_key(&target, flow, path));
        let mut state: UploadState =
            get(&*self.txn, org, Space::FlowStats, &key)?.unwrap_or(UploadState { number: -1, ..UploadState::default() });
        if buffer.upload_number < state.number || (buffer.upload_number == state.number && state.complete) {
            return Ok(Ok(()));
        }
        let mut stored = self.txn.upload(org, &name)?.unwrap_or_default().bytes;
        if buffer.upload_number > state.number {
            if buffer.offset != 0 {
                return Ok(Err(Refusal::Gap { sent: buffer.offset, stored: 0 }));
            }
            self.txn.delete_object(org, &name)?;
            state = UploadState { number: buffer.upload_number, complete: false, started: self.context.now_us };
            stored = 0;
        }
        match place(buffer.offset, chunk.plain_len, stored) {
            Place::Next if used > limit => return Ok(Err(Refusal::UploadLimit)),
            Place::Next => {
                stored = stored.saturating_add(chunk.plain_len);
                if let Some(open) = self.flows.get_mut(flow) {
                    open.progress.uploaded = used;
                }
                // An empty chunk still makes an empty file.
                self.txn.append_upload(org, &name, buffer.offset, chunk)?;
            }
            Place::Known => {}
            Place::Gap => return Ok(Err(Refusal::Gap { sent: buffer.offset, stored })),
        }
        if buffer.eof {
            if buffer.stored_size != stored {
                return Ok(Err(Refusal::UploadEnd { sent: buffer.stored_size, stored }));
            }
            state.complete = true;
            self.txn.finish_upload(org, &name)?;
            self.upload_row(flow, path, buffer, &state, stored)?;
        }
        put(self.txn, org, Space::FlowStats, &key, &state);
        Ok(Ok(()))
    }

    /// The row of a finished upload (`spec/05` §14.3), and the event.
    fn upload_row(
        &mut self,
        flow: &FlowId,
        path: &UploadPath,
        buffer: &FileBuffer,
        state: &UploadState,
        stored: u64,
    ) -> Result<(), ServerError> {
        let target = self.context.target();
        let now_s = self.context.now_us / 1_000_000;
        let ranges = buffer.index.as_ref().map(|index| index.ranges.as_slice()).unwrap_or_default();
        let upload =
            uploads::Finished { target: &target, flow, path, size: buffer.size, stored, started_s: state.started / 1_000_000, ranges };
        let vfs_path = upload.vfs_path();
        self.txn.append_rows(self.context.org, &flow_uploads(&target, flow), None, rows::block(&upload.rows(now_s)))?;
        let event = rows::object(&[
            ("Timestamp", json!(now_s)),
            ("ClientId", json!(self.context.client.as_str())),
            ("FlowId", json!(flow.as_str())),
            ("VFSPath", json!(vfs_path)),
            ("UploadName", json!(path.components().last())),
            ("Accessor", json!(path.accessor())),
            ("Size", json!(buffer.size)),
            ("UploadedSize", json!(stored)),
        ]);
        let event = events::target_event(self.txn, self.context.org, &target, "System.Upload.Completion", &event, now_s)?;
        self.taken.events.push(event);
        Ok(())
    }

    pub(super) fn transaction(&mut self, flow: &FlowId, transaction: &UploadTransaction) -> Stored {
        if let Err(refusal) = self.open(flow)? {
            return Ok(Err(refusal));
        }
        self.heard_of(flow);
        let columns = [
            ("filename", json!(transaction.filename)),
            ("accessor", json!(transaction.accessor)),
            ("store_as_name", json!(transaction.store_as_name)),
            ("components", json!(transaction.components)),
            ("expected_size", json!(transaction.expected_size)),
            ("mtime", json!(transaction.mtime)),
            ("atime", json!(transaction.atime)),
            ("ctime", json!(transaction.ctime)),
            ("btime", json!(transaction.btime)),
            ("mode", json!(transaction.mode)),
            ("start_offset", json!(transaction.start_offset)),
            ("upload_id", json!(transaction.upload_id)),
            ("response", json!(transaction.response)),
        ];
        let row = rows::object(&columns);
        let (org, target) = (self.context.org, self.context.target());
        let mut key = flow_key(&target, flow);
        key.extend_from_slice(b"\0transaction");
        key.extend_from_slice(&fingerprint(&[row.as_bytes()]).to_be_bytes());
        if self.txn.get(org, Space::FlowStats, &key)?.is_none() {
            self.txn.put(org, Space::FlowStats, &key, Vec::new());
            self.txn.append_rows(org, &flow_transactions(&target, flow), None, rows::block(&[row]))?;
        }
        Ok(Ok(()))
    }

    /// Writes the progress of the flows that the packet touched, and announces those that ended: once each, when all their rows are in.
    pub(super) fn close_flows(&mut self) -> Result<(), ServerError> {
        let (org, target) = (self.context.org, self.context.target());
        for (flow, open) in std::mem::take(&mut self.flows) {
            let key = flow_key(&target, &flow);
            put(self.txn, org, Space::FlowStats, &key, &open.progress);
            if !open.ended {
                continue;
            }
            if self.info.in_flight_flows.remove(flow.as_str()).is_some() {
                self.info_changed = true;
            }
            tasks::forget_session(self.txn, org, self.context.client, flow.as_str())?;
            let Some(mut context) = get::<ArtifactCollectorContext>(&*self.txn, org, Space::Flows, &key)? else { continue };
            progress::derive(&mut context, &open.progress, self.context.now_us);
            if clients::interrogated(&*self.txn, org, &target, &flow, &context, &mut self.info)? {
                self.info_changed = true;
                clients::index(self.txn, org, &self.info);
                // Hunts that look at what interrogation tells look again.
                self.info.last_hunt_timestamp = 0;
                let row = [("ClientId", json!(self.context.client.as_str()))];
                self.announce_internal("Server.Internal.Interrogation", &row);
            }
            let now_s = self.context.now_us / 1_000_000;
            crate::hunts::flow_ended(self.txn, org, self.context.client, &flow, &context, self.context.now_us)?;
            self.taken.events.push(events::flow_ended(self.txn, org, &target, &flow, context, now_s)?);
            self.taken.completed.push(flow);
            self.taken.wake = true;
        }
        Ok(())
    }

    /// Publishes an event of the server itself, which is not kept.
    fn announce_internal(&mut self, queue: &str, columns: &[(&str, serde_json::Value)]) {
        let now_s = self.context.now_us / 1_000_000;
        self.taken.events.push(crate::events::internal(queue, columns, now_s));
    }
}

enum Place {
    /// It continues what is stored.
    Next,
    /// All of it is stored.
    Known,
    /// Something is missing in between, or it overlaps.
    Gap,
}

fn place(start: u64, count: u64, stored: u64) -> Place {
    if start == stored {
        Place::Next
    } else if start.saturating_add(count) <= stored {
        Place::Known
    } else {
        Place::Gap
    }
}

fn says_unknown(stats: &FlowStats) -> bool {
    let Some(only) = stats.query_status.first() else { return false };
    only.status() == ReturnedStatus::UnknownFlow || only.error_message.starts_with("Flow not known")
}

/// The last statistics of a flow that the agent lost: what was running has failed.
fn lost(kept: Option<FlowStats>, denial: &FlowStats) -> FlowStats {
    let mut stats = kept.unwrap_or_default();
    let reason = denial.query_status.first().map(|status| status.error_message.clone()).unwrap_or_default();
    for query in stats.query_status.iter_mut().filter(|query| query.status() == ReturnedStatus::Progress) {
        query.set_status(ReturnedStatus::GenericError);
        query.error_message.clone_from(&reason);
    }
    if stats.query_status.is_empty() {
        let mut status = VeloStatus { error_message: reason, ..VeloStatus::default() };
        status.set_status(ReturnedStatus::UnknownFlow);
        stats.query_status.push(status);
    }
    stats.flow_complete = true;
    stats
}
