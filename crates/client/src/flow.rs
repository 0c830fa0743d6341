//! One collection, or one event query, while it runs: its rows, log lines, uploads and statistics become messages in the outbox.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use talon_endpoint_vql::Uploaded;
use talon_proto::velo_status::ReturnedStatus;
use talon_proto::{FlowRequest, FlowStats, LogMessage, VeloMessage, VeloStatus, VqlCollectorArgs, VqlRequest, VqlResponse};
use talon_vql::regex::Regex;
use talon_vql::{CancelToken, Clock, Dict, Level};

use crate::Outbox;
use crate::batch::{Batch, BatchLimits, Numbering, json_text};

/// Request ids of an agent's messages (spec 01 §16).
const LOG_SINK: u64 = 980;
const STATS_SINK: u64 = 981;

/// What a log line must contain to count as an error, unless the server says otherwise (spec 01 §11.4).
const ERROR_PATTERN: &str = "(?i)(Error:|Symbol.+?not found|Expecting a path arg type, not|Field.+?is required|Unexpected arg)";

/// Log lines are sent when there are this many of them or this many bytes, whatever the time.
const LOG_LINES: u64 = 1000;
const LOG_BYTES: usize = 256 << 10;

/// Defaults and bounds for what a server leaves open.
#[derive(Debug, Clone, Copy)]
pub struct FlowDefaults {
    /// Rows wait at most this long.
    pub max_wait: Duration,
    /// Log lines wait this long.
    pub log_batch: Duration,
    /// Period of progress reports.
    pub stats_period: Duration,
}

impl Default for FlowDefaults {
    fn default() -> Self {
        Self { max_wait: Duration::from_secs(100), log_batch: Duration::from_secs(5), stats_period: Duration::from_secs(5) }
    }
}

/// Stock servers send this interval in seconds where agents read milliseconds, which makes agents wake every two milliseconds. Nobody reads logs that fast.
const SHORTEST_LOG_BATCH: Duration = Duration::from_secs(1);

/// What holds for the whole flow.
pub(crate) struct FlowSettings {
    pub(crate) session: String,
    pub(crate) max_rows: Option<u64>,
    pub(crate) max_upload_bytes: Option<u64>,
    pub(crate) max_logs: u64,
    pub(crate) log_batch: Duration,
    pub(crate) stats_period: Duration,
    pub(crate) compress: bool,
    /// Event queries name themselves in their log and report no statistics.
    pub(crate) monitoring: Option<String>,
    error_pattern: Option<Regex>,
}

impl FlowSettings {
    pub(crate) fn of_request(session: &str, request: &FlowRequest, defaults: &FlowDefaults) -> Self {
        let limit = |value: u64| (value > 0).then_some(value);
        let pattern = if request.log_error_regex.is_empty() { ERROR_PATTERN } else { &request.log_error_regex };
        Self {
            session: session.to_owned(),
            max_rows: limit(request.max_rows),
            max_upload_bytes: limit(request.max_upload_bytes),
            max_logs: limit(request.max_logs).unwrap_or(100_000),
            log_batch: match limit(request.log_batch_time) {
                Some(millis) => Duration::from_millis(millis).clamp(SHORTEST_LOG_BATCH, Duration::from_secs(60)),
                None => defaults.log_batch,
            },
            stats_period: limit(request.flow_update_time).map_or(defaults.stats_period, Duration::from_secs).max(SHORTEST_LOG_BATCH),
            compress: request.compression == i32::from(talon_proto::flow_request::Compression::Zlib),
            monitoring: None,
            error_pattern: Regex::exact(pattern.as_bytes()).or_else(|_| Regex::exact(ERROR_PATTERN.as_bytes())).ok(),
        }
    }

    pub(crate) fn of_event(name: &str, defaults: &FlowDefaults) -> Self {
        let request = FlowRequest { max_logs: u64::MAX, ..FlowRequest::default() };
        Self { monitoring: Some(name.to_owned()), ..Self::of_request("F.Monitoring", &request, defaults) }
    }
}

