//! A query's share of a processor, kept by letting its threads sleep.

use std::cell::Cell;
use std::time::{Duration, Instant};

use talon_vql::{Clock, Time};

thread_local! {
    /// When this thread was looked at last: time on the wall and on the processor.
    static SEEN: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// A clock for queries with a processor limit. The evaluator looks at the clock every few steps on each of its threads, which is where a thread that was
/// too busy sleeps.
pub(crate) struct ThrottledClock<C> {
    clock: C,
    /// Between 0 and 1, of one processor.
    share: f64,
}

/// Shares are kept over stretches of this length; no thread sleeps longer at once.
const STRETCH: Duration = Duration::from_millis(50);

impl<C: Clock> ThrottledClock<C> {
    /// Limits to `percent` of one processor.
    pub(crate) fn new(clock: C, percent: f32) -> Self {
        Self { clock, share: f64::from(percent / 100.0).clamp(0.01, 1.0) }
    }
}

impl<C: Clock> Clock for ThrottledClock<C> {
    fn now(&self) -> Time {
        self.clock.now()
    }

    fn elapsed(&self) -> Duration {
        if self.share < 1.0 {
            let (now, used) = (Instant::now(), processor_time());
            let (then, before) = SEEN.get().unwrap_or((now, used));
            let (wall, busy) = (now.saturating_duration_since(then), used.saturating_sub(before));
            if busy >= STRETCH.mul_f64(self.share) {
                std::thread::sleep(busy.div_f64(self.share).saturating_sub(wall).min(STRETCH * 4));
                SEEN.set(Some((Instant::now(), processor_time())));
            } else if SEEN.get().is_none() || wall > STRETCH * 20 {
                SEEN.set(Some((now, used)));
            }
        }
        self.clock.elapsed()
    }
}

/// Processor time of this thread.
#[cfg(unix)]
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Elsewhere limits are not kept.
#[cfg(not(unix))]
fn processor_time() -> Duration {
    Duration::ZERO
}

#[cfg(all(test, unix))]
mod tests {
    use talon_endpoint_vql::SystemClock;

    use super::*;

    #[test]
    fn a_busy_thread_gets_its_share_and_no_more() {
        let clock = ThrottledClock::new(SystemClock::new(), 20.0);
        let (start, before) = (Instant::now(), processor_time());
        while start.elapsed() < Duration::from_millis(600) {
            std::hint::black_box(clock.elapsed());
        }
        let share = (processor_time() - before).as_secs_f64() / start.elapsed().as_secs_f64();
        assert!(share < 0.35, "{share}");
    }
}
