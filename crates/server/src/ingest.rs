//! What authenticated agents send: checked against what was asked of them, then stored, one transaction a packet.
//!
//! The rules, each of which a hostile agent would like to break:
//! * Data belongs to a flow that was scheduled for this very client, and to a query of that flow's compiled request.
//! * Rows and bytes continue exactly where the stored ones end. What is stored already is dropped in silence (the answer to it was lost, or somebody
//!   replays a captured packet); a gap is refused.
//! * What a message says of itself (rows, bytes) is what it carries.
//! * Event rows belong to an artifact of the client's own event table, and to no other kind of queue.
//! * Names are data: none becomes a path, none becomes the server's own column.
//!
//! A message that breaks a rule is refused by itself; its neighbours in the packet are kept. When the engine cannot make the packet durable, nothing of it
//! is kept, and the agent sends it again.

mod flow;
mod monitoring;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use talon_ids::{ClientId, FlowId, InvalidId, OrgId, QueryName, SessionId, Target, UploadPath};
use talon_proto::{ClientInfo, FileBuffer, FlowStats, LogMessage, UploadTransaction, VeloMessage, VqlResponse};
use talon_store::{CheckedRows, Reader, RowBlock, Space, Txn};
use talon_wire::Obfuscator;

use crate::ServerError;
use crate::bus::Event;
use crate::layout::{get, put};
use crate::rows::{self, BadRows};

pub(crate) use flow::{FlowGate, load_gate};
pub(crate) use monitoring::reported_client_info;

/// The queue of what agents say about themselves; its rows update the client's record and are not kept.
pub(crate) const CLIENT_INFO: &str = "Server.Internal.ClientInfo";

/// Why a message was not taken. For the server's log at debug level; agents are told nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Refusal {
    #[error(transparent)]
    Name(#[from] InvalidId),
    #[error("the query name cannot be revealed")]
    Hidden,
    #[error("{0} was not scheduled for this client")]
    NotScheduled(String),
    #[error("{0} is no query of its flow")]
    NotCollected(QueryName),
    #[error("{0} is not in the event table of this client")]
    NotMonitored(QueryName),
    #[error(transparent)]
    Rows(#[from] BadRows),
    #[error("the message continues at {sent}, but {stored} are stored")]
    Gap { sent: u64, stored: u64 },
    #[error("the flow may upload no more")]
    UploadLimit,
    #[error("the upload ends at {sent}, but {stored} bytes are stored")]
    UploadEnd { sent: u64, stored: u64 },
    #[error("a message of a kind that agents do not send here")]
    Unexpected,
}

/// One message, parsed and checked as far as it can be without the store.
#[derive(Debug)]
pub(crate) enum Item {
    Rows {
        flow: FlowId,
        query: QueryName,
        start: u64,
        block: CheckedRows,
    },
    Logs {
        flow: FlowId,
        first: u64,
        count: u64,
        block: RowBlock,
        alerts: Vec<String>,
    },
    Stats {
        flow: FlowId,
        stats: FlowStats,
    },
    Chunk {
        flow: FlowId,
        path: UploadPath,
        buffer: FileBuffer,
        chunk: RowBlock,
    },
    Transaction {
        flow: FlowId,
        transaction: UploadTransaction,
    },
    EventRows {
        queue: QueryName,
        start: u64,
        timestamp: u64,
        jsonl: String,
        count: u32,
    },
    EventLogs {
        queue: QueryName,
        block: RowBlock,
        alerts: Vec<String>,
    },
    ClientInfo {
        info: ClientInfo,
    },
    /// The version of the event table that the agent runs.
    Checkin {
        table_version: u64,
    },
    /// Says nothing that matters.
    Nothing,
}

impl Item {
    /// Bytes that it holds, about.
    pub(crate) fn held(&self) -> usize {
        match self {
            Self::Rows { block, .. } => block.held(),
            Self::Logs { block, .. } | Self::EventLogs { block, .. } => block.data.len(),
            Self::Chunk { chunk, .. } => chunk.data.len(),
            // Event rows are taken apart and published besides.
            Self::EventRows { jsonl, .. } => jsonl.len().saturating_mul(3),
            Self::Stats { .. } | Self::Transaction { .. } | Self::ClientInfo { .. } | Self::Checkin { .. } | Self::Nothing => 1024,
        }
    }
}

/// What a packet changed, beyond rows.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Messages that were refused.
    pub(crate) refused: usize,
    /// To be published once the packet is durable.
    pub(crate) events: Vec<Event>,
    /// Something may now be due for the client.
    pub(crate) wake: bool,
    /// Flows that ended with this packet.
    pub(crate) completed: Vec<FlowId>,
}

