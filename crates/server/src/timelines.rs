//! Timelines of notebooks: rows of several queries under one name, each sorted by time, read as one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde_json::json;
use talon_acl::{EditNotebooks, Permit, ReadResults};
use talon_audit::{Details, Receipt};
use talon_proto::{AnnotationRequest, NotebookMetadata, SuperTimeline, Timeline};
use talon_store::{ObjectName, Scan, Space};

use crate::ServerError;
use crate::flows::Lines;
use crate::layout::{decode, get, put};
use crate::org::Org;
use crate::rows;
use crate::session::Session;

/// The column that rows are sorted by, in nanoseconds. It is the server's own.
const AT: &str = "_TimelineAt";
/// The timeline that holds what people noted.
const ANNOTATIONS: &str = "Annotation";
/// Rows of one timeline, and rows that are stored together.
const MAX_ROWS: usize = 1_000_000;
const BATCH: usize = 5_000;
/// Timelines under one name.
const MAX_CHILDREN: usize = 100;
/// The longest name and note, in bytes.
const MAX_NAME: usize = 128;
const MAX_NOTE: usize = 64 * 1024;

/// A row for a timeline: its moment in nanoseconds, and its JSON text.
pub type Timed = (i64, String);

fn super_key(notebook: &str, name: &str) -> Vec<u8> {
    [notebook.as_bytes(), b"\0timeline\0", name.as_bytes()].concat()
}

fn table(notebook: &str, name: &str, child: &str) -> ObjectName {
    ObjectName::new(["notebooks", notebook, "timelines", name, child])
}

fn check_name(name: &str) -> Result<(), ServerError> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(ServerError::invalid(format!("a timeline has a name of 1 to {MAX_NAME} bytes")));
    }
    Ok(())
}

impl Session {
    /// Puts rows under a name, in place of those of the same child.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::NotShared`], [`ServerError::Invalid`] for too many rows.
    pub fn add_timeline(&self, notebook: &str, name: &str, child: Timeline, timed: Vec<Timed>) -> Result<SuperTimeline, ServerError> {
        let permit = self.authority().permit::<ReadResults>()?;
        self.notebook(notebook)?;
        let details = Details::new().text("notebook_id", notebook).text("timeline", name).text("name", &child.id);
        let receipt = self.record("timeline_add", details)?;
        self.org().own(&permit)?;
        let stored = self.org().put_timeline(receipt, notebook, name, child, timed)?;
        let row = [("NotebookId", notebook.into()), ("Timeline", name.into())];
        self.org().announce("Server.Internal.TimelineAdd", &row);
        Ok(stored)
    }

    /// The timelines of a notebook.
    ///
    /// # Errors
    /// As [`Session::notebook`].
    pub fn timelines(&self, notebook: &str) -> Result<Vec<SuperTimeline>, ServerError> {
        self.notebook(notebook)?;
        let prefix = super_key(notebook, "");
        let found = self.org().reader().scan(self.org().id(), Space::Notebooks, &Scan { prefix, ..Scan::default() })?;
        found.iter().map(|(key, value)| decode(Space::Notebooks, key, value)).collect()
    }

    /// The rows under a name in the order of time, from `start` in nanoseconds on: of the named children, or of all but those that are skipped.
    ///
    /// # Errors
    /// As [`Session::notebook`]; [`ServerError::NotFound`].
    pub fn timeline(&self, notebook: &str, name: &str, only: &[String], skip: &[String], start: i64) -> Result<Merged, ServerError> {
        self.notebook(notebook)?;
        let stored: Option<SuperTimeline> = get(self.org().reader(), self.org().id(), Space::Notebooks, &super_key(notebook, name))?;
        let children = stored.ok_or_else(|| ServerError::not_found("Timeline", name))?.timelines;
        let wanted = |child: &&Timeline| (only.is_empty() || only.contains(&child.id)) && !skip.contains(&child.id);
        let mut merged = Merged { sources: Vec::new(), next: BinaryHeap::new() };
        for child in children.iter().filter(wanted) {
            let mut lines = self.org().rows(&table(notebook, name, &child.id), 0)?;
            let first = lines.by_ref().map(timed).find(|row| row.as_ref().map_or(true, |(at, _)| *at >= start));
            merged.sources.push((child.id.clone(), lines));
            if let Some(row) = first {
                let (at, line) = row?;
                merged.next.push(Reverse((at, merged.sources.len().saturating_sub(1), line)));
            }
        }
        Ok(merged)
    }

