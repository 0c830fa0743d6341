//! The artifacts of an organisation: built-in ones, its own, and those of the root organisation; who may collect and change them.

use std::collections::BTreeMap;
use std::sync::Arc;

use talon_acl::{Authority, CollectClient, CollectServer, Permit};
use talon_artifacts::{Batching, Compiler, Definition, Layer, Repository, ToolEnvironment};
use talon_audit::{Details, Receipt};
use talon_ids::{ArtifactName, OrgId, Permission, Permissions};
use talon_proto::{ArtifactCollectorArgs, ArtifactMetadata, ArtifactMetadataStorage, VqlCollectorArgs};
use talon_store::{Engine, Scan, Space};

use crate::ServerError;
use crate::layout::{get, put};
use crate::org::Org;
use crate::session::Session;
use crate::settings::Settings;
use crate::transaction::Pending;

pub(crate) use talon_artifacts::ArtifactType;

/// The built-in artifacts, and those that the configuration loads in front of them.
fn with_configured(definitions: &[Definition]) -> Repository {
    let repository = Repository::with_built_ins();
    for definition in definitions {
        if let Err(error) = repository.set(definition.clone(), Layer::Configured) {
            tracing::warn!(artifact = %definition.name(), %error, "an artifact of the configuration does not load");
        }
    }
    repository
}

/// The record of what is noted of artifacts beside their definitions.
const METADATA_KEY: &[u8] = b"repository_metadata";

/// The artifacts that an organisation knows.
pub(crate) struct Catalog {
    repository: Arc<Repository>,
}

impl Catalog {
    /// Loads an organisation's own artifacts on top of those of `parent`, or else of the built-in ones and those of the configuration.
    pub(crate) fn load(engine: &dyn Engine, org: &OrgId, parent: Option<&Self>, settings: &Settings) -> Result<Self, ServerError> {
        let repository = match parent {
            Some(parent) => Repository::inheriting(parent.repository.clone()),
            None => with_configured(&settings.definitions),
        };
        for (name, yaml) in engine.reader().scan(org, Space::Artifacts, &Scan::default())? {
            let loaded =
                Definition::from_yaml(&String::from_utf8_lossy(&yaml)).and_then(|definition| repository.set(definition, Layer::Custom));
            if let Err(error) = loaded {
                // It was sound when it was written; a newer server must not refuse to start because of it.
                tracing::error!(%org, artifact = %String::from_utf8_lossy(&name), %error, "a stored artifact does not load");
            }
        }
        let notes: Option<ArtifactMetadataStorage> = get(engine.reader(), org, Space::Settings, METADATA_KEY)?;
        for (name, metadata) in notes.unwrap_or_default().metadata {
            // The artifact may be gone since.
            let _ = repository.set_metadata(&name, metadata);
        }
        Ok(Self { repository: Arc::new(repository) })
    }

    pub(crate) fn repository(&self) -> &Arc<Repository> {
        &self.repository
    }

    /// The type of an artifact, `None` for one that is not known.
    pub(crate) fn kind(&self, name: &ArtifactName) -> Option<ArtifactType> {
        self.repository.get(name.as_str()).map(|definition| definition.kind())
    }

    /// The proof that the caller may collect all artifacts of a request.
    pub(crate) fn permit_collection(
        &self,
        authority: &Authority,
        request: &ArtifactCollectorArgs,
    ) -> Result<Permit<CollectClient>, ServerError> {
        let definitions = Compiler::new(&self.repository).definitions(request)?;
        Ok(authority.permit_collection(definitions.iter().map(|(definition, _)| demand(definition)))?)
    }

    /// The proof that the caller may run all artifacts of a request on the server.
    pub(crate) fn permit_server_collection(
        &self,
        authority: &Authority,
        request: &ArtifactCollectorArgs,
    ) -> Result<Permit<CollectServer>, ServerError> {
        let definitions = Compiler::new(&self.repository).definitions(request)?;
        Ok(authority.permit_server_collection(definitions.iter().map(|(definition, _)| demand(definition)))?)
    }

    /// The requests of an event table's artifacts. One that was deleted since is passed over.
    pub(crate) fn compile_events(
        &self,
        request: &ArtifactCollectorArgs,
        metadata: &BTreeMap<String, String>,
        tools: &ToolEnvironment<'_>,
    ) -> Result<Vec<VqlCollectorArgs>, ServerError> {
        let lookup = |key: &str| metadata.get(key).cloned();
        Ok(Compiler::new(&self.repository).tolerant().server_metadata(&lookup).tools(tools).compile(request)?)
    }

