//! Requests to any web server, for queries: the public authorities instead of the deployment's own, proxies, bodies that stream in both directions.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{HeaderName, HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::dial::{Dialer, Ways};
use crate::http_link::failure;
use crate::proxy::Proxies;
use crate::settings::certificates;
use crate::tls::provider;
use crate::{ProxySettings, TransportError};

/// Which certificates of web servers are accepted. Clones share the parsed authorities.
#[derive(Clone)]
pub struct WebTrust(Arc<ClientConfig>);

impl WebTrust {
    /// The system's authorities and those in `more`, which is PEM or empty.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] when `more` is no PEM.
    pub fn public(more: &str) -> Result<Self, TransportError> {
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if ignored > 0 {
            tracing::debug!(ignored, "some of the system's certificate authorities cannot be used");
        }
        if !more.trim().is_empty() {
            for certificate in certificates(more.as_bytes(), "the root certificate")? {
                roots.add(certificate).map_err(|error| TransportError::Configuration(format!("the root certificate: {error}")))?;
            }
        }
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| TransportError::Configuration(format!("TLS: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self::new(config))
    }

    /// Any certificate: whoever is on the way can read and change what is sent.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] when TLS cannot be had.
    pub fn anybody() -> Result<Self, TransportError> {
        let provider = provider();
        let verifier = Anybody(provider.signature_verification_algorithms);
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| TransportError::Configuration(format!("TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Self::new(config))
    }

    fn new(mut config: ClientConfig) -> Self {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self(Arc::new(config))
    }

    /// TLS over a connection that carries something else than HTTP; `host` is the name that the certificate must have. Handshakes when first used.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] when `host` cannot be a name in a certificate.
    pub fn over(&self, host: &str, stream: std::net::TcpStream) -> Result<impl io::Read + io::Write + Send + use<>, TransportError> {
        let mut config = self.0.as_ref().clone();
        config.alpn_protocols = Vec::new();
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| TransportError::Configuration(format!("{host:?} is not a host name that TLS knows")))?;
        let session = rustls::ClientConnection::new(Arc::new(config), name)
            .map_err(|error| TransportError::Configuration(format!("TLS: {error}")))?;
        Ok(rustls::StreamOwned::new(session, stream))
    }
}

/// Accepts every certificate.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// A request, complete but for what HTTP adds.
pub struct WebRequest {
    /// `GET`, `POST` …
    pub method: String,
    /// An `http://` or `https://` URL.
    pub url: String,
    /// Names and values, in order.
    pub headers: Vec<(String, String)>,
    /// What is sent.
    pub body: WebBody,
}

/// What a request sends.
pub enum WebBody {
    /// Bytes in memory.
    Bytes(Bytes),
    /// As many bytes as `length` says, piece by piece.
    Stream {
        /// How many there are.
        length: u64,
        /// Where they come from. An error cuts the request off.
        pieces: mpsc::Receiver<io::Result<Bytes>>,
    },
}

impl Body for WebBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream { length, pieces } => pieces.poll_recv(context).map(|piece| {
                let piece = piece?;
                if let Ok(piece) = &piece {
                    *length = length.saturating_sub(piece.len() as u64);
                }
                Some(piece.map(Frame::data))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Stream { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Stream { length, .. } => *length,
        })
    }
}

/// The head of an answer; the body follows piece by piece.
pub struct WebAnswer {
    /// The status.
    pub status: u16,
    /// Names in lower case and values, in order; what is no text is replaced.
    pub headers: Vec<(String, String)>,
    body: Incoming,
    patience: Duration,
}

impl WebAnswer {
    /// The next piece of the body, `None` at its end.
    ///
    /// # Errors
    /// The connection broke or stood still.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            let frame =
                timeout(self.patience, self.body.frame()).await.map_err(|_| TransportError::Timeout("reading the server's answer"))?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(TransportError::Broken(Arc::new(error))),
            }
        }
    }

    /// The first value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A client for web servers. Redirects are never followed, and nothing is decoded: that is the caller's.
pub struct WebClient {
    client: Client<Dialer, WebBody>,
    dialer: Dialer,
    patience: Duration,
}

