//! Agents that lie. Each rule of ingest is tested by its violation; nothing that was stored before is lost, nothing is stored that must not be.

use talon_ids::{Target, UploadPath};
use talon_proto::velo_status::ReturnedStatus;
use talon_proto::{VeloMessage, velo_message};
use talon_transport::{ReaderOutcome, Rejection};

use crate::bench::{Answer, Bench, OTHER_NONCE, logs, request};
use crate::collections::{chunk, stats};

const QUERY: &str = "Test.Client/A";

#[tokio::test]
async fn the_envelope_says_who_sent_it_and_nothing_else() {
    let bench = Bench::new();
    let (liar, victim) = (bench.enrolled(1).await, bench.enrolled(2).await);
    let flow = bench.collecting(&liar, "Test.Client").await;
    let mut message = liar.rows(flow.as_str(), QUERY, 0, 1);
    message.source = victim.id().to_string();
    message.org_id = "O123".into();
    message.set_auth_state(velo_message::AuthState::Authenticated);
    assert_eq!(liar.send(&[message]).await, Answer::Acknowledged);
    assert_eq!(bench.flow_rows(&liar, &flow, QUERY).len(), 1);
    assert!(bench.flow_rows(&victim, &flow, QUERY).is_empty());
}

#[tokio::test]
async fn nobody_writes_into_a_flow_of_another_client() {
    let bench = Bench::new();
    let (liar, victim) = (bench.enrolled(1).await, bench.enrolled(2).await);
    let flow = bench.collecting(&victim, "Test.Client").await;
    let before = bench.objects();
    let session = flow.as_str();
    for message in [
        liar.rows(session, QUERY, 0, 1),
        logs(session, 0, &["x"]),
        stats(&liar, session, &[(ReturnedStatus::Ok, "", 1)], true),
        chunk(session, &["f"], 0, b"x", true),
    ] {
        assert_eq!(liar.send(&[message]).await, Answer::Refused);
    }
    assert_eq!(bench.objects(), before);
    assert_eq!(bench.flow(&victim, &flow).state(), talon_proto::artifact_collector_context::State::Waiting);
    assert!(bench.org().flow(&liar.target(), &flow).unwrap().is_none());
}

#[tokio::test]
async fn nobody_writes_into_a_flow_that_was_never_scheduled() {
    let bench = Bench::new();
    let liar = bench.enrolled(1).await;
    let before = bench.objects();
    for session in ["F.NEVER", "F.NEVER/1", "F.../x", "", "X"] {
        assert_eq!(liar.send(&[liar.rows(session, QUERY, 0, 1)]).await, Answer::Refused, "{session}");
        assert_eq!(liar.send(&[stats(&liar, session, &[(ReturnedStatus::Ok, "", 1)], true)]).await, Answer::Refused, "{session}");
    }
    assert_eq!(bench.objects(), before);
}

#[tokio::test]
async fn a_child_session_that_nobody_made_is_refused() {
    let bench = Bench::new();
    let liar = bench.enrolled(1).await;
    let flow = bench.collecting(&liar, "Test.Client").await;
    for child in ["/1", "/S"] {
        assert_eq!(liar.send(&[liar.rows(&format!("{flow}{child}"), QUERY, 0, 1)]).await, Answer::Refused);
    }
    assert!(bench.flow_rows(&liar, &flow, QUERY).is_empty());
}

#[tokio::test]
async fn rows_of_an_artifact_that_was_not_collected_are_refused() {
    let bench = Bench::new();
    let liar = bench.enrolled(1).await;
    let flow = bench.collecting(&liar, "Test.Client").await;
    let before = bench.objects();
    for query in ["Test.Other", "Test.Client", "Test.Client/C", "Server.Audit.Logs", "No.Such", "Test.Events"] {
        assert_eq!(liar.send(&[liar.rows(flow.as_str(), query, 0, 1)]).await, Answer::Refused, "{query}");
    }
    let mut plain = liar.rows(flow.as_str(), QUERY, 0, 1);
    for name in ["", "$00", "$zz", "../../etc/passwd"] {
        plain.vql_response.as_mut().unwrap().query.as_mut().unwrap().name = name.into();
        assert_eq!(liar.send(std::slice::from_ref(&plain)).await, Answer::Refused, "{name}");
    }
    assert_eq!(bench.objects(), before);
}

