//! Queries that mean harm: each ends, soon and with little memory.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use talon_vql::{AllowAll, Budget, CancelToken, Clock, Environment, MemoryLog, MemorySpill, Query, Registry, StopReason, Time, parse};

struct Running(Instant);

impl Clock for Running {
    fn now(&self) -> Time {
        Time::EPOCH
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

fn environment() -> (Environment, Arc<MemoryLog>) {
    let log = Arc::new(MemoryLog::default());
    let environment = Environment::new(Arc::new(Registry::core())).guard(Arc::new(AllowAll)).log(log.clone());
    (environment.clock(Arc::new(Running(Instant::now()))), log)
}

/// Runs all statements and counts the rows.
fn count(environment: Environment, text: &str) -> usize {
    let scope = environment.open();
    parse(text).unwrap().statements.iter().map(|statement| Query::new(&scope, statement).count()).sum()
}

const ENDLESS: &str = "range(end=1000000000000)";

#[test]
fn each_budget_ends_the_query_with_one_line_and_the_rows_so_far() {
    let second = Duration::from_millis(300);
    for (budget, text, line, least) in [
        (Budget { rows: 100, ..Budget::default() }, format!("SELECT * FROM {ENDLESS}"), "it read more than 100 rows", 99),
        (Budget { time: Some(second), ..Budget::default() }, format!("SELECT * FROM {ENDLESS}"), "it ran for longer than 0.3 seconds", 1),
        (
            Budget { bytes: 1 << 20, ..Budget::default() },
            format!(
                "SELECT * FROM chain(a={{ SELECT 1 AS A FROM scope() }}, b={{ SELECT enumerate(items=_value) AS A FROM {ENDLESS} GROUP BY 1 }})"
            ),
            "it held more than 1048576 bytes in memory",
            1,
        ),
    ] {
        let (environment, log) = environment();
        let rows = count(environment.budget(budget), &text);
        assert!(rows >= least, "{text}: {rows}");
        let errors: Vec<String> = log.take().into_iter().filter(|line| line.starts_with("ERROR:")).collect();
        assert_eq!(errors, [format!("ERROR:Query stopped: {line}")], "{text}");
    }
}

#[test]
fn what_outgrows_memory_goes_to_disk_and_comes_back_the_same() {
    for text in [
        "SELECT _value, 'x' AS A FROM range(end=30000) ORDER BY A",
        "SELECT 0 - _value AS N, _value FROM range(end=30000) ORDER BY N DESC",
        "SELECT _value - 1000 * int(int=_value / 1000) AS K, count() AS C, enumerate(items=_value) AS E FROM range(end=30000) GROUP BY K",
        "LET X <= SELECT _value, dict(a=_value) AS D FROM range(end=30000) SELECT D FROM X WHERE _value > 29000",
        "LET X <= SELECT * FROM range(end=30000) SELECT X[29999] AS A, X._value[3] AS B FROM scope()",
    ] {
        let rows = |spill: u64| {
            let (environment, log) = environment();
            let scope = environment.budget(Budget { spill, ..Budget::default() }).spill(Arc::new(MemorySpill)).open();
            let mut rows = Vec::new();
            for statement in &parse(text).unwrap().statements {
                rows.extend(Query::new(&scope, statement).map(|row| talon_vql::json::encode(&row.into())));
            }
            (rows, log.take().iter().any(|line| line.starts_with("ERROR:")))
        };
        let (in_memory, on_disk) = (rows(u64::MAX), rows(50 << 10));
        assert_eq!(in_memory.0.len(), on_disk.0.len(), "{text}");
        let differing = in_memory.0.iter().zip(&on_disk.0).find(|(left, right)| left != right);
        assert_eq!(differing, None, "{text}");
        assert!(!on_disk.1 && !on_disk.0.is_empty(), "{text}");
    }
}

#[test]
fn long_texts_deep_texts_and_long_strings_are_refused() {
    assert!(parse(&format!("SELECT {}1{} FROM scope()", "(".repeat(10_000), ")".repeat(10_000))).is_err());
    assert!(parse(&format!("SELECT 1 AS A{} FROM scope()", " ".repeat(50 << 20))).is_err());
    let (environment, log) = environment();
    assert_eq!(count(environment, "SELECT len(list='x' * 1073741824) AS L FROM scope()"), 1);
    assert!(log.take().iter().any(|line| line.contains("exceeded memory limits")));
}

#[test]
fn definitions_in_a_ring_end() {
    for text in [
        "LET A = B LET B = A SELECT A FROM scope()",
        "LET A = SELECT * FROM B LET B = SELECT * FROM A SELECT * FROM A",
        "LET A(x) = SELECT * FROM A(x=x + 1) SELECT * FROM A(x=1)",
        "LET A = dict(a=A) SELECT A FROM scope()",
    ] {
        let (environment, log) = environment();
        let text = text.to_owned();
        let run = move || count(environment, &text);
        talon_vql::spawn_query_thread("ring", run).unwrap().join().unwrap();
        assert!(log.take().iter().any(|line| line.contains("Stack Overflow")));
    }
}

#[test]
fn expressions_that_others_choke_on_are_linear_or_refused() {
    for pattern in ["(a+)+$", "(a|aa)+$", "(.*)*b", "((a*)*)*$"] {
        let (environment, _) = environment();
        let started = Instant::now();
        assert_eq!(count(environment, &format!("SELECT 'a' * 100000 + 'c' =~ '{pattern}' AS M FROM scope()")), 1);
        assert!(started.elapsed() < Duration::from_secs(20), "{pattern}");
    }
    let (environment, log) = environment();
    count(environment, "SELECT 'a' =~ '((a{1000}){1000}){1000}' AS M FROM scope()");
    assert!(log.take().iter().any(|line| line.starts_with("Compile regexp:")));
}

/// Every way to go round and round, stopped from outside.
#[test]
fn cancelling_is_seen_within_a_second_in_every_loop() {
    let loops = [
        format!("SELECT * FROM {ENDLESS} WHERE FALSE"),
        format!("SELECT count() AS C FROM {ENDLESS} GROUP BY 1"),
        format!("SELECT _value FROM {ENDLESS} ORDER BY _value LIMIT 1"),
        format!("LET X <= SELECT count() AS C FROM {ENDLESS} GROUP BY 1"),
        format!("SELECT {{ SELECT * FROM {ENDLESS} WHERE FALSE }} AS X FROM scope()"),
        format!("SELECT * FROM foreach(row={{ SELECT * FROM {ENDLESS} }}, query={{ SELECT * FROM range(end=2) WHERE FALSE }})"),
        format!("SELECT * FROM foreach(row={{ SELECT * FROM {ENDLESS} }}, query={{ SELECT * FROM range(end=2) WHERE FALSE }}, workers=3)"),
        format!("SELECT * FROM chain(a={{ SELECT * FROM {ENDLESS} WHERE FALSE }}, async=TRUE)"),
        format!("SELECT * FROM switch(a={{ SELECT * FROM {ENDLESS} WHERE FALSE }})"),
        format!("SELECT * FROM flatten(query={{ SELECT * FROM {ENDLESS} WHERE FALSE }})"),
        format!("SELECT * FROM query(query={{ SELECT * FROM {ENDLESS} WHERE FALSE }})"),
        format!("SELECT * FROM if(condition=TRUE, then={{ SELECT * FROM {ENDLESS} WHERE FALSE }})"),
        format!("LET Q = SELECT * FROM {ENDLESS} WHERE FALSE SELECT 1 FROM scope() WHERE Q"),
        "SELECT sleep(time=100) FROM scope()".to_owned(),
        format!("LET S <= 'a' * 90000000 SELECT _value FROM {ENDLESS} WHERE S =~ '(a|b)*(c|a)[x-z]'"),
    ];
    for text in loops {
        let (environment, _) = environment();
        let cancel = CancelToken::new();
        let environment = environment.cancel(cancel.clone());
        let (sender, ended) = sync_channel(1);
        let running = text.clone();
        let thread = talon_vql::spawn_query_thread("loop", move || sender.send(count(environment, &running))).unwrap();
        assert!(ended.recv_timeout(Duration::from_millis(300)).is_err(), "ended by itself: {text}");
        cancel.stop(StopReason::Cancelled("test".to_owned()));
        assert!(ended.recv_timeout(Duration::from_secs(1)).is_ok(), "goes on: {text}");
        let _ = thread.join().unwrap();
    }
}
