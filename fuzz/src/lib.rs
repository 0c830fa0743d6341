//! What the fuzz targets call: every decoder of bytes that somebody else made. None may panic, hang, or take memory out of proportion to its input.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use talon_crypto::{RsaPrivateKey, RsaPublicKey, SystemRng};
use talon_ids::{ClientId, OrgId};
use talon_store::{BlockEncoding, Engine, Memory, ObjectName, RowBlock};
use talon_wire::{AgentCodec, AgentSession, Blobs, Directory, Limits, LookupError, MessageList, Opened, Reply, ServerCodec, UnixMicros};

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 18] = [
    ("store_segment", store_segment),
    ("store_import", store_import),
    ("store_block", store_block),
    ("wire_packet", wire_packet),
    ("wire_messages", wire_messages),
    ("wire_reply", wire_reply),
    ("wire_inflate", wire_inflate),
    ("pki_request", pki_request),
    ("pki_pem", pki_pem),
    ("vql", vql),
    ("vql_json", vql_json),
    ("vql_rows", vql_rows),
    ("vql_paths", vql_paths),
    ("artifact", artifact),
    ("config", config),
    ("api_request", api_request),
    ("agent_buffer", agent_buffer),
    ("agent_writeback", agent_writeback),
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

/// Reads JSON: what is read is the same when it is written and read again; rows read one after another are what they are alone.
pub fn vql_json(data: &[u8]) {
    use talon_vql::{Value, json};
    if let Ok(value) = json::decode(data) {
        let again = |text: &str| json::encode(&json::decode(text.as_bytes()).expect("what was written is JSON"));
        let settled = again(&json::encode(&value));
        assert_eq!(again(&settled), settled);
    }
    let mut reader = json::RowReader::default();
    for line in data.split(|byte| *byte == b'\n') {
        let shared = reader.row(line).map(|row| json::encode(&Value::Dict(row)));
        assert_eq!(shared, json::decode_row(line).map(|row| json::encode(&row.into())));
    }
}

/// Reads a row in the binary form in which rows wait on disk.
pub fn vql_rows(data: &[u8]) {
    if let Some(value) = talon_vql::spill::decode(data) {
        let written = talon_vql::spill::encode(&value);
        let again = talon_vql::spill::decode(&written).expect("what was written can be read");
        assert_eq!(talon_vql::spill::encode(&again), written);
    }
}

/// Reads a path with the rules of every file system.
pub fn vql_paths(data: &[u8]) {
    use talon_vql::{OsPath, PathFlavour};
    let flavours =
        [PathFlavour::Linux, PathFlavour::Generic, PathFlavour::Windows, PathFlavour::Ntfs, PathFlavour::Registry, PathFlavour::FileStore];
    for flavour in flavours {
        let path = OsPath::parse(data, flavour);
        drop((path.to_text(), path.basename(), path.dirname().to_text(), path.pathspec()));
    }
}

/// Reads an artifact definition.
pub fn artifact(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        drop(talon_artifacts::Definition::from_yaml(text));
    }
}

/// Expands a compressed blob; what comes out is no longer than the limit.
pub fn wire_inflate(data: &[u8]) {
    const LIMIT: usize = 1 << 20;
    if let Ok(plain) = talon_wire::inflate(data, LIMIT) {
        assert!(plain.len() <= LIMIT, "a blob grew beyond its limit");
    }
}

/// Reads a server's certificate, keys and bundles.
pub fn pki_pem(data: &[u8]) {
    static TRUST: OnceLock<talon_pki::TrustBundle> = OnceLock::new();
    let now = talon_pki::UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000));
    let trust = TRUST.get_or_init(|| talon_pki::Authority::generate(&SystemRng, now).expect("an authority").trust_bundle());
    assert!(talon_pki::verify_server_pem(data, trust, SERVER, now).is_err(), "a certificate of another authority was taken");
    drop(talon_pki::TrustBundle::from_pem(data));
    if let Ok(text) = std::str::from_utf8(data) {
        drop(RsaPrivateKey::from_pem(text));
        drop(RsaPublicKey::from_pkcs1_pem(text));
    }
}

/// Reads a configuration file as each of the programs does.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(configuration) = talon_config::Configuration::from_text("fuzz", text) {
        drop(talon_config::ServerConfig::new(configuration.clone()));
        drop(talon_config::ClientConfig::new(configuration));
    }
}

/// Decodes the body of a request of the API; what is decoded can be sent again and means the same.
pub fn api_request(data: &[u8]) {
    fn again<M: talon_proto::prost::Message + Default + PartialEq>(data: &[u8]) {
        if let Ok(message) = M::decode(data) {
            let bytes = message.encode_to_vec();
            let copy = M::decode(&bytes[..]).expect("what was encoded decodes");
            // A float that is no number is unlike itself.
            assert_eq!(copy.encode_to_vec(), bytes, "a request changed its meaning");
        }
    }
    again::<talon_proto::VqlCollectorArgs>(data);
    again::<talon_proto::ArtifactCollectorArgs>(data);
    again::<talon_proto::EventRequest>(data);
    again::<talon_proto::VqlResponse>(data);
    again::<talon_proto::SearchClientsRequest>(data);
    again::<talon_proto::LabelClientsRequest>(data);
    again::<talon_proto::GetTableRequest>(data);
    again::<talon_proto::Hunt>(data);
}

/// Opens the buffer of an agent over whatever its last process, or somebody else, left in the files.
pub fn agent_buffer(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("buffer");
    // Several segments, so that what one says of the other is read too.
    let (first, second) = data.split_at(data.len() / 2);
    for (number, content) in [(1, data), (2, first), (3, second)] {
        std::fs::write(folder.path().join(format!("buffer.{number:016x}")), content).expect("a file");
    }
    let settings = talon_client::BufferSettings { file: Some(file), disk_size: 1 << 20, memory_size: 1 << 20 };
    if let Ok((mut buffer, recovered)) = talon_client::Buffer::open(settings) {
        assert!(recovered.records <= data.len(), "more records than bytes");
        drop(buffer.append(&[Bytes::from_static(b"record")]));
        buffer.peek(talon_client::Sequence::default(), 1 << 20);
    }
}

/// Opens the state of an agent; a file that is not understood stays as it is.
pub fn agent_writeback(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let level1 = folder.path().join("writeback.yaml");
    std::fs::write(&level1, data).expect("a file");
    let paths = talon_config::WritebackPaths { level1: level1.clone(), level2: None };
    if talon_client::Writeback::open(paths, 1).is_err() {
        assert_eq!(std::fs::read(&level1).expect("a file"), data, "a file that may hold an identity was replaced");
    }
}
