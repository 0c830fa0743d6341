//! Time as a seam: services ask a [`Clock`], never the machine.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Nanoseconds since 1970-01-01 UTC.
    fn now_ns(&self) -> u64;

    /// Microseconds since 1970-01-01 UTC.
    fn now_us(&self) -> u64 {
        self.now_ns() / 1_000
    }

    /// Seconds since 1970-01-01 UTC.
    fn now_s(&self) -> u64 {
        self.now_ns() / 1_000_000_000
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ns(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The UTC day of a moment as `YYYY-MM-DD`, the name of an event table.
pub(crate) fn day(unix_seconds: u64) -> String {
    let (year, month, day) = civil(unix_seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A moment as RFC 3339 in UTC with whole seconds.
pub(crate) fn rfc3339(unix_seconds: u64) -> String {
    let second = unix_seconds % 86_400;
    format!("{}T{:02}:{:02}:{:02}Z", day(unix_seconds), second / 3_600, second / 60 % 60, second % 60)
}

/// Days since 1970-01-01 as year, month, day of the proleptic Gregorian calendar (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days.saturating_add(719_468);
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_follow_the_calendar() {
        for (seconds, text) in
            [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (1_700_000_000, "2023-11-14"), (4_107_542_400, "2100-03-01")]
        {
            assert_eq!(day(seconds), text);
        }
        assert_eq!(rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
    }
}
