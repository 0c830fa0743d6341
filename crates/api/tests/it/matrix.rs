//! Every method for every role: the golden table, and the comparison with what a stock server decided.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use expect_test::expect_file;
use talon_api::Method;
use talon_lockdown::Lockdown;
use talon_proto as proto;
use talon_proto::prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::stage::{SUPERUSER, Stage, USERS};

/// Messages as bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Calls a method with any bytes; a stream that stays open counts as an answer.
async fn call(channel: &Channel, method: &str, request: Bytes) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = format!("/proto.API/{method}").parse().unwrap();
    let answered = async {
        let mut answer = grpc.streaming(Request::new(tokio_stream::once(request)), path, Raw).await?.into_inner();
        answer.message().await.map(drop)
    };
    tokio::time::timeout(Duration::from_millis(1_500), answered).await.unwrap_or(Ok(()))
}

/// Whether a status is a refusal for lack of rights.
fn denies(status: &Status) -> bool {
    status.code() == Code::PermissionDenied
        || status.message().contains("PermissionDenied")
        || status.message() == "NotFoundError"
        || status.message().starts_with("User not found: u_unknown")
        || status.message().starts_with("CreateHunt: User is not allowed")
}

/// Requests whose content decides, beside the empty request of every method.
fn variants() -> Vec<(Method, &'static str, Vec<u8>)> {
    use proto::hunt::State;
    let flow =
        |client: &str| proto::ApiFlowRequest { client_id: client.into(), flow_id: "F.1".into(), ..Default::default() }.encode_to_vec();
    let hunt = |state: State| proto::HuntMutation { hunt_id: "H.1".into(), state: state.into(), ..Default::default() }.encode_to_vec();
    let collect = |client: &str| proto::ArtifactCollectorArgs { client_id: client.into(), ..Default::default() }.encode_to_vec();
    let artifact = |kind: &str| {
        proto::SetArtifactRequest { artifact: format!("name: Custom.A\ntype: {kind}\n"), ..Default::default() }.encode_to_vec()
    };
    let user = |name: &str, org: &str| proto::UserRequest { name: name.into(), org: org.into() }.encode_to_vec();
    let roles = |org: &str| {
        proto::UserRoles { name: "u_norole2".into(), org: org.into(), roles: vec!["reader".into()], ..Default::default() }.encode_to_vec()
    };
    let create = |org: &str| {
        let request = proto::UpdateUserRequest {
            name: "u_norole2".into(),
            orgs: vec![org.into()],
            roles: vec!["reader".into()],
            ..Default::default()
        };
        request.encode_to_vec()
    };
    let query = |org: &str| {
        let query = proto::VqlRequest { vql: "SELECT 1 AS A FROM scope()".into(), ..Default::default() };
        proto::VqlCollectorArgs { query: vec![query], org_id: org.into(), ..Default::default() }.encode_to_vec()
    };
    let push = |queue: &str, org: &str| {
        let request =
            proto::PushEventRequest { artifact: queue.into(), client_id: "server".into(), org_id: org.into(), ..Default::default() };
        request.encode_to_vec()
    };
    let buffer = |path: &[&str], org: &str| {
        let components = path.iter().map(|part| (*part).to_owned()).collect();
        proto::VfsFileBuffer { components, length: 10, org_id: org.into(), ..Default::default() }.encode_to_vec()
    };
    let password = |user: &str| proto::SetPasswordRequest { username: user.into(), password: "long enough".into() }.encode_to_vec();
    let data = |org: &str| proto::DataRequest { org_id: org.into(), ..Default::default() }.encode_to_vec();
    vec![
        (Method::CreateHunt, "running", proto::Hunt { state: State::Running.into(), ..Default::default() }.encode_to_vec()),
        (Method::CreateHunt, "in OSEC", proto::Hunt { org_ids: vec!["OSEC".into()], ..Default::default() }.encode_to_vec()),
        (Method::ModifyHunt, "run", hunt(State::Running)),
        (Method::ModifyHunt, "delete", hunt(State::Deleted)),
        (Method::GetClientMetadata, "server", proto::GetClientRequest { client_id: "server".into(), ..Default::default() }.encode_to_vec()),
        (Method::GetUserRoles, "in OSEC", user("u_subadmin", "OSEC")),
        (Method::GetUser, "u_reader", user("u_reader", "")),
        (Method::GetUser, "u_subadmin", user("u_subadmin", "")),
        (Method::SetUserRoles, "root", roles("root")),
        (Method::SetUserRoles, "OSEC", roles("OSEC")),
        (Method::CreateUser, "root", create("root")),
        (Method::CreateUser, "OSEC", create("OSEC")),
        (Method::SetPassword, "u_victim", password("u_victim")),
        (Method::SetPassword, "u_reader", password("u_reader")),
        (Method::CollectArtifact, "client", collect("C.0000000000000001")),
        (Method::CollectArtifact, "server", collect("server")),
        (
            Method::VFSDownloadFile,
            "server",
            proto::VfsStatDownloadRequest { client_id: "server".into(), ..Default::default() }.encode_to_vec(),
        ),
        (Method::CancelFlow, "client", flow("C.0000000000000001")),
        (Method::CancelFlow, "server", flow("server")),
        (Method::ResumeFlow, "server", flow("server")),
        (Method::SetArtifactFile, "CLIENT", artifact("CLIENT")),
        (Method::SetArtifactFile, "SERVER", artifact("SERVER")),
        (Method::SetArtifactFile, "NOTEBOOK", artifact("NOTEBOOK")),
        (Method::SetArtifactFile, "unknown", artifact("OTHER")),
        (Method::Query, "root", query("")),
        (Method::Query, "OSEC", query("OSEC")),
        (
            Method::WatchEvent,
            "OSEC",
            proto::EventRequest { queue: "Q".into(), org_id: "OSEC".into(), ..Default::default() }.encode_to_vec(),
        ),
        (Method::PushEvents, "granted queue", push("System.Flow.Completion", "")),
        (Method::PushEvents, "other queue", push("Server.Internal.Alerts", "")),
        (Method::PushEvents, "OSEC", push("System.Flow.Completion", "OSEC")),
        (Method::VFSGetBuffer, "acl", buffer(&["acl", "x.json"], "")),
        (Method::VFSGetBuffer, "OSEC", buffer(&["clients", "x.json"], "OSEC")),
        (Method::GetSubject, "OSEC", data("OSEC")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_for_every_role() {
    let table = table(&Stage::open().await).await;
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/matrix.txt")].assert_eq(&table);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_for_every_role_in_lockdown() {
    let table = table(&Stage::restricted(Arc::new(Lockdown::default())).await).await;
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/matrix-lockdown.txt")].assert_eq(&table);
}

async fn table(stage: &Stage) -> String {
    let mut callers: Vec<_> = USERS.iter().map(|(user, _)| *user).collect();
    callers.extend(["u_subadmin", "q_push", "u_unknown", SUPERUSER]);
    let mut channels = Vec::new();
    for caller in &callers {
        channels.push(stage.channel(caller).await);
    }
    let mut requests: Vec<_> = Method::ALL.iter().map(|method| (*method, "", Vec::new())).collect();
    requests.extend(variants());
    requests.sort_by_key(|(method, variant, _)| (Method::ALL.iter().position(|known| known == method), *variant));
    let mut table = format!("{:<46}", "");
    for caller in &callers {
        let _ = write!(table, " {}", caller.trim_start_matches("u_"));
    }
    for (method, variant, request) in requests {
        let _ = write!(table, "\n{:<46}", format!("{} {variant}", method.row().name));
        for (caller, channel) in callers.iter().zip(&channels) {
            let denied = call(channel, method.row().name, request.clone().into()).await.is_err_and(|status| denies(&status));
            let _ = write!(table, " {:^width$}", if denied { "." } else { "Y" }, width = caller.trim_start_matches("u_").len());
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn the_table_names_every_method_of_the_service_once() {
    let pool = prost_reflect::DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
    let service = pool.get_service_by_name("proto.API").unwrap();
    let mut declared: Vec<_> = service.methods().map(|method| method.name().to_owned()).collect();
    let mut rows: Vec<_> = Method::ALL.iter().map(|method| method.row().name.to_owned()).collect();
    declared.sort();
    rows.sort();
    assert_eq!(rows, declared);
    assert_eq!(rows.len(), 83);
}

/// Where this server decides otherwise than a stock one on purpose, or has nothing to decide about.
fn differs(method: &str, variant: &str, principal: &str, lockdown: bool) -> bool {
    match (method, variant) {
        // Somebody else's notebook: the stage has none.
        (method, _) if method.contains("Notebook") && variant.starts_with("private") => true,
        // Stock servers look at the right in the caller's organisation and then show the events of another one.
        ("WatchEvent", "org OSEC") => true,
        // The recording's other organisation was gone in lockdown.
        ("GetUser", "user of other org") => lockdown && matches!(principal, "administrator" | "superuser"),
        // Lockdown leaves hunts as they are: they are not deleted either.
        ("ModifyHunt", "delete") => lockdown && matches!(principal, "administrator" | "superuser"),
        // The stage does not have that artifact.
        ("CollectArtifact", "client EXECVE") => principal == "investigator",
        // Here a password takes the right over all organisations of the user.
        ("SetPassword", "other") => principal == "administrator of OSEC only",
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_agree_with_a_stock_server() {
    agree("api/matrix-grpc.jsonl", Stage::open().await, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_in_lockdown_agree_with_a_stock_server() {
    agree("api/matrix-lockdown-grpc.jsonl", Stage::restricted(Arc::new(Lockdown::default())).await, 150).await;
}

async fn agree(recorded: &str, stage: Stage, at_least: usize) {
    let Some(vectors) = std::env::var_os("TALON_VECTORS") else {
        eprintln!("SKIPPED: TALON_VECTORS is not set");
        return;
    };
    let lines = std::fs::read_to_string(std::path::Path::new(&vectors).join(recorded)).unwrap();
    let pool = prost_reflect::DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
    let service = pool.get_service_by_name("proto.API").unwrap();
    let mut channels: BTreeMap<String, Channel> = BTreeMap::new();
    let (mut compared, mut wrong) = (0, Vec::new());
    for line in lines.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| case[key].as_str().unwrap().to_owned();
        let (name, variant, principal, decided) = (text("method"), text("variant"), text("principal"), text("decided_by"));
        if decided == "request" || differs(&name, &variant, &principal, recorded.contains("lockdown")) {
            continue;
        }
        let method = service.methods().find(|method| method.name() == name).unwrap();
        let request = prost_reflect::DynamicMessage::deserialize(method.input(), case["request"].clone());
        let Ok(request) = request else { continue };
        let user = match principal.as_str() {
            "superuser" => SUPERUSER.to_owned(),
            "no role" => "u_norole".to_owned(),
            "no user record" => "u_unknown".to_owned(),
            "administrator of OSEC only" => "u_subadmin".to_owned(),
            role => format!("u_{role}"),
        };
        if !channels.contains_key(&user) {
            channels.insert(user.clone(), stage.channel(&user).await);
        }
        let ours = call(&channels[&user], &name, request.encode_to_vec().into()).await;
        let denied = ours.as_ref().is_err_and(denies);
        compared += 1;
        if denied != decided.starts_with("authorisation") {
            wrong.push(format!("{name} [{variant}] {principal}: stock {decided} {}, here {ours:?}", case["message"]));
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > at_least, "only {compared} compared");
}
