//! The session: symmetric secrets that one peer wraps for the other, signs once, and sends with every packet.

use bytes::Bytes;
use prost::Message as _;
use talon_crypto::compat::{CbcKey, HmacSha1Key};
use talon_crypto::{Rng, RsaPrivateKey, RsaPublicKey, Sha256, Zeroizing, constant_time_eq, random_array};
use talon_proto::{CipherMetadata, ClientCommunication, PackedMessageList};

use crate::envelope::{API_VERSION, Envelope, is_ciphertext};
use crate::fields::{self, Value};
use crate::messages::Content;
use crate::{Blobs, Compression, Reason, SessionOptions, UnixMicros, WireError};

/// Length of keys and initialization vectors in bytes.
const KEY: usize = 16;

/// Marks a metadata IV that binds the session to its recipient; the digest fills the rest. A stock peer hits the mark by chance once in 2³² sessions and
/// then simply makes a new one.
const MARK: [u8; 4] = *b"TbR1";

/// Domain separation of the binding.
const BINDING: &[u8] = b"talon session binding v1\0";

/// CipherProperties fields (spec 01 §15.1).
const FIELD_KEY: u64 = 2;
const FIELD_METADATA_IV: u64 = 3;
const FIELD_HMAC_KEY: u64 = 5;

/// The prepared keys of a session.
pub(crate) struct Secrets {
    cbc: CbcKey,
    mac: HmacSha1Key,
}

impl Secrets {
    fn new(key: &[u8; KEY], hmac_key: &[u8; KEY]) -> Result<Self, WireError> {
        Ok(Self { cbc: CbcKey::aes128(key)?, mac: HmacSha1Key::new(hmac_key) })
    }

    /// Checks the authentication code, then decrypts and parses the body.
    pub(crate) fn open(&self, envelope: &Envelope) -> Result<Packed, WireError> {
        let version = envelope.api_version.to_le_bytes();
        self.mac.verify(&envelope.authenticated(&version), &envelope.tag).map_err(|_| WireError::Refused(Reason::Mac))?;
        let mut body = envelope.body.to_vec();
        self.cbc.decrypt_in_place(&envelope.iv, &mut body).map_err(|_| WireError::Refused(Reason::Padding))?;
        let packed = PackedMessageList::decode(Bytes::from(body)).map_err(|_| WireError::Refused(Reason::Packed))?;
        let compression = Compression::from_wire(packed.compression).ok_or(WireError::Refused(Reason::Packed))?;
        let content = Content { compression, blobs: packed.message_list };
        Ok(Packed { nonce: packed.nonce, timestamp: UnixMicros(packed.timestamp), content })
    }

    fn metadata(&self, iv: &[u8; KEY], sealed: &[u8]) -> Result<CipherMetadata, WireError> {
        let mut plain = sealed.to_vec();
        self.cbc.decrypt_in_place(iv, &mut plain).map_err(|_| WireError::Refused(Reason::Padding))?;
        CipherMetadata::decode(Bytes::from(plain)).map_err(|_| WireError::Refused(Reason::Metadata))
    }
}

/// A body whose authentication code was right.
pub(crate) struct Packed {
    pub(crate) nonce: String,
    pub(crate) timestamp: UnixMicros,
    pub(crate) content: Content,
}

/// A session as received: unwrapped, consistent, its signature not yet judged.
pub(crate) struct Received {
    pub(crate) secrets: Secrets,
    pub(crate) source: String,
    properties: Zeroizing<Vec<u8>>,
    signature: Bytes,
}

impl Received {
    /// Unwraps the session of `envelope` with our `key` and opens the packet with it: the one RSA operation.
    pub(crate) fn open(key: &RsaPrivateKey, envelope: &Envelope, options: SessionOptions) -> Result<(Self, Packed), WireError> {
        if !is_ciphertext(&envelope.metadata) {
            return Err(WireError::Refused(Reason::Length));
        }
        let properties = key.oaep_sha1_decrypt(&envelope.cipher).map_err(|_| WireError::Refused(Reason::Cipher))?;
        let parts = Parts::parse(&properties).ok_or(WireError::Refused(Reason::Properties))?;
        let secrets = Secrets::new(&parts.key, &parts.hmac_key)?;
        let packed = secrets.open(envelope)?;
        if !parts.is_for(key.public(), options) {
            return Err(WireError::Refused(Reason::Recipient));
        }
        let metadata = secrets.metadata(&parts.metadata_iv, &envelope.metadata)?;
        drop(parts);
        Ok((Self { secrets, source: metadata.source, properties, signature: metadata.signature }, packed))
    }

