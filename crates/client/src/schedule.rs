//! What the agent does about each answer, which server it turns to, and how long it waits: decisions without clock, socket or randomness of their own.

use std::time::Duration;

use talon_transport::ServerUrl;

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Status 200, and the body was an authentic packet, or no packet at all.
    Delivered,
    /// Status 200, but the body cannot be opened: somebody between us and the server.
    Unreadable,
    /// Status 200, and the body was signed by somebody else than the verified server.
    Unauthentic,
    /// Another status.
    Status(u16),
    /// No complete answer.
    NoAnswer,
}

/// What to do with the payload that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// The server has it.
    Commit,
    /// The server will never take it; it is dropped and logged.
    Reject,
    /// Send it again.
    Keep,
}

/// What to do before the next exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The payload's fate.
    pub payload: Payload,
    /// How long to wait.
    pub wait: Duration,
    /// Turn to the next server, fetch its certificate and start a session.
    pub advance: bool,
    /// Ask for enrolment.
    pub enrol: bool,
}

/// The intervals of `Client` (spec 01 §9).
#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    /// Pause between polls and between rounds of the sender.
    pub min_poll: Duration,
    /// The longest back-off before jitter.
    pub max_poll: Duration,
    /// Bound of the jitter.
    pub jitter: Duration,
}

impl Intervals {
    /// The back-off, with `random` between 0 and 1 choosing the jitter.
    #[must_use]
    pub fn back_off(&self, random: f64) -> Duration {
        self.max_poll.saturating_add(self.jitter.mul_f64(random.clamp(0.0, 1.0)))
    }
}

/// Attempts at once, the first included, when a server is overloaded or silent.
const QUICK_ATTEMPTS: u32 = 3;

/// The attempts of one loop with its current payload.
#[derive(Debug, Default)]
pub struct Attempts {
    quick: u32,
    empty: u32,
}

impl Attempts {
    /// Decides about the outcome of an exchange (spec 01 §7.4). Where stock agents lose data or sleep twice, this does not: a payload is gone only when the
    /// server has taken or rejected it.
    pub fn decide(&mut self, outcome: Outcome, intervals: &Intervals, random: f64) -> Decision {
        let later = |payload, wait, advance| Decision { payload, wait, advance, enrol: false };
        match outcome {
            Outcome::Delivered => {
                self.quick = 0;
                self.empty = 0;
                later(Payload::Commit, intervals.min_poll, false)
            }
            Outcome::Status(400) => {
                self.quick = 0;
                later(Payload::Reject, intervals.min_poll, false)
            }
            Outcome::Status(406) => {
                self.quick = 0;
                // Enrolment takes a moment, or a person's approval: ask quickly at first, then at leisure.
                self.empty = self.empty.saturating_add(1);
                let slower = intervals.min_poll.saturating_mul(1 << self.empty.saturating_sub(10).min(10));
                let wait = slower.min(intervals.max_poll).max(intervals.min_poll);
                Decision { payload: Payload::Keep, wait, advance: false, enrol: true }
            }
            Outcome::Status(408 | 503) | Outcome::NoAnswer => {
                self.quick = self.quick.saturating_add(1);
                if self.quick < QUICK_ATTEMPTS {
                    return later(Payload::Keep, Duration::ZERO, false);
                }
                self.quick = 0;
                later(Payload::Keep, intervals.back_off(random), true)
            }
            Outcome::Unreadable => later(Payload::Keep, intervals.back_off(random), false),
            Outcome::Unauthentic | Outcome::Status(_) => {
                self.quick = 0;
                later(Payload::Keep, intervals.back_off(random), true)
            }
        }
    }
}

/// The servers in the order in which this agent tries them.
#[derive(Debug, Clone)]
pub struct Servers {
    urls: Vec<ServerUrl>,
    current: usize,
    last_good: usize,
}

impl Servers {
    /// A random order, so that a fleet spreads over its frontends. `random` gives numbers between 0 and 1. `None` for an empty list.
    #[must_use]
    pub fn shuffled(mut urls: Vec<ServerUrl>, mut random: impl FnMut() -> f64) -> Option<Self> {
        for end in (1..urls.len()).rev() {
            urls.swap(end, pick(end.saturating_add(1), random()));
        }
        (!urls.is_empty()).then_some(Self { urls, current: 0, last_good: 0 })
    }

    /// The server to talk to.
    #[must_use]
    pub fn current(&self) -> Option<&ServerUrl> {
        self.urls.get(self.current)
    }

    /// The current server answered well.
    pub fn good(&mut self) {
        self.last_good = self.current;
    }

    /// Turns to the next server; true when all have been tried since the last good answer, so that it is time to wait.
    pub fn advance(&mut self) -> bool {
        self.current = self.current.saturating_add(1).checked_rem(self.urls.len()).unwrap_or_default();
        self.current == self.last_good
    }
}

/// An index below `bound`.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "a shuffle needs no exactness")]
fn pick(bound: usize, random: f64) -> usize {
    ((random.clamp(0.0, 1.0) * bound as f64) as usize).min(bound.saturating_sub(1))
}

/// Slows polls that end at once and bring nothing: ten in a row are free, then one in half of `max_poll`. A poll that waited, or brought something, costs
/// nothing, so interactive work is never slowed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    hasty: u32,
}

/// Polls without effect before the agent slows down (spec 01 §9).
const FREE_POLLS: u32 = 10;

impl Pace {
    /// The pause after a poll that took `took` and brought something or not.
    pub fn pause(&mut self, took: Duration, brought: bool, intervals: &Intervals) -> Duration {
        if brought || took >= intervals.min_poll.max(Duration::from_secs(1)) {
            self.hasty = 0;
            return intervals.min_poll;
        }
        self.hasty = self.hasty.saturating_add(1);
        if self.hasty <= FREE_POLLS { intervals.min_poll } else { (intervals.max_poll / 2).max(intervals.min_poll) }
    }
}

