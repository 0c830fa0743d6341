//! Kills a process in the middle of its transactions, again and again, and looks at what is left.
//!
//! `TALON_CRASH_SECONDS` says how long (4), `TALON_CRASH_SEED` repeats a run as far as the moments of the kills allow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure ends the run")]

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use talon_store::conformance::{Draw, contents, last, transaction};
use talon_store::{Embedded, Engine, Memory, Options};

const FOLDER: &str = "TALON_CRASH_FOLDER";
const SEED: &str = "TALON_CRASH_SEED";
const SECONDS: &str = "TALON_CRASH_SECONDS";

fn open(folder: &Path) -> Embedded {
    let mut options = Options::default();
    options.segment_bytes = 200_000;
    options.cache_bytes = 8 << 20;
    Embedded::open(folder, options).unwrap()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// What runs in the process that is killed; as an ordinary test it does nothing.
#[test]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let seed = number(SEED).expect("the parent gives a seed");
    let store = open(Path::new(&folder));
    let mut next = last(store.reader()).map_or(0, |last| last + 1);
    let mut waiting = VecDeque::new();
    let mut out = std::io::stdout().lock();
    loop {
        waiting.push_back((next, store.submit(transaction(seed, next))));
        next += 1;
        if waiting.len() > 40 {
            let (number, ticket) = waiting.pop_front().unwrap();
            if ticket.wait().is_ok() {
                writeln!(out, "\nacknowledged {number}").unwrap();
            }
        }
    }
}

fn start(folder: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The last transaction that a child acknowledged before it was killed, after `pause`.
fn run_and_kill(folder: &Path, seed: u64, pause: Duration) -> Option<u64> {
    let mut child = start(folder, seed);
    let out = BufReader::new(child.stdout.take().unwrap());
    let listener = thread::spawn(move || {
        let lines = out.lines().map_while(Result::ok);
        lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok()).max()
    });
    thread::sleep(pause);
    child.kill().unwrap();
    child.wait().unwrap();
    listener.join().unwrap()
}

#[test]
fn a_killed_process_loses_nothing_that_it_acknowledged() {
    if std::env::var(FOLDER).is_ok() {
        return;
    }
    let seed = number(SEED).unwrap_or_else(|| u64::from(std::process::id()));
    let seconds = number(SECONDS).unwrap_or(4);
    println!("seed {seed}, {seconds} s");
    let folder = tempfile::tempdir().unwrap();
    let mut draw = Draw::new(seed);
    let (model, mut next) = (Memory::new(), 0);
    let (mut kills, mut acknowledged) = (0, 0);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end || acknowledged == 0 {
        let acked = run_and_kill(folder.path(), seed, Duration::from_millis(draw.below(400) as u64));
        kills += 1;
        let store = open(folder.path());
        let stored = last(store.reader());
        assert!(stored >= acked, "seed {seed}: {acked:?} was acknowledged, {stored:?} is the last");
        acknowledged = acked.map_or(acknowledged, |acked| acked + 1);
        while stored.is_some_and(|stored| next <= stored) {
            drop(model.submit(transaction(seed, next)).wait());
            next += 1;
        }
        assert_eq!(contents(store.reader()), contents(model.reader()), "seed {seed}, kill {kills}: behind transaction {stored:?}");
        let report = store.check().unwrap();
        assert!(report.is_sound(), "seed {seed}, kill {kills}: {report:?}");
    }
    println!("{kills} kills, {next} transactions, {acknowledged} acknowledged: all there, none half");
}
