//! Which artifacts a query refers to, found in its tree: comments and strings do not count.

use std::collections::BTreeMap;

use talon_vql::ast::{ExprKind, Ident, Statement};
use talon_vql::visit::{self, Node};

/// A reference to an artifact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// All that follows `Artifact.`, joined by dots. Without a call, the last parts may be columns.
    pub name: String,
    /// It is called: the name is exact.
    pub called: bool,
}

/// The references in some statements, sorted, each once. A name that is called anywhere counts as called.
pub fn references<'a>(statements: impl IntoIterator<Item = &'a Statement>) -> Vec<Reference> {
    let mut found: BTreeMap<String, bool> = BTreeMap::new();
    let mut note = |path: &[Ident], called: bool| {
        if let Some((first, rest)) = path.split_first()
            && &*first.name == "Artifact"
            && !rest.is_empty()
        {
            let name = rest.iter().map(|ident| &*ident.name).collect::<Vec<_>>().join(".");
            *found.entry(name).or_default() |= called;
        }
    };
    for statement in statements {
        visit::statement(statement, &mut |node| match node {
            Node::Source(source) => note(&source.path, source.args.is_some()),
            Node::Expr(expr) => {
                if let ExprKind::Symbol(symbol) = &expr.kind {
                    note(&symbol.path, symbol.args.is_some());
                }
            }
            Node::Let(_) | Node::Select(_) => {}
        });
    }
    found.into_iter().map(|(name, called)| Reference { name, called }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_names_count_comments_and_strings_do_not() {
        let text = "
            // Artifact.In.Comment()
            LET A = 'Artifact.In.String()' + \"Artifact.In.String2()\"
            LET B = SELECT * FROM Artifact.Generic.One(a=1)
            LET C(x={ SELECT * FROM Artifact.Two() }) = Artifact.`Three.Four`(y=1).Column
            SELECT Artifact.Five.Column, Artifact, { SELECT * FROM Artifact.Six }
            FROM foreach(row=Artifact.Seven(source='S'), query={ SELECT * FROM Artifact.Generic.One })
            WHERE Artifact.Eight()[0] AND Other.Artifact.Nine()";
        let program = talon_vql::parse(text).unwrap();
        let found: Vec<String> =
            references(&program.statements).into_iter().map(|r| format!("{}{}", r.name, if r.called { "()" } else { "" })).collect();
        assert_eq!(found, ["Eight()", "Five.Column", "Generic.One()", "Seven()", "Six", "Three.Four()", "Two()"]);
    }
}
