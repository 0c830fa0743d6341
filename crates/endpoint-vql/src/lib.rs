//! Queries on a host: plugins, functions and accessors for files, processes and the state of the machine, for agents and servers alike.
//!
//! What touches the outside world is in [`host`], and takes a permit; built-ins get theirs from the [`talon_acl::Authority`] that the host program
//! puts into the environment (see [`with_authority`]). Without an authority nothing is permitted.
//!
//! ```
//! use std::sync::Arc;
//! use talon_acl::{Authority, EndpointPolicy};
//! use talon_vql::Environment;
//!
//! let authority = Arc::new(Authority::endpoint("VelociraptorServer".parse()?, EndpointPolicy::default()));
//! let registry = Arc::new(talon_endpoint_vql::registry());
//! let environment = talon_endpoint_vql::with_authority(Environment::new(registry), authority);
//! # let _ = environment;
//! # Ok::<(), talon_ids::InvalidId>(())
//! ```

mod absent;
pub mod accessor;
mod authority;
mod caches;
mod clock;
mod web;
mod shell;
mod secrets;
mod remote_uploads;
mod netcat;
mod messages;
mod mail;
mod machine;
mod http_client;
mod forward;
mod feed;
mod copy;
mod cookies;
mod connections;
mod collectors;
mod compression;
mod digest;
mod execve;
mod files;
mod glob;
pub mod host;
mod network;
mod process;
mod records;
#[cfg(test)]
mod signatures;
mod system;
mod tables;
mod temporary;
mod upload;
mod write;

pub use authority::{AuthorityGuard, permit, with_authority};
pub use clock::SystemClock;
pub use feed::LogFeed;
pub use messages::UserMessages;
pub use secrets::{Secret, SecretSource, Secrets};
pub use shell::ShellSessions;
pub use web::NetworkSettings;
pub use system::AgentFacts;
pub use upload::{FileTimes, UploadRequest, UploadSource, Uploaded, Uploader, Uploads};

use talon_vql::Registry;

/// The built-ins of the language and of this crate.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::core();
    register(&mut registry);
    registry
}

/// Adds the built-ins of this crate.
pub fn register(registry: &mut Registry) {
    files::register(registry);
    glob::register(registry);
    records::register(registry);
    tables::register(registry);
    digest::register(registry);
    compression::register(registry);
    process::register(registry);
    system::register(registry);
    network::register(registry);
    execve::register(registry);
    shell::register(registry);
    remote_uploads::register(registry);
    netcat::register(registry);
    messages::register(registry);
    mail::register(registry);
    machine::register(registry);
    http_client::register(registry);
    feed::register(registry);
    copy::register(registry);
    connections::register(registry);
    collectors::register(registry);
    clock::register(registry);
    temporary::register(registry);
    upload::register(registry);
    write::register(registry);
    absent::register(registry);
}