/// The limits of one action, with the defaults of spec 01 §11.3.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ActionLimits {
    pub(crate) batch: BatchLimits,
    pub(crate) timeout: Duration,
    pub(crate) progress_timeout: Option<Duration>,
}

impl ActionLimits {
    pub(crate) fn of(args: &VqlCollectorArgs, defaults: &FlowDefaults) -> Self {
        let or = |value: u64, default: u64| if value > 0 { value } else { default };
        let progress = Duration::try_from_secs_f32(args.progress_timeout).unwrap_or_default();
        Self {
            batch: BatchLimits {
                rows: or(args.max_row, 10_000),
                bytes: usize::try_from(or(args.max_row_buffer_size, 5 << 20)).unwrap_or(usize::MAX),
                wait: Duration::from_secs(or(args.max_wait, defaults.max_wait.as_secs().max(1))),
            },
            timeout: Duration::from_secs(or(args.timeout, 600)),
            progress_timeout: (!progress.is_zero()).then_some(progress),
        }
    }
}

/// A flow's shared state. All that leaves it does so under one lock, which keeps the order of numbers.
pub(crate) struct Flow {
    pub(crate) settings: FlowSettings,
    pub(crate) cancel: CancelToken,
    outbox: Arc<Outbox>,
    clock: Arc<dyn Clock>,
    upload_ids: Arc<AtomicI64>,
    emitter: Mutex<Numbering>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    actions: Vec<ActionState>,
    rows: u64,
    upload_bytes: u64,
    uploads: BTreeMap<String, Uploaded>,
    log: PendingLog,
    log_lines: u64,
    last_stats: Duration,
    complete: bool,
}

#[derive(Default)]
struct PendingLog {
    lines: String,
    count: u64,
    since: Duration,
}

struct ActionState {
    limits: ActionLimits,
    cancel: CancelToken,
    started: Option<Duration>,
    heard: Duration,
    batch: Option<Batch>,
    outcome: Option<ReturnedStatus>,
    error: String,
    names: Vec<String>,
    first_active: u64,
    last_active: u64,
    log_rows: i64,
    result_rows: i64,
    uploaded_files: i64,
    uploaded_bytes: i64,
    expected_bytes: i64,
}

impl ActionState {
    fn status(&self) -> VeloStatus {
        VeloStatus {
            status: self.outcome.unwrap_or(ReturnedStatus::Progress).into(),
            error_message: self.error.clone(),
            duration: i64::try_from(self.last_active.saturating_sub(self.first_active).saturating_mul(1000)).unwrap_or(i64::MAX),
            names_with_response: self.names.clone(),
            log_rows: self.log_rows,
            result_rows: self.result_rows,
            uploaded_files: self.uploaded_files,
            uploaded_bytes: self.uploaded_bytes,
            expected_uploaded_bytes: self.expected_bytes,
            first_active: self.first_active,
            last_active: self.last_active,
            ..VeloStatus::default()
        }
    }

    fn fail(&mut self, text: &str) {
        if self.error.is_empty() {
            text.clone_into(&mut self.error);
        }
    }

    fn touch(&mut self, now: Duration, micros: u64) {
        self.heard = now;
        self.last_active = micros.max(self.first_active);
    }
}

impl Flow {
    pub(crate) fn new(
        settings: FlowSettings,
        actions: &[ActionLimits],
        outbox: Arc<Outbox>,
        clock: Arc<dyn Clock>,
        upload_ids: Arc<AtomicI64>,
        cancel: CancelToken,
    ) -> Self {
        let micros = micros(&*clock);
        let state = |limits: &ActionLimits| ActionState {
            limits: *limits,
            cancel: cancel.child(),
            started: None,
            heard: Duration::ZERO,
            batch: None,
            outcome: None,
            error: String::new(),
            names: Vec::new(),
            first_active: micros,
            last_active: micros,
            log_rows: 0,
            result_rows: 0,
            uploaded_files: 0,
            uploaded_bytes: 0,
            expected_bytes: 0,
        };
        let state = State { actions: actions.iter().map(state).collect(), last_stats: clock.elapsed(), ..State::default() };
        Self { settings, cancel, outbox, clock, upload_ids, emitter: Mutex::default(), state: Mutex::new(state) }
    }

