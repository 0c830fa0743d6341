//! Child processes of demo and e2e: a ready line instead of a sleep, logs kept, nothing left behind.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a program may take to print its ready line.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a program may take to end after SIGTERM.
const DRAIN_WITHIN: Duration = Duration::from_secs(20);

/// A running program. Dropping it kills it.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ready_line: String,
}

impl Process {
    /// Starts a program, its stderr appended to `log`, and waits for the first line on its stdout.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        if let Some(folder) = log.parent() {
            fs::create_dir_all(folder)?;
        }
        let stderr = File::options().create(true).append(true).open(log)?;
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn().with_context(|| format!("starting {name}"))?;
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _gone = sender.send(line);
            }
        });
        let mut process = Self { name: name.to_owned(), child, log: log.to_owned(), ready_line: String::new() };
        match lines.recv_timeout(READY_WITHIN) {
            Ok(line) => process.ready_line = line,
            Err(_) => {
                let status = process.child.try_wait()?;
                bail!("{name} printed no ready line (exit: {status:?}); its log:\n{}", process.log_tail());
            }
        }
        Ok(process)
    }

    /// What it is called in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The line that said it was ready.
    pub(crate) fn ready_line(&self) -> &str {
        &self.ready_line
    }

    /// SIGTERM, and the exit status when it has drained.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + DRAIN_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("{} did not end within {} s of SIGTERM; its log:\n{}", self.name, DRAIN_WITHIN.as_secs(), self.log_tail())
    }

    /// SIGKILL: what a crash looks like.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(60)).copied().collect::<Vec<_>>().join("\n")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let raw = i32::try_from(self.child.id())?;
        let pid = Pid::from_raw(raw).context("a running child has a process id")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Calls `probe` until it yields a value, or fails with what it said last.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            return Err(last.unwrap_or_else(|| anyhow::anyhow!("it never happened")))
                .with_context(|| format!("waiting {} s for {what}", limit.as_secs()));
        }
        thread::sleep(Duration::from_millis(100));
    }
}
