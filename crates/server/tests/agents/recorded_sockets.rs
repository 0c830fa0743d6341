//! The odd inputs over WebSocket: the server answers as the recorded stock server did, or as [`DIFFERENCES`] says.

use std::time::Duration;

use serde_json::Value;
use talon_proto::VeloMessage;

use crate::bench::{Agent, checkin, csr};
use crate::front::{Frame, PATIENCE, Socket};
use crate::recorded::{Stage, cases, judge, recorded_body, shown_body, vectors};

/// Cases that end otherwise here, and how.
const DIFFERENCES: &[(&str, &str)] = &[
    ("control, text frame", "close 1007"),
    ("control, encrypted empty", "403"),
    ("second reader while one is open", "open"),
    ("HTTP reader while a WS reader is open", "200"),
];

/// What the other side saw, in short: codes with the kind of their content, and how it ended. Error texts are left out: they are no part of the protocol.
fn shown(frame: &Frame, agent: &Agent) -> String {
    match frame {
        Frame::Answer(code, _, data) if data.is_empty() => code.to_string(),
        Frame::Answer(code, _, data) => format!("{code} {}", shown_body(data, agent)),
        Frame::Ping => "ping".to_owned(),
        Frame::Pong(payload) => format!("pong {}", String::from_utf8_lossy(payload)),
        Frame::Close(code) => format!("close {code}"),
        Frame::Closed => "closed".to_owned(),
        Frame::Open => "open".to_owned(),
    }
}

/// A recorded frame in the same words.
fn recorded(frame: &str) -> Option<String> {
    let hex = |text: &str| Vec::from_iter((0..text.len()).step_by(2).filter_map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()));
    if let Some(json) = frame.strip_prefix("binary frame ") {
        let json: Value = serde_json::from_str(json).unwrap();
        let code = json["code"].as_u64().unwrap();
        return Some(json["data"].as_str().map_or(code.to_string(), |data| format!("{code} {}", recorded_body(data))));
    }
    if let Some(payload) = frame.strip_prefix("pong ") {
        return Some(format!("pong {}", String::from_utf8_lossy(&hex(payload))));
    }
    if let Some(payload) = frame.strip_prefix("close frame ") {
        let code = hex(payload);
        return Some(format!("close {}", u16::from_be_bytes([code[0], code[1]])));
    }
    if let Some(status) = frame.strip_prefix("HTTP/1.1 ") {
        return Some(status.split(' ').next().unwrap().to_owned());
    }
    // The peer's own trouble.
    (!frame.starts_with("send: ")).then(|| frame.to_owned())
}

