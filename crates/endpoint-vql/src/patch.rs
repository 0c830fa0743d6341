//! `patch()`: JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7386) on values.

use talon_vql::{Arg, ArgType, Call, CallError, Dict, Key, List, Registry, Signature, Value, ops};

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("patch", "Changes a value by a JSON patch or a merge patch.").args(
            const {
                &[
                    Arg::required("item", ArgType::Any, "The value."),
                    Arg::optional("patch", ArgType::Any, "The operations: a list of dicts with op, path, value, from."),
                    Arg::optional("merge", ArgType::Any, "A dict to lay over the value; NULL takes a key away."),
                ]
            },
        ),
        patch,
    );
}

/// A JSON value of an argument: text is read as JSON.
fn argument(call: &Call, name: &str) -> Result<Value, CallError> {
    match call.value(name).materialized(call.scope()) {
        Value::Str(text) => talon_vql::json::decode(&text).map_err(|error| CallError::failed(format!("{name}: {error}"))),
        other => Ok(other),
    }
}

fn patch(call: Call) -> Result<Value, CallError> {
    const MAX_OPERATIONS: usize = 10_000;
    let mut item = argument(&call, "item")?;
    if call.has("merge") {
        item = merge(&item, &argument(&call, "merge")?);
    }
    if call.has("patch") {
        let operations = match argument(&call, "patch")? {
            Value::List(operations) => operations.to_vec(),
            one => vec![one],
        };
        if operations.len() > MAX_OPERATIONS {
            return Err(CallError::failed(format!("more than {MAX_OPERATIONS} operations")));
        }
        for operation in operations {
            let Value::Dict(operation) = operation else { return Err("patch: an operation is a dict".into()) };
            item = apply(item, &operation).map_err(CallError::failed)?;
        }
    }
    Ok(item)
}

fn merge(target: &Value, patch: &Value) -> Value {
    let Value::Dict(patch) = patch else { return patch.clone() };
    let mut merged = target.as_dict().map(|dict| Dict::clone(dict)).unwrap_or_default();
    for (key, value) in patch.iter() {
        if value.is_null() {
            merged.remove(key);
        } else {
            let below = merged.get(key).cloned().unwrap_or_default();
            merged.update(key, merge(&below, value));
        }
    }
    merged.into()
}

fn apply(item: Value, operation: &Dict) -> Result<Value, String> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str).ok_or_else(|| format!("patch: the operation lacks {name}"));
    let value = || operation.get("value").cloned().ok_or_else(|| "patch: the operation lacks value".to_owned());
    let path = pointer(text("path")?)?;
    match text("op")? {
        "add" => change(&item, &path, &Change::Add(value()?)),
        "replace" => change(&item, &path, &Change::Replace(value()?)),
        "remove" => change(&item, &path, &Change::Remove),
        "test" if ops::equal(find(&item, &path)?, &value()?) => Ok(item),
        "test" => Err(format!("patch: test of {} failed", text("path")?)),
        "copy" => {
            let value = find(&item, &pointer(text("from")?)?)?.clone();
            change(&item, &path, &Change::Add(value))
        }
        "move" => {
            let from = pointer(text("from")?)?;
            if path.starts_with(&from) && path.len() > from.len() {
                return Err("patch: a value cannot be moved into itself".to_owned());
            }
            let value = find(&item, &from)?.clone();
            change(&change(&item, &from, &Change::Remove)?, &path, &Change::Add(value))
        }
        other => Err(format!("patch: unknown operation {other}")),
    }
}

/// The steps of a JSON pointer.
fn pointer(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let steps = text.strip_prefix('/').ok_or_else(|| format!("patch: the path {text} must begin with /"))?;
    Ok(steps.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect())
}

fn missing(step: &str) -> String {
    format!("patch: there is no {step}")
}

fn find<'a>(item: &'a Value, path: &[String]) -> Result<&'a Value, String> {
    let Some((step, rest)) = path.split_first() else { return Ok(item) };
    let below = match item {
        Value::Dict(dict) => dict.get(step),
        Value::List(list) => step.parse::<usize>().ok().and_then(|at| list.get(at)),
        _ => None,
    };
    find(below.ok_or_else(|| missing(step))?, rest)
}

enum Change {
    Add(Value),
    Replace(Value),
    Remove,
}

