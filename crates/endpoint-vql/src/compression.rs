//! `gunzip()`: compressed text in, plain text out, never more than asked for.

use std::io::Read;

use flate2::read::MultiGzDecoder;
use talon_vql::{Arg, ArgType, Call, CallError, Registry, Signature, Value};

/// How many bytes come out unless the call says otherwise.
const DEFAULT_LIMIT: u64 = 10 << 20;
/// How many bytes come out at most.
const MAX_LIMIT: u64 = 100 << 20;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("gunzip", "Uncompresses gzip.")
            .args(
                const {
                    &[
                        Arg::required("string", ArgType::String, "The compressed bytes."),
                        Arg::optional("max_bytes", ArgType::Int, "How many bytes to give at most; 10 MiB unless given."),
                    ]
                },
            )
            .version(2),
        gunzip,
    );
}

fn gunzip(call: Call) -> Result<Value, CallError> {
    let asked = call.opt_int("max_bytes").and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0);
    let limit = asked.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    if !call.scope().has_room_for(limit) {
        return Err(CallError::failed("the result would exceed the memory limits"));
    }
    let mut plain = Vec::new();
    MultiGzDecoder::new(&call.bytes("string")[..]).take(limit).read_to_end(&mut plain)?;
    Ok(Value::str(plain))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_vql::{Environment, Query, json, parse_statement};

    fn value(expression: &str) -> String {
        let scope = Environment::new(Arc::new(crate::registry())).open();
        let statement = parse_statement(&format!("SELECT {expression} AS X FROM scope()")).unwrap();
        json::encode(Query::new(&scope, &statement).next().unwrap().get("X").unwrap())
    }

    #[test]
    fn gzip_is_read_up_to_the_limit() {
        const HELLO: &str = "base64decode(string='H4sIAAAAAAAAA8tIzcnJVyjPL8pJ4QIALTsIrwwAAAA=')";
        assert_eq!(value(&format!("gunzip(string={HELLO})")), r#""hello world\n""#);
        assert_eq!(value(&format!("gunzip(string={HELLO}, max_bytes=5)")), r#""hello""#);
        assert_eq!(value("gunzip(string='no gzip')"), "null");
    }
}
