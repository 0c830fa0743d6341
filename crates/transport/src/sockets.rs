//! The agent's WebSocket client (spec 01 §8): one socket for each handler, on which packets and answers alternate. A task of its own reads each socket, so that
//! pings are answered while nothing is asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use talon_crypto::{Rng as _, SystemRng};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tower_service::Service as _;

use crate::dial::Dialer;
use crate::websocket::{MAX_MESSAGE, acceptance};
use crate::{Handler, Reply, ServerUrl, TransportError};

/// A server whose address refuses the upgrade is polled over HTTP for so long, then asked again.
const POLLED: Duration = Duration::from_secs(600);
/// Answers that a reader's socket may hold before somebody asks for them.
const EARLY: usize = 16;
/// Exchanges that may wait for a socket.
const WAITING: usize = 8;
/// What a socket reads at one time.
const BUFFER: usize = 16 << 10;

/// Why a packet did not go over a WebSocket.
pub(crate) enum Declined {
    /// It has to be posted over HTTP.
    Poll,
    /// The exchange failed.
    Failed(TransportError),
}

impl From<TransportError> for Declined {
    fn from(error: TransportError) -> Self {
        Self::Failed(error)
    }
}

/// The sockets of an agent.
pub(crate) struct Sockets {
    dialer: Dialer,
    user_agent: HeaderValue,
    timeout: Duration,
    /// A server that is not heard of for so long is gone.
    patience: Duration,
    max_reply: usize,
    control: tokio::sync::Mutex<Option<Line>>,
    reader: tokio::sync::Mutex<Option<Line>>,
    polled: Mutex<BTreeMap<String, Instant>>,
}

/// An open socket, as those see it who use it. Dropping it closes the socket.
struct Line {
    server: ServerUrl,
    exchanges: mpsc::Sender<Exchange>,
    abandoned: Arc<AtomicBool>,
}

/// Whoever waits for an answer. When it goes away before that, nobody uses the socket again.
struct Watch {
    abandoned: Arc<AtomicBool>,
    answered: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.answered {
            self.abandoned.store(true, Ordering::Relaxed);
        }
    }
}

/// One packet and whoever waits for its answer. A waiter that goes away gives the socket up, since its answer could not be told from the next one.
struct Exchange {
    body: Bytes,
    answer: oneshot::Sender<Reply>,
}

type Stream = WebSocketStream<TokioIo<Upgraded>>;

/// What a server sends: the answer that HTTP would have had.
#[derive(Deserialize)]
struct Wrapper {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    data: String,
}

impl Sockets {
    pub(crate) fn new(dialer: Dialer, user_agent: HeaderValue, timeout: Duration, ping_interval: Duration, max_reply: usize) -> Self {
        Self {
            dialer,
            user_agent,
            timeout,
            patience: ping_interval.saturating_add(ping_interval / 10),
            max_reply,
            control: tokio::sync::Mutex::default(),
            reader: tokio::sync::Mutex::default(),
            polled: Mutex::default(),
        }
    }

    /// Sends one packet and waits for its answer, on a socket that is open already or a new one.
    pub(crate) async fn post(&self, server: &ServerUrl, handler: Handler, body: Bytes) -> Result<Reply, Declined> {
        if body.len() > MAX_MESSAGE || self.is_polled(server) {
            return Err(Declined::Poll);
        }
        let (answer, mut watch) = self.submit(server, handler, body).await?;
        let reply = answer.await;
        watch.answered = true;
        // A socket that ended before the answer is what HTTP would call a timeout.
        Ok(reply.unwrap_or_else(|_| emulated(408)))
    }

    async fn submit(&self, server: &ServerUrl, handler: Handler, body: Bytes) -> Result<(oneshot::Receiver<Reply>, Watch), Declined> {
        let mut slot = match handler {
            Handler::Control => self.control.lock().await,
            Handler::Reader => self.reader.lock().await,
        };
        let (sender, answer) = oneshot::channel();
        let mut exchange = Exchange { body, answer: sender };
        if let Some(line) = slot.as_ref().filter(|line| line.server == *server && !line.abandoned.load(Ordering::Relaxed)) {
            match line.exchanges.try_send(exchange) {
                Ok(()) => return Ok((answer, Watch { abandoned: Arc::clone(&line.abandoned), answered: false })),
                Err(mpsc::error::TrySendError::Closed(back) | mpsc::error::TrySendError::Full(back)) => exchange = back,
            }
        }
        *slot = None;
        let stream = self.open(server, handler.path()).await?;
        let (exchanges, queue) = mpsc::channel(WAITING);
        // The queue is empty and its reader is at hand: this cannot fail.
        let _accepted = exchanges.try_send(exchange);
        let task = Task {
            stream,
            early: VecDeque::new(),
            over: false,
            heard: Instant::now(),
            handler,
            patience: self.patience,
            timeout: self.timeout,
        };
        tokio::spawn(task.serve(queue));
        let abandoned = Arc::new(AtomicBool::new(false));
        *slot = Some(Line { server: server.clone(), exchanges, abandoned: Arc::clone(&abandoned) });
        Ok((answer, Watch { abandoned, answered: false }))
    }

