//! Hunts: who is taken on, once, within limits, and what is counted.

use talon_acl::Role;
use talon_ids::{FlowId, HuntId};
use talon_proto::hunt::State;
use talon_proto::hunt_condition::UnionField;
use talon_proto::velo_status::ReturnedStatus;
use talon_proto::{ArtifactCollectorArgs, Hunt, HuntCondition, HuntLabelCondition, HuntMutation, HuntStats};
use talon_server::{LabelOperation, Session};

use crate::bench::{Agent, Answer, Bench};
use crate::collections::stats;

const QUERY: &str = "Test.Client/A";

fn hunt(change: impl FnOnce(&mut Hunt)) -> Hunt {
    let request = ArtifactCollectorArgs { artifacts: vec!["Test.Client".into()], ..ArtifactCollectorArgs::default() };
    let mut hunt = Hunt { start_request: Some(request), ..Hunt::default() };
    hunt.set_state(State::Running);
    change(&mut hunt);
    hunt
}

fn labels(labels: &[&str]) -> HuntLabelCondition {
    HuntLabelCondition { label: labels.iter().map(|label| (*label).to_owned()).collect() }
}

fn set(session: &Session, id: &HuntId, state: State) {
    let change = HuntMutation { hunt_id: id.to_string(), state: state.into(), ..HuntMutation::default() };
    session.modify_hunt(&change).unwrap();
}

fn totals(bench: &Bench, id: &HuntId) -> (State, HuntStats) {
    let hunt = bench.org().hunt(id).unwrap().unwrap();
    (hunt.state(), hunt.stats.unwrap_or_default())
}

fn scheduled(bench: &Bench, id: &HuntId) -> u64 {
    totals(bench, id).1.total_clients_scheduled
}

/// An agent that has its interrogation, and nothing else to do.
async fn idle(bench: &Bench, key: usize) -> Agent {
    let agent = bench.enrolled(key).await;
    agent.poll().await;
    agent
}

/// The flow of the hunt that a poll brings.
async fn poll_flow(agent: &Agent, id: &HuntId) -> bool {
    let flow = FlowId::of_hunt(id);
    agent.poll().await.iter().any(|message| message.session_id == flow.as_str() && message.flow_request.is_some())
}

/// A poll that finds nothing: the client is looked at, and only that.
async fn look(bench: &Bench, agent: &Agent) {
    let marker = bench.root().collect(crate::bench::request(agent, "Test.Other")).unwrap().0;
    let messages = agent.poll().await;
    let mut requests = messages.iter().filter(|message| message.flow_request.is_some());
    assert!(requests.all(|message| message.session_id == marker.as_str()), "{messages:?}");
    let done = [stats(agent, marker.as_str(), &[(ReturnedStatus::Ok, "", 0)], true)];
    assert_eq!(agent.send(&done).await, Answer::Acknowledged);
}

#[tokio::test]
async fn a_client_is_taken_on_once_and_counted_once() {
    let bench = Bench::new();
    let agent = idle(&bench, 1).await;
    let alice = bench.user("alice", [Role::Investigator]);
    let participation = bench.org().watch("System.Hunt.Participation");
    let id = alice.create_hunt(hunt(|_| {})).unwrap();
    let made = bench.org().hunt(&id).unwrap().unwrap();
    assert_eq!((made.creator.as_str(), made.state(), made.artifact_sources.len()), ("alice", State::Running, 2));
    assert!(made.start_request.unwrap().compiled_collector_args.is_empty(), "the record of a hunt is small");

    assert!(poll_flow(&agent, &id).await);
    assert_eq!(scheduled(&bench, &id), 1);
    let row = participation.next_within(std::time::Duration::ZERO);
    assert!(format!("{row:?}").contains(agent.id().as_str()), "{row:?}");

    let flow = FlowId::of_hunt(&id);
    let ended = [agent.rows(flow.as_str(), QUERY, 0, 3), stats(&agent, flow.as_str(), &[(ReturnedStatus::Ok, "", 3)], true)];
    assert_eq!(agent.send(&ended).await, Answer::Acknowledged);
    agent.send(&ended).await;
    let (_, counted) = totals(&bench, &id);
    assert_eq!((counted.total_finished_clients, counted.total_clients_with_results, counted.total_collected_rows), (1, 1, 3));

    // Stopped and started again it looks at everybody again, and takes nobody on twice.
    set(&alice, &id, State::Stopped);
    assert_eq!(totals(&bench, &id).0, State::Stopped);
    bench.advance(5);
    set(&alice, &id, State::Running);
    look(&bench, &agent).await;
    assert_eq!(scheduled(&bench, &id), 1);
    let clients = bench.org().hunt_clients(&id).unwrap();
    assert_eq!((clients.len(), clients[0].flow_id.as_str(), clients[0].ended > 0), (1, flow.as_str(), true));
}

