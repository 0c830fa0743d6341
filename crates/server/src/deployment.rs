//! The deployment: everything that the services share, the registry of organisations, and the first start.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use bytes::Bytes;
use talon_acl::{Policy, Restriction, Role};
use talon_audit::{Details, Log};
use talon_crypto::{Rng, RsaPrivateKey, RsaPublicKey};
use talon_ids::{ClientId, OrgId, UserName};
use talon_proto::{OrgRecord, VelociraptorUser};
use talon_store::{Engine, Scan, Space};
use talon_vql::{Extensions, Registry};
use talon_wire::{Limits, LookupError, Obfuscator, ServerCodec, TaskIds};

use crate::ServerError;
use crate::clock::Clock;
use crate::endpoint::Load;
use crate::layout::{decode, put};
use crate::org::Org;
use crate::session::Session;
use crate::settings::Settings;
use crate::transaction::Pending;
use crate::users::{Directory, Passwords};

/// The record that says that the deployment was started before.
const INSTALLED: &[u8] = b"install_time";

/// What a server is made of. Everything outside arrives here: storage, time, randomness, built-ins.
pub struct ServerOptions {
    /// The settings.
    pub settings: Settings,
    /// The frontend's certificate, served to agents, in PEM.
    pub certificate_pem: String,
    /// The subject name of that certificate, by which agents know the server.
    pub certificate_name: String,
    /// The key of that certificate.
    pub key: RsaPrivateKey,
    /// Where state is kept.
    pub engine: Arc<dyn Engine>,
    /// The audit log.
    pub audit: Arc<Log>,
    /// Lockdown and locks.
    pub restriction: Arc<dyn Restriction>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub rng: Arc<dyn Rng>,
    /// The built-ins of queries on the server.
    pub registry: Arc<Registry>,
    /// What else those built-ins find in their environment, such as accessors.
    pub extensions: Extensions,
    /// Bounds on what agents may send.
    pub limits: Limits,
}

/// What all organisations share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) audit: Arc<Log>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) extensions: Extensions,
    pub(crate) names: Obfuscator,
    pub(crate) task_ids: TaskIds,
    server: OnceLock<Weak<ServerState>>,
}

impl Shared {
    /// The deployment, while there is one.
    pub(crate) fn server(&self) -> Option<Server> {
        self.server.get()?.upgrade().map(Server)
    }

    /// A query's name as agents see it.
    pub(crate) fn wire_name(&self, name: &str) -> String {
        if self.settings.plain_names || name.is_empty() {
            return name.to_owned();
        }
        self.names.obfuscate(name).unwrap_or_else(|_| name.to_owned())
    }
}

/// A deployment at work. Cheap to clone.
#[derive(Clone)]
pub struct Server(Arc<ServerState>);

pub(crate) struct ServerState {
    shared: Arc<Shared>,
    users: Directory,
    orgs: RwLock<Orgs>,
    load: Load,
    codec: ServerCodec,
    certificate_pem: Bytes,
    draining: AtomicBool,
    started: AtomicBool,
}

#[derive(Default)]
pub(crate) struct Orgs {
    pub(crate) by_id: BTreeMap<OrgId, Org>,
    pub(crate) by_nonce: HashMap<String, OrgId>,
}

