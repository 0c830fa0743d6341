//! The same surface over WebSocket: one binary frame is one packet, answers come as JSON with the status that HTTP would have had.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderValue, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use crate::answer;
use crate::body::Answer;
use crate::routes::Action;
use crate::surface::{Origin, Shut, Surface};
use crate::{AgentRequest, ControlOutcome, LongPoll, Peer, Processed, ReaderOutcome, Rejection};

/// Longest message from an agent.
pub(crate) const MAX_MESSAGE: usize = 10 << 20;
/// What a socket reads at one time: small, since thousands of them wait.
const BUFFER: usize = 4 << 10;
/// The constant of RFC 6455 that turns a key into its acceptance.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What an agent gets: `{"code", "err", "data"}`, each left out when there is none.
#[derive(Serialize)]
struct Wrapper<'a> {
    code: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    err: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    data: String,
}

/// Answers an upgrade request, and serves the socket on a task of its own when it was accepted.
pub(crate) fn upgrade(
    surface: &Arc<Surface>,
    action: Action,
    peer: Peer,
    from: Arc<Origin>,
    request: &mut Request<Incoming>,
) -> Response<Answer> {
    let accepted = match accept(request) {
        Ok(accepted) => accepted,
        Err(status) => return answer::error(status, status.canonical_reason().unwrap_or_default()),
    };
    let upgraded: OnUpgrade = hyper::upgrade::on(request);
    let surface = Arc::clone(surface);
    let sockets = surface.tasks.clone();
    sockets.spawn(async move {
        let Ok(upgraded) = timeout(surface.limits.handshake_deadline, upgraded).await else { return };
        let Ok(upgraded) = upgraded else { return };
        let mut socket = Socket::new(upgraded, &surface, from).await;
        match action {
            Action::ServerPem => socket.server_pem().await,
            Action::Control => socket.control(peer).await,
            Action::Reader => socket.reader(peer).await,
            Action::Public | Action::Healthz => {}
        }
    });
    answer::switching(accepted)
}

/// Checks the request for an upgrade; gives the value of `Sec-WebSocket-Accept`.
fn accept<T>(request: &Request<T>) -> Result<HeaderValue, StatusCode> {
    let headers = request.headers();
    let token = |name, wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    let asked = request.method() == Method::GET
        && token(UPGRADE, "websocket")
        && token(CONNECTION, "upgrade")
        && token(SEC_WEBSOCKET_VERSION, "13");
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .and_then(|key| key.to_str().ok())
        .filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
    let (true, Some(key)) = (asked, key) else { return Err(StatusCode::BAD_REQUEST) };
    if !same_origin(headers) {
        return Err(StatusCode::FORBIDDEN);
    }
    HeaderValue::from_str(&acceptance(key)).map_err(|_| StatusCode::BAD_REQUEST)
}

/// The value of `Sec-WebSocket-Accept` for a key.
pub(crate) fn acceptance(key: &str) -> String {
    STANDARD.encode(talon_crypto::sha1(format!("{key}{GUID}").as_bytes()))
}

/// Whether the request comes from no page, or from one of this host: a browser elsewhere must not speak for its user.
fn same_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    match (origin.as_ref().and_then(Uri::authority), host) {
        (Some(origin), Some(host)) => origin.as_str().eq_ignore_ascii_case(host),
        _ => false,
    }
}

fn refusal(shut: &Shut) -> (u16, &'static str) {
    match shut {
        Shut::Late => (408, "Timeout"),
        Shut::TooLong | Shut::Overloaded => answer::face(Rejection::Overloaded),
    }
}

/// One agent's socket.
struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
    surface: Arc<Surface>,
    from: Arc<Origin>,
    heard: Instant,
    pinged: Instant,
}

impl Socket {
    async fn new(upgraded: Upgraded, surface: &Arc<Surface>, from: Arc<Origin>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let stream = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
        let now = Instant::now();
        Self { stream, surface: Arc::clone(surface), from, heard: now, pinged: now }
    }

    async fn server_pem(&mut self) {
        while self.message_or_drain().await.is_some() {
            let pem = self.surface.endpoint.server_pem();
            if !self.say(200, "", &pem).await {
                return;
            }
        }
    }

    /// Packets one after the other, each acknowledged when it is durable.
    async fn control(&mut self, peer: Peer) {
        while let Some(body) = self.message_or_drain().await {
            let (code, text) = take(&self.surface, &self.from, &peer, body).await;
            let going_on = matches!(code, 200 | 400);
            if !self.say(code, text, b"").await || !going_on {
                return;
            }
        }
    }

