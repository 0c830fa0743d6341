//! What must hold before a change lands: formatting, tidy, licences, lints, documentation, tests.

use std::time::Instant;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::{e2e, tidy, workspace_root};

/// Everything that CI checks, in the order of cost.
pub(crate) fn ci() -> Result<()> {
    let shell = shell()?;
    step("formatting", || Ok(cmd!(shell, "cargo fmt --all -- --check").run()?))?;
    step("generated code", || Ok(cmd!(shell, "cargo run --package xtask --features lab -- codegen --check").run()?))?;
    step("tidy", tidy::run)?;
    step("licences, sources and banned crates", || {
        cmd!(shell, "cargo deny --log-level error check bans licenses sources")
            .run()
            .context("cargo-deny is needed: `cargo install cargo-deny`, or as .ci/run installs it")
    })?;
    step("lints", || Ok(cmd!(shell, "cargo clippy --workspace --all-targets --features xtask/lab -- -D warnings").run()?))?;
    step("documentation", || {
        let _flags = shell.push_env("RUSTDOCFLAGS", "-D warnings");
        Ok(cmd!(shell, "cargo doc --workspace --no-deps --document-private-items --quiet").run()?)
    })?;
    step("corpora of the fuzz targets", || replay_corpora(&shell))?;
    test()
}

/// The fuzz targets are a workspace of their own; they share this one's target folder, so that little is built twice.
fn replay_corpora(shell: &Shell) -> Result<()> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(workspace_root()).no_deps().exec()?;
    let _target = shell.push_env("CARGO_TARGET_DIR", metadata.target_directory);
    Ok(cmd!(shell, "cargo test --manifest-path fuzz/Cargo.toml --no-default-features").run()?)
}

/// Every test of the workspace, then the end-to-end cases.
pub(crate) fn test() -> Result<()> {
    let shell = shell()?;
    step("tests of the workspace", || Ok(cmd!(shell, "cargo test --workspace --features xtask/lab").run()?))?;
    step("end-to-end", || e2e::run(&e2e::Options::default()))?;
    step("crashes, a few seconds of each", || Ok(cmd!(shell, "cargo run --package xtask --features lab -- crash --seconds 15").run()?))?;
    let programs = debug_programs()?;
    step("benches, to see that they run", || {
        Ok(cmd!(shell, "cargo run --package xtask --features lab -- bench --short --programs {programs}").run()?)
    })
}

/// Where the steps before have built the programs.
fn debug_programs() -> Result<std::path::PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(workspace_root()).no_deps().exec()?;
    Ok(metadata.target_directory.join("debug").into_std_path_buf())
}

fn shell() -> Result<Shell> {
    let shell = Shell::new()?;
    shell.change_dir(workspace_root());
    Ok(shell)
}

/// Runs one step and says how long it took.
pub(crate) fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("==> {name}");
    let start = Instant::now();
    work().with_context(|| format!("step failed: {name}"))?;
    eprintln!("==> {name}: ok in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
