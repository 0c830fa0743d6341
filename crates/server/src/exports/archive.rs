//! A zip file that is written straight into the store, in one pass, without ever being whole in memory.

use std::io::{self, Write};

use bytes::Bytes;
use serde_json::Value;
use talon_store::{BlockEncoding, ObjectName, RowBlock};
use zip::write::SimpleFileOptions;
use zip::{AesMode, ZipWriter};

use super::TableFormat;
use crate::ServerError;
use crate::org::Org;
use crate::rows::{Members, stamp};

/// The archive is stored, and files are read, in pieces of so many bytes.
const PIECE: usize = 1 << 20;

/// Bytes on their way into a download.
struct Sink {
    org: Org,
    object: ObjectName,
    held: Vec<u8>,
    stored: u64,
}

impl Sink {
    fn store(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let data = Bytes::from(std::mem::take(&mut self.held));
        let length = data.len() as u64;
        let (id, object, offset) = (self.org.id().clone(), self.object.clone(), self.stored);
        let chunk = RowBlock { plain_len: length, data, count: 0, encoding: BlockEncoding::Plain };
        self.org.submit(move |txn| Ok(txn.append_upload(&id, &object, offset, chunk)?)).wait().map_err(io::Error::other)?;
        self.stored = self.stored.saturating_add(length);
        Ok(())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= PIECE {
            self.store()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An archive that is being written.
pub(super) struct Archive<'a> {
    zip: ZipWriter<zip::write::StreamWriter<Sink>>,
    password: &'a str,
    org: Org,
    object: ObjectName,
}

impl<'a> Archive<'a> {
    /// Begins an archive, in place of one of that name.
    pub(super) fn create(org: &Org, object: ObjectName, password: &'a str) -> Result<Self, ServerError> {
        let (id, old) = (org.id().clone(), object.clone());
        org.submit(move |txn| Ok(txn.delete_object(&id, &old)?)).wait()?;
        let sink = Sink { org: org.clone(), object: object.clone(), held: Vec::new(), stored: 0 };
        Ok(Self { zip: ZipWriter::new_stream(sink), password, org: org.clone(), object })
    }

    fn begin(&mut self, name: &str) -> Result<(), ServerError> {
        let options = SimpleFileOptions::default().large_file(true);
        let started = if self.password.is_empty() {
            self.zip.start_file(name, options)
        } else {
            self.zip.start_file(name, options.with_aes_encryption(AesMode::Aes256, self.password))
        };
        started.map_err(failed)
    }

    pub(super) fn text(&mut self, name: &str, text: &str) -> Result<(), ServerError> {
        self.begin(name)?;
        self.zip.write_all(text.as_bytes()).map_err(failed)
    }

    /// An uploaded file.
    pub(super) fn file(&mut self, org: &Org, name: &str, object: &ObjectName) -> Result<(), ServerError> {
        self.begin(name)?;
        let mut offset = 0_u64;
        loop {
            let piece = org.reader().read_upload(org.id(), object, offset, PIECE)?;
            if piece.is_empty() {
                return Ok(());
            }
            self.zip.write_all(&piece).map_err(failed)?;
            offset = offset.saturating_add(piece.len() as u64);
        }
    }

    /// A table, in the forms that are wanted; one without rows is left out.
    pub(super) fn table(&mut self, org: &Org, name: &str, table: &ObjectName, format: TableFormat) -> Result<(), ServerError> {
        self.combined(org, name, vec![(table.clone(), Vec::new())], format)
    }

    /// Tables one after the other as one, each with columns of its own added.
    pub(super) fn combined(
        &mut self,
        org: &Org,
        name: &str,
        mut tables: Vec<(ObjectName, Vec<(&'static str, String)>)>,
        format: TableFormat,
    ) -> Result<(), ServerError> {
        let mut kept = Vec::new();
        for (table, added) in tables.drain(..) {
            if org.reader().table(org.id(), &table)?.rows > 0 {
                kept.push((table, added));
            }
        }
        if kept.is_empty() {
            return Ok(());
        }
        if format.json() {
            self.begin(&format!("{name}.json"))?;
            for (table, added) in &kept {
                for line in org.rows(table, 0)? {
                    let line = with(&line?, added);
                    self.zip.write_all(line.as_bytes()).and_then(|()| self.zip.write_all(b"\n")).map_err(failed)?;
                }
            }
        }
        if format.csv() {
            self.begin(&format!("{name}.csv"))?;
            self.csv(org, &kept)?;
        }
        Ok(())
    }

    /// The columns are those of the first row; what else later rows have is left out.
    fn csv(&mut self, org: &Org, tables: &[(ObjectName, Vec<(&'static str, String)>)]) -> Result<(), ServerError> {
        let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(&mut self.zip);
        let mut columns: Option<Vec<String>> = None;
        for (table, added) in tables {
            for line in org.rows(table, 0)? {
                let line = with(&line?, added);
                let Ok(members) = serde_json::from_str::<Members<'_>>(&line) else { continue };
                let names = match &columns {
                    Some(names) => names,
                    None => {
                        let names: Vec<String> = members.0.iter().map(|(name, _)| name.clone()).collect();
                        writer.write_record(&names).map_err(failed)?;
                        columns.insert(names)
                    }
                };
                let cell = |name: &String| {
                    let value = members.0.iter().find(|(member, _)| member == name).map(|(_, value)| value.get());
                    value.map_or_else(String::new, plain_cell)
                };
                writer.write_record(names.iter().map(cell)).map_err(failed)?;
            }
        }
        writer.flush().map_err(failed)
    }

    /// Ends the archive. Only a whole one can be downloaded.
    pub(super) fn finish(self) -> Result<(), ServerError> {
        let mut sink = self.zip.finish().map_err(failed)?.into_inner();
        sink.store().map_err(failed)?;
        let (id, object) = (self.org.id().clone(), self.object);
        self.org.submit(move |txn| Ok(txn.finish_upload(&id, &object)?)).wait()
    }
}

fn failed(error: impl std::fmt::Display) -> ServerError {
    ServerError::invalid(format!("the archive cannot be written: {error}"))
}

/// A row with columns added.
fn with(line: &str, added: &[(&'static str, String)]) -> String {
    if added.is_empty() {
        return line.to_owned();
    }
    let columns: Vec<(&str, Value)> = added.iter().map(|(name, text)| (*name, text.as_str().into())).collect();
    stamp(line, &columns).ok().and_then(|rows| rows.into_iter().next()).unwrap_or_else(|| line.to_owned())
}

/// A JSON value as a cell: text without quotes, nothing for null, and no cell that a spreadsheet takes for a formula.
fn plain_cell(json: &str) -> String {
    match serde_json::from_str::<Value>(json) {
        Ok(Value::String(text)) if text.starts_with(['=', '+', '-', '@', '\t', '\r']) => format!("'{text}"),
        Ok(Value::String(text)) => text,
        Ok(Value::Null) => String::new(),
        _ => json.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_no_formula() {
        for (json, cell) in [("\"=1+1\"", "'=1+1"), ("\"a,b\"", "a,b"), ("null", ""), ("-5", "-5"), ("{\"a\":1}", "{\"a\":1}")] {
            assert_eq!(plain_cell(json), cell, "{json}");
        }
    }
}
