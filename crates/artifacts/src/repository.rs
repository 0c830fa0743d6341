//! The artifacts that an organisation knows: its own, those that the configuration loads, the built-in ones, and what it inherits.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use talon_ids::ArtifactName;
use talon_proto as proto;

use crate::{ArtifactError, Definition, builtin};

/// The most artifacts of one repository.
const MAX_ARTIFACTS: usize = 50_000;

/// Where a definition comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// Compiled into the program.
    BuiltIn,
    /// Loaded by the configuration: replaces a compiled-in one, and cannot be edited either.
    Configured,
    /// Written by users.
    Custom,
}

/// A definition in a repository.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The definition, under the name that it was asked for.
    pub definition: Arc<Definition>,
    /// Where it comes from.
    pub layer: Layer,
    /// The artifact that an alias stands for.
    pub alias_of: Option<ArtifactName>,
    /// It belongs to the parent organisation.
    pub inherited: bool,
}

type Entries = BTreeMap<String, Entry>;

/// A set of artifacts. Readers see one state as a whole; names are exact.
#[derive(Default)]
pub struct Repository {
    parent: Option<Arc<Repository>>,
    entries: RwLock<Arc<Entries>>,
}

impl Repository {
    /// Knows nothing: for the artifacts that came along with a request.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Knows the built-in artifacts.
    #[must_use]
    pub fn with_built_ins() -> Self {
        let repository = Self::default();
        let mut entries = Entries::new();
        for definition in builtin::definitions() {
            let entry = Entry { definition: Arc::clone(definition), layer: Layer::BuiltIn, alias_of: None, inherited: false };
            entries.insert(definition.name().to_string(), entry);
        }
        repository.publish(entries);
        repository
    }

    /// Knows what `parent` knows, now and later, and its own on top.
    #[must_use]
    pub fn inheriting(parent: Arc<Self>) -> Self {
        Self { parent: Some(parent), entries: RwLock::default() }
    }

    /// Knows the artifacts of a request, and nothing else.
    ///
    /// # Errors
    /// One of them is invalid; the request must not run.
    pub fn of_request(artifacts: &[proto::Artifact]) -> Result<Self, ArtifactError> {
        let repository = Self::empty();
        for artifact in artifacts {
            repository.set(Definition::from_proto(artifact.clone())?, Layer::Custom)?;
        }
        Ok(repository)
    }

    fn snapshot(&self) -> Arc<Entries> {
        Arc::clone(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn publish(&self, entries: Entries) {
        *self.entries.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(entries);
    }

    /// The entry of this exact name.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<Entry> {
        if let Some(entry) = self.snapshot().get(name) {
            return Some(entry.clone());
        }
        let entry = self.parent.as_ref()?.entry(name)?;
        Some(Entry { inherited: true, ..entry })
    }

    /// The definition of `Artifact`, or of `Artifact/Source` with that source only.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Definition>> {
        match name.split_once('/') {
            None => self.entry(name).map(|entry| entry.definition),
            Some((artifact, source)) => self.entry(artifact)?.definition.with_only(source).map(Arc::new),
        }
    }

