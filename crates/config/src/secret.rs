//! Secrets of the configuration: not shown, compared in constant time, wiped, and written only by the functions made for it.

use std::cell::Cell;
use std::fmt;

use serde::de::Visitor;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use talon_crypto::{Zeroizing, constant_time_eq};

thread_local! {
    static REVEALED: Cell<bool> = const { Cell::new(false) };
}

/// A key, a password or another secret text. Its `Debug` form is a placeholder; serializing it fails outside of the emission of configurations.
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        constant_time_eq(self.0.as_bytes(), other.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.is_empty() { "[no secret]" } else { "[secret]" })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::new(text))
            }

            fn visit_string<E>(self, text: String) -> Result<Secret, E> {
                Ok(Secret(Zeroizing::new(text)))
            }
        }

        deserializer.deserialize_string(Text)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if REVEALED.get() {
            serializer.serialize_str(self.expose())
        } else {
            Err(S::Error::custom("a secret is not serialized by accident"))
        }
    }
}

/// Runs `emit` with secrets serializable on this thread: the one door through which they get into a file.
pub(crate) fn revealing<T>(emit: impl FnOnce() -> T) -> T {
    struct Restore(bool);

    impl Drop for Restore {
        fn drop(&mut self) {
            REVEALED.set(self.0);
        }
    }

    let _restore = Restore(REVEALED.replace(true));
    emit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "[secret]");
        assert!(serde_json::to_string(&secret).is_err());
        assert_eq!(revealing(|| serde_json::to_string(&secret)).unwrap(), "\"hunter2\"");
        assert!(serde_json::to_string(&secret).is_err());
    }

    #[test]
    fn the_door_closes_when_the_emitter_panics() {
        assert!(std::panic::catch_unwind(|| revealing(|| panic!("emitter"))).is_err());
        assert!(serde_json::to_string(&Secret::new("hunter2")).is_err());
    }
}
