//! The surface over WebSocket: frames, codes, pings, ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::fake::{Fake, Frontend, PEM, limits, server_tls, start};

const HANDSHAKE: &str =
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Sends an upgrade request; the head of the answer and the stream.
async fn shake<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T, path: &str, headers: &str) -> (String, T) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:8000\r\n{HANDSHAKE}{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap(), stream)
}

async fn open(frontend: &Frontend, path: &str) -> WebSocketStream<TcpStream> {
    let (head, stream) = shake(TcpStream::connect(frontend.address).await.unwrap(), path, "").await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("Sec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

async fn send(socket: &mut WebSocketStream<TcpStream>, body: &str) {
    socket.send(Message::Binary(body.as_bytes().to_vec().into())).await.unwrap();
}

/// The next JSON answer, `closed` or the Close code.
async fn next(socket: &mut WebSocketStream<TcpStream>) -> Value {
    loop {
        let message = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.expect("no answer");
        return match message {
            Some(Ok(Message::Binary(content))) => serde_json::from_slice(&content).unwrap(),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(frame))) => json!(frame.map(|frame| u16::from(frame.code))),
            Some(Ok(other)) => panic!("{other:?}"),
            Some(Err(_)) | None => json!("closed"),
        };
    }
}

fn data(content: &str) -> Value {
    json!({"code": 200, "data": STANDARD.encode(content)})
}

#[tokio::test]
async fn control_answers_each_frame() {
    let frontend = start(Fake::default(), limits(), None).await;
    for path in ["/control", "/send_messages"] {
        let mut socket = open(&frontend, path).await;
        for (body, expected) in [
            ("row", json!({"code": 200})),
            ("slow 50", json!({"code": 200})),
            ("refused", json!({"code": 400, "err": "The packet is refused"})),
            ("dropped", json!({"code": 200})),
        ] {
            send(&mut socket, body).await;
            assert_eq!(next(&mut socket).await, expected, "{body}");
        }
        socket.send(Message::Text("row".into())).await.unwrap();
        assert_eq!(next(&mut socket).await, json!({"code": 200}));
    }
}

#[tokio::test]
async fn a_refusal_closes_the_socket() {
    let frontend = start(Fake::default(), limits(), None).await;
    let conflict = "Another Client connection exists. Only a single instance of the client is allowed to connect at the same time.";
    for (path, body, expected) in [
        ("/control", "garbage", json!({"code": 403})),
        ("/reader", "garbage", json!({"code": 403})),
        ("/control", "", json!({"code": 406, "err": "Please Enrol"})),
        ("/control", "Z\u{1}\0", json!({"code": 406, "err": "Please Enrol"})),
        ("/reader", "stranger", json!({"code": 406, "err": "Please Enrol"})),
        ("/control", "bad csr", json!({"code": 503})),
        ("/control", "failed", json!({"code": 503, "err": "The packet was not processed"})),
        ("/control", "panic", json!({"code": 503, "err": "The packet was not processed"})),
        ("/reader", "second", json!({"code": 409, "err": conflict})),
    ] {
        let mut socket = open(&frontend, path).await;
        send(&mut socket, body).await;
        assert_eq!(next(&mut socket).await, expected, "{path} {body:?}");
        assert_eq!(next(&mut socket).await, json!("closed"), "{path} {body:?}");
    }
    let mut socket = open(&frontend, "/reader").await;
    send(&mut socket, "unknown record").await;
    assert_eq!(next(&mut socket).await, json!("closed"));
}

#[tokio::test]
async fn a_reader_gets_news_and_asks_for_more_with_its_next_packet() {
    let frontend = start(Fake { max_poll: Duration::from_millis(50), ..Fake::default() }, limits(), None).await;
    let mut socket = open(&frontend, "/reader").await;
    for expected in 1..=3 {
        send(&mut socket, "news 200").await;
        assert_eq!(next(&mut socket).await, data("tasks"));
        assert_eq!(frontend.endpoint.calls(), expected);
    }
    send(&mut socket, "wait").await;
    send(&mut socket, "garbage").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(frontend.endpoint.calls(), 4, "what comes while it waits is not looked at");
    assert_eq!(frontend.endpoint.polls_ended.load(Ordering::SeqCst), 3);
    drop(socket);
    tokio::time::timeout(Duration::from_secs(1), async {
        while frontend.endpoint.polls_ended.load(Ordering::SeqCst) < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the reader is still registered");
}

#[tokio::test]
async fn draining_says_farewell() {
    let frontend = start(Fake::default(), limits(), None).await;
    let (mut reader, mut control) = (open(&frontend, "/reader").await, open(&frontend, "/control").await);
    send(&mut reader, "wait").await;
    while frontend.endpoint.calls() < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    frontend.drain.cancel();
    assert_eq!(next(&mut reader).await, data("farewell"));
    assert_eq!(next(&mut control).await, json!("closed"));
    tokio::time::timeout(Duration::from_secs(5), frontend.served).await.expect("draining does not end").unwrap();
}

#[tokio::test]
async fn server_pem_for_any_frame() {
    let frontend = start(Fake::default(), limits(), None).await;
    let mut socket = open(&frontend, "/server.pem").await;
    for body in ["x", "", "y"] {
        send(&mut socket, body).await;
        assert_eq!(next(&mut socket).await, data(PEM));
    }
}

#[tokio::test]
async fn a_silent_peer_is_pinged_and_then_cut() {
    let mut limits = limits();
    limits.ping_interval = Duration::from_millis(300);
    let frontend = start(Fake::default(), limits, None).await;
    let (_, mut stream) = shake(TcpStream::connect(frontend.address).await.unwrap(), "/control", "").await;
    let mut got = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut got)).await.expect("the socket stays open").unwrap();
    assert_eq!(got, [0x89, 0x00]);

    let mut answering = open(&frontend, "/control").await;
    let _ = tokio::time::timeout(Duration::from_millis(1500), answering.next()).await;
    let alive = async {
        loop {
            if let Some(Ok(Message::Ping(_))) = answering.next().await {
                continue;
            }
            break;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), alive).await.is_err(), "a peer that pongs was cut");
    send(&mut answering, "row").await;
    assert_eq!(next(&mut answering).await, json!({"code": 200}));
}

