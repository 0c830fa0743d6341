//! What a packet carries: message lists, each compressed by itself.

use std::cell::RefCell;

use bytes::Bytes;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use talon_proto::VeloMessage;
use talon_proto::packed_message_list::CompressionType;

use crate::{Reason, WireError};

/// How the blobs of a packet are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// As they are: what servers send.
    #[default]
    None,
    /// Each blob is a zlib stream: what agents send.
    Zlib,
}

impl Compression {
    pub(crate) fn wire(self) -> i32 {
        match self {
            Self::None => CompressionType::Uncompressed,
            Self::Zlib => CompressionType::Zcompression,
        }
        .into()
    }

    pub(crate) fn from_wire(value: i32) -> Option<Self> {
        match CompressionType::try_from(value).ok()? {
            CompressionType::Uncompressed => Some(Self::None),
            CompressionType::Zcompression => Some(Self::Zlib),
        }
    }
}

/// A serialized list of messages. Lists are concatenated to make longer lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageList(Vec<u8>);

impl MessageList {
    /// Appends one message.
    pub fn push(&mut self, message: &VeloMessage) {
        prost::encoding::message::encode(1, message, &mut self.0);
    }

    /// Appends a list that was serialized before, for example one that waited in a buffer.
    pub fn push_list(&mut self, list: &[u8]) {
        self.0.extend_from_slice(list);
    }

    /// The serialized form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Length of the serialized form in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the list holds no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The serialized form, taken out.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl From<&VeloMessage> for MessageList {
    fn from(message: &VeloMessage) -> Self {
        let mut list = Self::default();
        list.push(message);
        list
    }
}

impl<'a> FromIterator<&'a VeloMessage> for MessageList {
    fn from_iter<I: IntoIterator<Item = &'a VeloMessage>>(messages: I) -> Self {
        let mut list = Self::default();
        messages.into_iter().for_each(|message| list.push(message));
        list
    }
}

/// The blobs of one packet, ready to be sealed.
#[derive(Debug, Clone, Default)]
pub struct Blobs {
    pub(crate) compression: Compression,
    pub(crate) blobs: Vec<Bytes>,
}

impl Blobs {
    /// One blob per list, as they are.
    #[must_use]
    pub fn plain(lists: impl IntoIterator<Item = MessageList>) -> Self {
        Self { compression: Compression::None, blobs: lists.into_iter().map(|list| Bytes::from(list.0)).collect() }
    }

    /// One zlib stream per list.
    ///
    /// # Errors
    /// [`WireError::Content`] when the compressor fails.
    pub fn compressed(lists: impl IntoIterator<Item = MessageList>) -> Result<Self, WireError> {
        let blobs = lists.into_iter().map(|list| deflate(&list.0).map(Bytes::from)).collect::<Result<_, _>>()?;
        Ok(Self { compression: Compression::Zlib, blobs })
    }

    /// Bytes of all blobs together, as they will be sent.
    #[must_use]
    pub fn size(&self) -> usize {
        self.blobs.iter().map(Bytes::len).sum()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// The blobs as they will be sent.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.blobs.iter()
    }
}

/// Fills a packet up to a size on the wire: lists are added until their compressed sum reaches it.
#[derive(Debug)]
pub struct Packer {
    target: usize,
    blobs: Blobs,
}

impl Packer {
    /// An empty packet that is full at `target` bytes of blobs.
    #[must_use]
    pub fn new(compression: Compression, target: usize) -> Self {
        Self { target, blobs: Blobs { compression, blobs: Vec::new() } }
    }

    /// Adds a serialized list as one blob. Returns whether there is room for more.
    ///
    /// # Errors
    /// [`WireError::Content`] when the compressor fails.
    pub fn push(&mut self, list: &[u8]) -> Result<bool, WireError> {
        let blob = match self.blobs.compression {
            Compression::None => Bytes::copy_from_slice(list),
            Compression::Zlib => deflate(list)?.into(),
        };
        self.blobs.blobs.push(blob);
        Ok(self.blobs.size() < self.target)
    }

    /// The packet's blobs.
    #[must_use]
    pub fn finish(self) -> Blobs {
        self.blobs
    }
}

thread_local! {
    // The state of a decompressor is some 40 KiB; making one for each blob would cost more than a small blob itself.
    static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(true));
    static DEFLATE: RefCell<Compress> = RefCell::new(Compress::new(flate2::Compression::fast(), true));
}

