//! What can be wrong with an artifact, by who can cure it.

use std::path::PathBuf;

use talon_ids::Permission;
use talon_vql::SyntaxError;

/// Why an artifact was refused or could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The author: the text is not YAML, or not of the right shape.
    #[error("{line}:{column}: {problem}")]
    Yaml {
        /// From 1.
        line: u64,
        /// From 1.
        column: u64,
        /// What is wrong there.
        problem: String,
    },
    /// The author: a key that no artifact has.
    #[error("{line}:{column}: unknown key \"{key}\"{}", .nearest.map_or_else(|| ": remove it".to_owned(), |nearest| format!(": did you mean \"{nearest}\"?")))]
    UnknownKey {
        /// From 1.
        line: u64,
        /// From 1.
        column: u64,
        /// The key.
        key: String,
        /// The known key that it resembles.
        nearest: Option<&'static str>,
    },
    /// The author: a rule of artifacts is broken.
    #[error("{artifact}: {problem}")]
    Invalid {
        /// The artifact's name as given.
        artifact: String,
        /// Which rule.
        problem: String,
    },
    /// The author: a query is not VQL.
    #[error("{artifact}: {part}{}: {error}", .line.map_or_else(String::new, |line| format!(" (line {line})")))]
    Vql {
        /// The artifact.
        artifact: String,
        /// `export`, `precondition`, `query of source X` …
        part: String,
        /// The line of the YAML text, from 1, if it came from one.
        line: Option<u64>,
        /// What the parser says; its places count from the start of the query.
        error: SyntaxError,
    },
    /// The caller: no artifact of this name.
    #[error("Unknown artifact {0}")]
    Unknown(String),
    /// The author: a query refers to an artifact that there is not.
    #[error("Unknown artifact reference {reference}")]
    UnknownReference {
        /// The artifact whose query it is.
        artifact: String,
        /// What it refers to.
        reference: String,
    },
    /// The author: the same for `imports`.
    #[error("Artifact {artifact} imports {import} which is not known.")]
    UnknownImport {
        /// The importing artifact.
        artifact: String,
        /// What it imports.
        import: String,
    },
    /// The caller: built-in artifacts and those that the configuration loads cannot be changed.
    #[error("Unable to override built in artifact {0}")]
    BuiltIn(String),
    /// The author: another artifact has this name.
    #[error("{artifact}: alias {alias} is taken by another artifact")]
    AliasTaken {
        /// The artifact.
        artifact: String,
        /// The name that both want.
        alias: String,
    },
    /// Denied: the caller may not launch collections.
    #[error("User {user} is not allowed to launch flows {permission}.")]
    LaunchDenied {
        /// The caller.
        user: String,
        /// What is missing.
        permission: Permission,
    },
    /// Denied: the artifact demands a permission that the caller lacks.
    #[error("While collecting artifact ({artifact}) permission denied {permission}")]
    RequiredPermission {
        /// The artifact.
        artifact: String,
        /// What is missing.
        permission: Permission,
    },
    /// The environment: an external file that the artifact needs cannot be offered.
    #[error("tool {tool} of artifact {artifact}: {problem}")]
    Tool {
        /// The artifact.
        artifact: String,
        /// The tool.
        tool: String,
        /// What is wrong.
        problem: String,
    },
    /// The environment: a folder or a file of definitions cannot be read, or is no pack.
    #[error("{}: {problem}", .path.display())]
    Pack {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The caller: more than one request may hold.
    #[error("the collection needs more than {0} dependencies or requests")]
    TooMany(usize),
}

impl ArtifactError {
    /// True when the cause is a missing permission.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::LaunchDenied { .. } | Self::RequiredPermission { .. })
    }

    pub(crate) fn invalid(artifact: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { artifact: artifact.into(), problem: problem.into() }
    }
}