/// Lets something happen at most once in a period.
#[derive(Debug, Clone, Copy)]
pub struct AtMostEvery {
    period: Duration,
    last: Option<Duration>,
}

impl AtMostEvery {
    /// Once in `period`, and now.
    #[must_use]
    pub fn new(period: Duration) -> Self {
        Self { period, last: None }
    }

    /// Whether it is due at `now`, a time since any fixed moment; if so, the period starts again.
    pub fn is_due(&mut self, now: Duration) -> bool {
        let due = self.last.is_none_or(|last| now.saturating_sub(last) >= self.period);
        if due {
            self.last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVALS: Intervals =
        Intervals { min_poll: Duration::from_secs(1), max_poll: Duration::from_secs(60), jitter: Duration::from_secs(30) };

    fn seconds(decision: Decision) -> (Payload, u64, bool, bool) {
        (decision.payload, decision.wait.as_secs(), decision.advance, decision.enrol)
    }

    /// One row per row of spec 01 §7.4, with the jitter at its middle.
    #[test]
    fn every_answer_has_its_reaction() {
        for (outcome, expected) in [
            (Outcome::Delivered, (Payload::Commit, 1, false, false)),
            (Outcome::Unreadable, (Payload::Keep, 75, false, false)),
            (Outcome::Unauthentic, (Payload::Keep, 75, true, false)),
            (Outcome::Status(301), (Payload::Keep, 75, true, false)),
            (Outcome::Status(400), (Payload::Reject, 1, false, false)),
            (Outcome::Status(406), (Payload::Keep, 1, false, true)),
            (Outcome::Status(408), (Payload::Keep, 0, false, false)),
            (Outcome::Status(503), (Payload::Keep, 0, false, false)),
            (Outcome::NoAnswer, (Payload::Keep, 0, false, false)),
            (Outcome::Status(403), (Payload::Keep, 75, true, false)),
            (Outcome::Status(409), (Payload::Keep, 75, true, false)),
            (Outcome::Status(500), (Payload::Keep, 75, true, false)),
            (Outcome::Status(404), (Payload::Keep, 75, true, false)),
        ] {
            assert_eq!(seconds(Attempts::default().decide(outcome, &INTERVALS, 0.5)), expected, "{outcome:?}");
        }
    }

    #[test]
    fn a_silent_server_gets_three_attempts_and_then_the_next_one_is_tried() {
        let mut attempts = Attempts::default();
        let mut decide = |outcome| attempts.decide(outcome, &INTERVALS, 0.0);
        for _ in 0..2 {
            assert_eq!(seconds(decide(Outcome::NoAnswer)), (Payload::Keep, 0, false, false));
            assert_eq!(seconds(decide(Outcome::Status(503))), (Payload::Keep, 0, false, false));
            assert_eq!(seconds(decide(Outcome::NoAnswer)), (Payload::Keep, 60, true, false));
        }
        decide(Outcome::NoAnswer);
        decide(Outcome::Delivered);
        assert_eq!(decide(Outcome::NoAnswer).wait, Duration::ZERO, "counted anew after a success");
    }

    #[test]
    fn an_agent_that_waits_for_approval_becomes_patient() {
        let mut attempts = Attempts::default();
        let waits: Vec<_> = (0..20).map(|_| attempts.decide(Outcome::Status(406), &INTERVALS, 0.0).wait.as_secs()).collect();
        assert_eq!(waits[..10], [1; 10]);
        assert_eq!(waits[10..], [2, 4, 8, 16, 32, 60, 60, 60, 60, 60]);
    }

    #[test]
    fn servers_are_tried_in_turn_and_a_full_round_calls_for_a_pause() {
        let urls = |count| (0..count).map(|at| format!("https://host{at}/").parse().unwrap()).collect::<Vec<ServerUrl>>();
        let mut servers = Servers::shuffled(urls(3), || 0.0).unwrap();
        assert_eq!([servers.advance(), servers.advance(), servers.advance(), servers.advance()], [false, false, true, false]);
        servers.good();
        assert_eq!([servers.advance(), servers.advance(), servers.advance()], [false, false, true]);
        assert!(Servers::shuffled(urls(1), || 0.0).unwrap().advance(), "the only server");
        assert!(Servers::shuffled(Vec::new(), || 0.0).is_none());
        let mut first = std::collections::BTreeSet::new();
        for at in 0..10_u32 {
            first.insert(Servers::shuffled(urls(3), || f64::from(at) / 10.0).unwrap().current().unwrap().to_string());
        }
        assert!(first.len() > 1, "fleets spread");
    }

    #[test]
    fn only_polls_that_end_at_once_and_bring_nothing_are_slowed() {
        let mut pace = Pace::default();
        let mut pause = |millis, brought| pace.pause(Duration::from_millis(millis), brought, &INTERVALS).as_secs();
        for _ in 0..20 {
            assert_eq!(pause(5, true), 1);
            assert_eq!(pause(60_000, false), 1);
        }
        let hasty: Vec<_> = (0..12).map(|_| pause(5, false)).collect();
        assert_eq!(hasty, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 30, 30]);
        assert_eq!([pause(5, true), pause(5, false)], [1, 1]);
    }

    #[test]
    fn at_most_every_minute() {
        let mut csr = AtMostEvery::new(Duration::from_secs(60));
        let due: Vec<_> = [0, 1, 59, 60, 61, 120].into_iter().filter(|at| csr.is_due(Duration::from_secs(*at))).collect();
        assert_eq!(due, [0, 60, 120]);
    }
}
