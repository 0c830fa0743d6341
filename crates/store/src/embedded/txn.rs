//! A transaction: changes in layers over the index, and blocks that already have their place in the segment but are not written yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use talon_ids::OrgId;

use super::index::{Changes, overlaid};
use super::key::{self, Extent, KeyRange, Kind, Layout as _, Object, State, Usage};
use super::segment::{Codec, HEADER, Owner, decode_block, encode_block};
use super::view::{CommittedBlocks, Stored, View, apart_record, inline_record, parse_record};
use super::{INLINE_VALUE, Shared};
use crate::block::verified_bytes;
use crate::rows::pack;
use crate::{
    BlockEncoding, CheckedRows, ObjectName, Reader, Record, RowBlock, RowBlocks, Scan, Space, StoreError, TableInfo, Txn, UploadInfo,
};

/// Changes that are not committed.
pub(super) struct Layer {
    pub(super) changes: Changes,
    /// Blocks by segment and offset.
    pub(super) staged: BTreeMap<(u64, u64), Bytes>,
    pub(super) state: State,
    /// Bytes of changes and blocks.
    pub(super) bytes: usize,
}

impl Layer {
    pub(super) fn new(state: State) -> Self {
        Self { changes: Changes::new(), staged: BTreeMap::new(), state, bytes: 0 }
    }

    pub(super) fn absorb(&mut self, later: Self) {
        self.changes.extend(later.changes);
        self.staged.extend(later.staged);
        self.state = later.state;
        self.bytes = self.bytes.saturating_add(later.bytes);
    }
}

/// One transaction on top of those of its group that succeeded before it.
pub(super) struct EmbeddedTxn<'a> {
    shared: &'a Arc<Shared>,
    group: &'a Layer,
    own: Layer,
    failed: Option<StoreError>,
}

