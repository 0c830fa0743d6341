//! The agent put together: state, buffer, executor, event queries and the loops that talk to the server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use talon_acl::EndpointPolicy;
use talon_crypto::SystemRng;
use talon_endpoint_vql::SystemClock;
use talon_ids::ClientId;
use talon_transport::ServerLink;
use talon_vql::{Clock, Dict, Random, Value};
use talon_wire::{AgentCodec, Limits};

use crate::comms::Comms;
use crate::connection::{Connector, ConnectorParts, fraction};
use crate::engine::{SystemRandom, VqlEngine};
use crate::events::{EventQueries, EventResources};
use crate::flow::micros;
use crate::schedule::Servers;
use crate::{AgentSettings, Buffer, ClientError, Engine, Executor, Outbox, Writeback};

/// Time between a server's order to restart and the end of the process (spec 01 §10.4).
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What the agent reports of itself and its host.
const HOST_QUERY: &str = "SELECT Hostname, Fqdn, OS, Platform, PlatformVersion, Architecture FROM info()";

/// An agent, ready to run.
pub struct Agent {
    comms: Arc<Comms>,
    executor: Arc<Executor>,
    outbox: Arc<Outbox>,
    id: ClientId,
}

impl Agent {
    /// Opens the agent's state and its buffer, and starts its event queries. Nothing is sent before [`Agent::run`]. Blocks on the disk.
    ///
    /// # Errors
    /// When the state or the buffer cannot be used, or a setting is wrong.
    pub fn open(settings: AgentSettings, link: Arc<dyn ServerLink>) -> Result<Self, ClientError> {
        let version = Dict::new().with("name", "talon").with("version", env!("CARGO_PKG_VERSION"));
        let config = Dict::new().with("labels", settings.labels.clone()).with("version", Value::from(version));
        let policy = EndpointPolicy { prevent_execve: settings.prevent_execve };
        let engine = VqlEngine::new(&settings.server_name, policy, settings.denied, config.into());
        let engine = engine.map_err(|error| ClientError::Configuration(error.to_string()))?.with_network(settings.network.clone());
        let engine = Arc::new(engine);
        let facts_of = Arc::clone(&engine);
        let labels = settings.labels.clone();
        Self::with_engine(settings, link, engine, move |install_time| host_facts(&facts_of, &labels, install_time))
    }

    /// The same with another engine and other facts about the host: for tests and simulations.
    ///
    /// # Errors
    /// As [`Agent::open`].
    pub fn with_engine(
        settings: AgentSettings,
        link: Arc<dyn ServerLink>,
        engine: Arc<dyn Engine>,
        host_facts: impl Fn(u64) -> Option<Dict> + Send + Sync + 'static,
    ) -> Result<Self, ClientError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let writeback = Writeback::open(settings.writeback, micros(&*clock) / 1_000_000)?;
        let install_time = writeback.install_time();
        let codec = AgentCodec::new(writeback.key().clone(), &settings.nonce, Limits::default(), SystemRng);
        let (buffer, recovered) = Buffer::open(settings.buffer).map_err(|error| ClientError::Buffer(Arc::new(error)))?;
        if recovered.records > 0 || recovered.damaged > 0 {
            tracing::info!(records = recovered.records, damaged = recovered.damaged, "results of an earlier run wait for the server");
        }
        let outbox = Outbox::new(settings.outbox, buffer);
        let writeback = Arc::new(Mutex::new(writeback));
        let resources = EventResources {
            engine: Arc::clone(&engine),
            outbox: Arc::clone(&outbox),
            clock: Arc::clone(&clock),
            random: Arc::clone(&random),
            defaults: settings.flows,
        };
        let events = EventQueries::start(resources, Arc::clone(&writeback));
        let executor = Executor::new(engine, Arc::clone(&outbox), Arc::clone(&clock), settings.flows, settings.concurrency, events);
        let executor = Arc::new(executor);
        let servers = Servers::shuffled(settings.server_urls, || fraction(&*random));
        let servers = servers.ok_or_else(|| ClientError::Configuration("Client.server_urls is empty".to_owned()))?;
        let id = codec.client_id().clone();
        let parts = ConnectorParts {
            link,
            codec,
            trust: settings.trust,
            server_name: settings.server_name,
            intervals: settings.intervals,
            clock,
            random,
            writeback,
        };
        let comms = Arc::new(Comms {
            connector: Connector::new(parts, servers),
            outbox: Arc::clone(&outbox),
            executor: Arc::clone(&executor),
            compression: settings.outbox.compression,
            host_facts: Box::new(move || host_facts(install_time)),
            facts_period: settings.facts_period,
            requests: Comms::request_limit(),
        });
        Ok(Self { comms, executor, outbox, id })
    }

    /// The agent's id.
    #[must_use]
    pub fn client_id(&self) -> &ClientId {
        &self.id
    }

    /// Serves until `shutdown` is ready. What was accepted and not delivered stays in the buffer.
    ///
    /// # Errors
    /// [`ClientError::Killed`] when the server asked for a restart, others when the agent cannot go on.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ClientError> {
        let (reader, sender) = (Arc::clone(&self.comms), Arc::clone(&self.comms));
        let mut reader = tokio::spawn(async move { reader.read().await });
        let mut sender = tokio::spawn(async move { sender.send().await });
        let outcome = tokio::select! {
            () = shutdown => Ok(()),
            ended = &mut reader => flatten(ended),
            ended = &mut sender => flatten(ended),
            () = self.killed() => Err(ClientError::Killed),
        };
        self.executor.stop();
        self.outbox.close();
        reader.abort();
        sender.abort();
        outcome
    }

    async fn killed(&self) {
        while !self.executor.was_killed() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(LAST_WORDS).await;
    }
}

fn flatten(ended: Result<Result<(), ClientError>, tokio::task::JoinError>) -> Result<(), ClientError> {
    ended.map_err(|error| ClientError::System(Arc::new(std::io::Error::other(error))))?
}

/// The row of `Server.Internal.ClientInfo` (spec 01 §9).
fn host_facts(engine: &VqlEngine, labels: &[String], install_time: u64) -> Option<Dict> {
    let host = engine.first_row(HOST_QUERY)?;
    let text = |name: &str| host.get(name).map(talon_vql::text::display).unwrap_or_default();
    let facts = [
        ("hostname", text("Hostname")),
        ("fqdn", text("Fqdn")),
        ("system", text("OS")),
        ("release", format!("{}{}", text("Platform"), text("PlatformVersion"))),
        ("architecture", text("Architecture")),
        ("client_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("client_name", "talon".to_owned()),
    ];
    let mut row = Dict::new();
    for (name, value) in facts.into_iter().filter(|(_, value)| !value.is_empty()) {
        row.set(name, value);
    }
    row.set("install_time", install_time);
    if !labels.is_empty() {
        row.set("labels", labels.to_vec());
    }
    Some(row)
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.executor.stop();
        self.outbox.close();
    }
}
