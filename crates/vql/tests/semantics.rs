//! What the language means, row by row: each case is statements, and the rows of the last one that has any.

#![allow(clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use talon_ids::Permission;
use talon_vql::{
    AllowAll, Arg, ArgType, Budget, CancelToken, Dict, Environment, MemoryLog, Query, Registry, Restrictions, Rows, Scope, Signature,
    StopReason, Value, args, json, parse,
};

fn registry() -> Registry {
    let mut registry = Registry::core();
    registry.plugin(
        Signature::plugin("coerce", "Gives its arguments back.").args(args![
            Arg::optional("int", ArgType::Int, ""),
            Arg::optional("uint", ArgType::UInt, ""),
            Arg::optional("float", ArgType::Float, ""),
            Arg::optional("string", ArgType::String, ""),
            Arg::optional("list", ArgType::Strings, ""),
            Arg::optional("bool", ArgType::Bool, ""),
            Arg::optional("dict", ArgType::Dict, ""),
            Arg::optional("path", ArgType::Path, ""),
            Arg::optional("accessor", ArgType::String, ""),
            Arg::optional("time", ArgType::Time, ""),
        ]),
        |call| {
            let row: Dict = ["int", "uint", "float", "string", "list", "bool", "dict", "path", "time"]
                .into_iter()
                .filter(|name| call.has(name))
                .map(|name| (name, call.value(name)))
                .collect();
            Ok(Rows::one(row))
        },
    );
    registry.plugin(Signature::plugin("guarded", "Needs permissions.").permissions(&[Permission::Execve, Permission::Network]), |_| {
        Ok(Rows::one(Dict::new().with("Reached", true)))
    });
    registry.function(Signature::function("guarded", "Needs a permission.").permissions(&[Permission::MachineState]), |_| {
        Ok(Value::Bool(true))
    });
    registry.plugin(
        Signature::plugin("counted", "Counts up and tells the log.").args(args![Arg::required("end", ArgType::Int, "")]),
        |call| {
            let mut at = 0;
            Ok(Rows::from_fn(move || {
                if at >= call.int("end") {
                    return None;
                }
                at += 1;
                call.scope().log(format!("read {at}"));
                Some(Ok(Dict::new().with("N", at).into()))
            }))
        },
    );
    registry
}

fn environment() -> (Environment, Arc<MemoryLog>) {
    let log = Arc::new(MemoryLog::default());
    (Environment::new(Arc::new(registry())).guard(Arc::new(AllowAll)).log(log.clone()), log)
}

fn run_in(scope: &Scope, text: &str) -> String {
    let program = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let mut last = Vec::new();
    for statement in &program.statements {
        let query = Query::new(scope, statement);
        if !query.is_let() {
            last = query.map(Value::Dict).collect();
        }
    }
    json::encode(&Value::list(last))
}

fn rows(text: &str) -> String {
    run_in(&environment().0.open(), text)
}

fn logs(text: &str) -> Vec<String> {
    let (environment, log) = environment();
    run_in(&environment.open(), text);
    log.take()
}

/// The value of one expression.
fn value(expression: &str) -> String {
    let out = rows(&format!("SELECT {expression} AS X FROM scope()"));
    let inner = out.strip_prefix("[{\"X\":").and_then(|out| out.strip_suffix("}]"));
    inner.unwrap_or_else(|| panic!("{expression}: {out}")).to_owned()
}

