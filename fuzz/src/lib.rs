//! What the fuzz targets call: every decoder of bytes that somebody else made. None may panic, hang, or take memory out of proportion to its input.

use std::net::IpAddr;
use std::sync::OnceLock;

use bytes::Bytes;
use talon_crypto::{RsaPrivateKey, RsaPublicKey, SystemRng};
use talon_ids::{ClientId, OrgId};
use talon_store::{BlockEncoding, Engine, Memory, ObjectName, RowBlock};
use talon_wire::{AgentCodec, AgentSession, Blobs, Directory, Limits, LookupError, MessageList, Opened, Reply, ServerCodec, UnixMicros};

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 9] = [
    ("store_segment", store_segment),
    ("store_import", store_import),
    ("store_block", store_block),
    ("wire_packet", wire_packet),
    ("wire_messages", wire_messages),
    ("wire_reply", wire_reply),
    ("pki_request", pki_request),
    ("vql", vql),
    ("artifact", artifact),
];

/// Reads a segment file.
pub fn store_segment(data: &[u8]) {
    if let Ok(blocks) = talon_store::segment_blocks(Bytes::copy_from_slice(data)) {
        for block in blocks.flatten() {
            assert!(block.data.len() <= data.len().saturating_mul(1100), "a block grew out of proportion");
        }
    }
}

/// Imports an export.
pub fn store_import(data: &[u8]) {
    let mut input = data;
    // What is refused leaves a part; what is taken can be exported again.
    let store = Memory::new();
    if talon_store::import(&store, &mut input).is_ok() {
        talon_store::export(store.reader(), &mut Vec::new()).expect("what was imported can be exported");
    }
}

/// Appends a delivered block; the first byte chooses what it claims to be.
pub fn store_block(data: &[u8]) {
    let Some(([kind, count, claim], rest)) = data.split_first_chunk().map(|(head, rest)| (*head, rest)) else { return };
    let encoding = if kind % 2 == 0 { BlockEncoding::Plain } else { BlockEncoding::Zlib };
    let plain_len = if kind & 2 == 0 { rest.len() as u64 } else { u64::from(claim) << (kind >> 3) };
    let block = RowBlock { data: Bytes::copy_from_slice(rest), count: u32::from(count), plain_len, encoding };
    let store = Memory::new();
    let done = store.submit(Box::new(move |txn| txn.append_rows(&OrgId::root(), &ObjectName::new(["t"]), None, block).map(drop))).wait();
    let rows = store.reader().table(&OrgId::root(), &ObjectName::new(["t"])).map_or(0, |table| table.rows);
    assert!(rows == if done.is_ok() { u64::from(count) } else { 0 }, "a refused block left rows");
}

const NONCE: &str = "Zml4dHVyZXM=";
const SERVER: &str = "VelociraptorServer";
const NOW: UnixMicros = UnixMicros(1_700_000_000_000_000);

struct Peers {
    server: RsaPrivateKey,
    agent: RsaPrivateKey,
}

impl Peers {
    fn get() -> &'static Self {
        static PEERS: OnceLock<Peers> = OnceLock::new();
        let key = |pem| RsaPrivateKey::from_pkcs1_pem(pem).expect("a fixture");
        PEERS.get_or_init(|| Self {
            server: key(include_str!("../../fixtures/wire/server.pem")),
            agent: key(include_str!("../../fixtures/wire/agent.pem")),
        })
    }

    fn session(&self) -> AgentSession {
        let codec = AgentCodec::new(self.agent.clone(), NONCE, Limits::default(), SystemRng);
        codec.session(SERVER, self.server.public()).expect("keys that fit")
    }

    fn open(&self, packet: Bytes) {
        let server = ServerCodec::new(self.server.clone(), SERVER, Limits::default(), SystemRng);
        match server.open(packet, IpAddr::from([127, 0, 0, 1]), NOW, self) {
            Ok(Opened::Authenticated(packet)) => {
                if let Ok(messages) = packet.messages() {
                    messages.for_each(drop);
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

impl Directory for Peers {
    fn org_of_nonce(&self, nonce: &str) -> Result<Option<OrgId>, LookupError> {
        Ok((nonce == NONCE).then(OrgId::root))
    }

    fn nonce_of_org(&self, _: &OrgId) -> Result<Option<String>, LookupError> {
        Ok(Some(NONCE.to_owned()))
    }

    fn client_key(&self, _: &OrgId, _: &ClientId) -> Result<Option<RsaPublicKey>, LookupError> {
        Ok(Some(self.agent.public().clone()))
    }
}

/// Opens a packet as a server does.
pub fn wire_packet(data: &[u8]) {
    Peers::get().open(Bytes::copy_from_slice(data));
}

/// Opens the packet of an agent whose envelope is genuine and whose messages are anything, plain and compressed.
pub fn wire_messages(data: &[u8]) {
    let peers = Peers::get();
    let session = peers.session();
    let mut list = MessageList::default();
    list.push_list(data);
    for blobs in [Ok(Blobs::plain([list.clone()])), Blobs::compressed([list])] {
        let packet = blobs.and_then(|blobs| session.seal(NOW, &blobs)).expect("anything can be sealed");
        peers.open(packet);
    }
}

/// Opens an answer as an agent does.
pub fn wire_reply(data: &[u8]) {
    if let Ok(Reply::Verified(reply)) = Peers::get().session().open(Bytes::copy_from_slice(data)) {
        reply.messages().for_each(drop);
    }
}

/// Verifies a certificate request.
pub fn pki_request(data: &[u8]) {
    drop(talon_pki::verify_csr(data));
}

/// Parses a query; what is printed of it means the same.
pub fn vql(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(program) = talon_vql::parse(text) else { return };
    for statement in &program.statements {
        let printed = talon_vql::format::canonical_statement(statement);
        match talon_vql::parse_statement(&printed) {
            Ok(again) => assert_eq!(talon_vql::format::canonical_statement(&again), printed, "of {text:?}"),
            Err(error) => panic!("{printed:?}, printed of {text:?}, does not parse: {error}"),
        }
    }
}

/// Reads an artifact definition.
pub fn artifact(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        drop(talon_artifacts::Definition::from_yaml(text));
    }
}
