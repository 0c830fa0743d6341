//! The agent's memory between runs: its key, its event table, the last server certificate. Files of stock agents are read, so that an agent can be
//! replaced where it stands, and written in the same form.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, SerializeOptions};
use serde::{Deserialize, Deserializer};
use talon_config::WritebackPaths;
use talon_crypto::{RsaPrivateKey, Zeroizing};
use talon_proto::VqlEventTable;
use talon_wire::client_id;

use crate::ClientError;

/// The state and where it is kept.
pub struct Writeback {
    paths: WritebackPaths,
    key: RsaPrivateKey,
    install_time: u64,
    event_table: VqlEventTable,
    server_pem: String,
}

/// What is read of either level. Other keys of stock files (`checkpoints` …) have no meaning here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    install_time: u64,
    #[serde(deserialize_with = "secret")]
    private_key: Zeroizing<String>,
    event_queries: Option<EventTable>,
    last_server_pem: String,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(deserializer).map(Zeroizing::new)
}

/// The event table in the textual form of protobuf messages.
struct EventTable(VqlEventTable);

/// The name of the event table's type in the descriptors.
const EVENT_TABLE: &str = "proto.VQLEventTable";

impl<'de> Deserialize<'de> for EventTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let pool = DescriptorPool::decode(talon_proto::DESCRIPTORS).map_err(D::Error::custom)?;
        let descriptor = pool.get_message_by_name(EVENT_TABLE).ok_or_else(|| D::Error::custom("no such message"))?;
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let message = DynamicMessage::deserialize_with_options(descriptor, deserializer, &options)?;
        message.transcode_to().map(Self).map_err(D::Error::custom)
    }
}

impl Writeback {
    /// Reads the state; a new agent gets a key and its files.
    ///
    /// # Errors
    /// [`ClientError::Writeback`] when a file cannot be read, is not understood, or cannot be written. A file that is not understood is never replaced:
    /// it may hold the identity.
    pub fn open(paths: WritebackPaths, now_seconds: u64) -> Result<Self, ClientError> {
        let first = read(&paths.level1)?;
        let second = match &paths.level2 {
            Some(path) => read(path)?,
            None => None,
        };
        let key = [&first, &second].into_iter().flatten().find(|stored| !stored.private_key.is_empty());
        let new = key.is_none();
        let key = match key {
            Some(stored) => RsaPrivateKey::from_pem(&stored.private_key),
            None => RsaPrivateKey::generate(),
        }
        .map_err(|error| ClientError::writeback(&paths.level1, io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let install_time =
            [&first, &second].into_iter().flatten().map(|stored| stored.install_time).find(|time| *time > 0).unwrap_or(now_seconds);
        let rest = second.or(first).unwrap_or_default();
        let event_table = rest.event_queries.map(|table| table.0).unwrap_or_default();
        let state = Self { paths, key, install_time, event_table, server_pem: rest.last_server_pem };
        if new {
            state.save_identity()?;
            state.save_state()?;
        }
        Ok(state)
    }

    /// The agent's key.
    #[must_use]
    pub fn key(&self) -> &RsaPrivateKey {
        &self.key
    }

    /// When the agent was installed, in seconds since 1970.
    #[must_use]
    pub fn install_time(&self) -> u64 {
        self.install_time
    }

    /// The event queries that run.
    #[must_use]
    pub fn event_table(&self) -> &VqlEventTable {
        &self.event_table
    }

    /// The certificate of the server that was verified last, in PEM; empty before the first contact.
    #[must_use]
    pub fn server_pem(&self) -> &str {
        &self.server_pem
    }

    /// Stores another event table.
    ///
    /// # Errors
    /// [`ClientError::Writeback`]; the table is in force all the same.
    pub fn set_event_table(&mut self, table: VqlEventTable) -> Result<(), ClientError> {
        self.event_table = table;
        self.save_state()
    }

    /// Stores the certificate of a server that was verified, unless it is the stored one.
    ///
    /// # Errors
    /// [`ClientError::Writeback`].
    pub fn set_server_pem(&mut self, pem: &str) -> Result<(), ClientError> {
        if self.server_pem == pem {
            return Ok(());
        }
        pem.clone_into(&mut self.server_pem);
        self.save_state()
    }

    fn save_identity(&self) -> Result<(), ClientError> {
        if self.paths.level2.is_none() {
            return Ok(());
        }
        self.save(&self.paths.level1, false)
    }

    fn save_state(&self) -> Result<(), ClientError> {
        self.save(self.paths.level2.as_ref().unwrap_or(&self.paths.level1), true)
    }

    fn save(&self, path: &Path, everything: bool) -> Result<(), ClientError> {
        self.to_yaml(everything)
            .and_then(|text| write_atomically(path, text.as_bytes()))
            .map_err(|error| ClientError::writeback(path, error))
    }

    /// JSON is YAML, so the nested table goes on one line; the PEM blocks are written as block scalars, as stock agents do.
    fn to_yaml(&self, everything: bool) -> io::Result<Zeroizing<String>> {
        let key = self.key.to_pkcs1_pem().map_err(io::Error::other)?;
        let mut text = Zeroizing::new(format!("install_time: {}\n", self.install_time));
        text.push_str("private_key: |\n");
        key.lines().for_each(|line| push_indented(&mut text, line));
        text.push_str(&format!("client_id: {}\n", client_id(self.key.public())));
        if everything {
            if self.event_table != VqlEventTable::default() {
                text.push_str(&format!("event_queries: {}\n", json_of(&self.event_table).map_err(io::Error::other)?));
            }
            if !self.server_pem.is_empty() {
                text.push_str("last_server_pem: |\n");
                self.server_pem.lines().for_each(|line| push_indented(&mut text, line));
            }
        }
        Ok(text)
    }
}

fn push_indented(text: &mut String, line: &str) {
    text.push_str("  ");
    text.push_str(line);
    text.push('\n');
}

fn json_of(table: &VqlEventTable) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let pool = DescriptorPool::decode(talon_proto::DESCRIPTORS)?;
    let mut message = DynamicMessage::new(pool.get_message_by_name(EVENT_TABLE).ok_or("no such message")?);
    message.transcode_from(table)?;
    let mut out = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut out, &SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false))?;
    Ok(String::from_utf8(out.into_inner())?)
}

