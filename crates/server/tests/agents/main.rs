//! The server against agents that follow a script, honest and hostile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod bench;
mod collections;
mod enrolment;
mod front;
mod hostile;
mod hostile_network;
mod hunts;
mod monitoring;
mod recorded;
mod recorded_sockets;
