//! The deployment that a configuration describes, reached in the way that is open: the running server, or the store when it does not run.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use talon_acl::{Restriction, Unrestricted};
use talon_audit::{Details, Log, Phase, Receipt, Record, SigningKey};
use talon_config::ServerConfig;
use talon_crypto::SystemRng;
use talon_ids::{OrgId, UserName};
use talon_lockdown::Lockdown;
use talon_proto::prost::Message as _;
use talon_proto::{OrgRecord, VqlCollectorArgs, VqlEnv, VqlRequest};
use talon_server::Directory;
use talon_store::{AuditFiles, Embedded, Engine as _, Options, Scan, Space, StoreError};
use talon_vql::Dict;

use crate::api::{Api, as_superuser};
use crate::query::{is_chatter, rows};

/// The way in.
pub(crate) enum Access {
    /// The server runs: through its API, as the superuser.
    Running(Box<Running>),
    /// The server does not run: the store is ours.
    Stopped(Box<Stopped>),
}

/// Opens the deployment. Whether the server runs is decided by the lock on its store.
pub(crate) fn open(server: &ServerConfig) -> Result<Access> {
    let folder = server.data_directory();
    match Embedded::open(&folder, Options::default()) {
        Ok(store) => Ok(Access::Stopped(Box::new(Stopped::new(server, store)?))),
        Err(StoreError::Locked { .. }) => {
            let api = Api::connect(&as_superuser(server)?).context("the server runs")?;
            Ok(Access::Running(Box::new(Running { api, log: Vec::new() })))
        }
        Err(error) => Err(error).with_context(|| format!("cannot open the store in {}", folder.display())),
    }
}

/// A server that runs.
pub(crate) struct Running {
    api: Api,
    /// What the server logged about the last query.
    log: Vec<String>,
}

impl Running {
    /// A server reached over this connection.
    pub(crate) fn over(api: Api) -> Self {
        Self { api, log: Vec::new() }
    }

    /// The rows of a query. What its log calls an error is one. Queries are audited with their text, and variables by name only: secrets must be
    /// variables.
    pub(crate) fn query(&mut self, org: &OrgId, vql: String, variables: &[(&str, &str)]) -> Result<Vec<Arc<Dict>>> {
        let variable = |(key, value): &(&str, &str)| VqlEnv { key: (*key).to_owned(), value: (*value).to_owned(), ..VqlEnv::default() };
        let request = VqlCollectorArgs {
            query: vec![VqlRequest { vql, ..VqlRequest::default() }],
            env: variables.iter().map(variable).collect(),
            max_row: 1000,
            org_id: if org.is_root() { String::new() } else { org.to_string() },
            ..VqlCollectorArgs::default()
        };
        let (mut all, mut errors) = (Vec::new(), Vec::new());
        self.log.clear();
        self.api.query(request, |answer| {
            let line = answer.log.trim_end();
            if let Some(error) = line.strip_prefix("ERROR:") {
                errors.push(error.to_owned());
            } else if !line.is_empty() && !is_chatter(line) {
                self.log.push(line.to_owned());
            }
            if !answer.response.is_empty() {
                all.extend(rows(&answer.response)?);
            }
            Ok(())
        })?;
        if errors.is_empty() { Ok(all) } else { bail!("{}", errors.join("; ")) }
    }

    /// What the server logged about the last query.
    pub(crate) fn log(&self) -> String {
        self.log.join("; ")
    }
}

/// The store of a server that does not run.
pub(crate) struct Stopped {
    pub(crate) directory: Directory,
    store: Arc<Embedded>,
    audit: Log,
}

impl Stopped {
    fn new(server: &ServerConfig, store: Embedded) -> Result<Self> {
        let superuser: UserName = server.server_name().parse().context("Client.pinned_server_name")?;
        let folder = server.audit_directory();
        let cure = || format!("cannot open the audit log in {}", folder.display());
        let key = AuditFiles::load_or_create_key(&folder, || SigningKey::generate(server.audit_origin(), &SystemRng)).with_context(cure)?;
        let audit = Log::open(Arc::new(AuditFiles::open(&folder).with_context(cure)?), key, Arc::new(SystemRng)).with_context(cure)?;
        let store = Arc::new(store);
        Ok(Self { directory: Directory::new(store.clone(), superuser, restriction(server)?), store, audit })
    }

    /// The secret that agents of an organisation carry, if there is one.
    pub(crate) fn nonce_of(&self, org: &OrgId) -> Result<Option<String>> {
        let records = self.store.reader().scan(&OrgId::root(), Space::Orgs, &Scan::default())?;
        let records = records.iter().map(|(_, value)| OrgRecord::decode(value.as_slice())).collect::<Result<Vec<_>, _>>()?;
        Ok(records.into_iter().find(|record| record.id == org.as_str()).map(|record| record.nonce))
    }

    /// Puts on record what is about to be done, by whoever runs this program.
    pub(crate) fn record(&self, org: &OrgId, operation: &str, details: Details) -> Result<Receipt> {
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let time = i64::try_from(nanoseconds).unwrap_or(i64::MAX);
        let mut record = Record::new(time, org.clone(), self.directory.superuser().as_str(), operation, Phase::Intended);
        let login = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
        record.details = details.text("_command_line_user", &login);
        self.audit.append(&record).context("the audit log cannot be written, so nothing was changed")
    }
}

/// Lockdown binds the command line too: it is left by a change of the configuration only.
pub(crate) fn restriction(server: &ServerConfig) -> Result<Arc<dyn Restriction>> {
    if !server.lockdown() {
        return Ok(Arc::new(Unrestricted));
    }
    let denied = &server.security().lockdown_denied_permissions;
    let names = denied.iter().map(String::as_str);
    let lockdown = if server.talon().lockdown_replace { Lockdown::replacing(names) } else { Lockdown::new(names) };
    Ok(Arc::new(lockdown.context("security.lockdown_denied_permissions")?))
}
