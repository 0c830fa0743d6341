//! A running server under load: enrolments, packets of rows, waiting readers and their return after a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::cores::{Cores, Usage, on};
use super::fleet::{Dialer, Line, Times};
use super::keys;
use super::machine::Limits;
use super::table::{Table, number};
use crate::deployment::{Deployment, Programs, Scheme};
use crate::load::{Agent, Collection, Server};

/// Connections that are set up at one time.
const ARRIVING: usize = 64;

/// How much is done.
pub(super) struct Scale {
    /// Agents that enrol and wait.
    agents: usize,
    /// Connections that send rows.
    senders: usize,
    /// Packets of each in a round.
    small: usize,
    large: usize,
    rounds: usize,
    /// How long waiting readers are watched.
    watch: Duration,
}

impl Scale {
    pub(super) fn new(short: bool, agents: Option<usize>) -> Self {
        if short {
            let agents = agents.unwrap_or(60);
            return Self { agents, senders: 20.min(agents), small: 20, large: 5, rounds: 1, watch: Duration::from_secs(2) };
        }
        let agents = agents.unwrap_or(3000);
        Self { agents, senders: 200.min(agents), small: 400, large: 80, rounds: 5, watch: Duration::from_secs(20) }
    }
}

pub(super) fn measure(programs: &Programs, limits: &Limits, scale: &Scale, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Readers must stay while they are counted; connections are not what is to be slowed down here.
    let changes = json!({
        "Client": { "max_poll": 600 },
        "Frontend": { "resources": { "connections_per_second": 1000, "expected_clients": 30_000, "max_upload_size": 104_857_600 } },
    });
    let mut deployment = Deployment::create_with(programs, folder.path(), Scheme::Https, &changes)?.quiet();
    let cores = Cores::of_machine()?;
    let server = Server::of(&deployment)?;
    let outcome = on(cores.load, || {
        let agents = agents(&server, scale.agents)?;
        start(&mut deployment, cores)?;
        thread::sleep(Duration::from_secs(3));
        let idle = Usage::of(deployment.server()?.id())?;
        table.add("frontend: resident memory, nobody there", idle.resident / MIB, "MiB").at_most(30.0);
        // Agents go on while this thread waits for the server to end.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let dialer = Dialer::to(&server)?;
        let members = runtime.block_on(enrol(&dialer, agents, &mut deployment, table))?;
        let members = runtime.block_on(ingest(members, &mut deployment, limits, scale, table))?;
        let packets = runtime.block_on(settle(&dialer, members))?;
        deployment.server()?.stop()?;
        start(&mut deployment, cores)?;
        runtime.block_on(readers(&dialer, packets, &mut deployment, cores, scale, table))
    });
    outcome.and_then(|()| deployment.stop()).with_context(|| deployment.logs())
}

const MIB: f64 = 1024.0 * 1024.0;

fn start(deployment: &mut Deployment, cores: Cores) -> Result<()> {
    on(cores.server, || deployment.start_server().map(drop))
}

/// An agent and its connection.
struct Member {
    agent: Agent,
    line: Line,
    collection: Collection,
    next: u64,
}

fn agents(server: &Server, count: usize) -> Result<Vec<(Agent, Bytes)>> {
    let keys = keys::many(count)?;
    keys.into_iter()
        .map(|key| {
            let agent = Agent::with_key(server, key)?;
            let request = agent.certificate_request()?;
            Ok((agent, request))
        })
        .collect()
}

