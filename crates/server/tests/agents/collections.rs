//! Collections from the request to the end, and everything in between.

use std::io::Write;

use talon_acl::Role;
use talon_audit::Phase;
use talon_proto::artifact_collector_context::State;
use talon_proto::velo_status::ReturnedStatus;
use talon_proto::{ArtifactParameters, ArtifactSpec, FileBuffer, FlowStats, PathSpec, VeloMessage, VeloStatus, VqlEnv};
use talon_server::{Received, ServerError};
use talon_store::{Engine, Scan, Space};

use crate::bench::{Agent, Answer, Bench, logs, request};

const QUERY: &str = "Test.Client/A";

pub(crate) fn stats(agent: &Agent, session: &str, statuses: &[(ReturnedStatus, &str, i64)], complete: bool) -> VeloMessage {
    let query_status = statuses
        .iter()
        .map(|(status, error, rows)| {
            let mut status_message = VeloStatus {
                error_message: (*error).to_owned(),
                result_rows: *rows,
                names_with_response: vec![agent.hide(QUERY)],
                first_active: 10,
                last_active: 20 + u64::try_from(*rows).unwrap(),
                ..VeloStatus::default()
            };
            status_message.set_status(*status);
            status_message
        })
        .collect();
    let stats = FlowStats { query_status, flow_complete: complete, ..FlowStats::default() };
    VeloMessage { session_id: session.into(), request_id: 981, flow_stats: Some(stats), ..VeloMessage::default() }
}

pub(crate) fn chunk(session: &str, path: &[&str], offset: u64, data: &[u8], eof: bool) -> VeloMessage {
    let components = path.iter().map(|part| (*part).to_owned()).collect();
    let buffer = FileBuffer {
        pathspec: Some(PathSpec { components, accessor: "auto".into(), path: path.join("/") }),
        offset,
        stored_size: offset + data.len() as u64,
        data_length: data.len() as u64,
        data: data.to_vec().into(),
        size: 6,
        eof,
        ..FileBuffer::default()
    };
    VeloMessage { session_id: session.into(), request_id: 5, file_buffer: Some(buffer), ..VeloMessage::default() }
}

#[tokio::test]
async fn a_collection_runs_from_request_to_result() {
    use ReturnedStatus::{Ok, Progress};
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let completions = bench.org().watch("System.Flow.Completion");
    let alice = bench.user("alice", [Role::Investigator]);
    let (flow, shown) = alice.collect(request(&agent, "Test.Client")).unwrap();
    assert_eq!(shown.creator, "alice");
    assert!(shown.compiled_collector_args.is_empty());
    assert_eq!(bench.flow(&agent, &flow).state(), State::Running);

    let messages = agent.poll().await;
    let [VeloMessage { session_id, flow_request: Some(request), .. }] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(session_id, flow.as_str());
    assert_eq!(request.log_batch_time, 2000, "agents read milliseconds");
    assert_eq!(request.max_upload_bytes, 1 << 30);
    assert_eq!(bench.flow(&agent, &flow).state(), State::Waiting);

    let first = [agent.rows(session_id, QUERY, 0, 3), logs(session_id, 0, &["one", &format!("about {}", agent.hide(QUERY))])];
    assert_eq!(agent.send(&first).await, Answer::Acknowledged);
    assert_eq!(agent.send(&[stats(&agent, session_id, &[(Progress, "", 3)], false)]).await, Answer::Acknowledged);
    assert_eq!(bench.flow(&agent, &flow).state(), State::InProgress);
    bench.advance(301);
    assert_eq!(bench.flow(&agent, &flow).state(), State::Unresponsive);

    let last = [agent.rows(session_id, QUERY, 3, 2), stats(&agent, session_id, &[(Ok, "", 5)], true)];
    assert_eq!(agent.send(&last).await, Answer::Acknowledged);
    let context = bench.flow(&agent, &flow);
    assert_eq!(context.state(), State::Finished);
    assert_eq!((context.total_collected_rows, context.start_time, context.active_time), (5, 10, 25));
    assert_eq!(context.artifacts_with_results, [QUERY]);
    let wanted: Vec<String> = (0..5).map(|row| format!("{{\"Row\":{row}}}")).collect();
    assert_eq!(bench.flow_rows(&agent, &flow, QUERY), wanted);
    let log = bench.rows(&talon_server::flow_logs(&agent.target(), &flow));
    assert!(log[1].contains("about Test.Client/A"), "{log:?}");

    let Received::Event(event) = completions.next().await else { panic!("lost") };
    let row: serde_json::Value = serde_json::from_str(&event.row).unwrap();
    assert_eq!((&row["FlowId"], &row["ClientId"]), (&flow.as_str().into(), &agent.id().as_str().into()));
    assert_eq!(row["Flow"]["state"], "FINISHED");
    // The end is announced once, whatever the agent repeats.
    agent.send(&[stats(&agent, session_id, &[(Ok, "", 5)], true)]).await;
    assert_eq!(completions.next_within(std::time::Duration::ZERO), None);
    assert_eq!(bench.event_rows(&agent.target(), "System.Flow.Completion").len(), 1);
    assert!(!bench.org().client(agent.id()).unwrap().unwrap().in_flight_flows.contains_key(flow.as_str()));
}