    /// The token of one action.
    pub(crate) fn action_cancel(&self, action: usize) -> CancelToken {
        self.state().actions.get(action).map_or_else(|| self.cancel.child(), |action| action.cancel.clone())
    }

    pub(crate) fn start(&self, action: usize) {
        let (now, micros) = (self.clock.elapsed(), micros(&*self.clock));
        if let Some(action) = self.state().actions.get_mut(action) {
            (action.started, action.heard) = (Some(now), now);
            (action.first_active, action.last_active) = (micros, micros);
        }
    }

    /// Takes a row; false when nobody wants more of them.
    pub(crate) fn row(&self, action: usize, statement: usize, request: &VqlRequest, row: &Dict) -> bool {
        let now = self.clock.elapsed();
        let full = {
            let mut state = self.state();
            if state.complete || self.cancel.is_cancelled() {
                return false;
            }
            let Some(action) = state.actions.get_mut(action) else { return false };
            action.touch(now, micros(&*self.clock));
            // The batch of the statement before goes out first.
            let other = action.batch.take_if(|batch| batch.statement() != statement);
            let batch = action.batch.get_or_insert_with(|| Batch::new(statement, request, now));
            batch.push(row);
            let full = if batch.is_full(&action.limits.batch) { action.batch.take() } else { None };
            [other, full]
        };
        full.into_iter().flatten().all(|batch| self.emit_batch(action, batch)) && !self.cancel.is_cancelled()
    }

    /// Sends a batch; false when that was one too many.
    fn emit_batch(&self, action: usize, batch: Batch) -> bool {
        let mut numbering = lock(&self.emitter);
        let (rows, name) = (batch.rows(), batch.name().to_owned());
        let total = {
            let mut state = self.state();
            if state.complete {
                return false;
            }
            state.rows = state.rows.saturating_add(rows);
            state.rows
        };
        if let Some(limit) = self.settings.max_rows.filter(|limit| total > *limit) {
            drop(numbering);
            self.exceeded(action, &format!("Rows {total} exceeded limit {limit} for flow {}. Cancelling.", self.settings.session));
            return false;
        }
        if let Some(action) = self.state().actions.get_mut(action) {
            action.result_rows = action.result_rows.saturating_add_unsigned(rows);
            if !action.names.contains(&name) {
                action.names.push(name);
            }
        }
        let response = numbering.response(batch, self.settings.compress, micros(&*self.clock));
        self.send(VeloMessage { vql_response: Some(response), ..self.message(0) })
    }

    /// Takes a line of the log.
    pub(crate) fn log(&self, action: usize, line: &str) {
        let (mut level, text) = Level::split(line);
        let text = text.strip_prefix(' ').filter(|_| level != Level::Default).unwrap_or(text);
        let promoted = self.settings.error_pattern.as_ref().is_some_and(|pattern| pattern.is_match(text.as_bytes()));
        if level != Level::Error && level != Level::Alert && promoted {
            level = Level::Error;
        }
        self.log_at(action, level, text);
    }