impl Server {
    /// Opens a deployment; at its first start, makes what the configuration wants to be there. Blocks on storage.
    ///
    /// # Errors
    /// [`ServerError::Configuration`] for settings that make no sense, and what storage, artifacts and the audit log fail with.
    pub fn open(options: ServerOptions) -> Result<Self, ServerError> {
        let ServerOptions {
            settings,
            certificate_pem,
            certificate_name,
            key,
            engine,
            audit,
            restriction,
            clock,
            rng,
            registry,
            extensions,
            limits,
        } = options;
        if settings.root_nonce.is_empty() {
            return Err(ServerError::Configuration("Client.nonce is empty: clients could not enrol".into()));
        }
        let users = Directory::new(engine.clone(), settings.superuser.clone(), restriction)
            .with_names(settings.gateway.clone(), settings.ascii_names)
            .with_passwords(if settings.tune_passwords { Passwords::tuned() } else { Passwords::default() })
            .with_assertions(settings.assertions.clone());
        let codec = ServerCodec::new(key, &certificate_name, limits, rng.clone());
        let names = Obfuscator::new(&settings.obfuscation_nonce);
        let shared = Arc::new(Shared {
            settings,
            engine,
            audit,
            clock,
            rng,
            registry,
            extensions,
            names,
            task_ids: TaskIds::default(),
            server: OnceLock::new(),
        });
        let server = Self(Arc::new(ServerState {
            shared,
            users,
            orgs: RwLock::default(),
            load: Load::default(),
            codec,
            certificate_pem: certificate_pem.into(),
            draining: AtomicBool::new(false),
            started: AtomicBool::new(false),
        }));
        // Set once, right here.
        let _ = server.0.shared.server.set(Arc::downgrade(&server.0));
        let nonce = server.0.shared.settings.root_nonce.clone();
        server.register(OrgRecord { id: "root".into(), name: "<root>".into(), nonce, org_id: String::new() })?;
        for (key, value) in server.engine().reader().scan(&OrgId::root(), Space::Orgs, &Scan::default())? {
            server.register(decode(Space::Orgs, &key, &value)?)?;
        }
        server.first_start()?;
        server.resume_purges()?;
        server.users().wrap_stock_passwords(&*server.shared().rng)?;
        server.users().load_locks(server.shared().clock.now_s())?;
        server.watch_rights()?;
        Ok(server)
    }

    /// Starts what runs by itself: the event queries of the server. Settles first what the last process left behind.
    ///
    /// # Errors
    /// What storage and artifacts fail with.
    pub fn start(&self) -> Result<(), ServerError> {
        for org in self.orgs() {
            org.fail_interrupted()?;
            org.start_server_monitoring()?;
        }
        self.0.started.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// The organisation with this id.
    ///
    /// # Errors
    /// [`ServerError::NotFound`].
    pub fn org(&self, id: &OrgId) -> Result<Org, ServerError> {
        self.orgs_state(|orgs| orgs.by_id.get(id).cloned()).ok_or_else(|| ServerError::not_found("Org", id))
    }

    /// All organisations, the root first.
    #[must_use]
    pub fn orgs(&self) -> Vec<Org> {
        self.orgs_state(|orgs| orgs.by_id.values().cloned().collect())
    }

    /// The users of the deployment.
    #[must_use]
    pub fn users(&self) -> &Directory {
        &self.0.users
    }

    /// A session of `principal` in `org`, with what its policies allow now.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] for the organisation, or when storage fails.
    pub fn session(&self, principal: &UserName, org: &OrgId) -> Result<Session, ServerError> {
        let org = self.org(org)?;
        let authority = self.0.users.authority(principal, org.id())?;
        Ok(Session::new(self.clone(), org, authority))
    }

    /// A session of the server itself.
    ///
    /// # Errors
    /// [`ServerError::NotFound`].
    pub fn own_session(&self, org: &OrgId) -> Result<Session, ServerError> {
        Ok(Session::new(self.clone(), self.org(org)?, self.0.users.own_authority(org)))
    }

    /// Starts the thread that ends what runs without the right to, and takes locks out of force in time. It holds nothing that keeps a
    /// deployment alive while it sleeps.
    fn watch_rights(&self) -> Result<(), ServerError> {
        let (state, rights, rules, clock) =
            (Arc::downgrade(&self.0), self.users().rights().clone(), self.users().rules().clone(), self.shared().clock.clone());
        let watch = move || {
            let mut seen = 0;
            loop {
                let changes = rights.wait(seen);
                let ended = rules.locks().locks().iter().any(|lock| lock.is_over(clock.now_s()));
                if changes == seen && !ended && state.strong_count() > 0 {
                    continue;
                }
                seen = changes;
                let Some(server) = state.upgrade().map(Server) else { return };
                if ended && let Err(error) = server.users().end_locks(clock.now_s()) {
                    tracing::error!(%error, "a lock whose time is over stays in force");
                }
                server.review_rights();
            }
        };
        let started = std::thread::Builder::new().name("rights".into()).spawn(watch);
        started.map(drop).map_err(|error| ServerError::Configuration(format!("no thread to watch over rights: {error}")))
    }

    /// Decides anew for everything that runs.
    fn review_rights(&self) {
        self.users().rights().review(|principal, org| {
            let there = self.orgs_state(|orgs| orgs.by_id.contains_key(org));
            let authority = self.users().authority(principal, org).ok().filter(|_| there);
            authority.map(|authority| authority.held()).unwrap_or_default()
        });
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.shared.settings
    }

    /// Stops taking messages: `/healthz` says so, readers are let go.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
        for org in self.orgs() {
            org.state().readers.wake_all();
            org.state().server_table.stop();
            org.state().runs.stop();
            org.state().notebooks.stop();
        }
    }