#[tokio::test]
async fn the_rules_of_framing() {
    let frontend = start(Fake::default(), limits(), None).await;
    for (what, frame, expected) in [
        ("ping", &[0x89, 0x83, 0, 0, 0, 0, b'a', b'b', b'c'][..], &[0x8A, 3, b'a', b'b', b'c'][..]),
        ("unmasked", &[0x82, 1, b'x'][..], &[0x88, 2, 0x03, 0xEA][..]),
        ("reserved bit", &[0xC2, 0x81, 0, 0, 0, 0, b'x'][..], &[0x88, 2, 0x03, 0xEA][..]),
        ("fragments", &[0x02, 0x81, 0, 0, 0, 0, b'r', 0x80, 0x82, 0, 0, 0, 0, b'o', b'w'][..], &[0x82, 12, b'{', b'"', b'c'][..]),
        ("close", &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xE8][..], &[0x88, 2, 0x03, 0xE8][..]),
        ("too long", &[0x82, 0xFF, 0, 0, 0, 0, 0, 0xA0, 0, 1, 0, 0, 0, 0][..], &[0x88, 2, 0x03, 0xF1][..]),
    ] {
        let (_, mut stream) = shake(TcpStream::connect(frontend.address).await.unwrap(), "/control", "").await;
        stream.write_all(frame).await.unwrap();
        let mut got = vec![0; expected.len()];
        tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut got)).await.expect(what).expect(what);
        assert_eq!(got, expected, "{what}");
    }
}

#[tokio::test]
async fn pages_of_other_hosts_are_kept_out() {
    let frontend = start(Fake::default(), limits(), None).await;
    for (headers, expected) in [
        ("Origin: http://example.com\r\n", "403"),
        ("Origin: null\r\n", "403"),
        ("Origin: http://localhost:8000\r\n", "101"),
        ("Sec-WebSocket-Protocol: x\r\nSec-WebSocket-Extensions: permessage-deflate\r\n", "101"),
    ] {
        let (head, _) = shake(TcpStream::connect(frontend.address).await.unwrap(), "/control", headers).await;
        assert_eq!(head.split(' ').nth(1), Some(expected), "{headers}: {head}");
        assert!(!head.to_ascii_lowercase().contains("sec-websocket-extensions"), "{head}");
    }
}

#[tokio::test]
async fn sockets_share_the_bounds_of_posts() {
    let mut limits = limits();
    limits.concurrency = 1;
    limits.concurrency_timeout = Duration::from_millis(200);
    limits.max_upload_size = 500;
    limits.max_connections = 3;
    let frontend = start(Fake::default(), limits, None).await;
    let (mut one, mut other) = (open(&frontend, "/control").await, open(&frontend, "/control").await);
    send(&mut one, "slow 600").await;
    while frontend.endpoint.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    send(&mut other, "row").await;
    assert_eq!(next(&mut other).await, json!({"code": 408, "err": "Timeout"}));
    assert_eq!(next(&mut one).await, json!({"code": 200}));
    let calls = frontend.endpoint.calls();
    send(&mut one, &"x".repeat(1000)).await;
    assert_eq!(next(&mut one).await, json!({"code": 200}), "too long, dropped");
    assert_eq!(frontend.endpoint.calls(), calls);
    let _third = open(&frontend, "/control").await;
    let _fourth = open(&frontend, "/control").await;
    let mut fifth = TcpStream::connect(frontend.address).await.unwrap();
    assert_eq!(fifth.read(&mut [0]).await.unwrap_or(0), 0, "a socket keeps the place of its connection");
}

#[tokio::test]
async fn over_tls() {
    let frontend = start(Fake::default(), limits(), Some(server_tls())).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(crate::fake::authority().certificate().der().clone()).unwrap();
    let provider = Arc::new(talon_transport::crypto_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(frontend.address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("VelociraptorServer").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (head, stream) = shake(stream, "/control", "").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    socket.send(Message::Binary("row".into())).await.unwrap();
    let answer = socket.next().await.unwrap().unwrap().into_data();
    assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap(), json!({"code": 200}));
}
