//! Tests of the embedded engine: conformance, comparison with the model, faults of the disk and damaged files.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use proptest::prelude::*;
use talon_ids::OrgId;

use super::segment::{Files, LocalFiles, SegmentFile, segment_blocks};
use super::{Embedded, Options};
use crate::conformance::{Draw, contents, plain_chunk, plain_rows, step, suite, transaction, zlib};
use crate::{Engine, Memory, ObjectName, Reader, Space, StoreError, Ticket, Work, export, import};

fn small() -> Options {
    Options { segment_bytes: 20_000, cache_bytes: 4 << 20, reserve_bytes: 0, ..Options::default() }
}

fn open(folder: &Path) -> Embedded {
    Embedded::open(folder, small()).unwrap()
}

fn put(store: &Embedded, key: &str) -> Ticket {
    let key = key.as_bytes().to_vec();
    store.submit(Box::new(move |txn| {
        txn.put(&OrgId::root(), Space::Settings, &key, key.clone());
        Ok(())
    }))
}

fn append(store: &Embedded, table: &str, first: u64, count: u32) -> Result<(), StoreError> {
    let table = ObjectName::new([table]);
    let rows = plain_rows(first, count);
    store.submit(Box::new(move |txn| txn.append_rows(&OrgId::root(), &table, Some(first), rows).map(drop))).wait()
}

fn segments(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(folder.join("segments")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn assert_sound(store: &Embedded) {
    let report = store.check().unwrap();
    assert!(report.is_sound(), "{report:?}");
}

#[test]
fn every_engine_conforms() {
    suite(&|| Arc::new(Memory::new()));
    let folder = tempfile::tempdir().unwrap();
    let number = AtomicU32::new(0);
    suite(&|| {
        let folder = folder.path().join(number.fetch_add(1, Ordering::Relaxed).to_string());
        Arc::new(open(&folder))
    });
}

#[test]
fn a_second_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let Err(error) = Embedded::open(folder.path(), small()) else { panic!("opened twice") };
    assert_eq!(error, StoreError::Locked { place: folder.path().display().to_string() });
    drop(store);
    drop(open(folder.path()));
}

#[test]
fn queued_transactions_are_done_before_the_store_closes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let tickets: Vec<_> = (0..500).map(|number| put(&store, &number.to_string())).collect();
    drop(store);
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    let store = open(folder.path());
    assert_eq!(store.scan(&OrgId::root(), Space::Settings, &crate::Scan::default()).unwrap().len(), 500);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn random_works_do_what_they_do_to_the_model(works in prop::collection::vec(prop::collection::vec(any::<u64>(), 1..5), 1..25), reopen in 0..25_usize) {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, model) = (open(folder.path()), Memory::new());
        let mut waiting = Vec::new();
        for (number, codes) in works.into_iter().enumerate() {
            let work = |codes: Vec<u64>| -> Work { Box::new(move |txn| codes.into_iter().try_for_each(|code| step(txn, code))) };
            waiting.push((store.submit(work(codes.clone())), model.submit(work(codes))));
            if number == reopen {
                drop(store);
                store = open(folder.path());
            }
        }
        for (ours, models) in waiting {
            prop_assert_eq!(ours.wait(), models.wait());
        }
        prop_assert_eq!(contents(&store), contents(model.reader()));
        store.reap().wait().unwrap();
        prop_assert_eq!(contents(&store), contents(model.reader()));
        assert_sound(&store);
    }
}

#[test]
fn an_export_moves_a_store_to_another_engine() {
    let folder = tempfile::tempdir().unwrap();
    let (store, copy) = (open(&folder.path().join("one")), open(&folder.path().join("two")));
    for number in 0..100 {
        drop(store.submit(transaction(1, number)).wait());
    }
    let mut stream = Vec::new();
    let totals = export(&store, &mut stream).unwrap();
    assert_eq!(import(&copy, &mut stream.as_slice()).unwrap(), totals);
    assert_eq!(contents(&copy), contents(&store));
    assert_sound(&copy);
    let model = Memory::new();
    import(&model, &mut stream.as_slice()).unwrap();
    assert_eq!(contents(model.reader()), contents(&store));
}

