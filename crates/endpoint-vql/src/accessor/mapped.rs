//! `offset`, `ranged`: a file of another accessor from a place on, and packed sparse files as they were.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use talon_ids::Permissions;
use talon_vql::{CallError, OsPath, PathFlavour, Scope};

use super::data::info;
use super::delegate::{Part, inner};
use super::sparse::path_text;
use super::{Accessor, FileInfo, FileReader, Range};

/// More ranges than this are refused.
const MAX_RANGES: usize = 1_000_000;

/// Where the ranges of a packed file were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping(Vec<Run>);

/// A range of the original file. A hole has no bytes in the packed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    original: u64,
    length: u64,
    packed: u64,
    packed_length: u64,
}

impl Mapping {
    /// Reads `{"ranges": [{"file_offset", "original_offset", "file_length", "length"}, …]}`, or the list alone; names in any style.
    pub(super) fn parse(text: &[u8]) -> Result<Self, CallError> {
        let bad =
            || CallError::failed("ranged: expected a JSON list of FileOffset, OriginalOffset, FileLength and Length, in ascending order");
        let value: serde_json::Value = serde_json::from_slice(text).map_err(|_| bad())?;
        let list = value.get("ranges").or_else(|| value.get("Ranges")).unwrap_or(&value).as_array().ok_or_else(bad)?;
        if list.len() > MAX_RANGES {
            return Err(bad());
        }
        let mut runs = Vec::with_capacity(list.len());
        let mut end = 0_u64;
        for range in list {
            let field = |names: [&str; 3]| {
                let value = names.iter().find_map(|name| range.get(name));
                match value {
                    None => Some(0),
                    Some(value) => value.as_u64().or_else(|| value.as_str()?.parse().ok()),
                }
                .ok_or_else(bad)
            };
            let run = Run {
                original: field(["OriginalOffset", "original_offset", "originalOffset"])?,
                length: field(["Length", "length", "length"])?,
                packed: field(["FileOffset", "file_offset", "fileOffset"])?,
                packed_length: field(["FileLength", "file_length", "fileLength"])?,
            };
            if run.original < end || run.packed_length > run.length {
                return Err(bad());
            }
            end = run.original.checked_add(run.length).ok_or_else(bad)?;
            run.packed.checked_add(run.packed_length).ok_or_else(bad)?;
            runs.push(run);
        }
        Ok(Self(runs))
    }

    /// The size of the original file.
    pub(super) fn size(&self) -> u64 {
        self.0.last().map_or(0, |run| run.original.saturating_add(run.length))
    }

    /// What lies at `at`: the place in the packed file (none in a hole), and how many bytes go on like that.
    fn find(&self, at: u64) -> Option<(Option<u64>, u64)> {
        let next = self.0.partition_point(|run| run.original.saturating_add(run.length) <= at);
        let run = self.0.get(next)?;
        let Some(into) = at.checked_sub(run.original) else { return Some((None, run.original.saturating_sub(at))) };
        match run.packed_length.checked_sub(into) {
            Some(left) if left > 0 => Some((Some(run.packed.saturating_add(into)), left)),
            _ => Some((None, run.length.saturating_sub(into))),
        }
    }
}

/// A packed file as it was.
pub(super) struct Mapped {
    packed: Box<dyn FileReader>,
    mapping: Mapping,
    at: u64,
}

impl Mapped {
    pub(super) fn new(packed: Box<dyn FileReader>, mapping: Mapping) -> Self {
        Self { packed, mapping, at: 0 }
    }
}

impl Read for Mapped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((packed, left)) = self.mapping.find(self.at) else { return Ok(0) };
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let target = buffer.get_mut(..want).unwrap_or_default();
        let mut got = 0;
        if let Some(packed) = packed {
            self.packed.seek(SeekFrom::Start(packed))?;
            got = self.packed.read(target)?;
        }
        if got == 0 {
            target.fill(0);
            got = want;
        }
        self.at = self.at.saturating_add(got as u64);
        Ok(got)
    }
}

