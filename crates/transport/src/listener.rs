//! The listener of a frontend: accepts connections within its bounds, speaks TLS and HTTP on them, and drains.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::HeaderName;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::Answer;
use crate::guard::{Busy, Guarded, Pace};
use crate::surface::{Origin, Surface};
use crate::{AgentEndpoint, FrontendLimits, FrontendSettings, TransportError, routes, tls};

/// New connections that are accepted at once before the rate counts: more than one moment brings, less than a processor needs long for.
const BURST: u32 = 10;
/// Streams that an HTTP/2 connection may have open; agents need two.
const MAX_STREAMS: u32 = 16;
/// What an HTTP/2 peer may send before it is read, per stream and per connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;
/// Read buffer of an HTTP/1.1 connection, and with it the longest head.
const BUFFER: usize = 64 << 10;
const MAX_HEAD: u32 = 16 << 10;

/// A bound socket that does not serve yet, so that everything can be bound before anything is served.
pub struct FrontendListener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    base: String,
    proxy_header: Option<HeaderName>,
    limits: FrontendLimits,
}

impl FrontendListener {
    /// Checks the settings and binds the address.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] for settings that cannot be used, [`TransportError::Bind`] when the address cannot be listened on.
    pub async fn bind(settings: FrontendSettings) -> Result<Self, TransportError> {
        let FrontendSettings { bind_address, bind_port, base_path, tls, proxy_header, limits } = settings;
        let proxy_header = proxy_header
            .filter(|name| !name.is_empty())
            .map(|name| HeaderName::try_from(name.as_str()))
            .transpose()
            .map_err(|_| TransportError::Configuration("Frontend.proxy_header is not the name of a header".to_owned()))?;
        let tls = tls.map(tls::server_config).transpose()?.map(|config| TlsAcceptor::from(Arc::new(config)));
        let refuse = |error| TransportError::Bind { address: format!("{bind_address}:{bind_port}"), source: Arc::new(error) };
        let socket = TcpListener::bind((bind_address.as_str(), bind_port)).await.map_err(refuse)?;
        let address = socket.local_addr().map_err(refuse)?;
        Ok(Self { socket, address, tls, base: routes::base(&base_path), proxy_header, limits })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `drain` is cancelled, then lets polls end and packets be processed for [`FrontendLimits::drain_deadline`], and returns.
    pub async fn serve(self, endpoint: Arc<dyn AgentEndpoint>, drain: CancellationToken) {
        let limits = self.limits;
        let drain_deadline = limits.drain_deadline;
        let open = Arc::new(Semaphore::new(limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        let mut rate = self.tls.is_some().then(|| Rate::new(limits.connections_per_second));
        let surface = Arc::new(Surface::new(endpoint, self.base, self.proxy_header, limits, drain.clone()));
        let connections = TaskTracker::new();
        let cut = CancellationToken::new();
        loop {
            let accept = async {
                // What is not accepted yet waits in the kernel's queue: a fleet that comes back at once is slowed down and sees no error.
                if let Some(rate) = &mut rate {
                    tokio::time::sleep_until(rate.take(Instant::now())).await;
                }
                self.socket.accept().await
            };
            let accepted = tokio::select! {
                biased;
                () = drain.cancelled() => break,
                accepted = accept => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&open).try_acquire_owned() else {
                tracing::warn!(%address, "connection closed: too many are open");
                continue;
            };
            let connection = connection(Arc::clone(&surface), self.tls.clone(), stream, Origin::new(address, place, &surface.limits));
            let cut = cut.clone();
            connections.spawn(async move {
                tokio::select! {
                    biased;
                    () = cut.cancelled() => {}
                    () = connection => {}
                }
            });
        }
        drop(self.socket);
        connections.close();
        surface.tasks.close();
        let quiet = async {
            connections.wait().await;
            surface.tasks.wait().await;
        };
        if tokio::time::timeout(drain_deadline, quiet).await.is_err() {
            tracing::warn!(connections = connections.len(), packets = surface.tasks.len(), "draining took too long, the rest is cut");
            cut.cancel();
        }
    }
}

async fn connection(surface: Arc<Surface>, tls: Option<TlsAcceptor>, stream: TcpStream, origin: Origin) {
    let address = origin.address;
    let limits = &surface.limits;
    let pace = Pace { idle: limits.idle_deadline, stall: limits.stall_deadline, min_rate: limits.min_rate };
    let _ = stream.set_nodelay(true);
    let busy = Busy::default();
    let stream = Guarded::new(stream, pace, busy.clone());
    let peer = Arc::new(Connection { surface: Arc::clone(&surface), origin: Arc::new(origin), busy });
    // Each stage is boxed: a waiting reader keeps the memory of its own stage only.
    let Some(tls) = tls else { return Box::pin(http1(&peer, stream)).await };
    match Box::pin(tokio::time::timeout(limits.handshake_deadline, tls.accept(stream))).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => Box::pin(http2(&peer, stream)).await,
        Ok(Ok(stream)) => Box::pin(http1(&peer, stream)).await,
        Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
    }
}

/// What the requests of one connection share.
struct Connection {
    surface: Arc<Surface>,
    origin: Arc<Origin>,
    busy: Busy,
}

impl Connection {
    async fn handle(&self, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        let _busy = self.busy.request();
        Ok(self.surface.handle(&self.origin, request).await)
    }

    fn ended(&self, outcome: Result<(), hyper::Error>) {
        if let Err(error) = outcome {
            tracing::debug!(address = %self.origin.address, %error, "connection ended");
        }
    }
}

async fn http1<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(peer: &Connection, stream: T) {
    let surface = &peer.surface;
    let service = service_fn(|request| peer.handle(request));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(surface.limits.idle_deadline)
        .max_buf_size(BUFFER)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = surface.drain.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    peer.ended(outcome);
}

async fn http2<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(peer: &Arc<Connection>, stream: T) {
    let surface = &peer.surface;
    let shared = Arc::clone(peer);
    let service = service_fn(move |request| {
        let peer = Arc::clone(&shared);
        async move { peer.handle(request).await }
    });
    let served = hyper::server::conn::http2::Builder::new(Streams::new(surface))
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = surface.drain.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    peer.ended(outcome);
}

/// Runs the streams of HTTP/2 connections. A peer that keeps a stream's window shut while its connection lives loses it after the sum of all deadlines
/// that a request may use up.
#[derive(Clone)]
struct Streams {
    life: Duration,
}

impl Streams {
    fn new(surface: &Surface) -> Self {
        let limits = &surface.limits;
        let waits = [limits.read_deadline, limits.concurrency_timeout, crate::surface::MAX_POLL, limits.poll_jitter, limits.write_deadline];
        Self { life: waits.iter().fold(limits.processing_deadline, |sum, wait| sum.saturating_add(*wait)) }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let life = self.life;
        tokio::spawn(async move {
            let _ = tokio::time::timeout(life, stream).await;
        });
    }
}

/// A bucket of tokens, one for each new connection.
struct Rate {
    every: Duration,
    /// When the bucket will be full again.
    full_at: Option<Instant>,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        Self { every: Duration::from_secs(1) / per_second.max(1), full_at: None }
    }

    /// When the next connection may be accepted.
    fn take(&mut self, now: Instant) -> Instant {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.every;
        self.full_at = Some(full_at);
        now.max(full_at.checked_sub(self.every.saturating_mul(BURST)).unwrap_or(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_allows_a_burst_and_then_its_pace() {
        let mut rate = Rate::new(100);
        let start = Instant::now();
        let at_once = (0..50).filter(|_| rate.take(start) <= start).count();
        assert_eq!(at_once, 10);
        let mut now = start + Duration::from_secs(10);
        for _ in 0..110 {
            now = rate.take(now);
        }
        let taken = (now - start).as_secs_f64() - 10.0;
        assert!((0.99..=1.01).contains(&taken), "a hundred beyond the burst take {taken} s");
    }
}
