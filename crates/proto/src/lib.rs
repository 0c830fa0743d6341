//! The messages that peers exchange, generated from `proto/` by `cargo xtask codegen`, and their descriptors.
//!
//! Nothing else lives here: meaning, limits and checks belong to the crates that receive these types.
//!
//! ```
//! use talon_proto::{prost::Message, VeloMessage};
//!
//! let message = VeloMessage { session_id: "F.Monitoring".into(), ..VeloMessage::default() };
//! assert_eq!(VeloMessage::decode(&*message.encode_to_vec())?, message);
//! # Ok::<(), talon_proto::prost::DecodeError>(())
//! ```

pub use prost;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
mod generated {
    include!("gen/proto.rs");
}

pub use generated::*;

/// The serialized `FileDescriptorSet` of `proto/`, for reflection and for turning messages into rows.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");
