//! `parse_journald()`, `watch_journald()`: entries of systemd journals, read from the files themselves.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, OsPath, Registry, Rows, Scope, Signature, Time, Value};

use crate::accessor::{self, Accessor, FileReader};

const SIGNATURE: &[u8] = b"LPKSHHRH";
/// The flag of files whose offsets have 32 bits.
const COMPACT: u32 = 1 << 4;
/// A field with more is cut off.
const MAX_FIELD: u64 = 16 << 20;
/// An entry has no more fields than this.
const MAX_FIELDS: usize = 4096;
/// How many short fields are remembered; most entries repeat them.
const MAX_KNOWN: usize = 10_000;

const FILES: Arg = Arg::required("filename", ArgType::Paths, "The journals.");
const ACCESSOR: Arg = Arg::optional("accessor", ArgType::String, "The accessor that reads them.");
const RAW: Arg = Arg::optional("raw", ArgType::Bool, "Give all fields beside each other.");

pub(crate) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("parse_journald", "The entries of systemd journals.")
            .args(
                const {
                    &[
                        FILES,
                        ACCESSOR,
                        RAW,
                        Arg::optional("start_time", ArgType::Time, "No entries before this."),
                        Arg::optional("end_time", ArgType::Time, "No entries after this."),
                    ]
                },
            )
            .version(2),
        parse_journald,
    );
    registry.plugin(
        Signature::plugin("watch_journald", "Entries as they are added to systemd journals.")
            .args(const { &[FILES, ACCESSOR, RAW] })
            .permissions(&[Permission::FilesystemRead]),
        watch_journald,
    );
}

/// An open journal, and the place of the next entry.
struct Journal {
    reader: Box<dyn FileReader>,
    /// A piece of the file, and where it lies.
    window: (u64, Vec<u8>),
    compact: bool,
    /// The array that lists the next entry, and its place in there.
    array: u64,
    item: u64,
    known: HashMap<u64, (Key, Value)>,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

impl Journal {
    fn open(reader: Box<dyn FileReader>) -> Result<Self, CallError> {
        let (window, known) = ((0, Vec::new()), HashMap::new());
        let mut journal = Self { reader, window, compact: false, array: 0, item: 0, known };
        if journal.bytes(0, 8).as_deref() != Some(SIGNATURE) {
            return Err(CallError::failed("not a systemd journal"));
        }
        let flags = journal.number(12, 4).unwrap_or(0);
        journal.compact = flags & u64::from(COMPACT) != 0;
        journal.array = journal.number(176, 8).unwrap_or(0);
        Ok(journal)
    }

    fn bytes(&mut self, offset: u64, length: u64) -> Option<Vec<u8>> {
        const WINDOW: u64 = 64 << 10;
        let (from, held) = (&self.window.0, &self.window.1);
        let into = offset.checked_sub(*from).and_then(|into| usize::try_from(into).ok());
        let end = into.and_then(|into| into.checked_add(usize::try_from(length).ok()?));
        if let (Some(into), Some(end)) = (into, end)
            && let Some(found) = held.get(into..end)
        {
            return Some(found.to_vec());
        }
        let mut content = Vec::new();
        self.reader.seek(SeekFrom::Start(offset)).ok()?;
        self.reader.by_ref().take(length.max(WINDOW)).read_to_end(&mut content).ok()?;
        let found = content.get(..usize::try_from(length).ok()?).map(<[u8]>::to_vec);
        self.window = (offset, content);
        found
    }

    fn number(&mut self, offset: u64, length: u64) -> Option<u64> {
        self.bytes(offset, length).map(|bytes| number(&bytes))
    }

    /// Forgets what was read before, because the file has grown.
    fn refresh(&mut self) {
        self.window.1.clear();
        if self.array == 0 {
            self.array = self.number(176, 8).unwrap_or(0);
        }
    }