    fn log_at(&self, action: usize, level: Level, text: &str) {
        let micros = micros(&*self.clock);
        let line = |level: Level, text: &str| {
            format!("{{\"client_time\":{},\"level\":\"{}\",\"message\":{}}}\n", micros / 1_000_000, level.name(), json_text(text))
        };
        let now = self.clock.elapsed();
        let due = {
            let mut state = self.state();
            if state.complete {
                return;
            }
            let over = state.log_lines >= self.settings.max_logs;
            let last = state.log_lines.saturating_add(1) == self.settings.max_logs;
            if let Some(action) = state.actions.get_mut(action) {
                action.touch(now, micros);
                if level == Level::Error {
                    action.fail(text);
                }
                if !over {
                    action.log_rows = action.log_rows.saturating_add(1);
                }
            }
            if over {
                return;
            }
            if level == Level::Alert {
                drop(state);
                self.alert(&line(level, text));
                return;
            }
            let entry = if last { line(Level::Default, "Log Limit Exceeded - suppressing further logs") } else { line(level, text) };
            state.log_lines = state.log_lines.saturating_add(1);
            if state.log.count == 0 {
                state.log.since = now;
            }
            state.log.count = state.log.count.saturating_add(1);
            state.log.lines.push_str(&entry);
            state.log.count >= LOG_LINES || state.log.lines.len() >= LOG_BYTES
        };
        if due {
            self.flush_log();
        }
    }

    /// An alert travels alone, after the lines before it.
    fn alert(&self, line: &str) {
        self.flush_log();
        let _order = lock(&self.emitter);
        let id = {
            let mut state = self.state();
            state.log_lines = state.log_lines.saturating_add(1);
            state.log_lines.saturating_sub(1).saturating_sub(state.log.count)
        };
        self.send_log(id, 1, line.to_owned(), Level::Alert.name());
    }

    pub(crate) fn flush_log(&self) {
        let _order = lock(&self.emitter);
        let (id, log) = {
            let mut state = self.state();
            let log = std::mem::take(&mut state.log);
            (state.log_lines.saturating_sub(log.count), log)
        };
        if log.count > 0 {
            self.send_log(id, log.count, log.lines, "");
        }
    }

    fn send_log(&self, id: u64, rows: u64, jsonl: String, level: &str) {
        let log = LogMessage {
            id: i64::try_from(id).unwrap_or(i64::MAX),
            number_of_rows: rows,
            jsonl,
            level: level.to_owned(),
            artifact: self.settings.monitoring.clone().unwrap_or_default(),
            ..LogMessage::default()
        };
        self.send(VeloMessage { log_message: Some(log), ..self.message(LOG_SINK) });
    }

    /// The action is over. `failure` says why, if it failed as a whole.
    pub(crate) fn finish(&self, action: usize, failure: Option<&str>) {
        if let Some(text) = failure {
            self.log_at(action, Level::Error, text);
        }
        let rest = self.state().actions.get_mut(action).and_then(|action| action.batch.take()).filter(|batch| batch.rows() > 0);
        if let Some(batch) = rest.filter(|_| !self.cancel.is_cancelled()) {
            self.emit_batch(action, batch);
        }
        let micros = micros(&*self.clock);
        let mut state = self.state();
        if let Some(action) = state.actions.get_mut(action).filter(|action| action.outcome.is_none()) {
            action.last_active = micros.max(action.first_active);
            action.outcome = Some(if action.error.is_empty() { ReturnedStatus::Ok } else { ReturnedStatus::GenericError });
        }
    }

