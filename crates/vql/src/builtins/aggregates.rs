//! Aggregates: running values per place of call, or per group under `GROUP BY`.

use std::sync::{Arc, Mutex, PoisonError};

use crate::args;
use crate::call::Call;
use crate::error::CallError;
use crate::ops::{greater, less};
use crate::registry::Registry;
use crate::rows::{RowSource, Rows, StoredQuery};
use crate::scope::Scope;
use crate::signature::{Arg, ArgType, Signature};
use crate::value::{List, Object, Value};

pub(super) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("rate", "How fast x grows with y since the row before; NULL for the first row.")
            .args(
                args![Arg::required("x", ArgType::Float, "What grows."), Arg::required("y", ArgType::Float, "By what, mostly the time."),],
            )
            .aggregate(),
        |call| {
            let point = Value::list([call.value("x"), call.value("y")]);
            let before = call.state(|state| std::mem::replace(state, point.clone()));
            let number = |value: &Value, at: usize| value.as_list().and_then(|items| items.get(at)).and_then(Value::as_float);
            let difference = |at: usize| Some(number(&point, at)? - number(&before, at)?);
            Ok(Value::from(difference(0).zip(difference(1)).filter(|(_, y)| *y != 0.0).map(|(x, y)| x / y)))
        },
    );
    registry.function(
        Signature::function("count", "Counts calls.").args(args![Arg::optional("items", ArgType::Any, "Not used.")]).aggregate(),
        |call| {
            Ok(call.state(|state| {
                let next = match state {
                    Value::UInt(count) => count.saturating_add(1),
                    _ => 1,
                };
                *state = Value::UInt(next);
                state.clone()
            }))
        },
    );
    registry.function(
        Signature::function("sum", "Adds up integers.").args(args![Arg::required("item", ArgType::Int, "What to add.")]).aggregate(),
        |call| {
            let item = call.int("item");
            Ok(call.state(|state| {
                *state = Value::Int(state.as_int().unwrap_or(0).wrapping_add(item));
                state.clone()
            }))
        },
    );
    registry.function(
        Signature::function("min", "Keeps the smallest value.")
            .args(args![Arg::required("item", ArgType::Lazy, "What to compare.")])
            .aggregate(),
        |call| Ok(keep(&call, less)),
    );
    registry.function(
        Signature::function("max", "Keeps the largest value.")
            .args(args![Arg::required("item", ArgType::Lazy, "What to compare.")])
            .aggregate(),
        |call| Ok(keep(&call, greater)),
    );
    registry.function(
        Signature::function("enumerate", "Collects values into a list.")
            .args(args![Arg::optional("items", ArgType::Any, "What to collect.")])
            .aggregate(),
        enumerate,
    );
}

fn keep(call: &Call, better: fn(&Value, &Value) -> bool) -> Value {
    let item = call.lazy("item").materialized(call.scope());
    call.state(|state| {
        if !item.is_null() && (state.is_null() || better(&item, state)) {
            *state = item;
        }
        state.clone()
    })
}

/// The elements so far, shared by all results of one group; each result is a prefix of it.
#[derive(Default)]
struct Collected(Mutex<Vec<Value>>);

impl Object for Collected {
    fn type_name(&self) -> &'static str {
        "enumerate"
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

struct Prefix(Arc<dyn Object>, usize);

impl RowSource for Prefix {
    fn open(&self, _: &Scope) -> Rows {
        let items = match self.0.as_any().downcast_ref::<Collected>() {
            Some(collected) => {
                let items = collected.0.lock().unwrap_or_else(PoisonError::into_inner);
                items.get(..self.1).unwrap_or_default().to_vec()
            }
            None => Vec::new(),
        };
        Rows::of(items)
    }

    fn depth(&self) -> u16 {
        crate::MAX_DEPTH / 2
    }
}

fn enumerate(call: Call) -> Result<Value, CallError> {
    let item = call.value("items").materialized(call.scope());
    if !call.scope().keep(item.weight()) {
        return Err(CallError::Silent);
    }
    if item.depth() >= crate::MAX_DEPTH / 2 {
        return Err("the elements nest too deep".into());
    }
    Ok(call.state(|state| {
        if !matches!(state, Value::Object(_)) {
            *state = Value::Object(Arc::new(Collected::default()));
        }
        let Value::Object(object) = state else { return Value::from(List::new()) };
        let Some(collected) = object.as_any().downcast_ref::<Collected>() else { return Value::from(List::new()) };
        let mut items = collected.0.lock().unwrap_or_else(PoisonError::into_inner);
        items.push(item);
        StoredQuery::new(Prefix(object.clone(), items.len())).into()
    }))
}
