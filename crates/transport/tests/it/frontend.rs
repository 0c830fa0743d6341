//! Every row of the answers of `/control`, `/reader` and the open routes, byte for byte over HTTP/1.1.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fake::{Fake, PEM, limits, request, start, start_below};

const ACCEPTED: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nX-Accel-Buffering: no\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
const DROPPED: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

fn refused(status: &str, text: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}\n",
        text.len() + 1
    )
}

fn chunks(parts: &[&str]) -> String {
    parts.iter().map(|part| format!("{:X}\r\n{part}\r\n", part.len())).chain(["0\r\n\r\n".to_owned()]).collect()
}

#[tokio::test]
async fn control_answers() {
    let frontend = start(Fake::default(), limits(), None).await;
    for path in ["/control", "/send_messages"] {
        for (body, expected) in [
            ("garbage", refused("403 Forbidden", "")),
            ("", refused("406 Not Acceptable", "Please Enrol")),
            ("Z\u{1}\0", refused("406 Not Acceptable", "Please Enrol")),
            ("bad csr", refused("503 Service Unavailable", "")),
            ("dropped", DROPPED.to_owned()),
            ("row", format!("{ACCEPTED}{}", chunks(&["sealed"]))),
            ("refused", format!("{ACCEPTED}{}", chunks(&[]))),
        ] {
            assert_eq!(frontend.post(path, body).await, expected, "{path} {body:?}");
        }
    }
    assert_eq!(frontend.raw(&request("GET", "/control", "", "")).await, refused("406 Not Acceptable", "Please Enrol"));
}

#[tokio::test]
async fn reader_answers() {
    let frontend = start(Fake { max_poll: Duration::from_secs(60), ..Fake::default() }, limits(), None).await;
    for path in ["/reader", "/receive_messages"] {
        for (body, expected) in [
            ("garbage", refused("403 Forbidden", "")),
            ("stranger", refused("406 Not Acceptable", "Please Enrol")),
            (
                "second",
                refused(
                    "409 Conflict",
                    "Another Client connection exists. Only a single instance of the client is allowed to connect at the same time.",
                ),
            ),
            ("unknown record", DROPPED.to_owned()),
            ("news", format!("{ACCEPTED}{}", chunks(&["tasks"]))),
            ("nothing", format!("{ACCEPTED}{}", chunks(&[]))),
        ] {
            assert_eq!(frontend.post(path, body).await, expected, "{path} {body:?}");
        }
    }
}

#[tokio::test]
async fn an_unhealthy_server_says_so() {
    let frontend = start(Fake { sick: true, ..Fake::default() }, limits(), None).await;
    for path in ["/control", "/reader"] {
        assert_eq!(frontend.post(path, "row").await, refused("503 Service Unavailable", "Error: the disk is full"));
    }
    assert_eq!(frontend.endpoint.calls(), 0);
}

#[tokio::test]
async fn open_routes() {
    let frontend = start(Fake::default(), limits(), None).await;
    let pem = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        chunks(&[PEM])
    );
    let absent =
        "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: 9\r\n\r\nNot Found";
    for (method, path, expected) in [
        ("GET", "/server.pem", pem.as_str()),
        ("POST", "/server.pem", pem.as_str()),
        ("GET", "/healthz", DROPPED),
        ("GET", "/", &refused("404 Not Found", "404 page not found")),
        ("GET", "/app/index.html", &refused("404 Not Found", "404 page not found")),
        ("GET", "/public/", absent),
        ("GET", "/public/none.bin", absent),
        ("GET", "/public/a%00b", absent),
        ("GET", "/public/a%5Cb", absent),
        (
            "GET",
            "/public/tools/a%20b;c.exe",
            "HTTP/1.1 200 OK\r\nContent-Type: binary/octet-stream\r\nContent-Disposition: attachment; filename=a%20b;c.exe\r\nConnection: close\r\nContent-Length: 9\r\n\r\nsome tool",
        ),
        (
            "GET",
            "/public/../../server.config.yaml",
            "HTTP/1.1 307 Temporary Redirect\r\nContent-Type: text/html; charset=utf-8\r\nLocation: /server.config.yaml\r\nConnection: close\r\nContent-Length: 55\r\n\r\n<a href=\"/server.config.yaml\">Temporary Redirect</a>.\n\n",
        ),
    ] {
        assert_eq!(frontend.raw(&request(method, path, "", "")).await, expected, "{method} {path}");
    }
    assert_eq!(frontend.endpoint.calls(), 0);
}

