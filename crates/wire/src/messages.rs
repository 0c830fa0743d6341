//! Messages out of opened blobs, one at a time, so that memory holds one blob and one message whatever a packet claims to contain.

use bytes::{Buf, Bytes};
use prost::Message as _;
use talon_ids::OrgId;
use talon_proto::VeloMessage;
use talon_proto::velo_message::AuthState;

use crate::blobs::{Compression, inflate};
use crate::fields::{self, Value};
use crate::{Limits, Reason, WireError};

/// VeloMessage fields whose payloads may be large (spec 01 §15.2).
const FILE_BUFFER: u64 = 28;
const VQL_RESPONSE: u64 = 33;
const LOG_MESSAGE: u64 = 34;

/// The sparse index inside a FileBuffer (spec 01 §15.6).
const INDEX: u64 = 6;

/// Bytes of repeated structures in one message of an agent: two bytes can claim an element of hundreds, so these are bounded before decoding.
const MAX_STRUCTURE: usize = 1 << 20;
const MAX_INDEX: usize = 8 << 20;
const MAX_ELEMENTS: usize = 65_536;

/// Whose messages these are, which decides their stamps and the shape that they may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    Agent,
    Server,
}

/// The messages of an opened packet. An error ends the iteration.
///
/// What the sender wrote into `source`, `org_id` and `auth_state` is overwritten with what was proved.
#[derive(Debug)]
pub struct Messages {
    sender: Sender,
    source: String,
    org: OrgId,
    authenticated: bool,
    compression: Compression,
    blobs: std::vec::IntoIter<Bytes>,
    current: Bytes,
    blob_limit: usize,
    message_limit: usize,
    bytes_left: usize,
    messages_left: usize,
    refused: Option<Reason>,
    done: bool,
}

impl Messages {
    pub(crate) fn new(sender: Sender, source: &str, org: &OrgId, authenticated: bool, content: Content, limits: &Limits) -> Self {
        Self {
            sender,
            source: source.to_owned(),
            org: org.clone(),
            authenticated,
            compression: content.compression,
            current: Bytes::new(),
            blob_limit: limits.blob,
            message_limit: limits.message,
            bytes_left: limits.total,
            messages_left: limits.messages,
            refused: (content.blobs.len() > limits.blobs).then_some(Reason::Count),
            blobs: content.blobs.into_iter(),
            done: false,
        }
    }

    /// Lowers the sum of opened bytes, for packets of senders that are not known.
    pub(crate) fn at_most(mut self, bytes: usize) -> Self {
        self.bytes_left = self.bytes_left.min(bytes);
        self
    }

    /// The next message, `None` at the end.
    fn advance(&mut self) -> Result<Option<VeloMessage>, Reason> {
        if let Some(reason) = self.refused {
            return Err(reason);
        }
        loop {
            let mut rest = self.current.as_ref();
            match fields::next(&mut rest).map_err(|_| Reason::List)? {
                Some((number, value)) => {
                    let length = if let (1, Value::Bytes(message)) = (number, value) { Some(message.len()) } else { None };
                    let whole = self.current.len().saturating_sub(rest.len());
                    let field = self.current.split_to(whole);
                    if let Some(length) = length {
                        return self.decode(payload_of(field, length)).map(Some);
                    }
                }
                None => {
                    let Some(blob) = self.blobs.next() else { return Ok(None) };
                    self.current = self.expand(blob)?;
                }
            }
        }
    }

    fn expand(&mut self, blob: Bytes) -> Result<Bytes, Reason> {
        let limit = self.blob_limit.min(self.bytes_left);
        let plain = match self.compression {
            Compression::None => blob,
            Compression::Zlib => inflate(&blob, limit).map(Bytes::from).map_err(|_| Reason::Blob)?,
        };
        if plain.len() > limit {
            return Err(Reason::Blob);
        }
        self.bytes_left = self.bytes_left.saturating_sub(plain.len());
        Ok(plain)
    }

    fn decode(&mut self, message: Bytes) -> Result<VeloMessage, Reason> {
        self.messages_left = self.messages_left.checked_sub(1).ok_or(Reason::Count)?;
        if message.len() > self.message_limit {
            return Err(Reason::Message);
        }
        if self.sender == Sender::Agent {
            check_shape(&message)?;
        }
        let mut message = VeloMessage::decode(message).map_err(|_| Reason::List)?;
        message.source.clone_from(&self.source);
        message.org_id.clear();
        message.org_id.push_str(self.org.wire());
        message.set_auth_state(if self.authenticated { AuthState::Authenticated } else { AuthState::Unauthenticated });
        Ok(message)
    }
}

impl Iterator for Messages {
    type Item = Result<VeloMessage, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.advance().map_err(WireError::Content).transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

/// The blobs of a packet whose authentication code was right.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) compression: Compression,
    pub(crate) blobs: Vec<Bytes>,
}

/// The payload of a length-delimited field, as a share of the buffer at whose end it stands.
fn payload_of(mut field: Bytes, length: usize) -> Bytes {
    field.advance(field.len().saturating_sub(length));
    field
}

