//! The pipeline of a `SELECT`: source, `WHERE`, columns, `GROUP BY`, `ORDER BY`, `LIMIT`. Pulled row by row.

use std::sync::{Arc, OnceLock};

use indexmap::IndexMap;

use crate::ast::{self, ArgValue, ColumnKind, Expr, ExprKind, LetBody, Select};
use crate::builtins::{Target, mock};
use crate::dict::{Dict, Key};
use crate::error::CallError;
use crate::eval::{self, expression};
use crate::format::canonical_select;
use crate::ops::{order, truth};
use crate::rows::Rows;
use crate::scope::{Aggregates, Binding, Frame, Scope};
use crate::signature::Kind;
use crate::value::Value;
use crate::{member, rows};

/// A row on its way out: columns are evaluated when asked for, at most once.
pub(crate) struct OutputRow {
    query: Arc<Select>,
    row: Value,
    scope: Scope,
    cells: Vec<OnceLock<Value>>,
}

impl OutputRow {
    fn new(query: &Arc<Select>, row: Value, scope: Scope) -> Self {
        let cells = query.columns.iter().map(|_| OnceLock::new()).collect();
        Self { query: query.clone(), row, scope, cells }
    }

    fn cell(&self, at: usize) -> Value {
        let (Some(cell), Some(column)) = (self.cells.get(at), self.query.columns.get(at)) else { return Value::Null };
        if let Some(value) = cell.get() {
            return value.clone();
        }
        let value = evaluate(&column.kind, &self.scope);
        let _ = cell.set(value.clone());
        value
    }

    pub(crate) fn column(&self, name: &str) -> Option<Value> {
        let at = self.query.columns.iter().rposition(|column| !matches!(column.kind, ColumnKind::Star) && &*column.name == name)?;
        Some(self.cell(at))
    }

    pub(crate) fn has_column(&self, name: &str) -> bool {
        self.query.columns.iter().any(|column| !matches!(column.kind, ColumnKind::Star) && &*column.name == name)
    }

    pub(crate) fn column_names(&self) -> Vec<Key> {
        self.query.columns.iter().filter(|column| !matches!(column.kind, ColumnKind::Star)).map(|column| Key::from(&column.name)).collect()
    }

    fn emit(&self) -> Dict {
        let mut out = Dict::with_capacity(self.query.columns.len());
        for (at, column) in self.query.columns.iter().enumerate() {
            if matches!(column.kind, ColumnKind::Star) {
                for name in member::columns(&self.row) {
                    if !out.contains_key(&name) {
                        let value = member::column(&self.row, &name).unwrap_or_default();
                        out.set(name, value.materialized(&self.scope));
                    }
                }
            } else {
                out.set(Key::from(&column.name), self.cell(at).materialized(&self.scope));
            }
        }
        out
    }
}

fn evaluate(column: &ColumnKind, scope: &Scope) -> Value {
    match column {
        ColumnKind::Star => Value::Null,
        ColumnKind::Expr(expr) => match expression(expr, scope).reduced() {
            counted @ Value::Query(_) => counted,
            other => other,
        },
        ColumnKind::Select(query) => match scope.deeper() {
            Some(inner) => unwrap_rows(eval::collect_rows(open(query, &inner), scope)),
            None => Value::Null,
        },
    }
}

/// A sub-select as a column: single columns stand for themselves, and so does a single row.
fn unwrap_rows(rows: Vec<Value>) -> Value {
    let mut values = rows.into_iter().map(|row| match &row {
        Value::Dict(dict) if dict.len() == 1 => dict.values().next().cloned().unwrap_or_default(),
        _ => row,
    });
    match (values.next(), values.next()) {
        (None, _) => Value::Null,
        (Some(only), None) => only,
        (Some(first), Some(second)) => Value::list([first, second].into_iter().chain(values)),
    }
}

