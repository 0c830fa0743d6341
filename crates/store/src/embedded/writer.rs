//! The writer thread: it gathers waiting transactions into groups, and a group costs one sync of the journal.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::check::check;
use super::journal::{self, Blocks, Journal};
use super::key::{self, KeyRange, Layout as _, State};
use super::segment::{Files, HEADER, SegmentFile, file_header};
use super::txn::{EmbeddedTxn, Layer};
use super::view::View as _;
use super::{CheckReport, Shared};
use crate::{StoreError, Work};

/// Transactions in a group, and bytes after which a group takes no more.
const GROUP_LEN: usize = 1024;
const GROUP_BYTES: usize = 32 << 20;
/// Extents that one group of reaping forgets.
const REAP: usize = 4096;
/// Groups of transactions between two of reaping, when there is no idle moment.
const REAP_EVERY: u32 = 16;
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Blocks are handed to the file in pieces of about this size.
const WRITE: usize = 1 << 20;

/// Bytes of changes after which a checkpoint begins, and after which groups wait for it.
const FRESH_BYTES: usize = 8 << 20;
const MOST_FRESH_BYTES: usize = 64 << 20;
/// With nothing to do for so long, a checkpoint is made.
const IDLE: Duration = Duration::from_millis(500);
/// Blocks of a group with more bytes are synced where they lie; those of a smaller one go through the journal, which saves a sync.
const JOURNALED: usize = 1 << 20;

/// Resolves a ticket.
pub(super) type Resolver = oneshot::Sender<Result<(), StoreError>>;

/// What the writer is asked to do.
pub(super) enum Command {
    Run(Work, Resolver),
    Do(Errand),
}

/// What is done between groups.
pub(super) enum Errand {
    /// Reap everything that can be reaped.
    Reap(Resolver),
    /// Check everything, while nothing is written.
    Check(SyncSender<Result<CheckReport, StoreError>>),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    files: Arc<dyn Files>,
    current: Option<Current>,
    /// Writing failed: what the current segment has behind its committed end is unknown, so the next group starts another one.
    abandon: bool,
    /// There may be something to reap.
    dead: bool,
    pause: Duration,
    groups: u32,
    journal: Journal,
    /// Bytes that the journal holds and no checkpoint has begun to bring to their places.
    fresh: usize,
    /// Segments with blocks that are durable in the journal only.
    dirty: BTreeSet<u64>,
    checkpoint: Option<Checkpoint>,
    /// What a checkpoint failed to do.
    unfinished: Option<Scope>,
    /// Not before this, after one that failed.
    retry_at: Option<Instant>,
}

/// A checkpoint at work.
struct Checkpoint {
    thread: JoinHandle<Result<(), StoreError>>,
    scope: Scope,
}

/// What a checkpoint is about.
struct Scope {
    /// The journals up to this one are not needed afterwards.
    generation: u64,
    /// Segments to sync.
    dirty: BTreeSet<u64>,
}

/// The segment that is open for writing.
struct Current {
    id: u64,
    end: u64,
    file: Box<dyn SegmentFile>,
    buffer: Vec<u8>,
}

impl Current {
    fn write_out(&mut self) -> std::io::Result<()> {
        self.file.append(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.write_out()?;
        self.file.sync()
    }
}

enum Next {
    Command(Command),
    Idle,
    Closed,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, files: Arc<dyn Files>, journal: Journal) -> Self {
        Self {
            shared,
            files,
            current: None,
            abandon: false,
            dead: true,
            pause: Duration::ZERO,
            groups: 0,
            journal,
            fresh: 0,
            dirty: BTreeSet::new(),
            checkpoint: None,
            unfinished: None,
            retry_at: None,
        }
    }

    /// Serves until every sender of the queue is gone and the queue is empty.
    pub(super) fn serve(mut self, queue: &Receiver<Command>) {
        loop {
            match self.next(queue) {
                Next::Command(Command::Run(work, resolver)) => self.group(work, resolver, queue),
                Next::Command(Command::Do(errand)) => self.run_errand(errand),
                Next::Idle if self.dead => self.reap_step(),
                // Failures are logged, and what is committed stays in the journal.
                Next::Idle => drop(self.start_checkpoint()),
                Next::Closed => return drop(self.checkpoint()),
            }
        }
    }

