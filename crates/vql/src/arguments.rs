//! Conversion of arguments to their declared types, with the error texts that peers match on (`spec/04` §6).

use crate::call::Call;
use crate::dict::Key;
use crate::error::CallError;
use crate::ops::truth;
use crate::path::{OsPath, PathFlavour};
use crate::rows::{StoredQuery, as_row};
use crate::scope::Scope;
use crate::signature::{Arg, ArgType, Signature};
use crate::text::plain;
use crate::time::{Time, parse_flexibly, zone};
use crate::value::{Text, Value};

/// Converts the values of `call`. `unknown` is the first argument that is not declared.
pub(crate) fn convert(signature: &Signature, mut call: Call, unknown: Option<Key>) -> Result<Call, CallError> {
    let accessor = if signature.args.iter().any(|arg| matches!(arg.ty, ArgType::Path | ArgType::Paths)) {
        accessor_of(signature, &call)
    } else {
        String::new()
    };
    for (arg, slot) in signature.args.iter().zip(call.values.iter_mut()) {
        if let Some(value) = slot.take() {
            *slot = one(arg, value, &accessor, &call.scope)?;
        }
        if slot.is_none() && arg.required {
            return Err(CallError::Argument(format!("Field {} is required", arg.name)));
        }
    }
    if let Some(name) = unknown {
        return Err(CallError::Argument(format!("Unexpected arg {name}")));
    }
    Ok(call)
}

