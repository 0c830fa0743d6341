//! What is refused, with which words, where.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use expect_test::expect;
use talon_vql::{parse, parse_expression, parse_statement};

#[test]
fn messages_are_those_peers_know() {
    for (text, expected) in [
        ("SELECT * FRO x", "1:14: unexpected token \"x\" (expected <from>)"),
        ("", "1:1: unexpected token \"<EOF>\" (expected <select>)"),
        ("-- hi", "1:6: unexpected token \"<EOF>\" (expected <select>)"),
        ("SELECT [1,2] FROM scope()", "1:8: unexpected token \"[\" (expected <from>)"),
        ("SELECT \"x\" AS S, [1,2] AS Arr FROM scope()", "1:16: unexpected token \",\" (expected <from>)"),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn recorded_syntax_errors_of_the_stock_server() {
    let Ok(vectors) = std::env::var("TALON_VECTORS") else {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
        return;
    };
    let text = std::fs::read_to_string(std::path::Path::new(&vectors).join("api/query-shapes.jsonl")).unwrap();
    let mut seen = 0;
    for line in text.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let Some(queries) = case["request"]["Query"].as_array() else { continue };
        let logs = case["messages"].as_array().unwrap().iter().filter_map(|message| message["log"].as_str());
        let recorded: Vec<&str> = logs.filter_map(|log| log.strip_prefix("VQL Error: ")).collect();
        let ours: Vec<String> = queries
            .iter()
            .filter_map(|query| parse(query["VQL"].as_str().unwrap_or("")).err())
            .map(|error| format!("{error}.\n"))
            .collect();
        if recorded.iter().any(|log| log.contains("unexpected token")) {
            assert_eq!(ours.first().map(String::as_str), recorded.first().copied(), "{queries:?}");
            seen += 1;
        } else if recorded.is_empty() {
            assert!(ours.is_empty(), "{queries:?}: {ours:?}");
        }
    }
    assert!(seen >= 5, "only {seen} recorded errors");
}

#[test]
fn what_is_not_vql() {
    for text in [
        "1-2",
        "a-b",
        "'-' 2",
        "()",
        "(1,,2)",
        "a = b = c",
        "a < b < c",
        "a = NOT b",
        "a * b[0]",
        "a * f(x=1).y",
        "a % b",
        "[1, 2]",
        "{ SELECT * FROM x }",
        "f(1)",
        "f(a=1,)",
        "f(a=[[1]])",
        "f(a=[1] + 2)",
        "f(limit=1)",
        "a.select",
        "a.",
        "x[]",
        "x[1 + 1]",
        "x[1:2:3]",
        "5.",
        "a b",
        "-5a",
        "a ; b",
    ] {
        assert!(parse_expression(text).is_err(), "{text}");
    }
    for text in [
        "SELECT",
        "SELECT * FROM",
        "SELECT * FROM -x",
        "SELECT a, FROM x",
        "SELECT * FROM x ORDER BY a.b",
        "SELECT * FROM x ORDER BY a, b",
        "SELECT * FROM x LIMIT y",
        "SELECT * FROM x LIMIT 1 WHERE a",
        "SELECT * FROM x ORDER BY a ASC",
        "SELECT * FROM x HAVING y",
        "LET = 1",
        "LET X 1",
        "LET X == 1",
        "LET X(1) = 1",
        "LET X(a,) = 1",
        "LET SELECT = 1",
        "LET X = ",
        "SELECT * FROM x; SELECT * FROM y",
        "SELECT f(x={ 1 }) FROM x",
        "SELECT 0x10000000000000000 FROM x",
    ] {
        assert!(parse_statement(text).is_err(), "{text}");
    }
}

#[test]
fn errors_show_the_place_and_a_cure() {
    let cases = [
        "SELECT A,\n  B FORM info()",
        "SELECT * FROM info() WHRE OS = 'linux'",
        "SELECT 5 -3 FROM scope()",
        "SELECT f(limit=3) FROM scope()",
        "SELECT f(3) FROM scope()",
        "SELECT f(x) FROM scope()",
        "SELECT * FROM scope() ORDER BY X ASC",
        "SELECT 1 = 2 = 3 FROM scope()",
        "SELECT 'abc FROM scope()",
        "LET X = 1; SELECT * FROM scope()",
        "SELECT a * f(x=1)[0] FROM scope()",
    ];
    let shown: Vec<String> = cases.iter().map(|text| parse(text).unwrap_err().render()).collect();
    expect![[r#"
        2:5: unexpected token "FORM" (expected <from>)
          |
        2 |   B FORM info()
          |     ^^^^
        hint: did you mean FROM?

        1:22: unexpected token "WHRE"
          |
        1 | SELECT * FROM info() WHRE OS = 'linux'
          |                      ^^^^
        hint: did you mean WHERE?

        1:10: unexpected token "-3" (expected <from>)
          |
        1 | SELECT 5 -3 FROM scope()
          |          ^^
        hint: a minus that touches what follows is its sign; write a space after it to subtract

        1:10: unexpected token "limit" (expected <ident>)
          |
        1 | SELECT f(limit=3) FROM scope()
          |          ^^^^^
        hint: limit is a keyword; write `limit` in backticks to use it as a name

        1:10: unexpected token "3" (expected <ident>)
          |
        1 | SELECT f(3) FROM scope()
          |          ^
        hint: every argument is written name=value

        1:11: unexpected token ")" (expected "=")
          |
        1 | SELECT f(x) FROM scope()
          |           ^
        hint: every argument is written name=value, as in x=…

        1:34: unexpected token "ASC"
          |
        1 | SELECT * FROM scope() ORDER BY X ASC
          |                                  ^^^
        hint: ascending order is the default; there is no ASC

        1:14: unexpected token "=" (comparisons cannot be chained)
          |
        1 | SELECT 1 = 2 = 3 FROM scope()
          |              ^
        hint: compare twice and join with AND, or use parentheses

        1:8: this string is never closed
          |
        1 | SELECT 'abc FROM scope()
          |        ^

        1:10: invalid input text ";"
          |
        1 | LET X = 1; SELECT * FROM scope()
          |          ^
        hint: statements follow each other without a separator

        1:18: unexpected token "["
          |
        1 | SELECT a * f(x=1)[0] FROM scope()
          |                  ^
        hint: right of * and / an index or a member of a call needs parentheses, as in a * (b[0])"#]]
    .assert_eq(&shown.join("\n\n"));
}

#[test]
fn hostile_nesting_is_refused_without_overflow() {
    let n = 100_000;
    for text in [
        "(".repeat(n),
        "NOT ".repeat(n),
        "f(a=".repeat(n),
        "SELECT {".repeat(n),
        "SELECT * FROM f(x={ ".repeat(n),
        format!("SELECT {} FROM x", "(".repeat(n)),
        format!("LET X = a{}", "[0]".repeat(n)),
        format!("LET X = f(){}", ".b".repeat(n)),
        format!("LET X = 1{}", " + 1".repeat(n)),
        format!("LET X = 1{}", " * 1".repeat(n)),
        format!("LET X = {}1{}", "(1 + ".repeat(n), ")".repeat(n)),
        format!("LET X = {}1{}", "(".repeat(n), " + 1)".repeat(n)),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.render().len() < 1000);
    }
    for text in [format!("LET X = 1{}", " AND 1".repeat(n)), format!("LET X = f(a=[1{}])", ", 1".repeat(n))] {
        parse(&text).unwrap();
    }
    let deep = format!("LET X = {}1{}", "(".repeat(100), ")".repeat(100));
    parse(&deep).unwrap();
    parse(&format!("LET X = 1{}", " + 1".repeat(400))).unwrap();
}

#[test]
fn derived_names_cannot_grow_without_bound() {
    let long = "a + ".repeat(200) + "a";
    let nested = |depth: usize| {
        let open = "SELECT { ".repeat(depth);
        format!("{open} SELECT {long} FROM x {}", "} FROM x ".repeat(depth))
    };
    parse(&nested(3)).unwrap();
    let error = parse(&nested(40)).unwrap_err();
    assert!(error.message().contains("unnamed columns"), "{error}");
}
