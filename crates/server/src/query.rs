//! Queries on the server: the environment in which a principal's query runs, and its thread.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use talon_acl::Authority;
use talon_artifacts::Resolver;
use talon_crypto::{Rng, random_array};
use talon_ids::Permissions;
use talon_vql::{Clock as QueryClock, Denied, Dict, Environment, Guard, Random, Time};

use crate::clock::Clock;
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
            .artifacts(Arc::new(Resolver::new(self.org().artifacts().clone())))
            .extension(Arc::new(self.clone()))
            .extension(Arc::new(self.authority().clone()))
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
