//! The agent's link over plain HTTP: what it sends, what it takes, how it finds the server.

use std::time::{Duration, Instant};

use bytes::Bytes;
use talon_transport::{Handler, HttpLink, LinkSettings, Post, ServerLink, ServerUrl, TransportError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::fake::{Fake, PEM, authority, ca_pem, limits, server_tls, start};

pub(crate) fn settings() -> LinkSettings {
    let mut settings = LinkSettings::new(ca_pem(authority()), "VelociraptorServer");
    settings.use_self_signed_ssl = true;
    settings.connection_timeout = Duration::from_secs(5);
    settings.proxy.ignore_environment = true;
    settings
}

pub(crate) fn post(body: &'static str) -> Post {
    Post { handler: Handler::Control, urgent: false, body: Bytes::from_static(body.as_bytes()) }
}

pub(crate) fn url(text: &str) -> ServerUrl {
    text.parse().unwrap()
}

/// Reads the head of one request and gives `answer`; returns the head.
pub(crate) async fn script(answer: &'static [u8]) -> (ServerUrl, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = head(&mut stream).await;
        stream.write_all(answer).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        head
    });
    (url(&format!("http://{address}/")), task)
}

pub(crate) async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_request_looks_like_a_stock_agents() {
    let link = HttpLink::new(&settings()).unwrap();
    let (server, seen) = script(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mut urgent = post("row");
    urgent.urgent = true;
    let reply = link.post(&server, urgent).await.unwrap();
    assert_eq!((reply.status, &reply.body[..]), (200, &b"ok"[..]));
    let host = server.authority();
    let expected = format!(
        "POST /control HTTP/1.1\r\nUser-Agent: Velociraptor\r\nContent-Type: application/binary\r\nX-Priority: urgent\r\nHost: {host}\r\nContent-Length: 3\r\n\r\n"
    );
    assert_eq!(seen.await.unwrap(), expected);
}

#[tokio::test]
async fn statuses_are_replies_and_redirects_are_not_followed() {
    let link = HttpLink::new(&settings()).unwrap();
    let (server, _seen) = script(b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n").await;
    let reply = link.post(&server, post("row")).await.unwrap();
    assert_eq!((reply.status, reply.location.as_deref()), (301, Some("https://elsewhere/")));
    let (server, _seen) = script(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n").await;
    assert!(matches!(link.fetch_pem(&server).await, Err(TransportError::Status(302))));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_reply() {
    let link = HttpLink::new(&settings()).unwrap();
    let (server, _seen) = script(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nZ\x01\0\r\n").await;
    assert!(matches!(link.post(&server, post("row")).await, Err(TransportError::Broken(_))));
}

#[tokio::test]
async fn an_answer_is_bounded() {
    let mut settings = settings();
    settings.max_reply = 100;
    let frontend = start(Fake::default(), limits(), None).await;
    let link = HttpLink::new(&settings).unwrap();
    let server = url(&format!("http://{}/", frontend.address));
    assert_eq!(link.post(&server, post("big 100")).await.unwrap().body.len(), 100);
    assert!(matches!(link.post(&server, post("big 101")).await, Err(TransportError::TooLarge { limit: 100 })));
}

#[tokio::test]
async fn a_server_that_says_nothing_times_out() {
    let mut settings = settings();
    settings.connection_timeout = Duration::from_millis(300);
    let link = HttpLink::new(&settings).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = url(&format!("http://{}/", listener.local_addr().unwrap()));
    let start = Instant::now();
    assert!(matches!(link.post(&server, post("row")).await, Err(TransportError::Timeout(_))));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let silent_tls = url(&format!("https://{}/", listener.local_addr().unwrap()));
    assert!(matches!(link.post(&silent_tls, post("row")).await, Err(TransportError::Timeout(_))));
}

#[tokio::test]
async fn nobody_listens() {
    let link = HttpLink::new(&settings()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = url(&format!("http://{}/", listener.local_addr().unwrap()));
    drop(listener);
    assert!(matches!(link.fetch_pem(&server).await, Err(TransportError::Connect { .. })));
}

#[tokio::test]
async fn pads_are_part_of_the_body_and_connections_are_reused() {
    let mut limits = limits();
    limits.control_pad = Duration::from_millis(50);
    let frontend = start(Fake::default(), limits, None).await;
    let link = HttpLink::new(&settings()).unwrap();
    let server = url(&format!("http://{}/", frontend.address));
    assert_eq!(link.fetch_pem(&server).await.unwrap(), PEM);
    let reply = link.post(&server, post("slow 120")).await.unwrap();
    assert_eq!(&reply.body[..], b"Z\x01\0Z\x01\0sealed");
    for _ in 0..3 {
        assert_eq!(link.post(&server, post("stranger")).await.unwrap().status, 406);
    }
    let ports: std::collections::BTreeSet<u16> = frontend.endpoint.seen.lock().unwrap().iter().map(|seen| seen.0.port()).collect();
    assert_eq!(ports.len(), 1, "{ports:?}");
}

#[tokio::test]
async fn over_tls_one_connection_carries_the_waiting_reader_and_the_posts() {
    let frontend = start(Fake { max_poll: Duration::from_secs(60), ..Fake::default() }, limits(), Some(server_tls())).await;
    let link = HttpLink::new(&settings()).unwrap();
    let server = url(&format!("https://127.0.0.1:{}/", frontend.address.port()));
    assert_eq!(link.fetch_pem(&server).await.unwrap(), PEM);
    let reader = link.post(&server, Post { handler: Handler::Reader, ..post("news 300") });
    let posts = async {
        for _ in 0..3 {
            assert_eq!(&link.post(&server, post("row")).await.unwrap().body[..], b"sealed");
        }
    };
    let (reader, ()) = tokio::join!(reader, posts);
    assert_eq!(&reader.unwrap().body[..], b"tasks");
    let ports: std::collections::BTreeSet<u16> = frontend.endpoint.seen.lock().unwrap().iter().map(|seen| seen.0.port()).collect();
    assert_eq!(ports.len(), 1, "{ports:?}");
}

#[tokio::test]
async fn a_processing_failure_reaches_the_agent_over_h2_too() {
    let frontend = start(Fake::default(), limits(), Some(server_tls())).await;
    let link = HttpLink::new(&settings()).unwrap();
    let server = url(&format!("https://127.0.0.1:{}/", frontend.address.port()));
    assert!(matches!(link.post(&server, post("failed")).await, Err(TransportError::Broken(_))));
    assert_eq!(link.post(&server, post("refused")).await.unwrap().body.len(), 0);
}

#[tokio::test]
async fn a_fallback_address_is_dialled_when_the_name_leads_nowhere() {
    let frontend = start(Fake::default(), limits(), Some(server_tls())).await;
    let mut settings = settings();
    let port = frontend.address.port();
    let server = url(&format!("https://frontend.invalid:{port}/"));
    assert!(matches!(HttpLink::new(&settings).unwrap().fetch_pem(&server).await, Err(TransportError::Connect { .. })));
    settings.fallback_addresses.insert(format!("frontend.invalid:{port}"), format!("127.0.0.1:{port}"));
    assert_eq!(HttpLink::new(&settings).unwrap().fetch_pem(&server).await.unwrap(), PEM);
}

#[tokio::test]
async fn tls_goes_through_a_tunnel_of_the_proxy() {
    let frontend = start(Fake::default(), limits(), Some(server_tls())).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = settings();
    settings.proxy.https = Some(format!("http://user:pw@{}", listener.local_addr().unwrap()));
    let to = frontend.address;
    let proxy = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let head = head(&mut near).await;
        near.write_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n").await.unwrap();
        let mut far = TcpStream::connect(to).await.unwrap();
        let _ = copy_bidirectional(&mut near, &mut far).await;
        head
    });
    let link = HttpLink::new(&settings).unwrap();
    let server = url("https://frontend.invalid:8000/");
    assert_eq!(link.fetch_pem(&server).await.unwrap(), PEM);
    drop((link, frontend));
    let head = proxy.await.unwrap();
    assert_eq!(
        head,
        "CONNECT frontend.invalid:8000 HTTP/1.1\r\nHost: frontend.invalid:8000\r\nProxy-Authorization: Basic dXNlcjpwdw==\r\n\r\n"
    );
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let (proxy, _seen) = script(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    let mut settings = settings();
    settings.proxy.https = Some(format!("http://{}", proxy.authority()));
    let error = HttpLink::new(&settings).unwrap().fetch_pem(&url("https://a.invalid/")).await.unwrap_err();
    let expected = format!("the proxy {} refused the connection: HTTP/1.1 407 Proxy Authentication Required", proxy.authority());
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn plain_requests_name_the_server_to_the_proxy() {
    let (proxy, seen) = script(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let mut settings = settings();
    settings.proxy.http = Some(format!("http://user:pw@{}", proxy.authority()));
    HttpLink::new(&settings).unwrap().post(&url("http://a.invalid:81/x/"), post("row")).await.unwrap();
    let head = seen.await.unwrap();
    assert!(head.starts_with("POST http://a.invalid:81/x/control HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Proxy-Authorization: Basic dXNlcjpwdw==\r\n"), "{head}");
}

#[test]
fn secrets_do_not_show() {
    let mut settings = settings();
    settings.client_certificate = Some(("CERT".to_owned(), "KEY MATERIAL".to_owned()));
    assert!(!format!("{settings:?} {:?}", server_tls()).contains("KEY"));
}