#[tokio::test]
async fn an_upgrade_to_something_else_is_a_bad_request() {
    let frontend = start(Fake::default(), limits(), None).await;
    for headers in
        ["Upgrade: foo\r\n", "Upgrade: websocket\r\n", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"]
    {
        assert_eq!(frontend.raw(&request("POST", "/control", headers, "")).await, refused("400 Bad Request", "Bad Request"));
    }
    assert_eq!(frontend.endpoint.calls(), 0);
}

#[tokio::test]
async fn everything_is_below_the_base_path() {
    let frontend = start_below("/velo/", Fake::default(), limits(), None).await;
    assert_eq!(frontend.post("/velo/control", "garbage").await, refused("403 Forbidden", ""));
    assert_eq!(frontend.post("/control", "garbage").await, refused("404 Not Found", "404 page not found"));
}

#[tokio::test]
async fn control_pads_while_it_processes() {
    let mut limits = limits();
    limits.control_pad = Duration::from_millis(100);
    let frontend = start(Fake::default(), limits, None).await;
    let answer = frontend.post("/control", "slow 350").await;
    let pad = "Z\u{1}\0";
    assert_eq!(answer, format!("{ACCEPTED}{}", chunks(&[pad, pad, pad, "sealed"])));
}

#[tokio::test]
async fn a_reader_pads_and_ends_with_a_pad_at_its_time() {
    let mut limits = limits();
    limits.reader_pad = Duration::from_millis(100);
    let frontend = start(Fake { max_poll: Duration::from_millis(250), ..Fake::default() }, limits, None).await;
    let start = Instant::now();
    let pad = "Z\u{1}\0";
    assert_eq!(frontend.post("/reader", "wait").await, format!("{ACCEPTED}{}", chunks(&[pad, pad, pad])));
    assert!(start.elapsed() >= Duration::from_millis(250));
    assert_eq!(frontend.post("/reader", "news 150").await, format!("{ACCEPTED}{}", chunks(&[pad, "tasks"])));
}

#[tokio::test]
async fn headers_are_flushed_before_the_answer() {
    let frontend = start(Fake { max_poll: Duration::from_secs(60), ..Fake::default() }, limits(), None).await;
    for (path, body) in [("/control", "slow 60000"), ("/reader", "wait")] {
        let mut stream = TcpStream::connect(frontend.address).await.unwrap();
        stream.write_all(request("POST", path, "", body).as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tokio::time::timeout(Duration::from_secs(2), stream.read_u8()).await.expect("not flushed").unwrap());
        }
    }
}

#[tokio::test]
async fn what_could_not_be_stored_is_not_acknowledged() {
    let frontend = start(Fake::default(), limits(), None).await;
    for body in ["failed", "panic"] {
        let answer = frontend.post("/control", body).await;
        assert!(answer.is_empty() || answer == ACCEPTED, "{body}: {answer:?}");
        assert!(!answer.ends_with("0\r\n\r\n"), "{body}: {answer:?}");
    }
}

#[tokio::test]
async fn an_agent_that_goes_away_is_processed_all_the_same() {
    let frontend = start(Fake::default(), limits(), None).await;
    let mut stream = TcpStream::connect(frontend.address).await.unwrap();
    stream.write_all(request("POST", "/control", "", "slow 200").as_bytes()).await.unwrap();
    while frontend.endpoint.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    tokio::time::timeout(Duration::from_secs(5), async {
        while frontend.endpoint.processed.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the processing was given up");
}

#[tokio::test]
async fn a_reader_that_goes_away_is_gone_at_once() {
    let frontend = start(Fake { max_poll: Duration::from_secs(60), ..Fake::default() }, limits(), None).await;
    let mut stream = TcpStream::connect(frontend.address).await.unwrap();
    stream.write_all(request("POST", "/reader", "", "wait").as_bytes()).await.unwrap();
    assert!(stream.read_u8().await.is_ok());
    assert_eq!(frontend.endpoint.polls_ended.load(Ordering::SeqCst), 0);
    drop(stream);
    tokio::time::timeout(Duration::from_secs(1), async {
        while frontend.endpoint.polls_ended.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the reader is still registered");
}

#[tokio::test]
async fn the_peer_is_described_by_its_headers() {
    let frontend = start(Fake::default(), limits(), None).await;
    frontend.raw(&request("POST", "/control", "X-Forwarded-For: 192.0.2.7\r\nUser-Agent: Agent/1\r\nX-Priority: urgent\r\n", "row")).await;
    frontend.post("/control", "row").await;
    let seen = frontend.endpoint.seen.lock().unwrap().clone();
    let (socket, remote, agent, urgent, _) = &seen[1];
    assert_eq!((remote, agent.as_str(), *urgent), (&socket.to_string(), "", false));
    assert_eq!((seen[0].1.as_str(), seen[0].2.as_str(), seen[0].3), ("192.0.2.7", "Agent/1", true));
}

/// The cases of the recorded stock server that this layer decides by itself or with the endpoint's word.
#[tokio::test]
async fn recorded_answers_of_a_stock_server() {
    let Ok(folder) = std::env::var("TALON_VECTORS") else {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
        return;
    };
    let text = std::fs::read_to_string(format!("{folder}/server-behaviour.json")).unwrap();
    let recorded: serde_json::Value = serde_json::from_str(&text).unwrap();
    let frontend = start(Fake::default(), limits(), None).await;
    let mut compared = 0;
    for case in recorded["cases"].as_array().unwrap() {
        let name = case["case"].as_str().unwrap();
        let body = match name {
            "control, pad only" | "reader, pad only" => "Z\u{1}\0",
            "control, garbage" | "reader, garbage" => "garbage",
            "unknown key, reader" | "unknown key, control" => "stranger",
            "CSR, garbage pem" => "bad csr",
            "second reader while one is open" => "second",
            _ if case["request_bytes"] == 0 => "",
            _ => continue,
        };
        let headers: String = case["headers"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| *name != "Connection")
            .map(|(name, value)| format!("{name}: {}\r\n", value.as_str().unwrap()))
            .collect();
        let answer = frontend.raw(&request(case["method"].as_str().unwrap(), case["path"].as_str().unwrap(), &headers, body)).await;
        let status: u64 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(status, case["status"].as_u64().unwrap(), "{name}");
        let expected = case["body"].as_str().unwrap();
        let content = answer.split_once("\r\n\r\n").unwrap().1;
        match expected.strip_prefix("text ") {
            Some(quoted) if !quoted.contains("BEGIN CERTIFICATE") => {
                let text: String = serde_json::from_str(quoted).unwrap();
                assert_eq!(content, text, "{name}");
            }
            Some(_) => assert!(content.contains("BEGIN CERTIFICATE"), "{name}"),
            None => assert_eq!((expected, content), ("empty", ""), "{name}"),
        }
        compared += 1;
    }
    assert!(compared >= 20, "{compared}");
}
