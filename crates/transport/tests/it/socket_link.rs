//! The agent's link over WebSockets: pairs of packet and answer, pings, ends, and the ways around a server that has none.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use talon_pki::LeafProfile;
use talon_transport::{FrontendLimits, Handler, HttpLink, Post, ServerLink, ServerTls, ServerUrl, TransportError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use crate::fake::{Fake, Frontend, PEM, authority, leaf, limits, server_tls, start, stranger};
use crate::link::{head, post, script, settings, url};

fn reader(body: &'static str) -> Post {
    Post { handler: Handler::Reader, ..post(body) }
}

fn ports(frontend: &Frontend) -> BTreeSet<u16> {
    frontend.endpoint.seen.lock().unwrap().iter().map(|seen| seen.0.port()).collect()
}

async fn answer(link: &HttpLink, server: &ServerUrl, post: Post) -> (u16, String) {
    let reply = link.post(server, post).await.unwrap();
    (reply.status, String::from_utf8(reply.body.to_vec()).unwrap())
}

/// A server of one socket: what it got as the head of the request, and the socket.
async fn socket(listener: &TcpListener) -> (String, WebSocketStream<TcpStream>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let head = head(&mut stream).await;
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-Websocket-Key: ")).unwrap();
    let accepted = talon_crypto::sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    let accepted = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, accepted);
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accepted}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
    (head, WebSocketStream::from_raw_socket(stream, Role::Server, None).await)
}

async fn listen() -> (TcpListener, ServerUrl) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = url(&format!("ws://{}/", listener.local_addr().unwrap()));
    (listener, server)
}

fn text(json: &'static str) -> Message {
    Message::Binary(Bytes::from_static(json.as_bytes()))
}

#[tokio::test]
async fn packets_and_answers_alternate_on_one_socket_for_each_handler() {
    for (scheme, tls) in [("ws", None), ("wss", Some(server_tls()))] {
        let frontend = start(Fake { max_poll: Duration::from_secs(60), ..Fake::default() }, limits(), tls).await;
        let link = Arc::new(HttpLink::new(&settings()).unwrap());
        let server = url(&format!("{scheme}://127.0.0.1:{}/", frontend.address.port()));
        assert_eq!(link.fetch_pem(&server).await.unwrap(), PEM);
        let (waiting, of_reader) = (Arc::clone(&link), server.clone());
        let waiting = tokio::spawn(async move { answer(&waiting, &of_reader, reader("news 500")).await });
        for _ in 0..3 {
            assert_eq!(answer(&link, &server, post("slow 20")).await, (200, String::new()), "{scheme}");
        }
        assert_eq!(waiting.await.unwrap(), (200, "tasks".to_owned()), "{scheme}");
        assert_eq!(answer(&link, &server, reader("news 1")).await, (200, "tasks".to_owned()), "{scheme}");
        assert_eq!(ports(&frontend).len(), 2, "{scheme}: one socket each");
    }
}

#[tokio::test]
async fn every_status_arrives_and_the_next_packet_gets_a_new_socket() {
    let frontend = start(Fake::default(), limits(), None).await;
    let link = HttpLink::new(&settings()).unwrap();
    let server = url(&format!("ws://{}/", frontend.address));
    for (body, handler, status) in [
        ("garbage", Handler::Control, 403),
        ("stranger", Handler::Control, 406),
        ("refused", Handler::Control, 400),
        ("bad csr", Handler::Control, 503),
        ("second", Handler::Reader, 409),
        ("unknown record", Handler::Reader, 408),
    ] {
        assert_eq!(link.post(&server, Post { handler, ..post(body) }).await.unwrap().status, status, "{body}");
        assert_eq!(answer(&link, &server, post("row")).await, (200, String::new()), "after {body}");
    }
}

#[tokio::test]
async fn pings_are_answered_while_nothing_is_asked_and_while_an_answer_is_awaited() {
    let mut limits = limits();
    limits.ping_interval = Duration::from_millis(300);
    let frontend = start(Fake { max_poll: Duration::from_secs(60), ..Fake::default() }, limits, None).await;
    let link = HttpLink::new(&settings()).unwrap();
    let server = url(&format!("ws://{}/", frontend.address));
    assert_eq!(answer(&link, &server, post("row")).await.0, 200);
    assert_eq!(answer(&link, &server, reader("news 1500")).await, (200, "tasks".to_owned()));
    assert_eq!(answer(&link, &server, post("row")).await.0, 200);
    assert_eq!(ports(&frontend).len(), 2, "the idle socket lived on");
}

