//! The transport over real sockets: exact bytes, limits, TLS by its violations.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod fake;
mod frontend;
mod limits;
mod link;
mod socket_link;
mod tls;
mod websocket;
