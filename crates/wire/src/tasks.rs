//! Ids of queued tasks: ordered by time, distinct within a process.

use std::sync::atomic::{AtomicU16, Ordering};

/// Makes task ids: the high bits are the time in nanoseconds, the low 16 bits count.
#[derive(Debug, Default)]
pub struct TaskIds(AtomicU16);

impl TaskIds {
    /// A new id for a task queued at `now_nanos` nanoseconds since 1970.
    #[must_use]
    pub fn next(&self, now_nanos: u64) -> u64 {
        let count = self.0.fetch_add(1, Ordering::Relaxed);
        now_nanos & 0x7fff_ffff_ffff_0000 | u64::from(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ordered_by_time_and_distinct_within_it() {
        let ids = TaskIds::default();
        let (first, second) = (ids.next(1_700_000_000_000_000_000), ids.next(1_700_000_000_000_000_000));
        assert!(second > first);
        assert!(ids.next(1_700_000_000_000_100_000) > second);
        assert_eq!(ids.next(u64::MAX) >> 63, 0, "fits a signed number");
    }
}
