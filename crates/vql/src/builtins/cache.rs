//! What queries remember: `cache()` by key, `memoize()` rows by a column. Files are reached through a seam only.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use indexmap::IndexMap;

use crate::args;
use crate::call::Call;
use crate::cancel::CancelToken;
use crate::dict::Dict;
use crate::error::CallError;
use crate::json;
use crate::lambda::Lambda;
use crate::member::{column, row_to_dict};
use crate::registry::Registry;
use crate::rows::StoredQuery;
use crate::scope::{Detached, Scope};
use crate::signature::{Arg, ArgType, Signature};
use crate::text::display;
use crate::value::{Object, Value};

/// The most entries of one cache.
const MAX_CACHE: usize = 1_000_000;
/// Seconds after which a cache starts over, unless the call says otherwise.
const PERIOD: i64 = 60;

pub(super) fn register(registry: &mut Registry) {
    registry.function(
        Signature::function("cache", "Remembers what an expression gave for a key.")
            .args(args![
                Arg::optional("func", ArgType::Lazy, "Evaluated when the key is not known."),
                Arg::optional("lambda", ArgType::Lambda, "Called with the key when it is not known."),
                Arg::optional("name", ArgType::String, "The name of the cache."),
                Arg::optional("key", ArgType::Any, "The key."),
                Arg::optional("period", ArgType::Int, "Seconds after which the cache starts over; 60 unless given."),
                Arg::optional("filename", ArgType::String, "A file from which the cache is read and to which it is written."),
                Arg::optional("max_size", ArgType::UInt, "How many keys it remembers; the oldest go first."),
            ])
            .version(2),
        cache,
    );
    registry.function(
        Signature::function("memoize", "Remembers the rows of a query by the value of a column: get() finds them.")
            .args(args![
                Arg::required("query", ArgType::Query, "Where rows come from."),
                Arg::required("key", ArgType::String, "The column by which rows are found; the last row of a value counts."),
                Arg::optional("period", ArgType::Int, "Seconds after which the query runs again; 60 unless given."),
                Arg::optional("name", ArgType::String, "Memories of the same name are one."),
                Arg::optional("filename", ArgType::String, "A file from which the memory is read and to which it is written."),
            ])
            .version(3),
        memoize,
    );
}

/// Where hosts keep caches that have the name of a file. The language itself has no files.
pub trait CacheStorage: Send + Sync {
    /// The file `name`, on behalf of the principal of `scope`.
    ///
    /// # Errors
    /// The principal may not.
    fn open(&self, name: &str, scope: &Scope) -> Result<Box<dyn CacheFile>, CallError>;
}

/// One such file.
pub trait CacheFile: Send {
    /// Its content. Empty when there is no such file.
    ///
    /// # Errors
    /// It cannot be read.
    fn load(&self) -> Result<Vec<u8>, CallError>;

    /// Replaces its content.
    ///
    /// # Errors
    /// It cannot be written.
    fn save(&self, content: &[u8]) -> Result<(), CallError>;
}

/// The storage of the host, as an extension of the environment.
#[derive(Clone)]
pub struct CacheFiles(pub Arc<dyn CacheStorage>);

/// The caches of a query by name.
#[derive(Default)]
struct Caches(Mutex<IndexMap<String, Arc<Mutex<Cache>>>>);

/// One cache, with the second in which it was begun.
#[derive(Default)]
struct Cache {
    since: i64,
    values: IndexMap<String, Value>,
    lambda: Option<Arc<Lambda>>,
    changed: bool,
}

impl Cache {
    fn encode(&self) -> String {
        let values: Dict = self.values.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        json::encode(&Dict::new().with("since", self.since).with("values", values).into())
    }

