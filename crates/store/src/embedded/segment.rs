//! Segment files: append-only sequences of checksummed blocks, and the seam through which they are written.
//!
//! A file starts with `TALONSEG`, version, the store's identity, its own id and a checksum. A block is a header of 40 bytes and its data;
//! the checksum covers both. Numbers are little-endian.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::key::{Extent, Fields, Layout};
use crate::rows::Packing;
use crate::{StoreError, block};

/// Bytes before the first block.
pub(super) const HEADER: u64 = 40;
/// Bytes before the data of a block.
pub(super) const BLOCK_HEADER: usize = 40;

const MAGIC: [u8; 8] = *b"TALONSEG";
const BLOCK_MAGIC: [u8; 4] = *b"TBLK";
const VERSION: u32 = 1;
const OPEN_FILES: usize = 128;

/// Identifies a store in the headers of its files.
pub(super) type Identity = [u8; 16];

/// How segment files are written; tests put faults behind it.
pub(crate) trait Files: Send + Sync {
    /// An empty file, whatever was there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;
    /// The file cut to `len` bytes, to be continued there.
    fn resume(&self, path: &Path, len: u64) -> io::Result<Box<dyn SegmentFile>>;
    /// Makes what was appended to a file durable, whoever has it open.
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    /// Makes names in a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Bytes that are free for writing, if that is known.
    fn free(&self, folder: &Path) -> Option<u64>;
}

/// A segment file open for writing.
pub(crate) trait SegmentFile: Send {
    fn append(&mut self, data: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

/// Files of the file system.
pub(crate) struct LocalFiles;

impl Files for LocalFiles {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(File::create(path)?))
    }

    fn resume(&self, path: &Path, len: u64) -> io::Result<Box<dyn SegmentFile>> {
        let file = File::options().append(true).open(path)?;
        if file.metadata()?.len() < len {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the segment is shorter than what was committed"));
        }
        file.set_len(len)?;
        Ok(Box::new(file))
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        File::options().append(true).open(path)?.sync_data()
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    }

    #[cfg(unix)]
    fn free(&self, folder: &Path) -> Option<u64> {
        let found = rustix::fs::statvfs(folder).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }

    #[cfg(not(unix))]
    fn free(&self, _folder: &Path) -> Option<u64> {
        None
    }
}

impl SegmentFile for File {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.write_all(data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// How the data of a block is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    None,
    Zlib,
    Lz4,
}

impl Codec {
    fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Zlib => 1,
            Self::Lz4 => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::None, Self::Zlib, Self::Lz4].into_iter().find(|codec| codec.code() == code)
    }
}

impl From<Packing> for Codec {
    fn from(packing: Packing) -> Self {
        match packing {
            Packing::None => Self::None,
            Packing::Zlib => Self::Zlib,
            Packing::Lz4 => Self::Lz4,
        }
    }
}

/// A block's place in its object: what the index and the block's own header must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) object: u64,
    pub(super) position: u64,
}

/// A block with its header, as it is written.
pub(super) fn encode_block(owner: Owner, codec: Codec, data: &[u8], plain: u32, rows: u32) -> Result<(u32, Bytes), StoreError> {
    let stored = u32::try_from(data.len()).map_err(|_| StoreError::Invalid("a block is longer than 4 GiB".into()))?;
    let mut out = BlockHeader { codec, rows, stored, plain, owner }.encode();
    out.reserve_exact(data.len().saturating_add(4));
    let sum = block_sum(&out, data);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(data);
    Ok((stored, Bytes::from(out)))
}

