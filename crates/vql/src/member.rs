//! Members, indexes and slices of values (`spec/04` §4.4).

use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::dict::{Dict, Key};
use crate::path::OsPath;
use crate::scope::Scope;
use crate::time::{Time, format_layout};
use crate::value::{List, Text, Value};

/// The members of a time, in the order in which a row of a time shows them.
const TIME_MEMBERS: &[&str] = &[
    "Day",
    "Hour",
    "ISOWeek",
    "IsDST",
    "IsZero",
    "Minute",
    "Month",
    "Nanosecond",
    "Second",
    "String",
    "UTC",
    "Unix",
    "UnixMicro",
    "UnixMilli",
    "UnixNano",
    "Weekday",
    "Year",
    "YearDay",
    "Zone",
];

/// The columns of a value that stands for a row.
pub(crate) fn columns(row: &Value) -> Vec<Key> {
    match row {
        Value::Dict(dict) => dict.keys().cloned().collect(),
        Value::Time(_) => TIME_MEMBERS.iter().map(|name| Key::from(*name)).collect(),
        Value::Object(object) => object.member_names(),
        Value::Null => Vec::new(),
        _ => vec![Key::from("_value")],
    }
}

/// The column `name` of a value that stands for a row.
pub(crate) fn column(row: &Value, name: &str) -> Option<Value> {
    match row {
        Value::Dict(dict) => dict.member(name).cloned(),
        Value::Time(time) => time_member(*time, name),
        Value::Object(object) => object.column(name),
        Value::Path(path) => path_member(path, name),
        Value::Null => None,
        other => (name == "_value").then(|| other.clone()),
    }
}

/// The row as a dict, for `*` and for results.
#[must_use]
pub fn row_to_dict(row: &Value) -> Arc<Dict> {
    match row {
        Value::Dict(dict) => dict.clone(),
        other => Arc::new(
            columns(other)
                .into_iter()
                .map(|name| {
                    let value = column(other, &name).unwrap_or_default();
                    (name, value)
                })
                .collect(),
        ),
    }
}

/// `value.name`. `None` when there is no such member.
#[must_use]
pub fn member(value: &Value, name: &str, scope: &Scope) -> Option<Value> {
    match value {
        Value::Dict(dict) => dict_member(dict, name),
        Value::List(items) => Some(over_elements(items, name, scope)),
        Value::Time(time) => time_member(*time, name),
        Value::Path(path) => path_member(path, name),
        Value::Object(object) => object.member(name),
        Value::Lazy(lazy) => member(&lazy.reduce().reduced(), name, scope),
        Value::Query(query) => {
            let mut column = List::new();
            let mut held = scope.hold();
            for row in query.open(scope) {
                let Ok(row) = row else { break };
                let value = member(&row, name, scope).unwrap_or_default().materialized(scope);
                if scope.stopped() || !held.add(value.weight()) {
                    break;
                }
                column.push(value);
            }
            Some(column.into())
        }
        _ => None,
    }
}

fn over_elements(items: &[Value], name: &str, scope: &Scope) -> Value {
    let mut found = List::new();
    for item in items {
        if scope.stopped() {
            break;
        }
        if let Some(value) = member(item, name, scope) {
            found.push(value);
        }
    }
    found.into()
}

fn dict_member(dict: &Arc<Dict>, name: &str) -> Option<Value> {
    if let Some(value) = dict.get(name) {
        return Some(value.clone());
    }
    Some(match name {
        "@Keys" => Value::list(dict.keys()),
        "@Values" => Value::list(dict.values()),
        "@Items" => Value::list(dict.iter().map(|(key, value)| Dict::new().with("Key", key).with("Value", value))),
        "@Len" => Value::from(dict.len()),
        "@String" => Value::str(crate::json::encode(&Value::Dict(dict.clone()))),
        "@ToMap" => Value::Dict(dict.clone()),
        _ => return dict.member(name).cloned(),
    })
}

fn time_member(time: Time, name: &str) -> Option<Value> {
    let civil = || time.civil(&TimeZone::UTC);
    let date = |pick: fn(&jiff::civil::DateTime) -> i64| Some(Value::Int(pick(&civil()?.date_time)));
    match name {
        "Day" => date(|date| date.day().into()),
        "Hour" => date(|date| date.hour().into()),
        "Minute" => date(|date| date.minute().into()),
        "Month" => date(|date| date.month().into()),
        "Second" => date(|date| date.second().into()),
        "Year" => date(|date| date.year().into()),
        "YearDay" => date(|date| date.date().day_of_year().into()),
        "Weekday" => date(|date| date.weekday().to_sunday_zero_offset().into()),
        "ISOWeek" => date(|date| date.date().iso_week_date().year().into()),
        "Nanosecond" => Some(Value::Int(time.subsecond_nanos().into())),
        "IsDST" => Some(Value::Bool(false)),
        "IsZero" => Some(Value::Bool(time.is_zero())),
        "String" => format_layout(time, "RFC3339Nano", &TimeZone::UTC).map(Value::from),
        "UTC" => Some(Value::Time(time)),
        "Unix" => Some(Value::Int(time.unix())),
        "UnixMilli" => clamped(time.unix_nanos().div_euclid(1_000_000)),
        "UnixMicro" => clamped(time.unix_nanos().div_euclid(1_000)),
        "UnixNano" => clamped(time.unix_nanos()),
        "Zone" => Some(Value::from("UTC")),
        _ => None,
    }
}

