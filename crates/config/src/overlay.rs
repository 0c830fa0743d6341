//! Overrides of single keys, from the environment and from flags, laid over the typed configuration.

use figment::providers::Env;
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::secret::revealing;
use crate::text::decode;
use crate::{ConfigError, Place};

/// Variables with this prefix override keys: `TALON__Frontend__bind_port=8443`.
pub const ENVIRONMENT_PREFIX: &str = "TALON__";

/// One override: a dotted path of keys, and the value as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Override {
    origin: String,
    path: Vec<String>,
    value: String,
}

impl Override {
    /// The override of a flag: `Frontend.bind_port=8443`.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] when there is no `=`.
    pub fn from_flag(flag: &str) -> Result<Self, ConfigError> {
        match flag.split_once('=') {
            Some((path, value)) if !path.is_empty() => {
                Ok(Self { origin: format!("--set {path}"), path: path.split('.').map(str::to_owned).collect(), value: value.to_owned() })
            }
            _ => Err(ConfigError::Syntax {
                place: Place::whole("--set"),
                problem: "this must be KEY=VALUE, as Frontend.bind_port=8443".to_owned(),
            }),
        }
    }

    /// The overrides in this process's environment.
    #[must_use]
    pub fn from_environment() -> Vec<Self> {
        let env = Env::prefixed(ENVIRONMENT_PREFIX).lowercase(false);
        env.iter().map(|(name, value)| Self::from_variable(name.as_str(), value)).collect()
    }

    fn from_variable(name: &str, value: String) -> Self {
        Self { origin: format!("{ENVIRONMENT_PREFIX}{name}"), path: name.split("__").map(str::to_owned).collect(), value }
    }

    /// Whether it is about Talon's own settings.
    pub(crate) fn is_own(&self) -> bool {
        self.path.first().is_some_and(|first| first == "talon")
    }

    pub(crate) fn without_first(&self) -> Self {
        Self { path: self.path.iter().skip(1).cloned().collect(), ..self.clone() }
    }
}

impl std::fmt::Debug for Override {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("Override").field(&self.origin).finish()
    }
}

/// `base` with the overrides laid over it, in their order. Values are typed by the schema: a text stays a text, whatever it looks like.
pub(crate) fn overlay<T: Serialize + DeserializeOwned>(base: &T, overrides: &[Override]) -> Result<T, ConfigError> {
    let mut layers = vec![revealing(|| dict(base))?];
    for change in overrides {
        let layer = revealing(|| dict(&typed::<T>(change)?))?;
        if !contains(&layer, &change.path) {
            // The value is the zero value of its type, which is not written: taking the key away is what sets it.
            layers.iter_mut().for_each(|layer| remove(layer, &change.path));
        }
        layers.push(layer);
    }
    let figment = layers.into_iter().fold(Figment::new(), |figment, layer| figment.merge(Layer(layer)));
    figment.extract().map_err(|_| ConfigError::Emit)
}

/// The override alone, as the schema reads it: first as a text, then as whatever else it can be.
fn typed<T: DeserializeOwned>(change: &Override) -> Result<T, ConfigError> {
    let quoted = serde_json::to_string(&change.value).map_err(|_| ConfigError::Emit)?;
    let document = |value: &str| {
        let mut text = String::new();
        for (depth, key) in change.path.iter().enumerate() {
            let key = serde_json::to_string(key).unwrap_or_default();
            text.push_str(&format!("\n{}{key}:", " ".repeat(depth)));
        }
        format!("{text} {value}\n")
    };
    let as_text = decode(&change.origin, &document(&quoted), 0);
    let plain = !change.value.contains(['\n', '\r']);
    match as_text {
        Err(ConfigError::Syntax { .. }) if plain => decode(&change.origin, &document(&change.value), 0),
        other => other,
    }
    .map_err(without_line)
}

