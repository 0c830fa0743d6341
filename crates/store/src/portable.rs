//! Everything in a store as one stream that any engine can take in: the way from one engine to another, and a backup.
//!
//! The stream is a sequence of JSON lines. A line that says `len` is followed by so many bytes and a newline. The last line has the number
//! of lines before it and their CRC-32, so that a stream that was cut or changed is told from a whole one.

use std::io::{BufRead, Read as _, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use talon_ids::OrgId;

use crate::{BlockEncoding, Engine, ObjectName, Reader, RowBlock, Scan, Space, StoreError, Txn};

const VERSION: u32 = 1;
/// The longest line: the longest name with every character escaped.
const MAX_LINE: u64 = 1 << 20;
/// The longest data behind a line.
const MAX_DATA: u64 = 1 << 30;
/// Records that are read at once.
const RECORDS: usize = 1024;
/// Bytes of an upload that are read at once.
const CHUNK: usize = 4 << 20;
/// Bytes that are imported in one transaction, about.
const BATCH: usize = 8 << 20;

/// What was exported or imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Totals {
    /// Records.
    pub records: u64,
    /// Rows of tables.
    pub rows: u64,
    /// Uploads.
    pub uploads: u64,
    /// Bytes of values, rows and uploads.
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// The first line.
    TalonExport { version: u32 },
    /// The value follows.
    Record { org: String, space: String, key: String, len: u64 },
    /// Rows follow, the first of which has this index.
    Rows { org: String, table: Vec<String>, first: u64, count: u32, len: u64 },
    /// Bytes follow.
    Chunk { org: String, upload: Vec<String>, offset: u64, len: u64 },
    /// Behind the chunks of an upload.
    Upload { org: String, upload: Vec<String>, complete: bool },
    /// The last line.
    End { lines: u64, crc32: u32 },
}

impl Line {
    fn len(&self) -> u64 {
        match self {
            Self::Record { len, .. } | Self::Rows { len, .. } | Self::Chunk { len, .. } => *len,
            Self::TalonExport { .. } | Self::Upload { .. } | Self::End { .. } => 0,
        }
    }
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Writes everything that `reader` has. Nothing should be written to the store meanwhile.
///
/// # Errors
/// When the store cannot be read or `out` cannot be written.
pub fn export(reader: &dyn Reader, out: &mut dyn Write) -> Result<Totals, StoreError> {
    let mut stream = Exporter { out, hasher: crc32fast::Hasher::new(), lines: 0, totals: Totals::default() };
    stream.line(&Line::TalonExport { version: VERSION }, &[])?;
    for org in reader.orgs()? {
        for space in Space::ALL {
            stream.records(reader, &org, space)?;
        }
        for name in reader.objects(&org, &ObjectName::new([""; 0]))? {
            stream.table(reader, &org, &name)?;
            stream.upload(reader, &org, &name)?;
        }
    }
    let end = Line::End { lines: stream.lines, crc32: stream.hasher.clone().finalize() };
    stream.line(&end, &[])?;
    stream.out.flush().map_err(unwritable)?;
    Ok(stream.totals)
}

struct Exporter<'a> {
    out: &'a mut dyn Write,
    hasher: crc32fast::Hasher,
    lines: u64,
    totals: Totals,
}

impl Exporter<'_> {
    fn line(&mut self, line: &Line, data: &[u8]) -> Result<(), StoreError> {
        let mut text = serde_json::to_vec(line).map_err(unwritable)?;
        text.push(b'\n');
        self.write(&text)?;
        if line.len() > 0 {
            self.write(data)?;
            self.write(b"\n")?;
        }
        self.lines = self.lines.saturating_add(1);
        self.totals.bytes = self.totals.bytes.saturating_add(line.len());
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(unwritable)
    }

    fn records(&mut self, reader: &dyn Reader, org: &OrgId, space: Space) -> Result<(), StoreError> {
        let mut scan = Scan { limit: RECORDS, ..Scan::default() };
        loop {
            let records = reader.scan(org, space, &scan)?;
            let Some((last, _)) = records.last() else { return Ok(()) };
            scan.after = Some(last.clone());
            for (key, value) in records {
                let (org, space) = (org.to_string(), space.name().to_owned());
                self.line(&Line::Record { org, space, key: BASE64.encode(key), len: count(value.len()) }, &value)?;
                self.totals.records = self.totals.records.saturating_add(1);
            }
        }
    }

    fn table(&mut self, reader: &dyn Reader, org: &OrgId, name: &ObjectName) -> Result<(), StoreError> {
        for block in reader.rows(org, name, 0)? {
            let (first, plain) = block?;
            let rows = count(plain.iter().filter(|byte| **byte == b'\n').count());
            let short = u32::try_from(rows).map_err(|_| StoreError::Invalid("a block has more rows than a block may have".into()))?;
            let (org, table) = (org.to_string(), name.components().to_vec());
            self.line(&Line::Rows { org, table, first, count: short, len: count(plain.len()) }, &plain)?;
            self.totals.rows = self.totals.rows.saturating_add(rows);
        }
        Ok(())
    }

    fn upload(&mut self, reader: &dyn Reader, org: &OrgId, name: &ObjectName) -> Result<(), StoreError> {
        let Some(info) = reader.upload(org, name)? else { return Ok(()) };
        let mut offset = 0;
        while offset < info.bytes {
            let chunk = reader.read_upload(org, name, offset, CHUNK)?;
            if chunk.is_empty() {
                return Err(StoreError::Gone);
            }
            let (org, upload) = (org.to_string(), name.components().to_vec());
            self.line(&Line::Chunk { org, upload, offset, len: count(chunk.len()) }, &chunk)?;
            offset = offset.saturating_add(count(chunk.len()));
        }
        self.totals.uploads = self.totals.uploads.saturating_add(1);
        self.line(&Line::Upload { org: org.to_string(), upload: name.components().to_vec(), complete: info.complete }, &[])
    }
}