/// What a case sends on a socket that is open.
async fn act(stage: &Stage, name: &str, agent: &Agent, socket: &mut Socket) {
    let row = || agent.seal(&[stage.row(agent)]);
    let event = |queue: &str| agent.jsonl("F.Monitoring", queue, 0, 1, "{}\n");
    match name {
        "server.pem" => {
            socket.send(b"x").await;
            socket.send(b"y").await;
        }
        "server.pem, empty frame" | "control, empty frame" => socket.send(b"").await,
        "control, garbage" | "reader, garbage" => socket.send(&[0xff; 64]).await,
        "control, unknown key" => socket.send(&agent.seal(&[VeloMessage::default()])).await,
        "control, wrong CSR" => {
            let other = talon_pki::create_csr(&crate::bench::KEYS[3]).unwrap();
            socket.send(&agent.seal(&[csr(&other)])).await;
        }
        "control, CSR" => socket.send(&agent.seal(&[csr(&talon_pki::create_csr(agent.codec.key()).unwrap())])).await,
        "control, text frame" => socket.frame(0x81, true, &row()).await,
        "control, two frames" => {
            socket.send(&row()).await;
            socket.send(&agent.seal(&[])).await;
        }
        "control, pad only" => socket.send(b"Z\x01\0").await,
        "control, processing error" => {
            socket.send(&agent.seal(&[event("No.Such.Artifact")])).await;
            socket.send(&agent.seal(&[])).await;
        }
        "control, api_version 3" => socket.send(&std::fs::read(vectors().unwrap().join("server-behaviour/065.bin")).unwrap()).await,
        "control, nonce unknown" => socket.send(&std::fs::read(vectors().unwrap().join("server-behaviour/060.bin")).unwrap()).await,
        "control, encrypted empty" => socket.send(&std::fs::read(vectors().unwrap().join("server-behaviour/069.bin")).unwrap()).await,
        "control, ping from agent" => socket.frame(0x89, true, b"abc").await,
        "control, close frame" => socket.frame(0x88, true, &1000_u16.to_be_bytes()).await,
        "control, unmasked frame" => socket.frame(0x82, false, &row()).await,
        "control, rsv1 set" => socket.frame(0xc2, true, &row()).await,
        "control, 10 MiB - 1 garbage" => socket.send(&vec![0xff; (10 << 20) - 1]).await,
        "control, 10 MiB garbage" => socket.send(&vec![0xff; 10 << 20]).await,
        "control, 10 MiB + 1 garbage" => socket.send(&vec![0xff; (10 << 20) + 1]).await,
        "origin of same host" | "subprotocol and deflate offered" | "send_messages alias" => socket.send(&row()).await,
        "control, fragmented" => {
            let packet = row();
            let (first, rest) = packet.split_at(100);
            socket.frame(0x02, true, first).await;
            socket.frame(0x80, true, rest).await;
        }
        _ => socket.send(&agent.seal(&[checkin(u64::MAX)])).await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_inputs_over_websockets_are_answered_as_by_a_stock_server_or_more_safely() {
    let Some(folder) = vectors() else { return };
    let stage = Stage::new(&folder).await;
    let agent = stage.probe();
    let mut outcomes = Vec::new();
    for case in cases(&folder, "server-behaviour-ws.json") {
        let name = case["case"].as_str().unwrap().to_owned();
        let wanted: Vec<String> =
            case["received"].as_array().unwrap().iter().filter_map(|frame| recorded(frame.as_str().unwrap())).collect();
        let headers = match name.as_str() {
            "origin of another host" => "Origin: http://example.com\r\n".to_owned(),
            "origin of same host" => format!("Origin: http://{}\r\n", stage.front.address),
            "subprotocol and deflate offered" => "Sec-WebSocket-Protocol: x\r\nSec-WebSocket-Extensions: permessage-deflate\r\n".to_owned(),
            _ => String::new(),
        };
        let mut seen = Vec::new();
        match stage.front.socket(case["path"].as_str().unwrap(), &headers).await {
            Err(status) => seen.push(status.to_string()),
            Ok(mut socket) => {
                seen = match name.as_str() {
                    "second reader while one is open" | "HTTP reader while a WS reader is open" => {
                        second_reader(&stage, &name, &agent, socket).await
                    }
                    "reader, garbage as second frame" => {
                        act(&stage, "", &agent, &mut socket).await;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        socket.send(&[0xff; 64]).await;
                        vec![shown(&socket.answer().await, &agent)]
                    }
                    "reader left without pongs" => without_pongs(&stage, &agent, socket).await,
                    _ => {
                        act(&stage, &name, &agent, &mut socket).await;
                        let mut seen = Vec::new();
                        for _ in &wanted {
                            seen.push(shown(&socket.answer().await, &agent));
                        }
                        seen
                    }
                };
            }
        }
        let wanted = if name == "reader left without pongs" { "ping, closed".to_owned() } else { wanted.join(", ") };
        outcomes.push((name, seen.join(", "), wanted));
    }
    assert_eq!(outcomes.len(), 33);
    judge(&outcomes, DIFFERENCES, "## Answers that differ over WebSocket");
}

/// A poll waits on a socket; another one comes by `name`.
async fn second_reader(stage: &Stage, name: &str, agent: &Agent, mut first: Socket) -> Vec<String> {
    // An earlier case may have displaced a reader a moment ago.
    stage.bench.advance(60);
    act(stage, "", agent, &mut first).await;
    while let Frame::Answer(..) = first.next(Duration::from_millis(300)).await {
        act(stage, "", agent, &mut first).await;
    }
    let again = agent.seal(&[checkin(u64::MAX)]);
    if name.starts_with("HTTP") {
        let exchange = stage.front.post("/reader", &again).await;
        return vec![exchange.status.unwrap().to_string()];
    }
    let mut second = stage.front.socket("/reader", "").await.unwrap();
    second.send(&again).await;
    match second.answer().await {
        Frame::Open => vec!["open".to_owned()],
        answer => vec![shown(&answer, agent), shown(&second.answer().await, agent)],
    }
}

/// The server pings once an interval and closes when nothing comes for a tenth more. When it asks about flows meanwhile is another matter.
async fn without_pongs(stage: &Stage, agent: &Agent, mut socket: Socket) -> Vec<String> {
    stage.bench.advance(71);
    let mut seen = Vec::new();
    socket.send(&agent.seal(&[checkin(u64::MAX)])).await;
    loop {
        match socket.next(PATIENCE * 3).await {
            Frame::Answer(..) => {}
            frame @ (Frame::Closed | Frame::Open) => {
                seen.push(shown(&frame, agent));
                return seen;
            }
            frame => seen.push(shown(&frame, agent)),
        }
    }
}