fn change(item: &Value, path: &[String], what: &Change) -> Result<Value, String> {
    let Some((step, rest)) = path.split_first() else {
        return Ok(match what {
            Change::Add(value) | Change::Replace(value) => value.clone(),
            Change::Remove => Value::Null,
        });
    };
    match item {
        Value::Dict(dict) => {
            let mut dict = Dict::clone(dict);
            let key = || Key::from(step.clone());
            if !rest.is_empty() {
                let below = dict.get(step).ok_or_else(|| missing(step))?.clone();
                dict.update(key(), change(&below, rest, what)?);
                return Ok(dict.into());
            }
            match what {
                Change::Add(value) => dict.update(key(), value),
                Change::Replace(value) if dict.contains_key(step) => dict.update(key(), value),
                Change::Replace(_) => return Err(missing(step)),
                Change::Remove => drop(dict.remove(step).ok_or_else(|| missing(step))?),
            }
            Ok(dict.into())
        }
        Value::List(list) => {
            let mut items = list.to_vec();
            let at = if step == "-" { items.len() } else { step.parse::<usize>().map_err(|_| missing(step))? };
            match (rest.is_empty(), what) {
                (true, Change::Add(value)) if at <= items.len() => items.insert(at, value.clone()),
                (true, Change::Remove) if at < items.len() => drop(items.remove(at)),
                _ => {
                    let slot = items.get_mut(at).ok_or_else(|| missing(step))?;
                    *slot = match what {
                        Change::Replace(value) if rest.is_empty() => value.clone(),
                        _ if rest.is_empty() => return Err(missing(step)),
                        what => change(slot, rest, what)?,
                    };
                }
            }
            Ok(items.into_iter().collect::<List>().into())
        }
        _ => Err(missing(step)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_vql::{Environment, Query, json, parse_statement};

    fn patched(item: &str, patch: &str) -> String {
        let scope = Environment::new(Arc::new(crate::registry())).variable("I", item).variable("P", patch).open();
        let statement = parse_statement("SELECT patch(item=I, patch=P) AS X FROM scope()").unwrap();
        json::encode(Query::new(&scope, &statement).next().unwrap().get("X").unwrap())
    }

    #[test]
    fn the_operations_of_the_rfc_work() {
        for (item, patch, expected) in [
            (r#"{"foo":"bar"}"#, r#"[{"op":"add","path":"/baz","value":"qux"}]"#, r#"{"foo":"bar","baz":"qux"}"#),
            (r#"{"foo":["bar","baz"]}"#, r#"[{"op":"add","path":"/foo/1","value":"qux"}]"#, r#"{"foo":["bar","qux","baz"]}"#),
            (r#"{"foo":["bar"]}"#, r#"[{"op":"add","path":"/foo/-","value":["abc"]}]"#, r#"{"foo":["bar",["abc"]]}"#),
            (r#"{"baz":"qux","foo":"bar"}"#, r#"[{"op":"remove","path":"/baz"}]"#, r#"{"foo":"bar"}"#),
            (r#"{"foo":["bar","qux","baz"]}"#, r#"[{"op":"remove","path":"/foo/1"}]"#, r#"{"foo":["bar","baz"]}"#),
            (r#"{"baz":"qux","foo":"bar"}"#, r#"[{"op":"replace","path":"/baz","value":"boo"}]"#, r#"{"baz":"boo","foo":"bar"}"#),
            (r#"{"a":{"b":1},"c":{}}"#, r#"[{"op":"move","from":"/a/b","path":"/c/d"}]"#, r#"{"a":{},"c":{"d":1}}"#),
            (r#"{"a":{"b":1}}"#, r#"[{"op":"copy","from":"/a","path":"/c"}]"#, r#"{"a":{"b":1},"c":{"b":1}}"#),
            (r#"{"a~b":1}"#, r#"[{"op":"test","path":"/a~0b","value":1},{"op":"replace","path":"/a~0b","value":2}]"#, r#"{"a~b":2}"#),
            (r#"{"a":1}"#, r#"[{"op":"test","path":"/a","value":2}]"#, "null"),
            (r#"{"a":1}"#, r#"[{"op":"replace","path":"/b","value":2}]"#, "null"),
            (r#"{"a":1}"#, r#"[{"op":"add","path":"/b/c","value":2}]"#, "null"),
            (r#"{"a":{}}"#, r#"[{"op":"move","from":"/a","path":"/a/b"}]"#, "null"),
        ] {
            assert_eq!(patched(item, patch), expected, "{patch}");
        }
    }

    #[test]
    fn merging_takes_away_what_is_null() {
        let scope = Environment::new(Arc::new(crate::registry())).open();
        let vql = "SELECT patch(item=dict(a='b', c=dict(d='e', f='g')), merge='''{\"a\":\"z\",\"c\":{\"f\":null}}''') AS X FROM scope()";
        let row = Query::new(&scope, &parse_statement(vql).unwrap()).next().unwrap();
        assert_eq!(json::encode(row.get("X").unwrap()), r#"{"a":"z","c":{"d":"e"}}"#);
    }
}