fn unwritable(error: impl std::fmt::Display) -> StoreError {
    StoreError::Io(format!("cannot write the export: {error}"))
}

/// Takes in what [`export`] wrote. The store must be empty; after an error it holds a part and is to be thrown away.
///
/// # Errors
/// [`StoreError::Refused`] when the store is not empty, [`StoreError::Damaged`] when the stream is not whole, or when the store cannot be
/// written.
pub fn import(engine: &dyn Engine, input: &mut dyn BufRead) -> Result<Totals, StoreError> {
    if !engine.reader().orgs()?.is_empty() {
        return Err(StoreError::Refused("an import needs an empty store, and this one holds data".into()));
    }
    let mut stream = Importer { input, hasher: crc32fast::Hasher::new(), lines: 0 };
    match stream.next()? {
        (Line::TalonExport { version: VERSION }, _) => {}
        (Line::TalonExport { version }, _) => {
            return Err(StoreError::Refused(format!("the export has version {version}, this program reads version {VERSION}")));
        }
        _ => return Err(stream.damaged("it does not start as an export does")),
    }
    let mut totals = Totals::default();
    let mut batch = Vec::new();
    let mut waiting = 0_usize;
    loop {
        let (before, sum) = (stream.lines, stream.hasher.clone().finalize());
        let (line, data) = stream.next()?;
        if let Line::End { lines, crc32 } = line {
            if (lines, crc32) != (before, sum) {
                return Err(stream.damaged("the checksum at its end does not match"));
            }
            match stream.input.fill_buf().map(<[u8]>::is_empty) {
                Ok(true) => {}
                Ok(false) => return Err(stream.damaged("something follows its end")),
                Err(error) => return Err(stream.damaged(&error.to_string())),
            }
            store(engine, batch)?;
            return Ok(totals);
        }
        waiting = waiting.saturating_add(data.len()).saturating_add(256);
        totals.bytes = totals.bytes.saturating_add(count(data.len()));
        batch.push(stream.step(line, data, &mut totals)?);
        if waiting >= BATCH {
            waiting = 0;
            store(engine, std::mem::take(&mut batch))?;
        }
    }
}

fn store(engine: &dyn Engine, steps: Vec<Step>) -> Result<(), StoreError> {
    engine.submit(Box::new(move |txn| steps.into_iter().try_for_each(|step| step.run(txn)))).wait()
}

enum Step {
    Record(OrgId, Space, Vec<u8>, Bytes),
    Rows(OrgId, ObjectName, u64, RowBlock),
    Chunk(OrgId, ObjectName, u64, RowBlock),
    Upload(OrgId, ObjectName, bool),
}

impl Step {
    fn run(self, txn: &mut dyn Txn) -> Result<(), StoreError> {
        match self {
            Self::Record(org, space, key, value) => {
                txn.put(&org, space, &key, value.into());
                Ok(())
            }
            Self::Rows(org, table, first, block) => txn.append_rows(&org, &table, Some(first), block).map(drop),
            Self::Chunk(org, upload, offset, chunk) => txn.append_upload(&org, &upload, offset, chunk),
            Self::Upload(org, upload, true) => txn.finish_upload(&org, &upload),
            Self::Upload(org, upload, false) => {
                let empty = RowBlock { data: Bytes::new(), count: 0, plain_len: 0, encoding: BlockEncoding::Plain };
                txn.append_upload(&org, &upload, 0, empty)
            }
        }
    }
}

