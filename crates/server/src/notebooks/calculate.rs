//! The calculation of a cell: on a thread of its own, with the rights of whoever asked, within a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use talon_endpoint_vql::with_authority;
use talon_proto::{NotebookCell, NotebookCellRequest, NotebookMetadata};
use talon_store::{ObjectName, Space};
use talon_vql::{Budget, CancelToken, LogSink, Query, Scope, StopReason, Value, json};

use super::render;
use super::{VERSIONS, cell_table, notebook_key, signed, variables, version_key};
use crate::ServerError;
use crate::layout::{get, put};
use crate::org::{Org, lock};
use crate::rows;
use crate::session::Session;

/// How long a cell may take.
const LIMIT: Duration = Duration::from_secs(600);
/// How long a caller waits for the end before it gets the cell as it is.
const PATIENCE: Duration = Duration::from_secs(2);
const LONG_PATIENCE: Duration = Duration::from_secs(3600);
/// Cells that are calculated at one time in an organisation.
const MAX_RUNNING: usize = 16;
/// Log lines of a cell that are kept with it.
const MAX_MESSAGES: usize = 1_000;
/// Rows of a table that are stored together.
const BATCH: usize = 1_000;
/// Rows of one table, and tables of one cell.
const MAX_ROWS: u64 = 1_000_000;
const MAX_TABLES: u64 = 100;

impl Session {
    /// Stores a new version of a cell, calculates it, and gives it when it is ready or the caller's patience is over.
    pub(super) fn calculate_cell(&self, request: &NotebookCellRequest) -> Result<NotebookCell, ServerError> {
        let org = self.org();
        let key = (request.notebook_id.clone(), request.cell_id.clone());
        let version = org.short_id();
        let cancel = CancelToken::new();
        {
            let mut running = lock(&org.state().notebooks.running);
            if let Some((_, old)) = running.get(&key) {
                old.cancel("Cancelled!");
            } else if running.len() >= MAX_RUNNING {
                return Err(ServerError::invalid("No workers available on queue Notebook!"));
            }
            running.insert(key.clone(), (version.clone(), cancel.clone()));
        }
        let begun = org.begin_version(request, &version).and_then(|(metadata, cell)| {
            let work = Calculation { session: self.clone(), metadata, cell, version: version.clone(), cancel };
            let spawned = talon_vql::spawn_query_thread("notebook-cell", move || work.run());
            spawned.map(drop).map_err(|error| ServerError::invalid(format!("no thread for the cell: {error}")))
        });
        if let Err(error) = begun {
            org.calculation_ended(&key, &version);
            return Err(error);
        }
        let patience = if request.sync { LONG_PATIENCE } else { PATIENCE };
        let calculations = &org.state().notebooks;
        let running = lock(&calculations.running);
        let same = |running: &(String, CancelToken)| running.0 == version;
        let waited = calculations.ended.wait_timeout_while(running, patience, |running| running.get(&key).is_some_and(same));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.notebook_cell(&request.notebook_id, &request.cell_id, &version)
    }
}

impl Org {
    fn calculation_ended(&self, key: &(String, String), version: &str) {
        let calculations = &self.state().notebooks;
        let mut running = lock(&calculations.running);
        if running.get(key).is_some_and(|(running, _)| running == version) {
            running.remove(key);
        }
        calculations.ended.notify_all();
    }

