//! The log under every violation that its storage can suffer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests say what must hold by unwrapping it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use expect_test::expect;
use talon_audit::{AuditError, Details, Log, LogReader, MemoryStorage, Phase, Record, SigningKey, Storage, StorageError, VerifierKey};
use talon_audit::{verify_log, verify_proof};
use talon_crypto::Rng;

struct Fixed(u8);

impl Rng for Fixed {
    fn fill(&self, out: &mut [u8]) {
        out.fill(self.0);
    }
}

fn key() -> SigningKey {
    SigningKey::generate("example.com/audit", &Fixed(7)).unwrap()
}

fn public() -> VerifierKey {
    key().verifier()
}

fn record(n: u64) -> Record {
    let mut record = Record::new(1_700_000_000_000_000_000, "root".parse().unwrap(), "alice", "user_create", Phase::Intended);
    record.details = Details::new().number("n", n);
    record
}

fn log_of(records: u64) -> (Arc<MemoryStorage>, Log) {
    let storage = Arc::new(MemoryStorage::default());
    let log = Log::open(storage.clone(), key()).unwrap();
    for n in 0..records {
        assert_eq!(log.append(&record(n)).unwrap().index(), n);
    }
    (storage, log)
}

fn reopened(files: BTreeMap<String, Vec<u8>>) -> Result<Log, AuditError> {
    Log::open(Arc::new(MemoryStorage::with_files(files)), key())
}

