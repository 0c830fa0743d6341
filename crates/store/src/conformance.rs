//! What every engine must do, as cases that run against any of them, and random transactions whose effect is compared with the model.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "the assertions of this module are its purpose")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use talon_ids::OrgId;

use crate::{BlockEncoding, Engine, ObjectName, Reader, RowBlock, Scan, Space, StoreError, Txn, UploadInfo, Work};

/// Runs every case, each on an engine of its own.
pub fn suite(make: &dyn Fn() -> Arc<dyn Engine>) {
    records_are_ordered(&*make());
    scans_stop_where_they_should(&*make());
    organisations_and_families_are_apart(&*make());
    a_failing_work_undoes_only_itself(&*make());
    a_work_reads_its_own_writes(&make());
    large_values_come_back(&*make());
    rows_continue_and_are_found(&*make());
    uploads_continue_and_are_found(&*make());
    lying_blocks_are_refused(&*make());
    names_are_never_paths(&*make());
    deleted_objects_are_gone(&*make());
    a_reader_of_rows_keeps_its_end(&*make());
    works_cannot_submit(&make());
    panics_are_undone(&*make());
    threads_do_not_lose_updates(&make());
}

fn root() -> OrgId {
    OrgId::root()
}

fn org(text: &str) -> OrgId {
    text.parse().unwrap()
}

fn name(components: &[&str]) -> ObjectName {
    ObjectName::new(components.iter().copied())
}

fn commit(engine: &dyn Engine, work: impl FnOnce(&mut dyn Txn) -> Result<(), StoreError> + Send + 'static) {
    engine.submit(Box::new(work)).wait().unwrap();
}

fn put(engine: &dyn Engine, key: &[u8], value: &[u8]) {
    let (key, value) = (key.to_vec(), value.to_vec());
    commit(engine, move |txn| {
        txn.put(&root(), Space::Settings, &key, value);
        Ok(())
    });
}

fn setting(engine: &dyn Engine, key: &[u8]) -> Option<Vec<u8>> {
    engine.reader().get(&root(), Space::Settings, key).unwrap()
}

/// A plain block of rows `first..first + count`.
#[must_use]
pub fn plain_rows(first: u64, count: u32) -> RowBlock {
    let text: String = (first..first + u64::from(count)).map(|row| format!("{{\"row\":{row}}}\n")).collect();
    RowBlock { plain_len: text.len() as u64, data: text.into(), count, encoding: BlockEncoding::Plain }
}

/// A plain chunk of an upload.
#[must_use]
pub fn plain_chunk(data: impl Into<Bytes>) -> RowBlock {
    let data = data.into();
    RowBlock { count: 0, plain_len: data.len() as u64, data, encoding: BlockEncoding::Plain }
}

/// The same block as a zlib stream.
#[must_use]
pub fn zlib(block: &RowBlock) -> RowBlock {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&block.data).unwrap();
    RowBlock { data: encoder.finish().unwrap().into(), encoding: BlockEncoding::Zlib, ..block.clone() }
}

fn all_rows(reader: &dyn Reader, org: &OrgId, table: &ObjectName, from: u64) -> (Option<u64>, String) {
    let (mut first, mut text) = (None, String::new());
    for block in reader.rows(org, table, from).unwrap() {
        let (index, plain) = block.unwrap();
        first.get_or_insert(index);
        text.push_str(std::str::from_utf8(&plain).unwrap());
    }
    (first, text)
}

fn records_are_ordered(engine: &dyn Engine) {
    let keys: [&[u8]; 6] = [b"", b"\0", b"\0\xff", b"a", b"a\0", b"\xff\xff"];
    for key in keys.iter().rev() {
        put(engine, key, key);
    }
    let found = engine.reader().scan(&root(), Space::Settings, &Scan::default()).unwrap();
    assert_eq!(found, keys.map(|key| (key.to_vec(), key.to_vec())));
    assert_eq!(setting(engine, b"a"), Some(b"a".to_vec()));
    assert_eq!(setting(engine, b"b"), None);
    commit(engine, |txn| {
        txn.delete(&root(), Space::Settings, b"a");
        txn.delete(&root(), Space::Settings, b"was never there");
        Ok(())
    });
    assert_eq!(setting(engine, b"a"), None);
    assert_eq!(setting(engine, b"a\0"), Some(b"a\0".to_vec()));
}

