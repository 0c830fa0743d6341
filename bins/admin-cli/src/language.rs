//! `talon vql …`: the language without a deployment.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use talon_ids::Permission;
use talon_vql::format::{canonical_statement, pretty};
use talon_vql::{Kind, Signature, SyntaxError};

use crate::arguments::VqlVerb;
use crate::output::{print, print_line};

pub(crate) fn run(verb: VqlVerb) -> Result<()> {
    match verb {
        VqlVerb::Parse { vql } => parse(&vql),
        VqlVerb::Reformat { vql } => {
            let text = text(&vql)?;
            let program = talon_vql::parse(&text).map_err(|error| refusal(&error))?;
            print(&pretty(&program, &text))
        }
        VqlVerb::List => list(),
        VqlVerb::Export => export(),
    }
}

/// The text itself, of a file with `@`, or of stdin with `-`.
fn text(argument: &str) -> Result<String> {
    match argument.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}")),
        None if argument == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
            Ok(text)
        }
        None => Ok(argument.to_owned()),
    }
}

fn refusal(error: &SyntaxError) -> anyhow::Error {
    anyhow!("{error}")
}

fn parse(argument: &str) -> Result<()> {
    let program = talon_vql::parse(&text(argument)?).map_err(|error| refusal(&error))?;
    for statement in &program.statements {
        print_line(&canonical_statement(statement))?;
    }
    Ok(())
}

fn list() -> Result<()> {
    let registry = talon_endpoint_vql::registry();
    let mut lines: Vec<_> = registry.signatures().map(|signature| format!("{} {}", kind(signature.kind), signature.name)).collect();
    lines.sort();
    lines.dedup();
    print(&(lines.join("\n") + "\n"))
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Plugin => "Plugin",
        Kind::Function => "Function",
    }
}

/// One built-in in the reference.
#[derive(Serialize)]
struct Reference<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    description: &'a str,
    args: Vec<Argument<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, String>,
}

#[derive(Serialize)]
struct Argument<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
}

fn export() -> Result<()> {
    let registry = talon_endpoint_vql::registry();
    let mut all: Vec<_> = registry.signatures().map(reference).collect();
    all.sort_by(|left, right| (left.name, left.kind).cmp(&(right.name, right.kind)));
    print_line(&serde_json::to_string_pretty(&all)?)
}

fn reference(signature: &Signature) -> Reference<'_> {
    let permissions: Vec<_> =
        Permission::ALL.iter().filter(|permission| signature.permissions.contains(**permission)).map(|one| one.name()).collect();
    let mut metadata = BTreeMap::new();
    if !permissions.is_empty() {
        metadata.insert("permissions", permissions.join(","));
    }
    let argument = |arg: &talon_vql::Arg| Argument { name: arg.name, kind: arg.ty.name(), required: arg.required };
    Reference {
        name: signature.name,
        kind: kind(signature.kind),
        description: signature.doc,
        args: signature.args.iter().map(argument).collect(),
        metadata,
    }
}
