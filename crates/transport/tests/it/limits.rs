//! Bounds: what is too long, too slow, too many, too late.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::fake::{Fake, Frontend, limits, request, server_tls, start};

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

fn chunked(path: &str, pieces: &[&str]) -> String {
    let body: String = pieces.iter().map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len())).collect();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{body}0\r\n\r\n")
}

/// How long a connection stays open on which `send` was sent.
async fn life(frontend: &Frontend, send: &str) -> Duration {
    let start = Instant::now();
    let mut stream = TcpStream::connect(frontend.address).await.unwrap();
    let _ = stream.write_all(send.as_bytes()).await;
    let mut sink = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut sink)).await.expect("the connection stays open");
    start.elapsed()
}

#[tokio::test]
async fn a_control_body_of_twice_the_upload_size_is_dropped() {
    let mut limits = limits();
    limits.max_upload_size = 1000;
    let frontend = start(Fake::default(), limits, None).await;
    let just = format!("garbage{}", "x".repeat(1992));
    assert_eq!(status(&frontend.post("/control", &just).await), "403");
    assert_eq!(status(&frontend.raw(&chunked("/control", &[&just[..900], &just[900..]])).await), "403");
    assert_eq!(frontend.endpoint.calls(), 2);
    let long = format!("{just}x");
    for answer in [frontend.post("/control", &long).await, frontend.raw(&chunked("/control", &[&long[..900], &long[900..]])).await] {
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("Content-Length: 0\r\n\r\n"), "{answer}");
    }
    assert_eq!(frontend.endpoint.calls(), 2);
}

#[tokio::test]
async fn a_long_reader_body_is_refused() {
    let mut limits = limits();
    limits.max_reader_body = 1000;
    let frontend = start(Fake::default(), limits, None).await;
    let just = format!("garbage{}", "x".repeat(993));
    assert_eq!(status(&frontend.post("/reader", &just).await), "403");
    let answer = frontend.post("/reader", &format!("{just}x")).await;
    assert!(status(&answer) == "503" && answer.ends_with("Content-Length: 1\r\n\r\n\n"), "{answer}");
    assert_eq!(frontend.endpoint.calls(), 1);
}

#[tokio::test]
async fn all_bodies_share_a_budget() {
    let mut limits = limits();
    limits.body_budget = 1000;
    let frontend = start(Fake::default(), limits, None).await;
    let held = frontend.post("/control", "slow 500");
    let more = async {
        while frontend.endpoint.calls() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        frontend.post("/control", &"x".repeat(995)).await
    };
    let (held, more) = tokio::join!(held, more);
    assert_eq!((status(&held), status(&more)), ("200", "503"));
    assert_eq!(status(&frontend.post("/control", &"x".repeat(995)).await), "200", "what was held is given back");
}

#[tokio::test]
async fn uploads_are_throttled_without_being_cut() {
    let mut limits = limits();
    limits.per_client_upload_rate = 200_000;
    limits.stall_deadline = Duration::from_millis(300);
    let frontend = start(Fake::default(), limits, None).await;
    let (start, body) = (Instant::now(), format!("garbage{}", "x".repeat(300_000)));
    assert_eq!(status(&frontend.post("/control", &body).await), "403");
    let took = start.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_packet_waits_for_its_slot_and_an_urgent_one_has_its_own() {
    let mut limits = limits();
    limits.concurrency = 1;
    limits.concurrency_timeout = Duration::from_millis(200);
    let frontend = start(Fake::default(), limits, None).await;
    let urgent = request("POST", "/control", "X-Priority: urgent\r\n", "slow 600");
    let first = frontend.post("/control", "slow 600");
    let others = async {
        while frontend.endpoint.calls() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::join!(frontend.post("/control", "row"), frontend.raw(&urgent), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            frontend.raw(&request("POST", "/control", "X-Priority: urgent\r\n", "row")).await
        })
    };
    let (first, (ordinary, urgent, second_urgent)) = tokio::join!(first, others);
    assert_eq!((status(&first), status(&urgent)), ("200", "200"));
    assert!(status(&ordinary) == "408" && ordinary.ends_with("Timeout\n"), "{ordinary}");
    assert_eq!(status(&second_urgent), "408", "urgency lifts no bound");
}

#[tokio::test]
async fn a_sender_that_stalls_holds_no_slot_and_is_cut() {
    let mut limits = limits();
    limits.concurrency = 1;
    limits.stall_deadline = Duration::from_millis(300);
    limits.concurrency_timeout = Duration::from_millis(100);
    let frontend = start(Fake::default(), limits, None).await;
    let mut stalled = TcpStream::connect(frontend.address).await.unwrap();
    stalled.write_all(b"POST /control HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
    assert_eq!(status(&frontend.post("/control", "row").await), "200");
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(5), stalled.read_to_string(&mut answer)).await.expect("still waiting").unwrap();
    assert_eq!(status(&answer), "408");
}

#[tokio::test]
async fn a_trickle_is_cut() {
    let mut limits = limits();
    limits.stall_deadline = Duration::from_millis(400);
    limits.min_rate = 1000;
    let frontend = start(Fake::default(), limits, None).await;
    let mut stream = TcpStream::connect(frontend.address).await.unwrap();
    stream.write_all(b"POST /control HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
    let start = Instant::now();
    while stream.write_all(b"x").await.is_ok() && start.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut byte = [0];
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut byte)).await {
            break;
        }
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_reader_of_a_long_answer_must_keep_its_pace() {
    let mut limits = limits();
    limits.stall_deadline = Duration::from_millis(300);
    limits.min_rate = 1 << 20;
    let frontend = start(Fake { max_poll: Duration::from_secs(60), ..Fake::default() }, limits, None).await;
    let mut stream = TcpStream::connect(frontend.address).await.unwrap();
    stream.write_all(request("POST", "/reader", "", "big 50000000").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut got = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut got)).await.expect("the connection stays open");
    assert!(got.len() < 50_000_000, "the answer came complete although nobody took it");
}

