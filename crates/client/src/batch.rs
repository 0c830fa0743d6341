//! Rows on their way into responses: collected until there are enough, then numbered.

use std::collections::BTreeMap;
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress, Status};
use talon_proto::{VqlRequest, VqlResponse};
use talon_vql::{Dict, Key, json};

/// When a batch is complete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    pub(crate) rows: u64,
    pub(crate) bytes: usize,
    pub(crate) wait: Duration,
}

/// Rows of one statement that were not sent yet.
#[derive(Debug)]
pub(crate) struct Batch {
    statement: usize,
    request: VqlRequest,
    columns: Vec<String>,
    lines: Vec<u8>,
    rows: u64,
    since: Duration,
}

impl Batch {
    pub(crate) fn new(statement: usize, request: &VqlRequest, now: Duration) -> Self {
        Self { statement, request: request.clone(), columns: Vec::new(), lines: Vec::new(), rows: 0, since: now }
    }

    pub(crate) fn statement(&self) -> usize {
        self.statement
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn name(&self) -> &str {
        &self.request.name
    }

    pub(crate) fn push(&mut self, row: &Dict) {
        if self.rows == 0 {
            self.columns = row.keys().map(|key: &Key| key.as_str().to_owned()).collect();
        }
        json::Encoder::default().line(&mut self.lines, row);
        self.rows = self.rows.saturating_add(1);
    }

    pub(crate) fn is_full(&self, limits: &BatchLimits) -> bool {
        self.rows >= limits.rows || self.lines.len() > limits.bytes
    }

    pub(crate) fn is_late(&self, limits: &BatchLimits, now: Duration) -> bool {
        self.rows > 0 && now.saturating_sub(self.since) >= limits.wait
    }
}

/// How far the rows of each query name have come. Numbers go on across the actions of a flow: stock agents start anew for a second action with the same
/// name, and its rows are refused as repetitions.
#[derive(Debug, Default)]
pub(crate) struct Numbering(BTreeMap<String, Position>);

#[derive(Debug, Default)]
struct Position {
    rows: u64,
    parts: u64,
    bytes: u64,
}

impl Numbering {
    /// The response that carries `batch`.
    pub(crate) fn response(&mut self, batch: Batch, compress: bool, now_micros: u64) -> VqlResponse {
        let position = self.0.entry(batch.request.name.clone()).or_default();
        let length = u64::try_from(batch.lines.len()).unwrap_or(u64::MAX);
        let mut response = VqlResponse {
            query: Some(batch.request),
            query_id: u64::try_from(batch.statement).unwrap_or(u64::MAX),
            part: position.parts,
            total_rows: batch.rows,
            query_start_row: position.rows,
            timestamp: now_micros,
            columns: batch.columns,
            ..VqlResponse::default()
        };
        match compress.then(|| deflate(&batch.lines)).flatten() {
            Some(stream) => {
                response.compressed_json_response = stream.into();
                response.uncompressed_size = length;
                response.byte_offset = position.bytes;
            }
            None => response.jsonl_response = String::from_utf8_lossy(&batch.lines).into_owned(),
        }
        position.parts = position.parts.saturating_add(1);
        position.rows = position.rows.saturating_add(batch.rows);
        position.bytes = position.bytes.saturating_add(length);
        response
    }
}

/// One zlib stream; `None` when the compressor fails.
pub(crate) fn deflate(plain: &[u8]) -> Option<Vec<u8>> {
    let mut state = Compress::new(Compression::fast(), true);
    let mut out = Vec::with_capacity((plain.len() / 3).max(512));
    loop {
        let rest = plain.get(usize::try_from(state.total_in()).ok()?..)?;
        match state.compress_vec(rest, &mut out, FlushCompress::Finish).ok()? {
            Status::StreamEnd => return Some(out),
            _ => out.reserve(out.capacity().max(512)),
        }
    }
}

/// `text` as a JSON string with `<`, `>` and `&` escaped, as stock peers write it.
pub(crate) fn json_text(text: &str) -> String {
    json::encode(&talon_vql::Value::from(text))
}