    /// Whether the holder of `key` made this session.
    pub(crate) fn is_signed_by(&self, key: &RsaPublicKey) -> bool {
        key.verify_pkcs1_sha256(&self.properties, &self.signature).is_ok()
    }
}

/// A session of ours to one recipient.
pub(crate) struct Outbound {
    secrets: Secrets,
    cipher: Bytes,
    metadata: Bytes,
}

impl Outbound {
    /// Makes and signs fresh secrets and wraps them for `recipient`.
    pub(crate) fn create(
        rng: &dyn Rng,
        sender: &RsaPrivateKey,
        source: &str,
        recipient: &RsaPublicKey,
        options: SessionOptions,
    ) -> Result<Self, WireError> {
        let mut parts =
            Parts { key: Zeroizing::new(random_array(rng)), metadata_iv: random_array(rng), hmac_key: Zeroizing::new(random_array(rng)) };
        if options.bind {
            parts.metadata_iv = parts.binding(recipient);
        }
        let properties = parts.serialize();
        let secrets = Secrets::new(&parts.key, &parts.hmac_key)?;
        let signature = sender.sign_pkcs1_sha256(&properties)?;
        let mut metadata = CipherMetadata { source: source.to_owned(), signature: signature.into() }.encode_to_vec();
        secrets.cbc.encrypt_in_place(&parts.metadata_iv, &mut metadata)?;
        let cipher = recipient.oaep_sha1_encrypt(&properties)?;
        Ok(Self { secrets, cipher: cipher.into(), metadata: metadata.into() })
    }

    /// Makes a packet.
    pub(crate) fn seal(&self, rng: &dyn Rng, now: UnixMicros, nonce: &str, blobs: &Blobs) -> Result<Bytes, WireError> {
        self.seal_as(rng, now, nonce, blobs, API_VERSION)
    }

    /// Makes a packet that says to be of another protocol version.
    pub(crate) fn seal_as(&self, rng: &dyn Rng, now: UnixMicros, nonce: &str, blobs: &Blobs, api_version: u32) -> Result<Bytes, WireError> {
        let packed = PackedMessageList {
            message_list: blobs.blobs.clone(),
            compression: blobs.compression.wire(),
            timestamp: now.0,
            nonce: nonce.to_owned(),
        };
        let mut body = Vec::with_capacity(packed.encoded_len().saturating_add(KEY));
        packed.encode_raw(&mut body);
        let iv = random_array(rng);
        self.secrets.cbc.encrypt_in_place(&iv, &mut body)?;
        let envelope =
            Envelope { cipher: self.cipher.clone(), metadata: self.metadata.clone(), body: body.into(), iv, tag: [0; 20], api_version };
        let tag = self.secrets.mac.sign(&envelope.authenticated(&api_version.to_le_bytes()));
        let message = ClientCommunication {
            encrypted: envelope.body,
            encrypted_cipher: envelope.cipher,
            packet_iv: Bytes::copy_from_slice(&iv),
            encrypted_cipher_metadata: envelope.metadata,
            full_hmac: Bytes::copy_from_slice(&tag),
            api_version,
            ..ClientCommunication::default()
        };
        Ok(message.encode_to_vec().into())
    }
}

#[cfg(test)]
impl Outbound {
    pub(crate) fn cipher(&self) -> &Bytes {
        &self.cipher
    }

    pub(crate) fn metadata(&self) -> &Bytes {
        &self.metadata
    }

    pub(crate) fn replace_cipher(&mut self, cipher: Bytes) {
        self.cipher = cipher;
    }
}

/// The secrets inside CipherProperties.
struct Parts {
    key: Zeroizing<[u8; KEY]>,
    metadata_iv: [u8; KEY],
    hmac_key: Zeroizing<[u8; KEY]>,
}

impl Parts {
    /// Reads the serialized form without leaving copies of the secrets behind. All three must have their full length: an empty MAC key, which stock
    /// receivers take, authenticates nothing.
    fn parse(properties: &[u8]) -> Option<Self> {
        let mut rest = properties;
        let (mut key, mut metadata_iv, mut hmac_key) = (None, None, None);
        while let Some((number, value)) = fields::next(&mut rest).ok()? {
            let Value::Bytes(bytes) = value else { continue };
            match number {
                FIELD_KEY => key = Some(Zeroizing::new(bytes.try_into().ok()?)),
                FIELD_METADATA_IV => metadata_iv = Some(bytes.try_into().ok()?),
                FIELD_HMAC_KEY => hmac_key = Some(Zeroizing::new(bytes.try_into().ok()?)),
                _ => {}
            }
        }
        Some(Self { key: key?, metadata_iv: metadata_iv?, hmac_key: hmac_key? })
    }

