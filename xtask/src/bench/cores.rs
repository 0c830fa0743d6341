//! Which core does what: a server that is measured "per core" has one to itself, and who loads it has another.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::table::number;

/// Two cores of this machine; the same one twice if it has no more.
#[derive(Clone, Copy)]
pub(super) struct Cores {
    pub(super) server: usize,
    pub(super) load: usize,
}

impl Cores {
    pub(super) fn of_machine() -> Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let server = cores.next().context("no core to run on")?;
        Ok(Self { server, load: cores.next().unwrap_or(server) })
    }
}

/// Runs `work` on one core, with the threads and processes that it starts.
pub(super) fn on<T>(core: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None)?;
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only)?;
    let done = work();
    sched_setaffinity(None, &before)?;
    done
}

/// What a process has used so far, and holds now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// Of all its threads, those that ended too.
    pub(super) cpu: Duration,
    /// Resident memory in bytes.
    pub(super) resident: f64,
    pub(super) threads: u64,
}

impl Usage {
    pub(super) fn of(process: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat has another form")?;
        let fields: Vec<u64> = rest.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect();
        let field = |number: usize| fields.get(number - 3).copied().context("/proc/PID/stat has another form");
        // Times are in hundredths of a second on every Linux.
        let cpu = Duration::from_millis((field(14)? + field(15)?) * 10);
        Ok(Self { cpu, resident: number(field(24)?) * 4096.0, threads: field(20)? })
    }
}
