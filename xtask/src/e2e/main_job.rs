//! The main job: an agent enrols, a collection runs, its rows and its audit record are durable and proven.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Case, Outcome, Stage, with_logs};
use crate::deployment::{Deployment, Scheme};
use crate::process::wait_for;

pub(super) const CASES: &[Case] = &[
    ("an agent enrols over https, is collected from, and the audit log proves it", main_job_https),
    ("an agent enrols over plain http", main_job_http),
    ("a file is uploaded whole and its name is only data", upload),
    ("a running collection is cancelled", cancel),
];

fn main_job_https(stage: &Stage) -> Result<Outcome> {
    with_logs(stage.deployment(Scheme::Https)?, |deployment| {
        let (client, flow) = collect_processes(deployment)?;
        let results = deployment
            .query(&format!("SELECT * FROM flow_results(client_id='{client}', flow_id='{flow}', artifact='Linux.Sys.Pslist')"))?;
        ensure!(results.iter().any(|row| row["Name"] == "talon-agent"), "the agent is not among the processes: {results:?}");
        let logs = deployment.query(&format!("SELECT * FROM flow_logs(client_id='{client}', flow_id='{flow}')"))?;
        ensure!(!logs.is_empty(), "the flow has no log");
        let again =
            deployment.query(&format!("SELECT * FROM source(client_id='{client}', flow_id='{flow}', artifact='Linux.Sys.Pslist')"))?;
        ensure!(again.len() == results.len(), "source() gives {} rows, flow_results() {}", again.len(), results.len());
        audit(deployment, &flow)
    })
}

fn main_job_http(stage: &Stage) -> Result<Outcome> {
    with_logs(stage.deployment(Scheme::Http)?, |deployment| collect_processes(deployment).map(|_| ()))
}

fn collect_processes(deployment: &mut Deployment) -> Result<(String, String)> {
    deployment.start_server()?;
    deployment.start_agent("client.config.yaml")?;
    let client = deployment.wait_for_client()?;
    let flow = deployment.collect(&client, "Linux.Sys.Pslist", "dict()")?;
    let record = deployment.wait_for_flow(&client, &flow, "FINISHED")?;
    ensure!(record["total_collected_rows"].as_u64().is_some_and(|rows| rows > 1), "no rows: {record}");
    Ok((client, flow))
}

/// The scheduling is recorded, the log verifies, its proof verifies alone, and a changed proof does not.
fn audit(deployment: &Deployment, flow: &str) -> Result<()> {
    let server = deployment.path("server.config.yaml");
    let tail = deployment.talon(&["-c", &server, "audit", "tail", "--format", "jsonl"])?;
    let records = tail.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let record = records.iter().find(|record| record["details"]["flow_id"] == flow).context("no audit record of the scheduling")?;
    ensure!(record["principal"] == "admin" && record["operation"] == "ScheduleFlow", "unexpected record: {record}");
    deployment.talon(&["-c", &server, "audit", "verify"])?;

    let index = record["index"].to_string();
    let proof = deployment.path("record.proof");
    let key = deployment.path("datastore/audit.pub");
    deployment.talon(&["-c", &server, "audit", "prove", &index, "--output", &proof])?;
    deployment.talon(&["audit", "verify", "--proof", &proof, "--key", &key])?;
    let text = fs::read_to_string(&proof)?;
    let at = text.find("extra ").context("the proof has no record")? + 40;
    let other = if text.get(at..=at) == Some("A") { "B" } else { "A" };
    let mut changed = text.clone();
    changed.replace_range(at..=at, other);
    fs::write(&proof, changed)?;
    let refused = deployment.talon_output(&["audit", "verify", "--proof", &proof, "--key", &key])?;
    ensure!(refused.status.code() == Some(1), "a changed proof was accepted");
    Ok(())
}

fn upload(stage: &Stage) -> Result<Outcome> {
    with_logs(stage.deployment(Scheme::Https)?, |deployment| {
        deployment.start_server()?;
        deployment.start_agent("client.config.yaml")?;
        let client = deployment.wait_for_client()?;
        let file = deployment.file("to upload.bin");
        let content: Vec<u8> = (0..3_000_000_u32).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect();
        fs::write(&file, &content)?;
        let env = format!("dict(SearchFilesGlobs='Glob\\n{}\\n', UploadFiles='Y')", file.display());
        let flow = deployment.collect(&client, "Linux.Search.FileFinder", &env)?;
        let record = deployment.wait_for_flow(&client, &flow, "FINISHED")?;
        ensure!(record["total_uploaded_bytes"] == content.len(), "uploaded: {record}");
        let uploads = deployment.query(&format!("SELECT * FROM uploads(client_id='{client}', flow_id='{flow}')"))?;
        let row = uploads.first().context("no upload row")?;
        ensure!(row["uploaded_size"] == content.len(), "upload row: {row}");
        Ok(())
    })
}

fn cancel(stage: &Stage) -> Result<Outcome> {
    with_logs(stage.deployment(Scheme::Https)?, |deployment| {
        deployment.start_server()?;
        deployment.start_agent("client.config.yaml")?;
        let client = deployment.wait_for_client()?;
        let definition = "name: Custom.Test.Slow\\nsources:\\n- query: SELECT _value AS N, sleep(time=1) AS S FROM range(end=600)\\n";
        deployment.query(&format!("SELECT artifact_set(definition=\"{definition}\") FROM scope()"))?;
        let flow = deployment.collect(&client, "Custom.Test.Slow", "dict()")?;
        deployment.wait_for_flow(&client, &flow, "IN_PROGRESS")?;
        deployment.query(&format!("SELECT cancel_flow(client_id='{client}', flow_id='{flow}') FROM scope()"))?;
        let record = deployment.wait_for_flow(&client, &flow, "ERROR")?;
        ensure!(record["status"].as_str().is_some_and(|status| status.starts_with("Cancelled by")), "status: {record}");
        wait_for("the agent to report the end", Duration::from_secs(30), || {
            let rows = deployment.query(&format!("SELECT * FROM flow_logs(client_id='{client}', flow_id='{flow}')"))?;
            Ok(rows
                .iter()
                .any(|row| row["message"].as_str().is_some_and(|text| text.contains("Cancelled all in-flight queries")))
                .then_some(()))
        })
    })
}
