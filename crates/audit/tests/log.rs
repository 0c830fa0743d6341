//! The log under every violation that its storage can suffer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests say what must hold by unwrapping it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use expect_test::expect;
use talon_audit::{
    AuditError, Details, Log, LogReader, MemoryStorage, Phase, REDACTION, Record, SigningKey, Storage, StorageError, VerifierKey,
};
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

fn salts() -> Arc<dyn Rng> {
    Arc::new(Fixed(b's'))
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
    let log = Log::open(storage.clone(), key(), salts()).unwrap();
    for n in 0..records {
        assert_eq!(log.append(&record(n)).unwrap().index(), n);
    }
    (storage, log)
}

fn reopened(files: BTreeMap<String, Vec<u8>>) -> Result<Log, AuditError> {
    Log::open(Arc::new(MemoryStorage::with_files(files)), key(), salts())
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
        checkpoint example.com/audit\n2\nhstWUr7MAA21VyJpdnFSFCQ4gQ128eR77AfdPf6oQbM=\n\n\xe2\x80\x94 example.com/audit +AxEIvlN8G+ceOsbX1BnuR++vvnmFlRE4tivd0xcmpdRRZFm7jNnKWiUf8ip1f70jV8JsRoClNePhjXuZzk3WZPqZAU=\n
        journal/000 \x00\x00\x01\x9c\x00\x01\x00\xba{\"time_ns\":1700000000000000000,\"org\":\"root\",\"principal\":\"alice\",\"operation\":\"user_create\",\"phase\":\"intended\",\"details\":\"f2dc6366f9fd754090098e823e712bbddb174d1ba10005bac90643e5b4270d7b\"}\x00\'ssssssssssssssssssssssssssssssss{\"n\":0}example.com/audit\n1\nRl2YjTdBBNBsVdFrgD4y3WZQJJ1yy6W2edysFjT6ZZ8=\n\n\xe2\x80\x94 example.com/audit +AxEIuWqlEhbGZ+R4q0zUv9k6ts1iZuzXaejEUxGaF/JBh5ejZ1inhS8vpTCqYtGFp5UsK8X7kpVfZZZNNPQcc9J0gI=\n\x00\x00\x01\x9c\x00\x01\x00\xba{\"time_ns\":1700000000000000000,\"org\":\"root\",\"principal\":\"alice\",\"operation\":\"user_create\",\"phase\":\"intended\",\"details\":\"40d4836280da89db5d438b5f9d7e99f4957166fadf2abb9688c5de800641e888\"}\x00\'ssssssssssssssssssssssssssssssss{\"n\":1}example.com/audit\n2\nhstWUr7MAA21VyJpdnFSFCQ4gQ128eR77AfdPf6oQbM=\n\n\xe2\x80\x94 example.com/audit +AxEIvlN8G+ceOsbX1BnuR++vvnmFlRE4tivd0xcmpdRRZFm7jNnKWiUf8ip1f70jV8JsRoClNePhjXuZzk3WZPqZAU=\n
        tile/0/000.p/2 F]\x98\x8d7A\x04\xd0lU\xd1k\x80>2\xddfP$\x9dr\xcb\xa5\xb6y\xdc\xac\x164\xfae\x9f\x84\x9fA\x16\x93\x00\nk\xdb\xb3Ea#\xa8a\xa3=\xa9\n1\x8f\xa20\xbb\xaf\xce\xf8\x05a\xf3\xce\xc7
        tile/entries/000.p/2 \x00\xba{\"time_ns\":1700000000000000000,\"org\":\"root\",\"principal\":\"alice\",\"operation\":\"user_create\",\"phase\":\"intended\",\"details\":\"f2dc6366f9fd754090098e823e712bbddb174d1ba10005bac90643e5b4270d7b\"}\x00\xba{\"time_ns\":1700000000000000000,\"org\":\"root\",\"principal\":\"alice\",\"operation\":\"user_create\",\"phase\":\"intended\",\"details\":\"40d4836280da89db5d438b5f9d7e99f4957166fadf2abb9688c5de800641e888\"}
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
        extra ALp7InRpbWVfbnMiOjE3MDAwMDAwMDAwMDAwMDAwMDAsIm9yZyI6InJvb3QiLCJwcmluY2lwYWwiOiJhbGljZSIsIm9wZXJhdGlvbiI6InVzZXJfY3JlYXRlIiwicGhhc2UiOiJpbnRlbmRlZCIsImRldGFpbHMiOiI0MGQ0ODM2MjgwZGE4OWRiNWQ0MzhiNWY5ZDdlOTlmNDk1NzE2NmZhZGYyYWJiOTY4OGM1ZGU4MDA2NDFlODg4In0AJ3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3NzeyJuIjoxfQ==
        index 1
        Rl2YjTdBBNBsVdFrgD4y3WZQJJ1yy6W2edysFjT6ZZ8=
        k2lVBByq0Om+9T8B/MbDdAL1lZkiu858wXeRKVW/evY=

        example.com/audit
        3
        9RK5FFnHIhPTYG6LoDr8oVTHkgLxuWpNla7ygc/ddY4=

        — example.com/audit +AxEIjV4L1Ke6aINyi6ELPcD8Hisv/6spzdYYZdywFnaRWZBMVfQtJ21+BizfEpqJXSRuNwfoCdPlTmbqxUCnUZwdQo=
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
    let log = Log::open(storage.clone(), key(), salts()).unwrap();
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
        let step = if content.len() > 4_000 { 157 } else { 3 };
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
        if !matches!(name.as_str(), "tile/entries/000" | "opening/000") {
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
    assert!(matches!(Log::open(storage, other(), salts()), Err(AuditError::Checkpoint { .. })));
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
    let log = Log::open(crashing.clone(), key(), salts()).unwrap();
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
    let log = Log::open(storage.clone(), key(), salts()).unwrap();
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
    let log = Log::open(storage.clone(), key(), salts()).unwrap();
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
fn a_checkpoint_that_went_with_the_power_is_in_the_journal() {
    for records in [1, 3, 255, 257, 300, 512, 513] {
        let (storage, log) = log_of(records);
        let checkpoint = log.checkpoint();
        for lost in [Vec::new(), vec![0; checkpoint.len()]] {
            let mut files = storage.files();
            files.insert("checkpoint".to_owned(), lost);
            assert!(verify_log(&MemoryStorage::with_files(files.clone()), &public(), None).is_err());
            if records % 256 == 0 {
                // The checkpoint of a full bundle is durable before the journal goes, so this was no power failure.
                assert!(reopened(files).is_err(), "{records}");
                continue;
            }
            let again = reopened(files.clone()).unwrap();
            assert_eq!((again.size(), again.checkpoint()), (records, checkpoint.clone()));
            let mut cut = files;
            cut.retain(|name, _| !name.starts_with("journal"));
            assert!(reopened(cut).is_err(), "{records}");
        }
    }
}

fn redaction(index: u64) -> Record {
    let mut record = Record::new(1_800_000_000_000_000_000, "root".parse().unwrap(), "admin", REDACTION, Phase::Intended);
    record.details = Details::new().number("record", index).text("reason", "a name that must go");
    record
}

#[test]
fn details_are_erased_for_good_and_proofs_stay_valid() {
    let secret = |n| format!("{{\"n\":{n}}}");
    for at in [3, 255, 256, 299] {
        let (storage, log) = log_of(300);
        log.publish().unwrap();
        let before = log.prove(at).unwrap().to_string();
        assert_eq!(log.redact(at, &redaction(at)).unwrap().index(), 300);

        let bytes: Vec<u8> = storage.files().into_values().flatten().collect();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&secret(at)) && text.contains(&secret(at - 1)), "{at}");
        let report = verify_log(storage.as_ref(), &public(), None).unwrap();
        assert_eq!((report.records, report.redacted), (301, 1));
        assert_eq!(verify_proof(&before, &public()).unwrap().record, record(at), "who kept a proof keeps it");
        let after = verify_proof(&log.prove(at).unwrap().to_string(), &public()).unwrap();
        assert!(after.redacted && after.record.details == Details::new() && after.record.principal == "alice");

        let again = reopened(storage.files()).unwrap();
        let entries = again.entries(at - 1, 3).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.redacted).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(again.append(&record(301)).unwrap().index(), 301);
        assert_eq!(verify_log(storage.as_ref(), &public(), None).unwrap().redacted, 1);
    }
}

