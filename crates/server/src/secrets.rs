//! Secrets: credentials that queries name and never see, sealed at rest with a key of their own, each for the users that it lists and nobody else.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use talon_acl::{Administer, Permit};
use talon_audit::{Details, Receipt};
use talon_crypto::{AeadKey, Zeroizing, hmac_sha256};
use talon_endpoint_vql::SecretSource;
use talon_ids::OrgId;
use talon_proto::{ModifySecretRequest, Secret, SecretDefinition};
use talon_store::{Scan, Space};
use talon_vql::{CallError, Environment, Registry, Scope, Value};

use crate::ServerError;
use crate::layout::{decode, get, put};
use crate::org::Org;
use crate::session::Session;

mod kinds;

use kinds::{KINDS, Kind};

/// The longest name, and the longest field, in bytes.
const MAX_NAME: usize = 256;
const MAX_FIELD: usize = 64 * 1024;

/// What seals secrets. Does not show itself.
#[derive(Clone)]
pub struct SecretsKey(Arc<Zeroizing<[u8; 32]>>);

impl SecretsKey {
    /// The key that follows from a text of the configuration, used for nothing else.
    #[must_use]
    pub fn derived_from(text: &str) -> Self {
        Self(Arc::new(Zeroizing::new(hmac_sha256(text.as_bytes(), &[b"talon secrets v1"]))))
    }

    fn cipher(&self) -> Result<AeadKey, ServerError> {
        AeadKey::new(&self.0).map_err(|error| ServerError::Configuration(error.to_string()))
    }
}

/// Binds what is sealed to its place: it opens nowhere else.
fn context(org: &OrgId, kind: &str, name: &str) -> Vec<u8> {
    [org.as_str().as_bytes(), &[0], kind.as_bytes(), &[0], name.as_bytes()].concat()
}

fn secret_key(kind: &str, name: &str) -> Vec<u8> {
    [b"secret\0", kind.as_bytes(), &[0], name.as_bytes()].concat()
}

fn kind_of(name: &str) -> Result<&'static Kind, ServerError> {
    KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| ServerError::invalid(format!("there is no type of secret {name}")))
}

fn not_found() -> ServerError {
    ServerError::NotFound { what: "Secret", name: String::new() }
}

impl Session {
    /// Writes a secret. Until users are added to it, nobody may use it.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::Invalid`] for an unknown type, or for fields that do not make a whole.
    pub fn add_secret(&self, secret: &Secret) -> Result<(), ServerError> {
        let permit = self.authority().permit::<Administer>()?;
        let details = Details::new().text("type", &secret.type_name).text("name", &secret.name).secret("secret");
        let receipt = self.record("secret_add", details)?;
        self.org().add_secret(&permit, receipt, secret)
    }

    /// Changes who may use a secret, or deletes it.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotFound`].
    pub fn modify_secret(&self, change: &ModifySecretRequest) -> Result<(), ServerError> {
        let permit = self.authority().permit::<Administer>()?;
        let details = Details::new()
            .text("type", &change.type_name)
            .text("name", &change.name)
            .flag("delete", change.delete)
            .flag("visible_to_all_orgs", change.visible_to_all_orgs)
            .list("add_users", &change.add_users)
            .list("remove_users", &change.remove_users)
            .list("add_orgs", &change.add_orgs)
            .list("remove_orgs", &change.remove_orgs);
        let receipt = self.record("secret_modify", details)?;
        self.org().modify_secret(&permit, receipt, change)
    }

    /// A secret without its fields.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotFound`].
    pub fn secret(&self, kind: &str, name: &str) -> Result<Secret, ServerError> {
        self.authority().permit::<Administer>()?;
        let (_, secret) = self.org().find_secret(kind, name)?.ok_or_else(not_found)?;
        Ok(Secret { encrypted_secret: bytes::Bytes::new(), ..secret })
    }

    /// The types of secrets, and the names of those that this organisation has.
    ///
    /// # Errors
    /// When storage fails.
    pub fn secret_definitions(&self) -> Result<Vec<SecretDefinition>, ServerError> {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let mut definitions = Vec::new();
        for kind in KINDS {
            definitions.push(SecretDefinition {
                type_name: kind.name.to_owned(),
                verifier: kind.verifier.to_owned(),
                secret_names: self.org().secret_names(kind.name)?,
                template: kind.template.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
                description: kind.description.to_owned(),
                built_in: true,
                fields: texts(kind.fields),
                yaml_fields: texts(kind.maps),
            });
        }
        Ok(definitions)
    }
}

