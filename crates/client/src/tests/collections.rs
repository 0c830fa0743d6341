//! The rules of collections (spec 01 §11) and of event queries (§13).

use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};

use talon_endpoint_vql::accessor::Range;
use talon_endpoint_vql::{FileTimes, UploadRequest, UploadSource};
use talon_proto::velo_status::ReturnedStatus;
use talon_proto::{Cancel, FlowStatsRequest, VqlEventTable};
use talon_vql::{Environment, Registry};

use super::*;

fn outcome(stats: &FlowStats) -> Vec<(ReturnedStatus, &str)> {
    stats.query_status.iter().map(|status| (status.status(), status.error_message.as_str())).collect()
}

#[test]
fn rows_are_batched_numbered_and_reported_in_order() {
    let scene = Scene::new(Scripted::new(rows(10)));
    let mut request = request(&[&["A/One", "A/Two"]]);
    request.vql_client_actions[0].max_row = 4;
    let sent = scene.collect("F.1", request);
    let parts: Vec<_> = responses(&sent)
        .iter()
        .map(|part| (part.query.as_ref().unwrap().name.as_str(), part.query_id, part.part, part.query_start_row, part.total_rows))
        .collect();
    assert_eq!(
        parts,
        [
            ("A/One", 0, 0, 0, 4),
            ("A/One", 0, 1, 4, 4),
            ("A/One", 0, 2, 8, 2),
            ("A/Two", 1, 0, 0, 4),
            ("A/Two", 1, 1, 4, 4),
            ("A/Two", 1, 2, 8, 2)
        ]
    );
    let first = responses(&sent)[0];
    assert_eq!(first.columns, ["N", "Text"]);
    assert_eq!(first.jsonl_response.lines().next(), Some(r#"{"N":0,"Text":"a \u003cb\u003e"}"#));
    assert_eq!(first.query.as_ref().unwrap().vql, "SELECT * FROM A/One");
    assert!(is_end(sent.last().unwrap()), "the end comes last");
    let status = &end(&sent).query_status[0];
    assert_eq!((status.status(), status.result_rows), (ReturnedStatus::Ok, 20));
    assert_eq!(status.names_with_response, ["A/One", "A/Two"]);
    assert_eq!(status.duration, i64::try_from((status.last_active - status.first_active) * 1000).unwrap());
}

#[test]
fn two_actions_with_one_name_share_its_numbers() {
    let scene = Scene::new(Scripted::new(rows(3)));
    let sent = scene.collect("F.1", request(&[&["A"], &["A"]]));
    let starts: Vec<_> = responses(&sent).iter().map(|part| (part.part, part.query_start_row)).collect();
    assert_eq!(starts, [(0, 0), (1, 3)]);
    assert_eq!(end(&sent).query_status.len(), 2);
}

#[test]
fn compressed_rows_say_where_they_are() {
    let scene = Scene::new(Scripted::new(rows(2)));
    let mut request = FlowRequest { compression: 1, ..request(&[&["A"]]) };
    request.vql_client_actions[0].max_row = 1;
    let sent = scene.collect("F.1", request);
    let parts = responses(&sent);
    assert!(parts.iter().all(|part| part.jsonl_response.is_empty() && part.uncompressed_size > 0));
    assert_eq!((parts[0].byte_offset, parts[1].byte_offset), (0, parts[0].uncompressed_size));
    let mut text = Vec::new();
    let mut stream = flate2::read::ZlibDecoder::new(Cursor::new(&parts[0].compressed_json_response));
    std::io::Read::read_to_end(&mut stream, &mut text).unwrap();
    assert_eq!(text.len() as u64, parts[0].uncompressed_size);
    assert!(text.ends_with(b"}\n"));
}

#[test]
fn rows_that_wait_too_long_are_sent() {
    let scene = Scene::new(Scripted::new(|action, sink| {
        sink.row(0, &action.args.query[0], &row(0));
        let _ = action.cancel.wait(Duration::from_secs(20));
        Ok(())
    }));
    let mut request = request(&[&["A"]]);
    request.vql_client_actions[0].max_wait = 1;
    scene.executor.handle(flow("F.1", request));
    let sent = scene.sent_until(|sent| !responses(sent).is_empty());
    assert!(!sent.iter().any(is_end));
    scene.executor.handle(VeloMessage { session_id: "F.1".into(), cancel: Some(Cancel::default()), ..VeloMessage::default() });
    scene.sent_until(|sent| sent.iter().any(is_end));
}

#[test]
fn a_row_too_many_ends_the_whole_flow() {
    let scene = Scene::new(Scripted::new(|action, sink| {
        if action.args.query[0].name == "B" {
            let _ = action.cancel.wait(Duration::from_secs(20));
            return Ok(());
        }
        rows(25)(action, sink)
    }));
    let sent = scene.collect("F.1", FlowRequest { max_rows: 5, ..request(&[&["A"], &["B"]]) });
    let text = "Rows 25 exceeded limit 5 for flow F.1. Cancelling.";
    assert_eq!(outcome(&end(&sent)), [(ReturnedStatus::GenericError, text), (ReturnedStatus::GenericError, "Cancelled")]);
    assert!(responses(&sent).is_empty());
    assert_eq!(log(&sent), [format!("ERROR:{text}")]);
}

#[test]
fn a_cancelled_flow_ends_at_once_and_keeps_its_log() {
    let scene = Scene::new(Scripted::new(|action, sink| {
        sink.log("one line");
        let _ = action.cancel.wait(Duration::from_secs(20));
        sink.row(0, &action.args.query[0], &row(0));
        Ok(())
    }));
    scene.executor.handle(flow("F.1", request(&[&["A"]])));
    let cancel = || VeloMessage { session_id: "F.1".into(), cancel: Some(Cancel::default()), ..VeloMessage::default() };
    std::thread::sleep(Duration::from_millis(100));
    scene.executor.handle(cancel());
    scene.executor.handle(cancel());
    let sent = scene.sent_until(|sent| sent.iter().any(is_end));
    assert_eq!(outcome(&end(&sent)), [(ReturnedStatus::GenericError, "Cancelled")]);
    assert_eq!(log(&sent), ["DEFAULT:one line", "ERROR:Cancelled all in-flight queries for flow F.1"]);
    assert!(responses(&sent).is_empty());
    while scene.executor.running() > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(scene.outbox.lease().unwrap().is_none(), "nothing comes after the end");
}

#[test]
fn a_query_that_takes_too_long_is_stopped_and_its_rows_are_kept() {
    let scene = Scene::new(Scripted::new(|action, sink| {
        sink.row(0, &action.args.query[0], &row(0));
        assert!(action.cancel.wait(Duration::from_secs(20)));
        Ok(())
    }));
    let mut request = request(&[&["A"]]);
    request.vql_client_actions[0].timeout = 1;
    let sent = scene.collect("F.1", request);
    assert_eq!(outcome(&end(&sent)), [(ReturnedStatus::GenericError, "Query timed out after 1 seconds")]);
    assert_eq!(responses(&sent).len(), 1);
}

#[test]
fn failures_expiry_and_panics_are_errors_of_the_query() {
    let scene = Scene::new(Scripted::new(|action, _| match action.args.query[0].name.as_str() {
        "Fails" => Err("no such thing".into()),
        "Panics" => panic!("on purpose"),
        _ => Ok(()),
    }));
    let mut request = request(&[&["Fails"], &["Panics"], &["Expired"], &[], &["Fine"]]);
    request.vql_client_actions[2].expiry = 1;
    let sent = scene.collect("F.1", request);
    assert_eq!(
        outcome(&end(&sent)),
        [
            (ReturnedStatus::GenericError, "no such thing"),
            (ReturnedStatus::GenericError, "The query ended by an internal error: on purpose"),
            (ReturnedStatus::GenericError, "Query expired."),
            (ReturnedStatus::GenericError, "Query should be specified."),
            (ReturnedStatus::Ok, ""),
        ]
    );
}

#[test]
fn log_lines_have_levels_numbers_and_a_limit() {
    let scene = Scene::new(Scripted::new(|_, sink| {
        for line in ["plain", "WARN: careful", "a Symbol x not found", "ERROR:second", "INFO:<tag>", "too much", "far too much"] {
            sink.log(line);
        }
        Ok(())
    }));
    let sent = scene.collect("F.1", FlowRequest { max_logs: 6, ..request(&[&["A"]]) });
    assert_eq!(
        log(&sent),
        [
            "DEFAULT:plain",
            "WARN:careful",
            "ERROR:a Symbol x not found",
            "ERROR:second",
            "INFO:<tag>",
            "DEFAULT:Log Limit Exceeded - suppressing further logs"
        ]
    );
    assert_eq!(outcome(&end(&sent)), [(ReturnedStatus::GenericError, "a Symbol x not found")]);
    assert_eq!(end(&sent).query_status[0].log_rows, 6);
    let raw = &sent.iter().find_map(|message| message.log_message.as_ref()).unwrap().jsonl;
    assert!(raw.contains(r"\u003ctag\u003e") && !raw.contains('<'), "{raw}");
}

#[test]
fn an_alert_travels_alone_in_its_place() {
    let scene = Scene::new(Scripted::new(|_, sink| {
        sink.log("before");
        sink.log(r#"ALERT:{"name":"N","timestamp":1,"event_data":{}}"#);
        sink.log("after");
        Ok(())
    }));
    let sent = scene.collect("F.1", request(&[&["A"]]));
    let logs: Vec<_> = sent.iter().filter_map(|message| message.log_message.as_ref()).collect();
    let shape: Vec<_> = logs.iter().map(|log| (log.id, log.number_of_rows, log.level.as_str())).collect();
    assert_eq!(shape, [(0, 1, ""), (1, 1, "ALERT"), (2, 1, "")]);
}

#[test]
fn questions_about_flows_are_answered_before_during_and_after() {
    let scene = Scene::new(Scripted::new(|action, _| {
        let _ = action.cancel.wait(Duration::from_secs(20));
        Ok(())
    }));
    let ask = || {
        let question = FlowStatsRequest { flow_id: vec!["F.1".into()] };
        scene.executor.handle(VeloMessage { session_id: "F.Status".into(), flow_stats_request: Some(question), ..VeloMessage::default() });
        let sent = scene.sent_until(|sent| sent.iter().any(|message| message.urgent));
        let answer = sent.into_iter().find(|message| message.urgent).unwrap();
        assert_eq!((answer.session_id.as_str(), answer.request_id), ("F.1", 981));
        answer.flow_stats.unwrap()
    };
    let unknown = ask();
    assert!(unknown.flow_complete);
    assert_eq!(outcome(&unknown), [(ReturnedStatus::UnknownFlow, "Flow not known - maybe the client crashed?")]);
    scene.executor.handle(flow("F.1", request(&[&["A"]])));
    assert_eq!(outcome(&ask()), [(ReturnedStatus::Progress, "")]);
    scene.executor.handle(VeloMessage { session_id: "F.1".into(), cancel: Some(Cancel::default()), ..VeloMessage::default() });
    scene.sent_until(|sent| sent.iter().any(is_end));
    while scene.executor.running() > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(outcome(&ask()), [(ReturnedStatus::GenericError, "Cancelled")]);
}

#[test]
fn a_flow_that_was_run_is_not_run_again() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let scene = Scene::new(Scripted::new(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }));
    scene.collect("F.1", request(&[&["A"]]));
    scene.executor.handle(flow("F.1", request(&[&["A"]])));
    scene.collect("F.2", request(&[&["A"]]));
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

#[test]
fn flows_beyond_the_concurrency_wait_and_urgent_ones_do_not() {
    let scene = Scene::new(Scripted::new(|action, sink| {
        if action.session.starts_with("F.slow") {
            let _ = action.cancel.wait(Duration::from_secs(20));
        }
        rows(1)(action, sink)
    }));
    for session in ["F.slow1", "F.slow2", "F.quick"] {
        scene.executor.handle(flow(session, request(&[&["A"]])));
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.executor.handle(VeloMessage { urgent: true, ..flow("F.urgent", request(&[&["A"]])) });
    let sent = scene.sent_until(|sent| sent.iter().any(is_end));
    assert!(sent.iter().all(|message| message.session_id == "F.urgent"));
    scene.executor.handle(VeloMessage { session_id: "F.slow1".into(), cancel: Some(Cancel::default()), ..VeloMessage::default() });
    scene.sent_until(|sent| sent.iter().any(|message| message.session_id == "F.quick" && is_end(message)));
    scene.executor.stop();
}

#[test]
fn copies_for_old_agents_are_passed_over_and_unknown_requests_reported() {
    let scene = Scene::new(Scripted::new(rows(1)));
    scene.executor.handle(VeloMessage { session_id: "F.1".into(), vql_client_action: Some(args(&["A"])), ..VeloMessage::default() });
    assert!(scene.outbox.lease().unwrap().is_none());
    scene.executor.handle(VeloMessage { session_id: "F.1".into(), ..VeloMessage::default() });
    let sent = scene.sent_until(|sent| !sent.is_empty());
    let report = sent[0].log_message.as_ref().unwrap();
    assert!(report.error_message.starts_with("Unsupported payload for message:"));
    assert_eq!((sent[0].request_id, report.number_of_rows), (980, 1));
}

fn upload(bytes: Vec<u8>, ranges: Option<Vec<Range>>) -> UploadRequest {
    let size = bytes.len() as u64;
    let reader: Arc<[u8]> = bytes.into();
    let reader = Box::new(Cursor::new(reader));
    UploadRequest {
        accessor: "data".into(),
        filename: "/x/file".into(),
        store_as: "stored".into(),
        components: vec!["stored".into()],
        expected_size: size,
        times: FileTimes { mtime: Some(7), ..FileTimes::default() },
        mode: 420,
        source: match ranges {
            Some(ranges) => UploadSource::Ranges(reader, ranges),
            None => UploadSource::Whole(reader),
        },
    }
}

/// Uploads one file; the messages that carried it, and what the query learned.
fn transfer(request: FlowRequest, bytes: Vec<u8>, ranges: Option<Vec<Range>>) -> (Vec<VeloMessage>, Result<String, String>) {
    let learned = Arc::new(Mutex::new(None));
    let keep = learned.clone();
    let scene = Scene::new(Scripted::new(move |_, sink| {
        let scope = Environment::new(Arc::new(Registry::core())).open();
        let uploaded = sink.upload(&scope, upload(bytes.clone(), ranges.clone()));
        let again = sink.upload(&scope, upload(Vec::new(), None));
        let outcome = uploaded.map(|uploaded| {
            assert_eq!(again.unwrap().sha256, uploaded.sha256, "the same file is sent once");
            format!("{} {} {}", uploaded.size, uploaded.stored_size, uploaded.sha256)
        });
        *keep.lock().unwrap() = Some(outcome.map_err(|error| error.to_string()));
        Ok(())
    }));
    let sent = scene.collect("F.1", request);
    let learned = learned.lock().unwrap().take().unwrap();
    (sent, learned)
}

#[test]
fn files_travel_in_pieces_between_an_opening_and_an_end() {
    let content: Vec<u8> = (0..2_500_000_u32).map(|number| number as u8).collect();
    let (sent, learned) = transfer(request(&[&["A"]]), content.clone(), None);
    assert_eq!(learned.unwrap(), format!("2500000 2500000 {}", hex::encode(talon_crypto::sha256(&content))));
    let opening = sent[0].upload_transaction.as_ref().unwrap();
    assert_eq!((opening.filename.as_str(), opening.store_as_name.as_str(), opening.expected_size), ("/x/file", "stored", 2_500_000));
    assert_eq!((opening.mtime, opening.atime, opening.mode), (7, -6_795_364_578_871_345_152, 420));
    let pieces: Vec<_> = sent.iter().filter_map(|message| message.file_buffer.as_ref()).collect();
    let shape: Vec<_> = pieces.iter().map(|piece| (piece.offset, piece.data_length, piece.stored_size, piece.eof)).collect();
    let mib = 1 << 20;
    assert_eq!(
        shape,
        [
            (0, mib, mib, false),
            (mib, mib, 2 * mib, false),
            (2 * mib, 2_500_000 - 2 * mib, 2_500_000, false),
            (2_500_000, 0, 2_500_000, true)
        ]
    );
    assert_eq!(pieces.iter().flat_map(|piece| piece.data.to_vec()).collect::<Vec<_>>(), content);
    let status = &end(&sent).query_status[0];
    assert_eq!((status.uploaded_files, status.uploaded_bytes, status.expected_uploaded_bytes), (1, 2_500_000, 2_500_000));
}

#[test]
fn empty_and_compressed_files() {
    let (sent, _) = transfer(request(&[&["A"]]), Vec::new(), None);
    let pieces: Vec<_> = sent.iter().filter_map(|message| message.file_buffer.as_ref()).collect();
    assert_eq!(pieces.iter().map(|piece| (piece.offset, piece.eof)).collect::<Vec<_>>(), [(0, true)]);
    let (sent, _) = transfer(FlowRequest { compression: 1, ..request(&[&["A"]]) }, vec![7; 1000], None);
    let pieces: Vec<_> = sent.iter().filter_map(|message| message.file_buffer.as_ref()).collect();
    let shape: Vec<_> = pieces.iter().map(|piece| (piece.data_length, piece.uncompressed_length, piece.data.len() < 100)).collect();
    assert_eq!(shape, [(1000, 1000, true), (0, 0, true)]);
}

#[test]
fn files_with_holes_are_packed_and_carry_an_index() {
    let content = b"abcde.......fghijk".to_vec();
    let range = |offset, length, is_sparse| Range { offset, length, is_sparse };
    let (sent, learned) = transfer(request(&[&["A"]]), content, Some(vec![range(0, 5, false), range(5, 7, true), range(12, 6, false)]));
    assert!(learned.unwrap().starts_with("18 11 "));
    let pieces: Vec<_> = sent.iter().filter_map(|message| message.file_buffer.as_ref()).collect();
    let data: Vec<_> = pieces.iter().map(|piece| (piece.offset, String::from_utf8(piece.data.to_vec()).unwrap())).collect();
    assert_eq!(data, [(0, "abcde".into()), (5, "fghijk".into()), (11, String::new())]);
    assert!(pieces.iter().all(|piece| piece.is_sparse && piece.stored_size == 11 && piece.size == 18));
    let index = &pieces[2].index.as_ref().unwrap().ranges;
    let index: Vec<_> = index.iter().map(|part| (part.original_offset, part.length, part.file_offset, part.file_length)).collect();
    assert_eq!(index, [(0, 5, 0, 5), (5, 7, 5, 0), (12, 6, 5, 6)]);
}

#[test]
fn an_upload_over_the_limit_ends_the_flow() {
    let (sent, learned) = transfer(FlowRequest { max_upload_bytes: 1000, ..request(&[&["A"]]) }, vec![0; 5000], None);
    assert!(learned.is_err());
    let text = "Upload bytes 5000 exceeded limit 1000 for flow F.1. Cancelling.";
    assert_eq!(outcome(&end(&sent)), [(ReturnedStatus::GenericError, text)]);
    assert!(!sent.iter().any(|message| message.file_buffer.is_some()));
}

fn table(version: u64, names: &[&str]) -> VeloMessage {
    let event = names.iter().map(|name| VqlCollectorArgs { max_row: 1, ..args(&[name]) }).collect();
    let table = VqlEventTable { event, version };
    VeloMessage { session_id: "F.Monitoring".into(), update_event_table: Some(table), ..VeloMessage::default() }
}

/// Gives a row every few milliseconds until it is stopped.
fn ticking() -> Arc<Scripted> {
    Scripted::new(|action, sink| {
        sink.log("it starts");
        let mut number = 0;
        while !action.cancel.wait(Duration::from_millis(5)) {
            sink.row(0, &action.args.query[0], &row(number));
            number += 1;
        }
        Ok(())
    })
}

#[test]
fn event_queries_run_until_another_table_comes() {
    let scene = Scene::new(ticking());
    let names = |sent: &[VeloMessage]| responses(sent).iter().map(|part| part.query.clone().unwrap().name).collect::<Vec<_>>();
    scene.executor.handle(table(5, &["One"]));
    assert_eq!(scene.executor.event_table_version(), 5);
    let sent = scene.sent_until(|sent| responses(sent).len() > 3);
    assert!(sent.iter().all(|message| message.session_id == "F.Monitoring" && message.flow_stats.is_none()));
    let numbers: Vec<_> = responses(&sent).iter().map(|part| (part.part, part.query_start_row, part.total_rows)).collect();
    assert_eq!(numbers[..3], [(0, 0, 1), (1, 1, 1), (2, 2, 1)]);
    scene.executor.handle(table(4, &["Old"]));
    assert_eq!(scene.executor.event_table_version(), 5, "an older table is passed over");
    scene.executor.handle(table(6, &["Two"]));
    scene.sent_until(|sent| names(sent).ends_with(&["Two".into(), "Two".into(), "Two".into()]));
    scene.executor.stop();
}

#[test]
fn the_same_queries_go_on_when_only_the_version_changes() {
    let starts = Arc::new(AtomicUsize::new(0));
    let counted = starts.clone();
    let scene = Scene::new(Scripted::new(move |action, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let _ = action.cancel.wait(Duration::from_secs(20));
        Ok(())
    }));
    scene.executor.handle(table(5, &["One"]));
    scene.executor.handle(table(6, &["One"]));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!((starts.load(Ordering::SeqCst), scene.executor.event_table_version()), (1, 6));
    scene.executor.stop();
}

#[test]
fn event_queries_start_again_with_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let level1 = folder.path().join("writeback.yaml");
    let first = Scene::in_folder(ticking(), folder);
    first.executor.handle(table(5, &["One"]));
    first.executor.stop();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(&level1, copy.path().join("writeback.yaml")).unwrap();
    let second = Scene::in_folder(ticking(), copy);
    assert_eq!(second.executor.event_table_version(), 5);
    assert_eq!(second.writeback.lock().unwrap().event_table().event.len(), 1);
    second.sent_until(|sent| responses(sent).len() > 1);
    second.executor.stop();
}

#[test]
fn the_log_of_an_event_query_names_it() {
    let scene = Scene::new(ticking());
    scene.executor.handle(table(5, &["One"]));
    let sent = scene.sent_until(|sent| sent.iter().any(|message| message.log_message.is_some()));
    let log = sent.iter().find_map(|message| message.log_message.as_ref()).unwrap();
    assert_eq!((log.artifact.as_str(), log.number_of_rows), ("One", 1));
    scene.executor.stop();
}