fn scans_stop_where_they_should(engine: &dyn Engine) {
    commit(engine, |txn| {
        for number in 0..3000_u32 {
            txn.put(&root(), Space::Tasks, format!("k{number:04}").as_bytes(), number.to_string().into_bytes());
        }
        txn.put(&root(), Space::Tasks, b"l", Vec::new());
        Ok(())
    });
    let scan = |scan: Scan| -> Vec<String> {
        let found = engine.reader().scan(&root(), Space::Tasks, &scan).unwrap();
        found.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect()
    };
    let by = |prefix: &str, after: Option<&str>, reverse, limit| Scan {
        prefix: prefix.into(),
        after: after.map(|after| after.as_bytes().to_vec()),
        reverse,
        limit,
    };
    assert_eq!(scan(Scan::default()).len(), 3001);
    assert_eq!(scan(by("k", None, false, 0)).len(), 3000);
    assert_eq!(scan(by("k1", None, false, 2)), ["k1000", "k1001"]);
    assert_eq!(scan(by("k1", None, true, 2)), ["k1999", "k1998"]);
    assert_eq!(scan(by("k", Some("k2997"), false, 0)), ["k2998", "k2999"]);
    assert_eq!(scan(by("k", Some("k0002"), true, 0)), ["k0001", "k0000"]);
    assert_eq!(scan(by("k", Some("a"), false, 1)), ["k0000"]);
    assert_eq!(scan(by("k", Some("z"), true, 1)), ["k2999"]);
    assert!(scan(by("k", Some("z"), false, 0)).is_empty());
    assert!(scan(by("k", Some("a"), true, 0)).is_empty());
    assert_eq!(scan(by("", None, true, 1)), ["l"]);
    assert_eq!(scan(by("k", None, true, 0)).len(), 3000);
}

fn organisations_and_families_are_apart(engine: &dyn Engine) {
    assert!(engine.reader().orgs().unwrap().is_empty());
    commit(engine, |txn| {
        txn.put(&org("O1"), Space::Flows, b"k", b"one".to_vec());
        txn.put(&org("O12"), Space::Flows, b"k", b"twelve".to_vec());
        txn.put(&org("O1"), Space::FlowStats, b"k", b"stats".to_vec());
        txn.append_rows(&org("OTable"), &name(&["t"]), None, plain_rows(0, 1)).map(drop)
    });
    let reader = engine.reader();
    assert_eq!(reader.get(&root(), Space::Flows, b"k").unwrap(), None);
    assert_eq!(reader.get(&org("O1"), Space::Flows, b"k").unwrap(), Some(b"one".to_vec()));
    assert_eq!(reader.scan(&org("O1"), Space::Flows, &Scan::default()).unwrap().len(), 1);
    assert_eq!(reader.table(&org("O1"), &name(&["t"])).unwrap().rows, 0);
    assert_eq!(reader.orgs().unwrap(), [org("O1"), org("O12"), org("OTable")]);
}

fn a_failing_work_undoes_only_itself(engine: &dyn Engine) {
    let step = |number: u32, fail: bool| -> Work {
        Box::new(move |txn| {
            txn.put(&root(), Space::Settings, &number.to_be_bytes(), Vec::new());
            let rows = txn.table(&root(), &name(&["t"]))?.rows;
            txn.append_rows(&root(), &name(&["t"]), None, plain_rows(rows, 1))?;
            txn.append_upload(&root(), &name(&["u"]), rows, plain_chunk(vec![b'x']))?;
            if fail { Err(StoreError::Refused("no".into())) } else { Ok(()) }
        })
    };
    let tickets: Vec<_> = (0..40).map(|number| (number, engine.submit(step(number, number % 3 == 1)))).collect();
    for (number, ticket) in tickets {
        let expected = if number % 3 == 1 { Err(StoreError::Refused("no".into())) } else { Ok(()) };
        assert_eq!(ticket.wait(), expected);
        assert_eq!(setting(engine, &number.to_be_bytes()).is_some(), number % 3 != 1);
    }
    let (_, text) = all_rows(engine.reader(), &root(), &name(&["t"]), 0);
    assert_eq!(text.as_bytes(), plain_rows(0, 27).data);
    assert_eq!(engine.reader().upload(&root(), &name(&["u"])).unwrap(), Some(UploadInfo { bytes: 27, complete: false }));
}

