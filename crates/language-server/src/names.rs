//! The names that a document defines, also while it is being written.

use std::sync::Arc;

use talon_artifacts::Repository;
use talon_vql::ast::{Let, StatementKind};
use talon_vql::visit::{self, Node};
use talon_vql::{TokenClass, tokens};

use crate::Known;
use crate::document::{Document, Kind};

/// A name that a query of the document may use.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    pub(crate) name: String,
    pub(crate) what: What,
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// A definition that could be read.
    Definition(Arc<Let>),
    /// A definition in a text that is no VQL at the moment.
    Unread,
    /// A parameter of the artifact, and what its author says of it.
    Parameter(String),
}

/// The names of a document: definitions in all of its queries, what it imports, and parameters.
pub(crate) fn of(document: &Document, known: &Known) -> Vec<Name> {
    let mut names: Vec<Name> = Vec::new();
    let mut add = |name: &str, what: What| {
        if !names.iter().any(|known| known.name == name) {
            names.push(Name { name: name.to_owned(), what });
        }
    };
    for range in document.queries() {
        let text = document.text.get(range).unwrap_or_default();
        match talon_vql::parse(text) {
            Ok(program) => program.statements.iter().for_each(|statement| definitions(statement, &mut add)),
            Err(_) => unread(text, &mut add),
        }
    }
    if let Some(artifact) = &document.artifact {
        for parameter in &artifact.proto().parameters {
            add(&parameter.name, What::Parameter(parameter.description.clone()));
        }
        let imports = artifact.imports().iter().filter_map(|import| known.repository.get(import.as_str()));
        imports.for_each(|import| import.export().iter().for_each(|statement| definitions(statement, &mut add)));
    }
    names
}

fn definitions(statement: &talon_vql::ast::Statement, add: &mut impl FnMut(&str, What)) {
    visit::statement(statement, &mut |node| {
        if let Node::Let(definition) = node {
            let body = match &statement.kind {
                StatementKind::Let(whole) if whole.name.span == definition.name.span => whole.clone(),
                _ => Arc::new(definition.clone()),
            };
            add(&definition.name.name, What::Definition(body));
        }
    });
}

/// The names that follow `LET` in a text that cannot be parsed.
fn unread(text: &str, add: &mut impl FnMut(&str, What)) {
    let tokens = tokens(text);
    for (first, second) in tokens.iter().zip(tokens.iter().skip(1)) {
        let of = |span: talon_vql::ast::Span| text.get(span.start as usize..span.end as usize).unwrap_or_default();
        if first.class == TokenClass::Keyword && of(first.span).eq_ignore_ascii_case("let") && second.class == TokenClass::Name {
            add(of(second.span).trim_matches('`'), What::Unread);
        }
    }
}

/// The artifacts that are known, with those in open documents on top.
pub(crate) fn repository<'a>(known: &Known, documents: impl Iterator<Item = &'a Document>) -> Repository {
    let repository = Repository::inheriting(known.repository.clone());
    for definition in documents.filter(|document| document.kind == Kind::Artifact).filter_map(|document| document.artifact.clone()) {
        // A name that cannot be taken stays what it was.
        drop(repository.set(definition, talon_artifacts::Layer::Configured));
    }
    repository
}
