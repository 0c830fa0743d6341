//! Where the audit log is copied to: files in the stock format and a syslog server. Each copy has a thread that follows the log, so that a
//! slow or dead receiver holds up nobody; what it missed is in the log and is sent later.

mod files;
mod syslog;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use talon_audit::{Entry, Log};

pub use files::{AuditFileOutlet, FileRules};
pub use syslog::SyslogOutlet;

/// Records handed over at once.
const BATCH: usize = 256;
/// How long a follower waits for a record before it looks after its outlet.
const TICK: Duration = Duration::from_millis(500);
/// The first and the longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Why a copy could not be made. It is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OutletError(String);

impl OutletError {
    fn new(error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self(text)
    }
}

/// A place that gets a copy of each record, in order.
pub trait Outlet: Send {
    /// What it is called in logs and reports.
    fn name(&self) -> &str;

    /// The number of the record that it wants next. After a failure it may be an earlier one again.
    fn position(&self) -> u64;

    /// Takes records over, the first of which is the one it wants next.
    ///
    /// # Errors
    /// When it does not have all of them; [`position`](Self::position) says how far it came.
    fn deliver(&mut self, entries: &[Entry]) -> Result<(), OutletError>;

    /// Looks after connections and files between deliveries.
    ///
    /// # Errors
    /// When something that seemed delivered was not.
    fn tend(&mut self) -> Result<(), OutletError> {
        Ok(())
    }

    /// Records that were delivered without their details, for want of room.
    fn shortened(&self) -> u64 {
        0
    }
}

/// How far a copy is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OutletStatus {
    /// The number of the first record that it does not have.
    pub next: u64,
    /// Records that were delivered without their details, since the start of the server.
    pub shortened: u64,
    /// How often a delivery failed, since the start of the server.
    pub failures: u64,
    /// The last failure, if the copy has not caught up since.
    pub error: Option<String>,
}

/// How long the end of the server waits for followers: one that hangs on a dead receiver is left behind, and the log has what it lacks.
const FAREWELL: Duration = Duration::from_secs(1);

/// The followers of an audit log. They end when this is dropped.
#[derive(Debug)]
pub struct Outlets {
    stopping: Arc<AtomicBool>,
    status: Arc<Mutex<BTreeMap<String, OutletStatus>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Outlets {
    /// Starts a follower for each outlet.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub fn start(log: &Arc<Log>, outlets: Vec<Box<dyn Outlet>>) -> std::io::Result<Self> {
        let mut followers = Self { stopping: Arc::default(), status: Arc::default(), threads: Vec::new() };
        for outlet in outlets {
            let (log, stopping, status) = (Arc::clone(log), Arc::clone(&followers.stopping), Arc::clone(&followers.status));
            let follower = Follower { log, outlet, stopping, status, failures: 0 };
            let thread = std::thread::Builder::new().name("audit outlet".to_owned()).spawn(move || follower.run())?;
            followers.threads.push(thread);
        }
        Ok(followers)
    }

    /// How far each copy is.
    #[must_use]
    pub fn status(&self) -> BTreeMap<String, OutletStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Outlets {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let nap = Duration::from_millis(20);
        let mut waited = Duration::ZERO;
        while waited < FAREWELL && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(nap);
            waited = waited.saturating_add(nap);
        }
    }
}

struct Follower {
    log: Arc<Log>,
    outlet: Box<dyn Outlet>,
    stopping: Arc<AtomicBool>,
    status: Arc<Mutex<BTreeMap<String, OutletStatus>>>,
    failures: u64,
}

impl Follower {
    fn run(mut self) {
        let mut pause = PAUSES.0;
        while !self.stopping.load(Ordering::SeqCst) {
            match self.step() {
                Ok(()) => {
                    if pause > PAUSES.0 {
                        tracing::info!(outlet = self.outlet.name(), "the audit log is being copied again");
                    }
                    pause = PAUSES.0;
                }
                Err(error) => {
                    self.failures = self.failures.saturating_add(1);
                    let behind = self.log.size().saturating_sub(self.outlet.position());
                    tracing::warn!(outlet = self.outlet.name(), behind, %error, "the audit log cannot be copied; it will be tried again");
                    self.report(Some(error.to_string()));
                    self.rest(pause);
                    pause = pause.saturating_mul(2).min(PAUSES.1);
                }
            }
        }
    }

    fn step(&mut self) -> Result<(), OutletError> {
        let position = self.outlet.position();
        if self.log.wait_beyond(position, TICK) > position {
            let entries = self.log.entries(position, BATCH).map_err(|error| OutletError::new(&error))?;
            self.outlet.deliver(&entries)?;
        }
        self.outlet.tend()?;
        self.report(None);
        Ok(())
    }

    fn report(&self, error: Option<String>) {
        let status = OutletStatus { next: self.outlet.position(), shortened: self.outlet.shortened(), failures: self.failures, error };
        self.status.lock().unwrap_or_else(PoisonError::into_inner).insert(self.outlet.name().to_owned(), status);
    }

    /// Waits, but not beyond the end of the server.
    fn rest(&self, pause: Duration) {
        let mut left = pause;
        while !left.is_zero() && !self.stopping.load(Ordering::SeqCst) {
            let nap = left.min(Duration::from_millis(100));
            std::thread::sleep(nap);
            left = left.saturating_sub(nap);
        }
    }
}