#[tokio::test]
async fn no_agent_speaks_on_a_queue_that_is_not_in_its_table() {
    let bench = Bench::new();
    let liar = bench.enrolled(1).await;
    let queues = ["System.Flow.Completion", "System.Upload.Completion", "Server.Audit.Logs", "Test.ServerEvents", "Test.Events"];
    let internal = ["Server.Internal.Enrollment", "Server.Internal.Alerts", "System.Hunt.Participation", "Test.Client", "No.Such"];
    for queue in queues.into_iter().chain(internal) {
        let watcher = bench.org().watch(queue);
        let stored = |target: &Target| bench.event_rows(target, queue).len();
        let before = (stored(&liar.target()), stored(&Target::Server));
        let mut plain = liar.rows("F.Monitoring", queue, 0, 1);
        assert_eq!(liar.send(std::slice::from_ref(&plain)).await, Answer::Refused, "{queue}");
        plain.vql_response.as_mut().unwrap().query.as_mut().unwrap().name = queue.into();
        assert_eq!(liar.send(&[plain]).await, Answer::Refused, "{queue} in clear");
        assert_eq!((stored(&liar.target()), stored(&Target::Server)), before, "{queue}");
        assert_eq!(watcher.next_within(std::time::Duration::ZERO), None, "{queue}");
    }
}

#[tokio::test]
async fn counts_that_lie_are_refused() {
    let bench = Bench::new();
    let liar = bench.enrolled(1).await;
    let flow = bench.collecting(&liar, "Test.Client").await;
    let before = bench.objects();
    let rows = |count, jsonl: &str| liar.jsonl(flow.as_str(), QUERY, 0, count, jsonl);
    for message in [rows(2, "{}\n"), rows(1, "{}\n{}\n"), rows(1_000_001, "{}\n"), rows(1, "[]\n"), rows(1, "{\n"), rows(1, "")] {
        assert_eq!(liar.send(&[message]).await, Answer::Refused);
    }
    let mut log = logs(flow.as_str(), 0, &["x"]);
    log.log_message.as_mut().unwrap().number_of_rows = 5;
    assert_eq!(liar.send(&[log]).await, Answer::Refused);
    let mut upload = chunk(flow.as_str(), &["f"], 0, b"abc", false);
    upload.file_buffer.as_mut().unwrap().data_length = 4;
    assert_eq!(liar.send(&[upload]).await, Answer::Refused);
    assert_eq!(bench.objects(), before);
    let mut short = chunk(flow.as_str(), &["f"], 0, b"abc", true);
    short.file_buffer.as_mut().unwrap().stored_size = 9;
    assert_eq!(liar.send(&[short]).await, Answer::Refused);
    assert!(bench.rows(&talon_server::flow_uploads(&liar.target(), &flow)).is_empty(), "listed with a size that is not stored");
}

#[tokio::test]
async fn rows_are_stored_once_and_without_gaps() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let rows = |start, count| agent.rows(flow.as_str(), QUERY, start, count);
    assert_eq!(agent.send(&[rows(0, 3)]).await, Answer::Acknowledged);
    assert_eq!(agent.send(&[rows(0, 3)]).await, Answer::Acknowledged, "known rows are acknowledged and dropped");
    assert_eq!(agent.send(&[rows(1, 2)]).await, Answer::Acknowledged);
    assert_eq!(agent.send(&[rows(4, 1)]).await, Answer::Refused, "a gap");
    assert_eq!(agent.send(&[rows(2, 2)]).await, Answer::Refused, "an overlap");
    let far = agent.jsonl(flow.as_str(), QUERY, u64::MAX, 1, "{}\n");
    assert_eq!(agent.send(&[far]).await, Answer::Refused);
    assert_eq!(agent.send(&[rows(3, 1)]).await, Answer::Acknowledged);
    let wanted: Vec<String> = (0..4).map(|row| format!("{{\"Row\":{row}}}")).collect();
    assert_eq!(bench.flow_rows(&agent, &flow, QUERY), wanted);
}

