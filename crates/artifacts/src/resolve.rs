//! `Artifact.Name(…)` inside a query: runs an artifact in a scope of its own, which sees its parameters and nothing of the caller.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use talon_ids::{ArtifactName, QueryName};
use talon_vql::ast::Statement;
use talon_vql::{
    ArtifactResolver, CallError, CancelToken, Dict, Key, Object, Query, Registry, Rows, Scope, StopReason, Value, spawn_query_thread,
};

use crate::{Definition, Library, Repository};

/// How deep artifacts may call each other.
const MAX_NESTING: usize = 10;
/// Where a scope keeps the artifacts that it is inside of.
const STACK: &str = "$stack";
/// What an artifact sees of the host's variables.
const VISIBLE: [&str; 2] = ["config", "_SessionId"];
/// Rows that sources side by side may be ahead of the reader.
const AHEAD: usize = 16;

/// Decides whether a query may call an artifact; the text of a refusal is for the log.
pub type Admission = dyn Fn(&Definition) -> Result<(), String> + Send + Sync;

/// Runs the artifacts of a repository for queries.
pub struct Resolver {
    repository: Arc<Repository>,
    admission: Option<Box<Admission>>,
}

impl Resolver {
    /// A resolver over `repository`: the organisation's, or that of a request.
    #[must_use]
    pub fn new(repository: Arc<Repository>) -> Self {
        Self { repository, admission: None }
    }

    /// Asks before an artifact is called by a query itself. What an artifact calls in its turn is its own affair: wrapping delegates.
    #[must_use]
    pub fn admitting(mut self, admission: Box<Admission>) -> Self {
        self.admission = Some(admission);
        self
    }
}

impl ArtifactResolver for Resolver {
    fn open(&self, name: &str, args: Dict, scope: &Scope) -> Result<Rows, CallError> {
        let Some(definition) = self.repository.get(name) else {
            return Err(CallError::Failed(format!("Artifact {name} not found")));
        };
        let outer = Stack::of(scope)?;
        if let Some(admission) = self.admission.as_ref().filter(|_| outer.is_empty()) {
            admission(&definition).map_err(|denial| CallError::Failed(format!("Artifact {name} invalid: {denial}")))?;
        }
        let call = ArtifactCall::read(&definition, args, scope)?;
        let definition = match &call.source {
            None => definition,
            Some(source) => match definition.with_only(source) {
                Some(only) => Arc::new(only),
                None => return Err(CallError::Failed(format!("Source {source} not found in artifact {name}"))),
            },
        };
        let stack = outer.push(definition.name())?;
        let mut imports = Vec::with_capacity(definition.imports().len());
        for import in definition.imports() {
            let imported = self.repository.get(import.as_str());
            imports.push(imported.ok_or_else(|| {
                let error = crate::ArtifactError::UnknownImport { artifact: name.to_owned(), import: import.to_string() };
                CallError::failed(error)
            })?);
        }
        let mut variables: Dict =
            VISIBLE.iter().filter_map(|name| Some((*name, scope.environment().variables().get(name)?.clone()))).collect();
        variables.update(STACK, Value::Object(Arc::new(stack)));
        for (name, value) in call.parameters {
            variables.update(name, value);
        }
        let plan = Plan { definition, imports, variables, preconditions: call.preconditions };
        if plan.definition.kind().is_event() && plan.definition.groups().len() > 1 {
            plan.side_by_side(scope)
        } else {
            Ok(plan.in_order(scope))
        }
    }

    fn exports(&self, name: &str) -> Result<Vec<Statement>, CallError> {
        let Some(definition) = self.repository.get(name) else {
            return Err(CallError::Failed(format!("Artifact {name} not found")));
        };
        let mut statements = Vec::new();
        for import in definition.imports() {
            if let Some(imported) = self.repository.get(import.as_str()) {
                statements.extend(imported.export().iter().cloned());
            }
        }
        statements.extend(definition.export().iter().cloned());
        Ok(statements)
    }

    fn verify(&self, text: &str, registry: &Registry) -> Result<Dict, CallError> {
        Ok(crate::verify::verify(text, &Library::new(&self.repository).with_registry(registry)))
    }

    fn reformat(&self, text: &str) -> Result<String, CallError> {
        crate::reformat(text).map_err(CallError::failed)
    }
}

/// The arguments of a call.
struct ArtifactCall {
    parameters: Vec<(Key, Value)>,
    source: Option<String>,
    preconditions: bool,
}

impl ArtifactCall {
    fn read(definition: &Definition, args: Dict, scope: &Scope) -> Result<Self, CallError> {
        let defaults =
            definition.parameters().iter().map(|parameter| (Key::from(parameter.name.clone()), parameter.default.as_str().into()));
        let mut call = Self { parameters: defaults.collect(), source: None, preconditions: false };
        for (key, value) in args {
            if let Some(parameter) = call.parameters.iter_mut().find(|(name, _)| *name == key) {
                parameter.1 = value;
                continue;
            }
            match key.as_str() {
                "source" => {
                    let source = talon_vql::to_text(value, scope).to_str().into_owned();
                    call.source = Some(source).filter(|source| !source.is_empty());
                }
                "preconditions" => call.preconditions = talon_vql::ops::truth(&value, scope),
                unknown => {
                    let name = definition.name();
                    return Err(CallError::Argument(format!("Unknown parameter {unknown} provided to artifact {name}")));
                }
            }
        }
        Ok(call)
    }
}

/// The artifacts that a scope is inside of, the outermost first.
#[derive(Debug, Clone, Default)]
struct Stack(Vec<ArtifactName>);