    /// Writes a new version that is being calculated, and forgets the oldest and those that were undone.
    fn begin_version(&self, request: &NotebookCellRequest, version: &str) -> Result<(NotebookMetadata, NotebookCell), ServerError> {
        let (org, request, version) = (self.clone(), request.clone(), version.to_owned());
        self.submit(move |txn| {
            let key = notebook_key(&request.notebook_id);
            let Some(mut metadata) = get::<NotebookMetadata>(&*txn, org.id(), Space::Notebooks, &key)? else {
                return Err(ServerError::not_found("Notebook", &request.notebook_id));
            };
            let now_ns = org.now_ns();
            let Some(summary) = metadata.cell_metadata.iter_mut().find(|cell| cell.cell_id == request.cell_id) else {
                return Err(ServerError::not_found("Notebook cell", &request.cell_id));
            };
            let kept = summary.available_versions.iter().position(|known| *known == summary.current_version).map_or(0, |at| at + 1);
            let mut gone = summary.available_versions.split_off(kept);
            summary.available_versions.push(version.clone());
            let surplus = summary.available_versions.len().saturating_sub(VERSIONS);
            gone.extend(summary.available_versions.drain(..surplus));
            summary.current_version.clone_from(&version);
            summary.timestamp = signed(now_ns);
            summary.calculating = true;
            if !request.r#type.is_empty() {
                summary.r#type.clone_from(&request.r#type);
            }
            let cell = NotebookCell {
                input: request.input.clone(),
                output: "<div class=\"padded\"><i class=\"loading\"></i> Calculating...</div>".into(),
                data: "{}".into(),
                env: request.env.clone(),
                currently_editing: request.currently_editing,
                ..summary.clone()
            };
            metadata.modified_time = signed(now_ns / 1_000_000_000);
            put(txn, org.id(), Space::Notebooks, &version_key(&request.notebook_id, &request.cell_id, &version), &cell);
            put(txn, org.id(), Space::Notebooks, &key, &metadata);
            for old in gone {
                txn.delete(org.id(), Space::Notebooks, &version_key(&request.notebook_id, &request.cell_id, &old));
                for object in txn.objects(org.id(), &ObjectName::new(["notebooks", &request.notebook_id, &request.cell_id, &old]))? {
                    txn.delete_object(org.id(), &object)?;
                }
            }
            Ok((metadata, cell))
        })
        .wait()
    }

    fn end_version(&self, cell: NotebookCell, version: &str) -> Result<(), ServerError> {
        let (org, version) = (self.clone(), version.to_owned());
        self.submit(move |txn| {
            let key = notebook_key(&cell.notebook_id);
            let Some(mut metadata) = get::<NotebookMetadata>(&*txn, org.id(), Space::Notebooks, &key)? else { return Ok(()) };
            let Some(summary) = metadata.cell_metadata.iter_mut().find(|summary| summary.cell_id == cell.cell_id) else { return Ok(()) };
            if summary.current_version == version {
                summary.calculating = false;
                summary.summary.clone_from(&cell.summary);
            }
            if summary.available_versions.contains(&version) {
                put(txn, org.id(), Space::Notebooks, &version_key(&cell.notebook_id, &cell.cell_id, &version), &cell);
            }
            put(txn, org.id(), Space::Notebooks, &key, &metadata);
            Ok(())
        })
        .wait()
    }
}

/// A cell on its thread.
struct Calculation {
    session: Session,
    metadata: NotebookMetadata,
    cell: NotebookCell,
    version: String,
    cancel: CancelToken,
}

