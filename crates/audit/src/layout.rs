//! How a log lies in its storage.
//!
//! `checkpoint`, `tile/<level>/<n>` and `tile/entries/<n>` are the static files of tlog-tiles; the entries are the leaves of the records.
//! `opening/<n>` has the openings of a full bundle's records in the same form, an erased one as an empty entry. The records since the last
//! full bundle are in `journal/<n>`: batches, each of them leaves with their openings and the checkpoint that signs the log with them,
//! appended by one durable write.

use crate::AuditError;
use crate::record::Sealed;

/// The name of the current checkpoint.
pub(crate) const CHECKPOINT: &str = "checkpoint";

/// Records in a full bundle, hashes in a full tile.
pub(crate) const WIDTH: u64 = 256;

/// The name of a hash tile; `width` below [`WIDTH`] is a partial one.
pub(crate) fn tile(level: u8, n: u64, width: u64) -> String {
    format!("tile/{level}/{}", tile_number(n, width))
}

/// The name of an entry bundle.
pub(crate) fn bundle(n: u64, width: u64) -> String {
    format!("tile/entries/{}", tile_number(n, width))
}

/// The name of the openings of the records of bundle `n`.
pub(crate) fn openings(n: u64) -> String {
    format!("opening/{}", tile_number(n, WIDTH))
}

/// The name of the journal of the records of bundle `n`.
pub(crate) fn journal(n: u64) -> String {
    format!("journal/{}", tile_number(n, WIDTH))
}

/// Whether a file that was written lazily was lost with the power: it is empty, or ends in zeros.
pub(crate) fn is_lost(content: &[u8]) -> bool {
    content.last().is_none_or(|last| *last == 0)
}

/// Three digits per path element, an `x` before each but the last, as tlog-tiles prescribes.
fn tile_number(n: u64, width: u64) -> String {
    let mut path = format!("{:03}", n % 1000);
    let mut rest = n / 1000;
    while rest > 0 {
        path = format!("x{:03}/{path}", rest % 1000);
        rest /= 1000;
    }
    if width < WIDTH { format!("{path}.p/{width}") } else { path }
}

/// Appends one record in the form of entry bundles: two bytes of length, then the record.
pub(crate) fn push_entry(to: &mut Vec<u8>, record: &[u8]) -> Result<(), AuditError> {
    let length = u16::try_from(record.len()).map_err(|_| AuditError::Record("it is too long"))?;
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(record);
    Ok(())
}

/// Takes one record off the front.
fn take_entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// The records of a bundle, which must hold nothing else.
pub(crate) fn read_bundle(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = take_entry(bytes)?;
        records.push(record);
        bytes = rest;
    }
    Some(records)
}

/// A batch of the journal.
pub(crate) struct Batch<'a> {
    /// The leaf and the opening of each record.
    pub(crate) records: Vec<(&'a [u8], &'a [u8])>,
    pub(crate) checkpoint: &'a [u8],
}

/// The bytes of a batch: four bytes of length of the rest, two bytes of number of records, leaf and opening of each, the checkpoint.
pub(crate) fn write_batch(records: &[Sealed], checkpoint: &[u8]) -> Result<Vec<u8>, AuditError> {
    let too_many = |_| AuditError::Record("too many in one batch");
    let mut body = u16::try_from(records.len()).map_err(too_many)?.to_be_bytes().to_vec();
    for record in records {
        push_entry(&mut body, &record.leaf)?;
        push_entry(&mut body, &record.opening)?;
    }
    body.extend_from_slice(checkpoint);
    let length = u32::try_from(body.len()).map_err(too_many)?;
    Ok([length.to_be_bytes().as_slice(), &body].concat())
}

/// Takes one batch off the front; none if what is there is not a whole batch.
pub(crate) fn take_batch(bytes: &[u8]) -> Option<(Batch<'_>, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (body, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    let (count, mut body) = body.split_first_chunk::<2>()?;
    let count = u16::from_be_bytes(*count);
    if count == 0 || u64::from(count) > WIDTH {
        return None;
    }
    let mut records = Vec::new();
    for _ in 0..count {
        let (leaf, left) = take_entry(body)?;
        let (opening, left) = take_entry(left)?;
        records.push((leaf, opening));
        body = left;
    }
    Some((Batch { records, checkpoint: body }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_static_logs() {
        assert_eq!(tile(0, 0, 256), "tile/0/000");
        assert_eq!(tile(1, 1_234_067, 256), "tile/1/x001/x234/067");
        assert_eq!(tile(0, 273, 112), "tile/0/273.p/112");
        assert_eq!(bundle(1_000, 3), "tile/entries/x001/000.p/3");
        assert_eq!(journal(7), "journal/007");
        assert_eq!(openings(1_007), "opening/x001/007");
    }

    #[test]
    fn batches_survive_their_bytes_and_no_start_of_one_is_one() {
        let sealed = |leaf: &[u8], opening: &[u8]| Sealed { leaf: leaf.to_vec(), opening: opening.to_vec() };
        let bytes = write_batch(&[sealed(b"one", b"more"), sealed(b"", b"")], b"note").unwrap();
        let (batch, rest) = take_batch(&bytes).unwrap();
        let records = [(&b"one"[..], &b"more"[..]), (&b""[..], &b""[..])];
        assert_eq!((batch.records.as_slice(), batch.checkpoint, rest), (&records[..], &b"note"[..], &b""[..]));
        for cut in 0..bytes.len() {
            assert!(take_batch(&bytes[..cut]).is_none(), "{cut}");
        }
        assert!(take_batch(&write_batch(&[], b"note").unwrap()).is_none());
    }
}
