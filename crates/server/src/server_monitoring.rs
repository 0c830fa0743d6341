//! Server event monitoring: the table of event queries that run on the server itself, as the server, until it changes.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use talon_acl::{CollectServer, Permit};
use talon_audit::{Details, Receipt};
use talon_endpoint_vql::with_authority;
use talon_ids::{QueryName, Target};
use talon_proto::{ArtifactCollectorArgs, VqlCollectorArgs};
use talon_store::Space;
use talon_vql::{Budget, CancelToken, Level, LogSink, Value, json};

use crate::ServerError;
use crate::catalog::ArtifactType;
use crate::clock;
use crate::deployment::Server;
use crate::events::{Push, Pusher};
use crate::layout::{event_logs, get, put};
use crate::org::{Org, lock};
use crate::query::run_compiled;
use crate::rows;
use crate::server_flows::log_row;
use crate::session::Session;

/// The record of the table among the settings.
const KEY: &[u8] = b"server_monitoring";
/// Rows and log lines on their way into the store; a query that is faster waits.
const AHEAD: usize = 1_024;
/// So many of them are stored together.
const BATCH: usize = 1_000;
/// More artifacts than anybody monitors.
const MAX_ARTIFACTS: usize = 500;

/// The table of one organisation, and what runs of it.
#[derive(Default)]
pub(crate) struct ServerTable(Mutex<Running>);

#[derive(Default)]
struct Running {
    stored: ArtifactCollectorArgs,
    compiled: Vec<VqlCollectorArgs>,
    /// Stops the queries that run; `None` until the server has started.
    cancel: Option<CancelToken>,
}

impl ServerTable {
    /// Stops all queries.
    pub(crate) fn stop(&self) {
        if let Some(cancel) = &lock(&self.0).cancel {
            cancel.cancel("the server is closing");
        }
    }
}

impl Session {
    /// Replaces the server event table. The caller must be allowed to run every artifact in it.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::CollectDenied`], [`ServerError::Invalid`].
    pub fn set_server_monitoring(&self, table: ArtifactCollectorArgs) -> Result<ArtifactCollectorArgs, ServerError> {
        let known = table.artifacts.iter().filter(|name| self.org().artifacts().get(name).is_some()).cloned().collect();
        let wanted = ArtifactCollectorArgs { artifacts: known, ..ArtifactCollectorArgs::default() };
        let permit = self.org().catalog().permit_server_collection(self.authority(), &wanted)?;
        let shown = crate::reflect::to_json("ArtifactCollectorArgs", &table)?;
        let state = serde_json::from_str(&shown).unwrap_or_default();
        let details = Details::new().text("user", self.principal().as_str()).json("state", state);
        let receipt = self.record("SetServerMonitoringState", details)?;
        self.org().set_server_monitoring(&permit, receipt, table)
    }
}

impl Org {
    /// The table as stored, without compiled queries.
    #[must_use]
    pub fn server_monitoring(&self) -> ArtifactCollectorArgs {
        lock(&self.state().server_table.0).stored.clone()
    }

    /// Replaces the table and restarts what runs, if that changed.
    ///
    /// # Errors
    /// [`ServerError::Invalid`] when an artifact is unknown or no server event artifact.
    pub fn set_server_monitoring(
        &self,
        permit: &Permit<CollectServer>,
        receipt: Receipt,
        mut table: ArtifactCollectorArgs,
    ) -> Result<ArtifactCollectorArgs, ServerError> {
        self.own(permit)?;
        drop(receipt);
        if table.artifacts.len() > MAX_ARTIFACTS {
            return Err(ServerError::invalid(format!("ServerEventTable: more than {MAX_ARTIFACTS} artifacts")));
        }
        for name in &table.artifacts {
            match self.catalog().kind(&name.parse()?) {
                Some(ArtifactType::ServerEvent) => {}
                Some(_) => return Err(ServerError::invalid(format!("ServerEventTable: Artifact {name} is not a server event artifact"))),
                None => return Err(ServerError::invalid(format!("ServerEventTable: Artifact {name} not known"))),
            }
        }
        table.compiled_collector_args.clear();
        table.creator.clear();
        let (org, stored) = (self.id().clone(), table.clone());
        self.submit(move |txn| {
            put(txn, &org, Space::Settings, KEY, &stored);
            Ok(())
        })
        .wait()?;
        self.follow_server_table(table.clone())?;
        Ok(table)
    }

    /// Loads the stored table, or the default one.
    pub(crate) fn load_server_table(&self) -> Result<(), ServerError> {
        let stored: Option<ArtifactCollectorArgs> = get(self.reader(), self.id(), Space::Settings, KEY)?;
        let table = stored.unwrap_or_else(|| {
            let wanted = &self.shared().settings.default_server_monitoring;
            let known = |name: &&String| name.parse().is_ok_and(|name| self.catalog().kind(&name) == Some(ArtifactType::ServerEvent));
            ArtifactCollectorArgs { artifacts: wanted.iter().filter(known).cloned().collect(), ..ArtifactCollectorArgs::default() }
        });
        lock(&self.state().server_table.0).stored = table;
        Ok(())
    }

    /// Starts the queries of the table.
    pub(crate) fn start_server_monitoring(&self) -> Result<(), ServerError> {
        let table = {
            let mut running = lock(&self.state().server_table.0);
            running.cancel.get_or_insert_with(CancelToken::new);
            running.stored.clone()
        };
        self.follow_server_table(table)
    }

