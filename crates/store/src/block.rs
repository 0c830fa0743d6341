//! Blocks as they are delivered: what they claim is verified before anything is stored, and nothing is inflated past its claim.

use std::cell::RefCell;

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

use crate::{BlockEncoding, ObjectName, RowBlock, StoreError};

/// The largest things that a store accepts. A larger one is refused with [`StoreError::Invalid`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a block or chunk as delivered.
    pub stored: usize,
    /// Bytes of a block or chunk before compression.
    pub plain: usize,
    /// Bytes of a record's key.
    pub key: usize,
    /// Bytes of a record's value.
    pub value: usize,
    /// Bytes of all components of an object's name.
    pub name: usize,
    /// Bytes of blocks, chunks, keys and values in one transaction.
    pub transaction: usize,
}

impl Default for Limits {
    /// 64 MiB for blocks, 16 MiB for values, 64 KiB for keys and names, 256 MiB for a transaction.
    fn default() -> Self {
        Self { stored: 64 << 20, plain: 64 << 20, key: 64 << 10, value: 16 << 20, name: 64 << 10, transaction: 256 << 20 }
    }
}

impl Limits {
    pub(crate) fn check_name(&self, name: &ObjectName) -> Result<(), StoreError> {
        if name.components().iter().any(String::is_empty) || name.components().is_empty() {
            return Err(StoreError::Invalid("the name of an object has an empty component".into()));
        }
        within("the name of an object", name.components().iter().map(String::len).sum(), self.name)
    }

    pub(crate) fn check_record(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        within("the key of a record", key.len(), self.key)?;
        within("the value of a record", value.len(), self.value)
    }

    pub(crate) fn check_transaction(&self, bytes: usize) -> Result<(), StoreError> {
        within("a transaction", bytes, self.transaction)
    }
}

fn within(what: &str, len: usize, limit: usize) -> Result<(), StoreError> {
    if len > limit {
        return Err(StoreError::Invalid(format!("{what} has {len} bytes, the limit is {limit}")));
    }
    Ok(())
}

/// The plain bytes of a block or chunk whose claimed length is true.
pub(crate) fn verified_bytes(block: &RowBlock, limits: &Limits) -> Result<Bytes, StoreError> {
    within("a block", block.data.len(), limits.stored)?;
    let claimed = usize::try_from(block.plain_len).unwrap_or(usize::MAX);
    within("a block before compression", claimed, limits.plain)?;
    match block.encoding {
        BlockEncoding::Plain if block.data.len() == claimed => Ok(block.data.clone()),
        BlockEncoding::Plain => Err(StoreError::Invalid(format!("the block claims {claimed} bytes and has {}", block.data.len()))),
        BlockEncoding::Zlib => inflate(&block.data, claimed).map(Bytes::from).map_err(StoreError::Invalid),
    }
}

thread_local! {
    // The state of a decompressor is some 40 KiB: making one for each block costs more than a small block itself.
    static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(true));
}

/// Inflates a zlib stream that must be whole, have nothing behind it, and hold exactly `plain` bytes.
pub(crate) fn inflate(data: &[u8], plain: usize) -> Result<Vec<u8>, String> {
    INFLATE.with_borrow_mut(|stream| {
        stream.reset(true);
        inflate_with(stream, data, plain)
    })
}

fn inflate_with(stream: &mut Decompress, data: &[u8], plain: usize) -> Result<Vec<u8>, String> {
    const STEP: usize = 256 << 10;
    let mut out = Vec::new();
    loop {
        let room = plain.saturating_sub(out.len()).saturating_add(1).min(STEP.max(out.len()));
        out.try_reserve(room).map_err(|error| error.to_string())?;
        let taken = usize::try_from(stream.total_in()).unwrap_or(usize::MAX);
        let before = (taken, out.len());
        let rest = data.get(taken..).unwrap_or_default();
        let status = stream.decompress_vec(rest, &mut out, FlushDecompress::None).map_err(|_| String::from("the zlib stream is broken"))?;
        if out.len() > plain {
            return Err(format!("the zlib stream holds more than the {plain} bytes that it claims"));
        }
        let taken = usize::try_from(stream.total_in()).unwrap_or(usize::MAX);
        match status {
            Status::StreamEnd if out.len() != plain => {
                return Err(format!("the zlib stream claims {plain} bytes and holds {}", out.len()));
            }
            Status::StreamEnd if taken != data.len() => return Err("bytes follow the zlib stream".into()),
            Status::StreamEnd => return Ok(out),
            Status::Ok | Status::BufError if before == (taken, out.len()) => return Err("the zlib stream is cut off".into()),
            Status::Ok | Status::BufError => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::CheckedRows;

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn rows(data: impl Into<Bytes>, count: u32, plain_len: u64, encoding: BlockEncoding) -> Result<Bytes, StoreError> {
        CheckedRows::of_block(RowBlock { data: data.into(), count, plain_len, encoding }, &Limits::default())?.plain()
    }

    #[test]
    fn true_claims_are_accepted() {
        let plain = b"{\"a\":1}\n{}\n";
        assert_eq!(rows(&plain[..], 2, 11, BlockEncoding::Plain).unwrap(), &plain[..]);
        assert_eq!(rows(zlib(plain), 2, 11, BlockEncoding::Zlib).unwrap(), &plain[..]);
        assert!(rows(&b""[..], 0, 0, BlockEncoding::Plain).is_ok());
        let long = "{\"x\":0}\n".repeat(200_000);
        assert_eq!(rows(zlib(long.as_bytes()), 200_000, 1_600_000, BlockEncoding::Zlib).unwrap(), long.as_bytes());
    }

    #[test]
    fn lying_claims_are_refused() {
        let plain = b"{\"a\":1}\n{}\n";
        let stream = zlib(plain);
        let refused = |data: &[u8], count, len, encoding| match rows(data.to_vec(), count, len, encoding) {
            Err(StoreError::Invalid(_)) => {}
            other => panic!("{other:?}"),
        };
        refused(plain, 3, 11, BlockEncoding::Plain);
        refused(plain, 2, 10, BlockEncoding::Plain);
        refused(b"{}", 1, 2, BlockEncoding::Plain);
        refused(b"[]\n", 1, 3, BlockEncoding::Plain);
        refused(b"{}\n\n", 2, 4, BlockEncoding::Plain);
        refused(&stream, 1, 11, BlockEncoding::Zlib);
        refused(&stream, 2, 10, BlockEncoding::Zlib);
        refused(&stream, 2, 12, BlockEncoding::Zlib);
        refused(plain, 2, 11, BlockEncoding::Zlib);
        refused(&[&stream[..], b"x"].concat(), 2, 11, BlockEncoding::Zlib);
        for cut in 0..stream.len() {
            refused(&stream[..cut], 2, 11, BlockEncoding::Zlib);
        }
        refused(plain, 2, u64::MAX, BlockEncoding::Zlib);
    }

    #[test]
    fn a_bomb_is_not_inflated_past_its_claim() {
        let bomb = zlib(&vec![0; 32 << 20]);
        assert_eq!(inflate(&bomb, 1000).unwrap_err(), "the zlib stream holds more than the 1000 bytes that it claims");
    }
}
