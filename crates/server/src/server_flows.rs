//! Collections on the server itself: each query runs here with the authority of whoever asked for it, and what it gives is kept as a flow of the
//! target `server`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use talon_acl::{CollectServer, Permit};
use talon_audit::Receipt;
use talon_endpoint_vql::{UploadRequest, Uploaded, Uploader, Uploads, with_authority};
use talon_ids::{FlowId, QueryName, Target, UserName};
use talon_proto::artifact_collector_context::State as FlowState;
use talon_proto::velo_status::ReturnedStatus;
use talon_proto::{ArtifactCollectorArgs, ArtifactCollectorContext, FlowStats, VeloStatus, VqlCollectorArgs};
use talon_store::{Scan, Space};
use talon_vql::regex::Regex;
use talon_vql::{Budget, CallError, CancelToken, Dict, Level, LogSink, Scope, StopReason, Value, json};

use crate::ServerError;
use crate::deployment::Server;
use crate::events;
use crate::flows::redacted;
use crate::layout::{flow_key, flow_logs, flow_rows, get, put};
use crate::org::{Org, lock};
use crate::progress::{Progress, derive};
use crate::query::run_compiled;
use crate::rows;
use crate::session::Session;

mod upload;

/// Collections that run on the server at one time, over all users of an organisation.
const MAX_FLOWS: usize = 64;
/// Rows of one collection unless it says otherwise (`spec/05` §5).
const MAX_ROWS: u64 = 1_000_000;
/// Log lines of one collection unless it says otherwise.
const MAX_LOGS: u64 = 100_000;
/// Rows and bytes of a query that are held back before they are stored.
const BATCH_ROWS: usize = 1_000;
const BATCH_BYTES: usize = 1 << 20;
/// Held-back rows and log lines are stored after this, and times are looked at as often.
const TICK: Duration = Duration::from_millis(500);
/// A query that says nothing of its time has this, in seconds.
const DEFAULT_TIMEOUT_S: u64 = 600;
/// Marks a collection that runs, so that a restart finds it.
const RUNNING: &[u8] = b"server_run\0";
/// What a collection says that the server did not live to finish.
const INTERRUPTED: &str = "The server was stopped while the collection ran";

/// The collections of an organisation that run now.
#[derive(Default)]
pub(crate) struct Runs(Mutex<HashMap<FlowId, CancelToken>>);

impl Runs {
    /// Stops them all.
    pub(crate) fn stop(&self) {
        lock(&self.0).values().for_each(|cancel| cancel.cancel(INTERRUPTED));
    }
}

/// A collection on the server that was checked and compiled, and does not run yet.
#[derive(Debug)]
pub struct ServerPlan {
    flow: FlowId,
    request: ArtifactCollectorArgs,
}

impl ServerPlan {
    /// The id that the flow will have.
    #[must_use]
    pub fn flow_id(&self) -> &FlowId {
        &self.flow
    }

    /// The request without compiled queries and without values that are not to be seen again.
    #[must_use]
    pub fn request(&self) -> ArtifactCollectorArgs {
        let mut request = redacted(&self.request);
        request.compiled_collector_args.clear();
        request
    }
}

impl Session {
    /// Checks and compiles a collection on the server.
    ///
    /// # Errors
    /// As [`Session::collect`].
    pub fn plan_on_server(&self, mut request: ArtifactCollectorArgs) -> Result<(Permit<CollectServer>, ServerPlan), ServerError> {
        if request.artifacts.is_empty() {
            return Err(ServerError::invalid("No artifacts to collect."));
        }
        request.compiled_collector_args.clear();
        request.flow_id.clear();
        request.creator = self.principal().to_string();
        request.client_id = Target::Server.to_string();
        let permit = self.org().catalog().permit_server_collection(self.authority(), &request)?;
        let mut request = self.org().complete(request)?;
        for args in &mut request.compiled_collector_args {
            args.principal.clone_from(&request.creator);
        }
        Ok((permit, ServerPlan { flow: self.org().new_flow_id(), request }))
    }
}