    /// `server.pem` over a socket of its own, for servers whose HTTP side cannot be reached.
    pub(crate) async fn fetch_pem(&self, server: &ServerUrl) -> Result<Bytes, Declined> {
        let stream = self.open(server, "server.pem").await?;
        let handler = Handler::Control;
        let mut task = Task {
            stream,
            early: VecDeque::new(),
            over: false,
            heard: Instant::now(),
            handler,
            patience: self.patience,
            timeout: self.timeout,
        };
        let reply = task.ask(Bytes::new()).await.unwrap_or_else(emulated);
        task.close(CloseCode::Normal).await;
        if reply.status == 200 { Ok(reply.body) } else { Err(TransportError::Status(reply.status).into()) }
    }

    async fn open(&self, server: &ServerUrl, path: &str) -> Result<Stream, Declined> {
        let opened = timeout(self.timeout, self.upgrade(server, path)).await;
        let upgraded = opened.map_err(|_| TransportError::Timeout("opening a WebSocket"))??;
        // JSON and base64 make an answer longer by a third.
        let limit = self.max_reply.saturating_div(3).saturating_mul(4).saturating_add(4 << 10);
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit));
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await)
    }

    /// The handshake of RFC 6455, without subprotocol, extension or `Origin`.
    async fn upgrade(&self, server: &ServerUrl, path: &str) -> Result<Upgraded, Declined> {
        let broken = |error: hyper::Error| TransportError::Broken(Arc::new(error));
        let uri = server.join(path);
        let wire = self.dialer.clone().call(uri.clone()).await?;
        let mut nonce = [0; 16];
        SystemRng.fill(&mut nonce);
        let key = STANDARD.encode(nonce);
        let mut request = Request::new(Empty::<Bytes>::new());
        let header =
            |text: &str| HeaderValue::from_str(text).map_err(|_| TransportError::Configuration(format!("{server} is not a host name")));
        let headers = request.headers_mut();
        headers.insert(HOST, header(uri.authority().map_or("", |authority| authority.as_str()))?);
        headers.insert(USER_AGENT, self.user_agent.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_KEY, header(&key)?);
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        *request.uri_mut() = uri.path().parse().unwrap_or_default();
        let (mut sender, connection) =
            http1::Builder::new().title_case_headers(true).handshake::<_, Empty<Bytes>>(wire).await.map_err(broken)?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            tracing::info!(status = response.status().as_u16(), %server, "no WebSocket here: polling over HTTP instead");
            self.polled().insert(server.to_string(), Instant::now() + POLLED);
            return Err(Declined::Poll);
        }
        let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT).and_then(|value| value.to_str().ok());
        if accepted != Some(acceptance(&key).as_str()) {
            return Err(TransportError::Status(StatusCode::SWITCHING_PROTOCOLS.as_u16()).into());
        }
        Ok(hyper::upgrade::on(response).await.map_err(broken)?)
    }

    fn is_polled(&self, server: &ServerUrl) -> bool {
        let mut polled = self.polled();
        polled.retain(|_, until| *until > Instant::now());
        polled.contains_key(&server.to_string())
    }

    fn polled(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Instant>> {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The status that an event on a socket stands for, as stock agents see it.
fn emulated(status: u16) -> Reply {
    Reply { status, location: None, body: Bytes::new() }
}

/// Reads an answer; one that is not understood counts as a server that is ill.
fn unwrapped(content: &[u8]) -> Reply {
    let Ok(wrapper) = serde_json::from_slice::<Wrapper>(content) else { return emulated(503) };
    match STANDARD.decode(wrapper.data) {
        Ok(body) if wrapper.code != 0 => Reply { body: body.into(), ..emulated(wrapper.code) },
        _ => emulated(503),
    }
}

/// One socket and the task that owns it.
struct Task {
    stream: Stream,
    /// Answers that came before they were asked for: a server hands out tasks when it has them.
    early: VecDeque<Bytes>,
    /// The socket has ended; what came before that is still handed out, since a server may not send a task twice.
    over: bool,
    heard: Instant,
    handler: Handler,
    patience: Duration,
    timeout: Duration,
}

impl Task {
    async fn serve(mut self, mut queue: mpsc::Receiver<Exchange>) {
        loop {
            tokio::select! {
                exchange = queue.recv() => {
                    let Some(mut exchange) = exchange else { break };
                    let reply = tokio::select! {
                        reply = self.ask(exchange.body) => reply.unwrap_or_else(emulated),
                        () = exchange.answer.closed() => break,
                    };
                    let going_on = reply.status == 200;
                    if exchange.answer.send(reply).is_err() || !going_on {
                        break;
                    }
                    if self.over && self.early.is_empty() {
                        return;
                    }
                }
                message = self.message(), if !self.over => match message {
                    Ok(message) if self.handler == Handler::Reader && self.early.len() < EARLY => self.early.push_back(message),
                    // Nothing was asked.
                    Ok(_) => return self.close(CloseCode::Policy).await,
                    Err(_) if self.early.is_empty() => return,
                    Err(_) => self.over = true,
                }
            }
        }
        self.close(CloseCode::Normal).await;
    }

    /// Sends a packet and waits for the answer; the status that a failure stands for.
    async fn ask(&mut self, body: Bytes) -> Result<Reply, u16> {
        let sent = match timeout(self.timeout, self.stream.send(Message::Binary(body))).await {
            _ if self.over => Err(408),
            Ok(sent) => sent.map_err(|error| status_of(&error)),
            Err(_) => Err(408),
        };
        if let Some(early) = self.early.pop_front() {
            self.over |= sent.is_err();
            return Ok(unwrapped(&early));
        }
        sent?;
        self.heard = self.heard.max(Instant::now());
        self.message().await.map(|content| unwrapped(&content))
    }

    /// The next message; answers pings. Fails when the socket is over, or the server has not been heard of for too long. May be dropped at any time.
    async fn message(&mut self) -> Result<Bytes, u16> {
        loop {
            let message = tokio::select! {
                biased;
                message = self.stream.next() => message.ok_or(408_u16)?,
                () = sleep_until(self.heard + self.patience) => return Err(408),
            };
            self.heard = Instant::now();
            match message {
                Ok(Message::Binary(content)) => return Ok(content),
                Ok(Message::Text(content)) => return Ok(content.into()),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                    self.stream.flush().await.map_err(|error| status_of(&error))?;
                }
                Ok(Message::Close(_)) => {
                    let _echoed = self.stream.flush().await;
                    return Err(408);
                }
                Err(error) => {
                    match &error {
                        Error::Capacity(_) => self.close(CloseCode::Size).await,
                        Error::Protocol(_) => self.close(CloseCode::Protocol).await,
                        _ => {}
                    }
                    return Err(status_of(&error));
                }
            }
        }
    }

    async fn close(&mut self, code: CloseCode) {
        let frame = CloseFrame { code, reason: "".into() };
        let _ = timeout(Duration::from_secs(5), self.stream.close(Some(frame))).await;
    }
}

/// A socket that closed is a timeout, any other failure a server that is ill (spec 01 §8).
fn status_of(error: &Error) -> u16 {
    use tokio_tungstenite::tungstenite::error::ProtocolError;
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => 408,
        _ => 503,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_unwrapped() {
        for (text, status, body) in [
            (r#"{"code":200}"#, 200, ""),
            (r#"{"code":200,"data":"YWI="}"#, 200, "ab"),
            (r#"{"code":409,"err":"Another"}"#, 409, ""),
            (r#"{"code":200,"data":"*"}"#, 503, ""),
            (r#"{"err":"x"}"#, 503, ""),
            (r#"{"code":-1}"#, 503, ""),
            ("", 503, ""),
            ("<html>", 503, ""),
        ] {
            let reply = unwrapped(text.as_bytes());
            assert_eq!((reply.status, &reply.body[..]), (status, body.as_bytes()), "{text}");
        }
    }
}
