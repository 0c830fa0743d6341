//! What is stored, read through the index: records, tables and uploads of the committed state or of a transaction.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use talon_ids::OrgId;

use super::key::{self, Extent, KeyRange, Kind, Layout as _, Object};
use super::segment::Owner;
use super::{MAX_BLOCK, Shared};
use crate::{ObjectName, Record, Scan, Space, StoreError};

/// Entries that are read from the index at once.
const STEP: usize = 1024;
/// Extents that a table's reader fetches at once.
const EXTENTS: usize = 64;

const INLINE: u8 = 0;
const APART: u8 = 1;

/// The entries of the index and the blocks they point to, as of the committed state or of a transaction.
pub(super) trait View {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// At most `limit` entries of the range.
    fn entries(&self, range: &KeyRange, reverse: bool, limit: usize) -> Result<Vec<Record>, StoreError>;

    /// The plain bytes of a block.
    fn block(&self, extent: &Extent, owner: Owner) -> Result<Bytes, StoreError>;

    /// Calls `each` for every entry of the range until it says `false`.
    fn walk(
        &self,
        mut range: KeyRange,
        reverse: bool,
        mut each: impl FnMut(Vec<u8>, Vec<u8>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        loop {
            let entries = self.entries(&range, reverse, STEP)?;
            let last = entries.len() < STEP;
            if let Some((key, _)) = entries.last() {
                if reverse {
                    range.to.clone_from(key);
                } else {
                    range.from = [key.as_slice(), &[0]].concat();
                }
            }
            for (key, value) in entries {
                if !each(key, value)? {
                    return Ok(());
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    fn layout<T: key::Layout>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.value(key)?.map(|value| T::decode(key, &value)).transpose()
    }

    fn object(&self, org: &OrgId, name: &ObjectName, kind: Kind) -> Result<Option<Object>, StoreError> {
        self.layout(&key::object(org, name, kind))
    }

    fn record(&self, org: &OrgId, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let key = key::record(org, space, key);
        self.value(&key)?.map(|value| self.record_value(&key, value)).transpose().map(Option::flatten)
    }

    /// A record's value, from the segment if it lies there; `None` if the record was deleted meanwhile.
    fn record_value(&self, key: &[u8], mut value: Vec<u8>) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            let extent = match parse_record(key, &value)? {
                Stored::Inline(content) => return Ok(Some(content.to_vec())),
                Stored::Apart(extent) => extent,
            };
            match self.block(&extent, apart(&extent)) {
                Ok(plain) => return Ok(Some(plain.to_vec())),
                // Replaced and reaped since the entry was read?
                Err(error) => match self.value(key)? {
                    None => return Ok(None),
                    Some(now) if now == value => return Err(error),
                    Some(now) => value = now,
                },
            }
        }
    }

    fn records(&self, org: &OrgId, space: Space, scan: &Scan) -> Result<Vec<Record>, StoreError> {
        let prefix = key::record_prefix(org, space);
        let mut range = KeyRange::of_prefix([prefix.as_slice(), &scan.prefix].concat());
        if let Some(after) = &scan.after {
            let bound = [prefix.as_slice(), after].concat();
            if scan.reverse {
                range.to = range.to.min(bound);
            } else {
                range.from = range.from.max([bound.as_slice(), &[0]].concat());
            }
        }
        let limit = if scan.limit == 0 { usize::MAX } else { scan.limit };
        let mut found = Vec::new();
        if limit < STEP {
            for (key, value) in self.entries(&range, scan.reverse, limit)? {
                self.push_record(&mut found, prefix.len(), &key, value)?;
            }
            return Ok(found);
        }
        self.walk(range, scan.reverse, |key, value| {
            self.push_record(&mut found, prefix.len(), &key, value)?;
            Ok(found.len() < limit)
        })?;
        Ok(found)
    }

    fn push_record(&self, found: &mut Vec<Record>, prefix: usize, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        if let Some(value) = self.record_value(key, value)? {
            found.push((key.get(prefix..).unwrap_or_default().to_vec(), value));
        }
        Ok(())
    }

    fn names(&self, org: &OrgId, prefix: &ObjectName) -> Result<Vec<ObjectName>, StoreError> {
        let mut names = Vec::new();
        self.walk(KeyRange::of_prefix(key::object_prefix(org, prefix)), false, |key, _| {
            let (_, name, _) = key::parse_object(&key).ok_or_else(|| key::damaged(&key, "not the key of an object"))?;
            if names.last() != Some(&name) {
                names.push(name);
            }
            Ok(true)
        })?;
        Ok(names)
    }

    fn owners(&self) -> Result<Vec<OrgId>, StoreError> {
        let mut orgs = Vec::new();
        for tag in [key::RECORD, key::OBJECT] {
            let mut range = KeyRange::of_prefix(vec![tag]);
            while let Some((key, _)) = self.entries(&range, false, 1)?.pop() {
                let org = key::org_of(&key).ok_or_else(|| key::damaged(&key, "the key has no organisation"))?;
                range.from = key::behind_org(tag, &org);
                orgs.push(org);
            }
        }
        orgs.sort();
        orgs.dedup();
        Ok(orgs)
    }

    /// The position of the extent that holds row or byte `at`.
    fn extent_start(&self, object: u64, at: u64) -> Result<u64, StoreError> {
        let range = KeyRange { from: key::extent(object, 0), to: [key::extent(object, at).as_slice(), &[0]].concat() };
        match self.entries(&range, true, 1)?.first() {
            Some((key, _)) => key::position_of(key),
            None => Err(key::damaged(&key::extent(object, at), "no extent starts here or before")),
        }
    }

    fn upload_bytes(&self, org: &OrgId, name: &ObjectName, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let Some(object) = self.object(org, name, Kind::Upload)? else { return Ok(Bytes::new()) };
        let rest = usize::try_from(object.end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = len.min(rest).min(MAX_BLOCK);
        let mut out = BytesMut::new();
        while out.len() < wanted {
            let at = offset.saturating_add(u64::try_from(out.len()).unwrap_or(u64::MAX));
            let chunk = match self.chunk_at(object.id, at) {
                Ok(chunk) => chunk,
                Err(error) => {
                    let now = self.object(org, name, Kind::Upload)?;
                    return Err(if now.is_some_and(|now| now.id == object.id) { error } else { StoreError::Gone });
                }
            };
            let missing = wanted.saturating_sub(out.len());
            if out.is_empty() && chunk.len() >= missing {
                return Ok(chunk.slice(..missing));
            }
            out.extend_from_slice(chunk.get(..missing).unwrap_or(&chunk));
        }
        Ok(out.freeze())
    }

    /// What the chunk around byte `at` holds from there on; never empty.
    fn chunk_at(&self, object: u64, at: u64) -> Result<Bytes, StoreError> {
        let position = self.extent_start(object, at)?;
        let key = key::extent(object, position);
        let extent: Extent = self.layout(&key)?.ok_or(StoreError::Gone)?;
        let chunk = self.block(&extent, Owner { object, position })?;
        match usize::try_from(at.saturating_sub(position)) {
            Ok(skip) if skip < chunk.len() => Ok(chunk.slice(skip..)),
            _ => Err(key::damaged(&key, "the upload has a gap behind this chunk")),
        }
    }
}

impl View for Shared {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.index.get(key)
    }

    fn entries(&self, range: &KeyRange, reverse: bool, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.index.entries(range, reverse, limit)
    }

    fn block(&self, extent: &Extent, owner: Owner) -> Result<Bytes, StoreError> {
        self.segments.read(extent, owner)
    }
}

/// Where a record's value is.
pub(super) enum Stored<'a> {
    Inline(&'a [u8]),
    Apart(Extent),
}

pub(super) fn parse_record<'a>(key: &[u8], value: &'a [u8]) -> Result<Stored<'a>, StoreError> {
    match value.split_first() {
        Some((&INLINE, content)) => Ok(Stored::Inline(content)),
        Some((&APART, content)) => Ok(Stored::Apart(<Extent as key::Layout>::decode(key, content)?)),
        _ => Err(key::damaged(key, "the record has no form")),
    }
}