impl<'a> EmbeddedTxn<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, group: &'a Layer) -> Self {
        Self { shared, group, own: Layer::new(group.state), failed: None }
    }

    /// What the transaction changed, unless a change was refused.
    pub(super) fn finish(self) -> Result<Layer, StoreError> {
        self.failed.map_or(Ok(self.own), Err)
    }

    fn spend(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.own.bytes = self.own.bytes.saturating_add(bytes);
        self.shared.limits.check_transaction(self.own.bytes)
    }

    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.own.changes.insert(key, value);
    }

    /// Gives a block its place.
    fn stage(&mut self, owner: Option<Owner>, codec: Codec, data: &[u8], plain: usize, rows: u32) -> Result<Extent, StoreError> {
        let plain = u32::try_from(plain).map_err(|_| StoreError::Invalid("a block is longer than 4 GiB".into()))?;
        let len = u64::try_from(data.len().saturating_add(super::segment::BLOCK_HEADER)).unwrap_or(u64::MAX);
        let state = &mut self.own.state;
        if state.end > HEADER && state.end.saturating_add(len) > self.shared.segment_bytes {
            state.segment = state.segment.checked_add(1).ok_or(StoreError::Closed)?;
            state.end = HEADER;
        }
        let (segment, offset) = (state.segment, state.end);
        state.end = offset.saturating_add(len);
        let end = state.end;
        let owner = owner.unwrap_or(Owner { object: 0, position: offset });
        let (stored, block) = encode_block(owner, codec, data, plain, rows)?;
        self.own.staged.insert((segment, offset), block);
        let key = key::segment(segment);
        let live = self.layout::<Usage>(&key)?.map_or(0, |usage| usage.live).saturating_add(1);
        self.set(key, Some(Usage { end, live }.encode()));
        Ok(Extent { segment, offset, stored, plain, rows })
    }

    /// Stages a delivered block, compressed unless that is of no use.
    fn stage_delivered(&mut self, owner: Owner, block: &RowBlock, plain: &Bytes, rows: u32) -> Result<Extent, StoreError> {
        match block.encoding {
            BlockEncoding::Zlib => self.stage(Some(owner), Codec::Zlib, &block.data, plain.len(), rows),
            BlockEncoding::Plain => self.stage_plain(Some(owner), plain, rows),
        }
    }

    fn stage_plain(&mut self, owner: Option<Owner>, plain: &[u8], rows: u32) -> Result<Extent, StoreError> {
        let (packed, packing) = pack(Bytes::copy_from_slice(plain));
        self.stage(owner, packing.into(), &packed, plain.len(), rows)
    }

    /// Nothing refers to the block any more. Returns whether its segment became empty.
    fn release(&mut self, extent: &Extent) -> Result<bool, StoreError> {
        let key = key::segment(extent.segment);
        let Some(mut usage) = self.layout::<Usage>(&key)? else { return Err(key::damaged(&key, "the segment has no entry")) };
        usage.live = usage.live.saturating_sub(1);
        self.set(key, Some(usage.encode()));
        Ok(usage.live == 0)
    }

    fn write_record(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> Result<(), StoreError> {
        self.spend(key.len().saturating_add(value.as_ref().map_or(0, Vec::len)))?;
        let before = self.value(&key)?;
        if let Some(before) = &before
            && let Stored::Apart(extent) = parse_record(&key, before)?
        {
            self.release(&extent)?;
        }
        let after = match value {
            None if before.is_none() => return Ok(()),
            None => None,
            Some(value) if value.len() <= INLINE_VALUE => Some(inline_record(&value)),
            Some(value) => Some(apart_record(&self.stage_plain(None, &value, 0)?)),
        };
        self.set(key, after);
        Ok(())
    }

    fn new_object(&mut self) -> Result<Object, StoreError> {
        let id = self.own.state.next_object;
        self.own.state.next_object = id.checked_add(1).ok_or(StoreError::Closed)?;
        Ok(Object { id, end: 0, bytes: 0, complete: false })
    }

    fn bury(&mut self, object: &Object) {
        self.set(key::dead(object.id), Some(Vec::new()));
    }

    /// Blocks of this group from `start`, by position.
    fn uncommitted(&self, object: u64, start: u64) -> Result<Vec<(u64, Extent, Bytes)>, StoreError> {
        let range = KeyRange { from: key::extent(object, start), to: key::extent(object, u64::MAX) };
        let group = overlaid(std::iter::empty(), &self.group.changes, &range, false);
        overlaid(group, &self.own.changes, &range, false)
            .map(|entry| {
                let (key, value) = entry?;
                let extent = <Extent as key::Layout>::decode(&key, &value)?;
                let block = self.staged(&extent).ok_or_else(|| key::damaged(&key, "the block is not staged"))?;
                Ok((key::position_of(&key)?, extent, block.clone()))
            })
            .collect()
    }

    fn staged(&self, extent: &Extent) -> Option<&Bytes> {
        let place = (extent.segment, extent.offset);
        self.own.staged.get(&place).or_else(|| self.group.staged.get(&place))
    }

    /// Forgets up to `limit` blocks of deleted objects. Returns how many, and whether a segment became empty.
    pub(super) fn reap(&mut self, limit: usize) -> Result<(usize, bool), StoreError> {
        let (mut reaped, mut emptied) = (0_usize, false);
        while reaped < limit {
            let Some((dead, _)) = self.entries(&KeyRange::of_prefix(vec![key::DEAD]), false, 1)?.pop() else { break };
            let object = key::number_of(&dead)?;
            let range = KeyRange { from: key::extent(object, 0), to: key::extent(object, u64::MAX) };
            let wanted = limit.saturating_sub(reaped);
            let entries = self.entries(&range, false, wanted)?;
            if entries.len() < wanted {
                self.set(dead, None);
                reaped = reaped.saturating_add(1);
            }
            reaped = reaped.saturating_add(entries.len());
            for (key, value) in entries {
                let extent = <Extent as key::Layout>::decode(&key, &value)?;
                emptied |= self.release(&extent)?;
                self.set(key, None);
            }
        }
        Ok((reaped, emptied))
    }

    /// Forgets the segments that nothing refers to, but for the one that is written.
    pub(super) fn sweep(&mut self) -> Result<Vec<u64>, StoreError> {
        let mut empty = Vec::new();
        self.walk(KeyRange::of_prefix(vec![key::SEGMENT]), false, |key, value| {
            let id = key::number_of(&key)?;
            if <Usage as key::Layout>::decode(&key, &value)?.live == 0 && id != self.own.state.segment {
                empty.push(id);
            }
            Ok(true)
        })?;
        for id in &empty {
            self.set(key::segment(*id), None);
        }
        Ok(empty)
    }
}

