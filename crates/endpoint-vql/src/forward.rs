//! Rows on their way to another system: gathered into batches by size, count and age, and sent again when that system is busy.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use talon_transport::{WebBody, WebRequest};
use talon_vql::{Call, CallError, CancelToken, Dict, Rows, Scope, StopReason, StoredQuery, Value, json, member};

use crate::web::Web;

/// Rows in one request unless the call says otherwise.
const CHUNK: usize = 1000;
/// Seconds that a row waits for others unless the call says otherwise.
const WAIT: u64 = 2;
/// Bytes in one request.
const MAX_BATCH: usize = 10 << 20;
/// How often a request is sent again unless the call says otherwise.
const RETRIES: u32 = 4;
/// How long the first pause before that is; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// The most of an answer that is read.
const MAX_ANSWER: usize = 4 << 20;

/// Another system.
pub(crate) trait Receiving: Send + 'static {
    /// Appends a row to the body of a request.
    ///
    /// # Errors
    /// The row cannot be sent; it is dropped and the error logged.
    fn append(&mut self, row: &Dict, body: &mut Vec<u8>) -> Result<(), CallError>;

    /// The request for a whole body; `attempt` counts up, so that another address can be tried.
    fn request(&self, body: Bytes, attempt: u32) -> WebRequest;

    /// Closes the body of a request.
    fn finish(&self, body: Vec<u8>) -> Vec<u8> {
        body
    }
}

/// How batches are made.
pub(crate) struct Batching {
    pub(crate) chunk: usize,
    pub(crate) wait: Duration,
    pub(crate) retries: u32,
}

impl Batching {
    /// As the arguments of the call say.
    pub(crate) fn of(call: &Call) -> Self {
        let chunk = call.opt_int("chunk_size").and_then(|rows| usize::try_from(rows).ok()).filter(|rows| *rows > 0);
        let wait = call.opt_int("wait_time").filter(|seconds| *seconds > 0).map(i64::unsigned_abs);
        let retries = call.opt_int("max_retries").and_then(|count| u32::try_from(count).ok());
        Self { chunk: chunk.unwrap_or(CHUNK), wait: Duration::from_secs(wait.unwrap_or(WAIT)), retries: retries.unwrap_or(RETRIES).min(20) }
    }
}

/// Reads the query on a thread of its own, so that a row does not wait for the next one.
struct Reading {
    rows: Receiver<Value>,
    cancel: CancelToken,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.cancel.stop(StopReason::Done);
    }
}

impl Reading {
    fn start(query: StoredQuery, scope: &Scope) -> Result<Self, CallError> {
        const AHEAD: usize = 100;
        let cancel = scope.cancel_token().child();
        let inner = scope.with_cancel(cancel.clone()).ok_or("queries nest too deep")?;
        let (sender, rows) = sync_channel(AHEAD);
        talon_vql::spawn_query_thread("vql forward", move || {
            for row in query.open(&inner) {
                let Ok(row) = row else { return };
                if inner.stopped() || sender.send(row.materialized(&inner)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { rows, cancel })
    }
}

/// The rows of the plugin: one for each request, with the answer's status, the answer and the number of rows that it took.
pub(crate) fn rows(call: &Call, web: Web, batching: Batching, receiving: impl Receiving) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let query = call.query("query").ok_or("Field query is required")?;
    let reading = Reading::start(query, &scope)?;
    Ok(Rows::from_fn({
        let mut forward = Forward { name: call.name(), scope, web, batching, receiving, reading, ended: false };
        move || forward.next()
    }))
}

struct Forward<R> {
    name: &'static str,
    scope: Scope,
    web: Web,
    batching: Batching,
    receiving: R,
    reading: Reading,
    ended: bool,
}

impl<R: Receiving> Forward<R> {
    fn next(&mut self) -> Option<Result<Value, CallError>> {
        if self.ended {
            return None;
        }
        let (body, count) = self.gather()?;
        match self.deliver(body, count) {
            Ok(row) => Some(Ok(row.into())),
            Err(CallError::Silent) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// The next batch. `None` when there is no more, or the query must stop.
    fn gather(&mut self) -> Option<(Vec<u8>, u64)> {
        const LOOK: Duration = Duration::from_millis(100);
        let (mut body, mut count, mut since) = (Vec::new(), 0_u64, None);
        loop {
            match self.reading.rows.recv_timeout(LOOK) {
                Ok(row) => match self.receiving.append(&member::row_to_dict(&row), &mut body) {
                    Ok(()) => {
                        count = count.saturating_add(1);
                        since.get_or_insert(self.scope.elapsed());
                    }
                    Err(error) => self.scope.log_once(format!("{}: {error}", self.name)),
                },
                Err(RecvTimeoutError::Timeout) if self.scope.sleep(Duration::ZERO) => return None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.ended = true;
                    return (count > 0 && !self.scope.stopped()).then_some((body, count));
                }
            }
            let old = since.is_some_and(|since| self.scope.elapsed().saturating_sub(since) >= self.batching.wait);
            if count > 0 && (old || body.len() >= MAX_BATCH || usize::try_from(count).is_ok_and(|count| count >= self.batching.chunk)) {
                return Some((body, count));
            }
        }
    }

    /// Sends a batch, again and again while the other side is out of reach or busy.
    fn deliver(&mut self, body: Vec<u8>, count: u64) -> Result<Dict, CallError> {
        let body = Bytes::from(self.receiving.finish(body));
        let mut pause = PAUSE;
        let mut attempt = 0;
        loop {
            let sent = self.web.send(self.receiving.request(body.clone(), attempt));
            let problem = match sent {
                Err(CallError::Silent) => return Err(CallError::Silent),
                Err(error) => error.to_string(),
                Ok(mut answer) => {
                    let content = self.web.content(&mut answer, MAX_ANSWER)?;
                    let shown = json::decode_row(&content).map_or_else(|_| Value::str(content), Value::from);
                    if !matches!(answer.status, 429 | 502..=504) || attempt >= self.batching.retries {
                        let status = i64::from(answer.status);
                        if !(200..300).contains(&status) {
                            self.scope.log(format!("ERROR:{}: the server answered with status {status}", self.name));
                        }
                        return Ok(Dict::new().with("StatusCode", status).with("Response", shown).with("Rows", count));
                    }
                    format!("status {}", answer.status)
                }
            };
            if attempt >= self.batching.retries {
                return Err(CallError::failed(format!("gave up after {} attempts: {problem}", attempt.saturating_add(1))));
            }
            self.scope.log(format!("{}: {problem}; trying again", self.name));
            if self.scope.sleep(pause) {
                return Err(CallError::Silent);
            }
            pause = pause.saturating_mul(2);
            attempt = attempt.saturating_add(1);
        }
    }
}

/// A POST of JSON.
pub(crate) fn post(url: String, kind: &str, authorization: Option<&str>, body: Bytes) -> WebRequest {
    let mut headers = vec![("Content-Type".to_owned(), kind.to_owned())];
    headers.extend(authorization.map(|value| ("Authorization".to_owned(), value.to_owned())));
    WebRequest { method: "POST".to_owned(), url, headers, body: WebBody::Bytes(body) }
}

/// The value of a basic `Authorization` header.
pub(crate) fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}
