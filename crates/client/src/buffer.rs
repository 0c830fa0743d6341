//! What waits for the server: a queue of records on disk that outlives the process, or in memory.
//!
//! On disk it is a log in segments. A record counts as accepted when its bytes are synchronized; from then on only [`Buffer::commit`] removes it.
//! Records carry checksums, so a torn end or a damaged place is recognised when the log is opened, and everything before and after it is kept.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Where records are kept and how many bytes of them.
#[derive(Debug, Clone)]
pub struct BufferSettings {
    /// The base name of the log's files; `None` keeps records in memory.
    pub file: Option<PathBuf>,
    /// Bytes of records on disk.
    pub disk_size: u64,
    /// Bytes of records in memory, when there is no file or the disk refuses.
    pub memory_size: u64,
}

/// A record's place in the order of acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(u64);

/// The queue.
pub struct Buffer {
    settings: BufferSettings,
    log: Option<Log>,
    entries: VecDeque<Entry>,
    next: u64,
    disk_bytes: u64,
    memory_bytes: u64,
}

/// A record that was not committed.
struct Entry {
    sequence: u64,
    length: usize,
    place: Place,
}

enum Place {
    Disk { segment: u64, offset: u64 },
    Memory(Bytes),
}

/// What opening found in a log that an earlier process left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Records that wait.
    pub records: usize,
    /// Bytes that were no sound records and were passed over.
    pub damaged: u64,
}

impl Buffer {
    /// Opens the buffer; records that an earlier process accepted are waiting in it.
    ///
    /// # Errors
    /// When the log cannot be used, in particular because another process uses it.
    pub fn open(settings: BufferSettings) -> io::Result<(Self, Recovered)> {
        let mut buffer = Self { log: None, entries: VecDeque::new(), next: 1, disk_bytes: 0, memory_bytes: 0, settings };
        let mut recovered = Recovered::default();
        if let Some(file) = buffer.settings.file.clone() {
            let (log, scan) = Log::open(&file)?;
            buffer.next = scan.next;
            buffer.disk_bytes = scan.entries.iter().map(|entry| record_length(entry.length)).sum();
            recovered = Recovered { records: scan.entries.len(), damaged: scan.damaged };
            buffer.entries = scan.entries.into();
            buffer.log = Some(log);
        }
        Ok((buffer, recovered))
    }

    /// Gives the log's files up, for the next process. What waits on disk stays there.
    pub fn close(&mut self) {
        self.log = None;
    }

    /// Bytes of the records that wait.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.disk_bytes.saturating_add(self.memory_bytes)
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of records that may wait. A disk that refused leaves what memory may hold beside it.
    #[must_use]
    pub fn limit(&self) -> u64 {
        if self.log.is_some() && self.memory_bytes == 0 {
            self.settings.disk_size
        } else {
            self.disk_bytes.saturating_add(self.settings.memory_size)
        }
    }

    /// Accepts records in this order. On disk they are synchronized together before this returns. A disk that refuses is replaced by memory.
    ///
    /// # Errors
    /// What the disk said. The records are accepted all the same, in memory, and do not outlive the process.
    pub fn append(&mut self, records: &[Bytes]) -> io::Result<()> {
        let mut outcome = Ok(());
        let places = match &mut self.log {
            Some(log) => match log.append(self.next, records) {
                Ok(places) => Some(places),
                Err(error) => {
                    outcome = Err(error);
                    None
                }
            },
            None => None,
        };
        for (at, record) in records.iter().enumerate() {
            let place = places.as_ref().and_then(|places| places.get(at)).copied();
            let (place, bytes) = match place {
                Some((segment, offset)) => (Place::Disk { segment, offset }, &mut self.disk_bytes),
                None => (Place::Memory(record.clone()), &mut self.memory_bytes),
            };
            *bytes = bytes.saturating_add(record_length(record.len()));
            self.entries.push_back(Entry { sequence: self.next, length: record.len(), place });
            self.next = self.next.saturating_add(1);
        }
        outcome
    }