/// Overrides have no lines of their own.
fn without_line(error: ConfigError) -> ConfigError {
    let whole = |place: Place| Place::whole(&place.origin);
    match error {
        ConfigError::Syntax { place, problem } => ConfigError::Syntax { place: whole(place), problem },
        ConfigError::UnknownKey { place, key, nearest } => ConfigError::UnknownKey { place: whole(place), key, nearest },
        other => other,
    }
}

fn dict(value: &impl Serialize) -> Result<Dict, ConfigError> {
    match Value::serialize(value) {
        Ok(Value::Dict(_, dict)) => Ok(dict),
        _ => Err(ConfigError::Emit),
    }
}

fn contains(dict: &Dict, path: &[String]) -> bool {
    match path {
        [] => true,
        [key, rest @ ..] => match dict.get(key) {
            Some(Value::Dict(_, inner)) => contains(inner, rest),
            Some(_) => rest.is_empty(),
            None => false,
        },
    }
}

fn remove(dict: &mut Dict, path: &[String]) {
    match path {
        [] => {}
        [key] => {
            dict.remove(key);
        }
        [key, rest @ ..] => {
            if let Some(Value::Dict(_, inner)) = dict.get_mut(key) {
                remove(inner, rest);
            }
        }
    }
}

struct Layer(Dict);

impl figment::Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named("configuration")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Map::from([(Profile::Default, self.0.clone())]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn config(text: &str) -> Config {
        decode("f.yaml", text, 0).unwrap()
    }

    fn with(base: &Config, flags: &[&str]) -> Result<Config, ConfigError> {
        let overrides: Vec<_> = flags.iter().map(|flag| Override::from_flag(flag).unwrap()).collect();
        overlay(base, &overrides)
    }

    #[test]
    fn values_get_the_type_of_their_key() {
        let base = config("CA:\n  private_key: hunter2\nClient:\n  labels: [old]\n  max_poll: 9\n");
        let flags = [
            "Client.max_poll=5",
            "Client.writeback_linux=010",
            "lockdown=yes",
            "Client.labels=[a, 'b']",
            "Client.nonce=y",
            "API.hostname=no",
        ];
        let changed = with(&base, &flags).unwrap();
        let client = changed.client.unwrap();
        assert_eq!((client.max_poll, client.writeback_linux.as_str(), changed.lockdown), (5, "010", true));
        assert_eq!((client.labels, client.nonce.expose()), (vec!["a".to_owned(), "b".to_owned()], "y"));
        assert_eq!(changed.api.unwrap().hostname, "no");
        assert_eq!(changed.ca, base.ca);
    }

    #[test]
    fn a_zero_value_overrides_too() {
        let base = config("lockdown: true\nClient:\n  max_poll: 9\n  nonce: x\n");
        let changed = with(&base, &["lockdown=false", "Client.max_poll=0", "Client.nonce="]).unwrap();
        assert_eq!((changed.lockdown, changed.client), (false, Some(crate::Client::default())));
        let twice = with(&base, &["Client.max_poll=0", "Client.max_poll=7"]).unwrap();
        assert_eq!(twice.client.unwrap().max_poll, 7);
    }

    #[test]
    fn variables_name_keys_with_double_underscores() {
        let change = Override::from_variable("Frontend__GRPC_pool_max_size", "7".to_owned());
        assert_eq!(overlay(&Config::default(), &[change]).unwrap().frontend.unwrap().grpc_pool_max_size, 7);
    }

    #[test]
    fn mistakes_are_named() {
        let refusal = |flag| with(&Config::default(), &[flag]).unwrap_err().to_string();
        assert_eq!(refusal("Frontend.bind_prot=1"), r#"--set Frontend.bind_prot: unknown key "bind_prot": did you mean "bind_port"?"#);
        assert_eq!(refusal("Client.max_poll=soon"), "--set Client.max_poll: this must be a whole number in its range, without quotes");
        assert!(Override::from_flag("lockdown").is_err());
        // One override sets one key.
        assert!(with(&Config::default(), &["Client.max_poll=1\n  min_poll: 2"]).is_err());
        assert!(with(&Config::default(), &["Client.max_poll=1, min_poll: 2"]).is_err());
    }
}
