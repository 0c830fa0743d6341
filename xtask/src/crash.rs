//! `cargo xtask crash`: kills the store, and then the server, in the middle of their work, again and again, and compares what is left.

use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use talon_ids::OrgId;
use talon_store::conformance::Draw;
use talon_store::{Embedded, ObjectName, Options, Reader};

use crate::deployment::{Deployment, Programs, Scheme};
use crate::load::{Agent, Collection, Server, row};
use crate::workspace_root;

/// Rows in a packet of the server's test.
const PACKET_ROWS: u64 = 20;
const AGENTS: usize = 4;

/// How long, and from which seed.
#[derive(Args, Debug, Clone)]
pub(crate) struct Arguments {
    /// Minutes for each of the two: first the store, then the server.
    #[arg(long, default_value_t = 1)]
    minutes: u64,
    /// Repeats a run, as far as the moments of the kills allow.
    #[arg(long)]
    seed: Option<u64>,
    /// Only the store.
    #[arg(long, conflicts_with = "server_only")]
    store_only: bool,
    /// Only the server.
    #[arg(long)]
    server_only: bool,
}

/// Runs both; fails with the seed when something that was acknowledged is missing, or is there by half.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(|| u64::from(std::process::id()));
    let time = Duration::from_secs(arguments.minutes.saturating_mul(60));
    println!("seed {seed}");
    if !arguments.server_only {
        store(seed, time)?;
    }
    if !arguments.store_only {
        server(seed, time).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

fn store(seed: u64, time: Duration) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .current_dir(workspace_root())
        .args(["test", "--package", "talon-store", "--test", "crash", "--", "--nocapture", "a_killed_process"])
        .env("TALON_CRASH_SECONDS", time.as_secs().to_string())
        .env("TALON_CRASH_SEED", seed.to_string())
        .status()?;
    ensure!(status.success(), "the store lost something: repeat with --seed {seed}");
    Ok(())
}

/// What one agent sent and what it got a receipt for.
struct Sender {
    agent: Agent,
    collection: Collection,
    /// Rows that the server said are durable.
    durable: u64,
}

impl Sender {
    /// Sends packets until one is not answered.
    fn send_until_killed(&mut self) -> Result<()> {
        loop {
            let packet = self.agent.rows(&self.collection, self.durable, PACKET_ROWS)?;
            let Ok(answer) = self.agent.post("control", &packet) else { return Ok(()) };
            match answer.status {
                200 if self.agent.is_receipt(&answer)? => self.durable += PACKET_ROWS,
                // Overload, or draining: the same packet again.
                200 | 408 | 503 => thread::sleep(Duration::from_millis(20)),
                status => anyhow::bail!("rows were answered with {status}"),
            }
        }
    }
}

fn server(seed: u64, time: Duration) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut deployment = Deployment::create(&Programs::build()?, folder.path(), Scheme::Http)?;
    deployment.start_server()?;
    let server = Server::of(&deployment)?;
    let mut senders = Vec::new();
    for _ in 0..AGENTS {
        let mut agent = Agent::new(&server)?;
        let collection = agent.enrol()?;
        senders.push(Sender { agent, collection, durable: 0 });
    }
    let mut draw = Draw::new(seed);
    let end = Instant::now() + time;
    let mut kills = 0_u64;
    while Instant::now() < end {
        let threads: Vec<_> =
            senders.into_iter().map(|mut sender| thread::spawn(move || sender.send_until_killed().map(|()| sender))).collect();
        thread::sleep(Duration::from_millis(50 + u64::try_from(draw.below(1500))?));
        deployment.server()?.kill()?;
        kills += 1;
        senders =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?).collect::<Result<_>>()?;
        compare(&deployment, &senders)?;
        deployment.start_server()?;
    }
    let durable: u64 = senders.iter().map(|sender| sender.durable).sum();
    ensure!(durable > 0, "no row was ever acknowledged");
    deployment.stop()?;
    compare(&deployment, &senders)?;
    println!("{kills} kills of the server, {durable} rows acknowledged: all there once, in order");
    Ok(())
}

/// Opens the store of the dead server: each flow has its rows from the first on, and at least those that were acknowledged.
fn compare(deployment: &Deployment, senders: &[Sender]) -> Result<()> {
    let store = Embedded::open(deployment.file("datastore"), Options::default())?;
    let report = store.check()?;
    ensure!(report.is_sound(), "the store is damaged: {:?}", report.problems);
    let mut stored: BTreeMap<&str, u64> = BTreeMap::new();
    for name in store.objects(&OrgId::root(), &ObjectName::new([""; 0]))? {
        let flow =
            senders.iter().map(|sender| sender.collection.flow.as_str()).find(|flow| name.components().iter().any(|part| part == flow));
        let Some(flow) = flow else { continue };
        let mut rows = String::new();
        for block in store.rows(&OrgId::root(), &name, 0)? {
            rows.push_str(std::str::from_utf8(&block?.1)?);
        }
        if !rows.contains("\"CommandLine\"") {
            continue;
        }
        let mut count = 0;
        for (line, number) in rows.lines().zip(0..) {
            ensure!(line == row(number).trim_end(), "{flow}: row {number} is {line}");
            count = number + 1;
        }
        stored.insert(flow, count);
    }
    for sender in senders {
        let found = stored.get(sender.collection.flow.as_str()).copied().unwrap_or_default();
        ensure!(found >= sender.durable, "{}: {} rows were acknowledged, {found} are stored", sender.collection.flow, sender.durable);
        ensure!(found.is_multiple_of(PACKET_ROWS), "{}: half a packet is stored: {found} rows", sender.collection.flow);
    }
    Ok(())
}