    /// Every entry, inherited ones too, by name.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<String, Entry> {
        let mut all = self.parent.as_ref().map(|parent| parent.entries()).unwrap_or_default();
        all.values_mut().for_each(|entry| entry.inherited = true);
        all.extend(self.snapshot().iter().map(|(name, entry)| (name.clone(), entry.clone())));
        all
    }

    /// Adds or replaces a definition and its aliases.
    ///
    /// # Errors
    /// A built-in or configured artifact has the name, another artifact has an alias, or a queue of the server would change its type.
    pub fn set(&self, mut definition: Definition, layer: Layer) -> Result<Arc<Definition>, ArtifactError> {
        let mut guard = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let name = definition.name().clone();
        self.may_replace(&guard, &definition, layer)?;
        for alias in definition.aliases() {
            let taken = guard.get(alias.as_str()).cloned().or_else(|| self.parent.as_ref()?.entry(alias.as_str()));
            if *alias == name || taken.is_some_and(|entry| entry.alias_of.as_ref() != Some(&name)) {
                return Err(ArtifactError::AliasTaken { artifact: name.to_string(), alias: alias.to_string() });
            }
        }
        if guard.len().saturating_add(definition.aliases().len()) >= MAX_ARTIFACTS {
            return Err(ArtifactError::TooMany(MAX_ARTIFACTS));
        }
        definition.change_proto(|artifact| artifact.built_in = layer < Layer::Custom);
        let definition = Arc::new(definition);
        let mut entries = Entries::clone(&guard);
        entries.retain(|_, entry| entry.alias_of.as_ref() != Some(&name));
        let entry = |definition, alias_of| Entry { definition, layer, alias_of, inherited: false };
        for alias in definition.aliases() {
            entries.insert(alias.to_string(), entry(Arc::new(definition.as_alias(alias)), Some(name.clone())));
        }
        entries.insert(name.to_string(), entry(Arc::clone(&definition), None));
        *guard = Arc::new(entries);
        Ok(definition)
    }

    fn may_replace(&self, own: &Entries, definition: &Definition, layer: Layer) -> Result<(), ArtifactError> {
        let name = definition.name().as_str();
        if builtin::is_queue(name)
            && builtin::definitions().iter().any(|queue| queue.name().as_str() == name && queue.kind() != definition.kind())
        {
            return Err(ArtifactError::invalid(name, "this is a queue of the server and must keep its type"));
        }
        let old = own.get(name).cloned().or_else(|| self.parent.as_ref()?.entry(name));
        match old {
            Some(entry) if entry.layer < Layer::Custom && layer > Layer::Configured => Err(ArtifactError::BuiltIn(name.to_owned())),
            Some(Entry { alias_of: Some(other), .. }) => {
                Err(ArtifactError::AliasTaken { artifact: other.to_string(), alias: name.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Replaces what is noted of an artifact beside its definition: whether it is shown, basic, its tags. Built-in artifacts have notes too.
    ///
    /// # Errors
    /// It is not known here.
    pub fn set_metadata(&self, name: &str, metadata: proto::ArtifactMetadata) -> Result<Arc<Definition>, ArtifactError> {
        let mut guard = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let own = guard.get(name).cloned();
        let entry = own.or_else(|| self.parent.as_ref()?.entry(name)).ok_or_else(|| ArtifactError::Unknown(name.to_owned()))?;
        let mut definition = Definition::clone(&entry.definition);
        definition.change_proto(|artifact| artifact.metadata = Some(metadata));
        let definition = Arc::new(definition);
        let mut entries = Entries::clone(&guard);
        entries.insert(name.to_owned(), Entry { definition: Arc::clone(&definition), ..entry });
        *guard = Arc::new(entries);
        Ok(definition)
    }

    /// Removes a user's definition and its aliases.
    ///
    /// # Errors
    /// It is built in, or there is none here.
    pub fn remove(&self, name: &str) -> Result<(), ArtifactError> {
        let mut guard = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let old = guard.get(name).cloned();
        match old.or_else(|| self.parent.as_ref()?.entry(name)) {
            Some(entry) if entry.layer < Layer::Custom => return Err(ArtifactError::BuiltIn(name.to_owned())),
            Some(entry) if entry.alias_of.is_none() && guard.contains_key(name) => {}
            _ => return Err(ArtifactError::Unknown(name.to_owned())),
        }
        let mut entries = Entries::clone(&guard);
        entries.retain(|key, entry| key != name && entry.alias_of.as_ref().map(ArtifactName::as_str) != Some(name));
        *guard = Arc::new(entries);
        Ok(())
    }

    /// The artifact that a reference means: its name, or without a call the longest known beginning of it.
    pub(crate) fn referred(&self, reference: &crate::Reference) -> Option<Arc<Definition>> {
        let mut name = reference.name.as_str();
        loop {
            if let Some(entry) = self.entry(name) {
                return Some(entry.definition);
            }
            if reference.called {
                return None;
            }
            name = name.rsplit_once('.')?.0;
        }
    }
}
