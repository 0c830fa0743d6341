//! The agent as a library: it polls a server, runs the queries that the server sends, and keeps the results until the server has them.
//!
//! Invariants: nothing that was accepted is lost by a crash or an unreachable server, and nothing is removed before the server took it; only messages that
//! the verified server signed are obeyed; the end of a collection is reported after its rows and its log.
//!
//! [`Agent`] puts the parts together. Decisions (what to do about an answer, when to retry) are in pure code, [`Attempts`], [`Servers`], [`Pace`]; queries
//! are evaluated behind [`Engine`], so that everything else is tested without them.

mod agent;
mod batch;
mod buffer;
mod comms;
mod connection;
mod engine;
mod error;
mod events;
mod executor;
mod flow;
mod outbox;
mod query;
mod schedule;
mod settings;
#[cfg(test)]
mod tests;
mod throttle;
mod upload;
mod writeback;

pub use agent::Agent;
pub use buffer::{Buffer, BufferSettings, Recovered, Sequence};
pub use engine::{SystemRandom, VqlEngine};
pub use error::ClientError;
pub use events::{EventQueries, EventResources};
pub use executor::Executor;
pub use flow::FlowDefaults;
pub use outbox::{Lease, Outbox, OutboxSettings};
pub use query::{Action, Engine, Sink};
pub use schedule::{AtMostEvery, Attempts, Decision, Intervals, Outcome, Pace, Payload, Servers};
pub use settings::AgentSettings;
pub use writeback::Writeback;
