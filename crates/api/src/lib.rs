//! The gRPC API: who calls is what the verified certificate says, and what each method takes stands in one table.
//!
//! Every call passes one gate: the caller is looked up, the method's row is decided, a refusal is put on record. A method that has no row
//! does not compile. What callers are told follows stock servers, so that stock clients understand it.

mod artifacts;
mod connect;
mod decide;
mod exports;
mod handle;
mod hunts;
mod identity;
mod listener;
mod lookups;
mod methods;
mod monitoring;
mod notebooks;
mod parts;
mod query;
mod secrets;
mod service;
mod status;
mod stored;
mod tables;
mod users;
mod watch;

pub use connect::{ApiKey, MAX_ANSWER, connect};
pub use identity::Peer;
pub use listener::{ApiAddress, ApiListener, ApiListenerSettings, MAX_REQUEST};
pub use methods::Method;
pub use service::{ApiOptions, ApiService};

/// Why the API does not listen or a client does not connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The configuration is unusable.
    #[error("{0}")]
    Configuration(String),
    /// The address cannot be listened on.
    #[error("the API cannot listen on {address}")]
    Bind {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Serving failed.
    #[error("the API stopped")]
    Serve(#[source] tonic::transport::Error),
    /// There is no way to the server.
    #[error("cannot connect to the API at {address}")]
    Connect {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}
