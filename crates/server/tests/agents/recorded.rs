//! Odd and hostile inputs whose answers were recorded from a stock server, replayed against this one behind its real listener. It answers the same, or what
//! [`DIFFERENCES`] says; `docs/protocol-conformance.md` explains each.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;
use talon_crypto::RsaPrivateKey;
use talon_proto::{ArtifactCollectorArgs, ClientEventTable, VeloMessage};
use talon_wire::{Blobs, MessageList, Reply};

use crate::bench::{Agent, Bench, KEYS, checkin};
use crate::front::{Exchange, Front};

const CONFORMANCE: &str = include_str!("../../../../docs/protocol-conformance.md");
const QUEUE: &str = "Custom.Vector.Clock";

/// Cases that end otherwise here, and how.
const DIFFERENCES: &[(&str, &str)] = &[
    ("CSR, wrong self-signature", "503 text \"\\n\", not enrolled"),
    ("CSR, 1024-bit key", "503 text \"\\n\", not enrolled"),
    ("CSR signed for a key other than the session key", "503 text \"\\n\", not enrolled"),
    ("replay", "200 envelope: none, rows 0"),
    ("replay, /send_messages", "200 envelope: none, rows 0"),
    ("source with suffix", "406 text \"Please Enrol\\n\", rows 0"),
    ("encrypted empty", "403 text \"\\n\""),
    ("encrypted empty, reader", "403 text \"\\n\""),
    ("packet_iv of 15 bytes", "403 text \"\\n\""),
    ("packet_iv empty", "403 text \"\\n\""),
    ("metadata empty", "403 text \"\\n\""),
    ("padding byte 0xf0", "403 text \"\\n\""),
    ("metadata_iv of 15 bytes", "403 text \"\\n\""),
    ("hmac_key empty", "403 text \"\\n\""),
    ("forged System.Flow.Completion", "200 empty"),
    ("session id with path", "200 empty"),
    ("other org nonce on a cached session", "403 text \"\\n\", rows 0"),
    ("other org nonce on a cached session, reader", "403 text \"\\n\""),
    ("new session, root nonce, right after", "200 envelope: none"),
    ("the agent itself, new session, right after", "200 envelope: none"),
    ("the agent itself, new session, reader", "200 envelope: FlowRequest UpdateEventTable"),
    ("second reader while one is open", "200 empty, still open"),
    ("second reader while one is open, new session", "200 empty, still open"),
    ("reader right after the first poll ended by itself", "200 envelope: UpdateEventTable flow_stats_request"),
];

/// The folder with the recordings, or `None` after saying that the test is skipped.
pub(crate) fn vectors() -> Option<PathBuf> {
    let folder = std::env::var_os("TALON_VECTORS").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
    }
    folder
}

pub(crate) fn cases(folder: &std::path::Path, file: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(&std::fs::read_to_string(folder.join(file)).unwrap()).unwrap();
    all["cases"].as_array().unwrap().clone()
}

/// The recorded deployment with an event table, and the agent that sent most of the packets.
pub(crate) struct Stage {
    pub(crate) bench: Bench,
    pub(crate) front: Front,
    pub(crate) key: RsaPrivateKey,
    pub(crate) nonce: String,
}

impl Stage {
    pub(crate) async fn new(folder: &std::path::Path) -> Self {
        let bench = Bench::recorded(folder);
        let artifact = std::fs::read_to_string(folder.join(format!("artifacts/{QUEUE}.yaml"))).unwrap();
        bench.root().set_artifact(&artifact, "").unwrap();
        let artifacts = Some(ArtifactCollectorArgs { artifacts: vec![QUEUE.into()], ..ArtifactCollectorArgs::default() });
        bench.root().set_monitoring(ClientEventTable { artifacts, ..ClientEventTable::default() }).unwrap();
        let key = RsaPrivateKey::from_pem(&std::fs::read_to_string(folder.join("keys/agent-probe.key.pem")).unwrap()).unwrap();
        let nonce = bench.org().nonce().to_owned();
        Self { front: Front::new(&bench).await, bench, key, nonce }
    }

    pub(crate) fn probe(&self) -> Agent {
        self.bench.agent_with(self.key.clone(), &self.nonce)
    }

    /// Another agent of the root organisation, enrolled.
    pub(crate) async fn stranger(&self, key: usize) -> Agent {
        let agent = self.bench.agent_with(KEYS[key].clone(), &self.nonce);
        agent.enrol().await;
        agent
    }

