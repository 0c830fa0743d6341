//! What the word under the pointer is: signature, permissions, one sentence.

use gen_lsp_types as lsp;
use talon_artifacts::{Definition, Repository};
use talon_ids::Permission;
use talon_vql::ast::{Let, LetBody};
use talon_vql::format::{canonical_expr, canonical_select};
use talon_vql::{Kind, Signature};

use crate::Known;
use crate::context::{Callee, Role, Word, word_at};
use crate::document::{Document, Encoding};
use crate::names::{self, Name, What};

/// The longest text of a definition that is shown, in characters.
const MOST: usize = 400;

/// What is to be said about the word at a byte of a document.
pub(crate) fn at(document: &Document, known: &Known, repository: &Repository, offset: usize, encoding: Encoding) -> Option<lsp::Hover> {
    let (query, base) = document.query_at(offset)?;
    let word = word_at(query, offset.checked_sub(base)?)?;
    let text = describe(&word, document, known, repository)?;
    let range = document.range(base + word.range.start..base + word.range.end, encoding);
    let contents = lsp::MarkupContent::new(lsp::MarkupKind::Markdown, text);
    Some(lsp::Hover { contents: contents.into(), range: Some(range) })
}

fn describe(word: &Word, document: &Document, known: &Known, repository: &Repository) -> Option<String> {
    let kind = match &word.role {
        Role::Argument(callee) => return argument(&word.path, callee, known, repository),
        Role::Source => Kind::Plugin,
        Role::Value => Kind::Function,
    };
    if let Some(name) = word.path.strip_prefix("Artifact.") {
        return artifact(name, repository);
    }
    let names = names::of(document, known);
    let of_document = |names: &[Name]| names.iter().find(|name| name.name == word.path).map(of_name);
    builtin(kind, &word.path, known).or_else(|| of_document(&names)).or_else(|| builtin(other(kind), &word.path, known))
}

fn other(kind: Kind) -> Kind {
    match kind {
        Kind::Plugin => Kind::Function,
        Kind::Function => Kind::Plugin,
    }
}

fn builtin(kind: Kind, name: &str, known: &Known) -> Option<String> {
    if let Some(signature) = known.registry.signature(kind, name) {
        return Some(documentation(signature));
    }
    let platforms = known.registry.platforms(kind, name)?;
    Some(format!("`{name}()` is only available on {platforms}."))
}

/// The signature of a built-in on one line.
pub(crate) fn signature_line(signature: &Signature) -> String {
    let arg = |arg: &talon_vql::Arg| format!("{}={}{}", arg.name, arg.ty.name(), if arg.required { "!" } else { "" });
    let mut args: Vec<String> = signature.args.iter().map(arg).collect();
    if signature.free_form && signature.unavailable.is_none() {
        args.push("…".to_owned());
    }
    format!("{}({})", signature.name, args.join(", "))
}

/// What is to be said about a built-in, in Markdown.
pub(crate) fn documentation(signature: &Signature) -> String {
    let mut out = format!("```vql\n{}\n```\n", signature_line(signature));
    match signature.unavailable {
        Some(reason) => out.push_str(&format!("Not available: {reason}.")),
        None => out.push_str(signature.doc),
    }
    let permissions: Vec<_> = signature.permissions.iter().map(Permission::name).collect();
    if !permissions.is_empty() {
        out.push_str(&format!("\n\nNeeds {}.", permissions.join(", ")));
    }
    for arg in signature.args.iter().filter(|arg| !arg.doc.is_empty()) {
        out.push_str(&format!("\n* `{}`{}: {}", arg.name, if arg.required { " (required)" } else { "" }, arg.doc));
    }
    out
}

fn argument(name: &str, callee: &Callee, known: &Known, repository: &Repository) -> Option<String> {
    if let Some(artifact) = callee.name.strip_prefix("Artifact.") {
        let definition = repository.get(artifact)?;
        let parameter = definition.proto().parameters.iter().find(|parameter| parameter.name == name)?;
        return Some(format!("```vql\n{name}={}\n```\n{}", or_string(&parameter.r#type), parameter.description));
    }
    let kind = if callee.is_source { Kind::Plugin } else { Kind::Function };
    let arg = known.registry.signature(kind, &callee.name)?.arg(name)?;
    Some(format!("```vql\n{name}={}\n```\n{}{}", arg.ty.name(), if arg.required { "Required. " } else { "" }, arg.doc))
}

fn or_string(kind: &str) -> &str {
    if kind.is_empty() { "string" } else { kind }
}

fn artifact(name: &str, repository: &Repository) -> Option<String> {
    // The last parts may be columns.
    let mut name = name;
    loop {
        if let Some(definition) = repository.get(name) {
            return Some(artifact_documentation(&definition));
        }
        name = name.rsplit_once('.')?.0;
    }
}

/// What is to be said about an artifact, in Markdown.
pub(crate) fn artifact_documentation(definition: &Definition) -> String {
    let artifact = definition.proto();
    let parameters: Vec<String> =
        artifact.parameters.iter().map(|parameter| format!("{}={}", parameter.name, or_string(&parameter.r#type))).collect();
    let mut out = format!("```vql\nArtifact.{}({})\n```\n{}", artifact.name, parameters.join(", "), artifact.description.trim());
    let permissions: Vec<_> = definition.required_permissions().iter().map(Permission::name).collect();
    if !permissions.is_empty() {
        out.push_str(&format!("\n\nNeeds {}.", permissions.join(", ")));
    }
    out
}

/// What is to be said about a name of the document.
pub(crate) fn of_name(name: &Name) -> String {
    match &name.what {
        What::Definition(definition) => format!("```vql\n{}\n```", definition_line(definition)),
        What::Unread => format!("`{}` is defined in this document.", name.name),
        What::Parameter(description) => format!("Parameter of this artifact. {description}"),
    }
}

/// A definition on one line, cut when it is long.
pub(crate) fn definition_line(definition: &Let) -> String {
    let params = definition.params.as_ref().map(|params| {
        let names: Vec<_> = params.iter().map(|param| &*param.name.text).collect();
        format!("({})", names.join(", "))
    });
    let body = match &definition.body {
        LetBody::Select(select) => canonical_select(select),
        LetBody::Expr(expr) => canonical_expr(expr),
    };
    let sign = if definition.materialized { "<=" } else { "=" };
    let line = format!("LET {}{} {sign} {body}", definition.name.text, params.unwrap_or_default());
    if line.chars().count() > MOST { line.chars().take(MOST).chain("…".chars()).collect() } else { line }
}
