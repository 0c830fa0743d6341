//! What a packet costs the server: of a known session, and the first one of a session.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::hint::black_box;
use std::net::IpAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use talon_crypto::{RsaPrivateKey, RsaPublicKey, SystemRng};
use talon_ids::{ClientId, OrgId};
use talon_proto::{VeloMessage, VqlResponse};
use talon_wire::{AgentCodec, Blobs, Directory, Limits, LookupError, MessageList, Opened, ServerCodec, UnixMicros};

struct OneAgent(RsaPublicKey);

impl Directory for OneAgent {
    fn org_of_nonce(&self, _: &str) -> Result<Option<OrgId>, LookupError> {
        Ok(Some(OrgId::root()))
    }
    fn nonce_of_org(&self, _: &OrgId) -> Result<Option<String>, LookupError> {
        Ok(Some("nonce".into()))
    }
    fn client_key(&self, _: &OrgId, _: &ClientId) -> Result<Option<RsaPublicKey>, LookupError> {
        Ok(Some(self.0.clone()))
    }
}

fn open(criterion: &mut Criterion) {
    let (server_key, agent_key) = (RsaPrivateKey::generate().unwrap(), RsaPrivateKey::generate().unwrap());
    let from: IpAddr = [192, 0, 2, 1].into();
    let now = UnixMicros(1_700_000_000_000_000);
    let directory = OneAgent(agent_key.public().clone());
    let server = ServerCodec::new(server_key.clone(), "VelociraptorServer", Limits::default(), SystemRng);
    let agent = AgentCodec::new(agent_key, "nonce", Limits::default(), SystemRng);
    let session = agent.session("VelociraptorServer", server_key.public()).unwrap();
    let rows: String = (0..16).map(|row| format!("{{\"Pid\":{row},\"Name\":\"process number {row} of many\"}}\n")).collect();
    let response = VqlResponse { jsonl_response: rows.repeat(2), total_rows: 32, ..VqlResponse::default() };
    let message = VeloMessage { session_id: "F.CL9V2001081G8".into(), vql_response: Some(response), ..VeloMessage::default() };
    let list = MessageList::from(&message);
    println!("payload: {} bytes", list.len());
    for (name, blobs) in [("plain", Blobs::plain([list.clone()])), ("zlib", Blobs::compressed([list]).unwrap())] {
        let body = session.seal(now, &blobs).unwrap();
        criterion.bench_function(&format!("open/known session/{name}"), |bench| {
            bench.iter(|| {
                let Opened::Authenticated(packet) = server.open(body.clone(), from, now, &directory).unwrap() else { panic!() };
                black_box(packet.messages().unwrap().count())
            });
        });
        criterion.bench_function(&format!("seal/agent/{name}"), |bench| bench.iter(|| session.seal(now, &blobs).unwrap()));
    }
    let body = session.seal(now, &Blobs::default()).unwrap();
    criterion.bench_function("open/new session", |bench| {
        bench.iter(|| {
            let server = ServerCodec::new(server_key.clone(), "VelociraptorServer", Limits::default(), SystemRng);
            server.open(body.clone(), from, now, &directory).unwrap()
        });
    });
}

criterion_group!(benches, open);
criterion_main!(benches);
