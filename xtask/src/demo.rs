//! `cargo xtask demo`: a deployment in `./demo`, one collection from this machine, and the proof of who asked for it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::deployment::{Deployment, Programs, Scheme};
use crate::workspace_root;

/// The artifact that the demo collects.
const ARTIFACT: &str = "Linux.Sys.Pslist";

/// Runs the demo; unless `once`, keeps the deployment up until Ctrl-C.
pub(crate) fn run(once: bool) -> Result<()> {
    let start = Instant::now();
    say("building the server, the agent and the command line");
    let programs = Programs::build()?;

    let folder = workspace_root().join("demo");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("removing the previous demo")?;
    }
    say("making certificates and configuration in ./demo");
    let mut deployment = Deployment::create(&programs, &folder, Scheme::Https)?;

    say("starting the server");
    let ready = deployment.start_server()?.to_owned();
    println!("    {ready}");
    say("starting an agent, waiting until it has enrolled and was interrogated");
    deployment.start_agent("client.config.yaml")?;
    let client = deployment.wait_for_client()?;
    show(
        &deployment,
        "SELECT client_id, os_info.hostname AS hostname, os_info.system AS system, os_info.release AS release FROM clients()",
    )?;

    say(&format!("collecting {ARTIFACT} from it"));
    let flow = deployment.collect(&client, ARTIFACT, "dict()")?;
    let finished = deployment.wait_for_flow(&client, &flow, "FINISHED")?;
    println!("    flow {flow} is {}: {} rows", finished["state"].as_str().unwrap_or("?"), finished["total_collected_rows"]);
    show(
        &deployment,
        &format!(
            "SELECT Pid, Ppid, Name, Username FROM source(client_id='{client}', flow_id='{flow}', artifact='{ARTIFACT}') WHERE Name =~ '^talon'"
        ),
    )?;

    say("the audit log: who did what, before it was done");
    let record = audit(&deployment, &flow)?;

    say("proving the record offline, with nothing but the proof file and the log's public key");
    prove(&deployment, record)?;

    addresses(&deployment, start.elapsed());
    if once {
        return deployment.stop();
    }
    println!("\nThe deployment stays up. Ctrl-C ends it.");
    wait_for_interrupt(&mut deployment)
}

fn say(text: &str) {
    println!("==> {text}");
}

fn show(deployment: &Deployment, vql: &str) -> Result<()> {
    println!("    talon -a demo/api.config.yaml query \"{vql}\"");
    let table = deployment.talon(&["-a", &deployment.path("api.config.yaml"), "query", vql, "--format", "text"])?;
    for line in table.lines() {
        println!("    {line}");
    }
    Ok(())
}

/// Prints the audit records and returns the index of the one that scheduled `flow`.
fn audit(deployment: &Deployment, flow: &str) -> Result<u64> {
    let text = deployment.talon(&["-c", &deployment.path("server.config.yaml"), "audit", "tail", "--format", "jsonl"])?;
    let (mut found, mut queries) = (None, 0);
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).with_context(|| format!("not an audit record: {line}"))?;
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        if text("operation") == "api_query" {
            queries += 1;
        } else {
            println!("    #{} {} {} {}", record["index"], text("time"), text("principal"), text("operation"));
        }
        if record["details"]["flow_id"] == flow {
            found = record["index"].as_u64();
        }
    }
    println!("    and {queries} queries, each with its text");
    found.with_context(|| format!("no audit record names flow {flow}"))
}

fn prove(deployment: &Deployment, index: u64) -> Result<()> {
    let server = deployment.path("server.config.yaml");
    let proof = deployment.path("record.proof");
    let key = deployment.path("datastore/audit.pub");
    let index = index.to_string();
    deployment.talon(&["-c", &server, "audit", "prove", &index, "--output", &proof])?;
    let shown = [
        ("talon -c demo/server.config.yaml audit verify", vec!["-c", &server, "audit", "verify"]),
        (
            "talon audit verify --proof demo/record.proof --key demo/datastore/audit.pub",
            vec!["audit", "verify", "--proof", &proof, "--key", &key],
        ),
    ];
    for (line, arguments) in shown {
        println!("    {line}");
        for answer in deployment.talon(&arguments)?.lines() {
            println!("    {answer}");
        }
    }
    Ok(())
}

fn addresses(deployment: &Deployment, took: Duration) {
    say("where everything is");
    println!("    frontend   {}", deployment.frontend_url);
    println!("    gRPC API   {} (key: demo/api.config.yaml)", deployment.api_address);
    println!("    audit log  demo/datastore/audit");
    println!("    logs       demo/logs");
    println!("    done in {:.1} s", took.as_secs_f64());
}

/// Waits for Ctrl-C or SIGTERM, then lets the programs drain; Ctrl-C reaches them as well.
fn wait_for_interrupt(deployment: &mut Deployment) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    })?;
    deployment.stop()
}
