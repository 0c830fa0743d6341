//! Uploaded files: what an endpoint calls them, and names under which they may be stored.

use std::fmt;

use crate::InvalidId;

/// The accessor and components by which an endpoint names an uploaded file. Data, never a path: see [`UploadPath::stored`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadPath {
    accessor: String,
    components: Vec<String>,
}

impl UploadPath {
    /// At most this many components.
    pub const MAX_COMPONENTS: usize = 1024;
    /// At most this many bytes over all components.
    pub const MAX_BYTES: usize = 64 * 1024;

    /// Takes what an endpoint sent. An empty accessor is `auto`.
    ///
    /// # Errors
    /// When there are more components or bytes than the limits above.
    pub fn new(accessor: &str, components: Vec<String>) -> Result<Self, InvalidId> {
        let bytes: usize = components.iter().map(String::len).sum::<usize>() + accessor.len();
        if components.len() > Self::MAX_COMPONENTS || bytes > Self::MAX_BYTES {
            return Err(InvalidId::new("an upload path", components.last().map_or("", String::as_str)));
        }
        let accessor = if accessor.is_empty() { "auto" } else { accessor };
        Ok(Self { accessor: accessor.to_owned(), components })
    }

    /// The accessor that read the file.
    #[must_use]
    pub fn accessor(&self) -> &str {
        &self.accessor
    }

    /// The file's path on the endpoint, one component an element, as sent.
    #[must_use]
    pub fn components(&self) -> &[String] {
        &self.components
    }

    /// Accessor and components, each encoded to a name that no file system gives a meaning to.
    #[must_use]
    pub fn stored(&self) -> Vec<StoredName> {
        std::iter::once(&self.accessor).chain(&self.components).map(|part| StoredName::encode(part)).collect()
    }
}

/// One path component made harmless: never empty, never `.` or `..`, without separators or control bytes, under 250 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredName(String);

impl StoredName {
    const MAX_LEN: usize = 249;

    /// Encodes any text; different texts give different names, except past the length limit, where only a prefix is kept
    /// and the caller must add a digest of its own.
    #[must_use]
    pub fn encode(component: &str) -> Self {
        let bytes = component.as_bytes();
        let mut name = String::with_capacity(bytes.len());
        for (at, &byte) in bytes.iter().enumerate() {
            let edge_dot = byte == b'.' && (at == 0 || at + 1 == bytes.len());
            let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b'$' | b' ') || (byte == b'.' && !edge_dot);
            if plain {
                name.push(char::from(byte));
            } else {
                name.push_str(&format!("%{byte:02X}"));
            }
        }
        if name.is_empty() {
            name.push_str("%00empty");
        }
        name.truncate(Self::MAX_LEN);
        Self(name)
    }

    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the text was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.0.len() == Self::MAX_LEN
    }
}

impl fmt::Display for StoredName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for StoredName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_component_is_a_path() {
        let cases = [
            ("..", "%2E%2E"),
            (".", "%2E"),
            ("", "%00empty"),
            ("a/b", "a%2Fb"),
            ("\0", "%00"),
            ("x.", "x%2E"),
            ("é", "%C3%A9"),
            ("a.b", "a.b"),
        ];
        for (text, name) in cases {
            assert_eq!(StoredName::encode(text).as_str(), name, "{text:?}");
        }
        assert!(StoredName::encode(&"/".repeat(300)).as_str().len() < 250);
    }
}
