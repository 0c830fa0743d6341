//! Built-ins that decide what runs: `if`, `foreach`, `chain`, `switch`, `range`, `scope` and the like.

use std::any::Any;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use crate::args;
use crate::call::Call;
use crate::cancel::{CancelToken, StopReason};
use crate::dict::{Dict, Key};
use crate::error::CallError;
use crate::member::{column, columns, elements, row_to_dict};
use crate::ops::truth;
use crate::registry::Registry;
use crate::rows::{Rows, StoredQuery, as_row};
use crate::scope::{Scope, WeakScope};
use crate::shape::Shape;
use crate::signature::{Arg, ArgType, Signature};
use crate::value::{List, Object, Value};

/// How many rows the workers of a plugin may be ahead of who reads them.
const AHEAD: usize = 16;
/// How many workers `async=TRUE` asks for.
const ASYNC_WORKERS: usize = 100;

pub(super) fn register(registry: &mut Registry) {
    const CONDITION: Arg = Arg::required("condition", ArgType::Any, "What decides.");
    registry.plugin(
        Signature::plugin("if", "Runs one of two queries.").args(args![
            CONDITION,
            Arg::required("then", ArgType::Query, "Runs when the condition is true."),
            Arg::optional("else", ArgType::Query, "Runs when it is not."),
        ]),
        |call| {
            let branch = if truth(&call.value("condition"), call.scope()) { "then" } else { "else" };
            Ok(call.query(branch).map_or_else(Rows::none, |query| query.open(call.scope())))
        },
    );
    registry.function(
        Signature::function("if", "Gives one of two values; the other is not evaluated.").args(args![
            CONDITION,
            Arg::optional("then", ArgType::Lazy, "The value when the condition is true."),
            Arg::optional("else", ArgType::Lazy, "The value when it is not."),
        ]),
        |call| {
            let branch = if truth(&call.value("condition"), call.scope()) { "then" } else { "else" };
            Ok(call.lazy(branch))
        },
    );
    registry.plugin(
        Signature::plugin("range", "Counts.").args(args![
            Arg::optional("start", ArgType::Int, "The first number; 0 unless given."),
            Arg::required("end", ArgType::Int, "The number before which to stop."),
            Arg::optional("step", ArgType::Int, "The distance; 1 unless given."),
        ]),
        range,
    );
    registry.plugin(Signature::plugin("scope", "Gives one row: the scope itself."), |call| {
        Ok(Rows::one(Value::Object(Arc::new(ScopeObject(call.scope().downgrade())))))
    });
    registry.function(Signature::function("scope", "Gives the scope itself."), |call| {
        Ok(Value::Object(Arc::new(ScopeObject(call.scope().downgrade()))))
    });
    registry.plugin(
        Signature::plugin("items", "Gives keys and values of a dict, places and elements of a list.").args(args![Arg::optional(
            "item",
            ArgType::Any,
            "The dict, list or query.",
        )]),
        |call| Ok(Rows::of(items(&call))),
    );
    registry.function(
        Signature::function("items", "Gives keys and values of a dict, places and elements of a list.").args(args![Arg::optional(
            "item",
            ArgType::Any,
            "The dict, list or query.",
        )]),
        |call| Ok(Value::list(items(&call))),
    );
    registry.plugin(
        Signature::plugin("foreach", "Runs a query for each row of another.").args(args![
            Arg::required("row", ArgType::Lazy, "Where rows come from: a query, a list, a dict or a single value."),
            Arg::optional("query", ArgType::Query, "What runs for each row, with its columns in scope."),
            Arg::optional("async", ArgType::Bool, "Run many at once, in any order."),
            Arg::optional("workers", ArgType::Int, "How many to run at once."),
            Arg::optional("column", ArgType::String, "Take this column of each row in place of the row."),
        ]),
        foreach,
    );
    registry.plugin(
        Signature::plugin("chain", "Gives the rows of queries one after another.")
            .args(args![Arg::optional("async", ArgType::Bool, "Run all at once.")])
            .free_form(),
        |call| {
            let at_once = call.bool("async");
            chain(&call, at_once)
        },
    );
    registry.plugin(Signature::plugin("combine", "Gives the rows of queries as they come.").free_form(), |call| chain(&call, true));
    registry.plugin(Signature::plugin("switch", "Gives the rows of the first query that has any.").free_form(), switch);
    registry.plugin(
        Signature::plugin("flatten", "Gives a row for each combination of the elements in list columns.").args(args![Arg::required(
            "query",
            ArgType::Query,
            "Where rows come from.",
        )]),
        flatten,
    );
    registry.plugin(
        Signature::plugin("column_filter", "Drops columns by name.").args(args![
            Arg::required("query", ArgType::Query, "Where rows come from."),
            Arg::optional("exclude", ArgType::Strings, "Patterns of columns to drop."),
            Arg::optional("include", ArgType::Strings, "Patterns of columns to keep; all unless given."),
        ]),
        column_filter,
    );
    registry.plugin(
        Signature::plugin("sequence", "Gives for each row the rows before it that are young enough.").args(args![
            Arg::required("query", ArgType::Query, "Where rows come from."),
            Arg::optional("max_age", ArgType::Int, "Seconds that a row stays."),
        ]),
        sequence,
    );
    registry.plugin(
        Signature::plugin("query", "Runs a query in a scope of its own.")
            .args(args![
                Arg::required("query", ArgType::Any, "A query, or its text."),
                Arg::optional("env", ArgType::Dict, "Variables of the new scope."),
                Arg::optional("copy_env", ArgType::Strings, "Names of variables to take over."),
                Arg::optional("cpu_limit", ArgType::Float, "Taken for compatibility; has no effect."),
                Arg::optional("iops_limit", ArgType::Float, "Taken for compatibility; has no effect."),
                Arg::optional("timeout", ArgType::Float, "Seconds after which to stop."),
                Arg::optional("progress_timeout", ArgType::Float, "Taken for compatibility; has no effect."),
                Arg::optional("org_id", ArgType::String, "The organisation in which to run."),
                Arg::optional("runas", ArgType::String, "The user as whom to run."),
                Arg::optional("inherit", ArgType::Bool, "Keep the scope of the caller."),
                Arg::optional("exit", ArgType::Lambda, "Stop at the first row for which this is true."),
            ])
            .version(2),
        query,
    );
}

