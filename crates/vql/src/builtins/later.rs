//! What happens later or elsewhere: `atexit()` at the end of the query, `background()` beside it; and `alert()`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::args;
use crate::call::Call;
use crate::cancel::{CancelToken, StopReason};
use crate::dict::Dict;
use crate::error::CallError;
use crate::json;
use crate::ops::truth;
use crate::registry::Registry;
use crate::rows::Rows;
use crate::scope::Scope;
use crate::signature::{Arg, ArgType, Signature};
use crate::value::Value;

/// How long what runs at the end of a query may take, unless the call says otherwise.
const EXIT_LIMIT: Duration = Duration::from_secs(60);
/// Seconds for which the same alert is not repeated, unless the call says otherwise.
const ALERT_DEDUP: i64 = 7200;
/// How many names of alerts are remembered for suppression.
const ALERTS: usize = 10_000;

pub(super) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("atexit", "Runs a query when this one ends.")
            .args(args![
                Arg::required("query", ArgType::Any, "The query, or its text."),
                Arg::optional("env", ArgType::Dict, "Variables for it."),
                Arg::optional("timeout", ArgType::UInt, "Seconds that it may take; 60 unless given."),
            ])
            .version(1),
        at_exit,
    );
    registry.function(
        Signature::function("background", "Runs a query beside this one, until both end. Its rows are dropped.")
            .args(args![Arg::optional("query", ArgType::Query, "The query.")])
            .version(1),
        background,
    );
    registry.function(
        Signature::function("alert", "Writes an alert to the log of the query, with the further arguments as its data.")
            .args(args![
                Arg::required("name", ArgType::String, "The name of the alert."),
                Arg::optional("dedup", ArgType::Int, "Seconds for which the same alert is not repeated; 7200 unless given, -1 for never."),
                Arg::optional("condition", ArgType::Any, "No alert when this is given and not true."),
            ])
            .free_form()
            .version(2),
        alert,
    );
}

/// The rows of a query, a text or any other value, in a scope of its own.
fn start(query: Value, scope: &Scope) -> Result<Rows, CallError> {
    match query {
        Value::Query(query) => Ok(query.open(scope)),
        Value::Str(text) => {
            let program = crate::parse(&text.to_str()).map_err(CallError::failed)?;
            Ok(crate::query::run(scope, program.statements))
        }
        _ => Ok(Rows::none()),
    }
}

fn at_exit(call: Call) -> Result<Value, CallError> {
    let query = call.value("query");
    let limit = call.opt_uint("timeout").filter(|seconds| *seconds > 0).map_or(EXIT_LIMIT, Duration::from_secs);
    let origin = call.scope().detach().with_names(&call.dict("env").unwrap_or_default());
    call.scope().on_root_close(move || {
        crate::stack::enter(|| {
            // The query that ends may have been cancelled; what it leaves behind must be cleared away all the same.
            let whole = CancelToken::new();
            let scope = origin.open(whole.clone());
            let Some(scope) = scope.with_cancel(whole.child_until(scope.elapsed(), limit)) else { return };
            match start(query, &scope) {
                Ok(rows) => rows.for_each(drop),
                Err(error) => scope.log(format!("atexit: {error}")),
            }
        });
    });
    Ok(Value::Null)
}

fn background(call: Call) -> Result<Value, CallError> {
    if let Some(query) = call.query("query") {
        let scope = call.scope().clone();
        // A query that a definition starts knows the name that is defined.
        call.scope().once_defined(move || {
            if let Err(error) = beside(&scope, "vql background", move |scope| query.open(scope).for_each(drop)) {
                scope.log(format!("background: {error}"));
            }
        });
    }
    Ok(Value::Null)
}

/// The threads that run beside a query.
#[derive(Default)]
struct Threads(Mutex<Vec<(CancelToken, JoinHandle<()>)>>);

/// Runs `work` on a thread beside the query, in a scope of its own that knows the names of `scope`, until the query ends.
pub(super) fn beside(scope: &Scope, name: &str, work: impl FnOnce(&Scope) + Send + 'static) -> Result<(), CallError> {
    let Some(slot) = scope.take_thread() else { return Err("too many threads run for this query".into()) };
    let cancel = scope.environment().cancel.child();
    let (origin, token) = (scope.detach(), cancel.clone());
    let thread = crate::stack::spawn(name, move || {
        let _slot = slot;
        work(&origin.open(token));
    })?;
    let threads = scope.shared::<Threads>();
    let mut running = threads.0.lock().unwrap_or_else(PoisonError::into_inner);
    if running.is_empty() {
        let threads = threads.clone();
        scope.on_query_close(move || {
            let running = std::mem::take(&mut *threads.0.lock().unwrap_or_else(PoisonError::into_inner));
            running.iter().for_each(|(cancel, _)| cancel.stop(StopReason::Done));
            running.into_iter().for_each(|(_, thread)| drop(thread.join()));
        });
    }
    running.retain(|(_, thread)| !thread.is_finished());
    running.push((cancel, thread));
    Ok(())
}

/// When each alert was last written.
#[derive(Default)]
struct Alerted(Mutex<HashMap<String, i64>>);

fn alert(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    if call.has("condition") && !truth(&call.value("condition"), scope) {
        return Ok(Value::Bool(false));
    }
    let (name, now) = (call.string("name"), scope.now());
    let dedup = call.opt_int("dedup").unwrap_or(ALERT_DEDUP);
    if dedup >= 0 {
        let alerted = scope.shared::<Alerted>();
        let mut alerted = alerted.0.lock().unwrap_or_else(PoisonError::into_inner);
        if alerted.get(&name).is_some_and(|at| now.unix().saturating_sub(*at) < dedup) {
            return Ok(Value::Bool(false));
        }
        if alerted.len() >= ALERTS {
            alerted.clear();
        }
        alerted.insert(name.clone(), now.unix());
    }
    let data: Dict = call.extras().iter().map(|(name, value)| (name.clone(), value.clone().materialized(scope))).collect();
    let event = Dict::new().with("timestamp", now).with("name", name).with("event_data", data);
    scope.log(format!("ALERT:{}", json::encode(&event.into())));
    Ok(Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Environment, MemoryLog, Query};

    #[test]
    fn a_query_that_a_definition_starts_knows_its_name() {
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(Registry::core())).log(log.clone()).open();
        let statement = crate::parse_statement("LET Own <= background(query={ SELECT * FROM nowhere() })").unwrap();
        Query::new(&scope, &statement).for_each(drop);
        let mut lines = Vec::new();
        for _ in 0..500 {
            lines.extend(log.take());
            if lines.iter().any(|line| line.contains("nowhere")) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(lines.iter().any(|line| line.ends_with("Current Scope is [NULL], [], [Own]")), "{lines:?}");
    }
}
