//! The project's own tools: everything that is not `cargo build`, as `cargo xtask …`.
#![allow(clippy::indexing_slicing, reason = "only JSON values are indexed here, and a missing key is null")]

mod bench;
mod checks;
mod codegen;
mod crash;
mod demo;
mod deployment;
mod e2e;
mod fixtures;
mod load;
mod process;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Talon's development tools")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a deployment in ./demo, collect from this machine, show rows and the proof of who asked for them.
    Demo {
        /// Stop after printing, instead of staying up until Ctrl-C.
        #[arg(long)]
        once: bool,
    },
    /// Run every test of the workspace, then the end-to-end cases.
    Test,
    /// Run the end-to-end cases: real programs on free ports.
    E2e {
        /// Only cases whose name contains this.
        filter: Option<String>,
        /// Keep the folders of cases that passed, too.
        #[arg(long)]
        keep: bool,
    },
    /// Run everything that must hold before a change lands.
    Ci,
    /// Check the rules of ARCHITECTURE.md that a machine can check.
    Tidy,
    /// Kill the store, then the server, in the middle of their work, and compare what is left.
    Crash(crash::Arguments),
    /// Measure, and print each result beside the machine's own limit.
    Bench(bench::Arguments),
    /// Make the packets of `fixtures/wire`, with new throwaway keys.
    Fixtures {
        /// Replace those that are there.
        #[arg(long)]
        force: bool,
    },
    /// Generate the Rust types of `proto/` into `crates/proto/src/gen`.
    Codegen {
        /// Fail when the files on disk are not what would be generated.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo { once } => demo::run(once),
        Command::Test => checks::test(),
        Command::E2e { filter, keep } => e2e::run(&e2e::Options { filter, keep }),
        Command::Ci => checks::ci(),
        Command::Tidy => tidy::run(),
        Command::Crash(arguments) => crash::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Fixtures { force } => fixtures::run(force),
        Command::Codegen { check } => codegen::run(check),
    }
}

/// The root of the workspace.
fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
