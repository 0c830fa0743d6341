//! The bodies of answers: whole ones, those that leave in pieces, and those that pad while something is going on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::{BoxFuture, FrontendLimits, LongPoll, PAD, Processed, PublicFile};

/// Longest piece of an answer that is handed over at one time, so that what a slow peer has not taken yet is not buffered twice.
const PIECE: usize = 64 << 10;

/// One step of a body.
type Step = Option<io::Result<Frame<Bytes>>>;

/// The body of an answer.
pub(crate) enum Answer {
    /// Of known length.
    Whole(Option<Bytes>),
    /// Flushed in pieces, without a length.
    Pieces(Departure),
    /// Ends the connection before the body does.
    Cut,
    /// An accepted packet that is being processed.
    Processing(Box<Processing>),
    /// A waiting agent.
    Waiting(Box<Waiting>),
    /// A file.
    File(PublicFile),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Step> {
        match self.get_mut() {
            Self::Whole(content) => Poll::Ready(content.take().map(|content| Ok(Frame::data(content)))),
            Self::Pieces(departure) => Poll::Ready(departure.next()),
            Self::Cut => Poll::Ready(Some(Err(not_processed()))),
            Self::Processing(body) => body.poll_step(context),
            Self::Waiting(body) => body.poll_step(context),
            Self::File(file) => {
                let piece = ready!(file.content.as_mut().poll_next(context));
                Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        let known = |length: usize| u64::try_from(length).map(SizeHint::with_exact).unwrap_or_default();
        match self {
            Self::Whole(content) => known(content.as_ref().map_or(0, Bytes::len)),
            Self::File(file) => file.size.map(SizeHint::with_exact).unwrap_or_default(),
            Self::Pieces(_) | Self::Cut | Self::Processing(_) | Self::Waiting(_) => SizeHint::default(),
        }
    }
}

/// Content on its way out, in pieces and with a deadline.
pub(crate) struct Departure {
    rest: Bytes,
    until: Instant,
}

impl Departure {
    pub(crate) fn new(content: Bytes, limits: &FrontendLimits) -> Self {
        Self::within(content, limits.write_deadline)
    }

    fn within(content: Bytes, deadline: Duration) -> Self {
        Self { rest: content, until: Instant::now() + deadline }
    }

    fn next(&mut self) -> Step {
        if self.rest.is_empty() {
            return None;
        }
        if Instant::now() > self.until {
            self.rest.clear();
            return Some(Err(io::Error::new(io::ErrorKind::TimedOut, "the answer leaves too slowly")));
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        Some(Ok(Frame::data(piece)))
    }
}

fn not_processed() -> io::Error {
    io::Error::other("the packet was not processed")
}

fn pad() -> Step {
    Some(Ok(Frame::data(Bytes::from_static(&PAD))))
}

/// The body of an accepted packet: pads, then the acknowledgement. Dropping it leaves the processing alone.
pub(crate) struct Processing {
    task: JoinHandle<Processed>,
    timer: Pin<Box<Sleep>>,
    every: Duration,
    write_deadline: Duration,
    departure: Option<Departure>,
}

impl Processing {
    /// Pads are counted from when the packet was accepted.
    pub(crate) fn answer(task: JoinHandle<Processed>, accepted: Instant, limits: &FrontendLimits) -> Answer {
        Answer::Processing(Box::new(Self {
            task,
            timer: Box::pin(tokio::time::sleep_until(accepted + limits.control_pad)),
            every: limits.control_pad,
            write_deadline: limits.write_deadline,
            departure: None,
        }))
    }

    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        if let Some(departure) = &mut self.departure {
            return Poll::Ready(departure.next());
        }
        if let Poll::Ready(outcome) = Pin::new(&mut self.task).poll(context) {
            let (content, failed) = match outcome {
                Ok(Processed::Answer(content)) => (content, false),
                Ok(Processed::Refused) => (Bytes::new(), false),
                Ok(Processed::Failed) | Err(_) => (Bytes::new(), true),
            };
            let step = self.departure.insert(Departure::within(content, self.write_deadline)).next();
            return Poll::Ready(if failed { Some(Err(not_processed())) } else { step });
        }
        ready!(self.timer.as_mut().poll(context));
        self.timer.as_mut().reset(Instant::now() + self.every);
        Poll::Ready(pad())
    }
}

/// The body of a long poll: pads until there is an answer, the time is over or the frontend drains.
pub(crate) struct Waiting {
    answer: BoxFuture<Option<Bytes>>,
    farewell: Option<Box<dyn FnOnce() -> Option<Bytes> + Send>>,
    drained: BoxFuture<()>,
    end: Instant,
    timer: Pin<Box<Sleep>>,
    every: Duration,
    write_deadline: Duration,
    departure: Option<Departure>,
}

impl Waiting {
    /// `jitter` is what the poll gets beyond its `max_poll`.
    pub(crate) fn answer(poll: LongPoll, jitter: Duration, drain: &CancellationToken, limits: &FrontendLimits) -> Answer {
        let now = Instant::now();
        let end = now + poll.max_poll + jitter;
        Answer::Waiting(Box::new(Self {
            answer: poll.answer,
            farewell: Some(poll.farewell),
            drained: Box::pin(drain.clone().cancelled_owned()),
            end,
            timer: Box::pin(tokio::time::sleep_until(end.min(now + limits.reader_pad))),
            every: limits.reader_pad,
            write_deadline: limits.write_deadline,
            departure: None,
        }))
    }

    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        if let Some(departure) = &mut self.departure {
            return Poll::Ready(departure.next());
        }
        if let Poll::Ready(content) = self.answer.as_mut().poll(context) {
            return Poll::Ready(self.depart(content));
        }
        if self.drained.as_mut().poll(context).is_ready() {
            let content = self.farewell.take().and_then(|farewell| farewell());
            return Poll::Ready(self.depart(content));
        }
        ready!(self.timer.as_mut().poll(context));
        let now = Instant::now();
        if now >= self.end {
            self.depart(None);
        } else {
            self.timer.as_mut().reset(self.end.min(now + self.every));
        }
        Poll::Ready(pad())
    }

    /// From here on nothing is waited for: the agent's registration goes, the content leaves.
    fn depart(&mut self, content: Option<Bytes>) -> Step {
        self.answer = Box::pin(std::future::pending());
        self.farewell = None;
        self.departure.insert(Departure::within(content.unwrap_or_default(), self.write_deadline)).next()
    }
}