/// The plain bytes of a block, when it is what the index says.
pub(super) fn decode_block(raw: &Bytes, extent: &Extent, owner: Owner) -> Result<Bytes, String> {
    let (header, data) = raw.split_at_checked(BLOCK_HEADER).ok_or("the block is cut off")?;
    let (covered, sum) = header.split_at_checked(BLOCK_HEADER.saturating_sub(4)).ok_or("the block is cut off")?;
    if sum != block_sum(covered, data).to_le_bytes() {
        return Err("the checksum does not match".into());
    }
    let header = BlockHeader::decode(b"", covered).map_err(|_| "the header has another layout")?;
    let expected = BlockHeader { codec: header.codec, rows: extent.rows, stored: extent.stored, plain: extent.plain, owner };
    if header != expected || data.len() != usize::try_from(extent.stored).unwrap_or(usize::MAX) {
        return Err("the block belongs elsewhere".into());
    }
    let data = raw.slice(BLOCK_HEADER..);
    let plain = usize::try_from(extent.plain).unwrap_or(usize::MAX);
    match header.codec {
        Codec::None if data.len() == plain => Ok(data),
        Codec::None => Err("the block has another length than it claims".into()),
        Codec::Zlib => block::inflate(&data, plain).map(Bytes::from),
        // lz4 cannot shrink data more than so, and the room is made before the data is looked at.
        Codec::Lz4 if plain > data.len().saturating_mul(255).saturating_add(64) => Err("the lz4 block claims too much".into()),
        Codec::Lz4 => match lz4_flex::block::decompress(&data, plain) {
            Ok(out) if out.len() == plain => Ok(out.into()),
            _ => Err("the lz4 block is broken".into()),
        },
    }
}

fn block_sum(header: &[u8], data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(data);
    hasher.finalize()
}

#[derive(Debug, PartialEq, Eq)]
struct BlockHeader {
    codec: Codec,
    rows: u32,
    stored: u32,
    plain: u32,
    owner: Owner,
}

impl Layout for BlockHeader {
    fn encode(&self) -> Vec<u8> {
        let mut out = [&BLOCK_MAGIC[..], &[self.codec.code(), 0, 0, 0]].concat();
        for number in [self.rows, self.stored, self.plain] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.owner.object.to_le_bytes());
        out.extend_from_slice(&self.owner.position.to_le_bytes());
        out
    }

    fn take(fields: &mut Fields<'_>) -> Option<Self> {
        let (magic, [codec, 0, 0, 0]) = (fields.array::<4>()?, fields.array()?) else { return None };
        let (rows, stored, plain) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let owner = Owner { object: fields.u64()?, position: fields.u64()? };
        (magic == BLOCK_MAGIC).then_some(Self { codec: Codec::from_code(codec)?, rows, stored, plain, owner })
    }
}

/// The header of a segment file.
pub(super) fn file_header(identity: &Identity, id: u64) -> Vec<u8> {
    let mut out = [&MAGIC[..], &VERSION.to_le_bytes(), identity, &id.to_le_bytes()].concat();
    let sum = crc32fast::hash(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// A block as a segment file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentBlock {
    /// The number that the index knows the table or upload by; 0 for the value of a record.
    pub object: u64,
    /// The first row of a table, or the first byte of an upload.
    pub position: u64,
    /// Rows in the block; 0 if it is not of a table.
    pub rows: u32,
    /// Rows or bytes, decompressed.
    pub data: Bytes,
}

/// What is in a segment file, read without the index: what can be had when the index is lost. It ends behind the first block whose length
/// cannot be known.
///
/// # Errors
/// [`StoreError::Damaged`] when it is not a segment file.
pub fn segment_blocks(file: Bytes) -> Result<impl Iterator<Item = Result<SegmentBlock, StoreError>>, StoreError> {
    const SUM: usize = 36;
    let damaged = |offset: usize, detail: String| StoreError::Damaged { place: format!("segment at {offset}"), detail };
    let (head, rest) = file.split_at_checked(BLOCK_HEADER).ok_or_else(|| damaged(0, "too short".into()))?;
    let (covered, sum) = head.split_at_checked(SUM).ok_or_else(|| damaged(0, "too short".into()))?;
    if !covered.starts_with(&MAGIC) || sum != crc32fast::hash(covered).to_le_bytes() {
        return Err(damaged(0, "the header is damaged, or of another kind of file".into()));
    }
    let mut rest = file.slice_ref(rest);
    Ok(std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let offset = file.len().saturating_sub(rest.len());
        let header = rest.get(..SUM).and_then(|covered| BlockHeader::take(&mut Fields(covered)));
        let end = header.as_ref().and_then(|header| usize::try_from(header.stored).ok()?.checked_add(BLOCK_HEADER));
        let (Some(header), Some(end)) = (header, end.filter(|end| *end <= rest.len())) else {
            rest.clear();
            return Some(Err(damaged(offset, "no whole block is here".into())));
        };
        let block = rest.split_to(end);
        let extent = Extent { segment: 0, offset: 0, stored: header.stored, plain: header.plain, rows: header.rows };
        Some(match decode_block(&block, &extent, header.owner) {
            Ok(data) => Ok(SegmentBlock { object: header.owner.object, position: header.owner.position, rows: header.rows, data }),
            Err(detail) => Err(damaged(offset, detail)),
        })
    }))
}

