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
mod flows;
mod message;
mod monitoring;
mod orgs;
mod users;

pub use access::{BY_REQUEST, PUBLIC};
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
    monitoring::register(&mut registry);
    artifacts::register(&mut registry);
    users::register(&mut registry);
    orgs::register(&mut registry);
    registry
}
