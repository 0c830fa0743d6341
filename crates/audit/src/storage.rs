//! The storage seam of the log: named files that are appended to or replaced, durably.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Why storage failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action} {name}: {detail}")]
#[non_exhaustive]
pub struct StorageError {
    /// What was tried.
    pub action: &'static str,
    /// With which file.
    pub name: String,
    /// What the machine said.
    pub detail: String,
}

impl StorageError {
    /// An error.
    #[must_use]
    pub fn new(action: &'static str, name: &str, detail: impl ToString) -> Self {
        Self { action, name: name.to_owned(), detail: detail.to_string() }
    }
}

/// Where a log lives. Names are relative paths of lower-case letters, digits, `.` and `/`.
///
/// Each method that changes something, but [`write_lazily`](Self::write_lazily), returns only when the change would survive the loss of power. An append that fails may leave any
/// start of its bytes behind; a replacement that fails leaves the old content.
pub trait Storage: Send + Sync {
    /// The content of a file, or none if there is no such file.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError>;

    /// Replaces a file's content as a whole.
    ///
    /// # Errors
    /// When the new content is not durable.
    fn write(&self, name: &str, content: &[u8]) -> Result<(), StorageError>;

    /// Replaces a file's content as a whole, at once for every reader and some time later for good: after a loss of power it may have the
    /// old content, the new one, or be empty or full of zeros.
    ///
    /// # Errors
    /// When the content was not replaced.
    fn write_lazily(&self, name: &str, content: &[u8]) -> Result<(), StorageError> {
        self.write(name, content)
    }

    /// Adds to the end of a file, which appears if it is not there.
    ///
    /// # Errors
    /// When the addition is not durable.
    fn append(&self, name: &str, addition: &[u8]) -> Result<(), StorageError>;

    /// Cuts a file to `length` bytes.
    ///
    /// # Errors
    /// When that is not durable.
    fn truncate(&self, name: &str, length: u64) -> Result<(), StorageError>;

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// When it is still there.
    fn remove(&self, name: &str) -> Result<(), StorageError>;
}

/// Storage in memory, for tests and examples.
#[derive(Debug, Default)]
pub struct MemoryStorage(Mutex<BTreeMap<String, Vec<u8>>>);

impl MemoryStorage {
    /// A storage with this content.
    #[must_use]
    pub fn with_files(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self(Mutex::new(files))
    }

    /// A copy of everything stored.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.locked().clone()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for MemoryStorage {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.locked().get(name).cloned())
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), StorageError> {
        self.locked().insert(name.to_owned(), content.to_vec());
        Ok(())
    }

    fn append(&self, name: &str, addition: &[u8]) -> Result<(), StorageError> {
        self.locked().entry(name.to_owned()).or_default().extend_from_slice(addition);
        Ok(())
    }

    fn truncate(&self, name: &str, length: u64) -> Result<(), StorageError> {
        if let (Some(content), Ok(length)) = (self.locked().get_mut(name), usize::try_from(length)) {
            content.truncate(length);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        self.locked().remove(name);
        Ok(())
    }
}
