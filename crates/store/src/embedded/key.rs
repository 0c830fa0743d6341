//! Keys and values of the index: how names of any bytes become ordered keys, and what the index says of objects and segments.
//!
//! | Key | Value |
//! |---|---|
//! | `m` + name | facts about the store |
//! | `r` + organisation 0 + family 0 + key | a record |
//! | `o` + organisation 0 + components, escaped + kind | [`Object`] |
//! | `b` + object id + first row or byte | [`Extent`] |
//! | `s` + segment id | [`Usage`] |
//! | `d` + object id | nothing: the object's extents are to be reaped |

use talon_ids::OrgId;

use crate::{ObjectName, Space, StoreError};

pub(super) const META: u8 = b'm';
pub(super) const RECORD: u8 = b'r';
pub(super) const OBJECT: u8 = b'o';
pub(super) const EXTENT: u8 = b'b';
pub(super) const SEGMENT: u8 = b's';
pub(super) const DEAD: u8 = b'd';

/// Keys `from..to`.
#[derive(Debug, Clone)]
pub(super) struct KeyRange {
    pub(super) from: Vec<u8>,
    pub(super) to: Vec<u8>,
}

impl KeyRange {
    /// All keys that start with `prefix`, which starts with a tag and so has a successor.
    pub(super) fn of_prefix(prefix: Vec<u8>) -> Self {
        let mut to = prefix.clone();
        while let Some(last) = to.pop() {
            if let Some(next) = last.checked_add(1) {
                to.push(next);
                break;
            }
        }
        Self { from: prefix, to }
    }
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Table,
    Upload,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Table, Self::Upload];

    pub(super) fn code(self) -> u8 {
        match self {
            Self::Table => b't',
            Self::Upload => b'u',
        }
    }
}

pub(super) fn meta(name: &str) -> Vec<u8> {
    [&[META], name.as_bytes()].concat()
}

pub(super) fn record_prefix(org: &OrgId, space: Space) -> Vec<u8> {
    [&[RECORD], org.as_str().as_bytes(), &[0], space.name().as_bytes(), &[0]].concat()
}

pub(super) fn record(org: &OrgId, space: Space, key: &[u8]) -> Vec<u8> {
    let mut out = record_prefix(org, space);
    out.extend_from_slice(key);
    out
}

/// The prefix of the keys of every object whose first components are these. Keys sort as the names do.
pub(super) fn object_prefix(org: &OrgId, name: &ObjectName) -> Vec<u8> {
    let mut out = [&[OBJECT], org.as_str().as_bytes(), &[0]].concat();
    for component in name.components() {
        for byte in component.bytes() {
            out.push(byte);
            if byte == 0 {
                out.push(0xff);
            }
        }
        out.extend_from_slice(&[0, 1]);
    }
    out
}

pub(super) fn object(org: &OrgId, name: &ObjectName, kind: Kind) -> Vec<u8> {
    let mut out = object_prefix(org, name);
    out.extend_from_slice(&[0, 0, kind.code()]);
    out
}

/// Takes an object's key apart.
pub(super) fn parse_object(key: &[u8]) -> Option<(OrgId, ObjectName, Kind)> {
    let org = org_of(key)?;
    let mut rest = key.get(org.as_str().len().checked_add(2)?..)?.iter().copied();
    let mut components = Vec::new();
    let mut component = Vec::new();
    loop {
        match rest.next()? {
            0 => match rest.next()? {
                0 => break,
                1 => components.push(String::from_utf8(std::mem::take(&mut component)).ok()?),
                0xff => component.push(0),
                _ => return None,
            },
            byte => component.push(byte),
        }
    }
    let code = rest.next()?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.code() == code)?;
    (rest.next().is_none() && component.is_empty()).then(|| (org, ObjectName::new(components), kind))
}

