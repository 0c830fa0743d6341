//! Dicts and lists, and questions about values and built-ins.

use crate::args;
use crate::call::Call;
use crate::dict::{Dict, Key};
use crate::error::CallError;
use crate::member::{self, elements};
use crate::ops::{matches, truth};
use crate::registry::Registry;
use crate::signature::{Arg, ArgType, Kind, Signature};
use crate::text::display;
use crate::value::{List, Value};

pub(super) fn register(registry: &mut Registry) {
    registry.function(Signature::function("dict", "Makes a dict of its arguments.").free_form(), |call| {
        Ok(Value::from(call.extras().iter().map(|(name, value)| (name, value)).collect::<Dict>()))
    });
    registry.function(Signature::function("lazy_dict", "Makes a dict whose values are not evaluated yet.").lazy_free_form(), |call| {
        Ok(Value::from(call.extras().iter().map(|(name, value)| (name, value)).collect::<Dict>()))
    });
    registry.function(Signature::function("array", "Makes a list of its arguments.").free_form(), array);
    registry.function(
        Signature::function("len", "Counts bytes of text, entries of a dict, elements of a list.").args(args![Arg::required(
            "list",
            ArgType::Any,
            "What to count."
        )]),
        |call| {
            Ok(Value::from(match call.value("list") {
                Value::Str(text) => text.len(),
                Value::Bytes(bytes) => bytes.len(),
                Value::Dict(dict) => dict.len(),
                Value::List(items) => items.len(),
                Value::Path(path) => path.components().len(),
                Value::Query(query) => query.collect(call.scope()).len(),
                _ => 0,
            }))
        },
    );
    registry.function(
        Signature::function("get", "Gives a member, or a default.").args(args![
            Arg::optional("item", ArgType::Any, "Where to look; the scope unless given."),
            Arg::optional("member", ArgType::String, "A path of names, separated by dots."),
            Arg::optional("field", ArgType::Any, "A single name or place."),
            Arg::optional("default", ArgType::Any, "What to give if there is no such member."),
        ]),
        get,
    );
    registry.function(
        Signature::function("set", "Sets an entry of a dict, or an element of a list, and gives the result.").args(args![
            Arg::required("item", ArgType::Any, "The dict. A variable that holds it changes too."),
            Arg::required("field", ArgType::String, "The name."),
            Arg::required("value", ArgType::Any, "The value."),
        ]),
        set,
    );
    registry.function(
        Signature::function("to_dict", "Makes a dict of rows with _key and _value, or of an object.").args(args![Arg::optional(
            "item",
            ArgType::Any,
            "The rows or the object."
        )]),
        to_dict,
    );
    registry.function(
        Signature::function("filter", "Keeps the elements that match.").args(args![
            Arg::required("list", ArgType::AnyList, "The elements."),
            Arg::optional("regex", ArgType::String, "Keep what this matches."),
            Arg::optional("condition", ArgType::Lambda, "Keep that for which this is true."),
        ]),
        |call| {
            let (regex, condition) = (call.text("regex").map(Value::Str), call.lambda("condition"));
            let scope = call.scope();
            let keep = |item: &Value| {
                !scope.stopped()
                    && regex.as_ref().is_none_or(|regex| matches(item, regex, scope))
                    && condition.as_ref().is_none_or(|condition| truth(&condition.call(scope, std::slice::from_ref(item)), scope))
            };
            Ok(Value::list(call.list("list").into_iter().filter(keep)))
        },
    );
    for (name, doc) in [("any", "Whether any element is true or matches."), ("all", "Whether all elements are true or match.")] {
        registry.function(
            Signature::function(name, doc).args(args![
                Arg::required("items", ArgType::Any, "The elements."),
                Arg::optional("filter", ArgType::Lambda, "What to ask of each."),
                Arg::optional("regex", ArgType::Strings, "Patterns to look for in each."),
            ]),
            any_or_all,
        );
    }
    registry.function(
        Signature::function("slice", "Gives a part of a list.").args(args![
            Arg::required("list", ArgType::Any, "The list."),
            Arg::required("start", ArgType::UInt, "The first place."),
            Arg::required("end", ArgType::UInt, "The place past the last."),
        ]),
        |call| {
            let bound = |name| Value::from(i64::try_from(call.uint(name)).unwrap_or(i64::MAX));
            Ok(member::slice(&call.value("list"), Some(&bound("start")), Some(&bound("end")), call.scope()))
        },
    );
    registry.function(Signature::function("typeof", "Names the type of its argument.").free_form(), |call| {
        Ok(Value::from(call.extras().first().map_or("types.Null", |(_, value)| value.type_name())))
    });
    registry.function(
        Signature::function("version", "Gives the version of a built-in, NULL if there is none of that name.").args(args![
            Arg::optional("function", ArgType::String, "The name of a function."),
            Arg::optional("plugin", ArgType::String, "The name of a plugin."),
        ]),
        |call| {
            let known = call.scope().registry();
            let function = call.opt_string("function").and_then(|name| known.version(Kind::Function, &name));
            let plugin = call.opt_string("plugin").and_then(|name| known.version(Kind::Plugin, &name));
            Ok(Value::from(function.or(plugin)))
        },
    );
    registry.function(
        Signature::function("eval", "Calls a lambda.")
            .args(args![
                Arg::required("func", ArgType::Lambda, "The lambda."),
                Arg::optional("args", ArgType::Any, "Its arguments, or its argument; the scope unless given."),
            ])
            .version(2),
        |call| {
            let Some(lambda) = call.lambda("func") else { return Ok(Value::Null) };
            let args = match call.value("args") {
                Value::Null => vec![super::control::scope_value(call.scope())],
                Value::List(items) => items.to_vec(),
                other => vec![other],
            };
            Ok(lambda.call(call.scope(), &args))
        },
    );
    registry.function(
        Signature::function("similarity", "How much two dicts have in common, from 0 to 1.").args(args![
            Arg::required("set1", ArgType::Any, "One dict; anything else has nothing in common with it."),
            Arg::required("set2", ArgType::Any, "The other."),
        ]),
        |call| {
            let (Value::Dict(left), Value::Dict(right)) = (call.value("set1"), call.value("set2")) else { return Ok(Value::Int(0)) };
            let common = left.iter().filter(|(key, value)| right.get(key).is_some_and(|other| crate::ops::equal(value, other))).count();
            let all = left.len().saturating_add(right.keys().filter(|key| !left.contains_key(key)).count());
            Ok(if all == 0 { Value::Int(0) } else { Value::Float(1.0 - all.saturating_sub(common) as f64 / all as f64) })
        },
    );
}