#[test]
fn an_erasure_needs_its_record() {
    let (storage, log) = log_of(300);
    assert!(matches!(log.redact(3, &redaction(4)), Err(AuditError::Record(_))));
    assert!(matches!(log.redact(3, &record(3)), Err(AuditError::Record(_))));
    assert!(matches!(log.redact(300, &redaction(300)), Err(AuditError::OutOfRange { index: 300, size: 300 })));
    let _ = log.redact(3, &redaction(3)).unwrap();
    assert!(matches!(log.redact(300, &redaction(300)), Err(AuditError::Record(_))), "an erasure cannot be erased");

    let (plain, _) = log_of(300);
    let mut files = plain.files();
    files.insert("opening/000".to_owned(), storage.files().remove("opening/000").unwrap());
    let found = verify_log(&MemoryStorage::with_files(files), &public(), None).unwrap_err();
    expect!["record 3 of the audit log was changed or is damaged: its details are gone, and no record says why"]
        .assert_eq(&found.to_string());
}

#[test]
fn what_was_changed_is_named_by_its_number() {
    let (storage, _) = log_of(600);
    let change = |name: &str, from: &str, to: &str| {
        let mut files = storage.files();
        let content = files.get_mut(name).unwrap();
        let at = content.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        content[at..at + from.len()].copy_from_slice(to.as_bytes());
        verify_log(&MemoryStorage::with_files(files), &public(), None).unwrap_err().to_string()
    };
    expect!["record 7 of the audit log was changed or is damaged: it is not what was recorded"].assert_eq(&change(
        "opening/000",
        "{\"n\":7}",
        "{\"n\":8}",
    ));
    expect!["record 0 of the audit log was changed or is damaged: it does not fit its hash in the tiles"].assert_eq(&change(
        "tile/entries/000",
        "alice",
        "alicf",
    ));
    expect!["record 520 of the audit log was changed or is damaged: it is not what was recorded"].assert_eq(&change(
        "journal/002",
        "{\"n\":520}",
        "{\"n\":521}",
    ));
}

#[test]
fn a_static_copy_has_what_publishing_leaves_and_no_details() {
    for records in [0, 1, 255, 256, 300, 515] {
        let (storage, log) = log_of(records);
        let reader = LogReader::new(storage.clone(), public());
        let mut copy = BTreeMap::new();
        let mut keep = |name: &str, content: &[u8]| -> Result<(), AuditError> {
            copy.insert(name.to_owned(), content.to_vec());
            Ok(())
        };
        assert_eq!(reader.static_files(&mut keep).unwrap(), records);
        log.publish().unwrap();
        let mut published = storage.files();
        published.retain(|name, _| !name.starts_with("journal") && !name.starts_with("opening"));
        assert_eq!(copy, published, "{records}");
    }
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
