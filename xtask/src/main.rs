//! The project's own tools: everything that is not `cargo build`, as `cargo xtask …`.
#![allow(clippy::indexing_slicing, reason = "only JSON values are indexed here, and a missing key is null")]

#[cfg(feature = "lab")]
mod bench;
mod checks;
#[cfg(feature = "lab")]
mod codegen;
mod conformance;
#[cfg(feature = "lab")]
mod crash;
mod demo;
mod deployment;
mod e2e;
#[cfg(feature = "lab")]
mod fixtures;
#[cfg(feature = "lab")]
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
    #[command(flatten)]
    Lab(Lab),
}

/// Commands that are built with the feature `lab` only; without it they start cargo again.
#[cfg(feature = "lab")]
#[derive(Subcommand)]
enum Lab {
    /// Measure, beside the machine's own limits in the same run.
    Bench(bench::Arguments),
    /// Kill store, server and agent in the middle of their work, fill their disks, and compare what is left with a model.
    Crash(crash::Arguments),
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

#[cfg(not(feature = "lab"))]
#[derive(Subcommand)]
enum Lab {
    /// Measure, beside the machine's own limits in the same run.
    #[command(disable_help_flag = true)]
    Bench(Rest),
    /// Kill store, server and agent in the middle of their work, fill their disks, and compare what is left with a model.
    #[command(disable_help_flag = true)]
    Crash(Rest),
    /// Make the packets of `fixtures/wire`, with new throwaway keys.
    #[command(disable_help_flag = true)]
    Fixtures(Rest),
    /// Generate the Rust types of `proto/` into `crates/proto/src/gen`.
    #[command(disable_help_flag = true)]
    Codegen(Rest),
}

/// Arguments that are looked at after cargo was started again.
#[cfg(not(feature = "lab"))]
#[derive(clap::Args)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
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
        Command::Lab(command) => lab(command),
    }
}

#[cfg(feature = "lab")]
fn lab(command: Lab) -> Result<()> {
    match command {
        Lab::Bench(arguments) => bench::run(&arguments),
        Lab::Crash(arguments) => crash::run(&arguments),
        Lab::Fixtures { force } => fixtures::run(force),
        Lab::Codegen { check } => codegen::run(check),
    }
}

#[cfg(not(feature = "lab"))]
fn lab(_: Lab) -> Result<()> {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.current_dir(workspace_root()).args(["run", "--package", "xtask", "--features", "lab"]);
    // What measures must not be what is slow.
    let is = |wanted: &str| std::env::args_os().any(|argument| argument == wanted);
    if std::env::args_os().nth(1).is_some_and(|command| command == "bench") && !is("--short") {
        cargo.arg("--release");
    }
    cargo.arg("--");
    let status = cargo.args(std::env::args_os().skip(1)).status()?;
    anyhow::ensure!(status.success(), "the command failed ({status})");
    Ok(())
}

/// The root of the workspace.
fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
