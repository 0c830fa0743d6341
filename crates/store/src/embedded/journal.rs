//! The journal: what makes a group durable with one sync. Each record holds the changes of a group to the index, and its blocks unless those were synced
//! already; a checkpoint brings them to their places, and the journal begins anew.
//!
//! A file starts with `TALONJNL`, version, the store's identity, its generation and a checksum. A record is its length, a checksum, and the group.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::index::Changes;
use super::key::Fields;
use super::segment::{Files, Identity, SegmentFile};
use crate::StoreError;

const MAGIC: [u8; 8] = *b"TALONJNL";
const VERSION: u32 = 1;
const HEADER: usize = 40;
/// Length and checksum before a record.
const FRAME: usize = 8;

/// Blocks by segment and offset.
pub(super) type Blocks = BTreeMap<(u64, u64), Bytes>;

/// Writes records.
pub(super) struct Journal {
    folder: PathBuf,
    identity: Identity,
    files: Arc<dyn Files>,
    generation: u64,
    file: Option<Box<dyn SegmentFile>>,
    buffer: Vec<u8>,
    /// A record was not written whole, or its sync failed: no other may follow it in this file.
    broken: bool,
}

/// One group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) group: u64,
    pub(super) changes: Changes,
    pub(super) blocks: Blocks,
}

impl Journal {
    /// A journal whose files are newer than `generation`.
    pub(super) fn new(folder: PathBuf, identity: Identity, files: Arc<dyn Files>, generation: u64) -> Self {
        let generation = generation.saturating_add(1);
        Self { folder, identity, files, generation, file: None, buffer: Vec::new(), broken: false }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Writes a group and waits until it is durable. After a failure a checkpoint must come before the next.
    pub(super) fn append(&mut self, group: u64, changes: &Changes, blocks: &Blocks) -> Result<(), StoreError> {
        let written = self.write(group, changes, blocks);
        self.broken = written.is_err();
        written.map_err(|error| StoreError::io(&self.folder, &error))
    }

    fn write(&mut self, group: u64, changes: &Changes, blocks: &Blocks) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.extend_from_slice(&[0; FRAME]);
        encode(&mut self.buffer, group, changes, blocks);
        let body = self.buffer.get(FRAME..).unwrap_or_default();
        let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let frame = [length.to_le_bytes(), crc32fast::hash(body).to_le_bytes()].concat();
        if let Some(front) = self.buffer.get_mut(..FRAME) {
            front.copy_from_slice(&frame);
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut file = self.files.create(&path(&self.folder, self.generation))?;
                file.append(&header(&self.identity, self.generation))?;
                file.sync()?;
                self.files.sync_folder(&self.folder)?;
                none.insert(file)
            }
        };
        file.append(&self.buffer)?;
        file.sync()
    }

    /// Begins another file with the next record. Returns the generation of the last one; all up to it may be removed after a checkpoint.
    pub(super) fn rotate(&mut self) -> u64 {
        let last = self.generation;
        if self.file.take().is_some() || self.broken {
            self.generation = last.saturating_add(1);
        }
        self.broken = false;
        // One large group must not hold its memory for ever.
        self.buffer = Vec::new();
        last
    }

    /// Removes the files up to a generation, all of whose records a checkpoint has brought to their places.
    pub(super) fn remove(&self, generation: u64) {
        remove(&self.folder, generation.min(self.generation.saturating_sub(1)));
    }
}

fn path(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("{generation:016x}.jnl"))
}