/// The segment files of a store, for reading.
pub(super) struct Segments {
    folder: PathBuf,
    identity: Identity,
    open: Mutex<BTreeMap<u64, Arc<File>>>,
}

impl Segments {
    pub(super) fn new(folder: PathBuf, identity: Identity) -> Self {
        Self { folder, identity, open: Mutex::default() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn path(&self, id: u64) -> PathBuf {
        self.folder.join(format!("{id:016x}.seg"))
    }

    /// Ids of the segment files that exist.
    pub(super) fn ids(folder: &Path) -> io::Result<Vec<u64>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let name = entry?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".seg")).filter(|hex| hex.len() == 16);
            ids.extend(hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reads and verifies one block.
    pub(super) fn read(&self, extent: &Extent, owner: Owner) -> Result<Bytes, StoreError> {
        let raw = self.read_raw(extent).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.damaged(extent, "the segment is missing"),
            io::ErrorKind::UnexpectedEof => self.damaged(extent, "the segment ends before the block does"),
            io::ErrorKind::InvalidData => self.damaged(extent, error.to_string()),
            _ => StoreError::io(&self.path(extent.segment), &error),
        })?;
        decode_block(&raw, extent, owner).map_err(|detail| self.damaged(extent, detail))
    }

    fn damaged(&self, extent: &Extent, detail: impl Into<String>) -> StoreError {
        StoreError::Damaged { place: format!("{} at {}", self.path(extent.segment).display(), extent.offset), detail: detail.into() }
    }

    fn read_raw(&self, extent: &Extent) -> io::Result<Bytes> {
        let file = self.file(extent.segment)?;
        let len = usize::try_from(extent.stored).ok().and_then(|stored| stored.checked_add(BLOCK_HEADER));
        let len = len.filter(|len| *len <= super::MAX_BLOCK.saturating_add(BLOCK_HEADER));
        let mut raw = vec![0; len.ok_or(io::ErrorKind::UnexpectedEof)?];
        read_exact_at(&file, &mut raw, extent.offset)?;
        Ok(raw.into())
    }

    fn file(&self, id: u64) -> io::Result<Arc<File>> {
        if let Some(file) = self.cache().get(&id) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(self.path(id))?);
        let mut header = [0; 40];
        read_exact_at(&file, &mut header, 0)?;
        if header != *file_header(&self.identity, id) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the segment's header is damaged or of another store"));
        }
        let mut cache = self.cache();
        if cache.len() >= OPEN_FILES {
            cache.pop_first();
        }
        cache.insert(id, file.clone());
        Ok(file)
    }

    /// Puts a block where it was before a crash.
    pub(super) fn restore(&self, id: u64, offset: u64, block: &[u8]) -> Result<(), StoreError> {
        let path = self.path(id);
        let put = || -> io::Result<()> {
            let mut file = File::options().create(true).truncate(false).write(true).open(&path)?;
            if offset == HEADER {
                file.write_all(&file_header(&self.identity, id))?;
            }
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(block)
        };
        put().map_err(|error| StoreError::io(&path, &error))
    }

    /// Deletes a segment that nothing refers to. If that fails it is tried again when the store is opened.
    pub(super) fn remove(&self, id: u64) {
        self.cache().remove(&id);
        if let Err(error) = std::fs::remove_file(self.path(id)) {
            tracing::warn!(segment = id, %error, "cannot delete a segment that nothing refers to");
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let (mut buffer, mut offset) = (buffer, offset);
    while !buffer.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        buffer = buffer.get_mut(read..).unwrap_or_default();
    }
    Ok(())
}
