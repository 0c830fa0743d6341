//! Writing a configuration: keys in their order of declaration, long texts as literal blocks. This is where secrets get into a file.

use serde::Serialize;
use talon_crypto::Zeroizing;

use crate::schema::{ApiClientConfig, TalonSettings};
use crate::secret::revealing;
use crate::{ConfigError, Configuration};

/// The second document of a file.
#[derive(Serialize)]
struct TalonDocument<'a> {
    talon: &'a TalonSettings,
}

impl Configuration {
    /// The file: the stock document, and the second one if there are settings of Talon's own. Contains every secret of the configuration.
    ///
    /// # Errors
    /// [`ConfigError::Emit`].
    pub fn to_yaml(&self) -> Result<Zeroizing<String>, ConfigError> {
        let mut text = yaml(&self.stock)?;
        if self.talon != TalonSettings::default() {
            text.push_str("---\n");
            text.push_str(&yaml(&TalonDocument { talon: &self.talon })?);
        }
        Ok(text)
    }

    /// The stock document as JSON in one line. Contains every secret of the configuration.
    ///
    /// # Errors
    /// [`ConfigError::Emit`].
    pub fn to_json(&self) -> Result<Zeroizing<String>, ConfigError> {
        json(&self.stock)
    }
}

impl ApiClientConfig {
    /// The text of an `api.config.yaml`. Contains the private key.
    ///
    /// # Errors
    /// [`ConfigError::Emit`].
    pub fn to_yaml(&self) -> Result<Zeroizing<String>, ConfigError> {
        yaml(self)
    }
}

pub(crate) fn yaml(value: &impl Serialize) -> Result<Zeroizing<String>, ConfigError> {
    // Nothing is folded: certificates and icons stay on the lines that they have.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX, min_fold_chars: usize::MAX };
    revealing(|| serde_saphyr::to_string_with_options(value, options)).map(Zeroizing::new).map_err(|_| ConfigError::Emit)
}

pub(crate) fn json(value: &impl Serialize) -> Result<Zeroizing<String>, ConfigError> {
    revealing(|| serde_json::to_string(value)).map(Zeroizing::new).map_err(|_| ConfigError::Emit)
}
