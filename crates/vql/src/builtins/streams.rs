//! Rows as they flow: `dedup`, `delay`, `fifo`, `for`, `sample`; and `generate()`, one query that many read.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indexmap::IndexMap;

use super::later::beside;
use crate::args;
use crate::call::Call;
use crate::dict::{Dict, Key};
use crate::error::CallError;
use crate::member::column;
use crate::registry::Registry;
use crate::rows::{RowSource, Rows, StoredQuery};
use crate::scope::{Detached, Scope};
use crate::signature::{Arg, ArgType, Signature};
use crate::text::display;
use crate::value::Value;

/// Rows that wait for a slow reader.
const WAITING: usize = 1000;
/// The most rows, keys or listeners that one plugin keeps.
const MAX_KEPT: usize = 1_000_000;
/// How often a full channel is looked at.
const POLL: Duration = Duration::from_millis(10);
/// How long a generator waits for its readers, unless the call says otherwise.
const FAN_OUT_LIMIT: Duration = Duration::from_secs(10);
/// How often a reader that waits looks whether it must stop.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn register(registry: &mut Registry) {
    const QUERY: Arg = Arg::required("query", ArgType::Query, "Where rows come from.");
    registry.plugin(
        Signature::plugin("dedup", "Drops rows like one that came shortly before.").args(args![
            Arg::required("key", ArgType::String, "The column that tells rows apart."),
            QUERY,
            Arg::optional("timeout", ArgType::UInt, "Seconds for which a row is remembered; 60 unless given."),
            Arg::optional("size", ArgType::Int, "How many rows are remembered; 1000 unless given."),
        ]),
        dedup,
    );
    registry.plugin(
        Signature::plugin("delay", "Gives each row some seconds after it came.").args(args![
            QUERY,
            Arg::required("delay", ArgType::Int, "Seconds."),
            Arg::optional("buffer_size", ArgType::Int, "How many rows wait at most; 1000 unless given."),
        ]),
        delay,
    );
    registry.plugin(
        Signature::plugin("fifo", "Reads a query in the background, and gives the last of its rows at any moment.").args(args![
            QUERY,
            Arg::optional("max_age", ArgType::Int, "Seconds for which a row stays; 60 unless given."),
            Arg::optional("max_rows", ArgType::Int, "How many rows stay; 1000 unless given."),
            Arg::optional("flush", ArgType::Bool, "Forget the rows once they are given."),
        ]),
        fifo,
    );
    registry.plugin(
        Signature::plugin("for", "Runs a query for each row of another, which a variable holds.").args(args![
            Arg::required("var", ArgType::String, "The variable."),
            Arg::required("foreach", ArgType::Query, "Where rows come from."),
            Arg::optional("query", ArgType::Query, "What runs for each row."),
        ]),
        for_each,
    );
    registry.plugin(
        Signature::plugin("sample", "Gives every n-th row, the first one first.")
            .args(args![QUERY, Arg::required("n", ArgType::Int, "The distance.")]),
        sample,
    );
    registry.function(
        Signature::function("generate", "Runs a query once for all that read from it at the same time.")
            .args(args![
                Arg::optional("name", ArgType::String, "Generators of the same name are one."),
                Arg::optional("query", ArgType::Query, "Where rows come from."),
                Arg::optional("delay", ArgType::Int, "Seconds after the first reader at which the query starts, so that others can join."),
                Arg::optional("with_file_buffer", ArgType::Bool, "Not used: rows wait in memory, and a slow reader holds up the others."),
                Arg::optional(
                    "fan_out",
                    ArgType::Int,
                    "Start as soon as there are so many readers; without a delay, after 10 seconds at the latest."
                ),
                Arg::optional("description", ArgType::String, "For people."),
            ])
            .version(3),
        generate,
    );
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn source(call: &Call) -> Rows {
    call.query("query").map_or_else(Rows::none, |query| query.open(call.scope()))
}

/// A count from an argument: `default` when it is left out or not positive.
fn count(call: &Call, name: &str, default: usize) -> usize {
    call.opt_int(name).and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0).unwrap_or(default).min(MAX_KEPT)
}

