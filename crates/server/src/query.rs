//! Queries on the server: the environment in which a principal's query runs, and its thread.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use talon_acl::{Authority, check_collection};
use talon_artifacts::{Definition, Resolver};
use talon_crypto::{Rng, random_array};
use talon_endpoint_vql::Secrets;
use talon_ids::{OrgId, Permissions, QueryName, UserName};
use talon_proto::VqlCollectorArgs;
use talon_vql::{CallError, CancelToken, Clock as QueryClock, Denied, Dict, Elsewhere, Environment, Guard, Query, Random, Scope, Time};

use crate::clock::Clock;
use crate::secrets::Keeper;
use crate::session::Session;

impl Session {
    /// The environment of a query by this principal in this organisation: the injected built-ins, guarded by the principal's authority. Built-ins find the
    /// session as an extension. Chain log sink, variables, budget and cancel token, then open it.
    #[must_use]
    pub fn environment(&self) -> Environment {
        let shared = self.org().shared();
        let settings = &shared.settings;
        let config = Dict::new().with("version", Dict::new().with("name", "talon").with("version", settings.version.as_str()));
        Environment::new(shared.registry.clone())
            .extensions(&shared.extensions)
            .guard(Arc::new(AuthorityGuard(self.authority().clone())))
            .clock(Arc::new(ServerClock { clock: shared.clock.clone(), started: Instant::now() }))
            .random(Arc::new(ServerRandom(shared.rng.clone())))
            .variable("config", config)
            .variable("_SessionId", "")
            .artifacts(Arc::new(self.resolver()))
            .elsewhere(Arc::new(Door(self.clone())))
            .extension(Arc::new(Secrets(Arc::new(Keeper { enforced: settings.must_use_secrets }))))
            .extension(Arc::new(self.clone()))
            .extension(Arc::new(self.authority().clone()))
    }

    /// The environment of the queries of an artifact that somebody was allowed to run: which artifacts it calls is its own affair.
    pub(crate) fn artifact_environment(&self) -> Environment {
        self.environment().artifacts(Arc::new(Resolver::new(self.org().artifacts().clone())))
    }

    /// Runs artifacts for queries of this principal, who must be allowed to collect those that the query itself names.
    fn resolver(&self) -> Resolver {
        let authority = self.authority().clone();
        let admission = move |definition: &Definition| {
            let basic = definition.proto().metadata.as_ref().is_some_and(|metadata| metadata.basic);
            let name = definition.name().to_string();
            check_collection(&authority, false, &name, basic, definition.required_permissions()).map_err(|denial| denial.to_string())
        };
        Resolver::new(self.org().artifacts().clone()).admitting(Box::new(admission))
    }

    /// Runs `work` on a thread made for queries, on which blocking is allowed.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn_query<T: Send + 'static>(&self, work: impl FnOnce(Self) -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
        let session = self.clone();
        talon_vql::spawn_query_thread("query", move || work(session))
    }
}

/// Runs the statements of a compiled request one after the other and hands each row of a named one to `row`, until that wants no more. False when the
/// request's precondition says that it is not for this machine.
///
/// # Errors
/// A statement cannot be read.
pub(crate) fn run_compiled(
    scope: &Scope,
    args: &VqlCollectorArgs,
    row: &mut dyn FnMut(&QueryName, Arc<Dict>) -> bool,
) -> Result<bool, String> {
    if !args.precondition.trim().is_empty() {
        let program = talon_vql::parse(&args.precondition).map_err(|error| error.to_string())?;
        if talon_vql::run(scope, program.statements).next().is_none() {
            return Ok(false);
        }
    }
    for request in &args.query {
        let program = talon_vql::parse(&request.vql).map_err(|error| error.to_string())?;
        let name: Option<QueryName> = request.name.parse().ok();
        for statement in &program.statements {
            if scope.stopped() {
                return Ok(true);
            }
            let query = Query::new(scope, statement);
            if query.is_let() {
                continue;
            }
            for found in query {
                // A statement without a name is run for what it does, not for its rows.
                if let Some(name) = &name
                    && !row(name, found)
                {
                    return Ok(true);
                }
            }
        }
    }
    Ok(true)
}

/// Leads a query to other organisations and users, as its session may.
struct Door(Session);

impl Elsewhere for Door {
    fn environment(&self, org: &str, runas: &str, cancel: &CancelToken) -> Result<Environment, CallError> {
        let org: Option<OrgId> = (!org.is_empty()).then(|| org.parse()).transpose().map_err(|_| CallError::failed("Org not found"))?;
        let user: Option<UserName> =
            (!runas.is_empty()).then(|| runas.parse()).transpose().map_err(|_| CallError::failed(format!("User not found: {runas}")))?;
        let session = self.0.elsewhere(org.as_ref(), user.as_ref()).map_err(CallError::failed)?;
        let ended = cancel.clone();
        // Kept by the environment, and so for as long as the query runs.
        let supervised = session.supervise(move |reason| ended.cancel(reason));
        let authority = Arc::new(session.authority().clone());
        Ok(talon_endpoint_vql::with_authority(session.environment(), authority).extension(Arc::new(supervised)))
    }
}

/// Decides by the authority of the principal; its refusals are those that peers match on.
struct AuthorityGuard(Authority);

impl Guard for AuthorityGuard {
    fn check(&self, permissions: Permissions) -> Result<(), Denied> {
        self.0.check(permissions).map_err(|denial| {
            let text = denial.to_string();
            // The language puts this in front itself.
            Denied::with_text(text.strip_prefix("PermissionDenied: ").unwrap_or(&text))
        })
    }
}

struct ServerClock {
    clock: Arc<dyn Clock>,
    started: Instant,
}

impl QueryClock for ServerClock {
    fn now(&self) -> Time {
        Time::from_unix_nanos(i128::from(self.clock.now_ns()))
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

struct ServerRandom(Arc<dyn Rng>);

impl Random for ServerRandom {
    fn next(&self) -> u64 {
        u64::from_be_bytes(random_array(&*self.0))
    }
}
