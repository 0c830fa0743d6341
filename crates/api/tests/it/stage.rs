//! A deployment with one user per role, two organisations, and the API on a free port.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use talon_acl::{Policy, Question, Reason, Restriction, Role, Unrestricted};
use talon_api::{ApiAddress, ApiKey, ApiListener, ApiListenerSettings, ApiOptions, ApiService, connect};
use talon_audit::{Details, Entry, Log, MemoryStorage, SigningKey};
use talon_crypto::SystemRng;
use talon_ids::{OrgId, Permission, Permissions};
use talon_lockdown::PrefixRules;
use talon_pki::{Authority, Identity, LeafProfile, UnixTime};
use talon_proto::OrgRecord;
use talon_proto::api_client::ApiClient;
use talon_server::{Server, ServerOptions, Session, Settings, SystemClock, UserChange};
use talon_store::Memory;
use talon_vql::{Denied, Environment, Guard, Registry};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// The users, and what they are in the root organisation.
pub(crate) const USERS: &[(&str, &[Role])] = &[
    ("u_administrator", &[Role::Administrator]),
    ("u_org_admin", &[Role::OrgAdmin]),
    ("u_reader", &[Role::Reader]),
    ("u_analyst", &[Role::Analyst]),
    ("u_investigator", &[Role::Investigator]),
    ("u_artifact_writer", &[Role::ArtifactWriter]),
    ("u_api", &[Role::Api]),
    ("u_norole", &[]),
];

/// The name of the server's own principal.
pub(crate) const SUPERUSER: &str = "VelociraptorServer";

pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) authority: Authority,
    pub(crate) address: String,
    pub(crate) drain: CancellationToken,
    alive: Arc<Alive>,
}

/// Decides for a query as its session's authority does.
struct SessionGuard(talon_acl::Authority);

impl Guard for SessionGuard {
    fn check(&self, permissions: Permissions) -> Result<(), Denied> {
        self.0.check(permissions).map_err(|_| Denied::missing(permissions))
    }
}

/// A restriction that begins when the stage is set.
struct Later {
    begun: AtomicBool,
    restriction: Arc<dyn Restriction>,
}

impl Restriction for Later {
    fn lockdown(&self) -> Permissions {
        if self.begun.load(Ordering::SeqCst) { self.restriction.lockdown() } else { Permissions::NONE }
    }

    fn refuses(&self, question: &Question<'_>) -> Option<Reason> {
        self.begun.load(Ordering::SeqCst).then(|| self.restriction.refuses(question)).flatten()
    }
}

struct Waiting(std::time::Instant);

impl talon_vql::Clock for Waiting {
    fn now(&self) -> talon_vql::Time {
        talon_vql::Time::EPOCH
    }

    fn elapsed(&self) -> std::time::Duration {
        self.0.elapsed()
    }
}

/// Lives in the environment of every query: whoever counts the references knows how many queries run.
pub(crate) struct Alive;

fn environment(session: &Session, alive: &Arc<Alive>) -> Environment {
    Environment::new(Arc::new(Registry::core()))
        .extension(alive.clone())
        .guard(Arc::new(SessionGuard(session.authority().clone())))
        .clock(Arc::new(Waiting(std::time::Instant::now())))
}

pub(crate) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
}

impl Stage {
    pub(crate) async fn open() -> Self {
        Self::restricted(Arc::new(Unrestricted)).await
    }

