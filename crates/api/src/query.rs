//! `Query`: VQL on behalf of the caller, on a thread of its own, answered in parts.

use std::sync::Arc;
use std::time::Duration;

use talon_audit::Details;
use talon_proto::{VqlCollectorArgs, VqlRequest};
use talon_server::{Session, Supervised};
use talon_vql::{CancelToken, Environment, Key, LogSink, Query, StopReason, Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::{Request, Response, Status};

use crate::decide;
use crate::methods::Method;
pub(crate) use crate::parts::Answers;
use crate::parts::{Cutting, Item, Pump};
use crate::service::{ApiService, blocking};

/// What a query may say before somebody has to listen.
const AHEAD: usize = 64;

pub(crate) async fn run(service: &ApiService, request: Request<VqlCollectorArgs>) -> Result<Response<Answers>, Status> {
    let (pending, request) = service.pending(Method::Query, request)?;
    let (session, request) = blocking(move || {
        let mut call = pending.admit()?;
        decide::query(&mut call, &request)?;
        if request.query.is_empty() {
            return Err(Status::unknown("Query should be specified."));
        }
        // Secrets come in as environment, so only its names are recorded.
        let details = Details::new()
            .list("queries", request.query.iter().map(|query| query.vql.as_str()))
            .list("env", request.env.iter().map(|variable| variable.key.as_str()));
        call.session.record("api_query", details).map(drop).map_err(|error| call.failed(&error))?;
        Ok((call.session, request))
    })
    .await?;
    let slot = service.queries.clone().acquire_owned().await.map_err(|_| Status::unavailable("the server is closing"))?;
    let environment = (service.options.environment)(&session);
    let cutting = Cutting::new(request.max_row, request.max_wait, request.timeout);
    let cancel = CancelToken::new();
    let (items_in, items) = mpsc::channel(AHEAD);
    let (out, responses) = mpsc::channel(2);

    let ended = cancel.clone();
    let supervised = session.supervise(move |reason| ended.cancel(reason));
    let running = Running { _supervised: supervised, session, environment, request, items: items_in, cancel: cancel.clone(), _slot: slot };
    let started = talon_vql::spawn_query_thread("api-query", move || running.run());
    started.map_err(|error| Status::resource_exhausted(format!("no thread for the query: {error}")))?;

    let timed_out = cancel.clone();
    let pump = Pump::new(cutting, out).run(items, move |elapsed: Duration| timed_out.stop(StopReason::TimedOut(elapsed)));
    let (closing, closed) = (service.closing.clone(), cancel.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = pump => {}
            () = closing.cancelled() => closed.cancel("the server is closing"),
        }
    });
    Ok(Response::new(Answers::new(responses, move || cancel.stop(StopReason::Done))))
}

/// A query on its thread.
struct Running {
    session: Session,
    environment: Environment,
    request: VqlCollectorArgs,
    items: mpsc::Sender<Item>,
    cancel: CancelToken,
    _slot: OwnedSemaphorePermit,
    /// Ends the query when a right of its principal is taken away.
    _supervised: Supervised,
}

/// Log lines join the rows, in the order in which they were written.
struct Log {
    items: mpsc::Sender<Item>,
    cancel: CancelToken,
}

impl LogSink for Log {
    fn log(&self, line: &str) {
        if self.items.blocking_send(Item::Log(line.to_owned())).is_err() {
            self.cancel.stop(StopReason::Done);
        }
    }
}

/// Nobody listens any more, or the text is no VQL.
struct Ended;

impl Running {
    fn run(self) {
        tracing::debug!(principal = %self.session.principal(), org = %self.session.org().id(), "a query starts");
        let log = Arc::new(Log { items: self.items.clone(), cancel: self.cancel.clone() });
        let environment = self.environment.clone().log(log).cancel(self.cancel.clone());
        let environment = self
            .request
            .env
            .iter()
            .fold(environment, |environment, variable| environment.variable(variable.key.clone(), variable.value.clone()));
        let scope = environment.open();
        for request in &self.request.query {
            if self.statements(&scope, request).is_err() {
                break;
            }
        }
    }

    /// Runs the statements of one request; the next ones run only if this one could be read.
    fn statements(&self, scope: &talon_vql::Scope, request: &VqlRequest) -> Result<(), Ended> {
        let program = match talon_vql::parse(&request.vql) {
            Ok(program) => program,
            Err(error) => {
                self.send(Item::Log(format!("VQL Error: {error}.")))?;
                return Err(Ended);
            }
        };
        let request = Arc::new(request.clone());
        for (statement, number) in program.statements.iter().zip(0..) {
            if scope.stopped() {
                return Err(Ended);
            }
            let rows = Query::new(scope, statement);
            if rows.is_let() {
                continue;
            }
            self.send(Item::Begin { request: request.clone(), statement: number })?;
            let mut columns: Arc<Vec<String>> = Arc::default();
            for row in rows {
                if !row.keys().map(Key::as_str).eq(columns.iter().map(String::as_str)) {
                    columns = Arc::new(row.keys().map(|key| key.as_str().to_owned()).collect());
                }
                self.send(Item::Row { json: json::encode(&Value::Dict(row)), columns: columns.clone() })?;
            }
            self.send(Item::End)?;
        }
        Ok(())
    }

    fn send(&self, item: Item) -> Result<(), Ended> {
        self.items.blocking_send(item).map_err(|_| {
            self.cancel.stop(StopReason::Done);
            Ended
        })
    }
}