    /// The oldest records after `after`, as many as `bytes` hold but at least one, and the sequence of the last. A record that cannot be read any more is
    /// passed over. Nothing is removed.
    pub fn peek(&mut self, after: Sequence, bytes: usize) -> (Vec<Bytes>, Sequence) {
        let (mut records, mut last, mut total) = (Vec::new(), after, 0_usize);
        let skipped = self.entries.partition_point(|entry| entry.sequence <= after.0);
        for entry in self.entries.iter().skip(skipped) {
            total = total.saturating_add(entry.length);
            if total > bytes && !records.is_empty() {
                break;
            }
            let record = match &entry.place {
                Place::Memory(record) => Some(record.clone()),
                Place::Disk { segment, offset } => {
                    self.log.as_mut().and_then(|log| log.read(*segment, *offset, entry.sequence, entry.length).ok())
                }
            };
            records.extend(record);
            last = Sequence(entry.sequence);
        }
        (records, last)
    }

    /// Removes all records up to `last`, because the server has them.
    ///
    /// # Errors
    /// What the disk said. The worst that follows is that records are sent again after a restart.
    pub fn commit(&mut self, last: Sequence) -> io::Result<()> {
        while self.entries.front().is_some_and(|entry| entry.sequence <= last.0) {
            let Some(entry) = self.entries.pop_front() else { break };
            let bytes = if matches!(entry.place, Place::Disk { .. }) { &mut self.disk_bytes } else { &mut self.memory_bytes };
            *bytes = bytes.saturating_sub(record_length(entry.length));
        }
        let oldest = self.entries.iter().find_map(|entry| match entry.place {
            Place::Disk { segment, .. } => Some(segment),
            Place::Memory(_) => None,
        });
        match &mut self.log {
            Some(log) => log.commit(last.0, oldest),
            None => Ok(()),
        }
    }
}

/// A segment that reaches this length is followed by a new one.
const SEGMENT: u64 = 16 << 20;
/// No record is longer: a length above this is damage.
const MAX_RECORD: usize = 256 << 20;
/// The first bytes of each segment.
const MAGIC: [u8; 8] = *b"TalonQ1\n";
/// Length, checksum, sequence and kind in front of each record.
const HEADER: usize = 4 + 4 + 8 + 1;
const KIND_RECORD: u8 = 1;
const KIND_COMMIT: u8 = 2;

/// Bytes that a record takes.
pub(crate) fn record_length(payload: usize) -> u64 {
    u64::try_from(payload.saturating_add(HEADER)).unwrap_or(u64::MAX)
}

/// The files: an empty one that carries the lock, and the segments beside it.
struct Log {
    base: PathBuf,
    _lock: File,
    segment: u64,
    file: File,
    length: u64,
    /// Segments from the oldest that may still hold records to the current one.
    oldest: u64,
    reader: Option<(u64, File)>,
}

struct Scan {
    entries: Vec<Entry>,
    next: u64,
    damaged: u64,
}

impl Log {
    fn open(base: &Path) -> io::Result<(Self, Scan)> {
        let lock = private().create(true).truncate(false).write(true).read(true).open(base)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another agent uses this buffer")),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let segments = segments(base)?;
        let mut scan = Scan { entries: Vec::new(), next: 1, damaged: 0 };
        let mut committed = 0;
        for segment in &segments {
            let bytes = fs::read(segment_path(base, *segment))?;
            scan_segment(&bytes, *segment, &mut scan, &mut committed);
        }
        scan.entries.retain(|entry| entry.sequence > committed);
        scan.next = scan.next.max(committed.saturating_add(1));
        // A new segment: nothing is ever appended behind bytes that were not understood.
        let segment = segments.last().map_or(1, |last| last.saturating_add(1));
        let (file, length) = create_segment(base, segment)?;
        let mut log = Self {
            base: base.to_owned(),
            _lock: lock,
            segment,
            file,
            length,
            oldest: segments.first().copied().unwrap_or(segment),
            reader: None,
        };
        let oldest = scan.entries.iter().find_map(|entry| match entry.place {
            Place::Disk { segment, .. } => Some(segment),
            Place::Memory(_) => None,
        });
        log.commit(committed, oldest)?;
        Ok((log, scan))
    }

