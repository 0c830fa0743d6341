//! The built-ins of queries on the server: clients, collections, events, artifacts, users. Each declares its permissions; the dispatcher enforces them.
//!
//! The bodies find the [`Session`](talon_server::Session) of the query as an extension of its scope, and reach the server through nothing else. Where the
//! needed permission depends on the request (`collect_client` of a basic artifact, `artifact_set` by type), the session decides, before anything happens.
//!
//! ```
//! let registry = talon_server_vql::registry();
//! let clients = registry.signature(talon_vql::Kind::Plugin, "clients").unwrap();
//! assert_eq!(clients.permissions.to_string(), "[READ_RESULTS]");
//! ```

mod access;
mod artifacts;
mod clients;
mod collect;
mod events;
mod exports;
mod favorites;
mod file_store;
mod flows;
mod hunts;
mod inventory;
mod links;
mod locks;
mod message;
mod metadata;
mod monitoring;
mod notebooks;
mod orgs;
mod parallel;
mod removal;
mod roles;
mod secrets;
mod server_monitoring;
mod timelines;
mod users;

pub use access::{BY_REQUEST, PUBLIC};
pub use file_store::FileStore;
pub use message::to_dict;

use talon_vql::Registry;

/// The built-ins of this crate alone.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::new();
    clients::register(&mut registry);
    collect::register(&mut registry);
    flows::register(&mut registry);
    events::register(&mut registry);
    hunts::register(&mut registry);
    inventory::register(&mut registry);
    links::register(&mut registry);
    exports::register(&mut registry);
    favorites::register(&mut registry);
    file_store::register(&mut registry);
    notebooks::register(&mut registry);
    timelines::register(&mut registry);
    monitoring::register(&mut registry);
    server_monitoring::register(&mut registry);
    metadata::register(&mut registry);
    removal::register(&mut registry);
    secrets::register(&mut registry);
    artifacts::register(&mut registry);
    users::register(&mut registry);
    roles::register(&mut registry);
    locks::register(&mut registry);
    orgs::register(&mut registry);
    parallel::register(&mut registry);
    registry
}

/// The accessors of queries on a server: those of hosts, and the store of the organisation.
#[must_use]
pub fn accessors() -> talon_endpoint_vql::accessor::Accessors {
    let mut accessors = talon_endpoint_vql::accessor::Accessors::default();
    accessors.add("fs", FileStore);
    accessors
}
