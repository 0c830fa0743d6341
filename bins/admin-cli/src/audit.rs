//! `talon audit …`: verifies the log, proves records, prints them. Works on files alone, whether the server runs or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use talon_audit::{
    AuditError, Details, Entry, Log, LogReader, Phase, REDACTION, Record, VerifierKey, WitnessKey, read_checkpoint, verify_log,
    verify_proof,
};
use talon_crypto::SystemRng;
use talon_ids::OrgId;
use talon_server::OutletStatus;
use talon_store::AuditFiles;
use talon_vql::{Dict, json};

use crate::arguments::{AuditVerb, Format, Globals};
use crate::config::load_server;
use crate::output::{RowWriter, print, print_line};

/// Records that are read at once.
const CHUNK: usize = 1000;
/// How often `--follow` looks.
const PERIOD: Duration = Duration::from_millis(500);

pub(crate) fn run(globals: &Globals, verb: AuditVerb) -> Result<()> {
    match verb {
        AuditVerb::Verify { proof: Some(proof), key: Some(key), .. } => verify_one(&proof, &key),
        AuditVerb::Verify { key, checkpoint, witness, quorum, .. } => {
            verify_all(globals, key.as_deref(), checkpoint.as_deref(), &Witnesses { keys: witness, quorum })
        }
        AuditVerb::Checkpoint => print(&reader(globals)?.checkpoint()?),
        AuditVerb::Status => status(globals),
        AuditVerb::Export { folder } => export(globals, &folder),
        AuditVerb::Redact { index, reason } => redact(globals, index, &reason),
        AuditVerb::Prove { index, output } => prove(globals, index, output.as_deref()),
        AuditVerb::Tail { lines, follow, format } => tail(globals, lines, follow, format),
    }
}

fn verify_one(proof: &Path, key: &Path) -> Result<()> {
    let text = read(proof)?;
    let key = read_key(key)?;
    let proved = verify_proof(&text, &key).with_context(|| format!("{} proves nothing", proof.display()))?;
    print_line(&format!("verified: record {} of {} in the log {key}", proved.index, proved.size))?;
    let mut entry = Entry::new(proved.index, proved.record);
    entry.redacted = proved.redacted;
    print_line(&line(&entry)?)
}

/// Who has to have signed the checkpoint that was kept.
struct Witnesses {
    keys: Vec<PathBuf>,
    quorum: Option<usize>,
}

impl Witnesses {
    fn check(&self, checkpoint: &[u8], key: &VerifierKey) -> Result<()> {
        let witnesses = self.keys.iter().map(|path| {
            read(path)?.trim().parse::<WitnessKey>().with_context(|| format!("{} is not the public key of a witness", path.display()))
        });
        let witnesses = witnesses.collect::<Result<Vec<_>>>()?;
        let kept = read_checkpoint(checkpoint, key, &witnesses).context("--checkpoint")?;
        let needed = self.quorum.unwrap_or(witnesses.len());
        for (name, time) in &kept.cosigned {
            let time = i64::try_from(*time).ok().and_then(|time| jiff::Timestamp::from_second(time).ok());
            eprintln!(
                "talon: {name} saw the checkpoint of {} records at {}",
                kept.size,
                time.map_or_else(String::new, |time| time.to_string())
            );
        }
        anyhow::ensure!(
            kept.cosigned.len() >= needed,
            "{} of the witnesses signed the checkpoint, {needed} are needed",
            kept.cosigned.len()
        );
        Ok(())
    }
}

fn verify_all(globals: &Globals, key: Option<&Path>, checkpoint: Option<&Path>, witnesses: &Witnesses) -> Result<()> {
    let folder = load_server(globals)?.audit_directory();
    let key = match key {
        Some(path) => read_key(path)?,
        None => own_key(&folder)?,
    };
    let remembered = checkpoint.map(std::fs::read).transpose().context("--checkpoint")?;
    if let Some(checkpoint) = &remembered {
        witnesses.check(checkpoint, &key)?;
    }
    let report = verify_log(&AuditFiles::read_only(&folder), &key, remembered.as_deref())
        .with_context(|| format!("the audit log in {} is not what was signed", folder.display()))?;
    let root: String = report.root.iter().map(|byte| format!("{byte:02x}")).collect();
    print_line(&format!("verified: {} records, {} checkpoints, {} tiles, root {root}", report.records, report.checkpoints, report.tiles))?;
    if report.redacted > 0 {
        print_line(&format!("the details of {} records were erased, and the log says by whom", report.redacted))?;
    }
    if report.unfinished_bytes > 0 {
        eprintln!("talon: {} bytes at the end were never acknowledged", report.unfinished_bytes);
    }
    Ok(())
}

