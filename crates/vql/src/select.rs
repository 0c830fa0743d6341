//! The pipeline of a `SELECT`: source, `WHERE`, columns, `GROUP BY`, `ORDER BY`, `LIMIT`. Pulled row by row.

mod group;
mod output;
mod sort;

use std::sync::Arc;

use crate::ast::{self, Select};
use crate::at::At;
use crate::builtins::{Target, mock};
use crate::dict::Dict;
use crate::error::CallError;
use crate::eval;
use crate::format::canonical_select;
use crate::rows::Rows;
use crate::scope::{Binding, Scope};
use crate::value::Value;
use crate::{member, rows};

pub(crate) use output::OutputRow;

/// Starts a query. Failures are logged; the rows are dicts.
pub(crate) fn open(query: &Arc<Select>, scope: &Scope) -> Rows {
    let explained;
    let scope = if query.explain {
        explained = scope.with_explain().unwrap_or_else(|| scope.clone());
        explained.log(format!("DEBUG:Explain start query: {}", canonical_select(query)));
        &explained
    } else {
        scope
    };
    let limit = query.limit.map(|limit| match limit {
        ast::Number::Int(count) => usize::try_from(count).unwrap_or(0),
        ast::Number::Float(count) => count.max(0.0) as usize,
    });
    let source = open_source(query, scope);
    let rows = if query.group_by.is_some() { group::grouped(query, source, scope) } else { output::plain(query, source, scope) };
    let rows = match &query.order_by {
        Some(by) => sort::sorted(by.clone(), limit, rows, scope),
        None => rows,
    };
    match limit {
        Some(limit) => Rows::try_of(rows.take(limit)),
        None => rows,
    }
}

/// The rows of a source, counted.
fn open_source(query: &Arc<Select>, scope: &Scope) -> Rows {
    let mut rows = source_rows(&query.from, scope);
    let scope = scope.clone();
    let name = scope.explains().then(|| dotted(&query.from.path));
    Rows::from_fn(move || {
        if scope.stopped() {
            return None;
        }
        let row = rows.next()?;
        scope.count_row();
        if let (Some(name), Ok(row)) = (&name, &row) {
            scope.log(format!("DEBUG: plugin {name}() sent row: {}", explain_row(&member::row_to_dict(row))));
        }
        Some(row)
    })
}

fn dotted(path: &[ast::Ident]) -> String {
    path.iter().map(|part| &*part.name).collect::<Vec<_>>().join(".")
}

/// `[{int64 A 1} …]`
fn explain_row(row: &Dict) -> String {
    let cells: Vec<String> =
        row.iter().map(|(key, value)| format!("{{{} {key} {}}}", value.type_name(), crate::text::display(value))).collect();
    format!("[{}]", cells.join(" "))
}

/// The rows of what stands after `FROM`.
fn source_rows(source: &ast::Source, scope: &Scope) -> Rows {
    let Some((first, rest)) = source.path.split_first() else { return Rows::none() };
    if let Some(args) = &source.args {
        if rest.is_empty()
            && let Some(rows) = eval::open_plugin(&first.name, args, scope, std::ptr::from_ref(source) as usize)
        {
            return rows;
        }
        if &*first.name == "Artifact" && !rest.is_empty() {
            return open_artifact(&rest.iter().map(|part| &*part.name).collect::<Vec<_>>().join("."), args, scope);
        }
        return match scope.lookup(&first.name) {
            Some(Binding::Let(definition)) if rest.is_empty() => eval::open_definition(&definition, args, scope),
            Some(_) => {
                scope.log_once(format!("ERROR:Symbol {} is not callable as a plugin", dotted(&source.path)));
                Rows::none()
            }
            None => {
                log_unknown(&dotted(&source.path), scope);
                Rows::none()
            }
        };
    }
    let Some(binding) = scope.lookup(&first.name) else {
        log_unknown(&dotted(&source.path), scope);
        return Rows::none();
    };
    let mut value = eval::resolve(binding, At::Scope(scope));
    for part in rest {
        value = member::member(&value, &part.name, scope).unwrap_or_default();
    }
    rows_of(value, scope)
}

fn open_artifact(name: &str, args: &[ast::Arg], scope: &Scope) -> Rows {
    if let Some(mock) = scope.mocked(|| Target::Artifact(name.to_owned())) {
        return mock.open(mock::recorded(args, At::Scope(scope)), scope);
    }
    let Some(resolver) = scope.artifacts() else {
        scope.log_once(format!("ERROR:Artifact {name} not found"));
        return Rows::none();
    };
    let given: Dict = args.iter().map(|arg| (&arg.name.name, eval::argument(&arg.value, At::Scope(scope)))).collect();
    let given = match given.get("**") {
        Some(Value::Dict(all)) => Dict::clone(all),
        _ => given,
    };
    let outcome = resolver.open(name, given, scope);
    match outcome {
        Ok(mut rows) => {
            let (scope, name) = (scope.clone(), name.to_owned());
            Rows::from_fn(move || match rows.next()? {
                Ok(row) => Some(Ok(row)),
                Err(error) => {
                    scope.log(format!("Artifact.{name}: {error}"));
                    None
                }
            })
        }
        Err(CallError::Silent) => Rows::none(),
        Err(error) => {
            scope.log(error.to_string());
            Rows::none()
        }
    }
}

fn log_unknown(name: &str, scope: &Scope) {
    scope.log_once(format!("ERROR:Plugin {name} not found. Current Scope is {}", scope.describe()));
    let mut line = format!("ERROR:Plugin {name} not found. ");
    let similar = scope.registry().similar_plugins(name);
    if !similar.is_empty() {
        line.push_str(&format!("Did you mean {}? ", similar.join(" ")));
    }
    if scope.registry().find_function(name).is_some() {
        line.push_str(&format!("There is a VQL function called \"{name}\" - did you mean to call this function instead?"));
    }
    scope.log_once(line);
}

/// Any value as rows: queries run, elements of lists are rows, anything else is one row.
pub(crate) fn rows_of(value: Value, scope: &Scope) -> Rows {
    match value.reduced() {
        Value::Null => Rows::none(),
        Value::Query(query) => query.open(scope),
        Value::List(items) => {
            let mut at = 0_usize;
            Rows::from_fn(move || {
                let item = items.get(at)?.clone();
                at = at.saturating_add(1);
                Some(Ok(item))
            })
        }
        Value::Object(object) => object.rows(scope).unwrap_or_else(|| Rows::one(Value::Object(object.clone()))),
        other @ (Value::Dict(_) | Value::Time(_)) => Rows::one(other),
        other => Rows::one(rows::as_row(other)),
    }
}