/// The scope as a value: its members are the variables. It does not keep the scope alive.
struct ScopeObject(WeakScope);

impl Object for ScopeObject {
    fn type_name(&self) -> &'static str {
        "*vfilter.Scope"
    }

    fn member(&self, name: &str) -> Option<Value> {
        self.0.upgrade()?.variable(name)
    }

    fn to_value(&self) -> Value {
        Dict::new().into()
    }

    fn is_true(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The scope as a value.
pub(super) fn scope_value(scope: &Scope) -> Value {
    Value::Object(Arc::new(ScopeObject(scope.downgrade())))
}

fn range(call: Call) -> Result<Rows, CallError> {
    let (mut next, end, step) = (call.int("start"), call.int("end"), call.opt_int("step").unwrap_or(1));
    if step <= 0 {
        return Err("step must be greater than 0".into());
    }
    let shape = Shape::new(["_value"]);
    Ok(Rows::from_fn(move || {
        if next >= end {
            return None;
        }
        let row = Dict::of_shape(&shape, vec![Value::Int(next)]);
        next = next.saturating_add(step);
        Some(Ok(row.into()))
    }))
}

fn items(call: &Call) -> Vec<Dict> {
    let pair = |key: Value, value: &Value| Dict::new().with("_key", key).with("_value", value);
    match call.value("item") {
        Value::Dict(dict) => dict.iter().map(|(key, value)| pair(key.into(), value)).collect(),
        Value::Null => Vec::new(),
        object @ Value::Object(_) => row_to_dict(&object).iter().map(|(key, value)| pair(key.into(), value)).collect(),
        other => elements(&other, call.scope()).iter().enumerate().map(|(at, value)| pair(at.into(), value)).collect(),
    }
}

/// The rows of `foreach(row=…)`, made by `as_row`.
fn source(value: Value, scope: &Scope, as_row: fn(Value) -> Value) -> Rows {
    match value.reduced() {
        Value::Null => Rows::none(),
        Value::Query(query) => query.open(scope),
        Value::List(items) => {
            let mut at = 0_usize;
            Rows::from_fn(move || {
                loop {
                    let item = items.get(at)?.clone();
                    at = at.saturating_add(1);
                    if !item.is_null() {
                        return Some(Ok(as_row(item)));
                    }
                }
            })
        }
        other => Rows::one(as_row(other)),
    }
}

fn scalar_or_row(value: Value) -> Value {
    if value.is_scalar() { value } else { as_row(value) }
}

fn foreach(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    // What passes through stays what it is: a row of a single value says nothing of other names.
    let passes = !call.has("query") && !call.has("column");
    let mut rows = source(call.lazy("row"), &scope, if passes { scalar_or_row } else { as_row });
    if let Some(name) = call.opt_string("column") {
        let mut outer = rows;
        rows = Rows::from_fn(move || Some(outer.next()?.map(|row| as_row(column(&row, &name).unwrap_or_default()))));
    }
    let Some(query) = call.query("query") else { return Ok(rows) };
    let workers = match call.opt_int("workers") {
        Some(count) => usize::try_from(count).unwrap_or(1),
        None if call.bool("async") => ASYNC_WORKERS,
        None => 1,
    };
    if workers > 1 {
        scope.log(format!("DEBUG:Creating {workers} workers for foreach plugin"));
        return Ok(in_parallel(&scope, workers.min(ASYNC_WORKERS), rows, move |row, scope| {
            scope.with_row(row).map_or_else(Rows::none, |scope| query.open(&scope))
        }));
    }
    let mut current: Option<Rows> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if let Some(found) = current.as_mut().and_then(Iterator::next) {
                return Some(found);
            }
            if scope.stopped() {
                return None;
            }
            let row = match rows.next()? {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            current = Some(scope.with_row(row).map_or_else(Rows::none, |scope| query.open(&scope)));
        }
    }))
}