    /// Takes over what an earlier query remembered. Anything else in the file is no cache, and is not overwritten.
    fn read(&mut self, content: &[u8]) -> Result<(), CallError> {
        if content.is_empty() {
            return Ok(());
        }
        let no_cache = || CallError::from("the file is not a cache");
        let saved = json::decode_row(content).map_err(|_| no_cache())?;
        let since = saved.get("since").and_then(Value::as_int).ok_or_else(no_cache)?;
        let values = saved.get("values").and_then(Value::as_dict).ok_or_else(no_cache)?;
        self.since = since;
        self.values = values.iter().map(|(key, value)| (key.as_str().to_owned(), value.clone())).collect();
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cache that the call names. Those in files are read when they are first used, and written when the query ends.
fn named(call: &Call) -> Result<Arc<Mutex<Cache>>, CallError> {
    let scope = call.scope();
    let name = match call.opt_string("filename") {
        Some(file) => format!("{file}\0{}", call.string("name")),
        None => call.string("name"),
    };
    let caches = scope.shared::<Caches>();
    let mut caches = locked(&caches.0);
    if let Some(known) = caches.get(&name) {
        return Ok(known.clone());
    }
    let cache = Arc::new(Mutex::new(Cache::default()));
    if let Some(file) = call.opt_string("filename") {
        let storage = scope.extension::<CacheFiles>().ok_or("there are no files here")?;
        let file = storage.0.open(&file, scope)?;
        locked(&cache).read(&file.load()?)?;
        let (kept, log) = (cache.clone(), scope.environment().log.clone());
        scope.on_query_close(move || {
            let cache = locked(&kept);
            if cache.changed
                && let Err(error) = file.save(cache.encode().as_bytes())
            {
                log.log(&format!("ERROR:cache: {error}"));
            }
        });
    }
    caches.insert(name, cache.clone());
    Ok(cache)
}

fn cache(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let key = display(&call.value("key").materialized(scope));
    let period = call.opt_int("period").filter(|period| *period > 0).unwrap_or(PERIOD);
    let size = call.opt_uint("max_size").and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
    let size = size.unwrap_or(MAX_CACHE).min(MAX_CACHE);
    let now = scope.now().unix();
    let cache = named(&call)?;
    let lambda = {
        let mut cache = locked(&cache);
        if now.saturating_sub(cache.since) > period {
            (cache.since, cache.values) = (now, IndexMap::new());
        }
        if let Some(lambda) = call.lambda("lambda") {
            cache.lambda = Some(lambda);
        }
        if let Some(known) = cache.values.get(&key).filter(|_| call.has("key")) {
            return Ok(known.clone());
        }
        cache.lambda.clone()
    };
    if !call.has("key") {
        return Ok(Value::Null);
    }
    let value = match (call.has("func"), lambda) {
        (true, _) => call.lazy("func"),
        (false, Some(lambda)) => lambda.call(scope, &[call.value("key")]),
        (false, None) => return Err("either func or lambda is needed".into()),
    };
    let value = value.materialized(scope);
    if scope.keep(value.weight().saturating_add(key.len() as u64)) {
        let mut cache = locked(&cache);
        while cache.values.len() >= size {
            cache.values.shift_remove_index(0);
        }
        cache.values.insert(key, value.clone());
        cache.changed = true;
    }
    Ok(value)
}

/// The memories of a query, by name or place of call.
#[derive(Default)]
struct Memories(Mutex<IndexMap<String, Arc<Memory>>>);

/// The rows of a query by the value of a column.
struct Memory {
    query: StoredQuery,
    column: String,
    period: Duration,
    origin: Detached,
    cancel: CancelToken,
    state: Mutex<Remembered>,
}

/// What is remembered, until when, and which thread is about to change it.
#[derive(Default)]
struct Remembered {
    rows: Option<(Duration, IndexMap<String, Value>)>,
    reader: Option<ThreadId>,
    /// Whether the rows are newer than the file.
    changed: bool,
}

impl Remembered {
    /// Takes over what an earlier query remembered, unless that is too old. Anything else in the file is no memory, and is not overwritten.
    fn read(&mut self, content: &[u8], period: Duration, scope: &Scope) -> Result<(), CallError> {
        if content.is_empty() {
            return Ok(());
        }
        let none = || CallError::from("the file is not a memory");
        let saved = json::decode_row(content).map_err(|_| none())?;
        let since = saved.get("since").and_then(Value::as_int).ok_or_else(none)?;
        let rows = saved.get("rows").and_then(Value::as_dict).ok_or_else(none)?;
        let age = u64::try_from(scope.now().unix().saturating_sub(since)).map_or(Duration::ZERO, Duration::from_secs);
        if age < period {
            let until = scope.elapsed().saturating_add(period.saturating_sub(age));
            self.rows = Some((until, rows.iter().map(|(key, row)| (key.as_str().to_owned(), row.clone())).collect()));
        }
        Ok(())
    }

    /// What the file is to hold, if it must be written.
    fn encode(&self, now: i64, elapsed: Duration, period: Duration) -> Option<String> {
        let (until, rows) = self.rows.as_ref().filter(|_| self.changed)?;
        let age = i64::try_from(period.saturating_sub(until.saturating_sub(elapsed)).as_secs()).unwrap_or(0);
        let rows: Dict = rows.iter().map(|(key, row)| (key.clone(), row.clone())).collect();
        Some(json::encode(&Dict::new().with("since", now.saturating_sub(age)).with("rows", rows).into()))
    }
}

impl Memory {
    /// The row whose column is `key`. Reads the query first when that was never done, or too long ago.
    fn find(&self, key: &str) -> Option<Value> {
        const POLL: Duration = Duration::from_millis(10);
        let scope = self.origin.open(self.cancel.child());
        let now = scope.elapsed();
        loop {
            let mut state = locked(&self.state);
            if let Some((until, known)) = &state.rows
                && now < *until
            {
                return known.get(key).cloned();
            }
            match state.reader {
                None => {
                    state.reader = Some(std::thread::current().id());
                    break;
                }
                // The query asks for what it is about to find.
                Some(reader) if reader == std::thread::current().id() => return None,
                Some(_) => {}
            }
            drop(state);
            if self.cancel.wait(POLL) {
                return None;
            }
        }
        let mut known = IndexMap::new();
        for row in self.query.collect(&scope).into_iter().take(MAX_CACHE) {
            let row = Value::Dict(row_to_dict(&row)).materialized(&scope);
            known.insert(display(&column(&row, &self.column).unwrap_or_default()), row);
        }
        let found = known.get(key).cloned();
        *locked(&self.state) = Remembered { rows: Some((now.saturating_add(self.period), known)), reader: None, changed: true };
        found
    }
}

struct Memoized(Arc<Memory>);

impl Object for Memoized {
    fn type_name(&self) -> &'static str {
        "memoize"
    }

    fn member(&self, name: &str) -> Option<Value> {
        self.0.find(name)
    }

    fn is_true(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn memoize(call: Call) -> Result<Value, CallError> {
    let scope = call.scope();
    let query = call.query("query").ok_or("Field query is required")?;
    let file = call.opt_string("filename").filter(|file| !file.is_empty());
    let name = call.opt_string("name").filter(|name| !name.is_empty());
    let name =
        name.unwrap_or_else(|| file.as_ref().map_or_else(|| format!("\0{}", call.site), |file| format!("{file}\0{}", call.string("key"))));
    let memories = scope.shared::<Memories>();
    let mut memories = locked(&memories.0);
    if let Some(known) = memories.get(&name) {
        return Ok(Value::Object(Arc::new(Memoized(known.clone()))));
    }
    let period = call.opt_int("period").filter(|period| *period > 0).unwrap_or(PERIOD);
    let period = Duration::from_secs(period.unsigned_abs());
    let mut state = Remembered::default();
    let file = match file {
        Some(file) => {
            let storage = scope.extension::<CacheFiles>().ok_or("there are no files here")?;
            let file = storage.0.open(&file, scope)?;
            state.read(&file.load()?, period, scope)?;
            Some(file)
        }
        None => None,
    };
    let memory = Arc::new(Memory {
        query,
        column: call.string("key"),
        period,
        origin: scope.detach(),
        cancel: scope.cancel_token().clone(),
        state: Mutex::new(state),
    });
    if let Some(file) = file {
        let (kept, log) = (Arc::downgrade(&memory), scope.environment().log.clone());
        let clock = scope.environment().clock.clone();
        scope.on_query_close(move || {
            let Some(memory) = kept.upgrade() else { return };
            let content = locked(&memory.state).encode(clock.now().unix(), clock.elapsed(), memory.period);
            if let Some(content) = content
                && let Err(error) = file.save(content.as_bytes())
            {
                log.log(&format!("ERROR:memoize: {error}"));
            }
        });
    }
    memories.insert(name, memory.clone());
    Ok(Value::Object(Arc::new(Memoized(memory))))
}
