//! The environment of a query: everything that the host program hands in. The language itself reaches nothing outside.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use talon_ids::Permissions;

use crate::ast::Statement;
use crate::budget::{Budget, Meter};
use crate::cancel::CancelToken;
use crate::dict::{Dict, Key};
use crate::error::{CallError, Denied};
use crate::registry::Registry;
use crate::rows::Rows;
use crate::scope::Scope;
use crate::spill::Spill;
use crate::time::Time;
use crate::value::Value;

/// Decides whether the query may call a built-in. Asked at each call.
pub trait Guard: Send + Sync {
    /// Whether all of `permissions` are granted.
    ///
    /// # Errors
    /// The refusal, for the log of the query.
    fn check(&self, permissions: Permissions) -> Result<(), Denied>;
}

/// Refuses every permission: what an environment has unless it is given another guard.
#[derive(Debug, Clone, Copy, Default)]
pub struct DenyAll;

impl Guard for DenyAll {
    fn check(&self, permissions: Permissions) -> Result<(), Denied> {
        if permissions.is_empty() { Ok(()) } else { Err(Denied::missing(permissions)) }
    }
}

/// Grants every permission: for tools that a user runs as herself, and for tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowAll;

impl Guard for AllowAll {
    fn check(&self, _: Permissions) -> Result<(), Denied> {
        Ok(())
    }
}

/// Where the log lines of a query go.
pub trait LogSink: Send + Sync {
    /// One line, without newline, as stock engines have it: perhaps with a level before the first colon. See [`Level::split`].
    fn log(&self, line: &str);
}

/// Forgets the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLog;

impl LogSink for NoLog {
    fn log(&self, _: &str) {}
}

/// Keeps the log lines in memory, up to a bound.
#[derive(Debug, Default)]
pub struct MemoryLog(std::sync::Mutex<Vec<String>>);

impl MemoryLog {
    /// The most lines that are kept.
    pub const LIMIT: usize = 100_000;

    /// Takes the lines out.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl LogSink for MemoryLog {
    fn log(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.len() < Self::LIMIT {
            lines.push(line.to_owned());
        }
    }
}

/// The level of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// None given.
    Default,
    /// `ERROR:` – makes a collection count as failed.
    Error,
    /// `INFO:`
    Info,
    /// `WARN:`
    Warn,
    /// `DEBUG:`
    Debug,
    /// `ALERT:`
    Alert,
}

impl Level {
    /// The name that stands before the colon.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "DEFAULT",
            Self::Error => "ERROR",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Debug => "DEBUG",
            Self::Alert => "ALERT",
        }
    }

    /// The level called `name`, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Default, Self::Error, Self::Info, Self::Warn, Self::Debug, Self::Alert]
            .into_iter()
            .find(|level| level.name().eq_ignore_ascii_case(name))
    }

    /// Splits a line into its level and the rest. A line without a known level is [`Level::Default`] and stays whole.
    #[must_use]
    pub fn split(line: &str) -> (Self, &str) {
        line.split_once(':').and_then(|(name, rest)| Some((Self::from_name(name)?, rest))).unwrap_or((Self::Default, line))
    }
}

/// Time, as the query sees it.
pub trait Clock: Send + Sync {
    /// The moment.
    fn now(&self) -> Time;

    /// Time since any fixed moment, never going back: for deadlines.
    fn elapsed(&self) -> Duration;

    /// Processor time that this thread has used, where that is known: for the share of a processor that a query may use.
    fn thread_cpu(&self) -> Option<Duration> {
        None
    }

    /// Whether waiting really waits. A frozen clock of tests says no.
    fn waits(&self) -> bool {
        true
    }
}

/// A clock that stands still.
#[derive(Debug, Clone, Copy)]
pub struct FrozenClock(pub Time);

