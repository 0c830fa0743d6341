//! `diff()`: what appears in the rows of a query, and what goes.

use std::collections::VecDeque;
use std::time::Duration;

use indexmap::IndexMap;

use crate::args;
use crate::call::Call;
use crate::error::CallError;
use crate::member::{column, row_to_dict};
use crate::registry::Registry;
use crate::rows::Rows;
use crate::scope::Scope;
use crate::signature::{Arg, ArgType, Signature};
use crate::text::display;
use crate::value::Value;

pub(super) fn register(registry: &mut Registry) {
    registry.plugin(
        Signature::plugin("diff", "Runs a query again and again, and gives the rows that were added or removed, with the column Diff.")
            .args(args![
                Arg::required("query", ArgType::Query, "The query."),
                Arg::required("key", ArgType::String, "The column by which rows are the same."),
                Arg::optional("period", ArgType::Int, "Seconds between two runs; 60 unless given."),
            ]),
        diff,
    );
}

/// The rows of one run by their keys.
fn look(call: &Call, scope: &Scope, key: &str) -> IndexMap<String, Value> {
    let rows = call.query("query").map(|query| query.collect(scope)).unwrap_or_default();
    let keyed = |row: Value| {
        let row = row.materialized(scope);
        let value = column(&row, key).unwrap_or_default();
        (format!("{}\0{}", value.type_name(), display(&value)), row)
    };
    rows.into_iter().map(keyed).collect()
}

fn diff(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let key = call.string("key");
    let period = Duration::from_secs(call.opt_int("period").filter(|seconds| *seconds > 0).unwrap_or(60).unsigned_abs());
    let mut known: Option<IndexMap<String, Value>> = None;
    let mut ready: VecDeque<Value> = VecDeque::new();
    Ok(Rows::from_fn(move || {
        loop {
            if let Some(row) = ready.pop_front() {
                return Some(Ok(row));
            }
            // The first run is what later ones are compared with.
            let Some(before) = known.take() else {
                known = Some(look(&call, &scope, &key));
                continue;
            };
            if scope.sleep(period) {
                return None;
            }
            let now = look(&call, &scope, &key);
            if scope.stopped() {
                return None;
            }
            let marked = |row: &Value, what: &str| {
                let mut row = crate::dict::Dict::clone(&row_to_dict(row));
                row.set("Diff", what);
                Value::from(row)
            };
            ready.extend(now.iter().filter(|(key, _)| !before.contains_key(*key)).map(|(_, row)| marked(row, "added")));
            ready.extend(before.iter().filter(|(key, _)| !now.contains_key(*key)).map(|(_, row)| marked(row, "removed")));
            known = Some(now);
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::{Clock, Environment, Query, Registry, Time, json, parse_statement};

    /// A clock that does not wait, so that each run follows the last at once.
    struct Hasty;

    impl Clock for Hasty {
        fn now(&self) -> Time {
            Time::EPOCH
        }

        fn elapsed(&self) -> Duration {
            Duration::ZERO
        }

        fn waits(&self) -> bool {
            false
        }
    }

    #[test]
    fn what_comes_and_goes_is_told() {
        let scope = Environment::new(Arc::new(Registry::core())).clock(Arc::new(Hasty)).open();
        let define = "LET Runs <= lru()";
        Query::new(&scope, &parse_statement(define).unwrap()).for_each(drop);
        let vql = "SELECT A, Diff FROM diff(key='A', query={ SELECT get(item=Runs, field='n', default=0) AS A FROM range(end=1) WHERE set(item=Runs, field='n', value=A + 1) OR TRUE }) LIMIT 4";
        let rows: Vec<String> = Query::new(&scope, &parse_statement(vql).unwrap()).map(|row| json::encode(&row.into())).collect();
        assert_eq!(
            rows,
            [r#"{"A":1,"Diff":"added"}"#, r#"{"A":0,"Diff":"removed"}"#, r#"{"A":2,"Diff":"added"}"#, r#"{"A":1,"Diff":"removed"}"#]
        );
    }
}
