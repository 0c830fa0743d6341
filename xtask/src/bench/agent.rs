//! A running agent: what it costs its host while nothing happens, and while it collects a million rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::cores::Usage;
use super::table::{Table, number};
use crate::deployment::{Deployment, Programs, Scheme};

const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn measure(programs: &Programs, short: bool, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir()?;
    // The stock pace of polls.
    let changes = json!({ "Client": { "max_poll": 60, "max_poll_std": 30 } });
    let mut deployment = Deployment::create_with(programs, folder.path(), Scheme::Https, &changes)?.quiet();
    let outcome = idle_and_busy(&mut deployment, short, table);
    outcome.and_then(|()| deployment.stop()).with_context(|| deployment.logs())
}

fn idle_and_busy(deployment: &mut Deployment, short: bool, table: &mut Table) -> Result<()> {
    deployment.start_server()?;
    let process = deployment.start_agent("client.config.yaml")?.id();
    let client = deployment.wait_for_client()?;
    thread::sleep(Duration::from_secs(if short { 1 } else { 15 }));
    let (before, since) = (Usage::of(process)?, Instant::now());
    thread::sleep(Duration::from_secs(if short { 2 } else { 30 }));
    let after = Usage::of(process)?;
    let share = 100.0 * after.cpu.saturating_sub(before.cpu).as_secs_f64() / since.elapsed().as_secs_f64();
    table.add("agent: resident memory, idle", after.resident / MIB, "MiB").at_most(8.0).note(format!("{} threads", after.threads));
    table.add("agent: CPU, idle", share, "% of a core").at_most(0.1);
    let rows: u64 = if short { 10_000 } else { 1_000_000 };
    let query = "SELECT _value AS Number, format(format='worker-%v', args=_value) AS Name, '/usr/lib/worker --quiet' AS CommandLine";
    let artifact = format!("name: Custom.Bench.Rows\\nsources:\\n- query: {query} FROM range(end={rows})\\n");
    deployment.query(&format!("SELECT artifact_set(definition=\"{artifact}\") FROM scope()"))?;
    let (most, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watcher = {
        let (most, done) = (most.clone(), done.clone());
        thread::spawn(move || {
            while !done.load(Ordering::SeqCst) {
                if let Ok(usage) = Usage::of(process) {
                    most.fetch_max(usage.resident as u64, Ordering::SeqCst);
                }
                thread::sleep(Duration::from_millis(20));
            }
        })
    };
    let (before, since) = (Usage::of(process)?, Instant::now());
    let stored = collect(deployment, &client, rows);
    let time = since.elapsed();
    done.store(true, Ordering::SeqCst);
    watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
    stored?;
    let cpu = Usage::of(process)?.cpu.saturating_sub(before.cpu);
    let note = format!("{rows} rows in {:.1} s, {:.1} s of CPU", time.as_secs_f64(), cpu.as_secs_f64());
    table.add("agent: most resident memory, while it collects", number(most.load(Ordering::SeqCst)) / MIB, "MiB").at_most(24.0).note(note);
    Ok(())
}

/// Collects, and waits until all rows are stored.
fn collect(deployment: &Deployment, client: &str, rows: u64) -> Result<()> {
    let flow = deployment.collect(client, "Custom.Bench.Rows", "dict()")?;
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        let found = deployment.query(&format!("SELECT state, total_collected_rows FROM flows(client_id='{client}', flow_id='{flow}')"))?;
        let record = found.into_iter().next().unwrap_or_default();
        if record["state"] == "FINISHED" {
            ensure!(record["total_collected_rows"].as_u64() == Some(rows), "other rows were collected: {record}");
            return Ok(());
        }
        ensure!(record["state"] != "ERROR" && Instant::now() < deadline, "the collection did not end well: {record}");
        thread::sleep(Duration::from_millis(500));
    }
}
