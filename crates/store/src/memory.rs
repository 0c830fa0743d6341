//! An engine that keeps everything in memory: the model that other engines are compared with, and a store for tests of other crates.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, ThreadId};

use bytes::{Bytes, BytesMut};
use talon_ids::OrgId;

use crate::block::{Limits, verified_bytes};
use crate::{
    CheckedRows, Engine, ObjectName, Reader, Record, RowBlock, RowBlocks, Scan, Space, StoreError, TableInfo, Ticket, Txn, UploadInfo, Work,
};

/// Keeps everything in memory and forgets it when dropped. Work is done on the thread that submits it.
///
/// ```
/// use talon_ids::OrgId;
/// use talon_store::{Engine, Memory, Space};
///
/// let store = Memory::new();
/// store.submit(Box::new(|txn| { txn.put(&OrgId::root(), Space::Settings, b"colour", b"blue".to_vec()); Ok(()) })).wait()?;
/// assert_eq!(store.reader().get(&OrgId::root(), Space::Settings, b"colour")?, Some(b"blue".to_vec()));
/// # Ok::<(), talon_store::StoreError>(())
/// ```
#[derive(Default)]
pub struct Memory {
    committed: RwLock<Arc<State>>,
    turn: Mutex<()>,
    working: Mutex<Option<ThreadId>>,
    limits: Limits,
}

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store with these limits.
    #[must_use]
    pub fn with_limits(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    fn snapshot(&self) -> Arc<State> {
        self.committed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_working(&self, thread: Option<ThreadId>) {
        *self.working.lock().unwrap_or_else(PoisonError::into_inner) = thread;
    }

    fn run(&self, work: Work) -> Result<(), StoreError> {
        if *self.working.lock().unwrap_or_else(PoisonError::into_inner) == Some(thread::current().id()) {
            return Err(StoreError::Nested);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut txn = MemoryTxn { state: State::clone(&self.snapshot()), limits: self.limits, failed: None, bytes: 0 };
        self.set_working(Some(thread::current().id()));
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut txn))).unwrap_or(Err(StoreError::Panicked));
        self.set_working(None);
        result?;
        if let Some(error) = txn.failed {
            return Err(error);
        }
        *self.committed.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(txn.state);
        Ok(())
    }
}

impl Engine for Memory {
    fn reader(&self) -> &dyn Reader {
        self
    }

    fn submit(&self, work: Work) -> Ticket {
        let (sender, ticket) = Ticket::new();
        // Nobody may be waiting for it.
        let _ = sender.send(self.run(work));
        ticket
    }
}

/// The whole state; a transaction clones it shallowly and copies the families and objects that it touches.
#[derive(Clone, Default)]
struct State {
    records: BTreeMap<(OrgId, Space), Arc<Family>>,
    tables: BTreeMap<(OrgId, ObjectName), Arc<Table>>,
    uploads: BTreeMap<(OrgId, ObjectName), Arc<Upload>>,
}

/// The records of one family.
type Family = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Default)]
struct Table {
    blocks: Vec<(u64, Bytes)>,
    info: TableInfo,
}

#[derive(Clone, Default)]
struct Upload {
    bytes: BytesMut,
    complete: bool,
}

