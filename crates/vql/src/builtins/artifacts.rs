//! Artifacts as values: what they export, whether their text is right, and their text formatted.

use std::sync::Arc;

use crate::args;
use crate::call::Call;
use crate::dict::Dict;
use crate::environment::ArtifactResolver;
use crate::error::CallError;
use crate::query::Query;
use crate::registry::Registry;
use crate::signature::{Arg, ArgType, Signature};
use crate::value::Value;

pub(super) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("import", "Defines in this query what an artifact exports.").args(args![Arg::required(
            "artifact",
            ArgType::String,
            "The name of the artifact."
        )]),
        |call| {
            for statement in resolver(&call)?.exports(&call.string("artifact"))? {
                Query::new(call.scope(), &statement).for_each(drop);
            }
            Ok(Value::Null)
        },
    );
    registry.function(
        Signature::function("verify", "Checks the text of an artifact.")
            .args(args![
                Arg::required("artifact", ArgType::String, "The text."),
                Arg::optional("repository", ArgType::String, "Not used: artifacts of the query's organisation are known."),
                Arg::optional("disable_override", ArgType::Bool, "Not used: checking changes nothing."),
            ])
            .version(2),
        |call| Ok(resolver(&call)?.verify(&call.string("artifact"), call.scope().registry())?.into()),
    );
    registry.function(
        Signature::function("reformat", "Formats the queries in the text of an artifact.").args(args![Arg::required(
            "artifact",
            ArgType::String,
            "The text."
        )]),
        |call| {
            let text = call.string("artifact");
            let outcome = resolver(&call)?.reformat(&text);
            Ok(match outcome {
                Ok(formatted) => Dict::new().with("Artifact", formatted).with("Error", Value::Null),
                Err(error) => Dict::new().with("Artifact", text).with("Error", error.to_string()),
            }
            .into())
        },
    );
}

fn resolver(call: &Call) -> Result<Arc<dyn ArtifactResolver>, CallError> {
    call.scope().artifacts().cloned().ok_or_else(|| "there are no artifacts here".into())
}
