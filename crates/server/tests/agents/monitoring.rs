//! Event tables and event rows.

use talon_acl::Role;
use talon_proto::{ArtifactCollectorArgs, ClientEventTable, LabelEvents, VeloMessage};
use talon_server::{LabelOperation, Push, Received};

use crate::bench::{Agent, Answer, Bench, logs};

fn artifacts(names: &[&str]) -> Option<ArtifactCollectorArgs> {
    Some(ArtifactCollectorArgs { artifacts: names.iter().map(|name| (*name).to_owned()).collect(), ..ArtifactCollectorArgs::default() })
}

/// Version and query names of the table among `messages`.
fn table(agent: &Agent, messages: &[VeloMessage]) -> Option<(u64, Vec<String>)> {
    let table = messages.iter().find_map(|message| message.update_event_table.as_ref())?;
    let queries = table.event.iter().flat_map(|args| &args.query).filter(|query| !query.name.is_empty());
    Some((table.version, queries.map(|query| agent.reveal(&query.name)).collect()))
}

#[tokio::test]
async fn an_agent_gets_the_table_until_it_says_that_it_has_it() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    bench.root().set_monitoring(ClientEventTable { artifacts: artifacts(&["Test.Events"]), ..ClientEventTable::default() }).unwrap();
    let (version, queries) = table(&agent, &agent.poll_with(0).await).unwrap();
    assert_eq!(queries, ["Test.Events"]);
    assert_eq!(table(&agent, &agent.poll_with(version).await), None, "in step");
    bench.advance(31);
    assert_eq!(table(&agent, &agent.poll_with(0).await).unwrap().0, version, "it was lost: the same again");
    assert_eq!(table(&agent, &agent.poll_with(0).await), None, "not at once");
    let elsewhere = version + 5_000_000_000_000;
    assert!(table(&agent, &agent.poll_with(elsewhere).await).unwrap().0 > elsewhere, "an agent that comes from another server");

    bench.root().set_monitoring(ClientEventTable { artifacts: artifacts(&[]), ..ClientEventTable::default() }).unwrap();
    let (newer, queries) = table(&agent, &agent.poll_with(version).await).unwrap();
    assert!(newer > version && queries.is_empty());
}

#[tokio::test]
async fn labels_decide_over_the_table() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let group = LabelEvents { label: "dmz".into(), artifacts: artifacts(&["Test.MoreEvents"]) };
    let wanted = ClientEventTable { artifacts: artifacts(&["Test.Events"]), label_events: vec![group], ..ClientEventTable::default() };
    bench.root().set_monitoring(wanted).unwrap();
    let (version, queries) = table(&agent, &agent.poll_with(0).await).unwrap();
    assert_eq!(queries, ["Test.Events"]);
    assert_eq!(agent.send(&[agent.rows("F.Monitoring", "Test.MoreEvents", 0, 1)]).await, Answer::Refused);
    bench.advance(1);
    bench.root().label(agent.id(), LabelOperation::Set, vec!["DMZ".into()]).unwrap();
    let (_, queries) = table(&agent, &agent.poll_with(version).await).unwrap();
    assert_eq!(queries, ["Test.Events", "Test.MoreEvents"]);
    assert_eq!(agent.send(&[agent.rows("F.Monitoring", "Test.MoreEvents", 0, 1)]).await, Answer::Acknowledged);
}

#[tokio::test]
async fn event_rows_carry_the_servers_columns() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    bench.root().set_monitoring(ClientEventTable { artifacts: artifacts(&["Test.Events"]), ..ClientEventTable::default() }).unwrap();
    let watcher = bench.org().watch("Test.Events");
    let forged = "{\"A\":1,\"ClientId\":\"C.evil\",\"_Source\":\"server\",\"_ts\":0}\n";
    let messages = [agent.jsonl("F.Monitoring", "Test.Events", 0, 1, forged), {
        let mut log = logs("F.Monitoring", 0, &["busy"]);
        log.log_message.as_mut().unwrap().artifact = agent.hide("Test.Events");
        log
    }];
    assert_eq!(agent.send(&messages).await, Answer::Acknowledged);
    let wanted = format!("{{\"A\":1,\"ClientId\":\"{0}\",\"_ts\":1700000000,\"_Source\":\"{0}\"}}", agent.id());
    assert_eq!(bench.event_rows(&agent.target(), "Test.Events"), std::slice::from_ref(&wanted));
    assert!(matches!(watcher.next().await, Received::Event(event) if *event.row == *wanted));
    let queue = "Test.Events".parse().unwrap();
    let days = bench.org().event_days(&agent.target(), &queue, true).unwrap();
    assert_eq!(days, ["2023-11-14"]);
    assert_eq!(bench.rows(&talon_server::event_logs(&agent.target(), &queue, &days[0])).len(), 1);
}

