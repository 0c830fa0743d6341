//! The built-ins that touch nothing outside the query.

mod aggregates;
mod artifacts;
mod cache;
mod changes;
mod containers;
mod control;
mod encodings;
mod later;
mod log;
pub(crate) mod mock;
mod objects;
mod paths;
mod reference;
mod streams;
mod strings;
mod template;
mod times;
mod tracker;

use crate::registry::Registry;

pub use cache::{CacheFile, CacheFiles, CacheStorage};
pub use mock::ArtifactName;
pub(crate) use mock::{Mock, Mocks, Target};
pub use tracker::ProcessTracker;

/// Cells of CSV files, as stock peers write them.
pub mod csv {
    use crate::value::Value;

    /// The text of a cell, unquoted: what would be read back as something else is marked.
    #[must_use]
    pub fn cell(value: &Value) -> String {
        super::encodings::csv_cell(value)
    }

    /// The text of a cell, with quotes where it needs them.
    #[must_use]
    pub fn quoted(text: &str) -> String {
        super::encodings::csv_quoted(text)
    }
}

pub(crate) fn register(registry: &mut Registry) {
    aggregates::register(registry);
    artifacts::register(registry);
    cache::register(registry);
    containers::register(registry);
    control::register(registry);
    encodings::register(registry);
    later::register(registry);
    log::register(registry);
    changes::register(registry);
    tracker::register(registry);
    reference::register(registry);
    mock::register(registry);
    objects::register(registry);
    paths::register(registry);
    streams::register(registry);
    strings::register(registry);
    template::register(registry);
    times::register(registry);
}
