//! What a durable transaction costs, beside what the disk itself can do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure ends the run")]

use std::collections::VecDeque;
use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use talon_ids::OrgId;
use talon_store::conformance::{plain_rows, zlib};
use talon_store::{Embedded, Engine, ObjectName, Options, RowBlock, Space};

fn bare_sync(bench: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let mut file = File::create(folder.path().join("bare")).unwrap();
    let mut group = bench.benchmark_group("machine");
    group.throughput(Throughput::Elements(1));
    group.bench_function("append 4 KiB and fsync", |bench| {
        bench.iter(|| {
            file.write_all(&[7; 4096]).unwrap();
            file.sync_all().unwrap();
        });
    });
    group.finish();
}

fn commits(bench: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path(), Options::default()).unwrap();
    let table = ObjectName::new(["flows", "F.1", "Some.Artifact"]);
    let rows = plain_rows(0, 20);
    let mut number = 0_u64;
    let mut group = bench.benchmark_group("transaction");
    group.throughput(Throughput::Elements(1));
    for window in [1, 16, 256] {
        group.bench_function(format!("record and 20 rows, {window} in flight"), |bench| {
            bench.iter_custom(|iterations| {
                let start = std::time::Instant::now();
                let mut waiting = VecDeque::new();
                for _ in 0..iterations {
                    number += 1;
                    let (key, table, rows) = (number % 1000, table.clone(), rows.clone());
                    waiting.push_back(store.submit(Box::new(move |txn| {
                        txn.put(&OrgId::root(), Space::Flows, &key.to_be_bytes(), vec![1; 300]);
                        txn.append_rows(&OrgId::root(), &table, None, rows).map(drop)
                    })));
                    if waiting.len() >= window {
                        waiting.pop_front().unwrap().wait().unwrap();
                    }
                }
                waiting.into_iter().for_each(|ticket| ticket.wait().unwrap());
                start.elapsed()
            });
        });
    }
    group.finish();
}

fn bulk(bench: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path(), Options::default()).unwrap();
    let table = ObjectName::new(["t"]);
    let rows: RowBlock = plain_rows(0, 60_000);
    let mut group = bench.benchmark_group("bulk");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(rows.plain_len));
    for (name, block) in [("plain", rows.clone()), ("zlib", zlib(&rows))] {
        group.bench_function(format!("append a block of 1 MB, {name}"), |bench| {
            bench.iter(|| {
                let (table, block) = (table.clone(), block.clone());
                store.submit(Box::new(move |txn| txn.append_rows(&OrgId::root(), &table, None, block).map(drop))).wait().unwrap();
            });
        });
    }
    group.bench_function("read a block of 1 MB", |bench| {
        bench.iter(|| black_box(store.reader().rows(&OrgId::root(), &table, 0).unwrap().next().unwrap().unwrap()));
    });
    group.finish();
}

criterion_group!(benches, bare_sync, commits, bulk);
criterion_main!(benches);
