//! `sparse`: a file of another accessor, of which only the listed ranges are there; between them are holes.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use talon_ids::Permissions;
use talon_vql::{CallError, OsPath, PathFlavour, Scope};

use super::data::info;
use super::{Accessor, FileInfo, FileReader, Range, named};

/// More ranges than this are refused.
const MAX_RANGES: usize = 100_000;

pub(super) struct Sparse;

impl Accessor for Sparse {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    /// What the delegate needs is checked when it is opened.
    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        let delegate = path.delegate().ok_or_else(|| CallError::failed("sparse: the path needs a DelegateAccessor and a DelegatePath"))?;
        let accessor = named(scope, &delegate.accessor)?;
        let inner = if delegate.accessor == "data" || delegate.accessor == "scope" {
            OsPath::literal(delegate.path.as_str())
        } else {
            OsPath::parse(delegate.path.as_str(), accessor.flavour())
        };
        let file = accessor.open(scope, &Arc::new(inner))?;
        let ranges = ranges(&path_text(path))?;
        Ok(Box::new(SparseReader { file, ranges, position: 0 }))
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        self.open(scope, path)?;
        let size = ranges(&path_text(path))?.last().map_or(0, |range| range.offset.saturating_add(range.length));
        Ok(FileInfo { size, ..info(path, 0) })
    }

    fn list(&self, _: &Scope, _: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        Err(CallError::failed("the sparse accessor has no folders"))
    }
}

/// The part of the path that lists the ranges, as JSON.
pub(super) fn path_text(path: &OsPath) -> String {
    path.as_literal().map_or_else(
        || path.components().iter().map(|part| part.to_str().into_owned()).collect::<Vec<_>>().join("/"),
        |text| text.to_str().into_owned(),
    )
}

/// Parses `[{"offset": 0, "length": 5}, …]` and adds the holes between.
fn ranges(text: &str) -> Result<Vec<Range>, CallError> {
    let bad = || CallError::failed("sparse: Path must be a JSON list of objects with offset and length, in ascending order");
    let listed: Vec<serde_json::Value> = serde_json::from_str(text).map_err(|_| bad())?;
    if listed.len() > MAX_RANGES {
        return Err(bad());
    }
    let mut ranges = Vec::with_capacity(listed.len());
    let mut end = 0_u64;
    for range in &listed {
        let field = |name: &str| {
            let value = range.get(name).or_else(|| range.get(if name == "offset" { "Offset" } else { "Length" }));
            value.and_then(serde_json::Value::as_u64).ok_or_else(bad)
        };
        let (offset, length) = (field("offset")?, field("length")?);
        if offset < end {
            return Err(bad());
        }
        if offset > end {
            ranges.push(Range { offset: end, length: offset.saturating_sub(end), is_sparse: true });
        }
        ranges.push(Range { offset, length, is_sparse: false });
        end = offset.checked_add(length).ok_or_else(bad)?;
    }
    Ok(ranges)
}

struct SparseReader {
    file: Box<dyn FileReader>,
    ranges: Vec<Range>,
    position: u64,
}

impl SparseReader {
    fn size(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.offset.saturating_add(range.length))
    }
}

impl FileReader for SparseReader {
    fn ranges(&self) -> Option<Vec<Range>> {
        Some(self.ranges.clone())
    }
}

impl Read for SparseReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let position = self.position;
        let inside = |range: &&Range| position >= range.offset && position < range.offset.saturating_add(range.length);
        let Some(range) = self.ranges.iter().find(inside).copied() else { return Ok(0) };
        let left = range.offset.saturating_add(range.length).saturating_sub(position);
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(target) = buffer.get_mut(..want) else { return Ok(0) };
        let mut got = 0;
        if !range.is_sparse {
            self.file.seek(SeekFrom::Start(position))?;
            got = self.file.read(target)?;
        }
        if got == 0 {
            target.fill(0);
            got = want;
        }
        self.position = position.saturating_add(got as u64);
        Ok(got)
    }
}

impl Seek for SparseReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::Current(by) => (self.position, by),
            SeekFrom::End(by) => (self.size(), by),
        };
        self.position = base.checked_add_signed(by).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_lie_between_the_listed_ranges() {
        let ranges = ranges(r#"[{"length":5,"offset":0},{"offset":20,"length":6}]"#).unwrap();
        let shown: Vec<_> = ranges.iter().map(|range| (range.offset, range.length, range.is_sparse)).collect();
        assert_eq!(shown, [(0, 5, false), (5, 15, true), (20, 6, false)]);
    }

    #[test]
    fn ranges_that_overlap_or_overflow_are_refused() {
        for bad in
            [r#"[{"offset":5,"length":5},{"offset":6,"length":1}]"#, r#"[{"offset":18446744073709551615,"length":1}]"#, "{}", "[1]", ""]
        {
            assert!(ranges(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_give_zeros_in_holes() {
        let content: Arc<[u8]> = Arc::from(&b"0123456789abcdefghijklmnopqrstuvwxyz"[..]);
        let mut reader = SparseReader {
            file: Box::new(io::Cursor::new(content)),
            ranges: ranges(r#"[{"length":2,"offset":0},{"offset":4,"length":2}]"#).unwrap(),
            position: 0,
        };
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"01\0\x0045");
    }
}
