//! `cargo xtask bench`: runs the benches and prints each result beside the limit of this machine that it can be compared with, measured in the same run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::deployment::{Deployment, Programs, Scheme};
use crate::load::{Agent, Collection, Server};
use crate::workspace_root;

const SYNC: &str = "machine/append 4 KiB and fsync";
const DECRYPTION: &str = "machine/RSA-2048 OAEP decryption";
/// New sessions that are measured: fewer than the burst that the server's budget for them allows.
const SESSIONS: usize = 480;
const COPY: &str = "machine/copy 64 MiB of memory";

/// What to measure.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Area {
    /// Transactions and blocks of the embedded store.
    Store,
    /// Opening and sealing of packets.
    Wire,
    /// A running server that agents send rows to.
    Ingest,
}

/// Which areas, and how thoroughly.
#[derive(Args, Debug, Clone)]
pub(crate) struct Arguments {
    /// One area; all of them without it.
    area: Option<Area>,
    /// Fewer repetitions: the numbers are good for a first look only.
    #[arg(long)]
    short: bool,
    /// A folder with the programs to measure, instead of building them.
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// One line of the table.
struct Measure {
    name: String,
    /// Things a second; bytes when `bytes`.
    rate: f64,
    bytes: bool,
}

/// Runs the benches and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let wanted = |area| arguments.area.is_none_or(|only| only == area);
    let mut benches = vec![("xtask", "machine")];
    benches.extend(wanted(Area::Store).then_some(("talon-store", "commit")));
    benches.extend(wanted(Area::Wire).then_some(("talon-wire", "open")));
    let mut measures = criterion(&benches, arguments.short)?;
    if wanted(Area::Ingest) {
        let programs = arguments.programs.as_deref().map_or_else(Programs::optimized, |folder| Ok(Programs::in_folder(folder)))?;
        measures.extend(ingest(&programs, arguments.short)?);
    }
    print(&measures)
}

fn criterion(benches: &[(&str, &str)], short: bool) -> Result<Vec<Measure>> {
    let mut measures = Vec::new();
    let target = cargo_metadata::MetadataCommand::new().current_dir(workspace_root()).no_deps().exec()?.target_directory;
    for (package, bench) in benches {
        let started = SystemTime::now();
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(workspace_root()).args(["bench", "--package", package, "--bench", bench]);
        if *package == env!("CARGO_PKG_NAME") {
            command.args(["--features", "lab"]);
        }
        if short {
            command.args(["--", "--quick"]);
        }
        ensure!(command.status()?.success(), "the bench {bench} of {package} failed");
        collect(&target.join("criterion").into_std_path_buf(), started, &mut measures)?;
    }
    Ok(measures)
}

/// Reads what criterion wrote since `started`.
fn collect(folder: &Path, started: SystemTime, measures: &mut Vec<Measure>) -> Result<()> {
    let read = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?) };
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let about = path.join("benchmark.json");
        if path.file_name().is_none_or(|name| name != "new") {
            collect(&path, started, measures)?;
        } else if about.metadata().and_then(|meta| meta.modified()).is_ok_and(|modified| modified >= started) {
            let (about, estimates) = (read(about)?, read(path.join("estimates.json"))?);
            let nanos = estimates["mean"]["point_estimate"].as_f64().context("an estimate without a mean")?;
            let bytes = about["throughput"]["Bytes"].as_f64();
            let rate = bytes.or(about["throughput"]["Elements"].as_f64()).unwrap_or(1.0) * 1e9 / nanos;
            let name = about["full_id"].as_str().context("a bench without a name")?.to_owned();
            measures.retain(|measure| measure.name != name);
            measures.push(Measure { name, rate, bytes: bytes.is_some() });
        }
    }
    Ok(())
}

/// The limit that a measure is compared with.
fn limit_of(name: &str) -> Option<&'static str> {
    match name {
        _ if name.starts_with("machine/") => None,
        _ if name.starts_with("transaction/") => Some(SYNC),
        "ingest/packets of 100 rows" | "ingest/packets of 1 row" => Some(SYNC),
        "open/new session" | "ingest/new sessions" => Some(DECRYPTION),
        _ if name.starts_with("bulk/") || name == "ingest/bytes of rows" => Some(COPY),
        _ => None,
    }
}