#[tokio::test]
async fn a_server_that_goes_silent_is_given_up() {
    let (listener, server) = listen().await;
    let mut settings = settings();
    settings.ping_interval = Duration::from_millis(300);
    let link = HttpLink::new(&settings).unwrap();
    let start = Instant::now();
    let (reply, (head, _socket)) = tokio::join!(link.post(&server, post("row")), socket(&listener));
    assert_eq!(reply.unwrap().status, 408);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(head.starts_with("GET /control HTTP/1.1\r\n"), "{head}");
    for absent in ["Origin", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions"] {
        assert!(!head.contains(absent), "{head}");
    }
}

#[tokio::test]
async fn what_a_server_sends_before_it_is_asked_waits_for_the_reader() {
    let (listener, server) = listen().await;
    let serve = tokio::spawn(async move {
        let (_, mut socket) = socket(&listener).await;
        assert_eq!(socket.next().await.unwrap().unwrap(), text("first"));
        for answer in [r#"{"code":200,"data":"MQ=="}"#, r#"{"code":200,"data":"Mg=="}"#] {
            socket.send(text(answer)).await.unwrap();
        }
        assert_eq!(socket.next().await.unwrap().unwrap(), text("second"));
        socket
    });
    let link = HttpLink::new(&settings()).unwrap();
    assert_eq!(answer(&link, &server, reader("first")).await, (200, "1".to_owned()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(answer(&link, &server, reader("second")).await, (200, "2".to_owned()));
    serve.await.unwrap();
}

#[tokio::test]
async fn what_a_server_sends_before_it_closes_is_not_lost() {
    for frames in [&[r#"{"code":200,"data":"Mg=="}"#][..], &[r#"{"code":200,"data":"Mg=="}"#, r#"{"code":503}"#]] {
        let (listener, server) = listen().await;
        let serve = tokio::spawn(async move {
            let (_, mut first) = socket(&listener).await;
            first.next().await.unwrap().unwrap();
            first.send(text(r#"{"code":200,"data":"MQ=="}"#)).await.unwrap();
            for frame in frames {
                first.send(text(frame)).await.unwrap();
            }
            drop(first);
            let (_, mut second) = socket(&listener).await;
            assert_eq!(second.next().await.unwrap().unwrap(), text("last"));
            second.send(text(r#"{"code":200,"data":"Mw=="}"#)).await.unwrap();
            second
        });
        let link = HttpLink::new(&settings()).unwrap();
        assert_eq!(answer(&link, &server, reader("first")).await, (200, "1".to_owned()));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(answer(&link, &server, reader("second")).await, (200, "2".to_owned()), "the task came before the end");
        if frames.len() > 1 {
            assert_eq!(answer(&link, &server, reader("third")).await.0, 503);
        }
        assert_eq!(answer(&link, &server, reader("last")).await, (200, "3".to_owned()));
        serve.await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_to_nothing_ends_the_control_socket() {
    let (listener, server) = listen().await;
    let serve = tokio::spawn(async move {
        let (_, mut first) = socket(&listener).await;
        first.next().await;
        for _ in 0..2 {
            first.send(text(r#"{"code":200}"#)).await.unwrap();
        }
        while let Some(Ok(message)) = first.next().await {
            assert!(message.is_close(), "{message:?}");
        }
        let (_, mut second) = socket(&listener).await;
        second.next().await;
        second.send(text(r#"{"code":406}"#)).await.unwrap();
        second
    });
    let link = HttpLink::new(&settings()).unwrap();
    assert_eq!(link.post(&server, post("row")).await.unwrap().status, 200);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(link.post(&server, post("row")).await.unwrap().status, 406, "the second answer was not taken for this one's");
    serve.await.unwrap();
}

#[tokio::test]
async fn an_abandoned_exchange_costs_the_socket_and_confuses_nobody() {
    let frontend = start(Fake { max_poll: Duration::from_secs(60), ..Fake::default() }, limits(), None).await;
    let link = HttpLink::new(&settings()).unwrap();
    let server = url(&format!("ws://{}/", frontend.address));
    assert!(tokio::time::timeout(Duration::from_millis(200), link.post(&server, reader("news 400"))).await.is_err());
    assert_eq!(answer(&link, &server, reader("big 3")).await, (200, "xxx".to_owned()));
}

#[tokio::test]
async fn frames_that_break_the_rules_are_no_answers() {
    let mut settings = settings();
    settings.max_reply = 1000;
    for (answer, status) in [
        (b"\x82\x06<html>".to_vec(), 503),
        (b"\xc2\x02{}".to_vec(), 503),
        (b"\x82\x82\0\0\0\0{}".to_vec(), 503),
        ([&b"\x82\x7f\0\0\0\x01\0\0\0\0"[..], &[b' '; 20_000]].concat(), 503),
        (b"\x88\x02\x03\xe8".to_vec(), 408),
        (Vec::new(), 408),
    ] {
        let (listener, server) = listen().await;
        let link = HttpLink::new(&settings).unwrap();
        let serve = async {
            let (_, mut socket) = socket(&listener).await;
            socket.next().await;
            let _ = socket.get_mut().write_all(&answer).await;
            if answer.is_empty() {
                drop(socket);
            } else {
                let _ = tokio::time::timeout(Duration::from_millis(300), socket.get_mut().read_to_end(&mut Vec::new())).await;
            }
        };
        let (reply, ()) = tokio::join!(link.post(&server, post("row")), serve);
        assert_eq!(reply.unwrap().status, status, "{:?}", &answer[..answer.len().min(12)]);
    }
}

#[tokio::test]
async fn a_server_without_websockets_is_polled() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = url(&format!("ws://{}/", listener.local_addr().unwrap()));
    let serve: JoinHandle<Vec<String>> = tokio::spawn(async move {
        let mut heads = Vec::new();
        for answer in [
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            heads.push(head(&mut stream).await.lines().next().unwrap().to_owned());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        heads
    });
    let link = HttpLink::new(&settings()).unwrap();
    for _ in 0..2 {
        assert_eq!(answer(&link, &server, post("row")).await, (200, "ok".to_owned()));
    }
    assert_eq!(serve.await.unwrap(), ["GET /control HTTP/1.1", "POST /control HTTP/1.1", "POST /control HTTP/1.1"]);
}

#[tokio::test]
async fn a_false_acceptance_is_no_socket() {
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n";
    let (server, _seen) = script(answer).await;
    let server = url(&server.to_string().replace("http", "ws"));
    assert!(matches!(HttpLink::new(&settings()).unwrap().post(&server, post("row")).await, Err(TransportError::Status(101))));
}

#[tokio::test]
async fn a_packet_too_long_for_a_socket_is_posted() {
    let limits = FrontendLimits { max_upload_size: 20 << 20, ..limits() };
    let frontend = start(Fake::default(), limits, None).await;
    let link = HttpLink::new(&settings()).unwrap();
    let server = url(&format!("ws://{}/", frontend.address));
    for (length, body) in [(10 << 20, ""), ((10 << 20) + 1, "sealed")] {
        let packet = Post { handler: Handler::Control, urgent: false, body: vec![b'r'; length].into() };
        assert_eq!(answer(&link, &server, packet).await, (200, body.to_owned()), "{length}");
    }
}

#[tokio::test]
async fn server_pem_comes_over_a_socket_where_http_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = url(&format!("ws://{}/", listener.local_addr().unwrap()));
    let serve = tokio::spawn(async move {
        let (mut refused, _) = listener.accept().await.unwrap();
        head(&mut refused).await;
        refused.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        let (head, mut socket) = socket(&listener).await;
        assert!(head.starts_with("GET /server.pem "), "{head}");
        assert!(socket.next().await.unwrap().unwrap().is_binary());
        socket.send(text(r#"{"code":200,"data":"cGVt"}"#)).await.unwrap();
    });
    assert_eq!(HttpLink::new(&settings()).unwrap().fetch_pem(&server).await.unwrap(), "pem");
    serve.await.unwrap();
}

/// The same rules as for https.
#[tokio::test]
async fn tls_below_a_websocket_is_verified() {
    for (authority, name, accepted) in
        [(authority(), "VelociraptorServer", true), (authority(), "SomebodyElse", false), (stranger(), "VelociraptorServer", false)]
    {
        let (certificate, key) = leaf(authority, &LeafProfile::frontend(name));
        let tls = ServerTls::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let frontend = start(Fake::default(), limits(), Some(tls)).await;
        let server = url(&format!("wss://127.0.0.1:{}/", frontend.address.port()));
        let outcome = HttpLink::new(&settings()).unwrap().post(&server, post("row")).await;
        assert_eq!(outcome.is_ok(), accepted, "{name}");
        assert_eq!(frontend.endpoint.calls() > 0, accepted, "{name}: a packet left");
    }
}
