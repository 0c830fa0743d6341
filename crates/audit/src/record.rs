//! Records: what one line of the audit log says, and the two parts in which it is kept.
//!
//! The leaf is what the tree hashes and proves; of the details it has only a salted digest. The opening is the salt and the details, kept
//! beside the tree: it can be erased later without breaking a proof, and nobody can guess from the digest what it said.

use std::net::IpAddr;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use talon_crypto::{Rng, random_array, sha256};
use talon_ids::OrgId;

use crate::AuditError;

/// The longest details of a record, in bytes of JSON; longer ones are replaced by their digest. The limit comes from the files of the
/// log, which have two bytes for a length.
pub const MAX_DETAILS: usize = 60_000;

/// The random bytes in front of the details, which make their digest unguessable.
const SALT: usize = 32;

/// The longest text kept whole in details, in bytes.
const MAX_TEXT: usize = 8 << 10;

/// How deep details may nest.
const MAX_DEPTH: usize = 16;

/// What stands where a secret was.
pub const REDACTED: &str = "[redacted]";

/// Names of fields whose values never enter the log, wherever in the details they stand.
const SECRET_FIELDS: &[&str] = &[
    "access_key",
    "api_key",
    "client_secret",
    "credentials_key",
    "credentials_secret",
    "credentials_token",
    "default_password",
    "nonce",
    "oauth_client_secret",
    "password",
    "password_hash",
    "password_salt",
    "passwd",
    "private_key",
    "secret",
    "token",
    "zip_password",
];

/// At which moment of the action the record was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Before the action, which starts only when the record is durable.
    Intended,
    /// After it succeeded.
    Done,
    /// After it failed.
    Failed,
    /// Instead of it: the principal was not allowed.
    Denied,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Record {
    /// When, in nanoseconds since 1970 (UTC).
    pub time_ns: i64,
    /// In which organisation.
    #[serde(with = "org_text")]
    pub org: OrgId,
    /// Who: a user's name, or whatever a refused stranger called himself, cut to 256 bytes.
    pub principal: String,
    /// What, by its fixed name such as `user_create`.
    pub operation: String,
    /// At which moment.
    pub phase: Phase,
    /// With which arguments.
    pub details: Details,
    /// From where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpAddr>,
    /// In the course of which request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What came of it, for records made after the action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
}

impl Record {
    /// A record without details.
    #[must_use]
    pub fn new(time_ns: i64, org: OrgId, principal: &str, operation: &str, phase: Phase) -> Self {
        Self {
            time_ns,
            org,
            principal: cut(principal, 256).to_owned(),
            operation: cut(operation, 256).to_owned(),
            phase,
            details: Details::new(),
            remote: None,
            request_id: None,
            result: None,
        }
    }

    /// The two parts in which the log keeps the record, with the one JSON form of each: no spaces, fields in the order of their
    /// declaration. Details that are too long are replaced by their digest: a record is never refused for its length.
    pub(crate) fn seal(&self, rng: &dyn Rng) -> Result<Sealed, AuditError> {
        let no_form = |_| AuditError::Record("it has no JSON form");
        let mut details = serde_json::to_vec(&self.details).map_err(no_form)?;
        if details.len() > MAX_DETAILS {
            let digest = Details::new().number("_bytes", details.len() as u64).text("_sha256", &hex::encode(sha256(&details)));
            details = serde_json::to_vec(&digest).map_err(no_form)?;
        }
        let salt: [u8; SALT] = random_array(rng);
        let opening = [salt.as_slice(), &details].concat();
        let leaf = Leaf {
            time_ns: self.time_ns,
            org: self.org.clone(),
            principal: cut(&self.principal, 256).to_owned(),
            operation: cut(&self.operation, 256).to_owned(),
            phase: self.phase,
            details: hex::encode(sha256(&opening)),
            remote: self.remote,
            request_id: self.request_id.as_deref().map(|id| cut(id, 256).to_owned()),
            result: self.result.as_deref().map(|result| cut(result, 1024).to_owned()),
        };
        Ok(Sealed { leaf: serde_json::to_vec(&leaf).map_err(no_form)?, opening })
    }