fn array(call: Call) -> Result<Value, CallError> {
    let mut list = List::new();
    for (name, value) in call.extras() {
        if name == "_" {
            list.extend(match value {
                Value::List(items) => items.to_vec(),
                other => elements(other, call.scope()),
            });
        } else {
            list.push(value.clone().materialized(call.scope()));
        }
    }
    Ok(list.into())
}

fn get(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let missing = || call.value("default");
    let mut path: Vec<Value> = match call.opt_string("member") {
        Some(path) => path.split('.').map(Value::from).collect(),
        None => vec![call.value("field")],
    };
    let mut value = call.value("item");
    if !call.has("item") {
        if path.is_empty() {
            return Ok(missing());
        }
        match scope.variable(&display(&path.remove(0))) {
            Some(found) => value = found,
            None => return Ok(missing()),
        }
    }
    for step in path {
        let found = match (&value, &step) {
            (Value::List(_) | Value::Query(_), Value::Int(_) | Value::UInt(_)) => Some(member::index(&value, &step, scope)),
            (Value::List(_), Value::Str(text)) if text.to_str().parse::<i64>().is_ok() => {
                Some(member::index(&value, &Value::from(text.to_str().parse::<i64>().unwrap_or(0)), scope))
            }
            _ => member::member(&value, &display(&step), scope),
        };
        match found {
            Some(found) => value = found.reduced(),
            None => return Ok(missing()),
        }
    }
    Ok(if value.is_null() && call.has("default") { missing() } else { value })
}

fn set(call: Call) -> Result<Value, CallError> {
    let name = call.string("field");
    let value = call.value("value").materialized(call.scope());
    match call.value("item") {
        Value::Dict(dict) => {
            if !call.scope().keep(value.weight()) {
                return Err(CallError::Silent);
            }
            let held = call
                .variable
                .as_ref()
                .and_then(|variable| call.scope().change_dict(variable, |dict| dict.update(name.clone(), value.clone())));
            Ok(Value::Dict(match held {
                Some(changed) => changed,
                None => {
                    let mut dict = Dict::clone(&dict);
                    dict.update(name, value);
                    dict.into()
                }
            }))
        }
        Value::Object(object) => {
            if !call.scope().keep(value.weight().saturating_add(name.len() as u64)) {
                return Err(CallError::Silent);
            }
            if object.set_member(Key::from(name), value) { Ok(Value::Object(object)) } else { Err("the item cannot be changed".into()) }
        }
        Value::List(items) => {
            let place: usize = name.parse().map_err(|_| CallError::Argument("Field field should be a place in the list".to_owned()))?;
            Ok(Value::list(items.iter().enumerate().map(|(at, item)| if at == place { value.clone() } else { item.clone() })))
        }
        other => Err(CallError::Argument(format!("Field item should be a dict not {}.", other.type_name()))),
    }
}

fn to_dict(call: Call) -> Result<Value, CallError> {
    let item = call.value("item");
    match &item {
        Value::Dict(_) => return Ok(item),
        Value::Object(_) | Value::Time(_) => return Ok(Value::Dict(member::row_to_dict(&item))),
        _ => {}
    }
    let mut dict = Dict::new();
    for row in elements(&item, call.scope()) {
        let key = member::column(&row, "_key").map(|key| display(&key)).unwrap_or_default();
        if !key.is_empty() {
            dict.set(Key::from(key), member::column(&row, "_value").unwrap_or_default());
        }
    }
    Ok(dict.into())
}

fn any_or_all(call: Call) -> Result<Value, CallError> {
    let all = call.name() == "all";
    let scope = call.scope();
    let items = match call.value("items") {
        Value::Dict(dict) => dict.values().cloned().collect(),
        other => elements(&other, scope),
    };
    let (filter, patterns) = (call.lambda("filter"), call.texts("regex"));
    let mut passes = |item: &Value| {
        if let Some(filter) = &filter {
            return truth(&filter.call(scope, std::slice::from_ref(item)), scope);
        }
        if patterns.is_empty() {
            return truth(item, scope);
        }
        let mut matched = patterns.iter().map(|pattern| matches(item, &Value::Str(pattern.clone()), scope));
        if all { matched.all(|matched| matched) } else { matched.any(|matched| matched) }
    };
    let verdict = if all { items.iter().all(&mut passes) } else { items.iter().any(&mut passes) };
    Ok(Value::Bool(verdict && !scope.stopped()))
}
