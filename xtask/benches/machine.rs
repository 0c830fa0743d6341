//! What this machine can do at most: the limits that the other benches are read against.
#![allow(missing_docs, clippy::unwrap_used, reason = "a failure ends the run")]

use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use talon_crypto::RsaPrivateKey;

fn machine(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("machine");
    let folder = tempfile::tempdir().unwrap();
    let mut file = File::create(folder.path().join("bare")).unwrap();
    group.bench_function("append 4 KiB and fsync", |bench| {
        bench.iter(|| {
            file.write_all(&[7; 4096]).unwrap();
            file.sync_all().unwrap();
        });
    });
    let key = RsaPrivateKey::generate().unwrap();
    let sealed = key.public().oaep_sha1_encrypt(&[7; 64]).unwrap();
    group.bench_function("RSA-2048 OAEP decryption", |bench| bench.iter(|| key.oaep_sha1_decrypt(black_box(&sealed)).unwrap()));
    let (from, mut to) = (vec![7_u8; 64 << 20], vec![0_u8; 64 << 20]);
    group.throughput(Throughput::Bytes(64 << 20));
    group.bench_function("copy 64 MiB of memory", |bench| bench.iter(|| black_box(&mut to).copy_from_slice(black_box(&from))));
    group.finish();
}

criterion_group!(benches, machine);
criterion_main!(benches);
