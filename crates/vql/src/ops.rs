//! Truth, comparison and arithmetic (`spec/04` §4.1–§4.3). Where stock engines have a bug, the rule holds here and not the bug.

use std::cmp::Ordering;
use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::dict::Dict;
use crate::scope::Scope;
use crate::time::{Time, parse_flexibly};
use crate::value::{List, Text, Value};

/// Values that weigh more are not walked by comparisons: they share parts so often that the walk would not end.
const MAX_WALK: u64 = 1 << 30;

/// Whether `value` counts as true.
#[must_use]
pub fn truth(value: &Value, scope: &Scope) -> bool {
    match value {
        Value::Null | Value::Lambda(_) => false,
        Value::Bool(value) => *value,
        Value::Int(number) => *number > 0,
        Value::UInt(number) => *number > 0,
        Value::Float(number) => *number > 0.0,
        Value::Str(text) => !text.is_empty(),
        Value::Bytes(bytes) => !bytes.is_empty(),
        Value::Time(time) => time.unix() > 0,
        Value::Dict(dict) => !dict.is_empty(),
        Value::List(list) => !list.is_empty(),
        Value::Path(path) => !path.is_empty(),
        Value::Query(query) => matches!(query.open(scope).next(), Some(Ok(_))),
        Value::Lazy(lazy) => truth(&lazy.reduce().reduced(), scope),
        Value::Object(object) => object.is_true(),
    }
}

/// A number, an int wide enough for both signs.
#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::Int(i128::from(*value))),
            Value::Int(number) => Some(Self::Int(i128::from(*number))),
            Value::UInt(number) => Some(Self::Int(i128::from(*number))),
            Value::Float(number) => Some(Self::Float(*number)),
            _ => None,
        }
    }

    fn to_float(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
        }
    }

    /// Exact also between ints and floats; `None` with NaN.
    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(left), Self::Int(right)) => Some(left.cmp(&right)),
            (Self::Float(left), Self::Float(right)) => left.partial_cmp(&right),
            (Self::Int(left), Self::Float(right)) => compare_mixed(left, right),
            (Self::Float(left), Self::Int(right)) => compare_mixed(right, left).map(Ordering::reverse),
        }
    }
}

fn compare_mixed(left: i128, right: f64) -> Option<Ordering> {
    const LIMIT: f64 = 1e30;
    if right.is_nan() {
        return None;
    }
    if right >= LIMIT {
        return Some(Ordering::Less);
    }
    if right <= -LIMIT {
        return Some(Ordering::Greater);
    }
    let whole = right.floor();
    Some(left.cmp(&(whole as i128)).then(if right > whole { Ordering::Less } else { Ordering::Equal }))
}

fn as_time(value: &Value) -> Option<Time> {
    match value {
        Value::Time(time) => Some(*time),
        Value::Int(number) => Some(Time::from_unix(*number)),
        Value::UInt(number) => Some(Time::from_unix(i64::try_from(*number).unwrap_or(i64::MAX))),
        Value::Float(number) => Some(Time::from_unix_float(*number)),
        _ => None,
    }
}

/// `left = right`
#[must_use]
pub fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Lazy(lazy), other) | (other, Value::Lazy(lazy)) => equal_reduced(left, right, lazy.reduce().reduced(), other),
        (Value::Null, Value::Null) => true,
        (Value::Null, _) | (_, Value::Null) => false,
        (Value::Str(_) | Value::Bytes(_), Value::Str(_) | Value::Bytes(_)) => left.as_bytes() == right.as_bytes(),
        (Value::Object(_), _) | (_, Value::Object(_)) => compare(left, right) == Some(Ordering::Equal),
        (Value::Bool(value), Value::Str(text)) => *value == matches!(text.as_bytes(), b"Y" | b"y" | b"TRUE" | b"True"),
        (Value::Time(_), _) | (_, Value::Time(_)) => match (as_time(left), as_time(right)) {
            (Some(left), Some(right)) => left == right,
            _ => false,
        },
        (Value::List(left), Value::List(right)) => {
            left.len() == right.len() && walkable(left.iter()) && left.iter().zip(right.iter()).all(|(left, right)| equal(left, right))
        }
        (Value::Dict(left), Value::Dict(right)) => {
            Arc::ptr_eq(left, right)
                || (left.len() == right.len()
                    && left.weight() < MAX_WALK
                    && left.iter().all(|(key, value)| right.get(key).is_some_and(|other| equal(value, other))))
        }
        (Value::Path(left), Value::Path(right)) => left.same_components(right) && left.delegate() == right.delegate(),
        _ => match (Number::of(left), Number::of(right)) {
            (Some(left), Some(right)) => left.compare(right) == Some(Ordering::Equal),
            _ => false,
        },
    }
}

