//! Reading a request's body within its bounds: length, pace, deadline, and the memory of all bodies together.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::FrontendLimits;
use crate::throttle::Throttle;

/// Bytes of request bodies that may be held at one time.
pub(crate) struct BodyBudget {
    bytes: Arc<Semaphore>,
}

/// A body and its share of the budget, which is given back when the packet is done with.
pub(crate) struct Taken {
    pub(crate) bytes: Bytes,
    pub(crate) share: Share,
}

/// A part of the budget.
pub(crate) struct Share(Option<OwnedSemaphorePermit>);

/// Why a body was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is longer than its route allows.
    TooLong,
    /// The connection broke, or the sender broke the rules of HTTP.
    Broken,
    /// It came too slowly.
    TooSlow,
    /// The budget is used up.
    NoBudget,
}

impl BodyBudget {
    pub(crate) fn new(limits: &FrontendLimits) -> Self {
        Self { bytes: Arc::new(Semaphore::new(limits.body_budget.min(Semaphore::MAX_PERMITS))) }
    }

    /// A share for what has arrived already.
    pub(crate) fn hold(&self, length: usize) -> Result<Share, Refused> {
        let mut share = Share(None);
        share.grow(&self.bytes, length)?;
        Ok(share)
    }

    /// Reads a body of at most `limit` bytes.
    pub(crate) async fn take(
        &self,
        mut body: Incoming,
        limit: usize,
        limits: &FrontendLimits,
        throttles: [Option<&Throttle>; 2],
    ) -> Result<Taken, Refused> {
        let mut pace = Pace::start(limits, throttles);
        let declared = usize::try_from(body.size_hint().exact().unwrap_or(0)).unwrap_or(usize::MAX);
        if declared > limit {
            discard(body, limit, &mut pace).await?;
            return Err(Refused::TooLong);
        }
        let mut share = Share(None);
        let mut first = Bytes::new();
        let mut joined = BytesMut::new();
        let mut length = 0_usize;
        while let Some(piece) = next(&mut body, &mut pace).await? {
            length = length.saturating_add(piece.len());
            if length > limit {
                drop((first, joined, share));
                discard(body, limit, &mut pace).await?;
                return Err(Refused::TooLong);
            }
            share.grow(&self.bytes, piece.len())?;
            if length == piece.len() {
                first = piece;
                continue;
            }
            if joined.is_empty() {
                joined.reserve(length.max(declared.min(length.saturating_mul(4))));
                joined.extend_from_slice(&std::mem::take(&mut first));
            }
            joined.extend_from_slice(&piece);
        }
        let bytes = if joined.is_empty() { first } else { joined.freeze() };
        Ok(Taken { bytes, share })
    }
}

impl Share {
    fn grow(&mut self, budget: &Arc<Semaphore>, bytes: usize) -> Result<(), Refused> {
        let bytes = u32::try_from(bytes).map_err(|_| Refused::NoBudget)?;
        let more = Arc::clone(budget).try_acquire_many_owned(bytes).map_err(|_| Refused::NoBudget)?;
        match &mut self.0 {
            Some(held) => held.merge(more),
            empty => *empty = Some(more),
        }
        Ok(())
    }
}

/// How fast a body has to come.
struct Pace<'a> {
    throttles: [Option<&'a Throttle>; 2],
    start: Instant,
    end: Instant,
    stall: Duration,
    min_rate: u32,
    received: usize,
}

impl<'a> Pace<'a> {
    fn start(limits: &FrontendLimits, throttles: [Option<&'a Throttle>; 2]) -> Self {
        let start = Instant::now();
        Self {
            throttles,
            start,
            end: start + limits.read_deadline,
            stall: limits.stall_deadline,
            min_rate: limits.min_rate.max(1),
            received: 0,
        }
    }

    /// Waits as long as the throttles want. That time is not the sender's.
    async fn throttle(&mut self, bytes: usize) {
        let now = Instant::now();
        let wait = self.throttles.iter().flatten().map(|throttle| throttle.spend(bytes, now)).max().unwrap_or_default();
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            self.start += wait;
            self.end += wait;
        }
    }

    /// When the next piece must be here: a stall after what came so far would have come at the slowest pace.
    fn due(&self) -> Instant {
        let earned = Duration::from_secs_f64(self.received as f64 / f64::from(self.min_rate));
        self.end.min(self.start + earned.min(self.end - self.start) + self.stall).min(Instant::now() + self.stall)
    }
}

async fn next(body: &mut Incoming, pace: &mut Pace<'_>) -> Result<Option<Bytes>, Refused> {
    loop {
        let frame = timeout_at(pace.due(), body.frame()).await.map_err(|_| Refused::TooSlow)?;
        match frame {
            None => return Ok(None),
            Some(Err(_)) => return Err(Refused::Broken),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    pace.received = pace.received.saturating_add(data.len());
                    pace.throttle(data.len()).await;
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Lets the sender finish what is too long, so that it reads the answer instead of a reset; what is longer than `limit` once more is cut off.
async fn discard(mut body: Incoming, limit: usize, pace: &mut Pace<'_>) -> Result<(), Refused> {
    let mut left = limit;
    while let Some(piece) = next(&mut body, pace).await? {
        if piece.len() > left {
            break;
        }
        left -= piece.len();
    }
    Ok(())
}
