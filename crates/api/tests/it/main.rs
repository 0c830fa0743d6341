//! The API over its real listener: mutual TLS, gRPC, a deployment in memory.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests say what must hold by unwrapping it")]

mod calls;
mod connections;
mod matrix;
mod queries;
mod rights;
mod services;
mod stage;