#[tokio::test]
async fn a_half_open_handshake_and_a_silent_connection_end() {
    let mut limits = limits();
    limits.handshake_deadline = Duration::from_millis(300);
    limits.idle_deadline = Duration::from_millis(500);
    let secure = start(Fake::default(), limits.clone(), Some(server_tls())).await;
    let plain = start(Fake::default(), limits, None).await;
    assert!(life(&secure, "").await < Duration::from_secs(3));
    assert!(life(&plain, "").await < Duration::from_secs(3));
    assert!(life(&plain, "POST /control HTTP/1.1\r\nHost:").await < Duration::from_secs(3));
    let kept_alive = "POST /control HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nrow";
    let life = life(&plain, kept_alive).await;
    assert!((Duration::from_millis(400)..Duration::from_secs(3)).contains(&life), "{life:?}");
}

#[tokio::test]
async fn a_silent_server_is_not_taken_for_a_silent_peer() {
    let mut limits = limits();
    limits.idle_deadline = Duration::from_millis(200);
    limits.concurrency = 1;
    let frontend = start(Fake::default(), limits, None).await;
    let (first, second) = tokio::join!(frontend.post("/control", "slow 700"), frontend.post("/control", "slow 100"));
    assert_eq!((status(&first), status(&second)), ("200", "200"));
}

#[tokio::test]
async fn too_many_connections_are_closed() {
    let mut limits = limits();
    limits.max_connections = 2;
    let frontend = start(Fake::default(), limits, None).await;
    let held = [TcpStream::connect(frontend.address).await.unwrap(), TcpStream::connect(frontend.address).await.unwrap()];
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(life(&frontend, "").await < Duration::from_secs(1));
    drop(held);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(status(&frontend.post("/control", "row").await), "200");
}

#[tokio::test]
async fn connections_beyond_the_rate_wait_for_their_turn_over_tls_only() {
    for (tls, expected) in [(Some(server_tls()), 10), (None, 30)] {
        let mut limits = limits();
        limits.connections_per_second = 1;
        let frontend = start(Fake::default(), limits, tls).await;
        let mut streams = Vec::new();
        for _ in 0..30 {
            let mut stream = TcpStream::connect(frontend.address).await.unwrap();
            // Neither TLS nor HTTP: whoever reads it ends the connection.
            stream.write_all(b"\x00\x00\x00\x00\x00\r\n\r\n").await.unwrap();
            streams.push(stream);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut taken = 0;
        for stream in &mut streams {
            let mut byte = [0];
            taken += usize::from(tokio::time::timeout(Duration::from_millis(5), stream.read(&mut byte)).await.is_ok());
        }
        assert!((expected..=expected + 2).contains(&taken), "{taken} of {expected}");
    }
}

#[tokio::test]
async fn draining_says_farewell_and_finishes_what_was_taken() {
    let frontend = start(Fake { max_poll: Duration::from_secs(60), ..Fake::default() }, limits(), None).await;
    let waiting = frontend.post("/reader", "wait");
    let taken = frontend.post("/control", "slow 400");
    let drain = async {
        while frontend.endpoint.calls() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        frontend.drain.cancel();
    };
    let (waiting, taken, ()) = tokio::join!(waiting, taken, drain);
    assert!(waiting.ends_with("8\r\nfarewell\r\n0\r\n\r\n"), "{waiting}");
    assert!(taken.ends_with("6\r\nsealed\r\n0\r\n\r\n"), "{taken}");
    tokio::time::timeout(Duration::from_secs(5), frontend.served).await.expect("draining does not end").unwrap();
    assert!(TcpStream::connect(frontend.address).await.is_err());
}

#[tokio::test]
async fn draining_has_an_end() {
    let mut limits = limits();
    limits.drain_deadline = Duration::from_millis(300);
    let frontend = start(Fake::default(), limits, None).await;
    let mut stuck = TcpStream::connect(frontend.address).await.unwrap();
    stuck.write_all(request("POST", "/control", "", "slow 30000").as_bytes()).await.unwrap();
    while frontend.endpoint.calls() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    frontend.drain.cancel();
    tokio::time::timeout(Duration::from_secs(5), frontend.served).await.expect("draining does not end").unwrap();
    assert_eq!(frontend.endpoint.processed.load(Ordering::SeqCst), 0);
}

/// A waiting reader has no thread and few bytes: hundreds of them at once, all served when the frontend drains.
#[tokio::test]
async fn many_readers_wait() {
    const READERS: usize = 300;
    let frontend = start(Fake { max_poll: Duration::from_secs(60), ..Fake::default() }, limits(), None).await;
    let address = frontend.address;
    let readers = TaskTracker::new();
    let farewells = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for _ in 0..READERS {
        let farewells = std::sync::Arc::clone(&farewells);
        readers.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request("POST", "/reader", "", "wait").as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            farewells.fetch_add(usize::from(answer.contains("farewell")), Ordering::SeqCst);
        });
    }
    tokio::time::timeout(Duration::from_secs(30), async {
        while frontend.endpoint.calls() < READERS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("not all readers came through");
    frontend.drain.cancel();
    readers.close();
    tokio::time::timeout(Duration::from_secs(30), readers.wait()).await.expect("some readers still wait");
    assert_eq!(farewells.load(Ordering::SeqCst), READERS);
}