    /// Looks after the clock: late batches and log lines, timeouts, progress reports. Call it a few times a second.
    pub(crate) fn tick(&self) {
        let now = self.clock.elapsed();
        let (mut late, mut timed_out) = (Vec::new(), Vec::new());
        let (log_due, stats_due) = {
            let mut state = self.state();
            if state.complete {
                return;
            }
            for (at, action) in state.actions.iter_mut().enumerate() {
                let limits = action.limits;
                late.extend(action.batch.take_if(|batch| batch.is_late(&limits.batch, now)).map(|batch| (at, batch)));
                let Some(started) = action.started.filter(|_| action.outcome.is_none() && !action.cancel.is_cancelled()) else { continue };
                if now.saturating_sub(started) >= limits.timeout {
                    timed_out.push((at, format!("Query timed out after {} seconds", limits.timeout.as_secs()), action.cancel.clone()));
                } else if let Some(limit) = limits.progress_timeout.filter(|limit| now.saturating_sub(action.heard) >= *limit) {
                    let text = format!("Query made no progress for {} seconds", limit.as_secs_f32());
                    timed_out.push((at, text, action.cancel.clone()));
                }
            }
            let log_due = state.log.count > 0 && now.saturating_sub(state.log.since) >= self.settings.log_batch;
            let stats_due = now.saturating_sub(state.last_stats) >= self.settings.stats_period;
            (log_due, stats_due)
        };
        for (action, text, cancel) in timed_out {
            if self.settings.monitoring.is_none() {
                self.log_at(action, Level::Error, &text);
            }
            cancel.cancel(text);
        }
        for (action, batch) in late {
            self.emit_batch(action, batch);
        }
        if log_due {
            self.flush_log();
        }
        if stats_due && self.settings.monitoring.is_none() {
            let _order = lock(&self.emitter);
            let stats = {
                let mut state = self.state();
                state.last_stats = now;
                (!state.complete).then(|| statistics(&state))
            };
            if let Some(stats) = stats {
                self.send(VeloMessage { flow_stats: Some(stats), ..self.message(STATS_SINK) });
            }
        }
    }

    /// Sends the log and the final statistics; nothing is taken after that. The server learns of the end last.
    pub(crate) fn complete(&self) -> FlowStats {
        self.flush_log();
        let _order = lock(&self.emitter);
        let (first, stats, log) = {
            let mut state = self.state();
            let first = !std::mem::replace(&mut state.complete, true);
            for action in &mut state.actions {
                if action.outcome.is_none() {
                    action.fail("Cancelled");
                    action.outcome = Some(ReturnedStatus::GenericError);
                }
            }
            let log = std::mem::take(&mut state.log);
            (first, statistics(&state), (log, state.log_lines))
        };
        let (log, lines) = log;
        if first && log.count > 0 {
            self.send_log(lines.saturating_sub(log.count), log.count, log.lines, "");
        }
        if first && self.settings.monitoring.is_none() {
            self.send(VeloMessage { flow_stats: Some(stats.clone()), ..self.message(STATS_SINK) });
        }
        stats
    }

    /// Stops everything in the flow, on request.
    pub(crate) fn cancel(&self) {
        let running = {
            let mut state = self.state();
            if state.complete {
                return;
            }
            for action in &mut state.actions {
                action.batch = None;
                if action.outcome.is_none() {
                    action.fail("Cancelled");
                    action.outcome = Some(ReturnedStatus::GenericError);
                }
            }
            !self.cancel.is_cancelled()
        };
        if running {
            self.log_at(0, Level::Error, &format!("Cancelled all in-flight queries for flow {}", self.settings.session));
            self.cancel.cancel("Cancelled");
        }
    }

    /// One action went over a limit of the flow, which ends all of them.
    fn exceeded(&self, action: usize, text: &str) {
        self.log_at(action, Level::Error, text);
        let mut state = self.state();
        for (at, other) in state.actions.iter_mut().enumerate() {
            other.batch = None;
            if other.outcome.is_none() {
                other.fail(if at == action { text } else { "Cancelled" });
                other.outcome = Some(ReturnedStatus::GenericError);
            }
        }
        drop(state);
        self.cancel.cancel(text);
    }

    /// The statistics as they are now.
    pub(crate) fn stats(&self) -> FlowStats {
        statistics(&self.state())
    }

    /// What an earlier upload of the same file gave.
    pub(crate) fn known_upload(&self, key: &str) -> Option<Uploaded> {
        self.state().uploads.get(key).cloned()
    }

    pub(crate) fn remember_upload(&self, action: usize, key: String, uploaded: &Uploaded) {
        let mut state = self.state();
        state.uploads.insert(key, uploaded.clone());
        if let Some(action) = state.actions.get_mut(action) {
            action.uploaded_files = action.uploaded_files.saturating_add(1);
        }
    }

