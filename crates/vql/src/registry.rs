//! The registry: which built-ins a query may name, and what became of those it may not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;

use crate::call::Call;
use crate::error::CallError;
use crate::rows::Rows;
use crate::signature::{Kind, Signature};
use crate::value::Value;

/// A built-in that gives rows.
pub trait Plugin: Send + Sync {
    /// What it is called, takes and needs.
    fn signature(&self) -> &Signature;

    /// Starts the plugin. Permissions are checked and arguments converted by then.
    ///
    /// # Errors
    /// Whatever the user should read; the call then gives no rows.
    fn open(&self, call: Call) -> Result<Rows, CallError>;
}

/// A built-in that gives a value.
pub trait Function: Send + Sync {
    /// What it is called, takes and needs.
    fn signature(&self) -> &Signature;

    /// The value. Permissions are checked and arguments converted by then.
    ///
    /// # Errors
    /// Whatever the user should read; the call then gives NULL.
    fn call(&self, call: Call) -> Result<Value, CallError>;
}

/// A plugin of a signature and a function.
struct PluginFn(Signature, fn(Call) -> Result<Rows, CallError>);

impl Plugin for PluginFn {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn open(&self, call: Call) -> Result<Rows, CallError> {
        (self.1)(call)
    }
}

/// A function of a signature and a function.
struct FunctionFn(Signature, fn(Call) -> Result<Value, CallError>);

impl Function for FunctionFn {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn call(&self, call: Call) -> Result<Value, CallError> {
        (self.1)(call)
    }
}

/// A built-in that is known by name only.
struct Unavailable(Signature);

impl Unavailable {
    fn refuse(&self, call: &Call) -> CallError {
        let reason = self.0.unavailable.unwrap_or("not available here");
        call.scope().log_once(format!("{}: {reason}", self.0.name));
        CallError::Silent
    }
}

impl Plugin for Unavailable {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn open(&self, call: Call) -> Result<Rows, CallError> {
        Err(self.refuse(&call))
    }
}

impl Function for Unavailable {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn call(&self, call: Call) -> Result<Value, CallError> {
        Err(self.refuse(&call))
    }
}

/// What a name stands for.
pub(crate) enum Entry<T: ?Sized> {
    Active(Arc<T>),
    /// Taken away by the allow and deny lists of the configuration.
    Blocked,
    /// Known, but only elsewhere: on the named platforms.
    Elsewhere(Arc<str>),
}

impl<T: ?Sized> Clone for Entry<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Active(builtin) => Self::Active(builtin.clone()),
            Self::Blocked => Self::Blocked,
            Self::Elsewhere(platforms) => Self::Elsewhere(platforms.clone()),
        }
    }
}

/// The lists of the configuration that take built-ins away. An allow list that is `None` or empty allows all; denials always count.
#[derive(Debug, Clone, Default)]
pub struct Restrictions {
    /// `allowed_plugins`
    pub allowed_plugins: Vec<String>,
    /// `allowed_functions`
    pub allowed_functions: Vec<String>,
    /// `denied_plugins`
    pub denied_plugins: Vec<String>,
    /// `denied_functions`
    pub denied_functions: Vec<String>,
}

/// The built-ins of a query.
#[derive(Clone, Default)]
pub struct Registry {
    plugins: BTreeMap<String, Entry<dyn Plugin>>,
    functions: BTreeMap<String, Entry<dyn Function>>,
    /// The functions again, for calls. Made at the first call.
    by_hash: OnceLock<HashMap<String, Entry<dyn Function>, RandomState>>,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The built-ins of this crate: those that touch nothing outside the query.
    #[must_use]
    pub fn core() -> Self {
        let mut registry = Self::new();
        crate::builtins::register(&mut registry);
        registry
    }

    /// Adds a plugin; a plugin of the same name gives way.
    pub fn add_plugin(&mut self, plugin: impl Plugin + 'static) {
        self.plugins.insert(plugin.signature().name.to_owned(), Entry::Active(Arc::new(plugin)));
    }

    /// Adds a function; a function of the same name gives way.
    pub fn add_function(&mut self, function: impl Function + 'static) {
        self.functions_mut().insert(function.signature().name.to_owned(), Entry::Active(Arc::new(function)));
    }

    /// Adds a plugin made of a signature and a body.
    pub fn plugin(&mut self, signature: Signature, body: fn(Call) -> Result<Rows, CallError>) {
        self.add_plugin(PluginFn(signature, body));
    }

    /// Adds a function made of a signature and a body.
    pub fn function(&mut self, signature: Signature, body: fn(Call) -> Result<Value, CallError>) {
        self.add_function(FunctionFn(signature, body));
    }

    /// Adds a built-in that is known by name only: each query that calls it logs `<name>: <reason>` once, and gets nothing.
    /// What is there already stays.
    pub fn unavailable(&mut self, signature: Signature) {
        let name = signature.name.to_owned();
        match signature.kind {
            Kind::Plugin => {
                self.plugins.entry(name).or_insert_with(|| Entry::Active(Arc::new(Unavailable(signature))));
            }
            Kind::Function => {
                self.functions_mut().entry(name).or_insert_with(|| Entry::Active(Arc::new(Unavailable(signature))));
            }
        }
    }

