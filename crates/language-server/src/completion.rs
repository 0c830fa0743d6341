//! What could be written at a place.

use gen_lsp_types as lsp;
use talon_artifacts::Repository;
use talon_vql::{Kind, Signature};

use crate::Known;
use crate::context::{Callee, Wanted, wanted};
use crate::document::Document;
use crate::hover::{artifact_documentation, documentation, of_name, signature_line};
use crate::names::{self, Name, What};

/// The most suggestions.
const MOST: usize = 1000;
/// Words that an expression may start or go on with.
const KEYWORDS: [&str; 15] =
    ["SELECT", "FROM", "WHERE", "GROUP BY", "ORDER BY", "LIMIT", "LET", "AND", "OR", "NOT", "IN", "AS", "NULL", "TRUE", "FALSE"];

/// Suggestions for the place at a byte of a document.
pub(crate) fn at(document: &Document, known: &Known, repository: &Repository, offset: usize) -> Vec<lsp::CompletionItem> {
    let found = document.query_at(offset).and_then(|(query, base)| wanted(query.get(..offset.checked_sub(base)?)?));
    let Some((wanted, prefix)) = found else { return Vec::new() };
    let mut items = match wanted {
        Wanted::Source => {
            let mut items = builtins(known, Kind::Plugin);
            let names = names::of(document, known);
            items.extend(names.iter().filter(|name| !matches!(name.what, What::Parameter(_))).map(of_document));
            items.push(item("Artifact", lsp::CompletionItemKind::Module, "the rows of an artifact"));
            items
        }
        Wanted::Expression => {
            let mut items = builtins(known, Kind::Function);
            items.extend(names::of(document, known).iter().map(of_document));
            items.extend(KEYWORDS.iter().map(|keyword| item(keyword, lsp::CompletionItemKind::Keyword, "")));
            items
        }
        Wanted::Artifact => return artifacts(repository, &prefix),
        Wanted::Argument { callee, given } => {
            let mut items = arguments(document, known, repository, &callee);
            items.retain(|item| !given.contains(&item.label));
            items
        }
    };
    items.retain(|item| starts_with(&item.label, &prefix));
    items.truncate(MOST);
    items
}

fn starts_with(label: &str, prefix: &str) -> bool {
    label.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn item(label: &str, kind: lsp::CompletionItemKind, detail: &str) -> lsp::CompletionItem {
    lsp::CompletionItem {
        label: label.to_owned(),
        kind: Some(kind),
        detail: Some(detail.to_owned()).filter(|detail| !detail.is_empty()),
        ..lsp::CompletionItem::default()
    }
}

fn markdown(text: String) -> Option<lsp::Documentation> {
    Some(lsp::Documentation::MarkupContent(lsp::MarkupContent::new(lsp::MarkupKind::Markdown, text)))
}

fn builtins(known: &Known, kind: Kind) -> Vec<lsp::CompletionItem> {
    let callable = known.registry.signatures().filter(|signature| signature.kind == kind && signature.unavailable.is_none());
    let symbol = match kind {
        Kind::Plugin => lsp::CompletionItemKind::Class,
        Kind::Function => lsp::CompletionItemKind::Function,
    };
    let suggestion = |signature: &Signature| lsp::CompletionItem {
        documentation: markdown(documentation(signature)),
        insert_text: Some(format!("{}(", signature.name)),
        ..item(signature.name, symbol, &signature_line(signature))
    };
    callable.map(suggestion).collect()
}

fn of_document(name: &Name) -> lsp::CompletionItem {
    let (kind, detail) = match &name.what {
        What::Definition(definition) if definition.params.is_some() => (lsp::CompletionItemKind::Function, "LET"),
        What::Definition(_) | What::Unread => (lsp::CompletionItemKind::Variable, "LET"),
        What::Parameter(_) => (lsp::CompletionItemKind::Variable, "parameter"),
    };
    lsp::CompletionItem { documentation: markdown(of_name(name)), ..item(&name.name, kind, detail) }
}

/// Artifacts whose names start with `prefix`. What is inserted is what is missing after the last dot.
fn artifacts(repository: &Repository, prefix: &str) -> Vec<lsp::CompletionItem> {
    let written = prefix.rfind('.').map_or(0, |at| at + 1);
    let entries = repository.entries();
    let fitting = entries.iter().filter(|(name, _)| starts_with(name, prefix));
    let suggestion = |(name, entry): (&String, &talon_artifacts::Entry)| lsp::CompletionItem {
        documentation: markdown(artifact_documentation(&entry.definition)),
        insert_text: name.get(written..).map(str::to_owned),
        filter_text: name.get(written..).map(str::to_owned),
        ..item(name, lsp::CompletionItemKind::Module, entry.definition.kind().name())
    };
    fitting.take(MOST).map(suggestion).collect()
}

fn arguments(document: &Document, known: &Known, repository: &Repository, callee: &Callee) -> Vec<lsp::CompletionItem> {
    let argument = |name: &str, detail: &str, text: &str| lsp::CompletionItem {
        documentation: markdown(text.to_owned()),
        insert_text: Some(format!("{name}=")),
        ..item(name, lsp::CompletionItemKind::Property, detail)
    };
    if let Some(name) = callee.name.strip_prefix("Artifact.") {
        let Some(definition) = repository.get(name) else { return Vec::new() };
        let parameters = definition.proto().parameters.iter();
        let mut items: Vec<_> = parameters.map(|known| argument(&known.name, &known.r#type, &known.description)).collect();
        items.push(argument("source", "string", "Only this source of the artifact."));
        items.push(argument("preconditions", "bool", "Whether preconditions count."));
        return items;
    }
    let kind = if callee.is_source { Kind::Plugin } else { Kind::Function };
    if let Some(signature) = known.registry.signature(kind, &callee.name) {
        let detail = |arg: &talon_vql::Arg| format!("{}{}", arg.ty.name(), if arg.required { ", required" } else { "" });
        return signature.args.iter().map(|arg| argument(arg.name, &detail(arg), arg.doc)).collect();
    }
    let names = names::of(document, known);
    match names.iter().find(|name| name.name == callee.name).map(|name| &name.what) {
        Some(What::Definition(definition)) => definition.params.iter().flatten().map(|param| argument(&param.name.text, "", "")).collect(),
        _ => Vec::new(),
    }
}