impl Calculation {
    fn run(mut self) {
        let started = Instant::now();
        let outcome = match self.cell.r#type.as_str() {
            "vql" => self.vql(),
            "markdown" | "md" => {
                self.cell.summary = render::summary(&self.cell.input);
                Ok(render::markdown(&self.cell.input))
            }
            _ => Ok(String::new()),
        };
        let output = match outcome {
            Ok(output) => output,
            Err(error) => {
                self.cell.error = error;
                String::new()
            }
        };
        match self.cancel.reason() {
            Some(StopReason::Cancelled(reason)) => self.cell.error = reason,
            Some(StopReason::TimedOut(_)) => self.cell.error = format!("The cell took longer than {} seconds.", LIMIT.as_secs()),
            _ => {}
        }
        self.cell.output = output;
        self.cell.calculating = false;
        self.cell.duration = i64::try_from(started.elapsed().as_secs()).unwrap_or(i64::MAX);
        let org = self.session.org().clone();
        let key = (self.cell.notebook_id.clone(), self.cell.cell_id.clone());
        if let Err(error) = org.end_version(self.cell, &self.version) {
            tracing::error!(%error, "a notebook cell cannot be stored");
        }
        org.calculation_ended(&key, &self.version);
    }

    fn scope(&self, messages: &Arc<Messages>) -> Scope {
        let session = &self.session;
        let mut environment = with_authority(session.environment(), Arc::new(session.authority().clone()))
            .log(messages.clone())
            .cancel(self.cancel.clone())
            .budget(Budget { time: Some(LIMIT), ..Budget::default() })
            .variable("NotebookId", self.cell.notebook_id.as_str())
            .variable("NotebookCellId", self.cell.cell_id.as_str());
        for pair in self.metadata.requests.iter().flat_map(|request| &request.env) {
            environment = environment.variable(pair.key.clone(), pair.value.as_str());
        }
        for (key, value) in variables(&[&self.metadata.env, &self.cell.env]) {
            environment = environment.variable(key, value);
        }
        // A right that is taken away ends what runs with it.
        let ended = self.cancel.clone();
        let supervised = session.supervise(move |reason| ended.cancel(reason));
        environment.extension(Arc::new(supervised)).open()
    }

    /// Runs the statements; each query gets a table. Gives what the cell shows.
    fn vql(&mut self) -> Result<String, String> {
        let messages = Arc::new(Messages::default());
        let scope = self.scope(&messages);
        let mut output = String::new();
        let outcome = self.statements(&scope, &mut output);
        scope.log_stats();
        drop(scope);
        let (kept, more) = messages.take();
        self.cell.messages = kept;
        self.cell.more_messages = more;
        outcome.map(|()| output)
    }

    fn statements(&self, scope: &Scope, output: &mut String) -> Result<(), String> {
        for request in self.metadata.requests.iter().flat_map(|request| &request.query) {
            let program = talon_vql::parse(&request.vql).map_err(|error| error.to_string())?;
            talon_vql::run(scope, program.statements).for_each(drop);
        }
        let program = talon_vql::parse(&self.cell.input).map_err(|error| error.to_string())?;
        let client = self.metadata.context.as_ref().map(|context| context.client_id.clone()).unwrap_or_default();
        let mut number = 0_u64;
        for statement in &program.statements {
            if scope.stopped() {
                break;
            }
            let query = Query::new(scope, statement);
            if query.is_let() {
                continue;
            }
            number = number.saturating_add(1);
            if number > MAX_TABLES {
                return Err(format!("a cell has at most {MAX_TABLES} queries"));
            }
            self.table(query, number)?;
            output.push_str(&render::table(&self.cell, &self.version, number, &client));
        }
        Ok(())
    }

    fn table(&self, query: Query, number: u64) -> Result<(), String> {
        let name = cell_table(&self.cell.notebook_id, &self.cell.cell_id, &self.version, number);
        let (mut lines, mut total) = (Vec::new(), 0_u64);
        let store = |lines: Vec<String>| {
            let (id, name) = (self.session.org().id().clone(), name.clone());
            let stored = self.session.org().submit(move |txn| {
                txn.append_rows(&id, &name, None, rows::block(&lines))?;
                Ok(())
            });
            stored.wait().map_err(|error| error.to_string())
        };
        for row in query {
            lines.push(json::encode(&Value::Dict(row)));
            total = total.saturating_add(1);
            if lines.len() >= BATCH {
                store(std::mem::take(&mut lines))?;
            }
            if total >= MAX_ROWS {
                self.cancel.stop(StopReason::Rows(MAX_ROWS));
                break;
            }
        }
        store(lines)
    }
}

/// The log of a cell.
#[derive(Default)]
struct Messages(Mutex<(Vec<String>, bool)>);

impl Messages {
    fn take(&self) -> (Vec<String>, bool) {
        std::mem::take(&mut *lock(&self.0))
    }
}

impl LogSink for Messages {
    fn log(&self, line: &str) {
        let mut held = lock(&self.0);
        if held.0.len() < MAX_MESSAGES {
            held.0.push(format!("{line}\n"));
        } else {
            held.1 = true;
        }
    }
}
