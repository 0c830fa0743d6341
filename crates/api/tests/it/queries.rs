//! `Query`: what comes back, in which parts, and what stops it.

use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use talon_proto as proto;
use talon_proto::api_client::ApiClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::stage::Stage;

fn request(queries: &[&str]) -> proto::VqlCollectorArgs {
    let query = queries.iter().map(|vql| proto::VqlRequest { vql: (*vql).into(), ..Default::default() }).collect();
    proto::VqlCollectorArgs { query, max_row: 10, ..Default::default() }
}

async fn shown(client: &mut ApiClient<Channel>, request: proto::VqlCollectorArgs) -> String {
    let mut answer = client.query(request).await.unwrap().into_inner();
    let mut shown = String::new();
    while let Some(response) = answer.message().await.unwrap() {
        assert!(response.timestamp > 1_700_000_000_000_000);
        assert!(response.log.is_empty() != response.response.is_empty());
        if response.log.is_empty() {
            let columns = response.columns.join(" ");
            shown += &format!("{} {} [{columns}] {}\n", response.query_id, response.part, response.response);
        } else {
            shown += &response.log;
        }
    }
    shown
}

async fn check(queries: &[&str], expected: Expect) {
    let stage = Stage::open().await;
    expected.assert_eq(&shown(&mut stage.client("u_api").await, request(queries)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_with_a_log_line_before_each_part() {
    check(
        &["SELECT _value AS A FROM range(end=3)"],
        expect![[r#"
        Starting query execution.
        Time 0: : Sending response part 0 25 B (3 rows).
        0 0 [A] [{"A":0},{"A":1},{"A":2}]
    "#]],
    )
    .await;
    check(
        &["SELECT _value AS A FROM range(end=0)"],
        expect![[r#"
        Starting query execution.
        Time 0: : Sending response part 0 2 B (0 rows).
        0 0 [] []
    "#]],
    )
    .await;
    check(
        &["SELECT _value AS A FROM range(end=11)"],
        expect![[r#"
        Starting query execution.
        Time 0: : Sending response part 0 81 B (10 rows).
        0 0 [A] [{"A":0},{"A":1},{"A":2},{"A":3},{"A":4},{"A":5},{"A":6},{"A":7},{"A":8},{"A":9}]
        Time 0: : Sending response part 1 10 B (1 rows).
        0 1 [A] [{"A":10}]
    "#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_share_a_scope_and_only_selects_answer() {
    check(
        &["SELECT 1 AS A FROM scope() SELECT 2 AS B FROM scope()"],
        expect![[r#"
        Starting query execution.
        Time 0: : Sending response part 0 9 B (1 rows).
        0 0 [A] [{"A":1}]
        Time 0: : Sending response part 0 9 B (1 rows).
        1 0 [B] [{"B":2}]
    "#]],
    )
    .await;
    check(
        &["LET X = 5", "SELECT X FROM scope()"],
        expect![[r#"
        Starting query execution.
        Time 0: : Sending response part 0 9 B (1 rows).
        0 0 [X] [{"X":5}]
    "#]],
    )
    .await;
    check(
        &["LET A = 1"],
        expect![[r#"
        Starting query execution.
    "#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syntax_error_ends_the_query_with_a_log_line() {
    check(
        &["SELECT 1 AS A FROM scope()", "SELECT * FRO x", "SELECT 2 AS A FROM scope()"],
        expect![[r#"
        Starting query execution.
        Time 0: : Sending response part 0 9 B (1 rows).
        0 0 [A] [{"A":1}]
        VQL Error: 1:14: unexpected token "x" (expected <from>).
    "#]],
    )
    .await;
    check(
        &[""],
        expect![[r#"
        Starting query execution.
        VQL Error: 1:1: unexpected token "<EOF>" (expected <select>).
    "#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_reaches_the_query() {
    let stage = Stage::open().await;
    let mut request = request(&["SELECT Foo, Bar FROM scope()"]);
    for (key, value) in [("Foo", "12"), ("Bar", "x")] {
        request.env.push(proto::VqlEnv { key: key.into(), value: value.into(), ..Default::default() });
    }
    expect![[r#"
        Starting query execution.
        Time 0: : Sending response part 0 24 B (1 rows).
        0 0 [Foo Bar] [{"Foo":"12","Bar":"x"}]
    "#]]
    .assert_eq(&shown(&mut stage.client("u_api").await, request).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_organisation_of_the_request_decides() {
    let stage = Stage::open().await;
    let in_org = |org: &str| proto::VqlCollectorArgs { org_id: org.into(), ..request(&["SELECT 1 AS A FROM scope()"]) };
    for (user, org, code, text) in [
        ("u_administrator", "root", Code::Ok, ""),
        (
            "u_administrator",
            "OSEC",
            Code::PermissionDenied,
            "Permission denied: User u_administrator requires permission ANY_QUERY to run queries",
        ),
        ("u_subadmin", "OSEC", Code::Ok, ""),
        ("u_subadmin", "", Code::PermissionDenied, "Permission denied: User u_subadmin requires permission ANY_QUERY to run queries"),
        ("u_reader", "", Code::PermissionDenied, "Permission denied: User u_reader requires permission ANY_QUERY to run queries"),
        ("u_administrator", "ONOSUCH", Code::Unknown, "Org not found"),
        ("VelociraptorServer", "OSEC", Code::Ok, ""),
    ] {
        let answered = stage.client(user).await.query(in_org(org)).await;
        let (got, message) = answered.map_or_else(|status| (status.code(), status.message().to_owned()), |_| (Code::Ok, String::new()));
        assert_eq!((got, message.as_str()), (code, text), "{user} in {org:?}");
    }
    let status = stage.client("u_api").await.query(request(&[])).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "Query should be specified."));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_on_record_before_it_runs_and_so_is_a_refusal() {
    let stage = Stage::open().await;
    let mut asked = request(&["SELECT 1 AS Mark FROM scope()"]);
    asked.env.push(proto::VqlEnv { key: "Key".into(), value: "hunter2".into(), ..Default::default() });
    let _ = shown(&mut stage.client("u_api").await, asked).await;
    let _ = stage.client("u_reader").await.query(request(&["SELECT 1 FROM scope()"])).await.unwrap_err();
    let records: Vec<_> = stage.audited().into_iter().map(|entry| entry.record).collect();
    let recorded = |operation: &str| records.iter().find(|record| record.operation == operation).unwrap();
    let query = recorded("api_query");
    assert_eq!(query.principal, "u_api");
    expect![[r#"{"queries":["SELECT 1 AS Mark FROM scope()"],"env":["Key"]}"#]].assert_eq(&serde_json::to_string(&query.details).unwrap());
    let refused = recorded("api_denied");
    assert_eq!((refused.principal.as_str(), refused.phase), ("u_reader", talon_audit::Phase::Denied));
    expect![[r#"{"method":"Query","refusal":"Permission denied: User u_reader requires permission ANY_QUERY to run queries","asked":"[ANY_QUERY]","remote":"127.0.0.1"}"#]].assert_eq(&serde_json::to_string(&refused.details).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn time_is_up_when_it_is_up() {
    let stage = Stage::open().await;
    let asked = proto::VqlCollectorArgs {
        timeout: 1,
        ..request(&["SELECT _value, sleep(time=30) AS S FROM range(end=20)", "SELECT 2 FROM scope()"])
    };
    let started = Instant::now();
    let answer = shown(&mut stage.client("u_api").await, asked).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    let lines: Vec<_> = answer.lines().collect();
    assert_eq!(lines[0], "Starting query execution.");
    assert!(lines[1].starts_with("collect: <red>Timeout Error:</> Collection timed out after 1."), "{answer}");
    assert_eq!(lines[2..], ["0 0 [] []"], "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_stops_when_its_client_goes_away() {
    let stage = Stage::open().await;
    let endless = proto::VqlCollectorArgs { max_row: 1, ..request(&["SELECT _value, rand(range=10) AS R FROM range(end=1000000000)"]) };
    let sleeping = request(&["SELECT sleep(time=3600) FROM scope()"]);
    for asked in [endless, sleeping] {
        let mut client = stage.client("u_api").await;
        let mut answer = client.query(asked).await.unwrap().into_inner();
        assert!(answer.message().await.unwrap().is_some());
        assert!(stage.running());
        drop((answer, client));
        let gone = Instant::now();
        while stage.running() {
            assert!(gone.elapsed() < Duration::from_secs(10), "the query still runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_the_query_back() {
    let stage = Stage::open().await;
    let asked =
        proto::VqlCollectorArgs { max_row: 1, ..request(&["SELECT format(format='%0100000d', args=_value) AS A FROM range(end=100000)"]) };
    let mut answer = stage.client("u_api").await.query(asked).await.unwrap().into_inner();
    let mut last = 0;
    for _ in 0..40 {
        let response = answer.message().await.unwrap().unwrap();
        if !response.response.is_empty() {
            assert!(response.part == 0 || response.part == last + 1);
            last = response.part;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(last >= 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_ends_streams() {
    let stage = Stage::open().await;
    let mut client = stage.client("u_api").await;
    let mut answer = client.query(request(&["SELECT sleep(time=3600) FROM scope()"])).await.unwrap().into_inner();
    assert!(answer.message().await.unwrap().is_some());
    stage.drain.cancel();
    // Far below the hour that the query would sleep, and enough for a busy machine.
    let ended = tokio::time::timeout(Duration::from_secs(60), async { while let Ok(Some(_)) = answer.message().await {} }).await;
    assert!(ended.is_ok());
}

/// Recorded queries that need nothing but the language itself, and take no time.
const RECORDED: &[&str] = &[
    "0 rows, max_row unset",
    "0 rows, max_row 100",
    "1 rows, max_row 100",
    "2500 rows, max_row 1000",
    "exactly max_row rows",
    "max_row + 1",
    "value types",
    "columns differ per row",
    "two statements in one VQL",
    "two VQLRequests with names",
    "LET only",
    "LET <= with function",
    "syntax error",
    "syntax error in second request",
    "empty VQL",
    "comment only",
    "unknown argument",
    "log() levels",
    "env",
    "big row",
    "5 MB answer in one part",
];

/// An answer in the form of the recordings: no defaults, no timestamp, long rows by their size.
fn as_recorded(response: proto::VqlResponse) -> serde_json::Value {
    let mut shown = serde_json::Map::new();
    if !response.log.is_empty() {
        shown.insert("log".into(), response.log.into());
        return shown.into();
    }
    let rows = serde_json::from_str::<Vec<serde_json::Value>>(&response.response).unwrap().len();
    let long = response.response.len() > 2_000;
    let text = if long { format!("<{} bytes, {rows} rows>", response.response.len()) } else { response.response };
    shown.insert("Response".into(), text.into());
    if !response.columns.is_empty() {
        shown.insert("Columns".into(), response.columns.into());
    }
    for (name, number) in [("part", response.part), ("query_id", response.query_id)] {
        if number > 0 {
            shown.insert(name.into(), number.to_string().into());
        }
    }
    shown.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_a_stock_server() {
    let Some(vectors) = std::env::var_os("TALON_VECTORS") else {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
        return;
    };
    let lines = std::fs::read_to_string(std::path::Path::new(&vectors).join("api/query-shapes.jsonl")).unwrap();
    let stage = Stage::open().await;
    let mut client = stage.client("u_administrator").await;
    let mut compared = 0;
    for line in lines.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = case["case"].as_str().unwrap();
        if !RECORDED.contains(&name) {
            continue;
        }
        let text = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let list = |key: &str| case["request"][key].as_array().cloned().unwrap_or_default();
        let number = |key: &str| text(&case["request"], key).parse().unwrap_or_default();
        let query = list("Query").iter().map(|query| proto::VqlRequest { name: text(query, "Name"), vql: text(query, "VQL") }).collect();
        let env = list("env")
            .iter()
            .map(|pair| proto::VqlEnv { key: text(pair, "key"), value: text(pair, "value"), ..Default::default() })
            .collect();
        let asked = proto::VqlCollectorArgs { query, env, max_row: number("max_row"), max_wait: number("max_wait"), ..Default::default() };
        let mut answer = client.query(asked).await.unwrap().into_inner();
        let mut ours = Vec::new();
        while let Some(response) = answer.message().await.unwrap() {
            ours.push(as_recorded(response));
        }
        let mut recorded = case["messages"].as_array().unwrap().clone();
        for message in &mut recorded {
            let message = message.as_object_mut().unwrap();
            message.remove("timestamp");
            message.remove("Query");
        }
        assert_eq!(ours, recorded, "{name}");
        compared += 1;
    }
    assert_eq!(compared, RECORDED.len());
}
