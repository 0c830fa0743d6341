//! `mock()`: results that a query puts in the place of a built-in or an artifact, for tests of queries. They count for that query only, and take
//! nothing away that the configuration forbids: what is blocked stays blocked.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::args;
use crate::ast;
use crate::at::At;
use crate::call::Call;
use crate::dict::Dict;
use crate::error::CallError;
use crate::registry::Registry;
use crate::rows::{Rows, as_row};
use crate::scope::Scope;
use crate::signature::{Arg, ArgType, Signature};
use crate::text::display;
use crate::value::{Object, Value};

/// The most mocks of one query.
const MAX_MOCKS: usize = 1000;
/// How many calls are remembered with their arguments.
const MAX_RECORDED: usize = 1000;

/// What stands for what in one query.
#[derive(Default)]
pub(crate) struct Mocks {
    any: AtomicBool,
    by_target: Mutex<HashMap<Target, Arc<Mock>>>,
}

/// What a mock stands for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Plugin(String),
    Function(String),
    Artifact(String),
}

pub(crate) struct Mock {
    results: Vec<Value>,
    calls: Mutex<(usize, Vec<Value>)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mocks {
    /// What stands for the target that `make` names. Costs next to nothing in queries without mocks.
    pub(crate) fn find(&self, make: impl FnOnce() -> Target) -> Option<Arc<Mock>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        locked(&self.by_target).get(&make()).cloned()
    }
}

impl Mock {
    fn record(&self, args: Dict) -> usize {
        let mut calls = locked(&self.calls);
        let turn = calls.0;
        calls.0 = turn.saturating_add(1);
        if calls.1.len() < MAX_RECORDED {
            calls.1.push(args.into());
        }
        turn
    }

    /// Results by turn; after the last comes the first again.
    fn by_turn(&self, turn: usize) -> Value {
        turn.checked_rem(self.results.len()).and_then(|at| self.results.get(at)).cloned().unwrap_or_default()
    }

    /// A call of a function.
    pub(crate) fn call(&self, args: Dict) -> Value {
        let turn = self.record(args);
        self.by_turn(turn)
    }

    /// A call of a plugin or an artifact: all results are rows. When they are lists or queries, each call gives the rows of one.
    pub(crate) fn open(&self, args: Dict, scope: &Scope) -> Rows {
        let turn = self.record(args);
        let lists = !self.results.is_empty() && self.results.iter().all(|result| matches!(result, Value::List(_) | Value::Query(_)));
        if !lists {
            return Rows::of(self.results.iter().cloned().map(as_row).collect::<Vec<_>>());
        }
        match self.by_turn(turn) {
            Value::Query(query) => query.open(scope),
            Value::List(rows) => Rows::of(rows.iter().cloned().map(as_row).collect::<Vec<_>>()),
            _ => Rows::none(),
        }
    }
}

/// The arguments of a call that is answered by a mock.
pub(crate) fn recorded(args: &[ast::Arg], at: At<'_>) -> Dict {
    args.iter().map(|arg| (&arg.name.name, crate::eval::argument(&arg.value, at).materialized(at.scope()))).collect()
}

/// What `Artifact` and `Artifact.A.B` are as values: names. They show as NULL.
#[derive(Debug, Clone, Default)]
pub struct ArtifactName(String);