#[tokio::test]
async fn rows_of_a_query_that_left_the_table_lately_are_taken() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let set = |names: &[&str]| bench.root().set_monitoring(ClientEventTable { artifacts: artifacts(names), ..ClientEventTable::default() });
    set(&["Test.Events"]).unwrap();
    set(&["Test.MoreEvents"]).unwrap();
    assert_eq!(agent.send(&[agent.rows("F.Monitoring", "Test.Events", 0, 1)]).await, Answer::Acknowledged);
    let bench = bench.restarted();
    let agent = agent.follow(&bench);
    bench.advance(29 * 86_400);
    assert_eq!(agent.send(&[agent.rows("F.Monitoring", "Test.Events", 1, 1)]).await, Answer::Acknowledged);
    bench.advance(2 * 86_400);
    assert_eq!(agent.send(&[agent.rows("F.Monitoring", "Test.Events", 2, 1)]).await, Answer::Refused);
    assert_eq!(bench.event_rows(&agent.target(), "Test.Events").len(), 2);
}

#[tokio::test]
async fn tables_hold_client_events_only_and_need_the_right_to_collect() {
    let bench = Bench::new();
    let set = |names: &[&str]| bench.root().set_monitoring(ClientEventTable { artifacts: artifacts(names), ..ClientEventTable::default() });
    assert_eq!(set(&["No.Such"]).unwrap_err().to_string(), "ClientEventTable: Artifact No.Such not known");
    assert_eq!(set(&["Test.Client"]).unwrap_err().to_string(), "ClientEventTable: Artifact Test.Client is not a client event artifact");
    let reader = bench.user("bob", [Role::Reader]);
    let wanted = ClientEventTable { artifacts: artifacts(&["Test.Events"]), ..ClientEventTable::default() };
    assert!(reader.set_monitoring(wanted).unwrap_err().is_denied());
    assert_eq!(bench.org().monitoring_table().version, 0);
}

#[tokio::test]
async fn users_publish_to_their_queues_and_no_others() {
    let bench = Bench::new();
    let mut change = talon_server::UserChange::of("pub".parse().unwrap());
    change.create = true;
    change.policy = Some(talon_acl::Policy::default().with_queue("Test.ServerEvents"));
    bench.root().change_user("user_create", &[talon_ids::OrgId::root()], change).unwrap();
    let session = bench.server.session(&"pub".parse().unwrap(), &talon_ids::OrgId::root()).unwrap();
    let push = |queue: &str, target: &str| Push {
        queue: queue.parse().unwrap(),
        target: target.parse().unwrap(),
        jsonl: "{\"a\":1,\"_Sender\":\"root\"}\n".into(),
        keep: false,
    };
    let watcher = bench.org().watch("Test.ServerEvents");
    session.push_events(push("Test.ServerEvents", "server")).unwrap();
    let Received::Event(event) = watcher.next().await else { panic!("lost") };
    assert_eq!(&*event.row, r#"{"a":1,"_Sender":"pub","_ts":1700000000,"_Source":"pub"}"#);
    let target = talon_ids::Target::Server;
    assert_eq!(bench.event_rows(&target, "Test.ServerEvents").len(), 1);
    assert!(session.push_events(push("Server.Audit.Logs", "server")).unwrap_err().is_denied());
    let wrong = session.push_events(push("Test.ServerEvents", "C.1")).unwrap_err();
    assert_eq!(wrong.to_string(), "Only servers can write to a SERVER_EVENT artifact_type");
    assert_eq!(bench.event_rows(&target, "Test.ServerEvents").len(), 1);
}

#[tokio::test]
async fn what_is_recorded_can_be_watched() {
    let bench = Bench::new();
    let watcher = bench.org().watch("Server.Audit.Logs");
    bench.user("alice", [Role::Reader]);
    let Received::Event(event) = watcher.next().await else { panic!("lost") };
    let row: serde_json::Value = serde_json::from_str(&event.row).unwrap();
    assert_eq!((&row["operation"], &row["details"]["username"]), (&"user_create".into(), &"alice".into()));
}