    /// The offset of the next entry. `None` at the end, for now.
    fn next_offset(&mut self) -> Option<u64> {
        loop {
            if self.array == 0 {
                return None;
            }
            let size = self.number(self.array.checked_add(8)?, 8)?;
            let width = if self.compact { 4 } else { 8 };
            let count = size.saturating_sub(24) / width;
            if self.item < count {
                let offset = self.number(self.array.checked_add(24)?.checked_add(self.item.checked_mul(width)?)?, width)?;
                if offset == 0 {
                    return None;
                }
                self.item = self.item.saturating_add(1);
                return Some(offset);
            }
            // Arrays are appended: one that lies before this would be a ring.
            let next = self.number(self.array.checked_add(16)?, 8).filter(|next| *next > self.array)?;
            (self.array, self.item) = (next, 0);
        }
    }

    /// Passes over all entries that are there.
    fn pass_all(&mut self, scope: &Scope) {
        while !scope.stopped() && self.next_offset().is_some() {}
    }

    /// The moment of an entry in nanoseconds.
    fn moment(&mut self, entry: u64) -> Option<i128> {
        self.number(entry.checked_add(24)?, 8).map(|micros| i128::from(micros).saturating_mul(1000))
    }

    fn entry(&mut self, offset: u64, raw: bool) -> Option<Dict> {
        const HEADER: u64 = 64;
        const ENTRY: u64 = 3;
        if self.number(offset, 1)? != ENTRY {
            return None;
        }
        let size = self.number(offset.checked_add(8)?, 8)?;
        let sequence = self.number(offset.checked_add(16)?, 8)?;
        let moment = Time::from_unix_nanos(self.moment(offset)?);
        let boot: String = self.bytes(offset.checked_add(40)?, 16)?.iter().map(|byte| format!("{byte:02x}")).collect();
        let width = if self.compact { 4 } else { 16 };
        let count = usize::try_from(size.saturating_sub(HEADER) / width).unwrap_or(0).min(MAX_FIELDS);
        let (mut system, mut event) = (Dict::new(), Dict::new());
        system.set("Seq", i64::try_from(sequence).unwrap_or(i64::MAX));
        system.set("Timestamp", moment);
        system.set("BootId", boot);
        for at in 0..count {
            let item = offset.checked_add(HEADER)?.checked_add(width.checked_mul(at as u64)?)?;
            let field = self.number(item, if self.compact { 4 } else { 8 })?;
            let Some((name, value)) = self.field(field) else { continue };
            let target = if name.as_str().starts_with('_') && !raw { &mut system } else { &mut event };
            target.update(name, value);
        }
        Some(if raw {
            event.iter().fold(system, |row, (name, value)| row.with(name, value))
        } else {
            Dict::new().with("System", system).with("EventData", event)
        })
    }