    fn next(&mut self, queue: &Receiver<Command>) -> Next {
        if !self.dead && self.fresh == 0 && self.checkpoint.is_none() && self.unfinished.is_none() {
            return queue.recv().map_or(Next::Closed, Next::Command);
        }
        if self.dead && self.groups >= REAP_EVERY {
            return Next::Idle;
        }
        match queue.recv_timeout(if self.dead { self.pause } else { IDLE }) {
            Ok(command) => Next::Command(command),
            Err(RecvTimeoutError::Timeout) => Next::Idle,
            Err(RecvTimeoutError::Disconnected) => Next::Closed,
        }
    }

    fn group(&mut self, work: Work, resolver: Resolver, queue: &Receiver<Command>) {
        let mut group = match self.begin() {
            Ok(group) => group,
            Err(error) => return resolve(resolver, Err(error)),
        };
        let mut results = vec![(resolver, self.run(&mut group, work))];
        let mut behind = None;
        while results.len() < GROUP_LEN && group.bytes < GROUP_BYTES {
            match queue.try_recv() {
                Ok(Command::Run(work, resolver)) => results.push((resolver, self.run(&mut group, work))),
                Ok(Command::Do(errand)) => {
                    behind = Some(errand);
                    break;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        self.dead |= group.changes.keys().any(|key| key.first() == Some(&key::DEAD));
        self.groups = self.groups.saturating_add(1);
        let committed = self.commit(group);
        if let Err(error) = &committed {
            tracing::error!(%error, transactions = results.len(), "a group of transactions failed");
        }
        // A transaction that failed by itself may have seen others of the group, so that it too is answered only now.
        for (resolver, result) in results {
            resolve(resolver, result.and_then(|()| committed.clone()));
        }
        if let Some(errand) = behind {
            self.run_errand(errand);
        }
    }

    fn begin(&mut self) -> Result<Layer, StoreError> {
        self.shared.index.revive()?;
        if self.journal.is_broken() {
            self.journal.rotate();
        }
        if self.fresh >= MOST_FRESH_BYTES {
            self.checkpoint()?;
        } else if self.fresh >= FRESH_BYTES {
            self.start_checkpoint()?;
        }
        let mut state = self.shared.state()?;
        if self.abandon {
            state.segment = state.segment.checked_add(1).ok_or(StoreError::Closed)?;
            state.end = HEADER;
        }
        Ok(Layer::new(state))
    }

    fn run(&self, group: &mut Layer, work: Work) -> Result<(), StoreError> {
        let mut txn = EmbeddedTxn::new(&self.shared, group);
        catch_unwind(AssertUnwindSafe(|| work(&mut txn))).unwrap_or(Err(StoreError::Panicked))?;
        let own = txn.finish()?;
        group.absorb(own);
        Ok(())
    }

    fn commit(&mut self, group: Layer) -> Result<(), StoreError> {
        if group.changes.is_empty() {
            return Ok(());
        }
        self.check_space(group.bytes)?;
        let has_blocks = !group.staged.is_empty();
        let result = self.write(group);
        if result.is_ok() {
            self.abandon = false;
        } else if has_blocks {
            self.abandon = true;
            self.current = None;
        }
        result
    }

    fn write(&mut self, group: Layer) -> Result<(), StoreError> {
        let through_journal = group.staged.values().map(Bytes::len).sum::<usize>() <= JOURNALED;
        self.write_blocks(&group)?;
        if !through_journal && let Some(current) = &mut self.current {
            current.sync().map_err(|error| StoreError::io(self.shared.segments.folder(), &error))?;
        }
        let Layer { mut changes, staged, state, bytes } = group;
        let state = State { group: state.group.checked_add(1).ok_or(StoreError::Closed)?, ..state };
        changes.insert(key::meta("state"), Some(state.encode()));
        if through_journal {
            self.journal.append(state.group, &changes, &staged)?;
            self.dirty.extend(staged.keys().map(|(segment, _)| *segment));
        } else {
            self.journal.append(state.group, &changes, &Blocks::new())?;
        }
        // Keys and the memory around an entry count too.
        self.fresh = self.fresh.saturating_add(bytes).saturating_add(changes.len().saturating_mul(100));
        self.shared.index.publish(changes);
        Ok(())
    }

    /// Brings everything that is committed to its place, and empties the journal.
    fn checkpoint(&mut self) -> Result<(), StoreError> {
        // Whether one at work fails shows when it is taken up again.
        drop(self.end_checkpoint(true));
        self.retry_at = None;
        while self.fresh > 0 || self.unfinished.is_some() {
            self.start_checkpoint()?;
            self.end_checkpoint(true)?;
        }
        Ok(())
    }

    /// Begins a checkpoint beside the groups that follow, unless one is at work, there is nothing to do, or the last one failed just now.
    fn start_checkpoint(&mut self) -> Result<(), StoreError> {
        drop(self.end_checkpoint(false));
        let early = self.retry_at.is_some_and(|at| Instant::now() < at);
        if self.checkpoint.is_some() || early || (self.fresh == 0 && self.unfinished.is_none()) {
            return Ok(());
        }
        let scope = self.unfinished.take().unwrap_or_else(|| {
            self.fresh = 0;
            Scope { generation: self.journal.rotate(), dirty: std::mem::take(&mut self.dirty) }
        });
        self.shared.index.freeze();
        let (shared, files, dirty) = (self.shared.clone(), self.files.clone(), scope.dirty.clone());
        let spawned = thread::Builder::new().name("store-checkpoint".into()).spawn(move || bring_home(&shared, &*files, &dirty));
        match spawned {
            Ok(thread) => {
                self.checkpoint = Some(Checkpoint { thread, scope });
                Ok(())
            }
            Err(error) => {
                self.unfinished = Some(scope);
                Err(StoreError::io(self.shared.segments.folder(), &error))
            }
        }
    }

    /// Ends a checkpoint that is done, or waits for it.
    fn end_checkpoint(&mut self, wait: bool) -> Result<(), StoreError> {
        let Some(Checkpoint { thread, scope }) = self.checkpoint.take_if(|running| wait || running.thread.is_finished()) else {
            return Ok(());
        };
        match thread.join().unwrap_or(Err(StoreError::Panicked)) {
            Ok(()) => {
                self.retry_at = None;
                self.journal.remove(scope.generation);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "a checkpoint failed: what is committed stays in the journal");
                self.unfinished = Some(scope);
                self.retry_at = Instant::now().checked_add(PAUSE_AFTER_FAILURE);
                Err(error)
            }
        }
    }

    /// Refuses before sled meets the full disk: it would have to be opened again.
    fn check_space(&self, bytes: usize) -> Result<(), StoreError> {
        let needed = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(self.shared.reserve_bytes);
        let folder = self.shared.segments.folder();
        match self.files.free(folder) {
            Some(free) if free < needed => Err(StoreError::Full { place: folder.display().to_string() }),
            _ => Ok(()),
        }
    }

    fn write_blocks(&mut self, group: &Layer) -> Result<(), StoreError> {
        for ((segment, offset), block) in &group.staged {
            let path = self.shared.segments.path(*segment);
            self.write_block(*segment, *offset, block).map_err(|error| StoreError::io(&path, &error))?;
        }
        if group.staged.is_empty() {
            return Ok(());
        }
        match &mut self.current {
            Some(current) => current.write_out().map_err(|error| StoreError::io(self.shared.segments.folder(), &error)),
            None => Ok(()),
        }
    }

    fn write_block(&mut self, segment: u64, offset: u64, block: &[u8]) -> std::io::Result<()> {
        let follows = self.current.as_ref().is_some_and(|current| current.id == segment && current.end == offset);
        if !follows {
            if let Some(mut finished) = self.current.take() {
                finished.sync()?;
            }
            self.current = Some(self.open_segment(segment, offset)?);
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        current.buffer.extend_from_slice(block);
        current.end = offset.saturating_add(u64::try_from(block.len()).unwrap_or(u64::MAX));
        if current.buffer.len() >= WRITE { current.write_out() } else { Ok(()) }
    }

    fn open_segment(&self, id: u64, end: u64) -> std::io::Result<Current> {
        let path = self.shared.segments.path(id);
        if end > HEADER {
            return Ok(Current { id, end, file: self.files.resume(&path, end)?, buffer: Vec::new() });
        }
        let file = self.files.create(&path)?;
        self.files.sync_folder(self.shared.segments.folder())?;
        Ok(Current { id, end, file, buffer: file_header(self.shared.segments.identity(), id) })
    }

    fn run_errand(&mut self, errand: Errand) {
        match errand {
            Errand::Reap(resolver) => self.answer_reap(resolver),
            Errand::Check(answer) => drop(answer.send(check(&self.shared))),
        }
    }

    fn answer_reap(&mut self, resolver: Resolver) {
        self.dead = true;
        loop {
            match self.reap_some() {
                Ok(true) => {}
                Ok(false) => return resolve(resolver, Ok(())),
                Err(error) => return resolve(resolver, Err(error)),
            }
        }
    }

    fn reap_step(&mut self) {
        self.groups = 0;
        match self.reap_some() {
            Ok(_) => self.pause = Duration::ZERO,
            Err(error) => {
                tracing::warn!(%error, "cannot reap deleted objects yet");
                self.pause = PAUSE_AFTER_FAILURE;
            }
        }
    }

    /// Reaps a group's worth; returns whether more may be left.
    fn reap_some(&mut self) -> Result<bool, StoreError> {
        let mut group = self.begin()?;
        let mut txn = EmbeddedTxn::new(&self.shared, &group);
        let (reaped, _) = txn.reap(REAP)?;
        let freed = txn.sweep()?;
        let own = txn.finish()?;
        group.absorb(own);
        self.commit(group)?;
        if !freed.is_empty() {
            // A crash must not find the journal speaking of a segment that is gone.
            self.checkpoint()?;
        }
        for id in freed {
            self.shared.segments.remove(id);
        }
        self.dead = reaped >= REAP;
        Ok(self.dead)
    }
}

/// Nobody may be waiting for it.
fn resolve(resolver: Resolver, result: Result<(), StoreError>) {
    drop(resolver.send(result));
}

/// What a checkpoint does: blocks are synced where they lie, then the index learns of them.
fn bring_home(shared: &Shared, files: &dyn Files, dirty: &BTreeSet<u64>) -> Result<(), StoreError> {
    for id in dirty {
        let path = shared.segments.path(*id);
        files.sync_file(&path).map_err(|error| StoreError::io(&path, &error))?;
    }
    shared.index.thaw()
}

/// Brings what a crash left in the journals to its place. Returns the newest generation that was there.
pub(super) fn replay(shared: &Shared, files: &dyn Files, folder: &Path) -> Result<u64, StoreError> {
    let failed = |error: std::io::Error| StoreError::io(folder, &error);
    let last = journal::generations(folder).map_err(failed)?.last().copied().unwrap_or_default();
    let groups = journal::groups_after(folder, shared.segments.identity(), shared.state()?.group)?;
    if !groups.is_empty() {
        tracing::info!(groups = groups.len(), "taking over what the journal holds");
        let mut dirty = BTreeSet::new();
        for group in groups {
            for ((segment, offset), block) in &group.blocks {
                shared.segments.restore(*segment, *offset, block)?;
                dirty.insert(*segment);
            }
            shared.index.publish(group.changes);
        }
        files.sync_folder(shared.segments.folder()).map_err(failed)?;
        shared.index.freeze();
        bring_home(shared, files, &dirty)?;
    }
    journal::remove(folder, last);
    Ok(last)
}

/// Removes files that no committed group refers to, and cuts what a crash left behind the end of the last segment.
pub(super) fn recover(shared: &Shared, files: &dyn Files) -> Result<(), StoreError> {
    let folder = shared.segments.folder();
    let failed = |error: std::io::Error| StoreError::io(folder, &error);
    let mut known = std::collections::BTreeSet::new();
    shared.walk(KeyRange::of_prefix(vec![key::SEGMENT]), false, |key, _| {
        known.insert(key::number_of(&key)?);
        Ok(true)
    })?;
    let state = shared.state()?;
    for id in super::segment::Segments::ids(folder).map_err(failed)? {
        let path = shared.segments.path(id);
        if !known.contains(&id) {
            tracing::info!(segment = id, "removing a segment that nothing refers to");
            std::fs::remove_file(&path).map_err(failed)?;
        } else if id == state.segment && std::fs::metadata(&path).map_err(failed)?.len() > state.end {
            tracing::info!(segment = id, end = state.end, "cutting what a crash left behind the last block");
            files.resume(&path, state.end).and_then(|mut file| file.sync()).map_err(failed)?;
        }
    }
    Ok(())
}
