//! The deployment of a case: an embedded server in a folder of its own, its administrator, and the scope in which queries run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use talon_acl::Role;
use talon_artifacts::Resolver;
use talon_audit::{Log, SigningKey};
use talon_config::{Configuration, MergePatch, ServerConfig};
use talon_crypto::{Rng, SystemRng};
use talon_endpoint_vql::{LogFeed, Uploads};
use talon_ids::{OrgId, Permission, Permissions};
use talon_server::{Server, ServerOptions, Session, Settings};
use talon_store::{AuditFiles, BlockEncoding, Embedded, Engine as _, ObjectName, Options, RowBlock, StoreError, Txn};
use talon_vql::regex::Regex;
use talon_vql::{ArtifactName, CancelToken, Dict, Environment, Extensions, LogSink, Registry, Restrictions, Scope, Time, Value, json};
use talon_wire::Limits;

use super::builtins;
use super::container::Container;
use super::echo::Echo;
use crate::config::now;
use crate::deployment::restriction;

/// Nanoseconds since 1970 at which cases take place.
const MOMENT: u64 = 1_590_938_885_000_000_010;
/// Lines of the log that fail a case.
const FAILURES: &str = r"Symbol .+ not found|Field .+ Expecting a .+ arg type, not|Artifact .+ not found|Order by column .+ not present in row|PANIC runtime error:|Extra unrecognized arg";
/// Internals that stock scopes show by name.
const INTERNALS: [&str; 5] = ["$acl", "$uploader", "Artifact", "$repository", "$root"];

/// What all cases of a run share: a configuration with its keys, which take a while to make.
pub(super) struct World {
    base: Configuration,
    echo: Arc<Echo>,
}

/// Changes of the configuration for one case. Each is JSON, perhaps inside a text.
pub(super) struct Edits<'a> {
    /// JSON patches (RFC 6902).
    pub(super) patches: &'a [serde_json::Value],
    /// JSON merge patches (RFC 7396).
    pub(super) merges: &'a [serde_json::Value],
}

impl World {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { base: talon_config::generate(&[], &SystemRng, now())?, echo: Arc::default() })
    }

    /// A fresh deployment.
    pub(super) fn open(&self, edits: &Edits<'_>) -> Result<Stage> {
        let folder = tempfile::Builder::new().prefix("talon-golden-").tempdir().context("cannot make a temporary folder")?;
        let config = ServerConfig::new(self.edited(edits)?)?;
        let clock = Arc::new(CaseClock { moment: AtomicU64::new(MOMENT), started: Instant::now() });
        let key = SigningKey::generate("golden", &SystemRng)?;
        let audit = Log::open(Arc::new(AuditFiles::open(&folder.path().join("audit"))?), key, Arc::new(SystemRng))?;
        let identity = config.frontend_identity();
        let engine = Arc::new(Embedded::open(folder.path().join("store"), Options::default())?);
        let server = Server::open(ServerOptions {
            settings: Settings::from_config(&config)?,
            certificate_pem: identity.certificate().pem(),
            certificate_name: identity.certificate().subject_name().to_owned(),
            key: identity.key().clone(),
            engine: engine.clone(),
            audit: Arc::new(audit),
            restriction: restriction(&config)?,
            clock: clock.clone(),
            rng: Arc::new(CountingRng::default()),
            registry: Arc::new(registry(&config)),
            extensions: extensions(&config, &engine)?,
            limits: Limits::default(),
        })?;
        let output = folder.path().join("output");
        std::fs::write(&output, "")?;
        let container = Arc::new(Container::create(&folder.path().join("uploads.zip"))?);
        let session = server.own_session(&OrgId::root())?.reduced_to(administrator());
        let client = config.client_config(None)?.configuration().to_json()?;
        let client = json::decode(client.as_bytes()).map_err(|error| anyhow!("{error}"))?;
        let client = client.as_dict().and_then(|sections| sections.get("Client").cloned()).unwrap_or_default();
        let output = output.to_string_lossy().into_owned();
        Ok(Stage { session, log: Arc::new(CaseLog::new()?), clock, container, echo: self.echo.clone(), output, client, _folder: folder })
    }

    fn edited(&self, edits: &Edits<'_>) -> Result<Configuration> {
        let mut config = self.base.clone();
        for merge in edits.merges {
            config = config.merge(&[MergePatch::parse("ConfigMerges", &structured(merge)?.to_string())?])?;
        }
        for patch in edits.patches {
            let patch: json_patch::Patch = serde_json::from_value(structured(patch)?).context("ConfigPatches")?;
            let mut document = serde_json::from_str(&config.to_json()?)?;
            json_patch::patch(&mut document, &patch).context("ConfigPatches")?;
            config = Configuration::from_text("ConfigPatches", &document.to_string())?;
        }
        Ok(config)
    }
}

fn structured(edit: &serde_json::Value) -> Result<serde_json::Value> {
    match edit {
        serde_json::Value::String(text) => serde_json::from_str(text).context("a change of the configuration is not JSON"),
        other => Ok(other.clone()),
    }
}

/// What cases may do.
fn administrator() -> Permissions {
    Role::Administrator.permissions(&OrgId::root()).union(Permissions::of(&[Permission::OrgAdmin]))
}

