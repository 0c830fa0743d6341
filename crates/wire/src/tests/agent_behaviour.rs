//! Answers with one thing wrong, as they were tried on a stock agent: ours obeys the same ones, or fewer. What it does otherwise is in [`STRICTER`] and
//! explained in `docs/protocol-conformance.md`.

use bytes::Bytes;
use prost::Message as _;
use serde_json::Value;
use talon_crypto::SystemRng;
use talon_proto::{ClientCommunication, FlowStatsRequest};

use super::*;
use crate::session::Outbound;
use crate::{AgentCodec, AgentSession, Blobs, Limits, MessageList, Reply, SessionOptions};

const CONFORMANCE: &str = include_str!("../../../../docs/protocol-conformance.md");

/// What a stock agent obeys and ours does not.
const STRICTER: &[&str] = &["replay-of-good", "source-with-suffix"];

struct Lab {
    server: RsaPrivateKey,
    agent: RsaPrivateKey,
    session: Outbound,
    receiver: AgentSession,
}

impl Lab {
    fn new() -> Self {
        let (server, agent) = (key(), key());
        let session = outbound(&server, SERVER, agent.public());
        let codec = AgentCodec::new(agent.clone(), ROOT_NONCE, Limits::default(), SystemRng);
        let receiver = codec.session(SERVER, server.public()).unwrap();
        Self { server, agent, session, receiver }
    }

    /// The answer of one variant.
    fn answer(&self, variant: &str) -> Option<Bytes> {
        let question = question();
        let list = || MessageList::from(&question);
        let seal = |session: &Outbound, nonce: &str, blobs: &Blobs| session.seal(&SystemRng, NOW, nonce, blobs).unwrap();
        let plain = |session: &Outbound| seal(session, ROOT_NONCE, &Blobs::plain([list()]));
        let from = |signer: &RsaPrivateKey, source: &str| plain(&outbound(signer, source, self.agent.public()));
        let changed = |change: fn(&mut ClientCommunication)| {
            let mut envelope = ClientCommunication::decode(plain(&self.session)).unwrap();
            change(&mut envelope);
            Bytes::from(envelope.encode_to_vec())
        };
        let joined = |parts: [&[u8]; 2]| Bytes::from(parts.concat());
        Some(match variant {
            "good-uncompressed" | "after-all-good" | "replay-of-good" => plain(&self.session),
            "good-zlib" => seal(&self.session, ROOT_NONCE, &Blobs::compressed([list()]).unwrap()),
            "pads-before" => joined([b"Z\x01\0Z\x01\0", &plain(&self.session)]),
            "pads-after" => joined([&plain(&self.session), b"Z\x01\0"]),
            "new-session" => from(&self.server, SERVER),
            "concatenated-lists" => {
                let mut both = list();
                both.push(&question);
                seal(&self.session, ROOT_NONCE, &Blobs::plain([both]))
            }
            "two-blobs" => seal(&self.session, ROOT_NONCE, &Blobs::plain([list(), list()])),
            "timestamp-0" => self.session.seal(&SystemRng, UnixMicros(0), ROOT_NONCE, &Blobs::plain([list()])).unwrap(),
            "api-version-0" => self.session.seal_as(&SystemRng, NOW, ROOT_NONCE, &Blobs::plain([list()]), 0).unwrap(),
            "nonce-wrong" => seal(&self.session, "AAAAAAAAAAA=", &Blobs::plain([list()])),
            "nonce-empty" => seal(&self.session, "", &Blobs::plain([list()])),
            "source-other-name" => from(&self.server, "OtherServer"),
            "source-empty" => from(&self.server, ""),
            "source-with-suffix" => from(&self.server, "VelociraptorServer-x"),
            "signed-by-other-key" => from(&self.agent, SERVER),
            "inner-source-and-org" => {
                let forged = VeloMessage { source: "C.0000000000000000".into(), org_id: "O123".into(), ..question.clone() };
                seal(&self.session, ROOT_NONCE, &Blobs::plain([MessageList::from(&forged)]))
            }
            // Field 99, a varint.
            "unknown-field" => joined([&plain(&self.session), &[0x98, 0x06, 0x01]]),
            "hmac-flipped" => changed(|envelope| flip(&mut envelope.full_hmac)),
            "encrypted-flipped" => changed(|envelope| flip(&mut envelope.encrypted)),
            "for-another-agent" => plain(&outbound(&self.server, SERVER, key().public())),
            _ => return None,
        })
    }