#[test]
fn deleted_data_frees_its_segments() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut draw = Draw::new(5);
    for number in 0..30 {
        let name = ObjectName::new([format!("u{number}")]);
        let chunk = plain_chunk(draw.bytes(9000));
        store.submit(Box::new(move |txn| txn.append_upload(&OrgId::root(), &name, 0, chunk))).wait().unwrap();
        let value = draw.bytes(9000);
        store
            .submit(Box::new(move |txn| {
                txn.put(&OrgId::root(), Space::Settings, b"replaced again and again", value);
                Ok(())
            }))
            .wait()
            .unwrap();
    }
    let before = segments(folder.path()).len();
    assert!(before > 25, "{before}");
    store
        .submit(Box::new(|txn| (0..30).try_for_each(|number| txn.delete_object(&OrgId::root(), &ObjectName::new([format!("u{number}")])))))
        .wait()
        .unwrap();
    store.reap().wait().unwrap();
    assert!(segments(folder.path()).len() <= 2, "{:?}", segments(folder.path()));
    assert_sound(&store);
    drop(store);
    assert_sound(&open(folder.path()));
}

#[test]
fn a_reader_of_a_deleted_table_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for number in 0..200 {
        append(&store, "t", number * 10, 10).unwrap();
    }
    let mut blocks = store.rows(&OrgId::root(), &ObjectName::new(["t"]), 0).unwrap();
    blocks.next().unwrap().unwrap();
    store.submit(Box::new(|txn| txn.delete_object(&OrgId::root(), &ObjectName::new(["t"])))).wait().unwrap();
    append(&store, "other", 0, 5000).unwrap();
    store.reap().wait().unwrap();
    assert_eq!(blocks.last().unwrap().unwrap_err(), StoreError::Gone);
}

/// Files whose writing fails while the budget is used up, and whose syncing fails when told to.
#[derive(Default)]
struct FaultyFiles {
    budget: Arc<AtomicI64>,
    failing_syncs: Arc<AtomicI64>,
    free: Arc<AtomicI64>,
}

struct FaultyFile {
    inner: Box<dyn SegmentFile>,
    budget: Arc<AtomicI64>,
    failing_syncs: Arc<AtomicI64>,
}

impl FaultyFiles {
    fn wrap(&self, inner: Box<dyn SegmentFile>) -> Box<dyn SegmentFile> {
        Box::new(FaultyFile { inner, budget: self.budget.clone(), failing_syncs: self.failing_syncs.clone() })
    }
}

impl Files for FaultyFiles {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        LocalFiles.create(path).map(|file| self.wrap(file))
    }

    fn resume(&self, path: &Path, len: u64) -> io::Result<Box<dyn SegmentFile>> {
        LocalFiles.resume(path, len).map(|file| self.wrap(file))
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        LocalFiles.sync_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        LocalFiles.sync_folder(folder)
    }

    fn free(&self, _folder: &Path) -> Option<u64> {
        u64::try_from(self.free.load(Ordering::Relaxed)).ok()
    }
}

impl SegmentFile for FaultyFile {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let left = self.budget.fetch_sub(data.len() as i64, Ordering::Relaxed);
        if left >= data.len() as i64 {
            return self.inner.append(data);
        }
        // A part is written, as by a disk that becomes full.
        self.inner.append(&data[..usize::try_from(left.max(0)).unwrap()])?;
        Err(io::ErrorKind::StorageFull.into())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.failing_syncs.fetch_sub(1, Ordering::Relaxed) > 0 {
            return Err(io::Error::other("the disk lost its mind"));
        }
        self.inner.sync()
    }
}

fn faulty() -> (Arc<FaultyFiles>, tempfile::TempDir, Embedded) {
    let files = Arc::new(FaultyFiles::default());
    files.budget.store(i64::MAX, Ordering::Relaxed);
    files.free.store(i64::MAX, Ordering::Relaxed);
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), small(), files.clone()).unwrap();
    (files, folder, store)
}

#[test]
fn a_full_disk_fails_the_group_and_loses_nothing() {
    let (files, folder, store) = faulty();
    let mut acknowledged = 0;
    for budget in [0, 1, 39, 40, 41, 100, 500, 3000, 17_000] {
        append(&store, "t", acknowledged, 100).unwrap();
        acknowledged += 100;
        files.budget.store(budget, Ordering::Relaxed);
        loop {
            match append(&store, "t", acknowledged, 100) {
                Ok(()) => acknowledged += 100,
                Err(StoreError::Full { .. }) => break,
                Err(other) => panic!("{other}"),
            }
        }
        // Records alone need the journal, which has no space either.
        assert!(matches!(put(&store, "while full").wait(), Err(StoreError::Full { .. })));
        files.budget.store(i64::MAX, Ordering::Relaxed);
        put(&store, "again").wait().unwrap();
    }
    append(&store, "t", acknowledged, 1).unwrap();
    let mut store = store;
    for _ in 0..2 {
        let rows: Vec<u8> = store.rows(&OrgId::root(), &ObjectName::new(["t"]), 0).unwrap().flat_map(|block| block.unwrap().1).collect();
        assert_eq!(rows, plain_rows(0, u32::try_from(acknowledged).unwrap() + 1).data);
        assert_sound(&store);
        drop(store);
        store = open(folder.path());
    }
}

