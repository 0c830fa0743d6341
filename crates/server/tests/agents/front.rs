//! The server behind its real listener, and a client that sees what comes back byte for byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use talon_transport::{AgentEndpoint, FrontendLimits, FrontendListener, FrontendSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::bench::Bench;

/// How long an answer that does not end is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_millis(1500);

/// A listener over plain HTTP; it ends with its runtime.
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
}

impl Front {
    pub(crate) async fn new(bench: &Bench) -> Self {
        let limits = FrontendLimits {
            // What generated configurations say.
            max_upload_size: 100 << 20,
            connections_per_second: 10_000,
            ping_interval: Duration::from_secs(2),
            ..FrontendLimits::default()
        };
        let settings = FrontendSettings {
            bind_address: "127.0.0.1".into(),
            bind_port: 0,
            base_path: String::new(),
            tls: None,
            proxy_header: None,
            limits,
        };
        let listener = FrontendListener::bind(settings).await.unwrap();
        let address = listener.local_addr();
        tokio::spawn(listener.serve(bench.server.clone() as Arc<dyn AgentEndpoint>, CancellationToken::new()));
        Self { address }
    }

    pub(crate) async fn post(&self, path: &str, body: &[u8]) -> Exchange {
        self.exchange("POST", path, "", body).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn exchange(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Exchange {
        let (mut read, mut write) = TcpStream::connect(self.address).await.unwrap().into_split();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n");
        let send = async {
            write.write_all(head.as_bytes()).await.unwrap();
            // A server that has seen enough may close before it has read all.
            let _ = write.write_all(body).await;
        };
        let receive = async {
            let (mut seen, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                if let Some(exchange) = Exchange::whole(&seen) {
                    return exchange;
                }
                let patience = if length > 1 << 20 { Duration::from_secs(60) } else { PATIENCE };
                match timeout(patience, read.read(&mut buffer)).await {
                    Err(_) => return Exchange::partial(&seen, "still open"),
                    Ok(Ok(0) | Err(_)) => return Exchange::partial(&seen, "closed"),
                    Ok(Ok(count)) => seen.extend_from_slice(&buffer[..count]),
                }
            }
        };
        let ((), exchange) = tokio::join!(send, receive);
        exchange
    }

    /// A WebSocket on `path`, or the status that refused it.
    pub(crate) async fn socket(&self, path: &str, headers: &str) -> Result<Socket, u16> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        match status(&head) {
            Some(101) => Ok(Socket(stream)),
            other => Err(other.unwrap_or_default()),
        }
    }
}

/// What came back.
pub(crate) struct Exchange {
    pub(crate) status: Option<u16>,
    pub(crate) body: Vec<u8>,
    pub(crate) end: &'static str,
}

fn status(head: &[u8]) -> Option<u16> {
    String::from_utf8_lossy(head).strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

impl Exchange {
    fn whole(seen: &[u8]) -> Option<Self> {
        let exchange = Self::partial(seen, "complete");
        let at = seen.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&seen[..at]).to_ascii_lowercase();
        let complete = match head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
            Some(length) => exchange.body.len() == length.parse::<usize>().unwrap(),
            None => head.contains("chunked") && seen.ends_with(b"0\r\n\r\n"),
        };
        complete.then_some(exchange)
    }

    fn partial(seen: &[u8], end: &'static str) -> Self {
        let status = status(seen);
        let Some(at) = seen.windows(4).position(|window| window == b"\r\n\r\n") else { return Self { status, body: Vec::new(), end } };
        let (head, rest) = seen.split_at(at + 4);
        let chunked = String::from_utf8_lossy(head).to_ascii_lowercase().contains("transfer-encoding: chunked");
        Self { status, body: if chunked { unchunked(rest) } else { rest.to_vec() }, end }
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap_or("0"), 16).unwrap_or(0);
        let Some(chunk) = rest.get(at + 2..at + 2 + size) else { break };
        body.extend_from_slice(chunk);
        rest = rest.get(at + 4 + size..).unwrap_or_default();
    }
    body
}

/// A WebSocket whose frames are made by hand, so that wrong ones can be made too. The masking key is zero.
pub(crate) struct Socket(TcpStream);

/// A frame of the server, or the end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The JSON wrapper: code, text, and the data.
    Answer(u16, String, Vec<u8>),
    Ping,
    Pong(Vec<u8>),
    Close(u16),
    Closed,
    /// Nothing came for a while.
    Open,
}

impl Socket {
    /// Sends one frame with this first byte; a whole binary message has 0x82.
    pub(crate) async fn frame(&mut self, first: u8, masked: bool, payload: &[u8]) {
        let mut frame = vec![first];
        let bit = if masked { 0x80 } else { 0 };
        match payload.len() {
            length @ 0..126 => frame.push(bit | u8::try_from(length).unwrap()),
            length @ 126..65536 => {
                frame.push(bit | 126);
                frame.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                frame.push(bit | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        if masked {
            frame.extend_from_slice(&[0; 4]);
        }
        frame.extend_from_slice(payload);
        // The server may close while a long frame is on its way.
        let _ = self.0.write_all(&frame).await;
    }

    pub(crate) async fn send(&mut self, message: &[u8]) {
        self.frame(0x82, true, message).await;
    }

    /// The next frame; pings are left unanswered.
    pub(crate) async fn next(&mut self, within: Duration) -> Frame {
        match timeout(within, self.read()).await {
            Err(_) => Frame::Open,
            Ok(frame) => frame.unwrap_or(Frame::Closed),
        }
    }

    /// The next frame that is no ping.
    pub(crate) async fn answer(&mut self) -> Frame {
        loop {
            match self.next(PATIENCE).await {
                Frame::Ping => {}
                frame => return frame,
            }
        }
    }

    async fn read(&mut self) -> std::io::Result<Frame> {
        let first = self.0.read_u8().await?;
        let length = match self.0.read_u8().await? {
            126 => usize::from(self.0.read_u16().await?),
            127 => usize::try_from(self.0.read_u64().await?).unwrap(),
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await?;
        Ok(match first {
            0x82 => {
                let json: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
                let code = u16::try_from(json["code"].as_u64().unwrap()).unwrap();
                Frame::Answer(code, text("err"), STANDARD.decode(text("data")).unwrap())
            }
            0x88 => Frame::Close(payload.get(..2).map_or(0, |code| u16::from_be_bytes([code[0], code[1]]))),
            0x89 => Frame::Ping,
            0x8a => Frame::Pong(payload),
            other => panic!("frame {other:#x}"),
        })
    }
}
