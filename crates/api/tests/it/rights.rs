//! Rights act at once, and nobody has more than they were given: users, roles, organisations, locks, lockdown. Tests are named after the rows of the
//! specification that they are about.

use std::sync::Arc;
use std::time::{Duration, Instant};

use talon_acl::{Policy, Role};
use talon_crypto::{SystemRng, Zeroizing};
use talon_ids::{OrgId, Permission, Permissions, UserName};
use talon_lockdown::{LockTarget, Lockdown, Removal};
use talon_proto as proto;
use talon_server::{LockRequest, ServerError, Session, UserChange};
use tonic::Code;

use crate::stage::{SUPERUSER, Stage, grant};

fn name(text: &str) -> UserName {
    text.parse().unwrap()
}

fn second() -> OrgId {
    "OSEC".parse().unwrap()
}

impl Stage {
    fn session(&self, user: &str, org: &OrgId) -> Session {
        self.server.session(&name(user), org).unwrap()
    }

    fn root_session(&self) -> Session {
        self.session(SUPERUSER, &OrgId::root())
    }

    fn audited_operations(&self) -> Vec<String> {
        self.audited().iter().map(|entry| entry.record.operation.clone()).collect()
    }
}

/// Storage is waited for, which async threads must not do.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn sleeping() -> proto::VqlCollectorArgs {
    let query = proto::VqlRequest { vql: "SELECT sleep(time=3600) FROM scope()".into(), ..Default::default() };
    proto::VqlCollectorArgs { query: vec![query], ..Default::default() }
}

