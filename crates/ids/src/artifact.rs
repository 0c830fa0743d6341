//! Artifacts, and the named queries (`Artifact/Source`) that results are filed under.

use std::fmt;
use std::str::FromStr;

use crate::{InvalidId, textual};

/// An artifact's dotted name: letters, digits, `_` and `.`; no part is empty or starts with a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactName(String);

impl ArtifactName {
    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

textual!(ArtifactName);

impl FromStr for ArtifactName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let part = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                && part.bytes().next().is_some_and(|first| !first.is_ascii_digit())
        };
        if text.len() <= 256 && text.split('.').all(part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId::new("an artifact name", text))
        }
    }
}

/// The name of a result table: an artifact, or one named source of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryName {
    /// The artifact.
    pub artifact: ArtifactName,
    /// The source, where the artifact names its sources.
    pub source: Option<String>,
}

impl fmt::Display for QueryName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            None => write!(out, "{}", self.artifact),
            Some(source) => write!(out, "{}/{source}", self.artifact),
        }
    }
}

impl fmt::Debug for QueryName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl From<ArtifactName> for QueryName {
    fn from(artifact: ArtifactName) -> Self {
        Self { artifact, source: None }
    }
}

impl FromStr for QueryName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (artifact, source) = match text.split_once('/') {
            None => (text, None),
            Some((artifact, source)) => (artifact, Some(source)),
        };
        let invalid = || InvalidId::new("an artifact or Artifact/Source name", text);
        let artifact = artifact.parse().map_err(|_| invalid())?;
        let good = |source: &str| (1..=128).contains(&source.len()) && source.chars().all(|c| !c.is_control() && c != '/');
        if source.is_some_and(|source| !good(source)) {
            return Err(invalid());
        }
        Ok(Self { artifact, source: source.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifact_names_are_dotted_symbols() {
        for good in ["Linux.Sys.Pslist", "Generic.Client.Info", "A", "Custom_1.x9"] {
            assert!(good.parse::<ArtifactName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "A..B", "A.1B", "A/B", "A B", "../A", "A."] {
            assert!(bad.parse::<ArtifactName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn query_names_split_once() {
        let name: QueryName = "Generic.Client.Info/BasicInformation".parse().unwrap();
        assert_eq!(name.source.as_deref(), Some("BasicInformation"));
        assert_eq!(name.to_string(), "Generic.Client.Info/BasicInformation");
        assert!("A/".parse::<QueryName>().is_err());
        assert!("A/b/c".parse::<QueryName>().is_err());
    }
}