/// How long the log is, and what its copies say of themselves.
fn status(globals: &Globals) -> Result<()> {
    let server = load_server(globals)?;
    let folder = server.audit_directory();
    let reader = LogReader::new(Arc::new(AuditFiles::read_only(&folder)), own_key(&folder)?);
    let size = reader.size()?;
    print_line(&format!("{size} records in {}", folder.display()))?;
    let copies = server.audit_copies(&|name| std::env::var(name).ok());
    print_line(&format!("files: {}", copies.folder.display()))?;
    if let Some(target) = copies.syslog {
        let kept = folder.join("outlets").join("syslog.json");
        let status = match std::fs::read(&kept) {
            Ok(text) => serde_json::from_slice::<OutletStatus>(&text).with_context(|| format!("{} cannot be read", kept.display()))?,
            Err(_) => OutletStatus::default(),
        };
        let behind = size.saturating_sub(status.next);
        print_line(&format!(
            "syslog {}: {} records sent, {behind} to go, {} without details",
            target.server, status.next, status.shortened
        ))?;
    }
    Ok(())
}

fn export(globals: &Globals, folder: &Path) -> Result<()> {
    let unusable = || format!("cannot write to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(unusable)?;
    let empty = std::fs::read_dir(folder).with_context(unusable)?.next().is_none();
    anyhow::ensure!(empty, "{} is not empty; name another folder", folder.display());
    let mut write = |name: &str, content: &[u8]| -> Result<()> {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    let size = reader(globals)?.static_files(&mut write)?;
    write("audit.pub", format!("{}\n", own_key(&load_server(globals)?.audit_directory())?).as_bytes())?;
    eprintln!("talon: {size} records");
    Ok(())
}

fn redact(globals: &Globals, index: u64, reason: &str) -> Result<()> {
    let server = load_server(globals)?;
    let folder = server.audit_directory();
    let cure = || format!("cannot open the audit log in {}; stop the server first", folder.display());
    let key = AuditFiles::load_or_create_key(&folder, || Err(AuditError::Key)).with_context(cure)?;
    let log = Log::open(Arc::new(AuditFiles::open(&folder).with_context(cure)?), key, Arc::new(SystemRng)).with_context(cure)?;
    let time = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    let mut record = Record::new(time, OrgId::root(), server.server_name(), REDACTION, Phase::Intended);
    let login = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
    record.details = Details::new().number("record", index).text("reason", reason).text("_command_line_user", &login);
    let receipt = log.redact(index, &record)?;
    eprintln!(
        "talon: the details of record {index} are gone from the log; record {} says so. Copies elsewhere still have them",
        receipt.index()
    );
    Ok(())
}

fn prove(globals: &Globals, index: u64, output: Option<&Path>) -> Result<()> {
    let proof = reader(globals)?.prove(index)?.to_string();
    match output {
        None => print(&proof),
        Some(path) => std::fs::write(path, proof).with_context(|| format!("cannot write {}", path.display())),
    }
}

fn tail(globals: &Globals, lines: u64, follow: bool, format: Format) -> Result<()> {
    let reader = reader(globals)?;
    let size = reader.size()?;
    let mut next = if lines == 0 { 0 } else { size.saturating_sub(lines) };
    let mut writer = RowWriter::new(std::io::stdout().lock(), format);
    loop {
        let entries = reader.entries(next, CHUNK)?;
        let more = entries.len() == CHUNK;
        for entry in &entries {
            next = entry.index.saturating_add(1);
            let text = line(entry)?;
            let row = json::decode_row(text.as_bytes()).context("an audit record is no JSON object")?;
            writer.row(&if format == Format::Text { for_people(row) } else { row })?;
        }
        if !more && !follow {
            return writer.end();
        }
        if !more {
            if !entries.is_empty() {
                writer.end()?;
            }
            std::thread::sleep(PERIOD);
        }
    }
}

fn reader(globals: &Globals) -> Result<LogReader> {
    let folder = load_server(globals)?.audit_directory();
    Ok(LogReader::new(Arc::new(AuditFiles::read_only(&folder)), own_key(&folder)?))
}

fn own_key(folder: &Path) -> Result<VerifierKey> {
    AuditFiles::load_public_key(folder)
        .with_context(|| format!("cannot read the public key of the audit log in {}: has the server been started?", folder.display()))
}

fn read_key(path: &Path) -> Result<VerifierKey> {
    read(path)?.trim().parse().with_context(|| format!("{} is not the public key of an audit log", path.display()))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A record with its number, and its time as people read it.
#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    time: String,
    #[serde(flatten)]
    record: &'a Record,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    redacted: bool,
}

/// What fits a terminal.
fn for_people(mut row: Dict) -> Dict {
    row.remove("time_ns");
    row
}

fn line(entry: &Entry) -> Result<String> {
    let Entry { index, record, redacted, .. } = entry;

    let time = jiff::Timestamp::from_nanosecond(i128::from(record.time_ns)).map(|time| time.to_string()).unwrap_or_default();
    Ok(serde_json::to_string(&Line { index: *index, time, record, redacted: *redacted })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_of_json() {
        let mut record = Record::new(1_800_000_000_000_000_000, OrgId::root(), "admin", "ScheduleFlow", Phase::Intended);
        record.details = Details::new().text("flow_id", "F.1");
        assert_eq!(
            line(&Entry::new(7, record)).unwrap(),
            r#"{"index":7,"time":"2027-01-15T08:00:00Z","time_ns":1800000000000000000,"org":"root","principal":"admin","operation":"ScheduleFlow","phase":"intended","details":{"flow_id":"F.1"}}"#
        );
    }
}