#[tokio::test]
async fn a_failed_flow_counts_as_one() {
    let bench = Bench::new();
    let agent = idle(&bench, 1).await;
    let id = bench.root().create_hunt(hunt(|_| {})).unwrap();
    assert!(poll_flow(&agent, &id).await);
    let flow = FlowId::of_hunt(&id);
    agent.send(&[stats(&agent, flow.as_str(), &[(ReturnedStatus::GenericError, "boom", 0)], true)]).await;
    let (_, counted) = totals(&bench, &id);
    assert_eq!((counted.total_clients_with_errors, counted.total_clients_without_results), (1, 1));
    assert_eq!(bench.org().hunt_clients(&id).unwrap()[0].error, "boom");
}

#[tokio::test]
async fn conditions_decide_and_labels_that_come_later_count() {
    let bench = Bench::new();
    let agent = idle(&bench, 1).await;
    let root = bench.root();
    let condition = HuntCondition { union_field: Some(UnionField::Labels(labels(&["web"]))), excluded_labels: Some(labels(&["spare"])) };
    let id = root.create_hunt(hunt(|hunt| hunt.condition = Some(condition))).unwrap();
    look(&bench, &agent).await;
    assert_eq!(scheduled(&bench, &id), 0);
    root.label(agent.id(), LabelOperation::Set, vec!["web".into(), "spare".into()]).unwrap();
    look(&bench, &agent).await;
    assert_eq!(scheduled(&bench, &id), 0, "an excluded label excludes");
    root.label(agent.id(), LabelOperation::Remove, vec!["spare".into()]).unwrap();
    assert!(poll_flow(&agent, &id).await);
}

#[tokio::test]
async fn a_hunt_stops_at_its_limit_and_at_its_end() {
    let bench = Bench::new();
    let (first, second) = (idle(&bench, 1).await, idle(&bench, 2).await);
    let root = bench.root();
    let id = root.create_hunt(hunt(|hunt| hunt.client_limit = 1)).unwrap();
    assert!(poll_flow(&first, &id).await);
    assert_eq!(totals(&bench, &id).0, State::Stopped, "nobody more is taken on");
    look(&bench, &second).await;
    assert_eq!(scheduled(&bench, &id), 1);

    let soon = bench.org().hunt(&id).unwrap().unwrap().create_time + 60_000_000;
    let short = root.create_hunt(hunt(|hunt| hunt.expires = soon)).unwrap();
    bench.advance(61);
    look(&bench, &second).await;
    assert_eq!((totals(&bench, &short).0, scheduled(&bench, &short)), (State::Stopped, 0));
    let late = root.create_hunt(hunt(|hunt| hunt.expires = soon)).unwrap_err();
    assert_eq!(late.to_string(), "Hunt expiry is in the past!");
}

#[tokio::test]
async fn hunts_survive_a_restart() {
    let bench = Bench::new();
    idle(&bench, 1).await;
    let id = bench.root().create_hunt(hunt(|_| {})).unwrap();
    let paused = bench.root().create_hunt(hunt(|hunt| hunt.set_state(State::Paused))).unwrap();
    let bench = bench.restarted();
    let agent = bench.agent(1);
    assert!(poll_flow(&agent, &id).await);
    assert_eq!(scheduled(&bench, &paused), 0);
}