#[tokio::test]
async fn a_captured_packet_stores_nothing_again() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let artifacts = Some(talon_proto::ArtifactCollectorArgs { artifacts: vec!["Test.Events".into()], ..Default::default() });
    bench.root().set_monitoring(talon_proto::ClientEventTable { artifacts, ..Default::default() }).unwrap();
    let session = flow.as_str();
    let captured = agent.seal(&[
        agent.rows(session, QUERY, 0, 2),
        logs(session, 0, &["one", "two"]),
        chunk(session, &["f"], 0, b"abc", true),
        agent.rows("F.Monitoring", "Test.Events", 0, 2),
    ]);
    assert_eq!(agent.post(captured.clone()).await, Answer::Acknowledged);
    let more = [
        agent.rows(session, QUERY, 2, 1),
        logs(session, 2, &["three"]),
        chunk(session, &["g"], 0, b"x", true),
        agent.rows("F.Monitoring", "Test.Events", 2, 1),
    ];
    assert_eq!(agent.send(&more).await, Answer::Acknowledged);
    let stored = bench.objects();
    assert_eq!(bench.event_rows(&agent.target(), "Test.Events").len(), 3);
    agent.post(captured.clone()).await;
    assert_eq!(bench.objects(), stored, "within the session");

    let bench = bench.restarted();
    let agent = agent.follow(&bench);
    agent.post(captured).await;
    assert_eq!(bench.objects(), stored, "after a restart");
    let path = UploadPath::new("auto", vec!["f".into()]).unwrap();
    let file = talon_server::flow_file(&agent.target(), &flow, &path);
    assert_eq!(bench.org().reader().read_upload(bench.org().id(), &file, 0, 10).unwrap(), "abc");
}

#[tokio::test]
async fn what_an_agent_calls_a_file_is_data() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let long = "x".repeat(300);
    let paths: [&[&str]; 9] = [
        &["..", "..", "etc", "passwd"],
        &["."],
        &[""],
        &["a/b"],
        &["a", "b"],
        &["nul\0"],
        &[&long],
        &["dot."],
        &["C:", "\\\\server\\share"],
    ];
    for (number, path) in paths.iter().enumerate() {
        let mut message = chunk(flow.as_str(), path, 0, format!("{number}").as_bytes(), true);
        message.file_buffer.as_mut().unwrap().upload_number = i64::try_from(number).unwrap();
        assert_eq!(agent.send(&[message]).await, Answer::Acknowledged, "{path:?}");
    }
    for (number, path) in paths.iter().enumerate() {
        let path = UploadPath::new("auto", path.iter().map(|part| (*part).to_owned()).collect()).unwrap();
        let file = talon_server::flow_file(&agent.target(), &flow, &path);
        let bad = |part: &String| part.is_empty() || part == "." || part == ".." || part.contains(['/', '\\', '\0']) || part.len() > 255;
        assert!(!file.components().iter().any(bad), "{file:?}");
        let content = bench.org().reader().read_upload(bench.org().id(), &file, 0, 10).unwrap();
        assert_eq!(content, number.to_string(), "{path:?} was overwritten by another name");
    }
    let many = vec!["x"; UploadPath::MAX_COMPONENTS + 1];
    assert_eq!(agent.send(&[chunk(flow.as_str(), &many, 0, b"x", true)]).await, Answer::Refused);
}