/// Bounds the structures that an agent's message may unfold into.
fn check_shape(message: &[u8]) -> Result<(), Reason> {
    let mut rest = message;
    let (mut structure, mut index, mut elements) = (0_usize, 0_usize, 0_usize);
    while let Some((number, value)) = fields::next(&mut rest).map_err(|_| Reason::List)? {
        let Value::Bytes(payload) = value else { continue };
        match number {
            LOG_MESSAGE => {}
            FILE_BUFFER => {
                let mut inner = payload;
                while let Some((number, value)) = fields::next(&mut inner).map_err(|_| Reason::List)? {
                    if let (INDEX, Value::Bytes(ranges)) = (number, value) {
                        index = index.saturating_add(ranges.len());
                    }
                }
            }
            VQL_RESPONSE => {
                let mut inner = payload;
                while fields::next(&mut inner).map_err(|_| Reason::List)?.is_some() {
                    elements = elements.saturating_add(1);
                }
            }
            _ => structure = structure.saturating_add(payload.len()),
        }
    }
    if structure > MAX_STRUCTURE || index > MAX_INDEX || elements > MAX_ELEMENTS { Err(Reason::Count) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use talon_proto::{FlowStats, VeloStatus, VqlResponse, VqlTypeMap};

    use super::*;
    use crate::MessageList;

    fn read(sender: Sender, blobs: Vec<Vec<u8>>, limits: &Limits) -> Result<Vec<VeloMessage>, WireError> {
        let content = Content { compression: Compression::None, blobs: blobs.into_iter().map(Bytes::from).collect() };
        Messages::new(sender, "C.1", &"O1".parse().unwrap(), true, content, limits).collect()
    }

    fn message(session: &str) -> VeloMessage {
        VeloMessage { session_id: session.into(), ..VeloMessage::default() }
    }

    #[test]
    fn concatenated_lists_and_several_blobs_are_one_sequence_with_proved_stamps() {
        let forged = VeloMessage { source: "C.2".into(), org_id: "O2".into(), auth_state: 0, ..message("F.1") };
        let mut list = MessageList::from(&forged);
        list.push(&message("F.2"));
        let read =
            read(Sender::Agent, vec![list.into_bytes(), vec![], MessageList::from(&message("F.3")).into_bytes()], &Limits::default())
                .unwrap();
        assert_eq!(read.iter().map(|message| message.session_id.as_str()).collect::<Vec<_>>(), ["F.1", "F.2", "F.3"]);
        for message in read {
            assert_eq!((message.source.as_str(), message.org_id.as_str(), message.auth_state), ("C.1", "O1", 1));
        }
    }

    #[test]
    fn counts_and_lengths_are_bounded() {
        let list = || MessageList::from_iter(&vec![message("F.1"); 10]).into_bytes();
        let full = Limits { messages: 20, blobs: 2, total: list().len() * 2, message: 5, blob: list().len(), ..Limits::default() };
        assert_eq!(read(Sender::Agent, vec![list(), list()], &full).unwrap().len(), 20);
        for (limits, reason) in [
            (Limits { messages: 19, ..full.clone() }, Reason::Count),
            (Limits { blobs: 1, ..full.clone() }, Reason::Count),
            (Limits { total: full.total - 1, ..full.clone() }, Reason::Blob),
            (Limits { message: 4, ..full.clone() }, Reason::Message),
            (Limits { blob: full.blob - 1, ..full.clone() }, Reason::Blob),
        ] {
            match read(Sender::Agent, vec![list(), list()], &limits) {
                Err(WireError::Content(found)) => assert_eq!(found, reason),
                other => panic!("{reason:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn small_bytes_cannot_unfold_into_large_structures() {
        let stats = FlowStats { query_status: vec![VeloStatus::default(); 600_000], ..FlowStats::default() };
        let types = VqlResponse { types: vec![VqlTypeMap::default(); 70_000], ..VqlResponse::default() };
        for bomb in [VeloMessage { flow_stats: Some(stats), ..message("F.1") }, VeloMessage { vql_response: Some(types), ..message("F.1") }]
        {
            let list = MessageList::from(&bomb).into_bytes();
            assert!(matches!(read(Sender::Agent, vec![list.clone()], &Limits::default()), Err(WireError::Content(Reason::Count))));
            assert!(read(Sender::Server, vec![list], &Limits::default()).is_ok());
        }
    }

    #[test]
    fn damage_ends_the_sequence() {
        let content = Content { compression: Compression::None, blobs: vec![vec![0x0a, 0x05, 1].into(), vec![0x0a, 0].into()] };
        let mut messages = Messages::new(Sender::Agent, "C.1", &OrgId::root(), true, content, &Limits::default());
        assert!(matches!(messages.next(), Some(Err(WireError::Content(Reason::List)))));
        assert!(messages.next().is_none());
    }

    proptest! {
        #[test]
        fn any_blob_is_safe(junk: Vec<u8>, zlib: bool) {
            let compression = if zlib { Compression::Zlib } else { Compression::None };
            let content = Content { compression, blobs: vec![junk.into()] };
            for _ in Messages::new(Sender::Agent, "C.1", &OrgId::root(), true, content, &Limits::default()) {}
        }
    }
}
