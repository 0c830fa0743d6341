//! Nothing that a query can say brings the engine down: every built-in and operator meets every odd value.

#![allow(clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use talon_vql::{AllowAll, Budget, Clock, Environment, Kind, Query, Registry, Scope, Time, Value, json, parse_statement};

/// Odd values, as text of the language.
const POOL: &[&str] = &[
    "NULL",
    "TRUE",
    "0",
    "-1",
    "3",
    "9223372036854775807",
    "-9223372036854775807 - 1",
    "1.5",
    "-1e308",
    "1e308 * 10",
    "1e308 * 10 - 1e308 * 10",
    "''",
    "'a'",
    "'é\\xff\\x00'",
    "'%-+ #0999999.999999d%v%s%q%x%T%c%U%e%g%*d%'",
    "'(?P<a>x)(y)?|z*'",
    "'['",
    "'x=>x + 1'",
    "'x=>x.y[0][-1:99]'",
    "'{\"a\":[1,{\"b\":null}],\"t\":\"2020-01-01T00:00:00Z\"}'",
    "'2006-01-02T15:04:05.999Z07:00'",
    "'../..//a/\\\\b/\"c'",
    "dict(a=1, `b c`=dict(d=(1, 2)))",
    "dict(Path='/a', DelegateAccessor='zip', DelegatePath='/b')",
    "(1, 'b', NULL, dict(_key='k', _value=1))",
    "array()",
    "timestamp(epoch=9223372036854775807)",
    "timestamp(winfiletime=-9223372036854775807)",
    "timestamp(epoch=1600000000)",
    "pathspec(Path='/a/b', path_type='windows')",
    "{ SELECT _value, dict(x=_value) AS D FROM range(end=3) }",
    "scope()",
];

/// A clock that does not wait, and goes on whenever somebody looks: plugins that never end by themselves run out of time soon.
#[derive(Default)]
struct Hasty(AtomicU64);

impl Clock for Hasty {
    fn now(&self) -> Time {
        Time::from_unix(1_600_000_000)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(10, Ordering::Relaxed))
    }

    fn waits(&self) -> bool {
        false
    }
}

fn scope() -> Scope {
    let budget = Budget { rows: 200_000, bytes: 64 << 20, string: 1 << 20, time: Some(Duration::from_secs(2)), ..Budget::default() };
    Environment::new(Arc::new(Registry::core())).guard(Arc::new(AllowAll)).clock(Arc::<Hasty>::default()).budget(budget).open()
}

fn run(text: &str) {
    let statement = parse_statement(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let mut out = Vec::new();
    for row in Query::new(&scope(), &statement).take(50) {
        json::Encoder::default().line(&mut out, &row);
        let _ = talon_vql::text::display(&Value::Dict(row));
    }
    for line in out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        json::decode(line).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

fn call(kind: Kind, name: &str, args: &str) {
    match kind {
        Kind::Plugin => run(&format!("SELECT * FROM {name}({args}) LIMIT 50")),
        Kind::Function => run(&format!("SELECT {name}({args}) AS X FROM range(end=2)")),
    }
}

#[test]
fn builtins_meet_odd_values() {
    let registry = Registry::core();
    let mut seed = 1_u64;
    let mut pick = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        POOL[usize::try_from(seed >> 40).unwrap() % POOL.len()]
    };
    for signature in registry.signatures() {
        for odd in POOL {
            let all: Vec<String> = signature.args.iter().map(|arg| format!("{}={odd}", arg.name)).collect();
            call(signature.kind, signature.name, &all.join(", "));
            if signature.free_form {
                call(signature.kind, signature.name, &format!("a={odd}, b={odd}"));
            }
            call(signature.kind, signature.name, &format!("`**`={odd}"));
        }
        for _ in 0..100 {
            let args: Vec<String> = signature.args.iter().map(|arg| format!("{}={}", arg.name, pick())).collect();
            call(signature.kind, signature.name, &args.join(", "));
        }
    }
}

#[test]
fn operators_meet_odd_values() {
    for left in POOL.iter().filter(|value| !value.starts_with('{')) {
        for right in POOL.iter().filter(|value| !value.starts_with('{')) {
            let each: Vec<String> = ["+", "-", "*", "/", "=", "!=", "<", "<=", ">", ">=", "IN", "=~"]
                .iter()
                .enumerate()
                .map(|(at, operator)| format!("({left}) {operator} ({right}) AS C{at}"))
                .collect();
            run(&format!(
                "SELECT {}, ({left})[{right_value}] AS I, ({left})[{right_value}:{right_value}] AS S FROM scope()",
                each.join(", "),
                right_value = format_args!("({right})")
            ));
        }
        run(&format!("SELECT ({left}).x AS A, NOT ({left}) AS B, ({left}) AND 1 AS C, ({left}) || 1 AS D FROM scope() ORDER BY A"));
        run(&format!("SELECT * FROM foreach(row=({left}, 1), query={{ SELECT ({left}) AS K, count() AS C FROM scope() }}) GROUP BY K"));
    }
}

#[test]
fn decoding_any_bytes_ends_well() {
    let mut seed = 7_u64;
    for length in 0..2000_usize {
        let bytes: Vec<u8> = (0..length % 40)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                b"{}[]\":,\\u0019eE+-.tfnT \xff\xc3"[usize::try_from(seed >> 33).unwrap() % 25]
            })
            .collect();
        if let Ok(value) = json::decode(&bytes) {
            let again = |text: &str| json::encode(&json::decode(text.as_bytes()).unwrap());
            let settled = again(&json::encode(&value));
            assert_eq!(again(&settled), settled);
        }
    }
}
