//! Makes the first inputs of the corpora from `fixtures/` and the built-in artifacts.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use talon_crypto::RsaPrivateKey;
use talon_ids::OrgId;
use talon_store::{BlockEncoding, Embedded, Engine, Memory, ObjectName, Options, RowBlock, Space, Work, export};

const ROWS: &str = "{\"Pid\":1,\"Name\":\"init\"}\n{\"Pid\":2,\"Name\":\"kthreadd\"}\n";

fn write(target: &str, name: &str, data: impl AsRef<[u8]>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), data).unwrap();
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn contents() -> Work {
    let (root, name) = (OrgId::root(), ObjectName::new(["flows", "F.1", "Some.Artifact"]));
    Box::new(move |txn| {
        let plain = RowBlock { data: ROWS.into(), count: 2, plain_len: ROWS.len() as u64, encoding: BlockEncoding::Plain };
        let packed = RowBlock { data: zlib(ROWS.as_bytes()).into(), encoding: BlockEncoding::Zlib, ..plain.clone() };
        txn.append_rows(&root, &name, None, plain.clone())?;
        txn.append_rows(&root, &name, None, packed)?;
        let repeated = RowBlock { data: vec![b'x'; 500].into(), count: 0, plain_len: 500, encoding: BlockEncoding::Plain };
        txn.append_upload(&root, &name, 0, repeated)?;
        txn.finish_upload(&root, &name)?;
        txn.put(&root, Space::Settings, b"key", b"value".to_vec());
        Ok(())
    })
}

fn store() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(folder.path(), Options::default()).unwrap();
    embedded.submit(contents()).wait().unwrap();
    for entry in fs::read_dir(folder.path().join("segments")).unwrap() {
        write("store_segment", "every codec", fs::read(entry.unwrap().path()).unwrap());
    }
    let memory = Memory::new();
    memory.submit(contents()).wait().unwrap();
    let mut stream = Vec::new();
    export(memory.reader(), &mut stream).unwrap();
    write("store_import", "everything", stream);
    write("store_block", "plain", [&[0, 2, 0], ROWS.as_bytes()].concat());
    write("store_block", "zlib", [&[3, 2, ROWS.len() as u8][..], &zlib(ROWS.as_bytes())].concat());
    write("store_block", "bomb", [&[3, 2, 200][..], &zlib(&[b'\n'; 100_000])].concat());
}

fn wire() {
    for name in ["checkin", "request", "results", "task"] {
        let read = |kind| fs::read(root().join(format!("fixtures/wire/{name}.{kind}"))).unwrap();
        let target = if name == "task" { "wire_reply" } else { "wire_packet" };
        write(target, name, read("packet"));
        write("wire_messages", name, read("messages"));
    }
    let agent = fs::read_to_string(root().join("fixtures/wire/agent.pem")).unwrap();
    let key = RsaPrivateKey::from_pkcs1_pem(&agent).unwrap();
    write("pki_request", "genuine", talon_pki::create_csr(&key).unwrap());
}

fn agent() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("buffer");
    let settings = talon_client::BufferSettings { file: Some(file), disk_size: 1 << 20, memory_size: 1 << 20 };
    let (mut buffer, _) = talon_client::Buffer::open(settings).unwrap();
    buffer.append(&[ROWS.into(), "another".into()]).unwrap();
    let (_, first) = buffer.peek(talon_client::Sequence::default(), 1);
    buffer.commit(first).unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if fs::metadata(&path).unwrap().len() > 0 {
            write("agent_buffer", path.extension().unwrap().to_str().unwrap(), fs::read(&path).unwrap());
        }
    }
    let key = fs::read_to_string(root().join("fixtures/wire/agent.pem")).unwrap();
    let state = format!("install_time: 1\nclient_id: C.0000000000000000\nprivate_key: |\n  {}\n", key.trim_end().replace('\n', "\n  "));
    let table = "event_queries:\n  version: 5\n  event:\n  - Query:\n    - Name: A\n      VQL: SELECT * FROM clock()\n    max_wait: 5\n";
    write("agent_writeback", "identity", &state);
    write("agent_writeback", "table", [&state, table].concat());
}

fn texts() {
    let config = "Client:\n  server_urls: [https://a.example:8000/]\n  nonce: Zml4dHVyZXM=\n  use_self_signed_ssl: true\nFrontend:\n  bind_port: 8000\n  hostname: localhost\nDatastore: {location: /tmp/x}\n---\ntalon: {}\n";
    write("config", "some of both", config);
    let args = talon_proto::ArtifactCollectorArgs { client_id: "C.1".into(), artifacts: vec!["A".into()], ..Default::default() };
    write("api_request", "collect", talon_proto::prost::Message::encode_to_vec(&args));
    let query = talon_proto::VqlRequest { vql: "SELECT * FROM info()".into(), name: "A".into() };
    let query = talon_proto::VqlCollectorArgs { query: vec![query], ..Default::default() };
    write("api_request", "query", talon_proto::prost::Message::encode_to_vec(&query));
    write("pki_pem", "key", fs::read(root().join("fixtures/wire/agent.pem")).unwrap());
    let now = talon_pki::UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_700_000_000));
    write("pki_pem", "authority", talon_pki::Authority::generate(&talon_crypto::SystemRng, now).unwrap().certificate().pem());
    write("wire_inflate", "rows", zlib(ROWS.as_bytes()));
    write("wire_inflate", "bomb", zlib(&[0; 3 << 20]));
}

fn language() {
    let queries = [
        "SELECT * FROM info()",
        "LET X(A) = SELECT A.B[0].C AS `D E`, count(items=B) FROM foreach(row={ SELECT * FROM range(end=10) }, query=Y) WHERE NOT A =~ '''^x''' AND B < 1.5e3 GROUP BY D ORDER BY E DESC LIMIT 5",
        "LET L <= x=>x.y + 1\nEXPLAIN SELECT if(condition=A, then={ SELECT 1 FROM scope() }, else=[1, 0x10, -2, NULL, TRUE]) FROM X -- note\n",
    ];
    for (number, query) in queries.iter().enumerate() {
        write("vql", &format!("{number}"), query);
    }
    definitions(&root().join("crates/artifacts/definitions"), 12);
}

fn definitions(folder: &Path, most: usize) {
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { paths.push(path) }
        }
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    for path in paths.iter().take(most) {
        write("artifact", path.file_name().unwrap().to_str().unwrap(), fs::read(path).unwrap());
    }
}

fn main() {
    store();
    wire();
    language();
    agent();
    texts();
}
