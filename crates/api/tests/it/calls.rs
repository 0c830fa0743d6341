//! The other methods that work: events, users, stored files.

use std::time::Duration;

use talon_proto as proto;
use tonic::Code;

use crate::stage::{SUPERUSER, Stage};

fn push(queue: &str, client: &str, jsonl: &str) -> proto::PushEventRequest {
    proto::PushEventRequest {
        artifact: queue.into(),
        client_id: client.into(),
        jsonl: jsonl.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

const QUEUE: &str = "System.Flow.Completion";

const CLIENT: &str = "C.c2292c45f0aa5605";

#[tokio::test(flavor = "multi_thread")]
async fn pushed_events_reach_watchers_with_their_sender() {
    let stage = Stage::open().await;
    let mut watcher = stage.client("u_api").await;
    let mut events = watcher.watch_event(proto::EventRequest { queue: QUEUE.into(), ..Default::default() }).await.unwrap().into_inner();
    let mut pusher = stage.client("q_push").await;
    pusher.push_events(push(QUEUE, CLIENT, "{\"a\":1,\"_Sender\":\"fake\"}\n{\"a\":2}\n")).await.unwrap();
    for n in 1..3 {
        let event = tokio::time::timeout(Duration::from_secs(5), events.message()).await.unwrap().unwrap().unwrap();
        let row: serde_json::Value = serde_json::from_slice(&event.jsonl).unwrap();
        assert_eq!((&row["a"], &row["_Sender"], &row["_Source"]), (&n.into(), &"q_push".into(), &"q_push".into()));
        assert!(row["_ts"].as_u64().unwrap() > 1_700_000_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_pushed_to_granted_queues_only() {
    let stage = Stage::open().await;
    for (user, request, code, text) in [
        (
            "q_push",
            push("Server.Internal.Alerts", "server", "{}"),
            Code::PermissionDenied,
            "Permission denied: PUBLISH q_push to Server.Internal.Alerts",
        ),
        (
            "u_administrator",
            push(QUEUE, CLIENT, "{}"),
            Code::PermissionDenied,
            "Permission denied: PUBLISH u_administrator to System.Flow.Completion",
        ),
        ("q_push", proto::PushEventRequest { org_id: "OSEC".into(), ..push(QUEUE, CLIENT, "{}") }, Code::NotFound, "NotFoundError"),
        (SUPERUSER, push("No.Such", "server", "{}"), Code::Unknown, "Artifact No.Such not known"),
        (SUPERUSER, push(QUEUE, CLIENT, "{\"a\":1}"), Code::Ok, ""),
    ] {
        let pushed = stage.client(user).await.push_events(request).await;
        let (got, message) = pushed.map_or_else(|status| (status.code(), status.message().to_owned()), |_| (Code::Ok, String::new()));
        assert_eq!((got, message.as_str()), (code, text));
    }
    let status = stage.client("q_push").await.push_events(push(QUEUE, CLIENT, "not json\n")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_takes_the_right_in_the_organisation_that_is_watched() {
    let stage = Stage::open().await;
    let elsewhere = proto::EventRequest { queue: QUEUE.into(), org_id: "OSEC".into(), ..Default::default() };
    let status = stage.client("u_api").await.watch_event(elsewhere.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(stage.client("u_subadmin").await.watch_event(elsewhere).await.is_ok());
    let mut nothing = stage.client("u_api").await.watch_event(proto::EventRequest::default()).await.unwrap().into_inner();
    assert_eq!(nothing.message().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_event_writers_are_told_so() {
    let stage = Stage::open().await;
    let status = stage.client("u_unknown").await.write_event(proto::VqlResponse::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "WriteEvent is deprecated, please use PushEvents instead"));
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_granted_roles_and_the_grant_is_on_record() {
    let stage = Stage::open().await;
    let mut administrator = stage.client("u_administrator").await;
    let roles = proto::UserRoles { name: "u_norole".into(), org: "root".into(), roles: vec!["reader".into()], ..Default::default() };
    administrator.set_user_roles(roles.clone()).await.unwrap();
    let mut granted = stage.client("u_norole").await;
    assert!(granted.list_clients(proto::SearchClientsRequest::default()).await.is_ok());
    let shown =
        administrator.get_user_roles(proto::UserRequest { name: "u_norole".into(), org: String::new() }).await.unwrap().into_inner();
    assert_eq!(
        (shown.roles.as_slice(), shown.effective_permissions.as_slice()),
        (["reader".to_owned()].as_slice(), ["READ_RESULTS".to_owned()].as_slice())
    );
    assert_eq!((shown.all_roles.len(), shown.all_permissions.len()), (7, 21));
    assert!(stage.audited().iter().any(|entry| entry.record.operation == "user_grant" && entry.record.principal == "u_administrator"));

    let status = granted.set_user_roles(roles).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "Error: PermissionDenied, User u_norole is not admin on <root>. "));
    let bad = proto::UserRoles { name: "u_norole".into(), roles: vec!["boss".into()], ..Default::default() };
    assert_eq!(administrator.set_user_roles(bad).await.unwrap_err().message(), "Invalid role boss");
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_files_have_forbidden_places() {
    let stage = Stage::open().await;
    let buffer = |path: &[&str]| proto::VfsFileBuffer {
        components: path.iter().map(|part| (*part).to_owned()).collect(),
        length: 10,
        ..Default::default()
    };
    let mut client = stage.client("u_api").await;
    for (path, code) in [
        (&["acl", "x.json"][..], Code::PermissionDenied),
        (&["", "users", "x"], Code::PermissionDenied),
        (&["clients", "..", "acl", "x"], Code::PermissionDenied),
        (&["clients", CLIENT, "nosuch.json"], Code::NotFound),
        (&[], Code::InvalidArgument),
    ] {
        assert_eq!(client.vfs_get_buffer(buffer(path)).await.unwrap_err().code(), code, "{path:?}");
    }
    let status = stage.client(SUPERUSER).await.vfs_get_buffer(buffer(&["config", "x"])).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "No access to filesystem path"));
    let status = stage.client("u_norole").await.vfs_get_buffer(buffer(&["clients", "x"])).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "User is not allowed to view the VFS."));
}

#[tokio::test(flavor = "multi_thread")]
async fn lockdown_binds_administrators_and_the_server_itself() {
    let stage = Stage::restricted(std::sync::Arc::new(talon_lockdown::Lockdown::default())).await;
    for user in ["u_administrator", SUPERUSER] {
        let mut client = stage.client(user).await;
        assert!(client.list_clients(proto::SearchClientsRequest::default()).await.is_ok());
        let status = client.notify_clients(proto::NotificationRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), "PERMISSION_DENIED: Server locked down: User is not allowed to launch flows.");
    }
}
