//! `talon-agent`: the agent of an endpoint. Loads the configuration, opens its state, serves its server until a signal comes.

mod link;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use talon_client::{Agent, AgentSettings, ClientError};
use talon_config::{ClientConfig, EXIT_UNUSABLE, Loader};
use talon_endpoint_vql::NetworkSettings;
use talon_transport::HttpLink;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The agent: runs what its server asks for, in the foreground.
#[derive(Parser)]
#[command(name = "talon-agent", version)]
struct Arguments {
    /// The agent's configuration file; without it VELOCIRAPTOR_CONFIG names one.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Logs more.
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let loaded = Loader::from_process().file(arguments.config).load().and_then(ClientConfig::new);
    let config = match loaded {
        Ok(config) => config,
        Err(error) => return failed(&error.into(), EXIT_UNUSABLE),
    };
    log(arguments.verbose || config.configuration().stock.verbose);
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Unusable>() || matches!(error.downcast_ref(), Some(ClientError::Configuration(_))) => {
            failed(&error, EXIT_UNUSABLE)
        }
        Err(error) => failed(&error, 1),
    }
}

/// Marks an error as one of the configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration cannot be used")]
struct Unusable;

fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("talon-agent: {error:#}");
    ExitCode::from(code)
}

fn log(verbose: bool) {
    let fallback = if verbose { "debug,h2=info,hyper=info,rustls=info" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(fallback));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
}

#[tokio::main]
async fn run(config: &ClientConfig) -> Result<()> {
    talon_transport::install_crypto_provider()?;
    let ended = end_on_signals()?;
    let ways = link::settings(config).context(Unusable)?;
    let link = HttpLink::new(&ways).context(Unusable)?;
    let mut settings = AgentSettings::new(config, &|name| std::env::var(name).ok())?;
    settings.network = NetworkSettings { proxy: ways.proxy, root_certs: ways.root_certs };
    let agent = tokio::task::block_in_place(|| Agent::open(settings, Arc::new(link)))?;
    announce(&format!("talon-agent is ready: {}", agent.client_id()))?;
    Ok(agent.run(ended.cancelled_owned()).await?)
}

/// A token that the first signal to end cancels.
#[cfg(unix)]
fn end_on_signals() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let ended = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()] {
        let mut signals = signal(kind)?;
        let ended = ended.clone();
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                tracing::info!(signal = kind.as_raw_value(), "ending");
                ended.cancel();
            }
        });
    }
    Ok(ended)
}

/// A token that Ctrl-C cancels.
#[cfg(not(unix))]
fn end_on_signals() -> Result<CancellationToken> {
    let ended = CancellationToken::new();
    let token = ended.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            token.cancel();
        }
    });
    Ok(ended)
}

/// The one line on stdout that says that the agent runs.
fn announce(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot say that the agent is ready")
}
