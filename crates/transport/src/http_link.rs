//! The agent's client: one pool of connections for all exchanges, bounded answers, deadlines that count progress.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::dial::{Dialer, Ways};
use crate::proxy::Proxies;
use crate::sockets::{Declined, Sockets};
use crate::{LinkSettings, Post, Reply, ServerLink, ServerUrl, TransportError, verify};

/// Longest `server.pem`.
const MAX_PEM: usize = 1 << 20;
/// Longest piece of a request's body that is handed over at one time: the unit in which progress is seen.
const PIECE: usize = 64 << 10;
/// Unused connections are closed before a stock server does it after 150 s.
const IDLE: Duration = Duration::from_secs(90);

type Exchange<'a, T> = Pin<Box<dyn Future<Output = Result<T, TransportError>> + Send + 'a>>;

/// The link over HTTP/1.1 and HTTP/2, with TLS or without, and over WebSockets where a URL says so. A server that refuses to upgrade, and a packet that is too
/// long for a WebSocket, are spoken to over the URL's HTTP twin, which every frontend serves on the same port. Redirects are never followed.
pub struct HttpLink {
    sockets: Sockets,
    client: Client<Dialer, Upload>,
    dialer: Dialer,
    user_agent: HeaderValue,
    timeout: Duration,
    max_reply: usize,
}

impl HttpLink {
    /// A link with the given settings; nothing is connected yet. Reads the proxy variables of the environment and the system's authorities.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] for settings that cannot be used.
    pub fn new(settings: &LinkSettings) -> Result<Self, TransportError> {
        let tls = verify::client_config(settings)?;
        let pinned = || ServerName::try_from(settings.pinned_server_name.clone()).ok();
        let ways = |tls: rustls::ClientConfig, always_tunnel| {
            Ok::<_, TransportError>(Dialer::new(Ways {
                tls: TlsConnector::from(Arc::new(tls)),
                server_name: if settings.use_self_signed_ssl { pinned() } else { None },
                proxies: Proxies::new(&settings.proxy, |name| std::env::var(name).ok())?,
                fallback_addresses: settings.fallback_addresses.clone(),
                timeout: settings.connection_timeout,
                names: std::collections::BTreeMap::new(),
                always_tunnel,
            }))
        };
        // A WebSocket needs HTTP/1.1.
        let mut without_alpn = tls.clone();
        without_alpn.alpn_protocols.clear();
        let socket_dialer = ways(without_alpn, true)?;
        let dialer = ways(tls, false)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(2)
            .http1_title_case_headers(true)
            .http1_max_buf_size(256 << 10)
            .build(dialer.clone());
        let user_agent = HeaderValue::from_str(&settings.user_agent)
            .map_err(|_| TransportError::Configuration("the user agent may hold visible characters only".to_owned()))?;
        let (timeout, max_reply) = (settings.connection_timeout, settings.max_reply);
        let sockets = Sockets::new(socket_dialer, user_agent.clone(), timeout, settings.ping_interval, max_reply);
        Ok(Self { sockets, client, dialer, user_agent, timeout, max_reply })
    }

    async fn deliver(&self, server: &ServerUrl, post: Post) -> Result<Reply, TransportError> {
        let Post { handler, urgent, body } = post;
        if server.scheme().is_websocket() {
            match self.sockets.post(server, handler, body.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(Declined::Failed(error)) => return Err(error),
                Err(Declined::Poll) => {}
            }
        }
        self.exchange(Method::POST, server.join(handler.path()), urgent, body, self.max_reply).await
    }

    async fn pem_over_http(&self, server: &ServerUrl) -> Result<Bytes, TransportError> {
        let reply = self.exchange(Method::GET, server.join("server.pem"), false, Bytes::new(), MAX_PEM).await?;
        if reply.status == 200 { Ok(reply.body) } else { Err(TransportError::Status(reply.status)) }
    }

