//! The outer message, `ClientCommunication`: its field lengths, its authentication code, and the pads between answers.

use bytes::Bytes;
use prost::Message as _;
use talon_proto::ClientCommunication;

use crate::{Reason, WireError};

/// The protocol version in every packet (spec 01 §16).
pub const API_VERSION: u32 = 4;

/// A pad: an envelope that holds nothing but padding. Servers send it to keep a response alive; any number may stand before and after a packet.
pub const PAD: &[u8] = &[0x5a, 0x01, 0x00];

/// The block length of AES.
const BLOCK: usize = 16;

/// An envelope whose fields have possible lengths. Nothing about it is proved.
pub(crate) struct Envelope {
    pub(crate) cipher: Bytes,
    pub(crate) metadata: Bytes,
    pub(crate) body: Bytes,
    pub(crate) iv: [u8; 16],
    pub(crate) tag: [u8; 20],
    pub(crate) api_version: u32,
}

impl Envelope {
    /// Parses a body, which may be a packet among pads. `None` means that it holds no packet at all.
    pub(crate) fn parse(body: Bytes, limit: usize) -> Result<Option<Self>, WireError> {
        if body.len() > limit {
            return Err(WireError::Refused(Reason::Oversized));
        }
        let message = ClientCommunication::decode(body).map_err(|_| WireError::Refused(Reason::Envelope))?;
        if message.encrypted_cipher.is_empty() {
            return Ok(None);
        }
        let (Ok(iv), Ok(tag)) = (message.packet_iv.as_ref().try_into(), message.full_hmac.as_ref().try_into()) else {
            return Err(WireError::Refused(Reason::Length));
        };
        if !is_ciphertext(&message.encrypted) {
            return Err(WireError::Refused(Reason::Length));
        }
        Ok(Some(Self {
            cipher: message.encrypted_cipher,
            metadata: message.encrypted_cipher_metadata,
            body: message.encrypted,
            iv,
            tag,
            api_version: message.api_version,
        }))
    }

    /// The five parts that the authentication code covers: raw field bytes without lengths, then the version in little-endian.
    pub(crate) fn authenticated<'a>(&'a self, version: &'a [u8; 4]) -> [&'a [u8]; 5] {
        [&self.body, &self.cipher, &self.metadata, &self.iv, version]
    }
}

/// Whether `bytes` can be the output of a padded block cipher.
pub(crate) fn is_ciphertext(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.len().is_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pad_is_an_envelope_without_a_packet() {
        let pad = ClientCommunication { padding: vec![0], ..ClientCommunication::default() };
        assert_eq!(pad.encode_to_vec(), PAD);
        assert!(matches!(Envelope::parse(Bytes::from(PAD.repeat(100)), 1000), Ok(None)));
        assert!(matches!(Envelope::parse(Bytes::new(), 1000), Ok(None)));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let good = ClientCommunication {
            encrypted: vec![1; 32].into(),
            encrypted_cipher: vec![1; 256].into(),
            packet_iv: vec![1; 16].into(),
            full_hmac: vec![1; 20].into(),
            api_version: API_VERSION,
            ..ClientCommunication::default()
        };
        let parse =
            |message: &ClientCommunication| Envelope::parse(message.encode_to_vec().into(), 1000).map(|envelope| envelope.is_some());
        assert!(matches!(parse(&good), Ok(true)));
        for length in [0, 15, 17] {
            assert!(matches!(
                parse(&ClientCommunication { encrypted: vec![1; length].into(), ..good.clone() }),
                Err(WireError::Refused(Reason::Length))
            ));
            assert!(matches!(
                parse(&ClientCommunication { packet_iv: vec![1; length].into(), ..good.clone() }),
                Err(WireError::Refused(Reason::Length))
            ));
            assert!(matches!(
                parse(&ClientCommunication { full_hmac: vec![1; length].into(), ..good.clone() }),
                Err(WireError::Refused(Reason::Length))
            ));
        }
        assert!(matches!(Envelope::parse(good.encode_to_vec().into(), 100), Err(WireError::Refused(Reason::Oversized))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(junk: Vec<u8>) {
            let _ = Envelope::parse(junk.into(), 1 << 20);
        }
    }
}