fn a_work_reads_its_own_writes(engine: &Arc<dyn Engine>) {
    put(&**engine, b"old", b"1");
    put(&**engine, b"gone", b"1");
    commit(&**engine, |txn| txn.append_rows(&root(), &name(&["t"]), None, plain_rows(0, 2)).map(drop));
    let outside = engine.clone();
    commit(&**engine, move |txn| {
        txn.put(&root(), Space::Settings, b"new", b"2".to_vec());
        txn.put(&root(), Space::Settings, b"old", b"2".to_vec());
        txn.delete(&root(), Space::Settings, b"gone");
        let expected = [(b"new".to_vec(), b"2".to_vec()), (b"old".to_vec(), b"2".to_vec())];
        assert_eq!(txn.scan(&root(), Space::Settings, &Scan::default())?, expected);
        let last = Scan { reverse: true, limit: 1, ..Scan::default() };
        assert_eq!(txn.scan(&root(), Space::Settings, &last)?, expected[1..]);
        assert_eq!(txn.get(&root(), Space::Settings, b"gone")?, None);

        assert_eq!(txn.append_rows(&root(), &name(&["t"]), Some(2), plain_rows(2, 2))?, 2);
        assert_eq!(txn.append_rows(&root(), &name(&["t"]), Some(4), zlib(&plain_rows(4, 2)))?, 4);
        for from in 0..6 {
            let (first, text) = all_rows(txn, &root(), &name(&["t"]), from);
            assert_eq!(first, Some(from / 2 * 2));
            assert_eq!(text.as_bytes(), plain_rows(from / 2 * 2, 6 - u32::try_from(from).unwrap() / 2 * 2).data);
        }
        txn.append_upload(&root(), &name(&["u"]), 0, plain_chunk(&b"abc"[..]))?;
        txn.append_upload(&root(), &name(&["u"]), 3, zlib(&plain_chunk(&b"def"[..])))?;
        assert_eq!(txn.read_upload(&root(), &name(&["u"]), 2, 2)?, "cd");
        assert_eq!(txn.objects(&root(), &name(&[]))?, [name(&["t"]), name(&["u"])]);

        assert_eq!(setting(&*outside, b"new"), None);
        assert_eq!(setting(&*outside, b"old"), Some(b"1".to_vec()));
        assert_eq!(outside.reader().table(&root(), &name(&["t"]))?.rows, 2);
        assert_eq!(outside.reader().upload(&root(), &name(&["u"]))?, None);
        Ok(())
    });
    assert_eq!(setting(&**engine, b"new"), Some(b"2".to_vec()));
    assert_eq!(engine.reader().table(&root(), &name(&["t"])).unwrap().rows, 6);
}

fn large_values_come_back(engine: &dyn Engine) {
    let mut draw = Draw::new(1);
    for len in [0, 1, 8191, 8192, 8193, 100_000, 3_000_000] {
        let value: Vec<u8> = draw.bytes(len);
        put(engine, b"large", &value);
        assert!(setting(engine, b"large") == Some(value), "{len} bytes");
    }
    put(engine, b"large", b"small");
    assert_eq!(setting(engine, b"large"), Some(b"small".to_vec()));
    let refused = engine.submit(Box::new(|txn| {
        txn.put(&root(), Space::Settings, b"too large", vec![0; (16 << 20) + 1]);
        Ok(())
    }));
    assert!(matches!(refused.wait(), Err(StoreError::Invalid(_))));
    assert_eq!(setting(engine, b"too large"), None);
}

