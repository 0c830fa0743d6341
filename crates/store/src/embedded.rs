//! The embedded engine: records and the index in sled, rows and uploads in segment files, one writer thread with group commit.
//!
//! A folder holds `index/` (sled), `segments/`, `journal/` and `lock`. Names of objects are keys of the index and never become paths. A group is written
//! so: blocks to the segment; blocks and index entries to the journal, sync; only then readers see it and the tickets resolve. Checkpoints sync the
//! segments, bring the entries into sled, sync, and drop the journal. A crash in between is made good from the journal when the store is opened; it
//! leaves bytes that nothing refers to, and those are cut then.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use talon_ids::OrgId;

use crate::block::Limits;
use crate::{Engine, ObjectName, Reader, Record, RowBlocks, Scan, Space, StoreError, TableInfo, Ticket, UploadInfo, Work};

mod check;
mod index;
mod journal;
mod key;
#[cfg(test)]
mod power;
mod segment;
#[cfg(test)]
mod tests;
mod txn;
mod view;
mod writer;

pub use check::CheckReport;
pub use segment::{SegmentBlock, segment_blocks};

use index::Index;
use journal::Journal;
use key::{Kind, Layout as _, State};
use segment::{Files, HEADER, Identity, LocalFiles, Segments};
use view::{CommittedBlocks, View as _};
use writer::{Command, Errand, Writer};

/// No block is larger than this, whatever the limits say.
const MAX_BLOCK: usize = 1 << 30;
/// Longer values lie in segments: sled would keep them in files of their own.
const INLINE_VALUE: usize = 8 << 10;
/// Keys and names are bounded so that a page of sled, with 16 entries, fits its segments.
const MAX_KEY: usize = 8 << 10;
const MAX_NAME: usize = 16 << 10;

/// How an embedded store is run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The largest things that are accepted. Keys are limited to 8 KiB, names to 16 KiB and blocks to 1 GiB in any case.
    pub limits: Limits,
    /// Bytes after which another segment file is begun.
    pub segment_bytes: u64,
    /// Bytes of the index that are kept in memory.
    pub cache_bytes: u64,
    /// Transactions that may wait; more make [`Engine::submit`] block.
    pub queue: usize,
    /// Bytes of the disk that are left free: with less, transactions fail with [`StoreError::Full`].
    pub reserve_bytes: u64,
}

impl Default for Options {
    /// Segments of 64 MiB, a cache of 64 MiB, 1024 waiting transactions, 32 MiB left free.
    fn default() -> Self {
        Self { limits: Limits::default(), segment_bytes: 64 << 20, cache_bytes: 64 << 20, queue: 1024, reserve_bytes: 32 << 20 }
    }
}

/// The embedded engine. Dropping it waits for the transactions that are queued.
pub struct Embedded {
    shared: Arc<Shared>,
    queue: Option<SyncSender<Command>>,
    writer: Option<JoinHandle<()>>,
    _lock: File,
}

/// What readers and the writer share.
struct Shared {
    index: Index,
    segments: Segments,
    limits: Limits,
    segment_bytes: u64,
    reserve_bytes: u64,
}

impl Embedded {
    /// Opens the store in `folder`, or makes one there.
    ///
    /// ```
    /// use talon_ids::OrgId;
    /// use talon_store::{BlockEncoding, Embedded, Engine, ObjectName, Options, RowBlock};
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// let store = Embedded::open(folder.path(), Options::default())?;
    /// let table = ObjectName::new(["flows", "F.1", "Generic.Info"]);
    /// let rows = RowBlock { data: "{\"Host\":\"a\"}\n".into(), count: 1, plain_len: 13, encoding: BlockEncoding::Plain };
    /// let name = table.clone();
    /// store.submit(Box::new(move |txn| txn.append_rows(&OrgId::root(), &name, Some(0), rows).map(drop))).wait()?;
    /// assert_eq!(store.reader().table(&OrgId::root(), &table)?.rows, 1);
    /// # Ok::<(), talon_store::StoreError>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it open, [`StoreError::Damaged`] when its index cannot be read.
    pub fn open(folder: impl AsRef<Path>, options: Options) -> Result<Self, StoreError> {
        Self::open_with(folder.as_ref(), options, Arc::new(LocalFiles))
    }

    fn open_with(folder: &Path, options: Options, files: Arc<dyn Files>) -> Result<Self, StoreError> {
        let segments = folder.join("segments");
        fs::create_dir_all(&segments).map_err(|error| StoreError::io(&segments, &error))?;
        let journals = folder.join("journal");
        fs::create_dir_all(&journals).map_err(|error| StoreError::io(&journals, &error))?;
        let lock = lock(folder)?;
        let index = Index::open(folder.join("index"), options.cache_bytes)?;
        let identity = identify(&index, &segments)?;
        let mut limits = options.limits;
        limits.stored = limits.stored.min(MAX_BLOCK);
        limits.plain = limits.plain.min(MAX_BLOCK);
        limits.value = limits.value.min(MAX_BLOCK);
        limits.key = limits.key.min(MAX_KEY);
        limits.name = limits.name.min(MAX_NAME);
        let segments = Segments::new(segments, identity);
        let (segment_bytes, reserve_bytes) = (options.segment_bytes, options.reserve_bytes);
        let shared = Arc::new(Shared { index, segments, limits, segment_bytes, reserve_bytes });
        let generation = writer::replay(&shared, &*files, &journals)?;
        writer::recover(&shared, &*files)?;
        let (sender, receiver) = sync_channel(options.queue.max(1));
        let writer = Writer::new(shared.clone(), files.clone(), Journal::new(journals, identity, files, generation));
        let writer = thread::Builder::new().name("store-writer".into()).spawn(move || writer.serve(&receiver));
        let writer = writer.map_err(|error| StoreError::io(folder, &error))?;
        Ok(Self { shared, queue: Some(sender), writer: Some(writer), _lock: lock })
    }