#[test]
fn the_files_of_a_small_log() {
    let (storage, log) = log_of(2);
    log.publish().unwrap();
    let files: String = storage
        .files()
        .iter()
        .map(|(name, content)| format!("{name} {}\n", content.iter().map(|byte| byte.escape_ascii().to_string()).collect::<String>()))
        .collect();
    expect![[r#"
        checkpoint example.com/audit\n2\ntMDzxepZwg3xsqZlEhA5BMhEqoWaoblTB6ax5LaFQ1Q=\n\n\xe2\x80\x94 example.com/audit +AxEIh7/buu69E9Zo4oip2uuVUKkCZnBIM6XkUvxs64gzsrIvxz18Qa/ZuhGj9sFlh2qF+q8xcYvPAQAjR3uDMlOFgE=\n
        journal/000 \x00\x00\x018\x00\x01\x00\x7f{\"time_ns\":1700000000000000000,\"org\":\"root\",\"principal\":\"alice\",\"operation\":\"user_create\",\"phase\":\"intended\",\"details\":{\"n\":0}}example.com/audit\n1\nXYvx+zPr5NbkU0YV9IwpFaZxwTuUrGS7sA9A3m8JqTo=\n\n\xe2\x80\x94 example.com/audit +AxEIg39x/tx7B0eft31483mKTfweNcB/Ltawz00Mww5UrclP9BvSxe/Xk4sB9d8iVYog1TJlMgraIAkKjNOFqDBnAw=\n\x00\x00\x018\x00\x01\x00\x7f{\"time_ns\":1700000000000000000,\"org\":\"root\",\"principal\":\"alice\",\"operation\":\"user_create\",\"phase\":\"intended\",\"details\":{\"n\":1}}example.com/audit\n2\ntMDzxepZwg3xsqZlEhA5BMhEqoWaoblTB6ax5LaFQ1Q=\n\n\xe2\x80\x94 example.com/audit +AxEIh7/buu69E9Zo4oip2uuVUKkCZnBIM6XkUvxs64gzsrIvxz18Qa/ZuhGj9sFlh2qF+q8xcYvPAQAjR3uDMlOFgE=\n
        tile/0/000.p/2 ]\x8b\xf1\xfb3\xeb\xe4\xd6\xe4SF\x15\xf4\x8c)\x15\xa6q\xc1;\x94\xacd\xbb\xb0\x0f@\xdeo\t\xa9:\xc3u\x99S\\\xef\xbal\n\xf7\xdbcWkn\x94\xcex\xce\\L1\xec\x81\xce&G\'W`\xf6\x8b
        tile/entries/000.p/2 \x00\x7f{\"time_ns\":1700000000000000000,\"org\":\"root\",\"principal\":\"alice\",\"operation\":\"user_create\",\"phase\":\"intended\",\"details\":{\"n\":0}}\x00\x7f{\"time_ns\":1700000000000000000,\"org\":\"root\",\"principal\":\"alice\",\"operation\":\"user_create\",\"phase\":\"intended\",\"details\":{\"n\":1}}
    "#]].assert_eq(&files);
}

#[test]
fn every_record_has_a_proof_that_needs_nothing_else() {
    let (_, log) = log_of(600);
    for n in 0..600 {
        let proof = log.prove(n).unwrap().to_string();
        let proved = verify_proof(&proof, &public()).unwrap();
        assert_eq!((proved.index, proved.size, proved.record), (n, 600, record(n)));
    }
    assert_eq!(log.prove(600), Err(AuditError::OutOfRange { index: 600, size: 600 }));
}

#[test]
fn the_proof_file() {
    let (_, log) = log_of(3);
    let proof = log.prove(1).unwrap().to_string();
    expect![[r#"
        c2sp.org/tlog-proof@v1
        extra eyJ0aW1lX25zIjoxNzAwMDAwMDAwMDAwMDAwMDAwLCJvcmciOiJyb290IiwicHJpbmNpcGFsIjoiYWxpY2UiLCJvcGVyYXRpb24iOiJ1c2VyX2NyZWF0ZSIsInBoYXNlIjoiaW50ZW5kZWQiLCJkZXRhaWxzIjp7Im4iOjF9fQ==
        index 1
        XYvx+zPr5NbkU0YV9IwpFaZxwTuUrGS7sA9A3m8JqTo=
        ya96fyKF+SbuVoI+Y6O8l5LGKKQFcLVMeQwVWqjlh2A=

        example.com/audit
        3
        6SnCQqHicF9Rj5FM7A6LRou23VXIsUcLpcwKW3Vp1CM=

        — example.com/audit +AxEIjwHg1OYQ+fW3wQc6+Fi3C3I07hWCi2Z+hLgDTp00JKQAue10jjgEJMNvXRDnwJbBDvpXRayN5kITKXI+yjiNw4=
    "#]].assert_eq(&proof);
    let other = SigningKey::generate("example.com/audit", &Fixed(8)).unwrap().verifier();
    assert!(matches!(verify_proof(&proof, &other), Err(AuditError::Checkpoint { .. })));
    for at in 0..proof.len() {
        for bit in 0..7 {
            let mut bytes = proof.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(verify_proof(&text, &public()).is_err(), "bit {bit} of byte {at}");
            }
        }
        if proof.is_char_boundary(at) {
            assert!(verify_proof(&proof[..at], &public()).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn a_sound_log_verifies_at_every_size() {
    let storage = Arc::new(MemoryStorage::default());
    let log = Log::open(storage.clone(), key()).unwrap();
    let mut remembered = Vec::new();
    for n in 0..520 {
        remembered.push(log.checkpoint());
        let _ = log.append(&record(n)).unwrap();
        if n % 37 == 0 {
            log.publish().unwrap();
        }
        if n % 13 == 0 || (250..260).contains(&n) || n > 508 {
            let report = verify_log(storage.as_ref(), &public(), None).unwrap();
            assert_eq!((report.records, report.unfinished_bytes), (n + 1, 0));
        }
    }
    for old in remembered {
        verify_log(storage.as_ref(), &public(), Some(old.as_bytes())).unwrap();
    }
}

#[test]
fn a_changed_byte_anywhere_is_found() {
    let (storage, log) = log_of(300);
    log.publish().unwrap();
    let files = storage.files();
    verify_log(&MemoryStorage::with_files(files.clone()), &public(), None).unwrap();
    for (name, content) in &files {
        let step = if content.len() > 4_000 { 61 } else { 1 };
        for at in (0..content.len()).step_by(step) {
            let mut changed = files.clone();
            changed.get_mut(name).unwrap()[at] ^= 1;
            let found = verify_log(&MemoryStorage::with_files(changed), &public(), None);
            assert!(found.is_err(), "byte {at} of {name}: {found:?}");
        }
    }
}

#[test]
fn a_missing_file_is_found() {
    let (storage, _) = log_of(300);
    for name in storage.files().keys() {
        let mut changed = storage.files();
        changed.remove(name);
        assert!(verify_log(&MemoryStorage::with_files(changed.clone()), &public(), None).is_err(), "{name}");
        if name != "tile/entries/000" {
            assert!(reopened(changed).is_err(), "{name}");
        }
    }
}

#[test]
fn a_log_that_was_cut_back_to_an_earlier_state_is_found() {
    let (storage, log) = log_of(10);
    let earlier = storage.files();
    for n in 10..20 {
        let _ = log.append(&record(n)).unwrap();
    }
    let mut journal_cut = storage.files();
    journal_cut.insert("journal/000".to_owned(), earlier.get("journal/000").unwrap().clone());
    assert_eq!(
        verify_log(&MemoryStorage::with_files(journal_cut.clone()), &public(), None),
        Err(AuditError::Truncated { signed: 20, stored: 10 })
    );
    assert_eq!(reopened(journal_cut).unwrap_err(), AuditError::Truncated { signed: 20, stored: 10 });
    let all_cut = MemoryStorage::with_files(earlier);
    let remembered = log.checkpoint();
    verify_log(&all_cut, &public(), None).unwrap();
    assert_eq!(verify_log(&all_cut, &public(), Some(remembered.as_bytes())), Err(AuditError::Truncated { signed: 20, stored: 10 }));
}

#[test]
fn another_history_with_the_same_key_is_found_by_a_remembered_checkpoint() {
    let (_, log) = log_of(10);
    let remembered = log.checkpoint();
    let (other, forged) = log_of(5);
    for n in 100..110 {
        let _ = forged.append(&record(n)).unwrap();
    }
    verify_log(other.as_ref(), &public(), None).unwrap();
    assert_eq!(verify_log(other.as_ref(), &public(), Some(remembered.as_bytes())), Err(AuditError::Forked { size: 10 }));
}

#[test]
fn another_key_opens_nothing() {
    let (storage, _) = log_of(3);
    let other = || SigningKey::generate("example.com/audit", &Fixed(9)).unwrap();
    assert!(matches!(verify_log(storage.as_ref(), &other().verifier(), None), Err(AuditError::Checkpoint { .. })));
    assert!(matches!(Log::open(storage, other()), Err(AuditError::Checkpoint { .. })));
}

/// Records every change and can replay any start of it, as a disk does that loses power.
#[derive(Default)]
struct Crashing {
    inner: MemoryStorage,
    changes: std::sync::Mutex<Vec<Change>>,
}

#[derive(Clone)]
enum Change {
    Write(String, Vec<u8>),
    Append(String, Vec<u8>),
    Truncate(String, u64),
    Remove(String),
}

impl Crashing {
    fn note(&self, change: Change) {
        self.changes.lock().unwrap().push(change);
    }
}

impl Storage for Crashing {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
        self.inner.read(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), StorageError> {
        self.note(Change::Write(name.to_owned(), content.to_vec()));
        self.inner.write(name, content)
    }

    fn append(&self, name: &str, addition: &[u8]) -> Result<(), StorageError> {
        self.note(Change::Append(name.to_owned(), addition.to_vec()));
        self.inner.append(name, addition)
    }

    fn truncate(&self, name: &str, length: u64) -> Result<(), StorageError> {
        self.note(Change::Truncate(name.to_owned(), length));
        self.inner.truncate(name, length)
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        if self.inner.read(name)?.is_some() {
            self.note(Change::Remove(name.to_owned()));
        }
        self.inner.remove(name)
    }
}

fn apply(storage: &MemoryStorage, change: &Change) {
    match change {
        Change::Write(name, content) => storage.write(name, content),
        Change::Append(name, addition) => storage.append(name, addition),
        Change::Truncate(name, length) => storage.truncate(name, *length),
        Change::Remove(name) => storage.remove(name),
    }
    .unwrap();
}

#[test]
fn a_crash_at_any_byte_loses_nothing_acknowledged() {
    let crashing = Arc::new(Crashing::default());
    let log = Log::open(crashing.clone(), key()).unwrap();
    let mut acknowledged = vec![(crashing.changes.lock().unwrap().len(), 0)];
    for n in 0..515 {
        let _ = log.append(&record(n)).unwrap();
        acknowledged.push((crashing.changes.lock().unwrap().len(), n + 1));
    }
    let changes = crashing.changes.lock().unwrap().clone();
    let disk = MemoryStorage::default();
    for (done, change) in changes.iter().enumerate() {
        let sure = acknowledged.iter().rev().find(|(at, _)| *at <= done).map_or(0, |(_, records)| *records);
        let near_a_full_bundle = (254..258).contains(&sure) || sure > 509;
        match change {
            Change::Append(name, addition) if sure < 2 || near_a_full_bundle => {
                let step = if sure < 2 { 1 } else { 41 };
                for cut in (0..=addition.len()).step_by(step) {
                    let mut files = disk.files();
                    files.entry(name.clone()).or_default().extend_from_slice(&addition[..cut]);
                    survives(files, sure);
                }
            }
            Change::Append(..) => {}
            _ if near_a_full_bundle || sure < 2 => survives(disk.files(), sure),
            _ => {}
        }
        apply(&disk, change);
    }
    survives(disk.files(), 515);
}

fn survives(files: BTreeMap<String, Vec<u8>>, sure: u64) {
    let storage = Arc::new(MemoryStorage::with_files(files));
    if sure > 0 {
        assert!(verify_log(storage.as_ref(), &public(), None).unwrap().records >= sure);
    }
    let log = Log::open(storage.clone(), key()).unwrap();
    assert!(log.size() >= sure, "{} of {sure}", log.size());
    assert!(log.size() <= sure + 1);
    for _ in 0..3 {
        let next = log.append(&record(log.size())).unwrap().index();
        assert_eq!(verify_proof(&log.prove(next).unwrap().to_string(), &public()).unwrap().record, record(next));
    }
    let report = verify_log(storage.as_ref(), &public(), None).unwrap();
    assert_eq!((report.records, report.unfinished_bytes), (log.size(), 0));
}

/// Storage whose appends fail half-way while told so.
#[derive(Default)]
struct Failing {
    inner: MemoryStorage,
    full: AtomicBool,
}

impl Storage for Failing {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
        self.inner.read(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), StorageError> {
        self.inner.write(name, content)
    }

    fn append(&self, name: &str, addition: &[u8]) -> Result<(), StorageError> {
        if self.full.load(Ordering::SeqCst) {
            self.inner.append(name, &addition[..addition.len() / 2])?;
            return Err(StorageError::new("appending to", name, "no space left"));
        }
        self.inner.append(name, addition)
    }

    fn truncate(&self, name: &str, length: u64) -> Result<(), StorageError> {
        self.inner.truncate(name, length)
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        self.inner.remove(name)
    }
}

#[test]
fn a_failed_write_is_an_error_and_the_log_goes_on_afterwards() {
    let storage = Arc::new(Failing::default());
    let log = Log::open(storage.clone(), key()).unwrap();
    let _ = log.append(&record(0)).unwrap();
    storage.full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(matches!(log.append(&record(1)), Err(AuditError::Storage(_))));
    }
    assert_eq!(verify_log(storage.as_ref(), &public(), None).unwrap().records, 1);
    storage.full.store(false, Ordering::SeqCst);
    assert_eq!(log.append(&record(1)).unwrap().index(), 1);
    let report = verify_log(storage.as_ref(), &public(), None).unwrap();
    assert_eq!((report.records, report.unfinished_bytes), (2, 0));
}

#[test]
fn many_writers_share_one_log() {
    let (storage, log) = log_of(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let log = &log;
            scope.spawn(move || {
                for n in 0..100 {
                    let receipt = log.append(&record(thread * 1_000 + n)).unwrap();
                    assert_eq!(log.entries(receipt.index(), 1).unwrap()[0].record, record(thread * 1_000 + n));
                }
            });
        }
    });
    assert_eq!(verify_log(storage.as_ref(), &public(), None).unwrap().records, 800);
}

#[test]
fn entries_can_be_followed_by_the_writer_and_by_a_reader() {
    let (storage, log) = log_of(600);
    let reader = LogReader::new(storage, public());
    for (from, limit, wanted) in [(0, 3, 0..3), (254, 5, 254..259), (510, 300, 510..600), (599, 9, 599..600), (600, 9, 600..600)] {
        let entries = log.entries(from, limit).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), wanted.clone().collect::<Vec<_>>());
        assert!(entries.iter().all(|entry| entry.record == record(entry.index)));
        assert_eq!(reader.entries(from, limit).unwrap(), entries);
    }
    assert_eq!(log.wait_beyond(600, Duration::from_millis(1)), 600);
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| log.wait_beyond(600, Duration::from_secs(60)));
        let _ = log.append(&record(600)).unwrap();
        assert_eq!(follower.join().unwrap(), 601);
    });
    let proof = reader.prove(600).unwrap().to_string();
    assert_eq!(verify_proof(&proof, &public()).unwrap().record, record(600));
}