impl View for EmbeddedTxn<'_> {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.own.changes.get(key).or_else(|| self.group.changes.get(key)) {
            Some(value) => Ok(value.clone()),
            None => self.shared.value(key),
        }
    }

    fn entries(&self, range: &KeyRange, reverse: bool, limit: usize) -> Result<Vec<Record>, StoreError> {
        if range.from >= range.to {
            return Ok(Vec::new());
        }
        // Each changed key hides at most one committed entry.
        let hidden = [&self.group.changes, &self.own.changes].map(|changes| changes.range(range.from.clone()..range.to.clone()).count());
        let fetched = hidden.into_iter().fold(limit, usize::saturating_add);
        let base = self.shared.entries(range, reverse, fetched)?.into_iter().map(Ok);
        let group = overlaid(base, &self.group.changes, range, reverse);
        overlaid(group, &self.own.changes, range, reverse).take(limit).collect()
    }

    fn block(&self, extent: &Extent, owner: Owner) -> Result<Bytes, StoreError> {
        match self.staged(extent) {
            Some(block) => decode_block(block, extent, owner).map_err(StoreError::Io),
            None => self.shared.block(extent, owner),
        }
    }
}

impl Reader for EmbeddedTxn<'_> {
    fn get(&self, org: &OrgId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.record(org, space, key)
    }

    fn scan(&self, org: &OrgId, space: Space, scan: &Scan) -> Result<Vec<Record>, StoreError> {
        self.records(org, space, scan)
    }

    fn table(&self, org: &OrgId, table: &ObjectName) -> Result<TableInfo, StoreError> {
        Ok(self.object(org, table, Kind::Table)?.map(table_info).unwrap_or_default())
    }

    fn rows(&self, org: &OrgId, table: &ObjectName, from: u64) -> Result<RowBlocks, StoreError> {
        let Some(object) = self.object(org, table, Kind::Table)?.filter(|object| from < object.end) else {
            return Ok(Box::new(std::iter::empty()));
        };
        let start = self.extent_start(object.id, from)?;
        let pending = self.uncommitted(object.id, start)?;
        let committed_end = pending.first().map_or(object.end, |(position, ..)| *position);
        let committed = CommittedBlocks::new(self.shared.clone(), object.id, start, committed_end);
        let pending = pending.into_iter().map(move |(position, extent, block)| {
            let plain = decode_block(&block, &extent, Owner { object: object.id, position }).map_err(StoreError::Io)?;
            Ok((position, plain))
        });
        Ok(Box::new(committed.chain(pending)))
    }

    fn objects(&self, org: &OrgId, prefix: &ObjectName) -> Result<Vec<ObjectName>, StoreError> {
        self.names(org, prefix)
    }

    fn upload(&self, org: &OrgId, upload: &ObjectName) -> Result<Option<UploadInfo>, StoreError> {
        Ok(self.object(org, upload, Kind::Upload)?.map(upload_info))
    }

    fn read_upload(&self, org: &OrgId, upload: &ObjectName, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        self.upload_bytes(org, upload, offset, len)
    }

    fn orgs(&self) -> Result<Vec<OrgId>, StoreError> {
        self.owners()
    }
}

