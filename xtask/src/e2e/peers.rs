//! A second implementation of the protocol, on both sides of ours: no violation, whatever it does.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Case, Outcome, Stage, with_logs};
use crate::deployment::{Deployment, Scheme};
use crate::process::wait_for;

pub(super) const CASES: &[Case] = &[
    ("another agent finds no fault in our frontend over http", |stage| peer_agent(stage, Scheme::Http)),
    ("another agent finds no fault in our frontend over https", |stage| peer_agent(stage, Scheme::Https)),
    ("another agent finds no fault in our frontend over ws", |stage| peer_agent(stage, Scheme::Ws)),
    ("another agent finds no fault in our frontend over wss", |stage| peer_agent(stage, Scheme::Wss)),
    ("another server finds no fault in our agent over http", |stage| peer_server(stage, Scheme::Http)),
    ("another server finds no fault in our agent over https", |stage| peer_server(stage, Scheme::Https)),
    ("another server finds no fault in our agent over ws", |stage| peer_server(stage, Scheme::Ws)),
    ("another server finds no fault in our agent over wss", |stage| peer_server(stage, Scheme::Wss)),
];

/// The scenarios in which the other server judges our agent.
const SCENARIOS: &[&str] = &["rows", "errors", "control", "upload", "trouble"];

/// An artifact that the other agent has answers for: its name, the rest of its definition, the state in which it ends, and the rows of its sources.
type Answered = (&'static str, &'static str, &'static str, &'static [(&'static str, u64)]);

const ANSWERED: &[Answered] = &[
    (
        "Custom.Peer.Rows",
        "sources: [{name: Numbers, query: SELECT * FROM range(end=25)}, {name: Dict, query: SELECT 1 AS A FROM scope()}]",
        "FINISHED",
        &[("/Numbers", 25), ("/Dict", 1)],
    ),
    ("Custom.Peer.Upload", "sources: [{query: SELECT upload(file='/tmp/peer.txt') AS U FROM scope()}]", "FINISHED", &[]),
    ("Custom.Peer.Error", "sources: [{query: SELECT 1 AS One FROM scope()}]", "ERROR", &[("", 1)]),
];

/// The second implementation and a Python that can run it.
pub(super) struct Peer {
    folder: PathBuf,
    python: PathBuf,
}

impl Peer {
    pub(super) fn find() -> Result<Self, Outcome> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).ok_or_else(|| Outcome::Skipped(format!("{name} is not set")));
        Ok(Self { folder: variable("TALON_PEER")?, python: variable("TALON_PYTHON")? })
    }

    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.python);
        command.current_dir(&self.folder).env("PYTHONDONTWRITEBYTECODE", "1").arg(program).stdin(Stdio::null());
        command
    }
}

/// Kills the peer when a case ends before it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn peer_agent(stage: &Stage, scheme: Scheme) -> Result<Outcome> {
    let peer = match Peer::find() {
        Ok(peer) => peer,
        Err(skipped) => return Ok(skipped),
    };
    with_logs(stage.deployment(scheme)?, |deployment| {
        deployment.start_server()?;
        let report = deployment.file("agent-report.json");
        let mut command = peer.command("agent.py");
        command.arg("--config").arg(deployment.file("client.config.yaml"));
        command.arg("--server-config").arg(deployment.file("server.config.yaml"));
        command.arg("--scenario").arg(peer.folder.join("scenarios/agent.json"));
        command.arg("--report").arg(&report).args(["--for", "30"]);
        let mut agent = spawn(deployment, command, "peer-agent.log")?;
        let client = deployment.wait_for_client()?;
        collect_all(deployment, &client)?;
        let status = agent.0.wait()?;
        ensure!(status.success(), "agent.py ended with {status}");
        clean(&report)
    })
}