impl Clock for FrozenClock {
    fn now(&self) -> Time {
        self.0
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

/// Randomness and new identifiers, as the query sees them.
pub trait Random: Send + Sync {
    /// Any number.
    fn next(&self) -> u64;
}

/// Counts up from zero: the reproducible source of tests.
#[derive(Debug, Default)]
pub struct Counter(std::sync::atomic::AtomicU64);

impl Random for Counter {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

/// Gives the rows of `Artifact.Name(…)`.
pub trait ArtifactResolver: Send + Sync {
    /// Starts artifact `name` with `args`, among which may be `source` and `preconditions`.
    ///
    /// # Errors
    /// For the log: `Artifact X not found`, `Unknown parameter X provided to artifact Y` …
    fn open(&self, name: &str, args: Dict, scope: &Scope) -> Result<Rows, CallError>;

    /// What artifact `name` exports to queries that import it, in the order in which it must run.
    ///
    /// # Errors
    /// There is no such artifact.
    fn exports(&self, name: &str) -> Result<Vec<Statement>, CallError> {
        Err(CallError::Failed(format!("Artifact {name} not found")))
    }

    /// What is wrong with the text of an artifact whose queries call the built-ins of `registry`, and what it defines.
    ///
    /// # Errors
    /// Nobody here reads artifacts.
    fn verify(&self, text: &str, registry: &Registry) -> Result<Dict, CallError> {
        let _ = (text, registry);
        Err("artifacts cannot be verified here".into())
    }

    /// The text of an artifact with its queries formatted.
    ///
    /// # Errors
    /// A query is not VQL.
    fn reformat(&self, text: &str) -> Result<String, CallError> {
        let _ = text;
        Err("artifacts cannot be formatted here".into())
    }
}

/// Values of the host program by their types.
#[derive(Clone, Default)]
pub struct Extensions(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl Extensions {
    /// Puts `value` in; one of the same type gives way.
    pub fn insert<T: Send + Sync + 'static>(&mut self, value: Arc<T>) {
        self.0.insert(TypeId::of::<T>(), value);
    }

    /// The value of type `T`.
    #[must_use]
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get(&TypeId::of::<T>())?.clone().downcast().ok()
    }
}

/// Lets parts of a query run in another organisation, or as another user, where the host program knows of such.
pub trait Elsewhere: Send + Sync {
    /// The environment of a query there; an empty name stays where or who the query is. `cancel` ends that query when its rights are taken away.
    ///
    /// # Errors
    /// A refusal, or that there is nothing of that name.
    fn environment(&self, org: &str, runas: &str, cancel: &CancelToken) -> Result<Environment, CallError>;
}

/// Everything that a query gets from the host program. Clones share the budget and the cancel token.
#[derive(Clone)]
pub struct Environment {
    pub(crate) registry: Arc<Registry>,
    pub(crate) guard: Arc<dyn Guard>,
    pub(crate) log: Arc<dyn LogSink>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) artifacts: Option<Arc<dyn ArtifactResolver>>,
    pub(crate) elsewhere: Option<Arc<dyn Elsewhere>>,
    pub(crate) spill: Option<Arc<dyn Spill>>,
    pub(crate) extensions: Extensions,
    pub(crate) variables: Dict,
    pub(crate) locals: Dict,
    pub(crate) meter: Arc<Meter>,
    pub(crate) cancel: CancelToken,
}

impl Environment {
    /// An environment that may call what needs no permission, logs nowhere, and whose clock stands still. Chain the rest.
    #[must_use]
    pub fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            guard: Arc::new(DenyAll),
            log: Arc::new(NoLog),
            clock: Arc::new(FrozenClock(Time::EPOCH)),
            random: Arc::new(Counter::default()),
            artifacts: None,
            elsewhere: None,
            spill: None,
            extensions: Extensions::default(),
            variables: Dict::new(),
            locals: Dict::new(),
            meter: Meter::new(Budget::default()),
            cancel: CancelToken::new(),
        }
    }

    /// Other built-ins.
    #[must_use]
    pub fn registry(mut self, registry: Arc<Registry>) -> Self {
        self.registry = registry;
        self
    }

    /// Who decides about permissions.
    #[must_use]
    pub fn guard(mut self, guard: Arc<dyn Guard>) -> Self {
        self.guard = guard;
        self
    }

    /// Where log lines go.
    #[must_use]
    pub fn log(mut self, log: Arc<dyn LogSink>) -> Self {
        self.log = log;
        self
    }

    /// The clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The source of randomness.
    #[must_use]
    pub fn random(mut self, random: Arc<dyn Random>) -> Self {
        self.random = random;
        self
    }

    /// Who knows artifacts.
    #[must_use]
    pub fn artifacts(mut self, artifacts: Arc<dyn ArtifactResolver>) -> Self {
        self.artifacts = Some(artifacts);
        self
    }

    /// Who leads to other organisations and users.
    #[must_use]
    pub fn elsewhere(mut self, elsewhere: Arc<dyn Elsewhere>) -> Self {
        self.elsewhere = Some(elsewhere);
        self
    }

    /// Where rows go that do not fit into memory.
    #[must_use]
    pub fn spill(mut self, spill: Arc<dyn Spill>) -> Self {
        self.spill = Some(spill);
        self
    }

    /// A value that built-ins of the host program find by its type: [`Scope::extension`].
    #[must_use]
    pub fn extension<T: Send + Sync + 'static>(mut self, value: Arc<T>) -> Self {
        self.extensions.insert(value);
        self
    }

    /// Many of them at once; those of the same type give way.
    #[must_use]
    pub fn extensions(mut self, more: &Extensions) -> Self {
        self.extensions.0.extend(more.0.iter().map(|(kind, value)| (*kind, value.clone())));
        self
    }

    /// A variable, such as `config` or a parameter.
    #[must_use]
    pub fn variable(mut self, name: impl Into<Key>, value: impl Into<Value>) -> Self {
        self.variables.update(name, value);
        self
    }

    /// These variables in place of those so far, in their order.
    #[must_use]
    pub fn with_variables(mut self, variables: Dict) -> Self {
        self.variables = variables;
        self
    }

    /// A variable of the innermost frame, where `LET` puts its names too (`$Query`).
    #[must_use]
    pub fn local(mut self, name: impl Into<Key>, value: impl Into<Value>) -> Self {
        self.locals.update(name, value);
        self
    }

    /// The limits.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.meter = Meter::new(budget);
        self
    }

    /// The token that stops the query.
    #[must_use]
    pub fn cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// The same query goes on in this environment: it logs and counts where `here` does, and `cancel` stops it.
    #[must_use]
    pub(crate) fn continuing(mut self, here: &Self, cancel: CancelToken) -> Self {
        self.log = here.log.clone();
        self.clock = here.clock.clone();
        self.random = here.random.clone();
        self.meter = here.meter.clone();
        self.cancel = cancel;
        self
    }

    /// The variables so far.
    #[must_use]
    pub fn variables(&self) -> &Dict {
        &self.variables
    }

    /// A fresh scope, in which statements run one after another.
    #[must_use]
    pub fn open(self) -> Scope {
        Scope::open(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_stand_before_the_first_colon() {
        assert_eq!(Level::split("error:a:b"), (Level::Error, "a:b"));
        assert_eq!(Level::split("glob: no"), (Level::Default, "glob: no"));
        assert_eq!(Level::split("DEFAULT:x"), (Level::Default, "x"));
        assert_eq!(Level::split("plain"), (Level::Default, "plain"));
    }

    #[test]
    fn nobody_may_do_anything_unless_a_guard_says_so() {
        let needed = Permissions::of(&[talon_ids::Permission::Execve, talon_ids::Permission::Network]);
        assert_eq!(DenyAll.check(needed).unwrap_err().to_string(), "Permission denied: [EXECVE NETWORK]");
        assert!(DenyAll.check(Permissions::NONE).is_ok());
    }
}
