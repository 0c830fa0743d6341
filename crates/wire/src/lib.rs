//! The stock wire protocol without any input or output: sealed packets, sessions, message lists, and the limits that keep a hostile peer harmless.
//!
//! A packet is opened by [`ServerCodec`] or [`AgentSession`] and comes out as a value whose type says what was proved about it. Only this crate
//! can make an [`AuthenticatedClient`]; an [`Unauthenticated`] packet offers nothing but its certificate requests.
//!
//! Talon to Talon, each session is also bound to its recipient (see [`SessionOptions`]); stock peers do not notice.
//!
//! ```
//! use std::net::IpAddr;
//! use talon_crypto::{RsaPrivateKey, RsaPublicKey, SystemRng};
//! use talon_ids::{ClientId, OrgId};
//! use talon_proto::VeloMessage;
//! use talon_wire::*;
//!
//! struct OneAgent(RsaPublicKey);
//! impl Directory for OneAgent {
//!     fn org_of_nonce(&self, nonce: &str) -> Result<Option<OrgId>, LookupError> {
//!         Ok((nonce == "c2VjcmV0").then(OrgId::root))
//!     }
//!     fn nonce_of_org(&self, _: &OrgId) -> Result<Option<String>, LookupError> {
//!         Ok(Some("c2VjcmV0".into()))
//!     }
//!     fn client_key(&self, _: &OrgId, _: &ClientId) -> Result<Option<RsaPublicKey>, LookupError> {
//!         Ok(Some(self.0.clone()))
//!     }
//! }
//!
//! let (server_key, agent_key) = (RsaPrivateKey::generate()?, RsaPrivateKey::generate()?);
//! let agent = AgentCodec::new(agent_key.clone(), "c2VjcmV0", Limits::default(), SystemRng);
//! let session = agent.session("VelociraptorServer", server_key.public())?;
//!
//! let mut list = MessageList::default();
//! list.push(&VeloMessage { session_id: "F.Monitoring".into(), source: "forged".into(), ..VeloMessage::default() });
//! let now = UnixMicros(1_700_000_000_000_000);
//! let packet = session.seal(now, &Blobs::compressed([list])?)?;
//!
//! let server = ServerCodec::new(server_key, "VelociraptorServer", Limits::default(), SystemRng);
//! let directory = OneAgent(agent_key.public().clone());
//! let from: IpAddr = [192, 0, 2, 1].into();
//! let Opened::Authenticated(packet) = server.open(packet, from, now, &directory)? else { panic!("the agent is known") };
//! let client = packet.client().clone();
//! assert_eq!(client.client_id(), &client_id(agent_key.public()));
//! let messages = packet.messages()?.collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(messages[0].source, client.client_id().as_str());
//!
//! let reply = server.seal(now, &client, &directory, &MessageList::default())?;
//! assert!(matches!(session.open(reply)?, Reply::Verified(_)));
//! # Ok::<(), WireError>(())
//! ```

mod agent;
mod blobs;
mod budget;
mod envelope;
mod fields;
mod identity;
mod limits;
mod messages;
mod obfuscation;
mod server;
mod session;
mod sessions;
mod tasks;
#[cfg(test)]
mod tests;

pub use agent::{AgentCodec, AgentSession, Reply, VerifiedReply};
pub use blobs::{Blobs, Compression, MessageList, Packer, inflate};
pub use budget::Budget;
pub use envelope::{API_VERSION, PAD};
pub use identity::{AuthenticatedClient, client_id};
pub use limits::{BudgetLimits, Limits, SessionOptions};
pub use messages::Messages;
pub use obfuscation::Obfuscator;
pub use server::{Directory, LookupError, Opened, Packet, PacketId, ServerCodec, Unauthenticated};
pub use tasks::TaskIds;

/// Microseconds since 1970 UTC, the unit of packet timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMicros(pub u64);

/// Why a packet was not opened or made. The text is all that a peer may learn; [`Reason`] is for debug logs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The envelope is malformed, was changed, or is not meant for us (HTTP 403). Every cryptographic failure looks like this one.
    #[error("the packet was refused")]
    Refused(Reason),
    /// The envelope is sound, its content is not (HTTP 200 without a body, WebSocket 400: the peer must not send it again).
    #[error("the packet's content was refused")]
    Content(Reason),
    /// This source, or all sources together, open more sessions than the budget allows (HTTP 503).
    #[error("too many new sessions")]
    Throttled {
        /// When one more session would be within the budget.
        retry_after: std::time::Duration,
    },
    /// A lookup failed, so that nothing can be said about the packet (HTTP 503).
    #[error("the server cannot look the sender up")]
    Lookup(#[source] LookupError),
    /// The recipient of a reply is not known.
    #[error("the recipient is not known")]
    UnknownRecipient,
    /// The cryptographic library refused; on sealing, or on a key.
    #[error(transparent)]
    Crypto(#[from] talon_crypto::CryptoError),
}

/// What exactly was wrong with a packet: for debug logs and tests, never for peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The envelope is longer than the limit.
    Oversized,
    /// The envelope does not parse.
    Envelope,
    /// A field has a length that no sound peer makes.
    Length,
    /// The session's secrets cannot be unwrapped with our key.
    Cipher,
    /// The session's secrets have wrong lengths or do not parse.
    Properties,
    /// The session was made for another recipient.
    Recipient,
    /// The authentication code does not match.
    Mac,
    /// The body or the session's metadata does not decrypt.
    Padding,
    /// The session's metadata does not parse.
    Metadata,
    /// The packed list does not parse.
    Packed,
    /// The nonce names no organisation.
    Nonce,
    /// The nonce names another organisation than the session's.
    OtherOrg,
    /// The sender's protocol version is older than 4.
    Version,
    /// A blob is not what its compression says, or expands beyond the limit.
    Blob,
    /// A message list does not parse.
    List,
    /// More messages, blobs or elements than the limit.
    Count,
    /// A message is longer than the limit.
    Message,
}