pub(super) fn inline_record(value: &[u8]) -> Vec<u8> {
    [&[INLINE], value].concat()
}

pub(super) fn apart_record(extent: &Extent) -> Vec<u8> {
    [&[APART], extent.encode().as_slice()].concat()
}

/// The owner of a record's value that lies in a segment.
pub(super) fn apart(extent: &Extent) -> Owner {
    Owner { object: 0, position: extent.offset }
}

/// Blocks of a table from the extent at `next` to row `until`, as they were when the reader was made.
pub(super) struct CommittedBlocks {
    shared: Arc<Shared>,
    object: u64,
    next: u64,
    until: u64,
    fetched: VecDeque<Record>,
}

impl CommittedBlocks {
    pub(super) fn new(shared: Arc<Shared>, object: u64, next: u64, until: u64) -> Self {
        Self { shared, object, next, until, fetched: VecDeque::new() }
    }

    fn fetch(&mut self) -> Result<(), StoreError> {
        let range = KeyRange { from: key::extent(self.object, self.next), to: key::extent(self.object, self.until) };
        self.fetched = self.shared.entries(&range, false, EXTENTS)?.into();
        if self.fetched.is_empty() { Err(StoreError::Gone) } else { Ok(()) }
    }

    fn read(&mut self, key: &[u8], value: &[u8]) -> Result<(u64, Bytes), StoreError> {
        let position = key::position_of(key)?;
        if position != self.next {
            return Err(key::damaged(&key::extent(self.object, self.next), "rows are missing"));
        }
        let extent = <Extent as key::Layout>::decode(key, value)?;
        self.next = position.saturating_add(u64::from(extent.rows));
        match self.shared.block(&extent, Owner { object: self.object, position }) {
            Ok(plain) => Ok((position, plain)),
            Err(error) => Err(if self.shared.value(key)?.is_some() { error } else { StoreError::Gone }),
        }
    }
}

impl Iterator for CommittedBlocks {
    type Item = Result<(u64, Bytes), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.until {
            return None;
        }
        if self.fetched.is_empty()
            && let Err(error) = self.fetch()
        {
            self.next = self.until;
            return Some(Err(error));
        }
        let (key, value) = self.fetched.pop_front()?;
        let before = self.next;
        let result = self.read(&key, &value);
        if self.next == before {
            self.next = self.until;
        }
        Some(result)
    }
}
