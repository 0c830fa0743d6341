//! Many agents on one thread: TLS connections on which packets are posted and answers read, as cheaply as it can be done, so that the server is what is measured.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::load::{Answer, Server};

/// An answer may take this long.
const ANSWER_WITHIN: Duration = Duration::from_secs(70);

/// How a server is reached.
#[derive(Clone)]
pub(super) struct Dialer {
    address: SocketAddr,
    tls: TlsConnector,
    name: ServerName<'static>,
}

impl Dialer {
    /// For a server with a certificate of its deployment's authority. Each connection makes a whole handshake.
    pub(super) fn to(server: &Server) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(server.authority_pem.as_bytes())?)?;
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(server.name.clone())?;
        Ok(Self { address: server.address.parse()?, tls: TlsConnector::from(Arc::new(config)), name })
    }

    /// A new connection, from one of many local addresses: a fleet does not come from one.
    pub(super) async fn connect(&self, number: usize) -> Result<Line> {
        let socket = TcpSocket::new_v4()?;
        let [.., high, low] = number.to_be_bytes();
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 1, high, low.max(1)), 0)))?;
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(self.name.clone(), stream).await?;
        Ok(Line { stream, buffer: BytesMut::new(), host: self.address.to_string().into() })
    }
}

/// A connection.
pub(super) struct Line {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
    host: Arc<str>,
}

/// The head of an answer.
#[derive(Debug, Clone, Copy)]
struct Head {
    status: u16,
    /// Bytes of the body, `None` when it comes in chunks.
    length: Option<usize>,
}

impl Line {
    /// Posts a packet and reads the whole answer.
    pub(super) async fn post(&mut self, handler: &str, packet: &[u8]) -> Result<Answer> {
        let whole = async {
            self.send(handler, packet).await?;
            let head = self.head().await?;
            Ok(Answer { status: head.status, body: self.body(head).await? })
        };
        tokio::time::timeout(ANSWER_WITHIN, whole).await.context("no answer in time")?
    }

    /// Posts a packet to `/reader` and returns once the server has taken it: the answer comes when there is one.
    pub(super) async fn wait(&mut self, packet: &[u8]) -> Result<Waiting<'_>> {
        self.send("reader", packet).await?;
        let head = tokio::time::timeout(ANSWER_WITHIN, self.head()).await.context("no answer in time")??;
        ensure!(head.status == 200, "/reader answered {}", head.status);
        Ok(Waiting { line: self, head })
    }

    async fn send(&mut self, handler: &str, packet: &[u8]) -> Result<()> {
        let head = format!(
            "POST /{handler} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/binary\r\nContent-Length: {}\r\n\r\n",
            self.host,
            packet.len()
        );
        self.stream.write_all(&[head.as_bytes(), packet].concat()).await?;
        Ok(self.stream.flush().await?)
    }

    async fn fill(&mut self) -> Result<()> {
        ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the answer is cut off");
        Ok(())
    }

    async fn head(&mut self) -> Result<Head> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.buffer.split_to(end + 4);
                return parse_head(std::str::from_utf8(&head)?);
            }
            self.fill().await?;
        }
    }

    async fn body(&mut self, head: Head) -> Result<Vec<u8>> {
        if let Some(length) = head.length {
            while self.buffer.len() < length {
                self.fill().await?;
            }
            return Ok(self.buffer.split_to(length).to_vec());
        }
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                    let line = self.buffer.split_to(end);
                    self.buffer.advance(2);
                    break line;
                }
                self.fill().await?;
            };
            let length = usize::from_str_radix(std::str::from_utf8(&line)?.trim(), 16)?;
            while self.buffer.len() < length + 2 {
                self.fill().await?;
            }
            body.extend_from_slice(&self.buffer.split_to(length));
            self.buffer.advance(2);
            if length == 0 {
                return Ok(body);
            }
        }
    }
}

/// A reader that the server holds.
pub(super) struct Waiting<'a> {
    line: &'a mut Line,
    head: Head,
}

impl Waiting<'_> {
    /// The answer in the end.
    pub(super) async fn answer(self) -> Result<Bytes> {
        Ok(self.line.body(self.head).await?.into())
    }
}

fn parse_head(text: &str) -> Result<Head> {
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).context("an answer without a status")?;
    let (mut length, mut chunked) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.parse()?);
        }
        chunked |= name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked");
    }
    if !chunked && length.is_none() {
        bail!("an answer without a length: {text:?}");
    }
    Ok(Head { status, length: length.filter(|_| !chunked) })
}

/// Times of requests.
#[derive(Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn add(&mut self, since: Instant) {
        self.0.push(since.elapsed());
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The time within which this share was answered.
    pub(super) fn quantile(&mut self, share: f64) -> Duration {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        let at = (super::table::number(last) * share).round();
        self.0.iter().copied().find(|_| true).map_or(Duration::ZERO, |first| self.0.get(at as usize).copied().unwrap_or(first))
    }
}
