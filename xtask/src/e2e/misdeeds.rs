//! Hostile agents of the second implementation: each act gets the answers of the protocol over HTTP and over WebSocket, and leaves nothing behind.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::peers::Peer;
use super::{Case, Outcome, Stage, with_logs};
use crate::deployment::{Deployment, Scheme};

pub(super) const CASES: &[Case] = &[
    ("hostile agents get the answers of the protocol over http and leave nothing", |stage| misdeeds(stage, Scheme::Http)),
    ("hostile agents get the answers of the protocol over ws and leave nothing", |stage| misdeeds(stage, Scheme::Ws)),
];

/// Acts that run side by side.
const AT_ONCE: usize = 4;

/// An answer: processed, refused without a word (over HTTP 200 without a packet, over WebSocket 400), a poll without news or either of the two, or a status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Said {
    Done,
    Refused,
    Waits,
    Polled,
    Status(u64),
}

use Said::{Done, Polled, Refused, Status, Waits};

const UNREADABLE: Said = Status(403);
const STRANGER: Said = Status(406);

/// Each act with its answers in order. The last packet is always an honest one, except of agents that never enrolled.
const MISDEEDS: &[(&str, &[Said])] = &[
    ("flip-bit=encrypted", &[UNREADABLE, UNREADABLE, Done]),
    ("flip-bit=encrypted_cipher", &[UNREADABLE, UNREADABLE, Done]),
    ("flip-bit=encrypted_cipher_metadata", &[UNREADABLE, UNREADABLE, Done]),
    ("flip-bit=packet_iv", &[UNREADABLE, UNREADABLE, Done]),
    ("flip-bit=full_hmac", &[UNREADABLE, UNREADABLE, Done]),
    ("truncate", &[UNREADABLE, Done]),
    ("truncate=1", &[UNREADABLE, Done]),
    ("empty-body", &[STRANGER, STRANGER, Done]),
    ("zlib-bomb", &[Refused, Done]),
    ("forge-source=inner", &[Done, Done]),
    ("forge-source=envelope", &[STRANGER, STRANGER, STRANGER, Done]),
    ("forge-org", &[Done, Done]),
    ("wrong-nonce", &[UNREADABLE, UNREADABLE, Done]),
    ("rows-for-other-flow", &[Refused, Refused, Done]),
    ("rows-for-unknown-artifact", &[Refused, Refused, Done]),
    ("server-artifact-queue", &[Refused, Refused, Refused, Refused, Done]),
    ("upload-dotdot", &[Done, Done, Done]),
    ("upload-nul", &[Done, Done, Done]),
    ("upload-long-name", &[Done, Done, Done]),
    ("retransmit-rows", &[Done, Done, Done, Done, Done]),
    ("replay", &[Done, Done, Done, Done]),
    ("lying-counts", &[Refused, Refused, Refused, Done, Done]),
    ("second-reader", &[Done, Waits, Done]),
    // Whether its poll brings a question about the flow is a matter of the moment.
    ("slow-reader", &[Done, Polled, Done, Polled, Done]),
    ("csr-wrong-id", &[Status(503), STRANGER]),
    ("csr-bad-signature", &[Status(503), STRANGER]),
    ("csr-1024", &[Status(503), STRANGER]),
];

fn misdeeds(stage: &Stage, scheme: Scheme) -> Result<Outcome> {
    let peer = match Peer::find() {
        Ok(peer) => peer,
        Err(skipped) => return Ok(skipped),
    };
    with_logs(stage.deployment(scheme)?, |deployment| {
        deployment.start_server()?;
        let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let lab: &Deployment = deployment;
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let Some((misdeed, expected)) = MISDEEDS.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let fault = match commit(&peer, lab, scheme, misdeed) {
                            Ok(said) if said == *expected => continue,
                            Ok(said) => format!("{misdeed}: answered {said:?}, expected {expected:?}"),
                            Err(error) => format!("{misdeed}: {error:#}"),
                        };
                        if let Ok(mut wrong) = wrong.lock() {
                            wrong.push(fault);
                        }
                    }
                });
            }
        });
        let wrong = wrong.into_inner().unwrap_or_default();
        ensure!(deployment.server()?.is_running(), "the server died");
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        stored_once(deployment)
    })
}

/// Runs one misdeed and returns the answers that it got.
fn commit(peer: &Peer, deployment: &Deployment, scheme: Scheme, misdeed: &str) -> Result<Vec<Said>> {
    let mut command = peer.command("agent.py");
    command.arg("--config").arg(deployment.file("client.config.yaml"));
    command.arg("--server-config").arg(deployment.file("server.config.yaml"));
    let output = command.args(["--misdeed", misdeed]).output()?;
    let report: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("{misdeed}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let answers = report["answers"].as_array().context("the misdeed reports its answers")?;
    let polls = misdeed == "slow-reader";
    let said = answers.iter().map(|answer| match said(answer, scheme) {
        Done | Waits if polls && answer["path"] == "reader" => Polled,
        said => said,
    });
    Ok(said.collect())
}

fn said(answer: &Value, scheme: Scheme) -> Said {
    let body = answer["body"].as_str().unwrap_or_default();
    let complete = answer["end"].as_str().is_none_or(|end| end.is_empty() || end == "complete");
    match answer["status"].as_u64() {
        Some(200) | None if !complete => Waits,
        Some(200) if body.starts_with("pads") => Waits,
        // Over WebSocket an acknowledgement has no content.
        Some(200) if body.starts_with("envelope") || scheme == Scheme::Ws => Done,
        Some(200 | 400) => Refused,
        status => Status(status.unwrap_or_default()),
    }
}

/// No client has more rows of the interrogation than one honest packet carries, and no file has left the store.
fn stored_once(deployment: &Deployment) -> Result<()> {
    let vql = "SELECT * FROM foreach(row={ SELECT client_id FROM clients() }, query={ SELECT client_id, session_id, total_collected_rows FROM flows(client_id=client_id) })";
    let flows = deployment.query(vql)?;
    ensure!(!flows.is_empty(), "no flow was scheduled");
    for flow in flows {
        ensure!(
            flow["total_collected_rows"].as_u64().is_none_or(|rows| rows <= 2),
            "rows were stored twice, or a claim was believed: {flow}"
        );
    }
    for name in ["peer.txt", "../peer.txt", "datastore/peer.txt"] {
        ensure!(!deployment.file(name).exists(), "an upload became the file {name}");
    }
    Ok(())
}