    /// Deletes a timeline, or one child of it.
    ///
    /// # Errors
    /// [`ServerError::Denied`], and as [`Session::notebook`].
    pub fn delete_timeline(&self, notebook: &str, name: &str, child: &str) -> Result<(), ServerError> {
        let permit = self.authority().permit::<EditNotebooks>()?;
        self.notebook(notebook)?;
        let details = Details::new().text("notebook_id", notebook).text("timeline", name).text("name", child);
        let receipt = self.record("timeline_delete", details)?;
        self.org().remove_timeline(&permit, receipt, notebook, name, child)
    }

    /// Notes something at a moment of a timeline.
    ///
    /// # Errors
    /// [`ServerError::Denied`], [`ServerError::Invalid`] for an event that is no object, and as [`Session::notebook`].
    pub fn annotate(&self, request: &AnnotationRequest) -> Result<(), ServerError> {
        let permit = self.authority().permit::<EditNotebooks>()?;
        let (notebook, name) = (request.notebook_id.as_str(), request.super_timeline.as_str());
        self.notebook(notebook)?;
        self.org().own(&permit)?;
        if request.note.len() > MAX_NOTE || request.event_json.len() > MAX_NOTE {
            return Err(ServerError::invalid(format!("a note and its event have at most {MAX_NOTE} bytes each")));
        }
        let at = request.timestamp.saturating_mul(1_000_000_000);
        let event = if request.event_json.is_empty() { "{}" } else { request.event_json.as_str() };
        let columns = [
            ("Notes", json!(request.note)),
            ("_AnnotationID", json!(self.org().short_id())),
            ("_AnnotatedBy", json!(self.principal().as_str())),
            ("_AnnotatedAt", json!(self.org().now_us() / 1_000_000)),
            ("_OriginalTime", json!(request.timestamp)),
        ];
        let row = rows::stamp(event, &columns).ok().and_then(|rows| rows.into_iter().next());
        let row = row.ok_or_else(|| ServerError::invalid("the event is no JSON object"))?;
        let details = Details::new().text("notebook_id", notebook).text("timeline", name);
        let receipt = self.record("AnnotateTimeline", details)?;
        let mut noted = Vec::new();
        for line in self.org().rows(&table(notebook, name, ANNOTATIONS), 0)? {
            noted.push(timed(line)?);
        }
        noted.push((at, row));
        let child = Timeline { id: ANNOTATIONS.into(), message_column: "Notes".into(), ..Timeline::default() };
        self.org().put_timeline(receipt, notebook, name, child, noted).map(drop)
    }
}

