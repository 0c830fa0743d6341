//! Principals by name: users and API clients.

use std::str::FromStr;

use crate::{InvalidId, textual};

/// A user's name as stored, with its case. Compare through [`UserName::folded`]: names that differ only in case are one user.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(String);

impl UserName {
    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form under which the user is looked up.
    #[must_use]
    pub fn folded(&self) -> String {
        self.0.to_lowercase()
    }
}

textual!(UserName);

impl FromStr for UserName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let printable = text.chars().all(|c| {
            !c.is_control()
                && !matches!(c, '/' | '\\' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
        });
        let valid = (1..=256).contains(&text.len()) && printable && text.trim() == text && text != "." && text != "..";
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidId::new("a user name", text)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fold_to_one_user() {
        let name: UserName = "Alice@Example.com".parse().unwrap();
        assert_eq!(name.folded(), "alice@example.com");
        assert_eq!(name.as_str(), "Alice@Example.com");
    }

    #[test]
    fn names_have_no_paths_or_invisible_characters() {
        for bad in ["", " a", "a/b", "..", "a\nb", "a\u{202e}b", "a\u{200b}"] {
            assert!(bad.parse::<UserName>().is_err(), "{bad:?}");
        }
    }
}
