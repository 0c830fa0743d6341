//! Making a connection to a server: names, fallback addresses, proxies, TLS.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::proxy::{MAX_HEAD, Proxies, Proxy};
use crate::{BoxFuture, TransportError};

/// Makes connections for the HTTP client.
#[derive(Clone)]
pub(crate) struct Dialer(Arc<Ways>);

/// What a dialer needs to know.
pub(crate) struct Ways {
    pub(crate) tls: TlsConnector,
    /// Sent as SNI instead of the URL's host.
    pub(crate) server_name: Option<ServerName<'static>>,
    pub(crate) proxies: Proxies,
    pub(crate) fallback_addresses: BTreeMap<String, String>,
    pub(crate) timeout: Duration,
    /// Addresses of hosts that are not looked up.
    pub(crate) names: BTreeMap<String, IpAddr>,
    /// Whether a proxy is asked for a tunnel even without TLS: what is no HTTP does not pass it otherwise.
    pub(crate) always_tunnel: bool,
}

impl Dialer {
    pub(crate) fn new(ways: Ways) -> Self {
        Self(Arc::new(ways))
    }

    /// The credentials that a plain request to `uri` has to carry for its proxy.
    pub(crate) fn proxy_for(&self, uri: &Uri) -> Option<&Proxy> {
        self.0.proxies.select(uri)
    }
}

impl Service<Uri> for Dialer {
    type Response = Wire;
    type Error = TransportError;
    type Future = BoxFuture<Result<Wire, TransportError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let ways = Arc::clone(&self.0);
        Box::pin(async move { ways.connect(&uri).await })
    }
}

impl Ways {
    async fn connect(&self, uri: &Uri) -> Result<Wire, TransportError> {
        let secure = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let proxy = self.proxies.select(uri);
        let stream = match proxy {
            None => self.tcp(host, port).await?,
            Some(proxy) => {
                let mut stream = self.tcp(&proxy.host, proxy.port).await?;
                if secure || self.always_tunnel {
                    timeout(self.timeout, tunnel(&mut stream, proxy, host, port))
                        .await
                        .map_err(|_| TransportError::Timeout("connecting through the proxy"))??;
                }
                stream
            }
        };
        let _ = stream.set_nodelay(true);
        if !secure {
            return Ok(Wire { io: TokioIo::new(Box::new(stream)), proxied: proxy.is_some(), h2: false });
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(bare.to_owned())
                .map_err(|_| TransportError::Configuration(format!("{bare:?} is not a host name that TLS knows")))?,
        };
        let stream = timeout(self.timeout, self.tls.connect(name, stream))
            .await
            .map_err(|_| TransportError::Timeout("shaking hands for TLS"))?
            .map_err(|source| TransportError::Tls { with: format!("{host}:{port}"), cure: cure(&source), source: Arc::new(source) })?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Wire { io: TokioIo::new(Box::new(stream)), proxied: false, h2 })
    }

    /// Dials each address of the name in order, then the fallback address.
    async fn tcp(&self, host: &str, port: u16) -> Result<TcpStream, TransportError> {
        let to = format!("{host}:{port}");
        let known = self.names.get(&host.to_ascii_lowercase()).map(|address| SocketAddr::new(*address, port).to_string());
        let error = match any(known.as_deref().unwrap_or(&to), self.timeout).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let Some(fallback) = self.fallback_addresses.get(&to) else {
            return Err(TransportError::Connect { to, source: Arc::new(error) });
        };
        tracing::debug!(%to, %fallback, %error, "no connection, trying the fallback address");
        any(fallback, self.timeout).await.map_err(|error| TransportError::Connect { to: fallback.clone(), source: Arc::new(error) })
    }
}

/// What to do about the commonest misconfiguration.
fn cure(error: &io::Error) -> &'static str {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            " (put the authority of its certificate into Client.Crypto.root_certs; with Client.use_self_signed_ssl only the deployment's own one counts)"
        }
        _ => "",
    }
}

/// The first connection among the addresses of `to`, each of which gets its part of the time.
async fn any(to: &str, within: Duration) -> io::Result<TcpStream> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let addresses: Vec<_> = timeout(within, lookup_host(to)).await.map_err(late)??.collect();
    let part = within / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(part, TcpStream::connect(address)).await.map_err(late) {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(failure)) | Err(failure) => error = failure,
        }
    }
    Err(error)
}

/// Asks a proxy for a tunnel.
async fn tunnel(stream: &mut TcpStream, proxy: &Proxy, host: &str, port: u16) -> Result<(), TransportError> {
    let refuse = |reason: String| TransportError::Proxy { proxy: format!("{}:{}", proxy.host, proxy.port), reason };
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
    if let Some(credentials) = &proxy.credentials {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(credentials.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await.map_err(|error| refuse(error.to_string()))?;
    // Read byte by byte: what follows the head belongs to the tunnel.
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(refuse("its answer has no end".to_owned()));
        }
        head.push(stream.read_u8().await.map_err(|error| refuse(error.to_string()))?);
    }
    let line: String = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().chars().take(80).collect();
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)).unwrap_or_default();
    if status.len() == 3 && status.starts_with('2') { Ok(()) } else { Err(refuse(line)) }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to a server.
pub(crate) struct Wire {
    io: TokioIo<Box<dyn Stream>>,
    proxied: bool,
    h2: bool,
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.proxied);
        if self.h2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, buffer)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}
