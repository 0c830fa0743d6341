//! How fast agents may send packets: a bucket of bytes for all of them, and one for each connection.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A bucket that lets a burst through and then a steady flow.
pub(crate) struct Throttle {
    bytes_per_second: u64,
    burst: u64,
    /// When everything that was let through so far is paid for.
    paid: Mutex<Instant>,
}

impl Throttle {
    /// `None` for a rate of 0, which is no limit.
    pub(crate) fn new(bytes_per_second: u64, burst: u64) -> Option<Self> {
        (bytes_per_second > 0).then(|| Self { bytes_per_second, burst, paid: Mutex::new(Instant::now()) })
    }

    /// Takes `bytes` out of the bucket; how long the sender has to wait before it may go on.
    pub(crate) fn spend(&self, bytes: usize, now: Instant) -> Duration {
        let seconds = |bytes: f64| Duration::try_from_secs_f64(bytes / self.bytes_per_second as f64).unwrap_or(Duration::MAX / 4);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(seconds(self.burst as f64)).unwrap_or(now);
        *paid = (*paid).max(earliest) + seconds(bytes as f64).min(Duration::from_secs(3600));
        paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_the_rest_has_its_price() {
        let throttle = Throttle::new(1000, 500).unwrap();
        let start = Instant::now() + Duration::from_secs(60);
        let spend = |bytes, after: u64| throttle.spend(bytes, start + Duration::from_millis(after)).as_millis();
        assert_eq!(spend(500, 0), 0);
        assert_eq!(spend(100, 0), 100);
        assert_eq!(spend(100, 100), 100);
        assert_eq!(spend(0, 200), 0);
        assert_eq!(spend(1500, 10_000), 1000, "what was not used is kept up to the burst only");
        assert!(Throttle::new(0, 500).is_none());
    }
}