    /// Polls one after the other. An agent says that it is ready for more with its next packet; what it sends before that is not looked at.
    async fn reader(&mut self, peer: Peer) {
        while let Some(body) = self.message_or_drain().await {
            let poll = match start(&self.surface, &self.from, &peer, body).await {
                Ok(Some(poll)) => poll,
                Ok(None) => return,
                Err((code, text)) => {
                    self.say(code, text, b"").await;
                    return;
                }
            };
            let (mut news, farewell) = (poll.answer, poll.farewell);
            let drain = self.surface.drain.clone();
            let content = loop {
                tokio::select! {
                    content = news.as_mut() => break content,
                    () = drain.cancelled() => {
                        drop(news);
                        let content = farewell().unwrap_or_default();
                        self.say(200, "", &content).await;
                        return;
                    }
                    message = self.message() => if message.is_none() { return },
                }
            };
            drop(news);
            let Some(content) = content else { return };
            if !self.say(200, "", &content).await {
                return;
            }
        }
    }

    /// The next message, unless the frontend drains first.
    async fn message_or_drain(&mut self) -> Option<Bytes> {
        let drain = self.surface.drain.clone();
        tokio::select! {
            biased;
            () = drain.cancelled() => None,
            message = self.message() => message,
        }
    }

    /// The next message. Pings when its time has come; `None` when the socket is over or the peer has not been heard of for a ping and a tenth.
    /// May be dropped at any time.
    async fn message(&mut self) -> Option<Bytes> {
        let interval = self.surface.limits.ping_interval;
        loop {
            let (ping, over) = (self.pinged + interval, self.heard + interval + interval / 10);
            tokio::select! {
                biased;
                message = self.stream.next() => {
                    match message? {
                        Ok(Message::Binary(content)) => {
                            self.heard = Instant::now();
                            return Some(content);
                        }
                        Ok(Message::Text(content)) => {
                            self.heard = Instant::now();
                            return Some(content.into());
                        }
                        Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                            self.heard = Instant::now();
                            self.stream.flush().await.ok()?;
                        }
                        Ok(Message::Close(_)) => {
                            self.stream.flush().await.ok()?;
                            return None;
                        }
                        Err(error) => {
                            self.refuse(&error).await;
                            return None;
                        }
                    }
                }
                () = sleep_until(ping.min(over)) => {
                    if Instant::now() >= over {
                        return None;
                    }
                    self.pinged = Instant::now();
                    self.stream.send(Message::Ping(Bytes::new())).await.ok()?;
                }
            }
        }
    }

    /// Says with a Close frame what was wrong with the peer's framing.
    async fn refuse(&mut self, error: &Error) {
        let code = match error {
            Error::Capacity(_) => CloseCode::Size,
            Error::Protocol(_) => CloseCode::Protocol,
            Error::Utf8(_) => CloseCode::Invalid,
            _ => return,
        };
        let close = Message::Close(Some(CloseFrame { code, reason: "".into() }));
        let _ = timeout(Duration::from_secs(5), self.stream.send(close)).await;
    }

    /// Sends one answer; whether it left.
    async fn say(&mut self, code: u16, err: &str, data: &[u8]) -> bool {
        let Ok(wrapper) = serde_json::to_vec(&Wrapper { code, err, data: STANDARD.encode(data) }) else { return false };
        let sent = timeout(self.surface.limits.write_deadline, self.stream.send(Message::Binary(wrapper.into()))).await;
        matches!(sent, Ok(Ok(())))
    }
}

/// Has one packet processed; the code and text for the agent.
async fn take(surface: &Surface, from: &Origin, peer: &Peer, body: Bytes) -> (u16, &'static str) {
    let held = match surface.admit(from, Action::Control, body.len()).await {
        Ok(held) => held,
        Err(Shut::TooLong) => return (200, ""),
        Err(shut) => return refusal(&shut),
    };
    let request = AgentRequest { peer: peer.clone(), urgent: false, body };
    match Arc::clone(&surface.endpoint).control(request).await {
        ControlOutcome::Reject(rejection) => answer::face(rejection),
        ControlOutcome::Dropped => (200, ""),
        ControlOutcome::Accepted(processing) => match surface.process(processing, held).await {
            Ok(Processed::Answer(_)) => (200, ""),
            Ok(Processed::Refused) => (400, "The packet is refused"),
            Ok(Processed::Failed) | Err(_) => (503, "The packet was not processed"),
        },
    }
}

/// Starts a poll: `None` when the agent has no record yet.
async fn start(surface: &Surface, from: &Origin, peer: &Peer, body: Bytes) -> Result<Option<LongPoll>, (u16, &'static str)> {
    let held = surface.admit(from, Action::Reader, body.len()).await.map_err(|shut| refusal(&shut))?;
    let outcome = Arc::clone(&surface.endpoint).reader(AgentRequest { peer: peer.clone(), urgent: false, body }).await;
    drop(held);
    match outcome {
        ReaderOutcome::Reject(rejection) => Err(answer::face(rejection)),
        ReaderOutcome::Empty => Ok(None),
        ReaderOutcome::Poll(poll) => Ok(Some(poll)),
    }
}
