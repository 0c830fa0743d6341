//! `process`: the memory of a process, at `/<pid>`. What is not mapped or cannot be read is a hole.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use talon_ids::{Permission, Permissions};
use talon_vql::{CallError, Dict, OsPath, Scope};

use super::{Accessor, FileInfo, FileReader, Mode, Range};
use crate::authority::permit;
use crate::host;
use crate::upload::FileTimes;

pub(super) struct Memory;

impl Memory {
    fn pid(path: &OsPath) -> Result<u32, CallError> {
        let pid = match path.components() {
            [pid] => pid.to_str().parse().ok(),
            _ => None,
        };
        pid.ok_or_else(|| CallError::failed(format!("{path}: the path must be /<pid>")))
    }

    fn info(path: Arc<OsPath>, is_dir: bool) -> FileInfo {
        FileInfo {
            path,
            size: 0,
            mode: Mode(if is_dir { 0o040_755 } else { 0o100_600 }),
            is_dir,
            is_link: false,
            times: FileTimes::default(),
            identity: None,
            data: Dict::new(),
        }
    }
}

impl Accessor for Memory {
    fn permissions(&self) -> Permissions {
        Permissions::of(&[Permission::MachineState])
    }

    fn open(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Box<dyn FileReader>, CallError> {
        let pid = Self::pid(path)?;
        let permit = permit(scope)?;
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let maps = host::state(&permit, &folder.join("maps"))?;
        let file = host::state_file(&permit, &folder.join("mem"))?;
        Ok(Box::new(MemoryReader { file, maps: mapped(&String::from_utf8_lossy(&maps)), at: 0 }))
    }

    fn stat(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<FileInfo, CallError> {
        if path.components().is_empty() {
            return Ok(Self::info(path.clone(), true));
        }
        let pid = Self::pid(path)?;
        let maps = host::state(&permit(scope)?, &PathBuf::from(format!("/proc/{pid}/maps")))?;
        let size = mapped(&String::from_utf8_lossy(&maps)).last().map_or(0, |(start, length)| start.saturating_add(*length));
        Ok(FileInfo { size, ..Self::info(path.clone(), false) })
    }

    fn list(&self, scope: &Scope, path: &Arc<OsPath>) -> Result<Vec<FileInfo>, CallError> {
        if !path.components().is_empty() {
            return Err(CallError::failed(format!("{path}: not a folder")));
        }
        let names = host::state_names(&permit(scope)?, "/proc".as_ref())?;
        let mut pids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        pids.sort_unstable();
        Ok(pids.into_iter().map(|pid| Self::info(Arc::new(path.join(pid.to_string())), false)).collect())
    }
}

/// Start and length of the readable ranges in the text of `/proc/<pid>/maps`, in order; ranges that touch are one.
fn mapped(maps: &str) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for line in maps.lines() {
        let mut parts = line.split_ascii_whitespace();
        let (Some(addresses), Some(access)) = (parts.next(), parts.next()) else { continue };
        // Reading what the kernel maps for time and calls gives errors only.
        if !access.starts_with('r') || line.ends_with("[vvar]") || line.ends_with("[vvar_vclock]") || line.ends_with("[vsyscall]") {
            continue;
        }
        let Some((start, end)) = addresses.split_once('-') else { continue };
        let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)) else { continue };
        let length = end.saturating_sub(start);
        match ranges.last_mut() {
            Some((before, known)) if before.saturating_add(*known) == start => *known = known.saturating_add(length),
            _ => ranges.push((start, length)),
        }
    }
    ranges
}

struct MemoryReader {
    file: File,
    maps: Vec<(u64, u64)>,
    at: u64,
}

impl io::Read for MemoryReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const PAGE: u64 = 4096;
        let at = self.at;
        let next = self.maps.partition_point(|(start, length)| start.saturating_add(*length) <= at);
        let Some((start, length)) = self.maps.get(next).copied() else { return Ok(0) };
        let (inside, left) = match at.checked_sub(start) {
            Some(into) => (true, length.saturating_sub(into)),
            None => (false, start.saturating_sub(at)),
        };
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let target = buffer.get_mut(..want).unwrap_or_default();
        let mut got = if inside { self.file.read_at(target, at).unwrap_or(0) } else { 0 };
        if got == 0 {
            let hole = if inside { PAGE.saturating_sub(at % PAGE).min(want as u64) } else { want as u64 };
            got = usize::try_from(hole).unwrap_or(want);
            target.get_mut(..got).unwrap_or_default().fill(0);
        }
        self.at = at.saturating_add(got as u64);
        Ok(got)
    }
}

impl Seek for MemoryReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let end = self.maps.last().map_or(0, |(start, length)| start.saturating_add(*length));
        let (base, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::Current(by) => (self.at, by),
            SeekFrom::End(by) => (end, by),
        };
        self.at = base.checked_add_signed(by).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

impl FileReader for MemoryReader {
    fn ranges(&self) -> Option<Vec<Range>> {
        let mut ranges = Vec::new();
        let mut end = 0_u64;
        for (start, length) in &self.maps {
            if *start > end {
                ranges.push(Range { offset: end, length: start.saturating_sub(end), is_sparse: true });
            }
            ranges.push(Range { offset: *start, length: *length, is_sparse: false });
            end = start.saturating_add(*length);
        }
        Some(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readable_ranges_are_taken_from_the_map() {
        let maps = "1000-2000 r--p 00000000 fe:00 1 /bin/x\n2000-3000 r-xp 00001000 fe:00 1 /bin/x\n5000-6000 ---p 0 0:0 0\n7fff0000-7fff1000 rw-p 0 0:0 0 [stack]\n7fff2000-7fff3000 r--p 0 0:0 0 [vvar]\n";
        assert_eq!(mapped(maps), [(0x1000, 0x2000), (0x7fff_0000, 0x1000)]);
        assert_eq!(mapped("nonsense\n-\n"), []);
    }
}
