//! Organisations: the tenants of one deployment.

use std::str::FromStr;

use crate::{InvalidId, textual};

/// An organisation's id. The root organisation is `root` in text and empty on the wire.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OrgId(Option<String>);

impl OrgId {
    /// The root organisation, which always exists.
    #[must_use]
    pub fn root() -> Self {
        Self(None)
    }

    /// Whether this is the root organisation.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_none()
    }

    /// The text form: `root`, or `O…`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("root")
    }

    /// The form in messages, where the root organisation is the empty string.
    #[must_use]
    pub fn wire(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

textual!(OrgId);

impl FromStr for OrgId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if matches!(text, "" | "root") {
            return Ok(Self::root());
        }
        let body = text.strip_prefix('O').unwrap_or_default();
        let valid = (1..=32).contains(&body.len()) && body.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if valid { Ok(Self(Some(text.to_owned()))) } else { Err(InvalidId::new("an organisation id", text)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_organisation_has_two_spellings() {
        assert_eq!("".parse(), Ok(OrgId::root()));
        assert_eq!("root".parse(), Ok(OrgId::root()));
        assert_eq!(OrgId::root().wire(), "");
        assert_eq!(OrgId::root().to_string(), "root");
    }

    #[test]
    fn organisation_ids_carry_no_paths() {
        assert!("O123".parse::<OrgId>().is_ok());
        for bad in ["O", "X1", "O../x", "O1/2", "o123", "O 1"] {
            assert!(bad.parse::<OrgId>().is_err(), "{bad}");
        }
    }
}
