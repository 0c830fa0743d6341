//! The scope: a stack of frames searched newest first, and the way to everything that the query was given.

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use talon_ids::Permissions;

use crate::ast;
use crate::budget::{Held, Meter, ThreadSlot};
use crate::builtins::{Mock, Mocks, Target};
use crate::cancel::{CancelToken, StopReason};
use crate::dict::{Dict, Key, Map};
use crate::environment::{ArtifactResolver, Environment};
use crate::error::Denied;
use crate::lambda::Lambda;
use crate::regex::Regex;
use crate::registry::Registry;
use crate::select::OutputRow;
use crate::spill::Spill;
use crate::time::Time;
use crate::value::{Text, Value};

/// Scopes nest at most this deep. Beyond, evaluation logs `Stack Overflow` and gives NULL.
pub const MAX_SCOPES: u32 = 1000;

/// How many entries each cache of a query holds before it starts over.
const CACHE_LIMIT: usize = 1000;

/// A scope. Clones are the same scope.
#[derive(Clone)]
pub struct Scope(pub(crate) Arc<ScopeInner>);

pub(crate) struct ScopeInner {
    runtime: Arc<Runtime>,
    parent: Option<Scope>,
    frame: Frame,
    depth: u32,
    aggregates: Arc<Aggregates>,
    cancel: CancelToken,
    explain: bool,
    on_close: Mutex<Vec<OnClose>>,
}

type OnClose = Box<dyn FnOnce() + Send>;

/// What waits for a definition to be bound, and how many definitions are being made.
#[derive(Default)]
struct Deferred {
    depth: usize,
    work: Vec<OnClose>,
}

/// While it lives a definition is being made. What waits for that runs when the outermost one ends.
pub(crate) struct Deferral(Scope);

impl Drop for Deferral {
    fn drop(&mut self) {
        let work = {
            let mut deferred = self.0.0.runtime.deferred.lock().unwrap_or_else(PoisonError::into_inner);
            deferred.depth = deferred.depth.saturating_sub(1);
            if deferred.depth == 0 { std::mem::take(&mut deferred.work) } else { Vec::new() }
        };
        work.into_iter().for_each(|work| work());
    }
}

/// What a name can be bound to.
#[derive(Clone)]
pub(crate) enum Binding {
    Value(Value),
    Let(Arc<ast::Let>),
}

pub(crate) enum Frame {
    /// Variables that statements may define.
    Variables(RwLock<Map<Key, Binding>>),
    /// Names of a call, fixed.
    Fixed(Dict),
    /// A source row.
    Row(Value),
    /// The row being made, for `WHERE`.
    Output(Arc<OutputRow>),
    /// No names: only one level deeper.
    Level,
}

/// The states of aggregate functions, by place of call.
#[derive(Default)]
pub(crate) struct Aggregates(Mutex<Vec<(usize, Value)>>);

impl Aggregates {
    pub(crate) fn update<T>(&self, site: usize, update: impl FnOnce(&mut Value) -> T) -> T {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = states.iter().position(|(known, _)| *known == site).unwrap_or_else(|| {
            states.push((site, Value::Null));
            states.len().saturating_sub(1)
        });
        match states.get_mut(at) {
            Some((_, state)) => update(state),
            None => update(&mut Value::Null),
        }
    }
}

/// What all scopes of one query share.
pub(crate) struct Runtime {
    environment: Environment,
    started: Duration,
    ticks: AtomicU32,
    plugins_called: AtomicU64,
    functions_called: AtomicU64,
    scopes_made: AtomicU64,
    regexes: Mutex<HashMap<Text, Option<Arc<Regex>>, RandomState>>,
    lambdas: Mutex<HashMap<Text, Option<Arc<Lambda>>, RandomState>>,
    kept: Mutex<Held>,
    logged: Mutex<HashSet<String>>,
    shared: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    mocks: Arc<Mocks>,
    deferred: Mutex<Deferred>,
    on_close: Mutex<Vec<OnClose>>,
}