/// Starts a query that would run for an hour, takes something away, and says how long the query went on.
async fn ended_after(stage: &Arc<Stage>, user: &str, take: impl FnOnce(&Stage) + Send + 'static) -> Duration {
    let mut client = stage.client(user).await;
    let mut answer = client.query(sleeping()).await.unwrap().into_inner();
    while !stage.running() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let taken = stage.clone();
    blocking(move || take(&taken)).await;
    let since = Instant::now();
    while let Ok(Some(_)) = answer.message().await {}
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_within_a_second_when_its_right_is_taken() {
    let stage = Arc::new(Stage::open().await);
    let took = ended_after(&stage, "u_analyst", |stage| grant(&stage.server, "u_analyst", &OrgId::root(), Policy::default())).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let denied = stage.client("u_analyst").await.query(sleeping()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_within_a_second_when_its_user_is_locked_out() {
    let stage = Arc::new(Stage::open().await);
    let took = ended_after(&stage, "u_api", |stage| {
        let change = UserChange { locked: Some(true), ..UserChange::of(name("u_api")) };
        stage.root_session().change_user("user_lock", &[], change).unwrap();
    })
    .await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_within_a_second_when_a_role_of_its_user_is_edited() {
    let stage = Arc::new(Stage::open().await);
    let prepared = stage.clone();
    blocking(move || {
        let all = Permissions::of(&[Permission::AnyQuery, Permission::ReadResults, Permission::LabelClient]);
        prepared.root_session().set_role("triage", all).unwrap();
        let users = prepared.server.users();
        let policy = users.policy_of(&["triage".to_owned()], &[OrgId::root()]).unwrap();
        grant(&prepared.server, "u_triage", &OrgId::root(), policy);
    })
    .await;
    let took = ended_after(&stage, "u_triage", |stage| {
        let less = Permissions::of(&[Permission::AnyQuery, Permission::ReadResults]);
        stage.root_session().set_role("triage", less).unwrap();
    })
    .await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_events_ends_within_a_second_when_its_right_is_taken() {
    let stage = Arc::new(Stage::open().await);
    let request = proto::EventRequest { queue: "System.Flow.Completion".into(), ..Default::default() };
    let mut events = stage.client("u_analyst").await.watch_event(request).await.unwrap().into_inner();
    let taken = stage.clone();
    blocking(move || grant(&taken.server, "u_analyst", &OrgId::root(), Policy::of_roles([Role::Reader]))).await;
    let ended = tokio::time::timeout(Duration::from_secs(1), events.message()).await.expect("the stream goes on");
    assert_eq!(ended.unwrap_err().code(), Code::PermissionDenied);
}

fn lock(session: &Session, kind: &str, target: &str) -> String {
    let target = LockTarget::parse(kind, target).unwrap();
    session.lock(LockRequest { target, reason: "incident".into(), ttl_s: None }).unwrap().id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_ends_what_runs_and_refuses_what_is_new() {
    let stage = Arc::new(Stage::open().await);
    for (kind, target) in [("user", "u_analyst"), ("role", "analyst"), ("org", "root")] {
        let took = ended_after(&stage, "u_analyst", move |stage| drop(lock(&stage.root_session(), kind, target))).await;
        assert!(took < Duration::from_secs(1), "{kind}: {took:?}");
        let denied = stage.client("u_analyst").await.query(sleeping()).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{kind}");
        let free = stage.clone();
        blocking(move || {
            for lock in free.root_session().locks().unwrap() {
                assert_eq!(free.root_session().unlock(&lock.id, None).unwrap(), Removal::Removed);
            }
        })
        .await;
    }
    let operations = stage.audited_operations();
    assert_eq!(operations.iter().filter(|operation| *operation == "lock_add").count(), 3);
    assert_eq!(operations.iter().filter(|operation| *operation == "lock_remove").count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_everything_is_removed_by_two_administrators() {
    let stage = Arc::new(Stage::open().await);
    let prepared = stage.clone();
    let id = blocking(move || {
        grant(&prepared.server, "u_second", &OrgId::root(), Policy::of_roles([Role::Administrator]));
        lock(&prepared.session("u_administrator", &OrgId::root()), "all", "")
    })
    .await;
    let denied = stage.client("u_reader").await.list_clients(proto::SearchClientsRequest::default()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    // Administrators keep a way in that can do nothing but look at locks.
    let mut answer = stage.client("u_administrator").await.query(sleeping()).await.unwrap().into_inner();
    assert!(answer.message().await.is_ok());
    blocking(move || {
        let (first, second) = (stage.session("u_administrator", &OrgId::root()), stage.session("u_second", &OrgId::root()));
        assert!(matches!(stage.root_session().unlock(&id, None), Err(ServerError::Forbidden(_))), "the superuser is nobody in particular");
        assert!(matches!(stage.session("u_reader", &OrgId::root()).unlock(&id, None), Err(ServerError::Forbidden(_))));
        assert!(matches!(first.unlock(&id, Some("guessed")), Err(ServerError::Forbidden(_))));
        assert_eq!(first.unlock(&id, None).unwrap(), Removal::Needs(1));
        assert_eq!(first.unlock(&id, None).unwrap(), Removal::Needs(1), "one administrator, one vote");
        assert!(!first.authority().allows(Permission::ReadResults));
        assert_eq!(second.unlock(&id, None).unwrap(), Removal::Removed);
        assert!(first.authority().allows(Permission::ReadResults));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_ends_by_itself_in_time() {
    let stage = Arc::new(Stage::open().await);
    blocking(move || {
        let target = LockTarget::parse("user", "u_reader").unwrap();
        stage.root_session().lock(LockRequest { target, reason: "short".into(), ttl_s: Some(1) }).unwrap();
        let reader = stage.session("u_reader", &OrgId::root());
        assert!(!reader.authority().allows(Permission::ReadResults));
        let since = Instant::now();
        while !reader.authority().allows(Permission::ReadResults) {
            assert!(since.elapsed() < Duration::from_secs(4), "the lock goes on");
            std::thread::sleep(Duration::from_millis(50));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s19_s20_lockdown_denies_to_everybody_and_lets_results_be_read() {
    let stage = Stage::restricted(Arc::new(Lockdown::default())).await;
    for user in ["u_administrator", SUPERUSER] {
        let mut client = stage.client(user).await;
        assert!(client.list_clients(proto::SearchClientsRequest::default()).await.is_ok(), "{user}");
        let collect =
            proto::ArtifactCollectorArgs { client_id: "C.1".into(), artifacts: vec!["Generic.Client.Info".into()], ..Default::default() };
        assert_eq!(client.collect_artifact(collect).await.unwrap_err().code(), Code::PermissionDenied, "{user}");
        let hunt = client.create_hunt(proto::Hunt::default()).await.unwrap_err();
        assert_eq!(hunt.message(), "PERMISSION_DENIED: Server locked down: User is not allowed to launch hunts.", "{user}");
        let artifact = proto::SetArtifactRequest { artifact: "name: Custom.A\n".into(), ..Default::default() };
        assert_eq!(client.set_artifact_file(artifact).await.unwrap_err().code(), Code::PermissionDenied, "{user}");
        let user_change = proto::UpdateUserRequest { name: "x".into(), add_new_user: true, ..Default::default() };
        let refused = client.create_user(user_change).await.unwrap_err();
        assert!(refused.message().contains("PERMISSION_DENIED: Server locked down"), "{user}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_s7_new_users_read_in_the_organisation_of_whoever_made_them() {
    let stage = Arc::new(Stage::open().await);
    let request = proto::UpdateUserRequest { name: "newcomer".into(), add_new_user: true, ..Default::default() };
    stage.client("u_administrator").await.create_user(request).await.unwrap();
    blocking(move || {
        let users = stage.server.users();
        assert_eq!(users.policy(&OrgId::root(), &name("newcomer")).unwrap(), Some(Policy::of_roles([Role::Reader])));
        assert_eq!(users.policy(&second(), &name("newcomer")).unwrap(), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s17_passwords_are_ones_own_and_those_of_whom_one_administers_everywhere() {
    let stage = Arc::new(Stage::open().await);
    let set = |password: &str, user: &str| proto::SetPasswordRequest { password: password.into(), username: user.into() };
    let short = stage.client("u_reader").await.set_password(set("abc", "")).await.unwrap_err();
    assert_eq!((short.code(), short.message()), (Code::Unknown, "InvalidStatus: Password is not set or too short"));
    stage.client("u_reader").await.set_password(set("a long one", "")).await.unwrap();
    let other = stage.client("u_reader").await.set_password(set("a long one", "u_analyst")).await.unwrap_err();
    assert_eq!((other.code(), other.message()), (Code::PermissionDenied, "PermissionDenied"));
    blocking(move || {
        let users = stage.server.users();
        assert!(users.check_password(&name("U_READER"), "a long one", &SystemRng).unwrap());
        assert!(!users.check_password(&name("u_reader"), "another", &SystemRng).unwrap());
        assert!(!users.check_password(&name("u_unknown"), "another", &SystemRng).unwrap());
        let stored = users.user(&name("u_reader")).unwrap().unwrap();
        assert!(stored.password_hash.starts_with(b"$argon2id$v=19$m=19456,t=2,p=1$"));
        let entries = stage.audited();
        let record = entries.iter().find(|entry| entry.record.operation == "Update password").unwrap();
        assert!(!format!("{:?}", record.record).contains("a long one"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e1_the_administrator_of_one_organisation_takes_nobody_over() {
    let stage = Arc::new(Stage::open().await);
    blocking(move || {
        let boss = stage.session("u_subadmin", &second());
        let password = || Some(Zeroizing::new("mine now".to_owned()));
        for target in ["u_administrator", "u_reader"] {
            let change = UserChange {
                create: true,
                policy: Some(Policy::of_roles([Role::Reader])),
                password: password(),
                ..UserChange::of(name(target))
            };
            assert!(matches!(boss.change_user("user_create", &[second()], change), Err(ServerError::Forbidden(_))), "{target}");
            assert!(matches!(boss.set_password(&name(target), "mine now".to_owned().into()), Err(ServerError::Forbidden(_))), "{target}");
            let locked = UserChange { locked: Some(true), ..UserChange::of(name(target)) };
            assert!(matches!(boss.change_user("user_lock", &[], locked), Err(ServerError::Forbidden(_))), "{target}");
        }
        boss.set_password(&name("u_victim"), "their own organisation".to_owned().into()).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e3_cve_2026_6290_another_organisation_is_another_authority() {
    let stage = Arc::new(Stage::open().await);
    blocking(move || {
        let boss = stage.session("u_subadmin", &second());
        assert!(matches!(boss.elsewhere(Some(&OrgId::root()), None), Err(ServerError::Forbidden(_))), "strangers do not enter");
        assert!(boss.in_org(&OrgId::root()).unwrap().authority().held().is_empty());
        let admin = stage.session("u_administrator", &OrgId::root());
        assert!(!admin.in_org(&second()).unwrap().authority().allows(Permission::Execve));
        let less = admin.reduced_to(Permissions::of(&[Permission::ReadResults]));
        grant(&stage.server, "u_administrator", &second(), Policy::of_roles([Role::Administrator]));
        assert_eq!(
            less.in_org(&second()).unwrap().authority().held(),
            Permissions::of(&[Permission::ReadResults]),
            "a reduction comes along"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impersonation_is_judged_in_the_organisation_where_it_happens() {
    let stage = Arc::new(Stage::open().await);
    blocking(move || {
        let boss = stage.session("u_subadmin", &second());
        let refused = |error: ServerError| error.to_string();
        assert_eq!(
            refused(boss.elsewhere(Some(&OrgId::root()), Some(&name("u_administrator"))).unwrap_err()),
            "User u_subadmin (OSEC) impersonation to u_administrator (root): PermissionDenied"
        );
        let victim = boss.elsewhere(None, Some(&name("u_victim"))).unwrap();
        assert_eq!((victim.principal().as_str(), victim.originator().map(UserName::as_str)), ("u_victim", Some("u_subadmin")));
        assert!(victim.elsewhere(None, Some(&name("u_subadmin"))).is_err(), "whoever is somebody else has that one's rights");
        let admin = stage.session("u_administrator", &OrgId::root());
        assert!(admin.elsewhere(None, Some(&name(SUPERUSER))).is_err(), "nobody becomes the superuser");
        assert_eq!(refused(admin.elsewhere(None, Some(&name("nosuch"))).unwrap_err()), "User not found: nosuch");
        victim.record("something", talon_audit::Details::new()).map(drop).unwrap();
        let entries = stage.audited();
        assert!(entries.iter().any(|entry| entry.record.operation == "impersonate" && entry.record.principal == "u_subadmin"));
        let last = format!("{:?}", entries.last().unwrap().record);
        assert!(last.contains("originating_principal") && last.contains("u_subadmin"), "{last}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_roles_contain_nothing_that_their_author_lacks() {
    let stage = Arc::new(Stage::open().await);
    blocking(move || {
        let keeper = Policy::default().with_permissions(Permissions::of(&[Permission::ServerAdmin, Permission::ReadResults]));
        grant(&stage.server, "u_keeper", &OrgId::root(), keeper);
        let keeper = stage.session("u_keeper", &OrgId::root());
        assert!(keeper.set_role("readers", Permissions::of(&[Permission::ReadResults])).is_ok());
        let beyond = keeper.set_role("runners", Permissions::of(&[Permission::ReadResults, Permission::Execve]));
        assert!(matches!(beyond, Err(ServerError::Forbidden(_))));
        let users = stage.server.users();
        let policy = users.policy_of(&["readers".to_owned()], &[OrgId::root()]).unwrap();
        grant(&stage.server, "u_victim2", &OrgId::root(), policy);
        assert!(matches!(keeper.delete_role("readers"), Err(ServerError::Invalid(text)) if text.contains("u_victim2")));
        assert!(users.policy_of(&["readers".to_owned()], &[second()]).is_err(), "a role is its organisation's");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_comes_and_goes_with_its_nonce_and_its_data() {
    let stage = Arc::new(Stage::open().await);
    blocking(move || {
        let org: OrgId = "OTEMP".parse().unwrap();
        assert!(stage.session("u_reader", &OrgId::root()).create_org("T", Some(org.clone())).is_err());
        assert!(stage.session("u_subadmin", &second()).create_org("T", Some(org.clone())).is_err());
        let admin = stage.session("u_org_admin", &OrgId::root());
        let made = admin.create_org("Temporary", Some(org.clone())).unwrap();
        let nonce = made.nonce().to_owned();
        let lookup = |nonce: &str| talon_wire::Directory::org_of_nonce(&stage.server, nonce).unwrap();
        assert_eq!(lookup(&nonce), Some(org.clone()));
        grant(&stage.server, "u_reader", &org, Policy::of_roles([Role::Reader]));
        assert!(admin.create_org("Again", Some(org.clone())).is_err());
        assert_eq!(admin.delete_org(&OrgId::root()).unwrap_err().to_string(), "Can not remove root org.");
        admin.delete_org(&org).unwrap();
        assert_eq!(lookup(&nonce), None);
        assert!(stage.server.session(&name("u_reader"), &org).is_err());
        let since = Instant::now();
        let again = loop {
            match admin.create_org("Again", Some(org.clone())) {
                Ok(again) => break again,
                Err(error) => assert!(since.elapsed() < Duration::from_secs(10), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(stage.server.users().policy(again.id(), &name("u_reader")).unwrap(), None, "nothing of the old one is left");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a16_reserved_names_are_nobodys_in_any_disguise() {
    let stage = Stage::open().await;
    let mut client = stage.client("u_administrator").await;
    for disguise in ["VelociraptorServer", "velociraptorserver", "VelociraptorServer.", "\u{ff36}elociraptorServer", "VeIociraptorServer"] {
        let request = proto::UpdateUserRequest { name: disguise.into(), add_new_user: true, ..Default::default() };
        let refused = client.create_user(request).await.unwrap_err();
        assert_eq!(refused.message(), format!("Username is reserved: {disguise}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn options_are_ones_own_and_only_known_values() {
    let stage = Stage::open().await;
    let mut client = stage.client("u_reader").await;
    client
        .set_gui_options(proto::SetGuiOptionsRequest { theme: "midnight".into(), default_password: "zip".into(), ..Default::default() })
        .await
        .unwrap();
    let traits = client.get_user_ui_traits(()).await.unwrap().into_inner().interface_traits.unwrap();
    assert_eq!((traits.theme.as_str(), traits.default_password.as_str()), ("midnight", "zip"));
    assert!(client.set_gui_options(proto::SetGuiOptionsRequest { theme: "neon".into(), ..Default::default() }).await.is_err());
    assert!(client.set_gui_options(proto::SetGuiOptionsRequest { org: "ONONE".into(), ..Default::default() }).await.is_err());
    let record = stage.audited().into_iter().find(|entry| entry.record.operation == "user_options").unwrap();
    assert!(!format!("{:?}", record.record).contains("zip\""), "{record:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_see_those_with_whom_they_share_an_organisation() {
    let stage = Stage::open().await;
    let names = |users: proto::Users| users.users.into_iter().map(|user| user.name).collect::<Vec<_>>();
    let seen = names(stage.client("u_reader").await.get_global_users(()).await.unwrap().into_inner());
    assert!(seen.contains(&"u_analyst".to_owned()) && !seen.contains(&"u_victim".to_owned()), "{seen:?}");
    let seen = names(stage.client("u_subadmin").await.get_global_users(()).await.unwrap().into_inner());
    assert!(seen.contains(&"u_victim".to_owned()) && !seen.contains(&"u_reader".to_owned()), "{seen:?}");
    assert!(names(stage.client("u_norole").await.get_users(()).await.unwrap().into_inner()).is_empty());
}