impl Object for ArtifactName {
    fn type_name(&self) -> &'static str {
        "artifact"
    }

    fn member(&self, name: &str) -> Option<Value> {
        let name = if self.0.is_empty() { name.to_owned() } else { format!("{}.{name}", self.0) };
        Some(Value::Object(Arc::new(Self(name))))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

pub(super) fn register(registry: &mut Registry) {
    const PLUGIN: Arg = Arg::optional("plugin", ArgType::String, "The plugin.");
    const FUNCTION: Arg = Arg::optional("function", ArgType::String, "The function.");
    registry.function(
        Signature::function("mock", "Puts results in the place of a plugin, a function or an artifact, for the rest of this query.").args(
            args![
                PLUGIN,
                FUNCTION,
                Arg::optional("artifact", ArgType::Any, "The artifact: Artifact.Name, or its name."),
                Arg::required("results", ArgType::Lazy, "The rows of a plugin or an artifact; the values that a function gives by turns."),
            ],
        ),
        mock,
    );
    registry.function(
        Signature::function("mock_check", "Whether a mock was called as often as expected; else the log says how often it was.").args(
            args![
                PLUGIN,
                FUNCTION,
                Arg::optional("expected_calls", ArgType::Int, "How often it should have been called."),
                Arg::optional("clear", ArgType::Bool, "Count from zero again."),
            ],
        ),
        |call| check(&call).map(|(right, _)| Value::Bool(right)),
    );
    registry.function(
        Signature::function("mock_replay", "The arguments with which a mock was called, call by call.").args(args![
            PLUGIN,
            FUNCTION,
            Arg::optional("expected_calls", ArgType::Int, "How often it should have been called."),
            Arg::optional("clear", ArgType::Bool, "Forget them."),
        ]),
        |call| check(&call).map(|(_, calls)| Value::list(calls)),
    );
    registry.function(Signature::function("mock_clear", "Takes all mocks of this query away."), |call| {
        let mocks = call.scope().mocks();
        locked(&mocks.by_target).clear();
        mocks.any.store(false, Ordering::Relaxed);
        Ok(Value::Null)
    });
}

fn target(call: &Call) -> Result<Target, CallError> {
    let named = |name: &str| call.opt_string(name).filter(|name| !name.is_empty());
    if let Some(plugin) = named("plugin") {
        return Ok(Target::Plugin(plugin));
    }
    if let Some(function) = named("function") {
        return Ok(Target::Function(function));
    }
    let artifact = if call.kind() == crate::Kind::Function && call.name() == "mock" { call.value("artifact") } else { Value::Null };
    match artifact {
        Value::Null => Err("name what is meant with plugin, function or artifact".into()),
        Value::Object(object) => match object.as_any().downcast_ref::<ArtifactName>() {
            Some(ArtifactName(name)) if !name.is_empty() => Ok(Target::Artifact(name.clone())),
            _ => Err("artifact must be Artifact.Name, or the name as text".into()),
        },
        other => Ok(Target::Artifact(display(&other).trim_start_matches("Artifact.").to_owned())),
    }
}

fn mock(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let target = target(&call)?;
    let results: Vec<Value> = match call.lazy("results") {
        Value::List(items) => {
            items.iter().cloned().map(|item| if matches!(item, Value::Query(_)) { item } else { item.materialized(scope) }).collect()
        }
        Value::Query(query) if matches!(target, Target::Function(_)) => query.collect(scope),
        Value::Query(query) => vec![Value::Query(query)],
        other => vec![other.materialized(scope)],
    };
    let mocks = scope.mocks();
    let mut by_target = locked(&mocks.by_target);
    if by_target.len() >= MAX_MOCKS {
        return Err("there are too many mocks".into());
    }
    by_target.insert(target, Arc::new(Mock { results, calls: Mutex::default() }));
    mocks.any.store(true, Ordering::Relaxed);
    Ok(Value::Bool(true))
}

/// Whether the count is right, and the recorded calls.
fn check(call: &Call) -> Result<(bool, Vec<Value>), CallError> {
    let target = target(call)?;
    let name = match &target {
        Target::Plugin(name) | Target::Function(name) | Target::Artifact(name) => name.clone(),
    };
    let mock = call.scope().mocks().find(|| target).ok_or_else(|| CallError::failed(format!("there is no mock of {name}")))?;
    let mut calls = locked(&mock.calls);
    let right = call.opt_int("expected_calls").is_none_or(|expected| usize::try_from(expected).is_ok_and(|expected| expected == calls.0));
    if !right {
        call.log(format!("ERROR:{name} was called {} times, not {}", calls.0, call.int("expected_calls")));
    }
    let recorded = calls.1.clone();
    if call.bool("clear") {
        *calls = (0, Vec::new());
    }
    Ok((right, recorded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Environment, MemoryLog, Query, json};

    #[test]
    fn mocks_stand_for_built_ins_in_their_query_only() {
        let log = Arc::new(MemoryLog::default());
        let mut registry = Registry::core();
        registry.restrict(&crate::Restrictions { denied_functions: vec!["upcase".to_owned()], ..Default::default() });
        let environment = Environment::new(Arc::new(registry)).log(log.clone());
        let scope = environment.clone().open();
        let rows = |vql: &str| -> Vec<String> {
            Query::new(&scope, &crate::parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect()
        };
        rows(
            "LET _ <= (mock(function='lowcase', results=['a', 'b']), mock(plugin='nowhere', results=[dict(X=1), dict(X=2)]), mock(function='upcase', results='no'))",
        );
        assert_eq!(
            rows("SELECT lowcase(string='Q') AS A, upcase(string='q') AS B, X FROM nowhere(arg=_value)"),
            [r#"{"A":"a","B":null,"X":1}"#, r#"{"A":"b","B":null,"X":2}"#]
        );
        assert_eq!(
            rows(
                "SELECT mock_check(function='lowcase', expected_calls=2) AS A, mock_check(plugin='nowhere', expected_calls=5) AS B, mock_replay(function='lowcase') AS C FROM scope()"
            ),
            [r#"{"A":true,"B":false,"C":[{"string":"Q"},{"string":"Q"}]}"#]
        );
        rows("LET _ <= mock_clear()");
        assert_eq!(rows("SELECT lowcase(string='Q') AS A FROM scope()"), [r#"{"A":"q"}"#]);
        assert!(log.take().iter().any(|line| line.contains("upcase() has been blocked")));
    }
}
