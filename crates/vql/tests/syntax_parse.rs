//! What parses, what does not, and what the tree looks like, by the rules of the language.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use talon_vql::ast::{ArgValue, ColumnKind, Expr, ExprKind, LetBody, Number, Select, StatementKind};
use talon_vql::format::{canonical_expr, canonical_statement};
use talon_vql::{parse, parse_expression, parse_lambda, parse_statement};

fn select(text: &str) -> std::sync::Arc<Select> {
    match parse_statement(text).unwrap().kind {
        StatementKind::Select(select) => select,
        StatementKind::Let(_) => panic!("{text} is a LET"),
    }
}

/// The tree with a pair of brackets around every operation.
fn shape(expr: &Expr) -> String {
    let list = |items: &[Expr]| items.iter().map(shape).collect::<Vec<_>>().join(" ");
    let chain = |name: &str, first: &Expr, rest: &[(std::sync::Arc<str>, Expr)]| {
        let rest: Vec<String> = rest.iter().map(|(_, operand)| shape(operand)).collect();
        format!("({name} {} {})", shape(first), rest.join(" "))
    };
    match &expr.kind {
        ExprKind::Binary { op, left, right } => format!("({op:?} {} {})", shape(left), shape(right)),
        ExprKind::And { first, rest } => chain("And", first, rest),
        ExprKind::Or { first, rest } => chain("Or", first, rest),
        ExprKind::Not(operand) => format!("(Not {})", shape(operand)),
        ExprKind::Paren(inner) => format!("(Paren {})", shape(inner)),
        ExprKind::Tuple { items, .. } => format!("(Tuple {})", list(items)),
        ExprKind::Member { object, name } => format!("(Member {} {})", shape(object), name.name),
        ExprKind::Index { object, index } => format!("(Index {} {})", shape(object), shape(index)),
        ExprKind::Slice { object, from, to } => {
            let bound = |bound: &Option<Box<Expr>>| bound.as_ref().map_or("_".to_owned(), |expr| shape(expr));
            format!("(Slice {} {} {})", shape(object), bound(from), bound(to))
        }
        _ => canonical_expr(expr),
    }
}

#[test]
fn precedence_from_and_to_member() {
    for (text, expected) in [
        ("1 + 2 * 4", "(Add 1 (Mul 2 4))"),
        ("1 - 2 - 3", "(Sub (Sub 1 2) 3)"),
        ("a / b / c", "(Div (Div a b) c)"),
        ("false AND 5 OR 4", "(And false (Or 5 4))"),
        ("a OR b AND c || d && e", "(And (Or a b) (Or c d) e)"),
        ("a ||| b | c", "(Or a b c)"),
        ("(false and 5) or 4", "(Or (Paren (And false 5)) 4)"),
        ("NOT a = 2", "(Not (Eq a 2))"),
        ("NOT a = 2 AND b", "(And (Not (Eq a 2)) b)"),
        ("NOT NOT a OR b", "(Or (Not (Not a)) b)"),
        ("a + 1 < b * 2", "(Lt (Add a 1) (Mul b 2))"),
        ("a =~ 'x' OR b IN (1, 2)", "(Or (Match a 'x') (In b (Tuple 1 2)))"),
        ("a <> b", "(Ne a b)"),
        ("X[0].bar", "(Member (Index X 0) bar)"),
        ("X[-2:]", "(Slice X -2 _)"),
        ("X[:a.b]", "(Slice X _ a.b)"),
        ("X[-Y]", "(Index X -Y)"),
        ("f(x=1).y[2] * 3", "(Mul (Index (Member f(x=1) y) 2) 3)"),
        ("1 +\n2", "(Add 1 2)"),
        ("(1, )", "(Tuple 1)"),
        ("-f(x=1) + -Y", "(Add -f(x=1) -Y)"),
        ("(a)[1]", "(Index (Paren a) 1)"),
    ] {
        assert_eq!(shape(&parse_expression(text).unwrap()), expected, "{text}");
    }
}

#[test]
fn every_form_of_statement_is_accepted() {
    for text in [
        "SELECT * FROM info()",
        "select * from info",
        "EXPLAIN SELECT * FROM info()",
        "SELECT *, A FROM x",
        "SELECT * A, B FROM x",
        "SELECT A, *, B FROM x",
        "SELECT { SELECT * FROM y } AS B FROM x",
        "SELECT * FROM a.b.c(x=1)",
        "SELECT * FROM x WHERE a, b GROUP BY c, d ORDER BY e DESC LIMIT 10",
        "SELECT * FROM x GROUP BY (a, b)",
        "SELECT * FROM x GROUP\nBY a ORDER  BY `x y`",
        "SELECT f(a={ SELECT * FROM x }, b=[1, 2], c=[1, ], d=[], e=[1]) FROM x",
        "SELECT dict(`key with spaces`=1) FROM x",
        "SELECT X.`Hello world`.Y FROM x",
        "LET X = 1",
        "LET X <= SELECT * FROM x",
        "LET F(a, b=3, c=[1, 2], d={ SELECT * FROM x }) = a + b",
        "LET F() = 1",
        "LET X = EXPLAIN SELECT * FROM x",
        "LET Foo(`X.Y`, `X.Z` = 5) = `X.Y` + `X.Z`",
        "SELECT ASC, GROUP, ORDER, BY FROM x",
    ] {
        parse_statement(text).unwrap_or_else(|error| panic!("{text}\n{}", error.render()));
    }
}

