//! Artifacts: named, parameterised queries. Reads and checks definitions, keeps them in layers, and compiles requests into the
//! queries that an agent or the server runs. No clock, and no I/O but that of [`Pack`].
//!
//! ```
//! use talon_artifacts::{Compiler, Repository};
//! use talon_proto::ArtifactCollectorArgs;
//!
//! let repository = Repository::with_built_ins();
//! let request = ArtifactCollectorArgs { artifacts: vec!["Linux.Sys.Pslist".into()], ..Default::default() };
//! let compiled = Compiler::new(&repository).compile(&request)?;
//! assert_eq!(compiled.len(), 1);
//! # Ok::<(), talon_artifacts::ArtifactError>(())
//! ```

mod access;
mod blocks;
mod builtin;
mod compile;
mod definition;
mod error;
mod lint;
mod pack;
mod parameter;
mod references;
mod reformat;
mod repository;
mod resolve;
mod verify;
mod yaml;

pub use access::check_access;
pub use blocks::query_ranges;
pub use builtin::{is_queue, queues};
pub use compile::{Batching, CollectionLimits, Compiler, Lookup, Obfuscate, Requested, ToolEnvironment};
pub use definition::{ArtifactType, Definition, Source};
pub use error::ArtifactError;
pub use lint::{Finding, Library, Report, Rule, Severity, lint, lint_text, lint_vql};
pub use pack::Pack;
pub use parameter::{Parameter, ParameterType};
pub use references::{Reference, references};
pub use reformat::reformat;
pub use repository::{Entry, Layer, Repository};
pub use resolve::{Admission, Resolver};
pub use yaml::MAX_TEXT;
