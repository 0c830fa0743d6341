//! `talon artifacts …`: the artifacts of the program and of packs, and the check of definitions before they are used.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use talon_artifacts::{Layer, Library, Pack, Repository, Rule, Severity, lint_text};

use crate::arguments::{ArtifactsArgs, ArtifactsVerb};
use crate::builtins::complete;
use crate::language::repository;
use crate::output::{print, print_line};

pub(crate) fn run(arguments: &ArtifactsArgs) -> Result<()> {
    match &arguments.verb {
        ArtifactsVerb::List { pattern } => list(&repository(&arguments.definitions)?, pattern.as_deref()),
        ArtifactsVerb::Show { name } => show(&repository(&arguments.definitions)?, name),
        ArtifactsVerb::Verify { files } => verify(files, &arguments.definitions),
    }
}

fn list(repository: &Repository, pattern: Option<&str>) -> Result<()> {
    let matcher =
        talon_vql::regex::Regex::ignoring_case(pattern.unwrap_or_default().as_bytes()).map_err(|error| anyhow!("the pattern: {error}"))?;
    for (name, entry) in repository.entries() {
        if matcher.is_match(name.as_bytes()) {
            print_line(&format!("{name} ({})", entry.definition.kind()))?;
        }
    }
    Ok(())
}

fn show(repository: &Repository, name: &str) -> Result<()> {
    let Some(definition) = repository.get(name) else {
        let entries = repository.entries();
        let known: Vec<&str> = entries.keys().map(String::as_str).collect();
        let hint = talon_vql::nearest(name, known).map(|near| format!(": did you mean {near}?")).unwrap_or_default();
        bail!("there is no artifact {name}{hint}");
    };
    print(&definition.proto().raw)
}

/// How many artifacts the check let pass, and how many call what this program does not have.
#[derive(Default)]
struct Tally {
    sound: usize,
    elsewhere: usize,
    wrong: usize,
    errors: usize,
}

/// Prints findings, each with its place; fails when an artifact would not work. Files may use each other's artifacts.
fn verify(files: &[PathBuf], definitions: &[PathBuf]) -> Result<()> {
    let (paths, known) = if files.is_empty() { (definitions, &[][..]) } else { (files, definitions) };
    if paths.is_empty() {
        bail!("name files to check, or a pack with --definitions");
    }
    let repository = repository(known)?;
    let packs = paths.iter().map(|path| Pack::read(path)).collect::<Result<Vec<_>, _>>()?;
    for pack in &packs {
        // What is refused is reported below, with its place.
        drop(pack.add_to(&repository, Layer::Custom));
    }
    let registry = complete();
    let library = Library::new(&repository).with_registry(&registry);
    let mut tally = Tally::default();
    for (path, text) in packs.iter().flat_map(Pack::texts) {
        check(path, text, &library, &mut tally)?;
    }
    if packs.iter().map(|pack| pack.texts().len()).sum::<usize>() > 1 {
        let Tally { sound, elsewhere, wrong, .. } = tally;
        print_line(&format!("{sound} artifacts run here, {elsewhere} call what is not available here, {wrong} have errors"))?;
    }
    if tally.errors > 0 {
        bail!("{} errors", tally.errors);
    }
    Ok(())
}

fn check(path: &Path, text: &str, library: &Library<'_>, tally: &mut Tally) -> Result<()> {
    let findings = lint_text(text, library).findings;
    for finding in &findings {
        print_line(&format!("{}: {}: {}", path.display(), finding.rule.severity().word(), finding.render(text)))?;
    }
    let errors = findings.iter().filter(|finding| finding.rule.severity() == Severity::Error).count();
    tally.errors = tally.errors.saturating_add(errors);
    let count = match (errors, findings.iter().any(|finding| finding.rule == Rule::NotAvailable)) {
        (0, false) => &mut tally.sound,
        (0, true) => &mut tally.elsewhere,
        _ => &mut tally.wrong,
    };
    *count = count.saturating_add(1);
    if findings.is_empty() {
        print_line(&format!("{}: ok", path.display()))?;
    }
    Ok(())
}
