//! The listener: mutual TLS with certificates of the deployment, then gRPC.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use talon_pki::{Identity, TrustBundle, UnixTime};
use talon_proto::api_server::ApiServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
#[cfg(unix)]
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::transport::server::{Connected, Server};

use crate::identity::Peer;
use crate::service::ApiService;
use crate::{ApiError, status};

/// The largest request, in bytes.
pub const MAX_REQUEST: usize = 4 << 20;

/// Connections at one time; more wait in the queue of the system.
const MAX_CONNECTIONS: usize = 1_024;

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A dead peer is noticed after an unanswered ping: every this often, and this long.
const PING: Duration = Duration::from_secs(30);

/// Calls at one time on one connection.
const MAX_CALLS: u32 = 128;

/// Where and as whom the API listens.
pub struct ApiListenerSettings {
    /// `API.bind_scheme`, `API.bind_address` and `API.bind_port`.
    pub address: ApiAddress,
    /// The frontend's certificate and key.
    pub identity: Identity,
    /// The authorities of the deployment: callers have certificates of theirs.
    pub authorities: TrustBundle,
    /// `Client.Crypto.allow_weak_tls_server`: TLS 1.2 too.
    pub allow_weak: bool,
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(std::path::PathBuf),
}

enum Listening {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

/// A listener that is bound and serves nothing yet.
pub struct ApiListener {
    listening: Listening,
    acceptor: TlsAcceptor,
    authorities: Arc<TrustBundle>,
}

impl ApiListener {
    /// Binds.
    ///
    /// # Errors
    /// [`ApiError::Bind`] when the address is taken, [`ApiError::Configuration`] when certificate and key do not make a TLS server.
    pub async fn bind(settings: ApiListenerSettings) -> Result<Self, ApiError> {
        let ApiListenerSettings { address, identity, authorities, allow_weak } = settings;
        let config = server_config(&identity, &authorities, allow_weak)?;
        let listening = match &address {
            ApiAddress::Tcp(address) => TcpListener::bind(address).await.map(Listening::Tcp),
            #[cfg(unix)]
            ApiAddress::Unix(path) => UnixListener::bind(path).map(Listening::Unix),
            #[cfg(not(unix))]
            ApiAddress::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        };
        let listening = listening.map_err(|source| ApiError::Bind { address: format!("{address:?}"), source })?;
        Ok(Self { listening, acceptor: TlsAcceptor::from(Arc::new(config)), authorities: Arc::new(authorities) })
    }

    /// The address that was bound, for TCP.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listening {
            Listening::Tcp(listener) => listener.local_addr().ok(),
            #[cfg(unix)]
            Listening::Unix(_) => None,
        }
    }

    /// Serves until `drain` is cancelled; then takes no more connections, ends streams, and waits for calls under way.
    ///
    /// # Errors
    /// [`ApiError::Serve`].
    pub async fn serve(self, service: ApiService, drain: CancellationToken) -> Result<(), ApiError> {
        let (connections, incoming) = mpsc::channel(16);
        let closing = service.closing.clone();
        let accepting = tokio::spawn(self.accept(connections, drain.clone()));
        // Not in the signal of the server below: it is dropped unheard when the connections end first.
        let draining = drain.clone();
        let ending = tokio::spawn(async move {
            draining.cancelled().await;
            closing.cancel();
        });
        let api = Limited(ApiServer::new(service).max_decoding_message_size(MAX_REQUEST));
        // Who may connect may also ask what there is to call.
        let reflection = || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(talon_proto::DESCRIPTORS);
        let unreadable = |error| ApiError::Configuration(format!("the description of the API: {error}"));
        let (v1, v1alpha) = (reflection().build_v1().map_err(unreadable)?, reflection().build_v1alpha().map_err(unreadable)?);
        let served = Server::builder()
            .http2_keepalive_interval(Some(PING))
            .http2_keepalive_timeout(Some(PING))
            .max_concurrent_streams(Some(MAX_CALLS))
            .add_service(api)
            .add_service(v1)
            .add_service(v1alpha)
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), drain.cancelled_owned())
            .await;
        accepting.abort();
        ending.abort();
        served.map_err(ApiError::Serve)
    }

    async fn accept(self, connections: mpsc::Sender<io::Result<Connection>>, drain: CancellationToken) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = drain.cancelled() => return,
                accepted = self.next() => accepted,
            };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection to the API could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (acceptor, authorities, connections) = (self.acceptor.clone(), self.authorities.clone(), connections.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(tls)) => {
                        let Some(peer) = peer_of(&tls, &authorities, remote) else { return };
                        drop(connections.send(Ok(Connection { tls, peer, _slot: slot })).await);
                    }
                    Ok(Err(error)) => tracing::info!(?remote, %error, "a connection to the API was refused"),
                    Err(_) => tracing::info!(?remote, "a connection to the API was too slow"),
                }
            });
        }
    }

    async fn next(&self) -> io::Result<(Box<dyn Socket>, Option<IpAddr>)> {
        match &self.listening {
            Listening::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Box::new(stream), Some(address.ip())))
            }
            #[cfg(unix)]
            Listening::Unix(listener) => listener.accept().await.map(|(stream, _)| (Box::new(stream) as Box<dyn Socket>, None)),
        }
    }
}

impl std::fmt::Debug for ApiListener {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "ApiListener({:?})", self.local_addr())
    }
}

fn server_config(identity: &Identity, authorities: &TrustBundle, allow_weak: bool) -> Result<ServerConfig, ApiError> {
    let refused = |what: &str, error: &dyn std::fmt::Display| ApiError::Configuration(format!("{what}: {error}"));
    let provider = Arc::new(talon_transport::crypto_provider());
    let mut roots = RootCertStore::empty();
    for certificate in authorities.certificates() {
        roots.add(certificate.clone()).map_err(|error| refused("an authority for API certificates", &error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| refused("the authorities for API certificates", &error))?;
    let versions: &[_] = if allow_weak { &[&rustls::version::TLS13, &rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let key = identity.private_key_der().map_err(|error| refused("the frontend's private key", &error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| refused("TLS", &error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.certificate_chain(), key)
        .map_err(|error| refused("the frontend's certificate and private key", &error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn peer_of(tls: &TlsStream<Box<dyn Socket>>, authorities: &TrustBundle, remote: Option<IpAddr>) -> Option<Peer> {
    let leaf = tls.get_ref().1.peer_certificates()?.first()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Some(Peer::of_certificate(leaf, authorities, UnixTime::since_unix_epoch(now), remote))
}

trait Socket: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static> Socket for T {}

/// A connection whose peer is known.
struct Connection {
    tls: TlsStream<Box<dyn Socket>>,
    peer: Peer,
    _slot: tokio::sync::OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}

/// Says of too large a request what stock clients look for.
#[derive(Clone)]
struct Limited(ApiServer<ApiService>);

impl NamedService for Limited {
    const NAME: &'static str = <ApiServer<ApiService> as NamedService>::NAME;
}

impl tower_service::Service<http::Request<Body>> for Limited {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = tower_service::Service::call(&mut self.0, request);
        Box::pin(async move {
            let answer = answer.await?;
            let status = tonic::Status::from_header_map(answer.headers());
            Ok(status.and_then(|status| status::too_large(&status, MAX_REQUEST)).map_or(answer, tonic::Status::into_http))
        })
    }
}