struct Importer<'a> {
    input: &'a mut dyn BufRead,
    hasher: crc32fast::Hasher,
    lines: u64,
}

impl Importer<'_> {
    /// A line and the data behind it.
    fn next(&mut self) -> Result<(Line, Bytes), StoreError> {
        let mut text = Vec::new();
        let read = (&mut *self.input).take(MAX_LINE).read_until(b'\n', &mut text);
        read.map_err(|error| self.damaged(&error.to_string()))?;
        if text.last() != Some(&b'\n') {
            return Err(self.damaged(if text.is_empty() { "it ends too early" } else { "a line is cut off or too long" }));
        }
        let line: Line = serde_json::from_slice(&text).map_err(|error| self.damaged(&error.to_string()))?;
        self.hasher.update(&text);
        let len = line.len();
        let mut data = Vec::new();
        if len > 0 {
            let whole = len.min(MAX_DATA).saturating_add(1);
            let read = (&mut *self.input).take(whole).read_to_end(&mut data);
            read.map_err(|error| self.damaged(&error.to_string()))?;
            self.hasher.update(&data);
            if data.pop() != Some(b'\n') || count(data.len()) != len {
                return Err(self.damaged("the data of a line is cut off or has another length"));
            }
        }
        self.lines = self.lines.saturating_add(1);
        Ok((line, data.into()))
    }

    fn damaged(&self, detail: &str) -> StoreError {
        StoreError::Damaged { place: format!("the export behind line {}", self.lines), detail: detail.to_owned() }
    }

    fn org(&self, text: &str) -> Result<OrgId, StoreError> {
        text.parse().map_err(|error: talon_ids::InvalidId| self.damaged(&error.to_string()))
    }

    fn step(&self, line: Line, data: Bytes, totals: &mut Totals) -> Result<Step, StoreError> {
        let plain_len = count(data.len());
        let block = |count| RowBlock { data: data.clone(), count, plain_len, encoding: BlockEncoding::Plain };
        match line {
            Line::Record { org, space, key, .. } => {
                let space = Space::from_name(&space).ok_or_else(|| self.damaged("a record is of an unknown family"))?;
                let key = BASE64.decode(key).map_err(|error| self.damaged(&error.to_string()))?;
                totals.records = totals.records.saturating_add(1);
                Ok(Step::Record(self.org(&org)?, space, key, data))
            }
            Line::Rows { org, table, first, count, .. } => {
                totals.rows = totals.rows.saturating_add(u64::from(count));
                Ok(Step::Rows(self.org(&org)?, ObjectName::new(table), first, block(count)))
            }
            Line::Chunk { org, upload, offset, .. } => Ok(Step::Chunk(self.org(&org)?, ObjectName::new(upload), offset, block(0))),
            Line::Upload { org, upload, complete } => {
                totals.uploads = totals.uploads.saturating_add(1);
                Ok(Step::Upload(self.org(&org)?, ObjectName::new(upload), complete))
            }
            Line::TalonExport { .. } | Line::End { .. } => Err(self.damaged("a line stands where it may not")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use crate::conformance::{Draw, contents, transaction};

    fn filled() -> Memory {
        let store = Memory::new();
        for number in 0..60 {
            drop(store.submit(transaction(7, number)).wait());
        }
        store
    }

    fn exported(store: &Memory) -> Vec<u8> {
        let mut out = Vec::new();
        let totals = export(store.reader(), &mut out).unwrap();
        assert!(totals.records > 10 && totals.rows > 10 && totals.uploads > 0, "{totals:?}");
        out
    }

    #[test]
    fn an_import_gives_back_what_was_exported() {
        let store = filled();
        let stream = exported(&store);
        let copy = Memory::new();
        let totals = import(&copy, &mut stream.as_slice()).unwrap();
        assert_eq!(contents(copy.reader()), contents(store.reader()));
        assert_eq!(totals, export(copy.reader(), &mut Vec::new()).unwrap());
        assert!(matches!(import(&copy, &mut stream.as_slice()), Err(StoreError::Refused(_))));
    }

    #[test]
    fn a_cut_or_changed_export_is_refused() {
        let stream = exported(&filled());
        let mut draw = Draw::new(3);
        for _ in 0..300 {
            let at = draw.below(stream.len());
            assert!(import(&Memory::new(), &mut &stream[..at]).is_err(), "cut at {at}");
            let mut changed = stream.clone();
            changed[at] ^= 1 << draw.below(8);
            assert!(import(&Memory::new(), &mut changed.as_slice()).is_err(), "changed at {at}");
        }
        let longer = [stream.as_slice(), b"\n"].concat();
        assert!(import(&Memory::new(), &mut longer.as_slice()).is_err());
    }
}