fn equal_reduced(left: &Value, _: &Value, reduced: Value, other: &Value) -> bool {
    if matches!(left, Value::Lazy(_)) { equal(&reduced, other) } else { equal(other, &reduced) }
}

fn walkable<'a>(values: impl Iterator<Item = &'a Value>) -> bool {
    values.map(Value::weight).fold(0_u64, u64::saturating_add) < MAX_WALK
}

/// `left < right`. What cannot be compared is not less.
#[must_use]
pub fn less(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Null, _) | (_, Value::Null) => false,
        (Value::List(left), Value::List(right)) => match (left.first(), right.first()) {
            (Some(left), Some(right)) => less(left, right),
            (None, Some(_)) => true,
            _ => false,
        },
        (Value::Dict(left), Value::Dict(right)) => left.len() < right.len(),
        (_, Value::Dict(_)) => true,
        (Value::Dict(_), _) => false,
        (Value::Path(left), Value::Path(right)) => left.to_text() < right.to_text(),
        (Value::Path(left), Value::Str(right)) => left.to_text() < *right,
        (Value::Str(left), Value::Path(right)) => *left < right.to_text(),
        (Value::List(list), _) if list.is_empty() => true,
        _ => compare(left, right) == Some(Ordering::Less),
    }
}

/// `left > right`. What cannot be compared is not greater.
#[must_use]
pub fn greater(left: &Value, right: &Value) -> bool {
    compare(left, right) == Some(Ordering::Greater)
}

/// The order of scalars; `None` for kinds that have none between them.
fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Object(object), other) => object.compare(other),
        (other, Value::Object(object)) => object.compare(other).map(Ordering::reverse),
        (Value::Str(_) | Value::Bytes(_), Value::Str(_) | Value::Bytes(_)) => left.as_bytes().partial_cmp(&right.as_bytes()),
        (Value::Time(left), Value::Str(text)) => parse_flexibly(&text.to_str(), &TimeZone::UTC).map(|right| left.cmp(&right)),
        (Value::Str(text), Value::Time(right)) => parse_flexibly(&text.to_str(), &TimeZone::UTC).map(|left| left.cmp(right)),
        (Value::Time(_), _) | (_, Value::Time(_)) => Some(as_time(left)?.cmp(&as_time(right)?)),
        _ => Number::of(left)?.compare(Number::of(right)?),
    }
}

/// A total order for `ORDER BY`: as `<` within a kind, NULL first and equal to the empty string, kinds one after another.
#[must_use]
pub fn order(left: &Value, right: &Value) -> Ordering {
    fn rank(value: &Value) -> u8 {
        match value {
            Value::Null => 0,
            Value::Str(text) if text.is_empty() => 0,
            Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Float(_) => 1,
            Value::Time(_) => 2,
            Value::Str(_) | Value::Bytes(_) | Value::Path(_) => 3,
            Value::List(_) => 4,
            Value::Dict(_) => 5,
            _ => 6,
        }
    }
    rank(left).cmp(&rank(right)).then_with(|| match (left, right) {
        (Value::Time(left), Value::Time(right)) => left.cmp(right),
        (Value::List(left), Value::List(right)) => match (left.first(), right.first()) {
            (Some(left), Some(right)) => order(left, right),
            (left, right) => left.is_some().cmp(&right.is_some()),
        },
        (Value::Dict(left), Value::Dict(right)) => left.len().cmp(&right.len()),
        _ => match (Number::of(left), Number::of(right)) {
            (Some(Number::Float(left)), Some(right)) if left.is_nan() => {
                if matches!(right, Number::Float(right) if right.is_nan()) {
                    Ordering::Equal
                } else {
                    Ordering::Greater
                }
            }
            (Some(left), Some(right)) => left.compare(right).unwrap_or(Ordering::Less),
            _ => sort_text(left).cmp(&sort_text(right)),
        },
    })
}