/// The organisation of a record's or an object's key.
pub(super) fn org_of(key: &[u8]) -> Option<OrgId> {
    let text = key.get(1..)?.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The first key behind everything that an organisation has under one tag.
pub(super) fn behind_org(tag: u8, org: &OrgId) -> Vec<u8> {
    [&[tag], org.as_str().as_bytes(), &[1]].concat()
}

pub(super) fn extent(object: u64, position: u64) -> Vec<u8> {
    [&[EXTENT], &object.to_be_bytes()[..], &position.to_be_bytes()[..]].concat()
}

/// The position in an extent's key.
pub(super) fn position_of(key: &[u8]) -> Result<u64, StoreError> {
    let bytes = key.get(9..).and_then(|rest| rest.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or_else(|| damaged(key, "not the key of an extent"))
}

pub(super) fn segment(id: u64) -> Vec<u8> {
    [&[SEGMENT], &id.to_be_bytes()[..]].concat()
}

pub(super) fn dead(object: u64) -> Vec<u8> {
    [&[DEAD], &object.to_be_bytes()[..]].concat()
}

/// The number in the key of a segment or of a dead object.
pub(super) fn number_of(key: &[u8]) -> Result<u64, StoreError> {
    let bytes = key.get(1..).and_then(|rest| rest.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or_else(|| damaged(key, "the key has no number"))
}

/// Damage at a key of the index.
pub(super) fn damaged(key: &[u8], detail: impl Into<String>) -> StoreError {
    let shown = key.get(..80).unwrap_or(key);
    StoreError::Damaged { place: format!("index key {}", shown.escape_ascii()), detail: detail.into() }
}

/// A fixed layout of little-endian numbers.
pub(super) trait Layout: Sized {
    fn encode(&self) -> Vec<u8>;
    fn take(fields: &mut Fields<'_>) -> Option<Self>;

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, StoreError> {
        let mut fields = Fields(value);
        Self::take(&mut fields).filter(|_| fields.0.is_empty()).ok_or_else(|| damaged(key, "the value has another layout"))
    }
}

/// What is left of an encoded value.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
}

/// A table or an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Object {
    /// Names the extents; never used again.
    pub(super) id: u64,
    /// Rows of a table, bytes of an upload: where the next extent starts.
    pub(super) end: u64,
    /// Plain bytes.
    pub(super) bytes: u64,
    /// Whether an upload's end was recorded.
    pub(super) complete: bool,
}

impl Layout for Object {
    fn encode(&self) -> Vec<u8> {
        [&self.id.to_le_bytes()[..], &self.end.to_le_bytes(), &self.bytes.to_le_bytes(), &[u8::from(self.complete)]].concat()
    }

    fn take(fields: &mut Fields<'_>) -> Option<Self> {
        let (id, end, bytes, [complete]) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.array()?);
        (complete < 2).then_some(Self { id, end, bytes, complete: complete == 1 })
    }
}

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) segment: u64,
    /// Of the block's header.
    pub(super) offset: u64,
    /// Bytes behind the header.
    pub(super) stored: u32,
    /// Bytes after decompression.
    pub(super) plain: u32,
    pub(super) rows: u32,
}

impl Layout for Extent {
    fn encode(&self) -> Vec<u8> {
        let (stored, plain, rows) = (self.stored.to_le_bytes(), self.plain.to_le_bytes(), self.rows.to_le_bytes());
        [&self.segment.to_le_bytes()[..], &self.offset.to_le_bytes(), &stored, &plain, &rows].concat()
    }

    fn take(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self { segment: fields.u64()?, offset: fields.u64()?, stored: fields.u32()?, plain: fields.u32()?, rows: fields.u32()? })
    }
}

/// What is in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Committed bytes of the file.
    pub(super) end: u64,
    /// Blocks that something refers to.
    pub(super) live: u64,
}

impl Layout for Usage {
    fn encode(&self) -> Vec<u8> {
        [self.end.to_le_bytes(), self.live.to_le_bytes()].concat()
    }

    fn take(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self { end: fields.u64()?, live: fields.u64()? })
    }
}

/// Where the store stands; written with each group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// The last committed group.
    pub(super) group: u64,
    /// The id of the next object.
    pub(super) next_object: u64,
    /// The segment that is written.
    pub(super) segment: u64,
    /// Where the next block goes.
    pub(super) end: u64,
}

impl Layout for State {
    fn encode(&self) -> Vec<u8> {
        [self.group, self.next_object, self.segment, self.end].map(u64::to_le_bytes).concat()
    }

    fn take(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self { group: fields.u64()?, next_object: fields.u64()?, segment: fields.u64()?, end: fields.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = ObjectName> {
        prop::collection::vec(prop::collection::vec(prop::sample::select(vec!['\0', '\u{1}', 'a', 'ÿ', '/']), 0..4), 0..4)
            .prop_map(|components| ObjectName::new(components.into_iter().map(String::from_iter)))
    }

    proptest! {
        #[test]
        fn keys_of_objects_sort_as_their_names_and_parse_back(one in name(), two in name()) {
            let org: OrgId = "O1".parse().unwrap();
            let key = |name| object(&org, name, Kind::Table);
            prop_assert_eq!(key(&one).cmp(&key(&two)), one.cmp(&two));
            prop_assert_eq!(parse_object(&key(&one)), Some((org.clone(), one.clone(), Kind::Table)));
            let below = key(&two).starts_with(&object_prefix(&org, &one));
            prop_assert_eq!(below, two.components().starts_with(one.components()));
        }
    }

    #[test]
    fn values_are_decoded_only_whole() {
        let extent = Extent { segment: 1, offset: 2, stored: 3, plain: 4, rows: 5 };
        let bytes = extent.encode();
        assert_eq!(Extent::decode(b"b", &bytes).unwrap(), extent);
        assert!(Extent::decode(b"b", &bytes[1..]).is_err());
        assert!(Extent::decode(b"b", &[&bytes[..], &[0]].concat()).is_err());
    }
}
