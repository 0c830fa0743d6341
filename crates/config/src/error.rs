//! Why a configuration cannot be used: one line each, which says where, what, and what to do. Programs print it and exit with 64.

use std::fmt;

/// Where in a configuration something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, or what else the text came from.
    pub origin: String,
    /// The line, from 1; 0 when there is none.
    pub line: u64,
    /// The column, from 1.
    pub column: u64,
}

impl Place {
    /// A place that is a whole text.
    #[must_use]
    pub fn whole(origin: &str) -> Self {
        Self { origin: origin.to_owned(), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { out.write_str(&self.origin) } else { write!(out, "{}:{}:{}", self.origin, self.line, self.column) }
    }
}

/// Why a configuration cannot be used. No text contains a value of the configuration that could be a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: check the path and the permissions")]
    Unreadable {
        /// The file.
        path: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The text is not YAML, or a value has the wrong type.
    #[error("{place}: {problem}")]
    Syntax {
        /// Where.
        place: Place,
        /// What.
        problem: String,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key {key:?}: {}", cure_of_unknown(nearest.as_deref()))]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// The known key that it resembles most.
        nearest: Option<String>,
    },
    /// A key that is given twice.
    #[error("{place}: the key {key:?} is given twice: keep one of them")]
    DuplicateKey {
        /// Where the second one is.
        place: Place,
        /// The key.
        key: String,
    },
    /// A section or a key that must be there is not.
    #[error("{origin}: {text}: {cure}")]
    Missing {
        /// The file.
        origin: String,
        /// What is missing, in the words of stock programs.
        text: &'static str,
        /// What to do.
        cure: &'static str,
    },
    /// A private key or a certificate that cannot be used.
    #[error("{origin}: {key}: {problem}: put the PEM text back, or issue it anew")]
    KeyMaterial {
        /// The file.
        origin: String,
        /// The key of the configuration, dotted.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A value that makes no sense.
    #[error("{origin}: {key}: {problem}")]
    Value {
        /// The file.
        origin: String,
        /// The key of the configuration, dotted.
        key: &'static str,
        /// What is wrong, and what it should be.
        problem: String,
    },
    /// There is no configuration anywhere.
    #[error("Unable to load config from any source: give one with --config FILE, or set VELOCIRAPTOR_CONFIG to its path")]
    NoSource,
    /// Keys and certificates could not be made.
    #[error("keys and certificates could not be made")]
    Generate(#[source] talon_pki::PkiError),
    /// A configuration could not be written.
    #[error("the configuration could not be written as text")]
    Emit,
}

fn cure_of_unknown(nearest: Option<&str>) -> String {
    match nearest {
        Some(name) => format!("did you mean {name:?}?"),
        None => "remove it".to_owned(),
    }
}
