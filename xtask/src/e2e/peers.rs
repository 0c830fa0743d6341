//! A second implementation of the protocol, on both sides of ours: no violation, whatever it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Case, Outcome, Stage, with_logs};
use crate::deployment::{Deployment, Scheme};

pub(super) const CASES: &[Case] = &[
    ("another agent finds no fault in our frontend over http", peer_agent_http),
    ("another agent finds no fault in our frontend over https", peer_agent_https),
];

/// The second implementation and a Python that can run it.
struct Peer {
    folder: PathBuf,
    python: PathBuf,
}

impl Peer {
    fn find() -> Result<Self, Outcome> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).ok_or_else(|| Outcome::Skipped(format!("{name} is not set")));
        Ok(Self { folder: variable("TALON_PEER")?, python: variable("TALON_PYTHON")? })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.python);
        command.current_dir(&self.folder).env("PYTHONDONTWRITEBYTECODE", "1").arg(program);
        command
    }
}

fn peer_agent_http(stage: &Stage) -> Result<Outcome> {
    peer_agent(stage, Scheme::Http)
}

fn peer_agent_https(stage: &Stage) -> Result<Outcome> {
    peer_agent(stage, Scheme::Https)
}

fn peer_agent(stage: &Stage, scheme: Scheme) -> Result<Outcome> {
    let peer = match Peer::find() {
        Ok(peer) => peer,
        Err(skipped) => return Ok(skipped),
    };
    with_logs(stage.deployment(scheme)?, |deployment| {
        deployment.start_server()?;
        let report = deployment.file("agent-report.json");
        let mut agent = run_agent(&peer, deployment, &report)?;
        let client = deployment.wait_for_client()?;
        let flow = deployment.collect(&client, "Linux.Sys.Pslist", "dict()")?;
        deployment.wait_for_flow(&client, &flow, "FINISHED")?;
        let status = agent.wait()?;
        ensure!(status.success(), "agent.py ended with {status}");
        no_violations(&report)
    })
}

fn run_agent(peer: &Peer, deployment: &Deployment, report: &Path) -> Result<std::process::Child> {
    let log = fs::File::create(deployment.file("logs/peer-agent.log"))?;
    let mut command = peer.command("agent.py");
    command.arg("--config").arg(deployment.file("client.config.yaml"));
    command.arg("--server-config").arg(deployment.file("server.config.yaml"));
    command.arg("--scenario").arg(peer.folder.join("scenarios/agent.json"));
    command.arg("--report").arg(report).args(["--for", "25"]);
    command.stdout(log.try_clone()?).stderr(log).spawn().context("starting agent.py")
}

/// Fails with every violation of level `must`.
fn no_violations(report: &Path) -> Result<()> {
    let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
    let violations = report["violations"].as_array().context("the report has a list of violations")?;
    let must: Vec<String> = violations.iter().filter(|violation| violation["level"] == "must").map(Value::to_string).collect();
    if !must.is_empty() {
        bail!("violations:\n{}", must.join("\n"));
    }
    Ok(())
}
