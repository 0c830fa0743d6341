//! pyvelociraptor, unmodified, against our API.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Case, Outcome, Stage, with_logs};
use crate::deployment::Scheme;

pub(super) const CASES: &[Case] = &[("pyvelociraptor runs a query against our API", query)];

fn query(stage: &Stage) -> Result<Outcome> {
    let Some(python) = std::env::var_os("TALON_PYTHON").map(PathBuf::from) else {
        return Ok(Outcome::Skipped("TALON_PYTHON is not set".to_owned()));
    };
    with_logs(stage.deployment(Scheme::Https)?, |deployment| {
        deployment.start_server()?;
        let output = Command::new(python.with_file_name("pyvelociraptor"))
            .arg("--config")
            .arg(deployment.file("api.config.yaml"))
            .arg("SELECT _value * 7 AS Seven FROM range(start=6, end=7)")
            .output()?;
        let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success() && shown.contains("Seven") && shown.contains("42"), "pyvelociraptor: {shown}");
        Ok(())
    })
}