fn rows_continue_and_are_found(engine: &dyn Engine) {
    let table = || name(&["flows", "F.1", "Some.Artifact"]);
    let append = |expected, block| engine.submit(Box::new(move |txn| txn.append_rows(&root(), &table(), expected, block).map(drop))).wait();
    assert_eq!(engine.reader().table(&root(), &table()).unwrap().rows, 0);
    assert_eq!(all_rows(engine.reader(), &root(), &table(), 0), (None, String::new()));
    for block in 0..200 {
        let rows = plain_rows(block * 5, 5);
        append(Some(block * 5), if block % 2 == 0 { rows } else { zlib(&rows) }).unwrap();
    }
    assert_eq!(append(Some(5), plain_rows(5, 5)), Err(StoreError::OutOfSequence { expected: 5, stored: 1000 }));
    assert_eq!(append(Some(1001), plain_rows(5, 5)), Err(StoreError::OutOfSequence { expected: 1001, stored: 1000 }));
    append(None, plain_rows(0, 0)).unwrap();
    let reader = engine.reader();
    let info = reader.table(&root(), &table()).unwrap();
    assert_eq!((info.rows, info.bytes), (1000, plain_rows(0, 1000).plain_len));
    for from in [0, 1, 4, 5, 499, 500, 995, 999] {
        let (first, text) = all_rows(reader, &root(), &table(), from);
        let start = from / 5 * 5;
        assert_eq!(first, Some(start));
        assert_eq!(text.as_bytes(), plain_rows(start, 1000 - u32::try_from(start).unwrap()).data);
    }
    assert_eq!(all_rows(reader, &root(), &table(), 1000).0, None);
    assert_eq!(all_rows(reader, &root(), &table(), u64::MAX).0, None);
}

fn uploads_continue_and_are_found(engine: &dyn Engine) {
    let upload = || name(&["uploads", "auto", "C:", "file"]);
    let append = |offset, data: &[u8]| {
        let chunk = plain_chunk(data.to_vec());
        engine.submit(Box::new(move |txn| txn.append_upload(&root(), &upload(), offset, chunk))).wait()
    };
    let finish = || commit(engine, move |txn| txn.finish_upload(&root(), &upload()));
    let info = || engine.reader().upload(&root(), &upload()).unwrap();
    let read = |offset, len| engine.reader().read_upload(&root(), &upload(), offset, len).unwrap();
    assert_eq!(info(), None);
    assert!(read(0, 10).is_empty());
    assert_eq!(append(1, b"x"), Err(StoreError::OutOfSequence { expected: 1, stored: 0 }));
    assert_eq!(info(), None);
    append(0, b"0123").unwrap();
    append(4, b"4567").unwrap();
    append(4, b"xx").unwrap();
    append(0, b"xxxx").unwrap();
    assert_eq!(append(6, b"xxx"), Err(StoreError::OutOfSequence { expected: 6, stored: 8 }));
    assert_eq!(append(9, b""), Err(StoreError::OutOfSequence { expected: 9, stored: 8 }));
    assert_eq!(append(u64::MAX, b"x"), Err(StoreError::OutOfSequence { expected: u64::MAX, stored: 8 }));
    assert_eq!(info(), Some(UploadInfo { bytes: 8, complete: false }));
    finish();
    append(4, b"4567").unwrap();
    assert_eq!(info(), Some(UploadInfo { bytes: 8, complete: true }));
    for offset in 0..9 {
        for len in 0..9 {
            let end = (offset + len).min(8);
            assert_eq!(read(offset as u64, len), &b"01234567"[offset..end]);
        }
    }
    assert!(read(u64::MAX, usize::MAX).is_empty());
    append(0, b"new").unwrap();
    assert_eq!(info(), Some(UploadInfo { bytes: 3, complete: false }));
    assert_eq!(read(0, usize::MAX), "new");
    finish();
    append(3, b"er").unwrap();
    assert_eq!((read(0, 9), info()), ("newer".into(), Some(UploadInfo { bytes: 5, complete: false })));

    commit(engine, |txn| txn.finish_upload(&root(), &name(&["empty"])));
    assert_eq!(engine.reader().upload(&root(), &name(&["empty"])).unwrap(), Some(UploadInfo { bytes: 0, complete: true }));
}

