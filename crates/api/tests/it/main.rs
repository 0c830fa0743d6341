//! The API over its real listener: mutual TLS, gRPC, a deployment in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod calls;
mod connections;
mod matrix;
mod queries;
mod stage;
