//! Properties: printing and parsing are inverse, pretty printing is idempotent and keeps comments, nothing panics.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use proptest::prelude::*;
use talon_vql::ast::{Arg, ArgValue, Column, ColumnKind, Expr, ExprKind, LetBody, Select, Source, Statement, StatementKind};
use talon_vql::format::{canonical_expr, canonical_statement, pretty, reformat};
use talon_vql::{parse, parse_expression, parse_lambda, parse_statement};

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[A-Za-z_][A-Za-z0-9_]{0,6}".prop_map(|name| talon_vql::format::quote_name(&name)),
        "`[ -_a-z{|}é]{1,6}`".prop_map(|name| name),
    ]
}

fn literal() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("NULL".to_owned()),
        prop_oneof![Just("TRUE"), Just("false")].prop_map(str::to_owned),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(|number| format!("{number:e}")),
        (0i64..99999).prop_map(|number| format!("{number:#x}")),
        r#"'([^'\\]|\\[ntxXd'"])*'"#,
        r#""([^"\\]|\\[ntxXd'"])*""#,
        "'''[a-z'\"\\\\\n]{0,5}[a-z]'''".prop_filter("closed once", |text| !text[3..text.len() - 3].contains("'''")),
    ]
}

fn value(expr: BoxedStrategy<String>) -> BoxedStrategy<String> {
    let args = prop::collection::vec(
        (
            name(),
            prop_oneof![
                4 => expr.clone(),
                1 => query(expr.clone()).prop_map(|query| format!("{{ {query} }}")),
                1 => prop::collection::vec(expr.clone(), 0..3).prop_map(|items| format!("[{}]", items.join(", "))),
                1 => expr.clone().prop_map(|item| format!("[{item}, ]")),
            ],
        ),
        0..4,
    )
    .prop_map(|args| args.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", "));
    let path = prop::collection::vec(name(), 1..3).prop_map(|path| path.join(".")).boxed();
    prop_oneof![
        2 => literal(),
        3 => (any::<bool>(), path.clone()).prop_map(|(negated, path)| format!("{}{path}", if negated { "-" } else { "" })),
        2 => (path, args).prop_map(|(path, args)| format!("{path}({args})")),
        1 => expr.clone().prop_map(|inner| format!("({inner})")),
        1 => prop::collection::vec(expr.clone(), 1..4).prop_map(|items| format!("({},)", items.join(", "))),
        1 => (expr.clone(), expr).prop_map(|(a, b)| format!("({a}, {b})")),
    ]
    .boxed()
}