#[test]
fn a_failed_sync_is_never_trusted_later() {
    let (files, folder, store) = faulty();
    append(&store, "t", 0, 10).unwrap();
    for round in 1..4 {
        files.failing_syncs.store(1, Ordering::Relaxed);
        let error = append(&store, "t", round * 10, 10).unwrap_err();
        assert!(error.to_string().contains("the disk lost its mind"), "{error}");
        append(&store, "t", round * 10, 10).unwrap();
    }
    assert_eq!(segments(folder.path()).len(), 4, "each failure starts another segment");
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.table(&OrgId::root(), &ObjectName::new(["t"])).unwrap().rows, 40);
    assert_sound(&store);
}

#[test]
fn a_reserve_is_left_on_the_disk() {
    let files = Arc::new(FaultyFiles::default());
    files.budget.store(i64::MAX, Ordering::Relaxed);
    files.free.store(5000, Ordering::Relaxed);
    let folder = tempfile::tempdir().unwrap();
    let options = Options { reserve_bytes: 4000, ..small() };
    let store = Embedded::open_with(folder.path(), options, files.clone()).unwrap();
    put(&store, "fits").wait().unwrap();
    let message = append(&store, "t", 0, 300).unwrap_err().to_string();
    assert!(message.starts_with("no space left for ") && message.ends_with("free some, writing then continues"), "{message}");
    files.free.store(1 << 20, Ordering::Relaxed);
    append(&store, "t", 0, 300).unwrap();
}

/// A store of one small segment with every codec, an upload and a value that lies apart.
fn one_segment(folder: &Path) {
    let store = Embedded::open(folder, Options { reserve_bytes: 0, ..Options::default() }).unwrap();
    store
        .submit(Box::new(|txn| {
            let root = OrgId::root();
            txn.append_rows(&root, &ObjectName::new(["t"]), None, plain_rows(0, 6))?;
            txn.append_rows(&root, &ObjectName::new(["t"]), None, zlib(&plain_rows(6, 6)))?;
            txn.append_upload(&root, &ObjectName::new(["u"]), 0, plain_chunk(Draw::new(1).bytes(60)))?;
            txn.put(&root, Space::Settings, b"apart", vec![7; 9000]);
            Ok(())
        }))
        .wait()
        .unwrap();
}

/// Whatever can be read is right; what cannot is reported as damaged. Returns how many things were reported.
fn read_damaged(store: &Embedded) -> usize {
    let root = OrgId::root();
    let mut damaged = 0;
    let mut report = |error: StoreError| match error {
        StoreError::Damaged { place, .. } => {
            assert!(place.contains(".seg at "), "{place}");
            damaged += 1;
        }
        other => panic!("{other}"),
    };
    for block in store.rows(&root, &ObjectName::new(["t"]), 0).unwrap() {
        match block {
            Ok((first, plain)) => assert_eq!(plain, plain_rows(first, 6).data),
            Err(error) => report(error),
        }
    }
    match store.read_upload(&root, &ObjectName::new(["u"]), 0, 100) {
        Ok(data) => assert_eq!(data, Draw::new(1).bytes(60)),
        Err(error) => report(error),
    }
    match store.get(&root, Space::Settings, b"apart") {
        Ok(value) => assert_eq!(value, Some(vec![7; 9000])),
        Err(error) => report(error),
    }
    damaged
}

#[test]
fn damage_at_any_place_of_a_segment_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    one_segment(folder.path());
    let path = segments(folder.path()).remove(0);
    let sound = std::fs::read(&path).unwrap();
    assert!(sound.len() < 1000, "{}", sound.len());
    // One store for all places: it opens a segment when it first reads it, so that the copy is damaged behind its header only.
    let store = open(folder.path());
    assert_eq!(read_damaged(&store), 0);
    for at in 40..sound.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bytes = sound.clone();
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(read_damaged(&store), 1, "byte {at} changed by {flip}");
        }
        let report = store.check().unwrap();
        assert_eq!(report.problem_count, 1, "{report:?}");
    }
    for cut in 40..sound.len() {
        std::fs::write(&path, &sound[..cut]).unwrap();
        assert!(read_damaged(&store) >= 1, "cut at {cut}");
        assert!(!store.check().unwrap().is_sound());
    }
    std::fs::write(&path, &sound).unwrap();
    assert_sound(&store);
    drop(store);
    for at in 0..40 {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read_damaged(&open(folder.path())), 4, "byte {at} of the header");
    }
    std::fs::remove_file(&path).unwrap();
    let store = open(folder.path());
    assert_eq!(read_damaged(&store), 4);
    assert!(!store.check().unwrap().is_sound());
}

