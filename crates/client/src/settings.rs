//! What the agent reads from its configuration, with the defaults of stock agents (spec 01 §9).

use std::path::PathBuf;
use std::time::Duration;

use talon_config::{ClientConfig, WritebackPaths};
use talon_endpoint_vql::NetworkSettings;
use talon_ids::Permissions;
use talon_pki::TrustBundle;
use talon_transport::ServerUrl;
use talon_wire::Compression;

use crate::schedule::Intervals;
use crate::{BufferSettings, ClientError, FlowDefaults, OutboxSettings};

/// An agent's settings.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentSettings {
    /// Where servers are.
    pub server_urls: Vec<ServerUrl>,
    /// The name that the server's certificate must have.
    pub server_name: String,
    /// The authorities of the deployment.
    pub trust: TrustBundle,
    /// The organisation's secret.
    pub nonce: String,
    /// Pauses and back-off.
    pub intervals: Intervals,
    /// How packets are filled.
    pub outbox: OutboxSettings,
    /// Where results wait.
    pub buffer: BufferSettings,
    /// Where the agent's state is.
    pub writeback: WritebackPaths,
    /// Flows that run at a time.
    pub concurrency: usize,
    /// How often the agent reports on its host; `None` for never.
    pub facts_period: Option<Duration>,
    /// Defaults for collections.
    pub flows: FlowDefaults,
    /// Labels that the agent reports.
    pub labels: Vec<String>,
    /// Whether the agent runs no programs.
    pub prevent_execve: bool,
    /// What no query may do on this host.
    pub denied: Permissions,
    /// Proxies and authorities for queries that ask web servers; those of the environment and the system unless the program sets others.
    pub network: NetworkSettings,
}

impl AgentSettings {
    /// Reads a configuration. `lookup` gives environment variables.
    ///
    /// # Errors
    /// [`ClientError::Configuration`].
    pub fn new(config: &ClientConfig, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ClientError> {
        let configuration = |error: &dyn std::fmt::Display| ClientError::Configuration(error.to_string());
        let client = config.client();
        let or = |value: u64, default: u64| if value > 0 { value } else { default };
        let seconds = |value: u64, default: u64| Duration::from_secs(or(value, default));
        let server_urls: Vec<ServerUrl> = client
            .server_urls
            .iter()
            .map(|url| url.parse())
            .collect::<Result<_, _>>()
            .map_err(|error: talon_transport::TransportError| configuration(&error))?;
        let packet = usize::try_from(or(client.max_upload_size, 5 << 20)).unwrap_or(usize::MAX);
        let buffer = config.local_buffer();
        let file: Option<PathBuf> = config.buffer_file(lookup);
        Ok(Self {
            server_urls,
            server_name: config.server_name().to_owned(),
            trust: config.trust().clone(),
            nonce: client.nonce.expose().to_owned(),
            intervals: Intervals {
                min_poll: seconds(client.min_poll, 1),
                max_poll: seconds(client.max_poll, 60),
                jitter: seconds(client.max_poll_std, 30),
            },
            outbox: OutboxSettings {
                packet,
                compression: if client.disable_compression { Compression::None } else { Compression::Zlib },
                urgent: packet.saturating_mul(2),
            },
            buffer: BufferSettings { file, disk_size: or(buffer.disk_size, 1 << 30), memory_size: or(buffer.memory_size, 50 << 20) },
            writeback: config.writeback(lookup).map_err(|error| configuration(&error))?,
            concurrency: usize::try_from(or(client.concurrency, 2)).unwrap_or(2),
            facts_period: match client.client_info_update_time {
                0 => Some(Duration::from_secs(86_400)),
                period => u64::try_from(period).ok().map(Duration::from_secs),
            },
            flows: FlowDefaults {
                max_wait: seconds(client.default_max_wait, 100),
                stats_period: seconds(client.default_server_flow_stats_update, 5),
                ..FlowDefaults::default()
            },
            labels: client.labels.clone(),
            prevent_execve: client.prevent_execve,
            denied: config.denied_permissions(),
            network: NetworkSettings::default(),
        })
    }
}