    /// Walks everything that is stored and verifies it. Transactions wait meanwhile; readers do not.
    ///
    /// # Errors
    /// When the index cannot be walked; whatever else is wrong is in the report.
    pub fn check(&self) -> Result<CheckReport, StoreError> {
        let (answer, report) = sync_channel(1);
        self.enqueue(Command::Do(Errand::Check(answer)))?;
        report.recv().unwrap_or(Err(StoreError::Closed))
    }

    /// Frees the space of what was deleted and replaced, as far as whole segments hold nothing else. This also goes on by itself.
    pub fn reap(&self) -> Ticket {
        self.send(|resolver| Command::Do(Errand::Reap(resolver)))
    }

    fn send(&self, command: impl FnOnce(writer::Resolver) -> Command) -> Ticket {
        let (resolver, ticket) = Ticket::new();
        match self.enqueue(command(resolver)) {
            Ok(()) => ticket,
            Err(error) => {
                let (resolver, ticket) = Ticket::new();
                drop(resolver.send(Err(error)));
                ticket
            }
        }
    }

    fn enqueue(&self, command: Command) -> Result<(), StoreError> {
        if self.writer.as_ref().is_some_and(|writer| writer.thread().id() == thread::current().id()) {
            return Err(StoreError::Nested);
        }
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue.send(command).map_err(|_| StoreError::Closed)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.thread().id() != thread::current().id()
        {
            drop(writer.join());
        }
    }
}

impl Engine for Embedded {
    fn reader(&self) -> &dyn Reader {
        self
    }

    fn submit(&self, work: Work) -> Ticket {
        self.send(|resolver| Command::Run(work, resolver))
    }
}

impl Reader for Embedded {
    fn get(&self, org: &OrgId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.shared.record(org, space, key)
    }

    fn scan(&self, org: &OrgId, space: Space, scan: &Scan) -> Result<Vec<Record>, StoreError> {
        self.shared.records(org, space, scan)
    }

    fn table(&self, org: &OrgId, table: &ObjectName) -> Result<TableInfo, StoreError> {
        Ok(self.shared.object(org, table, Kind::Table)?.map(txn::table_info).unwrap_or_default())
    }

    fn rows(&self, org: &OrgId, table: &ObjectName, from: u64) -> Result<RowBlocks, StoreError> {
        match self.shared.object(org, table, Kind::Table)? {
            Some(object) if from < object.end => {
                let start = self.shared.extent_start(object.id, from)?;
                Ok(Box::new(CommittedBlocks::new(self.shared.clone(), object.id, start, object.end)))
            }
            _ => Ok(Box::new(std::iter::empty())),
        }
    }

    fn objects(&self, org: &OrgId, prefix: &ObjectName) -> Result<Vec<ObjectName>, StoreError> {
        self.shared.names(org, prefix)
    }

    fn upload(&self, org: &OrgId, upload: &ObjectName) -> Result<Option<UploadInfo>, StoreError> {
        Ok(self.shared.object(org, upload, Kind::Upload)?.map(txn::upload_info))
    }

    fn read_upload(&self, org: &OrgId, upload: &ObjectName, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        self.shared.upload_bytes(org, upload, offset, len)
    }

    fn orgs(&self) -> Result<Vec<OrgId>, StoreError> {
        self.shared.owners()
    }
}

impl Shared {
    fn state(&self) -> Result<State, StoreError> {
        let key = key::meta("state");
        self.layout(&key)?.ok_or_else(|| key::damaged(&key, "the store has no state"))
    }
}

fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("lock");
    let file = File::options().create(true).write(true).truncate(false).open(&path).map_err(|error| StoreError::io(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { place: folder.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(StoreError::io(&path, &error)),
    }
}

/// The identity of the store; a new store gets one.
fn identify(index: &Index, segments: &Path) -> Result<Identity, StoreError> {
    const FORMAT: u8 = 1;
    let key = key::meta("identity");
    if let Some(found) = index.get(&key)? {
        return match found.split_first() {
            Some((&FORMAT, identity)) => identity.try_into().map_err(|_| key::damaged(&key, "the identity has another length")),
            Some((format, _)) => Err(StoreError::Io(format!("the store has format {format}, this program knows format {FORMAT}"))),
            None => Err(key::damaged(&key, "the identity is empty")),
        };
    }
    if !Segments::ids(segments).map_err(|error| StoreError::io(segments, &error))?.is_empty() {
        let detail = "there are segments, but the index is empty: restore both from the same backup".into();
        return Err(StoreError::Damaged { place: segments.display().to_string(), detail });
    }
    let identity = new_identity();
    let state = State { group: 1, next_object: 1, segment: 1, end: HEADER };
    let facts = [(key, [&[FORMAT], &identity[..]].concat()), (key::meta("state"), state.encode())];
    index.publish(facts.map(|(key, value)| (key, Some(value))).into());
    index.freeze();
    index.thaw()?;
    Ok(identity)
}

/// Distinguishes the files of stores that an operator may mix up; nothing depends on its being hard to guess.
fn new_identity() -> Identity {
    use std::hash::{BuildHasher as _, RandomState};
    let half = || RandomState::new().hash_one(std::process::id()).to_le_bytes();
    let mut identity = Identity::default();
    for (to, from) in identity.iter_mut().zip(half().into_iter().chain(half())) {
        *to = from;
    }
    identity
}