fn lying_blocks_are_refused(engine: &dyn Engine) {
    let honest = plain_rows(0, 3);
    let liars = [
        RowBlock { count: 4, ..honest.clone() },
        RowBlock { plain_len: 3, ..honest.clone() },
        RowBlock { encoding: BlockEncoding::Zlib, ..honest.clone() },
        RowBlock { count: 2, ..zlib(&honest) },
        RowBlock { plain_len: honest.plain_len + 1, ..zlib(&honest) },
        RowBlock { plain_len: 1, ..zlib(&plain_chunk(vec![0; 1 << 20])) },
        RowBlock { plain_len: u64::MAX, ..honest.clone() },
        RowBlock { count: 1, ..plain_chunk(&b"no object\n"[..]) },
    ];
    for block in liars {
        let refused = engine.submit(Box::new(move |txn| {
            txn.put(&root(), Space::Settings, b"k", Vec::new());
            txn.append_rows(&root(), &name(&["t"]), None, block).map(drop)
        }));
        assert!(matches!(refused.wait(), Err(StoreError::Invalid(_))));
    }
    let short = RowBlock { plain_len: 1, ..zlib(&plain_chunk(&b"abc"[..])) };
    let refused = engine.submit(Box::new(move |txn| txn.append_upload(&root(), &name(&["u"]), 0, short)));
    assert!(matches!(refused.wait(), Err(StoreError::Invalid(_))));
    assert!(engine.reader().orgs().unwrap().is_empty());
}

fn names_are_never_paths(engine: &dyn Engine) {
    let names = [
        name(&["..", "..", "etc", "passwd"]),
        name(&["/"]),
        name(&["a\0b"]),
        name(&["a"]),
        name(&["a", "b"]),
        name(&["ab"]),
        name(&["a/b"]),
        name(&["C:\\Windows\\..", "NUL", "\u{202e}x"]),
        name(&["x"; 500]),
    ];
    for (index, table) in names.iter().cloned().enumerate() {
        commit(engine, move |txn| txn.append_rows(&root(), &table, None, plain_rows(index as u64, 1)).map(drop));
    }
    for (index, table) in names.iter().enumerate() {
        assert_eq!(all_rows(engine.reader(), &root(), table, 0).1, format!("{{\"row\":{index}}}\n"));
    }
    let mut sorted = names.to_vec();
    sorted.sort();
    assert_eq!(engine.reader().objects(&root(), &name(&[])).unwrap(), sorted);
    assert_eq!(engine.reader().objects(&root(), &name(&["a"])).unwrap(), [name(&["a"]), name(&["a", "b"])]);
    for bad in [name(&[]), name(&["a", ""]), name(&["x".repeat(17 << 10).as_str(); 4])] {
        let refused = engine.submit(Box::new(move |txn| txn.append_rows(&root(), &bad, None, plain_rows(0, 1)).map(drop)));
        assert!(matches!(refused.wait(), Err(StoreError::Invalid(_))));
    }
}

fn deleted_objects_are_gone(engine: &dyn Engine) {
    let fill = |txn: &mut dyn Txn, first| {
        txn.append_rows(&root(), &name(&["o"]), Some(0), plain_rows(first, 3))?;
        txn.append_upload(&root(), &name(&["o"]), 0, plain_chunk(&b"bytes"[..]))
    };
    commit(engine, move |txn| fill(txn, 0));
    commit(engine, |txn| txn.delete_object(&root(), &name(&["o"])));
    assert_eq!(engine.reader().table(&root(), &name(&["o"])).unwrap().rows, 0);
    assert_eq!(engine.reader().upload(&root(), &name(&["o"])).unwrap(), None);
    assert!(engine.reader().objects(&root(), &name(&[])).unwrap().is_empty());
    commit(engine, move |txn| {
        fill(txn, 10)?;
        txn.delete_object(&root(), &name(&["o"]))?;
        fill(txn, 20)?;
        txn.delete_object(&root(), &name(&["was never there"]))
    });
    assert_eq!(all_rows(engine.reader(), &root(), &name(&["o"]), 0).1.as_bytes(), plain_rows(20, 3).data);
    assert_eq!(engine.reader().read_upload(&root(), &name(&["o"]), 0, 9).unwrap(), "bytes");
}