    pub(crate) async fn restricted(restriction: Arc<dyn Restriction>) -> Self {
        let authority = Authority::generate(&SystemRng, now()).unwrap();
        let frontend = authority.issue(&LeafProfile::frontend(SUPERUSER), &SystemRng, now()).unwrap();
        let restriction = Arc::new(Later { begun: AtomicBool::new(false), restriction });
        let later = restriction.clone();
        let key = SigningKey::generate("example.com/audit", &SystemRng).unwrap();
        let options = ServerOptions {
            settings: Settings::new(SUPERUSER.parse().unwrap(), "secret"),
            certificate_pem: frontend.certificate().pem(),
            certificate_name: SUPERUSER.into(),
            key: frontend.key().clone(),
            engine: Arc::new(Memory::new()),
            audit: Arc::new(Log::open(Arc::new(MemoryStorage::default()), key, Arc::new(SystemRng)).unwrap()),
            restriction,
            clock: Arc::new(SystemClock),
            rng: Arc::new(SystemRng),
            registry: Arc::default(),
            extensions: talon_vql::Extensions::default(),
            limits: talon_wire::Limits::default(),
        };
        let server = tokio::task::spawn_blocking(move || {
            let server = Server::open(options).unwrap();
            populate(&server);
            later.begun.store(true, Ordering::SeqCst);
            server
        })
        .await
        .unwrap();
        let settings = ApiListenerSettings {
            address: ApiAddress::Tcp("127.0.0.1:0".parse().unwrap()),
            identity: frontend,
            authorities: authority.trust_bundle(),
            allow_weak: false,
        };
        let listener = ApiListener::bind(settings).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let alive = Arc::new(Alive);
        let counted = alive.clone();
        let service = ApiService::new(ApiOptions {
            server: server.clone(),
            gateway: Some("GRPC_GW".into()),
            stored_files: PrefixRules::for_stored([], []),
            environment: Arc::new(move |session: &Session| environment(session, &counted)),
        });
        let drain = CancellationToken::new();
        tokio::spawn(listener.serve(service, drain.clone()));
        Self { server, authority, address, drain, alive }
    }

    pub(crate) fn identity(&self, name: &str) -> Identity {
        self.authority.issue(&LeafProfile::api_client(name), &SystemRng, now()).unwrap()
    }

    pub(crate) async fn client(&self, name: &str) -> ApiClient<Channel> {
        self.client_with(&self.identity(name), SUPERUSER).await.unwrap()
    }

    pub(crate) async fn client_with(&self, identity: &Identity, server_name: &str) -> Result<ApiClient<Channel>, talon_api::ApiError> {
        let authority = self.authority.certificate().pem();
        let key = ApiKey {
            ca_certificate: &authority,
            client_cert: &identity.certificate().pem(),
            client_private_key: &identity.private_key_pem().unwrap(),
            api_connection_string: &self.address,
            pinned_server_name: server_name,
            max_answer: 0,
        };
        connect(&key).await
    }

    pub(crate) async fn channel(&self, name: &str) -> Channel {
        use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity as Pem};
        let identity = self.identity(name);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.authority.certificate().pem()))
            .identity(Pem::from_pem(identity.certificate().pem(), identity.private_key_pem().unwrap().as_str()))
            .domain_name(SUPERUSER);
        Endpoint::from_shared(format!("https://{}", self.address)).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
    }

    /// Whether a query runs.
    pub(crate) fn running(&self) -> bool {
        // One reference is the stage's own, one that of the API.
        Arc::strong_count(&self.alive) > 2
    }

    pub(crate) fn audited(&self) -> Vec<Entry> {
        self.server.org(&OrgId::root()).unwrap().audit().entries(0, usize::MAX).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.drain.cancel();
    }
}

pub(crate) fn grant(server: &Server, user: &str, org: &OrgId, policy: Policy) {
    let users = server.users();
    let right = users.right_over(users.superuser(), std::slice::from_ref(org)).unwrap();
    let receipt = server.org(org).unwrap().record(SUPERUSER, "user_create", Details::new()).unwrap();
    let change = UserChange { create: true, policy: Some(policy), ..UserChange::of(user.parse().unwrap()) };
    users.change(&right, receipt, change, &SystemRng).unwrap().wait().unwrap();
}

fn populate(server: &Server) {
    let root = OrgId::root();
    let users = server.users();
    let right = users.right_over(users.superuser(), std::slice::from_ref(&root)).unwrap();
    let receipt = server.org(&root).unwrap().record(SUPERUSER, "org_create", Details::new()).unwrap();
    let record = OrgRecord { id: "OSEC".into(), name: "Second".into(), ..OrgRecord::default() };
    server.create_org(&right, receipt, record).unwrap();
    for (user, roles) in USERS {
        grant(server, user, &root, Policy::of_roles(roles.iter().copied()));
    }
    let second: OrgId = "OSEC".parse().unwrap();
    grant(server, "u_subadmin", &second, Policy::of_roles([Role::Administrator]));
    grant(server, "u_victim", &second, Policy::of_roles([Role::Reader]));
    grant(server, "u_norole2", &root, Policy::default());
    let pusher = Policy::default().with_permissions(Permissions::of(&[Permission::AnyQuery])).with_queue("System.Flow.Completion");
    grant(server, "q_push", &root, pusher);
}