impl Org {
    /// Puts a planned collection on record and starts it. Its queries get the authority of `request.creator`, or of the user whom the artifact names.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] for a permit of another organisation, [`ServerError::Invalid`] when too many run already.
    pub fn run_on_server(&self, permit: &Permit<CollectServer>, receipt: Receipt, plan: ServerPlan) -> Result<FlowId, ServerError> {
        self.own(permit)?;
        drop(receipt);
        let server = self.server()?;
        let ServerPlan { flow, request } = plan;
        let cancel = CancelToken::new();
        {
            let mut runs = lock(&self.state().runs.0);
            if runs.len() >= MAX_FLOWS {
                return Err(ServerError::invalid(format!("{MAX_FLOWS} collections run on the server already: wait for one, or cancel it")));
            }
            runs.insert(flow.clone(), cancel.clone());
        }
        let started =
            self.write_server_flow(&flow, &request).and_then(|()| Run::start(server, self.clone(), flow.clone(), request, cancel));
        if started.is_err() {
            lock(&self.state().runs.0).remove(&flow);
        }
        started.map(|()| flow)
    }

    fn write_server_flow(&self, flow: &FlowId, request: &ArtifactCollectorArgs) -> Result<(), ServerError> {
        let mut context = ArtifactCollectorContext {
            session_id: flow.to_string(),
            client_id: Target::Server.to_string(),
            create_time: self.now_us(),
            request: Some(redacted(request)),
            total_requests: i64::try_from(request.compiled_collector_args.len()).unwrap_or(i64::MAX),
            ..ArtifactCollectorContext::default()
        };
        context.set_state(FlowState::Running);
        let (org, flow, now_us) = (self.id().clone(), flow.clone(), self.now_us());
        self.submit(move |txn| {
            let key = flow_key(&Target::Server, &flow);
            put(txn, &org, Space::Flows, &key, &context);
            put(txn, &org, Space::FlowStats, &key, &Progress { delivered_at: now_us, ..Progress::default() });
            txn.put(&org, Space::Settings, &running_key(&flow), Vec::new());
            Ok(())
        })
        .wait()
    }

    /// Cancels a collection on the server. One that has ended is left as it is.
    ///
    /// # Errors
    /// [`ServerError::Forbidden`] for a permit of another organisation.
    pub fn cancel_on_server(
        &self,
        permit: &Permit<CollectServer>,
        receipt: Receipt,
        flow: &FlowId,
        reason: &str,
    ) -> Result<(), ServerError> {
        self.own(permit)?;
        drop(receipt);
        if let Some(cancel) = lock(&self.state().runs.0).get(flow) {
            cancel.cancel(reason);
        }
        Ok(())
    }

    /// Marks as failed what the last process did not live to finish.
    pub(crate) fn fail_interrupted(&self) -> Result<(), ServerError> {
        let prefix = RUNNING.to_vec();
        for (marker, _) in self.reader().scan(self.id(), Space::Settings, &Scan { prefix, ..Scan::default() })? {
            let text = String::from_utf8_lossy(marker.get(RUNNING.len()..).unwrap_or_default()).into_owned();
            let Ok(flow) = text.parse::<FlowId>() else { continue };
            let org = self.clone();
            let ended = self.submit(move |txn| {
                let key = flow_key(&Target::Server, &flow);
                txn.delete(org.id(), Space::Settings, &marker);
                let Some(mut context) = get::<ArtifactCollectorContext>(&*txn, org.id(), Space::Flows, &key)? else { return Ok(None) };
                let mut progress: Progress = get(&*txn, org.id(), Space::FlowStats, &key)?.unwrap_or_default();
                progress.complete = true;
                context.set_state(FlowState::Error);
                INTERRUPTED.clone_into(&mut context.status);
                put(txn, org.id(), Space::Flows, &key, &context);
                put(txn, org.id(), Space::FlowStats, &key, &progress);
                derive(&mut context, &progress, org.now_us());
                events::flow_ended(txn, org.id(), &Target::Server, &flow, context, org.now_us() / 1_000_000).map(Some)
            });
            self.publish_all(ended.wait()?.as_slice());
        }
        Ok(())
    }
}

fn running_key(flow: &FlowId) -> Vec<u8> {
    [RUNNING, flow.as_str().as_bytes()].concat()
}

/// A collection at work.
struct Run {
    server: Server,
    org: Org,
    flow: FlowId,
    creator: UserName,
    cancel: CancelToken,
    max_rows: u64,
    max_bytes: u64,
    max_logs: u64,
    errors: Option<Regex>,
    began_us: u64,
    /// Held while rows or log lines are on their way into the store, which keeps their order.
    order: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    actions: Vec<Action>,
    rows: u64,
    uploaded: u64,
    uploads: i64,
    log: Vec<String>,
    log_lines: u64,
}

