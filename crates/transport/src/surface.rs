//! What a frontend does with a request: finds its row, takes the body, waits for a slot, asks the endpoint, and turns the outcome into an answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use talon_crypto::{Rng, SystemRng};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::{Answer, Departure, Processing, Waiting};
use crate::intake::{BodyBudget, Refused, Share, Taken};
use crate::routes::{self, Action, Route, Target};
use crate::throttle::Throttle;
use crate::{
    AgentEndpoint, AgentRequest, BoxFuture, ControlOutcome, FrontendLimits, Peer, Processed, PublicPath, ReaderOutcome, Rejection,
    Unhealthy, answer, websocket,
};

/// Longest text that is taken over from a request's headers.
const MAX_TEXT: usize = 256;
/// Longest poll, whatever an organisation's settings say.
pub(crate) const MAX_POLL: Duration = Duration::from_secs(3600);

/// Where a request comes from: its connection.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    throttle: Option<Throttle>,
    /// Its place among the open connections, which a socket takes over.
    _place: OwnedSemaphorePermit,
}

impl Origin {
    pub(crate) fn new(address: SocketAddr, place: OwnedSemaphorePermit, limits: &FrontendLimits) -> Self {
        Self { address, throttle: Throttle::new(limits.per_client_upload_rate, 100 << 10), _place: place }
    }
}