    fn enrolled(&self) -> usize {
        self.bench.org().search_clients("").unwrap().len()
    }

    /// Rows of the event queue in the store, over all clients.
    fn rows(&self) -> u64 {
        let queue = |name: &talon_store::ObjectName| name.components().iter().any(|part| part.contains("Vector.Clock"));
        self.bench.objects().iter().filter(|(name, ..)| queue(name)).map(|(_, rows, _)| rows).sum()
    }

    pub(crate) fn row(&self, agent: &Agent) -> VeloMessage {
        agent.jsonl("F.Monitoring", QUEUE, 0, 1, &format!("{{\"T\":\"{}\"}}\n", self.rows()))
    }
}

/// An answer in the words of the recordings; of an envelope only the kinds of its messages, without the copies for older agents.
fn shown(exchange: &Exchange, agent: &Agent) -> String {
    let status = exchange.status.map_or("none".to_owned(), |status| status.to_string());
    let end = if exchange.end == "complete" { String::new() } else { format!(", {}", exchange.end) };
    format!("{status} {}{end}", shown_body(&exchange.body, agent))
}

pub(crate) fn shown_body(body: &[u8], agent: &Agent) -> String {
    if body.is_empty() {
        return "empty".to_owned();
    }
    match agent.try_open(Bytes::copy_from_slice(body)) {
        Some(Reply::Verified(reply)) => {
            let messages: Vec<VeloMessage> = reply.messages().collect::<Result<_, _>>().unwrap();
            kinds(&messages.iter().flat_map(kind).collect::<BTreeSet<_>>())
        }
        Some(Reply::Empty) => "pads".to_owned(),
        Some(other) => panic!("{other:?}"),
        None => {
            let text = String::from_utf8_lossy(body);
            // As the recordings cut it.
            let cut = if text.starts_with("-----BEGIN") { format!("{}...", &text[..60]) } else { text.into_owned() };
            format!("text {}", Value::from(cut))
        }
    }
}

fn kind(message: &VeloMessage) -> Option<&'static str> {
    if message.flow_request.is_some() {
        return Some("FlowRequest");
    }
    if message.update_event_table.is_some() {
        return Some("UpdateEventTable");
    }
    message.flow_stats_request.as_ref().map(|_| "flow_stats_request")
}

fn kinds(kinds: &BTreeSet<&str>) -> String {
    let list: Vec<&str> = kinds.iter().copied().collect();
    format!("envelope: {}", if list.is_empty() { "none".to_owned() } else { list.join(" ") })
}

/// What the stock server answered, in the same words.
fn recorded(case: &Value) -> String {
    let status = case["status"].as_u64().map_or("none".to_owned(), |status| status.to_string());
    let end = match case["end"].as_str().unwrap() {
        "complete" => "",
        end if end.starts_with("still open") => ", still open",
        _ => ", closed",
    };
    format!("{status} {}{end}", recorded_body(case["body"].as_str().unwrap_or("empty")))
}

pub(crate) fn recorded_body(body: &str) -> String {
    if !body.starts_with("envelope") {
        return body.to_owned();
    }
    let all = ["FlowRequest", "UpdateEventTable", "flow_stats_request"];
    kinds(&all.into_iter().filter(|kind| body.contains(kind)).collect())
}

/// Rows that the stock server stored for this very packet, where somebody looked.
fn rows_recorded(name: &str, effect: &str) -> Option<u64> {
    match name {
        // The recorded number counts those of the same packet before.
        "replay" | "replay, /send_messages" => Some(1),
        "source with suffix" => Some(1),
        "other org nonce on a cached session" => Some(1),
        _ => effect.split("rows stored").nth(1)?.split(": ").nth(1)?.split([',', ' ', ';']).next()?.parse().ok(),
    }
}