struct Action {
    cancel: CancelToken,
    status: VeloStatus,
    ended: bool,
    timeout: Duration,
    started: Instant,
    batch: Option<Batch>,
}

/// Rows of one query that are not stored yet.
struct Batch {
    query: QueryName,
    rows: Vec<String>,
    bytes: usize,
}

impl Run {
    fn start(server: Server, org: Org, flow: FlowId, request: ArtifactCollectorArgs, cancel: CancelToken) -> Result<(), ServerError> {
        let or = |value: u64, default: u64| if value > 0 { value } else { default };
        let settings = &org.shared().settings;
        let pattern = if settings.log_error_regex.is_empty() { crate::flows::ERROR_PATTERN } else { settings.log_error_regex.as_str() };
        let errors = Regex::exact(pattern.as_bytes()).or_else(|_| Regex::exact(crate::flows::ERROR_PATTERN.as_bytes())).ok();
        let began_us = org.now_us();
        let total = i64::try_from(request.compiled_collector_args.len()).unwrap_or(i64::MAX);
        let action = |args: &VqlCollectorArgs| {
            let name = args.query.iter().map(|query| query.name.as_str()).find(|name| !name.is_empty()).unwrap_or_default();
            let mut status = VeloStatus {
                query_id: args.query_id,
                total_queries: total,
                artifact: name.to_owned(),
                first_active: began_us,
                last_active: began_us,
                ..VeloStatus::default()
            };
            status.set_status(ReturnedStatus::Progress);
            let timeout = Duration::from_secs(or(args.timeout, or(request.timeout, DEFAULT_TIMEOUT_S)));
            Action { cancel: cancel.child(), status, ended: false, timeout, started: Instant::now(), batch: None }
        };
        let run = Arc::new(Self {
            creator: request.creator.parse()?,
            max_rows: or(request.max_rows, MAX_ROWS),
            max_bytes: request.max_upload_bytes,
            max_logs: or(request.max_logs, MAX_LOGS),
            errors,
            began_us,
            order: Mutex::default(),
            state: Mutex::new(State { actions: request.compiled_collector_args.iter().map(action).collect(), ..State::default() }),
            server,
            org,
            flow,
            cancel,
        });
        let spawned = std::thread::Builder::new().name("server-flow".into()).spawn(move || run.supervise(request.compiled_collector_args));
        spawned.map(drop).map_err(|error| ServerError::invalid(format!("no thread for the collection: {error}")))
    }

    /// The life of a collection: its queries side by side, the clock, the end.
    fn supervise(self: Arc<Self>, actions: Vec<VqlCollectorArgs>) {
        let (ended, ends) = mpsc::channel::<()>();
        let mut left = actions.len();
        for (at, args) in actions.into_iter().enumerate() {
            let (run, ended) = (self.clone(), ended.clone());
            let work = move || {
                let outcome = run.evaluate(at, &args);
                run.finish(at, outcome.err().as_deref());
                // The supervisor may be gone already, which is all the same to this thread.
                let _ = ended.send(());
            };
            if let Err(error) = talon_vql::spawn_query_thread("server-query", work) {
                self.finish(at, Some(&format!("no thread for the query: {error}")));
                left = left.saturating_sub(1);
            }
        }
        while left > 0 {
            match ends.recv_timeout(TICK) {
                Ok(()) => left = left.saturating_sub(1),
                Err(_) => self.tick(),
            }
        }
        self.end();
    }

