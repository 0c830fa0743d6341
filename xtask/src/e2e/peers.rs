//! A second implementation of the protocol, on both sides of ours: no violation, whatever it does.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Case, Outcome, Stage, with_logs};
use crate::deployment::{Deployment, Scheme};

pub(super) const CASES: &[Case] = &[
    ("another agent finds no fault in our frontend over http", |stage| peer_agent(stage, Scheme::Http)),
    ("another agent finds no fault in our frontend over https", |stage| peer_agent(stage, Scheme::Https)),
    ("another server finds no fault in our agent: rows", |stage| peer_server(stage, Scheme::Https, "rows.json")),
    ("another server finds no fault in our agent: errors", |stage| peer_server(stage, Scheme::Http, "errors.json")),
    ("another server finds no fault in our agent: control", |stage| peer_server(stage, Scheme::Https, "control.json")),
    ("another server finds no fault in our agent: uploads", |stage| peer_server(stage, Scheme::Http, "upload.json")),
    ("another server finds no fault in our agent: trouble", |stage| peer_server(stage, Scheme::Https, "trouble.json")),
    ("hostile agents get the answers of the protocol and nothing else", misdeeds),
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
        command.arg("--report").arg(&report).args(["--for", "25"]);
        let mut agent = spawn(deployment, command, "peer-agent.log")?;
        let client = deployment.wait_for_client()?;
        let flow = deployment.collect(&client, "Linux.Sys.Pslist", "dict()")?;
        deployment.wait_for_flow(&client, &flow, "FINISHED")?;
        let status = agent.0.wait()?;
        ensure!(status.success(), "agent.py ended with {status}");
        clean(&report)
    })
}

/// Our agent against the other server, which runs `scenario` and judges every byte.
fn peer_server(stage: &Stage, scheme: Scheme, scenario: &str) -> Result<Outcome> {
    let peer = match Peer::find() {
        Ok(peer) => peer,
        Err(skipped) => return Ok(skipped),
    };
    with_logs(stage.deployment(scheme)?, |deployment| {
        let report = deployment.file("server-report.json");
        let mut command = peer.command("server.py");
        command.arg("--config").arg(deployment.file("server.config.yaml"));
        command.arg("--scenario").arg(peer.folder.join("scenarios").join(scenario));
        command.arg("--report").arg(&report).args(["--for", "240"]);
        let mut server = spawn(deployment, command, "peer-server.log")?;
        deployment.start_agent("client.config.yaml")?;
        server.0.wait()?;
        clean(&report)
    })
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

/// Hostile acts and the statuses that answer them, in order; the last is always an honest packet. 200 without effect where the protocol says so.
const MISDEEDS: &[(&str, &[u64])] = &[
    ("flip-bit=encrypted", &[403, 403, 200]),
    ("flip-bit=encrypted_cipher", &[403, 403, 200]),
    ("flip-bit=encrypted_cipher_metadata", &[403, 403, 200]),
    ("flip-bit=packet_iv", &[403, 403, 200]),
    ("flip-bit=full_hmac", &[403, 403, 200]),
    ("truncate", &[403, 200]),
    ("empty-body", &[406, 406, 200]),
    ("zlib-bomb", &[200, 200]),
    ("forge-source=inner", &[200, 200]),
    ("forge-source=envelope", &[406, 406, 406, 200]),
    ("wrong-nonce", &[403, 403, 200]),
    ("rows-for-other-flow", &[200, 200, 200]),
    ("rows-for-unknown-artifact", &[200, 200, 200]),
    ("server-artifact-queue", &[200, 200, 200, 200, 200]),
    ("upload-dotdot", &[200, 200, 200]),
    ("upload-nul", &[200, 200, 200]),
    ("upload-long-name", &[200, 200, 200]),
    ("retransmit-rows", &[200, 200, 200, 200, 200]),
    ("replay", &[200, 200, 200, 200]),
    ("lying-counts", &[200, 200, 200, 200, 200]),
    ("csr-wrong-id", &[503, 406]),
    ("csr-bad-signature", &[503, 406]),
    ("csr-1024", &[503, 406]),
];

fn misdeeds(stage: &Stage) -> Result<Outcome> {
    let peer = match Peer::find() {
        Ok(peer) => peer,
        Err(skipped) => return Ok(skipped),
    };
    with_logs(stage.deployment(Scheme::Http)?, |deployment| {
        deployment.start_server()?;
        let mut wrong = Vec::new();
        for (misdeed, expected) in MISDEEDS {
            let statuses = commit(&peer, deployment, misdeed)?;
            if statuses != *expected {
                wrong.push(format!("{misdeed}: answered {statuses:?}, expected {expected:?}"));
            }
        }
        ensure!(deployment.server()?.is_running(), "the server died");
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        stored_once(deployment)
    })
}

/// Runs one misdeed and returns the statuses that it got.
fn commit(peer: &Peer, deployment: &Deployment, misdeed: &str) -> Result<Vec<u64>> {
    let mut command = peer.command("agent.py");
    command.arg("--config").arg(deployment.file("client.config.yaml"));
    command.arg("--server-config").arg(deployment.file("server.config.yaml"));
    let output = command.args(["--misdeed", misdeed]).output()?;
    let answer: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("{misdeed}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let answers = answer["answers"].as_array().context("the misdeed reports its answers")?;
    Ok(answers.iter().map(|answer| answer["status"].as_u64().unwrap_or_default()).collect())
}

/// No client has more rows of the interrogation than one honest packet carries, and nothing was written outside of the store.
fn stored_once(deployment: &Deployment) -> Result<()> {
    let vql = "SELECT * FROM foreach(row={ SELECT client_id FROM clients() }, query={ SELECT client_id, session_id, total_collected_rows FROM flows(client_id=client_id) })";
    for flow in deployment.query(vql)? {
        ensure!(
            flow["total_collected_rows"].as_u64().is_none_or(|rows| rows <= 2),
            "rows were stored twice, or a claim was believed: {flow}"
        );
    }
    Ok(())
}
