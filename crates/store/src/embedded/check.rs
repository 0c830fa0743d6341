//! Walks everything that an embedded store holds and compares it with what the index says of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Shared;
use super::key::{self, Extent, KeyRange, Kind, Layout as _, Object, Usage};
use super::segment::{HEADER, Owner};
use super::view::{Stored, View as _, apart, parse_record};
use crate::StoreError;

/// Problems that are listed; more are only counted.
const LISTED: usize = 1000;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CheckReport {
    /// Records.
    pub records: u64,
    /// Tables.
    pub tables: u64,
    /// Rows of all tables.
    pub rows: u64,
    /// Uploads.
    pub uploads: u64,
    /// Plain bytes of all tables and uploads.
    pub bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of segment files.
    pub segment_bytes: u64,
    /// What is wrong, the first 1000.
    pub problems: Vec<String>,
    /// How many things are wrong.
    pub problem_count: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problem_count == 0
    }

    fn problem(&mut self, text: impl ToString) {
        self.problem_count = self.problem_count.saturating_add(1);
        if self.problems.len() < LISTED {
            self.problems.push(text.to_string());
        }
    }
}

pub(super) fn check(shared: &Shared) -> Result<CheckReport, StoreError> {
    let mut walk = Walk { shared, report: CheckReport::default(), live: BTreeMap::new(), objects: BTreeMap::new() };
    walk.records()?;
    walk.objects()?;
    walk.extents()?;
    walk.segments()?;
    Ok(walk.report)
}

struct Walk<'a> {
    shared: &'a Shared,
    report: CheckReport,
    /// Blocks by segment that something refers to.
    live: BTreeMap<u64, u64>,
    objects: BTreeMap<u64, (String, Kind, Object)>,
}

impl Walk<'_> {
    fn refer(&mut self, extent: &Extent) {
        let live = self.live.entry(extent.segment).or_default();
        *live = live.saturating_add(1);
    }

    fn records(&mut self) -> Result<(), StoreError> {
        let shared = self.shared;
        shared.walk(KeyRange::of_prefix(vec![key::RECORD]), false, |key, value| {
            self.report.records = self.report.records.saturating_add(1);
            match parse_record(&key, &value) {
                Ok(Stored::Inline(_)) => {}
                Ok(Stored::Apart(extent)) => {
                    self.refer(&extent);
                    if let Err(error) = shared.block(&extent, apart(&extent)) {
                        self.report.problem(error);
                    }
                }
                Err(error) => self.report.problem(error),
            }
            Ok(true)
        })
    }

    fn objects(&mut self) -> Result<(), StoreError> {
        self.shared.walk(KeyRange::of_prefix(vec![key::OBJECT]), false, |key, value| {
            let decoded = Object::decode(&key, &value);
            let (Some((org, name, kind)), Ok(object)) = (key::parse_object(&key), decoded) else {
                self.report.problem(key::damaged(&key, "not an object"));
                return Ok(true);
            };
            match kind {
                Kind::Table => {
                    self.report.tables = self.report.tables.saturating_add(1);
                    self.report.rows = self.report.rows.saturating_add(object.end);
                }
                Kind::Upload => self.report.uploads = self.report.uploads.saturating_add(1),
            }
            self.report.bytes = self.report.bytes.saturating_add(object.bytes);
            self.objects.insert(object.id, (format!("{org} {:?}", name.components()), kind, object));
            Ok(true)
        })
    }

    /// Extents of one object follow each other without gaps, and end where the object does.
    fn extents(&mut self) -> Result<(), StoreError> {
        let shared = self.shared;
        let mut reached: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        shared.walk(KeyRange::of_prefix(vec![key::EXTENT]), false, |key, value| {
            let object = key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
            let (Some(object), position) = (object, key::position_of(&key)?) else { return Ok(true) };
            let extent = match Extent::decode(&key, &value) {
                Ok(extent) => extent,
                Err(error) => {
                    self.report.problem(error);
                    return Ok(true);
                }
            };
            self.refer(&extent);
            // An object that was deleted has extents until they are reaped.
            let Some((name, kind, _)) = self.objects.get(&object) else { return Ok(true) };
            let (end, bytes) = reached.get(&object).copied().unwrap_or_default();
            if end != position {
                self.report.problem(format!("{name}: {end} follows {position}, something is missing between"));
            }
            let (name, kind) = (name.clone(), *kind);
            let length = match kind {
                Kind::Table => extent.rows,
                Kind::Upload => extent.plain,
            };
            reached.insert(object, (position.saturating_add(length.into()), bytes.saturating_add(extent.plain.into())));
            match shared.block(&extent, Owner { object, position }) {
                Ok(plain) if kind == Kind::Table && count_rows(&plain) != u64::from(extent.rows) => {
                    self.report.problem(format!("{name}: the block at row {position} has another number of rows"));
                }
                Ok(_) => {}
                Err(error) => self.report.problem(format!("{name}: {error}")),
            }
            Ok(true)
        })?;
        for (id, (name, _, object)) in &self.objects {
            let found = reached.get(id).copied().unwrap_or_default();
            if found != (object.end, object.bytes) {
                self.report.problem(format!("{name}: has {found:?} rows or bytes, should have {:?}", (object.end, object.bytes)));
            }
        }
        Ok(())
    }

    fn segments(&mut self) -> Result<(), StoreError> {
        let mut live = std::mem::take(&mut self.live);
        self.shared.walk(KeyRange::of_prefix(vec![key::SEGMENT]), false, |key, value| {
            let (id, usage) = (key::number_of(&key)?, Usage::decode(&key, &value)?);
            let path = self.shared.segments.path(id);
            let counted = live.remove(&id).unwrap_or_default();
            if counted != usage.live {
                self.report.problem(format!("{}: {counted} blocks are in use, the index says {}", path.display(), usage.live));
            }
            self.report.segments = self.report.segments.saturating_add(1);
            match std::fs::metadata(&path) {
                Ok(meta) if meta.len() < usage.end.max(HEADER) => {
                    self.report.problem(format!("{}: ends at {}, should reach {}", path.display(), meta.len(), usage.end));
                }
                Ok(meta) => self.report.segment_bytes = self.report.segment_bytes.saturating_add(meta.len()),
                Err(error) => self.report.problem(format!("{}: {error}", path.display())),
            }
            Ok(true)
        })?;
        for (id, blocks) in live {
            self.report.problem(format!("segment {id} is not in the index, but {blocks} blocks of it are in use"));
        }
        Ok(())
    }
}

fn count_rows(plain: &Bytes) -> u64 {
    u64::try_from(plain.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(u64::MAX)
}