/// The state that all connections of a listener share.
pub(crate) struct Surface {
    pub(crate) endpoint: Arc<dyn AgentEndpoint>,
    base: String,
    proxy_header: Option<HeaderName>,
    pub(crate) limits: FrontendLimits,
    budget: BodyBudget,
    throttle: Option<Throttle>,
    ordinary: Arc<Semaphore>,
    urgent: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    pub(crate) drain: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Surface {
    pub(crate) fn new(
        endpoint: Arc<dyn AgentEndpoint>,
        base: String,
        proxy_header: Option<HeaderName>,
        limits: FrontendLimits,
        drain: CancellationToken,
    ) -> Self {
        let slots = || Arc::new(Semaphore::new(limits.concurrency.clamp(1, Semaphore::MAX_PERMITS)));
        Self {
            endpoint,
            base,
            proxy_header,
            budget: BodyBudget::new(&limits),
            throttle: Throttle::new(limits.global_upload_rate, 1 << 20),
            ordinary: slots(),
            urgent: slots(),
            readers: Arc::new(Semaphore::new(limits.reader_concurrency.clamp(1, Semaphore::MAX_PERMITS))),
            limits,
            drain,
            tasks: TaskTracker::new(),
        }
    }

    /// Answers one request.
    pub(crate) async fn handle(self: &Arc<Self>, from: &Arc<Origin>, mut request: Request<Incoming>) -> Response<Answer> {
        match routes::find(&self.base, request.uri().path()) {
            Target::Nowhere => answer::error(StatusCode::NOT_FOUND, "404 page not found"),
            Target::Redirect(path) => {
                let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
                answer::redirect(&format!("{path}{query}"))
            }
            Target::Row(route, _) if route.upgrade && request.headers().contains_key(UPGRADE) => {
                let peer = self.peer(from.address, request.headers());
                websocket::upgrade(self, route.action, peer, Arc::clone(from), &mut request)
            }
            Target::Row(route, rest) => self.row(route, &rest, from, request).await,
        }
    }

    async fn row(&self, route: &Route, rest: &str, from: &Origin, request: Request<Incoming>) -> Response<Answer> {
        match route.action {
            Action::ServerPem => answer::streamed(Answer::Pieces(Departure::new(self.endpoint.server_pem(), &self.limits))),
            Action::Healthz if self.drain.is_cancelled() => answer::empty(StatusCode::SERVICE_UNAVAILABLE),
            Action::Healthz => answer::empty(StatusCode::OK),
            Action::Public => self.public(rest).await,
            Action::Control | Action::Reader => {
                if let Err(Unhealthy(text)) = self.endpoint.health() {
                    return answer::error(StatusCode::SERVICE_UNAVAILABLE, &format!("Error: {text}"));
                }
                let peer = self.peer(from.address, request.headers());
                let urgent = request.headers().get("x-priority").is_some_and(|value| value == "urgent");
                if route.action == Action::Control {
                    self.control(from, peer, urgent, request.into_body()).await
                } else {
                    self.reader(peer, urgent, request.into_body()).await
                }
            }
        }
    }

    async fn public(&self, path: &str) -> Response<Answer> {
        let Some(path) = PublicPath::parse(path) else { return answer::no_file() };
        match Arc::clone(&self.endpoint).public(path).await {
            Some(file) => answer::file(file),
            None => answer::no_file(),
        }
    }

    async fn control(&self, from: &Origin, peer: Peer, urgent: bool, body: Incoming) -> Response<Answer> {
        let throttles = [self.throttle.as_ref(), from.throttle.as_ref()];
        let taken = match self.budget.take(body, self.longest(Action::Control), &self.limits, throttles).await {
            Ok(taken) => taken,
            Err(Refused::TooLong) => return answer::empty(StatusCode::OK),
            Err(refused) => return refusal(&refused),
        };
        let Some(slot) = self.slot(Action::Control, urgent).await else {
            return answer::error(StatusCode::REQUEST_TIMEOUT, "Timeout");
        };
        let Taken { bytes, share } = taken;
        match Arc::clone(&self.endpoint).control(AgentRequest { peer, urgent, body: bytes }).await {
            ControlOutcome::Reject(rejection) => answer::rejected(rejection),
            ControlOutcome::Dropped => answer::empty(StatusCode::OK),
            ControlOutcome::Accepted(processing) => {
                let mut task = self.process(processing, Held { _slot: slot, _share: share });
                let accepted = Instant::now();
                // Most packets are durable in a moment: then one write takes the whole answer.
                match tokio::time::timeout(self.limits.head_delay, &mut task).await {
                    Ok(Ok(Processed::Answer(content))) => answer::padded(Answer::Pieces(Departure::new(content, &self.limits))),
                    Ok(Ok(Processed::Refused)) => answer::padded(Answer::Pieces(Departure::new(Bytes::new(), &self.limits))),
                    Ok(Ok(Processed::Failed) | Err(_)) => answer::padded(Answer::Cut),
                    Err(_) => answer::padded(Processing::answer(task, accepted, &self.limits)),
                }
            }
        }
    }

    async fn reader(&self, peer: Peer, urgent: bool, body: Incoming) -> Response<Answer> {
        let taken = match self.budget.take(body, self.longest(Action::Reader), &self.limits, [None, None]).await {
            Ok(taken) => taken,
            Err(Refused::TooLong) => return answer::rejected(Rejection::Overloaded),
            Err(refused) => return refusal(&refused),
        };
        let Some(slot) = self.slot(Action::Reader, urgent).await else {
            return answer::error(StatusCode::REQUEST_TIMEOUT, "Timeout");
        };
        let Taken { bytes, share } = taken;
        let outcome = Arc::clone(&self.endpoint).reader(AgentRequest { peer, urgent, body: bytes }).await;
        drop((slot, share));
        match outcome {
            ReaderOutcome::Reject(rejection) => answer::rejected(rejection),
            ReaderOutcome::Empty => answer::empty(StatusCode::OK),
            ReaderOutcome::Poll(mut poll) => {
                poll.max_poll = poll.max_poll.min(MAX_POLL);
                answer::padded(Waiting::answer(poll, jitter(&SystemRng, self.limits.poll_jitter), &self.drain, &self.limits))
            }
        }
    }

    /// Lets in a packet that has arrived whole, as a message of a socket.
    pub(crate) async fn admit(&self, from: &Origin, action: Action, length: usize) -> Result<Held, Shut> {
        self.endpoint.health().map_err(|Unhealthy(_)| Shut::Overloaded)?;
        if length > self.longest(action) {
            return Err(Shut::TooLong);
        }
        let share = self.budget.hold(length).map_err(|_| Shut::Overloaded)?;
        if action == Action::Control {
            let now = Instant::now();
            let wait = [&self.throttle, &from.throttle].into_iter().flatten().map(|throttle| throttle.spend(length, now)).max();
            tokio::time::sleep(wait.unwrap_or_default()).await;
        }
        let slot = self.slot(action, false).await.ok_or(Shut::Late)?;
        Ok(Held { _slot: slot, _share: share })
    }

    /// Runs what was accepted on a task of its own: the agent may go away, its messages are processed all the same.
    pub(crate) fn process(&self, processing: BoxFuture<Processed>, held: Held) -> JoinHandle<Processed> {
        let deadline = self.limits.processing_deadline;
        self.tasks.spawn(async move {
            let _held = held;
            tokio::time::timeout(deadline, processing).await.unwrap_or(Processed::Failed)
        })
    }

    fn longest(&self, action: Action) -> usize {
        match action {
            Action::Control => self.limits.max_upload_size.saturating_mul(2).saturating_sub(1),
            _ => self.limits.max_reader_body,
        }
    }

    async fn slot(&self, action: Action, urgent: bool) -> Option<OwnedSemaphorePermit> {
        let slots = match (action, urgent) {
            (Action::Reader, _) => &self.readers,
            (_, true) => &self.urgent,
            (_, false) => &self.ordinary,
        };
        tokio::time::timeout(self.limits.concurrency_timeout, Arc::clone(slots).acquire_owned()).await.ok()?.ok()
    }

    fn peer(&self, socket: SocketAddr, headers: &HeaderMap) -> Peer {
        let forwarded = self.proxy_header.as_ref().and_then(|name| headers.get(name)).map(plain).filter(|value| !value.is_empty());
        Peer {
            socket,
            remote: forwarded.unwrap_or_else(|| socket.to_string()),
            user_agent: headers.get(USER_AGENT).map(plain).unwrap_or_default(),
        }
    }
}

/// What a packet holds until it is done with: its slot, and its share of the memory for bodies.
pub(crate) struct Held {
    _slot: OwnedSemaphorePermit,
    _share: Share,
}

/// Why a packet was not let in.
pub(crate) enum Shut {
    /// Longer than its route allows.
    TooLong,
    /// No slot in time.
    Late,
    /// No memory, or an unhealthy server.
    Overloaded,
}

fn refusal(refused: &Refused) -> Response<Answer> {
    let mut response = match refused {
        Refused::TooSlow => answer::error(StatusCode::REQUEST_TIMEOUT, "Timeout"),
        Refused::NoBudget => answer::rejected(Rejection::Overloaded),
        Refused::TooLong | Refused::Broken => answer::rejected(Rejection::Unreadable),
    };
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A header's text, cut and without anything that could confuse a log.
fn plain(value: &HeaderValue) -> String {
    let visible = |byte: &u8| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '?' };
    value.as_bytes().iter().take(MAX_TEXT).map(visible).collect()
}

/// A whole number of seconds from 0 to `most`.
fn jitter(rng: &dyn Rng, most: Duration) -> Duration {
    let random = u32::from_le_bytes(talon_crypto::random_array::<4>(rng));
    Duration::from_secs(u64::from(random) % most.as_secs().saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u32);

    impl Rng for Fixed {
        fn fill(&self, out: &mut [u8]) {
            out.copy_from_slice(&self.0.to_le_bytes());
        }
    }

    #[test]
    fn jitter_stays_within_its_bound() {
        for (random, most, expected) in [(0, 29, 0), (29, 29, 29), (30, 29, 0), (u32::MAX, 29, 15), (7, 0, 0)] {
            assert_eq!(jitter(&Fixed(random), Duration::from_secs(most)).as_secs(), expected, "{random} {most}");
        }
    }

    #[test]
    fn header_text_is_cut_and_plain() {
        let value = HeaderValue::from_bytes(b"a\xffb\tc").unwrap();
        assert_eq!(plain(&value), "a?b?c");
        assert_eq!(plain(&HeaderValue::from_str(&"x".repeat(1000)).unwrap()).len(), MAX_TEXT);
    }
}
