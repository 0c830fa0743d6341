//! Codecs and ciphers of investigations: `base85decode()`, `crypto_rc4()`, `compress()`; and `uuid()`.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, OsPath, Registry, Signature, Value};

use crate::authority::permit;
use crate::{accessor, host};

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("base85decode", "Reads base85, as Adobe writes it.")
            .args(const { &[Arg::required("string", ArgType::String, "The text.")] }),
        |call| base85(&call.bytes("string")).map(Value::str).ok_or_else(|| CallError::failed("the text is not base85")),
    );
    registry.function(
        Signature::function("crypto_rc4", "Encrypts or decrypts with RC4; for what others encrypted so.").args(
            const {
                &[
                    Arg::required("string", ArgType::String, "The bytes."),
                    Arg::required("key", ArgType::String, "The key, from 1 to 256 bytes."),
                ]
            },
        ),
        |call| {
            rc4(&call.bytes("key"), &call.bytes("string"))
                .map(Value::str)
                .ok_or_else(|| CallError::failed("the key must have 1 to 256 bytes"))
        },
    );
    registry.function(
        Signature::function("compress", "Compresses a file with gzip.")
            .args(
                const {
                    &[
                        Arg::required("path", ArgType::String, "The file."),
                        Arg::required("output", ArgType::String, "The file to write."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemWrite, Permission::FilesystemRead]),
        compress,
    );
    registry.function(Signature::function("uuid", "A random UUID."), |call| Ok(uuid(call.scope().random(), call.scope().random()).into()));
}

/// Four bytes for each five characters from `!` to `u`; `z` stands for four zeros.
fn base85(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    let text = text.strip_prefix(b"<~").unwrap_or(text);
    let text = text.strip_suffix(b"~>").unwrap_or(text);
    let mut out = Vec::with_capacity(text.len());
    let mut group = Vec::with_capacity(5);
    for byte in text.iter().filter(|byte| **byte > b' ') {
        match byte {
            b'z' if group.is_empty() => out.extend_from_slice(&[0; 4]),
            b'!'..=b'u' => group.push(u32::from(byte.saturating_sub(b'!'))),
            _ => return None,
        }
        if group.len() == 5 {
            out.extend_from_slice(&number(&group)?.to_be_bytes());
            group.clear();
        }
    }
    if !group.is_empty() {
        let keep = group.len().checked_sub(1).filter(|keep| *keep > 0)?;
        group.resize(5, 84);
        out.extend_from_slice(number(&group)?.to_be_bytes().get(..keep)?);
    }
    Some(out)
}

fn number(digits: &[u32]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |number, digit| number.checked_mul(85)?.checked_add(*digit))
}

fn rc4(key: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    if key.is_empty() || key.len() > 256 {
        return None;
    }
    let mut state: [u8; 256] = std::array::from_fn(|at| at as u8);
    let mut other = 0_u8;
    for (at, from_key) in (0..256_usize).zip(key.iter().cycle()) {
        other = other.wrapping_add(*state.get(at)?).wrapping_add(*from_key);
        state.swap(at, other.into());
    }
    let (mut at, mut other) = (0_u8, 0_u8);
    data.iter()
        .map(|byte| {
            at = at.wrapping_add(1);
            other = other.wrapping_add(*state.get(usize::from(at))?);
            state.swap(at.into(), other.into());
            let sum = state.get(usize::from(at))?.wrapping_add(*state.get(usize::from(other))?);
            Some(byte ^ state.get(usize::from(sum))?)
        })
        .collect()
}

fn compress(call: Call) -> Result<Value, CallError> {
    const STEP: usize = 1 << 16;
    let scope = call.scope();
    let path = std::sync::Arc::new(OsPath::for_accessor(call.bytes("path"), "file"));
    let mut reader = accessor::named(scope, "file")?.open(scope, &path)?;
    let output = call.bytes("output");
    let file = host::write(&permit(scope)?, Path::new(std::ffi::OsStr::from_bytes(&output)), false)?;
    let mut out = GzEncoder::new(file, Compression::default());
    let mut buffer = vec![0; STEP];
    loop {
        if scope.stopped() {
            return Err(CallError::Silent);
        }
        let got = reader.read(&mut buffer)?;
        if got == 0 {
            break;
        }
        out.write_all(buffer.get(..got).unwrap_or_default())?;
    }
    out.finish()?;
    Ok(Value::str(output))
}

/// A random UUID, version 4.
fn uuid(high: u64, low: u64) -> String {
    let high = (high & 0xffff_ffff_ffff_0fff) | 0x4000;
    let low = (low & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
    let digits = format!("{high:016x}{low:016x}");
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use talon_acl::{Authority, EndpointPolicy};
    use talon_vql::{Environment, Query, json, parse_statement};

    use super::*;

    fn value(expression: &str) -> String {
        let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse().unwrap(), EndpointPolicy::default()));
        let scope = crate::with_authority(Environment::new(Arc::new(crate::registry())), authority).open();
        let statement = parse_statement(&format!("SELECT {expression} AS X FROM scope()")).unwrap();
        json::encode(Query::new(&scope, &statement).next().unwrap().get("X").unwrap())
    }

    #[test]
    fn base85_is_read() {
        assert_eq!(value("base85decode(string='<~87cURD]i,\"Ebo80~>')"), r#""Hello World!""#);
        assert_eq!(value("base85decode(string='87cURDZ')"), r#""Hello""#);
        assert_eq!(base85(b"z"), Some(vec![0; 4]));
        assert_eq!(value("base85decode(string='{}')"), "null");
        assert_eq!(base85(b"uuuuu"), None);
        assert_eq!(base85(b"8"), None);
    }

    #[test]
    fn rc4_matches_its_published_vectors() {
        for (key, plain, cipher) in [
            (&b"Key"[..], &b"Plaintext"[..], "bbf316e8d940af0ad3"),
            (b"Wiki", b"pedia", "1021bf0420"),
            (b"Secret", b"Attack at dawn", "45a01f645fc35b383552544b9bf5"),
        ] {
            let found: String = rc4(key, plain).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, cipher);
        }
        assert_eq!(rc4(b"", b"x"), None);
        assert_eq!(value("crypto_rc4(key='Wiki', string=crypto_rc4(key='Wiki', string='pedia'))"), r#""pedia""#);
    }

    #[test]
    fn compressed_files_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let (plain, packed) = (folder.path().join("a"), folder.path().join("a.gz"));
        std::fs::write(&plain, "hello ".repeat(1000)).unwrap();
        let call = format!("compress(path='{}', output='{}')", plain.display(), packed.display());
        assert_eq!(value(&call), format!("\"{}\"", packed.display()));
        assert!(std::fs::metadata(&packed).unwrap().len() < 200);
        let read = format!("len(list=gunzip(string=read_file(filename='{}')))", packed.display());
        assert_eq!(value(&read), "6000");
    }

    #[test]
    fn uuids_have_version_and_variant() {
        assert_eq!(uuid(u64::MAX, u64::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid(0, 0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(value("len(list=uuid())"), "36");
    }
}