#[test]
fn a_text_holds_many_statements_and_comments_anywhere() {
    let program = parse("-- first\nLET A = 1 // one\n/* two\n lines */ LET B <= SELECT * -- x\nFROM a\nSELECT * FROM B").unwrap();
    assert_eq!(program.statements.len(), 3);
    let comments: Vec<&str> = program.comments.iter().map(|comment| comment.text.as_str()).collect();
    assert_eq!(comments, ["-- first", "// one", "/* two\n lines */", "-- x"]);
    assert!(parse_statement("LET A = 1 SELECT * FROM x").is_err());
}

#[test]
fn names_keep_their_text_and_decode_their_value() {
    let expr = parse_expression("X.`Hello world`.`a\\tb`").unwrap();
    let ExprKind::Symbol(symbol) = expr.kind else { panic!() };
    let names: Vec<&str> = symbol.path.iter().map(|ident| &*ident.name).collect();
    assert_eq!(names, ["X", "Hello world", "a\tb"]);
    let expr = parse_expression("`X.Y`").unwrap();
    let ExprKind::Symbol(symbol) = expr.kind else { panic!() };
    assert_eq!(symbol.path.len(), 1);
}

#[test]
fn columns_are_named_by_alias_or_canonical_text() {
    let text = "SELECT 1+1, X [0].bar, func(a=1,b='x'), A AS B, `C D`, E AS `F G`, *, `A` + 4, x.y, -Z, \
                a and b && c, { SELECT * FROM y LIMIT 1 }, 0x10, 1e5, f(x={SELECT * FROM scope()}) FROM x";
    let columns = &select(text).columns;
    let names: Vec<&str> = columns.iter().map(|column| &*column.name).collect();
    assert_eq!(
        names,
        [
            "1 + 1",
            "X[0].bar",
            "func(a=1, b='x')",
            "B",
            "C D",
            "F G",
            "",
            "`A` + 4",
            "x.y",
            "-Z",
            "a  and b  && c",
            "{ SELECT * FROM y LIMIT 1  }",
            "16",
            "100000.0",
            "f(x={ SELECT * FROM scope() })",
        ]
    );
    assert!(matches!(columns[11].kind, ColumnKind::Select(_)));
}

#[test]
fn literals_have_values() {
    let value = |text: &str| parse_expression(text).unwrap().kind;
    let ExprKind::String(string) = value(r#""a\x00\d\"""#) else { panic!() };
    assert_eq!(&*string.value, b"a\0d\"");
    let ExprKind::String(string) = value(r"'''a\x00'b'''") else { panic!() };
    assert_eq!(&*string.value, br"a\x00'b");
    assert!(matches!(value("070"), ExprKind::Number(Number::Int(56))));
    assert!(matches!(value("tRuE"), ExprKind::Bool { value: true, .. }));
    assert!(matches!(value("null"), ExprKind::Null));
}

#[test]
fn let_and_arguments() {
    let StatementKind::Let(definition) = parse_statement("LET F(a, b=[1, ]) <= SELECT * FROM x").unwrap().kind else { panic!() };
    assert!(definition.materialized && matches!(definition.body, LetBody::Select(_)));
    let params = definition.params.as_ref().unwrap();
    assert!(params[0].default.is_none());
    assert!(matches!(&params[1].default, Some(ArgValue::Array { items, trailing_comma: true }) if items.len() == 1));
}

#[test]
fn lambdas() {
    let lambda = parse_lambda("x, y=>x + y").unwrap();
    assert_eq!(lambda.params.len(), 2);
    assert_eq!(canonical_expr(&lambda.body), "x + y");
    for text in ["x", "=>x", "x=>", "x,=>x", "1=>x", "x=>x x"] {
        assert!(parse_lambda(text).is_err(), "{text}");
    }
}

#[test]
fn canonical_text() {
    for (text, expected) in [
        ("select  a,b from x where a=1 and b in (1,2) group by a order by b desc limit 0x10", {
            "SELECT a, b FROM x WHERE a = 1  and b IN (1, 2) GROUP BY a ORDER BY b DESC  LIMIT 16"
        }),
        ("LET X<=-5", "LET X <= -5"),
        ("LET F ( a,b = 2 ) = a", "LET F(a, b=2) = a"),
        ("LET Foo(`X.Y`, `X.Z` = 5) = `X.Y`", "LET Foo(`X.Y`, `X.Z`=5) = `X.Y`"),
        ("SELECT TRUE&&1||2 FROM x", "SELECT TRUE  && 1 || 2 FROM x"),
        ("explain select * from x", "EXPLAIN SELECT * FROM x"),
        ("SELECT * A FROM x", "SELECT *, A FROM x"),
        ("SELECT f(a=[1,],b=(1,),c=[]) FROM x", "SELECT f(a=[1, ], b=(1, ), c=[]) FROM x"),
        ("SELECT 'a' + \"b\" + '''c''' FROM x", "SELECT 'a' + \"b\" + '''c''' FROM x"),
        ("SELECT X[2 : 4], X[:], not null FROM x -- c", "SELECT X[2:4], X[:], NOT NULL FROM x"),
        ("SELECT * FROM x GROUP BY (a,b)", "SELECT * FROM x GROUP BY (a, b)"),
        ("SELECT * FROM x GROUP BY a,b", "SELECT * FROM x GROUP BY a, b"),
        ("SELECT * FROM x WHERE a,", "SELECT * FROM x WHERE a,"),
        ("SELECT 1.50, 1e300, .5, 2.0 FROM x", "SELECT 1.5, 1e300, 0.5, 2.0 FROM x"),
    ] {
        assert_eq!(canonical_statement(&parse_statement(text).unwrap()), expected, "{text}");
    }
}