#[tokio::test]
async fn a_client_that_is_added_by_hand_is_one_of_the_hunt() {
    let bench = Bench::new();
    let agent = idle(&bench, 1).await;
    let root = bench.root();
    let condition = HuntCondition { union_field: Some(UnionField::Labels(labels(&["nobody"]))), excluded_labels: None };
    let id = root.create_hunt(hunt(|hunt| hunt.condition = Some(condition))).unwrap();
    root.add_to_hunt(&id, agent.id(), None, false).unwrap();
    assert!(poll_flow(&agent, &id).await);
    let flow = FlowId::of_hunt(&id);
    agent.send(&[stats(&agent, flow.as_str(), &[(ReturnedStatus::Ok, "", 0)], true)]).await;
    root.add_to_hunt(&id, agent.id(), None, true).unwrap();
    assert!(poll_flow(&agent, &id).await, "launched again");
    assert_eq!(scheduled(&bench, &id), 1, "and counted once");

    let other = root.create_hunt(hunt(|hunt| hunt.set_state(State::Paused))).unwrap();
    root.add_to_hunt(&other, agent.id(), Some(flow.clone()), false).unwrap();
    assert_eq!(bench.org().hunt_clients(&other).unwrap()[0].flow_id, flow.as_str());
    let missing = root.add_to_hunt(&other, agent.id(), Some("F.NONE".parse().unwrap()), false);
    assert!(missing.is_err(), "a flow that does not exist is not attached");
}

#[tokio::test]
async fn hunting_takes_the_rights_to_collect_and_to_start() {
    let bench = Bench::new();
    let agent = idle(&bench, 1).await;
    let root = bench.root();
    let (reader, alice) = (bench.user("reader", [Role::Reader]), bench.user("alice", [Role::Investigator]));
    assert!(reader.create_hunt(hunt(|_| {})).unwrap_err().is_denied());
    assert!(reader.create_hunt(hunt(|hunt| hunt.set_state(State::Paused))).unwrap_err().is_denied());
    let needs = "name: Test.Needs\nrequired_permissions:\n  - EXECVE\nsources:\n  - query: SELECT 1 AS X FROM scope()\n";
    root.set_artifact(needs, "").unwrap();
    let wish = hunt(|hunt| hunt.start_request.as_mut().unwrap().artifacts = vec!["Test.Needs".into()]);
    assert!(alice.create_hunt(wish).unwrap_err().is_denied(), "what an artifact asks for counts");
    let id = alice.create_hunt(hunt(|hunt| hunt.set_state(State::Paused))).unwrap();
    let change = |state: State| HuntMutation { hunt_id: id.to_string(), state: state.into(), ..HuntMutation::default() };
    for state in [State::Unset, State::Running, State::Deleted] {
        assert!(reader.modify_hunt(&change(state)).unwrap_err().is_denied(), "{state:?}");
    }
    assert!(reader.add_to_hunt(&id, agent.id(), None, false).unwrap_err().is_denied());
    assert!(alice.delete_hunt(&id, true).unwrap_err().is_denied(), "administrators delete hunts");
    let other = alice.create_hunt(hunt(|hunt| hunt.org_ids = vec!["O123".into()]));
    assert!(other.unwrap_err().is_denied(), "other organisations take their administrator");
    assert_eq!(bench.org().hunts().unwrap().len(), 1);
}

#[tokio::test]
async fn a_deleted_hunt_takes_its_flows_along() {
    let bench = Bench::new();
    let agent = idle(&bench, 1).await;
    let root = bench.root();
    let id = root.create_hunt(hunt(|_| {})).unwrap();
    assert!(poll_flow(&agent, &id).await);
    let flow = FlowId::of_hunt(&id);
    agent.send(&[agent.rows(flow.as_str(), QUERY, 0, 3)]).await;
    assert_eq!(root.delete_hunt(&id, false).unwrap().len(), 1);
    assert!(bench.org().hunt(&id).unwrap().is_some(), "only told");
    root.delete_hunt(&id, true).unwrap();
    assert!(bench.org().hunt(&id).unwrap().is_none() && bench.org().hunt_clients(&id).unwrap().is_empty());
    assert!(bench.org().flow(&agent.target(), &flow).unwrap().is_none());
    assert!(bench.flow_rows(&agent, &flow, QUERY).is_empty());
}