fn check(cases: &[(&str, &str)], of: fn(&str) -> String) {
    let wrong: Vec<String> = cases
        .iter()
        .map(|(text, expected)| (text, of(text), expected))
        .filter(|(_, found, expected)| found != *expected)
        .map(|(text, found, expected)| format!("{text}\n  gives  {found}\n  not    {expected}"))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn arithmetic() {
    check(
        &[
            ("1 + 1", "2"),
            ("1 + 2 * 4", "9"),
            ("(1 + 2) * 4", "12"),
            ("1 +\n2", "3"),
            ("1 - 2", "-1"),
            ("4 / 2", "2"),
            ("1 / 4", "0.25"),
            ("1 / 0", "null"),
            ("0 / 5.0", "0"),
            ("1 + 1.5", "2.5"),
            ("1 + 'a'", "null"),
            ("'a' + 1", "null"),
            ("1 + NULL", "null"),
            ("NULL + 1", "null"),
            ("NULL * 2", "null"),
            ("1 - NULL", "null"),
            ("'a' + 'b'", "\"ab\""),
            ("'ab' * 3", "\"ababab\""),
            ("'ab' * -1", "null"),
            ("9223372036854775807 + 1", "-9223372036854775808"),
            ("(0x10, 0x20, 070, 0xea, -4)", "[16,32,56,234,-4]"),
            ("TRUE + 1", "2"),
            ("dict(a=1, b=2) + dict(a=3, c=4)", "{\"a\":3,\"b\":2,\"c\":4}"),
            ("dict(a=1, b=2) - dict(a=3)", "{\"b\":2}"),
            ("dict(a=1, b=2) * dict(a=3)", "{\"a\":1}"),
            ("(1, 2) + 3", "[1,2,3]"),
            ("3 + (1, 2)", "[3,1,2]"),
            ("(1, 2) + NULL", "[1,2,null]"),
            ("(1, ) + (2, )", "[1,2]"),
            ("pathspec(Path='/a', path_type='linux') + 'b/c'", "\"/a/b/c\""),
        ],
        value,
    );
    assert!(parse("SELECT '-' 2 FROM scope()").is_err());
    assert!(parse("SELECT 1 -2 FROM scope()").is_err());
}

#[test]
fn truth_and_logic() {
    check(
        &[
            ("1 AND 2 * 0", "false"),
            ("false AND 5 OR 4", "false"),
            ("(false AND 5) OR 4", "true"),
            ("NOT 1 = 2", "true"),
            ("NOT -1", "true"),
            ("NOT ''", "true"),
            ("NOT dict()", "true"),
            ("NOT (1, )", "false"),
            ("TRUE && 'XX'", "\"XX\""),
            ("TRUE AND 'XX'", "true"),
            ("0 && 'XX'", "false"),
            ("'a' || 'b'", "\"a\""),
            ("'a' OR 'b'", "\"a\""),
            ("NULL || 'b'", "\"b\""),
            ("NULL OR 'b'", "true"),
            ("NULL || ''", "\"\""),
            ("NULL || FALSE", "false"),
        ],
        value,
    );
    assert_eq!(logs("SELECT 1 OR log(message='no') AS X FROM scope()"), Vec::<String>::new());
    assert_eq!(logs("SELECT 0 AND log(message='no') AS X FROM scope()"), Vec::<String>::new());
}

#[test]
fn comparison() {
    check(
        &[
            ("1 = 1.0", "true"),
            ("1 = TRUE", "true"),
            ("NULL = NULL", "true"),
            ("NULL = 0", "false"),
            ("'a' = 'a'", "true"),
            ("'a' != 'b'", "true"),
            ("1 <> 2", "true"),
            ("TRUE = 'Y'", "true"),
            ("TRUE = 'True'", "true"),
            ("'Y' = TRUE", "false"),
            ("TRUE = 'N'", "false"),
            ("(1, 2) = (1, 2)", "true"),
            ("(1, 2) = (2, 1)", "false"),
            ("dict(a=1, b=2) = dict(b=2, a=1)", "true"),
            ("dict(a=1) = dict(a=1, b=2)", "false"),
            ("1 < 2", "true"),
            ("'a' < 'b'", "true"),
            ("'hello' < 2", "false"),
            ("'hello' > 2", "false"),
            ("TRUE > 0", "true"),
            ("NULL < 1", "false"),
            ("2 >= 2", "true"),
            ("2 <= 1.5", "false"),
            ("(1, 5) < (2, 0)", "true"),
            ("dict(a=1) < dict(a=1, b=1)", "true"),
            ("1 < dict()", "true"),
            ("dict() < 1", "false"),
            ("9007199254740993 > 9007199254740992.0", "true"),
            ("timestamp(epoch=5) = 5", "true"),
            ("timestamp(epoch=5) < 5.5", "true"),
            ("5.5 > timestamp(epoch=5)", "true"),
            ("timestamp(epoch=1600000000) > '2020-01-01'", "true"),
            ("timestamp(epoch=1600000000) < 'soon'", "false"),
            ("timestamp(epoch=5) = '1970-01-01T00:00:05Z'", "false"),
            ("1 IN (1, 2)", "true"),
            ("'a' IN dict(a=1)", "true"),
            ("'ell' IN 'hello'", "true"),
            ("'ELL' IN 'hello'", "false"),
            ("1 IN NULL", "false"),
            ("'Hello' =~ 'hell'", "true"),
            ("NULL =~ '.'", "true"),
            ("NULL =~ 'x'", "false"),
            ("('a', 'b') =~ '^B$'", "true"),
            ("10 =~ '1'", "true"),
            ("timestamp(epoch=1666796776) =~ '^2022-10-26 15:06:16'", "true"),
            ("dict(a='xyz') =~ '\"a\":\"xyz\"'", "true"),
            ("'a' =~ 5", "false"),
        ],
        value,
    );
    assert_eq!(logs("SELECT 'a' =~ '(' AS A, 'b' =~ '(' AS B FROM range(end=3)"), ["Compile regexp: error parsing regexp: unclosed group"]);
}

#[test]
fn members_indexes_slices() {
    check(
        &[
            ("dict(a=dict(b=5)).a.b", "5"),
            ("dict(`a b`=5).`a b`", "5"),
            ("dict(a=5).nope", "null"),
            ("NULL.x", "null"),
            ("(dict(a=1), dict(b=2), dict(a=3)).a", "[1,3]"),
            ("(1, 2, 3)[0]", "1"),
            ("(1, 2, 3)[-1]", "3"),
            ("(1, 2, 3)[3]", "null"),
            ("(1, 2, 3)[1:]", "[2,3]"),
            ("(1, 2, 3)[:-1]", "[1,2]"),
            ("(1, 2, 3)[2:1]", "[]"),
            ("(1, 2, 3)[0:99]", "[1,2,3]"),
            ("'hello'[0]", "104"),
            ("'hello'[-1]", "111"),
            ("'hello'[1:3]", "\"el\""),
            ("'hello'[3:1]", "\"\""),
            ("dict(a=1)['a']", "1"),
            ("dict(a=1, b=2).`@Keys`", "[\"a\",\"b\"]"),
            ("dict(a=1, b=2).`@Len`", "2"),
            ("dict(a=1).`@String`", "\"{\\\"a\\\":1}\""),
            ("dict(a=1).`@Items`", "[{\"Key\":\"a\",\"Value\":1}]"),
            ("timestamp(epoch=1590936485).Year", "2020"),
            ("timestamp(epoch=1590936485).String", "\"2020-05-31T14:48:05Z\""),
            ("pathspec(Path='/a/b/c', path_type='linux').Basename", "\"c\""),
            ("pathspec(Path='/a/b/c', path_type='linux')[1]", "\"b\""),
            ("pathspec(Path='/a/b/c', path_type='linux')[:2]", "\"/a/b\""),
        ],
        value,
    );
    check(
        &[
            (
                "LET Q = SELECT _value AS V FROM range(end=3) SELECT Q.V AS A, Q[1] AS B, Q[1].V AS C, Q[-1].V AS D FROM scope()",
                r#"[{"A":[0,1,2],"B":{"V":1},"C":1,"D":2}]"#,
            ),
            ("LET D <= dict(A=1) SELECT * FROM D.`@Items`", r#"[{"Key":"A","Value":1}]"#),
        ],
        rows,
    );
}

#[test]
fn selecting() {
    check(
        &[
            ("SELECT * FROM range(end=2)", r#"[{"_value":0},{"_value":1}]"#),
            ("SELECT *, 1 FROM range(end=1)", r#"[{"_value":0,"1":1}]"#),
            ("SELECT 1, *, 2 FROM range(end=1)", r#"[{"1":1,"_value":0,"2":2}]"#),
            ("SELECT *, _value + 1 AS _value, 5 AS B FROM range(end=1)", r#"[{"_value":1,"B":5}]"#),
            ("SELECT 9 AS _value, * FROM range(end=1)", r#"[{"_value":9}]"#),
            ("SELECT 1+1, dict(a=1) . a FROM scope()", r#"[{"1 + 1":2,"dict(a=1).a":1}]"#),
            ("SELECT _value AS A FROM range(end=5) WHERE A > 2", r#"[{"A":3},{"A":4}]"#),
            ("SELECT _value * 10 AS _value FROM range(end=5) WHERE _value > 20", r#"[{"_value":30},{"_value":40}]"#),
            ("SELECT 1 AS A, A AS B FROM scope()", r#"[{"A":1,"B":null}]"#),
            ("LET A = 7 SELECT 1 AS A, A AS B FROM scope()", r#"[{"A":1,"B":7}]"#),
            ("SELECT * FROM range(end=5) LIMIT 2", r#"[{"_value":0},{"_value":1}]"#),
            ("SELECT * FROM range(end=5) LIMIT 0", "[]"),
            (
                "SELECT { SELECT _value FROM range(end=1) } AS A, { SELECT _value FROM range(end=2) } AS B, { SELECT _value FROM range(end=0) } AS C, { SELECT 1 AS X, 2 AS Y FROM scope() } AS D FROM scope()",
                r#"[{"A":0,"B":[0,1],"C":null,"D":{"X":1,"Y":2}}]"#,
            ),
            ("SELECT * FROM scope()", "[{}]"),
            ("LET L = (1, 2) SELECT * FROM L", r#"[{"_value":1},{"_value":2}]"#),
            ("LET L = (dict(a=1), dict(a=2)) SELECT a FROM L", r#"[{"a":1},{"a":2}]"#),
            ("LET D = dict(a=1) SELECT a FROM D", r#"[{"a":1}]"#),
            ("SELECT * FROM chain(a={SELECT 1 AS A FROM scope()}, b={SELECT 2 AS B, 3 AS C FROM scope()})", r#"[{"A":1},{"B":2,"C":3}]"#),
            (
                "SELECT -X AS A, -count() AS B, -Q AS C FROM foreach(row=dict(X=5), query={SELECT X, { SELECT * FROM range(end=2) } AS Q FROM range(end=2)})",
                r#"[{"A":-5,"B":-1,"C":null},{"A":-5,"B":-2,"C":null}]"#,
            ),
            ("LET Foo = (1, 2, 3) LET X = 1 SELECT Foo[-X] FROM scope()", r#"[{"Foo[-X]":3}]"#),
        ],
        rows,
    );
}

#[test]
fn laziness() {
    for (text, expected) in [
        ("SELECT log(message='column') AS A FROM range(end=3) WHERE FALSE", vec![]),
        ("SELECT cache(func=log(message='ran', dedup=-1), key=1) AS A FROM range(end=3)", vec!["DEFAULT:ran"]),
        ("SELECT if(condition=TRUE, then=log(message='yes'), else=log(message='no')) AS A FROM scope()", vec!["DEFAULT:yes"]),
        ("LET Q = SELECT log(message='ran') FROM scope() SELECT 1 FROM scope()", vec![]),
        ("SELECT log(message='m', dedup=-1) AS A FROM scope() WHERE A AND A", vec!["DEFAULT:m"]),
        (
            "SELECT * FROM if(condition=FALSE, then={SELECT log(message='then') FROM scope()}, else={SELECT log(message='else') FROM scope()})",
            vec!["DEFAULT:else"],
        ),
        ("SELECT * FROM counted(end=9) LIMIT 2", vec!["read 1", "read 2"]),
        ("SELECT * FROM foreach(row={SELECT * FROM counted(end=9)}, query={SELECT N FROM scope()}) LIMIT 1", vec!["read 1"]),
        ("LET Q = SELECT * FROM counted(end=9) SELECT 1 AS X FROM scope() WHERE Q", vec!["read 1"]),
    ] {
        assert_eq!(logs(text), expected, "{text}");
    }
}

#[test]
fn definitions() {
    check(
        &[
            ("LET X = count() SELECT X AS A, X AS B FROM scope()", r#"[{"A":1,"B":2}]"#),
            ("LET X <= count() SELECT X AS A, X AS B FROM scope()", r#"[{"A":1,"B":1}]"#),
            ("LET F(a, b=3) = a + b SELECT F(a=1) AS A, F(a=1, b=1) AS B FROM scope()", r#"[{"A":4,"B":2}]"#),
            ("LET Y = 5 LET F(a=Y) = a LET Y = 6 SELECT F() AS A FROM scope()", r#"[{"A":6}]"#),
            ("LET F(a) = a + z LET z = 5 SELECT F(a=1) AS A FROM scope()", r#"[{"A":6}]"#),
            ("LET Q(X=5, Y) = SELECT X + Y AS S FROM scope() SELECT * FROM Q(Y=3)", r#"[{"S":8}]"#),
            ("LET Q(X) = SELECT X FROM scope() SELECT Q(X=4) AS A FROM scope()", r#"[{"A":[{"X":4}]}]"#),
            ("LET Q <= SELECT _value FROM range(end=2) SELECT Q[1]._value AS A, Q._value AS B FROM scope()", r#"[{"A":1,"B":[0,1]}]"#),
            ("LET F(foo) = foo LET foo = 1 SELECT F(foo=foo + 1) AS A FROM scope()", r#"[{"A":2}]"#),
            ("LET F(n) = if(condition=n > 0, then=n + F(n=n - 1), else=0) SELECT F(n=20) AS A FROM scope()", r#"[{"A":210}]"#),
            ("LET X = X + 1 SELECT X AS A FROM scope()", r#"[{"A":null}]"#),
            ("LET Q = SELECT * FROM Q SELECT * FROM Q", "[]"),
            ("LET `a b`(`c d`) = `c d` * 2 SELECT `a b`(`c d`=4) AS A FROM scope()", r#"[{"A":8}]"#),
            (
                "LET abc(a) = if(condition=a, then={SELECT a AS Pass FROM scope()}) SELECT abc(a=1) AS X FROM scope()",
                r#"[{"X":[{"Pass":null}]}]"#,
            ),
            ("LET format = 5 SELECT format AS A, format(format='%d', args=1) AS B FROM scope()", r#"[{"A":5,"B":"1"}]"#),
            (
                "LET D <= dict(A=1) SELECT set(item=D, field='B', value=2) AS X FROM scope() SELECT D FROM scope()",
                r#"[{"D":{"A":1,"B":2}}]"#,
            ),
        ],
        rows,
    );
    for (text, line) in [
        ("LET format = 5", "WARN:LET expression is masking a built in function format"),
        ("LET F(a) <= 1", "WARN:Expression F takes parameters but is materialized! Did you mean to use '='? "),
        ("LET F(a) = SELECT a FROM scope() SELECT * FROM F(b=1)", "ERROR:Extra unrecognized arg b when calling F"),
        ("LET F(a) = SELECT 1 FROM scope() SELECT * FROM F()", "ERROR:Missing arg a when calling F"),
        ("LET X = 1 SELECT X() FROM scope()", ""),
        ("LET X <= 1 SELECT X() FROM scope()", "ERROR:Symbol X is not a function but it is being called."),
        ("SELECT len FROM scope()", "ERROR:Symbol len is a function but it is not being called."),
        ("LET X <= 1 SELECT * FROM X()", "ERROR:Symbol X is not callable as a plugin"),
    ] {
        assert_eq!(logs(text).first().map_or("", String::as_str), line, "{text}");
    }
}

#[test]
fn endless_recursion_ends_with_a_line_in_the_log() {
    let worker = talon_vql::spawn_query_thread("test", || logs("LET X = X + 1 SELECT X FROM scope()")).unwrap();
    assert_eq!(worker.join().unwrap(), ["Stack Overflow: LET X = X + 1"]);
    assert!(logs("LET X = X + 1 SELECT X FROM scope()").first().is_some_and(|line| line.starts_with("Stack Overflow: ")));
}

#[test]
fn control() {
    check(
        &[
            ("SELECT * FROM foreach(row=(1, NULL, 2))", r#"[{"_value":1},{"_value":2}]"#),
            ("SELECT * FROM foreach(row=NULL, query={SELECT 1 FROM scope()})", "[]"),
            ("SELECT * FROM foreach(row=5)", r#"[{"_value":5}]"#),
            ("SELECT * FROM foreach(row=dict(A=1), query={SELECT A + 1 AS B FROM scope()})", r#"[{"B":2}]"#),
            ("SELECT * FROM foreach(row={SELECT dict(x=_value) AS C FROM range(end=2)}, column='C')", r#"[{"x":0},{"x":1}]"#),
            (
                "SELECT count(items=1) AS N FROM foreach(row={SELECT * FROM range(end=20)}, query={SELECT _value FROM scope()}, workers=5) GROUP BY 1",
                r#"[{"N":20}]"#,
            ),
            (
                "SELECT _value FROM foreach(row={SELECT * FROM range(end=20)}, query={SELECT _value FROM scope()}, workers=5) ORDER BY _value LIMIT 2",
                r#"[{"_value":0},{"_value":1}]"#,
            ),
            (
                "SELECT * FROM switch(z={SELECT 1 AS A FROM range(end=0)}, a={SELECT 2 AS A FROM scope()}, b={SELECT 3 AS A FROM scope()})",
                r#"[{"A":2}]"#,
            ),
            (
                "SELECT * FROM flatten(query={SELECT (3, 4) AS A, (1, 2) AS B FROM scope()})",
                r#"[{"A":3,"B":1},{"A":4,"B":1},{"A":3,"B":2},{"A":4,"B":2}]"#,
            ),
            ("SELECT * FROM flatten(query={SELECT array() AS A, 1 AS B FROM scope()})", r#"[{"A":[],"B":1}]"#),
            ("SELECT * FROM items(item=dict(X=1))", r#"[{"_key":"X","_value":1}]"#),
            ("SELECT * FROM items(item=(5, ))", r#"[{"_key":0,"_value":5}]"#),
            ("SELECT * FROM range(start=1, end=6, step=2)", r#"[{"_value":1},{"_value":3},{"_value":5}]"#),
            ("SELECT V FROM combine(a={SELECT 1 AS V FROM scope()}, b={SELECT 2 AS V FROM scope()}) ORDER BY V", r#"[{"V":1},{"V":2}]"#),
            ("SELECT * FROM query(query={SELECT _value AS V FROM range(end=100)}, exit='x=>x.V >= 2')", r#"[{"V":0},{"V":1}]"#),
            ("SELECT * FROM query(query='LET Y = X SELECT Y + 1 AS A FROM scope()', env=dict(X=4))", r#"[{"A":5}]"#),
            ("LET X = 4 SELECT * FROM query(query='SELECT X FROM scope()')", r#"[{"X":null}]"#),
            ("LET X = 4 SELECT * FROM query(query='SELECT X FROM scope()', inherit=TRUE)", r#"[{"X":4}]"#),
            ("SELECT eval(func='x=>x + 1', args=2) AS A FROM scope()", r#"[{"A":3}]"#),
            ("SELECT * FROM column_filter(query={SELECT 1 AS A, 2 AS B, 3 AS AB FROM scope()}, include='A', exclude='B')", r#"[{"A":1}]"#),
            (
                "SELECT * FROM batch(query={SELECT * FROM range(end=3)}, batch_size=2)",
                r#"[{"rows":[{"_value":0},{"_value":1}]},{"rows":[{"_value":2}]}]"#,
            ),
            (
                "SELECT len(list=rows) AS N FROM batch(query={SELECT * FROM range(end=4)}, batch_func='x=>x._value = 0')",
                r#"[{"N":1},{"N":3}]"#,
            ),
            (
                "LET C <= lru(size=2) LET _ <= SELECT set(item=C, field=str(str=_value), value=_value) FROM range(end=3) SELECT get(item=C, field='0') AS A, get(item=C, field='2') AS B FROM scope()",
                r#"[{"A":null,"B":2}]"#,
            ),
            (
                "LET F(x) = cache(func=log(message='ran', dedup=-1) && x, key=x) SELECT F(x=1) AS A, F(x=1) AS B FROM scope()",
                r#"[{"A":1,"B":1}]"#,
            ),
            ("SELECT * FROM range(`**`=dict(end=1), end=5)", r#"[{"_value":0}]"#),
            ("SELECT * FROM range(`**`=lazy_dict(start=1, end=2))", r#"[{"_value":1}]"#),
        ],
        rows,
    );
    assert!(
        logs("SELECT * FROM foreach(row=1, query={SELECT 1 FROM scope()}, async=TRUE)")
            .contains(&"DEBUG:Creating 100 workers for foreach plugin".to_owned())
    );
}

#[test]
fn aggregates() {
    check(
        &[
            ("SELECT count() AS C, sum(item=_value) AS S FROM range(end=3)", r#"[{"C":1,"S":0},{"C":2,"S":1},{"C":3,"S":3}]"#),
            (
                "SELECT count() AS C, sum(item=_value) AS S, min(item=_value) AS A, max(item=_value) AS B, enumerate(items=_value) AS E FROM range(end=4) GROUP BY 1",
                r#"[{"C":4,"S":6,"A":0,"B":3,"E":[0,1,2,3]}]"#,
            ),
            ("SELECT _value / 2 > 1 AS K, count() AS C FROM range(end=5) GROUP BY K", r#"[{"K":false,"C":3},{"K":true,"C":2}]"#),
            ("SELECT count() AS C FROM range(end=4) GROUP BY _value > 1, _value = 0", r#"[{"C":1},{"C":1},{"C":2}]"#),
            ("SELECT _value AS `a b`, count() AS C FROM range(end=2) GROUP BY `a b`", r#"[{"a b":0,"C":1},{"a b":1,"C":1}]"#),
            ("SELECT count() AS A, count() AS B FROM range(end=2)", r#"[{"A":1,"B":1},{"A":2,"B":2}]"#),
            ("SELECT * FROM foreach(row=(1, 2), query={SELECT count() AS C FROM scope()})", r#"[{"C":1},{"C":2}]"#),
            (
                "LET F(x) = SELECT count() AS C FROM scope() SELECT * FROM foreach(row=(1, 2), query={SELECT * FROM F(x=1)})",
                r#"[{"C":1},{"C":1}]"#,
            ),
            (
                "SELECT _value AS K, count() AS C FROM chain(a={SELECT * FROM range(end=2)}, b={SELECT * FROM range(end=1)}) GROUP BY K ORDER BY C DESC",
                r#"[{"K":0,"C":2},{"K":1,"C":1}]"#,
            ),
        ],
        rows,
    );
}

#[test]
fn ordering() {
    check(
        &[
            ("SELECT * FROM range(end=4) ORDER BY _value DESC LIMIT 2", r#"[{"_value":3},{"_value":2}]"#),
            ("SELECT * FROM foreach(row=(3, 1, 2)) ORDER BY _value", r#"[{"_value":1},{"_value":2},{"_value":3}]"#),
            ("SELECT V FROM foreach(row=(dict(V='b'), dict(V=NULL), dict(V='a'))) ORDER BY V", r#"[{"V":null},{"V":"a"},{"V":"b"}]"#),
            ("SELECT V FROM foreach(row=(dict(V=2.5), dict(V=10), dict(V=TRUE))) ORDER BY V", r#"[{"V":true},{"V":2.5},{"V":10}]"#),
        ],
        rows,
    );
    assert_eq!(logs("SELECT 1 AS A FROM scope() ORDER BY B"), ["Order by column B not present in row"]);
}

#[test]
fn arguments() {
    check(
        &[
            (
                "SELECT * FROM coerce(int=1.9, uint=TRUE, float=3, string=5, list='a', bool='N')",
                r#"[{"int":1,"uint":1,"float":3,"string":"5","list":["a"],"bool":true}]"#,
            ),
            ("SELECT * FROM coerce(string=NULL, list=(1, 'b', dict(x='c')))", r#"[{"string":"","list":["1","b","c"]}]"#),
            ("SELECT * FROM coerce(string=('only', ), list={SELECT _value FROM range(end=2)})", r#"[{"string":"only","list":["0","1"]}]"#),
            ("SELECT * FROM coerce(int=NULL)", "[{}]"),
            ("SELECT * FROM coerce(path='/a/b')", r#"[{"path":"/a/b"}]"#),
            ("SELECT * FROM coerce(path=('/a', 'b', 'c'))", r#"[{"path":"/a/b/c"}]"#),
            ("SELECT * FROM coerce(path='{\"a\":1}', accessor='data')", r#"[{"path":"{\"a\":1}"}]"#),
            ("SELECT * FROM coerce(time=1600000000)", r#"[{"time":"2020-09-13T12:26:40Z"}]"#),
            ("SELECT * FROM coerce(time='nonsense')", r#"[{"time":"0001-01-01T00:00:00Z"}]"#),
            ("SELECT * FROM coerce(int=1, int=2)", r#"[{"int":2}]"#),
        ],
        rows,
    );
    for (text, line) in [
        ("SELECT * FROM range()", "range: Field end is required"),
        ("SELECT * FROM range(end=1, foo=2)", "range: Unexpected arg foo"),
        ("SELECT * FROM coerce(int='5')", "coerce: Field int should be an int not string."),
        ("SELECT * FROM coerce(float='5')", "coerce: Field float should be a float not string."),
        ("SELECT * FROM coerce(dict='x')", "coerce: Field dict should be a dict not string."),
        ("SELECT * FROM coerce(path=5)", "coerce: Field path Expecting a path arg type, not int64"),
        ("SELECT split(sep=',') FROM scope()", "split: Field string is required"),
        ("SELECT format(args=1) FROM scope()", "format: Field format is required"),
    ] {
        assert_eq!(logs(text), [line], "{text}");
    }
    assert_eq!(value("format(args=1)"), "false");
    assert_eq!(value("split(sep=',')"), "null");
}

#[test]
fn unknown_names() {
    let env = |environment: Environment| environment.variable("config", 1).variable("$acl", Value::opaque()).local("$Query", "x");
    for (text, lines) in [
        (
            "SELECT * FROM nosuch()",
            vec!["ERROR:Plugin nosuch not found. Current Scope is [NULL], [config, $acl], [$Query]", "ERROR:Plugin nosuch not found. "],
        ),
        (
            "SELECT * FROM for_each()",
            vec![
                "ERROR:Plugin for_each not found. Current Scope is [NULL], [config, $acl], [$Query]",
                "ERROR:Plugin for_each not found. Did you mean for foreach? ",
            ],
        ),
        (
            "SELECT * FROM strip()",
            vec![
                "ERROR:Plugin strip not found. Current Scope is [NULL], [config, $acl], [$Query]",
                "ERROR:Plugin strip not found. There is a VQL function called \"strip\" - did you mean to call this function instead?",
            ],
        ),
        ("SELECT nosuch() FROM scope()", vec!["ERROR:Symbol nosuch not found. Current Scope is [NULL], [config, $acl], [$Query], []"]),
        (
            "SELECT NoCol FROM range(end=2)",
            vec!["ERROR:Symbol NoCol not found. Current Scope is [NULL], [config, $acl], [$Query], [_value]"],
        ),
        (
            "SELECT A.B FROM scope()",
            vec!["ERROR:While resolving A.B Symbol A not found. Current Scope is [NULL], [config, $acl], [$Query], []"],
        ),
        ("SELECT config.nope FROM scope()", vec![]),
    ] {
        let (environment, log) = environment();
        run_in(&env(environment).open(), text);
        assert_eq!(log.take(), lines, "{text}");
    }
    let (environment, _) = environment();
    assert_eq!(run_in(&env(environment).open(), "SELECT `$acl` AS A, `$acl`.x AS B FROM scope()"), r#"[{"A":null,"B":null}]"#);
}

#[test]
fn explaining() {
    assert_eq!(
        logs("EXPLAIN SELECT 1 AS A FROM scope()"),
        [
            "DEBUG:Explain start query: EXPLAIN SELECT 1 AS A FROM scope()",
            "DEBUG: plugin scope() sent row: []",
            "DEBUG: SELECT: emitting row: [{int64 A 1}]"
        ]
    );
    assert!(logs("EXPLAIN SELECT * FROM range(end=1) WHERE FALSE").contains(&"DEBUG: SELECT: rejected row: [{int64 _value 0}]".to_owned()));
}

#[test]
fn logging() {
    assert_eq!(
        logs("SELECT log(message='a %v', args=1, level='INFO'), log(message='w', level='WARN'), log(message='def') FROM scope()"),
        ["INFO:a 1", "WARN:w", "DEFAULT:def"]
    );
    assert_eq!(logs("SELECT log(message='x %v', args=_value) FROM range(end=3)"), ["DEFAULT:x 0"]);
    assert_eq!(logs("SELECT log(message='x %v', args=_value, dedup=-1) FROM range(end=2)"), ["DEFAULT:x 0", "DEFAULT:x 1"]);
}

#[test]
fn permissions_are_checked_before_the_body_runs() {
    let log = Arc::new(MemoryLog::default());
    let scope = Environment::new(Arc::new(registry())).log(log.clone()).open();
    assert_eq!(run_in(&scope, "SELECT * FROM guarded()"), "[]");
    assert_eq!(run_in(&scope, "SELECT guarded() AS A FROM scope()"), r#"[{"A":null}]"#);
    assert_eq!(
        log.take(),
        ["guarded: PermissionDenied: Permission denied: [EXECVE NETWORK]", "guarded: PermissionDenied: Permission denied: [MACHINE_STATE]"]
    );
    assert_eq!(rows("SELECT * FROM guarded()"), r#"[{"Reached":true}]"#);
}

#[test]
fn lists_take_builtins_away() {
    let mut registry = registry();
    registry.restrict(&Restrictions {
        allowed_plugins: vec!["scope".to_owned(), "range".to_owned(), "nosuch".to_owned()],
        denied_functions: vec!["format".to_owned()],
        ..Restrictions::default()
    });
    let log = Arc::new(MemoryLog::default());
    let scope = Environment::new(Arc::new(registry)).guard(Arc::new(AllowAll)).log(log.clone()).open();
    assert_eq!(run_in(&scope, "SELECT * FROM chain(a={SELECT 1 FROM scope()})"), "[]");
    assert_eq!(run_in(&scope, "SELECT format(format='x') AS A, format(format='y') AS B FROM range(end=1)"), r#"[{"A":null,"B":null}]"#);
    assert_eq!(
        run_in(&scope, "SELECT version(plugin='chain') AS A, version(plugin='range') AS B, version(plugin='none') AS C FROM scope()"),
        r#"[{"A":-1,"B":0,"C":null}]"#
    );
    assert_eq!(
        log.take(),
        [
            "ERROR:VQL Plugin chain() has been blocked in the configuration. Please update the configuration file to allow it.",
            "ERROR:VQL Function format() has been blocked in the configuration. Please update the configuration file to allow it.",
        ]
    );
}

#[test]
fn budgets_end_queries_that_do_not_end() {
    let forever = "SELECT * FROM range(end=9000000000000)";
    for (budget, text, reason) in [
        (Budget { rows: 1000, ..Budget::default() }, forever, StopReason::Rows(1000)),
        (Budget { bytes: 1 << 20, ..Budget::default() }, "LET X <= SELECT * FROM range(end=9000000000000)", StopReason::Bytes(1 << 20)),
        (
            Budget { bytes: 1 << 20, ..Budget::default() },
            "SELECT * FROM range(end=9000000000000) ORDER BY _value",
            StopReason::Bytes(1 << 20),
        ),
        (
            Budget { bytes: 1 << 20, ..Budget::default() },
            "SELECT _value FROM range(end=9000000000000) GROUP BY _value",
            StopReason::Bytes(1 << 20),
        ),
        (
            Budget { bytes: 1 << 20, ..Budget::default() },
            "SELECT enumerate(items=_value) AS E FROM range(end=9000000000000) GROUP BY 1",
            StopReason::Bytes(1 << 20),
        ),
    ] {
        let (environment, _) = environment();
        let scope = environment.budget(budget).open();
        let statement = parse(text).unwrap().statements.remove(0);
        let mut query = Query::new(&scope, &statement);
        while query.next().is_some() {}
        assert_eq!(query.stopped(), Some(reason), "{text}");
    }
}

#[test]
fn values_cannot_grow_without_bound() {
    let doubling: String = (1..300).map(|at| format!("LET D{at} = (D{}, D{}) ", at - 1, at - 1)).collect();
    let (environment, _) = environment();
    let scope = environment.budget(Budget { bytes: 1 << 24, ..Budget::default() }).open();
    run_in(&scope, "LET S <= 'x' * 1000000 SELECT S + S + S + S + S + S + S + S + S + S + S + S + S + S + S + S + S + S AS A FROM scope()");
    let materialized: String = (1..60).map(|at| format!("LET E{at} <= (E{}, E{}) ", at - 1, at - 1)).collect();
    run_in(&scope, &format!("LET E0 <= 1 {materialized} SELECT len(list=E59) AS L FROM scope()"));
    assert!(scope.cancel_token().is_cancelled());
    drop(doubling);
    let (environment, _) = self::environment();
    let scope = environment.open();
    run_in(&scope, "LET D <= dict(x=1) SELECT set(item=D, field='x', value=D) AS X FROM range(end=5000) WHERE FALSE AND X");
    run_in(&scope, "SELECT set(item=D, field='x', value=D) AS X FROM range(end=5000) WHERE X AND FALSE");
    assert!(scope.variable("D").is_some_and(|value| value.depth() <= talon_vql::MAX_DEPTH));
}

#[test]
fn cancelling_is_seen_within_a_second() {
    for text in [
        "SELECT * FROM range(end=9000000000000) WHERE FALSE",
        "SELECT sleep(time=100) FROM scope()",
        "LET F(x) = F(x=x + 1) + F(x=x + 2) SELECT F(x=1) AS X FROM range(end=100000)",
        "LET Q = SELECT * FROM range(end=9000000000000) SELECT Q._value AS X FROM scope()",
        "SELECT * FROM foreach(row={SELECT * FROM range(end=9000000000000)}, query={SELECT * FROM range(end=9000000000000) WHERE FALSE}, workers=4)",
        "SELECT count() AS N FROM range(end=9000000000000) GROUP BY 1",
    ] {
        let (environment, _) = environment();
        let cancel = CancelToken::new();
        let clock = Arc::new(Waiting);
        let scope = environment.cancel(cancel.clone()).clock(clock).open();
        let statements = parse(text).unwrap().statements;
        let (sender, done) = std::sync::mpsc::channel();
        let worker = talon_vql::spawn_query_thread("test", move || {
            let count: usize = statements.iter().map(|statement| Query::new(&scope, statement).count()).sum();
            sender.send(count).unwrap();
        })
        .unwrap();
        assert!(done.recv_timeout(Duration::from_millis(200)).is_err(), "ended by itself: {text}");
        cancel.cancel("test");
        assert!(done.recv_timeout(Duration::from_secs(1)).is_ok(), "still running: {text}");
        worker.join().unwrap();
    }
}

/// A clock that runs.
struct Running(std::time::Instant);

impl talon_vql::Clock for Running {
    fn now(&self) -> talon_vql::Time {
        talon_vql::Time::EPOCH
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[test]
fn timeouts_end_loops_that_give_no_rows() {
    let (environment, log) = environment();
    let scope = environment.clock(Arc::new(Running(std::time::Instant::now()))).open();
    let endless = "SELECT * FROM range(end=9000000000000) WHERE FALSE";
    let text =
        format!("SELECT * FROM chain(a={{ SELECT * FROM query(query='{endless}', timeout=0.2) }}, b={{ SELECT 1 AS After FROM scope() }})");
    assert_eq!(run_in(&scope, &text), r#"[{"After":1}]"#);
    assert_eq!(log.take(), ["ERROR:query: Query timed out after 0.2 seconds"]);
    let (environment, _) = self::environment();
    let budget = Budget { time: Some(Duration::from_millis(200)), ..Budget::default() };
    let scope = environment.clock(Arc::new(Running(std::time::Instant::now()))).budget(budget).open();
    assert_eq!(run_in(&scope, "SELECT sleep(time=100) AS X FROM scope()"), "[]");
    assert_eq!(scope.cancel_token().reason(), Some(StopReason::TimedOut(Duration::from_millis(200))));
}

/// A clock that says that waiting is real.
struct Waiting;

impl talon_vql::Clock for Waiting {
    fn now(&self) -> talon_vql::Time {
        talon_vql::Time::EPOCH
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn destructors_run_inner_first_and_in_reverse() {
    let mut registry = registry();
    registry.function(
        Signature::function("closing", "Logs when its scope closes.").args(args![Arg::required("name", ArgType::String, "")]),
        |call| {
            let (scope, name) = (call.scope().environment().clone(), call.string("name"));
            call.scope().on_close(move || scope.open().log(format!("closed {name}")));
            Ok(Value::Bool(true))
        },
    );
    let log = Arc::new(MemoryLog::default());
    let scope = Environment::new(Arc::new(registry)).log(log.clone()).open();
    run_in(
        &scope,
        "SELECT closing(name='a') AS A, closing(name='b') AS B, { SELECT closing(name='inner') FROM scope() } AS C FROM scope()",
    );
    assert_eq!(log.take(), ["closed inner", "closed b", "closed a"]);
}

#[test]
fn builtins() {
    check(
        &[
            ("split(string='a,b,c', sep=',')", r#"["a","b","c"]"#),
            ("split(string='a1b22c', sep='[0-9]+')", r#"["a","b","c"]"#),
            ("split(string='a.b', sep_string='.')", r#"["a","b"]"#),
            ("join(array=(1, 'b'), sep='-')", r#""1-b""#),
            ("strip(string='  a ')", r#""a""#),
            ("strip(string='xay', prefix='x', suffix='y')", r#""a""#),
            ("substr(str='héllo', start=1, end=3)", r#""él""#),
            ("lowcase(string='ÀB')", r#""àb""#),
            ("upcase(string='àb')", r#""ÀB""#),
            ("len(list='hello')", "5"),
            ("len(list=dict(a=1))", "1"),
            ("len(list=5)", "0"),
            ("str(str=1.5)", r#""1.5""#),
            ("str(str=NULL)", r#""""#),
            ("int(int='0x10')", "16"),
            ("int(int='070')", "56"),
            ("int(int='zz')", "0"),
            ("int(int=-1.9)", "-1"),
            ("int()", "0"),
            ("atoi(string='12')", "12"),
            ("parse_float(string='1.25')", "1.25"),
            ("regex_replace(source='Hello World', re='(?P<w>world)', replace='<${w}>')", r#""Hello \u003cWorld\u003e""#),
            ("regex_replace(source='a1b2', re='[0-9]', replace_lambda='x=>int(int=x) + 1')", r#""a2b3""#),
            ("parse_string_with_regex(string='key=val', regex='(?P<k>\\\\w+)=(\\\\w+)(?P<z>x)?')", r#"{"k":"key","g2":"val","z":""}"#),
            ("get(item=dict(a=dict(b=3)), member='a.b')", "3"),
            ("get(item=dict(a=1), field='z', default=7)", "7"),
            ("get(field='NoSuch', default=7)", "7"),
            ("to_dict(item={SELECT _key, _value FROM items(item=dict(X=1)) })", r#"{"X":1}"#),
            ("filter(list=(1, 'two', ''), regex='.+')", r#"[1,"two"]"#),
            ("filter(list=(1, 2, 3), condition='x=>x > 1')", "[2,3]"),
            ("any(items=('a', 'b'), regex='b')", "true"),
            ("all(items=('a', 'b'), regex='b')", "false"),
            ("all(items=(1, 2), filter='x=>x > 0')", "true"),
            ("array(a=1, _=(2, 3))", "[1,2,3]"),
            ("array(_={SELECT * FROM range(end=1)})", r#"[{"_value":0}]"#),
            ("slice(list=(1, 2, 3), start=1, end=2)", "[2]"),
            ("typeof(x='a')", r#""string""#),
            ("base64encode(string='hi')", r#""aGk=""#),
            ("base64decode(string='aGk=')", r#""hi""#),
            ("base64decode(string='aGk')", r#""hi""#),
            ("unhex(string='4142')", r#""AB""#),
            ("serialize(item='hi', format='base64')", r#""aGk""#),
            ("serialize(item=dict(a=1))", r#""{\n \"a\": 1\n}""#),
            ("serialize(item='A', format='hex')", r#""41""#),
            ("serialize(item=(dict(a=1, b='x,y'), ), format='csv')", r#""a,b\n1,\"x,y\"\n""#),
            ("serialize(item=dict(a=(1, 'b c')), format='yaml')", r#""a:\n  - 1\n  - \"b c\"\n""#),
            ("parse_json(data='{\"a\":[1,2.5]}').a", "[1,2.5]"),
            ("parse_json_array(data='[1]')", "[1]"),
            ("parse_json(data='{')", "null"),
            ("timestamp(epoch=1600000000)", r#""2020-09-13T12:26:40Z""#),
            ("timestamp(epoch=1600000000000)", r#""2020-09-13T12:26:40Z""#),
            ("timestamp(epoch='1600000000')", r#""2020-09-13T12:26:40Z""#),
            ("timestamp(epoch=0)", r#""0001-01-01T00:00:00Z""#),
            ("timestamp(winfiletime=132444736000000000)", r#""2020-09-13T12:26:40Z""#),
            ("timestamp(cocoatime=0)", r#""2001-01-01T00:00:00Z""#),
            ("timestamp(string='March 3 2019')", r#""2019-03-03T00:00:00Z""#),
            ("timestamp(string='nope')", "null"),
            ("timestamp_format(time=1600000000, format='2006/01/02')", r#""2020/09/13""#),
            ("now()", "0"),
            ("basename(path='/a/b')", r#""b""#),
            ("dirname(path='/a/b')", r#""/a""#),
            ("path_join(components=('a', 'b'))", r#""/a/b""#),
            ("path_join(components=('C:', 'b'), path_type='windows')", r#""C:\\b""#),
            ("path_split(path='/a/b')", r#"["a","b"]"#),
            ("relpath(path='/a/b/c', base='/a/d')", r#""../b/c""#),
            ("humanize(bytes=1500)", r#""1.5 kB""#),
            ("humanize(bytes=11001)", r#""11 kB""#),
            ("humanize(comma=1234567)", r#""1,234,567""#),
            ("commandline_split(command='a \\'b c\\' d', bash_style=TRUE)", r#"["a","b c","d"]"#),
            ("xor(string='ab', key='b')", r#""\u0003\u0000""#),
            ("entropy(string='Hello world')", "2.84"),
            ("semver(version='v1.2.3-dev')", r#"{"Major":1,"Minor":2,"Patch":3,"Prerelease":"dev","Version":"1.2.3-dev"}"#),
            ("semver(version='1.10') > '1.9.9'", "true"),
            ("semver(version='1.0.0-rc.2') < semver(version='1.0.0')", "true"),
            ("semver(version='1.0') = 'x'", "false"),
            ("semver(version='x')", "null"),
            ("ip(parse='::ffff:10.1.2.3')", r#""10.1.2.3""#),
            ("ip(parse='10.1.2.3').IsPrivate", "true"),
            ("cidr_contains(ip='10.1.2.3', ranges=('192.168.0.0/16', '10.0.0.0/8'))", "true"),
            ("cidr_contains(ip='11.1.2.3', ranges='10.0.0.0/8')", "false"),
            ("cidr_contains(ip='::1', ranges='::/0')", "true"),
            ("similarity(set1=dict(a=1, b=2), set2=dict(a=1, b=3))", "0.5"),
            ("regex_transform(source='Hello world', map=dict(`^Hello`='Bye'))", r#""Bye world""#),
        ],
        value,
    );
}

#[test]
fn times_show_in_the_zone_of_the_query() {
    let (environment, _) = environment();
    let scope = environment.variable("PARSE_TZ", "Australia/Brisbane").open();
    assert_eq!(run_in(&scope, "SELECT timestamp(string='2020-05-31 10:00:00') AS T FROM scope()"), r#"[{"T":"2020-05-31T00:00:00Z"}]"#);
}
