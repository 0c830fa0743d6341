//! What goes to stdout, and in which form: rows, values, files.

use std::io::{BufWriter, ErrorKind, Stdout, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use talon_vql::{Dict, Value, json};

use crate::arguments::Format;

/// Diagnostics go to stderr.
pub(crate) fn log(verbose: bool) {
    let fallback = if verbose { "debug,h2=info,hyper=info,rustls=info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| fallback.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Writes a text to stdout.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes one line to stdout.
pub(crate) fn print_line(line: &str) -> Result<()> {
    print(&format!("{line}\n"))
}

/// Whether the reader of stdout has gone, which is no reason to complain.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// The version, as YAML.
pub(crate) fn version() -> Result<()> {
    let (system, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
    print(&format!("name: talon\nversion: {}\nsystem: {system}\narchitecture: {architecture}\n", env!("CARGO_PKG_VERSION")))
}

/// Writes a file that only its owner can read. A file that is there is replaced as a whole.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    let cure = || format!("cannot write {}: check the folder and its permissions", path.display());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = Path::new(&temporary);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| std::fs::rename(temporary, path));
    if renamed.is_err() {
        drop(std::fs::remove_file(temporary));
    }
    renamed.with_context(cure)
}

/// Stdout for rows: written in large pieces, and a moment after a row came at the latest.
pub(crate) struct Output(Arc<Mutex<BufWriter<Stdout>>>);

impl Output {
    /// Stdout, and a thread that does not let rows wait there.
    pub(crate) fn stdout() -> Self {
        const SIZE: usize = 64 << 10;
        const MOMENT: Duration = Duration::from_millis(100);
        let out = Arc::new(Mutex::new(BufWriter::with_capacity(SIZE, std::io::stdout())));
        let watched = Arc::downgrade(&out);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(MOMENT);
                let Some(out) = watched.upgrade() else { return };
                // Who writes next is told of what failed here.
                drop(out.lock().unwrap_or_else(PoisonError::into_inner).flush());
            }
        });
        Self(out)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

/// Writes the rows of one query after another to `out`.
pub(crate) struct RowWriter<W: Write> {
    out: W,
    format: Format,
    /// The names of the columns, in CSV.
    header: Option<Vec<String>>,
    /// The rows of the query, in text, where widths are known at the end only.
    table: Vec<Vec<String>>,
    rows: u64,
}

impl<W: Write> RowWriter<W> {
    /// A writer of this form.
    pub(crate) fn new(out: W, format: Format) -> Self {
        Self { out, format, header: None, table: Vec::new(), rows: 0 }
    }

    /// Writes a row.
    pub(crate) fn row(&mut self, row: &Dict) -> Result<()> {
        let first = self.rows == 0;
        self.rows = self.rows.saturating_add(1);
        match self.format {
            Format::Jsonl => {
                let mut line = Vec::new();
                json::Encoder::default().line(&mut line, row);
                self.out.write_all(&line)?;
            }
            Format::Json => {
                self.out.write_all(if first { b"[\n " } else { b",\n " })?;
                self.out.write_all(json::encode(&Value::from(row.clone())).as_bytes())?;
            }
            Format::Csv => {
                let header = self.columns(row);
                if first {
                    self.csv(&header)?;
                }
                let cells: Vec<_> = header.iter().map(|name| cell(row.get(name))).collect();
                self.csv(&cells)?;
            }
            Format::Text => {
                let header = self.columns(row);
                self.table.push(header.iter().map(|name| on_one_line(&cell(row.get(name)))).collect());
            }
        }
        Ok(())
    }

    /// Ends a query.
    pub(crate) fn end(&mut self) -> Result<()> {
        match self.format {
            Format::Json if self.rows == 0 => self.out.write_all(b"[]\n")?,
            Format::Json => self.out.write_all(b"\n]\n")?,
            Format::Text => self.write_table()?,
            Format::Jsonl | Format::Csv => {}
        }
        self.rows = 0;
        self.header = None;
        Ok(self.out.flush()?)
    }

    /// The columns of the query: those of its first row.
    fn columns(&mut self, row: &Dict) -> Vec<String> {
        self.header.get_or_insert_with(|| row.keys().map(|key| key.as_str().to_owned()).collect()).clone()
    }

    fn csv(&mut self, cells: &[String]) -> Result<()> {
        let quoted = |cell: &String| {
            let plain = !cell.contains([',', '"', '\n', '\r']) && cell.trim() == cell;
            if plain { cell.clone() } else { format!("\"{}\"", cell.replace('"', "\"\"")) }
        };
        let line = cells.iter().map(quoted).collect::<Vec<_>>().join(",");
        Ok(writeln!(self.out, "{line}")?)
    }

    fn write_table(&mut self) -> Result<()> {
        let Some(header) = self.header.take() else { return Ok(()) };
        let rows = std::mem::take(&mut self.table);
        let width = |column: usize, name: &str| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).chain([name.chars().count()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = header.iter().enumerate().map(|(column, name)| width(column, name)).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        writeln!(self.out, "{}", line(&header))?;
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        writeln!(self.out, "{}", line(&rule))?;
        for row in &rows {
            writeln!(self.out, "{}", line(row))?;
        }
        Ok(())
    }
}

/// A value in a cell: texts as they are, nothing for NULL, everything else as JSON.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(value) => {
            let text = json::encode(value);
            serde_json::from_str::<String>(&text).unwrap_or(text)
        }
    }
}

/// A text without line breaks and whatever else a terminal would obey.
fn on_one_line(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: Format, queries: &[&[&str]]) -> String {
        let mut out = Vec::new();
        let mut writer = RowWriter::new(&mut out, format);
        for rows in queries {
            for row in *rows {
                writer.row(&json::decode_row(row.as_bytes()).unwrap()).unwrap();
            }
            writer.end().unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    const ROWS: &[&str] = &[r#"{"B":1,"A":"x, \"y\""}"#, r#"{"B":null,"A":{"z":[1]}}"#];

    #[test]
    fn json_is_one_array_for_each_query() {
        let text = written(Format::Json, &[ROWS, &[]]);
        assert_eq!(text, "[\n {\"B\":1,\"A\":\"x, \\\"y\\\"\"},\n {\"B\":null,\"A\":{\"z\":[1]}}\n]\n[]\n");
    }

    #[test]
    fn jsonl_is_one_object_on_each_line() {
        assert_eq!(written(Format::Jsonl, &[ROWS, &[]]), "{\"B\":1,\"A\":\"x, \\\"y\\\"\"}\n{\"B\":null,\"A\":{\"z\":[1]}}\n");
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        assert_eq!(written(Format::Csv, &[ROWS, &[]]), "B,A\n1,\"x, \"\"y\"\"\"\n,\"{\"\"z\"\":[1]}\"\n");
    }

    #[test]
    fn a_table_has_one_width_for_each_column() {
        let text = written(Format::Text, &[&[r#"{"Name":"a","Size":1}"#, r#"{"Name":"long\nname","Size":22}"#], &[]]);
        assert_eq!(text, "Name        Size\n----------  ----\na           1\nlong\\nname  22\n");
    }

    #[test]
    fn columns_are_those_of_the_first_row() {
        assert_eq!(written(Format::Csv, &[&[r#"{"A":1}"#, r#"{"A":2,"B":3}"#, "{}"]]), "A\n1\n2\n\n");
    }

    #[test]
    fn private_files_are_private_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.config.yaml");
        std::fs::write(&path, "old and longer").unwrap();
        write_private(&path, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(write_private(&folder.path().join("none/file"), "x").is_err());
    }
}
