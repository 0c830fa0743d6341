//! `talon-frontend`: the server. Loads the configuration, binds its listeners, opens the services, serves until a signal comes, drains.

mod api;
mod feed;
mod listener;
mod services;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use talon_api::ApiListener;
use talon_config::{CONFIG_VARIABLE, EXIT_UNUSABLE, Loader, ServerConfig};
use talon_endpoint_vql::LogFeed;
use talon_transport::{FrontendListener, TransportError};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::feed::FeedLayer;

/// The server: serves agents and the API in the foreground.
#[derive(Parser)]
#[command(name = "talon-frontend", version)]
struct Arguments {
    /// The server's configuration file; without it VELOCIRAPTOR_CONFIG names one.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder or zip file of artifacts, which count as built-in.
    #[arg(long, value_name = "DIR")]
    definitions: Vec<String>,
    /// Logs more: each request, each connection.
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let file = arguments.config.clone();
    let loaded = Loader::from_process().file(arguments.config).load().and_then(|mut configuration| {
        if !arguments.definitions.is_empty() {
            let defaults = configuration.stock.defaults.get_or_insert_default();
            defaults.artifact_definitions_directories.extend(arguments.definitions);
        }
        ServerConfig::new(configuration)
    });
    let config = match loaded {
        Ok(config) => config,
        Err(error) => return unusable(&error.into()),
    };
    if let Err(error) = refuse_open_lockdown(&config, file.as_deref()) {
        return unusable(&error);
    }
    let feed = log(arguments.verbose || config.configuration().stock.verbose);
    match serve(&config, feed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.downcast_ref::<Unusable>().is_some() => unusable(&error),
        Err(error) => {
            eprintln!("talon-frontend: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Lockdown ends with the configuration file. Who can write that file can end it, so the server must not be able to.
fn refuse_open_lockdown(config: &ServerConfig, file: Option<&Path>) -> Result<()> {
    let path = file.map(Path::to_owned).or_else(|| std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from));
    let Some(path) = path.filter(|_| config.lockdown() && !config.talon().lockdown_allow_writable_config) else { return Ok(()) };
    // Opening changes nothing in the file.
    if std::fs::OpenOptions::new().append(true).open(&path).is_ok() {
        anyhow::bail!(
            "lockdown is set, but the account of this server can write {}: make the file another account's and read-only for this one, or set talon.server.lockdown_allow_writable_config",
            path.display()
        );
    }
    Ok(())
}

/// Marks an error as one of the configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration cannot be used")]
struct Unusable;

fn unusable(error: &anyhow::Error) -> ExitCode {
    eprintln!("talon-frontend: {error:#}");
    ExitCode::from(EXIT_UNUSABLE)
}

/// Starts the log; what queries with the right to do so may read of it.
fn log(verbose: bool) -> Arc<LogFeed> {
    let fallback = if verbose { "debug,h2=info,hyper=info,rustls=info" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(fallback));
    let feed = Arc::new(LogFeed::default());
    let lines = tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).with(FeedLayer::new(Arc::clone(&feed))).init();
    feed
}

#[tokio::main]
async fn serve(config: &ServerConfig, feed: Arc<LogFeed>) -> Result<()> {
    talon_transport::install_crypto_provider()?;
    let drain = drain_on_signals()?;
    let agents = FrontendListener::bind(listener::settings(config).context(Unusable)?).await.map_err(by_blame)?;
    let callers = ApiListener::bind(api::settings(config).await.context(Unusable)?).await?;
    let (server, _copies_of_the_audit_log) = tokio::task::block_in_place(|| services::open(config, feed))?;
    let api_address = callers.local_addr().map_or_else(|| format!("unix:{}", config.api().bind_address), |address| address.to_string());
    announce(&format!("talon-frontend is ready: agents {}, API {api_address}", agents.local_addr()))?;
    let api = tokio::spawn(callers.serve(api::service(config, server.clone()), drain.clone()));
    let (leaving, signalled) = (server.clone(), drain.clone());
    tokio::spawn(async move {
        signalled.cancelled().await;
        leaving.drain();
    });
    agents.serve(Arc::new(server), drain).await;
    api.await??;
    Ok(())
}

/// A token that the first signal to end cancels.
fn drain_on_signals() -> Result<CancellationToken> {
    let drain = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()] {
        let mut signals = signal(kind)?;
        let drain = drain.clone();
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                tracing::info!(signal = kind.as_raw_value(), "draining");
                drain.cancel();
            }
        });
    }
    Ok(drain)
}

fn by_blame(error: TransportError) -> anyhow::Error {
    let settings = matches!(error, TransportError::Configuration(_));
    let error = anyhow::Error::new(error);
    if settings { error.context(Unusable) } else { error }
}

/// The one line on stdout that says that all listeners are bound.
fn announce(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot say that the server is ready")
}
