//! `cargo xtask crash`: kills the store, the server and the agent in the middle of their work, and fills their disks, again and again, and compares what is
//! left with a model of what must be there.

mod agent;
mod disk;
mod server;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::deployment::Programs;
use crate::workspace_root;

/// What is made to fail.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A process that writes to the store is killed; the machine under the store loses power.
    Store,
    /// The server is killed while agents send rows.
    Server,
    /// The agent is killed during collections, with and without a server.
    Agent,
    /// The server's disk is full for a while.
    ServerDisk,
    /// The agent's disk is full for a while.
    AgentDisk,
}

/// How long, and from which seed.
#[derive(Args, Debug, Clone)]
pub(crate) struct Arguments {
    /// One part; all of them without it.
    part: Option<Part>,
    /// Minutes for each part.
    #[arg(long, default_value_t = 1)]
    minutes: u64,
    /// Seconds for each part, instead of minutes.
    #[arg(long)]
    seconds: Option<u64>,
    /// Repeats a run, as far as the moments of the kills allow.
    #[arg(long)]
    seed: Option<u64>,
    /// A folder with the programs, instead of building them.
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// Runs the parts; fails with the seed when something that was acknowledged is missing, or is there by half.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(|| u64::from(std::process::id()));
    let time = Duration::from_secs(arguments.seconds.unwrap_or_else(|| arguments.minutes.saturating_mul(60)));
    let programs = || arguments.programs.as_deref().map_or_else(Programs::build, |folder| Ok(Programs::in_folder(folder)));
    println!("seed {seed}, {} s for each part", time.as_secs());
    for part in Part::value_variants().iter().copied().filter(|part| arguments.part.is_none_or(|only| only == *part)) {
        let done = match part {
            Part::Store => store(seed, time),
            Part::Server => server::killed(&programs()?, seed, time),
            Part::Agent => agent::killed(&programs()?, seed, time),
            Part::ServerDisk => disk::of_the_server(&programs()?, seed, time),
            Part::AgentDisk => disk::of_the_agent(&programs()?, seed, time),
        };
        done.with_context(|| format!("{part:?} failed: repeat with --seed {seed}"))?;
    }
    Ok(())
}

fn store(seed: u64, time: Duration) -> Result<()> {
    let rounds = time.as_secs().saturating_mul(4).max(20);
    let tests = [
        ("--test", "crash", "a_killed_process", "TALON_CRASH_SECONDS", time.as_secs()),
        ("--lib", "", "lost_power", "TALON_POWER_ROUNDS", rounds),
    ];
    for (kind, name, test, variable, value) in tests {
        let status = Command::new(env!("CARGO"))
            .current_dir(workspace_root())
            .args(["test", "--package", "talon-store", kind])
            .args(Some(name).filter(|name| !name.is_empty()))
            .args(["--", "--nocapture", test])
            .env(variable, value.to_string())
            .env("TALON_CRASH_SEED", seed.to_string())
            .status()?;
        ensure!(status.success(), "the store lost something");
    }
    Ok(())
}