/// The accessor that the call names: it decides how paths are read.
fn accessor_of(signature: &Signature, call: &Call) -> String {
    const NAME: &str = "accessor";
    let declared = signature.args.iter().position(|arg| arg.name == NAME).and_then(|at| call.values.get(at)?.as_ref());
    let given = declared.or_else(|| call.extras.iter().rev().find(|(name, _)| name == NAME).map(|(_, value)| value));
    given.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn mismatch(arg: &Arg, wanted: &str, value: &Value) -> CallError {
    CallError::Argument(format!("Field {} should be {wanted} not {}.", arg.name, value.type_name()))
}

/// One argument. `None` when NULL stands for an argument that was left out.
fn one(arg: &Arg, value: Value, accessor: &str, scope: &Scope) -> Result<Option<Value>, CallError> {
    let value = if arg.ty == ArgType::Lazy { return Ok(Some(value)) } else { value.reduced() };
    if value.is_null() && !matches!(arg.ty, ArgType::String | ArgType::Strings | ArgType::Any | ArgType::AnyList | ArgType::Bool) {
        return Ok(None);
    }
    Ok(Some(match arg.ty {
        ArgType::Lazy | ArgType::Any => value,
        ArgType::String => Value::Str(text(value, scope)),
        ArgType::Strings => Value::list(strings(value, scope)),
        ArgType::Bool => Value::Bool(truth(&value, scope)),
        ArgType::Int => match &value {
            Value::Float(number) => Value::Int(*number as i64),
            Value::UInt(number) => Value::Int(*number as i64),
            other => Value::Int(other.as_int().ok_or_else(|| mismatch(arg, "an int", &value))?),
        },
        ArgType::UInt => match &value {
            Value::Float(number) => Value::UInt(*number as u64),
            Value::UInt(number) => Value::UInt(*number),
            other => {
                let number = other.as_int().ok_or_else(|| mismatch(arg, "an int", &value))?;
                Value::UInt(u64::try_from(number).map_err(|_| mismatch(arg, "an int that is not negative,", &value))?)
            }
        },
        ArgType::Float => match &value {
            Value::Bool(truth) => Value::Float(f64::from(u8::from(*truth))),
            other => Value::Float(other.as_float().ok_or_else(|| mismatch(arg, "a float", &value))?),
        },
        ArgType::Dict => dict(arg, value)?,
        ArgType::Dicts => match value {
            Value::List(items) => Value::list(items.iter().map(|item| dict(arg, item.clone())).collect::<Result<Vec<_>, _>>()?),
            other => Value::list([dict(arg, other)?]),
        },
        ArgType::Query => Value::Query(query(value)),
        ArgType::AnyList => match value {
            Value::List(items) => Value::List(items),
            Value::Null => Value::list(Vec::<Value>::new()),
            Value::Query(query) => Value::list(query.collect(scope)),
            other => Value::list([other]),
        },
        ArgType::Time => Value::Time(moment(&value, scope).unwrap_or(Time::ZERO)),
        ArgType::Lambda => match value {
            Value::Lambda(lambda) => Value::Lambda(lambda),
            Value::Str(text) => match scope.lambda(&text) {
                Some(lambda) => Value::Lambda(lambda),
                None => return Err(CallError::Argument(format!("Field {} is not a lambda", arg.name))),
            },
            other => return Err(mismatch(arg, "a lambda", &other)),
        },
        ArgType::Path => Value::from(path(arg, &value, accessor)?),
        ArgType::Paths => match value {
            Value::List(items) => Value::list(items.iter().map(|item| path(arg, item, accessor)).collect::<Result<Vec<_>, _>>()?),
            Value::Query(query) => Value::list(
                strings(Value::Query(query), scope)
                    .into_iter()
                    .map(|text| path(arg, &Value::Str(text), accessor))
                    .collect::<Result<Vec<_>, _>>()?,
            ),
            other => Value::list([path(arg, &other, accessor)?]),
        },
    }))
}

/// Text of anything: NULL is empty, a list of one is its element.
#[must_use]
pub fn text(value: Value, scope: &Scope) -> Text {
    match value {
        Value::Null => Text::from(""),
        Value::List(items) if items.len() == 1 => items.first().map_or_else(|| Text::from(""), |item| text(item.clone(), scope)),
        Value::Query(_) => plain(&value.materialized(scope)),
        other => plain(&other),
    }
}

fn strings(value: Value, scope: &Scope) -> Vec<Text> {
    let element = |value: &Value| match value {
        Value::Dict(dict) if dict.len() == 1 => dict.values().next().cloned().unwrap_or_default(),
        other => other.clone(),
    };
    match value {
        Value::Null => Vec::new(),
        Value::List(items) => items.iter().map(|item| text(element(item), scope)).collect(),
        Value::Query(query) => query.collect(scope).iter().map(|row| text(element(row), scope)).collect(),
        other => vec![text(other, scope)],
    }
}

fn dict(arg: &Arg, value: Value) -> Result<Value, CallError> {
    match value {
        Value::Dict(dict) => Ok(Value::Dict(dict)),
        Value::Object(object) if !object.member_names().is_empty() => Ok(Value::Dict(crate::member::row_to_dict(&Value::Object(object)))),
        other => Err(mismatch(arg, "a dict", &other)),
    }
}

fn query(value: Value) -> StoredQuery {
    match value {
        Value::Query(query) => query,
        Value::List(items) => {
            StoredQuery::of_values(items.iter().filter(|item| !item.is_null()).map(|item| as_row(item.clone())).collect())
        }
        Value::Null => StoredQuery::of_values(Vec::new()),
        other => StoredQuery::of_values(vec![as_row(other)]),
    }
}

/// The moment that a value means: a time, seconds since the epoch, or text.
#[must_use]
pub fn moment(value: &Value, scope: &Scope) -> Option<Time> {
    match value {
        Value::Time(time) => Some(*time),
        Value::Int(_) | Value::UInt(_) => Some(from_epoch(value.as_int()?)),
        Value::Float(number) => Some(from_epoch_float(*number)),
        Value::Str(text) => {
            let text = text.to_str();
            let text = text.trim();
            if text.is_empty() {
                return Some(Time::ZERO);
            }
            if let Ok(number) = text.parse::<i64>() {
                return Some(from_epoch(number));
            }
            parse_flexibly(text, &parse_zone(scope))
        }
        _ => None,
    }
}

/// The zone in which times without one are read: `PARSE_TZ`, else `TZ`, else UTC.
#[must_use]
pub fn parse_zone(scope: &Scope) -> jiff::tz::TimeZone {
    for name in ["PARSE_TZ", "TZ"] {
        if let Some(Value::Str(text)) = scope.variable(name) {
            let text = text.to_str();
            match zone(&text) {
                Some(zone) => return zone,
                None => scope.log_once(format!("timestamp: there is no time zone {text}; using UTC")),
            }
        }
    }
    jiff::tz::TimeZone::UTC
}

/// A number of seconds, milliseconds, microseconds or nanoseconds since the epoch, by its size; 0 is the zero time.
fn from_epoch(number: i64) -> Time {
    const NANOS_FROM: i64 = 20_000_000_000_000_000;
    const MICROS_FROM: i64 = 20_000_000_000_000;
    const MILLIS_FROM: i64 = 20_000_000_000;
    let unit = match number {
        0 => return Time::ZERO,
        number if number > NANOS_FROM => 1,
        number if number > MICROS_FROM => 1_000,
        number if number > MILLIS_FROM => 1_000_000,
        _ => 1_000_000_000,
    };
    Time::from_unix_nanos(i128::from(number).saturating_mul(unit))
}

fn from_epoch_float(number: f64) -> Time {
    const MILLIS_FROM: f64 = 2e10;
    if number > MILLIS_FROM { from_epoch(number as i64) } else { Time::from_unix_float(number) }
}

fn path(arg: &Arg, value: &Value, accessor: &str) -> Result<OsPath, CallError> {
    match value {
        Value::Path(path) => Ok(OsPath::clone(path)),
        Value::Str(text) => Ok(OsPath::for_accessor(text.clone(), accessor)),
        Value::Bytes(bytes) => Ok(OsPath::for_accessor(Text::from(bytes.clone()), accessor)),
        Value::Dict(spec) => {
            OsPath::from_pathspec(spec, PathFlavour::from_name(accessor).unwrap_or_default()).ok_or_else(|| path_mismatch(arg, value))
        }
        Value::List(items) => {
            let mut items = items.iter();
            let mut whole = path(arg, items.next().ok_or_else(|| path_mismatch(arg, value))?, accessor)?;
            for item in items {
                whole = whole.join(plain(item));
            }
            Ok(whole)
        }
        _ => Err(path_mismatch(arg, value)),
    }
}

fn path_mismatch(arg: &Arg, value: &Value) -> CallError {
    CallError::Argument(format!("Field {} Expecting a path arg type, not {}", arg.name, value.type_name()))
}