/// Parses one message. Costs time in proportion to its size, so big packets are parsed off the async threads.
///
/// The first payload in the order of `spec/01` §11.5 counts. `source`, `org_id` and `auth_state` are never looked at: the envelope says who sent it.
pub(crate) fn parse_one(message: VeloMessage, names: &Obfuscator) -> Result<Item, Refusal> {
    let session: SessionId = message.session_id.parse()?;
    if let Some(checkin) = message.foreman_checkin {
        return Ok(Item::Checkin { table_version: checkin.last_event_table_version });
    }
    if message.csr.is_some() {
        return Ok(Item::Nothing);
    }
    match session {
        SessionId::Flow(flow, None) => parse_flow(flow, message, names),
        // A child session exists only once somebody resumed a flow or opened a shell.
        SessionId::Flow(_, Some(_)) => Err(Refusal::NotScheduled(message.session_id)),
        SessionId::Monitoring => parse_monitoring(message, names),
        SessionId::Status | SessionId::Enrol | SessionId::Foreman => Ok(Item::Nothing),
    }
}

fn parse_flow(flow: FlowId, message: VeloMessage, names: &Obfuscator) -> Result<Item, Refusal> {
    if let Some(log) = message.log_message {
        let (block, alerts) = log_block(&log, names)?;
        let count = u64::from(block.count);
        return Ok(Item::Logs { flow, first: u64::try_from(log.id).unwrap_or(0), count, block, alerts });
    }
    if let Some(response) = message.vql_response {
        let query = query_name(&response, names)?;
        return Ok(Item::Rows { flow, query, start: response.query_start_row, block: row_block(&response)? });
    }
    if let Some(stats) = message.flow_stats {
        return Ok(Item::Stats { flow, stats: reveal_stats(stats, names) });
    }
    if let Some(buffer) = message.file_buffer {
        let (path, chunk) = file_chunk(&buffer)?;
        return Ok(Item::Chunk { flow, path, buffer, chunk });
    }
    if let Some(transaction) = message.upload_transaction {
        return Ok(Item::Transaction { flow, transaction });
    }
    if message.status.is_some() {
        return Ok(Item::Nothing);
    }
    Err(Refusal::Unexpected)
}

fn parse_monitoring(message: VeloMessage, names: &Obfuscator) -> Result<Item, Refusal> {
    if let Some(log) = message.log_message {
        if log.artifact.is_empty() {
            return Ok(Item::Nothing);
        }
        let queue = reveal(&log.artifact, names)?;
        let (block, alerts) = log_block(&log, names)?;
        return Ok(Item::EventLogs { queue, block, alerts });
    }
    if let Some(response) = message.vql_response {
        let plain_name = response.query.as_ref().map(|query| query.name.as_str());
        if plain_name == Some(CLIENT_INFO) {
            return Ok(reported_client_info(&response.jsonl_response).map_or(Item::Nothing, |info| Item::ClientInfo { info }));
        }
        let queue = query_name(&response, names)?;
        let count = row_block(&response)?.count();
        let jsonl = plain_rows(&response)?;
        return Ok(Item::EventRows { queue, start: response.query_start_row, timestamp: response.timestamp, jsonl, count });
    }
    if message.upload_transaction.is_some() || message.flow_stats.is_some() {
        return Ok(Item::Nothing);
    }
    Err(Refusal::Unexpected)
}

fn query_name(response: &VqlResponse, names: &Obfuscator) -> Result<QueryName, Refusal> {
    reveal(response.query.as_ref().map_or("", |query| query.name.as_str()), names)
}

fn reveal(name: &str, names: &Obfuscator) -> Result<QueryName, Refusal> {
    let name = if name.starts_with('$') { names.reveal(name).ok_or(Refusal::Hidden)? } else { name.to_owned() };
    Ok(name.parse()?)
}