impl Reader for State {
    fn get(&self, org: &OrgId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.records.get(&(org.clone(), space)).and_then(|family| family.get(key)).cloned())
    }

    fn scan(&self, org: &OrgId, space: Space, scan: &Scan) -> Result<Vec<Record>, StoreError> {
        let Some(family) = self.records.get(&(org.clone(), space)) else { return Ok(Vec::new()) };
        let wanted = |key: &&Vec<u8>| {
            key.starts_with(&scan.prefix) && scan.after.as_ref().is_none_or(|after| if scan.reverse { *key < after } else { *key > after })
        };
        let limit = if scan.limit == 0 { usize::MAX } else { scan.limit };
        let matching = family.iter().filter(|(key, _)| wanted(key)).map(|(key, value)| (key.clone(), value.clone()));
        Ok(if scan.reverse { matching.rev().take(limit).collect() } else { matching.take(limit).collect() })
    }

    fn table(&self, org: &OrgId, table: &ObjectName) -> Result<TableInfo, StoreError> {
        Ok(self.tables.get(&(org.clone(), table.clone())).map(|table| table.info).unwrap_or_default())
    }

    fn rows(&self, org: &OrgId, table: &ObjectName, from: u64) -> Result<RowBlocks, StoreError> {
        let Some(table) = self.tables.get(&(org.clone(), table.clone())) else { return Ok(Box::new(std::iter::empty())) };
        if from >= table.info.rows {
            return Ok(Box::new(std::iter::empty()));
        }
        let start = table.blocks.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        let blocks: Vec<_> = table.blocks.iter().skip(start).cloned().collect();
        Ok(Box::new(blocks.into_iter().map(Ok)))
    }

    fn objects(&self, org: &OrgId, prefix: &ObjectName) -> Result<Vec<ObjectName>, StoreError> {
        let mut names: Vec<_> = self
            .tables
            .keys()
            .chain(self.uploads.keys())
            .filter(|(owner, name)| owner == org && name.components().starts_with(prefix.components()))
            .map(|(_, name)| name.clone())
            .collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn upload(&self, org: &OrgId, upload: &ObjectName) -> Result<Option<UploadInfo>, StoreError> {
        let found = self.uploads.get(&(org.clone(), upload.clone()));
        Ok(found.map(|upload| UploadInfo { bytes: length(upload.bytes.len()), complete: upload.complete }))
    }

    fn read_upload(&self, org: &OrgId, upload: &ObjectName, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let Some(upload) = self.uploads.get(&(org.clone(), upload.clone())) else { return Ok(Bytes::new()) };
        let rest = usize::try_from(offset).ok().and_then(|offset| upload.bytes.get(offset..)).unwrap_or_default();
        Ok(Bytes::copy_from_slice(rest.get(..len).unwrap_or(rest)))
    }

    fn orgs(&self) -> Result<Vec<OrgId>, StoreError> {
        let families = self.records.iter().filter(|(_, family)| !family.is_empty()).map(|((org, _), _)| org);
        let objects = self.tables.keys().chain(self.uploads.keys()).map(|(org, _)| org);
        let mut orgs: Vec<_> = families.chain(objects).cloned().collect();
        orgs.sort();
        orgs.dedup();
        Ok(orgs)
    }
}

