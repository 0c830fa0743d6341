//! JSON merge patches (RFC 7396) over a configuration.

use serde_json::Value;

use crate::emit::json;
use crate::schema::{Config, TalonSettings};
use crate::text::decode;
use crate::{ConfigError, Configuration, Place};

/// A merge patch: keys with values replace, keys with `null` remove, lists are replaced as a whole. A key `talon` is about Talon's own settings.
#[derive(Debug, Clone)]
pub struct MergePatch {
    origin: String,
    patch: Value,
}

impl MergePatch {
    /// Parses a patch. `origin` is the flag or the file that it came from.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`].
    pub fn parse(origin: &str, text: &str) -> Result<Self, ConfigError> {
        let syntax = |line: usize, column: usize, problem: &str| ConfigError::Syntax {
            place: Place { origin: origin.to_owned(), line: line as u64, column: column as u64 },
            problem: problem.to_owned(),
        };
        let patch: Value = serde_json::from_str(text)
            .map_err(|error| syntax(error.line(), error.column(), "this is not valid JSON: check quotes and commas around here"))?;
        if patch.is_object() { Ok(Self { origin: origin.to_owned(), patch }) } else { Err(syntax(1, 1, "this must be a JSON object")) }
    }
}

impl Configuration {
    /// This configuration with the patches applied in their order.
    ///
    /// # Errors
    /// [`ConfigError::UnknownKey`] or [`ConfigError::Syntax`], with the patch as the place.
    pub fn merge(self, patches: &[MergePatch]) -> Result<Self, ConfigError> {
        patches.iter().try_fold(self, |configuration, patch| configuration.merge_one(patch))
    }

    fn merge_one(self, MergePatch { origin, patch }: &MergePatch) -> Result<Self, ConfigError> {
        let mut patch = patch.clone();
        let own = patch.as_object_mut().and_then(|keys| keys.remove("talon"));
        let stock: Config = merged(origin, &json(&self.stock)?, &patch)?;
        let talon: TalonSettings = match own {
            None => self.talon,
            Some(own) => merged(origin, &json(&self.talon)?, &own)?,
        };
        Ok(Self { stock, talon, origin: self.origin })
    }
}

fn merged<T: serde::de::DeserializeOwned>(origin: &str, base: &str, patch: &Value) -> Result<T, ConfigError> {
    let base: Value = serde_json::from_str(base).map_err(|_| ConfigError::Emit)?;
    let text = serde_json::to_string(&apply(base, patch)).map_err(|_| ConfigError::Emit)?;
    decode(origin, &text, 0).map_err(|error| in_patch(origin, error))
}

/// RFC 7396, section 2. The depth is bounded by the JSON parser's.
fn apply(target: Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else { return patch.clone() };
    let mut keys = match target {
        Value::Object(keys) => keys,
        _ => serde_json::Map::new(),
    };
    for (key, change) in changes {
        if change.is_null() {
            keys.remove(key);
        } else {
            let before = keys.remove(key).unwrap_or(Value::Null);
            keys.insert(key.clone(), apply(before, change));
        }
    }
    Value::Object(keys)
}

/// Lines of the merged text mean nothing to the reader.
fn in_patch(origin: &str, error: ConfigError) -> ConfigError {
    match error {
        ConfigError::UnknownKey { key, nearest, .. } => ConfigError::UnknownKey { place: Place::whole(origin), key, nearest },
        ConfigError::Syntax { problem, .. } => {
            let problem = format!("a value in the patch has the wrong type: {problem}");
            ConfigError::Syntax { place: Place::whole(origin), problem }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(base: &str, patch: &str) -> Result<Configuration, ConfigError> {
        Configuration::from_text("f.yaml", base).unwrap().merge(&[MergePatch::parse("--merge", patch)?])
    }

    #[test]
    fn patches_replace_and_remove() {
        let base = "Client: {max_poll: 9, labels: [a], nonce: x}\nGUI: {bind_port: 1}\n";
        let merged = merge(base, r#"{"Client": {"max_poll": 5, "labels": ["b"], "nonce": null}, "GUI": null, "lockdown": true}"#).unwrap();
        let client = merged.stock.client.unwrap();
        assert_eq!((client.max_poll, client.labels, client.nonce.is_empty()), (5, vec!["b".to_owned()], true));
        assert!(merged.stock.gui.is_none() && merged.stock.lockdown);
    }

    #[test]
    fn own_settings_are_under_their_key() {
        let merged = merge("lockdown: true\n", r#"{"talon": {"server": {"audit": {"directory": "/a"}}}}"#).unwrap();
        assert_eq!(merged.talon.server.unwrap().audit.unwrap().directory, "/a");
        assert!(merged.stock.lockdown);
    }

    #[test]
    fn mistakes_are_named() {
        let refusal = |patch| merge("", patch).unwrap_err().to_string();
        assert_eq!(refusal(r#"{"Frontend": {"hostnam": "a"}}"#), r#"--merge: unknown key "hostnam": did you mean "hostname"?"#);
        assert_eq!(refusal("{"), "--merge:1:1: this is not valid JSON: check quotes and commas around here");
        assert_eq!(refusal("[]"), "--merge:1:1: this must be a JSON object");
        assert!(refusal(r#"{"Client": {"max_poll": "often"}}"#).starts_with("--merge: a value in the patch has the wrong type"));
    }
}