fn expression() -> BoxedStrategy<String> {
    let leaf = prop_oneof![literal(), name()].boxed();
    leaf.prop_recursive(4, 24, 4, |inner| {
        let value = value(inner.clone());
        let add = prop_oneof![Just("+"), Just("-"), Just("*"), Just("/")];
        let compare = prop_oneof![Just("="), Just("!="), Just("<>"), Just("<"), Just(">="), Just("in"), Just("=~")];
        let chain = prop_oneof![Just("AND"), Just("or"), Just("&&"), Just("||")];
        prop_oneof![
            3 => value.clone(),
            1 => (value.clone(), name()).prop_map(|(a, b)| format!("({a}).{b}")),
            1 => (value.clone(), value.clone()).prop_map(|(a, b)| format!("({a})[{b}]")),
            1 => (value.clone(), value.clone()).prop_map(|(a, b)| format!("({a})[{b}:]")),
            2 => (value.clone(), add, value.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
            1 => (value.clone(), compare, value.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
            2 => (value.clone(), chain, value.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
            1 => value.prop_map(|a| format!("NOT {a}")),
        ]
    })
    .boxed()
}

fn query(expr: BoxedStrategy<String>) -> BoxedStrategy<String> {
    let column =
        (expr.clone(), prop::option::of(name())).prop_map(|(expr, alias)| alias.map_or(expr.clone(), |alias| format!("{expr} AS {alias}")));
    (
        prop::collection::vec(prop_oneof![5 => column, 1 => Just("*".to_owned())], 1..4),
        name(),
        prop::option::of(expr.clone()),
        prop::option::of(expr.clone()),
        prop::option::of((name(), any::<bool>())),
        prop::option::of(0..1000i32),
    )
        .prop_map(|(columns, source, filter, group, order, limit)| {
            let mut text = format!("SELECT {} FROM {source}", columns.join(", "));
            text.extend(filter.map(|filter| format!(" WHERE {filter}")));
            text.extend(group.map(|group| format!(" GROUP BY {group}, 1")));
            text.extend(order.map(|(name, descending)| format!(" ORDER BY {name}{}", if descending { " DESC" } else { "" })));
            text.extend(limit.map(|limit| format!(" LIMIT {limit}")));
            text
        })
        .boxed()
}

fn statement() -> BoxedStrategy<String> {
    prop_oneof![
        query(expression()),
        (name(), expression()).prop_map(|(name, expr)| format!("LET {name} = {expr}")),
        (name(), name(), expression(), query(expression()))
            .prop_map(|(name, param, default, query)| format!("LET {name}({param}, x={default}) <= {query}")),
    ]
    .boxed()
}

/// The tree without spans, so that trees of different texts compare.
fn bare(statement: &Statement) -> String {
    let text = format!("{:?}", statement.kind);
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("Span { start: ") {
        out.push_str(&rest[..at]);
        let after = &rest[at..];
        let end = after.find('}').unwrap();
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn canonical_text_parses_to_the_same_tree(text in statement()) {
        let first = parse_statement(&text).map_err(|error| TestCaseError::fail(format!("{text}\n{}", error.render())))?;
        let printed = canonical_statement(&first);
        let second = parse_statement(&printed).map_err(|error| TestCaseError::fail(format!("{text}\n{}", error.render())))?;
        prop_assert_eq!(bare(&first), bare(&second), "{}", printed);
        prop_assert_eq!(canonical_statement(&second), printed);
    }

    #[test]
    fn pretty_text_parses_to_the_same_tree_and_is_stable(texts in prop::collection::vec(statement(), 1..3)) {
        let text = texts.join("\n\n");
        let first = parse(&text).unwrap();
        let printed = pretty(&first, &text);
        let second = parse(&printed).map_err(|error| TestCaseError::fail(format!("{printed}\n{}", error.render())))?;
        let trees = |program: &talon_vql::ast::Program| program.statements.iter().map(bare).collect::<Vec<_>>();
        prop_assert_eq!(trees(&first), trees(&second), "{}", printed);
        prop_assert_eq!(pretty(&second, &printed), printed);
    }

    #[test]
    fn pretty_text_keeps_every_comment(text in statement(), places in prop::collection::vec((0usize..200, any::<bool>()), 1..6)) {
        let spaces: Vec<usize> = text.char_indices().filter(|(_, c)| matches!(c, ' ' | '(' | ',')).map(|(at, _)| at + 1).collect();
        prop_assume!(!spaces.is_empty());
        let mut commented = text.clone();
        let mut cuts: Vec<(usize, bool)> = places.iter().map(|(place, line)| (spaces[place % spaces.len()], *line)).collect();
        cuts.sort_unstable();
        cuts.dedup_by_key(|cut| cut.0);
        for (index, (at, line)) in cuts.iter().enumerate().rev() {
            commented.insert_str(*at, &if *line { format!("-- c{index}\n") } else { format!("/* c{index} */") });
        }
        // A comment inside a string or a name is none, and between the words of GROUP BY it separates them.
        let Ok(program) = parse(&commented) else { return Ok(()) };
        let printed = pretty(&program, &commented);
        let again = parse(&printed).map_err(|error| TestCaseError::fail(format!("{printed}\n{}", error.render())))?;
        let texts = |program: &talon_vql::ast::Program| program.comments.iter().map(|comment| comment.text.clone()).collect::<Vec<_>>();
        prop_assert_eq!(texts(&program), texts(&again), "{}", printed);
        prop_assert_eq!(pretty(&again, &printed), printed);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes);
        for error in [parse(&text).err(), parse_expression(&text).err(), parse_lambda(&text).err()].into_iter().flatten() {
            error.render();
        }
    }

    #[test]
    fn token_soup_does_not_panic(words in prop::collection::vec(prop_oneof![
        Just("SELECT"), Just("*"), Just("FROM"), Just("LET"), Just("x"), Just("-x"), Just("="), Just("<="), Just("("), Just(")"), Just("{"),
        Just("}"), Just("["), Just("]"), Just(","), Just("."), Just("'a'"), Just("'"), Just("\""), Just("1"), Just("-1"), Just("AND"),
        Just("NOT"), Just("IN"), Just("/*"), Just("*/"), Just("--"), Just("\n"), Just("`"), Just("WHERE"), Just("GROUP BY"), Just(":"), Just("é"),
    ], 0..40), glue in prop_oneof![Just(""), Just(" ")]) {
        let text = words.join(glue);
        if let Ok(program) = parse(&text) {
            let printed = pretty(&program, &text);
            prop_assert_eq!(reformat(&printed).ok(), Some(printed));
        }
    }
}

#[test]
fn the_generators_reach_every_kind_of_node() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    let tree = statement();
    for _ in 0..2000 {
        let text = tree.new_tree(&mut runner).unwrap().current();
        visit_statement(&parse_statement(&text).unwrap(), &mut seen);
    }
    for kind in [
        "Null",
        "Bool",
        "Number",
        "String",
        "Symbol",
        "Call",
        "Tuple",
        "Paren",
        "Member",
        "Index",
        "Slice",
        "Binary",
        "And",
        "Or",
        "Not",
        "Star",
        "Array",
        "SelectArg",
    ] {
        assert!(seen.contains(kind), "{kind} is never generated: {seen:?}");
    }
}

type Seen = std::collections::BTreeSet<&'static str>;

fn visit_statement(statement: &Statement, seen: &mut Seen) {
    match &statement.kind {
        StatementKind::Select(select) => visit_select(select, seen),
        StatementKind::Let(definition) => match &definition.body {
            LetBody::Select(select) => visit_select(select, seen),
            LetBody::Expr(expr) => visit(expr, seen),
        },
    }
}

fn visit_select(select: &Arc<Select>, seen: &mut Seen) {
    for Column { kind, .. } in &select.columns {
        match kind {
            ColumnKind::Star => {
                seen.insert("Star");
            }
            ColumnKind::Select(select) => visit_select(select, seen),
            ColumnKind::Expr(expr) => visit(expr, seen),
        }
    }
    let Source { args, .. } = &select.from;
    visit_args(args.as_deref(), seen);
    for expr in select.filter.iter().chain(&select.group_by) {
        visit(expr, seen);
    }
}

fn visit_args(args: Option<&[Arg]>, seen: &mut Seen) {
    for arg in args.unwrap_or_default() {
        match &arg.value {
            ArgValue::Expr(expr) => visit(expr, seen),
            ArgValue::Select(select) => {
                seen.insert("SelectArg");
                visit_select(select, seen);
            }
            ArgValue::Array { items, .. } => {
                seen.insert("Array");
                items.iter().for_each(|item| visit(item, seen));
            }
        }
    }
}

fn visit(expr: &Expr, seen: &mut Seen) {
    let kind = match &expr.kind {
        ExprKind::Null => "Null",
        ExprKind::Bool { .. } => "Bool",
        ExprKind::Number(_) => "Number",
        ExprKind::String(_) => "String",
        ExprKind::Symbol(symbol) => {
            visit_args(symbol.args.as_deref(), seen);
            if symbol.args.is_some() { "Call" } else { "Symbol" }
        }
        ExprKind::Tuple { items, .. } => {
            items.iter().for_each(|item| visit(item, seen));
            "Tuple"
        }
        ExprKind::Paren(inner) => {
            visit(inner, seen);
            "Paren"
        }
        ExprKind::Not(inner) => {
            visit(inner, seen);
            "Not"
        }
        ExprKind::Member { object, .. } => {
            visit(object, seen);
            "Member"
        }
        ExprKind::Index { object, index } => {
            visit(object, seen);
            visit(index, seen);
            "Index"
        }
        ExprKind::Slice { object, .. } => {
            visit(object, seen);
            "Slice"
        }
        ExprKind::Binary { left, right, .. } => {
            visit(left, seen);
            visit(right, seen);
            "Binary"
        }
        ExprKind::And { first, rest } | ExprKind::Or { first, rest } => {
            visit(first, seen);
            rest.iter().for_each(|(_, operand)| visit(operand, seen));
            if matches!(expr.kind, ExprKind::And { .. }) { "And" } else { "Or" }
        }
    };
    seen.insert(kind);
    assert!(!canonical_expr(expr).is_empty());
}