fn row_block(response: &VqlResponse) -> Result<CheckedRows, Refusal> {
    if response.total_rows > rows::MAX_ROWS {
        return Err(BadRows::TooMany.into());
    }
    if response.uncompressed_size > 0 {
        return Ok(rows::check_zlib(&response.compressed_json_response, response.uncompressed_size, response.total_rows)?);
    }
    Ok(rows::check_plain(&response.jsonl_response, response.total_rows)?)
}

fn plain_rows(response: &VqlResponse) -> Result<String, Refusal> {
    if response.uncompressed_size == 0 {
        return Ok(response.jsonl_response.clone());
    }
    let plain = rows::inflate(&response.compressed_json_response, response.uncompressed_size)?;
    Ok(String::from_utf8(plain).map_err(|_| BadRows::NotAnObject(0))?)
}

/// Log lines with the query names in them revealed, and the alerts among them.
fn log_block(log: &LogMessage, names: &Obfuscator) -> Result<(RowBlock, Vec<String>), Refusal> {
    rows::check_plain(&log.jsonl, log.number_of_rows)?;
    let mut lines = Vec::new();
    let mut alerts = Vec::new();
    for line in log.jsonl.lines().filter(|line| !line.is_empty()) {
        let line = rows::map_text(line, |text| names.reveal_all(text))?;
        if log.level == "ALERT"
            && let Some(alert) = rows::text_member(&line, "message")
            && rows::check_plain(alert.trim_end(), 1).is_ok()
        {
            alerts.push(alert.trim_end().to_owned());
        }
        lines.push(line);
    }
    Ok((rows::block(&lines), alerts))
}

fn reveal_stats(mut stats: FlowStats, names: &Obfuscator) -> FlowStats {
    for query in &mut stats.query_status {
        let revealed = query.names_with_response.iter().filter_map(|name| reveal(name, names).ok());
        query.names_with_response = revealed.map(|name| name.to_string()).collect();
        query.error_message = names.reveal_all(&query.error_message);
    }
    stats
}

fn file_chunk(buffer: &FileBuffer) -> Result<(UploadPath, RowBlock), Refusal> {
    let pathspec = buffer.pathspec.as_ref().ok_or(Refusal::Unexpected)?;
    let components = if pathspec.components.is_empty() { vec![pathspec.path.clone()] } else { pathspec.components.clone() };
    let path = UploadPath::new(&pathspec.accessor, components)?;
    let said = buffer.data_length;
    let chunk = if buffer.uncompressed_length > 0 {
        rows::inflate(&buffer.data, buffer.uncompressed_length)?;
        RowBlock { data: buffer.data.clone(), count: 0, plain_len: buffer.uncompressed_length, encoding: talon_store::BlockEncoding::Zlib }
    } else {
        RowBlock { data: buffer.data.clone(), count: 0, plain_len: buffer.data.len() as u64, encoding: talon_store::BlockEncoding::Plain }
    };
    if said != 0 && said != chunk.plain_len {
        return Err(BadRows::Size { said, found: chunk.plain_len }.into());
    }
    Ok((path, chunk))
}

/// Finds the gate of a flow of the client, `None` when there is no such flow.
pub(crate) type GateOf<'a> = dyn Fn(&dyn Reader, &FlowId) -> Result<Option<Arc<FlowGate>>, ServerError> + 'a;

/// Everything that storing a packet needs to know.
pub(crate) struct Context<'a> {
    pub(crate) org: &'a OrgId,
    pub(crate) client: &'a ClientId,
    pub(crate) now_us: u64,
    /// The address of this contact, when the record is to be brought up to date with it.
    pub(crate) contact: Option<&'a str>,
    /// Whether a query name is in the client's event table.
    pub(crate) monitored: &'a dyn Fn(&ClientInfo, &QueryName) -> bool,
    /// Remembers which queries a flow has, between packets.
    pub(crate) gates: &'a GateOf<'a>,
}

impl Context<'_> {
    fn target(&self) -> Target {
        Target::Client(self.client.clone())
    }
}

/// One packet on its way into the store.
struct Packet<'a, 'b> {
    context: &'a Context<'a>,
    txn: &'b mut dyn Txn,
    info: ClientInfo,
    info_changed: bool,
    flows: BTreeMap<FlowId, flow::OpenFlow>,
    taken: Taken,
}