    /// Writes records and synchronizes them. What was written of a group that failed is cut off again.
    fn append(&mut self, first: u64, records: &[Bytes]) -> io::Result<Vec<(u64, u64)>> {
        if self.length >= SEGMENT {
            let next = self.segment.saturating_add(1);
            let (file, length) = create_segment(&self.base, next)?;
            (self.segment, self.file, self.length) = (next, file, length);
        }
        let mut bytes = Vec::with_capacity(records.iter().map(|record| record.len().saturating_add(HEADER)).sum());
        let mut places = Vec::with_capacity(records.len());
        let mut sequence = first;
        for record in records {
            let offset = self.length.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            places.push((self.segment, offset));
            encode(&mut bytes, KIND_RECORD, sequence, record)?;
            sequence = sequence.saturating_add(1);
        }
        self.write(&bytes, true)?;
        Ok(places)
    }

    /// Notes what is committed and removes segments that hold nothing else. The note is not synchronized: losing it only means sending again.
    fn commit(&mut self, up_to: u64, oldest: Option<u64>) -> io::Result<()> {
        let needed = oldest.unwrap_or(self.segment);
        if up_to > 0 {
            let mut bytes = Vec::with_capacity(HEADER);
            encode(&mut bytes, KIND_COMMIT, up_to, &[])?;
            self.write(&bytes, false)?;
        }
        while self.oldest < needed {
            match fs::remove_file(segment_path(&self.base, self.oldest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.oldest = self.oldest.saturating_add(1),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], durable: bool) -> io::Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| if durable { self.file.sync_data() } else { Ok(()) });
        match written {
            Ok(()) => {
                self.length = self.length.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.length)?;
                self.file.seek(SeekFrom::Start(self.length))?;
                Err(error)
            }
        }
    }

    fn read(&mut self, segment: u64, offset: u64, sequence: u64, length: usize) -> io::Result<Bytes> {
        let file = match &mut self.reader {
            Some((open, file)) if *open == segment => file,
            reader => &mut reader.insert((segment, File::open(segment_path(&self.base, segment))?)).1,
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; length.saturating_add(HEADER)];
        file.read_exact(&mut bytes)?;
        match decode(&bytes) {
            Some(record) if record.kind == KIND_RECORD && record.sequence == sequence => Ok(Bytes::from(bytes).slice(HEADER..)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a record of the buffer is damaged")),
        }
    }
}

struct Record<'a> {
    kind: u8,
    sequence: u64,
    payload: &'a [u8],
}

fn encode(out: &mut Vec<u8>, kind: u8, sequence: u64, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_RECORD);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a record is too long for the buffer"))?.to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&checksum(kind, sequence, &length, payload).to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(payload);
    Ok(())
}

/// The record at the start of `bytes`, if there is a sound one.
fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (&kind, rest) = rest.split_first()?;
    let payload = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= MAX_RECORD)?)?;
    let sequence = u64::from_le_bytes(*sequence);
    (checksum(kind, sequence, length, payload) == u32::from_le_bytes(*sum)).then_some(Record { kind, sequence, payload })
}

fn checksum(kind: u8, sequence: u64, length: &[u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(&sequence.to_le_bytes());
    hasher.update(length);
    hasher.update(payload);
    hasher.finalize()
}

/// Reads what is sound in a segment. After damage it looks for the next sound record byte by byte, so one bad sector costs one record.
fn scan_segment(bytes: &[u8], segment: u64, scan: &mut Scan, committed: &mut u64) {
    let Some(mut rest) = bytes.strip_prefix(&MAGIC) else {
        scan.damaged = scan.damaged.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        return;
    };
    while !rest.is_empty() {
        let offset = u64::try_from(bytes.len().saturating_sub(rest.len())).unwrap_or(u64::MAX);
        match decode(rest).filter(|record| matches!(record.kind, KIND_RECORD | KIND_COMMIT)) {
            Some(record) => {
                if record.kind == KIND_COMMIT {
                    *committed = (*committed).max(record.sequence);
                } else if record.sequence >= scan.next {
                    let place = Place::Disk { segment, offset };
                    scan.entries.push(Entry { sequence: record.sequence, length: record.payload.len(), place });
                    scan.next = record.sequence.saturating_add(1);
                }
                let length = record.payload.len().saturating_add(HEADER);
                rest = rest.get(length..).unwrap_or_default();
            }
            None => {
                scan.damaged = scan.damaged.saturating_add(1);
                rest = rest.get(1..).unwrap_or_default();
            }
        }
    }
}

fn segment_path(base: &Path, segment: u64) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(format!(".{segment:016x}"));
    name.into()
}