    /// Puts the two parts together again. An erased opening is empty: the record has no details then.
    pub(crate) fn open(leaf: &[u8], opening: &[u8]) -> Result<Self, AuditError> {
        let leaf: Leaf = serde_json::from_slice(leaf).map_err(|_| AuditError::Record("it is not JSON of the expected shape"))?;
        let details = match opening.split_at_checked(SALT) {
            _ if opening.is_empty() => Details::new(),
            Some((_, details)) if hex::encode(sha256(opening)) == leaf.details => {
                serde_json::from_slice(details).map_err(|_| AuditError::Record("its details are not a JSON object"))?
            }
            _ => return Err(AuditError::Record("its details are not those that were recorded")),
        };
        Ok(Self {
            time_ns: leaf.time_ns,
            org: leaf.org,
            principal: leaf.principal,
            operation: leaf.operation,
            phase: leaf.phase,
            details,
            remote: leaf.remote,
            request_id: leaf.request_id,
            result: leaf.result,
        })
    }
}

/// A record in its two parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) leaf: Vec<u8>,
    pub(crate) opening: Vec<u8>,
}

/// What the tree holds of a record.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leaf {
    time_ns: i64,
    #[serde(with = "org_text")]
    org: OrgId,
    principal: String,
    operation: String,
    phase: Phase,
    /// SHA-256 of the opening, in hexadecimal.
    details: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remote: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<String>,
}