fn length(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

struct MemoryTxn {
    state: State,
    limits: Limits,
    failed: Option<StoreError>,
    bytes: usize,
}

impl MemoryTxn {
    fn spend(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.bytes = self.bytes.saturating_add(bytes);
        self.limits.check_transaction(self.bytes)
    }

    fn family(&mut self, org: &OrgId, space: Space) -> &mut Family {
        Arc::make_mut(self.state.records.entry((org.clone(), space)).or_default())
    }

    fn checked_record(&mut self, key: &[u8], value: &[u8]) -> bool {
        let checked = self.limits.check_record(key, value).and_then(|()| self.spend(key.len().saturating_add(value.len())));
        match checked {
            Ok(()) => true,
            Err(error) => {
                self.failed.get_or_insert(error);
                false
            }
        }
    }
}

impl Txn for MemoryTxn {
    fn put(&mut self, org: &OrgId, space: Space, key: &[u8], value: Vec<u8>) {
        if self.checked_record(key, &value) {
            self.family(org, space).insert(key.to_vec(), value);
        }
    }

    fn delete(&mut self, org: &OrgId, space: Space, key: &[u8]) {
        if self.checked_record(key, &[]) {
            self.family(org, space).remove(key);
        }
    }

    fn append_rows(&mut self, org: &OrgId, table: &ObjectName, expected: Option<u64>, block: RowBlock) -> Result<u64, StoreError> {
        self.limits.check_name(table)?;
        let stored = self.state.table(org, table)?.rows;
        if let Some(expected) = expected.filter(|expected| *expected != stored) {
            return Err(StoreError::OutOfSequence { expected, stored });
        }
        let rows = CheckedRows::of_block(block, &self.limits)?;
        self.append_checked(org, table, Some(stored), rows)
    }

    fn append_checked(&mut self, org: &OrgId, table: &ObjectName, expected: Option<u64>, rows: CheckedRows) -> Result<u64, StoreError> {
        self.limits.check_name(table)?;
        let stored = self.state.table(org, table)?.rows;
        if let Some(expected) = expected.filter(|expected| *expected != stored) {
            return Err(StoreError::OutOfSequence { expected, stored });
        }
        self.spend(rows.held())?;
        if rows.count() > 0 {
            let plain = rows.plain()?;
            let table = Arc::make_mut(self.state.tables.entry((org.clone(), table.clone())).or_default());
            table.info.rows = stored.saturating_add(u64::from(rows.count()));
            table.info.bytes = table.info.bytes.saturating_add(length(plain.len()));
            table.blocks.push((stored, plain));
        }
        Ok(stored)
    }

    fn append_upload(&mut self, org: &OrgId, upload: &ObjectName, offset: u64, chunk: RowBlock) -> Result<(), StoreError> {
        self.limits.check_name(upload)?;
        let plain = verified_bytes(&chunk, &self.limits)?;
        self.spend(chunk.data.len())?;
        let mut info = self.state.upload(org, upload)?.unwrap_or_default();
        let afresh = offset == 0 && info.complete;
        if afresh {
            info = UploadInfo::default();
        }
        let retransmitted = offset.saturating_add(length(plain.len())) <= info.bytes;
        if offset != info.bytes && !retransmitted {
            return Err(StoreError::OutOfSequence { expected: offset, stored: info.bytes });
        }
        let upload = Arc::make_mut(self.state.uploads.entry((org.clone(), upload.clone())).or_default());
        if afresh {
            *upload = Upload::default();
        }
        if !retransmitted {
            upload.bytes.extend_from_slice(&plain);
            upload.complete = false;
        }
        Ok(())
    }

    fn finish_upload(&mut self, org: &OrgId, upload: &ObjectName) -> Result<(), StoreError> {
        self.limits.check_name(upload)?;
        Arc::make_mut(self.state.uploads.entry((org.clone(), upload.clone())).or_default()).complete = true;
        Ok(())
    }

    fn delete_object(&mut self, org: &OrgId, object: &ObjectName) -> Result<(), StoreError> {
        let key = (org.clone(), object.clone());
        self.state.tables.remove(&key);
        self.state.uploads.remove(&key);
        Ok(())
    }
}

/// Implements [`Reader`] by another reader.
macro_rules! read_through {
    ($type:ty, $self:ident => $inner:expr) => {
        impl Reader for $type {
            fn get(&$self, org: &OrgId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
                $inner.get(org, space, key)
            }

            fn scan(&$self, org: &OrgId, space: Space, scan: &Scan) -> Result<Vec<Record>, StoreError> {
                $inner.scan(org, space, scan)
            }

            fn table(&$self, org: &OrgId, table: &ObjectName) -> Result<TableInfo, StoreError> {
                $inner.table(org, table)
            }

            fn rows(&$self, org: &OrgId, table: &ObjectName, from: u64) -> Result<RowBlocks, StoreError> {
                $inner.rows(org, table, from)
            }

            fn objects(&$self, org: &OrgId, prefix: &ObjectName) -> Result<Vec<ObjectName>, StoreError> {
                $inner.objects(org, prefix)
            }

            fn upload(&$self, org: &OrgId, upload: &ObjectName) -> Result<Option<UploadInfo>, StoreError> {
                $inner.upload(org, upload)
            }

            fn read_upload(&$self, org: &OrgId, upload: &ObjectName, offset: u64, len: usize) -> Result<Bytes, StoreError> {
                $inner.read_upload(org, upload, offset, len)
            }

            fn orgs(&$self) -> Result<Vec<OrgId>, StoreError> {
                $inner.orgs()
            }
        }
    };
}

read_through!(Memory, self => self.snapshot());
read_through!(MemoryTxn, self => self.state);
