//! From the first contact to a record.

use serde_json::json;
use talon_ids::OrgId;
use talon_proto::{ClientInfo, FlowStats, PublicKey, VeloMessage, VeloStatus};
use talon_server::Received;
use talon_store::{Engine, Space};
use talon_transport::{ReaderOutcome, Rejection};

use crate::bench::{Answer, Bench, KEYS, OTHER_NONCE, csr};

fn record(bench: &Bench, agent: &crate::bench::Agent) -> Option<ClientInfo> {
    bench.org().client(agent.id()).unwrap()
}

#[tokio::test]
async fn an_unknown_agent_is_asked_to_enrol_and_then_interrogated() {
    let bench = Bench::new();
    let agent = bench.agent(1);
    assert!(matches!(agent.reader(0).await, ReaderOutcome::Reject(Rejection::PleaseEnrol)));
    assert!(record(&bench, &agent).is_none());
    let (enrolments, interrogations) =
        (bench.org().watch("Server.Internal.Enrollment"), bench.org().watch("Server.Internal.Interrogation"));

    assert_eq!(agent.enrol().await, Answer::Rejected(Rejection::PleaseEnrol));
    assert!(matches!(enrolments.next().await, Received::Event(event) if event.row.contains(agent.id().as_str())));
    let messages = agent.poll().await;
    let [VeloMessage { session_id, flow_request: Some(request), request_id: 1, .. }] = &messages[..] else { panic!("{messages:?}") };
    let names: Vec<&str> = request.vql_client_actions.iter().flat_map(|action| &action.query).map(|query| query.name.as_str()).collect();
    let named: Vec<&&str> = names.iter().filter(|name| !name.is_empty()).collect();
    assert!(named.iter().all(|name| agent.reveal(name) == "Custom.Generic.Client.Info/BasicInformation"), "{names:?}");

    let row = json!({
        "OS": "linux", "Hostname": "web01", "Fqdn": "web01.lan", "Architecture": "amd64", "Name": "talon", "Version": "1.0",
        "Platform": "debian", "PlatformVersion": "12", "MACAddresses": ["02:00:00:00:00:01"], "Labels": ["dmz"],
    });
    let query = "Custom.Generic.Client.Info/BasicInformation";
    let rows = agent.jsonl(session_id, query, 0, 1, &format!("{row}\n"));
    let status = VeloStatus { names_with_response: vec![agent.hide(query)], result_rows: 1, last_active: 5, ..VeloStatus::default() };
    let stats = FlowStats { query_status: vec![status], flow_complete: true, ..FlowStats::default() };
    let stats = VeloMessage { session_id: session_id.clone(), flow_stats: Some(stats), ..VeloMessage::default() };
    // The statistics that end the flow may stand before its rows.
    assert_eq!(agent.send(&[stats, rows]).await, Answer::Acknowledged);

    assert!(matches!(interrogations.next().await, Received::Event(event) if event.row.contains(agent.id().as_str())));
    let info = record(&bench, &agent).unwrap();
    assert_eq!((info.hostname.as_str(), info.system.as_str(), info.release.as_str()), ("web01", "linux", "debian12"));
    assert_eq!((info.labels, info.mac_addresses), (vec!["dmz".to_owned()], vec!["02:00:00:00:00:01".to_owned()]));
    assert_eq!(info.last_interrogate_flow_id, *session_id);
    assert_eq!(info.ip_address, "192.0.2.1:40000");
    assert_eq!(bench.org().search_clients("host:web").unwrap().len(), 1);
    assert_eq!(bench.org().search_clients("label:dmz").unwrap().len(), 1);
    assert_eq!(bench.org().search_clients("label:x").unwrap().len(), 0);
}

#[tokio::test]
async fn enrolling_again_changes_nothing() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let before = record(&bench, &agent).unwrap();
    assert_eq!(agent.enrol().await, Answer::Acknowledged, "an enrolled agent is authenticated");
    assert_eq!(record(&bench, &agent).unwrap().last_interrogate_flow_id, before.last_interrogate_flow_id);
    assert_eq!(bench.org().flows(&agent.target()).unwrap().len(), 1);
}