    /// A request with its compiled queries, whose names are in clear, and the limits that its artifacts give it.
    pub(crate) fn compile(
        &self,
        mut request: ArtifactCollectorArgs,
        settings: &Settings,
        metadata: &BTreeMap<String, String>,
        tools: &ToolEnvironment<'_>,
    ) -> Result<ArtifactCollectorArgs, ServerError> {
        let batching = Batching { max_rows: settings.batch_rows, max_bytes: settings.batch_bytes, max_wait: settings.batch_wait.as_secs() };
        let lookup = |key: &str| metadata.get(key).cloned();
        let compiler = Compiler::new(&self.repository).batching(batching).server_metadata(&lookup).tools(tools);
        let compiled = compiler.compile(&request)?;
        let limits = compiler.collection_limits(&request, &compiled)?;
        request.compiled_collector_args = compiled;
        request.max_rows = limits.max_rows;
        request.max_upload_bytes = limits.max_upload_bytes;
        request.timeout = limits.timeout;
        request.cpu_limit = limits.cpu_limit;
        request.ops_per_second = limits.ops_per_second;
        request.iops_limit = limits.iops_limit;
        Ok(request)
    }
}

/// What a check of an artifact has found.
#[derive(Debug, Default)]
pub struct ArtifactCheck {
    /// It does not work.
    pub errors: Vec<String>,
    /// It may not do what its author wants.
    pub warnings: Vec<String>,
}

/// What an artifact asks for: its name, whether it is a basic one, and its own permissions.
fn demand(definition: &Definition) -> (&str, bool, Permissions) {
    let basic = definition.proto().metadata.as_ref().is_some_and(|metadata| metadata.basic);
    (definition.name().as_str(), basic, definition.required_permissions())
}

/// What it takes to write an artifact: the type decides.
fn writer(kind: ArtifactType) -> Permission {
    match kind {
        ArtifactType::Client | ArtifactType::ClientEvent | ArtifactType::Internal => Permission::ArtifactWriter,
        _ => Permission::ServerArtifactWriter,
    }
}

impl Session {
    /// Writes an artifact of the organisation's own. With a `prefix`, its name is made to begin with it.
    ///
    /// # Errors
    /// [`ServerError::Artifact`] for a bad definition or a built-in name, [`ServerError::Denied`] without the permission that its type asks for.
    pub fn set_artifact(&self, yaml: &str, prefix: &str) -> Result<Arc<Definition>, ServerError> {
        self.write_artifact("SetArtifactFile", yaml, prefix)
    }

    fn write_artifact(&self, operation: &str, yaml: &str, prefix: &str) -> Result<Arc<Definition>, ServerError> {
        let mut definition = Definition::from_yaml(yaml)?;
        let mut text = yaml.to_owned();
        if !prefix.is_empty() && !definition.name().as_str().starts_with(prefix) {
            let name = definition.name().to_string();
            text = yaml.replacen(&format!("name: {name}"), &format!("name: {prefix}{name}"), 1);
            definition = Definition::from_yaml(&text)?;
        }
        self.may_write(&definition)?;
        if let Some(old) = self.org().catalog().repository().get(definition.name().as_str()) {
            self.may_write(&old)?;
        }
        let details = Details::new().text("artifact", definition.name().as_str()).text("details", &text);
        let receipt = self.record(operation, details)?;
        self.org().set_artifact(receipt, definition, text)
    }

    /// Writes an artifact of a pack: as [`Session::set_artifact`].
    ///
    /// # Errors
    /// As [`Session::set_artifact`].
    pub fn load_artifact(&self, yaml: &str, prefix: &str) -> Result<Arc<Definition>, ServerError> {
        self.write_artifact("LoadArtifactPack", yaml, prefix)
    }

    /// Deletes an artifact of the organisation's own.
    ///
    /// # Errors
    /// [`ServerError::NotFound`], [`ServerError::Artifact`] for a built-in one, [`ServerError::Denied`].
    pub fn delete_artifact(&self, name: &str) -> Result<(), ServerError> {
        self.writable(name)?;
        let receipt = self.record("artifact_delete", Details::new().text("artifact", name))?;
        self.org().delete_artifact(receipt, name)
    }