async fn enrol(dialer: &Dialer, agents: Vec<(Agent, Bytes)>, deployment: &mut Deployment, table: &mut Table) -> Result<Vec<Member>> {
    let process = deployment.server()?.id();
    let count = number(agents.len());
    let (before, started) = (Usage::of(process)?, Instant::now());
    let arriving = Arc::new(Semaphore::new(ARRIVING));
    let mut tasks = JoinSet::new();
    for (at, (agent, request)) in agents.into_iter().enumerate() {
        let (dialer, arriving) = (dialer.clone(), arriving.clone());
        tasks.spawn(async move {
            let _turn = arriving.acquire_owned().await?;
            let mut line = dialer.connect(at).await?;
            let answer = line.post("control", &request).await?;
            ensure!(answer.status == 406, "the enrolment was answered with {}", answer.status);
            Ok((agent, line))
        });
    }
    let enrolled = all(tasks).await?;
    let time = started.elapsed();
    let cpu = Usage::of(process)?.cpu.saturating_sub(before.cpu);
    let note = format!("{:.0} µs of CPU each", cpu.as_secs_f64() * 1e6 / count);
    table.add("frontend: enrolments with fresh TLS, one core", count / time.as_secs_f64(), "/s").at_least(500.0).note(note);
    let mut tasks = JoinSet::new();
    for (agent, mut line) in enrolled {
        tasks.spawn(async move {
            for _ in 0..50 {
                let request = agent.seal(&[])?;
                let answer = line.post("reader", &request).await?;
                ensure!(answer.status == 200, "/reader answered {}", answer.status);
                if let Some(collection) = agent.first_collection(answer.body.into())? {
                    return Ok(Member { agent, line, collection, next: 0 });
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            bail!("an agent got no collection")
        });
    }
    all(tasks).await
}

async fn all<T: 'static>(mut tasks: JoinSet<Result<T>>) -> Result<Vec<T>> {
    let mut done = Vec::with_capacity(tasks.len());
    while let Some(outcome) = tasks.join_next().await {
        done.push(outcome??);
    }
    Ok(done)
}

/// What a number of rounds came to.
#[derive(Default)]
struct Sent {
    /// The best round: what else runs on the machine only slows one down.
    rate: f64,
    packets: usize,
    bytes: usize,
    rows: usize,
    time: Duration,
    cpu: Duration,
    times: Times,
}

async fn ingest(
    mut members: Vec<Member>,
    deployment: &mut Deployment,
    limits: &Limits,
    scale: &Scale,
    table: &mut Table,
) -> Result<Vec<Member>> {
    let process = deployment.server()?.id();
    let rest = members.split_off(scale.senders.min(members.len()));
    let mut best = Sent::default();
    let (after, small) = rounds(members, process, scale.rounds, scale.small, 4).await?;
    best.merge(small);
    let name = format!("ingest: packets of 4 rows, {} TLS connections, one core", scale.senders);
    let note = format!(
        "{} bytes each, {:.0} µs of server CPU, {:.1} × the syncs, mean {:.0}/s",
        best.bytes / best.packets.max(1),
        best.cpu.as_secs_f64() * 1e6 / number(best.packets),
        best.rate / limits.syncs,
        number(best.packets) / best.time.as_secs_f64(),
    );
    table.add(name, best.rate, "/s").at_least(25_000.0).note(note);
    table.add("ingest: the same per second of the server's CPU", number(best.packets) / best.cpu.as_secs_f64(), "/s");
    table.add("ingest: the same, 99 % answered within", best.times.quantile(0.99).as_secs_f64() * 1e3, "ms").at_most(40.0);
    table.add("ingest: the same, half answered within", best.times.quantile(0.5).as_secs_f64() * 1e3, "ms");
    let per_packet = 65_536 / crate::load::row(100_000).len() + 1;
    let (after, large) = rounds(after, process, scale.rounds, scale.large, u64::try_from(per_packet)?).await?;
    let each = number(large.rows) / number(large.packets);
    let (wall, used) = (each * large.rate / 1e6, number(large.rows) / large.cpu.as_secs_f64() / 1e6);
    let note = format!(
        "{per_packet} rows, {} bytes sealed, {used:.0} MB per second of CPU, {:.2} × the copies, p99 {:.0} ms",
        large.bytes / large.packets.max(1),
        wall * 1e6 / limits.copied,
        { large.times }.quantile(0.99).as_secs_f64() * 1e3,
    );
    table.add("ingest: rows in packets of 64 KiB of them, one core", wall, "MB/s").at_least(600.0).note(note);
    members = after;
    members.extend(rest);
    Ok(members)
}

impl Sent {
    fn merge(&mut self, other: Self) {
        self.rate = self.rate.max(other.rate);
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.rows += other.rows;
        self.time += other.time;
        self.cpu += other.cpu;
        self.times.merge(other.times);
    }
}

/// Rounds in which each member posts packets that were sealed before, each after the receipt for the one before.
async fn rounds(mut members: Vec<Member>, process: u32, rounds: usize, packets: usize, rows: u64) -> Result<(Vec<Member>, Sent)> {
    let mut total = Sent::default();
    for _ in 0..rounds {
        let mut ready = Vec::new();
        let mut sent = Sent::default();
        for mut member in members {
            let mut sealed = Vec::with_capacity(packets);
            for _ in 0..packets {
                sealed.push(member.agent.compressed_rows(&member.collection, member.next, rows)?);
                sent.rows += (member.next..member.next + rows).map(|number| crate::load::row(number).len()).sum::<usize>();
                member.next += rows;
            }
            sent.bytes += sealed.iter().map(Bytes::len).sum::<usize>();
            sent.packets += sealed.len();
            ready.push((member, sealed));
        }
        let (before, started) = (Usage::of(process)?, Instant::now());
        let mut tasks = JoinSet::new();
        for (mut member, sealed) in ready {
            tasks.spawn(async move {
                let mut times = Times::default();
                let mut last = None;
                for packet in &sealed {
                    let since = Instant::now();
                    let answer = member.line.post("control", packet).await?;
                    times.add(since);
                    ensure!(answer.status == 200 && !answer.body.is_empty(), "rows were answered with {} and no receipt", answer.status);
                    last = Some(answer);
                }
                Ok((member, times, last))
            });
        }
        members = Vec::new();
        let done = all(tasks).await?;
        sent.time = started.elapsed();
        sent.cpu = Usage::of(process)?.cpu.saturating_sub(before.cpu);
        for (member, times, last) in done {
            let last = last.context("nothing was sent")?;
            ensure!(member.agent.is_receipt(&last)?, "an answer is no receipt");
            sent.times.merge(times);
            members.push(member);
        }
        sent.rate = number(sent.packets) / sent.time.as_secs_f64();
        eprintln!("bench: a round of {rows} rows a packet: {:.0}/s, {:.1} s of CPU", sent.rate, sent.cpu.as_secs_f64());
        total.merge(sent);
    }
    Ok((members, total))
}

/// Ends the first collection of every agent, so that the server has nothing more to say to it. Returns agents with the packets they poll with.
async fn settle(dialer: &Dialer, members: Vec<Member>) -> Result<Vec<Agent>> {
    let arriving = Arc::new(Semaphore::new(ARRIVING));
    let mut tasks = JoinSet::new();
    for (at, Member { agent, collection, .. }) in members.into_iter().enumerate() {
        let (dialer, arriving) = (dialer.clone(), arriving.clone());
        tasks.spawn(async move {
            let _turn = arriving.acquire_owned().await?;
            // The first connection may have been idle for longer than the server allows.
            let mut line = dialer.connect(at).await?;
            let packet = agent.completion(&collection)?;
            let answer = line.post("control", &packet).await?;
            ensure!(agent.is_receipt(&answer)?, "a completion was answered with {}", answer.status);
            Ok(agent)
        });
    }
    all(tasks).await
}

/// What the readers have to tell.
#[derive(Default)]
struct Tally {
    waiting: AtomicUsize,
    answered: AtomicUsize,
    /// Connections and polls that failed while a server was there.
    errors: AtomicUsize,
    up: std::sync::atomic::AtomicBool,
}

async fn readers(
    dialer: &Dialer,
    agents: Vec<Agent>,
    deployment: &mut Deployment,
    cores: Cores,
    scale: &Scale,
    table: &mut Table,
) -> Result<()> {
    let count = agents.len();
    let before = Usage::of(deployment.server()?.id())?;
    let tally = Arc::new(Tally::default());
    tally.up.store(true, Ordering::SeqCst);
    let arriving = Arc::new(Semaphore::new(ARRIVING));
    let mut tasks = JoinSet::new();
    for (at, agent) in agents.into_iter().enumerate() {
        tasks.spawn(poll_forever(dialer.clone(), agent, at, tally.clone(), arriving.clone()));
    }
    wait_for_all(&tally, count).await?;
    ensure!(tally.errors.load(Ordering::SeqCst) == 0, "{} readers failed to connect", tally.errors.load(Ordering::SeqCst));
    tokio::time::sleep(scale.watch.min(Duration::from_secs(12))).await;
    let (settled, since) = (Usage::of(deployment.server()?.id())?, Instant::now());
    tokio::time::sleep(scale.watch).await;
    let after = Usage::of(deployment.server()?.id())?;
    let polled = tally.answered.load(Ordering::SeqCst);
    let each = (after.resident - before.resident) / number(count) / 1024.0;
    let note = format!("{count} readers, {} threads, {polled} polls ended", after.threads);
    table.add("readers: resident memory of the server, each", each, "KiB").at_most(30.0).note(note);
    let cpu = after.cpu.saturating_sub(settled.cpu).as_secs_f64() * 1e6 / number(count) / since.elapsed().as_secs_f64();
    table.add("readers: CPU of the server, each, in a second", cpu, "µs").at_most(3.0);
    tally.up.store(false, Ordering::SeqCst);
    deployment.server()?.stop()?;
    ensure!(tally.waiting.load(Ordering::SeqCst) == 0 || wait_for_none(&tally).await, "readers wait at a server that ended");
    on(cores.server, || deployment.start_server().map(drop))?;
    let since = Instant::now();
    tally.up.store(true, Ordering::SeqCst);
    wait_for_all(&tally, count).await?;
    let note = format!("{} errors on the way", tally.errors.load(Ordering::SeqCst));
    table.add(format!("readers: all {count} back after a restart"), since.elapsed().as_secs_f64(), "s").at_most(10.0).note(note);
    table.add("readers: errors on the way back", number(tally.errors.load(Ordering::SeqCst)), "").at_most(0.0);
    let again = Usage::of(deployment.server()?.id())?;
    table.add("readers: resident memory after that, each", (again.resident - before.resident) / number(count) / 1024.0, "KiB");
    tasks.shutdown().await;
    Ok(())
}

async fn wait_for_all(tally: &Tally, count: usize) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(90);
    while tally.waiting.load(Ordering::SeqCst) < count {
        ensure!(
            Instant::now() < deadline,
            "{} of {count} readers wait, {} errors",
            tally.waiting.load(Ordering::SeqCst),
            tally.errors.load(Ordering::SeqCst)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn wait_for_none(tally: &Tally) -> bool {
    for _ in 0..500 {
        if tally.waiting.load(Ordering::SeqCst) == 0 {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

/// Polls as an agent does: at once when a poll ends, and a little later when nobody is there.
async fn poll_forever(dialer: Dialer, agent: Agent, at: usize, tally: Arc<Tally>, arriving: Arc<Semaphore>) -> Result<()> {
    let mut first = true;
    loop {
        let turn = if first { Some(arriving.acquire().await?) } else { None };
        let ended = async {
            let mut line = dialer.connect(at).await?;
            let packet = agent.seal(&[])?;
            let waiting = line.wait(&packet).await?;
            tally.waiting.fetch_add(1, Ordering::SeqCst);
            drop(turn);
            let answer = waiting.answer().await;
            tally.waiting.fetch_sub(1, Ordering::SeqCst);
            tally.answered.fetch_add(1, Ordering::SeqCst);
            // The server ends the connection with its last answer when it drains.
            answer.map(drop)
        };
        let ended: Result<()> = ended.await;
        if ended.is_err() && tally.up.load(Ordering::SeqCst) {
            tally.errors.fetch_add(1, Ordering::SeqCst);
        }
        first = false;
        // Spread over half a second, as back-off does.
        tokio::time::sleep(Duration::from_millis(100 + u64::try_from(at % 500)?)).await;
    }
}
