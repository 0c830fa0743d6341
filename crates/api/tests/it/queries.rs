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
    let ended = tokio::time::timeout(Duration::from_secs(5), async { while let Ok(Some(_)) = answer.message().await {} }).await;
    assert!(ended.is_ok());
}
