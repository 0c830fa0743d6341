//! `talon store …`: checks, saves and restores the server's data. The server must not run meanwhile.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result, bail};
use talon_store::{Embedded, Engine as _, Options, Totals, export, import};

use crate::arguments::{Globals, StoreVerb};
use crate::config::load_server;
use crate::output::print_line;

pub(crate) fn run(globals: &Globals, verb: StoreVerb) -> Result<()> {
    let folder = load_server(globals)?.data_directory();
    let make = matches!(verb, StoreVerb::Import { .. });
    if !make && !folder.join("index").exists() {
        bail!("there is no store in {}: check Datastore.location", folder.display());
    }
    let store = Embedded::open(&folder, Options::default()).with_context(|| format!("cannot open the store in {}", folder.display()))?;
    match verb {
        StoreVerb::Check => check(&store),
        StoreVerb::Export { output } => save(&store, output.as_deref()),
        StoreVerb::Import { file } => {
            let input = File::open(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let totals = import(&store, &mut BufReader::new(input)).with_context(|| format!("{} was not taken in", file.display()))?;
            print_line(&said("imported", totals))
        }
    }
}

fn check(store: &Embedded) -> Result<()> {
    let report = store.check()?;
    for problem in &report.problems {
        print_line(&format!("error: {problem}"))?;
    }
    print_line(&format!(
        "{} records, {} rows in {} tables, {} uploads, {} bytes in {} segments",
        report.records, report.rows, report.tables, report.uploads, report.segment_bytes, report.segments
    ))?;
    if !report.is_sound() {
        bail!("{} problems: restore from a backup, or export what can be read", report.problem_count);
    }
    Ok(())
}

fn save(store: &Embedded, output: Option<&Path>) -> Result<()> {
    let totals = match output {
        None => export(store.reader(), &mut BufWriter::new(std::io::stdout().lock()))?,
        Some(path) => {
            let cure = || format!("cannot write {}", path.display());
            let mut file = BufWriter::new(File::create_new(path).with_context(cure)?);
            let totals = export(store.reader(), &mut file)?;
            file.flush().and_then(|()| file.get_ref().sync_all()).with_context(cure)?;
            totals
        }
    };
    eprintln!("{}", said("exported", totals));
    Ok(())
}

fn said(what: &str, totals: Totals) -> String {
    format!("{what} {} records, {} rows, {} uploads, {} bytes", totals.records, totals.rows, totals.uploads, totals.bytes)
}
