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

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_descriptors_hold_the_whole_api() {
        let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let services: Vec<_> = set.file.iter().flat_map(|file| &file.service).collect();
        assert_eq!(services.len(), 1);
        assert_eq!((services[0].name(), services[0].method.len()), ("API", 83));
        assert!(set.file.iter().filter(|file| file.name() != "google/protobuf/empty.proto").all(|file| file.package() == "proto"));
    }

    #[test]
    fn payloads_have_the_numbers_that_peers_know() {
        let message = VeloMessage { flow_request: Some(FlowRequest::default()), ..VeloMessage::default() };
        // Field 42, length-delimited, empty.
        assert_eq!(message.encode_to_vec(), [0xd2, 0x02, 0x00]);
        let message = ClientCommunication { padding: vec![0], ..ClientCommunication::default() };
        assert_eq!(message.encode_to_vec(), [0x5a, 0x01, 0x00]);
    }
}