/// How one message ended: stored or dropped as known, refused, or the engine failed.
type Stored = Result<Result<(), Refusal>, ServerError>;

/// Stores the items of a packet. Only a failure of the engine is an error; messages that break a rule are counted.
pub(crate) fn store(txn: &mut dyn Txn, context: &Context<'_>, items: Vec<Result<Item, Refusal>>) -> Result<Taken, ServerError> {
    let key = context.client.as_str().as_bytes();
    let info = get(&*txn, context.org, Space::Clients, key)?.unwrap_or_else(|| ClientInfo {
        client_id: context.client.to_string(),
        first_seen_at: context.now_us / 1_000_000,
        ..ClientInfo::default()
    });
    let taken = Taken::default();
    let mut packet = Packet { context, txn, info, info_changed: false, flows: BTreeMap::new(), taken };
    if let Some(address) = context.contact {
        packet.info.ping = context.now_us;
        address.clone_into(&mut packet.info.ip_address);
        packet.info_changed = true;
    }
    // Statistics last: they may end a flow whose rows and log lines stand behind them in the same packet.
    let (stats, data): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| matches!(item, Ok(Item::Stats { .. })));
    for item in data.into_iter().chain(stats) {
        let outcome = match item {
            Ok(item) => packet.store(item)?,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = outcome {
            packet.taken.refused = packet.taken.refused.saturating_add(1);
            tracing::debug!(client = %context.client, org = %context.org, %refusal, "refused a message");
        }
    }
    packet.finish()
}

impl Packet<'_, '_> {
    fn store(&mut self, item: Item) -> Stored {
        match item {
            Item::Rows { flow, query, start, block } => self.rows(&flow, &query, start, block),
            Item::Logs { flow, first, count, block, alerts } => self.logs(&flow, first, count, block, &alerts),
            Item::Stats { flow, stats } => self.stats(&flow, stats),
            Item::Chunk { flow, path, buffer, chunk } => self.chunk(&flow, &path, &buffer, chunk),
            Item::Transaction { flow, transaction } => self.transaction(&flow, &transaction),
            Item::EventRows { queue, start, timestamp, jsonl, count } => self.event_rows(&queue, start, timestamp, &jsonl, count),
            Item::EventLogs { queue, block, alerts } => self.event_logs(&queue, block, &alerts),
            Item::ClientInfo { info } => {
                self.client_info(info);
                Ok(Ok(()))
            }
            Item::Checkin { .. } | Item::Nothing => Ok(Ok(())),
        }
    }

    fn finish(mut self) -> Result<Taken, ServerError> {
        self.close_flows()?;
        if self.info_changed {
            put(self.txn, self.context.org, Space::Clients, self.context.client.as_str().as_bytes(), &self.info);
        }
        Ok(self.taken)
    }

    /// Publishes an event of this client once the packet is durable.
    fn announce(&mut self, queue: &str, row: String) {
        let source = self.context.client.as_str().into();
        self.taken.events.push(Event { queue: queue.into(), source, row: row.into() });
    }

    /// Publishes what an endpoint raised as an alert: kept with the server's events, since alerts are watched across clients.
    fn alerts(&mut self, alerts: &[String], origin: (&str, &str)) -> Result<(), ServerError> {
        let now_s = self.context.now_us / 1_000_000;
        for alert in alerts {
            let columns = [
                ("client_id", self.context.client.as_str().into()),
                (origin.0, origin.1.into()),
                ("_ts", now_s.into()),
                ("_Source", "server".into()),
            ];
            for row in rows::stamp(alert, &columns).unwrap_or_default() {
                let name: QueryName = "Server.Internal.Alerts".parse()?;
                let table = crate::layout::event_rows(&Target::Server, &name, &crate::clock::day(now_s));
                self.txn.append_rows(self.context.org, &table, None, rows::block(&[&row]))?;
                self.announce("Server.Internal.Alerts", row);
            }
        }
        Ok(())
    }
}

/// Bytes that stay the agent's: used to tell a repeated message from a new one.
fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut digest = talon_crypto::Sha256::new();
    for part in parts {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let bytes = Bytes::copy_from_slice(&digest.finish());
    bytes.first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
}