#[tokio::test]
async fn scheduling_is_on_record_before_the_task_exists() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let before = bench.audit_records().len();
    let (flow, _) = bench.user("alice", [Role::Investigator]).collect(request(&agent, "Test.Client")).unwrap();
    let records = bench.audit_records().split_off(before);
    let record = records.iter().find(|record| record.operation == "ScheduleFlow").unwrap();
    assert_eq!((record.principal.as_str(), record.phase), ("alice", Phase::Intended));
    assert_eq!(record.details.get("flow_id").unwrap(), flow.as_str());
    assert_eq!(record.details.get("details").unwrap()["artifacts"][0], "Test.Client");

    bench.fill_audit_disk(true);
    let refused = bench.root().collect(request(&agent, "Test.Client"));
    assert!(matches!(refused, Err(ServerError::Audit(_))), "{refused:?}");
    assert_eq!(bench.org().flows(&agent.target()).unwrap().len(), 2, "interrogation and the recorded flow");
    assert_eq!(agent.poll().await.len(), 1, "the recorded flow alone");
}

#[tokio::test]
async fn who_may_not_collect_schedules_nothing() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let reader = bench.user("bob", [Role::Reader]);
    let refused = reader.collect(request(&agent, "Test.Client")).unwrap_err();
    assert_eq!(refused.to_string(), "PermissionDenied: User bob is not allowed to launch flows COLLECT_CLIENT.");
    assert_eq!(bench.org().flows(&agent.target()).unwrap().len(), 1);
    assert!(agent.poll().await.is_empty());
    assert!(bench.audit_records().iter().any(|record| record.phase == Phase::Denied && record.principal == "bob"));
    let flow = bench.collecting(&agent, "Test.Client").await;
    assert!(reader.cancel(&agent.target(), &flow, "no").unwrap_err().is_denied());
    assert_eq!(bench.flow(&agent, &flow).state(), State::Waiting);
}

#[tokio::test]
async fn a_secret_parameter_reaches_the_agent_and_nothing_else() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let mut wanted = request(&agent, "Test.Secret");
    let env = vec![VqlEnv { key: "Password".into(), value: "hunter2".into(), ..VqlEnv::default() }];
    let parameters = Some(ArtifactParameters { env });
    wanted.specs.push(ArtifactSpec { artifact: "Test.Secret".into(), parameters, ..ArtifactSpec::default() });
    let (flow, shown) = bench.root().collect(wanted).unwrap();
    assert!(!format!("{shown:?}").contains("hunter2"));
    assert!(!format!("{:?}", bench.flow(&agent, &flow)).contains("hunter2"));
    assert!(!format!("{:?}", bench.audit_records()).contains("hunter2"));
    assert!(format!("{:?}", agent.poll().await).contains("hunter2"));
    let left = bench.engine.reader().scan(&talon_ids::OrgId::root(), Space::Flows, &Scan::default()).unwrap();
    assert!(left.iter().all(|(_, value)| !String::from_utf8_lossy(value).contains("hunter2")));
}