    fn field(&mut self, offset: u64) -> Option<(Key, Value)> {
        const SHORT: usize = 256;
        const DATA: u64 = 1;
        if let Some(known) = self.known.get(&offset) {
            return Some(known.clone());
        }
        if self.number(offset, 1)? != DATA {
            return None;
        }
        let flags = self.number(offset.checked_add(1)?, 1)?;
        let size = self.number(offset.checked_add(8)?, 8)?;
        let header = if self.compact { 72 } else { 64 };
        let length = size.checked_sub(header)?.min(MAX_FIELD);
        let payload = self.bytes(offset.checked_add(header)?, length)?;
        let content = match flags & 7 {
            0 => payload,
            2 => {
                let size = number(payload.get(..8)?).min(MAX_FIELD);
                lz4_flex::block::decompress(payload.get(8..)?, usize::try_from(size).ok()?).ok()?
            }
            4 => {
                let mut content = Vec::new();
                let decoder = ruzstd::decoding::StreamingDecoder::new(&payload[..]).ok()?;
                decoder.take(MAX_FIELD).read_to_end(&mut content).ok()?;
                content
            }
            _ => b"MESSAGE=(compressed in a way that is not known)".to_vec(),
        };
        let split = content.iter().position(|byte| *byte == b'=')?;
        let name = Key::from(String::from_utf8_lossy(content.get(..split)?).into_owned());
        let value = Value::str(content.get(split.saturating_add(1)..)?);
        if content.len() < SHORT {
            if self.known.len() >= MAX_KNOWN {
                self.known.clear();
            }
            self.known.insert(offset, (name.clone(), value.clone()));
        }
        Some((name, value))
    }
}

fn parse_journald(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let accessor = accessor::named(&scope, &call.string("accessor"))?;
    let bound = |name: &str| call.time(name).filter(|time| !time.is_zero()).map(Time::unix_nanos);
    let (from, until, raw) = (bound("start_time"), bound("end_time"), call.bool("raw"));
    let mut paths = call.paths("filename").into_iter();
    let mut open: Option<Journal> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if scope.stopped() {
                return None;
            }
            let Some(journal) = &mut open else {
                match accessor.open(&scope, &paths.next()?).and_then(Journal::open) {
                    Ok(journal) => open = Some(journal),
                    Err(error) => call.log(error.to_string()),
                }
                continue;
            };
            let Some(offset) = journal.next_offset() else {
                open = None;
                continue;
            };
            let moment = journal.moment(offset).unwrap_or(0);
            if from.is_some_and(|from| moment < from) || until.is_some_and(|until| moment > until) {
                continue;
            }
            if let Some(row) = journal.entry(offset, raw) {
                return Some(Ok(row.into()));
            }
        }
    }))
}

