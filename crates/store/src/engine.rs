//! The storage traits: what every engine offers, in terms that a file system, sled or PostgreSQL can keep.
//!
//! Two kinds of data (see ARCHITECTURE.md): small mutable *records* under ordered keys, and append-only *tables* of rows and *uploads* of
//! bytes. One transaction may change all of them; it is atomic, and durable once its [`Ticket`] resolves.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use talon_ids::OrgId;
use tokio::sync::oneshot;

use crate::{CheckedRows, StoreError};

/// A family of records. Keys are ordered within one family of one organisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Space {
    /// Deployment-wide facts; used with the root organisation only.
    Deployment,
    /// Organisations, by id; used with the root organisation only.
    Orgs,
    /// Users, by folded name; used with the root organisation only.
    Users,
    /// Policies, by folded user name.
    Policies,
    /// Client records, by client id.
    Clients,
    /// Public keys of clients, by client id.
    ClientKeys,
    /// Metadata of clients, by client id.
    ClientMetadata,
    /// Search index terms: `term 0 client id`.
    ClientIndex,
    /// Tasks that wait for a client: client id, then task id.
    Tasks,
    /// Flows: client id, then flow id.
    Flows,
    /// Statistics of flows: client id, then flow id.
    FlowStats,
    /// Custom artifacts, by name.
    Artifacts,
    /// Event tables and other configuration that users edit, by name.
    Settings,
    /// Hunts, by id.
    Hunts,
    /// Notebooks, by id.
    Notebooks,
}

impl Space {
    /// All families.
    pub const ALL: [Self; 15] = [
        Self::Deployment,
        Self::Orgs,
        Self::Users,
        Self::Policies,
        Self::Clients,
        Self::ClientKeys,
        Self::ClientMetadata,
        Self::ClientIndex,
        Self::Tasks,
        Self::Flows,
        Self::FlowStats,
        Self::Artifacts,
        Self::Settings,
        Self::Hunts,
        Self::Notebooks,
    ];

    /// The name in exports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::Orgs => "orgs",
            Self::Users => "users",
            Self::Policies => "policies",
            Self::Clients => "clients",
            Self::ClientKeys => "client_keys",
            Self::ClientMetadata => "client_metadata",
            Self::ClientIndex => "client_index",
            Self::Tasks => "tasks",
            Self::Flows => "flows",
            Self::FlowStats => "flow_stats",
            Self::Artifacts => "artifacts",
            Self::Settings => "settings",
            Self::Hunts => "hunts",
            Self::Notebooks => "notebooks",
        }
    }

    /// The family with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|space| space.name() == name)
    }
}

/// Names a table of rows or an upload within an organisation: non-empty components, compared as bytes. Never a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Vec<String>);

impl ObjectName {
    /// The object with these components.
    pub fn new<I, S>(components: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self(components.into_iter().map(Into::into).collect())
    }

    /// The components.
    #[must_use]
    pub fn components(&self) -> &[String] {
        &self.0
    }
}

/// Rows as one block: JSON objects, each ended by a newline.
#[derive(Debug, Clone)]
pub struct RowBlock {
    /// The rows, or the zlib stream of them.
    pub data: Bytes,
    /// How many rows there are.
    pub count: u32,
    /// Bytes of the rows before compression.
    pub plain_len: u64,
    /// How `data` is encoded.
    pub encoding: BlockEncoding,
}

/// How the bytes of a block or chunk are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockEncoding {
    /// As they are; the engine may compress them.
    Plain,
    /// A zlib stream, kept as delivered.
    Zlib,
}

/// What an engine knows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableInfo {
    /// Rows in the table.
    pub rows: u64,
    /// Bytes of JSON in the table.
    pub bytes: u64,
}

/// What an engine knows of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UploadInfo {
    /// Bytes stored.
    pub bytes: u64,
    /// Whether its end was recorded.
    pub complete: bool,
}

/// Which records a scan returns.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Only keys that start with this.
    pub prefix: Vec<u8>,
    /// Only keys after this one (before it, when `reverse`), not including it.
    pub after: Option<Vec<u8>>,
    /// From the last key to the first.
    pub reverse: bool,
    /// At most this many; 0 is no limit.
    pub limit: usize,
}

/// A key and its value.
pub type Record = (Vec<u8>, Vec<u8>);