#[tokio::test]
async fn a_request_for_another_agent_enrols_nobody() {
    let bench = Bench::new();
    let (thief, victim) = (bench.agent(1), bench.agent(2));
    let request = csr(&talon_pki::create_csr(&KEYS[2]).unwrap());
    assert_eq!(thief.send(&[request]).await, Answer::Rejected(Rejection::EnrolmentFailed));
    assert!(record(&bench, &victim).is_none() && record(&bench, &thief).is_none());
}

#[tokio::test]
async fn a_request_with_a_broken_signature_enrols_nobody() {
    let bench = Bench::new();
    let agent = bench.agent(1);
    let pem = talon_pki::create_csr(&KEYS[1]).unwrap();
    let mut lines: Vec<String> = pem.lines().map(str::to_owned).collect();
    let last = lines.len() - 2;
    let flipped: String = lines[last - 1].chars().rev().collect();
    lines[last - 1] = flipped;
    assert_eq!(agent.send(&[csr(&(lines.join("\n") + "\n"))]).await, Answer::Rejected(Rejection::EnrolmentFailed));
    assert!(record(&bench, &agent).is_none());
}

#[tokio::test]
async fn nobody_replaces_an_enrolled_key() {
    let bench = Bench::new();
    let agent = bench.agent(1);
    let other = PublicKey { pem: KEYS[3].public().to_pkcs1_pem().into_bytes().into(), enroll_time: 7 };
    let (id, bytes) = (agent.id().to_string(), prost::Message::encode_to_vec(&other));
    let stored = bytes.clone();
    let put = move |txn: &mut dyn talon_store::Txn| {
        txn.put(&OrgId::root(), Space::ClientKeys, id.as_bytes(), stored);
        Ok(())
    };
    bench.engine.submit(Box::new(put)).await.unwrap();
    let conflicts = bench.org().watch("Server.Internal.ClientConflict");
    assert_eq!(agent.enrol().await, Answer::Rejected(Rejection::EnrolmentFailed));
    assert!(matches!(conflicts.next().await, Received::Event(event) if event.row.contains(agent.id().as_str())));
    let kept = bench.engine.reader().get(&OrgId::root(), Space::ClientKeys, agent.id().as_str().as_bytes()).unwrap();
    assert_eq!(kept, Some(bytes));
    assert!(matches!(agent.reader(0).await, ReaderOutcome::Reject(Rejection::PleaseEnrol)));
}

#[tokio::test]
async fn the_nonce_decides_the_organisation() {
    let bench = Bench::new();
    let agent = bench.agent_of(1, OTHER_NONCE);
    assert_eq!(agent.enrol().await, Answer::Rejected(Rejection::PleaseEnrol));
    assert!(record(&bench, &agent).is_none());
    let other = bench.server.org(&"O123".parse().unwrap()).unwrap();
    assert!(other.client(agent.id()).unwrap().is_some());
    assert_eq!(other.client_text(agent.id()), format!("{}-O123", agent.id()));
    assert_eq!(&other.parse_client(&format!("{}-O123", agent.id())).unwrap(), agent.id());
    assert!(bench.org().parse_client(&format!("{}-O123", agent.id())).is_err());
    let stranger = bench.agent_of(1, "bm9ib2R5");
    assert_eq!(stranger.enrol().await, Answer::Rejected(Rejection::Unreadable));
}

#[tokio::test]
async fn what_an_agent_reports_of_itself_is_merged() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let mut report =
        agent.jsonl("F.Monitoring", "x", 0, 1, "{\"hostname\":\"web02\",\"client_version\":\"2.0\",\"client_id\":\"C.evil\"}\n");
    report.vql_response.as_mut().unwrap().query.as_mut().unwrap().name = "Server.Internal.ClientInfo".into();
    assert_eq!(agent.send(&[report]).await, Answer::Acknowledged);
    let info = record(&bench, &agent).unwrap();
    assert_eq!((info.hostname.as_str(), info.client_version.as_str(), info.client_id.as_str()), ("web02", "2.0", agent.id().as_str()));
    assert!(bench.event_rows(&agent.target(), "Server.Internal.ClientInfo").is_empty());
}
