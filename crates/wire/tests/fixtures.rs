//! The packets of `fixtures/wire` open to the messages beside them: the wire format stays what it is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure ends the run")]

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use talon_crypto::{RsaPrivateKey, RsaPublicKey, SystemRng};
use talon_ids::{ClientId, OrgId};
use talon_proto::prost::Message;
use talon_proto::{MessageList, VeloMessage};
use talon_wire::{AgentCodec, Directory, Limits, LookupError, Opened, Reply, ServerCodec, UnixMicros};

const NONCE: &str = "Zml4dHVyZXM=";
const NOW: UnixMicros = UnixMicros(1_700_000_000_000_000);

struct Fixtures {
    server: RsaPrivateKey,
    agent: RsaPrivateKey,
    enrolled: bool,
}

impl Fixtures {
    fn load(enrolled: bool) -> Self {
        let key = |name: &str| RsaPrivateKey::from_pkcs1_pem(&String::from_utf8(file(name)).unwrap()).unwrap();
        Self { server: key("server.pem"), agent: key("agent.pem"), enrolled }
    }

    fn open(&self, name: &str) -> Opened {
        let codec = ServerCodec::new(self.server.clone(), "VelociraptorServer", Limits::default(), SystemRng);
        codec.open(file(&format!("{name}.packet")).into(), IpAddr::from([127, 0, 0, 1]), NOW, self).unwrap()
    }
}

impl Directory for Fixtures {
    fn org_of_nonce(&self, nonce: &str) -> Result<Option<OrgId>, LookupError> {
        Ok((nonce == NONCE).then(OrgId::root))
    }

    fn nonce_of_org(&self, _: &OrgId) -> Result<Option<String>, LookupError> {
        Ok(Some(NONCE.to_owned()))
    }

    fn client_key(&self, _: &OrgId, _: &ClientId) -> Result<Option<RsaPublicKey>, LookupError> {
        Ok(self.enrolled.then(|| self.agent.public().clone()))
    }
}

fn file(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/wire").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The recorded messages, without the stamps that a receiver puts on.
fn recorded(name: &str) -> Vec<VeloMessage> {
    MessageList::decode(&*file(&format!("{name}.messages"))).unwrap().job
}

fn unstamped(message: VeloMessage) -> VeloMessage {
    VeloMessage { source: String::new(), org_id: String::new(), auth_state: 0, ..message }
}

#[test]
fn an_agents_packets_open_to_what_was_sealed() {
    let fixtures = Fixtures::load(true);
    for name in ["checkin", "request", "results"] {
        let Opened::Authenticated(packet) = fixtures.open(name) else { panic!("{name} is authentic") };
        assert_eq!(packet.client().client_id(), &talon_wire::client_id(fixtures.agent.public()));
        let messages: Vec<_> = packet.messages().unwrap().map(|message| unstamped(message.unwrap())).collect();
        assert_eq!(messages, recorded(name), "{name}");
    }
}

#[test]
fn of_an_unknown_agent_only_certificate_requests_can_be_read() {
    let fixtures = Fixtures::load(false);
    let Opened::Unauthenticated(packet) = fixtures.open("results") else { panic!("nobody is enrolled") };
    assert!(packet.csrs().is_empty());
    let Opened::Unauthenticated(packet) = fixtures.open("request") else { panic!("nobody is enrolled") };
    assert_eq!(packet.csrs().len(), 1);
}

#[test]
fn a_servers_packet_opens_to_what_was_sealed() {
    let fixtures = Fixtures::load(true);
    let session = AgentCodec::new(fixtures.agent, NONCE, Limits::default(), SystemRng)
        .session("VelociraptorServer", fixtures.server.public())
        .unwrap();
    let Reply::Verified(reply) = session.open(file("task.packet").into()).unwrap() else { panic!("the server is verified") };
    let messages: Vec<_> = reply.messages().map(|message| unstamped(message.unwrap())).collect();
    assert_eq!(messages, recorded("task"));
}