fn watch_journald(call: Call) -> Result<Rows, CallError> {
    const EVERY: Duration = Duration::from_secs(1);
    const MAX_FILES: usize = 100;
    let scope = call.scope().clone();
    let accessor = accessor::named(&scope, &call.string("accessor"))?;
    let raw = call.bool("raw");
    let paths = call.paths("filename");
    if paths.len() > MAX_FILES {
        return Err(CallError::failed(format!("more than {MAX_FILES} journals")));
    }
    let start = |path: &Arc<OsPath>, accessor: &Arc<dyn Accessor>| {
        let mut journal = accessor.open(&scope, path).and_then(Journal::open)?;
        journal.pass_all(&scope);
        Ok::<_, CallError>(journal)
    };
    let mut journals = Vec::new();
    for path in &paths {
        match start(path, &accessor) {
            Ok(journal) => journals.push(journal),
            Err(error) => call.log(error.to_string()),
        }
    }
    if journals.is_empty() {
        return Err(CallError::failed("there is no journal to watch"));
    }
    let scope = scope.clone();
    Ok(Rows::from_fn(move || {
        loop {
            for journal in &mut journals {
                if let Some(row) = journal.next_offset().and_then(|offset| journal.entry(offset, raw)) {
                    return Some(Ok(row.into()));
                }
            }
            if scope.sleep(EVERY) {
                return None;
            }
            journals.iter_mut().for_each(Journal::refresh);
        }
    }))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use talon_vql::{Environment, MemoryLog, Query, json, parse_statement};

    use super::*;

    /// A journal with one array of entries, written by the published format.
    fn journal(entries: &[(u64, &[&str])], compact: bool) -> Vec<u8> {
        let mut out = vec![0_u8; 272];
        out[..8].copy_from_slice(SIGNATURE);
        out[12..16].copy_from_slice(&(if compact { COMPACT } else { 0 }).to_le_bytes());
        let object = |out: &mut Vec<u8>, kind: u8, flags: u8, body: &[u8]| {
            out.resize(out.len().next_multiple_of(8), 0);
            let at = out.len() as u64;
            out.extend_from_slice(&[kind, flags, 0, 0, 0, 0, 0, 0]);
            out.extend_from_slice(&(body.len() as u64 + 16).to_le_bytes());
            out.extend_from_slice(body);
            at
        };
        let mut offsets = Vec::new();
        for (at, (micros, fields)) in entries.iter().enumerate() {
            let mut body = Vec::new();
            body.extend_from_slice(&(at as u64 + 1).to_le_bytes());
            body.extend_from_slice(&micros.to_le_bytes());
            body.extend_from_slice(&[0; 8]);
            body.extend_from_slice(&[0xab; 16]);
            body.extend_from_slice(&[0; 8]);
            for field in *fields {
                let mut data = vec![0; if compact { 56 } else { 48 }];
                let (flags, payload) = match field.strip_prefix("lz4:") {
                    Some(text) => (2, [&(text.len() as u64).to_le_bytes()[..], &lz4_flex::block::compress(text.as_bytes())].concat()),
                    None => (0, field.as_bytes().to_vec()),
                };
                data.extend_from_slice(&payload);
                let offset = object(&mut out, 1, flags, &data);
                if compact {
                    body.extend_from_slice(&(offset as u32).to_le_bytes());
                } else {
                    body.extend_from_slice(&offset.to_le_bytes());
                    body.extend_from_slice(&[0; 8]);
                }
            }
            offsets.push(object(&mut out, 3, 0, &body));
        }
        let mut array = vec![0; 8];
        for offset in offsets.iter().chain(&[0]) {
            if compact {
                array.extend_from_slice(&(*offset as u32).to_le_bytes());
            } else {
                array.extend_from_slice(&offset.to_le_bytes());
            }
        }
        let at = object(&mut out, 6, 0, &array);
        out[176..184].copy_from_slice(&at.to_le_bytes());
        out
    }

    fn rows(content: &[u8], more: &str) -> String {
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(crate::registry())).log(log.clone()).variable("J", Value::str(content)).open();
        let statement = parse_statement(&format!("SELECT * FROM parse_journald(filename=J, accessor='data'{more})")).unwrap();
        let rows: Vec<String> = Query::new(&scope, &statement).map(|row| json::encode(&row.into())).collect();
        rows.into_iter().chain(log.take().into_iter().filter(|line| !line.starts_with("DEBUG"))).collect::<Vec<_>>().join("\n")
    }

    const ENTRIES: &[(u64, &[&str])] = &[
        (1_590_938_885_000_001, &["MESSAGE=first", "_PID=1", "PRIORITY=6"]),
        (1_590_938_886_000_000, &["lz4:MESSAGE=second second second second second", "_PID=2"]),
    ];

    #[test]
    fn entries_are_read_in_both_layouts() {
        let expected = expect![[r#"
            {"System":{"Seq":1,"Timestamp":"2020-05-31T15:28:05.000001Z","BootId":"abababababababababababababababab","_PID":"1"},"EventData":{"MESSAGE":"first","PRIORITY":"6"}}
            {"System":{"Seq":2,"Timestamp":"2020-05-31T15:28:06Z","BootId":"abababababababababababababababab","_PID":"2"},"EventData":{"MESSAGE":"second second second second second"}}"#]];
        expected.assert_eq(&rows(&journal(ENTRIES, false), ""));
        expected.assert_eq(&rows(&journal(ENTRIES, true), ""));
    }

    #[test]
    fn times_bound_what_is_given() {
        let file = journal(ENTRIES, false);
        assert_eq!(rows(&file, ", start_time=1590938886, raw=TRUE").lines().count(), 1);
        assert!(rows(&file, ", end_time=1590938885.5").contains("first"));
        assert_eq!(rows(&file, ", end_time=1590938885.5").lines().count(), 1);
    }

    #[test]
    fn damaged_files_end_early() {
        assert_eq!(rows(b"no journal", ""), "parse_journald: not a systemd journal");
        let file = journal(ENTRIES, false);
        for cut in (0..file.len()).step_by(37) {
            let _ = rows(&file[..cut], "");
        }
        let mut ring = file.clone();
        let array = usize::try_from(number(&ring[176..184])).unwrap();
        let own = ring[176..184].to_vec();
        ring[array + 16..array + 24].copy_from_slice(&own);
        assert_eq!(rows(&ring, "").lines().count(), 2);
    }
}
