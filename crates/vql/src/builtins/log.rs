//! `log()`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::args;
use crate::call::Call;
use crate::environment::Level;
use crate::error::CallError;
use crate::registry::Registry;
use crate::signature::{Arg, ArgType, Signature};
use crate::value::{Text, Value};
use crate::verbs;

/// How many messages are remembered for suppression.
const REMEMBERED: usize = 10_000;
/// How long the same message is not repeated, in seconds, unless the call says otherwise.
const DEDUP: i64 = 60;
/// The longest line.
const MAX_LINE: usize = 1 << 20;

pub(super) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("log", "Writes a line to the log of the query.")
            .args(args![
                Arg::required("message", ArgType::String, "The text, perhaps with verbs as format() has them."),
                Arg::optional("dedup", ArgType::Int, "Seconds for which the same message is not repeated; 60 unless given, -1 for never."),
                Arg::optional("args", ArgType::Any, "The values for the verbs."),
                Arg::optional("level", ArgType::String, "DEFAULT, INFO, WARN, ERROR, DEBUG or ALERT."),
            ])
            .version(2)
            .false_on_error(),
        log,
    );
}

/// When each message was last written.
#[derive(Default)]
struct Written(Mutex<HashMap<Text, i64>>);

fn log(call: Call) -> Result<Value, CallError> {
    let Some(message) = call.text("message") else { return Ok(Value::Bool(false)) };
    let dedup = call.opt_int("dedup").unwrap_or(DEDUP);
    if dedup >= 0 {
        let now = call.scope().now().unix();
        let written = call.scope().shared::<Written>();
        let mut written = written.0.lock().unwrap_or_else(PoisonError::into_inner);
        if written.get(&message).is_some_and(|at| now.saturating_sub(*at) < dedup) {
            return Ok(Value::Bool(true));
        }
        if written.len() >= REMEMBERED {
            written.clear();
        }
        written.insert(message.clone(), now);
    }
    let text = if call.has("args") { verbs::format(&message, &verbs_args(&call), MAX_LINE) } else { message };
    let level = call.opt_string("level").and_then(|name| Level::from_name(&name)).unwrap_or(Level::Default);
    call.scope().log(format!("{}:{}", level.name(), text.to_str()));
    Ok(Value::Bool(true))
}

/// The values for the verbs: times as RFC 3339, a single value as a list of one.
pub(super) fn verbs_args(call: &Call) -> Vec<Value> {
    let shown = |value: &Value| match value.clone().materialized(call.scope()) {
        Value::Time(time) => Value::from(time.to_string()),
        other => other,
    };
    match call.value("args") {
        Value::List(items) => items.iter().map(shown).collect(),
        other if call.has("args") => vec![shown(&other)],
        _ => Vec::new(),
    }
}
