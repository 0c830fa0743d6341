//! How agents and frontends reach each other: TLS, HTTP/1.1, HTTP/2 and WebSocket, proxies, limits and deadlines. It carries sealed packets and never opens one.
//!
//! A frontend implements [`AgentEndpoint`] and hands it to a [`FrontendListener`]; an agent posts through a [`ServerLink`], of which [`HttpLink`] is the
//! one over HTTP and WebSocket. Status lines, headers, pads, body limits and deadlines are decided here and nowhere else.
//!
//! ```
//! use talon_transport::ServerUrl;
//!
//! let url: ServerUrl = "https://frontend.example:8000/base/".parse()?;
//! assert_eq!(url.join("server.pem").to_string(), "https://frontend.example:8000/base/server.pem");
//! assert!("https://frontend.example".parse::<ServerUrl>().is_err(), "a server URL ends in a slash");
//! # Ok::<(), talon_transport::TransportError>(())
//! ```

mod answer;
mod body;
mod dial;
mod endpoint;
mod error;
mod guard;
mod http_link;
mod intake;
mod link;
mod listener;
mod proxy;
mod routes;
mod settings;
mod sockets;
mod surface;
mod syslog;
mod throttle;
mod tls;
mod url;
mod verify;
mod web;
mod websocket;

pub use endpoint::{
    AgentEndpoint, AgentRequest, BoxFuture, ControlOutcome, LongPoll, PAD, Peer, Processed, PublicFile, PublicPath, ReaderOutcome,
    Rejection, Unhealthy,
};
pub use error::TransportError;
pub use http_link::HttpLink;
pub use link::{Handler, Post, Reply, ServerLink};
pub use listener::FrontendListener;
pub use routes::{Access, Action, AuditClass, BodyLimit, ROUTES, Route};
pub use settings::{FrontendLimits, FrontendSettings, LinkSettings, ProxySettings, ServerTls, VerificationMode};
pub use syslog::{SyslogProtocol, SyslogSender};
pub use tls::{crypto_provider, install_crypto_provider};
pub use url::{Scheme, ServerUrl};
pub use web::{WebAnswer, WebBody, WebClient, WebRequest, WebTrust};