impl WebClient {
    /// A client; nothing is connected yet. `names` are hosts in lower case whose addresses are not looked up. `patience` is for dialling, for the head of an answer, and for each piece of it.
    ///
    /// # Errors
    /// [`TransportError::Configuration`] for settings of proxies that cannot be used.
    pub fn new(
        trust: &WebTrust,
        proxy: &ProxySettings,
        names: &BTreeMap<String, IpAddr>,
        patience: Duration,
    ) -> Result<Self, TransportError> {
        let dialer = Dialer::new(Ways {
            tls: TlsConnector::from(Arc::clone(&trust.0)),
            server_name: None,
            proxies: Proxies::new(proxy, |name| std::env::var(name).ok())?,
            fallback_addresses: BTreeMap::new(),
            timeout: patience,
            names: names.clone(),
            always_tunnel: false,
        });
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_max_idle_per_host(2)
            .http1_title_case_headers(true)
            .http1_max_buf_size(256 << 10)
            .build(dialer.clone());
        Ok(Self { client, dialer, patience })
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// The request is none, or no answer came.
    pub async fn send(&self, request: WebRequest) -> Result<WebAnswer, TransportError> {
        let refuse = |what: &str| TransportError::Configuration(what.to_owned());
        let uri: Uri = request.url.parse().map_err(|_| refuse("the URL cannot be parsed"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(refuse("the URL must begin with http:// or https:// and a host"));
        }
        let streams = matches!(request.body, WebBody::Stream { .. });
        let mut message = Request::new(request.body);
        *message.method_mut() = Method::from_bytes(request.method.as_bytes()).map_err(|_| refuse("the method is not one of HTTP"))?;
        for (name, value) in &request.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refuse("a header has a name that HTTP does not allow"))?;
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| refuse("a header has a value that HTTP does not allow"))?;
            message.headers_mut().append(name, value);
        }
        if uri.scheme_str() == Some("http")
            && let Some(credentials) = self.dialer.proxy_for(&uri).and_then(|proxy| proxy.credentials.clone())
        {
            message.headers_mut().insert(PROXY_AUTHORIZATION, credentials);
        }
        *message.uri_mut() = uri;
        let answer = self.client.request(message);
        let response = if streams {
            // What is sent keeps its own time.
            answer.await.map_err(failure)?
        } else {
            timeout(self.patience, answer)
                .await
                .map_err(|_| TransportError::Timeout("waiting for the server's answer"))?
                .map_err(failure)?
        };
        let (head, body) = response.into_parts();
        let headers = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        Ok(WebAnswer { status: head.status.as_u16(), headers, body, patience: self.patience })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn request(url: String, body: WebBody) -> WebRequest {
        WebRequest { method: "POST".to_owned(), url, headers: vec![("X-One".to_owned(), "1".to_owned())], body }
    }

    #[tokio::test]
    async fn a_request_and_its_answer_stream() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"abcdef") {
                seen.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\nX-Two: 2\r\n\r\ndone").await.unwrap();
            String::from_utf8(seen).unwrap()
        });
        let client =
            WebClient::new(&WebTrust::public("").unwrap(), &ProxySettings::default(), &BTreeMap::new(), Duration::from_secs(10)).unwrap();
        let (sender, pieces) = mpsc::channel(1);
        tokio::spawn(async move {
            for piece in ["abc", "def"] {
                sender.send(Ok(Bytes::from_static(piece.as_bytes()))).await.unwrap();
            }
        });
        let mut answer = client.send(request(format!("http://127.0.0.1:{port}/x"), WebBody::Stream { length: 6, pieces })).await.unwrap();
        assert_eq!((answer.status, answer.header("x-two")), (201, Some("2")));
        assert_eq!(answer.piece().await.unwrap().unwrap(), "done");
        assert!(answer.piece().await.unwrap().is_none());
        let seen = server.await.unwrap().to_ascii_lowercase();
        assert!(seen.starts_with("post /x http/1.1\r\n") && seen.contains("content-length: 6") && seen.contains("x-one: 1"), "{seen}");
    }

    #[tokio::test]
    async fn only_the_web_is_spoken_to() {
        let client =
            WebClient::new(&WebTrust::anybody().unwrap(), &ProxySettings::default(), &BTreeMap::new(), Duration::from_secs(1)).unwrap();
        for url in ["ftp://a/", "file:///etc/passwd", "a", "http://", "http://a b/"] {
            assert!(
                matches!(client.send(request(url.to_owned(), WebBody::Bytes(Bytes::new()))).await, Err(TransportError::Configuration(_))),
                "{url}"
            );
        }
    }
}
