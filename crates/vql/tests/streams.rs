//! Rows as they flow, what is remembered, and what happens beside a query and after it.

#![allow(clippy::panic, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use talon_vql::{
    AllowAll, CacheFile, CacheFiles, CacheStorage, CallError, Clock, Environment, MemoryLog, Query, Registry, Scope, Time, Value, json,
    parse,
};

/// Waits for real, and stands at one date.
struct Waiting(Instant);

impl Clock for Waiting {
    fn now(&self) -> Time {
        Time::from_unix_nanos(1_600_000_000_000_000_000)
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

fn environment() -> (Environment, Arc<MemoryLog>) {
    let log = Arc::new(MemoryLog::default());
    let environment = Environment::new(Arc::new(Registry::core()));
    (environment.guard(Arc::new(AllowAll)).log(log.clone()).clock(Arc::new(Waiting(Instant::now()))), log)
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

#[test]
fn rows_are_dropped_sampled_and_held_by_variables() {
    let cases = [
        (
            "SELECT * FROM dedup(key='A', query={ SELECT _value / 2 > 1 AS A, _value AS B FROM range(end=5) })",
            r#"[{"A":false,"B":0},{"A":true,"B":3}]"#,
        ),
        (
            "SELECT * FROM dedup(key='A', size=1, query={ SELECT * FROM foreach(row=(1, 2, 1, 1), query={ SELECT _value AS A FROM scope() }) })",
            r#"[{"A":1},{"A":2},{"A":1}]"#,
        ),
        ("SELECT * FROM sample(n=2, query={ SELECT * FROM range(end=5) })", r#"[{"_value":0},{"_value":2},{"_value":4}]"#),
        ("SELECT * FROM sample(n=0, query={ SELECT * FROM range(end=5) })", "[]"),
        (
            "SELECT * FROM for(var='X', foreach={ SELECT * FROM range(end=2) }, query={ SELECT X._value + 1 AS Y FROM scope() })",
            r#"[{"Y":1},{"Y":2}]"#,
        ),
        ("SELECT * FROM delay(delay=0, query={ SELECT * FROM range(end=2) })", r#"[{"_value":0},{"_value":1}]"#),
    ];
    for (text, expected) in cases {
        assert_eq!(rows(text), expected, "{text}");
    }
}

#[test]
fn delayed_rows_keep_their_distance_to_when_they_came() {
    let started = Instant::now();
    assert_eq!(rows("SELECT * FROM delay(delay=1, query={ SELECT * FROM range(end=3) })"), r#"[{"_value":0},{"_value":1},{"_value":2}]"#);
    assert!(started.elapsed() >= Duration::from_secs(1), "a row came early");
}

#[test]
fn a_fifo_keeps_the_last_rows() {
    let text = |flush: &str| {
        format!(
            "LET Last = SELECT * FROM fifo(max_rows=2, flush={flush}, query={{ SELECT _value AS A FROM range(end=5) }})
             SELECT * FROM chain(a={{ SELECT * FROM Last WHERE sleep(ms=1) AND FALSE }}, b={{ SELECT sleep(ms=500) AND FALSE AS A FROM scope() WHERE NOT A AND FALSE }},
                                 c={{ SELECT * FROM Last }}, d={{ SELECT * FROM Last }})"
        )
    };
    let out = rows(&text("FALSE"));
    assert!(out.ends_with(r#"{"A":3},{"A":4},{"A":3},{"A":4}]"#), "{out}");
    let out = rows(&text("TRUE"));
    assert_eq!(out.matches(r#"{"A":4}"#).count(), 1, "{out}");
}

#[test]
fn a_generator_runs_once_for_all_its_readers() {
    let text = "LET Source = generate(delay=1, query={ SELECT _value, log(message='ran', dedup=-1) AS L FROM range(end=2) })
                SELECT * FROM combine(a={ SELECT 'a' + str(str=_value) AS X FROM Source }, b={ SELECT 'b' + str(str=_value) AS X FROM Source }) ORDER BY X";
    let (environment, log) = environment();
    assert_eq!(run_in(&environment.open(), text), r#"[{"X":"a0"},{"X":"a1"},{"X":"b0"},{"X":"b1"}]"#);
    assert_eq!(log.take().iter().filter(|line| line.contains("ran")).count(), 2);
}

#[test]
fn a_generator_starts_early_when_its_readers_are_there() {
    let text = "LET Source = generate(delay=100, fan_out=2, query={ SELECT * FROM range(end=1) })
                SELECT * FROM combine(a={ SELECT * FROM Source }, b={ SELECT * FROM Source })";
    let started = Instant::now();
    assert_eq!(rows(text), r#"[{"_value":0},{"_value":0}]"#);
    assert!(started.elapsed() < Duration::from_secs(60), "nobody else was to come");
}

#[test]
fn a_reader_that_leaves_does_not_hold_up_the_query() {
    let text = "LET Endless = generate(query={ SELECT * FROM range(end=100000000) })
                SELECT * FROM Endless LIMIT 2";
    assert_eq!(rows(text), r#"[{"_value":0},{"_value":1}]"#);
}

#[test]
fn what_memoize_remembers_is_found_by_the_column() {
    let text = "LET Names <= memoize(key='Id', query={ SELECT _value AS Id, format(format='n%v', args=_value) AS Name, log(message='ran', dedup=-1) AS L FROM range(end=3) })
                SELECT get(item=Names, field=1).Name AS A, get(item=Names, field='2').Name AS B, get(item=Names, field=9) AS C FROM scope()";
    let (environment, log) = environment();
    assert_eq!(run_in(&environment.open(), text), r#"[{"A":"n1","B":"n2","C":null}]"#);
    assert_eq!(log.take().iter().filter(|line| line.contains("ran")).count(), 3);
}

#[test]
fn a_memory_that_asks_itself_finds_nothing() {
    let text = "LET M = memoize(name='m', key='A', query={ SELECT 1 AS A, get(item=memoize(name='m', key='A', query={ SELECT * FROM scope() }), field=1) AS B FROM scope() })
                SELECT get(item=M, field=1) AS X FROM scope()";
    assert_eq!(rows(text), r#"[{"X":{"A":1,"B":null}}]"#);
}

#[test]
fn queries_at_exit_run_when_the_query_is_over() {
    let text = "LET Greeting = 'bye ' + Name
                LET _ <= atexit(query={ SELECT log(message=Greeting) FROM scope() }, env=dict(Name='Bob'))
                LET _ <= atexit(query='SELECT log(message=\"first\") FROM scope()')
                LET _ <= atexit(query='SELEC')
                SELECT log(message='running') FROM scope()";
    let lines = logs(text);
    let shown: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.starts_with("atexit")).collect();
    assert_eq!(shown, ["DEFAULT:running", "DEFAULT:first", "DEFAULT:bye Bob"]);
    assert!(lines.iter().any(|line| line.starts_with("atexit: ")), "{lines:?}");
}

#[test]
fn a_query_in_a_query_has_its_own_exit() {
    let text = "SELECT * FROM query(query='SELECT atexit(query={ SELECT log(message=\"inner\") FROM scope() }) FROM scope()')
                SELECT log(message='outer') FROM scope()";
    assert_eq!(logs(text), ["DEFAULT:inner", "DEFAULT:outer"]);
}

#[test]
fn a_query_in_the_background_sees_names_and_ends_with_the_query() {
    let text = "LET Name = 'aside'
                LET _ <= background(query={ SELECT log(message=Name), sleep(time=100) FROM range(end=1000) })
                SELECT sleep(ms=300) FROM scope()";
    let started = Instant::now();
    assert_eq!(logs(text), ["DEFAULT:aside"]);
    assert!(started.elapsed() < Duration::from_secs(60), "the query waited for the one beside it");
}

#[test]
fn alerts_are_lines_of_json_that_are_not_repeated() {
    let text = "SELECT alert(name='Found', A=1, B=dict(C='x')) AS X, alert(name='Found', A=2) AS Y, alert(name='Not', condition=FALSE) AS Z FROM scope()";
    let (environment, log) = environment();
    assert_eq!(run_in(&environment.open(), text), r#"[{"X":true,"Y":false,"Z":false}]"#);
    assert_eq!(log.take(), [r#"ALERT:{"timestamp":"2020-09-13T12:26:40Z","name":"Found","event_data":{"A":1,"B":{"C":"x"}}}"#]);
}

/// One file in memory, which may be closed to readers.
#[derive(Default)]
struct OneFile(Arc<Mutex<Vec<u8>>>);

impl CacheStorage for OneFile {
    fn open(&self, name: &str, _: &Scope) -> Result<Box<dyn CacheFile>, CallError> {
        if name == "forbidden" { Err("no".into()) } else { Ok(Box::new(Self(self.0.clone()))) }
    }
}

impl CacheFile for OneFile {
    fn load(&self) -> Result<Vec<u8>, CallError> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn save(&self, content: &[u8]) -> Result<(), CallError> {
        *self.0.lock().unwrap() = content.to_vec();
        Ok(())
    }
}

#[test]
fn a_cache_in_a_file_outlives_the_query() {
    let file = Arc::new(Mutex::new(Vec::new()));
    let run = |text: &str| {
        let (environment, log) = environment();
        let storage = CacheFiles(Arc::new(OneFile(file.clone())));
        (run_in(&environment.extension(Arc::new(storage)).open(), text), log.take())
    };
    let text = |value: &str, name: &str| format!("SELECT cache(filename='{name}', period=100, key='k', func={value}) AS X FROM scope()");
    assert_eq!(run(&text("1", "f")).0, r#"[{"X":1}]"#);
    assert_eq!(*file.lock().unwrap(), br#"{"since":1600000000,"values":{"k":1}}"#);
    assert_eq!(run(&text("2", "f")).0, r#"[{"X":1}]"#);
    assert_eq!(run(&text("2", "forbidden")), (r#"[{"X":null}]"#.to_owned(), vec!["cache: no".to_owned()]));
    *file.lock().unwrap() = b"something else".to_vec();
    assert_eq!(run(&text("3", "f")), (r#"[{"X":null}]"#.to_owned(), vec!["cache: the file is not a cache".to_owned()]));
    assert_eq!(*file.lock().unwrap(), b"something else");
}

#[test]
fn without_a_storage_there_are_no_files() {
    assert_eq!(logs("SELECT cache(filename='f', key=1, func=1) FROM scope()"), ["cache: there are no files here"]);
}

#[test]
fn a_cache_forgets_the_oldest_keys() {
    let text = "LET C(K) = cache(key=K, max_size=2, func=log(message='ran', dedup=-1) && K)
                SELECT C(K=1), C(K=2), C(K=2), C(K=3), C(K=1) FROM scope()";
    assert_eq!(logs(text).len(), 4);
}

#[test]
fn small_functions() {
    let cases = [
        (
            "SELECT format(format='%x', args=utf16_encode(string='a€')) AS A, utf16(string=utf16_encode(string='a€')) AS B, utf16(string='a') AS C FROM scope()",
            r#"[{"A":"6100ac20","B":"a€","C":""}]"#,
        ),
        ("SELECT rate(x=_value * 6, y=_value * 2) AS R FROM range(end=3)", r#"[{"R":null},{"R":3},{"R":3}]"#),
        ("SELECT rate(x=_value, y=1) AS R FROM range(end=2)", r#"[{"R":null},{"R":null}]"#),
    ];
    for (text, expected) in cases {
        assert_eq!(rows(text), expected, "{text}");
    }
}