/// Asserts that each case ended as recorded or as `differences` says, that none is listed in vain, and that the documentation has them all.
pub(crate) fn judge(outcomes: &[(String, String, String)], differences: &[(&str, &str)], section: &str) {
    let mut wrong = Vec::new();
    for (name, ours, recorded) in outcomes {
        let expected = differences.iter().find(|(case, _)| case == name).map(|(_, ours)| *ours);
        match expected {
            Some(expected) if expected == ours && ours != recorded => {}
            Some(expected) => wrong.push(format!("{name}: {ours}; the table of differences says {expected}, stock says {recorded}")),
            None if ours == recorded => {}
            None => wrong.push(format!("{name}: {ours}; stock: {recorded}")),
        }
    }
    for (case, _) in differences {
        if !outcomes.iter().any(|(name, ..)| name == case) {
            wrong.push(format!("{case}: no such case"));
        }
    }
    let text = CONFORMANCE.split(section).nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or_default();
    for (case, ours) in differences {
        if !text.contains(&format!("| {case} | {ours} |")) {
            wrong.push(format!("docs/protocol-conformance.md does not explain: | {case} | {ours} |"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_inputs_are_answered_as_by_a_stock_server_or_more_safely() {
    let Some(folder) = vectors() else { return };
    let stage = Stage::new(&folder).await;
    let (front, probe) = (&stage.front, stage.probe());
    let mut outcomes = Vec::new();
    let mut waiting = Vec::new();
    let mut victim = None;
    for case in cases(&folder, "server-behaviour.json") {
        let name = case["case"].as_str().unwrap().to_owned();
        let path = case["path"].as_str().unwrap().to_owned();
        let file = case["request"].as_str().map(|file| std::fs::read(folder.join(file)).unwrap());
        let zeros = |count| Some(vec![0_u8; count]);
        let body = match name.as_str() {
            "oversized control" => zeros(209_715_200),
            "just under the limit, garbage" => zeros(209_715_199),
            "oversized reader" => zeros(52_428_801),
            "zlib bomb" => {
                let mut list = MessageList::default();
                list.push_list(&vec![0; 101 << 20]);
                Some(probe.seal_blobs(&Blobs::compressed([list]).unwrap()).to_vec())
            }
            // Their keys were not recorded: the same packets from an agent of this test.
            "victim, new session" => {
                victim = Some(stage.stranger(1).await);
                let agent = victim.as_ref().unwrap();
                Some(agent.seal(&[stage.row(agent)]).to_vec())
            }
            "victim, cached session" | "the agent itself, cached session, right after" => {
                let agent = victim.as_ref().unwrap();
                Some(agent.seal(&[stage.row(agent)]).to_vec())
            }
            name if name.starts_with("the agent itself, new session") => {
                let agent = stage.bench.agent_with(KEYS[1].clone(), &stage.nonce);
                let message = if path == "/reader" { checkin(0) } else { stage.row(&agent) };
                victim = Some(agent);
                Some(victim.as_ref().unwrap().seal(&[message]).to_vec())
            }
            "second reader while one is open" => {
                let agent = stage.probe();
                let poll = agent.seal(&[checkin(u64::MAX)]);
                let address = front.address;
                waiting.push(tokio::spawn(async move { Front { address }.post("/reader", &poll).await }));
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                file
            }
            "reader right after the first poll ended by itself" => {
                for poll in waiting.drain(..) {
                    poll.await.unwrap();
                }
                stage.bench.advance(71);
                file
            }
            _ => file,
        };
        let headers: String =
            case["headers"].as_object().unwrap().iter().map(|(name, value)| format!("{name}: {}\r\n", value.as_str().unwrap())).collect();
        let (rows, enrolled) = (stage.rows(), stage.enrolled());
        let exchange = front.exchange(case["method"].as_str().unwrap(), &path, &headers, &body.unwrap_or_default()).await;
        let opener = if name.starts_with("victim") || name.starts_with("the agent itself") { victim.as_ref().unwrap() } else { &probe };
        let (mut ours, mut stock) = (shown(&exchange, opener), recorded(&case));
        let effect = case["effect"].as_str().unwrap_or_default();
        if let Some(count) = rows_recorded(&name, effect) {
            ours.push_str(&format!(", rows {}", stage.rows() - rows));
            stock.push_str(&format!(", rows {count}"));
        }
        if effect.contains("then /reader: ") {
            ours.push_str(if stage.enrolled() > enrolled { ", enrolled" } else { ", not enrolled" });
            stock.push_str(if effect.contains("then /reader: 200") { ", enrolled" } else { ", not enrolled" });
        }
        if name == "good CSR" {
            let poll = front.post("/reader", &probe.seal(&[checkin(0)])).await;
            assert_eq!(shown(&poll, &probe), format!("200 {}", recorded_body(effect.split("200 ").nth(1).unwrap())));
        }
        outcomes.push((name, ours, stock));
    }
    assert_eq!(outcomes.len(), 131);
    judge(&outcomes, DIFFERENCES, "## Answers that differ over HTTP");
}