fn clamped(number: i128) -> Option<Value> {
    i64::try_from(number).ok().map(Value::Int)
}

fn path_member(path: &Arc<OsPath>, name: &str) -> Option<Value> {
    Some(match name {
        "Components" => Value::list(path.components().iter().cloned()),
        "Basename" => Value::Str(path.basename()),
        "Dirname" => Value::from(path.dirname()),
        "Path" | "HumanString" if path.delegate().is_none() => Value::Str(path.plain()),
        "Path" => Value::Str(path.plain()),
        "HumanString" => {
            let inner = path.delegate().map(|delegate| delegate.path.as_str()).unwrap_or_default();
            Value::from(format!("{inner} -> {}", path.plain().to_str()))
        }
        "String" => Value::Str(path.to_text()),
        "PathSpec" => Value::from(path.pathspec()),
        "DelegatePath" => Value::from(path.delegate().map(|delegate| delegate.path.as_str()).unwrap_or_default()),
        "DelegateAccessor" => Value::from(path.delegate().map(|delegate| delegate.accessor.as_str()).unwrap_or_default()),
        _ => return None,
    })
}

fn place(index: i64, length: usize) -> Option<usize> {
    if index < 0 {
        length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?)
    } else {
        usize::try_from(index).ok().filter(|at| *at < length)
    }
}

/// `value[index]`. NULL when there is no such element.
#[must_use]
pub fn index(value: &Value, index: &Value, scope: &Scope) -> Value {
    if let Value::Str(name) = index {
        return member(value, &name.to_str(), scope).unwrap_or_default();
    }
    let Some(at) = index.as_int() else { return Value::Null };
    match value {
        Value::List(items) => place(at, items.len()).and_then(|at| items.get(at)).cloned().unwrap_or_default(),
        Value::Str(_) | Value::Bytes(_) => {
            let bytes = value.as_bytes().unwrap_or_default();
            place(at, bytes.len()).and_then(|at| bytes.get(at)).map_or(Value::Null, |byte| Value::from(*byte))
        }
        Value::Path(path) => {
            let parts = path.components();
            place(at, parts.len()).and_then(|at| parts.get(at)).map_or(Value::Null, |part| Value::Str(part.clone()))
        }
        Value::Query(query) => match query.materialized() {
            Some(rows) => place(at, rows.len()).and_then(|at| rows.get(at)).cloned().unwrap_or_default(),
            None if at >= 0 => query.open(scope).nth(usize::try_from(at).unwrap_or(usize::MAX)).and_then(Result::ok).unwrap_or_default(),
            None => {
                let rows = query.collect(scope);
                place(at, rows.len()).and_then(|at| rows.get(at)).cloned().unwrap_or_default()
            }
        },
        Value::Lazy(lazy) => self::index(&lazy.reduce().reduced(), index, scope),
        _ => Value::Null,
    }
}

fn bound(index: Option<&Value>, length: usize, missing: usize) -> Option<usize> {
    let Some(index) = index else { return Some(missing) };
    let at = index.as_int()?;
    let at = if at < 0 { i64::try_from(length).ok()?.saturating_add(at).max(0) } else { at };
    Some(usize::try_from(at).unwrap_or(usize::MAX).min(length))
}

/// `value[from:to]`, clamped to what there is.
#[must_use]
pub fn slice(value: &Value, from: Option<&Value>, to: Option<&Value>, scope: &Scope) -> Value {
    let range = |length: usize| {
        let (start, end) = (bound(from, length, 0)?, bound(to, length, length)?);
        Some(start..end.max(start))
    };
    match value {
        Value::List(items) => {
            range(items.len()).map_or(Value::Null, |range| Value::list(items.get(range).unwrap_or_default().iter().cloned()))
        }
        Value::Str(text) => range(text.len()).map_or(Value::Null, |range| Value::str(text.get(range).unwrap_or_default())),
        Value::Bytes(bytes) => range(bytes.len()).map_or(Value::Null, |range| Value::Bytes(bytes.get(range).unwrap_or_default().into())),
        Value::Path(path) => {
            let parts = path.components();
            range(parts.len()).map_or(Value::Null, |range| Value::from(path.with_components(parts.get(range).unwrap_or_default().to_vec())))
        }
        Value::Query(query) => {
            let rows = Value::list(query.collect(scope));
            slice(&rows, from, to, scope)
        }
        Value::Lazy(lazy) => slice(&lazy.reduce().reduced(), from, to, scope),
        _ => Value::Null,
    }
}

/// Elements of anything that can be iterated: lists, rows of queries; anything else alone. NULL has none.
#[must_use]
pub fn elements(value: &Value, scope: &Scope) -> Vec<Value> {
    match value {
        Value::Null => Vec::new(),
        Value::List(items) => items.to_vec(),
        Value::Query(query) => query.collect(scope),
        Value::Lazy(lazy) => elements(&lazy.reduce().reduced(), scope),
        other => vec![other.clone()],
    }
}

/// The text of `path` or of a string, for built-ins that take either.
#[must_use]
pub fn path_text(value: &Value) -> Option<Text> {
    match value {
        Value::Str(text) => Some(text.clone()),
        Value::Path(path) => Some(path.to_text()),
        _ => None,
    }
}