mod org_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use talon_ids::OrgId;

    pub(super) fn serialize<S: Serializer>(org: &OrgId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(org.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<OrgId, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// The arguments of an action, in order, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Details(IndexMap<String, Value>);

impl Details {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text. A long one is cut, with its length and digest beside it.
    #[must_use]
    pub fn text(self, key: &str, value: &str) -> Self {
        self.json(key, Value::String(value.to_owned()))
    }

    /// Adds a number.
    #[must_use]
    pub fn number(self, key: &str, value: u64) -> Self {
        self.json(key, value.into())
    }

    /// Adds a truth value.
    #[must_use]
    pub fn flag(self, key: &str, value: bool) -> Self {
        self.json(key, value.into())
    }

    /// Adds a list of texts.
    #[must_use]
    pub fn list<I>(self, key: &str, values: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.json(key, values.into_iter().map(|value| Value::String(value.as_ref().to_owned())).collect())
    }

    /// Says that a secret was given, without the secret.
    #[must_use]
    pub fn secret(mut self, key: &str) -> Self {
        self.0.insert(key.to_owned(), REDACTED.into());
        self
    }

    /// Adds structured data, such as a whole request. Fields with the names of secrets are redacted at any depth.
    #[must_use]
    pub fn json(mut self, key: &str, value: Value) -> Self {
        let value = if is_secret(key) { redacted(&value) } else { cleaned(value, 0) };
        self.0.insert(key.to_owned(), value);
        self
    }

    /// Looks a value up.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

fn is_secret(key: &str) -> bool {
    SECRET_FIELDS.iter().any(|secret| key.eq_ignore_ascii_case(secret))
}

/// An absent secret stays recognisable as absent.
fn redacted(value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::String(text) if text.is_empty() => Value::String(String::new()),
        _ => REDACTED.into(),
    }
}

fn cleaned(value: Value, depth: usize) -> Value {
    match value {
        _ if depth > MAX_DEPTH => "[too deep]".into(),
        Value::String(text) if text.len() > MAX_TEXT => {
            let digest = hex::encode(sha256(text.as_bytes()));
            format!("{}… [{} bytes, sha256 {digest}]", cut(&text, MAX_TEXT), text.len()).into()
        }
        Value::Array(items) => items.into_iter().map(|item| cleaned(item, depth + 1)).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| {
                let value = if is_secret(&key) { redacted(&value) } else { cleaned(value, depth + 1) };
                (key, value)
            })
            .collect(),
        plain => plain,
    }
}

/// The longest start of `text` that has at most `limit` bytes.
fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    fn record() -> Record {
        Record::new(1_700_000_000_123_456_789, "O123".parse().unwrap(), "alice", "user_create", Phase::Intended)
    }

    struct Fixed(u8);

    impl Rng for Fixed {
        fn fill(&self, out: &mut [u8]) {
            out.fill(self.0);
        }
    }

    #[test]
    fn the_two_parts() {
        let mut record = record();
        record.details = Details::new().text("username", "bob").list("org_ids", ["root", "O123"]).flag("new", true);
        record.remote = Some("192.0.2.7".parse().unwrap());
        record.request_id = Some("r1".to_owned());
        let sealed = record.seal(&Fixed(b'7')).unwrap();
        expect![[r#"{"time_ns":1700000000123456789,"org":"O123","principal":"alice","operation":"user_create","phase":"intended","details":"e4ddad0e777946eb9aca62ce79969828f6cdd58b0c0e12a9a5c3601afce001f7","remote":"192.0.2.7","request_id":"r1"}"#]].assert_eq(std::str::from_utf8(&sealed.leaf).unwrap());
        expect![[r#"77777777777777777777777777777777{"username":"bob","org_ids":["root","O123"],"new":true}"#]]
            .assert_eq(std::str::from_utf8(&sealed.opening).unwrap());
        assert_eq!(Record::open(&sealed.leaf, &sealed.opening).unwrap(), record);
    }

    #[test]
    fn the_leaf_says_nothing_of_the_details_and_binds_them() {
        let mut record = record();
        record.details = Details::new().text("username", "bob");
        let (one, other) = (record.seal(&Fixed(1)).unwrap(), record.seal(&Fixed(2)).unwrap());
        assert!(!String::from_utf8_lossy(&one.leaf).contains("bob"));
        assert_ne!(one.leaf, other.leaf, "the same details look alike");
        assert!(Record::open(&one.leaf, &other.opening).is_err());
        for at in 0..one.opening.len() {
            let mut changed = one.opening.clone();
            changed[at] ^= 1;
            assert!(Record::open(&one.leaf, &changed).is_err(), "{at}");
            assert!(at == 0 || Record::open(&one.leaf, &one.opening[..at]).is_err(), "{at}");
        }
        let erased = Record::open(&one.leaf, b"").unwrap();
        assert_eq!((erased.details, erased.principal), (Details::new(), record.principal));
    }

    #[test]
    fn secrets_never_enter() {
        let request = json!({"name": "z", "options": [{"Password": "hunter2", "token": "", "size": 3}], "nonce": null});
        let details = Details::new().json("request", request).secret("password").json("default_password", json!("hunter2"));
        let text = serde_json::to_string(&details).unwrap();
        expect![[r#"{"request":{"name":"z","nonce":null,"options":[{"Password":"[redacted]","size":3,"token":""}]},"password":"[redacted]","default_password":"[redacted]"}"#]].assert_eq(&text);
        assert!(!text.contains("hunter2"));
    }

    #[test]
    fn nothing_is_too_long_to_be_recorded() {
        let again = |record: &Record| {
            let sealed = record.seal(&Fixed(3)).unwrap();
            (sealed.leaf.len() + sealed.opening.len(), Record::open(&sealed.leaf, &sealed.opening).unwrap())
        };
        let mut record = record();
        record.details = Details::new().text("yaml", &"é".repeat(10_000));
        let (length, read) = again(&record);
        assert!(length < 2 * MAX_TEXT, "{length}");
        assert!(read.details.get("yaml").unwrap().as_str().unwrap().contains("… [20000 bytes, sha256 "));
        record.details = Details::new().list("many", std::iter::repeat_n("12345678", 10_000));
        record.principal = "x".repeat(100_000);
        record.result = Some("y".repeat(100_000));
        let (length, read) = again(&record);
        assert!(length < 2_000, "{length}");
        assert_eq!(read.details.get("_bytes"), Some(&json!(110_010)));
    }

    #[test]
    fn other_fields_are_refused() {
        let Sealed { leaf, opening } = record().seal(&Fixed(4)).unwrap();
        let text = String::from_utf8(leaf).unwrap();
        assert!(Record::open(text.as_bytes(), &opening).is_ok());
        assert!(Record::open(text.replace("\"phase\"", "\"stage\"").as_bytes(), &opening).is_err());
        assert!(Record::open(text.replace('{', "{\"x\":1,").as_bytes(), &opening).is_err());
    }
}
