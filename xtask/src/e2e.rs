//! End-to-end cases: the real programs, as administrators, agents and attackers use them.

mod cli;
mod half_open;
mod main_job;
mod misdeeds;
mod peers;
mod python_api;
mod restarts;
mod services;
mod syslog;

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::deployment::{Deployment, Programs, Scheme};

/// What a case ended with, unless it failed.
pub(crate) enum Outcome {
    /// All that it asserts holds.
    Passed,
    /// What it needs is not on this machine.
    Skipped(String),
}

/// One case: a sentence that says what holds, and the check.
type Case = (&'static str, fn(&Stage) -> Result<Outcome>);

const CASES: &[&[Case]] = &[
    main_job::CASES,
    cli::CASES,
    restarts::CASES,
    services::CASES,
    syslog::CASES,
    peers::CASES,
    misdeeds::CASES,
    half_open::CASES,
    python_api::CASES,
];

/// What the command line says.
#[derive(Default)]
pub(crate) struct Options {
    /// Only cases whose name contains this.
    pub(crate) filter: Option<String>,
    /// Keep the folders of cases that passed, too.
    pub(crate) keep: bool,
}

/// What every case gets: the programs and a folder of its own.
pub(crate) struct Stage {
    pub(crate) programs: Programs,
    folder: tempfile::TempDir,
}

impl Stage {
    /// A deployment in this case's folder.
    pub(crate) fn deployment(&self, scheme: Scheme) -> Result<Deployment> {
        Deployment::create(&self.programs, &self.folder.path().join("deployment"), scheme)
    }

    /// One of several deployments in this case's folder.
    pub(crate) fn deployment_in(&self, name: &str, scheme: Scheme) -> Result<Deployment> {
        Deployment::create(&self.programs, &self.folder.path().join(name), scheme)
    }

    /// This case's folder.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}

/// Runs the cases one after the other and prints `N passed, N failed, N skipped`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let programs = Programs::build()?;
    let (mut passed, mut skipped, mut failed) = (0, 0, Vec::new());
    for (name, check) in CASES.iter().copied().flatten() {
        if options.filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        let start = Instant::now();
        let stage = Stage { programs: programs.clone(), folder: tempfile::Builder::new().prefix("talon-e2e-").tempdir()? };
        let outcome = check(&stage);
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(Outcome::Passed) => {
                println!("ok       {seconds:6.1} s  {name}");
                passed += 1;
            }
            Ok(Outcome::Skipped(why)) => {
                println!("SKIPPED  {seconds:6.1} s  {name}: {why}");
                skipped += 1;
            }
            Err(error) => {
                println!("FAILED   {seconds:6.1} s  {name}: {error:#}");
                failed.push(*name);
            }
        }
        if options.keep || failed.contains(name) {
            println!("         kept: {}", stage.folder.keep().display());
        }
    }
    println!("{passed} passed, {} failed, {skipped} skipped", failed.len());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(())
}

/// Runs `check` on a deployment and, when it fails, shows the logs of all its programs.
fn with_logs(mut deployment: Deployment, check: impl FnOnce(&mut Deployment) -> Result<()>) -> Result<Outcome> {
    check(&mut deployment).with_context(|| deployment.logs())?;
    Ok(Outcome::Passed)
}