#[tokio::test]
async fn chunks_are_stored_once_and_without_gaps() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let send = |offset, data: &'static [u8], eof| agent.seal(&[chunk(flow.as_str(), &["f"], offset, data, eof)]);
    assert_eq!(agent.post(send(0, b"abc", false)).await, Answer::Acknowledged);
    assert_eq!(agent.post(send(0, b"abc", false)).await, Answer::Acknowledged);
    assert_eq!(agent.post(send(5, b"x", false)).await, Answer::Refused, "a gap");
    assert_eq!(agent.post(send(2, b"xy", false)).await, Answer::Refused, "an overlap");
    assert_eq!(agent.post(send(3, b"def", true)).await, Answer::Acknowledged);
    assert_eq!(agent.post(send(0, b"zzz", false)).await, Answer::Acknowledged, "late, and dropped");
    let path = UploadPath::new("auto", vec!["f".into()]).unwrap();
    let file = talon_server::flow_file(&agent.target(), &flow, &path);
    assert_eq!(bench.org().reader().read_upload(bench.org().id(), &file, 0, 10).unwrap(), "abcdef");
    assert_eq!(bench.rows(&talon_server::flow_uploads(&agent.target(), &flow)).len(), 1);
}

#[tokio::test]
async fn one_bad_message_does_not_cost_its_neighbours() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let packet = [
        agent.rows(flow.as_str(), QUERY, 0, 1),
        agent.rows("F.NEVER", QUERY, 0, 1),
        VeloMessage { session_id: flow.to_string(), ..VeloMessage::default() },
        agent.rows(flow.as_str(), QUERY, 1, 1),
    ];
    assert_eq!(agent.send(&packet).await, Answer::Refused);
    assert_eq!(bench.flow_rows(&agent, &flow, QUERY).len(), 2);
}

#[tokio::test]
async fn what_is_not_durable_is_not_acknowledged() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let body = agent.seal(&[agent.rows(flow.as_str(), QUERY, 0, 2)]);
    bench.fill_disk(true);
    assert_eq!(agent.post(body.clone()).await, Answer::Failed);
    assert!(bench.flow_rows(&agent, &flow, QUERY).is_empty());
    bench.fill_disk(false);
    assert_eq!(agent.post(body).await, Answer::Acknowledged, "the same packet again");
    assert_eq!(bench.flow_rows(&agent, &flow, QUERY).len(), 2);
}

#[tokio::test]
async fn a_session_stays_in_its_organisation() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let elsewhere = bench.agent_of(1, OTHER_NONCE);
    assert_eq!(elsewhere.send(&[elsewhere.rows(flow.as_str(), QUERY, 0, 1)]).await, Answer::Rejected(Rejection::PleaseEnrol));
    assert_eq!(elsewhere.enrol().await, Answer::Rejected(Rejection::PleaseEnrol));
    assert_eq!(elsewhere.send(&[elsewhere.rows(flow.as_str(), QUERY, 0, 1)]).await, Answer::Refused, "no such flow there");
    assert!(bench.flow_rows(&agent, &flow, QUERY).is_empty());
}

#[tokio::test]
async fn a_second_reader_takes_over_but_a_copied_packet_does_not() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let conflicts = bench.org().watch("Server.Internal.ClientConflict");
    let copied = agent.seal(&[crate::bench::checkin(0)]);
    let ReaderOutcome::Poll(first) = agent.read(copied.clone()).await else { panic!("no poll") };
    assert!(matches!(agent.read(copied).await, ReaderOutcome::Reject(Rejection::Conflict)));
    let ReaderOutcome::Poll(second) = agent.reader(0).await else { panic!("no poll") };
    assert!(agent.open(first.answer.await.unwrap()).is_empty(), "the displaced reader is let go");
    assert!(conflicts.next_within(std::time::Duration::ZERO).is_some());
    assert!(matches!(agent.reader(0).await, ReaderOutcome::Reject(Rejection::Conflict)), "not twice in a moment");
    let (flow, _) = bench.root().collect(request(&agent, "Test.Client")).unwrap();
    assert_eq!(agent.open(second.answer.await.unwrap())[0].session_id, flow.as_str());
}
