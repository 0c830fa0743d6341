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
mod auditd;
mod authority;
mod binary;
mod caches;
mod certificates;
mod clock;
mod codecs;
mod collectors;
mod compression;
mod connections;
mod cookies;
mod copy;
mod digest;
mod execve;
mod feed;
mod files;
mod follow;
mod forward;
mod glob;
mod grok;
pub mod host;
mod http_client;
mod identify;
mod journald;
mod leveldb;
mod machine;
mod mail;
mod messages;
mod netcat;
mod network;
mod patch;
mod plists;
mod process;
mod programs;
mod records;
mod remote_uploads;
mod secrets;
mod shell;
#[cfg(test)]
mod signatures;
mod sqlite;
mod system;
mod tables;
mod temporary;
mod unzip;
mod upload;
mod urls;
mod vfs;
mod web;
mod write;
mod xml;
mod yaml;
mod yara;

pub use authority::{AuthorityGuard, permit, with_authority};
pub use clock::SystemClock;
pub use feed::LogFeed;
pub use messages::UserMessages;
pub use secrets::{Secret, SecretSource, Secrets};
pub use shell::ShellSessions;
pub use system::AgentFacts;
pub use upload::{FileTimes, UploadRequest, UploadSource, Uploaded, Uploader, Uploads};
pub use web::NetworkSettings;

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
    web::register(registry);
    accessor::mounts::register(registry);
    vfs::register(registry);
    feed::register(registry);
    remote_uploads::register(registry);
    mail::register(registry);
    messages::register(registry);
    machine::register(registry);
    shell::register(registry);
    netcat::register(registry);
    copy::register(registry);
    connections::register(registry);
    collectors::register(registry);
    http_client::register(registry);
    clock::register(registry);
    temporary::register(registry);
    upload::register(registry);
    write::register(registry);
    accessor::register(registry);
    auditd::register(registry);
    binary::register(registry);
    follow::register(registry);
    unzip::register(registry);
    codecs::register(registry);
    grok::register(registry);
    identify::register(registry);
    journald::register(registry);
    certificates::register(registry);
    leveldb::register(registry);
    programs::register(registry);
    plists::register(registry);
    sqlite::register(registry);
    patch::register(registry);
    urls::register(registry);
    xml::register(registry);
    yaml::register(registry);
    yara::register(registry);
    absent::register(registry);
}