    /// Changes what is noted of an artifact beside its definition; what is `None` stays as it is.
    ///
    /// # Errors
    /// [`ServerError::NotFound`], [`ServerError::Denied`] without the permission that its type asks for.
    pub fn set_artifact_metadata(
        &self,
        name: &str,
        hidden: Option<bool>,
        basic: Option<bool>,
        tags: Option<Vec<String>>,
    ) -> Result<(), ServerError> {
        let definition = self.writable(name)?;
        let mut metadata = definition.proto().metadata.clone().unwrap_or_default();
        metadata.hidden = hidden.unwrap_or(metadata.hidden);
        metadata.basic = basic.unwrap_or(metadata.basic);
        metadata.tags = tags.unwrap_or(metadata.tags);
        let details = Details::new()
            .text("artifact", name)
            .flag("hidden", metadata.hidden)
            .flag("basic", metadata.basic)
            .list("tags", &metadata.tags);
        let receipt = self.record("artifact_set_metadata", details)?;
        self.org().set_artifact_metadata(receipt, name, metadata)
    }

    /// An artifact that the caller may write. Only who may write some artifact is told that there is none of that name.
    fn writable(&self, name: &str) -> Result<Arc<Definition>, ServerError> {
        let Some(definition) = self.org().artifacts().get(name) else {
            self.authority().check(Permissions::of(&[Permission::ArtifactWriter]))?;
            return Err(ServerError::not_found("Artifact", name));
        };
        self.may_write(&definition)?;
        Ok(definition)
    }

    fn may_write(&self, definition: &Definition) -> Result<(), ServerError> {
        Ok(self.authority().check(Permissions::of(&[writer(definition.kind())]))?)
    }
}

impl Org {
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.state().catalog
    }

    /// The artifacts that this organisation knows.
    #[must_use]
    pub fn artifacts(&self) -> &Arc<Repository> {
        self.catalog().repository()
    }

    fn set_artifact_metadata(&self, receipt: Receipt, name: &str, metadata: ArtifactMetadata) -> Result<(), ServerError> {
        drop(receipt);
        let (org, key, value) = (self.id().clone(), name.to_owned(), metadata.clone());
        self.submit(move |txn| {
            let mut notes: ArtifactMetadataStorage = get(&*txn, &org, Space::Settings, METADATA_KEY)?.unwrap_or_default();
            notes.metadata.insert(key, value);
            put(txn, &org, Space::Settings, METADATA_KEY, &notes);
            Ok(())
        })
        .wait()?;
        self.artifacts().set_metadata(name, metadata)?;
        Ok(())
    }

    /// What is wrong with an artifact, and what might be.
    #[must_use]
    pub fn check_artifact(&self, yaml: &str) -> ArtifactCheck {
        let mut check = ArtifactCheck::default();
        if let Err(error) = Definition::from_yaml(yaml) {
            check.errors.push(error.to_string());
        }
        check
    }

    fn set_artifact(&self, receipt: Receipt, definition: Definition, yaml: String) -> Result<Arc<Definition>, ServerError> {
        drop(receipt);
        // The repository refuses what must not be replaced, so it goes first; what cannot be stored is taken back.
        let name = definition.name().clone();
        let old = self.artifacts().get(name.as_str()).filter(|old| !old.proto().built_in);
        let set = self.artifacts().set(definition, Layer::Custom)?;
        let notes: Option<ArtifactMetadataStorage> = get(self.reader(), self.id(), Space::Settings, METADATA_KEY)?;
        if let Some(metadata) = notes.and_then(|mut notes| notes.metadata.remove(name.as_str())) {
            self.artifacts().set_metadata(name.as_str(), metadata)?;
        }
        let (org, key) = (self.id().clone(), name.clone());
        let stored: Pending<()> = self.submit(move |txn| {
            txn.put(&org, Space::Artifacts, key.as_str().as_bytes(), yaml.into_bytes());
            Ok(())
        });
        if let Err(error) = stored.wait() {
            match old {
                Some(old) => drop(self.artifacts().set(Definition::clone(&old), Layer::Custom)),
                None => drop(self.artifacts().remove(name.as_str())),
            }
            return Err(error);
        }
        self.artifacts_changed(&name)?;
        Ok(set)
    }

    fn delete_artifact(&self, receipt: Receipt, name: &str) -> Result<(), ServerError> {
        drop(receipt);
        let name: ArtifactName = name.parse()?;
        self.artifacts().remove(name.as_str())?;
        let (org, key) = (self.id().clone(), name.clone());
        self.submit(move |txn| {
            txn.delete(&org, Space::Artifacts, key.as_str().as_bytes());
            Ok(())
        })
        .wait()?;
        self.artifacts_changed(&name)
    }

    fn artifacts_changed(&self, name: &ArtifactName) -> Result<(), ServerError> {
        self.recompile_event_table()?;
        self.recompile_server_table()?;
        self.announce("Server.Internal.ArtifactModification", &[("artifact", name.as_str().into())]);
        Ok(())
    }
}
