//! A disk that really refuses to write, for sled and segments alike: the size of files is limited, and then no longer.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure ends the run")]

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use talon_ids::OrgId;
use talon_store::conformance::{Draw, plain_chunk};
use talon_store::{Embedded, Engine, ObjectName, Options, Scan, Space, StoreError};

const FOLDER: &str = "TALON_FULL_DISK_FOLDER";

fn limit_files(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
}

fn write(store: &Embedded, number: u64) -> Result<(), StoreError> {
    store
        .submit(Box::new(move |txn| {
            let mut draw = Draw::new(number);
            txn.put(&OrgId::root(), Space::Settings, &number.to_be_bytes(), draw.bytes(2000));
            let len = draw.below(3000);
            let offset = txn.upload(&OrgId::root(), &ObjectName::new(["u"]))?.unwrap_or_default().bytes;
            txn.append_upload(&OrgId::root(), &ObjectName::new(["u"]), offset, plain_chunk(draw.bytes(len)))
        }))
        .wait()
}

/// Runs in a process of its own, where the signal that comes with the limit is ignored.
#[test]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let store = Embedded::open(Path::new(&folder), Options::default()).unwrap();
    let mut written = Vec::new();
    let mut refused = 0_u64;
    for number in 0..1200 {
        match number % 300 {
            100 => limit_files(Some(600_000 + number * 1000)),
            250 => limit_files(None),
            _ => {}
        }
        match write(&store, number) {
            Ok(()) => written.push(number),
            Err(StoreError::Full { .. }) => refused += 1,
            Err(other) => panic!("{number}: {other}"),
        }
        if (250..300).contains(&(number % 300)) {
            assert_eq!(written.last(), Some(&number), "there is space again");
        }
    }
    assert!(refused > 0, "the limit was never met");
    println!("{} written, {refused} refused", written.len());
    let check = |store: &Embedded| {
        let found = store.reader().scan(&OrgId::root(), Space::Settings, &Scan::default()).unwrap();
        let numbers: Vec<_> = found.iter().map(|(key, _)| u64::from_be_bytes(key.as_slice().try_into().unwrap())).collect();
        assert_eq!(numbers, written);
        let report = store.check().unwrap();
        assert!(report.is_sound(), "{report:?}");
    };
    check(&store);
    drop(store);
    check(&Embedded::open(Path::new(&folder), Options::default()).unwrap());
}

#[test]
fn a_store_survives_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(FOLDER, folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success() && text.contains(" refused"), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
