//! Methods of hunts, notebooks, tables, artifacts, metadata and secrets over the real API: what they answer, and in which words they refuse.

use std::io::Write as _;

use talon_proto as proto;
use talon_proto::api_client::ApiClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::stage::Stage;

const CLIENT: &str = "C.00000000000000aa";

fn told(status: &Status) -> (Code, &str) {
    (status.code(), status.message())
}

/// An administrator's connection to a deployment with one client and one artifact.
async fn prepared(stage: &Stage) -> ApiClient<Channel> {
    let session = stage.server.own_session(&talon_ids::OrgId::root()).unwrap();
    tokio::task::spawn_blocking(move || {
        let info = proto::ClientInfo { client_id: CLIENT.into(), hostname: "web01".into(), system: "linux".into(), ..Default::default() };
        session.create_client(info).unwrap();
        session.set_artifact("name: Custom.A\nsources:\n  - query: SELECT 1 AS X FROM scope()\n", "").unwrap();
    })
    .await
    .unwrap();
    stage.client("u_administrator").await
}

fn hunt() -> proto::Hunt {
    let request = proto::ArtifactCollectorArgs { artifacts: vec!["Custom.A".into()], ..Default::default() };
    proto::Hunt { hunt_description: "d".into(), start_request: Some(request), tags: vec!["t".into()], ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hunt_is_made_shown_changed_and_deleted() {
    let stage = Stage::open().await;
    let mut client = prepared(&stage).await;
    let id = client.create_hunt(hunt()).await.unwrap().into_inner().flow_id;
    let found = client.get_hunt(proto::GetHuntRequest { hunt_id: id.clone(), ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((found.state(), found.creator.as_str()), (proto::hunt::State::Paused, "u_administrator"));
    assert_eq!(found.artifact_sources, ["Custom.A"]);
    let listed = client.list_hunts(proto::ListHuntsRequest { count: 2, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((listed.total, listed.items.len()), (1, 1));
    let table = client.get_hunt_table(proto::GetTableRequest::default()).await.unwrap().into_inner();
    assert_eq!(table.columns, ["State", "Tags", "HuntId", "Description", "Created", "Started", "Expires", "Scheduled", "Creator"]);
    assert!(table.rows[0].json.starts_with(&format!(r#"["PAUSED",["t"],"{id}","d","#)), "{}", table.rows[0].json);
    assert_eq!(client.get_hunt_tags(()).await.unwrap().into_inner().tags, ["t"]);
    let flows = client.get_hunt_flows(proto::GetTableRequest { hunt_id: id.clone(), ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((flows.total_rows, flows.columns.len()), (-1, 8));
    assert_eq!(client.estimate_hunt(proto::HuntEstimateRequest::default()).await.unwrap().into_inner().total_clients_scheduled, 1);
    let change = |state: proto::hunt::State| proto::HuntMutation { hunt_id: id.clone(), state: state.into(), ..Default::default() };
    client.modify_hunt(change(proto::hunt::State::Running)).await.unwrap();
    let found = client.get_hunt(proto::GetHuntRequest { hunt_id: id.clone(), ..Default::default() }).await.unwrap().into_inner();
    assert_eq!(found.state(), proto::hunt::State::Running);
    client.modify_hunt(change(proto::hunt::State::Deleted)).await.unwrap();
    let gone = client.get_hunt(proto::GetHuntRequest { hunt_id: id.clone(), ..Default::default() }).await.unwrap_err();
    assert_eq!(told(&gone), (Code::NotFound, format!("Hunt not found: {id}").as_str()));
    let missing = proto::HuntMutation { hunt_id: "H.NOSUCH".into(), description: "x".into(), ..Default::default() };
    client.modify_hunt(missing).await.unwrap();
    let refused = stage.client("u_reader").await.create_hunt(hunt()).await.unwrap_err();
    assert_eq!(told(&refused), (Code::PermissionDenied, "User is not allowed to launch hunts."));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notebook_is_written_shared_and_read_by_its_cells() {
    let stage = Stage::open().await;
    let mut client = prepared(&stage).await;
    let listed = client.get_notebooks(proto::NotebookCellRequest::default()).await.unwrap_err();
    assert_eq!(told(&listed), (Code::Unknown, "NotebookId must be specified"));
    let made = client.new_notebook(proto::NotebookMetadata { name: "n".into(), ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((made.creator.as_str(), made.cell_metadata.len(), made.public), ("u_administrator", 1, false));
    let request = proto::NotebookCellRequest {
        notebook_id: made.notebook_id.clone(),
        r#type: "markdown".into(),
        input: "# Hello".into(),
        sync: true,
        ..Default::default()
    };
    let cell = client.new_notebook_cell(request.clone()).await.unwrap().into_inner().latest_cell_id;
    let of_cell = proto::NotebookCellRequest { cell_id: cell, ..request };
    let found = client.get_notebook_cell(of_cell.clone()).await.unwrap().into_inner();
    assert_eq!((found.output.as_str(), found.summary.as_str()), ("<h1>Hello</h1>\n", "Hello"));
    let versions = client.update_notebook_cell(of_cell.clone()).await.unwrap().into_inner().available_versions;
    assert_eq!(versions.len(), 2);
    let back = proto::NotebookCellRequest { version: "nosuch".into(), ..of_cell.clone() };
    assert_eq!(told(&client.revert_notebook_cell(back).await.unwrap_err()), (Code::Unknown, "Version not found"));

    // Whoever it is not shared with gets nothing of it, in any way.
    let mut other = stage.client("u_investigator").await;
    let refusal = (Code::Unknown, "InvalidStatus: Notebook is not shared with user.");
    let named = proto::NotebookMetadata { notebook_id: made.notebook_id.clone(), ..Default::default() };
    let shown = other.get_notebooks(of_cell.clone()).await.unwrap_err();
    assert_eq!(told(&shown), (Code::Unknown, "InvalidStatus: User has no access to this notebook"));
    assert_eq!(told(&other.get_notebook_cell(of_cell.clone()).await.unwrap_err()), refusal);
    assert_eq!(told(&other.new_notebook_cell(of_cell.clone()).await.unwrap_err()), refusal);
    assert_eq!(told(&other.update_notebook_cell(of_cell.clone()).await.unwrap_err()), refusal);
    assert_eq!(told(&other.revert_notebook_cell(of_cell.clone()).await.unwrap_err()), refusal);
    assert_eq!(told(&other.cancel_notebook_cell(of_cell.clone()).await.unwrap_err()), refusal);
    assert_eq!(told(&other.update_notebook(named.clone()).await.unwrap_err()), refusal);
    assert_eq!(told(&other.delete_notebook(named.clone()).await.unwrap_err()), refusal);
    let file = proto::NotebookFileUploadRequest { notebook_id: made.notebook_id.clone(), data: "aGk=".into(), ..Default::default() };
    assert_eq!(told(&other.upload_notebook_attachment(file.clone()).await.unwrap_err()), refusal);
    let table = proto::GetTableRequest {
        notebook_id: made.notebook_id.clone(),
        cell_id: format!("{}-{}", of_cell.cell_id, versions[0]),
        ..Default::default()
    };
    assert_eq!(told(&other.get_table(table.clone()).await.unwrap_err()), refusal);
    assert!(client.get_table(table).await.is_ok());
    let export = proto::NotebookExportRequest { notebook_id: made.notebook_id.clone(), r#type: "zip".into(), ..Default::default() };
    assert_eq!(told(&other.create_notebook_download_file(export.clone()).await.unwrap_err()), (Code::InvalidArgument, refusal.1));
    client.create_notebook_download_file(export).await.unwrap();

    let attached = client.upload_notebook_attachment(file).await.unwrap().into_inner().filename;
    let away = proto::NotebookFileUploadRequest {
        notebook_id: made.notebook_id.clone(),
        components: vec!["attach".into(), attached],
        ..Default::default()
    };
    client.remove_notebook_attachment(away.clone()).await.unwrap();
    assert!(client.remove_notebook_attachment(away).await.is_err());
    client.delete_notebook(named.clone()).await.unwrap();
    assert_eq!(client.delete_notebook(named).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_and_their_rows_are_tables() {
    let stage = Stage::open().await;
    let mut client = prepared(&stage).await;
    let collect = proto::ArtifactCollectorArgs { client_id: CLIENT.into(), artifacts: vec!["Custom.A".into()], ..Default::default() };
    let flow = client.collect_artifact(collect).await.unwrap().into_inner().flow_id;
    let of_client = proto::GetTableRequest { client_id: CLIENT.into(), ..Default::default() };
    let table = client.get_client_flows(of_client.clone()).await.unwrap().into_inner();
    assert_eq!(table.columns[..4], ["State", "FlowId", "Artifacts", "Created"]);
    assert!(table.rows[0].json.starts_with(&format!(r#"["RUNNING","{flow}",["Custom.A"],"#)), "{}", table.rows[0].json);
    let rows = proto::GetTableRequest { flow_id: flow.clone(), artifact: "Custom.A".into(), ..of_client.clone() };
    assert_eq!(client.get_table(rows).await.unwrap().into_inner().total_rows, -1, "nothing was collected yet");
    assert_eq!(told(&client.get_table(of_client).await.unwrap_err()), (Code::Unknown, "Invalid request"));
    let of_flow = proto::ApiFlowRequest { client_id: CLIENT.into(), flow_id: flow, ..Default::default() };
    let asked = client.get_flow_requests(of_flow.clone()).await.unwrap().into_inner().items;
    assert_eq!(asked[0].flow_request.as_ref().unwrap().vql_client_actions.len(), 1);
    client.cancel_flow(of_flow.clone()).await.unwrap();
    assert_eq!(client.get_flow_details(of_flow).await.unwrap().into_inner().context.unwrap().status, "Cancelled by u_administrator");
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_found_written_and_loaded_by_the_pack() {
    let stage = Stage::open().await;
    let mut client = prepared(&stage).await;
    let names = |found: proto::ArtifactDescriptors| found.items.into_iter().map(|item| item.name).collect::<Vec<_>>();
    let search = proto::GetArtifactsRequest { search_term: "SYS pslist".into(), ..Default::default() };
    assert_eq!(names(client.get_artifacts(search).await.unwrap().into_inner()), ["Linux.Sys.Pslist"]);
    let file = client.get_artifact_file(proto::GetArtifactRequest { name: "Custom.A".into() }).await.unwrap().into_inner();
    assert!(file.artifact.starts_with("name: Custom.A"));
    assert_eq!(client.get_artifact_file(proto::GetArtifactRequest { name: "No.Such".into() }).await.unwrap().into_inner().artifact, "");
    let set = |text: &str, op: i32| proto::SetArtifactRequest { artifact: text.into(), op, ..Default::default() };
    assert_eq!(client.set_artifact_file(set("name: [", 0)).await.unwrap_err().code(), Code::Unknown);
    let built_in = client.set_artifact_file(set("name: Generic.Client.Info\nsources:\n- query: SELECT 1 FROM scope()\n", 0)).await;
    assert!(built_in.is_err(), "built-in artifacts stay");
    client.set_artifact_file(set("name: Custom.A\n", 1)).await.unwrap();
    assert!(stage.server.org(&talon_ids::OrgId::root()).unwrap().artifacts().get("Custom.A").is_none(), "deleted");

    let mut pack = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in
        [("a/Good.yaml", "name: Good\nsources:\n- query: SELECT 1 AS X FROM scope()\n"), ("Bad.yaml", "name: ["), ("x.txt", "?")]
    {
        pack.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        pack.write_all(text.as_bytes()).unwrap();
    }
    let data = pack.finish().unwrap().into_inner();
    let request = proto::LoadArtifactPackRequest { prefix: "Custom.".into(), data: data.into(), ..Default::default() };
    let told_only = client.load_artifact_pack(request.clone()).await.unwrap().into_inner();
    assert_eq!((told_only.successful_artifacts, told_only.errors.len()), (vec!["Custom.Good".to_owned()], 1));
    let known = || stage.server.org(&talon_ids::OrgId::root()).unwrap().artifacts().get("Custom.Good").is_some();
    assert!(!known());
    client.load_artifact_pack(proto::LoadArtifactPackRequest { really_do_it: true, ..request }).await.unwrap();
    assert!(known());
    let none = proto::LoadArtifactPackRequest { data: vec![0, 0, 0].into(), ..Default::default() };
    assert_eq!(told(&client.load_artifact_pack(none).await.unwrap_err()), (Code::Unknown, "zip: not a valid zip file"));
    let tool = proto::Tool { name: "T".into(), url: "https://127.0.0.1:1/x".into(), ..Default::default() };
    assert!(client.set_tool_info(tool.clone()).await.unwrap().into_inner().admin_override);
    assert_eq!(client.get_tool_info(tool).await.unwrap().into_inner().url, "https://127.0.0.1:1/x");
    let missing = client.get_tool_info(proto::Tool { name: "NoSuchTool".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(told(&missing), (Code::Unknown, "Not Found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_tables_and_secrets_are_kept() {
    let stage = Stage::open().await;
    let mut client = prepared(&stage).await;
    let item = |key: &str, value: &str| proto::ClientMetadataItem { key: key.into(), value: value.into() };
    let set = proto::SetClientMetadataRequest { client_id: CLIENT.into(), add: vec![item("k", "v"), item("x", "y")], ..Default::default() };
    client.set_client_metadata(set).await.unwrap();
    let gone = proto::SetClientMetadataRequest { client_id: CLIENT.into(), remove: vec!["x".into()], ..Default::default() };
    client.set_client_metadata(gone).await.unwrap();
    let of = proto::GetClientRequest { client_id: CLIENT.into(), ..Default::default() };
    assert_eq!(client.get_client_metadata(of).await.unwrap().into_inner().items, [item("k", "v")]);

    let state = client.get_server_monitoring_state(()).await.unwrap().into_inner();
    assert_eq!(client.set_server_monitoring_state(state.clone()).await.unwrap().into_inner(), state);
    let wrong = proto::ArtifactCollectorArgs { artifacts: vec!["Custom.A".into()], ..Default::default() };
    let table = proto::ClientEventTable { artifacts: Some(wrong.clone()), ..Default::default() };
    let refused = client.set_client_monitoring_state(table).await.unwrap_err();
    assert_eq!(told(&refused), (Code::Unknown, "ClientEventTable: Artifact Custom.A is not a client event artifact"));
    assert!(client.set_server_monitoring_state(wrong).await.is_err());
    let events = proto::ListAvailableEventResultsRequest { client_id: "server".into(), ..Default::default() };
    let logs = client.list_available_event_results(events).await.unwrap().into_inner().logs;
    assert!(logs.iter().any(|log| log.artifact == "Server.Audit.Logs"), "{logs:?}");

    let secret = |name: &str| proto::Secret { name: name.into(), type_name: "HTTP Secrets".into(), ..Default::default() };
    let fields = [("url".to_owned(), "https://127.0.0.1:1/hunter2".to_owned())].into();
    client.add_secret(proto::Secret { secret: fields, users: vec!["u_reader".into()], ..secret("s") }).await.unwrap();
    let shown = client.get_secret(secret("s")).await.unwrap().into_inner();
    assert_eq!((shown.users.len(), shown.secret.len(), shown.encrypted_secret.len()), (1, 0, 0), "nothing of what it holds");
    assert_eq!(told(&client.get_secret(secret("nosuch")).await.unwrap_err()), (Code::NotFound, "Secret Not Found"));
    let definitions = client.get_secret_definitions(()).await.unwrap().into_inner().items;
    assert_eq!(definitions.iter().flat_map(|kind| &kind.secret_names).collect::<Vec<_>>(), ["s"]);
    let audited = format!("{:?}", stage.audited());
    assert!(audited.contains("secret_add") && !audited.contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_the_registrations_begins_with_the_list() {
    let stage = Stage::open().await;
    let mut client = stage.client("u_administrator").await;
    let watch = proto::EventRequest { queue: "Server.Internal.MasterRegistrations".into(), ..Default::default() };
    let mut events = client.watch_event(watch).await.unwrap().into_inner();
    let first = events.message().await.unwrap().unwrap();
    let row: serde_json::Value = serde_json::from_slice(&first.jsonl).unwrap();
    let queues = row["Events"].as_array().unwrap();
    assert!(queues.iter().any(|queue| queue == "Server.Internal.ArtifactModification"), "{row}");
    assert!(!queues.iter().any(|queue| queue == "Server.Audit.Logs"), "{row}");
}
