//! Files that structures are read from: a few pages of each in memory, and few of them open at a time.

use std::collections::VecDeque;
use std::io::{Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use talon_vql::{CallError, OsPath, Scope};

use crate::accessor::{self, FileReader};

const PAGE: u64 = 16 << 10;
/// How many pages of a file are in memory.
const PAGES: usize = 16;
/// How many files a query has open for structures.
const MAX_OPEN: usize = 32;
/// More is not read at once.
const MAX_READ: u64 = 64 << 20;

/// A file.
pub(super) struct Source {
    accessor: String,
    path: Arc<OsPath>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reader: Option<Box<dyn FileReader>>,
    /// The newest last.
    pages: Vec<(u64, Arc<[u8]>)>,
}

/// The files that a query has open.
#[derive(Default)]
struct OpenSources(Mutex<VecDeque<Arc<Source>>>);

/// The file at `path`; the one that is open already, where the content cannot be another.
pub(super) fn open(scope: &Scope, accessor: &str, path: &Arc<OsPath>) -> Result<Arc<Source>, CallError> {
    let way = accessor::named(scope, accessor)?;
    let open = scope.shared::<OpenSources>();
    let lock = || open.0.lock().unwrap_or_else(PoisonError::into_inner);
    let in_memory = path.as_literal().is_some();
    if !in_memory && let Some(known) = lock().iter().find(|known| known.accessor == accessor && known.path.to_text() == path.to_text()) {
        return Ok(known.clone());
    }
    let state = State { reader: Some(way.open(scope, path)?), pages: Vec::new() };
    let source = Arc::new(Source { accessor: accessor.to_owned(), path: path.clone(), state: Mutex::new(state) });
    if !in_memory {
        let mut open = lock();
        open.push_back(source.clone());
        if open.len() > MAX_OPEN
            && let Some(oldest) = open.pop_front()
        {
            oldest.close();
        }
    }
    Ok(source)
}

impl Source {
    fn close(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
    }

    /// The bytes at `offset`, fewer at the end of the file.
    pub(super) fn read(&self, scope: &Scope, offset: u64, length: u64) -> Vec<u8> {
        let length = length.min(MAX_READ);
        if !scope.has_room_for(length) {
            return Vec::new();
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if length > PAGE {
            return self.fetch(scope, &mut state, offset, length);
        }
        let mut found = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        let mut at = offset;
        while (found.len() as u64) < length {
            let page = self.page(scope, &mut state, at / PAGE);
            let start = usize::try_from(at % PAGE).unwrap_or(usize::MAX);
            let want = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(found.len());
            let piece = page.get(start..).map_or(&[][..], |rest| rest.get(..want).unwrap_or(rest));
            if piece.is_empty() {
                break;
            }
            found.extend_from_slice(piece);
            let Some(next) = at.checked_add(piece.len() as u64) else { break };
            at = next;
        }
        found
    }

    fn page(&self, scope: &Scope, state: &mut State, number: u64) -> Arc<[u8]> {
        if let Some(at) = state.pages.iter().rposition(|(known, _)| *known == number) {
            let page = state.pages.remove(at);
            let content = page.1.clone();
            state.pages.push(page);
            return content;
        }
        let content: Arc<[u8]> = self.fetch(scope, state, number.saturating_mul(PAGE), PAGE).into();
        if state.pages.len() >= PAGES {
            state.pages.remove(0);
        }
        state.pages.push((number, content.clone()));
        content
    }

    fn fetch(&self, scope: &Scope, state: &mut State, offset: u64, length: u64) -> Vec<u8> {
        if state.reader.is_none() {
            state.reader = accessor::named(scope, &self.accessor).and_then(|way| way.open(scope, &self.path)).ok();
        }
        let mut content = Vec::new();
        if let Some(reader) = &mut state.reader
            && let Err(error) = reader.seek(SeekFrom::Start(offset)).and_then(|_| reader.by_ref().take(length).read_to_end(&mut content))
        {
            scope.log_once(format!("parse_binary: {}: {error}", self.path));
        }
        content
    }
}