    /// CipherProperties in the exact form of stock peers, `name` and `hmac_type` included.
    fn serialize(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(69));
        out.extend_from_slice(b"\x0a\x0baes_128_cbc");
        out.extend_from_slice(&[0x12, 16]);
        out.extend_from_slice(&*self.key);
        out.extend_from_slice(&[0x1a, 16]);
        out.extend_from_slice(&self.metadata_iv);
        out.extend_from_slice(&[0x2a, 16]);
        out.extend_from_slice(&*self.hmac_key);
        out.extend_from_slice(&[0x30, 1]);
        out
    }

    /// The metadata IV that binds these secrets to `recipient`.
    fn binding(&self, recipient: &RsaPublicKey) -> [u8; KEY] {
        let mut digest = Sha256::new();
        digest.update(BINDING);
        digest.update(&*self.key);
        digest.update(&*self.hmac_key);
        digest.update(&recipient.to_pkcs1_der());
        let digest = digest.finish();
        let mut marked = MARK.iter().chain(&digest);
        std::array::from_fn(|_| marked.next().copied().unwrap_or_default())
    }

    fn is_for(&self, recipient: &RsaPublicKey, options: SessionOptions) -> bool {
        if self.metadata_iv.starts_with(&MARK) {
            constant_time_eq(&self.metadata_iv, &self.binding(recipient))
        } else {
            !options.require_bound
        }
    }
}

#[cfg(test)]
mod tests {
    use talon_proto::CipherProperties;
    use talon_proto::cipher_properties::HmacType;

    use super::*;

    #[test]
    fn secrets_are_serialized_as_stock_peers_do_and_read_back() {
        let parts = Parts { key: Zeroizing::new([1; 16]), metadata_iv: [2; 16], hmac_key: Zeroizing::new([3; 16]) };
        let message = CipherProperties {
            name: "aes_128_cbc".into(),
            key: vec![1; 16].into(),
            metadata_iv: vec![2; 16].into(),
            hmac_key: vec![3; 16].into(),
            hmac_type: HmacType::FullHmac.into(),
        };
        assert_eq!(*parts.serialize(), message.encode_to_vec());
        let again = Parts::parse(&parts.serialize()).unwrap();
        assert_eq!((*again.key, again.metadata_iv, *again.hmac_key), ([1; 16], [2; 16], [3; 16]));
    }

    #[test]
    fn short_or_missing_secrets_are_refused() {
        let good = CipherProperties {
            key: vec![1; 16].into(),
            metadata_iv: vec![2; 16].into(),
            hmac_key: vec![3; 16].into(),
            ..Default::default()
        };
        assert!(Parts::parse(&good.encode_to_vec()).is_some());
        for length in [0, 15, 17, 32] {
            let bytes = Bytes::from(vec![1; length]);
            assert!(Parts::parse(&CipherProperties { key: bytes.clone(), ..good.clone() }.encode_to_vec()).is_none());
            assert!(Parts::parse(&CipherProperties { metadata_iv: bytes.clone(), ..good.clone() }.encode_to_vec()).is_none());
            assert!(Parts::parse(&CipherProperties { hmac_key: bytes, ..good.clone() }.encode_to_vec()).is_none());
        }
        assert!(Parts::parse(b"junk").is_none());
    }

    #[test]
    fn a_bound_session_is_for_one_recipient_only() {
        let (mine, other) = (RsaPrivateKey::generate().unwrap(), RsaPrivateKey::generate().unwrap());
        let mut parts = Parts { key: Zeroizing::new([1; 16]), metadata_iv: [2; 16], hmac_key: Zeroizing::new([3; 16]) };
        let (lenient, strict) = (SessionOptions::default(), SessionOptions { require_bound: true, ..SessionOptions::default() });
        assert!(parts.is_for(mine.public(), lenient));
        assert!(!parts.is_for(mine.public(), strict));
        parts.metadata_iv = parts.binding(mine.public());
        assert!(parts.is_for(mine.public(), lenient) && parts.is_for(mine.public(), strict));
        assert!(!parts.is_for(other.public(), lenient));
    }
}