/// The smallest buffer worth allocating.
const CHUNK: usize = 1024;

fn deflate(plain: &[u8]) -> Result<Vec<u8>, WireError> {
    let failed = WireError::Content(Reason::Blob);
    let mut out = Vec::with_capacity((plain.len() / 4).max(CHUNK));
    DEFLATE.with_borrow_mut(|state| {
        state.reset();
        loop {
            let input = usize::try_from(state.total_in()).ok().and_then(|at| plain.get(at..)).unwrap_or_default();
            let before = out.len();
            match state.compress_vec(input, &mut out, FlushCompress::Finish) {
                Ok(Status::StreamEnd) => return Ok(out),
                Ok(_) if out.len() > before || out.capacity() == before => out.reserve(out.capacity().max(CHUNK)),
                _ => return Err(failed),
            }
        }
    })
}

/// Expands one zlib stream to at most `limit` bytes. Memory never exceeds the limit, whatever the stream claims.
///
/// # Errors
/// [`WireError::Content`] for what is no single whole stream, or a longer one.
pub fn inflate(stream: &[u8], limit: usize) -> Result<Vec<u8>, WireError> {
    let refused = WireError::Content(Reason::Blob);
    let mut out = Vec::with_capacity(stream.len().saturating_mul(4).max(CHUNK).min(limit));
    INFLATE.with_borrow_mut(|state| {
        state.reset(true);
        loop {
            let input = usize::try_from(state.total_in()).ok().and_then(|at| stream.get(at..)).unwrap_or_default();
            let (before, room) = (out.len(), out.capacity() > out.len());
            match state.decompress_vec(input, &mut out, FlushDecompress::None) {
                Ok(Status::StreamEnd) if usize::try_from(state.total_in()) == Ok(stream.len()) && out.len() <= limit => return Ok(out),
                Ok(Status::Ok | Status::BufError) if out.len() == out.capacity() && out.len() <= limit => {
                    // One byte above the limit tells a stream that ends there from one that goes on.
                    let most = limit.saturating_add(1).saturating_sub(out.len());
                    if most == 0 {
                        return Err(refused);
                    }
                    out.reserve_exact(out.capacity().max(CHUNK).min(most));
                }
                Ok(Status::Ok) if out.len() > before && room => {}
                _ => return Err(refused),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bomb_is_refused_at_the_limit_and_not_before() {
        let bomb = deflate(&vec![0; 10 << 20]).unwrap();
        assert!(bomb.len() < 1 << 20);
        assert!(matches!(inflate(&bomb, (10 << 20) - 1), Err(WireError::Content(Reason::Blob))));
        assert_eq!(inflate(&bomb, 10 << 20).unwrap().len(), 10 << 20);
        assert!(inflate(&bomb, 0).is_err());
    }

    #[test]
    fn cut_or_continued_streams_are_refused() {
        let stream = deflate(b"some text that is compressed, some text that is compressed").unwrap();
        for cut in 0..stream.len() {
            assert!(inflate(&stream[..cut], 1000).is_err(), "cut at {cut}");
        }
        let mut longer = stream.clone();
        longer.push(0);
        assert!(inflate(&longer, 1000).is_err());
        assert!(inflate(&stream, 1000).is_ok(), "the state is clean again");
        assert_eq!(inflate(&deflate(b"").unwrap(), 0).unwrap(), b"");
    }

    #[test]
    fn a_packer_is_full_when_the_compressed_sum_reaches_the_target() {
        let zeros = vec![0; 100_000];
        let mut packer = Packer::new(Compression::Zlib, 1000);
        let mut lists = 1;
        while packer.push(&zeros).unwrap() {
            lists += 1;
        }
        assert!(lists > 1, "compressible lists share a packet");
        let blobs = packer.finish();
        assert!(blobs.size() >= 1000 && blobs.blobs.len() == lists);
        assert!(!Packer::new(Compression::None, 1000).push(&zeros).unwrap());
    }

    proptest! {
        #[test]
        fn compression_round_trips(plain in proptest::collection::vec(any::<u8>(), 0..5000), repeat in 1..40_usize) {
            let plain = plain.repeat(repeat);
            prop_assert_eq!(inflate(&deflate(&plain).unwrap(), plain.len()).unwrap(), plain);
        }

        #[test]
        fn junk_streams_are_refused_without_harm(junk: Vec<u8>) {
            let _ = inflate(&junk, 1 << 20);
        }
    }
}
