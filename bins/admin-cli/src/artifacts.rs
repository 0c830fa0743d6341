//! `talon artifacts …`: the built-in artifacts, and the check of definitions before they are used.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use talon_artifacts::{Definition, Layer, Repository, lint_text};

use crate::arguments::ArtifactsVerb;
use crate::output::{print, print_line};

pub(crate) fn run(verb: ArtifactsVerb) -> Result<()> {
    match verb {
        ArtifactsVerb::List { pattern } => list(pattern.as_deref()),
        ArtifactsVerb::Show { name } => show(&name),
        ArtifactsVerb::Verify { files } => verify(&files),
    }
}

fn list(pattern: Option<&str>) -> Result<()> {
    let matcher =
        talon_vql::regex::Regex::ignoring_case(pattern.unwrap_or_default().as_bytes()).map_err(|error| anyhow!("the pattern: {error}"))?;
    for (name, entry) in Repository::with_built_ins().entries() {
        if matcher.is_match(name.as_bytes()) {
            print_line(&format!("{name} ({})", entry.definition.kind()))?;
        }
    }
    Ok(())
}

fn show(name: &str) -> Result<()> {
    let repository = Repository::with_built_ins();
    let Some(definition) = repository.get(name) else {
        let entries = repository.entries();
        let known: Vec<&str> = entries.keys().map(String::as_str).collect();
        let hint = talon_vql::nearest(name, known).map(|near| format!(": did you mean {near}?")).unwrap_or_default();
        bail!("there is no artifact {name}{hint}");
    };
    print(&definition.proto().raw)
}

/// Prints findings, one on each line; fails when an artifact would not work. Files may use each other's artifacts.
fn verify(files: &[PathBuf]) -> Result<()> {
    let repository = Repository::with_built_ins();
    let texts = files.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?;
    for text in &texts {
        if let Ok(definition) = Definition::from_yaml(text) {
            drop(repository.set(definition, Layer::Custom));
        }
    }
    let mut errors = 0_usize;
    for (file, text) in files.iter().zip(&texts) {
        let findings = lint_text(text, &repository);
        for finding in &findings {
            let word = if finding.rule.is_warning() { "warning" } else { "error" };
            print_line(&format!("{}: {word}: {finding}", file.display()))?;
        }
        errors = errors.saturating_add(findings.iter().filter(|finding| !finding.rule.is_warning()).count());
        if findings.is_empty() {
            print_line(&format!("{}: ok", file.display()))?;
        }
    }
    if errors > 0 {
        bail!("{errors} errors");
    }
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