    /// Compiles the table again after artifacts or the server's metadata changed.
    pub(crate) fn recompile_server_table(&self) -> Result<(), ServerError> {
        self.follow_server_table(self.server_monitoring())
    }

    /// Makes this the table, and restarts the queries when they are others now.
    fn follow_server_table(&self, table: ArtifactCollectorArgs) -> Result<(), ServerError> {
        let mut usable = table.clone();
        usable.artifacts.retain(|name| name.parse().is_ok_and(|name| self.catalog().kind(&name) == Some(ArtifactType::ServerEvent)));
        let compiled = self.compile_server_events(&usable)?;
        let mut running = lock(&self.state().server_table.0);
        running.stored = table;
        let Some(old) = running.cancel.clone() else { return Ok(()) };
        if compiled == running.compiled {
            return Ok(());
        }
        let server = self.server()?;
        let cancel = CancelToken::new();
        old.cancel("the table of server events has changed");
        running.cancel = Some(cancel.clone());
        running.compiled.clone_from(&compiled);
        drop(running);
        self.run_server_events(&server, compiled, &cancel)
    }

    fn run_server_events(&self, server: &Server, compiled: Vec<VqlCollectorArgs>, cancel: &CancelToken) -> Result<(), ServerError> {
        if compiled.is_empty() {
            return Ok(());
        }
        let no_thread = |error: std::io::Error| ServerError::invalid(format!("no thread for server events: {error}"));
        let (sender, receiver) = sync_channel(AHEAD);
        let org = self.clone();
        std::thread::Builder::new().name("server-events".into()).spawn(move || org.write_server_events(&receiver)).map_err(no_thread)?;
        for args in compiled {
            let session = server.own_session(self.id())?;
            let (sender, cancel) = (sender.clone(), cancel.child());
            talon_vql::spawn_query_thread("server-event", move || monitor(&session, &args, &sender, cancel)).map_err(no_thread)?;
        }
        Ok(())
    }

    /// Stores what event queries give, and publishes it. Ends with the last of them.
    fn write_server_events(&self, produced: &Receiver<Produced>) {
        while let Ok(first) = produced.recv() {
            let mut next = Some(first);
            while let Some(Produced { queue, log, line }) = next.take() {
                let mut lines = vec![line];
                for more in produced.try_iter().take(BATCH) {
                    if more.queue == queue && more.log == log {
                        lines.push(more.line);
                    } else {
                        next = Some(more);
                        break;
                    }
                }
                let stored = if log { self.store_event_log(&queue, lines) } else { self.push_server_rows(&queue, &lines) };
                if let Err(error) = stored {
                    tracing::error!(%queue, %error, "server events cannot be stored");
                }
            }
        }
    }

    fn push_server_rows(&self, queue: &QueryName, lines: &[String]) -> Result<(), ServerError> {
        let push = Push { queue: queue.clone(), target: Target::Server, jsonl: lines.join("\n") + "\n", keep: true };
        let superuser = self.shared().settings.superuser.clone();
        self.push_and_publish(&Pusher::Server { source: &superuser }, push).map(drop)
    }

    fn store_event_log(&self, queue: &QueryName, lines: Vec<String>) -> Result<(), ServerError> {
        let table = event_logs(&Target::Server, queue, &clock::day(self.now_us() / 1_000_000));
        let org = self.id().clone();
        self.submit(move |txn| {
            txn.append_rows(&org, &table, None, rows::block(&lines))?;
            Ok(())
        })
        .wait()
    }
}

/// A row or a log line of an event query.
struct Produced {
    queue: QueryName,
    log: bool,
    line: String,
}

/// One event query, until it ends or is stopped.
fn monitor(session: &Session, args: &VqlCollectorArgs, out: &SyncSender<Produced>, cancel: CancelToken) {
    let Some(name) = args.query.iter().find_map(|query| query.name.parse::<QueryName>().ok()) else { return };
    let log = Arc::new(EventLog { org: session.org().clone(), queue: name.clone(), out: out.clone() });
    let mut environment = with_authority(session.artifact_environment(), Arc::new(session.authority().clone()))
        .log(log.clone())
        .cancel(cancel)
        .budget(Budget { time: None, ..Budget::default() })
        .variable("_SessionId", "");
    for pair in &args.env {
        environment = environment.variable(pair.key.clone(), pair.value.as_str());
    }
    let scope = environment.open();
    log.log(&format!("INFO:Starting query {name}"));
    let mut row = |queue: &QueryName, row: Arc<talon_vql::Dict>| {
        let line = json::encode(&Value::Dict(row));
        out.send(Produced { queue: queue.clone(), log: false, line }).is_ok()
    };
    match run_compiled(&scope, args, &mut row) {
        Ok(true) => log.log(&format!("INFO:Query {name} has ended")),
        Ok(false) => log.log(&format!("INFO:{name}: Skipping query due to preconditions")),
        Err(error) => log.log(&format!("ERROR:{error}")),
    }
}

/// The log of one event query.
struct EventLog {
    org: Org,
    queue: QueryName,
    out: SyncSender<Produced>,
}

impl LogSink for EventLog {
    fn log(&self, line: &str) {
        let (level, text) = Level::split(line);
        let line = log_row(self.org.now_us() / 1_000_000, level, text);
        // Nobody takes log lines any more when the table has changed.
        let _ = self.out.send(Produced { queue: self.queue.clone(), log: true, line });
    }
}
