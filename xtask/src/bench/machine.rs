//! What this machine can do at most: the limits that everything else is read against.

use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use talon_crypto::RsaPrivateKey;

use super::table::{Table, number};

/// Per second.
pub(super) struct Limits {
    /// RSA-2048 OAEP decryptions on one core.
    pub(super) decryptions: f64,
    /// Appends of 4 KiB, each with an fsync.
    pub(super) syncs: f64,
    /// Bytes of memory copied on one core.
    pub(super) copied: f64,
}

impl Limits {
    pub(super) fn measure(short: bool) -> Result<Self> {
        let time = Duration::from_millis(if short { 300 } else { 2000 });
        let key = RsaPrivateKey::generate()?;
        let sealed = key.public().oaep_sha1_encrypt(&[7; 64])?;
        let decryptions = rate(time, || {
            black_box(key.oaep_sha1_decrypt(black_box(&sealed))?);
            Ok(())
        })?;
        let mut file = tempfile::tempfile()?;
        let syncs = rate(time, || {
            file.write_all(&[7; 4096])?;
            Ok(file.sync_all()?)
        })?;
        let (from, mut to) = (vec![7_u8; 64 << 20], vec![0_u8; 64 << 20]);
        let copies = rate(time, || {
            black_box(&mut to).copy_from_slice(black_box(&from));
            Ok(())
        })?;
        Ok(Self { decryptions, syncs, copied: copies * number(from.len()) })
    }

    pub(super) fn list(&self, table: &mut Table) {
        table.add("machine: RSA-2048 OAEP decryptions, one core", self.decryptions, "/s");
        table.add("machine: append 4 KiB and fsync", self.syncs, "/s");
        table.add("machine: copy of memory, one core", self.copied / 1e6, "MB/s");
    }
}

/// How often a second `work` can be done.
pub(super) fn rate(time: Duration, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let started = Instant::now();
    let mut count = 0_u64;
    while started.elapsed() < time {
        work()?;
        count += 1;
    }
    Ok(number(count) / started.elapsed().as_secs_f64())
}