    /// Names a built-in that exists on other platforms only: calls say so, `version()` gives −1. What is there already stays.
    pub fn elsewhere(&mut self, kind: Kind, name: &str, platforms: &str) {
        match kind {
            Kind::Plugin => drop(self.plugins.entry(name.to_owned()).or_insert_with(|| Entry::Elsewhere(platforms.into()))),
            Kind::Function => drop(self.functions_mut().entry(name.to_owned()).or_insert_with(|| Entry::Elsewhere(platforms.into()))),
        }
    }

    /// Adds all of `other`, which wins where both have a name.
    pub fn merge(&mut self, other: Self) {
        self.plugins.extend(other.plugins);
        self.functions_mut().extend(other.functions);
    }

    /// Takes away what the lists do not allow.
    pub fn restrict(&mut self, lists: &Restrictions) {
        restrict(&mut self.plugins, &lists.allowed_plugins, &lists.denied_plugins);
        restrict(self.functions_mut(), &lists.allowed_functions, &lists.denied_functions);
    }

    pub(crate) fn find_plugin(&self, name: &str) -> Option<&Entry<dyn Plugin>> {
        self.plugins.get(name)
    }

    pub(crate) fn find_function(&self, name: &str) -> Option<&Entry<dyn Function>> {
        let make = || self.functions.iter().map(|(name, entry)| (name.clone(), entry.clone())).collect();
        self.by_hash.get_or_init(make).get(name)
    }

    fn functions_mut(&mut self) -> &mut BTreeMap<String, Entry<dyn Function>> {
        self.by_hash.take();
        &mut self.functions
    }

    /// The signature of a built-in that may be called.
    #[must_use]
    pub fn signature(&self, kind: Kind, name: &str) -> Option<&Signature> {
        match kind {
            Kind::Plugin => match self.plugins.get(name)? {
                Entry::Active(plugin) => Some(plugin.signature()),
                _ => None,
            },
            Kind::Function => match self.functions.get(name)? {
                Entry::Active(function) => Some(function.signature()),
                _ => None,
            },
        }
    }

    /// The signatures of all that may be called, plugins first, by name.
    pub fn signatures(&self) -> impl Iterator<Item = &Signature> {
        let plugins = self.plugins.values().filter_map(|entry| match entry {
            Entry::Active(plugin) => Some(plugin.signature()),
            _ => None,
        });
        let functions = self.functions.values().filter_map(|entry| match entry {
            Entry::Active(function) => Some(function.signature()),
            _ => None,
        });
        plugins.chain(functions)
    }

    /// Every name of a kind, also of what cannot be called, sorted.
    pub fn names(&self, kind: Kind) -> impl Iterator<Item = &str> {
        let (plugins, functions) = match kind {
            Kind::Plugin => (Some(self.plugins.keys()), None),
            Kind::Function => (None, Some(self.functions.keys())),
        };
        plugins.into_iter().flatten().chain(functions.into_iter().flatten()).map(String::as_str)
    }

    /// The platforms on which a built-in exists that does not exist on this one.
    #[must_use]
    pub fn platforms(&self, kind: Kind, name: &str) -> Option<&str> {
        match kind {
            Kind::Plugin => match self.plugins.get(name)? {
                Entry::Elsewhere(platforms) => Some(platforms),
                _ => None,
            },
            Kind::Function => match self.functions.get(name)? {
                Entry::Elsewhere(platforms) => Some(platforms),
                _ => None,
            },
        }
    }

    /// What `version()` gives: −1 for what is known but cannot be called, `None` for what is unknown.
    #[must_use]
    pub fn version(&self, kind: Kind, name: &str) -> Option<i64> {
        let known = match kind {
            Kind::Plugin => self.plugins.contains_key(name),
            Kind::Function => self.functions.contains_key(name),
        };
        known.then(|| self.signature(kind, name).map_or(-1, |signature| signature.version))
    }

    /// The plugins whose names contain a part of `name`, parts being what `_` separates.
    pub(crate) fn similar_plugins(&self, name: &str) -> Vec<&str> {
        let parts: Vec<&str> = name.split('_').filter(|part| !part.is_empty()).collect();
        self.plugins.keys().map(String::as_str).filter(|known| parts.iter().any(|part| known.contains(part))).collect()
    }
}

fn restrict<T: ?Sized>(entries: &mut BTreeMap<String, Entry<T>>, allowed: &[String], denied: &[String]) {
    let allowed: BTreeSet<&str> = allowed.iter().map(String::as_str).collect();
    for (name, entry) in entries.iter_mut() {
        let shut_out = !allowed.is_empty() && !allowed.contains(name.as_str());
        if shut_out || denied.iter().any(|denied| denied == name) {
            *entry = Entry::Blocked;
        }
    }
    for name in denied {
        entries.entry(name.clone()).or_insert(Entry::Blocked);
    }
}