#[tokio::test]
async fn compressed_rows_are_kept_as_they_came() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let mut message = agent.rows(flow.as_str(), QUERY, 0, 2);
    let response = message.vql_response.as_mut().unwrap();
    let plain = std::mem::take(&mut response.jsonl_response);
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(plain.as_bytes()).unwrap();
    response.uncompressed_size = plain.len() as u64;
    response.compressed_json_response = zlib.finish().unwrap().into();
    assert_eq!(agent.send(std::slice::from_ref(&message)).await, Answer::Acknowledged);
    assert_eq!(bench.flow_rows(&agent, &flow, QUERY), ["{\"Row\":0}", "{\"Row\":1}"]);
    message.vql_response.as_mut().unwrap().uncompressed_size += 1;
    message.vql_response.as_mut().unwrap().query_start_row = 2;
    assert_eq!(agent.send(&[message]).await, Answer::Refused);
    assert_eq!(bench.flow_rows(&agent, &flow, QUERY).len(), 2);
}

#[tokio::test]
async fn a_running_flow_is_cancelled_on_the_agent() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let alice = bench.user("alice", [Role::Investigator]);
    alice.cancel(&agent.target(), &flow, &talon_server::cancelled_by(alice.principal())).unwrap();
    let context = bench.flow(&agent, &flow);
    assert_eq!((context.state(), context.status.as_str()), (State::Error, "Cancelled by alice"));
    let messages = agent.poll().await;
    assert!(matches!(&messages[..], [VeloMessage { cancel: Some(_), urgent: true, session_id, .. }] if session_id == flow.as_str()));
    let last = stats(&agent, flow.as_str(), &[(ReturnedStatus::GenericError, "Cancelled", 0)], true);
    assert_eq!(agent.send(&[last]).await, Answer::Acknowledged);
    assert_eq!(bench.flow(&agent, &flow).status, "Cancelled by alice");
    bench.advance(40);
    assert!(agent.poll().await.iter().all(|message| message.cancel.is_none()), "the cancellation is settled");
    assert!(bench.audit_records().iter().any(|record| record.operation == "CancelFlow"));
}

#[tokio::test]
async fn a_queued_flow_that_is_cancelled_never_reaches_the_agent() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let (flow, _) = bench.root().collect(request(&agent, "Test.Client")).unwrap();
    bench.root().cancel(&agent.target(), &flow, "Cancelled by VQL query").unwrap();
    assert!(agent.poll().await.is_empty());
    assert_eq!(bench.flow(&agent, &flow).state(), State::Error);
    assert_eq!(bench.event_rows(&agent.target(), "System.Flow.Completion").len(), 1);
}

#[tokio::test]
async fn an_upload_is_stored_and_listed() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let uploads = bench.org().watch("System.Upload.Completion");
    let (session, path) = (flow.as_str(), ["etc", "passwd"]);
    assert_eq!(agent.send(&[chunk(session, &path, 0, b"abc", false)]).await, Answer::Acknowledged);
    assert_eq!(agent.send(&[chunk(session, &path, 3, b"def", false), chunk(session, &path, 6, b"", true)]).await, Answer::Acknowledged);
    let rows = bench.rows(&talon_server::flow_uploads(&agent.target(), &flow));
    let [row] = &rows[..] else { panic!("{rows:?}") };
    let row: serde_json::Value = serde_json::from_str(row).unwrap();
    assert_eq!((&row["uploaded_size"], &row["file_size"], &row["_accessor"]), (&6.into(), &6.into(), &"auto".into()));
    assert_eq!(row["_client_components"], serde_json::json!(["etc", "passwd"]));
    assert!(matches!(uploads.next().await, Received::Event(event) if event.row.contains("passwd")));
    let path = talon_ids::UploadPath::new("auto", vec!["etc".into(), "passwd".into()]).unwrap();
    let file = talon_server::flow_file(&agent.target(), &flow, &path);
    assert_eq!(bench.org().reader().read_upload(bench.org().id(), &file, 0, 100).unwrap(), "abcdef");
    assert!(bench.org().reader().upload(bench.org().id(), &file).unwrap().unwrap().complete);
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    assert_eq!(agent.send(&[chunk(flow.as_str(), &["empty"], 0, b"", true)]).await, Answer::Acknowledged);
    assert_eq!(bench.rows(&talon_server::flow_uploads(&agent.target(), &flow)).len(), 1);
    let path = talon_ids::UploadPath::new("auto", vec!["empty".into()]).unwrap();
    let file = talon_server::flow_file(&agent.target(), &flow, &path);
    assert!(bench.org().reader().upload(bench.org().id(), &file).unwrap().is_some_and(|upload| upload.complete));
}

