//! The budget of a query: rows read, bytes held, time. What goes beyond stops the query.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cancel::{CancelToken, StopReason};

/// How much a query may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Rows read from all sources together.
    pub rows: u64,
    /// Bytes held at one time in lists, groups, sorts and kept results, by estimate.
    pub bytes: u64,
    /// Bytes that one `ORDER BY`, `GROUP BY` or kept result holds before it goes on on disk, where the host program has one.
    pub spill: u64,
    /// The percentage of one processor that the query may use. When it has used more, it waits.
    pub cpu: Option<u32>,
    /// Wall time, by the query's clock.
    pub time: Option<Duration>,
    /// The longest string that operators and built-ins make.
    pub string: u64,
    /// Threads of workers at one time.
    pub threads: u64,
}

impl Default for Budget {
    /// No limit of rows, time and processor; 1 GiB, of which 64 MiB in one place; strings up to 100 000 000 bytes as stock engines have it; 128 threads.
    fn default() -> Self {
        Self { rows: u64::MAX, bytes: 1 << 30, spill: 64 << 20, cpu: None, time: None, string: 100_000_000, threads: 128 }
    }
}

/// What a query has used so far, shared by all its threads.
#[derive(Debug)]
pub(crate) struct Meter {
    budget: Budget,
    rows: AtomicU64,
    bytes: AtomicU64,
    threads: AtomicU64,
    /// Nanoseconds of processor time, as far as the threads have told.
    cpu: AtomicU64,
}

thread_local! {
    /// What this thread had used when it last told a meter.
    static TOLD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

impl Meter {
    pub(crate) fn new(budget: Budget) -> Arc<Self> {
        Arc::new(Self { budget, rows: AtomicU64::new(0), bytes: AtomicU64::new(0), threads: AtomicU64::new(0), cpu: AtomicU64::new(0) })
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// Counts one row read.
    pub(crate) fn count_row(&self, cancel: &CancelToken) {
        if self.rows.fetch_add(1, Ordering::Relaxed) >= self.budget.rows {
            cancel.stop(StopReason::Rows(self.budget.rows));
        }
    }

    /// Counts what this thread has used since it last told, `elapsed` after the start of the query. How long it must wait to stay within its share.
    pub(crate) fn throttle(&self, thread_cpu: Duration, elapsed: Duration) -> Duration {
        // What was used before a thread came to this query is not the query's: a step that is too long is not counted.
        const STEP: Duration = Duration::from_secs(1);
        let Some(percent) = self.budget.cpu.filter(|percent| *percent > 0) else { return Duration::ZERO };
        let before = TOLD.replace(thread_cpu);
        let step = thread_cpu.saturating_sub(before).min(STEP);
        let step = u64::try_from(step.as_nanos()).unwrap_or(0);
        let used = self.cpu.fetch_add(step, Ordering::Relaxed).saturating_add(step);
        let due = Duration::from_nanos(used.saturating_mul(100) / u64::from(percent));
        due.saturating_sub(elapsed)
    }

    /// Whether `bytes` more would fit.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.bytes.load(Ordering::Relaxed).saturating_add(bytes) <= self.budget.bytes
    }

    fn take(&self, bytes: u64) -> bool {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        before.saturating_add(bytes) <= self.budget.bytes
    }

    fn give_back(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes held against the budget until this is dropped.
pub(crate) struct Held {
    meter: Arc<Meter>,
    cancel: CancelToken,
    bytes: u64,
}

impl Held {
    pub(crate) fn none(meter: Arc<Meter>, cancel: CancelToken) -> Self {
        Self { meter, cancel, bytes: 0 }
    }

    /// How much is held here.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Holds no more than `bytes`, of what was held.
    pub(crate) fn reset(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.meter.give_back(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
    }

    /// Holds `bytes` more. False, and the query stops, when that is too much.
    pub(crate) fn add(&mut self, bytes: u64) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.meter.take(bytes) {
            return true;
        }
        self.cancel.stop(StopReason::Bytes(self.meter.budget.bytes));
        false
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.meter.give_back(self.bytes);
    }
}

/// The right to run one thread, until this is dropped.
pub(crate) struct ThreadSlot(Arc<Meter>);

impl ThreadSlot {
    pub(crate) fn take(meter: &Arc<Meter>) -> Option<Self> {
        let limit = meter.budget.threads;
        meter
            .threads
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < limit).then(|| used.saturating_add(1)))
            .ok()
            .map(|_| Self(meter.clone()))
    }
}

impl Drop for ThreadSlot {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_processor_is_kept_by_waiting() {
        let meter = Meter::new(Budget { cpu: Some(25), ..Budget::default() });
        let millis = Duration::from_millis;
        TOLD.set(Duration::ZERO);
        assert_eq!(meter.throttle(millis(100), millis(100)), millis(300));
        assert_eq!(meter.throttle(millis(100), millis(400)), Duration::ZERO);
        assert_eq!(meter.throttle(millis(150), millis(450)), millis(150));
        assert_eq!(Meter::new(Budget::default()).throttle(millis(900), Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn what_goes_beyond_stops_the_query_and_what_is_dropped_comes_back() {
        let cancel = CancelToken::new();
        let meter = Meter::new(Budget { bytes: 100, ..Budget::default() });
        let mut first = Held::none(meter.clone(), cancel.clone());
        assert!(first.add(80));
        drop(first);
        let mut second = Held::none(meter.clone(), cancel.clone());
        assert!(second.add(90) && !cancel.is_cancelled());
        assert!(!second.add(20));
        assert_eq!(cancel.reason(), Some(StopReason::Bytes(100)));
    }
}