/// Rows made by threads. Dropping it stops and joins them.
struct Workers {
    scope: Scope,
    rows: Option<Receiver<Result<Value, CallError>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Iterator for Workers {
    type Item = Result<Value, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows.as_ref()?.recv().ok()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.scope.cancel_token().stop(StopReason::Done);
        self.rows = None;
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// Reads `rows` on a thread, up to `buffer` rows ahead of the reader. Where the budget gives no thread, on the caller's.
pub(super) fn read_ahead(scope: &Scope, buffer: usize, rows: Rows) -> Rows {
    workers(scope, 1, buffer, rows, |row, _| Rows::one(row))
}

/// Runs `work` for each row on up to `count` threads. Where the budget gives no thread at all, on the caller's, in order.
fn in_parallel(scope: &Scope, count: usize, rows: Rows, work: impl Fn(Value, &Scope) -> Rows + Send + Sync + 'static) -> Rows {
    workers(scope, count, AHEAD, rows, work)
}

fn workers(scope: &Scope, count: usize, ahead: usize, rows: Rows, work: impl Fn(Value, &Scope) -> Rows + Send + Sync + 'static) -> Rows {
    let Some(scope) = scope.with_cancel(scope.cancel_token().child()) else { return Rows::none() };
    let (sender, receiver) = sync_channel(ahead);
    let (rows, work) = (Arc::new(std::sync::Mutex::new(rows)), Arc::new(work));
    let mut threads = Vec::new();
    for _ in 0..count {
        let Some(slot) = scope.take_thread() else { break };
        let (scope, rows, work, sender) = (scope.clone(), rows.clone(), work.clone(), sender.clone());
        let body = move || {
            let _slot = slot;
            while !scope.stopped() {
                let row = rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                let found = match row {
                    None => return,
                    Some(Err(error)) => {
                        drop(sender.send(Err(error)));
                        return;
                    }
                    Some(Ok(row)) => work(row, &scope),
                };
                for row in found {
                    if scope.stopped() || sender.send(row).is_err() {
                        return;
                    }
                }
            }
        };
        match crate::stack::spawn("vql worker", body) {
            Ok(thread) => threads.push(thread),
            Err(_) => break,
        }
    }
    drop(sender);
    if threads.is_empty() {
        let mut current: Option<Rows> = None;
        return Rows::from_fn(move || {
            loop {
                if let Some(found) = current.as_mut().and_then(Iterator::next) {
                    return Some(found);
                }
                let row = rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next()?;
                match row {
                    Ok(row) => current = Some(work(row, &scope)),
                    Err(error) => return Some(Err(error)),
                }
            }
        });
    }
    Rows::try_of(Workers { scope, rows: Some(receiver), threads })
}

fn queries(call: &Call) -> Vec<StoredQuery> {
    call.extras()
        .iter()
        .map(|(_, value)| match value.clone().reduced() {
            Value::Query(query) => query,
            Value::Null => StoredQuery::of_values(Vec::new()),
            Value::List(items) => StoredQuery::of_values(items.iter().map(|item| as_row(item.clone())).collect()),
            other => StoredQuery::of_values(vec![as_row(other)]),
        })
        .collect()
}

fn chain(call: &Call, at_once: bool) -> Result<Rows, CallError> {
    let (scope, queries) = (call.scope().clone(), queries(call));
    if at_once {
        let count = queries.len().min(ASYNC_WORKERS);
        let places = Rows::of((0..queries.len()).map(Value::from));
        return Ok(in_parallel(&scope, count, places, move |place, scope| {
            let at = place.as_int().and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| queries.get(at)).map_or_else(Rows::none, |query| query.open(scope))
        }));
    }
    let mut queries = queries.into_iter();
    let mut current: Option<Rows> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if let Some(found) = current.as_mut().and_then(Iterator::next) {
                return Some(found);
            }
            if scope.stopped() {
                return None;
            }
            current = Some(queries.next()?.open(&scope));
        }
    }))
}