impl Org {
    fn put_timeline(
        &self,
        receipt: Receipt,
        notebook: &str,
        name: &str,
        mut child: Timeline,
        mut timed: Vec<Timed>,
    ) -> Result<SuperTimeline, ServerError> {
        drop(receipt);
        check_name(name)?;
        check_name(&child.id)?;
        if timed.len() > MAX_ROWS {
            return Err(ServerError::invalid(format!("a timeline has at most {MAX_ROWS} rows")));
        }
        timed.sort_by_key(|(at, _)| *at);
        child.start_time = timed.first().map_or(0, |(at, _)| *at);
        child.end_time = timed.last().map_or(0, |(at, _)| *at);
        child.active = true;
        let mut lines = Vec::with_capacity(timed.len());
        for (at, line) in timed {
            let stamped = rows::stamp(&line, &[(AT, json!(at))]).map_err(|bad| ServerError::invalid(bad.to_string()))?;
            lines.extend(stamped);
        }
        let (org, notebook, name) = (self.clone(), notebook.to_owned(), name.to_owned());
        self.submit(move |txn| {
            let key = super_key(&notebook, &name);
            let mut stored: SuperTimeline = get(&*txn, org.id(), Space::Notebooks, &key)?.unwrap_or_default();
            stored.name.clone_from(&name);
            stored.timelines.retain(|other| other.id != child.id);
            if stored.timelines.len() >= MAX_CHILDREN {
                return Err(ServerError::invalid(format!("a timeline has at most {MAX_CHILDREN} parts")));
            }
            let object = table(&notebook, &name, &child.id);
            stored.timelines.push(child);
            txn.delete_object(org.id(), &object)?;
            for piece in lines.chunks(BATCH) {
                txn.append_rows(org.id(), &object, None, rows::block(piece))?;
            }
            put(txn, org.id(), Space::Notebooks, &key, &stored);
            let of = notebook.as_bytes();
            if let Some(mut metadata) = get::<NotebookMetadata>(&*txn, org.id(), Space::Notebooks, of)?
                && !metadata.timelines.contains(&name)
            {
                metadata.timelines.push(name);
                put(txn, org.id(), Space::Notebooks, of, &metadata);
            }
            Ok(stored)
        })
        .wait()
    }

    fn remove_timeline(
        &self,
        permit: &Permit<EditNotebooks>,
        receipt: Receipt,
        notebook: &str,
        name: &str,
        child: &str,
    ) -> Result<(), ServerError> {
        self.own(permit)?;
        drop(receipt);
        let (org, notebook, name, child) = (self.clone(), notebook.to_owned(), name.to_owned(), child.to_owned());
        self.submit(move |txn| {
            let key = super_key(&notebook, &name);
            let Some(mut stored) = get::<SuperTimeline>(&*txn, org.id(), Space::Notebooks, &key)? else { return Ok(()) };
            let (gone, kept): (Vec<_>, Vec<_>) = stored.timelines.into_iter().partition(|other| child.is_empty() || other.id == child);
            for timeline in gone {
                txn.delete_object(org.id(), &table(&notebook, &name, &timeline.id))?;
            }
            stored.timelines = kept;
            if !stored.timelines.is_empty() {
                put(txn, org.id(), Space::Notebooks, &key, &stored);
                return Ok(());
            }
            txn.delete(org.id(), Space::Notebooks, &key);
            let of = notebook.as_bytes();
            if let Some(mut metadata) = get::<NotebookMetadata>(&*txn, org.id(), Space::Notebooks, of)? {
                metadata.timelines.retain(|other| *other != name);
                put(txn, org.id(), Space::Notebooks, of, &metadata);
            }
            Ok(())
        })
        .wait()
    }
}

/// A stored row with its moment, which is no column of it.
fn timed(line: Result<String, ServerError>) -> Result<Timed, ServerError> {
    let line = line?;
    let damaged = || ServerError::invalid("a row of a timeline is damaged");
    let members: rows::Members<'_> = serde_json::from_str(&line).map_err(|_| damaged())?;
    let (_, at) = members.0.iter().find(|(name, _)| name == AT).ok_or_else(damaged)?;
    let at = at.get().parse().map_err(|_| damaged())?;
    let kept = members.0.iter().filter(|(name, _)| name != AT).map(|(name, value)| format!("{}:{}", json!(name), value.get()));
    Ok((at, format!("{{{}}}", kept.collect::<Vec<_>>().join(","))))
}

/// The rows of several timelines in the order of time.
pub struct Merged {
    sources: Vec<(String, Lines)>,
    next: BinaryHeap<Reverse<(i64, usize, String)>>,
}

impl Iterator for Merged {
    /// Moment in nanoseconds, the timeline's name, the row.
    type Item = Result<(i64, String, String), ServerError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((at, number, line)) = self.next.pop()?;
        let (name, lines) = self.sources.get_mut(number)?;
        match lines.next().map(timed) {
            Some(Ok((at, line))) => self.next.push(Reverse((at, number, line))),
            Some(Err(error)) => return Some(Err(error)),
            None => {}
        }
        Some(Ok((at, name.clone(), line)))
    }
}
