//! Time on a host: the system's clock for queries, and `clock()`, which gives a row each period.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use talon_vql::{Arg, ArgType, Call, CallError, Clock, Dict, Registry, Rows, Signature, Time};

/// The clock of this machine.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// The clock.
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Time {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| i128::try_from(age.as_nanos()).unwrap_or(i128::MAX));
        Time::from_unix_nanos(nanos)
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn thread_cpu(&self) -> Option<Duration> {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Some(Duration::new(u64::try_from(used.tv_sec).ok()?, u32::try_from(used.tv_nsec).ok()?))
    }
}

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("clock", "A row each period, for ever.").args(
            const {
                &[
                    Arg::optional("start", ArgType::Time, "Wait until then first."),
                    Arg::optional("period", ArgType::Int, "Seconds between rows, 1 unless given."),
                    Arg::optional("ms", ArgType::Int, "Milliseconds between rows, instead."),
                ]
            },
        ),
        clock,
    );
}

fn clock(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let millis = match (call.opt_int("ms").filter(|ms| *ms > 0), call.opt_int("period").filter(|seconds| *seconds > 0)) {
        (Some(ms), _) => u64::try_from(ms).unwrap_or(1000),
        (None, Some(seconds)) => u64::try_from(seconds).unwrap_or(1).saturating_mul(1000),
        (None, None) => 1000,
    };
    let period = Duration::from_millis(millis.max(10));
    let mut start = call.time("start");
    Ok(Rows::from_fn(move || {
        if let Some(start) = start.take() {
            let wait = start.unix_nanos().saturating_sub(scope.now().unix_nanos());
            if scope.sleep(Duration::from_nanos(u64::try_from(wait).unwrap_or(0))) {
                return None;
            }
        } else if scope.sleep(period) {
            return None;
        }
        let now = scope.now();
        Some(Ok(Dict::new().with("Sec", now.unix()).with("Nsec", i64::from(now.subsecond_nanos())).with("String", now.to_string()).into()))
    }))
}