    fn evaluate(self: &Arc<Self>, at: usize, args: &VqlCollectorArgs) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let effective = if args.effective_principal.is_empty() { None } else { Some(&args.effective_principal) };
        let principal: UserName = effective.map_or_else(|| Ok(self.creator.clone()), |name| name.parse()).map_err(|error| text(&error))?;
        let session = self.server.session(&principal, self.org.id()).map_err(|error| text(&error))?;
        let sink = Arc::new(Sink { run: self.clone(), at });
        let (cancel, timeout) = {
            let mut state = lock(&self.state);
            let action = state.actions.get_mut(at).ok_or("the collection has no such query")?;
            action.started = Instant::now();
            (action.cancel.clone(), action.timeout)
        };
        // The supervisor watches the time as well and is the one to say so.
        let time = Some(timeout.saturating_add(Duration::from_secs(60)));
        let mut environment = with_authority(session.artifact_environment(), Arc::new(session.authority().clone()))
            .log(sink.clone())
            .extension(Arc::new(Uploads(sink.clone())))
            .cancel(cancel)
            .budget(Budget { time, ..Budget::default() })
            .variable("_SessionId", self.flow.as_str());
        for pair in &args.env {
            environment = environment.variable(pair.key.clone(), pair.value.as_str());
        }
        // A right that is taken away ends what runs with it.
        let ended = self.cancel.clone();
        let supervised = session.supervise(move |reason| ended.cancel(reason));
        let scope = environment.extension(Arc::new(supervised)).open();
        let name = args.query.iter().map(|query| query.name.as_str()).find(|name| !name.is_empty()).unwrap_or_default();
        let effective = effective.map(|effective| format!(" with effective permissions for {effective}")).unwrap_or_default();
        sink.log(&format!("INFO:Running query {name} on behalf of user {}{effective}", self.creator));
        let ran = run_compiled(&scope, args, &mut |query, row| self.row(at, query, &row))?;
        if !ran {
            sink.log(&format!("INFO:{name}: Skipping query due to preconditions"));
        }
        scope.log_stats();
        Ok(())
    }

    /// Takes a row; false when nobody wants more of them.
    fn row(&self, at: usize, query: &QueryName, row: &Arc<Dict>) -> bool {
        let text = json::encode(&Value::Dict(row.clone()));
        let other = lock(&self.state).actions.get(at).and_then(|action| action.batch.as_ref()).is_some_and(|batch| batch.query != *query);
        if other {
            self.flush(at);
        }
        let full = {
            let mut state = lock(&self.state);
            state.rows = state.rows.saturating_add(1);
            if state.rows > self.max_rows {
                drop(state);
                self.fail(at, "Row limit exceeded");
                self.cancel.cancel("Row limit exceeded");
                return false;
            }
            let now_us = self.org.now_us();
            let Some(action) = state.actions.get_mut(at) else { return false };
            action.status.result_rows = action.status.result_rows.saturating_add(1);
            action.status.last_active = now_us;
            if !action.status.names_with_response.contains(&query.to_string()) {
                action.status.names_with_response.push(query.to_string());
            }
            let batch = action.batch.get_or_insert_with(|| Batch { query: query.clone(), rows: Vec::new(), bytes: 0 });
            batch.bytes = batch.bytes.saturating_add(text.len());
            batch.rows.push(text);
            batch.rows.len() >= BATCH_ROWS || batch.bytes >= BATCH_BYTES
        };
        if full {
            self.flush(at);
        }
        !self.cancel.is_cancelled()
    }

    fn log(&self, at: usize, line: &str) {
        let (mut level, text) = Level::split(line);
        let promoted = self.errors.as_ref().is_some_and(|errors| errors.is_match(text.as_bytes()));
        if promoted && level != Level::Alert {
            level = Level::Error;
        }
        if level == Level::Error {
            self.fail(at, text);
        }
        let now_s = self.org.now_us() / 1_000_000;
        let full = {
            let mut state = lock(&self.state);
            if state.log_lines >= self.max_logs {
                return;
            }
            state.log_lines = state.log_lines.saturating_add(1);
            if let Some(action) = state.actions.get_mut(at) {
                action.status.log_rows = action.status.log_rows.saturating_add(1);
            }
            state.log.push(log_row(now_s, level, text));
            state.log.len() >= BATCH_ROWS
        };
        if full {
            self.flush_log();
        }
    }

    fn fail(&self, at: usize, text: &str) {
        if let Some(action) = lock(&self.state).actions.get_mut(at).filter(|action| action.status.error_message.is_empty()) {
            text.clone_into(&mut action.status.error_message);
        }
    }

    fn progress(&self, state: &State, complete: bool) -> Progress {
        let now_us = self.org.now_us();
        Progress {
            stats: Some(FlowStats {
                query_status: state.actions.iter().map(|action| action.status.clone()).collect(),
                flow_complete: complete,
                timestamp: now_us,
                ..FlowStats::default()
            }),
            delivered_at: self.began_us,
            last_news: now_us,
            complete,
            next_log: state.log_lines,
            uploaded: state.uploaded,
            rows: state.rows,
            ..Progress::default()
        }
    }

    /// Stores the rows that one query has held back.
    fn flush(&self, at: usize) {
        let _order = lock(&self.order);
        let (batch, progress) = {
            let mut state = lock(&self.state);
            let batch = state.actions.get_mut(at).and_then(|action| action.batch.take());
            (batch, self.progress(&state, false))
        };
        let Some(batch) = batch else { return };
        let table = flow_rows(&Target::Server, &self.flow, &batch.query);
        self.store(progress, table, batch.rows);
    }

    fn flush_log(&self) {
        let _order = lock(&self.order);
        let (lines, progress) = {
            let mut state = lock(&self.state);
            (std::mem::take(&mut state.log), self.progress(&state, false))
        };
        if !lines.is_empty() {
            self.store(progress, flow_logs(&Target::Server, &self.flow), lines);
        }
    }

    fn store(&self, progress: Progress, table: talon_store::ObjectName, lines: Vec<String>) {
        let (org, key) = (self.org.id().clone(), flow_key(&Target::Server, &self.flow));
        let stored = self.org.submit(move |txn| {
            txn.append_rows(&org, &table, None, rows::block(&lines))?;
            put(txn, &org, Space::FlowStats, &key, &progress);
            Ok(())
        });
        if let Err(error) = stored.wait() {
            tracing::error!(flow = %self.flow, %error, "results of a collection on the server cannot be stored");
            self.cancel.cancel(format!("results cannot be stored: {error}"));
        }
    }

    /// A query is over. `failure` says why, if it failed as a whole.
    fn finish(&self, at: usize, failure: Option<&str>) {
        if let Some(text) = failure {
            self.log(at, &format!("ERROR:{text}"));
        }
        if let Some(StopReason::Cancelled(reason)) = self.cancel.reason() {
            self.fail(at, &reason);
        }
        self.flush(at);
        let now_us = self.org.now_us();
        if let Some(action) = lock(&self.state).actions.get_mut(at) {
            let status = &mut action.status;
            status.last_active = now_us.max(status.first_active);
            let nanos = status.last_active.saturating_sub(status.first_active).saturating_mul(1_000);
            status.duration = i64::try_from(nanos).unwrap_or(i64::MAX);
            let outcome = if status.error_message.is_empty() { ReturnedStatus::Ok } else { ReturnedStatus::GenericError };
            status.set_status(outcome);
            action.ended = true;
        }
    }

    /// Stores what is late and stops what takes too long.
    fn tick(&self) {
        let mut late = Vec::new();
        let mut timed_out = Vec::new();
        for (at, action) in lock(&self.state).actions.iter().enumerate().filter(|(_, action)| !action.ended) {
            if action.batch.is_some() {
                late.push(at);
            }
            if action.started.elapsed() >= action.timeout && !action.cancel.is_cancelled() {
                timed_out.push((at, action.timeout.as_secs(), action.cancel.clone()));
            }
        }
        for (at, seconds, cancel) in timed_out {
            let text = format!("Query timed out after {seconds} seconds");
            self.log(at, &format!("ERROR:{text}"));
            cancel.cancel(text);
        }
        late.into_iter().for_each(|at| self.flush(at));
        self.flush_log();
    }

    fn end(&self) {
        self.flush_log();
        let progress = self.progress(&lock(&self.state), true);
        let (org, flow) = (self.org.clone(), self.flow.clone());
        let ended = self.org.submit(move |txn| {
            let (id, key) = (org.id(), flow_key(&Target::Server, &flow));
            txn.delete(id, Space::Settings, &running_key(&flow));
            let Some(mut context) = get::<ArtifactCollectorContext>(&*txn, id, Space::Flows, &key)? else { return Ok(None) };
            put(txn, id, Space::FlowStats, &key, &progress);
            derive(&mut context, &progress, org.now_us());
            events::flow_ended(txn, id, &Target::Server, &flow, context, org.now_us() / 1_000_000).map(Some)
        });
        lock(&self.org.state().runs.0).remove(&self.flow);
        match ended.wait() {
            Ok(event) => self.org.publish_all(event.as_slice()),
            Err(error) => tracing::error!(flow = %self.flow, %error, "the end of a collection on the server cannot be stored"),
        }
    }
}

/// A line of a log as it is stored.
pub(crate) fn log_row(now_s: u64, level: Level, text: &str) -> String {
    rows::object(&[("client_time", now_s.into()), ("level", level.name().into()), ("message", text.into())])
}

/// One query of a collection: where its log lines and uploads go.
struct Sink {
    run: Arc<Run>,
    at: usize,
}

impl LogSink for Sink {
    fn log(&self, line: &str) {
        self.run.log(self.at, line);
    }
}

impl Uploader for Sink {
    fn upload(&self, scope: &Scope, request: UploadRequest) -> Result<Uploaded, CallError> {
        self.run.upload(self.at, scope, request)
    }
}