fn header(identity: &Identity, generation: u64) -> Vec<u8> {
    let mut out = [&MAGIC[..], &VERSION.to_le_bytes(), identity, &generation.to_le_bytes()].concat();
    let sum = crc32fast::hash(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// The generations of the files in a folder, oldest first.
pub(super) fn generations(folder: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let hex = name.to_str().and_then(|name| name.strip_suffix(".jnl")).filter(|hex| hex.len() == 16);
        found.extend(hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()));
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn remove(folder: &Path, up_to: u64) {
    for generation in generations(folder).unwrap_or_default().into_iter().filter(|generation| *generation <= up_to) {
        if let Err(error) = std::fs::remove_file(path(folder, generation)) {
            tracing::warn!(generation, %error, "cannot delete a journal that is not needed any more");
        }
    }
}

/// The groups after `group` that the journals of a folder hold, in order.
///
/// A later file is right where two name the same group: the earlier record failed, and nobody was told that it was durable.
pub(super) fn groups_after(folder: &Path, identity: &Identity, group: u64) -> Result<Vec<Record>, StoreError> {
    let failed = |error: io::Error| StoreError::io(folder, &error);
    let mut found: BTreeMap<u64, Record> = BTreeMap::new();
    for generation in generations(folder).map_err(failed)? {
        let file = Bytes::from(std::fs::read(path(folder, generation)).map_err(failed)?);
        // The header is synced before the first record: without records it may be cut off.
        let Some((head, body)) = file.split_at_checked(HEADER).filter(|(_, body)| !body.is_empty()) else { continue };
        if head != header(identity, generation) {
            let place = path(folder, generation).display().to_string();
            return Err(StoreError::Damaged { place, detail: "the header is damaged, or of another store".into() });
        }
        for (at, record) in records(&file.slice_ref(body)).into_iter().enumerate() {
            if at == 0 {
                drop(found.split_off(&record.group));
            }
            found.insert(record.group, record);
        }
    }
    let mut next = group;
    let mut groups = Vec::new();
    for (number, record) in found {
        if number <= group {
            continue;
        }
        next = next.saturating_add(1);
        if number != next {
            let detail = format!("group {number} is there and group {next} before it is not");
            return Err(StoreError::Damaged { place: folder.display().to_string(), detail });
        }
        groups.push(record);
    }
    Ok(groups)
}

/// The records up to the first that is not whole.
fn records(body: &Bytes) -> Vec<Record> {
    let mut rest: &[u8] = body;
    let mut found = Vec::new();
    while let Some(record) = next(body, &mut rest) {
        found.push(record);
    }
    found
}

fn next(file: &Bytes, rest: &mut &[u8]) -> Option<Record> {
    let mut fields = Fields(rest);
    let (length, sum) = (usize::try_from(fields.u32()?).ok()?, fields.u32()?);
    let (body, behind) = fields.0.split_at_checked(length)?;
    let record = if sum == crc32fast::hash(body) { decode(file, body)? } else { return None };
    *rest = behind;
    Some(record)
}

fn encode(out: &mut Vec<u8>, group: u64, changes: &Changes, blocks: &Blocks) {
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&group.to_le_bytes());
    out.extend_from_slice(&count(blocks.len()));
    for ((segment, offset), block) in blocks {
        out.extend_from_slice(&segment.to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&count(block.len()));
        out.extend_from_slice(block);
    }
    out.extend_from_slice(&count(changes.len()));
    for (key, value) in changes {
        out.extend_from_slice(&count(key.len()));
        out.extend_from_slice(key);
        out.push(u8::from(value.is_some()));
        let value = value.as_deref().unwrap_or_default();
        out.extend_from_slice(&count(value.len()));
        out.extend_from_slice(value);
    }
}

fn decode(file: &Bytes, body: &[u8]) -> Option<Record> {
    let mut fields = Fields(body);
    let group = fields.u64()?;
    let mut blocks = Blocks::new();
    for _ in 0..fields.u32()? {
        let place = (fields.u64()?, fields.u64()?);
        blocks.insert(place, file.slice_ref(counted(&mut fields)?));
    }
    let mut changes = Changes::new();
    for _ in 0..fields.u32()? {
        let key = counted(&mut fields)?.to_vec();
        let [present] = fields.array()?;
        let value = counted(&mut fields)?.to_vec();
        changes.insert(key, (present == 1).then_some(value));
    }
    fields.0.is_empty().then_some(Record { group, changes, blocks })
}

fn counted<'a>(fields: &mut Fields<'a>) -> Option<&'a [u8]> {
    let length = usize::try_from(fields.u32()?).ok()?;
    let (bytes, rest) = fields.0.split_at_checked(length)?;
    fields.0 = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::segment::LocalFiles;

    fn changes(number: u64) -> Changes {
        [(b"a".to_vec(), Some(number.to_be_bytes().to_vec())), (b"b".to_vec(), None)].into()
    }

    fn blocks() -> Blocks {
        [((1, 40), Bytes::from_static(b"block"))].into()
    }

    fn journal(folder: &Path, generation: u64) -> Journal {
        Journal::new(folder.to_owned(), [7; 16], Arc::new(LocalFiles), generation)
    }

    fn groups(folder: &Path, after: u64) -> Vec<u64> {
        groups_after(folder, &[7; 16], after).unwrap().into_iter().map(|record| record.group).collect()
    }

    #[test]
    fn records_come_back_up_to_the_first_that_is_cut_or_changed() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = journal(folder.path(), 0);
        for group in 5..8 {
            journal.append(group, &changes(group), &blocks()).unwrap();
        }
        let found = groups_after(folder.path(), &[7; 16], 4).unwrap();
        assert_eq!(found[1], Record { group: 6, changes: changes(6), blocks: blocks() });
        assert_eq!((groups(folder.path(), 4), groups(folder.path(), 6)), (vec![5, 6, 7], vec![7]));
        assert!(groups_after(folder.path(), &[7; 16], 3).is_err(), "group 4 is missing");
        let path = path(folder.path(), 1);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            std::fs::write(&path, &whole[..at]).unwrap();
            let cut = groups(folder.path(), 4);
            assert!(cut.len() < 3 && cut == [5, 6, 7][..cut.len()], "cut at {at}");
            let mut changed = whole.clone();
            changed[at] ^= 0x40;
            std::fs::write(&path, &changed).unwrap();
            let found = groups_after(folder.path(), &[7; 16], 4);
            assert!(found.map_or(at < HEADER, |found| found.len() < 3), "changed at {at}");
        }
    }

    #[test]
    fn a_later_file_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = journal(folder.path(), 0);
        for group in 1..5 {
            journal.append(group, &changes(0), &blocks()).unwrap();
        }
        let last = journal.rotate();
        journal.append(3, &changes(9), &Blocks::new()).unwrap();
        let found = groups_after(folder.path(), &[7; 16], 0).unwrap();
        assert_eq!(found.iter().map(|record| record.group).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(found[2].changes, changes(9));
        journal.remove(last);
        assert_eq!(groups(folder.path(), 2), [3]);
        journal.remove(u64::MAX);
        assert_eq!(groups(folder.path(), 2), [3], "the file that is written stays");
    }
}