impl Stack {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(scope: &Scope) -> Result<Self, CallError> {
        match scope.variable(STACK) {
            None => Ok(Self::default()),
            Some(Value::Object(object)) => object.as_any().downcast_ref::<Self>().cloned().ok_or(CallError::Silent),
            // Somebody defined the name: who hides the stack may not nest.
            Some(_) => Err(CallError::Failed(format!("the name {STACK} is reserved"))),
        }
    }

    fn push(mut self, name: &ArtifactName) -> Result<Self, CallError> {
        self.0.push(name.clone());
        if self.0.len() > MAX_NESTING {
            let names: Vec<&str> = self.0.iter().rev().map(ArtifactName::as_str).collect();
            return Err(CallError::Failed(format!("Stack overflow: {}", names.join(", "))));
        }
        Ok(self)
    }
}

impl Object for Stack {
    fn type_name(&self) -> &'static str {
        "stack"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What a call runs.
struct Plan {
    definition: Arc<Definition>,
    imports: Vec<Arc<Definition>>,
    variables: Dict,
    preconditions: bool,
}

impl Plan {
    /// The sources one group after another, each group in a scope of its own.
    fn in_order(self, scope: &Scope) -> Rows {
        let mut waiting: VecDeque<_> = self.definition.groups().into();
        let mut current: Option<Group> = None;
        let scope = scope.clone();
        Rows::from_fn(move || {
            loop {
                if let Some(row) = current.as_mut().and_then(Group::next) {
                    return Some(Ok(row));
                }
                if scope.stopped() {
                    return None;
                }
                match self.group(waiting.pop_front()?, &scope) {
                    Ok(group) => current = group,
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }

    /// All groups at once on threads of their own, rows as they come.
    fn side_by_side(self, scope: &Scope) -> Result<Rows, CallError> {
        let cancel = scope.cancel_token().child();
        let stop = StopOnDrop(cancel.clone());
        let (sender, receiver) = sync_channel(AHEAD);
        let plan = Arc::new(self);
        for group in plan.definition.groups() {
            let (plan, sender) = (Arc::clone(&plan), sender.clone());
            let Some(scope) = scope.with_cancel(cancel.clone()) else { return Err(too_deep()) };
            spawn_query_thread("artifact", move || plan.send(group, &scope, &sender))?;
        }
        let rows = SideBySide { receiver, _stop: stop };
        Ok(Rows::from_fn(move || rows.next()))
    }

    fn send(&self, group: std::ops::Range<usize>, scope: &Scope, sender: &SyncSender<Result<Value, CallError>>) {
        match self.group(group, scope) {
            Ok(None) => {}
            Ok(Some(mut group)) => {
                while let Some(row) = group.next() {
                    if sender.send(Ok(row)).is_err() {
                        return;
                    }
                }
            }
            // The reader has gone when this fails.
            Err(error) => drop(sender.send(Err(error))),
        }
    }

    /// Starts the sources at these places. `None` when their precondition does not hold.
    fn group(&self, sources: std::ops::Range<usize>, scope: &Scope) -> Result<Option<Group>, CallError> {
        let scope = scope.isolated(self.variables.clone()).ok_or_else(too_deep)?;
        let definition = &self.definition;
        for statement in definition.conversions() {
            Query::new(&scope, statement).for_each(drop);
        }
        let group = definition.sources().get(sources).unwrap_or_default();
        if self.preconditions && !holds(definition.gate(group), &scope) {
            scope.log(format!("INFO:{}: Skipping query due to preconditions", definition.name()));
            return Ok(None);
        }
        let exports = definition.export().iter().chain(self.imports.iter().flat_map(|import| import.export()));
        let mut waiting: VecDeque<(Statement, Option<QueryName>)> = exports.map(|statement| (statement.clone(), None)).collect();
        for source in group {
            let last = source.statements.len().saturating_sub(1);
            let name = |index: usize| (index == last).then(|| source.query_name.clone());
            waiting.extend(source.statements.iter().enumerate().map(|(index, statement)| (statement.clone(), name(index))));
        }
        Ok(Some(Group { scope, waiting, current: None }))
    }
}

fn too_deep() -> CallError {
    CallError::Failed("Stack overflow: scopes are nested too deeply".to_owned())
}

/// A precondition holds when any of its statements has a row, and when there is none.
fn holds(statements: &[Statement], scope: &Scope) -> bool {
    statements.is_empty() || statements.iter().any(|statement| Query::new(scope, statement).next().is_some())
}

/// Rows from several threads, which stop when nobody reads any more.
struct SideBySide {
    receiver: Receiver<Result<Value, CallError>>,
    _stop: StopOnDrop,
}

impl SideBySide {
    fn next(&self) -> Option<Result<Value, CallError>> {
        self.receiver.recv().ok()
    }
}

struct StopOnDrop(CancelToken);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop(StopReason::Done);
    }
}

/// Sources on their way, in one scope.
struct Group {
    scope: Scope,
    waiting: VecDeque<(Statement, Option<QueryName>)>,
    current: Option<(Query, Option<QueryName>)>,
}

impl Group {
    fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((query, name)) = &mut self.current
                && let Some(row) = query.next()
            {
                let Some(name) = name else { return Some(Value::Dict(row)) };
                let mut row = Arc::unwrap_or_clone(row);
                row.set("_Source", name.to_string().as_str());
                return Some(row.into());
            }
            self.current = None;
            if self.scope.stopped() {
                return None;
            }
            let (statement, name) = self.waiting.pop_front()?;
            self.current = Some((Query::new(&self.scope, &statement), name));
        }
    }
}