fn sort_text(value: &Value) -> Text {
    match value {
        Value::Str(text) => text.clone(),
        Value::Bytes(bytes) => Text::from(bytes.clone()),
        Value::Path(path) => path.to_text(),
        _ => Text::from(""),
    }
}

/// `left IN right`
#[must_use]
pub fn contains(left: &Value, right: &Value, scope: &Scope) -> bool {
    match right {
        Value::Dict(dict) => left.as_str().is_some_and(|key| dict.contains_key(key)),
        Value::Str(hay) => match left {
            Value::Str(needle) => find(hay, needle),
            _ => false,
        },
        Value::List(items) => items.iter().any(|item| !scope.stopped() && equal(left, item)),
        Value::Lazy(lazy) => contains(left, &lazy.reduce().reduced(), scope),
        _ => false,
    }
}

fn find(hay: &[u8], needle: &[u8]) -> bool {
    if let (Ok(hay), Ok(needle)) = (std::str::from_utf8(hay), std::str::from_utf8(needle)) {
        return hay.contains(needle);
    }
    needle.is_empty() || hay.windows(needle.len()).any(|window| window == needle)
}

/// `left =~ right`
#[must_use]
pub fn matches(left: &Value, right: &Value, scope: &Scope) -> bool {
    let Value::Str(pattern) = right else { return false };
    if matches!(pattern.as_bytes(), b"" | b"." | b".*") {
        return true;
    }
    let Some(regex) = scope.regex(pattern) else { return false };
    match left {
        Value::Str(text) if text.len() > LONG => found_beside(text.clone(), regex, scope),
        _ => matches_regex(left, &regex, scope),
    }
}

/// Longer texts are searched on a thread of their own: a search cannot be interrupted, and a query must be.
const LONG: usize = 4 << 20;

/// A query that stops does not wait for the search, which ends by itself in time linear in the text.
fn found_beside(text: Text, regex: Arc<crate::regex::Regex>, scope: &Scope) -> bool {
    const LOOK: std::time::Duration = std::time::Duration::from_millis(50);
    let Some(slot) = scope.take_thread() else { return regex.is_match(&text) };
    let (sender, found) = std::sync::mpsc::sync_channel(1);
    let (haystack, searched) = (text.clone(), regex.clone());
    let started = crate::stack::spawn("vql regex", move || {
        let _slot = slot;
        // Nobody listens any more when the query has stopped.
        let _ = sender.send(searched.is_match(&haystack));
    });
    if started.is_err() {
        return regex.is_match(&text);
    }
    loop {
        match found.recv_timeout(LOOK) {
            Ok(found) => return found,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) if !scope.stopped() => {}
            Err(_) => return false,
        }
    }
}

/// Whether `regex` is found in the text of `value`; in a list, in any element.
#[must_use]
pub fn matches_regex(value: &Value, regex: &crate::regex::Regex, scope: &Scope) -> bool {
    match value {
        Value::Str(_) | Value::Bytes(_) => regex.is_match(value.as_bytes().unwrap_or_default()),
        Value::List(items) => items.iter().any(|item| !scope.stopped() && matches_regex(item, regex, scope)),
        Value::Lazy(lazy) => matches_regex(&lazy.reduce().reduced(), regex, scope),
        Value::Int(_) | Value::UInt(_) | Value::Float(_) | Value::Bool(_) | Value::Time(_) => {
            regex.is_match(crate::text::plain(value).as_bytes())
        }
        Value::Dict(_) => regex.is_match(crate::json::encode(value).as_bytes()),
        Value::Path(path) => regex.is_match(&path.to_text()),
        _ => false,
    }
}

fn string(bytes: Vec<u8>) -> Value {
    Value::Str(Text::from(bytes))
}

