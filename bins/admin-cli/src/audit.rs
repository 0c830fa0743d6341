//! `talon audit …`: verifies the log, proves records, prints them. Works on files alone, whether the server runs or not.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use talon_audit::{Entry, LogReader, Record, VerifierKey, verify_log, verify_proof};
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
        AuditVerb::Verify { key, checkpoint, .. } => verify_all(globals, key.as_deref(), checkpoint.as_deref()),
        AuditVerb::Prove { index, output } => prove(globals, index, output.as_deref()),
        AuditVerb::Tail { lines, follow, format } => tail(globals, lines, follow, format),
    }
}

fn verify_one(proof: &Path, key: &Path) -> Result<()> {
    let text = read(proof)?;
    let key = read_key(key)?;
    let proved = verify_proof(&text, &key).with_context(|| format!("{} proves nothing", proof.display()))?;
    print_line(&format!("verified: record {} of {} in the log {key}", proved.index, proved.size))?;
    print_line(&line(proved.index, &proved.record)?)
}

fn verify_all(globals: &Globals, key: Option<&Path>, checkpoint: Option<&Path>) -> Result<()> {
    let folder = load_server(globals)?.audit_directory();
    let key = match key {
        Some(path) => read_key(path)?,
        None => own_key(&folder)?,
    };
    let remembered = checkpoint.map(std::fs::read).transpose().context("--checkpoint")?;
    let report = verify_log(&AuditFiles::read_only(&folder), &key, remembered.as_deref())
        .with_context(|| format!("the audit log in {} is not what was signed", folder.display()))?;
    let root: String = report.root.iter().map(|byte| format!("{byte:02x}")).collect();
    print_line(&format!("verified: {} records, {} checkpoints, {} tiles, root {root}", report.records, report.checkpoints, report.tiles))?;
    if report.unfinished_bytes > 0 {
        eprintln!("talon: {} bytes at the end were never acknowledged", report.unfinished_bytes);
    }
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
        for Entry { index, record, .. } in &entries {
            next = index.saturating_add(1);
            let text = line(*index, record)?;
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
}

/// What fits a terminal.
fn for_people(mut row: Dict) -> Dict {
    row.remove("time_ns");
    row
}

fn line(index: u64, record: &Record) -> Result<String> {
    let time = jiff::Timestamp::from_nanosecond(i128::from(record.time_ns)).map(|time| time.to_string()).unwrap_or_default();
    Ok(serde_json::to_string(&Line { index, time, record })?)
}

#[cfg(test)]
mod tests {
    use talon_audit::{Details, Phase};
    use talon_ids::OrgId;

    use super::*;

    #[test]
    fn a_record_is_one_line_of_json() {
        let mut record = Record::new(1_800_000_000_000_000_000, OrgId::root(), "admin", "ScheduleFlow", Phase::Intended);
        record.details = Details::new().text("flow_id", "F.1");
        assert_eq!(
            line(7, &record).unwrap(),
            r#"{"index":7,"time":"2027-01-15T08:00:00Z","time_ns":1800000000000000000,"org":"root","principal":"admin","operation":"ScheduleFlow","phase":"intended","details":{"flow_id":"F.1"}}"#
        );
    }
}