#[test]
fn a_segment_is_read_without_its_index() {
    let folder = tempfile::tempdir().unwrap();
    one_segment(folder.path());
    let file = std::fs::read(segments(folder.path()).remove(0)).unwrap();
    let read = |file: &[u8]| segment_blocks(file.to_vec().into()).map(|blocks| blocks.collect::<Vec<_>>());
    let blocks: Vec<_> = read(&file).unwrap().into_iter().map(Result::unwrap).collect();
    let rows = |first| (u32::try_from(first).unwrap(), plain_rows(first, 6).data);
    assert_eq!(blocks.iter().map(|block| block.rows).collect::<Vec<_>>(), [6, 6, 0, 0]);
    assert_eq!((blocks[0].position as u32, blocks[0].data.clone()), rows(0));
    assert_eq!((blocks[1].position as u32, blocks[1].data.clone()), rows(6));
    assert_eq!(blocks[2].data, Draw::new(1).bytes(60));
    assert_eq!(blocks[3].data, vec![7; 9000]);
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 1;
        let wrong = read(&changed).map_or(1, |found| found.iter().filter(|block| block.is_err()).count());
        assert!(wrong >= 1, "byte {at}");
        assert!(read(&file[..at]).map_or(at < 40, |found| found.iter().flatten().count() < 4), "cut at {at}");
    }
}

#[test]
fn a_damaged_store_still_takes_new_data() {
    let folder = tempfile::tempdir().unwrap();
    one_segment(folder.path());
    std::fs::write(segments(folder.path()).remove(0), b"short").unwrap();
    let store = open(folder.path());
    let first = append(&store, "new", 0, 5);
    assert!(first.is_err(), "the segment is shorter than what was committed");
    append(&store, "new", 0, 5).unwrap();
    assert_eq!(store.table(&OrgId::root(), &ObjectName::new(["new"])).unwrap().rows, 5);
}

#[test]
fn what_a_crash_leaves_is_cut_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    one_segment(folder.path());
    let path = segments(folder.path()).remove(0);
    let sound = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&sound[..], b"TBLK and half a block"].concat()).unwrap();
    std::fs::write(folder.path().join("segments/0000000000000002.seg"), b"TALON").unwrap();
    let store = open(folder.path());
    assert_eq!(std::fs::read(&path).unwrap(), sound);
    assert_eq!(segments(folder.path()), [path]);
    assert_eq!(read_damaged(&store), 0);
    assert_sound(&store);
}

#[test]
fn segments_without_their_index_are_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    one_segment(folder.path());
    std::fs::remove_dir_all(folder.path().join("index")).unwrap();
    let Err(error) = Embedded::open(folder.path(), small()) else { panic!("opened") };
    assert!(error.to_string().contains("restore both from the same backup"), "{error}");
    assert_eq!(segments(folder.path()).len(), 1);
}

#[test]
fn a_damaged_index_never_gives_wrong_data() {
    let folder = tempfile::tempdir().unwrap();
    one_segment(&folder.path().join("sound"));
    let db = std::fs::read(folder.path().join("sound/index/db")).unwrap();
    let used = db.iter().rposition(|byte| *byte != 0).unwrap();
    let mut draw = Draw::new(11);
    for round in 0..40 {
        let copy = folder.path().join(round.to_string());
        copy_folder(&folder.path().join("sound"), &copy);
        let mut bytes = db.clone();
        bytes[draw.below(used)] ^= 1 << draw.below(8);
        std::fs::write(copy.join("index/db"), bytes).unwrap();
        // The damage may make the store unusable or empty, but what it gives out was put in.
        if let Ok(store) = Embedded::open(&copy, small()) {
            let root = OrgId::root();
            if let Ok(Some(value)) = store.get(&root, Space::Settings, b"apart") {
                assert_eq!(value, vec![7; 9000]);
            }
            for (first, plain) in store.rows(&root, &ObjectName::new(["t"]), 0).into_iter().flatten().flatten() {
                assert_eq!(plain, plain_rows(first, 6).data);
            }
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