#[tokio::test]
async fn a_flow_whose_request_was_lost_runs_after_all() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let interrogation = agent.poll().await.remove(0).session_id;
    agent.send(&[stats(&agent, &interrogation, &[(ReturnedStatus::Ok, "", 0)], true)]).await;
    // The agent never saw this answer.
    let flow = bench.collecting(&agent, "Test.Client").await;
    bench.advance(11);
    let question = agent.poll().await;
    assert_eq!(question[0].flow_stats_request.as_ref().unwrap().flow_id, [flow.to_string()]);
    let denial = stats(&agent, flow.as_str(), &[(ReturnedStatus::UnknownFlow, "Flow not known - maybe the client crashed?", 0)], true);
    assert_eq!(agent.send(std::slice::from_ref(&denial)).await, Answer::Acknowledged);
    assert_eq!(agent.poll().await[0].session_id, flow.as_str(), "the request again");
    agent.send(&[agent.rows(flow.as_str(), QUERY, 0, 1)]).await;
    // From now on the agent is known to have had it.
    assert_eq!(agent.send(&[denial]).await, Answer::Acknowledged);
    let context = bench.flow(&agent, &flow);
    assert_eq!((context.state(), context.status.as_str()), (State::Error, "Flow not known - maybe the client crashed?"));
    assert!(agent.poll().await.is_empty());
}

#[tokio::test]
async fn no_more_flows_are_in_flight_than_allowed() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    assert_eq!(agent.poll().await.len(), 1, "the interrogation");
    let flows: Vec<String> = (0..5).map(|_| bench.root().collect(request(&agent, "Test.Client")).unwrap().0.to_string()).collect();
    let given: Vec<String> = agent.poll().await.into_iter().map(|message| message.session_id).collect();
    assert_eq!(given.len(), 3, "four at once with the interrogation");
    let done = stats(&agent, &given[0], &[(ReturnedStatus::Ok, "", 0)], true);
    agent.send(&[done]).await;
    let next = agent.poll().await;
    assert_eq!(next.len(), 1);
    assert!(flows.contains(&next[0].session_id) && !given.contains(&next[0].session_id));
}

#[tokio::test]
async fn news_wakes_the_waiting_reader() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let talon_transport::ReaderOutcome::Poll(poll) = agent.reader(0).await else { panic!("no poll") };
    let waiting = tokio::spawn(poll.answer);
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let (flow, _) = bench.root().collect(request(&agent, "Test.Client")).unwrap();
    let body = tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(agent.open(body)[0].session_id, flow.as_str());
}

#[tokio::test]
async fn state_survives_a_restart() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    agent.send(&[agent.rows(flow.as_str(), QUERY, 0, 2)]).await;
    let bench = bench.restarted();
    let agent = agent.follow(&bench);
    assert_eq!(agent.send(&[agent.rows(flow.as_str(), QUERY, 2, 1)]).await, Answer::Acknowledged);
    assert_eq!(bench.flow_rows(&agent, &flow, QUERY).len(), 3);
    assert!(bench.server.org(&"O123".parse().unwrap()).is_ok());
    assert_eq!(bench.audit_records().iter().filter(|record| record.operation == "ScheduleFlow").count(), 1);
}