impl Seek for Mapped {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::Current(by) => (self.at, by),
            SeekFrom::End(by) => (self.mapping.size(), by),
        };
        self.at = base.checked_add_signed(by).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

impl FileReader for Mapped {
    fn ranges(&self) -> Option<Vec<Range>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while let Some((packed, length)) = self.mapping.find(at).filter(|(_, length)| *length > 0) {
            ranges.push(Range { offset: at, length, is_sparse: packed.is_none() });
            at = at.saturating_add(length);
        }
        Some(ranges)
    }
}

/// `ranged`: the path is the mapping, the delegate the packed file.
pub(super) struct Ranged;

impl Accessor for Ranged {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        let mapping = Mapping::parse(path_text(path).as_bytes())?;
        let (accessor, below) = inner(scope, path)?;
        Ok(Box::new(Mapped::new(accessor.open(scope, &below)?, mapping)))
    }

    fn stat(&self, _: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        Ok(FileInfo { size: Mapping::parse(path_text(path).as_bytes())?.size(), ..info(path, 0) })
    }

    fn list(&self, _: &Scope, _: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        Err(CallError::failed("the ranged accessor has no folders"))
    }
}

/// `offset`: the path is a number, the delegate is read from that byte on.
pub(super) struct Offset;

impl Offset {
    fn start(path: &OsPath) -> Result<u64, CallError> {
        let text = path_text(path);
        let text = text.trim_matches('/');
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.map_err(|_| CallError::failed(format!("offset: Path must be a number, not {text}")))
    }
}

impl Accessor for Offset {
    fn flavour(&self) -> PathFlavour {
        PathFlavour::Generic
    }

    fn permissions(&self) -> Permissions {
        Permissions::NONE
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        let start = Self::start(path)?;
        if path.delegate().is_none() {
            return Err(CallError::failed("offset: the path needs a DelegateAccessor and a DelegatePath"));
        }
        let (accessor, below) = inner(scope, path)?;
        let mut file = accessor.open(scope, &below)?;
        let size = file.seek(SeekFrom::End(0)).unwrap_or(u64::MAX);
        Ok(Box::new(Part::new(file, start, size.saturating_sub(start))))
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        let start = Self::start(path)?;
        let (accessor, below) = inner(scope, path)?;
        let below = accessor.stat(scope, &below)?;
        Ok(FileInfo { path: path.clone(), size: below.size.saturating_sub(start), ..below })
    }

    fn list(&self, _: &Scope, _: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        Err(CallError::failed("the offset accessor has no folders"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_files_are_read_as_they_were() {
        let index = br#"{"ranges":[{"file_length":3,"length":3},{"file_offset":3,"original_offset":3,"length":4},{"file_offset":"3","original_offset":9,"file_length":2,"length":2}]}"#;
        let mapping = Mapping::parse(index).unwrap();
        assert_eq!(mapping.size(), 11);
        let mut file = Mapped::new(Box::new(io::Cursor::new(Arc::<[u8]>::from(&b"abcde"[..]))), mapping);
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"abc\0\0\0\0\0\0de");
        let shown: Vec<_> = file.ranges().unwrap().iter().map(|range| (range.offset, range.length, range.is_sparse)).collect();
        assert_eq!(shown, [(0, 3, false), (3, 4, true), (7, 2, true), (9, 2, false)]);
        file.seek(SeekFrom::Start(9)).unwrap();
        let mut one = [0];
        file.read_exact(&mut one).unwrap();
        assert_eq!(&one, b"d");
    }

    #[test]
    fn bad_mappings_are_refused() {
        for bad in
            [r#"[{"Length":1,"FileLength":2}]"#, r#"[{"OriginalOffset":5,"Length":5},{"OriginalOffset":6}]"#, "7", "", "[{\"Length\":-1}]"]
        {
            assert!(Mapping::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