/// Everything that the other agent knows to answer: rows, files, errors, events, and a long flow that is cancelled.
fn collect_all(deployment: &Deployment, client: &str) -> Result<()> {
    let define = |name: &str, rest: &str| {
        let yaml = format!("{{name: {name}, {rest}}}").replace('\'', "\\'");
        deployment.query(&format!("SELECT artifact_set(definition='{yaml}') AS A FROM scope()"))
    };
    define("Custom.Peer.Clock", "type: CLIENT_EVENT, sources: [{query: SELECT * FROM clock()}]")?;
    deployment.query("SELECT add_client_monitoring(artifact='Custom.Peer.Clock') AS A FROM scope()")?;
    define("Custom.Peer.Long", "sources: [{query: SELECT * FROM range(end=120)}]")?;
    let long = deployment.collect(client, "Custom.Peer.Long", "dict()")?;
    for (artifact, sources, state, tables) in ANSWERED {
        define(artifact, sources)?;
        let flow = deployment.collect(client, artifact, "dict()")?;
        deployment.wait_for_flow(client, &flow, state)?;
        for (source, count) in *tables {
            let vql = format!(
                "SELECT count() AS N FROM source(client_id='{client}', flow_id='{flow}', artifact='{artifact}{source}') GROUP BY 1"
            );
            let rows = deployment.query(&vql)?;
            ensure!(rows.first().is_some_and(|row| row["N"] == *count), "{artifact}{source}: {rows:?}, not {count} rows");
        }
        if artifact.ends_with("Upload") {
            let rows = deployment.query(&format!("SELECT * FROM uploads(client_id='{client}', flow_id='{flow}')"))?;
            ensure!(rows.len() >= 5, "five files were uploaded: {rows:?}");
        }
    }
    deployment.wait_for_flow(client, &long, "IN_PROGRESS")?;
    deployment.query(&format!("SELECT cancel_flow(client_id='{client}', flow_id='{long}') AS C FROM scope()"))?;
    deployment.wait_for_flow(client, &long, "ERROR")?;
    wait_for("event rows", std::time::Duration::from_secs(20), || {
        let rows = deployment.query(&format!("SELECT * FROM source(client_id='{client}', artifact='Custom.Peer.Clock')"))?;
        Ok((rows.len() == 5).then_some(()))
    })
}

/// Our agent against the other server, which runs every scenario and judges every byte.
fn peer_server(stage: &Stage, scheme: Scheme) -> Result<Outcome> {
    let peer = match Peer::find() {
        Ok(peer) => peer,
        Err(skipped) => return Ok(skipped),
    };
    let faults: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            SCENARIOS.iter().map(|scenario| (scenario, scope.spawn(|| judged_by_peer(stage, &peer, scheme, scenario)))).collect();
        let fault = |(scenario, run): (&&str, std::thread::ScopedJoinHandle<'_, Result<()>>)| match run.join() {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{scenario}: {error:#}")),
            Err(_) => Some(format!("{scenario}: the test panicked")),
        };
        runs.into_iter().filter_map(fault).collect()
    });
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(Outcome::Passed)
}

fn judged_by_peer(stage: &Stage, peer: &Peer, scheme: Scheme, scenario: &str) -> Result<()> {
    with_logs(stage.deployment_in(scenario, scheme)?, |deployment| {
        let report = deployment.file("server-report.json");
        let mut command = peer.command("server.py");
        command.arg("--config").arg(deployment.file("server.config.yaml"));
        command.arg("--scenario").arg(peer.folder.join("scenarios").join(scenario).with_extension("json"));
        command.arg("--report").arg(&report).args(["--for", "240"]);
        let mut server = spawn(deployment, command, "peer-server.log")?;
        deployment.start_agent("client.config.yaml")?;
        server.0.wait()?;
        clean(&report)
    })
    .map(|_| ())
}

fn spawn(deployment: &Deployment, mut command: Command, log: &str) -> Result<Running> {
    fs::create_dir_all(deployment.file("logs"))?;
    let log = File::create(deployment.file("logs").join(log))?;
    let child = command.stdout(log.try_clone()?).stderr(log).spawn().context("starting the second implementation")?;
    Ok(Running(child))
}

/// Fails with every violation of level `must` and every expectation that was not met.
fn clean(report: &Path) -> Result<()> {
    let report: Value = serde_json::from_str(&fs::read_to_string(report).context("the peer wrote no report")?)?;
    let violations = report["violations"].as_array().context("the report has a list of violations")?;
    let mut faults: Vec<String> = violations.iter().filter(|violation| violation["level"] == "must").map(Value::to_string).collect();
    faults.extend(report["failures"].as_array().into_iter().flatten().map(|failure| format!("expected: {failure}")));
    if !faults.is_empty() {
        bail!("faults found by the other side:\n{}", faults.join("\n"));
    }
    Ok(())
}