impl Txn for EmbeddedTxn<'_> {
    fn put(&mut self, org: &OrgId, space: Space, key: &[u8], value: Vec<u8>) {
        let checked = self.shared.limits.check_record(key, &value);
        if let Err(error) = checked.and_then(|()| self.write_record(key::record(org, space, key), Some(value))) {
            self.failed.get_or_insert(error);
        }
    }

    fn delete(&mut self, org: &OrgId, space: Space, key: &[u8]) {
        let checked = self.shared.limits.check_record(key, &[]);
        if let Err(error) = checked.and_then(|()| self.write_record(key::record(org, space, key), None)) {
            self.failed.get_or_insert(error);
        }
    }

    fn append_rows(&mut self, org: &OrgId, table: &ObjectName, expected: Option<u64>, block: RowBlock) -> Result<u64, StoreError> {
        self.shared.limits.check_name(table)?;
        let found = self.object(org, table, Kind::Table)?;
        let stored = found.map_or(0, |object| object.end);
        if let Some(expected) = expected.filter(|expected| *expected != stored) {
            return Err(StoreError::OutOfSequence { expected, stored });
        }
        let rows = CheckedRows::of_block(block, &self.shared.limits)?;
        self.append_checked(org, table, Some(stored), rows)
    }

    fn append_checked(&mut self, org: &OrgId, table: &ObjectName, expected: Option<u64>, rows: CheckedRows) -> Result<u64, StoreError> {
        self.shared.limits.check_name(table)?;
        let found = self.object(org, table, Kind::Table)?;
        let stored = found.map_or(0, |object| object.end);
        if let Some(expected) = expected.filter(|expected| *expected != stored) {
            return Err(StoreError::OutOfSequence { expected, stored });
        }
        self.spend(rows.held())?;
        if rows.count() > 0 {
            let mut object = found.map_or_else(|| self.new_object(), Ok)?;
            let (data, packing) = rows.packed();
            let plain = usize::try_from(rows.plain_len()).unwrap_or(usize::MAX);
            let owner = Owner { object: object.id, position: stored };
            let extent = self.stage(Some(owner), packing.into(), data, plain, rows.count())?;
            self.set(key::extent(object.id, stored), Some(extent.encode()));
            object.end = stored.saturating_add(u64::from(rows.count()));
            object.bytes = object.bytes.saturating_add(u64::from(extent.plain));
            self.set(key::object(org, table, Kind::Table), Some(object.encode()));
        }
        Ok(stored)
    }

    fn append_upload(&mut self, org: &OrgId, upload: &ObjectName, offset: u64, chunk: RowBlock) -> Result<(), StoreError> {
        self.shared.limits.check_name(upload)?;
        let plain = verified_bytes(&chunk, &self.shared.limits)?;
        self.spend(chunk.data.len())?;
        let found = self.object(org, upload, Kind::Upload)?;
        let replaced = found.filter(|object| object.complete && offset == 0);
        let continued = if replaced.is_some() { None } else { found };
        let end = continued.map_or(0, |object| object.end);
        let behind = offset.saturating_add(u64::try_from(plain.len()).unwrap_or(u64::MAX));
        let retransmitted = behind <= end;
        if offset != end && !retransmitted {
            return Err(StoreError::OutOfSequence { expected: offset, stored: end });
        }
        if let Some(replaced) = replaced {
            self.bury(&replaced);
        }
        if retransmitted && continued.is_some() {
            return Ok(());
        }
        let mut object = continued.map_or_else(|| self.new_object(), Ok)?;
        if !retransmitted {
            let extent = self.stage_delivered(Owner { object: object.id, position: offset }, &chunk, &plain, 0)?;
            self.set(key::extent(object.id, offset), Some(extent.encode()));
            object = Object { end: behind, bytes: behind, complete: false, ..object };
        }
        self.set(key::object(org, upload, Kind::Upload), Some(object.encode()));
        Ok(())
    }

    fn finish_upload(&mut self, org: &OrgId, upload: &ObjectName) -> Result<(), StoreError> {
        self.shared.limits.check_name(upload)?;
        let object = self.object(org, upload, Kind::Upload)?.map_or_else(|| self.new_object(), Ok)?;
        self.set(key::object(org, upload, Kind::Upload), Some(Object { complete: true, ..object }.encode()));
        Ok(())
    }

    fn delete_object(&mut self, org: &OrgId, object: &ObjectName) -> Result<(), StoreError> {
        for kind in Kind::ALL {
            if let Some(found) = self.object(org, object, kind)? {
                self.bury(&found);
                self.set(key::object(org, object, kind), None);
            }
        }
        Ok(())
    }
}

pub(super) fn table_info(object: Object) -> TableInfo {
    TableInfo { rows: object.end, bytes: object.bytes }
}

pub(super) fn upload_info(object: Object) -> UploadInfo {
    UploadInfo { bytes: object.end, complete: object.complete }
}
