//! Queries evaluated on this host by VQL, with what the server sent along and what this host's configuration permits.

use std::sync::Arc;
use std::time::Duration;

use talon_acl::{Authority, EndpointPolicy};
use talon_artifacts::{Repository, Resolver};
use talon_crypto::{Rng as _, SystemRng};
use talon_endpoint_vql::{
    AgentFacts, NetworkSettings, ShellSessions, SystemClock, UploadRequest, Uploaded, Uploader, Uploads, with_authority,
};
use talon_ids::{Permission, Permissions};
use talon_proto::VqlRequest;
use talon_vql::{
    Budget, CallError, CancelToken, Dict, Environment, LogSink, ProcessTracker, Query, Random, Registry, Scope, Value, parse, run,
};

use crate::query::{Action, Engine, Sink};
use crate::throttle::ThrottledClock;

/// Evaluates queries of the server on this host.
pub struct VqlEngine {
    registry: Arc<Registry>,
    authority: Arc<Authority>,
    config: Value,
    facts: Arc<AgentFacts>,
    network: Arc<NetworkSettings>,
    /// What queries of this host share: an event query keeps the tracker up to date that collections ask.
    tracker: Arc<ProcessTracker>,
    shells: Arc<ShellSessions>,
}

/// Randomness of the operating system for queries.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn next(&self) -> u64 {
        let mut bytes = [0; 8];
        SystemRng.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// Sends the uploads of a query to its sink.
struct SinkUploader(Arc<dyn Sink>);

impl Uploader for SinkUploader {
    fn upload(&self, scope: &Scope, request: UploadRequest) -> Result<Uploaded, CallError> {
        self.0.upload(scope, request)
    }
}

struct SinkLog(Arc<dyn Sink>);

impl LogSink for SinkLog {
    fn log(&self, line: &str) {
        self.0.log(line);
    }
}

impl VqlEngine {
    /// An engine that runs queries of the server called `server`. `config` is what queries see as `config`; it must hold no secret.
    ///
    /// # Errors
    /// When `server` cannot be a principal's name.
    pub fn new(server: &str, policy: EndpointPolicy, denied: Permissions, config: Value) -> Result<Self, talon_ids::InvalidId> {
        let authority = Authority::endpoint(server.parse()?, policy);
        let authority =
            if denied.is_empty() { authority } else { authority.reduced_to(Permissions::of(Permission::ALL).difference(denied)) };
        let facts = AgentFacts { started: talon_vql::Clock::now(&SystemClock::new()) };
        Ok(Self {
            registry: Arc::new(talon_endpoint_vql::registry()),
            authority: Arc::new(authority),
            config,
            facts: Arc::new(facts),
            network: Arc::default(),
            tracker: Arc::default(),
            shells: Arc::default(),
        })
    }

    /// The same engine, whose queries reach web servers as `network` says.
    #[must_use]
    pub fn with_network(self, network: NetworkSettings) -> Self {
        Self { network: Arc::new(network), ..self }
    }

    /// The first row of a query of the agent itself.
    #[must_use]
    pub fn first_row(&self, query: &str) -> Option<Arc<Dict>> {
        let scope = self.environment(CancelToken::new()).open();
        let program = parse(query).ok()?;
        program.statements.iter().find_map(|statement| Query::new(&scope, statement).next())
    }

    fn environment(&self, cancel: CancelToken) -> Environment {
        with_authority(Environment::new(Arc::clone(&self.registry)), Arc::clone(&self.authority))
            .clock(Arc::new(SystemClock::new()))
            .random(Arc::new(SystemRandom))
            .extension(Arc::clone(&self.facts))
            .extension(Arc::clone(&self.network))
            .extension(Arc::clone(&self.tracker))
            .extension(Arc::clone(&self.shells))
            .variable("config", self.config.clone())
            .cancel(cancel)
    }

    fn scope(&self, action: &Action, sink: &Arc<dyn Sink>) -> Result<Scope, String> {
        let args = &action.args;
        let repository = Repository::of_request(&args.artifacts).map_err(|error| error.to_string())?;
        // The flow watches the time as well and is the one to say so; the engine's own limit makes it look at the clock.
        let timeout = if args.timeout > 0 { args.timeout } else { 600 };
        let time = (action.session != "F.Monitoring").then(|| Duration::from_secs(timeout.saturating_add(60)));
        let mut environment = self
            .environment(action.cancel.clone())
            .log(Arc::new(SinkLog(Arc::clone(sink))))
            .extension(Arc::new(Uploads(Arc::new(SinkUploader(Arc::clone(sink))))))
            .artifacts(Arc::new(Resolver::new(Arc::new(repository))))
            .budget(Budget { time: time.or(Some(Duration::from_secs(u64::from(u32::MAX)))), ..Budget::default() })
            .variable("_SessionId", action.session.as_str());
        if args.cpu_limit > 0.0 && args.cpu_limit < 100.0 {
            environment = environment.clock(Arc::new(ThrottledClock::new(SystemClock::new(), args.cpu_limit)));
        }
        for pair in &args.env {
            environment = environment.variable(pair.key.clone(), pair.value.as_str());
        }
        Ok(environment.open())
    }

    /// Whether the action's precondition lets it run: any row of any of its statements.
    fn is_wanted(scope: &Scope, precondition: &str) -> Result<bool, String> {
        if precondition.trim().is_empty() {
            return Ok(true);
        }
        let program = parse(precondition).map_err(|error| error.to_string())?;
        Ok(run(scope, program.statements).next().is_some())
    }
}

impl Engine for VqlEngine {
    fn run(&self, action: &Action, sink: &Arc<dyn Sink>) -> Result<(), String> {
        let scope = self.scope(action, sink)?;
        let name = action.args.query.iter().map(|query| query.name.as_str()).find(|name| !name.is_empty()).unwrap_or_default();
        sink.log(&format!("INFO:Starting query execution for {name}."));
        let started = scope.elapsed();
        if !Self::is_wanted(&scope, &action.args.precondition)? {
            sink.log(&format!("INFO:{name}: Skipping query due to preconditions"));
            return Ok(());
        }
        for (at, request) in action.args.query.iter().enumerate() {
            if scope.stopped() {
                break;
            }
            run_statement(&scope, at, request, sink)?;
        }
        sink.log(&format!("INFO:Collection {name} is done after {:?}", scope.elapsed().saturating_sub(started)));
        scope.log_stats();
        Ok(())
    }
}

fn run_statement(scope: &Scope, at: usize, request: &VqlRequest, sink: &Arc<dyn Sink>) -> Result<(), String> {
    let program = parse(&request.vql).map_err(|error| error.to_string())?;
    for statement in &program.statements {
        let query = Query::new(scope, statement);
        if query.is_let() {
            continue;
        }
        for row in query {
            // A statement without a name is run for what it does, not for its rows.
            if !request.name.is_empty() && !sink.row(at, request, &row) {
                return Ok(());
            }
        }
    }
    Ok(())
}