fn a_reader_of_rows_keeps_its_end(engine: &dyn Engine) {
    let append = |first| commit(engine, move |txn| txn.append_rows(&root(), &name(&["t"]), Some(first), plain_rows(first, 2)).map(drop));
    append(0);
    append(2);
    let mut blocks = engine.reader().rows(&root(), &name(&["t"]), 0).unwrap();
    assert_eq!(blocks.next().unwrap().unwrap(), (0, plain_rows(0, 2).data));
    append(4);
    assert_eq!(blocks.next().unwrap().unwrap(), (2, plain_rows(2, 2).data));
    assert!(blocks.next().is_none());
}

fn works_cannot_submit(engine: &Arc<dyn Engine>) {
    let inner = engine.clone();
    commit(&**engine, move |txn| {
        txn.put(&root(), Space::Settings, b"outer", Vec::new());
        assert_eq!(inner.submit(Box::new(|_| Ok(()))).wait(), Err(StoreError::Nested));
        Ok(())
    });
    assert!(setting(&**engine, b"outer").is_some());
}

fn panics_are_undone(engine: &dyn Engine) {
    let failed = engine.submit(Box::new(|txn| {
        txn.put(&root(), Space::Settings, b"k", Vec::new());
        txn.append_rows(&root(), &name(&["t"]), None, plain_rows(0, 1))?;
        std::panic::resume_unwind(Box::new("a defect"))
    }));
    assert_eq!(failed.wait(), Err(StoreError::Panicked));
    assert!(engine.reader().orgs().unwrap().is_empty());
    put(engine, b"k", b"goes on");
}

fn threads_do_not_lose_updates(engine: &Arc<dyn Engine>) {
    let done = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (engine, done) = (engine.clone(), done.clone());
        thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let pair = engine.reader().scan(&root(), Space::Settings, &Scan::default()).unwrap();
                assert!(pair.is_empty() || pair[0].1 == pair[1].1, "half a transaction was seen");
            }
        })
    };
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let engine = engine.clone();
            thread::spawn(move || {
                for _ in 0..25 {
                    commit(&*engine, |txn| {
                        let stored = txn.get(&root(), Space::Settings, b"one")?;
                        let next = stored.map_or(0, |value| u64::from_be_bytes(value.try_into().unwrap())) + 1;
                        txn.put(&root(), Space::Settings, b"one", next.to_be_bytes().to_vec());
                        txn.put(&root(), Space::Settings, b"two", next.to_be_bytes().to_vec());
                        txn.append_rows(&root(), &name(&["t"]), Some(next - 1), plain_rows(next - 1, 1)).map(drop)
                    });
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    done.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
    assert_eq!(setting(&**engine, b"one"), Some(200_u64.to_be_bytes().to_vec()));
    assert_eq!(all_rows(engine.reader(), &root(), &name(&["t"]), 0).1.as_bytes(), plain_rows(0, 200).data);
}

/// A small generator of numbers that look random and are the same for the same seed.
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// Starts from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (SplitMix64).
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % end as u64).unwrap()
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number().to_le_bytes()[0]).collect()
    }
}

/// A transaction that depends on its seed and number only, and on what is stored when it runs. If it succeeds, it leaves its number in
/// [`last`].
#[must_use]
pub fn transaction(seed: u64, number: u64) -> Work {
    Box::new(move |txn| {
        let mut draw = Draw::new(seed ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d));
        for _ in 0..=draw.below(6) {
            step(txn, draw.number())?;
        }
        txn.put(&root(), Space::Deployment, b"last", number.to_be_bytes().to_vec());
        Ok(())
    })
}

/// The number of the last [`transaction`] that succeeded.
#[must_use]
pub fn last(reader: &dyn Reader) -> Option<u64> {
    let stored = reader.get(&root(), Space::Deployment, b"last").unwrap();
    stored.map(|value| u64::from_be_bytes(value.try_into().unwrap()))
}