/// `left + right`
#[must_use]
pub fn add(left: &Value, right: &Value, scope: &Scope) -> Value {
    match (left, right) {
        (Value::List(_) | Value::Query(_), _) | (_, Value::List(_)) if !matches!(left, Value::Path(_)) => concat(left, right, scope),
        (Value::Null, _) | (_, Value::Null) => Value::Null,
        (Value::Str(left), Value::Str(right)) => {
            let total = (left.len() as u64).saturating_add(right.len() as u64);
            if total > scope.meter().budget().string || !scope.has_room_for(total) {
                scope.log_once("Adding Str + Str exceeded memory limits");
                return Value::Null;
            }
            string([left.as_bytes(), right.as_bytes()].concat())
        }
        (Value::Dict(left), Value::Dict(right)) => {
            let mut merged = Dict::clone(left);
            for (key, value) in right.iter() {
                merged.update(key, value);
            }
            merged.into()
        }
        (Value::Path(left), Value::Path(right)) => {
            Value::from(left.with_components(left.components().iter().chain(right.components()).cloned().collect()))
        }
        (Value::Path(left), Value::Str(right)) => Value::from(left.append(right)),
        (Value::Path(left), Value::List(right)) => {
            let texts = right.iter().map(crate::text::plain);
            Value::from(left.with_components(left.components().iter().cloned().chain(texts).collect()))
        }
        _ => arithmetic(left, right, i64::wrapping_add, |left, right| left + right),
    }
}

fn concat(left: &Value, right: &Value, scope: &Scope) -> Value {
    let mut joined = List::new();
    for side in [left, right] {
        match side {
            Value::List(items) => joined.extend(items.iter()),
            Value::Query(query) => joined.extend(query.collect(scope)),
            other => joined.push(other.clone()),
        }
    }
    let joined = Value::from(joined);
    if scope.has_room_for(joined.weight()) {
        return joined;
    }
    scope.log_once("Adding lists exceeded memory limits");
    Value::Null
}

fn arithmetic(left: &Value, right: &Value, ints: fn(i64, i64) -> i64, floats: fn(f64, f64) -> f64) -> Value {
    match (Number::of(left), Number::of(right)) {
        (Some(Number::Int(left)), Some(Number::Int(right))) => Value::Int(ints(wrap(left), wrap(right))),
        (Some(left), Some(right)) => Value::Float(floats(left.to_float(), right.to_float())),
        _ => Value::Null,
    }
}

fn wrap(number: i128) -> i64 {
    number as i64
}

/// `left - right`
#[must_use]
pub fn subtract(left: &Value, right: &Value) -> Value {
    match (left, right) {
        (Value::Dict(left), Value::Dict(right)) => Value::from(left.iter().filter(|(key, _)| !right.contains_key(key)).collect::<Dict>()),
        _ => arithmetic(left, right, i64::wrapping_sub, |left, right| left - right),
    }
}

/// `left * right`
#[must_use]
pub fn multiply(left: &Value, right: &Value, scope: &Scope) -> Value {
    match (left, right) {
        (Value::Dict(left), Value::Dict(right)) => Value::from(left.iter().filter(|(key, _)| right.contains_key(key)).collect::<Dict>()),
        (Value::Str(text), count @ (Value::Int(_) | Value::UInt(_))) => {
            let Some(count) = count.as_int().and_then(|count| usize::try_from(count).ok()) else { return Value::Null };
            let total = (text.len() as u64).saturating_mul(count as u64);
            if total > scope.meter().budget().string || !scope.has_room_for(total) {
                scope.log_once("Multiplying Str * Int exceeded memory limits");
                return Value::Null;
            }
            string(text.repeat(count))
        }
        _ => arithmetic(left, right, i64::wrapping_mul, |left, right| left * right),
    }
}

/// `left / right`: always of floats.
#[must_use]
pub fn divide(left: &Value, right: &Value) -> Value {
    match (Number::of(left), Number::of(right)) {
        (Some(left), Some(right)) if right.to_float() != 0.0 => Value::Float(left.to_float() / right.to_float()),
        _ => Value::Null,
    }
}

/// `-value`
#[must_use]
pub fn negate(value: &Value) -> Value {
    match value {
        Value::Bool(value) => Value::Bool(!value),
        Value::Int(number) => Value::Int(number.wrapping_neg()),
        Value::UInt(number) => Value::Int(wrap(i128::from(*number).saturating_neg())),
        Value::Float(number) => Value::Float(-number),
        _ => Value::Null,
    }
}
