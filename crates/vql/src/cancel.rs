//! Stopping a query: a token that any thread may pull, and that every loop of the evaluator looks at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Why a query stopped before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// Somebody said so; the text says who or why.
    Cancelled(String),
    /// The time of the budget is used up.
    TimedOut(Duration),
    /// More rows were read than the budget allows.
    Rows(u64),
    /// More bytes were held than the budget allows.
    Bytes(u64),
    /// Nobody wants the rows any more. Not an error.
    Done,
}

/// Stops a query, from any thread. Clones are the same token.
#[derive(Clone, Default)]
pub struct CancelToken(Arc<Inner>);

#[derive(Default)]
struct Inner {
    stopped: AtomicBool,
    reason: Mutex<Option<StopReason>>,
    woken: Condvar,
    parent: Option<CancelToken>,
    /// When, by the clock of the query, this token stops by itself, and after how long that is.
    deadline: Option<(Duration, Duration)>,
}

impl CancelToken {
    /// A token that nobody has pulled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that stops with this one, and can be stopped alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(Arc::new(Inner { parent: Some(self.clone()), ..Inner::default() }))
    }

    /// A child that stops by itself `after` the moment `now` of the query's clock. Who looks at the clock pulls it: [`CancelToken::expire`].
    #[must_use]
    pub(crate) fn child_until(&self, now: Duration, after: Duration) -> Self {
        let deadline = Some((now.saturating_add(after), after));
        Self(Arc::new(Inner { parent: Some(self.clone()), deadline, ..Inner::default() }))
    }

    /// Stops the tokens whose deadline is past; true if there was one.
    pub(crate) fn expire(&self, now: Duration) -> bool {
        let mut token = Some(self);
        let mut expired = false;
        while let Some(current) = token {
            if let Some((_, after)) = current.0.deadline.filter(|(at, _)| now >= *at) {
                current.stop(StopReason::TimedOut(after));
                expired = true;
            }
            token = current.0.parent.as_ref();
        }
        expired
    }

    /// How long it is to the nearest deadline.
    pub(crate) fn left(&self, now: Duration) -> Option<Duration> {
        let mut token = Some(self);
        let mut least: Option<Duration> = None;
        while let Some(current) = token {
            if let Some((at, _)) = current.0.deadline {
                let left = at.saturating_sub(now);
                least = Some(least.map_or(left, |least| least.min(left)));
            }
            token = current.0.parent.as_ref();
        }
        least
    }

    /// Stops the query. `reason` is for the log.
    pub fn cancel(&self, reason: impl Into<String>) {
        self.stop(StopReason::Cancelled(reason.into()));
    }

    /// Stops the query. The first reason stays.
    pub fn stop(&self, reason: StopReason) {
        self.0.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.0.stopped.store(true, Ordering::Release);
        self.0.woken.notify_all();
    }

    /// Whether the query must stop. Cheap.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        let mut token = self;
        loop {
            if token.0.stopped.load(Ordering::Acquire) {
                return true;
            }
            match &token.0.parent {
                Some(parent) => token = parent,
                None => return false,
            }
        }
    }

    /// Why the query must stop, if it must.
    #[must_use]
    pub fn reason(&self) -> Option<StopReason> {
        let mut token = self;
        loop {
            if token.0.stopped.load(Ordering::Acquire) {
                return token.0.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
            }
            token = token.0.parent.as_ref()?;
        }
    }

    /// Waits for `duration` or until the query must stop; true in the second case, which is noticed within 100 ms.
    #[must_use]
    pub fn wait(&self, duration: Duration) -> bool {
        const SLICE: Duration = Duration::from_millis(100);
        let mut left = duration;
        while !self.is_cancelled() {
            let slice = left.min(SLICE);
            if slice.is_zero() {
                return false;
            }
            let guard = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
            if guard.is_none() {
                drop(self.0.woken.wait_timeout(guard, slice));
            }
            left = left.saturating_sub(slice);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_stops_with_its_parent_and_not_the_other_way() {
        let parent = CancelToken::new();
        let (first, second) = (parent.child(), parent.child());
        first.cancel("alone");
        assert!(first.is_cancelled() && !parent.is_cancelled() && !second.is_cancelled());
        parent.cancel("all");
        assert_eq!(second.reason(), Some(StopReason::Cancelled("all".to_owned())));
        assert_eq!(first.reason(), Some(StopReason::Cancelled("alone".to_owned())));
        assert!(second.wait(Duration::from_secs(60)));
    }
}
