//! An agent that is killed during collections: what it had accepted arrives, once and in order, and a flow that it cannot finish is reported as such.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use talon_store::conformance::Draw;

use crate::deployment::{Deployment, Programs, Scheme};

/// Rows of one collection, which takes about a second and a half.
const ROWS: usize = 300;
/// How long a flow may take to end, from the last start of a program on.
const ENDS_WITHIN: Duration = Duration::from_secs(90);

/// What is done to a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// The agent is killed.
    Agent,
    /// The server is killed, then the agent.
    Both,
    /// The server is killed, the agent ends its query without one, and is killed.
    AgentAfterItsQuery,
    /// The server is killed.
    Server,
}

pub(super) fn killed(programs: &Programs, seed: u64, time: Duration) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut deployment = create(programs, folder.path())?;
    let outcome = rounds(&mut deployment, seed, time);
    outcome.with_context(|| deployment.logs())
}

/// A deployment whose server asks soon about flows that it hears nothing of.
pub(super) fn create(programs: &Programs, folder: &std::path::Path) -> Result<Deployment> {
    let changes = json!({ "defaults": { "inflight_check_time": 5 }, "Client": { "max_poll": 4, "max_poll_std": 1 } });
    Deployment::create_with(programs, folder, Scheme::Https, &changes)
}

/// Starts both programs and defines the artifact that is collected. Returns the client's id.
pub(super) fn begin(deployment: &mut Deployment, rows: usize, pause_ms: u64) -> Result<String> {
    deployment.start_server()?;
    deployment.start_agent("client.config.yaml")?;
    let client = deployment.wait_for_client()?;
    let query = format!("SELECT _value AS N, 'a text that makes the row longer' AS T, sleep(ms={pause_ms}) AS S FROM range(end={rows})");
    let artifact = format!("name: Custom.Crash.Rows\\nresources:\\n  max_batch_rows: 7\\nsources:\\n- query: {query}\\n");
    deployment.query(&format!("SELECT artifact_set(definition=\"{artifact}\") FROM scope()"))?;
    Ok(client)
}

fn rounds(deployment: &mut Deployment, seed: u64, time: Duration) -> Result<()> {
    let client = begin(deployment, ROWS, 4)?;
    let mut draw = Draw::new(seed);
    let (mut finished, mut lost) = (0, 0);
    let end = Instant::now() + time;
    while Instant::now() < end {
        let blow = [Blow::Agent, Blow::Agent, Blow::Both, Blow::AgentAfterItsQuery, Blow::Server]
            .get(draw.below(5))
            .copied()
            .unwrap_or(Blow::Agent);
        let flow = deployment.collect(&client, "Custom.Crash.Rows", "dict()")?;
        let mut pause = |most: usize| -> Result<()> {
            thread::sleep(Duration::from_millis(u64::try_from(draw.below(most))?));
            Ok(())
        };
        match blow {
            Blow::Agent => {
                pause(2500)?;
                deployment.last_agent()?.kill()?;
                deployment.start_agent("client.config.yaml")?;
            }
            Blow::Both => {
                pause(1500)?;
                deployment.server()?.kill()?;
                pause(1500)?;
                deployment.last_agent()?.kill()?;
                deployment.start_server()?;
                deployment.start_agent("client.config.yaml")?;
            }
            Blow::AgentAfterItsQuery => {
                rows_come(deployment, &client, &flow)?;
                deployment.server()?.kill()?;
                thread::sleep(Duration::from_secs(6));
                deployment.last_agent()?.kill()?;
                deployment.start_server()?;
                deployment.start_agent("client.config.yaml")?;
            }
            Blow::Server => {
                pause(2000)?;
                deployment.server()?.kill()?;
                deployment.start_server()?;
            }
        }
        let ended = judge(deployment, &client, &flow, ROWS).with_context(|| format!("after {blow:?}"))?;
        // Whoever was alive to the end of the query has everything on disk.
        ensure!(ended || matches!(blow, Blow::Agent | Blow::Both), "{flow} is lost after {blow:?}");
        *(if ended { &mut finished } else { &mut lost }) += 1;
    }
    deployment.stop()?;
    println!(
        "{} collections with kills: {finished} came whole, {lost} were reported as lost, each with its first rows once and in order",
        finished + lost
    );
    Ok(())
}

/// Waits until the agent is known to be at it.
fn rows_come(deployment: &Deployment, client: &str, flow: &str) -> Result<()> {
    crate::process::wait_for("the first rows", Duration::from_secs(30), || Ok((!rows(deployment, client, flow)?.is_empty()).then_some(())))
}

fn rows(deployment: &Deployment, client: &str, flow: &str) -> Result<Vec<Value>> {
    deployment.query(&format!("SELECT N FROM source(client_id='{client}', flow_id='{flow}', artifact='Custom.Crash.Rows')"))
}

/// Waits until a flow has ended, and compares its rows with those that the query gives. Returns whether it finished.
pub(super) fn judge(deployment: &Deployment, client: &str, flow: &str, whole: usize) -> Result<bool> {
    let deadline = Instant::now() + ENDS_WITHIN;
    let record = loop {
        let found = deployment.query(&format!("SELECT state, status FROM flows(client_id='{client}', flow_id='{flow}')"))?;
        let record = found.into_iter().next().unwrap_or_default();
        if record["state"] == "FINISHED" || record["state"] == "ERROR" {
            break record;
        }
        ensure!(Instant::now() < deadline, "{flow} did not end: {record}");
        thread::sleep(Duration::from_millis(200));
    };
    let rows = rows(deployment, client, flow)?;
    for (row, number) in rows.iter().zip(0_u64..) {
        ensure!(row["N"].as_u64() == Some(number), "{flow}: row {number} is {row}");
    }
    let finished = record["state"] == "FINISHED";
    if finished {
        ensure!(rows.len() == whole, "{flow} is finished with {} of {whole} rows", rows.len());
    } else {
        ensure!(rows.len() <= whole, "{flow} has {} rows of {whole}", rows.len());
        ensure!(record["status"].as_str().is_some_and(|status| !status.is_empty()), "{flow} is lost for no reason: {record}");
    }
    Ok(finished)
}