fn switch(call: Call) -> Result<Rows, CallError> {
    for query in queries(&call) {
        let mut rows = query.open(call.scope());
        if let Some(first) = rows.next() {
            return Ok(Rows::try_of(std::iter::once(first).chain(rows)));
        }
    }
    Ok(Rows::none())
}

/// The combinations of the elements of a row's list columns; the first column varies fastest.
struct Combinations {
    columns: Vec<(Key, Vec<Value>)>,
    places: Vec<usize>,
    ended: bool,
}

impl Combinations {
    fn of(row: &Value, scope: &Scope) -> Self {
        let columns: Vec<(Key, Vec<Value>)> = columns(row)
            .into_iter()
            .map(|name| {
                let value = column(row, &name).unwrap_or_default();
                let values = match &value {
                    Value::List(items) if !items.is_empty() => items.to_vec(),
                    Value::Query(query) => {
                        let rows = query.collect(scope);
                        if rows.is_empty() { vec![Value::list(rows)] } else { rows }
                    }
                    _ => vec![value],
                };
                (name, values)
            })
            .collect();
        let places = vec![0; columns.len()];
        Self { columns, places, ended: false }
    }
}

impl Iterator for Combinations {
    type Item = Dict;

    fn next(&mut self) -> Option<Dict> {
        if self.ended {
            return None;
        }
        let row = self
            .columns
            .iter()
            .zip(&self.places)
            .map(|((name, values), place)| (name, values.get(*place).cloned().unwrap_or_default()))
            .collect();
        self.ended = true;
        for (place, (_, values)) in self.places.iter_mut().zip(&self.columns) {
            *place = place.saturating_add(1);
            if *place < values.len() {
                self.ended = false;
                break;
            }
            *place = 0;
        }
        Some(row)
    }
}

fn flatten(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let mut rows = call.query("query").map_or_else(Rows::none, |query| query.open(&scope));
    let mut current: Option<Combinations> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if let Some(row) = current.as_mut().and_then(Iterator::next) {
                return Some(Ok(row.into()));
            }
            if scope.stopped() {
                return None;
            }
            match rows.next()? {
                Ok(row) => current = Some(Combinations::of(&row, &scope)),
                Err(error) => return Some(Err(error)),
            }
        }
    }))
}

fn column_filter(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let compile = |name: &str| call.texts(name).iter().filter_map(|pattern| scope.regex(pattern)).collect::<Vec<_>>();
    let (exclude, include) = (compile("exclude"), compile("include"));
    let mut rows = call.query("query").map_or_else(Rows::none, |query| query.open(&scope));
    Ok(Rows::from_fn(move || {
        let row = match rows.next()? {
            Ok(row) => row_to_dict(&row),
            Err(error) => return Some(Err(error)),
        };
        let wanted = |name: &Key| {
            let name = name.as_bytes();
            (include.is_empty() || include.iter().any(|regex| regex.is_match(name))) && !exclude.iter().any(|regex| regex.is_match(name))
        };
        Some(Ok(row.iter().filter(|(name, _)| wanted(name)).collect::<Dict>().into()))
    }))
}

