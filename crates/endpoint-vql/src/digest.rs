//! `hash()`: digests of files.

use std::io::Read;

use md5::Digest;
use talon_vql::{Arg, ArgType, Call, CallError, Dict, Registry, Signature, Value};

use crate::accessor;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("hash", "MD5, SHA1 and SHA256 of a file.")
            .args(
                const {
                    &[
                        Arg::required("path", ArgType::Path, "The file."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                        Arg::optional("hashselect", ArgType::Strings, "Which of MD5, SHA1, SHA256; all unless given."),
                        Arg::optional(
                            "max_size",
                            ArgType::UInt,
                            "Larger files have no digests; the variable HASH_MAX_SIZE says so for all.",
                        ),
                    ]
                },
            )
            .version(3),
        hash,
    );
}

fn hash(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let accessor = accessor::named(scope, &call.string("accessor"))?;
    let path = call.path("path").ok_or_else(|| CallError::failed("Field path is required"))?;
    let selected = call.strings("hashselect");
    let known = ["MD5", "SHA1", "SHA256"];
    if let Some(unknown) = selected.iter().find(|name| !known.iter().any(|known| known.eq_ignore_ascii_case(name))) {
        return Err(CallError::failed(format!("unknown hash {unknown}; hashselect takes MD5, SHA1 and SHA256")));
    }
    let wants = |name: &str| selected.is_empty() || selected.iter().any(|selected| selected.eq_ignore_ascii_case(name));
    let stated = || scope.variable("HASH_MAX_SIZE").and_then(|value| value.as_int()).and_then(|limit| u64::try_from(limit).ok());
    let limit = call.opt_uint("max_size").filter(|limit| *limit > 0).or_else(stated).unwrap_or(u64::MAX);
    let mut reader = accessor.open(scope, &path)?;
    let mut size = 0_u64;
    let (mut md5, mut sha1, mut sha256) =
        (wants("MD5").then(md5::Md5::new), wants("SHA1").then(sha1::Sha1::new), wants("SHA256").then(talon_crypto::Sha256::new));
    let mut buffer = vec![0; 1 << 16];
    loop {
        if scope.stopped() {
            return Ok(Value::Null);
        }
        let got = reader.read(&mut buffer)?;
        let Some(piece) = buffer.get(..got).filter(|piece| !piece.is_empty()) else { break };
        size = size.saturating_add(piece.len() as u64);
        if size > limit {
            return Err(CallError::failed(format!(
                "{path} is longer than {limit} bytes; max_size or HASH_MAX_SIZE would have to be larger"
            )));
        }
        if let Some(digest) = &mut md5 {
            digest.update(piece);
        }
        if let Some(digest) = &mut sha1 {
            digest.update(piece);
        }
        if let Some(digest) = &mut sha256 {
            digest.update(piece);
        }
    }
    let mut row = Dict::new();
    if let Some(digest) = md5 {
        row.set("MD5", hex(&digest.finalize()));
    }
    if let Some(digest) = sha1 {
        row.set("SHA1", hex(&digest.finalize()));
    }
    if let Some(digest) = sha256 {
        row.set("SHA256", hex(&digest.finish()));
    }
    Ok(row.into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_vql::{Environment, Query, json, parse_statement};

    fn value(vql: &str) -> String {
        let scope = Environment::new(Arc::new(crate::registry())).open();
        let row = Query::new(&scope, &parse_statement(vql).unwrap()).next().unwrap();
        json::encode(row.get("H").unwrap())
    }

    #[test]
    fn digests_of_known_text() {
        assert_eq!(
            value("SELECT hash(path='abc', accessor='data') AS H FROM scope()"),
            r#"{"MD5":"900150983cd24fb0d6963f7d28e17f72","SHA1":"a9993e364706816aba3e25717850c26c9cd0d89d","SHA256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}"#
        );
        assert_eq!(
            value("SELECT hash(path='abc', accessor='data', hashselect='md5') AS H FROM scope()"),
            r#"{"MD5":"900150983cd24fb0d6963f7d28e17f72"}"#
        );
    }

    #[test]
    fn what_is_too_long_has_no_digest() {
        assert_eq!(value("SELECT hash(path='abc', accessor='data', max_size=2) AS H FROM scope()"), "null");
        let shown = value("SELECT hash(path='abc', accessor='data', max_size=3, hashselect='MD5') AS H FROM scope()");
        assert_eq!(shown, r#"{"MD5":"900150983cd24fb0d6963f7d28e17f72"}"#);
    }

    #[test]
    fn without_the_permission_there_is_no_digest() {
        assert_eq!(value("SELECT hash(path='/etc/hostname') AS H FROM scope()"), "null");
    }
}