/// Starts a query. Failures are logged; the rows are dicts.
pub(crate) fn open(query: &Arc<Select>, scope: &Scope) -> Rows {
    let scope = if query.explain { scope.with_explain().unwrap_or_else(|| scope.clone()) } else { scope.clone() };
    if query.explain {
        scope.log(format!("DEBUG:Explain start query: {}", canonical_select(query)));
    }
    let limit = query.limit.map(|limit| match limit {
        ast::Number::Int(count) => usize::try_from(count).unwrap_or(0),
        ast::Number::Float(count) => count.max(0.0) as usize,
    });
    let source = open_source(query, &scope);
    let rows = if query.group_by.is_some() { grouped(query, source, &scope) } else { plain(query, source, &scope) };
    let rows = match &query.order_by {
        Some(by) => sorted(by.clone(), rows, &scope),
        None => rows,
    };
    match limit {
        Some(limit) => Rows::try_of(rows.take(limit)),
        None => rows,
    }
}

/// The rows of a source, counted, each with the scope in which its columns are visible.
fn open_source(query: &Arc<Select>, scope: &Scope) -> Rows {
    let mut rows = source_rows(&query.from, scope);
    let scope = scope.clone();
    let name = scope.explains().then(|| query.from.path.iter().map(|part| &*part.name).collect::<Vec<_>>().join("."));
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

/// `[{int64 A 1} …]`
fn explain_row(row: &Dict) -> String {
    let cells: Vec<String> =
        row.iter().map(|(key, value)| format!("{{{} {key} {}}}", value.type_name(), crate::text::display(value))).collect();
    format!("[{}]", cells.join(" "))
}

/// Applies `WHERE`; `None` rejects the row.
fn admitted(query: &Arc<Select>, output: &Arc<OutputRow>) -> bool {
    let Some(filter) = &query.filter else { return true };
    let Some(inner) = output.scope.with_frame(Frame::Output(output.clone())) else { return false };
    truth(&expression(filter, &inner), &inner)
}

fn plain(query: &Arc<Select>, mut source: Rows, scope: &Scope) -> Rows {
    let (query, scope) = (query.clone(), scope.clone());
    Rows::from_fn(move || {
        loop {
            let row = match source.next()? {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            let Some(inner) = scope.with_row(row.clone()) else {
                scope.log_once(format!("Stack Overflow: {}", canonical_select(&query)));
                return None;
            };
            let output = Arc::new(OutputRow::new(&query, row, inner));
            let keep = admitted(&query, &output);
            if scope.stopped() {
                return None;
            }
            if !keep {
                if scope.explains() {
                    scope.log(format!("DEBUG: SELECT: rejected row: {}", explain_row(&member::row_to_dict(&output.row))));
                }
                continue;
            }
            let row = output.emit();
            if scope.stopped() {
                return None;
            }
            if scope.explains() {
                scope.log(format!("DEBUG: SELECT: emitting row: {}", explain_row(&row)));
            }
            return Some(Ok(Value::from(row)));
        }
    })
}

struct Group {
    aggregates: Arc<Aggregates>,
    last: Option<OutputRow>,
}

fn grouped(query: &Arc<Select>, source: Rows, scope: &Scope) -> Rows {
    let (query, scope) = (query.clone(), scope.clone());
    let mut pending = Some(source);
    let mut groups: Option<indexmap::map::IntoValues<Vec<u8>, Group>> = None;
    Rows::from_fn(move || {
        if let Some(source) = pending.take() {
            match collect_groups(&query, source, &scope) {
                Ok(collected) => groups = Some(collected.into_values()),
                Err(error) => return Some(Err(error)),
            }
        }
        if scope.stopped() {
            return None;
        }
        let output = groups.as_mut()?.next()?.last?;
        let row = output.emit();
        if scope.explains() {
            scope.log(format!("DEBUG: SELECT: emitting row: {}", explain_row(&row)));
        }
        Some(Ok(Value::from(row)))
    })
}

fn collect_groups(query: &Arc<Select>, source: Rows, scope: &Scope) -> Result<IndexMap<Vec<u8>, Group>, CallError> {
    const GROUP_OVERHEAD: u64 = 512;
    let mut held = scope.hold();
    let mut groups: IndexMap<Vec<u8>, Group> = IndexMap::new();
    let may_aggregate: Vec<bool> = query.columns.iter().map(|column| column_aggregates(&column.kind, scope)).collect();
    for row in source {
        let row = row?;
        let Some(inner) = scope.with_row(row.clone()) else { break };
        let probe = Arc::new(OutputRow::new(query, row.clone(), inner));
        if !admitted(query, &probe) {
            continue;
        }
        let key = group_key(query, &probe);
        if scope.stopped() {
            break;
        }
        let weight = row.weight().saturating_add(key.len() as u64).saturating_add(GROUP_OVERHEAD);
        let entry = groups.entry(key);
        if matches!(entry, indexmap::map::Entry::Vacant(_)) && !held.add(weight) {
            break;
        }
        let group = entry.or_insert_with(|| Group { aggregates: Arc::default(), last: None });
        let Some(inner) = scope.with_row_and_aggregates(row.clone(), group.aggregates.clone()) else { break };
        let output = OutputRow::new(query, row, inner);
        for ((from, to), may_aggregate) in probe.cells.iter().zip(&output.cells).zip(&may_aggregate) {
            if let (Some(value), false) = (from.get(), may_aggregate) {
                let _ = to.set(value.clone());
            }
        }
        for at in 0..output.cells.len() {
            let _ = output.cell(at);
        }
        group.last = Some(output);
    }
    Ok(groups)
}

fn group_key(query: &Arc<Select>, output: &Arc<OutputRow>) -> Vec<u8> {
    let mut key = Vec::new();
    let (Some(by), Some(inner)) = (&query.group_by, output.scope.with_frame(Frame::Output(output.clone()))) else { return key };
    structural(&expression(by, &inner).materialized(&inner), &mut key);
    key
}

/// A key that is equal for equal values only.
fn structural(value: &Value, key: &mut Vec<u8>) {
    let mut tagged = |tag: u8, bytes: &[u8]| {
        key.push(tag);
        key.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        key.extend_from_slice(bytes);
    };
    match value {
        Value::Null => tagged(b'n', &[]),
        Value::Str(_) | Value::Bytes(_) => tagged(b's', value.as_bytes().unwrap_or_default()),
        Value::List(items) => {
            tagged(b'l', &(items.len() as u64).to_be_bytes());
            for item in items.iter() {
                structural(item, key);
            }
        }
        Value::Time(time) => tagged(b't', &time.unix_nanos().to_be_bytes()),
        other => tagged(b'j', crate::json::encode(other).as_bytes()),
    }
}

fn column_aggregates(column: &ColumnKind, scope: &Scope) -> bool {
    match column {
        ColumnKind::Expr(expr) => aggregates(expr, scope),
        ColumnKind::Star | ColumnKind::Select(_) => false,
    }
}

/// Whether an expression may call an aggregate in the caller's context. Unsure is yes.
fn aggregates(expr: &Expr, scope: &Scope) -> bool {
    let each = |expr: &Expr| aggregates(expr, scope);
    match &expr.kind {
        ExprKind::Null | ExprKind::Bool { .. } | ExprKind::Number(_) | ExprKind::String(_) => false,
        ExprKind::Symbol(symbol) => match &symbol.args {
            None => symbol.path.first().is_some_and(
                |name| matches!(scope.lookup(&name.name), Some(Binding::Let(definition)) if matches!(definition.body, LetBody::Expr(_))),
            ),
            Some(args) => {
                let own = match symbol.path.as_slice() {
                    [name] => scope.registry().signature(Kind::Function, &name.name).is_some_and(|signature| signature.aggregate),
                    _ => false,
                };
                own || args.iter().any(|arg| match &arg.value {
                    ArgValue::Expr(expr) => each(expr),
                    ArgValue::Array { items, .. } => items.iter().any(each),
                    ArgValue::Select(_) => false,
                })
            }
        },
        ExprKind::Tuple { items, .. } => items.iter().any(each),
        ExprKind::Paren(inner) | ExprKind::Not(inner) | ExprKind::Member { object: inner, .. } => each(inner),
        ExprKind::Index { object, index } => each(object) || each(index),
        ExprKind::Slice { object, from, to } => each(object) || from.iter().chain(to).any(|bound| each(bound)),
        ExprKind::Binary { left, right, .. } => each(left) || each(right),
        ExprKind::And { first, rest } | ExprKind::Or { first, rest } => each(first) || rest.iter().any(|(_, expr)| each(expr)),
    }
}

fn sorted(by: ast::OrderBy, source: Rows, scope: &Scope) -> Rows {
    let scope = scope.clone();
    let mut pending = Some(source);
    let mut ordered = Vec::new().into_iter();
    let mut held = scope.hold();
    Rows::from_fn(move || {
        if let Some(source) = pending.take() {
            let mut rows: Vec<(Value, Value)> = Vec::new();
            for row in source {
                let row = match row {
                    Ok(row) => row,
                    Err(error) => return Some(Err(error)),
                };
                if !held.add(row.weight()) {
                    break;
                }
                let key = member::column(&row, &by.column.name).unwrap_or_else(|| {
                    scope.log_once(format!("Order by column {} not present in row", by.column.name));
                    Value::Null
                });
                rows.push((key, row));
            }
            if by.descending {
                rows.sort_by(|left, right| order(&right.0, &left.0));
            } else {
                rows.sort_by(|left, right| order(&left.0, &right.0));
            }
            ordered = rows.into_iter();
        }
        if scope.stopped() {
            return None;
        }
        ordered.next().map(|(_, row)| Ok(row))
    })
}

/// The rows of what stands after `FROM`.
fn source_rows(source: &ast::Source, scope: &Scope) -> Rows {
    let name = source.path.iter().map(|part| &*part.name).collect::<Vec<_>>().join(".");
    let Some((first, rest)) = source.path.split_first() else { return Rows::none() };
    if let Some(args) = &source.args {
        if rest.is_empty()
            && let Some(rows) = eval::open_plugin(&name, args, scope, std::ptr::from_ref(source) as usize)
        {
            return rows;
        }
        if &*first.name == "Artifact" && !rest.is_empty() {
            return open_artifact(&rest.iter().map(|part| &*part.name).collect::<Vec<_>>().join("."), args, scope);
        }
        return match scope.lookup(&first.name) {
            Some(Binding::Let(definition)) if rest.is_empty() => eval::open_definition(&definition, args, scope),
            Some(_) => {
                scope.log_once(format!("ERROR:Symbol {name} is not callable as a plugin"));
                Rows::none()
            }
            None => {
                log_unknown(&name, scope);
                Rows::none()
            }
        };
    }
    let Some(binding) = scope.lookup(&first.name) else {
        log_unknown(&name, scope);
        return Rows::none();
    };
    let mut value = eval::resolve(binding, scope);
    for part in rest {
        value = member::member(&value, &part.name, scope).unwrap_or_default();
    }
    rows_of(value, scope)
}

fn open_artifact(name: &str, args: &[ast::Arg], scope: &Scope) -> Rows {
    if let Some(mock) = scope.mocked(|| Target::Artifact(name.to_owned())) {
        return mock.open(mock::recorded(args, scope), scope);
    }
    let Some(resolver) = scope.artifacts() else {
        scope.log_once(format!("ERROR:Artifact {name} not found"));
        return Rows::none();
    };
    let given: Dict = args.iter().map(|arg| (&arg.name.name, eval::argument(&arg.value, scope))).collect();
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