    pub(crate) fn register(&self, record: OrgRecord) -> Result<Org, ServerError> {
        let org = Org::new(record, self.0.shared.clone(), self.org(&OrgId::root()).ok().as_ref())?;
        let mut orgs = self.0.orgs.write().unwrap_or_else(PoisonError::into_inner);
        orgs.by_nonce.insert(org.nonce().to_owned(), org.id().clone());
        orgs.by_id.insert(org.id().clone(), org.clone());
        drop(orgs);
        if self.0.started.load(Ordering::SeqCst) {
            org.start_server_monitoring()?;
        }
        Ok(org)
    }

    /// Makes the organisations and administrators that the configuration names, once in the life of a deployment.
    fn first_start(&self) -> Result<(), ServerError> {
        let root = OrgId::root();
        if self.engine().reader().get(&root, Space::Deployment, INSTALLED)?.is_some() {
            return Ok(());
        }
        let settings = &self.0.shared.settings;
        let mut orgs = vec![root.clone()];
        for org in &settings.initial_orgs {
            let id = org.id.clone().map_or_else(|| self.new_org_id(), Ok)?;
            if self.org(&id).is_err() {
                self.add_org(OrgRecord { id: id.to_string(), name: org.name.clone(), nonce: org.nonce.clone(), org_id: String::new() })?;
            }
            orgs.push(id);
        }
        for user in &settings.initial_users {
            if self.0.users.user(&user.name)?.is_some() {
                continue;
            }
            let operation = "Granting administrator role, because user is specified in the config's initial users";
            let receipt = self.org(&root)?.record("SanityService", operation, Details::new().text("user", user.name.as_str()))?;
            drop(receipt);
            let (user, orgs) = (user.clone(), orgs.clone());
            let mut record = VelociraptorUser { name: user.name.to_string(), ..VelociraptorUser::default() };
            if !user.password_hash.is_empty() {
                let stored = self.0.users.passwords().wrap(&user.password_hash, &user.password_salt, &*self.shared().rng)?;
                record.password_hash = stored.hash;
                record.password_salt = stored.salt;
            }
            Pending::submit(self.engine(), move |txn| {
                let key = user.name.folded().into_bytes();
                put(txn, &OrgId::root(), Space::Users, &key, &record);
                for org in &orgs {
                    put(txn, org, Space::Policies, &key, &Policy::of_roles([Role::Administrator]).for_org(org).to_proto());
                }
                Ok(())
            })
            .wait()?;
        }
        let now_s = self.0.shared.clock.now_s();
        Pending::submit(self.engine(), move |txn| {
            txn.put(&OrgId::root(), Space::Deployment, INSTALLED, now_s.to_string().into_bytes());
            Ok(())
        })
        .wait()
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        &*self.0.shared.engine
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(crate) fn load(&self) -> &Load {
        &self.0.load
    }

    pub(crate) fn codec(&self) -> &ServerCodec {
        &self.0.codec
    }

    /// The frontend's certificate, which every agent may have, in PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> Bytes {
        self.0.certificate_pem.clone()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::SeqCst)
    }

    pub(crate) fn orgs_table(&self) -> &RwLock<Orgs> {
        &self.0.orgs
    }

    pub(crate) fn orgs_state<T>(&self, look: impl FnOnce(&Orgs) -> T) -> T {
        look(&self.0.orgs.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Server").field("orgs", &self.orgs()).finish_non_exhaustive()
    }
}

/// What `wire` asks when it opens and seals packets.
impl talon_wire::Directory for Server {
    fn org_of_nonce(&self, nonce: &str) -> Result<Option<OrgId>, LookupError> {
        Ok(self.orgs_state(|orgs| orgs.by_nonce.get(nonce).cloned()))
    }

    fn nonce_of_org(&self, org: &OrgId) -> Result<Option<String>, LookupError> {
        Ok(self.org(org).ok().map(|org| org.nonce().to_owned()))
    }

    fn client_key(&self, org: &OrgId, client: &ClientId) -> Result<Option<RsaPublicKey>, LookupError> {
        match self.org(org) {
            Ok(org) => Ok(org.enrolled_key(client)?),
            Err(_) => Ok(None),
        }
    }
}