fn dedup(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let key = call.string("key");
    let timeout = call.opt_uint("timeout").filter(|seconds| *seconds > 0).map_or(Duration::from_secs(60), Duration::from_secs);
    let size = count(&call, "size", WAITING);
    let mut rows = source(&call);
    let mut seen: IndexMap<String, Duration> = IndexMap::new();
    Ok(Rows::from_fn(move || {
        loop {
            let row = match rows.next()? {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            let now = scope.elapsed();
            let value = column(&row, &key).unwrap_or_default().materialized(&scope);
            let key = format!("{}\0{}", value.type_name(), display(&value));
            if seen.get(&key).is_some_and(|at| now.saturating_sub(*at) < timeout) {
                continue;
            }
            seen.shift_remove(&key);
            if seen.len() >= size {
                seen.shift_remove_index(0);
            }
            seen.insert(key, now);
            return Some(Ok(row));
        }
    }))
}

fn delay(call: Call) -> Result<Rows, CallError> {
    const AT: &str = "at";
    const ROW: &str = "row";
    let scope = call.scope().clone();
    let delay = i128::from(call.int("delay").max(0)).saturating_mul(1_000_000_000);
    let mut source = source(&call);
    let clock = scope.clone();
    let stamped = Rows::from_fn(move || {
        Some(source.next()?.map(|row| {
            let at = u64::try_from(clock.elapsed().as_nanos()).unwrap_or(u64::MAX);
            Dict::new().with(AT, at).with(ROW, row).into()
        }))
    });
    let mut waiting = super::control::read_ahead(&scope, count(&call, "buffer_size", WAITING), stamped);
    Ok(Rows::from_fn(move || {
        let stamped = match waiting.next()? {
            Ok(row) => row,
            Err(error) => return Some(Err(error)),
        };
        let at = match column(&stamped, AT) {
            Some(Value::UInt(at)) => i128::from(at),
            _ => 0,
        };
        let passed = i128::try_from(scope.elapsed().as_nanos()).unwrap_or(i128::MAX).saturating_sub(at);
        let left = u64::try_from(delay.saturating_sub(passed)).unwrap_or(0);
        if left > 0 && scope.sleep(Duration::from_nanos(left)) {
            return None;
        }
        Some(Ok(column(&stamped, ROW).unwrap_or_default()))
    }))
}

fn for_each(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope().clone();
    let name = Key::from(call.string("var"));
    let mut rows = call.query("foreach").map_or_else(Rows::none, |query| query.open(&scope));
    let Some(query) = call.query("query") else { return Ok(rows) };
    let mut current: Option<Rows> = None;
    Ok(Rows::from_fn(move || {
        loop {
            if let Some(found) = current.as_mut().and_then(Iterator::next) {
                return Some(found);
            }
            if scope.stopped() {
                return None;
            }
            let row = match rows.next()? {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            let inner = scope.child(Dict::new().with(name.clone(), row));
            current = Some(inner.map_or_else(Rows::none, |scope| query.open(&scope)));
        }
    }))
}

fn sample(call: Call) -> Result<Rows, CallError> {
    let distance = usize::try_from(call.int("n")).ok().filter(|n| *n > 0).ok_or("n must be greater than 0")?;
    Ok(Rows::try_of(source(&call).step_by(distance)))
}

/// The rows that `fifo()` keeps, by the place of its call.
#[derive(Default)]
struct Fifos(Mutex<HashMap<usize, Kept>>);

/// Rows with the moments at which they came, the oldest first.
type Kept = Arc<Mutex<VecDeque<(Duration, Value)>>>;

fn fifo(call: Call) -> Result<Rows, CallError> {
    let scope = call.scope();
    let max_age = Duration::from_secs(count(&call, "max_age", 60) as u64);
    let max_rows = count(&call, "max_rows", WAITING);
    let fifos = scope.shared::<Fifos>();
    let kept = match locked(&fifos.0).entry(call.site) {
        std::collections::hash_map::Entry::Occupied(known) => known.get().clone(),
        std::collections::hash_map::Entry::Vacant(vacant) => {
            let kept = Arc::new(Mutex::new(VecDeque::new()));
            fill(&call, kept.clone(), max_rows)?;
            vacant.insert(kept).clone()
        }
    };
    let mut kept = locked(&kept);
    let now = scope.elapsed();
    kept.retain(|(at, _)| now.saturating_sub(*at) < max_age);
    let rows: Vec<Value> = kept.iter().map(|(_, row)| row.clone()).collect();
    if call.bool("flush") {
        kept.clear();
    }
    Ok(Rows::of(rows))
}

/// Reads the query of `call` on a thread until the whole query ends.
fn fill(call: &Call, kept: Kept, max_rows: usize) -> Result<(), CallError> {
    let scope = call.scope();
    let Some(query) = call.query("query") else { return Ok(()) };
    beside(scope, "vql fifo", move |scope| {
        for row in query.open(scope) {
            let Ok(row) = row else { return };
            let mut kept = locked(&kept);
            while kept.len() >= max_rows {
                kept.pop_front();
            }
            kept.push_back((scope.elapsed(), row.materialized(scope)));
        }
    })
}

/// The generators of a query, by name or place of call.
#[derive(Default)]
struct Generators(Mutex<HashMap<String, Arc<Generator>>>);

/// A query that runs once for all its readers.
struct Generator {
    query: StoredQuery,
    origin: Detached,
    delay: Duration,
    fan_out: usize,
    run: Mutex<Run>,
}

/// Who reads, and whether the query runs for them.
#[derive(Default)]
struct Run {
    listeners: Vec<SyncSender<Value>>,
    running: bool,
}

fn generate(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let name = call.opt_string("name").filter(|name| !name.is_empty()).unwrap_or_else(|| format!("\0{}", call.site));
    let generators = scope.shared::<Generators>();
    let mut generators = locked(&generators.0);
    let generator = match generators.get(&name) {
        Some(known) => known.clone(),
        None => {
            let generator = Arc::new(Generator {
                query: call.query("query").ok_or_else(|| CallError::Argument("Field query is required".to_owned()))?,
                origin: scope.detach(),
                delay: Duration::from_secs(call.int("delay").max(0).unsigned_abs()),
                fan_out: count(&call, "fan_out", 1),
                run: Mutex::default(),
            });
            generators.insert(name, generator.clone());
            generator
        }
    };
    Ok(StoredQuery::new(Listening(generator)).into())
}

struct Listening(Arc<Generator>);

impl RowSource for Listening {
    fn open(&self, scope: &Scope) -> Rows {
        let (sender, receiver) = sync_channel(WAITING);
        let mut run = locked(&self.0.run);
        run.listeners.push(sender);
        if !run.running {
            run.running = true;
            let generator = self.0.clone();
            if let Err(error) = generator.clone().start(scope) {
                scope.log(format!("generate: {error}"));
                (run.running, run.listeners) = (false, Vec::new());
            }
        }
        drop(run);
        Rows::try_of(Listener { receiver, scope: scope.clone() })
    }
}

impl Generator {
    /// Runs the query on a thread, until its end or that of its readers.
    fn start(self: Arc<Self>, scope: &Scope) -> Result<(), CallError> {
        beside(scope, "vql generator", move |scope| {
            if self.await_readers(scope) {
                let origin = self.origin.open(scope.cancel_token().clone());
                for row in self.query.open(&origin) {
                    let Ok(row) = row else { break };
                    if !self.send(&row.materialized(&origin), &origin) {
                        break;
                    }
                }
            }
            *locked(&self.run) = Run::default();
        })
    }

    /// Waits for the readers that are to come. False when the query must stop.
    fn await_readers(&self, scope: &Scope) -> bool {
        let limit = if self.delay.is_zero() && self.fan_out > 1 { FAN_OUT_LIMIT } else { self.delay };
        let mut waited = Duration::ZERO;
        while scope.environment().clock.waits() && waited < limit {
            if self.fan_out > 1 && locked(&self.run).listeners.len() >= self.fan_out {
                break;
            }
            let step = POLL.min(limit.saturating_sub(waited));
            if scope.sleep(step) {
                return false;
            }
            waited = waited.saturating_add(step);
        }
        !scope.stopped()
    }

    /// Gives the row to all readers that are still there. False when there is none, or the query must stop.
    fn send(&self, row: &Value, scope: &Scope) -> bool {
        let listeners = locked(&self.run).listeners.clone();
        let mut gone = Vec::new();
        for (at, listener) in listeners.iter().enumerate() {
            let mut row = row.clone();
            loop {
                match listener.try_send(row) {
                    Ok(()) => break,
                    Err(TrySendError::Disconnected(_)) => {
                        gone.push(at);
                        break;
                    }
                    Err(TrySendError::Full(back)) => {
                        if scope.cancel_token().wait(POLL) {
                            return false;
                        }
                        row = back;
                    }
                }
            }
        }
        let mut run = locked(&self.run);
        for at in gone.into_iter().rev() {
            if at < run.listeners.len() {
                run.listeners.remove(at);
            }
        }
        !run.listeners.is_empty() && !scope.stopped()
    }
}

/// One reader of a generator.
struct Listener {
    receiver: Receiver<Value>,
    scope: Scope,
}

impl Iterator for Listener {
    type Item = Result<Value, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.receiver.recv_timeout(LOOK) {
                Ok(row) => return Some(Ok(row)),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.scope.sleep(Duration::ZERO) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
