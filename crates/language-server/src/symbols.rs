//! The outline of a document: definitions and queries.

use gen_lsp_types as lsp;
use talon_vql::ast::{Statement, StatementKind};
use talon_vql::format::canonical_select;

use crate::document::{Document, Encoding, bytes};
use crate::hover::definition_line;

/// The most entries.
const MOST: usize = 2000;
/// The longest name of an entry, in characters.
const LONGEST: usize = 60;

/// The outline. Queries that cannot be parsed at the moment are not in it.
pub(crate) fn of(document: &Document, encoding: Encoding) -> Vec<lsp::DocumentSymbol> {
    let mut symbols = Vec::new();
    for range in document.queries() {
        let base = range.start;
        let Ok(program) = talon_vql::parse(document.text.get(range).unwrap_or_default()) else { continue };
        symbols.extend(program.statements.iter().map(|statement| symbol(document, statement, base, encoding)));
    }
    symbols.truncate(MOST);
    symbols
}

fn symbol(document: &Document, statement: &Statement, base: usize, encoding: Encoding) -> lsp::DocumentSymbol {
    let range = document.range(bytes(statement.span, base), encoding);
    let (name, detail, kind, selection) = match &statement.kind {
        StatementKind::Let(definition) => {
            let kind = if definition.params.is_some() { lsp::SymbolKind::Function } else { lsp::SymbolKind::Variable };
            let selection = document.range(bytes(definition.name.span, base), encoding);
            (definition.name.name.to_string(), Some(definition_line(definition)), kind, selection)
        }
        StatementKind::Select(select) => (canonical_select(select), None, lsp::SymbolKind::Event, range),
    };
    let name = if name.chars().count() > LONGEST { name.chars().take(LONGEST).chain("…".chars()).collect() } else { name };
    // The constructor takes the deprecated member, which nobody needs.
    #[allow(deprecated)]
    lsp::DocumentSymbol { name, detail, kind, tags: None, deprecated: None, range, selection_range: selection, children: None }
}