/// One random change. Some are refused, by the engine or by themselves, and some refusals are swallowed.
///
/// # Errors
/// What the engine refused with.
pub fn step(txn: &mut dyn Txn, code: u64) -> Result<(), StoreError> {
    let mut draw = Draw::new(code);
    let org = [OrgId::root(), org("O1"), org("O2")][draw.below(3)].clone();
    let space = Space::ALL[draw.below(3)];
    let key = [b"k".to_vec(), draw.below(20).to_string().into_bytes()].concat();
    let object = name(&[["a", "b", "a\0"][draw.below(3)], ["x", "y", "z/.."][draw.below(3)]]);
    let result = match draw.below(16) {
        0..=3 => {
            let len = [0, 10, 100, 9000, 40_000][draw.below(5)];
            txn.put(&org, space, &key, draw.bytes(len));
            Ok(())
        }
        4..=5 => {
            txn.delete(&org, space, &key);
            Ok(())
        }
        6..=9 => append_some_rows(txn, &mut draw, &org, &object),
        10..=12 => append_some_bytes(txn, &mut draw, &org, &object),
        13 => txn.finish_upload(&org, &object),
        14 => txn.delete_object(&org, &object),
        _ if draw.below(5) > 0 => Ok(()),
        _ => {
            let seen = format!("{:?}", contents(txn));
            txn.put(&org, space, b"seen", crc32fast::hash(seen.as_bytes()).to_be_bytes().to_vec());
            Ok(())
        }
    };
    match draw.below(40) {
        0 => Err(StoreError::Refused("the transaction thought better of it".into())),
        1..=20 => Ok(()),
        _ => result,
    }
}

fn append_some_rows(txn: &mut dyn Txn, draw: &mut Draw, org: &OrgId, table: &ObjectName) -> Result<(), StoreError> {
    let stored = txn.table(org, table)?.rows;
    let count = u32::try_from(draw.below(300)).unwrap();
    let mut block = plain_rows(stored, count);
    if draw.below(2) == 0 {
        block = zlib(&block);
    }
    if draw.below(16) == 0 {
        block.count += 1;
    }
    let expected = match draw.below(8) {
        0 => Some(stored + 1),
        1..=4 => Some(stored),
        _ => None,
    };
    txn.append_rows(org, table, expected, block).map(drop)
}

fn append_some_bytes(txn: &mut dyn Txn, draw: &mut Draw, org: &OrgId, upload: &ObjectName) -> Result<(), StoreError> {
    let stored = txn.upload(org, upload)?.unwrap_or_default().bytes;
    let len = draw.below(5000);
    let mut chunk = plain_chunk(if draw.below(2) == 0 { draw.bytes(len) } else { vec![b'.'; len] });
    if draw.below(2) == 0 {
        chunk = zlib(&chunk);
    }
    let offset = match draw.below(8) {
        0 => 0,
        1 => stored + 1,
        2 => stored / 2,
        _ => stored,
    };
    txn.append_upload(org, upload, offset, chunk)
}

/// Length and CRC-32 of everything that is stored.
///
/// # Panics
/// When something cannot be read.
#[must_use]
pub fn contents(reader: &dyn Reader) -> BTreeMap<String, (u64, u32)> {
    let mut found = BTreeMap::new();
    let sum = |data: &[u8]| (data.len() as u64, crc32fast::hash(data));
    for org in reader.orgs().unwrap() {
        for space in Space::ALL {
            for (key, value) in reader.scan(&org, space, &Scan::default()).unwrap() {
                found.insert(format!("record {org} {space:?} {}", key.escape_ascii()), sum(&value));
            }
        }
        for object in reader.objects(&org, &name(&[])).unwrap() {
            let info = reader.table(&org, &object).unwrap();
            let (first, text) = all_rows(reader, &org, &object, 0);
            assert_eq!((info.bytes, first.unwrap_or_default()), (text.len() as u64, 0));
            found.insert(format!("table {org} {object:?} {info:?}"), sum(text.as_bytes()));
            let info = reader.upload(&org, &object).unwrap();
            let data = reader.read_upload(&org, &object, 0, usize::MAX).unwrap();
            assert_eq!(info.unwrap_or_default().bytes, data.len() as u64);
            found.insert(format!("upload {org} {object:?} {info:?}"), sum(&data));
        }
    }
    found
}
