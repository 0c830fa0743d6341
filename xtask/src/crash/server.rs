//! A server that is killed, or whose disk is full, while agents send rows: what it gave a receipt for is there, once and in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use talon_ids::OrgId;
use talon_store::conformance::Draw;
use talon_store::{Embedded, ObjectName, Options, Reader};

use crate::deployment::{Deployment, Programs, Scheme};
use crate::load::{Agent, Collection, Server, row};

/// Rows in a packet.
const PACKET_ROWS: u64 = 20;
const AGENTS: usize = 4;

/// What one agent sent and what it got a receipt for.
pub(super) struct Sender {
    agent: Agent,
    collection: Collection,
    /// Rows that the server said are durable.
    durable: u64,
}

/// What senders and whoever troubles the server tell each other.
#[derive(Default)]
pub(super) struct Signals {
    /// Senders are to end.
    pub(super) stop: AtomicBool,
    /// Packets with a receipt.
    pub(super) receipts: AtomicU64,
    /// Packets without one.
    pub(super) refusals: AtomicU64,
}

/// New agents of a running server.
pub(super) fn senders(deployment: &Deployment) -> Result<Vec<Sender>> {
    let server = Server::of(deployment)?;
    (0..AGENTS)
        .map(|_| {
            let mut agent = Agent::new(&server)?;
            let collection = agent.enrol()?;
            Ok(Sender { agent, collection, durable: 0 })
        })
        .collect()
}

/// Each sender on its own thread, until told to stop.
pub(super) fn send(senders: Vec<Sender>, signals: &Arc<Signals>, pause: Duration) -> Vec<thread::JoinHandle<Result<Sender>>> {
    let start = |mut sender: Sender| {
        let signals = signals.clone();
        thread::spawn(move || sender.send(&signals, pause).map(|()| sender))
    };
    senders.into_iter().map(start).collect()
}

/// The senders, when they have ended.
pub(super) fn ended(threads: Vec<thread::JoinHandle<Result<Sender>>>) -> Result<Vec<Sender>> {
    threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?).collect()
}

impl Sender {
    /// Sends packets, each until there is a receipt for it.
    fn send(&mut self, signals: &Signals, pause: Duration) -> Result<()> {
        while !signals.stop.load(Ordering::SeqCst) {
            let packet = self.agent.rows(&self.collection, self.durable, PACKET_ROWS)?;
            let taken = match self.agent.post("control", &packet) {
                Ok(answer) if answer.status == 200 => self.agent.is_receipt(&answer)?,
                // Overload, or draining.
                Ok(answer) if matches!(answer.status, 408 | 503) => false,
                Ok(answer) => anyhow::bail!("rows were answered with {}", answer.status),
                Err(_) => false,
            };
            if taken {
                self.durable += PACKET_ROWS;
                signals.receipts.fetch_add(1, Ordering::SeqCst);
            } else {
                signals.refusals.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(20));
            }
            thread::sleep(pause);
        }
        Ok(())
    }
}

pub(super) fn killed(programs: &Programs, seed: u64, time: Duration) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut deployment = Deployment::create(programs, folder.path(), Scheme::Http)?;
    deployment.start_server()?;
    let mut idle = senders(&deployment)?;
    let mut draw = Draw::new(seed);
    let end = Instant::now() + time;
    let mut kills = 0_u64;
    while Instant::now() < end {
        let signals = Arc::new(Signals::default());
        let threads = send(idle, &signals, Duration::ZERO);
        thread::sleep(Duration::from_millis(50 + u64::try_from(draw.below(1500))?));
        deployment.server()?.kill()?;
        kills += 1;
        signals.stop.store(true, Ordering::SeqCst);
        idle = ended(threads)?;
        compare(&deployment, &idle)?;
        deployment.start_server()?;
    }
    let durable: u64 = idle.iter().map(|sender| sender.durable).sum();
    ensure!(durable > 0, "no row was ever acknowledged");
    deployment.stop()?;
    compare(&deployment, &idle)?;
    println!("{kills} kills of the server, {durable} rows acknowledged: all there once, in order");
    Ok(())
}

/// Opens the store of the dead server: each flow has its rows from the first on, and at least those that were acknowledged.
pub(super) fn compare(deployment: &Deployment, senders: &[Sender]) -> Result<()> {
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