/// The numbers of the segments beside `base`, in order.
fn segments(base: &Path) -> io::Result<Vec<u64>> {
    let (folder, name) = (folder_of(base), base.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let file = entry?.file_name();
        let number = file.to_str().and_then(|file| file.strip_prefix(&name)?.strip_prefix('.').filter(|number| number.len() == 16));
        found.extend(number.and_then(|number| u64::from_str_radix(number, 16).ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// A new segment whose name is durable.
fn create_segment(base: &Path, segment: u64) -> io::Result<(File, u64)> {
    let mut file = private().create_new(true).write(true).open(segment_path(base, segment))?;
    file.write_all(&MAGIC)?;
    file.sync_all()?;
    if cfg!(unix) {
        File::open(folder_of(base))?.sync_all()?;
    }
    Ok((file, u64::try_from(MAGIC.len()).unwrap_or(u64::MAX)))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Options for files that only the agent's user may read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(folder: &Path) -> BufferSettings {
        BufferSettings { file: Some(folder.join("buffer.bin")), disk_size: 1 << 20, memory_size: 1 << 20 }
    }

    fn open(folder: &Path) -> (Buffer, Recovered) {
        Buffer::open(settings(folder)).unwrap()
    }

    fn all(buffer: &mut Buffer) -> Vec<Bytes> {
        let (mut records, mut after) = (Vec::new(), Sequence::default());
        loop {
            let (more, last) = buffer.peek(after, 1000);
            if last == after {
                return records;
            }
            records.extend(more);
            after = last;
        }
    }

    fn record(number: usize) -> Bytes {
        Bytes::from(format!("record {number} ").repeat(number % 7 + 1))
    }

    #[test]
    fn records_come_in_order_until_they_are_committed_in_memory_and_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        for settings in [settings(folder.path()), BufferSettings { file: None, disk_size: 0, memory_size: 1 << 20 }] {
            let (mut buffer, _) = Buffer::open(settings).unwrap();
            buffer.append(&[record(0), record(1)]).unwrap();
            buffer.append(&[record(2)]).unwrap();
            let (first, last) = buffer.peek(Sequence::default(), 1);
            assert_eq!(first, [record(0)]);
            assert_eq!(all(&mut buffer), [record(0), record(1), record(2)], "reading removes nothing");
            buffer.commit(last).unwrap();
            assert_eq!(all(&mut buffer), [record(1), record(2)]);
            let (_, last) = buffer.peek(last, 1 << 20);
            buffer.commit(last).unwrap();
            assert!(buffer.is_empty());
            assert_eq!(buffer.bytes(), 0);
        }
    }

    #[test]
    fn what_was_accepted_survives_the_process_and_what_was_committed_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let (mut buffer, _) = open(folder.path());
        buffer.append(&[record(0), record(1), record(2)]).unwrap();
        let (_, first) = buffer.peek(Sequence::default(), 1);
        buffer.commit(first).unwrap();
        drop(buffer);
        let (mut buffer, recovered) = open(folder.path());
        assert_eq!(recovered, Recovered { records: 2, damaged: 0 });
        assert_eq!(all(&mut buffer), [record(1), record(2)]);
        buffer.append(&[record(3)]).unwrap();
        let (_, last) = buffer.peek(Sequence::default(), 1 << 20);
        buffer.commit(last).unwrap();
        drop(buffer);
        let (mut buffer, recovered) = open(folder.path());
        assert_eq!(recovered.records, 0);
        buffer.append(&[record(4)]).unwrap();
        assert_eq!(all(&mut buffer), [record(4)], "sequences go on");
    }

    #[test]
    fn one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let (_buffer, _) = open(folder.path());
        let second = Buffer::open(settings(folder.path())).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn a_log_cut_anywhere_keeps_all_whole_records() {
        let folder = tempfile::tempdir().unwrap();
        let (mut buffer, _) = open(folder.path());
        let records: Vec<_> = (0..8).map(record).collect();
        let mut ends = Vec::new();
        for record in &records {
            buffer.append(std::slice::from_ref(record)).unwrap();
            ends.push(buffer.log.as_ref().unwrap().length);
        }
        drop(buffer);
        let bytes = fs::read(segment_path(&folder.path().join("buffer.bin"), 1)).unwrap();
        for cut in 0..=bytes.len() {
            let folder = tempfile::tempdir().unwrap();
            fs::write(segment_path(&folder.path().join("buffer.bin"), 1), &bytes[..cut]).unwrap();
            let (mut buffer, _) = open(folder.path());
            let whole = ends.iter().filter(|end| **end <= cut as u64).count();
            assert_eq!(all(&mut buffer), records[..whole], "cut at {cut}");
            buffer.append(&[record(99)]).unwrap();
            drop(buffer);
            let (mut buffer, _) = open(folder.path());
            assert_eq!(all(&mut buffer).last(), Some(&record(99)), "cut at {cut}, appended and opened again");
            assert_eq!(all(&mut buffer).len(), whole + 1);
        }
    }

    #[test]
    fn a_damaged_byte_costs_one_record() {
        let folder = tempfile::tempdir().unwrap();
        let (mut buffer, _) = open(folder.path());
        let records: Vec<_> = (0..5).map(record).collect();
        buffer.append(&records).unwrap();
        drop(buffer);
        let path = segment_path(&folder.path().join("buffer.bin"), 1);
        let bytes = fs::read(&path).unwrap();
        for at in MAGIC.len()..bytes.len() {
            let folder = tempfile::tempdir().unwrap();
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            fs::write(segment_path(&folder.path().join("buffer.bin"), 1), &damaged).unwrap();
            let (mut buffer, recovered) = open(folder.path());
            assert!(recovered.damaged > 0);
            assert_eq!(all(&mut buffer).len(), records.len() - 1, "byte {at}");
        }
    }

    #[test]
    fn segments_are_removed_when_nothing_in_them_waits() {
        let folder = tempfile::tempdir().unwrap();
        let big = Bytes::from(vec![7; usize::try_from(SEGMENT).unwrap() / 2]);
        let (mut buffer, _) = Buffer::open(BufferSettings { disk_size: 1 << 30, ..settings(folder.path()) }).unwrap();
        for _ in 0..5 {
            buffer.append(std::slice::from_ref(&big)).unwrap();
        }
        let files = || segments(&folder.path().join("buffer.bin")).unwrap().len();
        assert_eq!(files(), 3);
        let (_, last) = buffer.peek(Sequence::default(), big.len() * 4);
        buffer.commit(last).unwrap();
        assert_eq!(files(), 1);
        drop(buffer);
        assert_eq!(open(folder.path()).1.records, 1);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append(Vec<u8>),
        Commit(usize),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(Step::Append),
            2 => (1..5_usize).prop_map(Step::Commit),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn the_log_behaves_as_a_queue_over_restarts(steps in proptest::collection::vec(step(), 1..40)) {
            let folder = tempfile::tempdir().unwrap();
            let (mut buffer, _) = open(folder.path());
            let mut model: VecDeque<Vec<u8>> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Append(record) => {
                        buffer.append(&[record.clone().into()]).unwrap();
                        model.push_back(record);
                    }
                    Step::Commit(count) => {
                        let mut last = Sequence::default();
                        for _ in 0..count.min(model.len()) {
                            last = buffer.peek(last, 0).1;
                            model.pop_front();
                        }
                        buffer.commit(last).unwrap();
                    }
                    Step::Reopen => {
                        drop(buffer);
                        buffer = open(folder.path()).0;
                    }
                }
                prop_assert_eq!(all(&mut buffer), model.iter().cloned().collect::<Vec<_>>());
            }
        }

        #[test]
        fn any_file_can_be_opened(junk: Vec<u8>) {
            let folder = tempfile::tempdir().unwrap();
            let mut bytes = MAGIC.to_vec();
            bytes.extend(&junk);
            fs::write(segment_path(&folder.path().join("buffer.bin"), 1), bytes).unwrap();
            open(folder.path());
        }
    }
}
