//! Secrets that queries name and never see: what the argument `secret` of built-ins leads to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use talon_vql::{CallError, Scope};

/// Where a host program keeps secrets.
pub trait SecretSource: Send + Sync {
    /// The secret `name` of type `kind` (`HTTP Secrets`, `Elastic Creds` …), for the principal of `scope`.
    ///
    /// # Errors
    /// There is none, or the principal may not use it.
    fn secret(&self, scope: &Scope, kind: &str, name: &str) -> Result<Secret, CallError>;

    /// Whether built-ins take credentials from secrets only (`security.vql_must_use_secrets`).
    fn enforced(&self) -> bool {
        false
    }
}

/// The secrets of the host program, as an extension of the environment.
#[derive(Clone)]
pub struct Secrets(pub Arc<dyn SecretSource>);

/// The fields of a secret.
#[derive(Clone, Default)]
pub struct Secret {
    /// Fields that are text. Those that were not set are empty or absent.
    pub fields: BTreeMap<String, String>,
    /// Fields that are maps of text (`extra_headers` …).
    pub maps: BTreeMap<String, BTreeMap<String, String>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(…)")
    }
}

impl Secret {
    /// A text field, if it is set.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a field says yes.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "y" | "yes" | "true" | "1"))
    }

    /// The entries of a map field.
    pub fn entries(&self, name: &str) -> impl Iterator<Item = (&str, &str)> {
        self.maps.get(name).into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// The secret that a call names with its argument `secret`, if it names one.
///
/// # Errors
/// There is none of that name, or secrets are enforced and the call names none.
pub(crate) fn of_call(call: &talon_vql::Call, kind: &str) -> Result<Option<Secret>, CallError> {
    let source = call.scope().extension::<Secrets>();
    match call.opt_string("secret").filter(|name| !name.is_empty()) {
        Some(name) => named(call.scope(), kind, &name).map(Some),
        None if source.is_some_and(|source| source.0.enforced()) => Err("Secrets are enforced - you must specify a secret name".into()),
        None => Ok(None),
    }
}

/// The secret `name`.
///
/// # Errors
/// There is none of that name, or none at all here.
pub(crate) fn named(scope: &Scope, kind: &str, name: &str) -> Result<Secret, CallError> {
    let source = scope.extension::<Secrets>().ok_or("there are no secrets here; the server keeps them for its own queries")?;
    source.0.secret(scope, kind, name)
}

/// Whether this scope may use only secrets.
pub(crate) fn enforced(scope: &Scope) -> bool {
    scope.extension::<Secrets>().is_some_and(|source| source.0.enforced())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_itself() {
        let fields = BTreeMap::from([("password".to_owned(), "hunter2".to_owned()), ("skip_verify".to_owned(), "Y".to_owned())]);
        let secret = Secret { fields, maps: BTreeMap::new() };
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_eq!((secret.text("password"), secret.text("user"), secret.flag("skip_verify")), (Some("hunter2"), None, true));
    }
}