    /// Whether the agent would obey.
    fn obeys(&self, answer: Bytes) -> bool {
        match self.receiver.open(answer) {
            Ok(Reply::Verified(reply)) => {
                let messages: Vec<VeloMessage> = reply.messages().collect::<Result<_, _>>().unwrap();
                assert!(messages.iter().all(|message| message.flow_stats_request.is_some()));
                assert!(messages.iter().all(|message| message.source == SERVER && message.org_id.is_empty()), "{messages:?}");
                !messages.is_empty()
            }
            Ok(Reply::Empty | Reply::Unauthenticated | Reply::Repeated) | Err(_) => false,
        }
    }
}

fn question() -> VeloMessage {
    let request = FlowStatsRequest { flow_id: vec!["F.1".into()] };
    VeloMessage { flow_stats_request: Some(request), ..message("F.Status") }
}

fn outbound(signer: &RsaPrivateKey, source: &str, recipient: &RsaPublicKey) -> Outbound {
    Outbound::create(&SystemRng, signer, source, recipient, SessionOptions::default()).unwrap()
}

fn flip(bytes: &mut Bytes) {
    let mut changed = bytes.to_vec();
    changed[5] ^= 1;
    *bytes = changed.into();
}

/// The variants, and whether a stock agent obeyed.
const VARIANTS: &[(&str, bool)] = &[
    ("good-uncompressed", true),
    ("good-zlib", true),
    ("pads-before", true),
    ("pads-after", true),
    ("new-session", true),
    ("concatenated-lists", true),
    ("two-blobs", true),
    ("timestamp-0", true),
    ("replay-of-good", true),
    ("api-version-0", true),
    ("nonce-wrong", false),
    ("nonce-empty", false),
    ("source-other-name", false),
    ("source-empty", false),
    ("source-with-suffix", true),
    ("signed-by-other-key", false),
    ("inner-source-and-org", true),
    ("unknown-field", true),
    ("hmac-flipped", false),
    ("encrypted-flipped", false),
    ("for-another-agent", false),
    ("after-all-good", true),
];

#[test]
fn an_agent_obeys_what_a_stock_agent_obeys_or_less() {
    let lab = Lab::new();
    for (variant, stock) in VARIANTS {
        let answer = lab.answer(variant).unwrap();
        if *variant == "replay-of-good" {
            assert!(lab.obeys(answer.clone()), "the first time");
        }
        let stricter = STRICTER.contains(variant);
        assert_eq!(lab.obeys(answer), *stock && !stricter, "{variant}");
        assert!(!stricter || CONFORMANCE.contains(&format!("| {variant} | ")), "{variant} is not explained");
    }
}

#[test]
fn the_variants_are_those_that_were_recorded() {
    let Some(folder) = std::env::var_os("TALON_VECTORS").map(std::path::PathBuf::from) else {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
        return;
    };
    let all: Value = serde_json::from_slice(&std::fs::read(folder.join("agent-behaviour.json")).unwrap()).unwrap();
    let recorded: Vec<_> = all["envelopes"].as_array().unwrap().iter().collect();
    let recorded: Vec<_> = recorded.iter().map(|case| (case["variant"].as_str().unwrap(), case["executed"].as_bool().unwrap())).collect();
    assert_eq!(recorded, VARIANTS);
}
