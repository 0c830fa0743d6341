//! `help()`: the built-ins as rows; and `trace()`.

use crate::call::Call;
use crate::dict::Dict;
use crate::error::CallError;
use crate::registry::Registry;
use crate::rows::Rows;
use crate::signature::{Kind, Signature};
use crate::value::Value;

pub(super) fn register(registry: &mut Registry) {
    registry.plugin(Signature::plugin("help", "The built-ins that queries may call here, with what they take and need."), help);
    registry.function(Signature::function("trace", "Writes to the log which names are visible at this place.").version(1), |call| {
        call.scope().log(format!("DEBUG:trace: Current Scope is {}", call.scope().describe()));
        Ok(Value::Bool(true))
    });
}

fn help(call: Call) -> Result<Rows, CallError> {
    let registry = call.scope().registry().clone();
    let rows: Vec<Dict> = registry.signatures().map(row).collect();
    Ok(Rows::of(rows))
}

fn row(signature: &Signature) -> Dict {
    let args = signature.args.iter().map(|arg| {
        Dict::new().with("name", arg.name).with("type", arg.ty.name()).with("required", arg.required).with("description", arg.doc)
    });
    Dict::new()
        .with("name", signature.name)
        .with("type", if signature.kind == Kind::Plugin { "Plugin" } else { "Function" })
        .with("description", signature.doc)
        .with("args", Value::list(args))
        .with("permissions", Value::list(signature.permissions.iter().map(|permission| permission.name())))
        .with("version", signature.version)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Environment, MemoryLog, Query, json};

    #[test]
    fn built_ins_explain_themselves() {
        let log = Arc::new(MemoryLog::default());
        let scope = Environment::new(Arc::new(Registry::core())).variable("config", Value::Null).log(log.clone()).open();
        let statement =
            crate::parse_statement("SELECT name, type, args.name AS args, permissions FROM help() WHERE name = 'diff'").unwrap();
        let rows: Vec<String> = Query::new(&scope, &statement).map(|row| json::encode(&row.into())).collect();
        assert_eq!(rows, [r#"{"name":"diff","type":"Plugin","args":["query","key","period"],"permissions":[]}"#]);
        Query::new(&scope, &crate::parse_statement("LET _ <= trace()").unwrap()).for_each(drop);
        assert!(log.take().iter().any(|line| line.starts_with("DEBUG:trace: Current Scope is [NULL], [config]")));
    }
}
