//! `talon vql …`: the language without a deployment.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use talon_artifacts::{Layer, Library, Pack, Repository};
use talon_vql::format::{canonical_statement, pretty};
use talon_vql::{MAX_TEXT, SyntaxError};

use crate::arguments::{ReferenceFormat, VqlVerb};
use crate::builtins::{complete, page, references, word};
use crate::output::{print, print_line};

pub(crate) fn run(verb: VqlVerb) -> Result<()> {
    match verb {
        VqlVerb::Parse { vql, definitions } => parse(&vql, &definitions),
        VqlVerb::Reformat { vql } => {
            let text = text(&vql)?;
            let program = talon_vql::parse(&text).map_err(|error| refusal(&error))?;
            print(&pretty(&program, &text))
        }
        VqlVerb::List => list(),
        VqlVerb::Export { format: ReferenceFormat::Json } => print_line(&serde_json::to_string_pretty(&references(&complete()))?),
        VqlVerb::Export { format: ReferenceFormat::Markdown } => print(&page(&complete())),
        VqlVerb::Lsp { definitions } => serve(&definitions),
    }
}

/// The text of a file (with `@` or without), of stdin with `-`, or the argument itself.
fn text(argument: &str) -> Result<String> {
    if argument == "-" {
        return bounded(std::io::stdin().lock()).context("cannot read stdin");
    }
    let path = argument.strip_prefix('@').unwrap_or(argument);
    if argument.starts_with('@') || Path::new(path).is_file() {
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {path}"))?;
        return bounded(file).with_context(|| format!("cannot read {path}"));
    }
    Ok(argument.to_owned())
}

fn bounded(source: impl Read) -> Result<String> {
    let mut text = String::new();
    source.take(MAX_TEXT as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_TEXT {
        bail!("the text is longer than {MAX_TEXT} bytes");
    }
    Ok(text)
}

fn refusal(error: &SyntaxError) -> anyhow::Error {
    anyhow!("{}", error.render())
}

/// The built-in artifacts and those of some packs. What does not load is said on stderr.
pub(crate) fn repository(packs: &[PathBuf]) -> Result<Repository> {
    let repository = Repository::with_built_ins();
    for path in packs {
        for (file, error) in Pack::read(path).context("--definitions")?.add_to(&repository, Layer::Configured) {
            eprintln!("{}: {error}", file.display());
        }
    }
    Ok(repository)
}

/// Prints the canonical text. What the linter finds goes to stderr: the text is VQL nevertheless.
fn parse(argument: &str, definitions: &[PathBuf]) -> Result<()> {
    let text = text(argument)?;
    let program = talon_vql::parse(&text).map_err(|error| refusal(&error))?;
    for statement in &program.statements {
        print_line(&canonical_statement(statement))?;
    }
    let (repository, registry) = (repository(definitions)?, complete());
    let library = Library::new(&repository).with_registry(&registry);
    for finding in talon_artifacts::lint_vql(&text, &library).map_err(|error| refusal(&error))? {
        eprintln!("{}: {}", finding.rule.severity().word(), finding.render(&text));
    }
    Ok(())
}

fn list() -> Result<()> {
    let registry = complete();
    let mut lines: Vec<_> = registry
        .signatures()
        .filter(|signature| signature.unavailable.is_none())
        .map(|signature| format!("{} {}", word(signature.kind), signature.name))
        .collect();
    lines.sort();
    print(&(lines.join("\n") + "\n"))
}

/// Parsing needs the stack of a thread for queries.
fn serve(definitions: &[PathBuf]) -> Result<()> {
    let known = talon_language_server::Known { repository: Arc::new(repository(definitions)?), registry: complete() };
    let work = move || talon_language_server::serve(&known, std::io::stdin().lock(), std::io::stdout().lock());
    let thread = talon_vql::spawn_query_thread("lsp", work).context("cannot start a thread")?;
    Ok(thread.join().map_err(|_| anyhow!("the language server ended by a defect in the program"))??)
}
