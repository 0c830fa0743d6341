//! Disks that are full for a while: a small file system of their own, and a file that takes what is left of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use talon_store::conformance::Draw;

use super::{agent, server};
use crate::deployment::{Deployment, Programs, Scheme};
use crate::process::wait_for;

/// A file system in memory; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, with a loud line, where it takes rights that this process lacks.
    fn mount(folder: &Path, megabytes: u64) -> Result<Option<Self>> {
        std::fs::create_dir_all(folder)?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]).arg(folder).output();
        if mounted.is_ok_and(|mounted| mounted.status.success()) {
            return Ok(Some(Self(folder.to_owned())));
        }
        eprintln!("SKIPPED: a small file system cannot be mounted here, so no disk becomes full");
        Ok(None)
    }

    fn free(&self) -> Result<u64> {
        let found = rustix::fs::statvfs(&self.0)?;
        Ok(found.f_bavail * found.f_frsize)
    }

    /// Takes all but `left` bytes.
    fn fill(&self, left: u64) -> Result<()> {
        use std::io::Write as _;
        let mut ballast = std::fs::File::create(self.0.join("ballast"))?;
        let piece = vec![0x5a; 64 << 10];
        while self.free()? > left {
            let most = usize::try_from(self.free()?.saturating_sub(left))?.min(piece.len());
            if ballast.write_all(&piece[..most]).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.join("ballast"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub(super) fn of_the_server(programs: &Programs, seed: u64, time: Duration) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(&folder.path().canonicalize()?.join("datastore"), 256)? else { return Ok(()) };
    let mut deployment = Deployment::create(programs, folder.path(), Scheme::Http)?;
    let outcome = server_rounds(&mut deployment, &disk, seed, time);
    let outcome = outcome.with_context(|| deployment.logs());
    drop(deployment);
    drop(disk);
    outcome
}

fn server_rounds(deployment: &mut Deployment, disk: &SmallDisk, seed: u64, time: Duration) -> Result<()> {
    deployment.start_server()?;
    let mut idle = server::senders(deployment)?;
    let mut draw = Draw::new(seed);
    let end = Instant::now() + time;
    let (mut fills, mut refused, mut taken) = (0, 0, 0);
    while Instant::now() < end && disk.free()? > 80 << 20 {
        let signals = Arc::new(server::Signals::default());
        let threads = server::send(idle, &signals, Duration::from_millis(5));
        thread::sleep(Duration::from_millis(u64::try_from(draw.below(1000))?));
        // Within the reserve that the store leaves, or to the last byte.
        let left = if draw.below(2) == 0 { 0 } else { draw.below(30 << 20) };
        disk.fill(u64::try_from(left)?)?;
        let before = signals.refusals.load(Ordering::SeqCst);
        wait_for("packets to be refused while the disk is full", Duration::from_secs(20), || {
            Ok((signals.refusals.load(Ordering::SeqCst) >= before + 8).then_some(()))
        })?;
        let log = deployment.server()?.log_tail();
        ensure!(log.contains("no space left"), "the server does not say that its disk is full:\n{log}");
        thread::sleep(Duration::from_millis(u64::try_from(draw.below(1500))?));
        let killed = draw.below(3) == 0;
        if killed {
            deployment.server()?.kill()?;
        }
        disk.empty()?;
        if killed {
            deployment.start_server()?;
        }
        let before = signals.receipts.load(Ordering::SeqCst);
        wait_for("packets to be taken when there is space again", Duration::from_secs(20), || {
            Ok((signals.receipts.load(Ordering::SeqCst) >= before + 20).then_some(()))
        })?;
        signals.stop.store(true, Ordering::SeqCst);
        idle = server::ended(threads)?;
        fills += 1;
        refused += signals.refusals.load(Ordering::SeqCst);
        taken += signals.receipts.load(Ordering::SeqCst);
    }
    deployment.stop()?;
    server::compare(deployment, &idle)?;
    println!("{fills} times the server's disk was full: {refused} packets refused, {taken} acknowledged and all there");
    Ok(())
}

pub(super) fn of_the_agent(programs: &Programs, seed: u64, time: Duration) -> Result<()> {
    const ROWS: usize = 3000;
    let folder = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(&folder.path().canonicalize()?.join("agent"), 8)? else { return Ok(()) };
    let mut deployment = agent::create(programs, folder.path())?;
    let outcome = (|| {
        let client = agent::begin(&mut deployment, ROWS, 1)?;
        let mut draw = Draw::new(seed);
        let end = Instant::now() + time;
        let mut fills = 0;
        while Instant::now() < end {
            let flow = deployment.collect(&client, "Custom.Crash.Rows", "dict()")?;
            thread::sleep(Duration::from_millis(u64::try_from(draw.below(2500))?));
            disk.fill(u64::try_from(draw.below(20_000))?)?;
            let without_server = draw.below(2) == 0;
            if without_server {
                deployment.server()?.kill()?;
            }
            thread::sleep(Duration::from_millis(500 + u64::try_from(draw.below(3000))?));
            disk.empty()?;
            if without_server {
                deployment.start_server()?;
            }
            agent::judge(&deployment, &client, &flow, ROWS)
                .with_context(|| format!("a full disk, {}", if without_server { "no server" } else { "a server" }))?;
            // Nobody had to do anything: the next collection comes whole.
            let next = deployment.collect(&client, "Custom.Crash.Rows", "dict()")?;
            ensure!(agent::judge(&deployment, &client, &next, ROWS)?, "a collection after a full disk is lost");
            fills += 1;
        }
        deployment.stop()?;
        println!("{fills} times the agent's disk was full: its rows came once and in order, and the next collection whole");
        Ok(())
    })();
    let outcome = outcome.with_context(|| deployment.logs());
    drop(deployment);
    drop(disk);
    outcome
}
