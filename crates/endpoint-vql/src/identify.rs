//! What a file is, what it is like, and where an address is: `magic()`, `tlsh_hash()`, `geoip()`.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pure_magic::{MagicDb, MagicSource, StreamKind};
use talon_ids::Permission;
use talon_vql::{Arg, ArgType, Call, CallError, OsPath, Registry, Signature, Text, Value};
use tlsh2::TlshBuilder128_1;

use crate::authority::permit;
use crate::files::{buffer_limit, read_up_to};
use crate::yaml::Node;
use crate::{accessor, host};

/// How much of a file is looked at for its kind.
const MAGIC_BYTES: u64 = 1 << 20;
/// How many sets of own rules a query keeps.
const MAX_RULES: usize = 20;

pub(crate) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("magic", "What kind of file it is, by its content.")
            .args(
                const {
                    &[
                        Arg::required("path", ArgType::Path, "The file."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                        Arg::optional("type", ArgType::String, "What to give: mime, extension, or a description when left out."),
                        Arg::optional("magic", ArgType::String, "Further rules, as text in the format of magic(5)."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemRead])
            .version(1),
        magic,
    );
    registry.function(
        Signature::function("tlsh_hash", "The TLSH of a file: similar files have similar ones.")
            .args(
                const {
                    &[
                        Arg::required("path", ArgType::Path, "The file."),
                        Arg::optional("accessor", ArgType::String, "The accessor that reads it."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemRead]),
        tlsh_hash,
    );
    registry.function(
        Signature::function("geoip", "What a MaxMind database says of an address.")
            .args(
                const {
                    &[
                        Arg::required("ip", ArgType::String, "The address."),
                        Arg::required("db", ArgType::String, "The file of the database."),
                    ]
                },
            )
            .permissions(&[Permission::FilesystemRead])
            .version(1),
        geoip,
    );
}

/// The rules that come with the program.
const RULES: &str = include_str!("kinds.magic");

/// The rules by what a call adds to those of the program.
#[derive(Default)]
struct Rules(Mutex<HashMap<Text, Arc<MagicDb>>>);

fn rules(call: &Call) -> Result<Arc<MagicDb>, CallError> {
    let own = call.text("magic").unwrap_or_else(|| Text::from(""));
    let known = call.scope().shared::<Rules>();
    let mut known = known.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(rules) = known.get(&own) {
        return Ok(rules.clone());
    }
    let mut rules = MagicDb::new();
    for text in [&own[..], RULES.as_bytes()].into_iter().filter(|text| !text.is_empty()) {
        rules.load(source(call, text)?);
    }
    let rules = Arc::new(rules);
    if known.len() >= MAX_RULES {
        known.clear();
    }
    known.insert(own, rules.clone());
    Ok(rules)
}

/// The reader of rules takes files only.
fn source(call: &Call, text: &[u8]) -> Result<MagicSource, CallError> {
    static FILES: AtomicU64 = AtomicU64::new(0);
    let (random, number) = (call.scope().random(), FILES.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(format!("talon-{random:016x}-{}-{number}.magic", std::process::id()));
    let permit = permit(call.scope())?;
    host::create_new(&permit, &path)?.write_all(text)?;
    let source = MagicSource::open(&path);
    host::remove(&permit, &path)?;
    source.map_err(|error| CallError::failed(format!("magic: {error}")))
}

fn magic(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let path = call.path("path").ok_or_else(|| CallError::failed("Field path is required"))?;
    let mut reader = accessor::named(scope, &call.string("accessor"))?.open(scope, &path)?;
    let content = read_up_to(&mut *reader, MAGIC_BYTES, scope)?;
    let rules = rules(&call)?;
    if content.is_empty() {
        return Ok(if call.string("type") == "mime" { "inode/x-empty" } else { "empty" }.into());
    }
    let found = rules.best_magic_slice(&content, None).map_err(CallError::failed)?;
    Ok(match call.string("type").as_str() {
        "mime" | "mime_type" => found.mime_type().into(),
        "extension" => {
            let mut extensions: Vec<&str> = found.extensions().iter().map(|extension| &**extension).collect();
            extensions.sort_unstable();
            extensions.join("/").into()
        }
        "" => match found.stream_kind() {
            Some(StreamKind::Text(_)) if found.message().ends_with(" text") => format!("{}{}", found.message(), lines_of(&content)).into(),
            _ => found.message().into(),
        },
        other => return Err(CallError::failed(format!("type must be mime or extension, not {other}"))),
    })
}

/// What a description of text says of its lines.
fn lines_of(text: &[u8]) -> String {
    const LONG: usize = 300;
    let mut out = String::new();
    let longest = text.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::len).max().unwrap_or(0);
    if longest > LONG {
        out.push_str(&format!(", with very long lines ({longest})"));
    }
    let ends = |end: &[u8]| text.windows(end.len()).filter(|window| *window == end).count();
    let both = ends(b"\r\n");
    let (returns, feeds) = (ends(b"\r").saturating_sub(both), ends(b"\n").saturating_sub(both));
    match (both, returns, feeds) {
        (0, 0, 0) => out.push_str(", with no line terminators"),
        (0, 0, _) => {}
        _ => {
            let kinds = [(both, "CRLF"), (returns, "CR"), (feeds, "LF")];
            let kinds: Vec<&str> = kinds.into_iter().filter(|(count, _)| *count > 0).map(|(_, name)| name).collect();
            out.push_str(&format!(", with {} line terminators", kinds.join(", ")));
        }
    }
    out
}

fn tlsh_hash(call: Call) -> Result<Value, CallError> {
    const STEP: usize = 1 << 16;
    let scope = call.scope();
    let path = call.path("path").ok_or_else(|| CallError::failed("Field path is required"))?;
    let mut reader = accessor::named(scope, &call.string("accessor"))?.open(scope, &path)?;
    let mut builder = TlshBuilder128_1::new();
    let mut buffer = vec![0; STEP];
    loop {
        if scope.stopped() {
            return Err(CallError::Silent);
        }
        let got = reader.read(&mut buffer)?;
        if got == 0 {
            break;
        }
        builder.update(buffer.get(..got).unwrap_or_default());
    }
    let hash = builder.build().ok_or_else(|| CallError::failed("the file is too short or too uniform for a TLSH"))?.hash();
    let text = String::from_utf8_lossy(&hash).to_lowercase();
    Ok(text.strip_prefix("t1").unwrap_or(&text).into())
}

/// The databases that a query has read.
#[derive(Default)]
struct Databases(Mutex<HashMap<String, Arc<maxminddb::Reader<Vec<u8>>>>>);

fn geoip(call: Call) -> Result<Value, CallError> {
    const MAX_DATABASES: usize = 5;
    let scope = call.scope();
    let name = call.string("db");
    let databases = scope.shared::<Databases>();
    let known = databases.0.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
    let database = match known {
        Some(database) => database,
        None => {
            let path = Arc::new(OsPath::for_accessor(name.as_str(), "file"));
            let mut reader = accessor::named(scope, "file")?.open(scope, &path)?;
            let content = read_up_to(&mut *reader, buffer_limit(scope), scope)?;
            let database = Arc::new(maxminddb::Reader::from_source(content).map_err(CallError::failed)?);
            let mut databases = databases.0.lock().unwrap_or_else(PoisonError::into_inner);
            if databases.len() >= MAX_DATABASES {
                databases.clear();
            }
            databases.insert(name, database.clone());
            database
        }
    };
    let address: IpAddr = call.string("ip").trim().parse().map_err(|_| CallError::failed("ip is not an address"))?;
    let found = database.lookup(address).map_err(CallError::failed)?;
    Ok(found.decode::<Node>().map_err(CallError::failed)?.map(Node::into_value).into())
}

#[cfg(test)]
mod tests {
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
    fn kinds_of_files_are_told_by_content() {
        assert_eq!(value("magic(path='hello world, this is text', accessor='data')"), r#""ASCII text, with no line terminators""#);
        assert_eq!(value("magic(path='one\r\ntwo\n', accessor='data')"), r#""ASCII text, with CRLF, LF line terminators""#);
        assert_eq!(value("magic(path='one\ntwo\n', accessor='data')"), r#""ASCII text""#);
        assert!(value("magic(path='/proc/self/exe')").contains("ELF 64-bit"));
        assert_eq!(
            value(
                "magic(path=unhex(string='89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489'), accessor='data', type='mime')"
            ),
            r#""image/png""#
        );
        assert_eq!(value("magic(path='x', accessor='data', type='nonsense')"), "null");
    }

    #[test]
    fn own_rules_come_first() {
        let rules = "0\\tstring\\tTALONFILE\\ttalon test file\\n!:mime\\tapplication/x-talon\\n";
        assert_eq!(value(&format!("magic(path='TALONFILE 1', accessor='data', magic='{rules}')")), r#""talon test file""#);
        assert_eq!(value(&format!("magic(path='TALONFILE 1', accessor='data', type='mime', magic='{rules}')")), r#""application/x-talon""#);
    }

    #[test]
    fn similar_files_have_similar_hashes() {
        let text: String = (0..200).map(|at| format!("{} ", at * at)).collect();
        let hash = value(&format!("tlsh_hash(path='{text}', accessor='data')"));
        assert_eq!(hash.len(), 72, "{hash}");
        assert_eq!(value("tlsh_hash(path='short', accessor='data')"), "null");
    }

    #[test]
    fn bad_databases_and_addresses_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mmdb");
        std::fs::write(&path, "no database").unwrap();
        assert_eq!(value(&format!("geoip(ip='192.0.2.1', db='{}')", path.display())), "null");
        assert_eq!(value("geoip(ip='192.0.2.1', db='/no/such/file')"), "null");
    }
}