fn print(measures: &[Measure]) -> Result<()> {
    let rates: BTreeMap<&str, f64> = measures.iter().map(|measure| (measure.name.as_str(), measure.rate)).collect();
    let width = measures.iter().map(|measure| measure.name.len()).max().unwrap_or_default();
    println!("\n| {:width$} | per second | of the machine's limit |", "measure");
    println!("|{:-<1$}|-----------:|---|", "", width + 2);
    for measure in measures {
        let rate = if measure.bytes { format!("{:.0} MB", measure.rate / 1e6) } else { format!("{:.0}", measure.rate) };
        let share = match limit_of(&measure.name) {
            Some(limit) => {
                let share = measure.rate / rates.get(limit).with_context(|| format!("{limit} was not measured"))?;
                format!("{share:.2} × {}", limit.trim_start_matches("machine/"))
            }
            None => String::new(),
        };
        println!("| {:width$} | {rate:>10} | {share} |", measure.name);
    }
    Ok(())
}

/// One agent, and packets that were sealed before the clock runs.
struct Sender {
    agent: Agent,
    collection: Collection,
    next: u64,
}

fn ingest(programs: &Programs, short: bool) -> Result<Vec<Measure>> {
    let (agents, packets) = if short { (4, 50) } else { (16, 250) };
    let folder = tempfile::tempdir()?;
    let mut deployment = Deployment::create(programs, folder.path(), Scheme::Http)?;
    deployment.start_server()?;
    let server = Server::of(&deployment)?;
    let mut senders = Vec::new();
    for _ in 0..agents {
        let mut agent = Agent::new(&server)?;
        let collection = agent.enrol()?;
        senders.push(Sender { agent, collection, next: 0 });
    }
    let mut measures = Vec::new();
    for (name, rows) in [("ingest/packets of 100 rows", 100), ("ingest/packets of 1 row", 1)] {
        let (after, bytes, time) = send(senders, packets, rows)?;
        senders = after;
        let sent = f64::from(u32::try_from(packets * agents)?);
        measures.push(Measure { name: name.into(), rate: sent / time.as_secs_f64(), bytes: false });
        if rows > 1 {
            measures.push(Measure { name: "ingest/rows".into(), rate: sent * f64::from(rows) / time.as_secs_f64(), bytes: false });
            measures.push(Measure { name: "ingest/bytes of rows".into(), rate: bytes / time.as_secs_f64(), bytes: true });
        }
    }
    let sessions = SESSIONS / agents;
    let started = Instant::now();
    let threads: Vec<_> = senders.into_iter().map(|sender| thread::spawn(move || open_sessions(sender, sessions))).collect();
    for thread in threads {
        joined(thread.join())?;
    }
    let rate = f64::from(u32::try_from(sessions * agents)?) / started.elapsed().as_secs_f64();
    measures.push(Measure { name: "ingest/new sessions".into(), rate, bytes: false });
    deployment.stop()?;
    Ok(measures)
}

/// All senders at once; returns the bytes of their rows and the time.
fn send(senders: Vec<Sender>, packets: usize, rows: u32) -> Result<(Vec<Sender>, f64, Duration)> {
    let mut ready = Vec::new();
    let mut bytes = 0_usize;
    for mut sender in senders {
        let mut sealed = Vec::new();
        for _ in 0..packets {
            sealed.push(sender.agent.rows(&sender.collection, sender.next, u64::from(rows))?);
            bytes += (sender.next..sender.next + u64::from(rows)).map(|number| crate::load::row(number).len()).sum::<usize>();
            sender.next += u64::from(rows);
        }
        ready.push((sender, sealed));
    }
    let started = Instant::now();
    let threads: Vec<_> = ready
        .into_iter()
        .map(|(mut sender, sealed)| {
            thread::spawn(move || -> Result<Sender> {
                for packet in sealed {
                    let answer = sender.agent.post("control", &packet)?;
                    ensure!(sender.agent.is_receipt(&answer)?, "rows were answered with {} and no receipt", answer.status);
                }
                Ok(sender)
            })
        })
        .collect();
    let senders = threads.into_iter().map(|thread| joined(thread.join())).collect::<Result<_>>()?;
    Ok((senders, f64::from(u32::try_from(bytes)?), started.elapsed()))
}

/// Each packet is the first of a session: the server decrypts a key and verifies a signature.
fn open_sessions(mut sender: Sender, count: usize) -> Result<()> {
    for _ in 0..count {
        sender.agent.new_session()?;
        let packet = sender.agent.rows(&sender.collection, 0, 1)?;
        let answer = sender.agent.post("control", &packet)?;
        ensure!(answer.status == 200, "a new session was answered with {}", answer.status);
    }
    Ok(())
}

fn joined<T>(result: thread::Result<Result<T>>) -> Result<T> {
    result.map_err(|_| anyhow::anyhow!("a sender panicked"))?
}