/// Reads the committed state; inside a transaction, with that transaction's own changes.
pub trait Reader: Send + Sync {
    /// One record.
    ///
    /// # Errors
    /// When the engine fails or a checksum does not match.
    fn get(&self, org: &OrgId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Records in key order.
    ///
    /// # Errors
    /// As [`Reader::get`].
    fn scan(&self, org: &OrgId, space: Space, scan: &Scan) -> Result<Vec<Record>, StoreError>;

    /// What is known of a table; zero for one that was never written.
    ///
    /// # Errors
    /// As [`Reader::get`].
    fn table(&self, org: &OrgId, table: &ObjectName) -> Result<TableInfo, StoreError>;

    /// Plain JSONL blocks that hold rows `from..`, with the index of the first row of each; the caller stops when it has enough.
    ///
    /// # Errors
    /// As [`Reader::get`].
    fn rows(&self, org: &OrgId, table: &ObjectName, from: u64) -> Result<RowBlocks, StoreError>;

    /// Tables and uploads whose name starts with `prefix`, in order.
    ///
    /// # Errors
    /// As [`Reader::get`].
    fn objects(&self, org: &OrgId, prefix: &ObjectName) -> Result<Vec<ObjectName>, StoreError>;

    /// What is known of an upload; `None` for one that was never written.
    ///
    /// # Errors
    /// As [`Reader::get`].
    fn upload(&self, org: &OrgId, upload: &ObjectName) -> Result<Option<UploadInfo>, StoreError>;

    /// Up to `len` plain bytes of an upload from `offset`; empty at its end.
    ///
    /// # Errors
    /// As [`Reader::get`].
    fn read_upload(&self, org: &OrgId, upload: &ObjectName, offset: u64, len: usize) -> Result<Bytes, StoreError>;

    /// Every organisation that has a record, a table or an upload, in order.
    ///
    /// # Errors
    /// As [`Reader::get`].
    fn orgs(&self) -> Result<Vec<OrgId>, StoreError>;
}

/// The blocks of a table in order: index of the first row, and the rows as plain JSONL.
pub type RowBlocks = Box<dyn Iterator<Item = Result<(u64, Bytes), StoreError>> + Send>;

/// Changes that become visible and durable together, or not at all.
pub trait Txn: Reader {
    /// Writes a record.
    fn put(&mut self, org: &OrgId, space: Space, key: &[u8], value: Vec<u8>);

    /// Deletes a record.
    fn delete(&mut self, org: &OrgId, space: Space, key: &[u8]);

    /// Appends rows to a table and returns the index of the first. With `expected`, refuses unless the table has exactly that many rows.
    /// An empty block changes nothing.
    ///
    /// # Errors
    /// [`StoreError::OutOfSequence`], [`StoreError::Invalid`] when what the block claims of itself is not true or it is larger than the
    /// engine's limits, or when the engine fails.
    fn append_rows(&mut self, org: &OrgId, table: &ObjectName, expected: Option<u64>, block: RowBlock) -> Result<u64, StoreError>;

    /// The same for rows that were looked at before.
    ///
    /// # Errors
    /// [`StoreError::OutOfSequence`], or when the engine fails.
    fn append_checked(&mut self, org: &OrgId, table: &ObjectName, expected: Option<u64>, rows: CheckedRows) -> Result<u64, StoreError>;

    /// Writes a chunk of an upload at its end. A chunk that lies wholly before the end is a retransmission and is dropped; a chunk at offset 0
    /// of a complete upload starts it afresh; a gap is refused, and so is a chunk that is partly stored. The `count` of the chunk is ignored.
    ///
    /// # Errors
    /// [`StoreError::OutOfSequence`], [`StoreError::Invalid`] as for rows, or when the engine fails.
    fn append_upload(&mut self, org: &OrgId, upload: &ObjectName, offset: u64, chunk: RowBlock) -> Result<(), StoreError>;

    /// Records that an upload has all its bytes.
    ///
    /// # Errors
    /// When the engine fails.
    fn finish_upload(&mut self, org: &OrgId, upload: &ObjectName) -> Result<(), StoreError>;

    /// Deletes a table or an upload.
    ///
    /// # Errors
    /// When the engine fails.
    fn delete_object(&mut self, org: &OrgId, object: &ObjectName) -> Result<(), StoreError>;
}

/// Work to be done in one transaction. An error or a panic undoes what it did. It must not submit other work to the same engine: that is
/// refused with [`StoreError::Nested`].
pub type Work = Box<dyn FnOnce(&mut dyn Txn) -> Result<(), StoreError> + Send>;

/// A storage engine. Transactions of one engine are applied one after the other and committed in groups.
pub trait Engine: Send + Sync + 'static {
    /// Reads the committed state.
    fn reader(&self) -> &dyn Reader;

    /// Queues a transaction. It is durable when the ticket resolves to `Ok`. Blocks for a moment when the queue is full.
    fn submit(&self, work: Work) -> Ticket;
}

/// Resolves when a transaction is durable, or has failed.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<Result<(), StoreError>>);

impl Ticket {
    /// A ticket and what resolves it.
    #[must_use]
    pub fn new() -> (oneshot::Sender<Result<(), StoreError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }

    /// Blocks this thread until the transaction is durable. Not for async code.
    ///
    /// # Errors
    /// What the work or the engine failed with.
    pub fn wait(self) -> Result<(), StoreError> {
        self.0.blocking_recv().unwrap_or(Err(StoreError::Closed))
    }
}

impl Future for Ticket {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|result| result.unwrap_or(Err(StoreError::Closed)))
    }
}