fn sequence(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let max_age = call.opt_int("max_age").filter(|age| *age > 0).unwrap_or(60);
    let mut rows = call.query("query").map_or_else(Rows::none, |query| query.open(&scope));
    let mut held = scope.hold();
    let mut recent: std::collections::VecDeque<(i64, Value)> = std::collections::VecDeque::new();
    Ok(Rows::from_fn(move || {
        let row = match rows.next()? {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        let now = scope.now().unix();
        while recent.front().is_some_and(|(at, _)| now.saturating_sub(*at) > max_age) {
            recent.pop_front();
        }
        let mut out = Dict::clone(&row_to_dict(&row));
        out.set("__Seq", recent.iter().map(|(_, row)| row).collect::<List>());
        if !held.add(row.weight()) {
            return None;
        }
        recent.push_back((now, row));
        Some(Ok(out.into()))
    }))
}

fn query(call: Call) -> Result<Rows, CallError> {
    let mut variables = Dict::new();
    for name in call.strings("copy_env") {
        if let Some(value) = call.scope().variable(&name) {
            variables.set(name, value.materialized(call.scope()));
        }
    }
    if let Some(env) = call.dict("env") {
        variables.extend(env.iter());
    }
    let limit = call.opt_float("timeout").filter(|seconds| *seconds > 0.0);
    let cancel = match limit {
        Some(seconds) => {
            let limit = std::time::Duration::try_from_secs_f64(seconds).map_err(|_| CallError::from("timeout is out of range"))?;
            call.scope().cancel_token().child_until(call.scope().elapsed(), limit)
        }
        None => call.scope().cancel_token().child(),
    };
    let (org, runas) = (call.opt_string("org_id").unwrap_or_default(), call.opt_string("runas").unwrap_or_default());
    let inner = match (org.is_empty() && runas.is_empty(), call.bool("inherit")) {
        (true, true) => call.scope().child(variables),
        (true, false) => isolated(&call, variables),
        (false, true) => return Err("a query in another organisation or as another user inherits no scope".into()),
        (false, false) => Some(elsewhere(&call, (&org, &runas), variables, &cancel)?),
    };
    let Some(inner) = inner.and_then(|inner| inner.with_cancel(cancel.clone())) else { return Ok(Rows::none()) };
    let mut rows = match call.value("query") {
        Value::Query(query) => query.open(&inner),
        Value::Str(text) => {
            let program = crate::parse(&text.to_str()).map_err(CallError::failed)?;
            let scope = isolated_program(&inner);
            crate::query::run(&scope, program.statements)
        }
        other => return Err(CallError::Argument(format!("Field query should be a query or text not {}.", other.type_name()))),
    };
    let exit = call.lambda("exit");
    Ok(Rows::from_fn(move || {
        let Some(row) = rows.next() else {
            if let (Some(limit), Some(StopReason::TimedOut(_))) = (limit, cancel.reason()) {
                inner.log_once(format!("ERROR:query: Query timed out after {limit} seconds"));
            }
            return None;
        };
        if let (Some(exit), Ok(row)) = (&exit, &row)
            && truth(&exit.call(&inner, std::slice::from_ref(row)), &inner)
        {
            cancel.stop(StopReason::Done);
            return None;
        }
        Some(row)
    }))
}

/// A scope in another organisation or of another user: nothing of the caller's own is in it but the given variables.
fn elsewhere(call: &Call, (org, runas): (&str, &str), variables: Dict, cancel: &CancelToken) -> Result<Scope, CallError> {
    let here = call.scope().environment();
    let door = here.elsewhere.as_ref().ok_or("other users and organisations are only there on a server")?;
    let there = match door.environment(org, runas, cancel) {
        Ok(there) => there,
        Err(refused) => {
            call.scope().log(format!("ERROR:query: {refused}"));
            return Err(CallError::Silent);
        }
    };
    let mut all = there.variables().clone();
    all.extend(variables.iter());
    Ok(there.with_variables(all).continuing(here, cancel.clone()).open())
}

/// A scope with the host's variables and `variables` over them, and nothing of the caller's own.
fn isolated(call: &Call, variables: Dict) -> Option<Scope> {
    let mut all = call.scope().environment().variables().clone();
    for (name, value) in variables {
        all.update(name, value);
    }
    call.scope().isolated(all)
}

/// Where the statements of a text put their names.
fn isolated_program(scope: &Scope) -> Scope {
    scope.with_variables().unwrap_or_else(|| scope.clone())
}