    /// Sends the first message of an upload and gives its number: numbers and messages have the same order.
    pub(crate) fn begin_upload(&self, action: usize, expected: u64, message: impl FnOnce(i64) -> VeloMessage) -> Option<i64> {
        let _order = lock(&self.emitter);
        let id = self.upload_ids.fetch_add(1, Ordering::Relaxed);
        if let Some(action) = self.state().actions.get_mut(action) {
            action.expected_bytes = action.expected_bytes.saturating_add_unsigned(expected);
        }
        self.send(message(id)).then_some(id)
    }

    /// Sends a piece of an upload; false when the flow must not send more.
    pub(crate) fn continue_upload(&self, action: usize, bytes: u64, message: VeloMessage) -> bool {
        let now = self.clock.elapsed();
        let total = {
            let mut state = self.state();
            if state.complete {
                return false;
            }
            state.upload_bytes = state.upload_bytes.saturating_add(bytes);
            if let Some(action) = state.actions.get_mut(action) {
                action.touch(now, micros(&*self.clock));
            }
            state.upload_bytes
        };
        if let Some(limit) = self.settings.max_upload_bytes.filter(|limit| total > *limit) {
            self.exceeded(action, &format!("Upload bytes {total} exceeded limit {limit} for flow {}. Cancelling.", self.settings.session));
            return false;
        }
        if let Some(action) = self.state().actions.get_mut(action) {
            action.uploaded_bytes = action.uploaded_bytes.saturating_add_unsigned(bytes);
        }
        self.send(message) && !self.cancel.is_cancelled()
    }

    pub(crate) fn message(&self, request_id: u64) -> VeloMessage {
        VeloMessage { session_id: self.settings.session.clone(), request_id, ..VeloMessage::default() }
    }

    fn send(&self, message: VeloMessage) -> bool {
        self.outbox.push(&message)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn statistics(state: &State) -> FlowStats {
    FlowStats {
        query_status: state.actions.iter().map(ActionState::status).collect(),
        flow_complete: state.complete,
        ..FlowStats::default()
    }
}

/// Microseconds since 1970 on `clock`.
pub(crate) fn micros(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.now().unix_nanos() / 1000).unwrap_or_default()
}

/// An urgent answer about a flow.
pub(crate) fn stats_message(session: &str, stats: FlowStats) -> VeloMessage {
    VeloMessage { session_id: session.to_owned(), request_id: STATS_SINK, urgent: true, flow_stats: Some(stats), ..VeloMessage::default() }
}

/// An error outside of any running flow (spec 01 §11.5).
pub(crate) fn error_message(session: &str, text: &str, micros: u64) -> VeloMessage {
    let jsonl = format!("{{\"client_time\":{},\"level\":\"ERROR\",\"message\":{}}}\n", micros / 1_000_000, json_text(text));
    let log = LogMessage { number_of_rows: 1, jsonl, error_message: text.to_owned(), ..LogMessage::default() };
    VeloMessage { session_id: session.to_owned(), request_id: LOG_SINK, log_message: Some(log), ..VeloMessage::default() }
}

/// Rows that the agent itself reports, such as what it knows of its host.
pub(crate) fn monitoring_row(name: &str, query_id: u64, row: &Dict, micros: u64) -> VeloMessage {
    let mut lines = Vec::new();
    talon_vql::json::Encoder::default().line(&mut lines, row);
    let response = VqlResponse {
        query: Some(VqlRequest { name: name.to_owned(), ..VqlRequest::default() }),
        query_id,
        total_rows: 1,
        timestamp: micros,
        jsonl_response: String::from_utf8_lossy(&lines).into_owned(),
        ..VqlResponse::default()
    };
    VeloMessage { session_id: "F.Monitoring".to_owned(), vql_response: Some(response), ..VeloMessage::default() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