impl Org {
    fn add_secret(&self, permit: &Permit<Administer>, receipt: Receipt, secret: &Secret) -> Result<(), ServerError> {
        self.own(permit)?;
        drop(receipt);
        let kind = kind_of(&secret.type_name)?;
        if secret.name.is_empty() || secret.name.len() > MAX_NAME || secret.name.chars().any(char::is_control) {
            return Err(ServerError::invalid(format!("a secret has a name of 1 to {MAX_NAME} bytes")));
        }
        let fields = whole(kind, &secret.secret)?;
        let plain = Zeroizing::new(serde_json::to_vec(&fields).map_err(|error| ServerError::invalid(error.to_string()))?);
        let cipher = self.shared().settings.secrets_key.cipher()?;
        let sealed = cipher.seal(self.rng(), &context(self.id(), kind.name, &secret.name), &plain);
        let stored = Secret {
            name: secret.name.clone(),
            type_name: kind.name.to_owned(),
            users: secret.users.clone(),
            description: secret.description.clone(),
            encrypted_secret: sealed.map_err(|error| ServerError::Configuration(error.to_string()))?.into(),
            orgs: secret.orgs.clone(),
            visible_to_all_orgs: secret.visible_to_all_orgs,
            ..Secret::default()
        };
        let org = self.id().clone();
        self.submit(move |txn| {
            txn.put(&org, Space::Settings, &secret_key(&stored.type_name, &stored.name), stored.encode_to_vec());
            Ok(())
        })
        .wait()
    }

    fn modify_secret(&self, permit: &Permit<Administer>, receipt: Receipt, change: &ModifySecretRequest) -> Result<(), ServerError> {
        self.own(permit)?;
        drop(receipt);
        let (org, change) = (self.id().clone(), change.clone());
        self.submit(move |txn| {
            let key = secret_key(&change.type_name, &change.name);
            let mut secret: Secret = get(&*txn, &org, Space::Settings, &key)?.ok_or_else(not_found)?;
            if change.delete {
                txn.delete(&org, Space::Settings, &key);
                return Ok(());
            }
            follow(&mut secret.users, &change.add_users, &change.remove_users);
            follow(&mut secret.orgs, &change.add_orgs, &change.remove_orgs);
            secret.visible_to_all_orgs = change.visible_to_all_orgs;
            put(txn, &org, Space::Settings, &key, &secret);
            Ok(())
        })
        .wait()
    }

    fn secret_names(&self, kind: &str) -> Result<Vec<String>, ServerError> {
        let prefix = secret_key(kind, "");
        let mut names = Vec::new();
        for (key, value) in self.reader().scan(self.id(), Space::Settings, &Scan { prefix, ..Scan::default() })? {
            names.push(decode::<Secret>(Space::Settings, &key, &value)?.name);
        }
        Ok(names)
    }

    /// The secret of this organisation, or one of the root organisation that is shared with it; and whose it is.
    fn find_secret(&self, kind: &str, name: &str) -> Result<Option<(OrgId, Secret)>, ServerError> {
        let key = secret_key(kind, name);
        if let Some(own) = get::<Secret>(self.reader(), self.id(), Space::Settings, &key)? {
            return Ok(Some((self.id().clone(), own)));
        }
        let root = OrgId::root();
        let shared: Option<Secret> = get(self.reader(), &root, Space::Settings, &key)?;
        let here = |secret: &Secret| secret.visible_to_all_orgs || secret.orgs.iter().any(|org| org == self.id().as_str());
        Ok(shared.filter(here).map(|secret| (root, secret)))
    }

    fn open_secret(&self, owner: &OrgId, secret: &Secret) -> Result<BTreeMap<String, String>, ServerError> {
        let damaged = || ServerError::Configuration("the secret was sealed with another key, or was changed: write it again".into());
        let cipher = self.shared().settings.secrets_key.cipher()?;
        let plain = cipher.open(&context(owner, &secret.type_name, &secret.name), &secret.encrypted_secret).map_err(|_| damaged())?;
        let plain = Zeroizing::new(plain);
        serde_json::from_slice(&plain).map_err(|_| damaged())
    }
}

fn follow(list: &mut Vec<String>, add: &[String], remove: &[String]) {
    list.retain(|name| !remove.contains(name));
    for name in add {
        if !list.contains(name) {
            list.push(name.clone());
        }
    }
}

