//! Walking a syntax tree: for those that ask what a text refers to. Recursion is bounded by the parser's bound on height.

use crate::ast::{Arg, ArgValue, ColumnKind, Expr, ExprKind, Let, LetBody, Select, Source, Statement, StatementKind};

/// A part of a tree that walkers may care about.
#[derive(Debug, Clone, Copy)]
pub enum Node<'a> {
    /// A definition, before its body.
    Let(&'a Let),
    /// A query, before its parts.
    Select(&'a Select),
    /// The target of `FROM`, before its arguments.
    Source(&'a Source),
    /// An expression, before its parts. Calls are among the symbols.
    Expr(&'a Expr),
}

/// Visits every part of a statement, the outer before the inner, in order of appearance.
pub fn statement<'a>(statement: &'a Statement, visit: &mut impl FnMut(Node<'a>)) {
    match &statement.kind {
        StatementKind::Let(definition) => {
            visit(Node::Let(definition));
            for default in definition.params.iter().flatten().filter_map(|param| param.default.as_ref()) {
                value(default, visit);
            }
            match &definition.body {
                LetBody::Select(body) => select(body, visit),
                LetBody::Expr(body) => expr(body, visit),
            }
        }
        StatementKind::Select(body) => select(body, visit),
    }
}

/// Visits every part of a query.
pub fn select<'a>(query: &'a Select, visit: &mut impl FnMut(Node<'a>)) {
    visit(Node::Select(query));
    for column in &query.columns {
        match &column.kind {
            ColumnKind::Star => {}
            ColumnKind::Select(inner) => select(inner, visit),
            ColumnKind::Expr(inner) => expr(inner, visit),
        }
    }
    visit(Node::Source(&query.from));
    args(query.from.args.as_deref(), visit);
    for clause in query.filter.iter().chain(&query.group_by) {
        expr(clause, visit);
    }
}

/// Visits every part of an expression.
pub fn expr<'a>(expression: &'a Expr, visit: &mut impl FnMut(Node<'a>)) {
    visit(Node::Expr(expression));
    match &expression.kind {
        ExprKind::Null | ExprKind::Bool { .. } | ExprKind::Number(_) | ExprKind::String(_) => {}
        ExprKind::Symbol(symbol) => args(symbol.args.as_deref(), visit),
        ExprKind::Tuple { items, .. } => items.iter().for_each(|item| expr(item, visit)),
        ExprKind::Paren(inner) | ExprKind::Not(inner) | ExprKind::Member { object: inner, .. } => expr(inner, visit),
        ExprKind::Index { object, index } => {
            expr(object, visit);
            expr(index, visit);
        }
        ExprKind::Slice { object, from, to } => {
            expr(object, visit);
            from.iter().chain(to).for_each(|bound| expr(bound, visit));
        }
        ExprKind::Binary { left, right, .. } => {
            expr(left, visit);
            expr(right, visit);
        }
        ExprKind::And { first, rest } | ExprKind::Or { first, rest } => {
            expr(first, visit);
            rest.iter().for_each(|(_, operand)| expr(operand, visit));
        }
    }
}

fn args<'a>(args: Option<&'a [Arg]>, visit: &mut impl FnMut(Node<'a>)) {
    args.unwrap_or_default().iter().for_each(|arg| value(&arg.value, visit));
}

fn value<'a>(value: &'a ArgValue, visit: &mut impl FnMut(Node<'a>)) {
    match value {
        ArgValue::Expr(inner) => expr(inner, visit),
        ArgValue::Select(inner) => select(inner, visit),
        ArgValue::Array { items, .. } => items.iter().for_each(|item| expr(item, visit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_symbol_is_visited_in_order() {
        let text = "LET F(a, b=B, c={ SELECT C FROM d() }) = SELECT e, { SELECT f FROM g(x=[h, i]) }, (j, k)[l].m + n[o:p] * q \
                    FROM r(y=s AND t OR NOT u) WHERE v = (w) GROUP BY x";
        let parsed = crate::parse_statement(text).unwrap();
        let mut seen = String::new();
        statement(&parsed, &mut |node| match node {
            Node::Source(source) => seen.push_str(&source.path[0].name),
            Node::Expr(Expr { kind: ExprKind::Symbol(symbol), .. }) => seen.push_str(&symbol.path[0].name),
            _ => {}
        });
        assert_eq!(seen, "BCdefghijklnopqrstuvwx");
    }
}
