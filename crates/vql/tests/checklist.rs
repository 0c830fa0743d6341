//! What stock engines pin about the language, item by item (`spec/04` §12): each case has the name of its item.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::sync::Arc;

use talon_vql::{AllowAll, Environment, MemoryLog, Query, Registry, Value, json, parse};

/// The rows of all statements as one JSON array, and the log.
fn run(text: &str) -> (String, Vec<String>) {
    let log = Arc::new(MemoryLog::default());
    let scope = Environment::new(Arc::new(Registry::core())).guard(Arc::new(AllowAll)).log(log.clone()).open();
    let mut rows = Vec::new();
    for statement in &parse(text).unwrap().statements {
        rows.extend(Query::new(&scope, statement).map(Value::Dict));
    }
    (json::encode(&Value::list(rows)), log.take())
}

fn check(cases: &[(&str, &str, &str)]) {
    for (name, text, expected) in cases {
        assert_eq!(run(text).0, *expected, "{name}: {text}");
    }
}

/// Cases of one expression each.
fn check_values(name: &str, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let rows = run(&format!("SELECT {text} AS X FROM scope()")).0;
        assert_eq!(rows, format!(r#"[{{"X":{expected}}}]"#), "{name}: {text}");
    }
}

#[test]
fn arithmetic() {
    check_values(
        "arithmetic",
        &[
            ("1 + 2", "3"),
            ("1 +\n2", "3"),
            ("1 + 2.5", "3.5"),
            ("7 / 2", "3.5"),
            ("4 / 2", "2"),
            ("1 / 0", "null"),
            ("0 / 5.0", "0"),
            ("1 + 'a'", "null"),
            ("'a' + 1", "null"),
            ("1 + NULL", "null"),
            ("NULL * 2", "null"),
            ("'a' + 'b'", r#""ab""#),
            ("'ab' * 2", r#""abab""#),
            ("'ab' * -1", "null"),
            ("TRUE + 1", "2"),
            ("(0x10, 0x20, 070, 0xea, -4)", "[16,32,56,234,-4]"),
            ("9223372036854775807 + 1", "-9223372036854775808"),
        ],
    );
    assert!(parse("SELECT '-' 2 FROM scope()").is_err());
    assert!(parse("SELECT 1 -2 FROM scope()").is_err());
}

#[test]
fn precedence() {
    check_values(
        "precedence",
        &[
            ("1 + 2 * 4", "9"),
            ("1 and 2 * 0", "false"),
            ("false and 5 or 4", "false"),
            ("(false and 5) or 4", "true"),
            ("NOT 1 = 2", "true"),
            ("NOT (1 = 1)", "false"),
        ],
    );
}

#[test]
fn arrays() {
    check_values(
        "arrays",
        &[
            ("(1, 2)", "[1,2]"),
            ("(1, )", "[1]"),
            ("get(item=dict(a=[1, ]), field='a')", "[1]"),
            ("get(item=dict(a=[1]), field='a')", "1"),
            ("get(item=dict(a=[]), field='a')", "[]"),
            ("(1, 2) + (3, 4)", "[1,2,3,4]"),
            ("(1, 2) + 3", "[1,2,3]"),
            ("(1, 2) + NULL", "[1,2,null]"),
            ("('a', 'b') =~ 'B'", "true"),
            ("2 in (1, 2)", "true"),
            ("(1, 2) = (1, 2)", "true"),
            ("(1, 2) = (2, 1)", "false"),
            ("(1, 2, 3)[-1]", "3"),
            ("(1, 2, 3)[9]", "null"),
            ("(1, 2, 3)[1:]", "[2,3]"),
            ("(1, 2, 3)[-2:]", "[2,3]"),
            ("(1, 2, 3)[:99]", "[1,2,3]"),
            ("(1, 2, 3)[2:1]", "[]"),
            ("'hello'[1:3]", r#""el""#),
            ("'hello'[-3:]", r#""llo""#),
            ("'hello'[0]", "104"),
            ("'hello'[-1]", "111"),
        ],
    );
}

#[test]
fn dicts() {
    check_values(
        "dict",
        &[
            ("dict(a=1, b=2) = dict(b=2, a=1)", "true"),
            ("'a' in dict(a=1)", "true"),
            ("'b' in dict(a=1)", "false"),
            ("dict(`key with spaces`=1).`key with spaces`", "1"),
            ("dict(a=dict(b=3)).a.b", "3"),
            ("dict(a=1).z", "null"),
            ("dict(a=1) + dict(b=2, a=3)", r#"{"a":3,"b":2}"#),
            ("dict(a=1, b=2) - dict(a=9)", r#"{"b":2}"#),
            ("dict(a='text') =~ 'TEXT'", "true"),
        ],
    );
}

#[test]
fn short_circuit() {
    for (text, expected, ran) in [
        ("1 OR log(message='ran')", "1", false),
        ("0 OR log(message='ran')", "true", true),
        ("FALSE AND log(message='ran')", "false", false),
        ("TRUE && 'XX'", r#""XX""#, false),
        ("NULL || ''", r#""""#, false),
        ("NULL || FALSE", "false", false),
        ("'' || 'XX' || 'YY'", r#""XX""#, false),
        ("'' && 'XX'", "false", false),
        ("'a' OR 'b'", r#""a""#, false),
        ("FALSE OR 'b'", "true", false),
    ] {
        let (rows, log) = run(&format!("SELECT {text} AS X FROM scope()"));
        assert_eq!(rows, format!(r#"[{{"X":{expected}}}]"#), "{text}");
        assert_eq!(log.iter().any(|line| line.contains("ran")), ran, "{text}");
    }
}

#[test]
fn select() {
    check(&[
        ("star and more", "SELECT *, 1 FROM range(end=1)", r#"[{"_value":0,"1":1}]"#),
        ("star in the middle", "SELECT 1, *, 2 FROM range(end=1)", r#"[{"1":1,"_value":0,"2":2}]"#),
        ("override after the star moves to the end", "SELECT *, b + 1 AS a FROM foreach(row=dict(a=1, b=2))", r#"[{"b":2,"a":3}]"#),
        ("override before the star", "SELECT 5 AS a, * FROM foreach(row=dict(a=1, b=2))", r#"[{"a":5,"b":2}]"#),
        ("alias in WHERE", "SELECT _value * 2 AS Double FROM range(end=5) WHERE Double = 6", r#"[{"Double":6}]"#),
        ("alias shadows a column in WHERE", "SELECT _value + 10 AS _value FROM range(end=3) WHERE _value > 11", r#"[{"_value":12}]"#),
        ("a row shadows the environment", "LET _value = 100 SELECT _value FROM range(end=1)", r#"[{"_value":0}]"#),
        ("columns do not see each other", "LET a = 1 SELECT 5 AS a, a + 1 AS b FROM scope()", r#"[{"a":5,"b":2}]"#),
        ("an unknown column is NULL", "SELECT NoSuch FROM scope()", r#"[{"NoSuch":null}]"#),
        ("names are canonical text", "SELECT 1+1, dict(a=1,b='x') FROM scope()", r#"[{"1 + 1":2,"dict(a=1, b='x')":{"a":1,"b":"x"}}]"#),
        ("the last of two names counts", "SELECT 1 AS a, 2 AS b, 3 AS a FROM scope()", r#"[{"b":2,"a":3}]"#),
        ("no rows at all", "SELECT * FROM range(end=3) LIMIT 0", "[]"),
    ]);
}

#[test]
fn subselect() {
    check(&[
        ("one value", "SELECT { SELECT _value FROM range(end=1) } AS X FROM scope()", r#"[{"X":0}]"#),
        ("a list", "SELECT { SELECT _value FROM range(end=2) } AS X FROM scope()", r#"[{"X":[0,1]}]"#),
        ("nothing", "SELECT { SELECT _value FROM range(end=0) } AS X FROM scope()", r#"[{"X":null}]"#),
        ("two columns", "SELECT { SELECT 1 AS A, 2 AS B FROM scope() } AS X FROM scope()", r#"[{"X":{"A":1,"B":2}}]"#),
        ("in WHERE", "LET q = SELECT * FROM range(end=2) SELECT 1 AS X FROM scope() WHERE q", r#"[{"X":1}]"#),
        (
            "columns of queries add up",
            "LET q1 = SELECT 1 AS v FROM scope() LET q2 = SELECT 2 AS v FROM scope() SELECT q1.v + q2.v AS X FROM scope()",
            r#"[{"X":[1,2]}]"#,
        ),
    ]);
}

#[test]
fn lazy() {
    let (rows, log) = run("SELECT log(message='column', dedup=-1) AS X FROM range(end=3) WHERE _value = 1");
    assert_eq!((rows.as_str(), log.len()), (r#"[{"X":true}]"#, 1), "columns of rejected rows are not evaluated");
    let (rows, log) = run("SELECT log(message='once', dedup=-1) AS X FROM scope() WHERE X AND X");
    assert_eq!((rows.as_str(), log.len()), (r#"[{"X":true}]"#, 1), "what WHERE has evaluated is not evaluated again");
    let (rows, log) = run("SELECT if(condition=TRUE, then='a', else=log(message='branch')) AS X FROM scope()");
    assert_eq!((rows.as_str(), log.len()), (r#"[{"X":"a"}]"#, 0), "only one branch is evaluated");
    let (_, log) = run("LET q = SELECT log(message='ran') FROM scope() SELECT 1 FROM scope()");
    assert!(log.is_empty(), "stored queries do not run until they are used");
}

#[test]
fn definitions() {
    check(&[
        ("evaluated at each use", "LET X = count() SELECT X, X AS Y FROM scope()", r#"[{"X":1,"Y":2}]"#),
        ("evaluated once", "LET X <= count() SELECT X, X AS Y FROM scope()", r#"[{"X":1,"Y":1}]"#),
        (
            "kept rows",
            "LET X <= SELECT _value FROM range(end=3) SELECT X[1]._value AS A, X._value AS B FROM scope()",
            r#"[{"A":1,"B":[0,1,2]}]"#,
        ),
        ("parameters and defaults", "LET F(a, b=3) = a + b SELECT F(a=1) AS A, F(a=1, b=1) AS B FROM scope()", r#"[{"A":4,"B":2}]"#),
        ("defaults see the caller", "LET F(a=Z) = a SELECT F() AS A FROM foreach(row=dict(Z=7))", r#"[{"A":7}]"#),
        ("names resolve where they are used", "LET F = Z + 1 SELECT F FROM foreach(row=dict(Z=1))", r#"[{"F":2}]"#),
        ("arguments are evaluated by the caller", "LET foo = 1 LET X(foo) = foo SELECT X(foo=foo + 1) AS A FROM scope()", r#"[{"A":2}]"#),
        ("recursion ends with NULL", "LET F(x) = F(x=x + 1) SELECT F(x=1) AS A FROM scope()", r#"[{"A":null}]"#),
        ("a name may mask a function", "LET format = 5 SELECT format, format(format='x') AS B FROM scope()", r#"[{"format":5,"B":"x"}]"#),
    ]);
    let (_, log) = run("LET format = 5 LET F(x) <= 1");
    assert_eq!(
        log,
        [
            "WARN:LET expression is masking a built in function format",
            "WARN:Expression F takes parameters but is materialized! Did you mean to use '='? "
        ]
    );
    let (_, log) = run("LET Q(a) = SELECT a FROM scope() SELECT * FROM Q(b=1)");
    assert_eq!(
        log.iter().filter(|line| line.starts_with("ERROR:Extra unrecognized arg b") || line.starts_with("ERROR:Missing arg a")).count(),
        2
    );
}

#[test]
fn foreach() {
    check(&[
        ("of a list", "SELECT * FROM foreach(row=(1, 2), query={ SELECT _value + 1 AS X FROM scope() })", r#"[{"X":2},{"X":3}]"#),
        ("of a dict", "SELECT * FROM foreach(row=dict(a=1), query={ SELECT a FROM scope() })", r#"[{"a":1}]"#),
        ("of a single value", "SELECT * FROM foreach(row=5)", r#"[{"_value":5}]"#),
        ("of nothing", "SELECT * FROM foreach(row=NULL)", "[]"),
        ("of a list with nothing in it", "SELECT * FROM foreach(row=(1, NULL, 2))", r#"[{"_value":1},{"_value":2}]"#),
        ("column", "SELECT * FROM foreach(row=(dict(a=dict(b=1)), dict(a=dict(b=2))), column='a')", r#"[{"b":1},{"b":2}]"#),
        ("texts pass through", "SELECT * FROM foreach(row=('a', 'b')) WHERE _value = 'b'", r#"[{"_value":"b"}]"#),
    ]);
    let (rows, log) = run(
        "SELECT * FROM foreach(row={ SELECT log(message=format(format='read %v', args=_value), dedup=-1) AS X FROM range(end=1000) }, query={ SELECT 1 AS A FROM scope() }) LIMIT 1",
    );
    assert_eq!(rows, r#"[{"A":1}]"#);
    assert!(log.len() <= 3, "rows are not read ahead of need: {log:?}");
    let (rows, log) = run("SELECT * FROM foreach(row=('a', 'b')) WHERE X = 1");
    assert_eq!((rows.as_str(), log.len()), ("[]", 0), "a row of a single value does not complain of missing names");
}

#[test]
fn aggregates() {
    check(&[
        (
            "running",
            "SELECT _value, count() AS C, sum(item=_value) AS S FROM range(end=3)",
            r#"[{"_value":0,"C":1,"S":0},{"_value":1,"C":2,"S":1},{"_value":2,"C":3,"S":3}]"#,
        ),
        (
            "grouped",
            "SELECT _value < 2 AS K, count() AS C, max(item=_value) AS M, min(item=_value) AS L, enumerate(items=_value) AS E FROM range(end=5) GROUP BY K",
            r#"[{"K":true,"C":2,"M":1,"L":0,"E":[0,1]},{"K":false,"C":3,"M":4,"L":2,"E":[2,3,4]}]"#,
        ),
        ("one group", "SELECT count() AS C FROM range(end=5) GROUP BY 1", r#"[{"C":5}]"#),
        (
            "go on through the queries of a loop",
            "SELECT * FROM foreach(row=(1, 2), query={ SELECT count() AS C FROM scope() })",
            r#"[{"C":1},{"C":2}]"#,
        ),
        (
            "start again in each call",
            "LET F(x) = SELECT count() AS C FROM scope() SELECT * FROM foreach(row=(1, 2), query={ SELECT * FROM F(x=1) })",
            r#"[{"C":1},{"C":1}]"#,
        ),
    ]);
}

#[test]
fn groups_and_order() {
    check(&[
        ("a key that is not shown", "SELECT count() AS C FROM range(end=4) GROUP BY _value < 1", r#"[{"C":1},{"C":3}]"#),
        (
            "groups come as they first appear",
            "SELECT _value FROM chain(a={ SELECT 3 AS _value FROM scope() }, b={ SELECT * FROM range(end=2) }) GROUP BY _value",
            r#"[{"_value":3},{"_value":0},{"_value":1}]"#,
        ),
        (
            "the last row stands for its group",
            "SELECT _value, _value - _value AS K FROM range(end=3) GROUP BY K",
            r#"[{"_value":2,"K":0}]"#,
        ),
        (
            "keys of several parts do not collide",
            "SELECT a, b, count() AS C FROM foreach(row=(dict(a='a b', b='c'), dict(a='a', b='b c'))) GROUP BY a, b",
            r#"[{"a":"a b","b":"c","C":1},{"a":"a","b":"b c","C":1}]"#,
        ),
        (
            "order of groups",
            "SELECT _value FROM range(end=3) GROUP BY _value ORDER BY _value DESC",
            r#"[{"_value":2},{"_value":1},{"_value":0}]"#,
        ),
        ("limit after order", "SELECT _value FROM range(end=5) ORDER BY _value DESC LIMIT 2", r#"[{"_value":4},{"_value":3}]"#),
        ("names with spaces", "SELECT _value AS `a b` FROM range(end=2) ORDER BY `a b` DESC", r#"[{"a b":1},{"a b":0}]"#),
        (
            "equal rows keep their order",
            "SELECT _value, 1 AS K FROM range(end=3) ORDER BY K",
            r#"[{"_value":0,"K":1},{"_value":1,"K":1},{"_value":2,"K":1}]"#,
        ),
        (
            "NULL sorts as the empty text",
            "SELECT X FROM foreach(row=(dict(X='b'), dict(X=NULL), dict(X='a'))) ORDER BY X",
            r#"[{"X":null},{"X":"a"},{"X":"b"}]"#,
        ),
    ]);
    let (_, log) = run("SELECT _value FROM range(end=1) ORDER BY NoSuch");
    assert_eq!(log, ["Order by column NoSuch not present in row"]);
}

#[test]
fn flatten() {
    check(&[
        (
            "combinations",
            "SELECT * FROM flatten(query={ SELECT (3, 4) AS A, (1, 2) AS B FROM scope() })",
            r#"[{"A":3,"B":1},{"A":4,"B":1},{"A":3,"B":2},{"A":4,"B":2}]"#,
        ),
        ("an empty list stays", "SELECT * FROM flatten(query={ SELECT 1 AS A, array() AS B FROM scope() })", r#"[{"A":1,"B":[]}]"#),
        ("a dict stays", "SELECT * FROM flatten(query={ SELECT dict(a=1) AS A FROM scope() })", r#"[{"A":{"a":1}}]"#),
    ]);
}

#[test]
fn strings() {
    check_values(
        "strings",
        &[
            (r"'a\'b'", r#""a'b""#),
            (r#""a\"b""#, r#""a\"b""#),
            (r"'\x41\x42'", r#""AB""#),
            (r"'\d'", r#""d""#),
            (r"'\xag'", r#""\\xag""#),
            (r#"'''a'b"c\d'''"#, r#""a'b\"c\\d""#),
            ("'a\nb'", r#""a\nb""#),
        ],
    );
}

#[test]
fn negated_names() {
    check(&[
        ("a number", "LET X = 5 SELECT -X AS A FROM range(end=2)", r#"[{"A":-5},{"A":-5}]"#),
        ("a truth value", "LET X = TRUE SELECT -X AS A FROM scope()", r#"[{"A":false}]"#),
        ("a call", "LET F(x) = x SELECT -F(x=3) AS A FROM scope()", r#"[{"A":-3}]"#),
        ("an index", "LET X = 1 LET L = (1, 2, 3) SELECT L[-X] AS A FROM scope()", r#"[{"A":3}]"#),
        ("a query", "LET Q = SELECT * FROM scope() SELECT -Q AS A FROM scope()", r#"[{"A":null}]"#),
    ]);
}

#[test]
fn comparison() {
    check_values(
        "comparison",
        &[
            ("NULL = NULL", "true"),
            ("NULL = 0", "false"),
            ("1 = 1.0", "true"),
            ("1 = TRUE", "true"),
            ("'a' < 'b'", "true"),
            ("NULL < 1", "false"),
            ("'hello' < 2", "false"),
            ("'hello' > 2", "false"),
            ("TRUE > 0", "true"),
            ("1 <> 2", "true"),
            ("'x' IN 'axb'", "true"),
            ("timestamp(epoch=10) = 10", "true"),
            ("timestamp(epoch=10) > 9.5", "true"),
            ("timestamp(epoch=10) < '1980-01-01T00:00:00Z'", "true"),
            ("NULL =~ '.'", "true"),
            ("NULL =~ 'a'", "false"),
            ("'abc' =~ 'B'", "true"),
            ("5 =~ '^5$'", "true"),
        ],
    );
}

#[test]
fn explain_is_told_to_the_log() {
    let (_, log) = run("EXPLAIN SELECT _value FROM range(end=2) WHERE _value");
    assert!(log.iter().all(|line| line.starts_with("DEBUG:")));
    for wanted in ["Explain start query", "sent row", "rejected row", "emitting row"] {
        assert!(log.iter().any(|line| line.contains(wanted)), "{wanted}: {log:?}");
    }
}