/// The fields of a kind: unknown ones are dropped, missing ones empty; refused unless they make a whole.
fn whole<'a>(kind: &Kind, given: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<BTreeMap<String, String>, ServerError> {
    let given: BTreeMap<&str, &str> = given.into_iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let field = |name: &&str| ((*name).to_owned(), given.get(name).copied().unwrap_or_default().to_owned());
    let fields: BTreeMap<String, String> = kind.fields.iter().map(field).collect();
    let invalid = || ServerError::invalid(format!("Unable to verify secret for type {}", kind.name));
    if fields.values().any(|value| value.len() > MAX_FIELD) || kind.maps.iter().any(|name| map_of(fields.get(*name)).is_none()) {
        return Err(invalid());
    }
    let scope = Environment::new(Arc::new(Registry::core())).open();
    let row: talon_vql::Dict = fields.iter().map(|(key, value)| (key.clone(), Value::str(value.as_str()))).collect();
    let sound = scope.lambda(&kind.verifier.into()).is_some_and(|verifier| {
        let verdict = verifier.call(&scope, &[row.into()]);
        talon_vql::ops::truth(&verdict, &scope)
    });
    if sound { Ok(fields) } else { Err(invalid()) }
}

/// A field that is a map of texts in YAML.
fn map_of(text: Option<&String>) -> Option<BTreeMap<String, String>> {
    match text.map(String::as_str).map(str::trim) {
        None | Some("") => Some(BTreeMap::new()),
        Some(text) => serde_saphyr::from_str(text).ok(),
    }
}

/// Hands secrets to built-ins, for the principal of the query.
pub(crate) struct Keeper {
    pub(crate) enforced: bool,
}

impl SecretSource for Keeper {
    fn secret(&self, scope: &Scope, kind: &str, name: &str) -> Result<talon_endpoint_vql::Secret, CallError> {
        let session = scope.extension::<Session>().ok_or("this query does not run on a server")?;
        let org = session.org();
        let found = org.find_secret(kind, name).map_err(CallError::failed)?;
        let allowed = |secret: &Secret| secret.users.iter().any(|user| user == session.principal().as_str());
        // What does not exist and what is another's look alike.
        let Some((owner, secret)) = found.filter(|(_, secret)| allowed(secret)) else {
            return Err(CallError::failed(format!("Permission Denied accessing secret {name}")));
        };
        let mut fields = org.open_secret(&owner, &secret).map_err(CallError::failed)?;
        let maps = kind_of(kind).map(|kind| kind.maps).unwrap_or_default();
        let maps = maps.iter().map(|&name| (name.to_owned(), map_of(fields.remove(name).as_ref()).unwrap_or_default())).collect();
        Ok(talon_endpoint_vql::Secret { fields, maps })
    }

    fn enforced(&self) -> bool {
        self.enforced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(fields: &[(&str, &str)]) -> BTreeMap<String, String> {
        fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn no_kind_takes_nothing() {
        for kind in KINDS {
            assert!(whole(kind, &given(&[])).is_err(), "{}", kind.name);
            assert!(kind.maps.iter().all(|map| kind.fields.contains(map)), "{}", kind.name);
        }
    }

    #[test]
    fn fields_must_make_a_whole() {
        let http = kind_of("HTTP Secrets").unwrap();
        let fields = whole(http, &given(&[("url", "https://a/"), ("nosuch", "x"), ("extra_headers", "A: b")])).unwrap();
        assert!(!fields.contains_key("nosuch") && fields["method"].is_empty());
        for bad in [&[("url", "https://a/"), ("method", "TRACE")][..], &[("url", "u"), ("cookies", "[")], &[("method", "GET")]] {
            assert!(whole(http, &given(bad)).is_err(), "{bad:?}");
        }
        let ssh = kind_of("SSH PrivateKey").unwrap();
        assert!(whole(ssh, &given(&[("username", "u"), ("hostname", "h")])).is_err());
        assert!(whole(ssh, &given(&[("username", "u"), ("hostname", "h"), ("password", "p")])).is_ok());
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_only() {
        let cipher = SecretsKey::derived_from("text").cipher().unwrap();
        let sealed = cipher.seal(&talon_crypto::SystemRng, &context(&OrgId::root(), "k", "n"), b"{}").unwrap();
        assert!(cipher.open(&context(&OrgId::root(), "k", "n"), &sealed).is_ok());
        for other in [context(&OrgId::root(), "k", "m"), context(&"O123".parse().unwrap(), "k", "n")] {
            assert!(cipher.open(&other, &sealed).is_err());
        }
        assert!(SecretsKey::derived_from("other").cipher().unwrap().open(&context(&OrgId::root(), "k", "n"), &sealed).is_err());
    }
}