    async fn exchange(&self, method: Method, uri: Uri, urgent: bool, body: Bytes, max: usize) -> Result<Reply, TransportError> {
        let (body, progress) = Upload::new(body);
        let mut request = Request::new(body);
        *request.method_mut() = method;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, self.user_agent.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/binary"));
        if urgent {
            headers.insert("x-priority", HeaderValue::from_static("urgent"));
        }
        if uri.scheme_str() == Some("http")
            && let Some(credentials) = self.dialer.proxy_for(&uri).and_then(|proxy| proxy.credentials.clone())
        {
            headers.insert(PROXY_AUTHORIZATION, credentials);
        }
        *request.uri_mut() = uri;
        let response = self.head(request, &progress).await?;
        let status = response.status().as_u16();
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = self.body(response.into_body(), max).await?;
        Ok(Reply { status, location, body })
    }

    /// Waits for the head of an answer as long as the request's body makes progress, and for one timeout after it.
    async fn head(&self, mut request: Request<Upload>, progress: &AtomicUsize) -> Result<Response<Incoming>, TransportError> {
        let mut connecting = capture_connection(&mut request);
        let mut answer = std::pin::pin!(self.client.request(request));
        // The dialer keeps its own time.
        tokio::select! {
            outcome = answer.as_mut() => return outcome.map_err(failure),
            _ = connecting.wait_for_connection_metadata() => {}
        }
        let mut sent = 0;
        loop {
            match timeout(self.timeout, answer.as_mut()).await {
                Ok(outcome) => return outcome.map_err(failure),
                Err(_) => {
                    let now = progress.load(Ordering::Relaxed);
                    if now == sent {
                        return Err(TransportError::Timeout("waiting for the server's answer"));
                    }
                    sent = now;
                }
            }
        }
    }

    async fn body(&self, mut body: Incoming, max: usize) -> Result<Bytes, TransportError> {
        let mut joined = BytesMut::new();
        loop {
            let frame = timeout(self.timeout, body.frame()).await.map_err(|_| TransportError::Timeout("reading the server's answer"))?;
            let Some(frame) = frame else { return Ok(joined.freeze()) };
            let frame = frame.map_err(|error| TransportError::Broken(Arc::new(error)))?;
            if let Some(data) = frame.data_ref() {
                if joined.len().saturating_add(data.len()) > max {
                    return Err(TransportError::TooLarge { limit: max });
                }
                joined.extend_from_slice(data);
            }
        }
    }
}

impl ServerLink for HttpLink {
    fn fetch_pem<'a>(&'a self, server: &'a ServerUrl) -> Exchange<'a, Bytes> {
        Box::pin(async move {
            let error = match self.pem_over_http(server).await {
                Err(error) if server.scheme().is_websocket() => error,
                done => return done,
            };
            match self.sockets.fetch_pem(server).await {
                Ok(pem) if pem.len() <= MAX_PEM => Ok(pem),
                Ok(_) => Err(TransportError::TooLarge { limit: MAX_PEM }),
                // What the first way said tells more.
                Err(_) => Err(error),
            }
        })
    }

    fn post<'a>(&'a self, server: &'a ServerUrl, post: Post) -> Exchange<'a, Reply> {
        Box::pin(self.deliver(server, post))
    }
}

/// What the dialer said, where it is the cause; else the connection broke.
pub(crate) fn failure(error: hyper_util::client::legacy::Error) -> TransportError {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(inner) = cause {
        if let Some(known) = inner.downcast_ref::<TransportError>() {
            return known.clone();
        }
        cause = inner.source();
    }
    TransportError::Broken(Arc::new(error))
}

/// A request's body that shows how far it has come.
struct Upload {
    rest: Bytes,
    progress: Arc<AtomicUsize>,
}

impl Upload {
    fn new(content: Bytes) -> (Self, Arc<AtomicUsize>) {
        let progress = Arc::new(AtomicUsize::new(0));
        (Self { rest: content, progress: Arc::clone(&progress) }, progress)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        this.progress.fetch_add(piece.len(), Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        u64::try_from(self.rest.len()).map(SizeHint::with_exact).unwrap_or_default()
    }
}