/// The built-ins of queries on a server, without those that the configuration takes away, and those of cases.
fn registry(config: &ServerConfig) -> Registry {
    let security = config.security();
    let mut registry = talon_endpoint_vql::registry();
    registry.merge(talon_server_vql::registry());
    registry.restrict(&Restrictions {
        allowed_plugins: security.allowed_plugins.clone(),
        allowed_functions: security.allowed_functions.clone(),
        denied_plugins: security.denied_plugins.clone(),
        denied_functions: security.denied_functions.clone(),
    });
    builtins::register(&mut registry);
    registry
}

fn extensions(config: &ServerConfig, engine: &Arc<Embedded>) -> Result<Extensions> {
    let security = config.security();
    let accessors = talon_server_vql::accessors()
        .restricted(&security.allowed_accessors, &security.denied_accessors)
        .map_err(|name| anyhow!("Unknown accessor in allow list: {name}; correct security.allowed_accessors"))?;
    let mut extensions = Extensions::default();
    extensions.insert(Arc::new(accessors));
    extensions.insert(Arc::new(Files(engine.clone())));
    Ok(extensions)
}

/// The store of a case, into which it may put files.
pub(super) struct Files(Arc<Embedded>);

impl Files {
    /// Writes a file of an organisation, in place of what was there.
    pub(super) fn write(&self, org: &OrgId, components: Vec<String>, data: Vec<u8>) -> Result<(), StoreError> {
        let (org, name) = (org.clone(), ObjectName::new(components));
        let chunk = RowBlock { plain_len: data.len() as u64, data: data.into(), count: 0, encoding: BlockEncoding::Plain };
        let work = move |txn: &mut dyn Txn| {
            txn.delete_object(&org, &name)?;
            txn.append_upload(&org, &name, 0, chunk)?;
            txn.finish_upload(&org, &name)
        };
        self.0.submit(Box::new(work)).wait()
    }
}

/// A deployment at work on one case. Its folder goes with it.
pub(super) struct Stage {
    session: Session,
    pub(super) log: Arc<CaseLog>,
    clock: Arc<CaseClock>,
    container: Arc<Container>,
    echo: Arc<Echo>,
    output: String,
    client: Value,
    _folder: tempfile::TempDir,
}

impl Stage {
    /// The scope of a case. Names stand in the order that stock scopes show.
    pub(super) fn scope(&self, given: &[(String, String)], cancel: CancelToken) -> Scope {
        let mut variables =
            Dict::new().with("GoldenOutput", self.output.as_str()).with("_SessionId", "F.Golden").with("$mock", Value::opaque());
        given.iter().for_each(|(name, value)| variables.set(name.clone(), value.as_str()));
        variables.set("$device_manager", Value::opaque());
        variables.set("config", self.client.clone());
        INTERNALS.iter().for_each(|name| variables.set(*name, Value::opaque()));
        variables.update("Artifact", Value::Object(Arc::new(ArtifactName::default())));
        let authority = Arc::new(self.session.authority().clone());
        let environment: Environment = talon_endpoint_vql::with_authority(self.session.environment(), authority);
        environment
            .log(self.log.clone())
            .clock(self.clock.clone())
            .random(Arc::new(talon_vql::Counter::default()))
            .artifacts(Arc::new(Resolver::new(self.session.org().artifacts().clone())))
            .cancel(cancel)
            .extension(self.log.clone())
            .extension(self.log.feed.clone())
            .extension(self.clock.clone())
            .extension(self.echo.clone())
            .extension(Arc::new(Uploads(self.container.clone())))
            .with_variables(variables)
            .open()
    }
}

/// The log of a case.
pub(super) struct CaseLog {
    fatal: Regex,
    state: Mutex<(Vec<String>, Option<String>)>,
    feed: Arc<LogFeed>,
}

impl CaseLog {
    fn new() -> Result<Self> {
        let fatal = Regex::ignoring_case(FAILURES.as_bytes()).map_err(|error| anyhow!("{error}"))?;
        Ok(Self { fatal, state: Mutex::default(), feed: Arc::default() })
    }

    /// Takes the lines out.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// The first line that fails the case.
    pub(super) fn failure(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

impl LogSink for CaseLog {
    fn log(&self, line: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !line.starts_with("Running query ") && self.fatal.is_match(line.as_bytes()) {
            state.1.get_or_insert_with(|| line.to_owned());
        }
        state.0.push(line.to_owned());
        drop(state);
        self.feed.publish(Time::from_unix_nanos(i128::from(MOMENT)), "Velociraptor", "INFO", &format!("Velociraptor: {line}"));
    }
}

/// The clock of a case: its date stands still until the case changes it, but waiting waits and timeouts pass.
#[derive(Debug)]
pub(super) struct CaseClock {
    moment: AtomicU64,
    started: Instant,
}

impl CaseClock {
    /// Moves the date.
    pub(super) fn set(&self, moment: Time) {
        self.moment.store(u64::try_from(moment.unix_nanos()).unwrap_or_default(), Ordering::SeqCst);
    }
}

impl talon_vql::Clock for CaseClock {
    fn now(&self) -> Time {
        Time::from_unix_nanos(self.moment.load(Ordering::SeqCst).into())
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl talon_server::Clock for CaseClock {
    fn now_ns(&self) -> u64 {
        self.moment.load(Ordering::SeqCst)
    }
}

/// Counts where others draw lots, so that the ids of a case are the same in each run.
#[derive(Default)]
struct CountingRng(AtomicU64);

impl Rng for CountingRng {
    fn fill(&self, out: &mut [u8]) {
        let number = self.0.fetch_add(1, Ordering::SeqCst).to_be_bytes();
        out.fill(0);
        out.iter_mut().rev().zip(number.iter().rev()).for_each(|(to, from)| *to = *from);
    }
}
