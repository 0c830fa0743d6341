//! Where a configuration comes from: a file, or the environment, with overrides of single keys on top.

use std::path::{Path, PathBuf};

use crate::overlay::overlay;
use crate::schema::{ApiClientConfig, Config, TalonSettings};
use crate::text::{decode, read};
use crate::{ConfigError, Override};

/// The environment variable with the path of a configuration.
pub const CONFIG_VARIABLE: &str = "VELOCIRAPTOR_CONFIG";
/// The environment variable with a configuration as text.
pub const LITERAL_CONFIG_VARIABLE: &str = "VELOCIRAPTOR_LITERAL_CONFIG";
/// The environment variable with the path of an API client's configuration.
pub const API_CONFIG_VARIABLE: &str = "VELOCIRAPTOR_API_CONFIG";

/// A configuration as it was read: every key is known and has its type, nothing else is checked yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// The stock document.
    pub stock: Config,
    /// Talon's own settings.
    pub talon: TalonSettings,
    /// The file's path, or what else it came from: the beginning of every message about it.
    pub origin: String,
}

impl Configuration {
    /// Reads a text.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`], [`ConfigError::UnknownKey`] or [`ConfigError::DuplicateKey`].
    pub fn from_text(origin: &str, text: &str) -> Result<Self, ConfigError> {
        let (stock, talon) = read(origin, text)?;
        Ok(Self { stock, talon, origin: origin.to_owned() })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`], or as [`Configuration::from_text`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Self::from_text(&path.display().to_string(), &read_file(path)?)
    }

    /// This configuration with overrides laid over it.
    ///
    /// # Errors
    /// When one of them names no key or has a value of the wrong type.
    pub fn with_overrides(self, overrides: &[Override]) -> Result<Self, ConfigError> {
        if overrides.is_empty() {
            return Ok(self);
        }
        let (own, stock): (Vec<_>, Vec<_>) = overrides.iter().cloned().partition(Override::is_own);
        let own: Vec<_> = own.iter().map(Override::without_first).collect();
        Ok(Self { stock: overlay(&self.stock, &stock)?, talon: overlay(&self.talon, &own)?, origin: self.origin })
    }
}

/// Finds the configuration: the file that was named, else what the environment names.
///
/// ```no_run
/// let configuration = talon_config::Loader::from_process().file(Some("server.config.yaml".into())).load()?;
/// let server = talon_config::ServerConfig::new(configuration)?;
/// # Ok::<(), talon_config::ConfigError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Loader {
    file: Option<PathBuf>,
    path_variable: Option<PathBuf>,
    literal_variable: Option<String>,
    overrides: Vec<Override>,
}

impl Loader {
    /// A loader that looks at this process's environment after the file.
    #[must_use]
    pub fn from_process() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            file: None,
            path_variable: set(CONFIG_VARIABLE).map(PathBuf::from),
            literal_variable: set(LITERAL_CONFIG_VARIABLE).and_then(|text| text.into_string().ok()),
            overrides: Override::from_environment(),
        }
    }

    /// The file that the command line names.
    #[must_use]
    pub fn file(self, file: Option<PathBuf>) -> Self {
        Self { file, ..self }
    }

    /// Overrides of the command line, which go over those of the environment.
    #[must_use]
    pub fn overrides(mut self, overrides: Vec<Override>) -> Self {
        self.overrides.extend(overrides);
        self
    }

    /// Loads the first source that there is. A source that is there and bad is an error, never a reason to look further.
    ///
    /// # Errors
    /// [`ConfigError::NoSource`], or as [`Configuration::from_file`] and [`Configuration::with_overrides`].
    pub fn load(&self) -> Result<Configuration, ConfigError> {
        let configuration = match (self.file.as_ref().or(self.path_variable.as_ref()), &self.literal_variable) {
            (Some(path), _) => Configuration::from_file(path)?,
            (None, Some(text)) => Configuration::from_text(LITERAL_CONFIG_VARIABLE, text)?,
            (None, None) => return Err(ConfigError::NoSource),
        };
        configuration.with_overrides(&self.overrides)
    }
}

impl ApiClientConfig {
    /// Reads the text of an `api.config.yaml`.
    ///
    /// # Errors
    /// As [`Configuration::from_text`].
    pub fn from_text(origin: &str, text: &str) -> Result<Self, ConfigError> {
        decode(origin, text, 0)
    }

    /// Reads an `api.config.yaml`.
    ///
    /// # Errors
    /// As [`Configuration::from_file`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Self::from_text(&path.display().to_string(), &read_file(path)?)
    }
}

fn read_file(path: &Path) -> Result<talon_crypto::Zeroizing<String>, ConfigError> {
    let unreadable = |source: std::io::Error| ConfigError::Unreadable { path: path.display().to_string(), source };
    std::fs::read_to_string(path).map(talon_crypto::Zeroizing::new).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_file_goes_before_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (named, variable, bad) = (write("a", "org_id: a"), write("b", "org_id: b"), write("c", "org_di: c"));
        let literal = Loader { literal_variable: Some("org_id: l".to_owned()), ..Loader::default() };
        let with_variable = Loader { path_variable: Some(variable), ..literal.clone() };
        let org = |loader: &Loader| loader.load().map(|configuration| configuration.stock.org_id).map_err(|error| error.to_string());
        assert_eq!(org(&literal), Ok("l".to_owned()));
        assert_eq!(org(&with_variable), Ok("b".to_owned()));
        assert_eq!(org(&with_variable.clone().file(Some(named))), Ok("a".to_owned()));
        assert!(org(&with_variable.clone().file(Some(bad))).unwrap_err().contains("did you mean \"org_id\"?"));
        assert!(org(&with_variable.file(Some("/nonexistent/x".into()))).unwrap_err().contains("check the path"));
        assert!(matches!(Loader::default().load(), Err(ConfigError::NoSource)));
    }

    #[test]
    fn overrides_reach_both_documents() {
        let base = Configuration::from_text("f.yaml", "org_id: a\n---\ntalon:\n  server:\n    audit:\n      origin: a\n").unwrap();
        let flags = ["org_id=b", "talon.server.audit.origin=b", "talon.server.audit.directory=/c"];
        let overrides: Vec<_> = flags.iter().map(|flag| Override::from_flag(flag).unwrap()).collect();
        let changed = base.with_overrides(&overrides).unwrap();
        let audit = changed.talon.server.and_then(|server| server.audit).unwrap();
        assert_eq!((changed.stock.org_id.as_str(), audit.origin.as_str(), audit.directory.as_str()), ("b", "b", "/c"));
    }
}