fn run_closers(closers: &Mutex<Vec<OnClose>>) {
    const ROUNDS: usize = 10;
    for _ in 0..ROUNDS {
        let batch = std::mem::take(&mut *closers.lock().unwrap_or_else(PoisonError::into_inner));
        if batch.is_empty() {
            return;
        }
        for close in batch.into_iter().rev() {
            close();
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        run_closers(&self.on_close);
    }
}

impl Drop for ScopeInner {
    fn drop(&mut self) {
        run_closers(&self.on_close);
    }
}

impl Scope {
    pub(crate) fn open(environment: Environment) -> Self {
        let started = environment.clock.elapsed();
        let (variables, locals, cancel) = (environment.variables.clone(), environment.locals.clone(), environment.cancel.clone());
        let kept = Mutex::new(Held::none(environment.meter.clone(), environment.cancel.clone()));
        let runtime = Arc::new(Runtime {
            environment,
            started,
            ticks: AtomicU32::new(0),
            plugins_called: AtomicU64::new(0),
            functions_called: AtomicU64::new(0),
            scopes_made: AtomicU64::new(0),
            regexes: Mutex::default(),
            lambdas: Mutex::default(),
            kept,
            logged: Mutex::default(),
            shared: Mutex::default(),
            mocks: Arc::default(),
            deferred: Mutex::default(),
            on_close: Mutex::default(),
        });
        Self::stack_frames(runtime, cancel, variables, locals)
    }

    /// The three frames of a fresh scope: `NULL`, the host's variables, the statements' own.
    fn stack_frames(runtime: Arc<Runtime>, cancel: CancelToken, variables: Dict, locals: Dict) -> Self {
        let frame = |dict: Dict| Frame::Variables(RwLock::new(dict.into_iter().map(|(key, value)| (key, Binding::Value(value))).collect()));
        let aggregates = Arc::new(Aggregates::default());
        let mut scope: Option<Self> = None;
        let frames = [frame(Dict::new().with("NULL", Value::Null)), frame(variables), frame(locals)];
        let depths: [u32; 3] = [1, 2, 3];
        for (frame, depth) in frames.into_iter().zip(depths) {
            scope = Some(Self(Arc::new(ScopeInner {
                runtime: runtime.clone(),
                parent: scope.take(),
                frame,
                depth,
                aggregates: aggregates.clone(),
                cancel: cancel.clone(),
                explain: false,
                on_close: Mutex::default(),
            })));
        }
        match scope {
            Some(scope) => scope,
            None => unreachable!("three frames were made"),
        }
    }

    fn derive(&self, frame: Frame, aggregates: Arc<Aggregates>, cancel: CancelToken, explain: bool) -> Option<Self> {
        if self.0.depth >= MAX_SCOPES || !crate::stack::has_room() {
            return None;
        }
        Some(self.derive_unchecked(frame, aggregates, cancel, explain))
    }

    fn derive_unchecked(&self, frame: Frame, aggregates: Arc<Aggregates>, cancel: CancelToken, explain: bool) -> Self {
        self.0.runtime.scopes_made.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(ScopeInner {
            runtime: self.0.runtime.clone(),
            parent: Some(self.clone()),
            frame,
            depth: self.0.depth.saturating_add(1),
            aggregates,
            cancel,
            explain,
            on_close: Mutex::default(),
        }))
    }

    /// As [`Scope::with_frame`], where the depth was checked before.
    pub(crate) fn promoted(&self, frame: Frame) -> Self {
        self.promoted_with(frame, self.0.aggregates.clone())
    }

    pub(crate) fn promoted_with(&self, frame: Frame, aggregates: Arc<Aggregates>) -> Self {
        self.derive_unchecked(frame, aggregates, self.0.cancel.clone(), self.0.explain)
    }

    /// Takes another frame, if nobody else holds this scope.
    pub(crate) fn renew(&mut self, frame: Frame, aggregates: &Arc<Aggregates>) -> bool {
        let Some(inner) = Arc::get_mut(&mut self.0) else { return false };
        inner.frame = frame;
        if !Arc::ptr_eq(&inner.aggregates, aggregates) {
            inner.aggregates = aggregates.clone();
        }
        true
    }

    /// Ends the row of this scope as if the scope ended, if nobody else holds it.
    pub(crate) fn end_row(&mut self) -> bool {
        let Some(inner) = Arc::get_mut(&mut self.0) else { return false };
        run_closers(&inner.on_close);
        inner.frame = Frame::Level;
        true
    }

    /// Whether no query can read rows here: there would be no room for their scopes.
    pub(crate) fn is_deepest(&self) -> bool {
        const OF_A_ROW: u32 = 2;
        self.0.depth.saturating_add(OF_A_ROW) > MAX_SCOPES || !crate::stack::has_room()
    }

    pub(crate) fn log_overflow(&self, query: &ast::Select) {
        self.log_once(format!("Stack Overflow: {}", crate::format::canonical_select(query)));
    }

    pub(crate) fn spill(&self) -> Option<&Arc<dyn Spill>> {
        self.environment().spill.as_ref()
    }

    /// How many bytes are held in one place before they go to disk.
    pub(crate) fn spill_at(&self) -> u64 {
        self.meter().budget().spill
    }

    pub(crate) fn with_frame(&self, frame: Frame) -> Option<Self> {
        self.derive(frame, self.0.aggregates.clone(), self.0.cancel.clone(), self.0.explain)
    }

    /// A scope in which `names` are bound too. `None` when scopes nest too deep; the caller then gives NULL or no rows.
    #[must_use]
    pub fn child(&self, names: Dict) -> Option<Self> {
        self.with_frame(Frame::Fixed(names))
    }

    /// As [`Scope::child`], with aggregates that start afresh.
    #[must_use]
    pub fn child_with_new_aggregates(&self, names: Dict) -> Option<Self> {
        self.derive(Frame::Fixed(names), Arc::default(), self.0.cancel.clone(), self.0.explain)
    }

    /// A scope in which the columns of `row` are visible.
    #[must_use]
    pub fn with_row(&self, row: Value) -> Option<Self> {
        self.with_frame(Frame::Row(row))
    }

    pub(crate) fn with_explain(&self) -> Option<Self> {
        self.derive(Frame::Level, self.0.aggregates.clone(), self.0.cancel.clone(), true)
    }

    /// A scope that can be stopped alone, for workers.
    #[must_use]
    pub fn with_cancel(&self, cancel: CancelToken) -> Option<Self> {
        self.derive(Frame::Level, self.0.aggregates.clone(), cancel, self.0.explain)
    }

    /// A scope of the same query that sees `variables` and nothing of the callers' names: what runs an artifact.
    /// It counts as deep as this one.
    #[must_use]
    pub fn isolated(&self, variables: Dict) -> Option<Self> {
        if self.0.depth.saturating_add(3) >= MAX_SCOPES || !crate::stack::has_room() {
            return None;
        }
        let base = Self::stack_frames(self.0.runtime.clone(), self.0.cancel.clone(), variables, Dict::new());
        let (runtime, cancel) = (self.0.runtime.clone(), self.0.cancel.clone());
        Some(Self(Arc::new(ScopeInner {
            runtime,
            parent: Some(base),
            frame: Frame::Variables(RwLock::default()),
            depth: self.0.depth.saturating_add(4),
            aggregates: Arc::default(),
            cancel,
            explain: self.0.explain,
            on_close: Mutex::default(),
        })))
    }

    /// A fresh query with the same environment, after `change`: other guard, other variables, other budget …
    #[must_use]
    pub fn derived(&self, change: impl FnOnce(Environment) -> Environment) -> Self {
        let environment = self.environment().clone().cancel(self.0.cancel.child());
        change(environment).open()
    }

    /// What work needs that outlives this scope or runs beside it: the environment, and every name that is bound here.
    /// It keeps neither the scope nor the query alive.
    pub(crate) fn detach(&self) -> Detached {
        const CONSTANTS: u32 = 1;
        const VARIABLES: u32 = 2;
        let mut environment = self.environment().clone();
        environment.locals = Dict::new();
        let mut frames = Vec::new();
        let mut scope = Some(self);
        while let Some(current) = scope {
            scope = current.0.parent.as_ref();
            let value = |value: &Value| Binding::Value(value.clone().reduced().detached(self));
            let bindings: Vec<(Key, Binding)> = match &current.0.frame {
                Frame::Variables(variables) => {
                    let variables = variables.read().unwrap_or_else(PoisonError::into_inner).clone();
                    variables
                        .into_iter()
                        .map(|(name, binding)| match binding {
                            Binding::Value(held) => (name, value(&held)),
                            definition => (name, definition),
                        })
                        .collect()
                }
                Frame::Fixed(names) => names.iter().map(|(name, held)| (name.clone(), value(held))).collect(),
                Frame::Row(row) => crate::member::columns(row)
                    .into_iter()
                    .map(|name| {
                        let held = crate::member::column(row, &name).unwrap_or_default();
                        (name, value(&held))
                    })
                    .collect(),
                Frame::Output(_) | Frame::Level => continue,
            };
            match current.0.depth {
                CONSTANTS => {}
                VARIABLES => {
                    environment.variables = bindings
                        .into_iter()
                        .filter_map(|(name, binding)| match binding {
                            Binding::Value(held) => Some((name, held)),
                            Binding::Let(_) => None,
                        })
                        .collect();
                }
                _ => frames.push(bindings),
            }
        }
        Detached { environment, bindings: frames.into_iter().rev().flatten().collect() }
    }

    /// Runs `close` when the outermost scope of this one ends: that of the query, or of the artifact or text that runs inside it.
    pub(crate) fn on_root_close(&self, close: impl FnOnce() + Send + 'static) {
        let mut scope = self;
        while let Some(parent) = &scope.0.parent {
            scope = parent;
        }
        scope.on_close(close);
    }

    /// Begins a definition: see [`Scope::once_defined`].
    pub(crate) fn defer(&self) -> Deferral {
        let mut deferred = self.0.runtime.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        deferred.depth = deferred.depth.saturating_add(1);
        drop(deferred);
        Deferral(self.clone())
    }

    /// Does something that is to see the name that is being defined: once it is bound, or now if none is.
    pub(crate) fn once_defined(&self, work: impl FnOnce() + Send + 'static) {
        let mut deferred = self.0.runtime.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        if deferred.depth > 0 {
            deferred.work.push(Box::new(work));
            return;
        }
        drop(deferred);
        work();
    }

    /// What the host program handed in.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.0.runtime.environment
    }

    /// The built-ins.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.environment().registry
    }

    /// Who knows artifacts.
    #[must_use]
    pub fn artifacts(&self) -> Option<&Arc<dyn ArtifactResolver>> {
        self.environment().artifacts.as_ref()
    }

    /// A value of the host program by its type.
    #[must_use]
    pub fn extension<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.environment().extensions.get()
    }

    /// Whether the query's guard grants `permissions`: for decisions that a signature cannot express.
    ///
    /// # Errors
    /// The refusal; give it back as the error of the call.
    pub fn check(&self, permissions: Permissions) -> Result<(), Denied> {
        self.environment().guard.check(permissions)
    }

    /// The moment.
    #[must_use]
    pub fn now(&self) -> Time {
        self.environment().clock.now()
    }

    /// Time on the query's clock, never going back.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.environment().clock.elapsed()
    }

    /// Waits, or less long when the query is stopped; true in that case.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> bool {
        if !self.environment().clock.waits() {
            return self.stopped();
        }
        let now = self.elapsed();
        let of_budget = self.meter().budget().time.map(|limit| limit.saturating_sub(now.saturating_sub(self.0.runtime.started)));
        let bounded = [of_budget, self.0.cancel.left(now)].into_iter().flatten().fold(duration, Duration::min);
        self.0.cancel.wait(bounded) || self.past_deadline()
    }

    /// Any number.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.environment().random.next()
    }

    /// The token that stops this part of the query.
    #[must_use]
    pub fn cancel_token(&self) -> &CancelToken {
        &self.0.cancel
    }

    /// Whether somebody has stopped the query. Cheaper than [`Scope::stopped`], which looks at the clock too.
    #[must_use]
    pub(crate) fn cancelled(&self) -> bool {
        self.0.cancel.is_cancelled()
    }

    /// Whether the query must stop. Every loop asks; it is cheap.
    #[must_use]
    pub fn stopped(&self) -> bool {
        const CLOCK_EVERY: u32 = 64;
        if self.0.cancel.is_cancelled() {
            return true;
        }
        let ticks = self.0.runtime.ticks.fetch_add(1, Ordering::Relaxed);
        ticks.is_multiple_of(CLOCK_EVERY) && self.past_deadline()
    }

    fn past_deadline(&self) -> bool {
        let now = self.elapsed();
        let expired = self.0.cancel.expire(now);
        let used = now.saturating_sub(self.0.runtime.started);
        if let Some(limit) = self.meter().budget().time.filter(|limit| used >= *limit) {
            self.environment().cancel.stop(StopReason::TimedOut(limit));
            return true;
        }
        if self.meter().budget().cpu.is_some()
            && let Some(cpu) = self.environment().clock.thread_cpu()
        {
            // Not for long at once: the clock must be looked at in between.
            let wait = self.meter().throttle(cpu, used).min(Duration::from_secs(1));
            return (!wait.is_zero() && self.0.cancel.wait(wait)) || expired;
        }
        expired
    }

    /// Writes a line to the log of the query: text with an optional level before the first colon.
    pub fn log(&self, line: impl AsRef<str>) {
        self.environment().log.log(line.as_ref());
    }

    /// Writes a line, unless this query has written the very same line before through here. Bounds floods of diagnostics.
    pub fn log_once(&self, line: impl Into<String>) {
        let line = line.into();
        let mut logged = self.0.runtime.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.contains(&line) {
            return;
        }
        if logged.len() >= CACHE_LIMIT {
            logged.clear();
        }
        logged.insert(line.clone());
        drop(logged);
        self.log(line);
    }

    /// Runs `close` when this scope ends: after the row, the call or the sub-query. Later ones run first.
    pub fn on_close(&self, close: impl FnOnce() + Send + 'static) {
        self.0.on_close.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(close));
    }

    /// Runs `close` when the whole query ends. Later ones run first.
    pub fn on_query_close(&self, close: impl FnOnce() + Send + 'static) {
        self.0.runtime.on_close.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(close));
    }

    /// A value of type `T` that the whole query shares, made at the first use: for caches of built-ins.
    #[must_use]
    pub fn shared<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut shared = self.0.runtime.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let value = shared.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default())).clone();
        value.downcast().unwrap_or_default()
    }

    /// What stands for built-ins in this query.
    pub(crate) fn mocks(&self) -> Arc<Mocks> {
        self.0.runtime.mocks.clone()
    }

    /// What stands for one built-in or artifact in this query.
    pub(crate) fn mocked(&self, target: impl FnOnce() -> Target) -> Option<Arc<Mock>> {
        self.0.runtime.mocks.find(target)
    }

    /// The compiled pattern, matching without regard to case. A bad one is logged once and gives `None`.
    #[must_use]
    pub fn regex(&self, pattern: &Text) -> Option<Arc<Regex>> {
        let mut regexes = self.0.runtime.regexes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = regexes.get(pattern) {
            return known.clone();
        }
        if regexes.len() >= CACHE_LIMIT {
            regexes.clear();
        }
        let compiled = match Regex::ignoring_case(pattern) {
            Ok(regex) => Some(Arc::new(regex)),
            Err(error) => {
                self.log(format!("Compile regexp: {error}"));
                None
            }
        };
        regexes.insert(pattern.clone(), compiled.clone());
        compiled
    }

    /// The compiled lambda. A bad one is logged once and gives `None`.
    #[must_use]
    pub fn lambda(&self, text: &Text) -> Option<Arc<Lambda>> {
        let mut lambdas = self.0.runtime.lambdas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lambdas.get(text) {
            return known.clone();
        }
        if lambdas.len() >= CACHE_LIMIT {
            lambdas.clear();
        }
        let compiled = match crate::parse_lambda(&text.to_str()) {
            Ok(lambda) => Some(Arc::new(Lambda::new(lambda))),
            Err(error) => {
                self.log(format!("ERROR:Lambda {}: {error}", text.to_str()));
                None
            }
        };
        lambdas.insert(text.clone(), compiled.clone());
        compiled
    }

    /// What `name` is bound to, newest frame first.
    pub(crate) fn lookup(&self, name: &str) -> Option<Binding> {
        let mut scope = self;
        loop {
            let found = match &scope.0.frame {
                Frame::Variables(variables) => variables.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned(),
                Frame::Fixed(names) => names.get(name).cloned().map(Binding::Value),
                Frame::Row(row) => crate::member::column(row, name).map(Binding::Value),
                Frame::Output(row) => row.column(name).map(Binding::Value),
                Frame::Level => None,
            };
            if found.is_some() {
                return found;
            }
            scope = scope.0.parent.as_ref()?;
        }
    }

    /// The value of a variable, evaluated if it is a stored expression. `None` when there is no such name; nothing is logged.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<Value> {
        self.lookup(name).map(|binding| crate::eval::resolve(binding, crate::at::At::Scope(self)).reduced())
    }

    /// Binds `name` in the newest frame that statements write to.
    pub fn define(&self, name: impl Into<Key>, value: impl Into<Value>) {
        self.bind(name.into(), Binding::Value(value.into()));
    }

    pub(crate) fn bind(&self, name: Key, binding: Binding) {
        let mut scope = self;
        loop {
            if let Frame::Variables(variables) = &scope.0.frame {
                let mut variables = variables.write().unwrap_or_else(PoisonError::into_inner);
                variables.shift_remove(&name);
                variables.insert(name, binding);
                return;
            }
            match &scope.0.parent {
                Some(parent) => scope = parent,
                None => return,
            }
        }
    }

    /// Changes the dict that the variable `name` holds, in place, and gives the result. `None` when it holds no dict.
    pub(crate) fn change_dict(&self, name: &str, change: impl FnOnce(&mut Dict)) -> Option<Arc<Dict>> {
        let mut scope = self;
        loop {
            if let Frame::Variables(variables) = &scope.0.frame {
                let mut variables = variables.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(slot) = variables.get_mut(name) {
                    let Binding::Value(Value::Dict(dict)) = slot else { return None };
                    change(Arc::make_mut(dict));
                    return Some(dict.clone());
                }
            } else if scope.frame_has(name) {
                return None;
            }
            scope = scope.0.parent.as_ref()?;
        }
    }

    fn frame_has(&self, name: &str) -> bool {
        match &self.0.frame {
            Frame::Variables(variables) => variables.read().unwrap_or_else(PoisonError::into_inner).contains_key(name),
            Frame::Fixed(names) => names.contains_key(name),
            Frame::Row(row) => crate::member::column(row, name).is_some(),
            Frame::Output(row) => row.has_column(name),
            Frame::Level => false,
        }
    }

    /// `[a, b], [c]`: the names of each frame, oldest first.
    pub(crate) fn describe(&self) -> String {
        let mut groups = Vec::new();
        let mut scope = Some(self);
        while let Some(current) = scope {
            scope = current.0.parent.as_ref();
            let names: Vec<String> = match &current.0.frame {
                Frame::Variables(variables) => {
                    variables.read().unwrap_or_else(PoisonError::into_inner).keys().map(|key| key.as_str().to_owned()).collect()
                }
                Frame::Fixed(names) => names.keys().map(|key| key.as_str().to_owned()).collect(),
                Frame::Row(row) => crate::member::columns(row).iter().map(|key| key.as_str().to_owned()).collect(),
                Frame::Output(row) => row.column_names().iter().map(|key| key.as_str().to_owned()).collect(),
                Frame::Level => continue,
            };
            groups.push(format!("[{}]", names.join(", ")));
        }
        groups.reverse();
        groups.join(", ")
    }

    pub(crate) fn aggregates(&self) -> &Arc<Aggregates> {
        &self.0.aggregates
    }

    pub(crate) fn explains(&self) -> bool {
        self.0.explain
    }

    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.environment().meter
    }

    /// Whether a value of `bytes` bytes may be made at all: within what is left of the budget.
    #[must_use]
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.meter().has_room(bytes)
    }

    pub(crate) fn hold(&self) -> Held {
        Held::none(self.meter().clone(), self.environment().cancel.clone())
    }

    /// Holds `bytes` until the query ends. False, and the query stops, when that is too much.
    pub(crate) fn keep(&self, bytes: u64) -> bool {
        self.0.runtime.kept.lock().unwrap_or_else(PoisonError::into_inner).add(bytes)
    }

    /// One level deeper, with a frame for the names that statements define.
    pub(crate) fn with_variables(&self) -> Option<Self> {
        self.with_frame(Frame::Variables(RwLock::default()))
    }

    /// One level deeper, without names.
    pub(crate) fn deeper(&self) -> Option<Self> {
        self.with_frame(Frame::Level)
    }

    pub(crate) fn take_thread(&self) -> Option<ThreadSlot> {
        ThreadSlot::take(self.meter())
    }

    /// Counts one row read from a source.
    pub fn count_row(&self) {
        self.meter().count_row(&self.environment().cancel);
    }

    pub(crate) fn count_plugin(&self) {
        self.0.runtime.plugins_called.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_function(&self) {
        self.0.runtime.functions_called.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the line with the counts of the query: `DEBUG:Query Stats: {…}`.
    pub fn log_stats(&self) {
        let runtime = &self.0.runtime;
        self.log(format!(
            "DEBUG:Query Stats: {{\"RowsScanned\":{},\"PluginsCalled\":{},\"FunctionsCalled\":{},\"ProtocolSearch\":0,\"ScopeCopy\":{}}}",
            self.meter().rows(),
            runtime.plugins_called.load(Ordering::Relaxed),
            runtime.functions_called.load(Ordering::Relaxed),
            runtime.scopes_made.load(Ordering::Relaxed),
        ));
    }

    pub(crate) fn downgrade(&self) -> WeakScope {
        WeakScope(Arc::downgrade(&self.0))
    }

    /// A way back to this scope for values that evaluate something later, such as the fields of a parsed structure.
    #[must_use]
    pub fn handle(&self) -> ScopeHandle {
        let mut scopes = vec![self.downgrade()];
        let mut scope = self;
        while let Some(parent) = &scope.0.parent {
            if matches!(parent.0.frame, Frame::Variables(_)) {
                scopes.push(parent.downgrade());
            }
            scope = parent;
        }
        ScopeHandle(scopes.into())
    }
}

/// See [`Scope::detach`].
#[derive(Clone)]
pub(crate) struct Detached {
    environment: Environment,
    bindings: Vec<(Key, Binding)>,
}

impl Detached {
    /// The same with further names.
    pub(crate) fn with_names(mut self, names: &Dict) -> Self {
        self.bindings.extend(names.iter().map(|(name, value)| (name.clone(), Binding::Value(value.clone()))));
        self
    }

    /// A fresh scope that `cancel` stops.
    pub(crate) fn open(&self, cancel: CancelToken) -> Scope {
        let scope = self.environment.clone().cancel(cancel).open();
        for (name, binding) in &self.bindings {
            scope.bind(name.clone(), binding.clone());
        }
        scope
    }
}

/// What values hold in place of a scope, which would keep them alive in turn. While the scope lives it leads there; afterwards to the
/// nearest scope around it that still holds the names of statements.
#[derive(Clone)]
pub struct ScopeHandle(Arc<[WeakScope]>);

impl ScopeHandle {
    /// The scope. `None` when the query is over.
    #[must_use]
    pub fn get(&self) -> Option<Scope> {
        self.0.iter().find_map(WeakScope::upgrade)
    }
}

/// A scope that does not keep the scope alive: what values may hold without making a ring.
#[derive(Clone)]
pub(crate) struct WeakScope(Weak<ScopeInner>);

impl WeakScope {
    pub(crate) fn upgrade(&self) -> Option<Scope> {
        self.0.upgrade().map(Scope)
    }
}