/// `None` when there is no such file or it is empty, as after a crash of a stock agent while it wrote.
fn read(path: &Path) -> Result<Option<Stored>, ClientError> {
    let text = match fs::read(path) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ClientError::writeback(path, error)),
    };
    let text =
        std::str::from_utf8(&text).map_err(|error| ClientError::writeback(path, io::Error::new(io::ErrorKind::InvalidData, error)))?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    // The parser's own message may quote the file, and the file holds a key.
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the file is damaged; restore it, or remove it to enrol as a new client");
    serde_saphyr::from_str(text).map(Some).map_err(|_| ClientError::writeback(path, damaged()))
}

/// Replaces `path` by a file that only its owner may read: either the old or the new content is there, whatever happens meanwhile.
fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use talon_proto::{VqlCollectorArgs, VqlEnv, VqlRequest};

    use super::*;

    fn paths(folder: &Path, levels: bool) -> WritebackPaths {
        WritebackPaths { level1: folder.join("writeback.yaml"), level2: levels.then(|| folder.join("writeback.yaml.bak")) }
    }

    fn table() -> VqlEventTable {
        let args = VqlCollectorArgs {
            query: vec![VqlRequest { vql: "SELECT \"a: 'b' # c\" FROM clock()\n-- Y".into(), name: "$0a".into() }],
            env: vec![VqlEnv { key: "Y".into(), value: "010".into(), ..VqlEnv::default() }],
            max_row: 1000,
            ..VqlCollectorArgs::default()
        };
        VqlEventTable { event: vec![args], version: u64::MAX >> 1 }
    }

    #[test]
    fn a_new_agent_keeps_its_identity_and_its_table() {
        for levels in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let mut first = Writeback::open(paths(folder.path(), levels), 1_700_000_000).unwrap();
            first.set_event_table(table()).unwrap();
            first.set_server_pem("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
            let again = Writeback::open(paths(folder.path(), levels), 1_800_000_000).unwrap();
            assert_eq!(again.key().public(), first.key().public());
            assert_eq!(again.install_time(), 1_700_000_000);
            assert_eq!(again.event_table(), &table());
            assert_eq!(again.server_pem(), first.server_pem());
        }
    }

    #[test]
    fn either_level_keeps_the_identity() {
        let folder = tempfile::tempdir().unwrap();
        let both = paths(folder.path(), true);
        let first = Writeback::open(both.clone(), 1).unwrap();
        fs::remove_file(&both.level1).unwrap();
        assert_eq!(Writeback::open(both.clone(), 2).unwrap().key().public(), first.key().public());
        fs::write(&both.level1, "").unwrap();
        assert_eq!(Writeback::open(both, 2).unwrap().key().public(), first.key().public());
    }

    #[test]
    fn a_damaged_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path(), false);
        fs::write(&paths.level1, "private_key: [").unwrap();
        let error = Writeback::open(paths.clone(), 1).err().unwrap();
        assert!(error.to_string().contains("writeback.yaml"), "{error}");
        assert_eq!(fs::read_to_string(&paths.level1).unwrap(), "private_key: [");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_reads_the_key() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path(), true);
        Writeback::open(paths.clone(), 1).unwrap();
        for path in [&paths.level1, paths.level2.as_ref().unwrap()] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn files_of_stock_agents_are_read() {
        let Some(vectors) = std::env::var_os("TALON_VECTORS").map(PathBuf::from) else {
            eprintln!("SKIPPED: TALON_VECTORS is not set");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path(), true);
        fs::copy(vectors.join("configs/agent-http.writeback.yaml"), &paths.level1).unwrap();
        fs::copy(vectors.join("configs/agent-http.writeback.yaml.bak"), paths.level2.as_ref().unwrap()).unwrap();
        let stock = Writeback::open(paths, 1).unwrap();
        assert_eq!(client_id(stock.key().public()).as_str(), "C.159bbc76928cbe16");
        assert_eq!(stock.install_time(), 1_795_545_570);
        assert_eq!(stock.event_table().version, 1_795_546_433_131_861_957);
        assert!(stock.event_table().event[0].query[0].vql.contains("clock(period=3)"));
        assert!(stock.server_pem().starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
